//! What tokens cost alone and in batches, in seconds.

use super::super::cost::Cost;
use super::N_DRAFTS;

/// What a batch costs before it was measured: a token alone, and this share of one for each draft. Where arithmetic is the
/// limit, two tokens are often as dear as four, which is what kernels are made for; the first batch tells.
const GUESS: [f64; N_DRAFTS.len()] = [0.5, 0.5, 0.25, 0.25];
/// What it must be feared to cost.
const FEAR: f64 = 0.41;
/// By how much a batch may be dearer than its tokens one by one, if those run through the whole model: what takes longer was held up
/// by something else.
const HELD_UP: f64 = 1.5;
/// How much of what was measured is forgotten with each token that could have been drafted and was not: a batch that something
/// else held up must not be the last of its width.
const FADE: f64 = 1.0 / 128.0;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Costs {
    alone: Cost,
    n_alone: u32,
    /// A token alone after a batch: llama.cpp builds its graph again.
    after: Cost,
    /// A token alone where a draft would have paid, without what the batch before it makes it cost.
    instead: Cost,
    /// A batch of each of [`N_DRAFTS`].
    batches: [Cost; N_DRAFTS.len()],
    after_batch: bool,
    /// Tokens alone may leave early.
    tokens_leave: bool,
}

impl Costs {
    pub(super) fn new(tokens_leave: bool) -> Self {
        Self { tokens_leave, ..Self::default() }
    }

    /// Seconds of a token alone; 0 before it was seen.
    pub(super) fn alone(&self) -> f64 {
        self.alone.mean()
    }

    /// Tokens alone that were seen.
    pub(super) fn n_alone(&self) -> u32 {
        self.n_alone
    }

    /// Seconds of a token alone where a draft pays.
    pub(super) fn instead(&self) -> f64 {
        if self.instead.mean() > 0.0 { self.instead.mean() } else { self.alone() }
    }

    /// Seconds that a right draft spares.
    pub(super) fn further(&self) -> f64 {
        self.alone().min(self.instead())
    }

    /// Seconds that the token after a batch takes longer.
    pub(super) fn switch(&self) -> f64 {
        if self.after.mean() > 0.0 { (self.after.mean() - self.alone()).max(0.0) } else { 0.0 }
    }

    /// Seconds of a batch of the `i`-th of [`N_DRAFTS`], and of what the token after it takes longer.
    pub(super) fn batch(&self, i: usize) -> f64 {
        self.switch() + if self.is_measured(i) { self.batches[i].mean() } else { self.guess(i) }
    }

    fn guess(&self, i: usize) -> f64 {
        self.alone() * (1.0 + GUESS[i] * N_DRAFTS[i] as f64)
    }

    /// No batch paid for a token that something was offered after.
    pub(super) fn fade(&mut self) {
        for i in 0..N_DRAFTS.len() {
            if self.is_measured(i) {
                let guess = self.guess(i);
                self.batches[i].fade(guess, FADE);
            }
        }
    }

    /// What the drafts of the `i`-th of [`N_DRAFTS`] may lose if all are wrong.
    pub(super) fn at_risk(&self, i: usize) -> f64 {
        let feared = self.alone() * (1.0 + FEAR * N_DRAFTS[i] as f64);
        self.batch(i).max(if self.is_measured(i) { 0.0 } else { feared }) - self.instead()
    }

    fn is_measured(&self, i: usize) -> bool {
        self.batches[i].mean() > 0.0
    }

    /// How much faster than alone `tokens` come of a batch of the `i`-th of [`N_DRAFTS`].
    pub(super) fn rate(&self, i: usize, tokens: f64) -> f64 {
        (self.instead() + (tokens - 1.0) * self.further()) / self.batch(i).max(f64::MIN_POSITIVE)
    }

    /// How many tokens must come of it for a `rate`.
    pub(super) fn tokens_for(&self, i: usize, rate: f64) -> f64 {
        1.0 + (rate * self.batch(i) - self.instead()) / self.further().max(f64::MIN_POSITIVE)
    }

    /// A token alone took `seconds`; `is_control` if a draft would have paid.
    pub(super) fn learn_alone(&mut self, seconds: f64, is_control: bool) {
        let after_batch = std::mem::take(&mut self.after_batch);
        if is_control {
            self.instead.add(if after_batch { (seconds - self.switch()).max(0.0) } else { seconds });
        } else if after_batch {
            self.after.add(seconds);
        } else {
            self.alone.add(seconds);
            self.n_alone = self.n_alone.saturating_add(1);
        }
    }

    /// A batch of `n_drafted` drafts took `seconds`. What they count as.
    pub(super) fn learn_batch(&mut self, n_drafted: usize, seconds: f64) -> f64 {
        self.after_batch = true;
        let seconds = seconds.min(self.dearest(n_drafted));
        match index(n_drafted) {
            Some(i) => self.batches[i].add(seconds),
            None => seconds,
        }
    }

    /// The most that a batch of `n_drafted` drafts can take by itself.
    pub(super) fn dearest(&self, n_drafted: usize) -> f64 {
        if self.tokens_leave { f64::INFINITY } else { HELD_UP * (n_drafted + 1) as f64 * self.alone() }
    }

    /// What a batch of `n_drafted` drafts is expected to take, where none was measured yet.
    pub(super) fn guessed(&self, n_drafted: usize) -> Option<f64> {
        index(n_drafted).filter(|&i| !self.is_measured(i)).map(|i| self.batch(i) - self.switch())
    }

    /// Exits drafted.
    pub(super) fn learn_exits(&mut self) {
        self.after_batch = true;
    }
}

fn index(n_drafted: usize) -> Option<usize> {
    N_DRAFTS.iter().position(|&n| n == n_drafted)
}
