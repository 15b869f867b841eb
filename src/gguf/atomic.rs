//! A file that appears whole or not at all.
//!
//! The bytes go to a temporary sibling, are synced, checked by the caller through [`AtomicFile::reopen`], and
//! only then take the target's name; the folder is synced last. Where the system offers files without a name
//! (Linux's `O_TMPFILE`), a killed writer leaves nothing behind; elsewhere it leaves a `.NAME.*.partial`, which
//! the next writer to the same target removes, unless its own writer still lives and holds its lock.
//!
//! Refuses to replace a file unless told to.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::source::{Source, io_error};

/// How much is copied between two calls of the progress function, in bytes.
const STEP: u64 = 16 << 20;

/// Called with the bytes written so far and the bytes in all; `false` stops the writer.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// A file on its way to `target`.
pub(crate) struct AtomicFile {
    target: PathBuf,
    replace: bool,
    file: fs::File,
    /// The temporary name, where the file has one.
    temporary: Option<PathBuf>,
    written: u64,
}

impl AtomicFile {
    /// Starts a file that will become `target`; an existing one is refused unless `replace`.
    pub fn create(target: &Path, replace: bool) -> Result<AtomicFile> {
        if !replace && target.symlink_metadata().is_ok() {
            return Err(Error::OutputExists { path: target.to_path_buf() });
        }
        sweep(target);
        #[cfg(target_os = "linux")]
        if let Some(file) = unnamed(target)? {
            return Ok(AtomicFile { target: target.to_path_buf(), replace, file, temporary: None, written: 0 });
        }
        AtomicFile::create_named(target, replace)
    }

    /// As [`AtomicFile::create`], with a temporary name, for systems that know no unnamed files.
    fn create_named(target: &Path, replace: bool) -> Result<AtomicFile> {
        faults::step("create").map_err(|source| io_error(target, CREATE, source))?;
        for attempt in 0.. {
            let path = temporary_name(target, attempt);
            match fs::File::options().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    lock(&file);
                    let temporary = Some(path);
                    return Ok(AtomicFile { target: target.to_path_buf(), replace, file, temporary, written: 0 });
                }
                Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists && attempt < 100 => {}
                Err(source) => return Err(io_error(target, CREATE, source)),
            }
        }
        unreachable!("the loop returns at its hundredth attempt")
    }

    /// How many bytes have been written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        faults::step("write")
            .and_then(|()| self.file.write_all(bytes))
            .map_err(|source| io_error(&self.target, "write the file", source))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends the bytes of `range`, by the kernel alone where it can (which on some file systems shares the
    /// blocks instead of copying them).
    pub(super) fn copy(
        &mut self,
        source: &Source,
        range: Range<u64>,
        total: u64,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + STEP);
            let done = self.copy_by_kernel(source, at..end)?;
            if done == 0 {
                source.for_each_chunk(at..end, &mut |bytes| self.write_all(bytes))?;
                at = end;
            } else {
                at += done;
                self.written += done;
            }
            if !progress(self.written, total) {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Copies a first part of `range`; 0 where the system cannot do it for these files.
    #[cfg(target_os = "linux")]
    fn copy_by_kernel(&mut self, source: &Source, range: Range<u64>) -> Result<u64> {
        use rustix::io::Errno;
        let Some(handle) = source.handle() else {
            return Ok(0);
        };
        let mut from = range.start;
        let len = (range.end - range.start) as usize;
        faults::step("write").map_err(|source| io_error(&self.target, "write the file", source))?;
        match rustix::fs::copy_file_range(handle, Some(&mut from), &self.file, None, len) {
            Ok(done) => Ok(done as u64),
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => Ok(0),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(io_error(&self.target, "write the file", error.into())),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn copy_by_kernel(&mut self, _: &Source, _: Range<u64>) -> Result<u64> {
        Ok(0)
    }

    /// Another handle of the same file, to check what has been written.
    pub fn reopen(&mut self) -> Result<fs::File> {
        faults::step("reopen")
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.try_clone())
            .map_err(|source| io_error(&self.target, "reopen the file", source))
    }

    /// Syncs the file, gives it its name, and syncs the folder.
    ///
    /// After an error the old file is whole; only where the folder's sync fails is the new one already in
    /// its place, whole as well.
    pub fn commit(mut self) -> Result<()> {
        faults::step("sync")
            .and_then(|()| self.file.sync_all())
            .map_err(|source| io_error(&self.target, "sync the file", source))?;
        #[cfg(target_os = "linux")]
        if self.temporary.is_none() {
            if !self.replace {
                return match faults::step("link").and_then(|()| link(&self.file, &self.target)) {
                    Ok(()) => sync_folder(&self.target),
                    Err(source) => Err(self.naming_error(source)),
                };
            }
            for attempt in 0.. {
                let path = temporary_name(&self.target, attempt);
                match faults::step("link").and_then(|()| link(&self.file, &path)) {
                    Ok(()) => {
                        lock(&self.file);
                        self.temporary = Some(path);
                        break;
                    }
                    Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists && attempt < 100 => {}
                    Err(source) => return Err(self.naming_error(source)),
                }
            }
        }
        let Some(temporary) = self.temporary.clone() else {
            return Ok(());
        };
        let renamed = if self.replace {
            faults::step("rename").and_then(|()| fs::rename(&temporary, &self.target))
        } else {
            faults::step("rename").and_then(|()| rename_new(&temporary, &self.target))
        };
        renamed.map_err(|source| self.naming_error(source))?;
        self.temporary = None;
        sync_folder(&self.target)
    }

    fn naming_error(&self, source: std::io::Error) -> Error {
        if source.kind() == std::io::ErrorKind::AlreadyExists {
            return Error::OutputExists { path: self.target.clone() };
        }
        io_error(&self.target, "put the file in its place", source)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            // The error that brought us here matters more than this one.
            let _ = fs::remove_file(path);
        }
    }
}

const CREATE: &str = "create a temporary file beside it";

/// The folder of a file; the current one for a bare name.
fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What the temporary siblings of a target start with.
fn temporary_prefix(target: &Path) -> String {
    format!(".{}.", target.file_name().unwrap_or_default().to_string_lossy())
}

fn temporary_name(target: &Path, attempt: u32) -> PathBuf {
    folder(target).join(format!("{}{}-{attempt}.partial", temporary_prefix(target), std::process::id()))
}

/// Removes what killed writers to the same target have left. A failure here is none of the caller's.
fn sweep(target: &Path) {
    let prefix = temporary_prefix(target);
    let Ok(entries) = fs::read_dir(folder(target)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".partial") && is_abandoned(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Marks the file as having a living writer.
fn lock(file: &fs::File) {
    // Without a lock (some network file systems have none) a second writer to the same target may remove
    // this temporary file, and the rename then fails with an error.
    #[cfg(unix)]
    let _ = rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    #[cfg(not(unix))]
    let _ = file;
}

/// Whether no living writer holds the file.
fn is_abandoned(path: &Path) -> bool {
    #[cfg(unix)]
    {
        let Ok(file) = fs::File::open(path) else {
            return false;
        };
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// A file without a name in the target's folder; `None` where the file system knows none, or where `/proc`,
/// by which it would get its name, is not there.
#[cfg(target_os = "linux")]
fn unnamed(target: &Path) -> Result<Option<fs::File>> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    faults::step("create").map_err(|source| io_error(target, CREATE, source))?;
    if !Path::new("/proc/self/fd").exists() {
        return Ok(None);
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder(target), flags, Mode::from_raw_mode(0o666)) {
        Ok(handle) => Ok(Some(handle.into())),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(io_error(target, CREATE, error.into())),
    }
}

/// Gives an unnamed file a name that must not exist yet.
#[cfg(target_os = "linux")]
fn link(file: &fs::File, path: &Path) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, CWD};
    use std::os::fd::AsRawFd;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Renames to a name that must not exist yet.
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(error),
        // File systems without hard links: the check and the rename are two steps there.
        Err(_) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
    }
}

/// Makes the new name survive a loss of power.
fn sync_folder(target: &Path) -> Result<()> {
    #[cfg(unix)]
    faults::step("sync folder")
        .and_then(|()| fs::File::open(folder(target)))
        .and_then(|folder| folder.sync_all())
        .map_err(|source| io_error(target, "sync the folder of the file", source))?;
    #[cfg(not(unix))]
    let _ = target;
    Ok(())
}

/// Failures on demand, for the tests: each call into the system counts as one step, and a test makes the
/// n-th one fail. Outside tests this is nothing.
mod faults {
    #[cfg(not(test))]
    pub fn step(_: &str) -> std::io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub use tests::step;

    #[cfg(test)]
    pub mod tests {
        use std::cell::Cell;

        thread_local! {
            static REMAINING: Cell<Option<u32>> = const { Cell::new(None) };
        }

        /// Makes the `n`-th step from now fail, counted from 0; `None` lets all pass.
        pub fn fail_at(n: Option<u32>) {
            REMAINING.set(n);
        }

        /// Whether the failure asked for has not happened yet.
        pub fn is_pending() -> bool {
            REMAINING.get().is_some()
        }

        pub fn step(what: &str) -> std::io::Result<()> {
            match REMAINING.get() {
                None => Ok(()),
                Some(0) => {
                    REMAINING.set(None);
                    Err(std::io::Error::new(std::io::ErrorKind::StorageFull, what.to_string()))
                }
                Some(n) => {
                    REMAINING.set(Some(n - 1));
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
