//! How the head that drafts has done, and what its next drafts are worth.
//!
//! Whether to ask it at all is judged by what it promises, less what it has failed to keep of late, and not by what single
//! batches bring: those are few, and most of what they bring is luck.

use super::super::cost::Cost;

/// Times that it is asked before it is judged, and the weight of each of them after.
const N_TRIAL: u32 = 24;
const RATE: f64 = 1.0 / 48.0;
/// Tokens of its first rest, and of the longest.
const REST: (u32, u32) = (64, 2048);
/// What it is taken to have promised and kept before anything was seen, in drafts, and how fast that is forgotten. On text that
/// the model did not write by itself it keeps about four fifths of its promise (Qwen on Spec-Bench: 0.60 of 0.78).
const PRIOR: Kept = Kept { promised: 10.0, kept: 8.0 };
const FORGET: f64 = 1.0 / 64.0;
/// What chance the drafts that were not asked for yet are hoped to have.
const HOPE: f64 = 0.9;

/// Drafts that were verified.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verified<'a> {
    /// The chances of being right that the head gave them, if all before are.
    pub(crate) chances: &'a [f32],
    pub(crate) n_right: usize,
    /// What their batch took.
    pub(crate) seconds: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    asked: Cost,
    n_asked: u32,
    /// The seconds that asking it gains, by what it promises.
    gain: f64,
    rest: u32,
    next_rest: u32,
    /// Of the first draft, which is made from what the model computed, and of those after it.
    kept: [Kept; 2],
}

/// The chances that were given, and how many drafts were right, of late: on text of another kind than it learnt from the head may
/// promise more than it keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kept {
    promised: f64,
    kept: f64,
}

impl Default for Head {
    fn default() -> Self {
        Self { asked: Cost::default(), n_asked: 0, gain: 0.0, rest: 0, next_rest: REST.0, kept: [PRIOR; 2] }
    }
}

impl Head {
    /// A token comes by: one less to rest for.
    pub(super) fn tick(&mut self) {
        self.rest = self.rest.saturating_sub(1);
    }

    pub(super) fn is_resting(&self) -> bool {
        self.rest > 0
    }

    /// Seconds of asking it, on average.
    pub(super) fn cost(&self) -> f64 {
        self.asked.mean()
    }

    /// The tokens that drafts with these `chances` bring, with the one before them.
    pub(super) fn expected(&self, chances: &[f32]) -> f64 {
        self.reached(chances).1
    }

    /// The least chance that the next of `n` further drafts must have for all to bring `tokens`, if those after it were as
    /// good as can be hoped.
    pub(super) fn least(&self, chances: &[f32], n: usize, tokens: f64) -> f64 {
        let (reached, expected) = self.reached(chances);
        let hope = HOPE * self.trust(1);
        let each = reached * self.trust(chances.len()) * (1..n).fold(1.0, |sum, _| 1.0 + hope * sum);
        if each > 0.0 { (tokens - expected) / each } else { f64::INFINITY }
    }

    /// Asking took `seconds`, and what it promised is worth `gain` of them; 0 where nothing was drafted.
    pub(super) fn learn_asked(&mut self, seconds: f64, gain: f64) {
        let gain = gain - self.asked.add(seconds);
        self.n_asked = self.n_asked.saturating_add(1);
        self.gain += (gain - self.gain) * f64::max(RATE, 1.0 / f64::from(self.n_asked));
        if self.n_asked >= N_TRIAL && self.gain < 0.0 {
            (self.rest, self.next_rest) = (self.next_rest, (self.next_rest * 2).min(REST.1));
            (self.n_asked, self.gain) = (0, 0.0);
        } else if self.n_asked == 8 * N_TRIAL {
            self.next_rest = REST.0;
        }
    }

    /// Drafts were verified.
    pub(super) fn learn(&mut self, verified: Verified<'_>) {
        for (i, &chance) in verified.chances.iter().enumerate().take(verified.n_right + 1) {
            self.kept[i.min(1)].learn(chance, i < verified.n_right);
        }
    }

    /// The chance that all of these drafts are right, and the tokens that they bring.
    fn reached(&self, chances: &[f32]) -> (f64, f64) {
        chances.iter().enumerate().fold((1.0, 1.0), |(reached, tokens), (i, &chance)| {
            let reached = reached * f64::from(chance) * self.trust(i);
            (reached, tokens + reached)
        })
    }

    /// What the chance of the `i`-th draft counts, as a share of it.
    fn trust(&self, i: usize) -> f64 {
        let Kept { promised, kept } = self.kept[i.min(1)];
        (kept / promised.max(1.0)).min(1.0)
    }
}

impl Kept {
    fn learn(&mut self, chance: f32, is_right: bool) {
        self.promised += f64::from(chance) - self.promised * FORGET;
        self.kept += f64::from(u8::from(is_right)) - self.kept * FORGET;
    }
}
