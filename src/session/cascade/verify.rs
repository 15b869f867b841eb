//! A token and drafts after it, run through all blocks in one batch and compared at the final norm.
//!
//! Row by row, the screen lets the state after a token stand for its output matrix, as for a token that is decoded alone; the
//! next row counts only if its token is what the screen makes of this one. Where all rows that count are sure, the batch ends
//! there; else the matrix is computed for all of them. Tokens that wait for their upper blocks come along.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::super::checks::Checks;
use super::super::{ExitPoint, Next};
use super::Cascade;
use crate::error::Result;
use crate::gate::{Gate, Tap};
use crate::heads::{Candidates, best};
use crate::llama::Token;
use crate::llama::batch::Logits;

impl Cascade {
    /// Where the distribution after the first of `tokens` is; those after the others follow it.
    pub(super) fn verify(&mut self, gate: &mut Gate, tokens: &[Token], candidates: Candidates) -> Result<Next> {
        let screens = self.policy.screens();
        let Self { checks, verified, .. } = self;
        let mut error = None;
        let mut see = |tap: Tap, hidden: &[f32]| {
            if tap != Tap::ResultNorm {
                return ControlFlow::Continue(());
            }
            checks.states.clear();
            checks.states.extend_from_slice(hidden);
            let verdict = if screens { rows(checks, hidden, tokens, candidates, verified) } else { Ok(false) };
            match verdict {
                Ok(false) => ControlFlow::Continue(()),
                Ok(true) => ControlFlow::Break(()),
                Err(found) => {
                    error = Some(found);
                    ControlFlow::Break(())
                }
            }
        };
        if let Some(layer) = gate.pending_layer() {
            gate.decode_tapped(tokens, &[Tap::Layer(layer)], &mut see)?;
            gate.catch_up_for(Logits::LastOf(tokens.len()), &[Tap::ResultNorm], &mut see)?;
        } else {
            gate.decode_tapped(tokens, &[Tap::ResultNorm], &mut see)?;
        }
        match error {
            Some(error) => Err(error),
            None if verified.is_empty() => Ok(Next::Logits(0)),
            None => Ok(Next::Candidates(ExitPoint::Screen)),
        }
    }

    /// The draft after the token that [`Cascade::candidates`] are of was right: from now on they are those after the draft. False if
    /// it was not verified, since the screen made something else of the token before it.
    pub(in super::super) fn advance(&mut self) -> bool {
        self.verified.pop_front();
        !self.verified.is_empty()
    }
}

/// True if the screen is sure of all rows that count; their candidates are then `verified`, which is empty otherwise.
fn rows(
    checks: &mut Checks,
    hidden: &[f32],
    tokens: &[Token],
    candidates: Candidates,
    verified: &mut VecDeque<Vec<(Token, f32)>>,
) -> Result<bool> {
    let n_embd = hidden.len() / tokens.len().max(1);
    for (i, state) in hidden.chunks_exact(n_embd.max(1)).enumerate() {
        if !checks.at_norm(state, candidates)? {
            verified.clear();
            return Ok(false);
        }
        verified.push_back(checks.candidates().to_vec());
        if best(checks.candidates()).map(|(token, _)| token) != tokens.get(i + 1).copied() {
            break;
        }
    }
    Ok(!verified.is_empty())
}
