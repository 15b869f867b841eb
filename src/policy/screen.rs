//! Whether the screen pays for the next token.
//!
//! Evaluating it costs `screen` and saves `matrix` on the share of tokens it is confident about. First the policy lets a
//! few tokens run through both, to learn the two costs; then it evaluates as long as `success * matrix > screen`. When
//! that fails it rests, tries a few tokens again after a while, and rests twice as long after each trial that fails.

/// Tokens at the start that run through the matrix even if the screen is confident, so that its cost is known.
const N_MEASURE: u32 = 2;
/// Tokens of a trial: enough to tell a success rate of a third from one of nothing.
const N_TRIAL: u32 = 12;
/// Tokens of the first rest, and of the longest.
const REST: (u32, u32) = (256, 4096);
/// Weight of a new cost among the old ones.
const COST_RATE: f64 = 1.0 / 16.0;
/// Weight of a new success: slow enough that luck alone seldom turns off a screen that wins, fast enough that one that
/// has stopped to win costs a few dozen tokens' screens.
const SUCCESS_RATE: f64 = 1.0 / 48.0;
/// What a trial must win, relative to the screen's cost, before the screen is used again.
const MARGIN: f64 = 1.05;

/// What to do with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Decode it plainly.
    Plain,
    /// Evaluate the screen; exit where it is confident.
    Screen,
    /// Evaluate the screen, then the matrix in any case.
    Measure,
}

/// What a token that was screened cost, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Seen {
    pub(crate) screen: f64,
    /// The output matrix, where it was computed.
    pub(crate) matrix: Option<f64>,
    pub(crate) confident: bool,
}

/// Learns from what is seen, and plans the next token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScreenPolicy {
    screen: Cost,
    matrix: Cost,
    success: f64,
    state: State,
    n_measured: u32,
    next_rest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Trial { seen: u32, confident: u32 },
    On,
    Resting { left: u32 },
}

impl Default for ScreenPolicy {
    fn default() -> Self {
        Self {
            screen: Cost::default(),
            matrix: Cost::default(),
            success: 0.0,
            state: State::Trial { seen: 0, confident: 0 },
            n_measured: 0,
            next_rest: REST.0,
        }
    }
}

impl ScreenPolicy {
    /// Plans the next token.
    pub(crate) fn plan(&mut self) -> Plan {
        if let State::Resting { left } = &mut self.state {
            if *left > 0 {
                *left -= 1;
                return Plan::Plain;
            }
            self.state = State::Trial { seen: 0, confident: 0 };
        }
        if self.n_measured < N_MEASURE { Plan::Measure } else { Plan::Screen }
    }

    /// Learns from a token that was screened.
    pub(crate) fn learn(&mut self, seen: Seen) {
        self.screen.add(seen.screen);
        if let Some(matrix) = seen.matrix {
            self.matrix.add(matrix);
            self.n_measured = self.n_measured.saturating_add(1);
        }
        match &mut self.state {
            State::Trial { seen: n, confident } => {
                *n += 1;
                *confident += u32::from(seen.confident);
                if *n >= N_TRIAL {
                    self.success = f64::from(*confident) / f64::from(*n);
                    if self.gain() > (MARGIN - 1.0) * self.screen.mean { self.start() } else { self.rest() }
                }
            }
            State::On => {
                self.success += (f64::from(u8::from(seen.confident)) - self.success) * SUCCESS_RATE;
                if self.gain() < 0.0 {
                    self.rest();
                }
            }
            State::Resting { .. } => {}
        }
    }

    /// Seconds that evaluating the screen saves a token, on average.
    fn gain(&self) -> f64 {
        self.success * self.matrix.mean - self.screen.mean
    }

    fn start(&mut self) {
        self.state = State::On;
        self.next_rest = REST.0;
    }

    fn rest(&mut self) {
        self.state = State::Resting { left: self.next_rest };
        self.next_rest = (self.next_rest * 2).min(REST.1);
    }
}

/// A running mean that single outliers (another process took the core) cannot move far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Cost {
    mean: f64,
    n: u32,
}

impl Cost {
    fn add(&mut self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        self.n = self.n.saturating_add(1);
        let value = if self.n > 1 { value.min(2.0 * self.mean) } else { value };
        self.mean += (value - self.mean) * f64::max(1.0 / f64::from(self.n), COST_RATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct World {
        layers: f64,
        screen: f64,
        matrix: f64,
    }

    /// Seconds of `outcomes.len()` tokens under the policy; `outcomes` says where the screen would be confident.
    fn decode(world: &World, outcomes: impl Iterator<Item = bool>) -> f64 {
        let mut policy = ScreenPolicy::default();
        outcomes
            .map(|confident| {
                let plan = policy.plan();
                if plan == Plan::Plain {
                    return world.layers + world.matrix;
                }
                let matrix = (plan == Plan::Measure || !confident).then_some(world.matrix);
                policy.learn(Seen { screen: world.screen, matrix, confident });
                world.layers + world.screen + matrix.unwrap_or(0.0)
            })
            .sum()
    }

    fn plain(world: &World, n: usize) -> f64 {
        n as f64 * (world.layers + world.matrix)
    }

    #[test]
    fn a_perfect_screen_is_used_from_the_third_token_on() {
        let world = World { layers: 6.0, screen: 0.5, matrix: 2.0 };
        let best = 100.0 * 6.5 + 2.0 * 2.0;
        assert!((decode(&world, std::iter::repeat_n(true, 100)) - best).abs() < 1e-9);
    }

    #[test]
    fn a_screen_that_always_fails_costs_at_most_two_percent() {
        let world = World { layers: 6.0, screen: 0.5, matrix: 2.0 };
        for n in [128, 1000, 20_000] {
            let cost = decode(&world, std::iter::repeat_n(false, n));
            assert!(cost <= 1.02 * plain(&world, n), "{n} tokens: {cost}");
        }
    }

    #[test]
    fn a_screen_dearer_than_the_matrix_is_dropped_even_if_it_never_fails() {
        let world = World { layers: 6.0, screen: 2.5, matrix: 2.0 };
        let cost = decode(&world, std::iter::repeat_n(true, 10_000));
        assert!(cost <= 1.02 * plain(&world, 10_000));
    }

    #[test]
    fn a_text_that_turns_easy_is_found_again() {
        let world = World { layers: 6.0, screen: 0.5, matrix: 2.0 };
        let hard_then_easy = (0..4000).map(|i| i >= 1000);
        assert!(decode(&world, hard_then_easy) < 0.9 * plain(&world, 4000));
    }

    #[test]
    fn a_single_outlier_does_not_turn_the_screen_off() {
        let mut policy = ScreenPolicy::default();
        for i in 0..200 {
            let plan = policy.plan();
            assert_ne!(plan, Plan::Plain, "token {i}");
            let screen = if i == 100 { 500.0 } else { 0.5 };
            policy.learn(Seen { screen, matrix: (plan == Plan::Measure).then_some(2.0), confident: true });
        }
    }

    proptest! {
        #[test]
        fn a_random_screen_never_loses_much(
            rate in 0.0f64..1.0,
            screen in 0.05f64..1.0,
            matrix in 0.5f64..4.0,
            seed in proptest::array::uniform32(any::<u8>()),
        ) {
            use proptest::test_runner::{RngAlgorithm, TestRng};
            let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
            let world = World { layers: 6.0, screen, matrix };
            let outcomes: Vec<bool> = (0..4000).map(|_| rand_unit(&mut rng) < rate).collect();
            let cost = decode(&world, outcomes.into_iter());
            prop_assert!(cost <= 1.02 * plain(&world, 4000), "{cost} against {}", plain(&world, 4000));
            // Nor does it leave much of a gain behind, though an unlucky trial makes it rest.
            let always = 4000.0 * (6.0 + screen + (1.0 - rate) * matrix);
            if rate * matrix > 2.0 * screen {
                prop_assert!(cost <= always + 0.03 * plain(&world, 4000), "{cost} against {always}");
            }
        }
    }

    fn rand_unit(rng: &mut proptest::test_runner::TestRng) -> f64 {
        use proptest::prelude::Rng as _;
        f64::from(rng.next_u32()) / f64::from(u32::MAX)
    }
}
