//! A writer that is killed, or that meets a full disk, leaves the old file whole and no other beside it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use offramp::gguf::{Error, File, TensorType, WriteOptions, Writer, exits};

/// Names the file that the child is to write.
const TARGET: &str = "OFFRAMP_CRASH_TARGET";
/// The step at which the child waits to be killed; it goes on where there is no such step.
const WAIT_AT: &str = "OFFRAMP_CRASH_WAIT_AT";
/// The largest file the child may write, in bytes.
const LIMIT: &str = "OFFRAMP_CRASH_LIMIT";

const TENSORS: u64 = 40;

/// A file of 40 tensors of 32 KiB.
fn file(fill: u8) -> Writer {
    let mut writer = Writer::new();
    writer.key("fill", fill).unwrap();
    for index in 0..TENSORS {
        writer.tensor(&format!("t.{index}"), TensorType::I8, &[1 << 15], vec![fill; 1 << 15]).unwrap();
    }
    writer
}

#[allow(unsafe_code)]
fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: plain system calls on this process alone; a write beyond the limit then fails instead of
    // raising a signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

/// Run in a child alone: replaces the target, and says each step.
#[test]
fn child() {
    let Some(target) = std::env::var_os(TARGET) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(limit) = number(LIMIT) {
        limit_file_size(limit);
    }
    let wait_at = number(WAIT_AT);
    let mut step = 0;
    let result = file(2).write(target, WriteOptions::replacing(true), &mut |_, _| {
        // To stderr, whose limit does not count: it is a pipe.
        eprintln!("step {step}");
        if Some(step) == wait_at {
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        step += 1;
        true
    });
    match result {
        Ok(()) => eprintln!("written"),
        Err(Error::Io { source, .. }) => eprintln!("refused {:?}", source.kind()),
        Err(other) => eprintln!("refused {other}"),
    }
}

fn spawn(target: &Path, variables: &[(&str, u64)]) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--nocapture"]).env(TARGET, target);
    for (name, value) in variables {
        command.env(name, value.to_string());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn folder_with_old_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.gguf");
    file(1).write(&target, WriteOptions::default(), &mut |_, _| true).unwrap();
    (folder, target)
}

/// The old or the new file, whole.
fn fill_of(target: &Path) -> u8 {
    let bytes = std::fs::read(target).unwrap();
    let fill = File::open(target).unwrap().get("fill").unwrap().as_u64().unwrap() as u8;
    assert!(bytes == file(fill).to_bytes().unwrap(), "a mixture of old and new");
    fill
}

fn others(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "model.gguf").collect()
}

#[test]
fn a_killed_writer_leaves_the_old_file_and_no_other() {
    let (folder, target) = folder_with_old_file();
    for wait_at in 0..TENSORS {
        let mut child = spawn(&target, &[(WAIT_AT, wait_at)]);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let wanted = format!("step {wait_at}");
        assert!(lines.any(|line| line.unwrap().ends_with(&wanted)), "step {wait_at} was never reached");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(fill_of(&target), 1, "killed at step {wait_at}");
        if cfg!(target_os = "linux") {
            assert_eq!(others(folder.path()), [""; 0], "killed at step {wait_at}");
        }
    }
    // Where the system gives unfinished files a name, the next writer clears them away.
    file(1).write(&target, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
    assert_eq!(others(folder.path()), [""; 0]);
}

/// Killed while it runs on, up to and through the last system calls: the old file or the new one, and at
/// most a leftover from between the last two calls, which the next writer clears away.
#[test]
fn a_writer_killed_at_any_moment_leaves_a_whole_file() {
    let (folder, target) = folder_with_old_file();
    let mut replaced = 0;
    for round in 0..60 {
        let mut child = spawn(&target, &[]);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let wanted = format!("step {}", TENSORS - 1);
        assert!(lines.any(|line| line.unwrap().ends_with(&wanted)));
        // Checking, syncing and naming take milliseconds from here; each round lets the writer get further.
        for _ in 0..round * 15_000 {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        replaced += usize::from(fill_of(&target) == 2);
        file(1).write(&target, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
        assert_eq!(others(folder.path()), [""; 0]);
    }
    println!("{replaced} of 60 had replaced the file before they were killed");
}

/// What the child says last.
fn outcome(target: &Path, variables: &[(&str, u64)]) -> String {
    let output = spawn(target, variables).wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    stderr.lines().rev().find(|line| line.starts_with("written") || line.starts_with("refused")).unwrap().to_string()
}

#[test]
fn a_full_disk_leaves_the_old_file_and_no_other() {
    let (folder, target) = folder_with_old_file();
    let size = file(2).size();
    for limit in [0, 1, 100, 4096, size / 3, size / 2, size - 4096, size - 1] {
        assert_eq!(outcome(&target, &[(LIMIT, limit)]), "refused FileTooLarge", "limit {limit}");
        assert_eq!(fill_of(&target), 1);
        assert_eq!(others(folder.path()), [""; 0]);
    }
    assert_eq!(outcome(&target, &[(LIMIT, size)]), "written");
    assert_eq!(fill_of(&target), 2);
}

/// The same on a file system that is really full, where one may be mounted.
#[test]
#[cfg(target_os = "linux")]
fn a_small_file_system_leaves_the_old_file_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |size: u64| {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        mounted.is_ok_and(|output| output.status.success())
    };
    let size = file(1).size();
    let target = folder.path().join("model.gguf");
    for percent in [101, 105, 120, 150, 180, 195, 199] {
        if !mount(size * percent / 100 / 4096 * 4096 + 4096) {
            eprintln!("skipped: no file system may be mounted here");
            return;
        }
        file(1).write(&target, WriteOptions::default(), &mut |_, _| true).unwrap();
        let result = file(2).write(&target, WriteOptions::replacing(true), &mut |_, _| true);
        let (fill, left) = (fill_of(&target), others(folder.path()));
        assert!(Command::new("umount").arg(folder.path()).status().unwrap().success());
        assert!(matches!(&result, Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull));
        assert_eq!((fill, left), (1, vec![]), "{percent} % of the file's size");
    }
}

/// A model of 5 GB, heads put on and taken off again, in constant memory. Needs 15 GB of disk:
/// `cargo test --release --test gguf five -- --ignored --nocapture`.
#[test]
#[ignore = "writes 15 GB"]
#[cfg(target_os = "linux")]
fn five_gigabytes_pass_in_constant_memory() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name);
    // A sparse file with one large tensor, whose data reads as zeros.
    let mut header = Vec::from(*b"GGUF\x03\0\0\0");
    header.extend(1u64.to_le_bytes());
    header.extend(0u64.to_le_bytes());
    header.extend(5u64.to_le_bytes());
    header.extend(b"large");
    header.extend(1u32.to_le_bytes());
    header.extend((5u64 << 30).to_le_bytes());
    header.extend(TensorType::I8.id().to_le_bytes());
    header.extend(0u64.to_le_bytes());
    header.resize(header.len().next_multiple_of(32), 0);
    let mut sparse = std::fs::File::create(path("sparse.gguf")).unwrap();
    sparse.write_all(&header).unwrap();
    sparse.set_len(header.len() as u64 + (5 << 30)).unwrap();

    let large = File::open(path("sparse.gguf")).unwrap();
    let mut model = crate::random::model(1);
    model.copy_tensor(&large, &large.tensors()[0]).unwrap();
    let mut run = |_, _| true;
    model.write(path("model.gguf"), WriteOptions::default(), &mut run).unwrap();
    let base = File::open(path("model.gguf")).unwrap();
    let sidecar = crate::random::open(&crate::random::heads(&base, &[0], &[exits::HeadType::Affine], 2));
    exits::attach(&base, &sidecar, &mut run)
        .unwrap()
        .write(path("merged.gguf"), WriteOptions::default(), &mut run)
        .unwrap();
    let merged = File::open(path("merged.gguf")).unwrap();
    let sha256 = exits::strip(&merged, &path("stripped.gguf"), WriteOptions::default(), &mut run).unwrap();
    assert_eq!(sha256, exits::file_sha256(&base, &mut run).unwrap());

    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    println!("peak resident memory: {peak}");
    let kilobytes: u64 = peak.strip_suffix("kB").unwrap().trim().parse().unwrap();
    assert!(kilobytes < 64 << 10, "{peak}");
}
