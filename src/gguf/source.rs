//! The bytes of a file: mapped where there is a file, owned where a program made them.
//!
//! Long copies and hashes go through [`Source::for_each_chunk`], which reads the file in pieces rather than
//! through the mapping, so that a file of any size passes in constant resident memory.

use std::fs;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// The largest piece that is in memory at once.
const CHUNK: usize = 1 << 20;

/// Where a GGUF's bytes come from.
pub(super) struct Source {
    path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    Mapped { map: memmap2::Mmap, file: fs::File },
    Owned(Vec<u8>),
}

impl Source {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Source> {
        let file = fs::File::open(path).map_err(|source| io_error(path, "open the file", source))?;
        Source::from_handle(file, path)
    }

    /// Maps an open file; `path` names it in messages.
    pub fn from_handle(file: fs::File, path: &Path) -> Result<Source> {
        let metadata = file.metadata().map_err(|source| io_error(path, "read the size of the file", source))?;
        if metadata.is_dir() {
            return Err(io_error(path, "map the file", std::io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the mapping is read-only and private to this value. Another process that truncates the
        // file while it is mapped raises SIGBUS, and one that rewrites it can change bytes after they were
        // checked; both hold for every program that maps a model, llama.cpp included. This crate's own
        // writer never does either: it replaces files by renaming.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) };
        match map {
            Ok(map) => Ok(Source { path: path.to_path_buf(), bytes: Bytes::Mapped { map, file } }),
            // An empty file cannot be mapped on every system; it is as good as no bytes.
            Err(_) if metadata.len() == 0 => Ok(Source { path: path.to_path_buf(), bytes: Bytes::Owned(Vec::new()) }),
            Err(source) => Err(io_error(path, "map the file", source)),
        }
    }

    /// Takes bytes that are no file; `path` names them in messages.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Source {
        Source { path: path.to_path_buf(), bytes: Bytes::Owned(bytes) }
    }

    /// The name of the file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, where there is one.
    pub fn handle(&self) -> Option<&fs::File> {
        match &self.bytes {
            Bytes::Mapped { file, .. } => Some(file),
            Bytes::Owned(_) => None,
        }
    }

    /// Hands the bytes of `range` to `sink` in pieces of at most 1 MiB.
    pub fn for_each_chunk(&self, range: Range<u64>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match &self.bytes {
            Bytes::Owned(bytes) => {
                let range = range.start as usize..range.end as usize;
                bytes[range].chunks(CHUNK).try_for_each(sink)
            }
            Bytes::Mapped { file, .. } => {
                let mut buffer = vec![0; CHUNK.min((range.end - range.start) as usize)];
                let mut at = range.start;
                while at < range.end {
                    let piece = &mut buffer[..CHUNK.min((range.end - at) as usize)];
                    read_exact_at(file, piece, at).map_err(|source| io_error(&self.path, "read the file", source))?;
                    sink(piece)?;
                    at += piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { map, .. } => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// Wraps a system error with what was tried on which file.
pub(super) fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), action, source }
}

#[cfg(unix)]
fn read_exact_at(file: &fs::File, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

#[cfg(windows)]
fn read_exact_at(file: &fs::File, mut buffer: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[read..];
        at += read as u64;
    }
    Ok(())
}
