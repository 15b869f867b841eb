//! Several tokens run through all layers at once, with logits for those alone whose logits turn out to be wanted.
//!
//! The output matrix is multiplied row by row on most processors, and of drafts that the full model verifies those after the
//! first wrong one need none of it. What a final state says of the next token is known before the matrix is computed, to a
//! screen, and the graph is then narrowed to the tokens that count.

use std::ops::ControlFlow;

use super::{Gate, Outcome};
use crate::error::Result;
use crate::gate::hook::Rest;
use crate::gate::{Seen, Tap};
use crate::llama::Token;
use crate::llama::batch::Logits;

/// Is shown the final states `[n_embd, n_tokens]` of tokens, one token's values after another's, and says how many of them get
/// logits, from the first on: 0 for none. An error ends the decode there, too.
pub type WantedRows<'a> = dyn FnMut(&[f32]) -> Result<usize> + 'a;

impl Gate {
    /// Runs `tokens` (at most `n_ubatch`) through all layers, together with the pending ones, and shows the final states of
    /// `tokens`. With 0 `wanted` the decode stops there; otherwise as many of `tokens` get logits, or all of them where
    /// the graph cannot be narrowed ([`Gate::n_logits`] tells). Not one of a pending token gets any.
    ///
    /// # Errors
    /// As [`Gate::decode_tapped`]. If the blocks above pending tokens fail, neither these nor `tokens` are in the cache. What
    /// `wanted` meets comes back after the decode; all of the tokens are then in the cache.
    pub fn verify(&mut self, tokens: &[Token], wanted: &mut WantedRows<'_>) -> Result<Outcome> {
        match self.pending_layer() {
            Some(layer) => {
                self.decode_tapped(tokens, &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Continue(()))?;
                self.verify_pending(Logits::LastOf(tokens.len()), wanted)
            }
            None => self.run_all(tokens, wanted),
        }
    }

    /// Runs the layers that the pending tokens skipped, and shows the final states of those that `logits` names; otherwise as
    /// [`Gate::verify`]. Does nothing if none is pending.
    ///
    /// # Errors
    /// As [`Gate::catch_up`], and what `wanted` meets.
    pub fn verify_pending(&mut self, logits: Logits, wanted: &mut WantedRows<'_>) -> Result<Outcome> {
        let mut met = Ok(());
        let outcome =
            self.resume(logits, &[Tap::ResultNorm], &mut |seen, states| rest(seen, states, wanted, &mut met))?;
        met.map(|()| outcome)
    }

    fn run_all(&mut self, tokens: &[Token], wanted: &mut WantedRows<'_>) -> Result<Outcome> {
        let mut met = Ok(());
        let mut sink = |seen: Seen, states: &[f32]| rest(seen, states, wanted, &mut met);
        let (stopped, _) = self.decoded(tokens.len(), |context, position| {
            super::run(context, tokens, position, Logits::All, super::Hook::new(&[Tap::ResultNorm], None, &mut sink))
        })?;
        met.map(|()| stopped.map_or(Outcome::Complete, Outcome::Stopped))
    }
}

/// Asks `wanted`, and keeps what it `met` until the decode is over: nothing may unwind through llama.cpp.
fn rest(seen: Seen, states: &[f32], wanted: &mut WantedRows<'_>, met: &mut Result<()>) -> Rest {
    if seen != Seen::Hidden(Tap::ResultNorm) {
        return Rest::All;
    }
    match wanted(states) {
        Ok(0) => Rest::Nothing,
        Ok(n) => Rest::Rows(n),
        Err(error) => {
            *met = Err(error);
            Rest::Nothing
        }
    }
}
