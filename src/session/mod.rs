//! One mutable conversation on a shared model: a prompt goes in, tokens come out.
//!
//! A session knows every token of its text, and the gate knows how many of them its K/V cache holds. The two differ by
//! the token that was sampled last, or by what a cancelled or failed decode left out; each call decodes what is missing
//! first, so that after any error the session can simply be used again. It refuses prompts that are longer than the
//! context; it never cuts them.

mod cascade;
mod checks;
mod drafting;
mod exits;
mod generate;
mod generation;
mod logprobs;
mod lookup;
mod memory;
mod model;
mod params;
mod rescore;
mod sampler;
mod screens;
mod state;
mod template;
mod text;
mod tool_calls;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use exits::{Drafts, Exits, Kv, Lookup, Policy};
pub use generation::{
    CancelHandle, ExitPoint, GenerateParams, Generation, PromptProgress, PromptReport, StopReason, TokenEvent,
};
pub use logprobs::TokenLogprob;
pub use memory::{MemoryEstimate, memory_estimate, system_memory};
pub use model::{GpuLayers, Model, ModelInfo, ModelParams};
pub use params::{CacheType, FlashAttn, SessionParams};
pub use rescore::{Rescorer, Scored};
pub use sampler::{Sampler, SamplerParams};
pub use state::StateError;
pub use template::{ChatTemplate, Message, TemplateError};
pub use tool_calls::{Forced, ReplyPart, ReplyReader, ToolFormat, Tools};

use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::heads::{Candidates, Thresholds};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::llama::context::check_vocabulary;
use crate::llama::threads::ThreadPool;
use cascade::Cascade;
use drafting::Drafting;

/// A text, its K/V cache, and the means to go on with it.
#[derive(Debug)]
pub struct Session {
    model: Model,
    params: SessionParams,
    gate: Gate,
    /// The whole text. The first `gate.position()` of these are in the cache.
    tokens: Vec<Token>,
    /// The distribution after the last of `tokens`, if the last decode was of that one.
    next: Next,
    /// `None` where nothing exits.
    cascade: Option<Cascade>,
    /// `None` where nothing is drafted. Otherwise the cache may hold drafts after the text.
    drafting: Option<Drafting>,
}

/// Where the distribution of the next token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nowhere yet.
    Unknown,
    /// In the gate, over the whole vocabulary, as those of this output.
    Logits(usize),
    /// In the cascade, over the candidates of the exit that the token left at.
    Candidates(ExitPoint),
}

impl Session {
    /// # Errors
    /// [`Error::Context`] with llama.cpp's reason, [`Error::InvalidValue`], [`Error::Heads`] and [`Error::Unsupported`] for
    /// heads that cannot be evaluated here.
    pub fn new(model: &Model, params: &SessionParams) -> Result<Self> {
        Self::on(model, params, None)
    }

    /// A further session of the same model that computes on this one's threads. The two take turns, decode by decode, in
    /// the order in which they ask: on a machine of few cores several sessions that compute at once would hold each
    /// other up. A session's results do not depend on what others do.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn beside(&self, params: &SessionParams) -> Result<Self> {
        Self::on(&self.model, params, self.gate.threads().1)
    }

    fn on(model: &Model, params: &SessionParams, pool: Option<Arc<ThreadPool>>) -> Result<Self> {
        let thresholds = thresholds(model, params)?;
        let gated = SessionParams { gate: params.gate || needs_gate(model, params, &thresholds), ..params.clone() };
        let mut gate = model.new_gate_on(&gated, pool)?;
        let (cascade, drafting) = early(model, params, thresholds, &mut gate)?;
        let params = params.clone();
        Ok(Self { model: model.clone(), params, gate, tokens: Vec::new(), next: Next::Unknown, cascade, drafting })
    }

    /// Changes whether tokens may leave the model early, from the next token on. Only a session that was made with exits or
    /// with [`SessionParams::gate`] can turn exits on.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for an agreement that the heads have no level for, and for a session without a gate;
    /// [`Error::Heads`] and [`Error::Unsupported`] as [`Session::new`]. The session then exits as before.
    pub fn set_exits(&mut self, exits: Exits, agreement: f32) -> Result<()> {
        let params = SessionParams { exits, agreement, ..self.params.clone() };
        let thresholds = thresholds(&self.model, &params)?;
        if needs_gate(&self.model, &params, &thresholds) && !self.gate.can_tap() {
            return Err(Error::InvalidValue {
                name: "exits",
                found: exits.to_string(),
                expected: "off in a session that was made without a gate",
            });
        }
        self.drop_drafts();
        let (cascade, drafting) = early(&self.model, &params, thresholds, &mut self.gate)?;
        if matches!(self.next, Next::Candidates(_)) {
            self.next = Next::Unknown;
        }
        (self.params, self.cascade, self.drafting) = (params, cascade, drafting);
        Ok(())
    }

    /// What a token costs here that runs through the whole model alone, as measured while tokens were generated; `None` where
    /// nothing can exit, and before it was seen.
    pub fn full_depth_cost(&self) -> Option<Duration> {
        let seconds = match (&self.cascade, &self.drafting) {
            (Some(cascade), _) => cascade.policy().token(),
            (None, Some(drafting)) => drafting.policy().alone(),
            (None, None) => return None,
        };
        Duration::try_from_secs_f64(seconds).ok().filter(|cost| !cost.is_zero())
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens that the context holds.
    pub fn n_ctx(&self) -> usize {
        self.gate.n_ctx()
    }

    /// The whole text so far.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// A handle that stops this session from any thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(Arc::clone(self.gate.cancel_flag()))
    }

    /// The layer gate, for programs that decode by hand. What they add to the cache is not part of the session's text:
    /// call [`Session::clear`] before using the session again.
    pub fn gate(&mut self) -> &mut Gate {
        self.drop_drafts();
        self.next = Next::Unknown;
        &mut self.gate
    }

    /// Makes `tokens` the session's text: the K/V of their longest common beginning with the present text are kept, and
    /// the rest is decoded, at most `n_ubatch` tokens at a time.
    ///
    /// # Errors
    /// [`Error::ContextLengthExceeded`], [`Error::TokenOutOfRange`] and [`Error::InvalidValue`] (no tokens) before anything has
    /// changed; [`Error::Decode`]. A cancelled prompt is no error: the report says so.
    pub fn set_prompt(&mut self, tokens: &[Token], progress: &mut dyn FnMut(PromptProgress)) -> Result<PromptReport> {
        let start = Instant::now();
        if tokens.is_empty() {
            return Err(Error::InvalidValue {
                name: "prompt",
                found: "empty".to_owned(),
                expected: "at least one token",
            });
        }
        if tokens.len() > self.n_ctx() {
            return Err(Error::ContextLengthExceeded { prompt: tokens.len(), n_ctx: self.n_ctx() });
        }
        check_vocabulary(tokens, self.model.info().n_vocab as usize)?;
        self.drop_drafts();
        let common = self.tokens.iter().zip(tokens).take_while(|(old, new)| old == new).count();
        // The last token is decoded in any case: its logits are what a generation starts from.
        self.roll_back(common.min(tokens.len() - 1));
        let reused = self.gate.position();
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
        let cancelled = match self.decode_missing(progress) {
            Ok(()) => false,
            Err(Error::Cancelled) => true,
            Err(error) => return Err(error),
        };
        Ok(PromptReport { reused, decoded: self.gate.position() - reused, elapsed: start.elapsed(), cancelled })
    }

    /// Cuts the session's text to its first `n_tokens`.
    pub fn truncate(&mut self, n_tokens: usize) {
        if n_tokens < self.tokens.len() {
            self.drop_drafts();
            self.roll_back(n_tokens.min(self.gate.position()));
            self.tokens.truncate(n_tokens);
            self.next = Next::Unknown;
        }
    }

    /// Forgets the whole text.
    pub fn clear(&mut self) {
        self.drop_drafts();
        self.gate.clear();
        self.tokens.clear();
        self.next = Next::Unknown;
    }

    /// Decodes what is missing; a single token may exit, or bring drafts along.
    fn decode_next(&mut self, candidates: Candidates) -> Result<()> {
        let missing = &self.tokens[self.gate.position().min(self.tokens.len())..];
        let decoded = match (missing, &mut self.drafting, &mut self.cascade) {
            (&[_], Some(drafting), cascade) => {
                drafting.decode(&mut self.gate, cascade.as_mut(), candidates, &self.tokens)
            }
            (&[token], None, Some(cascade)) => {
                cascade.decode(&mut self.gate, &[token], candidates).map(|(next, _)| next)
            }
            _ => return self.decode_missing(&mut |_| {}),
        };
        self.next = *decoded.as_ref().unwrap_or(&Next::Unknown);
        if let (Err(_), Some(drafting)) = (&decoded, &mut self.drafting) {
            // What failed may have left drafts in the cache.
            drafting.forget();
            self.roll_back(self.tokens.len() - 1);
        }
        decoded.map(drop)
    }

    /// Adds the token that was picked. If it was drafted, the distribution after it is there.
    fn follow(&mut self, token: Token) {
        self.tokens.push(token);
        let Some(drafting) = &mut self.drafting else {
            self.next = Next::Unknown;
            return;
        };
        let is_there = match (self.next, &self.cascade) {
            (Next::Logits(row), _) => row + 1 < self.gate.n_logits(),
            (Next::Candidates(_), Some(cascade)) => cascade.has_verified_next(),
            _ => false,
        };
        let agrees = drafting.agrees(token, is_there);
        if agrees && let Some(cascade) = &mut self.cascade {
            cascade.advance();
        }
        self.next = match self.next {
            Next::Logits(row) if agrees => Next::Logits(row + 1),
            Next::Candidates(exit) if agrees => Next::Candidates(exit),
            _ => Next::Unknown,
        };
        if self.next == Next::Unknown {
            drafting.forget();
            self.roll_back(self.tokens.len() - 1);
        }
    }

    /// Makes room by forgetting the older half of the text, but for its first token where the model's texts begin with a
    /// special one. False if the model's memory cannot move what is left, or if there is nothing to forget.
    fn shift(&mut self) -> Result<bool> {
        let n_keep = usize::from(self.model.vocab().adds_bos());
        let n_forget = self.gate.position().saturating_sub(n_keep) / 2;
        if n_forget == 0 || !self.gate.shift(n_keep, n_forget)? {
            return Ok(false);
        }
        self.tokens.drain(n_keep..n_keep + n_forget);
        self.next = Next::Unknown;
        Ok(true)
    }

    /// Takes drafts that no token was compared with out of the cache, and the last token of the text with them: it is
    /// decoded again for its logits.
    fn drop_drafts(&mut self) {
        if self.drafting.as_mut().is_some_and(Drafting::forget) {
            self.roll_back(self.tokens.len().saturating_sub(1));
        }
    }

    /// Brings the cache to the first `position` tokens, or empties it where the model's memory cannot go back.
    fn roll_back(&mut self, position: usize) {
        self.next = Next::Unknown;
        if !self.gate.truncate(position, self.model.info().n_swa as usize) {
            tracing::debug!(position, "the memory cannot go back: decoding again from the start");
            self.gate.clear();
        }
    }

    /// Decodes the tokens that are not in the cache yet; the last one gets logits.
    fn decode_missing(&mut self, progress: &mut dyn FnMut(PromptProgress)) -> Result<()> {
        let total = self.tokens.len();
        while self.gate.position() < total {
            let position = self.gate.position();
            let end = total.min(position + self.gate.n_ubatch());
            self.next = Next::Unknown;
            self.gate.decode(&self.tokens[position..end], Logits::Last)?;
            self.next = if end == total { Next::Logits(0) } else { Next::Unknown };
            progress(PromptProgress { done: end, total });
        }
        Ok(())
    }
}

/// The confidences that calibrated exits ask for; `None` where nothing exits.
fn thresholds(model: &Model, params: &SessionParams) -> Result<Option<Thresholds>> {
    let Some(heads) = model.heads().filter(|_| params.exits == Exits::Calibrated) else { return Ok(None) };
    let thresholds = heads.thresholds(params.agreement)?;
    if thresholds.is_none() {
        tracing::info!(agreement = params.agreement, "the heads were not certified for this agreement: nothing exits");
    }
    Ok(thresholds)
}

/// Whether decodes have to be watched, where calibrated exits have these `thresholds`.
fn needs_gate(model: &Model, params: &SessionParams, thresholds: &Option<Thresholds>) -> bool {
    thresholds.is_some() || (params.exits == Exits::Exact && model.heads().is_some())
}

/// What lets tokens leave early, at these `thresholds`, or drafts them, on the threads of `gate`.
fn early(
    model: &Model,
    params: &SessionParams,
    thresholds: Option<Thresholds>,
    gate: &mut Gate,
) -> Result<(Option<Cascade>, Option<Drafting>)> {
    let heads = model.heads();
    match (params.exits, heads, thresholds) {
        (Exits::Exact, _, _) if params.drafts == Drafts::Off => Ok((None, None)),
        (Exits::Exact, _, _) => Ok((None, Drafting::new(model, heads, params, gate)?)),
        (Exits::Calibrated, Some(heads), Some(thresholds)) => {
            let cascade = Cascade::new(model, heads, &thresholds, params, gate)?;
            let drafts = cascade.is_some() && params.drafts != Drafts::Off;
            Ok((cascade, if drafts { Drafting::new(model, Some(heads), params, gate)? } else { None }))
        }
        _ => Ok((None, None)),
    }
}
