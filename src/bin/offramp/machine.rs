//! What this machine has: memory, disk, cores, and how fast it reads its memory.

use std::hint::black_box;
#[cfg(feature = "hf")]
use std::path::Path;
use std::time::Instant;

/// Bytes that each thread reads in a measurement: more than caches hold.
const BLOCK: usize = 128 << 20;
/// Passes over them; the best one counts.
const PASSES: usize = 4;

/// A number of bytes as people read it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// Bytes of memory: all of it, and what can be had without swapping; zeros where the system does not tell.
pub fn memory() -> (u64, u64) {
    offramp::system_memory().unwrap_or_default()
}

/// Bytes of memory that can be had without swapping, if the system tells.
pub fn available_memory() -> Option<u64> {
    Some(memory().1).filter(|bytes| *bytes > 0)
}

/// Bytes that are free where `folder` is or will be, if the system tells.
#[cfg(feature = "hf")]
pub fn free_disk(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    free_bytes(there)
}

#[cfg(all(unix, feature = "hf"))]
fn free_bytes(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(all(not(unix), feature = "hf"))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// How many threads of all programs want to run, over the last minute; 0 where the system does not tell.
pub fn load() -> f64 {
    sysinfo::System::load_average().one
}

/// Physical cores, and threads that they run at once.
pub fn cores() -> (usize, usize) {
    (num_cpus::get_physical(), num_cpus::get())
}

/// Bytes a second that `n_threads` read from memory together; `None` if there is too little memory to measure with.
pub fn bandwidth(n_threads: usize) -> Option<f64> {
    let n_words = BLOCK / size_of::<u64>();
    if available_memory().is_some_and(|free| free < 2 * (BLOCK * n_threads) as u64) {
        return None;
    }
    let blocks: Vec<Vec<u64>> = (0..n_threads).map(|i| vec![i as u64 + 1; n_words]).collect();
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for block in &blocks {
                scope.spawn(move || black_box(sum(block)));
            }
        });
        (BLOCK * n_threads) as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).reduce(f64::max)
}

/// Eight sums at once, so that the additions are not what takes the time.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for chunk in words.chunks_exact(8) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!([size(2048), size(5 << 20), size(3 << 30)], ["2 KiB", "5 MiB", "3.0 GiB"]);
    }

    #[test]
    fn this_machine_has_what_it_runs_on() {
        let (total, free) = memory();
        assert!(total >= free && free > 0);
        assert!(cores().0 >= 1 && cores().1 >= 1);
        assert!(bandwidth(1).is_none_or(|bytes| bytes > 1e6));
        #[cfg(all(unix, feature = "hf"))]
        assert!(free_disk(Path::new("/no/such/folder")).is_some());
    }
}
