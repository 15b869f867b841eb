//! Replies as the full model sees them: which of their tokens it would have emitted itself, and how likely it finds them.

use std::ops::ControlFlow;

use super::Reply;
use crate::error::{Error, Result};
use crate::llama::Token;
use crate::session::{ExitPoint, Rescorer};

/// A token that the full model would not have emitted in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Differing {
    /// Its position in the reply, from 0.
    pub position: usize,
    /// Where it left the model; `None` for a token that ran through all of it. What that one differs by, predicted K/V of
    /// earlier tokens changed (or rounding, where kernels round by batch width, or a draw at a temperature).
    pub exit: Option<ExitPoint>,
    /// The full model's own choice.
    pub best: Token,
    /// By how many logits the full model preferred that.
    pub gap: f32,
}

/// One reply, or the sum of several.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rescored {
    /// Tokens that were scored, end tokens included.
    pub n_tokens: usize,
    /// Those that the full model would not have emitted, reply after reply.
    pub differing: Vec<Differing>,
    /// Those at which the full model's two best are closer than the logits of different batch widths.
    pub n_near_ties: usize,
    /// The sum of the natural logarithms of the tokens' probabilities under the full model, at temperature 1.
    pub log_prob: f64,
}

impl Rescored {
    /// Scores a reply to `prompt`. `goes_on` is asked after each token.
    ///
    /// # Errors
    /// As [`Rescorer::score`]; [`Error::Cancelled`] once `goes_on` says no.
    pub fn of(
        rescorer: &mut Rescorer,
        prompt: &[Token],
        reply: &Reply,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Self> {
        let mut result = Self::default();
        let near_tie = rescorer.width_difference();
        let mut is_stopped = false;
        rescorer.score(prompt, &reply.tokens, &mut |scored| {
            let position = result.n_tokens;
            result.n_tokens += 1;
            result.n_near_ties += usize::from(scored.margin < near_tie);
            result.log_prob += f64::from(scored.log_prob);
            if !scored.agrees() {
                let exit = reply.exits.get(position).copied().flatten();
                result.differing.push(Differing { position, exit, best: scored.best, gap: scored.gap });
            }
            is_stopped = !goes_on();
            if is_stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if is_stopped { Err(Error::Cancelled) } else { Ok(result) }
    }

    /// The same for a `reply` of the same tokens whose exits were others.
    #[must_use]
    pub fn with_exits_of(&self, reply: &Reply) -> Self {
        let mut result = self.clone();
        for token in &mut result.differing {
            token.exit = reply.exits.get(token.position).copied().flatten();
        }
        result
    }

    /// Adds those of `other`.
    pub fn add(&mut self, other: &Self) {
        self.n_tokens += other.n_tokens;
        self.differing.extend_from_slice(&other.differing);
        self.n_near_ties += other.n_near_ties;
        self.log_prob += other.log_prob;
    }

    /// The share of tokens that are the full model's own.
    pub fn agreement(&self) -> f64 {
        1.0 - self.loss()
    }

    /// The share of tokens that are not.
    pub fn loss(&self) -> f64 {
        self.differing.len() as f64 / self.n_tokens.max(1) as f64
    }

    /// The perplexity of the tokens under the full model; `None` without tokens.
    pub fn perplexity(&self) -> Option<f64> {
        (self.n_tokens > 0).then(|| (-self.log_prob / self.n_tokens as f64).exp())
    }

    /// By how many logits the full model preferred its own: where an exit was wrong, or where a token of full depth differs.
    pub fn gaps(&self, exited: bool) -> Vec<f64> {
        let of = self.differing.iter().filter(|token| token.exit.is_some() == exited);
        of.map(|token| f64::from(token.gap)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_what_exits_and_what_k_v_did_apart() {
        let differing = |exit, gap| Differing { position: 3, exit, best: Token(1), gap };
        let one = Rescored {
            n_tokens: 10,
            differing: vec![differing(Some(ExitPoint::Layer(3)), 0.5), differing(None, 0.25)],
            n_near_ties: 1,
            log_prob: -10.0,
        };
        let mut sum = Rescored::default();
        assert_eq!((sum.agreement(), sum.perplexity()), (1.0, None));
        sum.add(&one);
        sum.add(&Rescored { n_tokens: 10, ..Rescored::default() });
        assert_eq!((sum.n_tokens, sum.n_near_ties, sum.loss()), (20, 1, 0.1));
        assert_eq!((sum.gaps(true), sum.gaps(false)), (vec![0.5], vec![0.25]));
        assert!((sum.perplexity().unwrap() - 0.5f64.exp()).abs() < 1e-12);
    }
}
