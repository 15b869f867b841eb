//! K and V for the layers that pending tokens skipped, from somewhere else than those layers.
//!
//! A token that stopped after a block has its position and its cells; what its cells lack is K and V of the layers above.
//! A [`KvSource`] writes them there, and the token is no longer pending: later tokens attend to it as to any other, and
//! may pass all layers. What was predicted stays predicted; who wants the layers' own K and V truncates the text there
//! and decodes it again.
//!
//! Pending tokens are predicted all at once, and only by a source for the block that each of them stopped after. It
//! refuses anything else, and layers whose cells the stopped decode did not show; refused or failed, the tokens are
//! pending as before, and a catch-up overwrites whatever was written.

use super::Gate;
use crate::error::{Error, Result};
use crate::llama::context::Context;

/// Writes K and V of all layers above one block.
pub(crate) trait KvSource {
    /// The block that tokens must have stopped after.
    fn layer(&self) -> u32;

    /// How many of the model's caches it writes to, counted in the order in which a graph stores to them.
    fn n_caches(&self) -> usize;

    /// Writes what follows from the hidden state `[n_embd]` after the block, for the token at `position` that has
    /// `cells[i]` in the i-th cache.
    ///
    /// # Errors
    /// If `context` is not the one that it was made for, or its graph fails.
    fn write(&mut self, context: &mut Context, hidden: &[f32], position: usize, cells: &[i64]) -> Result<()>;
}

impl Gate {
    /// Gives the pending tokens K and V of the layers that they skipped. Does nothing if none is pending.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] if a pending token stopped after another block than the source's, [`Error::Gate`] if its
    /// cells in one of the caches are not known, and what the source fails with. The tokens are then still pending.
    pub(crate) fn predict(&mut self, source: &mut dyn KvSource) -> Result<()> {
        let first = self.position - self.pending.len();
        for (position, token) in (first..).zip(&self.pending) {
            let hidden = token.hidden.iter().find(|(il, _)| *il == source.layer() && *il == token.layer);
            let (_, hidden) = hidden.ok_or_else(|| Error::InvalidValue {
                name: "block that a pending token stopped after",
                found: token.layer.to_string(),
                expected: "the one whose skipped layers are predicted; catch up on the tokens instead",
            })?;
            if token.cells.len() < source.n_caches() {
                return Err(Error::Gate {
                    found: format!(
                        "a cache that no layer up to {} stores to, so that its cells are not known",
                        token.layer
                    ),
                });
            }
            source.write(&mut self.context, hidden, position, &token.cells)?;
        }
        self.pending.clear();
        Ok(())
    }
}
