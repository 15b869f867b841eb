//! Exit heads in GGUF files: beside a model (a sidecar) or around it (a merged file).
//!
//! ```text
//! sidecar: [keys: general.type = adapter, exit.*][heads]
//! merged:  [keys: the model's without its tokenizer arrays, exit.*][heads][exit.base_header][model's data]
//! ```
//!
//! In a merged file, `exit.base_header` and what follows it are the original model file, byte for byte.
//! llama.cpp reads the model from there ([`base_offset`]), and every other GGUF reader sees one file with all
//! tensors. Both forms are read through [`ExitHeads`], which checks every shape once.
//!
//! Refuses heads for another model, naming both, merged files whose two headers disagree, and merged files in parts.

mod hash;
mod heads;
mod meta;

pub use hash::{base_sha256, file_sha256, infos_sha256, sample_sha256, tensor_sha256};
pub use heads::{BaseCheck, Classifier, Draft, ExitHeads, Form, Gate, Head, HeadMap, KvMap, Linear, Mlp, Screen, View};
pub use meta::{
    Base, Calibration, ConfidenceMap, ExitMeta, HeadType, KvPolicy, Metric, ScreenMeta, VocabMeta, log_odds,
};

use std::path::Path;

use super::atomic::{AtomicFile, Progress};
use super::error::{Error, Result, printable};
use super::reader::{File, TensorInfo};
use super::types::TensorType;
use super::writer::{WriteOptions, Writer, refuse_same_file};

/// The tensor of a merged file that holds the original model's header.
pub const BASE_HEADER: &str = "exit.base_header";
/// The key of a merged file that holds the SHA-256 of the whole original file.
const BASE_FILE_SHA256: &str = "exit.base.file_sha256";
/// The least alignment of a base's data, in bytes: llama.cpp maps a model from within a file only then.
const LEAST_ALIGNMENT: u64 = 32;

/// The model inside a merged file, `None` for any other file.
///
/// # Errors
///
/// A defect of the inner model, or [`Error::Inconsistent`] where the outer header says something else about
/// one of its tensors.
pub fn base(file: &File) -> Result<Option<File>> {
    let Some(header) = file.tensor(BASE_HEADER) else {
        return Ok(None);
    };
    let wrong = |defect| Err(Error::WrongForm { path: file.path().to_path_buf(), defect });
    if file.paths().len() > 1 {
        return wrong("a model with its heads around it was split into parts; join them with gguf-tools merge");
    }
    let range = file.data_range(header);
    let inner = File::parse(file.source().clone(), range.start)?;
    if inner.tensor(BASE_HEADER).is_some() {
        return wrong("the model inside the merged file is itself a merged file");
    }
    if header.ty() != TensorType::I8 || inner.data_start() != range.end {
        return wrong("the tensor exit.base_header is not the header of the model inside");
    }
    if inner.data_start() % LEAST_ALIGNMENT != 0 {
        return wrong("the data of the model inside is not aligned to 32 bytes, so that it cannot be mapped");
    }
    for tensor in inner.tensors() {
        let found = inner.data_range(tensor);
        let outer = file.tensor(tensor.name());
        if outer.is_none_or(|outer| {
            (outer.ty(), outer.dims(), file.data_range(outer)) != (tensor.ty(), tensor.dims(), found.clone())
        }) {
            return Err(Error::Inconsistent {
                name: printable(tensor.name()),
                outer: outer.map_or("missing".into(), |outer| describe(outer, file.data_range(outer).start)),
                inner: describe(tensor, found.start),
            });
        }
    }
    let n_heads = file.tensors().iter().filter(|tensor| is_head_name(tensor.name())).count();
    if n_heads + 1 + inner.tensors().len() != file.tensors().len() {
        return wrong("the file holds tensors that are neither heads nor the model's");
    }
    if inner.tensors().iter().any(|tensor| is_head_name(tensor.name())) {
        return wrong("the model inside has tensors with the names of heads");
    }
    Ok(Some(inner))
}

/// Where in the file llama.cpp must start to read: 0 for a plain model, the original header's place for a
/// merged file.
///
/// # Errors
///
/// As [`base`].
pub fn base_offset(file: &File) -> Result<u64> {
    Ok(base(file)?.map_or(0, |inner| inner.start()))
}

/// Whether a tensor's name is one that heads have: `exit_screen.*` or `blk.N.exit_*`.
pub fn is_head_name(name: &str) -> bool {
    name.starts_with("exit_screen.")
        || name.starts_with("exit_vocab.")
        || name.starts_with("exit_draft.")
        || name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(layer, rest)| layer.parse::<u32>().is_ok() && rest.starts_with("exit_"))
}

/// Starts a sidecar for `base`: its keys are set, its tensors are for the caller to add.
///
/// # Errors
///
/// A description that contradicts itself, or the base's keys.
pub fn sidecar(base: &File, meta: &ExitMeta) -> Result<Writer> {
    let mut writer = Writer::new();
    writer.read_from(base);
    let architecture = base
        .str("general.architecture")?
        .ok_or(Error::MissingKey { key: "general.architecture".into(), why: "heads name their base by it" })?;
    sidecar_keys(&mut writer, architecture, &meta.base.name)?;
    meta.write(&mut writer)?;
    Ok(writer)
}

fn sidecar_keys(writer: &mut Writer, architecture: &str, base_name: &str) -> Result<()> {
    writer.key("general.architecture", architecture)?;
    writer.key("general.type", "adapter")?;
    writer.key("adapter.type", "early_exit")?;
    writer.key("general.name", format!("{base_name} exit heads"))?;
    Ok(())
}

/// Puts a plain model and the heads of a sidecar (or of a merged file) into one merged file. The base is
/// hashed on the way; `progress` is told of that, too. A split model goes in as the one file that its parts make
/// ([`super::merge`]).
///
/// # Errors
///
/// [`Error::WrongBase`], [`Error::NoHeads`], or [`Error::WrongForm`] where the model has heads already or
/// cannot be mapped from within another file.
pub fn attach(model: &File, heads: &File, progress: &mut Progress<'_>) -> Result<Writer> {
    let wrong = |defect| Err(Error::WrongForm { path: model.path().to_path_buf(), defect });
    if model.tensor(BASE_HEADER).is_some() {
        return wrong("the model has exit heads already; take them off with strip-heads first");
    }
    if model.tensors().is_empty() {
        return wrong("the file holds no tensors; it is no model");
    }
    if model.alignment() < LEAST_ALIGNMENT {
        return wrong("the model's data is aligned to less than 32 bytes, so that it could not be mapped");
    }
    let view = ExitHeads::open(heads)?;
    view.check_base(model, BaseCheck::Data, progress)?;

    let mut writer = Writer::new();
    writer.copy_keys(model, |name| {
        let is_array = model.get(name).is_some_and(|value| value.as_array().is_some());
        !(is_array && name.starts_with("tokenizer."))
    })?;
    writer.copy_keys(heads, |name| name.starts_with("exit.") && name != BASE_FILE_SHA256)?;
    let joined = (model.paths().len() > 1).then(|| super::merge(model)).transpose()?;
    let sha256 = match &joined {
        Some(joined) => hash::unwritten_sha256(joined, progress)?,
        None => file_sha256(model, progress)?,
    };
    writer.key(BASE_FILE_SHA256, sha256)?;
    for tensor in view.tensors() {
        writer.copy_tensor(heads, tensor)?;
    }
    match joined {
        Some(joined) => writer.embed_unwritten(joined, BASE_HEADER)?,
        None => writer.embed(model, BASE_HEADER)?,
    };
    Ok(writer)
}

/// Makes a sidecar of the heads in a merged file.
///
/// # Errors
///
/// [`Error::NoHeads`] or a defect of the heads.
pub fn extract(merged: &File) -> Result<Writer> {
    let view = ExitHeads::open(merged)?;
    let architecture = merged
        .str("general.architecture")?
        .ok_or(Error::MissingKey { key: "general.architecture".into(), why: "heads name their base by it" })?;
    let mut writer = Writer::new();
    sidecar_keys(&mut writer, architecture, &view.meta().base.name)?;
    writer.copy_keys(merged, |name| name.starts_with("exit.") && name != BASE_FILE_SHA256)?;
    for tensor in view.tensors() {
        writer.copy_tensor(merged, tensor)?;
    }
    Ok(writer)
}

/// Writes the original model out of a merged file and returns its SHA-256, which is the recorded one.
///
/// # Errors
///
/// [`Error::WrongForm`] for a file that is not merged, [`Error::HashMismatch`] where the model inside was
/// damaged (nothing is written then), or whatever the system refuses.
pub fn strip(merged: &File, path: &Path, options: WriteOptions, progress: &mut Progress<'_>) -> Result<String> {
    let Some(inner) = base(merged)? else {
        return Err(Error::WrongForm {
            path: merged.path().to_path_buf(),
            defect: "the file is not a merged one, so there is no original model in it",
        });
    };
    refuse_same_file(merged.path(), path)?;
    let expected = merged
        .str(BASE_FILE_SHA256)?
        .ok_or(Error::MissingKey { key: BASE_FILE_SHA256.into(), why: "the restored model is checked against it" })?;
    let mut file = AtomicFile::create(path, options.replace)?;
    let range = inner.start()..inner.file_size();
    // Half of the progress is the copy, half the check of what was written.
    let total = 2 * (range.end - range.start);
    file.copy(merged.source(), range, total, progress)?;
    let written = super::source::Source::from_handle(file.reopen()?, path)?;
    let written = File::parse(std::sync::Arc::new(written), 0)?;
    let found = file_sha256(&written, &mut |done, _| progress(total / 2 + done, total))?;
    if found != expected {
        return Err(Error::HashMismatch {
            what: "the model inside the merged file".into(),
            expected: expected.to_string(),
            found,
        });
    }
    file.commit()?;
    Ok(found)
}

fn describe(tensor: &TensorInfo, start: u64) -> String {
    format!("{} {:?} at byte {start}", tensor.ty(), tensor.dims())
}
