//! Whether drafting pays in exact mode, and how many tokens to draft.
//!
//! `k` drafts and the token before them are one batch; it yields one token for certain and as many more as were drafted
//! right. Drafts from the text cost nothing but that batch: with a share `a` of them right, `1 + a + … + a^k` tokens
//! come of it. The head that drafts says itself how likely it is to be right, and must be as sure as the second token of a
//! batch is dear. Drafts by exits cost the blocks below the exit and a check each, and are judged by what whole batches
//! yielded. A draft is made where tokens come faster than one at a time, and the account covers that all is wrong.

use super::account::Account;
use super::check::Check;
use super::cost::Cost;

/// Drafts of a batch that are considered: with the token before them, widths that are cheap here.
const N_DRAFTS: [usize; 3] = [1, 3, 7];
/// Classes of drafts from the text, by how many tokens matched: 2, 3, 4 to 7, 8.
const N_CLASSES: usize = 4;
/// The share of right drafts that each class is taken to have before anything was seen.
const PRIOR: [f64; N_CLASSES] = [0.3, 0.45, 0.6, 0.75];
/// How often the head that drafts is taken to be sure enough before it was asked.
const PRIOR_SURE: f64 = 0.3;
/// What it is taken to have promised and kept before anything was seen, in drafts, and how fast that is forgotten. On text that
/// the model did not write by itself it keeps about four fifths of its promise (Qwen on Spec-Bench: 0.60 of 0.78).
const PRIOR_PROMISED: f64 = 10.0;
const PRIOR_KEPT: f64 = 8.0;
const FORGET_KEPT: f64 = 1.0 / 64.0;
/// Weight of what one batch shows, and of the prior with each token that could have been drafted and was not.
const RATE: f64 = 1.0 / 12.0;
const FORGET: f64 = 1.0 / 100.0;
/// What one token more costs in a batch, as a share of a token alone, before it was measured.
const GUESS: f64 = 0.5;
/// By how much faster tokens must come.
const MARGIN: f64 = 1.05;
/// Plain tokens at the start, which measure what one costs.
const N_MEASURE: u32 = 2;
/// Batches by exits in a trial, and the tokens of its first and longest rest.
const N_TRIAL: u32 = 4;
const REST: (u32, u32) = (64, 2048);

/// What to do with the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Draft {
    /// Decode it alone.
    None,
    /// Take this many of what followed in the text.
    Lookup(usize),
    /// Ask the head that drafts, and take its token where the chance that it is right is at least this.
    Head(f32),
    /// Let exits draft, as long as they are sure, this many at most.
    Exits(usize),
}

/// Who can draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drafters {
    /// Exits.
    pub(crate) exits: bool,
    /// The head that drafts.
    pub(crate) head: bool,
}

/// What a match in the text offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) n_matched: usize,
    pub(crate) n_tokens: usize,
}

/// Learns from what drafts cost and yielded, and plans the next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DraftPolicy {
    alone: Cost,
    n_alone: u32,
    /// A token alone after a batch, over one after one alone: llama.cpp builds its graph again.
    switch: Cost,
    /// A batch of each of [`N_DRAFTS`].
    batches: [Cost; N_DRAFTS.len()],
    right: [f64; N_CLASSES],
    head: Option<Head>,
    exits: Option<Exits>,
    account: Account,
    after_batch: bool,
}

/// How the head that drafts has done.
#[derive(Debug, Clone, PartialEq)]
struct Head {
    /// A success is a draft that was right; what the other drafts' batches cost is part of the cost.
    check: Check,
    /// The share of the times it was asked that it was sure enough to draft.
    sure: f64,
    /// The chances that it gave its drafts, and how many were right, of late: on text of another kind than it learnt from it
    /// may promise more than it keeps.
    promised: f64,
    kept: f64,
}

impl Default for Head {
    fn default() -> Self {
        Self { check: Check::default(), sure: PRIOR_SURE, promised: PRIOR_PROMISED, kept: PRIOR_KEPT }
    }
}

/// A draft that was verified.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verified {
    /// The chance of being right that the head gave it.
    pub(crate) chance: f32,
    pub(crate) is_right: bool,
    /// What its batch took.
    pub(crate) seconds: f64,
}

/// How drafting by exits has done.
#[derive(Debug, Clone, PartialEq)]
struct Exits {
    /// How many drafts are asked for, as an index into [`N_DRAFTS`]: more after batches that were all right.
    level: usize,
    seconds: f64,
    tokens: f64,
    n_tried: u32,
    rest: u32,
    next_rest: u32,
}

impl DraftPolicy {
    /// With `drafters` besides the text.
    pub(crate) fn new(drafters: Drafters) -> Self {
        let exits = Exits { level: 0, seconds: 0.0, tokens: 0.0, n_tried: 0, rest: 0, next_rest: REST.0 };
        Self {
            alone: Cost::default(),
            n_alone: 0,
            switch: Cost::default(),
            batches: Default::default(),
            right: PRIOR,
            head: drafters.head.then(Head::default),
            exits: drafters.exits.then_some(exits),
            account: Account::default(),
            after_batch: false,
        }
    }

    /// Plans the next token, where the text offers this much, and at most `room` drafts are possible. `has_state`: there is
    /// what the head that drafts reads.
    pub(crate) fn plan(&mut self, offer: Option<Offer>, room: usize, has_state: bool) -> Draft {
        let alone = self.alone.mean();
        self.head.iter_mut().for_each(|head| head.check.tick());
        if self.n_alone < N_MEASURE || room == 0 {
            return Draft::None;
        }
        if let Some(offer) = offer.filter(|offer| offer.n_tokens > 0) {
            let class = class(offer.n_matched);
            let best = (0..N_DRAFTS.len())
                .filter(|&i| N_DRAFTS[i] <= offer.n_tokens.min(room))
                .filter(|&i| self.account.covers(self.batch(i) - alone, alone))
                .map(|i| (i, self.batch(i) / yielded(self.right[class], N_DRAFTS[i])))
                .min_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((i, _)) = best.filter(|&(_, seconds)| seconds * MARGIN < alone) {
                return Draft::Lookup(N_DRAFTS[i]);
            }
            self.right[class] += (PRIOR[class] - self.right[class]) * FORGET;
        }
        if let Some(head) = self.head.as_ref().filter(|head| has_state && !head.check.is_resting()) {
            let more = self.more();
            let least = ((alone + more) * MARGIN / alone - 1.0) * (head.promised / head.kept.max(1.0)).max(1.0);
            if least < 1.0 && self.account.covers(head.check.cost().max(more), alone) {
                return Draft::Head(least.max(0.0) as f32);
            }
        }
        if let Some(exits) = &mut self.exits {
            exits.rest = exits.rest.saturating_sub(1);
            let n = N_DRAFTS[exits.level].min(room);
            // Drafts that are all wrong cost no more than tokens alone would.
            if exits.rest == 0 && self.account.covers(n as f64 * alone, alone) {
                return Draft::Exits(n);
            }
        }
        Draft::None
    }

    /// Seconds of a token alone; 0 before it was seen.
    pub(crate) fn alone(&self) -> f64 {
        self.alone.mean()
    }

    /// Learns what a token alone took.
    pub(crate) fn learn_alone(&mut self, seconds: f64) {
        self.account.earn();
        if std::mem::take(&mut self.after_batch) {
            self.switch.add((seconds - self.alone.mean()).max(0.0));
            return;
        }
        self.alone.add(seconds);
        self.n_alone = self.n_alone.saturating_add(1);
    }

    /// Learns what a batch of drafts from the text took, and how many of them were right.
    pub(crate) fn learn_lookup(&mut self, n_matched: usize, n_drafted: usize, n_right: usize, seconds: f64) {
        self.after_batch = true;
        let seconds = match N_DRAFTS.iter().position(|&n| n == n_drafted) {
            Some(i) => self.batches[i].add(seconds),
            None => seconds,
        };
        // Of the drafts that were reached; those after the first wrong one tell nothing.
        let reached = (n_right + 1).min(n_drafted).max(1);
        let right = &mut self.right[class(n_matched)];
        *right += (n_right as f64 / reached as f64 - *right) * RATE;
        self.book(seconds, n_right + 1);
    }

    /// Learns what asking the head took; and if it drafted, what came of it.
    pub(crate) fn learn_head(&mut self, seconds: f64, draft: Option<Verified>) {
        let alone = self.alone.mean();
        let is_right = draft.is_some_and(|draft| draft.is_right);
        let mut spent = seconds;
        if let Some(draft) = draft {
            self.after_batch = true;
            let seconds = self.batches[0].add(draft.seconds);
            spent += (seconds + self.switch.mean() - alone).max(0.0);
            (0..=usize::from(is_right)).for_each(|_| self.account.earn());
        }
        let more = self.more();
        let Some(head) = &mut self.head else { return };
        head.sure += (f64::from(u8::from(draft.is_some())) - head.sure) * RATE;
        if let Some(draft) = draft {
            head.promised += f64::from(draft.chance) - head.promised * FORGET_KEPT;
            head.kept += f64::from(u8::from(is_right)) - head.kept * FORGET_KEPT;
        }
        // What a batch costs now and then is spread over all the times, since a cost that jumps would count as an outlier.
        head.check.learn(seconds + head.sure * more, is_right, alone, alone);
        self.account.book(spent, if is_right { alone } else { 0.0 }, alone);
    }

    /// Learns what a batch by exits took in all, how many tokens were drafted, and how many of these were right.
    pub(crate) fn learn_exits(&mut self, n_drafted: usize, n_right: usize, seconds: f64) {
        self.after_batch = true;
        let alone = self.alone.mean();
        let n_tokens = n_right + 1;
        // No batch is that dear by itself: something else held it up.
        let seconds = seconds.min(2.0 * (n_drafted + 1) as f64 * alone);
        self.book(seconds, n_tokens);
        let Some(exits) = &mut self.exits else { return };
        if n_right == n_drafted {
            exits.level = (exits.level + 1).min(N_DRAFTS.len() - 1);
        } else if 2 * n_right < n_drafted {
            exits.level = exits.level.saturating_sub(1);
        }
        let keep = if exits.n_tried < N_TRIAL { 1.0 } else { 1.0 - RATE };
        exits.seconds = exits.seconds * keep + seconds;
        exits.tokens = exits.tokens * keep + n_tokens as f64;
        exits.n_tried = exits.n_tried.saturating_add(1);
        if exits.n_tried >= N_TRIAL && exits.seconds * MARGIN > exits.tokens * alone {
            *exits = Exits {
                level: 0,
                seconds: 0.0,
                tokens: 0.0,
                n_tried: 0,
                rest: exits.next_rest,
                next_rest: (exits.next_rest * 2).min(REST.1),
            };
        } else if exits.n_tried == 8 * N_TRIAL {
            exits.next_rest = REST.0;
        }
    }

    fn book(&mut self, seconds: f64, n_tokens: usize) {
        (0..n_tokens).for_each(|_| self.account.earn());
        self.account.book(seconds + self.switch.mean(), n_tokens as f64 * self.alone.mean(), self.alone.mean());
    }

    /// Seconds that a draft adds to its token.
    fn more(&self) -> f64 {
        (self.batch(0) - self.alone.mean()).max(0.0)
    }

    /// Seconds of a batch of the `i`-th of [`N_DRAFTS`], and of what the token after it takes longer.
    fn batch(&self, i: usize) -> f64 {
        let measured = self.batches[i].mean();
        let guessed = self.alone.mean() * (1.0 + GUESS * N_DRAFTS[i] as f64);
        self.switch.mean() + if measured > 0.0 { measured } else { guessed }
    }
}

fn class(n_matched: usize) -> usize {
    match n_matched {
        0..=2 => 0,
        3 => 1,
        4..=7 => 2,
        _ => 3,
    }
}

/// Tokens that come of `n` drafts with a share `right` of right ones.
fn yielded(right: f64, n: usize) -> f64 {
    (0..n).fold(1.0, |sum, _| 1.0 + right * sum)
}

#[cfg(test)]
mod tests;
