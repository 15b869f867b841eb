//! Which model, and how it is loaded: arguments that every command with a model shares.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args};
use offramp::{
    CacheType, Drafts, Error, Exits, FlashAttn, GpuLayers, HeadsCache, Kernels, Kv, Lookup, Model, ModelParams, Policy,
    Rescorer, Session, SessionParams, gguf,
};

use crate::failure::Failure;
use crate::modes::Modes;
use crate::{interrupt, progress, resolve};

/// Tokens of context when none are asked for, unless the model was trained with fewer. The whole context of a model of
/// today takes gigabytes of K/V cache.
const DEFAULT_CTX: u32 = 8192;

/// What `--heads` says where no heads are to be looked for.
const NO_HEADS: &str = "none";

/// Where the help puts what is about early exits.
const EXITS: &str = "Early exits";

/// Reads one of these names; shells complete them, and the help lists them.
fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A GGUF file; without -m and -hf it is the model that `make model` fetches
    #[arg(short, long, value_name = "FILE", env = "LLAMA_ARG_MODEL", conflicts_with = "hf_repo")]
    pub model: Option<PathBuf>,
    /// A model on the Hugging Face hub, by default its Q4_K_M file [llama.cpp's -hf]
    #[cfg(feature = "hf")]
    #[arg(long, value_name = "USER/MODEL[:QUANT]", env = "LLAMA_ARG_HF_REPO")]
    pub hf_repo: Option<String>,
    /// Without this feature the hub is not asked
    #[cfg(not(feature = "hf"))]
    #[arg(long, hide = true)]
    pub hf_repo: Option<String>,
    /// A file with exit heads for the model, or none to look for none; without this flag those inside the model are taken, then
    /// the user's own that `gguf-tools add-heads --sidecar` made for it, then exits-*.gguf beside it
    #[arg(help_heading = EXITS, long, value_name = "FILE", env = "OFFRAMP_HEADS")]
    pub heads: Option<PathBuf>,
    /// Take the exit heads for the model, exits-*.gguf, from this repository of the Hugging Face hub
    #[cfg(feature = "hf")]
    #[arg(help_heading = EXITS, long, value_name = "USER/MODEL", env = "OFFRAMP_HEADS_REPO", conflicts_with = "heads")]
    pub heads_repo: Option<String>,
    /// Without this feature the hub is not asked
    #[cfg(not(feature = "hf"))]
    #[arg(long, hide = true)]
    pub heads_repo: Option<String>,
    /// Whether tokens may leave the model early: off, calibrated (off without heads) or exact, where drafts are verified
    /// and the text is that of off [default: calibrated]; bench takes several, with commas [default: calibrated,exact]
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "MODE",
        value_delimiter = ',',
        action = ArgAction::Set,
        env = "OFFRAMP_EXITS",
        value_parser = one_of::<Exits>(&["off", "calibrated", "exact"])
    )]
    pub exits: Vec<Exits>,
    /// Share of tokens that equal the full model's, for --exits calibrated
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "SHARE",
        default_value_t = 0.99,
        env = "OFFRAMP_AGREEMENT"
    )]
    pub agreement: f32,
    /// Where the K/V of skipped blocks come from: auto, predict, catch-up or propagate; bench takes several, with commas
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "HOW",
        value_delimiter = ',',
        action = ArgAction::Set,
        default_value = "auto",
        env = "OFFRAMP_KV",
        value_parser = one_of::<Kv>(&["auto", "predict", "catch-up", "propagate"])
    )]
    pub kv: Vec<Kv>,
    /// Most tokens of a batch that catches up on skipped blocks
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(2..=64)
    )]
    pub max_pending: u32,
    /// Let no token leave after a block below this one
    #[arg(help_heading = EXITS, long, value_name = "LAYER", default_value_t = 0)]
    pub min_exit_layer: u32,
    /// Whether tokens are drafted, which the full model verifies several at once: off; on (where that is likely to pay); or auto, which keeps --exits calibrated to batches that round as single tokens do, or that the file was certified with
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "WHEN",
        default_value_t = Drafts::Auto,
        value_parser = one_of::<Drafts>(&["off", "auto", "on"])
    )]
    pub drafts: Drafts,
    /// Whether drafts come from the text itself, too: off or auto
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "WHEN",
        default_value_t = Lookup::Auto,
        value_parser = one_of::<Lookup>(&["off", "auto"])
    )]
    pub lookup: Lookup,
    /// Which checks and drafts are made: auto (those that pay here), always, or fixed (all checks, and drafts by fixed costs, as certificates are made)
    #[arg(
        help_heading = EXITS,
        long,
        value_name = "WHICH",
        default_value_t = Policy::Auto,
        value_parser = one_of::<Policy>(&["auto", "always", "fixed"])
    )]
    pub policy: Policy,
    /// Where the context is full, forget the older half of the text and go on
    #[arg(long, env = "LLAMA_ARG_CONTEXT_SHIFT")]
    pub context_shift: bool,
    /// Tokens of context; 0 takes what the model was trained with [default: that, at most 8192]
    #[arg(short, long, value_name = "N", env = "LLAMA_ARG_CTX_SIZE")]
    pub ctx_size: Option<u32>,
    /// Threads for single tokens; -1 is the physical cores [default: those]
    #[arg(
        short,
        long,
        value_name = "N",
        env = "LLAMA_ARG_THREADS",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1..)
    )]
    pub threads: Option<i32>,
    /// Threads for prompts; -1 is as --threads [default: that] [llama.cpp's -tb]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1..))]
    pub threads_batch: Option<i32>,
    /// Most tokens of one decode
    #[arg(short, long, value_name = "N", default_value_t = 2048, env = "LLAMA_ARG_BATCH")]
    pub batch_size: u32,
    /// Most tokens of one graph [llama.cpp's -ub]
    #[arg(long, value_name = "N", default_value_t = 512, env = "LLAMA_ARG_UBATCH")]
    pub ubatch_size: u32,
    /// Layers on the GPU: auto, all or a number [llama.cpp's -ngl]
    #[arg(
        long,
        visible_alias = "n-gpu-layers",
        value_name = "N",
        default_value_t = GpuLayers::Auto,
        allow_negative_numbers = true,
        env = "LLAMA_ARG_N_GPU_LAYERS"
    )]
    pub gpu_layers: GpuLayers,
    /// Read the file through memory mapping (the default)
    #[arg(long, overrides_with = "no_mmap")]
    pub mmap: bool,
    /// Read the file into memory
    #[arg(long)]
    pub no_mmap: bool,
    /// Keep the weights from being swapped out
    #[arg(long)]
    pub mlock: bool,
    /// Whose kernels compute on the processor: auto (offramp's own, which pack the weights), or llama.cpp
    #[arg(long, value_name = "WHOSE", default_value_t = Kernels::Auto)]
    pub kernels: Kernels,
    /// Fused attention: auto, on or off [llama.cpp's -fa]
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        default_value = "auto",
        default_missing_value = "on",
        env = "LLAMA_ARG_FLASH_ATTN"
    )]
    pub flash_attn: FlashAttn,
    /// Number format of the K cache [llama.cpp's -ctk]
    #[arg(long, value_name = "TYPE", default_value_t = CacheType::F16, env = "LLAMA_ARG_CACHE_TYPE_K")]
    pub cache_type_k: CacheType,
    /// Number format of the V cache [llama.cpp's -ctv]
    #[arg(long, value_name = "TYPE", default_value_t = CacheType::F16, env = "LLAMA_ARG_CACHE_TYPE_V")]
    pub cache_type_v: CacheType,
}

impl ModelArgs {
    pub fn model_params(&self) -> ModelParams {
        let mut params = ModelParams::default();
        params.gpu_layers = self.gpu_layers;
        params.use_mmap = !self.no_mmap;
        params.use_mlock = self.mlock;
        params.kernels = self.kernels;
        params
    }

    /// The exit heads for the model at `path`: those that are named, or those that are found; `None` for those inside the model,
    /// if any.
    ///
    /// # Errors
    /// When `--heads-repo` has none, and when the user interrupts while the model is hashed.
    fn heads_for(&self, path: &Path) -> Result<Option<PathBuf>, Failure> {
        if let Some(heads) = &self.heads {
            return Ok(Some(heads.clone()).filter(|heads| heads != Path::new(NO_HEADS)));
        }
        // What is wrong with the model its loading says.
        let Ok(file) = gguf::File::open_model(path) else { return Ok(None) };
        let Ok(inner) = gguf::exits::base(&file) else { return Ok(None) };
        let cache = HeadsCache::of_user();
        if let Some(repo) = &self.heads_repo {
            let cache =
                cache.ok_or_else(|| Failure::failed("there is no home folder to keep what is known of models in"))?;
            return resolve::heads_from_hub(repo, inner.as_ref().unwrap_or(&file), &cache).map(Some);
        }
        if inner.is_some() {
            return Ok(None);
        }
        let bar = progress::hashing();
        let found = cache.map(|cache| {
            cache.find(&file, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
                !interrupt::is_requested()
            })
        });
        bar.finish_and_clear();
        if let Some(heads) = found.transpose()?.flatten() {
            eprintln!("offramp: exit heads from {}", heads.display());
            return Ok(Some(heads));
        }
        // The default model's heads come with it.
        let is_default = self.model.is_none() && self.hf_repo.is_none();
        Ok(resolve::default_heads().filter(|_| is_default))
    }

    /// For a model that was trained with `n_ctx_train` tokens of context.
    pub fn session_params(&self, n_ctx_train: u32) -> SessionParams {
        let mut params = SessionParams::default();
        params.n_ctx = self.ctx_size.unwrap_or(DEFAULT_CTX.min(n_ctx_train));
        params.n_batch = self.batch_size;
        params.n_ubatch = self.ubatch_size;
        params.n_threads = self.n_threads();
        params.n_threads_batch = count(self.threads_batch);
        params.flash_attn = self.flash_attn;
        params.type_k = self.cache_type_k;
        params.type_v = self.cache_type_v;
        params.exits = self.exits.first().copied().unwrap_or_default();
        params.agreement = self.agreement;
        params.kv = self.kv.first().copied().unwrap_or_default();
        params.max_pending = self.max_pending;
        params.min_exit_layer = self.min_exit_layer;
        params.policy = self.policy;
        params.drafts = self.drafts;
        params.lookup = self.lookup;
        params.context_shift = self.context_shift;
        params
    }

    /// Threads for single tokens, if a number was given.
    pub fn n_threads(&self) -> Option<u32> {
        count(self.threads)
    }

    /// How tokens may leave early; of several modes the first.
    pub fn modes(&self) -> Modes {
        Modes { exits: self.exits.first().copied().unwrap_or_default(), agreement: self.agreement }
    }

    /// Finds the model's file and loads it, with progress on a terminal.
    ///
    /// # Errors
    /// When there is no such file, when it does not load, and when the user interrupts.
    pub fn load(&self) -> Result<Model, Failure> {
        if let Some(warning) = self.session_params(0).threads_warning() {
            eprintln!("offramp: {warning}");
        }
        self.load_with(self.kernels)
    }

    /// The same by other kernels than the arguments say.
    ///
    /// # Errors
    /// As [`ModelArgs::load`].
    pub fn load_with(&self, kernels: Kernels) -> Result<Model, Failure> {
        let with_heads = self.heads.is_none() && self.heads_repo.is_none();
        let path = resolve::model_file(self.model.as_deref(), self.hf_repo.as_deref(), with_heads)?;
        let mut params = self.model_params();
        params.heads = self.heads_for(&path)?;
        params.kernels = kernels;
        let bar = progress::loading();
        let model = Model::load_with_progress(&path, &params, &mut |share| {
            bar.set_position((share * 100.0) as u64);
            !interrupt::is_requested()
        });
        bar.finish_and_clear();
        model.map_err(|error| match error {
            // What is wrong inside of a file is told without the file's name.
            Error::Gguf(found) => Failure::Failed(named(&path, &found.to_string())),
            error => error.into(),
        })
    }

    /// # Errors
    /// For several modes, which bench alone takes.
    pub fn check_modes(&self) -> Result<(), Failure> {
        if self.kv.len() > 1 || self.exits.len() > 1 {
            return Err(Failure::usage("--exits and --kv take several values for bench alone"));
        }
        Ok(())
    }

    /// A session whose exits can be turned on and off.
    ///
    /// # Errors
    /// As [`ModelArgs::open_session`].
    pub fn open_chat_session(&self, model: &Model) -> Result<Session, Failure> {
        self.check_modes()?;
        let mut params = self.session_params(model.info().n_ctx_train);
        params.gate = model.has_heads();
        Ok(Session::new(model, &params)?)
    }

    /// # Errors
    /// When llama.cpp refuses the context, and for several modes.
    pub fn open_session(&self, model: &Model) -> Result<Session, Failure> {
        self.check_modes()?;
        Ok(Session::new(model, &self.session_params(model.info().n_ctx_train))?)
    }

    /// A session with other exits than the arguments say.
    ///
    /// # Errors
    /// When llama.cpp refuses the context, and for heads that cannot be evaluated.
    pub fn open_session_with(&self, model: &Model, exits: Exits, kv: Kv) -> Result<Session, Failure> {
        let mut params = self.session_params(model.info().n_ctx_train);
        params.exits = exits;
        params.kv = kv;
        Ok(Session::new(model, &params)?)
    }

    /// The judge of what such sessions emit.
    ///
    /// # Errors
    /// When llama.cpp refuses the context.
    pub fn open_rescorer(&self, model: &Model) -> Result<Rescorer, Failure> {
        Ok(Rescorer::new(model, &self.session_params(model.info().n_ctx_train))?)
    }
}

/// A number of threads; `None` for 0 and -1, which leave it to the program, as in llama.cpp.
fn count(n: Option<i32>) -> Option<u32> {
    n.and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0)
}

/// What a session is made with where nothing is said.
pub fn default_session_params() -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = DEFAULT_CTX;
    params
}

fn named(path: &Path, reason: &str) -> String {
    let path = path.display().to_string();
    if reason.contains(&path) { reason.to_owned() } else { format!("cannot load {path}: {reason}") }
}
