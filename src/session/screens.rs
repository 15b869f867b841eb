//! The screens of one session: that of the whole vocabulary, and that of the tokens that exits choose among.
//!
//! Beside what lets tokens leave, they tell which drafts the full model will agree with before its output matrix is computed.
//! That decides how many rows of it are, and nothing else: a wrong guess costs time.

use std::sync::Arc;

use crate::error::Result;
use crate::heads::{Candidates, Heads, Screen, best};
use crate::llama::Token;
use crate::llama::threads::ThreadPool;

#[derive(Debug)]
pub(super) struct Screens {
    /// Of the whole vocabulary.
    pub(super) all: Screen,
    /// Of the tokens that exits choose among; `None` where those are all.
    pub(super) among: Option<Screen>,
}

impl Screens {
    /// # Errors
    /// As [`Screen::new`].
    pub(super) fn new(heads: &Arc<Heads>, n_threads: usize, pool: Option<Arc<ThreadPool>>) -> Result<Self> {
        let all = Screen::new(heads, n_threads, pool.clone())?;
        Ok(Self { all, among: Screen::of_exits(heads, n_threads, pool)? })
    }

    /// For guesses alone; `None` where there is no screen, or none that can be had here.
    pub(super) fn to_guess(heads: &Arc<Heads>, n_threads: usize, pool: Option<Arc<ThreadPool>>) -> Option<Self> {
        if heads.meta().screen.rank == 0 {
            return None;
        }
        let screens = Self::new(heads, n_threads, pool);
        screens.inspect_err(|error| tracing::info!("which drafts will be wrong is not guessed: {error}")).ok()
    }

    /// The one that exits use.
    pub(super) fn of_exits(&mut self) -> &mut Screen {
        self.among.as_mut().unwrap_or(&mut self.all)
    }

    /// Of `tokens`, a certain one and drafts after it, with the final states `states` `[n_embd, tokens.len()]`: how many have a
    /// distribution that will be asked for, as far as the screens can see. That is the first, and each draft that is what
    /// the best candidate before it says.
    ///
    /// # Errors
    /// [`Error::Heads`](crate::Error::Heads).
    pub(super) fn n_wanted(&mut self, states: &[f32], tokens: &[Token]) -> Result<usize> {
        let drafts = tokens.get(1..).unwrap_or_default();
        let n_embd = self.all.n_embd().max(1);
        for (i, (state, &draft)) in states.chunks_exact(n_embd).zip(drafts).enumerate() {
            // If the best of a few tokens is another, the best of all is another too.
            let screen = self.among.as_mut().filter(|among| among.chooses(draft)).unwrap_or(&mut self.all);
            screen.evaluate(state, Candidates::Enough, 0.0)?;
            if best(screen.candidates()).is_some_and(|(token, _)| token != draft) {
                return Ok(i + 1);
            }
        }
        Ok(tokens.len())
    }
}
