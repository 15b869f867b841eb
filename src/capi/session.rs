//! The session handle: a conversation on a model, one call at a time; only cancelling may come from another thread.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::chat::{offramp_message, read_messages};
use super::model::offramp_model;
use super::params::*;
use super::pointers::{Output, copy_out, free_handle, handle, input_struct, into_handle, path, slice, text_of};
use super::status::*;
use crate::{CacheType, CancelHandle, Exits, FlashAttn, Kv, PromptProgress, Session, SessionParams, Token};

/// The most tokens of context that are taken unasked. The whole context of a model of today takes gigabytes.
const MAX_DEFAULT_CTX: u32 = 8192;

/// A conversation on a model. It may move between threads, but one call at a time uses it: a second one answers
/// OFFRAMP_ERROR_BUSY. offramp_session_cancel and offramp_session_clear_cancel may be called by any thread at any time.
pub struct offramp_session {
    state: Mutex<State>,
    cancel: CancelHandle,
    /// True between offramp_session_cancel and offramp_session_clear_cancel. `cancel` is set at other times too, where a
    /// progress callback stops its own call.
    cancelled: Mutex<bool>,
    pub(super) model: Arc<offramp_model>,
}

/// What a call on a session works with.
pub(super) struct State {
    pub(super) session: Session,
    pub(super) prompt: PromptFigures,
    pub(super) reply: super::generate::ReplyFigures,
}

/// What the last prompt took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PromptFigures {
    pub(super) n_tokens: usize,
    pub(super) reused: usize,
    pub(super) decoded: usize,
    pub(super) elapsed: Duration,
}

impl offramp_session {
    /// The session for one call. Waits for no one: who comes second has made a mistake.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, State>, Failure> {
        self.state.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::new(
                OFFRAMP_ERROR_BUSY,
                "another call on this session is in progress; only offramp_session_cancel may be called meanwhile",
            ),
            TryLockError::Poisoned(_) => Failure::new(
                OFFRAMP_ERROR_PANIC,
                "an earlier call on this session ended in a defect; free it and make a new one",
            ),
        })
    }

    /// Cancels until further notice, or lets the session go on.
    fn set_cancelled(&self, cancelled: bool) {
        // Both under the lock, so that they never disagree. Nothing in here panics and poisons it.
        let mut wanted = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        *wanted = cancelled;
        if cancelled {
            self.cancel.cancel();
        } else {
            self.cancel.reset();
        }
    }

    fn set_prompt(
        &self,
        tokens: &[Token],
        progress: offramp_progress_callback,
        data: *mut c_void,
    ) -> Result<(), Failure> {
        let mut state = self.enter()?;
        let State { session, prompt, .. } = &mut *state;
        let mut stopped = false;
        let report = session.set_prompt(tokens, &mut |PromptProgress { done, total }| {
            let Some(progress) = progress.filter(|_| !stopped) else { return };
            // SAFETY: a callback of the caller, with the caller's data.
            if unsafe { progress(done as f32 / total as f32, data) } == 0 && done < total {
                stopped = true;
                self.cancel.cancel();
            }
        });
        if stopped {
            // The callback's word was for this call alone; a cancel that came beside it holds.
            let cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
            if !*cancelled {
                self.cancel.reset();
            }
        }
        let report = report?;
        *prompt = PromptFigures {
            n_tokens: tokens.len(),
            reused: report.reused,
            decoded: report.decoded,
            elapsed: report.elapsed,
        };
        if report.cancelled {
            let reason = format!("cancelled after {} of {} tokens", report.reused + report.decoded, tokens.len());
            return Err(Failure::new(OFFRAMP_ERROR_CANCELLED, reason));
        }
        Ok(())
    }
}

impl offramp_session_params {
    pub(super) fn to_session(self, n_ctx_train: u32) -> Result<SessionParams, Failure> {
        let cache = |name: &str, format: i32| {
            Ok(match format {
                OFFRAMP_CACHE_F16 => CacheType::F16,
                OFFRAMP_CACHE_F32 => CacheType::F32,
                OFFRAMP_CACHE_BF16 => CacheType::Bf16,
                OFFRAMP_CACHE_Q8_0 => CacheType::Q8_0,
                OFFRAMP_CACHE_Q4_0 => CacheType::Q4_0,
                OFFRAMP_CACHE_Q4_1 => CacheType::Q4_1,
                OFFRAMP_CACHE_IQ4_NL => CacheType::Iq4Nl,
                OFFRAMP_CACHE_Q5_0 => CacheType::Q5_0,
                OFFRAMP_CACHE_Q5_1 => CacheType::Q5_1,
                other => return Err(Failure::value(name, other, "one of OFFRAMP_CACHE_*")),
            })
        };
        if !(self.agreement > 0.0 && self.agreement <= 1.0) {
            return Err(Failure::value("agreement", self.agreement, "in (0, 1]"));
        }
        let unless_0 = |n: u32| Some(n).filter(|&n| n > 0);
        Ok(SessionParams {
            n_ctx: if self.n_ctx == 0 { n_ctx_train.min(MAX_DEFAULT_CTX) } else { self.n_ctx },
            n_batch: self.n_batch,
            n_ubatch: self.n_ubatch,
            n_threads: unless_0(self.n_threads),
            n_threads_batch: unless_0(self.n_threads_batch),
            flash_attn: match self.flash_attn {
                OFFRAMP_FLASH_ATTN_AUTO => FlashAttn::Auto,
                OFFRAMP_FLASH_ATTN_ON => FlashAttn::On,
                OFFRAMP_FLASH_ATTN_OFF => FlashAttn::Off,
                other => return Err(Failure::value("flash_attn", other, "one of OFFRAMP_FLASH_ATTN_*")),
            },
            type_k: cache("type_k", self.type_k)?,
            type_v: cache("type_v", self.type_v)?,
            exits: match self.exits {
                OFFRAMP_EXITS_OFF => Exits::Off,
                OFFRAMP_EXITS_CALIBRATED => Exits::Calibrated,
                OFFRAMP_EXITS_EXACT => Exits::Exact,
                other => return Err(Failure::value("exits", other, "one of OFFRAMP_EXITS_*")),
            },
            agreement: self.agreement,
            kv: match self.kv {
                OFFRAMP_KV_AUTO => Kv::Auto,
                OFFRAMP_KV_PREDICT => Kv::Predict,
                OFFRAMP_KV_CATCH_UP => Kv::CatchUp,
                OFFRAMP_KV_PROPAGATE => Kv::Propagate,
                other => return Err(Failure::value("kv", other, "one of OFFRAMP_KV_*")),
            },
            max_pending: self.max_pending,
            min_exit_layer: self.min_exit_layer,
            context_shift: self.context_shift != 0,
            ..SessionParams::default()
        })
    }
}

/// Makes a session on `model` with `params` (NULL for the defaults). It takes the memory of its K/V cache here.
///
/// The caller owns `*session` and frees it with offramp_session_free. Any thread.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_new(
    model: *const offramp_model,
    params: *const offramp_session_params,
    session: *mut *mut offramp_session,
) -> i32 {
    boundary("offramp_session_new", || {
        // SAFETY: the caller's promise (module `capi`).
        let (model, params, output) = unsafe {
            (
                handle(model, "model")?,
                input_struct(params, offramp_session_params::default, "params")?,
                Output::new(session, "session")?,
            )
        };
        let session = Session::new(&model.model, &params.to_session(model.model.info().n_ctx_train)?)?;
        let handle = offramp_session {
            cancel: session.cancel_handle(),
            cancelled: Mutex::new(false),
            state: Mutex::new(State { session, prompt: PromptFigures::default(), reply: Default::default() }),
            model,
        };
        output.write(into_handle(Arc::new(handle)));
        Ok(())
    })
}

/// Frees a session; NULL is nothing. A callback of a call on it may do this: the call then ends first. No other call
/// may be in progress on another thread, offramp_session_cancel included.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_free(session: *mut offramp_session) {
    // SAFETY: the caller's promise (module `capi`).
    quietly("offramp_session_free", || unsafe { free_handle(session) });
}

/// Stops the call in progress on `session`, and every later prompt and reply until offramp_session_clear_cancel. A
/// decode is given up within a fraction of a token; what was emitted stays. Any thread, any time, signal handlers no.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_cancel(session: *const offramp_session) -> i32 {
    boundary("offramp_session_cancel", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { handle(session, "session") }?.set_cancelled(true);
        Ok(())
    })
}

/// Lets `session` go on after offramp_session_cancel. Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_clear_cancel(session: *const offramp_session) -> i32 {
    boundary("offramp_session_clear_cancel", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { handle(session, "session") }?.set_cancelled(false);
        Ok(())
    })
}

/// Makes `n_tokens` tokens the session's text. The K/V of what they share with the present text are kept; the rest is
/// decoded. `progress` may be NULL; 0 from it, or a cancel, ends this with OFFRAMP_ERROR_CANCELLED, and what was decoded
/// is reused by the next call. A text that is longer than the context changes nothing. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_set_prompt(
    session: *mut offramp_session,
    tokens: *const i32,
    n_tokens: usize,
    progress: offramp_progress_callback,
    user_data: *mut c_void,
) -> i32 {
    boundary("offramp_session_set_prompt", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, ids) = unsafe { (handle(session, "session")?, slice(tokens, n_tokens, "tokens")?) };
        let tokens: Vec<Token> = ids.iter().copied().map(Token).collect();
        session.set_prompt(&tokens, progress, user_data)
    })
}

/// As offramp_session_set_prompt, with `length` bytes of UTF-8, in which special tokens that are written out count.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_set_text(
    session: *mut offramp_session,
    text: *const c_char,
    length: usize,
    progress: offramp_progress_callback,
    user_data: *mut c_void,
) -> i32 {
    boundary("offramp_session_set_text", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, text) = unsafe { (handle(session, "session")?, text_of(text, length, "text")?) };
        let tokens = session.model.model.vocab().tokenize_prompt(text, true)?;
        session.set_prompt(&tokens, progress, user_data)
    })
}

/// As offramp_session_set_prompt, with a conversation in the model's chat template, up to where the assistant's next
/// turn begins. Give all turns each time: what did not change is not decoded again. The messages are copied.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_set_chat(
    session: *mut offramp_session,
    messages: *const offramp_message,
    n_messages: usize,
    progress: offramp_progress_callback,
    user_data: *mut c_void,
) -> i32 {
    boundary("offramp_session_set_chat", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, messages) = unsafe { (handle(session, "session")?, read_messages(messages, n_messages)?) };
        let tokens = session.model.chat_tokens(&messages)?;
        session.set_prompt(&tokens, progress, user_data)
    })
}

/// Copies the token ids of the session's whole text to `tokens`, which has room for `capacity`. `*n_tokens` gets their
/// number, with OFFRAMP_ERROR_BUFFER also where the room does not suffice; NULL tokens with capacity 0 ask for it alone.
/// One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_tokens(
    session: *const offramp_session,
    tokens: *mut i32,
    capacity: usize,
    n_tokens: *mut usize,
) -> i32 {
    boundary("offramp_session_tokens", || {
        // SAFETY: the caller's promise (module `capi`).
        let session = unsafe { handle(session, "session") }?;
        let ids: Vec<i32> = session.enter()?.session.tokens().iter().map(|token| token.0).collect();
        // SAFETY: as above.
        unsafe { copy_out(&ids, tokens, capacity, n_tokens, "tokens") }
    })
}

/// Tells how many tokens the session's context holds. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_n_ctx(session: *const offramp_session, n_ctx: *mut usize) -> i32 {
    boundary("offramp_session_n_ctx", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, output) = unsafe { (handle(session, "session")?, Output::new(n_ctx, "n_ctx")?) };
        let n = session.enter()?.session.n_ctx();
        output.write(n);
        Ok(())
    })
}

/// Cuts the session's text to its first `n_tokens` tokens; more than it has change nothing. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_truncate(session: *mut offramp_session, n_tokens: usize) -> i32 {
    boundary("offramp_session_truncate", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { handle(session, "session") }?.enter()?.session.truncate(n_tokens);
        Ok(())
    })
}

/// Forgets the session's whole text. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_clear(session: *mut offramp_session) -> i32 {
    boundary("offramp_session_clear", || {
        // SAFETY: the caller's promise (module `capi`).
        unsafe { handle(session, "session") }?.enter()?.session.clear();
        Ok(())
    })
}

/// Writes the session's text and its K/V cache to a file, whole or not at all; an old file is replaced. Models with a
/// recurrent state answer OFFRAMP_ERROR_UNSUPPORTED. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_save(session: *mut offramp_session, path_to_file: *const c_char) -> i32 {
    boundary("offramp_session_save", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, file) = unsafe { (handle(session, "session")?, path(path_to_file, "path_to_file")?) };
        session.enter()?.session.save(file)?;
        Ok(())
    })
}

/// Replaces the session's text and cache by those of a file that offramp_session_save wrote with the same model and the
/// same cache formats. A file that does not fit answers OFFRAMP_ERROR_STATE and changes nothing. One call at a time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_session_load(session: *mut offramp_session, path_to_file: *const c_char) -> i32 {
    boundary("offramp_session_load", || {
        // SAFETY: the caller's promise (module `capi`).
        let (session, file) = unsafe { (handle(session, "session")?, path(path_to_file, "path_to_file")?) };
        session.enter()?.session.load(file)?;
        Ok(())
    })
}
