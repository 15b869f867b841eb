//! Whether drafting pays in exact mode, and how many tokens to draft.
//!
//! `k` drafts and the token before them are one batch; it yields one token for certain and as many more as were drafted
//! right. Drafts from the text cost nothing but that batch: with a share `a` of them right, `1 + a + … + a^k` tokens
//! come of it. Drafts by exits cost the blocks below the exit and a check each, and are judged by what whole batches
//! yielded. A draft is made where tokens come faster than one at a time, and the account covers that all is wrong.

use super::account::Account;
use super::cost::Cost;

/// Drafts of a batch that are considered: with the token before them, widths that are cheap here.
const N_DRAFTS: [usize; 3] = [1, 3, 7];
/// Classes of drafts from the text, by how many tokens matched: 2, 3, 4 to 7, 8.
const N_CLASSES: usize = 4;
/// The share of right drafts that each class is taken to have before anything was seen.
const PRIOR: [f64; N_CLASSES] = [0.3, 0.45, 0.6, 0.75];
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Draft {
    /// Decode it alone.
    None,
    /// Take this many of what followed in the text.
    Lookup(usize),
    /// Let exits draft, as long as they are sure, this many at most.
    Exits(usize),
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
    exits: Option<Exits>,
    account: Account,
    after_batch: bool,
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
    /// `has_exits`: there are heads that could draft.
    pub(crate) fn new(has_exits: bool) -> Self {
        let exits = Exits { level: 0, seconds: 0.0, tokens: 0.0, n_tried: 0, rest: 0, next_rest: REST.0 };
        Self {
            alone: Cost::default(),
            n_alone: 0,
            switch: Cost::default(),
            batches: Default::default(),
            right: PRIOR,
            exits: has_exits.then_some(exits),
            account: Account::default(),
            after_batch: false,
        }
    }

    /// Plans the next token, where the text offers this much, and at most `room` drafts are possible.
    pub(crate) fn plan(&mut self, offer: Option<Offer>, room: usize) -> Draft {
        let alone = self.alone.mean();
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    /// Milliseconds of batches, and how the text goes.
    struct World {
        alone: f64,
        /// Each token more of a batch.
        more: f64,
        switch: f64,
        /// Share of the tokens where the text offers something, and of its drafts that are right.
        offered: f64,
        right: f64,
        /// As a share of a token: the blocks below the exit and its check; and whether exits are sure and right.
        exit: Option<(f64, f64)>,
    }

    fn unit(rng: &mut TestRng) -> f64 {
        use proptest::prelude::Rng as _;
        f64::from(rng.next_u32()) / f64::from(u32::MAX)
    }

    /// Milliseconds of at least `n` tokens, and how many they were.
    fn decode(world: &World, n: usize, seed: [u8; 32]) -> (f64, usize) {
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut policy = DraftPolicy::new(world.exit.is_some());
        let (mut cost, mut made, mut switched) = (0.0, 0, false);
        while made < n {
            let offer = (unit(&mut rng) < world.offered).then_some(Offer { n_matched: 4, n_tokens: 7 });
            let switch = if std::mem::take(&mut switched) { world.switch } else { 0.0 };
            match policy.plan(offer, 7) {
                Draft::None => {
                    let seconds = world.alone + switch;
                    policy.learn_alone(seconds);
                    cost += seconds;
                    made += 1;
                }
                Draft::Lookup(k) => {
                    let n_right = (0..k).take_while(|_| unit(&mut rng) < world.right).count();
                    let seconds = world.alone + world.more * k as f64;
                    policy.learn_lookup(4, k, n_right, seconds);
                    cost += seconds;
                    made += n_right + 1;
                    switched = true;
                }
                Draft::Exits(k) => {
                    let (share, right) = world.exit.unwrap();
                    let n_right = (0..k).take_while(|_| unit(&mut rng) < right).count();
                    let k_f = k as f64;
                    let seconds = (k_f + 1.0) * share * world.alone + (1.0 - share) * (world.alone + k_f * world.more);
                    policy.learn_exits(k, n_right, seconds);
                    cost += seconds;
                    made += n_right + 1;
                    switched = true;
                }
            }
        }
        (cost, made)
    }

    #[test]
    fn a_text_that_repeats_itself_is_drafted_widely() {
        let world = World { alone: 8.0, more: 4.0, switch: 0.5, offered: 1.0, right: 1.0, exit: None };
        let (cost, made) = decode(&world, 400, [1; 32]);
        assert!(cost < 0.65 * 8.0 * made as f64, "{cost} for {made}");
    }

    #[test]
    fn drafts_that_are_always_wrong_cost_at_most_two_percent() {
        for exit in [None, Some((0.5, 0.0))] {
            let world = World { alone: 8.0, more: 4.0, switch: 0.5, offered: 0.8, right: 0.0, exit };
            for n in [128, 1000, 20_000] {
                let (cost, made) = decode(&world, n, [2; 32]);
                assert!(cost <= 1.02 * 8.0 * made as f64, "{n}: {cost} for {made}");
            }
        }
    }

    #[test]
    fn where_one_token_more_costs_as_much_as_one_alone_nothing_is_drafted_for_long() {
        let world = World { alone: 8.0, more: 8.0, switch: 0.0, offered: 1.0, right: 0.9, exit: Some((0.5, 0.9)) };
        let (cost, made) = decode(&world, 5000, [3; 32]);
        assert!(cost <= 1.02 * 8.0 * made as f64, "{cost} for {made}");
    }

    #[test]
    fn no_draft_is_longer_than_what_there_is_room_for() {
        let mut policy = DraftPolicy::new(false);
        policy.learn_alone(8.0);
        policy.learn_alone(8.0);
        let plan = |policy: &mut DraftPolicy, n_tokens, room| policy.plan(Some(Offer { n_matched: 8, n_tokens }), room);
        assert_eq!(plan(&mut policy, 9, 0), Draft::None);
        assert!(matches!(plan(&mut policy, 2, 9), Draft::None | Draft::Lookup(1)));
        assert!(matches!(plan(&mut policy, 9, 3), Draft::None | Draft::Lookup(1 | 3)));
    }

    proptest! {
        #[test]
        fn random_drafts_never_lose_much(
            more in 0.5f64..10.0,
            switch in 0.0f64..1.5,
            offered in 0.0f64..1.0,
            right in 0.0f64..1.0,
            share in 0.2f64..0.9,
            exits in proptest::option::of(0.0f64..1.0),
            seed in proptest::array::uniform32(any::<u8>()),
        ) {
            let exit = exits.map(|right| (share, right));
            let world = World { alone: 8.0, more, switch, offered, right, exit };
            let (cost, made) = decode(&world, 3000, seed);
            prop_assert!(cost <= 1.02 * 8.0 * made as f64, "{cost} for {made} tokens");
        }
    }
}
