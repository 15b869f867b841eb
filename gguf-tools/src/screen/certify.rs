//! At which confidence a screen may stand for the full output matrix, level by level and with a guarantee.
//!
//! Three groups of prompts that share none: the screen is fitted to the first, the map from slack to confidence and the
//! sequence of thresholds come from the second, and the third certifies. A prompt's loss at a threshold is the share of its
//! tokens at which the screen is used and the full model's choice is not among the candidates.

use offramp::gguf::exits::ConfidenceMap;

use super::evaluate::Found;
use crate::calibrate::bounds::{self, OutOfRange};
use crate::calibrate::isotonic;
use crate::calibrate::sequence::{Certified, certify};

/// The shares of tokens by which the sequence of thresholds is laid out, strictest first.
const SHARES: [f64; 10] = [0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999];

/// Fits the map from slack to the probability that the full model's choice is among the candidates.
pub fn confidence(found: &[Vec<Found>]) -> ConfidenceMap {
    let observations: Vec<(f32, bool)> = found.concat().iter().map(|token| (token.slack, token.is_found)).collect();
    isotonic::fit(&observations)
}

/// The thresholds to walk, from the strictest to 0, which uses the screen for every token. From the same prompts as the
/// map: no prompt that certifies has been looked at.
pub fn thresholds(map: &ConfidenceMap, found: &[Vec<Found>]) -> Vec<f32> {
    let mut confidences: Vec<f32> = found.concat().iter().map(|token| map.agreement_at(token.slack)).collect();
    confidences.sort_by(|a, b| b.total_cmp(a));
    let at = |share: f64| confidences.get((share * confidences.len() as f64) as usize).copied();
    let mut thresholds: Vec<f32> = SHARES.into_iter().filter_map(at).chain([0.0]).collect();
    thresholds.dedup();
    thresholds
}

/// One level of agreement.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The wanted share of tokens that equal the full model's.
    pub agreement: f32,
    /// The confidence the screen must reach; infinite where the level could not be certified.
    pub threshold: f32,
    /// What was measured there.
    pub certified: Option<Certified>,
    /// The share of tokens for which the screen is used.
    pub usage: f64,
    /// The fewest prompts that could certify this level.
    pub least_prompts: usize,
}

/// Certifies each of `agreements` on prompts that neither the screen nor the map has seen.
///
/// # Errors
///
/// A level or a delta that is no share.
pub fn levels(
    map: &ConfidenceMap,
    thresholds: &[f32],
    found: &[Vec<Found>],
    agreements: &[f32],
    delta: f64,
) -> Result<Vec<Level>, OutOfRange> {
    let confidences: Vec<Vec<(f32, bool)>> = found
        .iter()
        .map(|prompt| prompt.iter().map(|token| (map.agreement_at(token.slack), token.is_found)).collect())
        .collect();
    let share_of = |prompt: &[(f32, bool)], counts: &dyn Fn(f32, bool) -> bool| {
        let n = prompt.iter().filter(|(confidence, is_found)| counts(*confidence, *is_found)).count();
        n as f64 / prompt.len().max(1) as f64
    };
    let n_tokens: usize = confidences.iter().map(Vec::len).sum();
    let mut levels = Vec::new();
    for &agreement in agreements {
        // In single precision 1 - 0.99 is more than 0.01.
        let level = 1.0 - (f64::from(agreement) * 1e6).round() / 1e6;
        let losses = |index: usize| {
            let threshold = thresholds[index];
            let is_wrong = |confidence: f32, is_found: bool| confidence >= threshold && !is_found;
            confidences.iter().map(|prompt| share_of(prompt, &is_wrong)).collect()
        };
        let certified = certify(thresholds.len(), losses, level, delta)?;
        let threshold = certified.as_ref().map_or(f32::INFINITY, |certified| thresholds[certified.index]);
        let used = confidences.iter().flatten().filter(|(confidence, _)| *confidence >= threshold).count();
        levels.push(Level {
            agreement,
            threshold,
            certified,
            usage: used as f64 / n_tokens.max(1) as f64,
            least_prompts: bounds::least_prompts(level, delta),
        });
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts of 20 tokens; a token is missed if its slack is below 1 and `miss` says so.
    fn prompts(n: usize, miss: impl Fn(usize) -> bool) -> Vec<Vec<Found>> {
        let token = |i: usize| {
            let slack = ((i * 7) % 100) as f32 / 10.0;
            Found { slack, is_found: slack >= 1.0 || !miss(i) }
        };
        (0..n).map(|prompt| (0..20).map(|t| token(prompt * 20 + t)).collect()).collect()
    }

    #[test]
    fn a_level_is_certified_at_the_laxest_threshold_that_keeps_it() {
        let tuning = prompts(400, |i| i % 2 == 0);
        let map = confidence(&tuning);
        let thresholds = thresholds(&map, &tuning);
        assert!(thresholds.is_sorted_by(|a, b| a > b) && thresholds.last() == Some(&0.0));
        let found = prompts(600, |i| i % 2 == 0);
        let levels = levels(&map, &thresholds, &found, &[0.9, 0.98, 0.999], 0.05).unwrap();
        // A twentieth of all tokens is missed: 0.9 allows that, 0.98 has to leave the doubtful ones out.
        assert_eq!((levels[0].threshold, levels[0].usage), (0.0, 1.0));
        assert!(levels[1].threshold > 0.5 && levels[1].usage > 0.85 && levels[1].usage < 1.0, "{:?}", levels[1]);
        assert_eq!((levels[2].threshold, levels[2].usage), (f32::INFINITY, 0.0));
        assert_eq!((levels[2].certified.is_none(), levels[2].least_prompts), (true, 2995));
    }
}
