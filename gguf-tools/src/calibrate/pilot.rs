//! Which thresholds are worth a walk: judged on a few prompts that certify nothing.
//!
//! Each threshold of a walk is decoded on hundreds of prompts. A pilot finds for each level the laxest threshold that it
//! is likely to pass, by bisection, since laxer thresholds err more; the walk is along those alone. Which ones they are
//! does not depend on the prompts that certify, so that the sequence is as fixed as before. A pilot that is wrong costs a
//! level its certificate or some speed, never its promise.

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

/// The search of one pilot.
#[derive(Debug, Clone)]
pub struct Pilot {
    /// Prompts that a threshold is looked at on, at most.
    n_prompts: usize,
    levels: Vec<Level>,
}

/// What is known for one level: thresholds before `passing` are likely to pass, those from `failing` on are not.
#[derive(Debug, Clone)]
struct Level {
    /// The largest mean loss at which a threshold is likely to pass.
    limit: f64,
    passing: usize,
    failing: usize,
}

/// What the losses at a threshold say for one level.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Passes,
    Fails,
    Open,
}

impl Pilot {
    /// Of `n` thresholds, strictest first, for `levels` of disagreement that are to be certified on `n_walk` prompts, by
    /// the losses on `n_prompts` others. Levels that so many prompts cannot certify take no part.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] for a level or a delta that is no share.
    pub fn new(n: usize, levels: &[f64], delta: f64, n_walk: usize, n_prompts: usize) -> Result<Pilot, OutOfRange> {
        let mut known = Vec::new();
        for &level in levels {
            let passes = largest_passing(level, delta, n_walk)?;
            if passes > 0.0 {
                known.push(Level { limit: MARGIN * passes, passing: 0, failing: n });
            }
        }
        Ok(Pilot { n_prompts, levels: known })
    }

    /// The position of the threshold to look at next; `None` once each level has found its own.
    pub fn next(&self) -> Option<usize> {
        let widest = self.levels.iter().max_by_key(|level| level.failing - level.passing)?;
        (widest.passing < widest.failing).then(|| usize::midpoint(widest.passing, widest.failing - 1))
    }

    /// Whether the threshold at `position` wants another prompt, where `losses` are those of the first.
    pub fn needs_more(&self, position: usize, losses: &[f64]) -> bool {
        let is_open = |level: &Level| level.asks(position) && self.verdict(level, losses) == Verdict::Open;
        losses.len() < self.n_prompts && self.levels.iter().any(is_open)
    }

    /// Concludes the threshold at `position`.
    pub fn conclude(&mut self, position: usize, losses: &[f64]) {
        let verdicts: Vec<Verdict> = self.levels.iter().map(|level| self.verdict(level, losses)).collect();
        for (level, verdict) in self.levels.iter_mut().zip(verdicts) {
            match verdict {
                Verdict::Passes => level.passing = level.passing.max(position + 1).min(level.failing),
                _ => level.failing = level.failing.min(position).max(level.passing),
            }
        }
    }

    /// The positions to walk along, strictest first: each level's laxest threshold that is likely to pass. Where none
    /// is, the strictest may all the same. The strictest of these has none to fall back on where the pilot was wrong, which
    /// a few errors more or less in 64 prompts decide at a level of 0.99: the next stricter one comes before it.
    pub fn named(&self) -> Vec<usize> {
        let mut positions: Vec<usize> = self.levels.iter().map(|level| level.passing.saturating_sub(1)).collect();
        positions.sort_unstable();
        positions.dedup();
        if let Some(stricter) = positions.first().and_then(|first| first.checked_sub(1)) {
            positions.insert(0, stricter);
        }
        positions
    }

    /// A threshold fails as soon as no losses to come could mend it, and passes early where half of the prompts show less
    /// than half of what they may.
    fn verdict(&self, level: &Level, losses: &[f64]) -> Verdict {
        let (seen, sum) = (losses.len(), losses.iter().sum::<f64>());
        if sum > level.limit * self.n_prompts as f64 {
            return Verdict::Fails;
        }
        let is_clear = 2 * seen >= self.n_prompts && 2.0 * sum <= level.limit * seen as f64;
        if is_clear || seen >= self.n_prompts { Verdict::Passes } else { Verdict::Open }
    }
}

impl Level {
    /// Whether it is not known yet what a threshold means for it.
    fn asks(&self, position: usize) -> bool {
        (self.passing..self.failing).contains(&position)
    }
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

    const RISKS: [f64; 7] = [0.0002, 0.0005, 0.002, 0.006, 0.02, 0.05, 0.08];

    /// What a pilot of 64 prompts with even losses names for `levels`, and how many it decoded.
    fn pilot(levels: &[f64], n_walk: usize) -> (Vec<usize>, usize) {
        let mut pilot = Pilot::new(RISKS.len(), levels, 0.05, n_walk, 64).unwrap();
        let mut n_decoded = 0;
        let mut looked_at = Vec::new();
        while let Some(position) = pilot.next() {
            assert!(!looked_at.contains(&position), "no threshold is looked at twice");
            looked_at.push(position);
            let mut losses = Vec::new();
            while pilot.needs_more(position, &losses) {
                losses.push(RISKS[position]);
            }
            n_decoded += losses.len();
            pilot.conclude(position, &losses);
        }
        (pilot.named(), n_decoded)
    }

    #[test]
    fn each_level_names_the_laxest_threshold_that_it_is_likely_to_pass() {
        assert_eq!(pilot(&[0.1, 0.01], 512).0, [1, 2, 5], "and one to fall back on");
        // With more prompts, a level can be passed with more of its room used up.
        assert_eq!(pilot(&[0.1, 0.02, 0.01], 2000).0, [2, 3, 5]);
        // 0.002 cannot be certified on 512 prompts; 0.0072 can, but by less loss than most show.
        assert_eq!(pilot(&[0.002], 512), (vec![], 0));
        assert_eq!(pilot(&[0.0072], 512).0, [0, 1]);
        assert_eq!(pilot(&[0.0063], 512).0, [0], "the strictest is tried where none is likely to pass");
    }

    #[test]
    fn bisection_and_early_ends_spare_decodes() {
        let (named, n_decoded) = pilot(&[0.1, 0.05, 0.02, 0.01], 512);
        assert_eq!(named, [1, 2, 3, 4, 5]);
        assert!(10 * n_decoded < 8 * 7 * 64, "{n_decoded} decodes where all levels end at neighbours");
        let (named, n_decoded) = pilot(&[0.01], 512);
        assert_eq!(named, [1, 2]);
        assert!(n_decoded < 3 * 64, "{n_decoded} decodes for one level");
    }

    #[test]
    fn a_pilot_takes_an_eighth_of_few_prompts_and_no_more_than_it_needs_of_many() {
        assert_eq!([size(7), size(80), size(576), size(5000)], [0, 10, 64, 64]);
    }
}
