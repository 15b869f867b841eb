//! What a session takes of memory: by how much the process grows.

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// Bytes of this process in memory; 0 where the system does not tell.
pub fn resident() -> u64 {
    let Ok(id) = sysinfo::get_current_pid() else { return 0 };
    let mut system = System::new();
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), false, kind);
    system.process(id).map_or(0, sysinfo::Process::memory)
}
