//! The gate itself: one context, the tokens that stopped early in it, and the batches that take them up again.

mod memory;
mod verify;
mod watch;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::hook::{Hook, HookError, Rest, Resume, Sink};
use super::kv::KvLayout;
use super::{Observer, Seen, Tap};
use crate::error::{Error, Result};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::llama::context::Context;
use crate::llama::eval::ContextId;
use crate::llama::threads::ThreadPool;

pub use verify::WantedRows;

/// How a gated decode ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All layers and the output matrix ran; there are logits.
    Complete,
    /// The observer stopped at this tap. At [`Tap::ResultNorm`] all layers ran and only the logits are missing; at a
    /// layer the tokens are pending.
    Stopped(Tap),
}

/// Decodes tokens through chosen layers of one context, and keeps the books of those that stopped early.
///
/// Tokens that stopped after a block are *pending*: the layers above it hold no K/V for them. Until
/// [`Gate::catch_up`] has run those layers, no token may pass the lowest block that a pending one stopped after.
#[derive(Debug)]
pub struct Gate {
    pub(super) context: Context,
    n_embd: usize,
    n_layer: u32,
    /// Positions in the cache, those of the pending tokens included.
    pub(super) position: usize,
    /// The last positions of the cache, oldest first.
    pub(super) pending: Vec<Pending>,
    /// Hidden states of one window, kept to spare an allocation a decode.
    hidden: Vec<f32>,
    n_redone: u64,
    kv_layout: Option<KvLayout>,
}

#[derive(Debug)]
pub(super) struct Pending {
    token: Token,
    /// The last block that ran.
    pub(super) layer: u32,
    /// Its hidden states after the blocks that were tapped, lowest first, `[n_embd]` each.
    pub(super) hidden: Vec<(u32, Vec<f32>)>,
    /// Its cell in each cache that the blocks up to `layer` store to.
    pub(super) cells: Vec<i64>,
}

impl Gate {
    pub(crate) fn new(context: Context, n_layer: u32, n_embd: u32) -> Self {
        Self {
            context,
            n_embd: n_embd as usize,
            n_layer,
            position: 0,
            pending: Vec::new(),
            hidden: Vec::new(),
            n_redone: 0,
            kv_layout: None,
        }
    }

    /// Positions that the cache holds, pending ones included. The next token's position.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Number of pending tokens.
    pub fn n_pending(&self) -> usize {
        self.pending.len()
    }

    /// The cells of the token that stopped last, one in each cache that the layers which ran store to; `None` if none is
    /// pending.
    pub(crate) fn pending_cells(&self) -> Option<&[i64]> {
        self.pending.last().map(|pending| pending.cells.as_slice())
    }

    /// How many catch-ups had to decode their tokens from the first block on, because their cells had moved or their
    /// hidden states were not all there. Right, but slower than a window.
    pub fn n_redone(&self) -> u64 {
        self.n_redone
    }

    /// The lowest block that a pending token stopped after; `None` if none is pending.
    pub fn pending_layer(&self) -> Option<u32> {
        self.pending.last().map(|pending| pending.layer)
    }

    /// Positions that the context holds at most.
    pub fn n_ctx(&self) -> usize {
        self.context.n_ctx()
    }

    /// Tokens that a plain decode takes at most.
    pub fn n_batch(&self) -> usize {
        self.context.n_batch()
    }

    /// Tokens that a gated decode takes at most.
    pub fn n_ubatch(&self) -> usize {
        self.context.n_ubatch()
    }

    /// True if decodes can be watched and stopped; otherwise they are exactly those of plain llama.cpp.
    pub fn can_tap(&self) -> bool {
        self.context.has_eval_callback()
    }

    /// Threads for single tokens, and the pool that the context computes on.
    pub(crate) fn threads(&self) -> (usize, Option<Arc<ThreadPool>>) {
        self.context.threads()
    }

    /// Which context the gate decodes in.
    pub(crate) fn context_id(&self) -> ContextId {
        self.context.id()
    }

    /// Length of a hidden state.
    pub(crate) fn n_embd(&self) -> usize {
        self.n_embd
    }

    pub(crate) fn cancel_flag(&self) -> &Arc<AtomicBool> {
        self.context.cancel_flag()
    }

    /// Runs `tokens` through all layers, after catching up on the pending ones.
    ///
    /// # Errors
    /// As llama.cpp's decode; then the tokens that failed are not in the cache ([`Gate::position`] tells).
    pub fn decode(&mut self, tokens: &[Token], logits: Logits) -> Result<()> {
        self.catch_up(&[], &mut |_, _| ControlFlow::Continue(()))?;
        self.decoded(tokens.len(), |context, position| context.decode(tokens, position, logits))
    }

    /// Runs `tokens` (at most `n_ubatch`) and shows their hidden states at each of `taps`, lowest first, until
    /// `observer` breaks. All of the tokens get logits. While tokens are pending, the decode stops at the last of the
    /// taps at the latest, whatever the observer says, and that one must not lie above the lowest block that a pending
    /// token stopped after.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for taps that are out of order or above what the pending tokens allow; [`Error::Gate`]
    /// if the graph lacks one; and as llama.cpp's decode. The tokens are then not in the cache.
    pub fn decode_tapped(&mut self, tokens: &[Token], taps: &[Tap], observer: &mut Observer<'_>) -> Result<Outcome> {
        let ceiling = self.pending_layer().map(Tap::Layer);
        self.check_taps(taps, None, ceiling)?;
        let n_embd = self.n_embd;
        let last = ceiling.and(taps.last().copied());
        let mut saved: Vec<(u32, Vec<f32>)> = Vec::new();
        let mut sink = |seen: Seen, hidden: &[f32]| {
            let Seen::Hidden(tap) = seen else { return Rest::All };
            if let Tap::Layer(il) = tap {
                saved.push((il, hidden.to_vec()));
            }
            match observer(tap, hidden) {
                ControlFlow::Continue(()) if Some(tap) != last => Rest::All,
                _ => Rest::Nothing,
            }
        };
        let (stopped, cells) = self.decoded(tokens.len(), |context, position| {
            run(context, tokens, position, Logits::All, Hook::new(taps, None, &mut sink))
        })?;
        let Some(tap) = stopped else { return Ok(Outcome::Complete) };
        if let Tap::Layer(layer) = tap {
            let row = |values: &[f32], i: usize| values.get(i * n_embd..(i + 1) * n_embd).map(<[f32]>::to_vec);
            for (i, &token) in tokens.iter().enumerate() {
                let hidden = saved.iter().filter_map(|(il, values)| Some((*il, row(values, i)?))).collect();
                let cells = cells.iter().map(|cache| cache[i]).collect();
                self.pending.push(Pending { token, layer, hidden, cells });
            }
        }
        Ok(Outcome::Stopped(tap))
    }

    /// Runs the layers that the pending tokens skipped, for all of them in one batch, and shows the hidden states at
    /// `taps` above the block that they resume after. Every pending token gets logits, oldest first. Does nothing if
    /// none is pending.
    ///
    /// # Errors
    /// As [`Gate::decode_tapped`]. The pending tokens are then no longer in the cache: [`Gate::position`] is that of
    /// the first of them, and they may be decoded again.
    pub fn catch_up(&mut self, taps: &[Tap], observer: &mut Observer<'_>) -> Result<Outcome> {
        self.catch_up_for(Logits::All, taps, observer)
    }

    /// As [`Gate::catch_up`], with logits (and hidden states at [`Tap::ResultNorm`]) for the tokens that `logits` names:
    /// one token's output matrix instead of all of theirs.
    ///
    /// # Errors
    /// As [`Gate::catch_up`].
    pub fn catch_up_for(&mut self, logits: Logits, taps: &[Tap], observer: &mut Observer<'_>) -> Result<Outcome> {
        self.resume(logits, taps, &mut |seen, hidden| match seen {
            Seen::Hidden(tap) => observer(tap, hidden).into(),
            Seen::K(_) | Seen::V(_) => Rest::All,
        })
    }

    fn resume(&mut self, logits: Logits, taps: &[Tap], sink: &mut Sink<'_>) -> Result<Outcome> {
        let Some(layer) = self.pending_layer() else { return Ok(Outcome::Complete) };
        self.check_taps(taps, Some(Tap::Layer(layer)), None)?;
        let pending = std::mem::take(&mut self.pending);
        let tokens: Vec<Token> = pending.iter().map(|pending| pending.token).collect();
        let first = self.position - pending.len();
        // Freed, the cells are handed out again in order, with the lower layers' K/V still in them.
        self.forget_from(first)?;
        if let Some((hidden, cells)) = self.window(&pending, layer) {
            let resume = Resume { layer, hidden: &hidden, cells: &cells };
            let result = self.decoded(tokens.len(), |context, position| {
                run(context, &tokens, position, logits, Hook::new(taps, Some(resume), sink))
            });
            self.hidden = hidden;
            match result {
                Ok((stopped, _)) => return Ok(stopped.map_or(Outcome::Complete, Outcome::Stopped)),
                Err(Failure::Hook(HookError::CellsMoved)) => {
                    tracing::debug!("the cells of {} pending tokens moved: decoding them again", tokens.len());
                    self.forget_from(first)?;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        self.n_redone += 1;
        let (stopped, _) = self.decoded(tokens.len(), |context, position| {
            run(context, &tokens, position, logits, Hook::new(taps, None, sink))
        })?;
        Ok(stopped.map_or(Outcome::Complete, Outcome::Stopped))
    }

    /// The hidden states of the pending tokens after block `layer`, `[n_embd, n_tokens]`, and their cells in each cache
    /// that the blocks up to it store to. `None` if one of them was not tapped there.
    fn window(&mut self, pending: &[Pending], layer: u32) -> Option<(Vec<f32>, Vec<Vec<i64>>)> {
        let mut hidden = std::mem::take(&mut self.hidden);
        hidden.clear();
        for token in pending {
            let (_, values) = token.hidden.iter().find(|(il, _)| *il == layer)?;
            hidden.extend_from_slice(values);
        }
        let n_caches = pending.iter().map(|token| token.cells.len()).min()?;
        let cells = (0..n_caches).map(|cache| pending.iter().map(|token| token.cells[cache]).collect()).collect();
        Some((hidden, cells))
    }

    /// How many tokens of the last decode have logits.
    pub fn n_logits(&self) -> usize {
        self.context.n_outputs()
    }

    /// The logits of the `index`-th token of the last decode that got some, `[n_vocab]`; the ids are the indices.
    pub fn logits(&mut self, index: usize) -> Option<&[f32]> {
        self.context.logits(index)
    }

    fn forget_from(&mut self, position: usize) -> Result<()> {
        if !self.context.remove_from(position) {
            return Err(Error::Gate { found: "a memory that cannot forget its last tokens".to_owned() });
        }
        self.position = position;
        Ok(())
    }

    /// Runs one decode of `n` tokens at the current position and books them, or their absence if it fails.
    fn decoded<T, E>(
        &mut self,
        n: usize,
        decode: impl FnOnce(&mut Context, usize) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let position = self.position;
        let result = decode(&mut self.context, position);
        match result {
            Ok(_) => self.position += n,
            // llama.cpp takes back the part of the batch that failed, not those before it.
            Err(_) => {
                self.context.remove_from(position);
            }
        }
        result
    }

    fn check_taps(&self, taps: &[Tap], above: Option<Tap>, ceiling: Option<Tap>) -> Result<()> {
        let ordered = taps.windows(2).all(|pair| pair[0] < pair[1]);
        let exist = taps.iter().all(|&tap| tap < Tap::Layer(self.n_layer) || tap == Tap::ResultNorm);
        let above_resume = above.is_none_or(|above| taps.iter().all(|&tap| tap > above));
        let below_ceiling = ceiling.is_none_or(|ceiling| taps.last().is_some_and(|&last| last <= ceiling));
        if ordered && exist && above_resume && below_ceiling {
            return Ok(());
        }
        Err(Error::InvalidValue {
            name: "taps",
            found: format!("{taps:?} with {} pending tokens", self.pending.len()),
            expected: "existing blocks in ascending order: above the one that a catch-up resumes after, and no higher \
                       than it for tokens that join the pending ones",
        })
    }
}

/// Why a watched decode failed.
enum Failure {
    Hook(HookError),
    Decode(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Hook(error) => Self::Gate { found: error.to_string() },
            Failure::Decode(error) => error,
        }
    }
}

/// One decode with a hook: the tap it stopped at, and the cells that each cache gave to the tokens.
fn run(
    context: &mut Context,
    tokens: &[Token],
    position: usize,
    logits: Logits,
    mut hook: Hook<'_, '_>,
) -> std::result::Result<(Option<Tap>, Vec<Vec<i64>>), Failure> {
    context.decode_hooked(tokens, position, logits, &mut hook).map_err(Failure::Decode)?;
    if let Some(error) = hook.error.take().or_else(|| hook.missing()) {
        return Err(Failure::Hook(error));
    }
    let stopped = hook.stopped;
    if let Some(n) = stopped.map(|_| 0).or(hook.n_outputs()) {
        context.keep_outputs(n);
    }
    Ok((stopped, hook.into_cells()))
}
