//! Whether drafting pays, and how many tokens to draft.
//!
//! `k` drafts and the token before them are one batch; it yields one token for certain and as many more as were drafted
//! right. Drafts from the text cost nothing but that batch: with a share `a` of them right, `1 + a + … + a^k` tokens
//! come of it. The head that drafts says of each draft how likely it is to be right. Drafts by exits cost the blocks below
//! the exit and a check each, and are judged by what whole batches yielded. A draft is made where tokens come faster than one
//! at a time, and the account covers that all is wrong.
//!
//! Where tokens may also leave early, those that are easy to draft are easy to leave at, too: a few of them are decoded alone
//! all the same, since what they cost alone is what a batch has to beat.

mod costs;
mod exits;
mod head;
mod rows;

use super::account::Account;
use costs::Costs;
use exits::Exits;
use head::Head;
pub(crate) use head::Verified;
use rows::Rows;

/// Drafts of a batch that are considered: with the token before them, widths that are cheap here. Three tokens at once are
/// seldom cheaper than four, and two drafts are made only where there is no third.
const N_DRAFTS: [usize; 4] = [1, 2, 3, 7];
/// Classes of drafts from the text, by how many tokens matched: 2, 3, 4 to 7, 8.
const N_CLASSES: usize = 4;
/// The share of right drafts that each class is taken to have before anything was seen.
const PRIOR: [f64; N_CLASSES] = [0.3, 0.45, 0.6, 0.75];
/// Weight of what one batch shows, and of the prior with each token that could have been drafted and was not.
const RATE: f64 = 1.0 / 12.0;
const FORGET: f64 = 1.0 / 100.0;
/// By how much faster tokens must come.
const MARGIN: f64 = 1.05;
/// Plain tokens at the start, which measure what one costs: more of them where they may leave early.
const N_MEASURE: u32 = 2;
const N_MEASURE_EXITS: u32 = 6;
/// Where tokens may leave early: of so many times that a draft would pay, one is decoded alone; the first of them early on.
const CONTROL: (u32, u32) = (16, 3);

/// What to do with the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Draft {
    /// Decode it alone.
    None,
    /// Take this many of what followed in the text.
    Lookup(usize),
    /// Ask the head that drafts, one token after the other, as long as [`DraftPolicy::least`] is reached; then
    /// [`DraftPolicy::take`] says how many of them to verify.
    Head,
    /// Let exits draft, as long as they are sure, this many at most.
    Exits(usize),
}

/// Who can draft, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drafters {
    /// Exits.
    pub(crate) exits: bool,
    /// The head that drafts.
    pub(crate) head: bool,
    /// Tokens that are decoded alone may leave early.
    pub(crate) tokens_leave: bool,
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
    costs: Costs,
    n_measure: u32,
    right: [f64; N_CLASSES],
    head: Option<Head>,
    exits: Option<Exits>,
    account: Account,
    control: Option<Control>,
    rows: Rows,
}

/// Which tokens are decoded alone though a draft would pay.
#[derive(Debug, Clone, PartialEq)]
struct Control {
    next: u32,
    is_now: bool,
}

impl DraftPolicy {
    /// With `drafters` besides the text.
    pub(crate) fn new(drafters: Drafters) -> Self {
        Self {
            costs: Costs::new(drafters.tokens_leave),
            n_measure: if drafters.tokens_leave { N_MEASURE_EXITS } else { N_MEASURE },
            right: PRIOR,
            head: drafters.head.then(Head::default),
            exits: drafters.exits.then(Exits::default),
            account: Account::default(),
            control: drafters.tokens_leave.then_some(Control { next: CONTROL.1, is_now: false }),
            rows: Rows::default(),
        }
    }

    /// Plans the next token, where the text offers this much, and at most `room` drafts are possible. `has_state`: there is
    /// what the head that drafts reads.
    pub(crate) fn plan(&mut self, offer: Option<Offer>, room: usize, has_state: bool) -> Draft {
        self.head.iter_mut().for_each(Head::tick);
        if self.costs.n_alone() < self.n_measure || room == 0 {
            return Draft::None;
        }
        if let Some(offer) = offer.filter(|offer| offer.n_tokens > 0) {
            let class = class(offer.n_matched);
            let best = self.best(offer.n_tokens.min(room), |n| yielded(self.right[class], n));
            if let Some((n, _)) = best.filter(|&(_, rate)| rate > MARGIN) {
                return if self.is_control() { Draft::None } else { Draft::Lookup(n) };
            }
            self.right[class] += (PRIOR[class] - self.right[class]) * FORGET;
            self.costs.fade();
        }
        if has_state && self.asks_head() && self.least(&[], room) < 1.0 {
            return Draft::Head;
        }
        let exits = self.exits.as_mut().and_then(|exits| exits.plan(room));
        // Drafts that are all wrong cost no more than tokens alone would.
        match exits.filter(|&n| self.account.covers(n as f64 * self.costs.alone(), self.costs.alone())) {
            Some(n) => Draft::Exits(n),
            None => Draft::None,
        }
    }

    /// The least chance of being right that a further draft of the head must have, after drafts with these `chances`, if
    /// more than they can pay; above 1 if it cannot.
    pub(crate) fn least(&self, chances: &[f32], room: usize) -> f32 {
        let Some(head) = &self.head else { return f32::INFINITY };
        let bar = self.best(room.min(chances.len()), |n| head.expected(&chances[..n])).map_or(0.0, |(_, rate)| rate);
        let least = numbers(room)
            .filter(|&i| N_DRAFTS[i] > chances.len() && self.is_covered(i))
            .map(|i| head.least(chances, N_DRAFTS[i] - chances.len(), self.costs.tokens_for(i, bar.max(MARGIN))));
        least.fold(f64::INFINITY, f64::min).max(0.0) as f32
    }

    /// How many of the drafts with these `chances`, by the head, are worth verifying.
    pub(crate) fn take(&mut self, chances: &[f32], room: usize) -> usize {
        let Some(head) = &self.head else { return 0 };
        let best = self.best(room.min(chances.len()), |n| head.expected(&chances[..n]));
        match best.filter(|&(_, rate)| rate > MARGIN) {
            Some((n, _)) if !self.is_control() => n,
            _ => 0,
        }
    }

    /// True if it pays to guess which rows of the output matrix a batch will be asked for.
    pub(crate) fn guesses_rows(&self) -> bool {
        self.rows.pay()
    }

    /// A batch had `n_rows` of the output matrix computed in `seconds`, after a guess that took `screens`, if there was one.
    pub(crate) fn learn_rows(&mut self, n_rows: usize, seconds: f64, screens: Option<f64>) {
        self.rows.learn(n_rows, seconds, screens);
    }

    /// Seconds of a token alone; 0 before it was seen.
    pub(crate) fn alone(&self) -> f64 {
        self.costs.alone()
    }

    /// Learns what a token alone took.
    pub(crate) fn learn_alone(&mut self, seconds: f64) {
        self.account.earn();
        let is_control = self.control.as_mut().is_some_and(|control| std::mem::take(&mut control.is_now));
        self.costs.learn_alone(seconds, is_control);
    }

    /// Learns what a batch of drafts from the text took, and how many of them were right.
    pub(crate) fn learn_lookup(&mut self, n_matched: usize, n_drafted: usize, n_right: usize, seconds: f64) {
        let seconds = self.costs.learn_batch(n_drafted, seconds);
        self.rows.learn_right(n_drafted, n_right);
        // Of the drafts that were reached; those after the first wrong one tell nothing.
        let reached = (n_right + 1).min(n_drafted).max(1);
        let right = &mut self.right[class(n_matched)];
        *right += (n_right as f64 / reached as f64 - *right) * RATE;
        self.book(seconds - self.costs.instead(), n_right);
    }

    /// Learns what asking the head took; and what came of its drafts, if some were verified.
    pub(crate) fn learn_head(&mut self, seconds: f64, verified: Option<Verified<'_>>) {
        let (instead, further, alone) = (self.costs.instead(), self.costs.further(), self.costs.alone());
        let Some(head) = &mut self.head else { return };
        let Some(verified) = verified else {
            head.learn_asked(seconds, 0.0);
            self.account.book(seconds, 0.0, alone);
            return;
        };
        self.rows.learn_right(verified.chances.len(), verified.n_right);
        // The first batch of a width tells what that width costs, and nothing of the head.
        let guessed = self.costs.guessed(verified.chances.len());
        let batch = self.costs.learn_batch(verified.chances.len(), verified.seconds);
        let more = self.costs.switch() - instead;
        let promised = (head.expected(verified.chances) - 1.0) * further;
        head.learn_asked(seconds, promised - (guessed.unwrap_or(batch) + more));
        head.learn(verified);
        (0..=verified.n_right).for_each(|_| self.account.earn());
        self.account.book(seconds + (batch + more).max(0.0), verified.n_right as f64 * further, alone);
    }

    /// Learns what a batch by exits took in all, how many tokens were drafted, and how many of these were right.
    pub(crate) fn learn_exits(&mut self, n_drafted: usize, n_right: usize, seconds: f64) {
        let alone = self.costs.alone();
        let seconds = seconds.min(self.costs.dearest(n_drafted));
        self.costs.learn_exits();
        self.rows.learn_right(n_drafted, n_right);
        self.book(seconds - alone, n_right);
        if let Some(exits) = &mut self.exits {
            exits.learn(n_drafted, n_right, seconds, alone);
        }
    }

    /// A batch took `seconds` more than a token alone, and brought `n_right` tokens more.
    fn book(&mut self, seconds: f64, n_right: usize) {
        (0..=n_right).for_each(|_| self.account.earn());
        let saved = n_right as f64 * self.costs.further();
        self.account.book(seconds + self.costs.switch(), saved, self.costs.alone());
    }

    /// Of the numbers of drafts up to `most`, the one by which tokens come fastest, and how much faster than alone they do; `n`
    /// drafts bring `tokens(n)`.
    fn best(&self, most: usize, tokens: impl Fn(usize) -> f64) -> Option<(usize, f64)> {
        let numbers = numbers(most).filter(|&i| self.is_covered(i));
        let rates = numbers.map(|i| (N_DRAFTS[i], self.costs.rate(i, tokens(N_DRAFTS[i]))));
        rates.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// True if the account covers that a batch of the `i`-th of [`N_DRAFTS`] is all wrong.
    fn is_covered(&self, i: usize) -> bool {
        self.account.covers(self.costs.at_risk(i), self.costs.alone())
    }

    fn asks_head(&self) -> bool {
        let asks = |head: &Head| !head.is_resting() && self.account.covers(head.cost(), self.costs.alone());
        self.head.as_ref().is_some_and(asks)
    }

    /// A draft would pay: true if the token is decoded alone all the same, to know what that costs.
    fn is_control(&mut self) -> bool {
        let Some(control) = &mut self.control else { return false };
        control.next -= 1;
        control.is_now = control.next == 0;
        if control.is_now {
            control.next = CONTROL.0;
        }
        control.is_now
    }
}

/// Which of [`N_DRAFTS`] are considered where `most` drafts are possible.
fn numbers(most: usize) -> impl Iterator<Item = usize> {
    (0..N_DRAFTS.len()).filter(move |&i| N_DRAFTS[i] <= most && (N_DRAFTS[i] != 2 || most == 2))
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
