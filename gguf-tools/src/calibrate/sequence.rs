//! Learn-then-Test along a fixed sequence: which threshold may be used at a wanted level of agreement.
//!
//! The thresholds are fixed before the losses are seen, and walked from strict to lax; the walk ends at the first one
//! that is not certified. Because each test is made only after all stricter ones have passed, no correction for their
//! number is needed (Angelopoulos et al., *Learn then Test*, arXiv 2110.01052, section 3.2): the risk at the threshold
//! that is returned is above the level with a probability of at most delta.
//!
//! It refuses to skip a threshold that failed, however good a laxer one looks.

use super::bounds::{self, Losses, OutOfRange};

/// A threshold that was certified for one level, and what was measured there.
#[derive(Debug, Clone, PartialEq)]
pub struct Certified {
    /// Its position in the sequence.
    pub index: usize,
    /// The prompts that certified it.
    pub n_prompts: usize,
    /// The mean loss.
    pub risk: f64,
    /// The betting bound: with probability `1 - delta` the risk of this one threshold is below it.
    pub bound: f64,
    /// Hoeffding's and Bentkus's bound, for comparison.
    pub reference_bound: f64,
    /// The betting bound's p-value at the level.
    pub p_value: f64,
}

/// The laxest threshold whose risk is at most `level`, with an error of at most `delta`; `None` where not even the
/// strictest passes.
///
/// `losses` gives the losses at the thresholds of a sequence of `n`, strictest first, and is asked for no more of them
/// than the walk needs.
///
/// # Errors
///
/// [`OutOfRange`] for a loss, a level or a delta that is no share.
pub fn certify(
    n: usize,
    mut losses: impl FnMut(usize) -> Vec<f64>,
    level: f64,
    delta: f64,
) -> Result<Option<Certified>, OutOfRange> {
    for (name, found) in [("the level of disagreement", level), ("delta", delta)] {
        if !(found > 0.0 && found < 1.0) {
            return Err(OutOfRange { name, found });
        }
    }
    let mut passed = None;
    for index in 0..n {
        let losses = Losses::new(losses(index))?;
        let p_value = bounds::betting_p_value(&losses, level, delta);
        if p_value > delta {
            break;
        }
        passed = Some((index, p_value, losses));
    }
    Ok(passed.map(|(index, p_value, losses)| Certified {
        index,
        n_prompts: losses.len(),
        risk: losses.mean(),
        bound: bounds::betting_upper_bound(&losses, delta),
        reference_bound: bounds::hoeffding_bentkus_upper_bound(&losses, delta),
        p_value,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000 prompts of which a share loses everything.
    fn table(shares: &[f64]) -> impl FnMut(usize) -> Vec<f64> + '_ {
        // Spread evenly over the prompts: their order must not depend on the losses.
        |index| (0..1000).map(|i| if f64::from(i * 387 % 1000) < 1000.0 * shares[index] { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn the_laxest_threshold_before_the_first_failure_is_taken() {
        let certified = certify(4, table(&[0.0, 0.004, 0.2, 0.0]), 0.02, 0.05).unwrap().unwrap();
        assert_eq!(certified.index, 1);
        assert!(certified.risk <= certified.bound && certified.bound <= 0.02 && certified.p_value <= 0.05);
    }

    #[test]
    fn too_few_prompts_certify_nothing() {
        assert_eq!(certify(1, |_| vec![0.0; 290], 0.01, 0.05).unwrap(), None);
        assert!(certify(1, |_| vec![0.0; 400], 0.01, 0.05).unwrap().is_some());
        assert_eq!(certify(0, |_| Vec::new(), 0.01, 0.05).unwrap(), None);
    }

    #[test]
    fn levels_and_losses_that_are_no_shares_are_refused() {
        assert!(certify(1, |_| vec![0.0], 0.0, 0.05).is_err());
        assert!(certify(1, |_| vec![0.0], 0.1, 1.0).is_err());
        assert!(certify(1, |_| vec![2.0], 0.1, 0.05).is_err());
    }
}
