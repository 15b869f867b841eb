//! Forgetting a part of the text in the middle, so that a full context takes more.
//!
//! llama.cpp removes the positions and moves those after them down; K is rotated by the difference at the next decode
//! (`llama_memory_seq_add`). What is kept was computed from what is forgotten, as in llama.cpp's own programs. It refuses
//! memories that cannot do it: recurrent states, caches whose sliding window is smaller than the context.

use super::{Gate, Outcome};
use crate::error::Result;

impl Gate {
    /// Forgets `n` positions from `from` on and moves the later ones down. Pending tokens are caught up first. False if the
    /// model's memory cannot do that; then nothing has changed but what was pending.
    ///
    /// # Errors
    /// As [`Gate::catch_up`].
    pub(crate) fn shift(&mut self, from: usize, n: usize) -> Result<bool> {
        let caught_up = self.catch_up(&[], &mut |_, _| std::ops::ControlFlow::Continue(()))?;
        debug_assert_eq!(caught_up, Outcome::Complete, "nothing was tapped");
        if from.checked_add(n).is_none_or(|end| end > self.position) || !self.context.shift(from, n) {
            return Ok(false);
        }
        self.position -= n;
        Ok(true)
    }
}
