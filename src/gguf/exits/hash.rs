//! The hashes by which heads know their base, all SHA-256 in lower-case hexadecimal.
//!
//! They read the file in pieces, so that any size passes in constant memory.

use sha2::{Digest, Sha256};

use super::super::atomic::Progress;
use super::super::error::{Error, Result};
use super::super::reader::{File, TensorInfo};
use super::super::source::Source;
use super::super::writer::{Writer, encode_tensor};

/// The hash of a model's tensor entries: name, shape, type and offset of each, in order, encoded as in the
/// file. It costs nothing to compute and tells apart models that differ in more than their weights.
pub fn infos_sha256(file: &File) -> String {
    hex(infos(file))
}

/// The hash of a model's tensor entries (as [`infos_sha256`]) and then of each tensor's data, without the
/// padding between them. Keys do not count: a changed chat template leaves the model the same.
///
/// # Errors
///
/// The system's reason why the file cannot be read, or [`Error::Interrupted`].
pub fn base_sha256(file: &File, progress: &mut Progress<'_>) -> Result<String> {
    let mut hasher = infos(file);
    let total = file.tensors().iter().map(TensorInfo::bytes).sum();
    let mut done = 0;
    for tensor in file.tensors() {
        update(&mut hasher, file.source_of(tensor), file.data_range(tensor), &mut done, total, progress)?;
    }
    Ok(hex(hasher))
}

/// How much of each tensor [`sample_sha256`] reads, in bytes.
const SAMPLE: u64 = 64;

/// The hash of a model's tensor entries (as [`infos_sha256`]) and of 64 bytes from the middle of each tensor's data.
/// It costs one short read a tensor, and tells a model from its fine-tunes, which change weights everywhere.
///
/// # Errors
///
/// The system's reason why the file cannot be read.
pub fn sample_sha256(file: &File) -> Result<String> {
    let mut hasher = infos(file);
    for tensor in file.tensors() {
        let range = file.data_range(tensor);
        let n = (range.end - range.start).min(SAMPLE);
        let start = range.start + (range.end - range.start - n) / 2;
        file.source_of(tensor).for_each_chunk(start..start + n, &mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
    }
    Ok(hex(hasher))
}

/// The hash of one tensor's data.
///
/// # Errors
///
/// The system's reason why the file cannot be read, or [`Error::Interrupted`].
pub fn tensor_sha256(file: &File, tensor: &TensorInfo, progress: &mut Progress<'_>) -> Result<String> {
    let mut hasher = Sha256::new();
    update(&mut hasher, file.source_of(tensor), file.data_range(tensor), &mut 0, tensor.bytes(), progress)?;
    Ok(hex(hasher))
}

/// The hash of the whole file, or of the whole inner file where `file` is the model inside a merged one; of a split model, of
/// the bytes of all parts, one after another.
///
/// # Errors
///
/// The system's reason why the file cannot be read, or [`Error::Interrupted`].
pub fn file_sha256(file: &File, progress: &mut Progress<'_>) -> Result<String> {
    let mut hasher = Sha256::new();
    let total = file.file_size() - file.start();
    let (mut start, mut done) = (file.start(), 0);
    for source in file.sources() {
        update(&mut hasher, source, start..source.len() as u64, &mut done, total, progress)?;
        start = 0;
    }
    Ok(hex(hasher))
}

/// The hash of a file that is not written yet.
pub(super) fn unwritten_sha256(file: &Writer, progress: &mut Progress<'_>) -> Result<String> {
    let mut hasher = Sha256::new();
    let (mut done, total) = (0, file.size());
    file.for_each_chunk(&mut |bytes| {
        hasher.update(bytes);
        done += bytes.len() as u64;
        if progress(done, total) { Ok(()) } else { Err(Error::Interrupted) }
    })?;
    Ok(hex(hasher))
}

fn infos(file: &File) -> Sha256 {
    let mut hasher = Sha256::new();
    let mut entry = Vec::new();
    for tensor in file.tensors() {
        entry.clear();
        encode_tensor(&mut entry, tensor.name(), tensor.ty(), tensor.dims(), tensor.offset());
        hasher.update(&entry);
    }
    hasher
}

fn update(
    hasher: &mut Sha256,
    source: &Source,
    range: std::ops::Range<u64>,
    done: &mut u64,
    total: u64,
    progress: &mut Progress<'_>,
) -> Result<()> {
    source.for_each_chunk(range, &mut |bytes| {
        hasher.update(bytes);
        *done += bytes.len() as u64;
        if progress(*done, total) { Ok(()) } else { Err(Error::Interrupted) }
    })
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
