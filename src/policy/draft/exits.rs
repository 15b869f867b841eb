//! How drafting by exits has done.

use super::{MARGIN, RATE};

/// Drafts that are asked for, where there is room.
const LEVELS: [usize; 3] = [1, 3, 7];
/// Batches in a trial, and the tokens of its first and longest rest.
const N_TRIAL: u32 = 4;
const REST: (u32, u32) = (64, 2048);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Exits {
    /// How many drafts are asked for, as an index into [`LEVELS`]: more after batches that were all right.
    level: usize,
    seconds: f64,
    tokens: f64,
    n_tried: u32,
    rest: u32,
    next_rest: u32,
}

impl Default for Exits {
    fn default() -> Self {
        Self { level: 0, seconds: 0.0, tokens: 0.0, n_tried: 0, rest: 0, next_rest: REST.0 }
    }
}

impl Exits {
    /// A token comes by: how many to draft after it, `room` at most.
    pub(super) fn plan(&mut self, room: usize) -> Option<usize> {
        self.rest = self.rest.saturating_sub(1);
        (self.rest == 0).then_some(LEVELS[self.level].min(room))
    }

    /// A batch took `seconds`, where a token alone takes `alone`.
    pub(super) fn learn(&mut self, n_drafted: usize, n_right: usize, seconds: f64, alone: f64) {
        if n_right == n_drafted {
            self.level = (self.level + 1).min(LEVELS.len() - 1);
        } else if 2 * n_right < n_drafted {
            self.level = self.level.saturating_sub(1);
        }
        let keep = if self.n_tried < N_TRIAL { 1.0 } else { 1.0 - RATE };
        self.seconds = self.seconds * keep + seconds;
        self.tokens = self.tokens * keep + (n_right + 1) as f64;
        self.n_tried = self.n_tried.saturating_add(1);
        if self.n_tried >= N_TRIAL && self.seconds * MARGIN > self.tokens * alone {
            let next_rest = (self.next_rest * 2).min(REST.1);
            *self = Self { rest: self.next_rest, next_rest, ..Self::default() };
        } else if self.n_tried == 8 * N_TRIAL {
            self.next_rest = REST.0;
        }
    }
}
