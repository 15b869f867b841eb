//! What this machine has: memory, disk, cores, and how fast it reads its memory.

use std::collections::BTreeSet;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes that each thread reads in a measurement: more than caches hold.
const BLOCK: usize = 128 << 20;
/// Passes over them; the best one counts.
const PASSES: usize = 8;
/// Places that a thread reads at in turn: one alone does not keep enough of the memory's lines on their way.
const STREAMS: usize = 4;
/// Words of each that are read at once: as wide as the widest registers.
const LANES: usize = 8;

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
    let barrier = Barrier::new(n_threads);
    let passes = |i: usize| {
        // Written by the thread that reads it, so that it lies in the memory nearest to it.
        let block = vec![i as u64 + 1; n_words];
        let pass = || {
            barrier.wait();
            let start = Instant::now();
            black_box(mixed(&block));
            (start, Instant::now())
        };
        (0..PASSES).map(|_| pass()).collect::<Vec<_>>()
    };
    let threads: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let passes = &passes;
        let threads: Vec<_> = (0..n_threads).map(|i| scope.spawn(move || passes(i))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    // From the first thread's start to the last one's end.
    let speed = |pass: usize| {
        let start = threads.iter().map(|times| times[pass].0).min()?;
        let end = threads.iter().map(|times| times[pass].1).max()?;
        Some((BLOCK * threads.len()) as f64 / end.duration_since(start).as_secs_f64())
    };
    (0..PASSES).filter_map(speed).reduce(f64::max)
}

/// All words mixed into one. So little is computed that reading them is what takes the time.
fn mixed(words: &[u64]) -> u64 {
    let mut mixed = [[0u64; LANES]; STREAMS];
    let (streams, _) = words.as_chunks::<LANES>();
    let mut parts = streams.chunks_exact((streams.len() / STREAMS).max(1));
    let mut part = || parts.next().unwrap_or_default().iter();
    for (((a, b), c), d) in part().zip(part()).zip(part()).zip(part()) {
        for (mixed, words) in mixed.iter_mut().zip([a, b, c, d]) {
            for (mixed, word) in mixed.iter_mut().zip(words) {
                *mixed ^= *word;
            }
        }
    }
    mixed.as_flattened().iter().fold(0, |all, word| all ^ word)
}

/// Bytes of the last caches of all cores, where the system tells (Linux does, below `/sys`); weights that fit into them
/// are not read from memory each time.
pub fn last_cache(sys: &Path) -> u64 {
    let Ok(cores) = fs::read_dir(sys.join("devices/system/cpu")) else { return 0 };
    let read = |path: &Path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let caches: BTreeSet<(String, u64)> = cores
        .flatten()
        .filter_map(|core| {
            let cache = core.path().join("cache/index3");
            let size = read(&cache.join("size"))?;
            let (number, unit) =
                size.split_at(size.len() - size.chars().rev().take_while(|c| c.is_alphabetic()).count());
            let unit: u64 = if unit == "M" { 1 << 20 } else { 1 << 10 };
            Some((read(&cache.join("shared_cpu_list"))?, number.parse::<u64>().ok()?.saturating_mul(unit)))
        })
        .collect();
    caches.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!([size(2048), size(5 << 20), size(3 << 30)], ["2 KiB", "5 MiB", "3.0 GiB"]);
    }

    #[test]
    fn each_word_is_read_once() {
        let words: Vec<u64> = (0..LANES as u64 * STREAMS as u64 * 3).map(|i| i * i + 7).collect();
        assert_eq!(mixed(&words), words.iter().fold(0, |all, word| all ^ word));
        assert_eq!(mixed(&[]), 0);
    }

    #[test]
    fn a_cache_that_cores_share_counts_once() {
        let sys = tempfile::tempdir().unwrap();
        for (core, shared) in [("cpu0", "0-1"), ("cpu1", "0-1"), ("cpu2", "2")] {
            let folder = sys.path().join("devices/system/cpu").join(core).join("cache/index3");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("size"), "2048K\n").unwrap();
            fs::write(folder.join("shared_cpu_list"), format!("{shared}\n")).unwrap();
        }
        assert_eq!((last_cache(sys.path()), last_cache(Path::new("/no/such/folder"))), (4 << 20, 0));
    }

    #[test]
    fn this_machine_has_what_it_runs_on() {
        let (total, free) = memory();
        assert!(total >= free && free > 0);
        assert!(cores().0 >= 1 && cores().1 >= 1);
        assert!(bandwidth(1).is_none_or(|bytes| bytes > 1e6));
        assert!(bandwidth(2).is_none_or(|bytes| bytes > 1e6));
        #[cfg(all(unix, feature = "hf"))]
        assert!(free_disk(Path::new("/no/such/folder")).is_some());
    }
}
