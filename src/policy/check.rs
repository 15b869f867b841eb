//! Whether one check, at an exit or at the screen, pays.
//!
//! A check costs seconds and, where it succeeds, saves some. It is tried for a few tokens; then it is on as long as
//! `success * saving > cost`. When that fails it rests, is tried again after a while (a shorter one if it did pay before),
//! and rests twice as long after each trial that fails.

use super::cost::Cost;

/// Tokens of a trial: enough to tell a success rate of a third from one of nothing.
const N_TRIAL: u32 = 12;
/// A trial ends early when it has lost as much as this share of a plain token.
const PATIENCE: f64 = 0.5;
/// Tokens of the first rest, and of the longest.
const REST: (u32, u32) = (256, 4096);
/// Tokens of the first rest of a check that was on: what ended its gain may have been another process.
const PAUSE: u32 = 64;
/// Weight of a new success: slow enough that luck alone seldom turns off a check that wins, fast enough that one that has
/// stopped to win costs a few dozen tokens' checks.
const SUCCESS_RATE: f64 = 1.0 / 48.0;
/// What a trial must win, relative to its cost, before the check is used.
const MARGIN: f64 = 0.05;

/// One check, and what is known of it. "A token" is one that reached it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Check {
    cost: Cost,
    success: f64,
    state: State,
    next_rest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Trial { seen: u32, successes: u32, lost: f64 },
    On,
    Resting { left: u32 },
}

const TRIAL: State = State::Trial { seen: 0, successes: 0, lost: 0.0 };

impl Default for Check {
    fn default() -> Self {
        Self { cost: Cost::default(), success: 0.0, state: TRIAL, next_rest: REST.0 }
    }
}

impl Check {
    /// Seconds that it takes, on average.
    pub(super) fn cost(&self) -> f64 {
        self.cost.mean()
    }

    /// Share of the tokens that it lets go.
    pub(super) fn success(&self) -> f64 {
        self.success
    }

    pub(super) fn is_on(&self) -> bool {
        self.state == State::On
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.state, State::Resting { .. })
    }

    /// A token comes by: one less to rest for.
    pub(super) fn tick(&mut self) {
        if let State::Resting { left } = &mut self.state {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.state = TRIAL;
            }
        }
    }

    /// Learns from a token: the check took `seconds`; a success saves `saving`. A plain token takes `token`. Gives the seconds
    /// that count, which are fewer where something else held the check up.
    pub(super) fn learn(&mut self, seconds: f64, succeeded: bool, saving: f64, token: f64) -> f64 {
        let seconds = self.cost.add(seconds);
        match &mut self.state {
            State::Trial { seen, successes, lost } => {
                *seen += 1;
                *successes += u32::from(succeeded);
                *lost += seconds - if succeeded { saving } else { 0.0 };
                if *seen >= N_TRIAL || *lost > PATIENCE * token {
                    self.success = f64::from(*successes) / f64::from(*seen);
                    if self.gain(saving) > MARGIN * self.cost.mean() { self.start() } else { self.rest() }
                }
            }
            State::On => {
                self.success += (f64::from(u8::from(succeeded)) - self.success) * SUCCESS_RATE;
                if self.gain(saving) < 0.0 {
                    self.rest();
                }
            }
            State::Resting { .. } => {}
        }
        seconds
    }

    /// Seconds that a check saves, on average.
    fn gain(&self, saving: f64) -> f64 {
        self.success * saving - self.cost.mean()
    }

    fn start(&mut self) {
        self.state = State::On;
        self.next_rest = PAUSE;
    }

    fn rest(&mut self) {
        self.state = State::Resting { left: self.next_rest };
        self.next_rest = (self.next_rest * 2).min(REST.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_pays_is_on_after_its_trial_and_off_when_it_stops_to() {
        let mut check = Check::default();
        (0..N_TRIAL).for_each(|i| {
            check.learn(0.1, i % 2 == 0, 1.0, 8.0);
        });
        assert!(check.is_on());
        let left = (0..1000).take_while(|_| {
            check.learn(0.1, false, 1.0, 8.0);
            check.is_on()
        });
        assert!(left.count() < 100);
    }

    #[test]
    fn rests_become_longer_and_end() {
        let mut check = Check::default();
        let mut rests = Vec::new();
        for _ in 0..3 {
            while !check.is_resting() {
                check.learn(1.0, false, 1.0, 8.0);
            }
            let mut n = 0;
            while check.is_resting() {
                check.tick();
                n += 1;
            }
            rests.push(n);
        }
        assert_eq!(rests, [256, 512, 1024]);
    }
}
