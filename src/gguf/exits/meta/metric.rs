//! What is measured on the probabilities of a head's candidates: by training and calibration as by the runtime.
//!
//! Larger is surer for each of them, so that one walk from strict to lax serves all.

use super::Metric;

/// The least and, less than 1, the most that a probability counts as in log-odds: 20 bits of certainty.
const LEAST: f32 = 1e-6;

/// The log-odds of a probability, as [`Metric::Classifier`] takes those of the best candidate.
pub fn log_odds(probability: f32) -> f32 {
    let probability = probability.clamp(LEAST, 1.0 - LEAST);
    (probability / (1.0 - probability)).ln()
}

impl Metric {
    /// The metric's value for `probabilities` (of the candidates, summing to 1, in any order); `None` for fewer than two
    /// candidates, of which no margin can be taken, and for [`Metric::Classifier`], which sees more than probabilities.
    ///
    /// - largest probability: that of the best candidate;
    /// - margin: its distance to the second best, the *breaking ties* of arXiv 2407.21082;
    /// - negative entropy: one less the entropy over that of as many equal candidates.
    pub fn of(self, probabilities: &[f32]) -> Option<f32> {
        if probabilities.len() < 2 {
            return None;
        }
        let (mut best, mut second) = (0.0f32, 0.0f32);
        for &probability in probabilities {
            if probability > best {
                (best, second) = (probability, best);
            } else {
                second = second.max(probability);
            }
        }
        Some(match self {
            Self::Classifier => return None,
            Self::TopProbability => best,
            Self::Margin => best - second,
            Self::NegativeEntropy => {
                let entropy: f32 = probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
                1.0 - entropy / (probabilities.len() as f32).ln()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_grows_from_a_tie_to_certainty() {
        let (tie, lean, sure) = ([0.25; 4], [0.1, 0.6, 0.2, 0.1], [0.0, 0.0, 1.0, 0.0]);
        let values = |metric: Metric| [tie, lean, sure].map(|p| metric.of(&p).unwrap());
        assert_eq!(values(Metric::TopProbability), [0.25, 0.6, 1.0]);
        let [low, middle, high] = values(Metric::Margin);
        assert!(low == 0.0 && (middle - 0.4).abs() < 1e-6 && high == 1.0);
        let [low, middle, high] = values(Metric::NegativeEntropy);
        assert!(low.abs() < 1e-6 && (0.1..0.4).contains(&middle) && high == 1.0);
        assert_eq!(Metric::Margin.of(&[1.0]), None);
        assert_eq!(Metric::Classifier.of(&lean), None);
    }
}
