//! What the full model makes of tokens that something else emitted: the judge of every agreement that is reported.
//!
//! The prompt is decoded as a session decodes it, then the emitted tokens are fed in, and each is compared with what the
//! full model would have emitted in the same context. Kernels round by batch width, and that noise must not be counted
//! against exits: several tokens are scored at once only where the model's self-test found single tokens and batches to
//! be bit-identical, with llama.cpp's kernels only in the cells where attention has not split single tokens between the
//! threads yet. It judges greedy choices only.

use std::ops::ControlFlow;

use super::Session;
use super::exits::Exits;
use super::model::Model;
use super::params::{SPLIT_FROM, SessionParams};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::llama::Token;
use crate::llama::batch::Logits;

/// Tokens that are scored at once where that changes nothing. From 64 on, fused attention takes a tiled path with
/// other rounding (`Q_TILE_SZ` in ggml's `ops.cpp`).
const WIDTH: usize = 32;

/// One emitted token, and the full model's view of it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Scored {
    /// What was emitted.
    pub token: Token,
    /// What the full model would have emitted: its best token, of equals the lowest id.
    pub best: Token,
    /// By how many logits it prefers its own.
    pub gap: f32,
    /// By how many logits its own is ahead of the second.
    pub margin: f32,
    /// The natural logarithm of the emitted token's probability at temperature 1.
    pub log_prob: f32,
}

impl Scored {
    /// True if the full model would have emitted the same.
    pub fn agrees(&self) -> bool {
        self.token == self.best
    }

    /// The score of `token` by `logits`, `[n_vocab]`; `None` for a token that is not in them.
    pub fn of(token: Token, logits: &[f32]) -> Option<Self> {
        let own = *logits.get(usize::try_from(token.0).ok()?)?;
        let (mut best, mut highest, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (id, &logit) in logits.iter().enumerate() {
            if logit > highest {
                (best, second, highest) = (id, highest, logit);
            } else if logit > second {
                second = logit;
            }
        }
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        Some(Self {
            token,
            best: Token(i32::try_from(best).ok()?),
            gap: highest - own,
            margin: highest - second,
            log_prob: (f64::from(own - highest) - sum.ln()) as f32,
        })
    }
}

/// The last text: its K/V are in the cache up to the token before the last scored one at least. Without scores, its prompt was
/// read but for the last token.
#[derive(Debug)]
struct Held {
    prompt: Vec<Token>,
    scores: Vec<Scored>,
}

/// A session of the full model that scores texts, one after another. Of two texts in a row that follow the same prompt,
/// what they have in common is read once.
#[derive(Debug)]
pub struct Rescorer {
    model: Model,
    gate: Gate,
    width: usize,
    /// The position from which on single tokens round otherwise than batches.
    until: usize,
    width_difference: f32,
    n_swa: usize,
    /// What many prompts begin with; empty for nothing.
    shared: Vec<Token>,
    /// Whether the cache begins with it.
    is_shared: bool,
    held: Option<Held>,
}

impl Rescorer {
    /// As a session with `params` decodes without exits.
    ///
    /// # Errors
    /// As [`Session::new`](super::Session::new), and when the model's self-test cannot decode.
    pub fn new(model: &Model, params: &SessionParams) -> Result<Self> {
        let width_difference = model.width_difference()?;
        let gate = model.new_gate(&SessionParams { exits: Exits::Off, gate: false, ..params.clone() })?;
        let width = if width_difference == 0.0 { WIDTH.min(gate.n_ubatch()).max(1) } else { 1 };
        let n_swa = model.info().n_swa as usize;
        Ok(Self {
            model: model.clone(),
            gate,
            width,
            until: if model.is_batch_invariant(params) { usize::MAX } else { SPLIT_FROM },
            width_difference,
            n_swa,
            shared: Vec::new(),
            is_shared: false,
            held: None,
        })
    }

    /// Keeps the K/V of `prefix` between texts whose prompts begin with it. It is read on its own, and the rest of a prompt
    /// after it, as a session reads what comes after a text that it has already.
    pub fn share(&mut self, prefix: &[Token]) {
        self.shared = prefix.to_vec();
        (self.is_shared, self.held) = (false, None);
    }

    /// Reads `prompt` but for its last token, once for itself and for `sessions`, whose text that becomes: K and V are copied.
    /// All decode the last token by themselves, a session where it goes on with [`Session::set_prompt`]. Where its cache
    /// does not take them, as that of another model, its text is empty: it reads all of the prompt then.
    ///
    /// # Errors
    /// As [`Rescorer::score`].
    pub fn read_prompt(&mut self, prompt: &[Token], sessions: &mut [Session]) -> Result<()> {
        self.held = None;
        sessions.iter_mut().for_each(Session::clear);
        let Some((_, before)) = prompt.split_last().filter(|(_, before)| !before.is_empty()) else { return Ok(()) };
        let n_shared = self.begin(prompt)?;
        self.read(&before[n_shared..])?;
        self.held = Some(Held { prompt: prompt.to_vec(), scores: Vec::new() });
        if let Ok(state) = self.gate.state()? {
            for session in sessions.iter_mut().filter(|session| session.model.is(&self.model)) {
                session.restore(before, &state);
            }
        }
        Ok(())
    }

    /// The largest difference that the model's self-test found between logits of single tokens and of batches: a margin
    /// below it is a near-tie.
    pub fn width_difference(&self) -> f32 {
        self.width_difference
    }

    /// Shows the score of each of `emitted`, which followed `prompt`, in their order, until `on_token` breaks.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] without a prompt, [`Error::ContextLengthExceeded`], [`Error::TokenOutOfRange`],
    /// [`Error::Decode`].
    pub fn score(
        &mut self,
        prompt: &[Token],
        emitted: &[Token],
        on_token: &mut dyn FnMut(Scored) -> ControlFlow<()>,
    ) -> Result<()> {
        if prompt.is_empty() {
            return Err(Error::InvalidValue {
                name: "prompt",
                found: "empty".to_owned(),
                expected: "at least one token",
            });
        }
        let total = prompt.len() + emitted.len();
        // The last token of all is scored by the one before it.
        if total > self.gate.n_ctx() + 1 {
            return Err(Error::ContextLengthExceeded { prompt: total, n_ctx: self.gate.n_ctx() });
        }
        let Some(&first) = emitted.first() else { return Ok(()) };
        let (mut scores, n_read) = match self.resume(prompt, emitted) {
            Some(scores) => (scores, prompt.len() - 1),
            None => (Vec::new(), self.begin(prompt)?),
        };
        if scores.is_empty() {
            self.read(&prompt[n_read..])?;
            scores.push(self.scored(first, 0)?);
        }
        let is_over = scores.iter().any(|scored| on_token(*scored).is_break());
        if !is_over {
            self.go_on(emitted, &mut scores, on_token)?;
        }
        self.held = Some(Held { prompt: prompt.to_vec(), scores });
        Ok(())
    }

    /// Forgets what follows the tokens that the last text and this one begin with, but for the last of these, whose logits
    /// are wanted again. Gives their scores; `None` where everything has to be read.
    fn resume(&mut self, prompt: &[Token], emitted: &[Token]) -> Option<Vec<Scored>> {
        let mut held = self.held.take().filter(|held| held.prompt == prompt)?;
        let n = held.scores.iter().zip(emitted).take_while(|(scored, token)| scored.token == **token).count();
        // A first token that the prompt's batch scored is scored by such a batch again: a single token need not round like it.
        let is_kept = n > 0 || held.scores.is_empty();
        held.scores.truncate(n);
        (is_kept && self.gate.truncate(prompt.len() + n - 1, self.n_swa)).then_some(held.scores)
    }

    /// Scores `emitted` from where `scores` ends.
    fn go_on(
        &mut self,
        emitted: &[Token],
        scores: &mut Vec<Scored>,
        on_token: &mut dyn FnMut(Scored) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut next = emitted.get(scores.len()..).unwrap_or_default();
        let mut left = emitted.get(scores.len().saturating_sub(1)..).unwrap_or_default();
        while !next.is_empty() {
            let room = self.until.saturating_sub(self.gate.position());
            let n = self.width.min(room).min(next.len()).max(1);
            self.gate.decode(&left[..n], Logits::All)?;
            for (i, &token) in next[..n].iter().enumerate() {
                let scored = self.scored(token, i)?;
                scores.push(scored);
                if on_token(scored).is_break() {
                    return Ok(());
                }
            }
            (left, next) = (&left[n..], &next[n..]);
        }
        Ok(())
    }

    /// Leaves nothing in the cache but what is shared with `prompt`; returns the number of its tokens.
    fn begin(&mut self, prompt: &[Token]) -> Result<usize> {
        let is_shared = std::mem::take(&mut self.is_shared);
        let n_shared = self.shared.len();
        if n_shared == 0 || prompt.len() <= n_shared || !prompt.starts_with(&self.shared) {
            self.gate.clear();
            return Ok(0);
        }
        if !(is_shared && self.gate.truncate(n_shared, self.n_swa)) {
            self.gate.clear();
            self.read(&prompt[..n_shared])?;
        }
        self.is_shared = true;
        Ok(n_shared)
    }

    fn read(&mut self, tokens: &[Token]) -> Result<()> {
        for chunk in tokens.chunks(self.gate.n_ubatch().max(1)) {
            self.gate.decode(chunk, Logits::Last)?;
        }
        Ok(())
    }

    fn scored(&mut self, token: Token, index: usize) -> Result<Scored> {
        let logits =
            self.gate.logits(index).ok_or_else(|| Error::Gate { found: "a decode without logits".to_owned() })?;
        let n_vocab = logits.len();
        Scored::of(token, logits).ok_or(Error::TokenOutOfRange { token: token.0, n_vocab })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_logits_the_lowest_id_is_the_models_choice() {
        let scored = Scored::of(Token(2), &[1.0, 3.0, 3.0, 0.0]).unwrap();
        assert_eq!((scored.best, scored.agrees(), scored.gap, scored.margin), (Token(1), false, 0.0, 0.0));
        assert!((scored.log_prob.exp() - 0.4576).abs() < 1e-4, "{}", scored.log_prob.exp());
        assert!(Scored::of(Token(4), &[0.0; 4]).is_none() && Scored::of(Token(-1), &[0.0; 4]).is_none());
    }
}
