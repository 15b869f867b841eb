//! Which exits are checked for the next token, and whether the screen is.
//!
//! A token that reaches exit `k` and goes on costs what its other blocks cost, the checks that wait there, and what
//! the end costs: the screen, and the matrix where the screen is not sure. One that leaves costs what its skipped K/V
//! cost. The difference is what a success at `k` saves, worked out from the last exit down with what is known of each.
//! Two tokens first run through both screen and matrix, which measures them.

use super::account::Account;
use super::check::Check;
use super::cost::Cost;

/// Tokens at the start that only measure.
const N_MEASURE: u32 = 2;

/// How the K/V of skipped blocks come about, for what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvCost {
    /// At the exit, at once.
    AtExit,
    /// Later, in a batch.
    Later,
}

/// What is done at the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtNorm {
    /// Nothing: the output matrix follows.
    Plain,
    /// Evaluate the screen; leave where it is confident.
    Screen,
    /// Evaluate the screen, where there is one, then the matrix in any case.
    Measure,
}

/// What to do with a token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// The exits to check, by index, lowest first. Of those on trial at most one may fail: the others are then left out.
    pub(crate) exits: Vec<PlannedExit>,
    pub(crate) norm: AtNorm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedExit {
    pub(crate) exit: usize,
    pub(crate) on_trial: bool,
}

/// An exit that a token reached and was checked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reached {
    pub(crate) exit: usize,
    /// Of the check: the gate, and the head where the gate asked for it.
    pub(crate) seconds: f64,
    pub(crate) left: bool,
}

/// A batch that ran the blocks that earlier tokens skipped, together with a token of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CaughtUp {
    /// The earlier tokens.
    pub(crate) n_tokens: u32,
    /// The blocks.
    pub(crate) n_layers: u32,
}

/// What a token cost, in seconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Seen {
    pub(crate) exits: Vec<Reached>,
    /// Blocks that this token alone ran through, and what they took without the checks.
    pub(crate) n_layers: u32,
    pub(crate) layers: f64,
    /// The batch of other blocks, if there was one, and what it took.
    pub(crate) caught_up: Option<(CaughtUp, f64)>,
    /// K/V made at the exit.
    pub(crate) kv: Option<f64>,
    /// The screen, and whether it was confident.
    pub(crate) screen: Option<(f64, bool)>,
    /// The output matrix, where its time is known.
    pub(crate) matrix: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Exit {
    layer: u32,
    check: Check,
    kv: Cost,
}

/// Learns from what is seen, and plans the next token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CascadePolicy {
    n_layer: u32,
    kv: KvCost,
    exits: Vec<Exit>,
    screen: Option<Check>,
    /// One block, for one token.
    layer: Cost,
    matrix: Cost,
    /// One block, for one earlier token of a batch.
    pending: Cost,
    account: Account,
    n_measured: u32,
    /// Makes every check, whatever it costs.
    always: bool,
}

impl CascadePolicy {
    /// For exits after the blocks `layers`, ascending, in a model of `n_layer`; with a screen at the final norm or without.
    /// `always` makes every check, whatever it costs.
    pub(crate) fn new(n_layer: u32, layers: &[u32], has_screen: bool, kv: KvCost, always: bool) -> Self {
        let exit = |&layer| Exit { layer, check: Check::default(), kv: Cost::default() };
        Self {
            n_layer,
            kv,
            exits: layers.iter().map(exit).collect(),
            screen: has_screen.then(Check::default),
            layer: Cost::default(),
            matrix: Cost::default(),
            pending: Cost::default(),
            account: Account::default(),
            n_measured: 0,
            always,
        }
    }

    /// From now on, K/V are caught up.
    pub(crate) fn catch_up(&mut self) {
        self.kv = KvCost::Later;
    }

    /// Plans the next token. With `only`, no other exit can be used.
    pub(crate) fn plan(&mut self, only: Option<u32>) -> Plan {
        let is_usable = |exit: &Exit| only.is_none_or(|layer| layer == exit.layer);
        if self.always {
            let exits = (0..).zip(&self.exits).filter(|(_, exit)| is_usable(exit));
            let exits = exits.map(|(i, _)| PlannedExit { exit: i, on_trial: false }).collect();
            return Plan { exits, norm: if self.screen.is_some() { AtNorm::Screen } else { AtNorm::Plain } };
        }
        self.exits.iter_mut().for_each(|exit| exit.check.tick());
        self.screen.iter_mut().for_each(Check::tick);
        if self.n_measured < N_MEASURE {
            return Plan { exits: Vec::new(), norm: AtNorm::Measure };
        }
        let token = self.token();
        let worth = |check: &Check| !check.is_resting() && self.account.covers(check.cost(), token);
        let exits = (0..).zip(&self.exits).filter(|(_, exit)| is_usable(exit) && worth(&exit.check));
        let exits = exits.map(|(i, exit)| PlannedExit { exit: i, on_trial: !exit.check.is_on() }).collect();
        let screened = self.screen.as_ref().is_some_and(worth);
        Plan { exits, norm: if screened { AtNorm::Screen } else { AtNorm::Plain } }
    }

    /// True if the screen stands for the output matrix at present.
    pub(crate) fn screens(&self) -> bool {
        let is_used = |screen: &Check| self.always || self.n_measured >= N_MEASURE && !screen.is_resting();
        self.screen.as_ref().is_some_and(is_used)
    }

    /// Seconds that it takes to catch up on `n_tokens` from after block `layer`.
    pub(crate) fn owed(&self, n_tokens: usize, layer: u32) -> f64 {
        n_tokens as f64 * f64::from(self.n_layer.saturating_sub(1 + layer)) * self.pending.mean()
    }

    /// Learns from a token that was decoded as planned.
    pub(crate) fn learn(&mut self, seen: &Seen) {
        if seen.n_layers > 0 {
            self.layer.add(seen.layers / f64::from(seen.n_layers));
        }
        if let Some(seconds) = seen.matrix {
            self.matrix.add(seconds);
            self.n_measured = self.n_measured.saturating_add(1);
        }
        if let Some((batch, seconds)) = seen.caught_up.filter(|(batch, _)| batch.n_tokens > 0) {
            let own = f64::from(batch.n_layers) * self.layer.mean();
            let others = (seconds - own).max(0.0);
            self.pending.add(others / f64::from(batch.n_tokens) / f64::from(batch.n_layers.max(1)));
        }
        let token = self.token();
        self.account.earn();
        let savings = self.savings();
        for reached in &seen.exits {
            let (Some(exit), Some(&saving)) = (self.exits.get_mut(reached.exit), savings.get(reached.exit)) else {
                continue;
            };
            if let Some(seconds) = seen.kv.filter(|_| reached.left) {
                exit.kv.add(seconds);
            }
            let seconds = exit.check.learn(reached.seconds, reached.left, saving, token);
            self.account.book(seconds, if reached.left { saving } else { 0.0 }, token);
        }
        if let (Some(screen), Some((seconds, confident))) = (&mut self.screen, seen.screen) {
            let matrix = self.matrix.mean();
            let seconds = screen.learn(seconds, confident, matrix, token);
            self.account.book(seconds, if confident && seen.matrix.is_none() { matrix } else { 0.0 }, token);
        }
    }

    /// Seconds of a plain token, as far as they are known.
    pub(crate) fn token(&self) -> f64 {
        f64::from(self.n_layer) * self.layer.mean() + self.matrix.mean()
    }

    /// Seconds that a success at each exit saves.
    fn savings(&self) -> Vec<f64> {
        let matrix = self.matrix.mean();
        let mut rest = match &self.screen {
            Some(screen) if screen.is_on() => screen.cost() + (1.0 - screen.success()) * matrix,
            _ => matrix,
        };
        let mut above = self.n_layer.saturating_sub(1);
        let mut savings = Vec::with_capacity(self.exits.len());
        for exit in self.exits.iter().rev() {
            rest += f64::from(above.saturating_sub(exit.layer)) * self.layer.mean();
            above = exit.layer;
            let kv = match self.kv {
                KvCost::AtExit => exit.kv.mean(),
                KvCost::Later => f64::from(self.n_layer.saturating_sub(1 + exit.layer)) * self.pending.mean(),
            };
            savings.push(rest - kv);
            if exit.check.is_on() {
                let success = exit.check.success();
                rest = exit.check.cost() + success * kv + (1.0 - success) * rest;
            }
        }
        savings.reverse();
        savings
    }
}

#[cfg(test)]
mod tests;
