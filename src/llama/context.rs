//! A context: the K/V cache of one or more sequences of tokens, the compute buffers, and the decodes that run on it.
//!
//! It refuses what llama.cpp would abort on: an empty batch, one wider than `n_batch`, a token outside of the
//! vocabulary, a position past the context, a sequence that the context does not have.

mod memory;

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::batch::{Batch, Logits, Places};
use super::eval::{ContextId, EvalHook, Trampoline};
use super::log;
use super::model::RawModel;
use super::threads::ThreadPool;
use super::vocab::Token;
use crate::error::{Error, LlamaLog, Result};

/// What a context is made with. Sizes in tokens.
#[derive(Debug, Clone)]
pub(crate) struct ContextParams {
    /// Of each sequence.
    pub(crate) n_ctx: u32,
    /// Texts side by side, each with K/V cells of its own; at least 1.
    pub(crate) n_sequences: u32,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_threads: usize,
    pub(crate) n_threads_batch: usize,
    pub(crate) flash_attn: sys::llama_flash_attn_type,
    pub(crate) type_k: sys::ggml_type,
    pub(crate) type_v: sys::ggml_type,
    /// Installs the eval callback. Without it, decodes are exactly those of plain llama.cpp.
    pub(crate) eval_callback: bool,
}

/// Owns a `llama_context`, its thread pool, and the state that llama.cpp's callbacks point to.
pub(crate) struct Context {
    id: ContextId,
    raw: NonNull<sys::llama_context>,
    /// Made by `Box::into_raw`: llama.cpp holds the address, so that no Rust reference may be kept beside it.
    trampoline: Option<NonNull<Trampoline>>,
    cancelled: Arc<AtomicBool>,
    batch: Batch,
    n_threads: usize,
    pool: Option<Arc<ThreadPool>>,
    model: Arc<RawModel>,
    n_vocab: usize,
    n_sequences: usize,
    n_ctx: usize,
    n_batch: usize,
    n_ubatch: usize,
    n_outputs: usize,
    /// True while K in the cache is still rotated for the positions before a shift; the next decode rotates it.
    awaits_rotation: bool,
    params: ContextParams,
}

// SAFETY: a context may move between threads; all of its methods that compute take it mutably.
unsafe impl Send for Context {}

impl Context {
    /// Computes on `pool`, or on one of its own.
    ///
    /// # Errors
    /// [`Error::Context`] with llama.cpp's reason.
    pub(crate) fn new(
        model: Arc<RawModel>,
        n_vocab: usize,
        params: &ContextParams,
        pool: Option<Arc<ThreadPool>>,
    ) -> Result<Self> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let id = ContextId::next();
        let trampoline = params.eval_callback.then(|| NonNull::from(Box::leak(Box::new(Trampoline::new(id)))));
        // SAFETY: fills a plain struct with defaults.
        let mut raw = unsafe { sys::llama_context_default_params() };
        raw.n_ctx = params.n_ctx.saturating_mul(params.n_sequences);
        raw.n_batch = params.n_batch;
        raw.n_ubatch = params.n_ubatch;
        raw.n_seq_max = params.n_sequences;
        raw.n_threads = params.n_threads as i32;
        raw.n_threads_batch = params.n_threads_batch as i32;
        raw.flash_attn_type = params.flash_attn;
        raw.type_k = params.type_k;
        raw.type_v = params.type_v;
        raw.swa_full = false;
        raw.no_perf = true;
        // The `Arc` in this context keeps the flag alive as long as llama.cpp may read it.
        raw.abort_callback = Some(on_abort);
        raw.abort_callback_data = Arc::as_ptr(&cancelled).cast_mut().cast();
        if let Some(trampoline) = trampoline {
            raw.cb_eval = Trampoline::CALLBACK;
            raw.cb_eval_user_data = trampoline.as_ptr().cast();
        }
        // SAFETY: a live model, and parameters that outlive the call; what they point to outlives the context.
        let (context, log) = log::recorded(|| unsafe { sys::llama_init_from_model(model.as_ptr(), raw) });
        let Some(context) = NonNull::new(context) else {
            if let Some(trampoline) = trampoline {
                // SAFETY: leaked above, and no context was made that could hold it.
                drop(unsafe { Box::from_raw(trampoline.as_ptr()) });
            }
            return Err(Error::Context { n_ctx: params.n_ctx, log });
        };
        let n_threads = params.n_threads.max(params.n_threads_batch);
        let pool = pool.or_else(|| ThreadPool::new(n_threads, model.kernels()).map(Arc::new));
        if let Some(pool) = &pool {
            // SAFETY: both are live, and `drop` frees the context before the pool.
            unsafe { sys::llama_attach_threadpool(context.as_ptr(), pool.as_ptr(), pool.as_ptr()) };
        }
        // SAFETY: a live context; three getters.
        let (n_ctx, n_batch, n_ubatch) = unsafe {
            let raw = context.as_ptr();
            (sys::llama_n_ctx_seq(raw), sys::llama_n_batch(raw), sys::llama_n_ubatch(raw))
        };
        Ok(Self {
            id,
            raw: context,
            trampoline,
            cancelled,
            batch: Batch::new(params.n_sequences as usize),
            n_threads: params.n_threads,
            pool,
            model,
            n_vocab,
            n_sequences: params.n_sequences as usize,
            n_ctx: n_ctx as usize,
            n_batch: n_batch as usize,
            n_ubatch: n_ubatch as usize,
            n_outputs: 0,
            awaits_rotation: false,
            params: params.clone(),
        })
    }

    /// Which context this is; what was learnt of another one's graphs does not hold for it.
    pub(crate) fn id(&self) -> ContextId {
        self.id
    }

    /// Texts side by side.
    pub(crate) fn n_sequences(&self) -> usize {
        self.n_sequences
    }

    /// Positions that the context holds of each sequence.
    pub(crate) fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Keeps positions below `n`: a model with learned positions has no more of them, and llama.cpp aborts beyond.
    pub(crate) fn limit_positions(&mut self, n: usize) {
        self.n_ctx = self.n_ctx.min(n);
    }

    /// Tokens that one decode takes at most.
    pub(crate) fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// Tokens that one graph takes at most; a hook watches one graph.
    pub(crate) fn n_ubatch(&self) -> usize {
        self.n_ubatch
    }

    /// Threads for single tokens, and the pool they are from; for graphs that run while this context waits.
    pub(crate) fn threads(&self) -> (usize, Option<Arc<ThreadPool>>) {
        (self.n_threads, self.pool.clone())
    }

    /// True if hooks can be used.
    pub(crate) fn has_eval_callback(&self) -> bool {
        self.trampoline.is_some()
    }

    /// The flag that stops a decode from any thread. The decode answers [`Error::Cancelled`]; its tokens are not kept.
    pub(crate) fn cancel_flag(&self) -> &Arc<AtomicBool> {
        &self.cancelled
    }

    /// Decodes `tokens` of sequence 0 from `position` on.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Decode`], [`Error::ContextLengthExceeded`], [`Error::TokenOutOfRange`].
    pub(crate) fn decode(&mut self, tokens: &[Token], position: usize, logits: Logits) -> Result<()> {
        self.decode_at(tokens, Places::From { sequence: 0, position }, logits)
    }

    /// Decodes `tokens` at `places`.
    ///
    /// # Errors
    /// As [`Context::decode`], and [`Error::InvalidValue`] for places in sequences that the context does not have.
    pub(crate) fn decode_at(&mut self, tokens: &[Token], places: Places<'_>, logits: Logits) -> Result<()> {
        self.prepare(tokens, places, logits)?;
        let batch = self.batch.raw();
        let context = self.raw.as_ptr();
        let turn = self.pool.as_deref().map(ThreadPool::turn);
        // SAFETY: a live context, and a batch that `prepare` has checked and that lives for the call.
        let (status, log) = log::recorded(|| unsafe { sys::llama_decode(context, batch) });
        drop(turn);
        self.finish(status, log, tokens.len(), places)
    }

    /// Decodes `tokens` of sequence 0 from `position` on with `hook` watching.
    ///
    /// # Errors
    /// As [`Context::decode_hooked_at`].
    pub(crate) fn decode_hooked(
        &mut self,
        tokens: &[Token],
        position: usize,
        logits: Logits,
        hook: &mut dyn EvalHook,
    ) -> Result<()> {
        self.decode_hooked_at(tokens, Places::From { sequence: 0, position }, logits, hook)
    }

    /// Decodes with `hook` watching. At most `n_ubatch` tokens, since a hook watches one graph.
    ///
    /// # Errors
    /// As [`Context::decode_at`], and [`Error::InvalidValue`] for more tokens than one graph takes, or for a context
    /// without the callback.
    pub(crate) fn decode_hooked_at(
        &mut self,
        tokens: &[Token],
        places: Places<'_>,
        logits: Logits,
        hook: &mut dyn EvalHook,
    ) -> Result<()> {
        let Some(trampoline) = self.trampoline.filter(|_| tokens.len() <= self.n_ubatch) else {
            return Err(Error::InvalidValue {
                name: "tokens of a gated decode",
                found: tokens.len().to_string(),
                expected: "at most n_ubatch, in a session that was made with a gate",
            });
        };
        self.prepare(tokens, places, logits)?;
        let batch = self.batch.raw();
        let context = self.raw.as_ptr();
        let turn = self.pool.as_deref().map(ThreadPool::turn);
        let (status, log) = log::recorded(|| {
            // SAFETY: the trampoline is this context's, and `&mut self` keeps every other user away. The decode is as
            // in `decode_at`.
            unsafe { Trampoline::run(trampoline.as_ptr(), hook, || sys::llama_decode(context, batch)) }
        });
        drop(turn);
        self.finish(status, log, tokens.len(), places)
    }

    fn prepare(&mut self, tokens: &[Token], places: Places<'_>, logits: Logits) -> Result<()> {
        if tokens.is_empty() || tokens.len() > self.n_batch {
            return Err(Error::InvalidValue {
                name: "tokens of one decode",
                found: tokens.len().to_string(),
                expected: "at least 1 and at most n_batch",
            });
        }
        for i in 0..tokens.len() {
            match places.of(i) {
                Some((sequence, position)) if sequence < self.n_sequences && position < self.n_ctx => {}
                Some((sequence, position)) if sequence < self.n_sequences => {
                    let prompt = position.saturating_add(tokens.len() - i);
                    return Err(Error::ContextLengthExceeded { prompt, n_ctx: self.n_ctx });
                }
                place => {
                    return Err(Error::InvalidValue {
                        name: "sequence",
                        found: format!("{place:?}"),
                        expected: "one of those that the context was made with",
                    });
                }
            }
        }
        check_vocabulary(tokens, self.n_vocab)?;
        self.batch.fill(tokens, places, logits);
        self.n_outputs = logits.count(tokens.len());
        Ok(())
    }

    fn finish(&mut self, status: i32, log: LlamaLog, n_tokens: usize, places: Places<'_>) -> Result<()> {
        match status {
            0 => {
                self.await_rotation(false);
                Ok(())
            }
            _ => {
                self.n_outputs = 0;
                // The abort callback ends a decode with status 2 (`llama_context::decode`).
                if status == 2 || self.cancelled.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let position = places.of(0).map_or(0, |(_, position)| position);
                Err(Error::Decode { n_tokens, position, status, log })
            }
        }
    }

    /// Tokens of the last decode that have logits.
    pub(crate) fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// The last decode computed the logits of its first `n` outputs alone.
    pub(crate) fn keep_outputs(&mut self, n: usize) {
        self.n_outputs = self.n_outputs.min(n);
    }

    /// The logits of the `index`-th output of the last decode, `[n_vocab]`. `None` if it had no such output.
    pub(crate) fn logits(&mut self, index: usize) -> Option<&[f32]> {
        if index >= self.n_outputs {
            return None;
        }
        // SAFETY: a live context whose last decode had more than `index` outputs. llama.cpp's array of logits holds one
        // row an output, in batch order (it sorts them in this call).
        let rows = unsafe { sys::llama_get_logits(self.raw.as_ptr()) };
        if rows.is_null() {
            return None;
        }
        // SAFETY: the array holds `n_outputs * n_vocab` values, which stay valid until the next decode, and that needs
        // `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(rows.add(index * self.n_vocab), self.n_vocab) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once; before the pool and the callback's state, which it points to.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
        self.pool = None;
        if let Some(trampoline) = self.trampoline.take() {
            // SAFETY: leaked by `new`, and the context that held the address is gone.
            drop(unsafe { Box::from_raw(trampoline.as_ptr()) });
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("n_ctx", &self.n_ctx).field("model", &self.model).finish_non_exhaustive()
    }
}

unsafe extern "C" fn on_abort(data: *mut c_void) -> bool {
    // SAFETY: the flag of the context that is computing, which keeps it alive.
    unsafe { data.cast::<AtomicBool>().as_ref() }.is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Refuses tokens that a vocabulary of `n_vocab` does not have.
///
/// # Errors
/// [`Error::TokenOutOfRange`] for the first of them.
pub(crate) fn check_vocabulary(tokens: &[Token], n_vocab: usize) -> Result<()> {
    let is_outside = |token: &&Token| usize::try_from(token.0).map_or(true, |id| id >= n_vocab);
    match tokens.iter().find(is_outside) {
        Some(token) => Err(Error::TokenOutOfRange { token: token.0, n_vocab }),
        None => Ok(()),
    }
}
