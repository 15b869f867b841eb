//! What must hold before llama.cpp may see a model.
//!
//! llama.cpp reports many defects as errors, but aborts the process on others (`GGML_ASSERT`), divides by
//! zero, follows null pointers or runs into an exception where none is caught. No caller can recover from
//! that, so each such path that a file's contents reach is closed here. The checks rest on reading the pinned
//! source: `llama-model-loader.cpp`, `llama-model.cpp` and `models/*.cpp` (hyperparameters), `llama-vocab.cpp`
//! (tokenizer), `llama-graph.cpp` and ggml's CPU operators (tensor types).
//!
//! Refuses architectures and tokenizers whose loaders have not been read this way; [`preflight_unread`] lets
//! them through after the checks that apply to every model, and promises nothing about the rest.

mod hparams;
mod tensors;
mod tokenizer;

use super::error::{Error, Result};
use super::exits;
use super::reader::File;

/// The architectures whose loaders and graphs have been read: decoder-only transformers of the usual shape.
pub const ARCHITECTURES: &[&str] = &[
    "llama",
    "mistral3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "olmo",
    "olmo2",
    "granite",
    "internlm2",
    "starcoder2",
    "seed_oss",
];

/// The most tokens a context may be declared for; llama.cpp computes with 32-bit counts of cells.
const MAX_CONTEXT: u64 = 1 << 27;
/// The most layers llama.cpp has room for (`LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u64 = 512;
/// The most experts llama.cpp has room for (`LLAMA_MAX_EXPERTS`).
const MAX_EXPERTS: u64 = 1024;

/// What the checks found out about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preflight {
    /// The model's architecture.
    pub architecture: String,
    /// Whether the architecture is one of [`ARCHITECTURES`], so that all checks were made.
    pub is_read: bool,
    /// How many tokens the vocabulary has.
    pub n_vocab: u32,
    /// The length of a hidden state.
    pub n_embd: u32,
    /// How many layers there are.
    pub n_layer: u32,
    /// The context the model was trained for, in tokens.
    pub n_ctx_train: u32,
    /// Where in the file llama.cpp must start to read: 0 unless the file is a merged one.
    pub base_offset: u64,
}

/// Checks a model, plain or merged, before llama.cpp loads it.
///
/// # Errors
///
/// The first defect found, or [`Error::UnreadLoader`] for an architecture or tokenizer that is not known to
/// be safe.
pub fn preflight(file: &File) -> Result<Preflight> {
    check(file, false)
}

/// As [`preflight`], but lets architectures and tokenizers through whose loaders have not been read.
///
/// # Errors
///
/// The first defect found by the checks that apply to every model.
pub fn preflight_unread(file: &File) -> Result<Preflight> {
    check(file, true)
}

fn check(file: &File, allow_unread: bool) -> Result<Preflight> {
    let inner = exits::base(file)?;
    let model = inner.as_ref().unwrap_or(file);

    if let Some(kind) = model.str("general.type")?.filter(|kind| *kind != "model") {
        return Err(model.key_value_error("general.type", "\"model\"; this file is none", format!("{kind:?}")));
    }
    refuse_splits(model)?;
    let architecture = model
        .str("general.architecture")?
        .ok_or(Error::MissingKey { key: "general.architecture".into(), why: "no model can be loaded without it" })?;
    let is_read = ARCHITECTURES.contains(&architecture);
    if !is_read && !allow_unread {
        return Err(Error::UnreadLoader {
            what: "architecture",
            found: architecture.to_string(),
            known: ARCHITECTURES.join(", "),
        });
    }
    let hparams = hparams::check(model, architecture, is_read)?;
    let n_vocab = tokenizer::check(model, allow_unread)?;
    tensors::check(model, &hparams, n_vocab, is_read)?;
    Ok(Preflight {
        architecture: architecture.to_string(),
        is_read,
        n_vocab,
        n_embd: hparams.n_embd as u32,
        n_layer: hparams.n_layer as u32,
        n_ctx_train: hparams.n_ctx as u32,
        base_offset: model.start(),
    })
}

/// One part of a split model is none: llama.cpp opens the further files by name, unchecked, and aborts where their `split.no`
/// has another type. [`File::open_model`] has checked them all and leaves no such key.
fn refuse_splits(model: &File) -> Result<()> {
    match model.get("split.count") {
        None => Ok(()),
        Some(value) => match value.as_u64() {
            Some(0 | 1) => Ok(()),
            Some(n) => Err(model.key_value_error("split.count", "a whole model, opened with all of its parts", n)),
            None => Err(model.key_type_error("split.count", "u16")),
        },
    }
}
