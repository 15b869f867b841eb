//! What a model and its context take of the memory, before anything is loaded.
//!
//! The weights are counted exactly, the K/V cache from the model's own keys, the compute buffers roughly. Refusing
//! early matters most where memory is short: a small machine that runs out of it freezes before any error comes.

use std::fmt;
use std::path::{Path, PathBuf};

use super::params::SessionParams;
use crate::error::{Error, Result};
use crate::gguf;

/// Bytes that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The weights. Mapped from the file, they take memory as they are used.
    pub weights: u64,
    /// The K/V cache of one session.
    pub kv_cache: u64,
    /// The buffers of one session's graphs, roughly.
    pub compute: u64,
    /// What the system can still give, if it tells.
    pub available: Option<u64>,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.compute)
    }

    /// [`Error::OutOfMemory`] if it is more than the system can still give.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, path: &Path) -> Result<()> {
        match self.available {
            Some(available) if self.total() > available => {
                Err(Error::OutOfMemory { path: path.to_owned(), needed: self.total(), available })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "about {} MiB: weights {}, K/V cache {}, compute buffers {}",
            mib(self.total()),
            mib(self.weights),
            mib(self.kv_cache),
            mib(self.compute)
        )?;
        match self.available {
            Some(available) => write!(f, " ({} MiB available)", mib(available)),
            None => Ok(()),
        }
    }
}

/// Estimates what a model at `path` takes with one session; of a split model with all of its parts.
///
/// # Errors
/// [`Error::Gguf`] for a file that is no sound GGUF.
pub fn memory_estimate(path: impl AsRef<Path>, params: &SessionParams) -> Result<MemoryEstimate> {
    let file = gguf::File::open_model(path.as_ref())?;
    let shape = MemoryShape::of(&file)?;
    Ok(shape.estimate(params, available()))
}

/// The sizes of a model that decide what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryShape {
    path: PathBuf,
    weights: u64,
    n_ctx_train: u64,
    n_vocab: u64,
    n_embd: u64,
    n_ff: u64,
    n_swa: u64,
    /// Values of K and of V that each layer keeps for a token, and whether it keeps them for the window only.
    layers: Vec<LayerShape>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LayerShape {
    k: u64,
    v: u64,
    sliding: bool,
}

impl MemoryShape {
    /// Reads a file that has passed the preflight; what it does not say counts as nothing.
    pub(crate) fn of(file: &gguf::File) -> Result<Self> {
        let inner = gguf::exits::base(file)?;
        let model = inner.as_ref().unwrap_or(file);
        let architecture = model.str("general.architecture")?.unwrap_or_default();
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| model.get(&key(name)).and_then(|value| value.as_u64()).unwrap_or(0);
        let n_layer = number("block_count").min(u64::from(MAX_LAYERS));
        let n_embd = number("embedding_length");
        let per_layer = |name: &str, il: u64| per_layer(model, &key(name), il);
        let layers = (0..n_layer)
            .map(|il| {
                let n_head = per_layer("attention.head_count", il).unwrap_or(0);
                let n_head_kv = per_layer("attention.head_count_kv", il).unwrap_or(n_head);
                let head_dim = n_embd.checked_div(n_head).unwrap_or(0);
                let length = |name| per_layer(name, il).unwrap_or(head_dim);
                LayerShape {
                    k: n_head_kv.saturating_mul(length("attention.key_length")),
                    v: n_head_kv.saturating_mul(length("attention.value_length")),
                    sliding: is_sliding(architecture, il),
                }
            })
            .collect();
        Ok(Self {
            path: file.path().to_owned(),
            weights: model.tensors().iter().map(gguf::TensorInfo::bytes).fold(0, u64::saturating_add),
            n_ctx_train: number("context_length"),
            n_vocab: model.get("tokenizer.ggml.tokens").and_then(|v| v.as_array()).map_or(0, |a| a.len()),
            n_embd,
            n_ff: per_layer("feed_forward_length", 0).unwrap_or(0),
            n_swa: number("attention.sliding_window"),
            layers,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the weights.
    pub(crate) fn weights(&self) -> u64 {
        self.weights
    }

    pub(crate) fn estimate(&self, params: &SessionParams, available: Option<u64>) -> MemoryEstimate {
        let n_ctx = if params.n_ctx == 0 { self.n_ctx_train } else { params.n_ctx.into() }.next_multiple_of(256);
        let n_ubatch = u64::from(params.n_ubatch.min(params.n_batch)).min(n_ctx);
        let kv_cache = self.layers.iter().map(|layer| {
            // llama.cpp rounds the cells of a sliding window up as well (`llama_kv_cache_iswa`).
            let window = (self.n_swa + n_ubatch).next_multiple_of(256).min(n_ctx);
            let cells = if layer.sliding && self.n_swa > 0 { window } else { n_ctx };
            cells.saturating_mul(params.type_k.bytes(layer.k).saturating_add(params.type_v.bytes(layer.v)))
        });
        // The widest graph holds the logits and a few hidden and feed-forward states of one ubatch in f32.
        let row = self.n_vocab.saturating_add(8 * self.n_embd).saturating_add(2 * self.n_ff);
        MemoryEstimate {
            weights: self.weights,
            kv_cache: kv_cache.fold(0, u64::saturating_add),
            compute: n_ubatch.saturating_mul(row).saturating_mul(4),
            available,
        }
    }
}

/// llama.cpp's `LLAMA_MAX_LAYERS`; a file that claims more is refused elsewhere.
const MAX_LAYERS: u32 = 512;

/// A key that is one number for all layers, or an array with one a layer.
fn per_layer(model: &gguf::File, key: &str, il: u64) -> Option<u64> {
    let value = model.get(key)?;
    match value.as_array() {
        Some(array) => array.iter().nth(usize::try_from(il).ok()?)?.as_u64(),
        None => value.as_u64(),
    }
}

/// True where llama.cpp keeps a layer's K/V for the sliding window only (`set_swa_pattern` in its models).
fn is_sliding(architecture: &str, il: u64) -> bool {
    match architecture {
        "gemma2" => il.is_multiple_of(2),
        "gemma3" => il % 6 < 5,
        _ => false,
    }
}

/// Memory of this system in bytes: all of it, and what can be had without swapping. A container's limit counts, but not the
/// cache of files that the container is charged for, since that is given back when memory is asked for. `None` where the
/// system does not tell.
pub fn system_memory() -> Option<(u64, u64)> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let (total, available) = (system.total_memory(), system.available_memory());
    // `free_memory` of the limits takes that cache for used; `rss` is what programs hold.
    let limits = system.cgroup_limits().map(|limits| (limits.total_memory, limits.rss));
    Some(within(total, available, limits)).filter(|&(_, available)| available > 0)
}

/// What a limit on a group of programs, and what they hold, leave of `total` and `available`.
fn within(total: u64, available: u64, limits: Option<(u64, u64)>) -> (u64, u64) {
    match limits {
        Some((limit, held)) if limit < total => (limit, available.min(limit.saturating_sub(held))),
        _ => (total, available),
    }
}

/// The part of [`system_memory`] that can be had.
pub(crate) fn available() -> Option<u64> {
    system_memory().map(|(_, available)| available)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> MemoryShape {
        MemoryShape {
            path: PathBuf::from("m.gguf"),
            weights: 100 << 20,
            n_ctx_train: 8192,
            n_vocab: 49_152,
            n_embd: 576,
            n_ff: 1536,
            n_swa: 0,
            layers: vec![LayerShape { k: 192, v: 192, sliding: false }; 30],
        }
    }

    #[test]
    fn the_cache_of_smollm2_is_counted_as_llama_cpp_counts_it() {
        // llama.cpp logs "KV buffer size = 180.00 MiB" for this shape at 8192 tokens in f16.
        assert_eq!(shape().estimate(&SessionParams::default(), None).kv_cache, 180 << 20);
    }

    #[test]
    fn a_container_has_what_its_programs_leave_of_its_limit() {
        const GIB: u64 = 1 << 30;
        assert_eq!(within(8 * GIB, 6 * GIB, None), (8 * GIB, 6 * GIB));
        assert_eq!(within(8 * GIB, 6 * GIB, Some((8 * GIB, 3 * GIB))), (8 * GIB, 6 * GIB), "no limit");
        assert_eq!(within(8 * GIB, 6 * GIB, Some((4 * GIB, GIB))), (4 * GIB, 3 * GIB));
        assert_eq!(within(8 * GIB, 2 * GIB, Some((4 * GIB, GIB))), (4 * GIB, 2 * GIB), "others hold the rest");
    }

    #[test]
    fn sliding_layers_keep_the_window_alone() {
        let mut shape = shape();
        shape.n_swa = 512;
        shape.layers.iter_mut().for_each(|layer| layer.sliding = true);
        let estimate = shape.estimate(&SessionParams::default(), None);
        assert_eq!(estimate.kv_cache, 180 * (1 << 20) / 8);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let estimate = shape().estimate(&SessionParams::default(), Some(200 << 20));
        let error = estimate.check(Path::new("m.gguf")).unwrap_err().to_string();
        assert!(error.contains("200 MiB") && error.contains("m.gguf"), "{error}");
        assert!(shape().estimate(&SessionParams::default(), None).check(Path::new("m.gguf")).is_ok());
    }

    #[test]
    fn this_machine_tells_what_it_has() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
