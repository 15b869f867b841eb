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
        let mut error = None;
        let mut wanted = |states: &[f32]| {
            checks.states.clear();
            checks.states.extend_from_slice(states);
            if !screens {
                return tokens.len();
            }
            rows(checks, states, tokens, candidates, verified).unwrap_or_else(|found| {
                error = Some(found);
                0
            })
        };
        gate.verify(tokens, &mut wanted)?;
        match error {
            Some(error) => Err(error),
            None if verified.is_empty() => Ok(Next::Logits(0)),
            None => Ok(Next::Candidates(ExitPoint::Screen)),
        }
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
        verified.push_back(checks.candidates().to_vec());
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
