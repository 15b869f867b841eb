//! A token and drafts after it, run through all blocks in one batch and compared at the final norm.
//!
//! Row by row, the screen lets the state after a token stand for its output matrix, as for a token that is decoded alone; the
//! next row counts only if its token is what the screen makes of this one. Where all rows that count are sure, the batch ends
//! there; else the matrix is computed for those rows. Tokens that wait for their upper blocks come along.

use std::collections::VecDeque;

use super::super::checks::Checks;
use super::super::{ExitPoint, Next};
use super::Cascade;
use crate::error::Result;
use crate::gate::Gate;
use crate::heads::{Candidates, best};
use crate::llama::Token;

impl Cascade {
    /// Where the distribution after the first of `tokens` is; those after the others follow it, as far as they count.
    pub(super) fn verify(&mut self, gate: &mut Gate, tokens: &[Token], candidates: Candidates) -> Result<Next> {
        let screens = self.policy.screens();
        let Self { checks, verified, .. } = self;
        gate.verify(tokens, &mut |states| {
            checks.states.clear();
            checks.states.extend_from_slice(states);
            if screens { rows(checks, states, tokens, candidates, verified) } else { Ok(tokens.len()) }
        })?;
        Ok(if verified.is_empty() { Next::Logits(0) } else { Next::Candidates(ExitPoint::Screen) })
    }

    /// True if the draft after the token that [`Cascade::candidates`] are of was verified: the screen made that draft of it.
    pub(in super::super) fn has_verified_next(&self) -> bool {
        self.verified.len() > 1
    }

    /// That draft was right: from now on [`Cascade::candidates`] are those after it.
    pub(in super::super) fn advance(&mut self) {
        self.verified.pop_front();
    }
}

/// How many rows of the output matrix are wanted: none if the screen is sure of all rows that count, whose candidates are then
/// `verified`; otherwise that many, and `verified` is empty.
fn rows(
    checks: &mut Checks,
    states: &[f32],
    tokens: &[Token],
    candidates: Candidates,
    verified: &mut VecDeque<Vec<(Token, f32)>>,
) -> Result<usize> {
    let n_embd = states.len() / tokens.len().max(1);
    let mut is_sure = true;
    let mut n = 0;
    for state in states.chunks_exact(n_embd.max(1)) {
        is_sure &= checks.at_norm(state, candidates)?;
        if is_sure {
            verified.push_back(checks.candidates().to_vec());
        }
        n += 1;
        if best(checks.candidates()).map(|(token, _)| token) != tokens.get(n).copied() {
            break;
        }
    }
    if is_sure && n > 0 {
        return Ok(0);
    }
    verified.clear();
    Ok(n.max(1))
}
