//! A guess, inside of a decode, at which of its tokens will have their distributions asked for, and what guess and matrix took.

use std::time::Instant;

use crate::error::Result;
use crate::gate::Gate;
use crate::llama::Token;
use crate::policy::DraftPolicy;
use crate::session::screens::Screens;

pub(super) struct Guess<'a> {
    /// `None` where all are wanted.
    screens: Option<&'a mut Screens>,
    /// The certain one, and drafts after it.
    tokens: &'a [Token],
    /// Seconds of the screens, and since when the output matrix has been computing.
    seen: Option<(f64, Instant)>,
}

impl<'a> Guess<'a> {
    pub(super) fn new(screens: Option<&'a mut Screens>, tokens: &'a [Token]) -> Self {
        Self { screens, tokens, seen: None }
    }

    /// How many of the tokens with the final states `states` `[n_embd, n_tokens]` are wanted.
    ///
    /// # Errors
    /// As [`Screens::n_wanted`].
    pub(super) fn n_wanted(&mut self, states: &[f32]) -> Result<usize> {
        let start = Instant::now();
        let all = self.tokens.len();
        let wanted = self.screens.as_mut().map_or(Ok(all), |screens| screens.n_wanted(states, self.tokens));
        self.seen = Some((start.elapsed().as_secs_f64(), Instant::now()));
        wanted
    }

    /// The decode is over: tells `policy` what it took.
    pub(super) fn finish(self, gate: &Gate, policy: &mut DraftPolicy) {
        if let (Some((screens, running)), true) = (self.seen, self.tokens.len() > 1) {
            let screens = self.screens.map(|_| screens);
            policy.learn_rows(gate.n_logits(), running.elapsed().as_secs_f64(), screens);
        }
    }
}
