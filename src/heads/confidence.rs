//! How sure candidates are: the metrics of `exit.metric`, on a softmax over the candidates alone, or a classifier's log-odds.
//!
//! Larger is surer for each of them. What a metric is worth, the file's own confidence maps say. It refuses classifiers that
//! hold what is no number, or that are the less sure the more probable the best candidate is.

use crate::error::{Error, Result};
use crate::gguf::exits::{self, Metric, log_odds};
use crate::llama::Token;

/// A logistic regression of whether the best candidate is the full model's choice: what its probability among the candidates
/// cannot tell, such as that another token is due which is not among them, the final state shows.
#[derive(Debug)]
pub(crate) struct Classifier {
    /// For the final state, `[n_embd]`.
    state: Vec<f32>,
    /// For the log-odds of the best candidate's probability; not negative.
    odds: f32,
    bias: f32,
}

impl Classifier {
    /// # Errors
    /// [`Error::Heads`] for weights that are no numbers, or a negative one for the best candidate's log-odds.
    pub(super) fn new(classifier: &exits::Classifier<'_>) -> Result<Self> {
        let mut state = classifier.weight.f32();
        let odds = state.pop().unwrap_or(0.0);
        let bias = classifier.bias.f32().first().copied().unwrap_or(0.0);
        let is_sound = odds >= 0.0 && state.iter().chain([&odds, &bias]).all(|value| value.is_finite());
        if !is_sound {
            return Err(Error::Heads {
                found: format!(
                    "{} is no classifier: it needs finite numbers, the last not below 0",
                    classifier.weight.info.name()
                ),
            });
        }
        Ok(Self { state, odds, bias })
    }

    /// The part of its log-odds that the final state `[n_embd]` gives.
    pub(super) fn of_state(&self, state: &[f32]) -> f32 {
        super::head::dot(&self.state, state) + self.bias
    }

    /// Its log-odds, from [`Classifier::of_state`] and the best candidate's probability.
    pub(super) fn log_odds(&self, of_state: f32, probability: f32) -> f32 {
        self.odds * log_odds(probability) + of_state
    }
}

/// The metric's value for the candidates' logits, in any order. `None` for fewer than two candidates, of which no margin
/// can be taken, and for logits that are no numbers.
pub(super) fn of(metric: Metric, candidates: &[(Token, f32)]) -> Option<f32> {
    metric.of(&probabilities(candidates)?)
}

/// Between which values the metric over a longer shortlist lies, if its further candidates add at most `unseen` to the
/// sum of the softmax in which the best weighs 1, and none of them is among the two best. `None` where the metric does
/// not say, and as for [`of`].
pub(super) fn range(metric: Metric, candidates: &[(Token, f32)], unseen: f32) -> Option<(f32, f32)> {
    let probabilities = probabilities(candidates)?;
    let most = metric.of(&probabilities)?;
    // Every share falls as the sum grows, in which the best weighs 1.
    let least = most / (1.0 + unseen * Metric::TopProbability.of(&probabilities)?);
    match metric {
        Metric::TopProbability | Metric::Margin => Some((least, most)).filter(|(least, _)| !least.is_nan()),
        // It is a share of the largest entropy that so many candidates can have, which differs with their number.
        Metric::NegativeEntropy | Metric::Classifier => None,
    }
}

/// The softmax of the candidates; `None` for logits that are no numbers.
fn probabilities(candidates: &[(Token, f32)]) -> Option<Vec<f32>> {
    let best = candidates.iter().map(|&(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
    if !best.is_finite() {
        return None;
    }
    // With the best logit at 0 each weight is at most 1, and their sum at most as many as there are candidates.
    let mut weights: Vec<f32> = candidates.iter().map(|&(_, logit)| (logit - best).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    (!sum.is_nan()).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(probabilities: &[f32]) -> Vec<(Token, f32)> {
        (0..).map(Token).zip(probabilities.iter().map(|p| p.ln() + 5.0)).collect()
    }

    #[test]
    fn each_metric_grows_from_a_tie_to_certainty() {
        let [tie, lean, sure] = [[0.25; 4], [0.1, 0.6, 0.2, 0.1], [0.0, 0.0, 1.0, 0.0]].map(|p| logits(&p));
        let values = |metric| [&tie, &lean, &sure].map(|candidates| of(metric, candidates).unwrap());
        let close = |found: [f32; 3], expected: [f32; 3]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
        };
        close(values(Metric::TopProbability), [0.25, 0.6, 1.0]);
        close(values(Metric::Margin), [0.0, 0.4, 1.0]);
        let entropy: f32 = [0.1f32, 0.6, 0.2, 0.1].iter().map(|p| -p * p.ln()).sum();
        close(values(Metric::NegativeEntropy), [0.0, 1.0 - entropy / 4f32.ln(), 1.0]);
    }

    #[test]
    fn a_few_candidates_bound_what_more_of_them_would_say() {
        let all = logits(&[0.6, 0.2, 0.1, 0.06, 0.04]);
        for metric in [Metric::TopProbability, Metric::Margin] {
            let whole = of(metric, &all).unwrap();
            // Left out are 0.06 and 0.04, at most 2 * 0.06 beside the best one's 0.6.
            let (least, most) = range(metric, &all[..3], 2.0 * 0.06 / 0.6).unwrap();
            assert!(least <= whole && whole <= most && most - least < 0.12, "{least} {whole} {most}");
            assert_eq!(range(metric, &all, 0.0), Some((whole, whole)));
        }
        assert_eq!(range(Metric::NegativeEntropy, &all, 0.1), None);
    }

    #[test]
    fn without_two_candidates_or_without_numbers_nothing_is_sure() {
        assert_eq!(of(Metric::Margin, &logits(&[1.0])), None);
        assert_eq!(of(Metric::TopProbability, &[(Token(0), f32::NAN), (Token(1), f32::NAN)]), None);
    }
}
