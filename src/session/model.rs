//! An immutable model that any number of sessions share.

mod support;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use llama_cpp_sys_2 as sys;

use super::memory::{self, MemoryEstimate, MemoryShape};
use super::params::SessionParams;
use crate::error::{Error, Result};
use crate::gate::{Gate, Sequences};
use crate::gguf;
use crate::heads::Heads;
use crate::heads_cache;
use crate::llama::context::{Context, ContextParams};
use crate::llama::model::{LoadParams, RawModel};
use crate::llama::threads::ThreadPool;
use crate::llama::{Device, Kernels, Vocab, devices, kernels_here};
use support::Known;

/// How many layers a GPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuLayers {
    /// As many as fit into the free memory of the GPUs.
    #[default]
    Auto,
    /// All of them.
    All,
    /// This many, counted from the output.
    Count(u32),
}

impl fmt::Display for GpuLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::All => f.write_str("all"),
            Self::Count(n) => n.fmt(f),
        }
    }
}

impl FromStr for GpuLayers {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" | "-1" => Ok(Self::All),
            _ => text.parse().map(Self::Count).map_err(|_| Error::InvalidValue {
                name: "GPU layers",
                found: text.to_owned(),
                expected: "auto, all or a number",
            }),
        }
    }
}

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelParams {
    /// Layers on the GPU.
    pub gpu_layers: GpuLayers,
    /// Maps the file instead of reading it.
    pub use_mmap: bool,
    /// Keeps the weights from being swapped out.
    pub use_mlock: bool,
    /// Whose kernels compute on the processor.
    pub kernels: Kernels,
    /// A sidecar with exit heads for the model; `None` takes those around it, where the file is a merged one.
    pub heads: Option<PathBuf>,
    /// Looks for heads where none are given and none are around the model: in the user's cache, then beside the file
    /// ([`HeadsCache::find`](crate::HeadsCache::find)).
    pub find_heads: bool,
    /// Refuses a model whose weights, and a session whose cache, do not fit into the memory that is free.
    pub check_memory: bool,
    /// Loads architectures too whose loader in llama.cpp was not read for defects that a crafted file could reach
    /// ([`gguf::ARCHITECTURES`] are those that were). The checks that hold for every model are made all the same.
    /// Programs that open files from strangers should say no.
    pub allow_unread: bool,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self {
            gpu_layers: GpuLayers::Auto,
            use_mmap: true,
            use_mlock: false,
            kernels: Kernels::Auto,
            heads: None,
            find_heads: false,
            check_memory: true,
            allow_unread: true,
        }
    }
}

/// What a model says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The file it came from; of a split model, the first one.
    pub path: PathBuf,
    /// How many files it came from.
    pub n_parts: usize,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// llama.cpp's description: architecture, size class, quantization.
    pub description: String,
    /// Number of blocks.
    pub n_layer: u32,
    /// Length of a hidden state.
    pub n_embd: u32,
    /// Number of tokens in the vocabulary.
    pub n_vocab: u32,
    /// Tokens that the model was trained to attend to.
    pub n_ctx_train: u32,
    /// Length of the sliding window, 0 without one.
    pub n_swa: u32,
    /// Number of weights.
    pub n_params: u64,
    /// Bytes of the weights.
    pub size: u64,
    /// Keeps a recurrent state instead of a K/V cache.
    pub recurrent: bool,
    /// Keeps both.
    pub hybrid: bool,
}

/// A loaded model: immutable, cheap to clone, shared between threads.
#[derive(Debug, Clone)]
pub struct Model(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    raw: Arc<RawModel>,
    vocab: Vocab,
    info: ModelInfo,
    chat_template: Option<String>,
    tool_template: Option<String>,
    heads: Option<Arc<Heads>>,
    memory: MemoryShape,
    /// Number of learned positions, for models that have such.
    n_positions: Option<usize>,
    check_memory: bool,
    known: Mutex<Known>,
    fingerprint: String,
    /// No layer was given to another device.
    is_on_cpu: bool,
    /// There are kernels of ours for every type of weights.
    has_kernels: bool,
}

/// True for weights that our kernels multiply; llama.cpp's do the rest, and round by the width of a batch.
fn has_kernels(ty: gguf::TensorType) -> bool {
    use gguf::TensorType as T;
    // Integers are ids and bytes, which nothing multiplies.
    let is_number = matches!(ty, T::F32 | T::F16 | T::BF16 | T::I8 | T::I16 | T::I32);
    let is_legacy = matches!(ty, T::Q4_0 | T::Q4_1 | T::Q5_0 | T::Q5_1 | T::Q8_0 | T::IQ4_NL | T::MXFP4);
    is_number || is_legacy || matches!(ty, T::Q2_K | T::Q3_K | T::Q4_K | T::Q5_K | T::Q6_K | T::IQ4_XS)
}

impl Model {
    /// Loads the model at `path`; of a split model (`NAME-00001-of-0000N.gguf`) that is the first file, beside which the
    /// others lie.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Load`], [`Error::OutOfMemory`], and [`Error::Unsupported`] for models that do not
    /// generate text token by token.
    pub fn load(path: impl AsRef<Path>, params: &ModelParams) -> Result<Self> {
        Self::load_with_progress(path, params, &mut |_| true)
    }

    /// Loads the model at `path` and reports how far it is, from 0 to 1; a false answer cancels.
    ///
    /// # Errors
    /// As [`Model::load`], and [`Error::Cancelled`].
    pub fn load_with_progress(
        path: impl AsRef<Path>,
        params: &ModelParams,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Self> {
        let path = path.as_ref();
        let CheckedFile { file, memory, n_positions, offset, fingerprint } = check_file(path, params)?;
        let parts: Vec<PathBuf> = file.paths().map(Path::to_path_buf).collect();
        let n_parts = parts.len();
        let wants = params.find_heads && params.heads.is_none();
        let found = if wants { heads_cache::find_for(&file, progress)? } else { None };
        let has_kernels = file.tensors().iter().all(|tensor| has_kernels(tensor.ty()));
        let heads = Heads::open(file, params.heads.as_deref().or(found.as_deref()))?.map(Arc::new);
        let n_gpu_layers = match params.gpu_layers {
            GpuLayers::All => None,
            GpuLayers::Count(n) => Some(n),
            GpuLayers::Auto => layers_that_fit(memory.weights(), &devices()),
        };
        let is_on_cpu = n_gpu_layers == Some(0) || !devices().iter().any(Device::is_gpu);
        let load = LoadParams {
            n_gpu_layers,
            use_mmap: params.use_mmap,
            use_mlock: params.use_mlock,
            offset,
            parts,
            kernels: params.kernels,
        };
        let raw = Arc::new(RawModel::load(path, &load, progress)?);
        let vocab = Vocab::new(Arc::clone(&raw));
        let info = describe(path, n_parts, &raw, &vocab);
        check_generates(&raw, &info)?;
        let chat_template = raw.chat_template(None);
        let tool_template = raw.chat_template(Some(c"tool_use"));
        let check_memory = params.check_memory;
        Ok(Self(Arc::new(Inner {
            raw,
            vocab,
            info,
            chat_template,
            tool_template,
            heads,
            memory,
            n_positions,
            check_memory,
            known: Mutex::default(),
            fingerprint,
            is_on_cpu,
            has_kernels,
        })))
    }

    /// True where a token's logits depend on its context alone in a session of `params`, bit for bit and at any length:
    /// not on the width of its batch, nor on the number of threads. Our kernels see to that on the processor.
    pub fn is_batch_invariant(&self, params: &SessionParams) -> bool {
        use super::params::CacheType::{Bf16, F16, F32, Q8_0};
        let has_attention = [params.type_k, params.type_v].iter().all(|ty| matches!(ty, F32 | F16 | Bf16 | Q8_0));
        has_attention
            && self.0.has_kernels
            && self.0.is_on_cpu
            && self.0.raw.kernels() == Kernels::Auto
            && kernels_here().is_ok()
    }

    /// What the model says of itself.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// The model's tokenizer.
    pub fn vocab(&self) -> &Vocab {
        &self.0.vocab
    }

    /// The model's own chat template, a Jinja text.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_template.as_deref()
    }

    /// The template for conversations with tools, where the model has one of its own (`tokenizer.chat_template.tool_use`).
    pub fn tool_template(&self) -> Option<&str> {
        self.0.tool_template.as_deref()
    }

    /// True if both are one model in memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Names the weights: a hash of the tensor entries and of samples of their data.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// True if exit heads came with the model.
    pub fn has_heads(&self) -> bool {
        self.0.heads.is_some()
    }

    /// The blocks, from 0, that tokens can leave the model after; empty without heads.
    pub fn exit_layers(&self) -> &[u32] {
        self.0.heads.as_ref().map_or(&[], |heads| &heads.meta().layers)
    }

    /// True if a head that drafts came with the model.
    pub fn has_draft_head(&self) -> bool {
        self.0.heads.as_ref().is_some_and(|heads| heads.meta().draft.is_some())
    }

    /// The levels of agreement that the heads were calibrated for, ascending, each with whether it lets any token leave;
    /// empty without heads, and for heads that were never calibrated.
    pub fn exit_levels(&self) -> Vec<(f32, bool)> {
        self.0.heads.as_ref().map_or_else(Vec::new, |heads| heads.levels())
    }

    /// The exit heads that came with the model.
    pub(crate) fn heads(&self) -> Option<&Arc<Heads>> {
        self.0.heads.as_ref()
    }

    pub(crate) fn new_gate(&self, params: &SessionParams) -> Result<Gate> {
        self.new_gate_on(params, None)
    }

    /// A gate that computes on `pool`, or on threads of its own.
    pub(crate) fn new_gate_on(&self, params: &SessionParams, pool: Option<Arc<ThreadPool>>) -> Result<Gate> {
        let context = self.new_context(params, 1, pool)?;
        Ok(Gate::new(context, self.0.info.n_layer, self.0.info.n_embd))
    }

    /// A context for `n` texts side by side, of `params.n_ctx` tokens each, whose hidden states can be seen. Nothing exits
    /// in it.
    ///
    /// # Errors
    /// As [`Session::new`](super::Session::new), and [`Error::InvalidValue`] for no sequence, for more of them than
    /// `params.n_ubatch`, or for a context of an unknown length.
    pub fn sequences(&self, params: &SessionParams, n: u32) -> Result<Sequences> {
        // Before llama.cpp sees it: it aborts where a batch cannot hold an output of each sequence.
        if n == 0 || params.n_ctx == 0 || n > params.n_ubatch.min(params.n_batch) {
            return Err(Error::InvalidValue {
                name: "sequences",
                found: format!("{n} of {} tokens", params.n_ctx),
                expected: "at least 1 and at most n_ubatch, since a step is one graph, of at least 1 token each",
            });
        }
        let context = self.new_context(&SessionParams { gate: true, ..params.clone() }, n, None)?;
        Sequences::new(context, self.0.info.n_layer, self.0.info.n_swa)
    }

    fn new_context(&self, params: &SessionParams, n_sequences: u32, pool: Option<Arc<ThreadPool>>) -> Result<Context> {
        if self.0.check_memory {
            // The weights are in memory already, or mapped and counted as such.
            let estimate = self.0.memory.estimate(params, memory::available());
            let kv_cache = estimate.kv_cache.saturating_mul(n_sequences.into());
            MemoryEstimate { weights: 0, kv_cache, ..estimate }.check(self.0.memory.path())?;
        }
        let params = ContextParams { n_sequences, ..params.context()? };
        let mut context = Context::new(Arc::clone(&self.0.raw), self.0.vocab.n_tokens(), &params, pool)?;
        if let Some(n) = self.0.n_positions {
            context.limit_positions(n);
        }
        Ok(context)
    }
}

/// What is read from a file before llama.cpp sees it.
struct CheckedFile {
    file: gguf::File,
    memory: MemoryShape,
    n_positions: Option<usize>,
    /// Where in the file the model begins.
    offset: u64,
    fingerprint: String,
}

/// Checks what must hold before llama.cpp sees the file.
fn check_file(path: &Path, params: &ModelParams) -> Result<CheckedFile> {
    let file = gguf::File::open_model(path)?;
    let preflight = match gguf::preflight(&file) {
        Err(gguf::Error::UnreadLoader { what, found, .. }) if params.allow_unread => {
            tracing::info!("{what} {found} was not read for defects; checking what holds for every model");
            gguf::preflight_unread(&file)?
        }
        result => result?,
    };
    let shape = MemoryShape::of(&file)?;
    if params.check_memory {
        let available = memory::available();
        MemoryEstimate { weights: shape.weights(), kv_cache: 0, compute: 0, available }.check(path)?;
    }
    let n_positions = file.tensor("position_embd.weight").and_then(|tensor| tensor.dims().get(1).copied());
    let n_positions = n_positions.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let fingerprint = gguf::exits::sample_sha256(gguf::exits::base(&file)?.as_ref().unwrap_or(&file))?;
    Ok(CheckedFile { file, memory: shape, n_positions, offset: preflight.base_offset, fingerprint })
}

fn describe(path: &Path, n_parts: usize, raw: &RawModel, vocab: &Vocab) -> ModelInfo {
    ModelInfo {
        path: path.to_owned(),
        n_parts,
        name: raw.metadata(c"general.name").filter(|name| !name.is_empty()),
        architecture: raw.metadata(c"general.architecture").unwrap_or_default(),
        description: raw.description(),
        n_layer: raw.number(sys::llama_model_n_layer),
        n_embd: raw.number(sys::llama_model_n_embd),
        n_vocab: vocab.n_tokens() as u32,
        n_ctx_train: raw.number(sys::llama_model_n_ctx_train),
        n_swa: raw.number(sys::llama_model_n_swa),
        n_params: raw.size(sys::llama_model_n_params),
        size: raw.size(sys::llama_model_size),
        recurrent: raw.flag(sys::llama_model_is_recurrent),
        hybrid: raw.flag(sys::llama_model_is_hybrid),
    }
}

fn check_generates(raw: &RawModel, info: &ModelInfo) -> Result<()> {
    let found = if info.n_vocab == 0 {
        "a model without a vocabulary"
    } else if raw.flag(sys::llama_model_has_encoder) {
        "a model with an encoder"
    } else if !raw.flag(sys::llama_model_has_decoder) {
        "a model without a decoder"
    } else if raw.flag(sys::llama_model_is_diffusion) {
        "a diffusion model"
    } else {
        return Ok(());
    };
    Err(Error::Unsupported {
        what: "text generation",
        found: format!("{} is {found} (architecture {})", info.path.display(), info.architecture),
        fix: "take a causal language model",
    })
}

/// Layers to offload so that weights, cache and compute buffers fit; `None` for all of them.
///
/// The cache and the buffers are taken for a quarter of the weights, and 512 MiB are left to the system: llama.cpp
/// aborts when a GPU allocation fails half way, so that too few layers are better than too many.
fn layers_that_fit(file_size: u64, devices: &[Device]) -> Option<u32> {
    const RESERVE: u64 = 512 << 20;
    const PARTS: u64 = 100;
    let gpus = devices.iter().filter(|device| device.is_gpu());
    let free: u64 = gpus.map(|gpu| gpu.memory_free.saturating_sub(RESERVE)).sum();
    let needed = file_size.saturating_add(file_size / 4).max(1);
    if free >= needed {
        return None;
    }
    // The number of layers is not known before loading; no model in use has fewer than a dozen, and a layer takes
    // about its share. 12 parts keep the estimate on the safe side for deeper models.
    let share = free.saturating_mul(PARTS) / needed;
    Some(u32::try_from(share * 12 / PARTS).unwrap_or(0))
}

#[cfg(test)]
mod tests;
