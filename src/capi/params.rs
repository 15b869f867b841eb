//! The structs of parameters and results, and their defaults.

use std::ffi::{c_char, c_void};

use super::OFFRAMP_ABI_VERSION;
use super::pointers::{Versioned, output_struct};
use super::status::*;
use crate::{ModelParams, SamplerParams, SessionParams};

/// As many layers on the GPU as fit into its free memory.
pub const OFFRAMP_GPU_LAYERS_AUTO: i32 = -1;
/// All layers on the GPU.
pub const OFFRAMP_GPU_LAYERS_ALL: i32 = -2;

/// Fused attention where the device supports it.
pub const OFFRAMP_FLASH_ATTN_AUTO: i32 = 0;
/// Fused attention always.
pub const OFFRAMP_FLASH_ATTN_ON: i32 = 1;
/// Fused attention never.
pub const OFFRAMP_FLASH_ATTN_OFF: i32 = 2;

/// Number formats of the K and the V cache.
pub const OFFRAMP_CACHE_F16: i32 = 0;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_F32: i32 = 1;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_BF16: i32 = 2;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_Q8_0: i32 = 3;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_Q4_0: i32 = 4;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_Q4_1: i32 = 5;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_IQ4_NL: i32 = 6;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_Q5_0: i32 = 7;
/// See OFFRAMP_CACHE_F16.
pub const OFFRAMP_CACHE_Q5_1: i32 = 8;

/// No token leaves the model early: plain llama.cpp.
pub const OFFRAMP_EXITS_OFF: i32 = 0;
/// Tokens leave where the heads are confident enough for the wanted agreement.
pub const OFFRAMP_EXITS_CALIBRATED: i32 = 1;
/// Exits, and the text so far, only draft: every token is the full model's own, which verifies several drafts at once.
pub const OFFRAMP_EXITS_EXACT: i32 = 2;

/// Keys and values that an exit left out come from whichever of the ways below pays on this model.
pub const OFFRAMP_KV_AUTO: i32 = 0;
/// They are predicted by the file's K/V maps.
pub const OFFRAMP_KV_PREDICT: i32 = 1;
/// The layers that were left out run later, in batches.
pub const OFFRAMP_KV_CATCH_UP: i32 = 2;
/// They are computed from the hidden state at the exit.
pub const OFFRAMP_KV_PROPAGATE: i32 = 3;

/// Called with the share that is done, from 0 to 1, on the thread of the call that it was given to. 0 stops that call.
pub type offramp_progress_callback = Option<unsafe extern "C" fn(done: f32, user_data: *mut c_void) -> i32>;

/// How a model is loaded. Fill it with offramp_model_default_params.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_model_params {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// Layers on the GPU: a number, OFFRAMP_GPU_LAYERS_AUTO or OFFRAMP_GPU_LAYERS_ALL.
    pub gpu_layers: i32,
    /// Not 0: map the file instead of reading it.
    pub use_mmap: i32,
    /// Not 0: keep the weights from being swapped out.
    pub use_mlock: i32,
    /// Not 0: refuse what does not fit into the memory that is free.
    pub check_memory: i32,
    /// Not 0: also load architectures whose loader was not read for defects. Say 0 for files from strangers.
    pub allow_unread: i32,
    /// Not 0: where `heads_path` is NULL and the model file has no exit heads, look for a sidecar made for this model in
    /// the user's cache and, as `exits-*.gguf`, beside the file. A first look that finds some reads the whole model.
    pub find_heads: i32,
    /// A sidecar with exit heads, or NULL for those inside the model file, if any, and those that `find_heads` finds.
    pub heads_path: *const c_char,
    /// How far the loading is, or NULL. 0 from it stops the loading with OFFRAMP_ERROR_CANCELLED.
    pub progress: offramp_progress_callback,
    /// Given to `progress`.
    pub progress_user_data: *mut c_void,
}

/// What a session is made with. Fill it with offramp_session_default_params.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_session_params {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// Tokens that the context holds; 0 takes what the model was trained with, at most 8192.
    pub n_ctx: u32,
    /// Tokens that one decode takes at most.
    pub n_batch: u32,
    /// Tokens that one graph takes at most.
    pub n_ubatch: u32,
    /// Threads for single tokens; 0 takes the physical cores.
    pub n_threads: u32,
    /// Threads for prompts; 0 takes as many as for single tokens.
    pub n_threads_batch: u32,
    /// One of OFFRAMP_FLASH_ATTN_*.
    pub flash_attn: i32,
    /// Format of the K cache, one of OFFRAMP_CACHE_*.
    pub type_k: i32,
    /// Format of the V cache, one of OFFRAMP_CACHE_*.
    pub type_v: i32,
    /// One of OFFRAMP_EXITS_*. Without exit heads nothing leaves early, whatever this says.
    pub exits: i32,
    /// One of OFFRAMP_KV_*.
    pub kv: i32,
    /// The wanted share of tokens that equal the full model's, in (0, 1]: a level that the heads were calibrated for, or
    /// the next higher one is taken.
    pub agreement: f32,
    /// The most tokens of a batch that catches up on skipped layers, or verifies drafts.
    pub max_pending: u32,
    /// No token leaves before this block.
    pub min_exit_layer: u32,
    /// Not 0: where the context is full, forget the older half of the text and go on, instead of ending the reply.
    pub context_shift: i32,
}

/// How tokens are picked. Fill it with offramp_sampler_default_params.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_sampler_params {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// 0, and what is below 0.00001, is greedy: the best token, of equals the one with the lowest id.
    pub temperature: f32,
    /// Keep the best tokens, this many; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the tokens whose surprise is nearest to the expected one, up to this probability; 1 keeps all.
    pub typical_p: f32,
    /// Keep the best tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this times the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits of repeated tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the reply's last tokens count as repeated; 0 is none, -1 as many as the model was trained with.
    pub repeat_last_n: i32,
    /// Lowers a token's logit by this for each of its repetitions.
    pub frequency_penalty: f32,
    /// Lowers the logit of every token that was there before by this.
    pub presence_penalty: f32,
    /// Lowers the logit of a token that would go on repeating a sequence, by this times a power of `dry_base`; 0 is off.
    pub dry_multiplier: f32,
    /// What that power is of: the exponent is by how much the repeated sequence is longer than `dry_allowed_length`.
    pub dry_base: f32,
    /// Sequences up to this length may be repeated.
    pub dry_allowed_length: i32,
    /// How many of the reply's last tokens are searched for the sequence; as `repeat_last_n`.
    pub dry_penalty_last_n: i32,
    /// How often the likeliest tokens are left out, all but the least likely of those above `xtc_threshold`; 0 is never.
    pub xtc_probability: f32,
    /// See `xtc_probability`; above 0.5 nothing is left out.
    pub xtc_threshold: f32,
    /// Not 0: `seed` is used; otherwise each reply has a seed of its own.
    pub use_seed: i32,
    /// Seed of the random numbers.
    pub seed: u32,
    /// 0.
    pub reserved: i32,
    /// A GBNF grammar with the root rule `root`, or NULL.
    pub grammar: *const c_char,
    /// Texts that no repeated sequence reaches across, at most 16 of 1 to 40 bytes; NULL takes llama.cpp's four if
    /// `n_dry_sequence_breakers` is 0.
    pub dry_sequence_breakers: *const *const c_char,
    /// Number of `dry_sequence_breakers`. 0 with a pointer that is not NULL is none.
    pub n_dry_sequence_breakers: usize,
}

/// When a reply ends. Fill it with offramp_generate_default_params.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_generate_params {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// The most tokens; 0 leaves it to the context.
    pub max_tokens: u32,
    /// Not 0: go on after the model's own end token.
    pub ignore_eos: i32,
    /// Texts that end a reply and are no part of it, or NULL.
    pub stop: *const *const c_char,
    /// Number of `stop`.
    pub n_stop: usize,
    /// Tokens that end a reply, beside the model's own, and are no part of it, or NULL.
    pub stop_token_ids: *const i32,
    /// Number of `stop_token_ids`.
    pub n_stop_token_ids: usize,
    /// Nothing of the above, and no end token, ends a reply before this many tokens, unless a grammar allows nothing else.
    pub min_tokens: u32,
    /// 0.
    pub reserved: i32,
}

// SAFETY: `repr(C)`, beginning with `struct_size` and `abi_version`, as all of the following.
unsafe impl Versioned for offramp_model_params {
    const NAME: &'static str = "offramp_model_params";
}
// SAFETY: as above.
unsafe impl Versioned for offramp_session_params {
    const NAME: &'static str = "offramp_session_params";
}
// SAFETY: as above.
unsafe impl Versioned for offramp_sampler_params {
    const NAME: &'static str = "offramp_sampler_params";
}
// SAFETY: as above.
unsafe impl Versioned for offramp_generate_params {
    const NAME: &'static str = "offramp_generate_params";
}

/// Fills `params` with the defaults. `struct_size` is sizeof(*params). Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_model_default_params(params: *mut offramp_model_params, struct_size: usize) -> i32 {
    boundary("offramp_model_default_params", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { output_struct(params, struct_size, "params") }?.write(offramp_model_params::default());
        Ok(())
    })
}

/// Fills `params` with the defaults. `struct_size` is sizeof(*params). Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_default_params(
    params: *mut offramp_session_params,
    struct_size: usize,
) -> i32 {
    boundary("offramp_session_default_params", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { output_struct(params, struct_size, "params") }?.write(offramp_session_params::default());
        Ok(())
    })
}

/// Fills `params` with the defaults, which are llama.cpp's. `struct_size` is sizeof(*params). Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_sampler_default_params(
    params: *mut offramp_sampler_params,
    struct_size: usize,
) -> i32 {
    boundary("offramp_sampler_default_params", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { output_struct(params, struct_size, "params") }?.write(offramp_sampler_params::default());
        Ok(())
    })
}

/// Fills `params` with the defaults. `struct_size` is sizeof(*params). Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_generate_default_params(
    params: *mut offramp_generate_params,
    struct_size: usize,
) -> i32 {
    boundary("offramp_generate_default_params", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { output_struct(params, struct_size, "params") }?.write(offramp_generate_params::default());
        Ok(())
    })
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

impl Default for offramp_model_params {
    fn default() -> Self {
        let params = ModelParams::default();
        Self {
            struct_size: size::<Self>(),
            abi_version: OFFRAMP_ABI_VERSION,
            gpu_layers: OFFRAMP_GPU_LAYERS_AUTO,
            use_mmap: params.use_mmap.into(),
            use_mlock: params.use_mlock.into(),
            check_memory: params.check_memory.into(),
            allow_unread: params.allow_unread.into(),
            find_heads: 1,
            heads_path: std::ptr::null(),
            progress: None,
            progress_user_data: std::ptr::null_mut(),
        }
    }
}

impl Default for offramp_session_params {
    fn default() -> Self {
        let params = SessionParams::default();
        Self {
            struct_size: size::<Self>(),
            abi_version: OFFRAMP_ABI_VERSION,
            n_ctx: 0,
            n_batch: params.n_batch,
            n_ubatch: params.n_ubatch,
            n_threads: 0,
            n_threads_batch: 0,
            flash_attn: OFFRAMP_FLASH_ATTN_AUTO,
            type_k: OFFRAMP_CACHE_F16,
            type_v: OFFRAMP_CACHE_F16,
            exits: OFFRAMP_EXITS_CALIBRATED,
            kv: OFFRAMP_KV_AUTO,
            agreement: params.agreement,
            max_pending: params.max_pending,
            min_exit_layer: params.min_exit_layer,
            context_shift: params.context_shift.into(),
        }
    }
}

impl Default for offramp_sampler_params {
    fn default() -> Self {
        let params = SamplerParams::default();
        Self {
            struct_size: size::<Self>(),
            abi_version: OFFRAMP_ABI_VERSION,
            temperature: params.temperature,
            top_k: params.top_k,
            typical_p: params.typical_p,
            top_p: params.top_p,
            min_p: params.min_p,
            repeat_penalty: params.repeat_penalty,
            repeat_last_n: params.repeat_last_n,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            dry_multiplier: params.dry_multiplier,
            dry_base: params.dry_base,
            dry_allowed_length: params.dry_allowed_length,
            dry_penalty_last_n: params.dry_penalty_last_n,
            xtc_probability: params.xtc_probability,
            xtc_threshold: params.xtc_threshold,
            use_seed: 0,
            seed: 0,
            reserved: 0,
            grammar: std::ptr::null(),
            dry_sequence_breakers: std::ptr::null(),
            n_dry_sequence_breakers: 0,
        }
    }
}

impl Default for offramp_generate_params {
    fn default() -> Self {
        Self {
            struct_size: size::<Self>(),
            abi_version: OFFRAMP_ABI_VERSION,
            max_tokens: 0,
            ignore_eos: 0,
            stop: std::ptr::null(),
            n_stop: 0,
            stop_token_ids: std::ptr::null(),
            n_stop_token_ids: 0,
            min_tokens: 0,
            reserved: 0,
        }
    }
}
