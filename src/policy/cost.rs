//! A running mean of one cost, in seconds.

/// Weight of a new value among the old ones.
const RATE: f64 = 1.0 / 16.0;

/// A mean that single outliers (another process took the core) cannot move far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Cost {
    mean: f64,
    n: u32,
}

impl Cost {
    pub(super) fn add(&mut self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        self.n = self.n.saturating_add(1);
        let value = if self.n > 1 { value.min(2.0 * self.mean) } else { value };
        self.mean += (value - self.mean) * f64::max(1.0 / f64::from(self.n), RATE);
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
        [1.0, 2.0, 3.0].into_iter().for_each(|value| cost.add(value));
        assert!((cost.mean() - 2.0).abs() < 1e-12);
        for _ in 0..100 {
            cost.add(2.0);
        }
        [1e6, f64::NAN, -1.0].into_iter().for_each(|value| cost.add(value));
        assert!(cost.mean() < 2.2, "{cost:?}");
    }
}
