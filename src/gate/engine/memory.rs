//! What the cache holds as a whole: cut, emptied, saved and restored.
//!
//! It refuses to cut where a sliding window has already forgotten what the rest would need.

use std::ops::ControlFlow;

use super::Gate;
use crate::error::{LlamaLog, Result};

impl Gate {
    /// Drops the positions from `position` on. False if the model's memory cannot forget them, or if it has already
    /// forgotten what a sliding window would need there; then nothing has changed, and [`Gate::clear`] is what is left.
    pub fn truncate(&mut self, position: usize, n_swa: usize) -> bool {
        if position >= self.position {
            return true;
        }
        let needed = if n_swa == 0 { 0 } else { position.saturating_sub(n_swa) };
        if position > 0 && self.context.first_position().is_some_and(|first| first > needed) {
            return false;
        }
        if !self.context.remove_from(position) {
            return false;
        }
        let first_pending = self.position - self.pending.len();
        self.pending.truncate(position.saturating_sub(first_pending));
        self.position = position;
        true
    }

    /// ggml's type ids of the K and the V cache.
    pub(crate) fn cache_types(&self) -> (u32, u32) {
        self.context.cache_types()
    }

    /// True after a shift, until the next decode: a state would hold K of other positions than it says.
    pub(crate) fn awaits_rotation(&self) -> bool {
        self.context.awaits_rotation()
    }

    /// The state of one token in a small context of its own, with this one's model and kind of cache.
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::Decode`].
    pub(crate) fn sample_state(&self) -> Result<Vec<u8>> {
        self.context.sample_state()
    }

    /// llama.cpp's state of everything in the cache, after catching up on the pending tokens; the inner error is
    /// llama.cpp's refusal.
    ///
    /// # Errors
    /// As [`Gate::catch_up`].
    pub(crate) fn state(&mut self) -> Result<std::result::Result<Vec<u8>, LlamaLog>> {
        self.catch_up(&[], &mut |_, _| ControlFlow::Continue(()))?;
        Ok(self.context.state())
    }

    /// Replaces what is in the cache by a state of the positions below `position`, which has been checked. After an
    /// error, which is llama.cpp's refusal, the cache is empty.
    pub(crate) fn restore(&mut self, state: &[u8], position: usize) -> std::result::Result<(), LlamaLog> {
        self.clear();
        if let Err(error) = self.context.restore(state) {
            self.context.clear();
            return Err(error);
        }
        self.position = position;
        Ok(())
    }

    /// Empties the cache.
    pub fn clear(&mut self) {
        self.context.clear();
        self.pending.clear();
        self.position = 0;
    }
}
