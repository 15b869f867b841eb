//! From a model to what its exits learn from: hidden states, and what the full model made of them.
//!
//! The model answers prompts, one token at a time and after a prompt that is processed whole, which is how the runtime
//! decodes; through the runtime's own gate each token's hidden states are seen at the candidate layers and at the final
//! norm. Prompts are written by the model itself or come from the user ([`prompts`]); what is seen goes to disk as it
//! comes ([`store`]), so that memory does not grow with the number of tokens.
//!
//! Each sequence depends on the seed and its own number alone, so that an interrupted collection goes on to the same
//! bytes. It refuses models whose graph the gate cannot watch, and disks that are too small before it begins.

pub mod label;
pub mod prompts;
pub mod store;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offramp::gate::Tap;
use offramp::{Model, Session, SessionParams, Token};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use label::{Label, Sampling};
use prompts::Source;
use store::{Sequence, Store};

/// The tokens of a context: room for a prompt and its answer.
const N_CTX: u32 = 1024;
/// The most prompts in a row that may turn out empty before something must be wrong.
const MAX_EMPTY: u32 = 100;

/// What to collect.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many tokens, at least; the last sequence is finished.
    pub tokens: u64,
    /// The most tokens of one answer.
    pub answer: usize,
    /// The seed of everything random.
    pub seed: u64,
    /// Threads that decode; `None` takes the physical cores.
    pub threads: Option<u32>,
    /// How long to go on at most; what there is then is kept.
    pub time_limit: Option<Duration>,
}

impl Options {
    /// Checks that answers fit into a context of `model`, and gives the tokens of that context.
    ///
    /// # Errors
    ///
    /// Answers of no token, or longer than half of the context.
    pub fn check(&self, model: &Model) -> anyhow::Result<u32> {
        let n_ctx = N_CTX.min(model.info().n_ctx_train);
        let longest = n_ctx as usize / 2;
        if self.answer == 0 || self.answer > longest {
            bail!("answers of {} tokens do not fit: give a number between 1 and {longest}", self.answer);
        }
        Ok(n_ctx)
    }
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
    let mut params = SessionParams::default();
    params.gate = true;
    params.n_threads = options.threads;
    params.n_ctx = options.check(model)?;
    let mut session = Session::new(model, &params)?;
    let n_ctx = session.n_ctx();
    let taps = store.taps();
    let mut n_empty = 0;
    while store.n_tokens() < options.tokens {
        if !progress(store.n_tokens(), options.tokens) {
            return Ok(Outcome::Interrupted);
        }
        if options.time_limit.is_some_and(|limit| start.elapsed() >= limit) {
            return Ok(Outcome::TimeOver);
        }
        let index = store.next_index();
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(index);
        let Some(prompt) = source.prompt(&mut session, index, &mut rng, n_ctx - options.answer)? else {
            if source.is_used_up(index) {
                return Ok(Outcome::UsedUp);
            }
            n_empty += 1;
            if n_empty == MAX_EMPTY {
                bail!("the model wrote {MAX_EMPTY} empty prompts in a row: give prompts with --corpus");
            }
            store.skip(index);
            continue;
        };
        n_empty = 0;
        // Greedy and sampled answers by turns: exits must be right about both.
        let sampling = if index.is_multiple_of(2) { Sampling::Greedy } else { Sampling::ANSWER };
        answer(&mut session, &prompt, sampling, &taps, options.answer, &mut rng, store)?;
        store.commit(&Sequence { index, n_prompt: prompt.len() as u32, is_greedy: sampling == Sampling::Greedy })?;
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

/// Lets the model answer `prompt`, and hands each token that it decodes to the store.
fn answer(
    session: &mut Session,
    prompt: &[Token],
    sampling: Sampling,
    taps: &[Tap],
    max_tokens: usize,
    rng: &mut ChaCha8Rng,
    store: &mut Store,
) -> anyhow::Result<()> {
    // From an empty cache, so that a sequence does not depend on the one before it.
    session.clear();
    session.set_prompt(prompt, &mut |_| {})?;
    let model = session.model().clone();
    let gate = session.gate();
    let mut token = label::sample(gate.logits(0).context("the prompt was decoded without logits")?, sampling, rng);
    let mut hidden: Vec<Vec<f32>> = vec![Vec::new(); taps.len()];
    for _ in 0..max_tokens {
        if model.vocab().is_eog(token) {
            break;
        }
        gate.decode_tapped(&[token], taps, &mut |tap, values| {
            if let Some(row) = taps.iter().position(|other| *other == tap).and_then(|i| hidden.get_mut(i)) {
                row.clear();
                row.extend_from_slice(values);
            }
            ControlFlow::Continue(())
        })?;
        let logits = gate.logits(0).context("a token was decoded without logits")?;
        let label = Label::of(token, logits);
        token = label::sample(logits, sampling, rng);
        store.push(&label, &hidden)?;
    }
    Ok(())
}
