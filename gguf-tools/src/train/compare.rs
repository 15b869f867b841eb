//! How sureness is best measured: metrics compared at equal risk, and confidences compared with what came true.
//!
//! All exits are taken together, with one threshold for all and every gate open, as a cascade would use them: a token leaves at
//! the lowest exit that is sure enough. A raw metric means something else at each exit; the calibrated map makes them one
//! scale, and that is what it is for. Everything here is measured on tokens that neither heads nor maps were fitted to. Pure
//! arithmetic; it decides nothing.

use offramp::gguf::exits::{ConfidenceMap, Metric};

use super::cascade::Token;
use super::evaluate::{self, METRICS, Outcome};
use crate::add_heads::heads::ERRORS;

/// Thresholds that are tried, evenly spread over the scores.
const STEPS: usize = 400;
/// Groups of tokens of like confidence.
const GROUPS: usize = 10;

/// What may leave by one measure of sureness.
#[derive(Debug, Clone, PartialEq)]
pub struct Coverage {
    /// The metric's name, or `calibrated` for the map's probability of agreement.
    pub name: &'static str,
    /// The share of tokens that may leave at each of [`ERRORS`].
    pub exits: [f64; ERRORS.len()],
    /// From strict to lax: the share of wrong tokens among all, and the share that leaves.
    pub curve: Vec<(f64, f64)>,
}

/// Tokens of like confidence at one exit.
#[derive(Debug, Clone, PartialEq)]
pub struct Reliability {
    /// The block that the exit follows; `None` for the screen.
    pub layer: Option<u32>,
    /// For each group the mean confidence, the share that agreed with the full model, and the tokens.
    pub groups: Vec<(f64, f64, usize)>,
}

/// Compares the metrics, and the map of `metric`, on `outcomes`: for each exit, lowest first, for each sequence, for each token.
/// Empty without exits.
pub fn metrics(outcomes: &[Vec<Vec<Outcome>>], maps: &[ConfidenceMap], metric: Metric) -> Vec<Coverage> {
    if outcomes.is_empty() {
        return Vec::new();
    }
    let flat: Vec<Vec<Outcome>> = outcomes.iter().map(|sequences| sequences.concat()).collect();
    let of_metric = |position: usize| coverage(METRICS[position].name(), &flat, |_, outcome| outcome.metrics[position]);
    let chosen = evaluate::position(metric);
    let mapped = |exit: usize, outcome: &Outcome| maps[exit].agreement_at(outcome.metrics[chosen]);
    let mut all: Vec<Coverage> = (0..METRICS.len()).map(of_metric).collect();
    if maps.len() == flat.len() {
        all.push(coverage("calibrated", &flat, mapped));
    }
    all
}

fn coverage(name: &'static str, outcomes: &[Vec<Outcome>], score: impl Fn(usize, &Outcome) -> f32) -> Coverage {
    let scores: Vec<Vec<(f32, bool)>> = outcomes
        .iter()
        .enumerate()
        .map(|(exit, outcomes)| outcomes.iter().map(|outcome| (score(exit, outcome), outcome.is_right)).collect())
        .collect();
    let mut thresholds: Vec<f32> = scores.iter().flatten().map(|(score, _)| *score).collect();
    thresholds.sort_by(|a, b| b.total_cmp(a));
    let step = (thresholds.len() / STEPS).max(1);
    let mut thresholds: Vec<f32> = thresholds.into_iter().step_by(step).collect();
    thresholds.dedup();
    let n_tokens = scores.iter().map(Vec::len).min().unwrap_or(0);
    let at = |threshold: f32| {
        let (mut left, mut wrong) = (0usize, 0usize);
        for token in 0..n_tokens {
            let first = scores.iter().map(|scores| scores[token]).find(|(score, _)| *score >= threshold);
            if let Some((_, is_right)) = first {
                left += 1;
                wrong += usize::from(!is_right);
            }
        }
        let n = n_tokens.max(1) as f64;
        (wrong as f64 / n, left as f64 / n)
    };
    let curve: Vec<(f64, f64)> = thresholds.into_iter().map(at).collect();
    let exits = ERRORS.map(|error| curve.iter().take_while(|(wrong, _)| *wrong <= error).last().map_or(0.0, |at| at.1));
    Coverage { name, exits, curve }
}

/// Confidences against what came true, of exits after `layers` and of the screen.
pub fn reliability(layers: &[u32], tokens: &[Token]) -> Vec<Reliability> {
    let of_exit = |(i, layer): (usize, &u32)| {
        let seen = tokens.iter().filter_map(|token| token.exits.get(i));
        Reliability { layer: Some(*layer), groups: groups(seen.map(|at| (at.confidence, at.is_right)).collect()) }
    };
    let screen = Reliability { layer: None, groups: groups(tokens.iter().map(|token| token.screen).collect()) };
    layers.iter().enumerate().map(of_exit).chain([screen]).collect()
}

/// Groups of equal size, from unsure to sure.
fn groups(mut seen: Vec<(f32, bool)>) -> Vec<(f64, f64, usize)> {
    seen.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = seen.len().div_ceil(GROUPS).max(1);
    let of_group = |group: &[(f32, bool)]| {
        let n = group.len() as f64;
        let confidence: f64 = group.iter().map(|(confidence, _)| f64::from(*confidence)).sum();
        let right = group.iter().filter(|(_, is_right)| *is_right).count() as f64;
        (confidence / n, right / n, group.len())
    };
    seen.chunks(size).map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::cascade::AtExit;

    /// Two exits whose metrics mean different things: at the lower one 0.9 is a guess, at the upper one it is sure.
    fn outcomes() -> Vec<Vec<Vec<Outcome>>> {
        let outcome = |value: f32, is_right| Outcome { metrics: [value; METRICS.len()], is_right, gate: 1.0 };
        let lower = (0..1000).map(|i| outcome(0.9 + (i % 10) as f32 * 1e-3, i % 2 == 0)).collect();
        let upper = (0..1000).map(|i| outcome(0.5 + (i % 10) as f32 * 1e-3, i % 500 != 0)).collect();
        vec![vec![lower], vec![upper]]
    }

    #[test]
    fn one_scale_for_all_exits_lets_more_tokens_leave() {
        let map = |agreement: f32| ConfidenceMap { metric: vec![0.0, 1.0], agreement: vec![agreement, agreement] };
        let found = metrics(&outcomes(), &[map(0.5), map(0.998)], Metric::TopProbability);
        assert_eq!(found.len(), METRICS.len() + 1);
        let (raw, mapped) = (&found[0], found.last().unwrap());
        assert_eq!((raw.name, mapped.name), ("top_probability", "calibrated"));
        assert!(raw.exits[1] < 0.01 && mapped.exits[1] == 1.0, "{raw:?} {mapped:?}");
        assert!(mapped.curve.last().unwrap().0 > 0.4, "the laxest threshold takes the guesses too");
        assert!(metrics(&[], &[], Metric::Margin).is_empty());
    }

    #[test]
    fn confidences_are_held_against_what_came_true() {
        let token = |i: usize| Token {
            vocab: (0.0, false),
            exits: vec![AtExit {
                confidence: [0.5, 0.9][i % 2],
                gate: 1.0,
                is_right: i.is_multiple_of(4) || i % 2 == 1,
            }],
            screen: (0.99, true),
        };
        let found = reliability(&[7], &(0..100).map(token).collect::<Vec<_>>());
        assert_eq!((found[0].layer, found[1].layer), (Some(7), None));
        assert_eq!(found[0].groups.len(), 10);
        let (low, high) = (found[0].groups[0], found[0].groups[9]);
        assert!((low.0 - 0.5).abs() < 1e-6 && (high.0 - 0.9).abs() < 1e-6 && (low.2, high.1) == (10, 1.0));
        assert!(found[1].groups.iter().all(|group| group.1 == 1.0));
        assert!(reliability(&[], &[])[0].groups.is_empty());
    }
}
