//! Whether it pays to guess, before the output matrix is computed, which of a batch's tokens will have their distributions asked for.
//!
//! A guess takes a screen for each token up to the first wrong draft, and spares the matrix the rows after it. What a row more
//! costs is the slope of the matrix's time over its rows: all of it where arithmetic is the limit, next to nothing where the
//! weights' bytes are, as on a GPU.

use super::super::cost::Cost;

/// Weight of the newest batch.
const RATE: f64 = 1.0 / 16.0;
/// How much of what screens took is forgotten with each batch without one: the first, or one that was held up, tells little.
const FADE: f64 = 1.0 / 64.0;
/// Batches' worth of belief in a matrix whose time is proportional to its rows, in squared rows.
const PRIOR: f64 = 1.0;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Rows {
    /// Means of the rows that were computed and the seconds they took, and of their products about these means.
    rows: f64,
    seconds: f64,
    variance: f64,
    covariance: f64,
    n: u32,
    /// Seconds of the screens of a batch.
    screens: Cost,
    /// Rows of a batch that nobody asks for.
    unwanted: f64,
    n_batches: u32,
}

impl Rows {
    /// True if guesses pay, as far as is known.
    pub(super) fn pay(&self) -> bool {
        self.unwanted * self.a_row() >= self.screens.mean() || self.n_batches == 0
    }

    /// Seconds that a row more costs.
    fn a_row(&self) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        let proportional = self.seconds / self.rows;
        ((self.covariance + PRIOR * proportional) / (self.variance + PRIOR)).max(0.0)
    }

    /// The matrix took `seconds` for `n_rows`, and the guess `screens` before, if there was one.
    pub(super) fn learn(&mut self, n_rows: usize, seconds: f64, screens: Option<f64>) {
        match screens {
            Some(screens) => {
                self.screens.add(screens);
            }
            None => self.screens.fade(0.0, FADE),
        }
        if n_rows == 0 || !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        self.n = self.n.saturating_add(1);
        let rate = f64::max(1.0 / f64::from(self.n), RATE);
        let (rows, seconds) = (n_rows as f64 - self.rows, seconds - self.seconds);
        self.rows += rate * rows;
        self.seconds += rate * seconds;
        let keep = 1.0 - rate;
        self.variance = keep * (self.variance + rate * rows * rows);
        self.covariance = keep * (self.covariance + rate * rows * seconds);
    }

    /// Of `n_drafted` drafts, `n_right` were right.
    pub(super) fn learn_right(&mut self, n_drafted: usize, n_right: usize) {
        self.n_batches = self.n_batches.saturating_add(1);
        let rate = f64::max(1.0 / f64::from(self.n_batches), RATE);
        self.unwanted += rate * (n_drafted.saturating_sub(n_right) as f64 - self.unwanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred batches of three drafts, of which so many in turn are right: a matrix of `fixed` and so much `a_row`.
    fn after(right: &[usize], fixed: f64, a_row: f64, a_screen: f64) -> Rows {
        let mut rows = Rows::default();
        for i in 0..100 {
            let n_right = right[i % right.len()];
            let guesses = rows.pay();
            let n_rows = if guesses { n_right + 1 } else { 4 };
            let screens = guesses.then_some(a_screen * n_rows.min(3) as f64);
            rows.learn(n_rows, fixed + a_row * n_rows as f64, screens);
            rows.learn_right(3, n_right);
        }
        rows
    }

    #[test]
    fn guesses_pay_where_each_row_costs_and_drafts_fail() {
        let rows = after(&[0, 1, 3, 2], 1.0, 13.0, 0.4);
        assert!(rows.pay(), "{rows:?}");
        assert!((12.0..14.0).contains(&rows.a_row()), "{rows:?}");
    }

    #[test]
    fn guesses_do_not_pay_where_the_weights_are_the_limit_or_drafts_are_right() {
        let rows = after(&[0, 1, 3, 2], 2.0, 0.02, 0.4);
        assert!(!rows.pay(), "{rows:?}");
        let rows = after(&[3], 0.0, 1.5, 0.3);
        assert!(!rows.pay(), "{rows:?}");
    }

    #[test]
    fn a_text_whose_drafts_begin_to_fail_makes_guesses_pay_again() {
        let mut rows = after(&[3], 0.0, 13.0, 0.4);
        assert!(!rows.pay());
        (0..4).for_each(|_| rows.learn_right(3, 0));
        assert!(rows.pay(), "{rows:?}");
    }

    #[test]
    fn screens_that_were_slow_once_are_tried_again() {
        let mut rows = Rows::default();
        rows.learn(1, 13.0, Some(200.0));
        rows.learn_right(3, 0);
        assert!(!rows.pay());
        let n = (0..1000).take_while(|_| {
            rows.learn(4, 52.0, None);
            rows.learn_right(3, 0);
            !rows.pay()
        });
        assert!((10..200).contains(&n.count()), "{rows:?}");
    }

    #[test]
    fn times_that_are_none_change_nothing() {
        let mut rows = after(&[0, 1], 1.0, 13.0, 0.4);
        let before = rows.clone();
        rows.learn(4, f64::NAN, Some(f64::NAN));
        rows.learn(4, -1.0, None);
        assert_eq!(rows.a_row(), before.a_row());
    }
}
