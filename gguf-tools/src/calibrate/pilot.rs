//! Which thresholds are worth a walk: judged on a few prompts that certify nothing.
//!
//! Each threshold of a walk is decoded on hundreds of prompts. A pilot decodes all thresholds on some dozens of others
//! first, and each level then names the laxest threshold that it is likely to pass. The walk is along those alone; which
//! ones they are does not depend on the prompts that certify, so that the sequence is as fixed as before. A pilot that is
//! wrong costs a level its certificate or some speed, never its promise.

use super::bounds::{self, OutOfRange};

/// The most prompts of a pilot.
const MOST: usize = 64;
/// The share of all prompts that it may take.
const SHARE: usize = 8;
/// Of the loss that would just pass, how much a threshold may show in the pilot: its mean is noisy itself.
const MARGIN: f64 = 0.8;

/// How many of `n` prompts are the pilot's.
pub fn size(n: usize) -> usize {
    (n / SHARE).min(MOST)
}

/// The positions, strictest first, of the thresholds to walk along: `risks` are the mean losses of all of them in the pilot,
/// strictest first; `levels` the shares of disagreement to be certified on `n_prompts`. All of them without a pilot.
///
/// # Errors
///
/// [`OutOfRange`] for a level or a delta that is no share.
pub fn thinned(
    risks: Option<&[f64]>,
    n: usize,
    levels: &[f64],
    delta: f64,
    n_prompts: usize,
) -> Result<Vec<usize>, OutOfRange> {
    let Some(risks) = risks else { return Ok((0..n).collect()) };
    let mut positions = Vec::new();
    for &level in levels {
        let passes = largest_passing(level, delta, n_prompts)?;
        if passes > 0.0 {
            // Where none is likely to pass, the strictest may all the same.
            positions.push(risks.iter().rposition(|risk| *risk <= MARGIN * passes).unwrap_or(0));
        }
    }
    positions.sort_unstable();
    positions.dedup();
    Ok(positions)
}

/// The largest loss that certifies `level` on `n` prompts that all have it; 0 where none does.
fn largest_passing(level: f64, delta: f64, n: usize) -> Result<f64, OutOfRange> {
    let passes = |loss: f64| -> Result<bool, OutOfRange> {
        Ok(bounds::betting_p_value(&bounds::Losses::new(vec![loss; n])?, level, delta) <= delta)
    };
    let (mut low, mut high) = (0.0, level);
    if !passes(low)? {
        return Ok(0.0);
    }
    for _ in 0..20 {
        let middle = (low + high) / 2.0;
        if passes(middle)? { low = middle } else { high = middle }
    }
    // At a loss of 0 there is something to pass with.
    Ok(low.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_names_the_laxest_threshold_that_it_is_likely_to_pass() {
        let risks = [0.0005, 0.002, 0.006, 0.02, 0.08];
        let thinned = |levels: &[f64], n| thinned(Some(&risks), 5, levels, 0.05, n).unwrap();
        assert_eq!(thinned(&[0.1, 0.01], 512), [1, 3]);
        // With more prompts, a level can be passed with more of its room used up.
        assert_eq!(thinned(&[0.1, 0.02, 0.01], 2000), [2, 3]);
        // 0.002 cannot be certified on 512 prompts; 0.007 can, but by less loss than the strictest shows.
        assert_eq!(thinned(&[0.002], 512), [0usize; 0]);
        assert_eq!(thinned(&[0.0066], 512), [0]);
        assert_eq!(super::thinned(None, 3, &[0.1], 0.05, 20).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_pilot_takes_an_eighth_of_few_prompts_and_no_more_than_it_needs_of_many() {
        assert_eq!([size(7), size(80), size(576), size(5000)], [0, 10, 64, 64]);
    }
}
