//! From a model to what its exits learn from: hidden states, and what the full model made of them.
//!
//! The model answers prompts, many of them at once, one token of each a decode ([`batch`]); through the runtime's own gate
//! each token's hidden states are seen at the candidate layers and at the final norm, and the K and V of the layers that
//! an exit skips. Prompts are written by the model itself or come from the user ([`prompts`]); what is seen goes to disk
//! as it comes ([`store`]), so that memory does not grow with the number of tokens.
//!
//! Each sequence depends on the seed, its own number and the width of the batch alone, so that an interrupted collection
//! goes on to the same bytes. It refuses models whose graph the gate cannot watch, and disks that are too small before it
//! begins.

mod batch;
pub mod label;
pub mod prompts;
pub mod row;
mod slot;
pub mod store;

use std::time::{Duration, Instant};

use anyhow::bail;
use offramp::gguf::Error;
use offramp::{Model, SessionParams, Token};

use batch::{Batch, Next};
use prompts::{MAX_TURN, Source};
use slot::Recipe;
use store::{KvWidths, Manifest, Sequence, Store};

/// The tokens of a context: room for a prompt of the user's and its answer.
const N_CTX: u32 = 1024;
/// The tokens that a chat template may put after a turn.
const TEMPLATE: usize = 64;
/// The most sequences of one batch.
pub const MAX_SEQUENCES: u32 = 64;

/// What to collect.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many tokens of answers, at least; the last sequence is finished.
    pub tokens: u64,
    /// The most tokens of one answer.
    pub answer: usize,
    /// The seed of everything random.
    pub seed: u64,
    /// Sequences that are decoded at once, at most [`MAX_SEQUENCES`].
    pub sequences: u32,
    /// Threads that decode; `None` takes the physical cores.
    pub threads: Option<u32>,
    /// How long to go on at most; what there is then is kept.
    pub time_limit: Option<Duration>,
}

impl Options {
    /// Checks that answers fit into a context of `model`, and gives the tokens of that context for prompts of `source`.
    ///
    /// # Errors
    ///
    /// Answers of no token, or longer than half of the context; no sequence, or too many.
    pub fn check(&self, model: &Model, source: &Source) -> anyhow::Result<u32> {
        let n_ctx_train = model.info().n_ctx_train;
        let longest = N_CTX.min(n_ctx_train) as usize / 2;
        if self.answer == 0 || self.answer > longest {
            bail!("answers of {} tokens do not fit: give a number between 1 and {longest}", self.answer);
        }
        if !(1..=MAX_SEQUENCES).contains(&self.sequences) {
            bail!("{} sequences at once: give a number between 1 and {MAX_SEQUENCES}", self.sequences);
        }
        Ok(context(source, self.answer).min(n_ctx_train))
    }
}

/// The most tokens that `options` keep in a store, those of users' turns among them, where every answer is as long as it may be.
pub fn rows(source: &Source, options: &Options) -> u64 {
    let turns = if source.opening().is_empty() { 0 } else { options.tokens.div_ceil(options.answer.max(1) as u64) };
    options.tokens.saturating_add(turns.saturating_mul(MAX_TURN as u64))
}

/// The first `n` prompts of `source` from number `first` on that leave room for `answer` tokens, and the length of a context
/// for them: written by the model, or taken from a corpus until that has no more. There are fewer where the time limit comes
/// first, but one at least. `progress` is told of the prompts so far and stops with `false`.
///
/// # Errors
///
/// As [`run`], and [`Error::Interrupted`].
pub fn prompts(
    model: &Model,
    source: &Source,
    n: usize,
    first: u64,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<(Vec<Vec<Token>>, u32)> {
    let start = Instant::now();
    let n_ctx = options.check(model, source)?;
    let manifest = Manifest::of_nothing();
    let recipe = Recipe { model, source, manifest: &manifest, answer: 0, seed: options.seed };
    let mut batch = Batch::new(recipe, n_ctx, options.sequences, options.threads, first)?;
    let longest = (n_ctx as usize).saturating_sub(options.answer);
    let mut prompts = Vec::new();
    let is_over = || options.time_limit.is_some_and(|limit| start.elapsed() >= limit);
    while prompts.len() < n && (prompts.is_empty() || !is_over()) {
        let done = prompts.len() as u64;
        match batch.next(&mut || progress(done, n as u64))? {
            Next::Finished(finished) => prompts.extend(finished.prompt.filter(|prompt| prompt.len() <= longest)),
            Next::UsedUp => break,
            Next::Stopped => return Err(Error::Interrupted.into()),
        }
    }
    Ok((prompts, n_ctx))
}

/// What each layer above the lowest of `layers` caches of a token: what the K/V maps of exits on `layers` have to learn.
///
/// # Errors
///
/// A layer whose K and V cannot be seen, with the reason; a decode that fails.
pub fn kv_widths(model: &Model, layers: &[u32]) -> anyhow::Result<Vec<KvWidths>> {
    let Some(lowest) = layers.first() else { return Ok(Vec::new()) };
    let mut params = SessionParams::default();
    (params.n_ctx, params.n_batch, params.n_ubatch) = (256, 64, 64);
    let sequences = model.sequences(&params, 1)?;
    let widths = |layer| -> anyhow::Result<KvWidths> {
        let shape = sequences.kv_layout().shape(layer)?;
        Ok(KvWidths { layer, k: u32::try_from(shape.n_embd_k_gqa)?, v: u32::try_from(shape.n_embd_v_gqa)? })
    };
    (lowest + 1..model.info().n_layer).map(widths).collect()
}

/// The tokens that a prompt of `source` and an answer of `answer` tokens need.
fn context(source: &Source, answer: usize) -> u32 {
    // A prompt that the model writes has a known length; one of the user's may be long.
    let written = source.opening().len() + MAX_TURN + TEMPLATE;
    let needed = if source.opening().is_empty() { N_CTX as usize } else { written + answer };
    u32::try_from(needed).unwrap_or(u32::MAX).min(N_CTX)
}

/// Collects into `store` until it holds enough tokens, the time is over, or the corpus is used up. `progress` is told
/// the tokens so far and the tokens wanted; `false` stops cleanly, and whole sequences stay in the store.
///
/// # Errors
///
/// A model whose hidden states cannot be seen, a decode that fails, a disk that is full.
pub fn run(
    model: &Model,
    source: &Source,
    store: &mut Store,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let n_ctx = options.check(model, source)?;
    let manifest = store.manifest().clone();
    let recipe = Recipe { model, source, manifest: &manifest, answer: options.answer, seed: options.seed };
    let mut batch = Batch::new(recipe, n_ctx, options.sequences, options.threads, store.next_index())?;
    while store.n_tokens() < options.tokens {
        let mut stop = None;
        let next = batch.next(&mut || {
            if !progress(store.n_tokens(), options.tokens) {
                stop = Some(Outcome::Interrupted);
            } else if options.time_limit.is_some_and(|limit| start.elapsed() >= limit) {
                stop = Some(Outcome::TimeOver);
            }
            stop.is_none()
        })?;
        match next {
            Next::Finished(finished) => {
                let n_prompt = u32::try_from(finished.prompt.map_or(0, |prompt| prompt.len()))?;
                let sequence = Sequence { index: finished.index, n_prompt, is_greedy: finished.is_greedy };
                store.commit(&sequence, &finished.rows)?;
            }
            Next::UsedUp => return Ok(Outcome::UsedUp),
            Next::Stopped => return Ok(stop.unwrap_or(Outcome::Interrupted)),
        }
    }
    progress(store.n_tokens(), options.tokens);
    Ok(Outcome::Complete)
}

/// Why a collection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There are as many tokens as were wanted.
    Complete,
    /// There are no further prompts in the corpus.
    UsedUp,
    /// The time limit was reached.
    TimeOver,
    /// The caller asked to stop.
    Interrupted,
}
