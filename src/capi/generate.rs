//! Replies, and what is known of them.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::time::Duration;

use super::OFFRAMP_ABI_VERSION;
use super::params::offramp_generate_params;
use super::pointers::{Versioned, handle, input_struct, output_struct, slice, text};
use super::sampler::offramp_sampler;
use super::session::{State, offramp_session};
use super::status::*;
use crate::measure::Depths;
use crate::{GenerateParams, Generation, StopReason, Token};

/// There was no reply yet.
pub const OFFRAMP_STOP_NONE: i32 = 0;
/// The model's own end token.
pub const OFFRAMP_STOP_EOS: i32 = 1;
/// The most tokens were generated, or the context is full.
pub const OFFRAMP_STOP_LENGTH: i32 = 2;
/// A stop text, a stop token, or the callback.
pub const OFFRAMP_STOP_STOP: i32 = 3;
/// offramp_session_cancel.
pub const OFFRAMP_STOP_CANCELLED: i32 = 4;

/// Called with each piece of a reply: `length` bytes of UTF-8 in whole code points, not ended by NUL, valid during the
/// call only. It runs on the thread of the offramp_session_generate that it was given to; it may cancel or free the
/// session, and must not let an exception out. 0 ends the reply after this piece: it is not called again for it.
pub type offramp_token_callback =
    Option<unsafe extern "C" fn(text: *const c_char, length: usize, user_data: *mut c_void) -> i32>;

/// What is known of a session's last prompt and last reply.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_statistics {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// Why the reply ended, one of OFFRAMP_STOP_*.
    pub stop_reason: i32,
    /// 1 if there was no room in the context for a further token.
    pub context_full: i32,
    /// Tokens of the last prompt.
    pub n_prompt: u64,
    /// Of these, those whose K/V were there already.
    pub n_prompt_reused: u64,
    /// Of these, those that were decoded.
    pub n_prompt_decoded: u64,
    /// How long that took.
    pub prompt_seconds: f64,
    /// Tokens of the reply, without an end token.
    pub n_tokens: u64,
    /// From the logits of the prompt to the last token.
    pub seconds: f64,
    /// Tokens after the first a second: the first one comes with the prompt.
    pub tokens_per_second: f64,
    /// Tokens that ran through all of the model.
    pub n_full: u64,
    /// Tokens that left at the final norm, by the screened output matrix.
    pub n_screen: u64,
    /// Tokens that left after each block, `n_layer` numbers. Owned by the session, valid until the next call on it.
    pub layer_exits: *const u64,
    /// Number of blocks.
    pub n_layer: u64,
    /// Blocks that ran for a token, on the average; 0 without tokens.
    pub mean_depth: f64,
    /// Tokens that were drafted for the full model to verify.
    pub n_drafted: u64,
    /// Of these, those that it agreed with.
    pub n_accepted: u64,
    /// n_accepted / n_drafted; 0 without drafts.
    pub draft_acceptance: f64,
}

// SAFETY: `repr(C)`, beginning with `struct_size` and `abi_version`.
unsafe impl Versioned for offramp_statistics {
    const NAME: &'static str = "offramp_statistics";
}

/// What the last reply was.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplyFigures {
    stop_reason: i32,
    context_full: bool,
    elapsed: Duration,
    depths: Depths,
    n_drafted: u64,
    n_accepted: u64,
    /// What `depths` has, with a place for each block: a C caller reads it in place.
    layers: Vec<u64>,
}

impl ReplyFigures {
    fn of(generation: &Generation, n_layer: u32) -> Self {
        let depths = Depths::of(&generation.exits);
        let of_layer = |il| depths.layers.get(&il).copied().unwrap_or_default() as u64;
        Self {
            stop_reason: match generation.stop_reason {
                StopReason::Eos => OFFRAMP_STOP_EOS,
                StopReason::Length => OFFRAMP_STOP_LENGTH,
                StopReason::Stop => OFFRAMP_STOP_STOP,
                StopReason::Cancelled => OFFRAMP_STOP_CANCELLED,
            },
            context_full: generation.context_full,
            elapsed: generation.elapsed,
            n_drafted: generation.n_drafted as u64,
            n_accepted: generation.n_right as u64,
            layers: (0..n_layer).map(of_layer).collect(),
            depths,
        }
    }
}

/// Generates a reply to the session's text and hands it out in pieces. `sampler` may be NULL for a greedy one, `params`
/// for the defaults, `on_token` if only the session's tokens are wanted; nothing of the three is kept. A reply
/// that was cancelled or stopped is a success: offramp_session_statistics tells why it ended. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_generate(
    session: *mut offramp_session,
    sampler: *const offramp_sampler,
    params: *const offramp_generate_params,
    on_token: offramp_token_callback,
    user_data: *mut c_void,
) -> i32 {
    boundary("offramp_session_generate", || {
        // SAFETY: the caller's promise (module `capi`).
        let (handle_of_session, params) =
            unsafe { (handle(session, "session")?, input_struct(params, offramp_generate_params::default, "params")?) };
        // SAFETY: as above.
        let limits = unsafe { limits(&params) }?;
        let model = &handle_of_session.model.model;
        let mut sampler = if sampler.is_null() {
            crate::Sampler::new(model, &crate::SamplerParams { temperature: 0.0, ..Default::default() })?
        } else {
            // SAFETY: as above.
            unsafe { handle(sampler, "sampler") }?.start(model)?
        };
        let mut ended = false;
        let mut show = |text: &str| {
            let Some(on_token) = on_token.filter(|_| !text.is_empty() && !ended) else {
                return ControlFlow::Continue(());
            };
            // SAFETY: a callback of the caller, with the caller's data; the text outlives the call.
            ended = unsafe { on_token(text.as_ptr().cast(), text.len(), user_data) } == 0;
            if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut state = handle_of_session.enter()?;
        let State { session, reply, .. } = &mut *state;
        let mut shown = 0;
        let generation = session.generate(&mut sampler, &limits, &mut |event| {
            shown += event.text.len();
            show(event.text)
        })?;
        *reply = ReplyFigures::of(&generation, model.info().n_layer);
        // What was held back because it could have been the beginning of a stop text.
        let _ = show(generation.text.get(shown..).unwrap_or_default());
        Ok(())
    })
}

unsafe fn limits(params: &offramp_generate_params) -> Result<GenerateParams, Failure> {
    // SAFETY: the caller's promise (module `capi`).
    let stops = unsafe { slice(params.stop, params.n_stop, "stop") }?;
    // SAFETY: as above.
    let stop = stops.iter().map(|&stop| unsafe { text(stop, "stop") }.map(str::to_owned));
    // SAFETY: as above.
    let ids = unsafe { slice(params.stop_token_ids, params.n_stop_token_ids, "stop_token_ids") }?;
    Ok(GenerateParams {
        min_tokens: params.min_tokens as usize,
        stop_token_ids: ids.iter().copied().map(Token).collect(),
        max_tokens: if params.max_tokens == 0 { usize::MAX } else { params.max_tokens as usize },
        stop: stop.collect::<Result<_, _>>()?,
        ignore_eos: params.ignore_eos != 0,
        ..GenerateParams::default()
    })
}

/// Tells about the session's last prompt and last reply. `struct_size` is sizeof(*statistics). One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_statistics(
    session: *const offramp_session,
    statistics: *mut offramp_statistics,
    struct_size: usize,
) -> i32 {
    boundary("offramp_session_statistics", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, output) =
            unsafe { (handle(session, "session")?, output_struct(statistics, struct_size, "statistics")?) };
        let state = session.enter()?;
        let (prompt, reply) = (&state.prompt, &state.reply);
        let seconds = reply.elapsed.as_secs_f64();
        let n_tokens = reply.depths.n_tokens();
        let after_first = n_tokens.saturating_sub(1) as f64;
        output.write(offramp_statistics {
            struct_size: size_of::<offramp_statistics>() as u32,
            abi_version: OFFRAMP_ABI_VERSION,
            stop_reason: reply.stop_reason,
            context_full: reply.context_full.into(),
            n_prompt: prompt.n_tokens as u64,
            n_prompt_reused: prompt.reused as u64,
            n_prompt_decoded: prompt.decoded as u64,
            prompt_seconds: prompt.elapsed.as_secs_f64(),
            n_tokens: n_tokens as u64,
            seconds,
            tokens_per_second: if seconds > 0.0 { after_first / seconds } else { 0.0 },
            n_full: reply.depths.full as u64,
            n_screen: reply.depths.screen as u64,
            layer_exits: reply.layers.as_ptr(),
            n_layer: reply.layers.len() as u64,
            mean_depth: reply.depths.mean(reply.layers.len() as u32).unwrap_or(0.0),
            n_drafted: reply.n_drafted,
            n_accepted: reply.n_accepted,
            draft_acceptance: reply.n_accepted as f64 / reply.n_drafted.max(1) as f64,
        });
        Ok(())
    })
}
