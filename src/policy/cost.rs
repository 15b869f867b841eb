//! A running mean of one cost, in seconds.

/// Weight of a new value among the old ones.
const RATE: f64 = 1.0 / 16.0;

/// How fast the highest value is forgotten: slowly enough that a check whose gate asks for the head at one token in ten is
/// known to cost that much.
const FORGET: f64 = 1.0 / 64.0;

/// A mean that single outliers (another process took the core) cannot move far: a value counts as twice the highest
/// before it at most.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Cost {
    mean: f64,
    highest: f64,
    n: u32,
}

impl Cost {
    /// Adds a value, and gives what it counts as: seconds that are none count as the mean.
    pub(super) fn add(&mut self, value: f64) -> f64 {
        if !value.is_finite() || value < 0.0 {
            return self.mean;
        }
        self.n = self.n.saturating_add(1);
        let value = if self.n > 1 { value.min(2.0 * self.highest) } else { value };
        self.highest = value.max(self.highest - (self.highest - value) * FORGET);
        self.mean += (value - self.mean) * f64::max(1.0 / f64::from(self.n), RATE);
        value
    }

    /// Moves the mean towards `guess` by this share: what was measured may not be so any more. How high a value may be is not
    /// forgotten.
    pub(super) fn fade(&mut self, guess: f64, share: f64) {
        self.mean += (guess - self.mean) * share;
    }

    /// Seconds; 0 as long as nothing was seen.
    pub(super) fn mean(&self) -> f64 {
        self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_values_are_averaged_and_outliers_are_cut() {
        let mut cost = Cost::default();
        assert_eq!([1.0, 2.0, 3.0].map(|value| cost.add(value)), [1.0, 2.0, 3.0]);
        assert!((cost.mean() - 2.0).abs() < 1e-12);
        for _ in 0..100 {
            cost.add(2.0);
        }
        let counted = [1e6, f64::NAN, -1.0].map(|value| cost.add(value));
        assert!(counted.iter().all(|value| *value < 5.0) && cost.mean() < 2.3, "{cost:?}, {counted:?}");
    }

    #[test]
    fn what_costs_much_now_and_then_is_no_outlier() {
        let mut cost = Cost::default();
        (0..2000).for_each(|i| {
            cost.add(if i % 10 == 9 { 20.0 } else { 1.0 });
        });
        // The last value was a dear one, of which a running mean makes much.
        assert!((2.0..4.5).contains(&cost.mean()), "{cost:?}");
    }
}
