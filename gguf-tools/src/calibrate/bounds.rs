//! How sure a sample of losses makes us that the risk is small.
//!
//! Each bound comes as a p-value of the hypothesis "the risk is above `level`" and as the upper bound that inverts it.
//! All hold for every sample size and every distribution of losses in [0, 1]; none assumes that a mean is normal.
//!
//! - [`betting_p_value`]: Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting*,
//!   arXiv 2010.09686, with the stakes of Bates et al., *Distribution-free, risk-controlling prediction sets*, arXiv
//!   2101.02703, proposition 5. It adapts to a small variance, which losses of good exits have.
//! - [`hoeffding_bentkus_p_value`]: the reference beside it, from the same paper and from Angelopoulos et al., *Learn
//!   then Test*, arXiv 2110.01052.
//! - [`binomial_p_value`]: exact, where a loss is either 0 or 1.
//!
//! At risk 0 no bound certifies a level `a` with fewer than `ln(delta) / ln(1 - a)` prompts ([`least_prompts`]).

/// A loss outside [0, 1], or a level or delta outside (0, 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutOfRange {
    /// What it is.
    pub name: &'static str,
    /// Its value.
    pub found: f64,
}

impl std::fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}; it must be a share between 0 and 1", self.name, self.found)
    }
}

impl std::error::Error for OutOfRange {}

/// Losses that were checked, in the order in which they are bet on.
#[derive(Debug, Clone, PartialEq)]
pub struct Losses {
    losses: Vec<f64>,
    /// How many there were to be, which the stakes are made for.
    n_planned: usize,
}

impl Losses {
    /// # Errors
    ///
    /// [`OutOfRange`] for the first loss that is no share.
    pub fn new(losses: Vec<f64>) -> Result<Losses, OutOfRange> {
        let n_planned = losses.len();
        Losses::of_planned(losses, n_planned)
    }

    /// The first losses of a sample that was planned to have `n_planned`. The betting bound holds whenever one stops,
    /// also because of what the losses say: its capital is a supermartingale, and its stakes know the plan and the past.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] for the first loss that is no share.
    pub fn of_planned(losses: Vec<f64>, n_planned: usize) -> Result<Losses, OutOfRange> {
        match losses.iter().find(|loss| !(0.0..=1.0).contains(*loss)) {
            Some(&found) => Err(OutOfRange { name: "a loss", found }),
            None => Ok(Losses { losses, n_planned }),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.losses.len()
    }

    /// Whether there are none, which certifies nothing.
    pub fn is_empty(&self) -> bool {
        self.losses.is_empty()
    }

    /// Their mean, the empirical risk; 0 where there are none.
    pub fn mean(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }

    /// How many are not 0.
    pub fn n_positive(&self) -> usize {
        self.losses.iter().filter(|loss| **loss > 0.0).count()
    }
}

/// The stakes of the betting bound: predictable, never above 1, larger where the losses so far vary little.
fn stakes(losses: &Losses, delta: f64) -> Vec<f64> {
    let n = losses.n_planned.max(1) as f64;
    let (mut sum, mut spread) = (0.5, 0.25);
    let mut variance = 0.25;
    let mut stakes = Vec::with_capacity(losses.len());
    for (i, loss) in losses.losses.iter().enumerate() {
        stakes.push((2.0 * (1.0 / delta).ln() / (n * variance)).sqrt().min(1.0));
        let seen = i as f64 + 2.0;
        sum += loss;
        spread += (loss - sum / seen).powi(2);
        variance = spread / seen;
    }
    stakes
}

/// The logarithm of the largest capital that betting against "the risk is above `level`" ever reached.
fn log_capital(losses: &Losses, stakes: &[f64], level: f64) -> f64 {
    let (mut capital, mut largest) = (0.0f64, 0.0f64);
    for (loss, stake) in losses.losses.iter().zip(stakes) {
        capital += (1.0 - stake * (loss - level)).ln();
        largest = largest.max(capital);
    }
    largest
}

/// The betting bound's p-value of "the risk is above `level`"; the stakes are those for an error of `delta`.
pub fn betting_p_value(losses: &Losses, level: f64, delta: f64) -> f64 {
    (-log_capital(losses, &stakes(losses, delta), level)).exp().min(1.0)
}

/// The betting bound: the risk is below it with probability `1 - delta`.
pub fn betting_upper_bound(losses: &Losses, delta: f64) -> f64 {
    let stakes = stakes(losses, delta);
    least_level(|level| log_capital(losses, &stakes, level) >= (1.0 / delta).ln())
}

/// Hoeffding's and Bentkus's p-value of "the risk is above `level`".
pub fn hoeffding_bentkus_p_value(losses: &Losses, level: f64) -> f64 {
    let n = losses.len() as f64;
    let mean = losses.mean();
    if losses.is_empty() || mean >= level {
        return 1.0;
    }
    let relative_entropy = |p: f64, q: f64| {
        let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
        term(p, q) + term(1.0 - p, 1.0 - q)
    };
    let hoeffding = (-n * relative_entropy(mean, level)).exp();
    // The mean of shares is rarely an exact multiple of 1/n: what rounding left above one must not count as a whole.
    let successes = (n * mean - 1e-9).ceil().max(0.0) as usize;
    let bentkus = std::f64::consts::E * binomial_p_value(successes, losses.len(), level);
    hoeffding.min(bentkus).min(1.0)
}

/// The upper bound that inverts [`hoeffding_bentkus_p_value`].
pub fn hoeffding_bentkus_upper_bound(losses: &Losses, delta: f64) -> f64 {
    least_level(|level| hoeffding_bentkus_p_value(losses, level) <= delta)
}

/// The exact p-value of "the probability of a failure is above `level`": that of `failures` or fewer among `n`.
pub fn binomial_p_value(failures: usize, n: usize, level: f64) -> f64 {
    if failures >= n || level <= 0.0 {
        return 1.0;
    }
    if level >= 1.0 {
        return 0.0;
    }
    let odds = (level / (1.0 - level)).ln();
    let mut log_term = n as f64 * (-level).ln_1p();
    let mut log_sum = log_term;
    for k in 1..=failures {
        log_term += ((n - k + 1) as f64 / k as f64).ln() + odds;
        let (high, low) = if log_sum > log_term { (log_sum, log_term) } else { (log_term, log_sum) };
        log_sum = high + (low - high).exp().ln_1p();
    }
    log_sum.exp().min(1.0)
}

/// The exact upper bound on the probability of a failure (Clopper and Pearson), below which it is with probability
/// `1 - delta`.
pub fn binomial_upper_bound(failures: usize, n: usize, delta: f64) -> f64 {
    least_level(|level| binomial_p_value(failures, n, level) <= delta)
}

/// The fewest prompts with which any bound can certify a risk of at most `level`: those that need to be free of loss.
pub fn least_prompts(level: f64, delta: f64) -> usize {
    (delta.ln() / (-level).ln_1p()).ceil() as usize
}

/// The least level that is rejected, where all larger ones are; 1 where none is.
fn least_level(is_rejected: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > 1e-9 {
        let middle = 0.5 * (low + high);
        if is_rejected(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(values: &[f64]) -> Losses {
        Losses::new(values.to_vec()).unwrap()
    }

    #[test]
    fn losses_that_are_no_shares_are_refused() {
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(Losses::new(vec![0.0, bad]).is_err());
        }
    }

    #[test]
    fn the_exact_binomial_has_its_known_values() {
        // 0 of 299 is the least sample that certifies 1 % at 95 %; the rule of three gives about 3/n.
        assert!(binomial_p_value(0, 299, 0.01) <= 0.05 && binomial_p_value(0, 298, 0.01) > 0.05);
        assert_eq!(least_prompts(0.01, 0.05), 299);
        assert_eq!(least_prompts(0.001, 0.05), 2995);
        // Clopper and Pearson, one-sided 95 %: 1 of 10 -> 0.3942, 2 of 20 -> 0.2826, 0 of 100 -> 0.02951.
        assert!((binomial_upper_bound(1, 10, 0.05) - 0.394_16).abs() < 1e-4);
        assert!((binomial_upper_bound(2, 20, 0.05) - 0.282_62).abs() < 1e-4);
        assert!((binomial_upper_bound(0, 100, 0.05) - 0.029_513).abs() < 1e-5);
        assert!((binomial_p_value(3, 10, 0.5) - 176.0 / 1024.0).abs() < 1e-12);
        assert_eq!(binomial_p_value(10, 10, 0.5), 1.0);
    }

    #[test]
    fn hoeffding_and_bentkus_have_their_known_values() {
        let all_zero = losses(&[0.0; 100]);
        // Without any loss Hoeffding's half is (1 - a)^n, and Bentkus's is e times that.
        assert!((hoeffding_bentkus_p_value(&all_zero, 0.05) - 0.95f64.powi(100)).abs() < 1e-12);
        let bound = hoeffding_bentkus_upper_bound(&all_zero, 0.05);
        assert!((bound - (1.0 - 0.05f64.powf(0.01))).abs() < 1e-6, "{bound}");
        // 20 losses of 1 among 100 at level 0.3: relative entropy 0.025732, Bentkus e * P(B(100, 0.3) <= 20).
        let mut mixed = vec![0.0; 80];
        mixed.extend([1.0; 20]);
        let expected = (-100.0 * (0.2 * (2.0f64 / 3.0).ln() + 0.8 * (8.0f64 / 7.0).ln())).exp();
        let bentkus = std::f64::consts::E * binomial_p_value(20, 100, 0.3);
        assert!((hoeffding_bentkus_p_value(&losses(&mixed), 0.3) - expected.min(bentkus)).abs() < 1e-12);
    }

    #[test]
    fn without_a_loss_the_betting_bound_is_near_the_best_possible() {
        let all_zero = losses(&[0.0; 512]);
        let bound = betting_upper_bound(&all_zero, 0.05);
        let best = 1.0 - 0.05f64.powf(1.0 / 512.0);
        assert!(bound > best && bound < 1.15 * best, "{bound} against {best}");
        assert!((betting_p_value(&all_zero, bound, 0.05) - 0.05).abs() < 1e-6);
    }

    #[test]
    fn small_variance_is_what_betting_profits_from() {
        // Every prompt loses 2 %: the mean is certain, but Hoeffding and Bentkus cannot see that.
        let constant = losses(&[0.02; 500]);
        assert!(betting_upper_bound(&constant, 0.05) < 0.8 * hoeffding_bentkus_upper_bound(&constant, 0.05));
    }

    #[test]
    fn a_risk_at_or_above_the_level_is_never_rejected_by_its_mean() {
        let half = losses(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(hoeffding_bentkus_p_value(&half, 0.5), 1.0);
        assert!(betting_p_value(&half, 0.3, 0.05) > 0.2);
        assert_eq!(betting_p_value(&losses(&[]), 0.01, 0.05), 1.0);
        assert_eq!(betting_upper_bound(&losses(&[]), 0.05), 1.0);
    }
}
