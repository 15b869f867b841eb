//! How sure a check is, learnt: a logistic regression of whether its best candidate is the full model's choice.
//!
//! The best candidate's probability is one among candidates: that another token is due, which exits do not choose among, it
//! cannot show. The final state can, the one that a head predicts as well as the true one. Both together order tokens better than the
//! probability alone (`docs/training.md` has by how much).
//!
//! It learns from tokens that the head was not fitted to, and there are few. Hence *cross-fitting*: what is said of each of them, for
//! maps and thresholds to rest on, comes from a fit without its part of the sequences, and what is stored from a fit to all.

use std::ops::Range;

use anyhow::ensure;
use offramp::gguf::exits::{Metric, log_odds};
use offramp::gguf::{Error, Writer};

use super::evaluate::{Outcome, position};
use super::logistic::{self, Rows};

/// The penalty on the squared weights of states that vary by 1.
const PENALTY: f64 = 1000.0;
/// That on the others: what keeps tokens of one kind from driving them beyond all bounds.
const LEAST_PENALTY: f64 = 1e-3;
/// Parts of the sequences, each judged by a fit to the others.
const PARTS: usize = 4;
/// Newton's steps, from the bare probability on, and for each part from there on.
const STEPS: (usize, usize) = (6, 2);

/// The log-odds that a check is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    /// For the final state, `[n_embd]`.
    pub state: Vec<f32>,
    /// For the log-odds of the best candidate's probability; not negative.
    pub odds: f32,
    /// Added to both.
    pub bias: f32,
}

impl Classifier {
    /// What it gives for a final state `[n_embd]` and the best candidate's probability.
    pub fn log_odds(&self, state: &[f32], probability: f32) -> f32 {
        let sum: f64 = state.iter().zip(&self.state).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        (sum + f64::from(self.odds) * f64::from(log_odds(probability)) + f64::from(self.bias)) as f32
    }

    /// Adds its tensors, called `name`, to a file in the making.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn write(&self, name: &str, writer: &mut Writer) -> offramp::gguf::Result<()> {
        let weight: Vec<f32> = self.state.iter().chain([&self.odds]).copied().collect();
        writer.tensor_f32(&format!("{name}.weight"), &[weight.len() as u64], &weight)?;
        writer.tensor_f32(&format!("{name}.bias"), &[1], &[self.bias]).map(drop)
    }
}

/// Fits one to the tokens of `sequences`, of which `outcomes` has what the check said of each and `states` gives the final
/// states, `[n_embd, n]`. Sets each outcome's [`Metric::Classifier`] to what one says that its sequence had no part in. `progress`
/// is told the steps done, of how many; `false` stops.
///
/// # Errors
///
/// What `states` says, other outcomes than tokens, values that are no numbers, and [`Error::Interrupted`].
pub fn fit(
    n_embd: usize,
    states: &mut dyn FnMut(Range<u64>) -> anyhow::Result<Vec<f32>>,
    sequences: &[Range<u64>],
    outcomes: &mut [Vec<Outcome>],
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Classifier> {
    let mut all = Vec::new();
    for tokens in sequences {
        all.extend(states(tokens.clone())?);
    }
    let parts: Vec<usize> =
        outcomes.iter().enumerate().flat_map(|(i, outcomes)| vec![i % PARTS; outcomes.len()]).collect();
    ensure!(all.len() == parts.len() * n_embd, "the states of {} tokens are not those of their outcomes", parts.len());
    let scale = Scale::of(&all, n_embd);
    let known = outcomes.iter().flatten();
    let is_right: Vec<bool> = known.clone().map(|outcome| outcome.is_right).collect();
    let top = position(Metric::TopProbability);
    let of_token = |(state, outcome): (&[f32], &Outcome)| {
        let mut row = scale.apply(state);
        row.extend([log_odds(outcome.metrics[top]), 1.0]);
        row
    };
    let values: Vec<f32> = all.chunks_exact(n_embd).zip(known).flat_map(of_token).collect();
    let rows = Rows { values: &values, is_true: &is_right };
    let penalties: Vec<f64> = (0..n_embd + 2).map(|i| if i < n_embd { PENALTY } else { LEAST_PENALTY }).collect();
    let mut weights = vec![0.0; n_embd + 2];
    weights[n_embd] = 1.0;
    let mut done = 0;
    let mut fit_to = |counts: &(dyn Fn(usize) -> bool + Sync), weights: &mut [f64], steps: usize| {
        for _ in 0..steps {
            ensure!(progress(done, (STEPS.0 + PARTS * STEPS.1) as u64), Error::Interrupted);
            logistic::step(rows, counts, &penalties, weights)?;
            done += 1;
        }
        Ok(())
    };
    fit_to(&|_| true, &mut weights, STEPS.0)?;
    let classifier = scale.classifier(&weights);
    for part in 0..PARTS {
        let mut without = weights.clone();
        fit_to(&|row| parts[row] != part, &mut without, STEPS.1)?;
        let without = scale.classifier(&without);
        let judged = outcomes.iter_mut().flatten().zip(all.chunks_exact(n_embd)).zip(&parts);
        for ((outcome, state), _) in judged.filter(|(_, of)| **of == part) {
            outcome.metrics[position(Metric::Classifier)] = without.log_odds(state, outcome.metrics[top]);
        }
    }
    Ok(classifier)
}

/// What brings every dimension of the states to a mean of 0 and a variance of 1.
struct Scale {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Scale {
    fn of(states: &[f32], n_embd: usize) -> Scale {
        let n = (states.len() / n_embd.max(1)).max(1) as f64;
        let mut sums = vec![(0.0f64, 0.0f64); n_embd];
        for state in states.chunks_exact(n_embd) {
            for ((sum, squares), x) in sums.iter_mut().zip(state) {
                *sum += f64::from(*x);
                *squares += f64::from(*x) * f64::from(*x);
            }
        }
        let deviation = |&(sum, squares): &(f64, f64)| (squares / n - (sum / n).powi(2)).max(0.0).sqrt().max(1e-6);
        Scale { mean: sums.iter().map(|(sum, _)| sum / n).collect(), deviation: sums.iter().map(deviation).collect() }
    }

    fn apply(&self, state: &[f32]) -> Vec<f32> {
        let scaled = state.iter().zip(&self.mean).zip(&self.deviation);
        scaled.map(|((x, mean), deviation)| ((f64::from(*x) - mean) / deviation) as f32).collect()
    }

    /// A classifier of the states themselves, from weights for scaled ones, the log-odds and the bias.
    fn classifier(&self, weights: &[f64]) -> Classifier {
        let n = self.mean.len();
        let state: Vec<f64> = weights[..n].iter().zip(&self.deviation).map(|(w, deviation)| w / deviation).collect();
        let shift: f64 = state.iter().zip(&self.mean).map(|(w, mean)| w * mean).sum();
        Classifier {
            state: state.iter().map(|w| *w as f32).collect(),
            // A check that is the less sure the more probable its best candidate is would be none.
            odds: weights[n].max(0.0) as f32,
            bias: (weights[n + 1] - shift) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::evaluate::{METRICS, marginal};
    use rand::{Rng, SeedableRng};

    /// Tokens of which the first value of the state says whether one outside of the candidates is due, which the probability does not.
    fn tokens(n: usize, rng: &mut rand_chacha::ChaCha8Rng) -> (Vec<f32>, Vec<Outcome>) {
        let mut states = Vec::new();
        let mut outcome = || {
            let (is_due, probability) = (rng.random::<f32>() < 0.2, 0.5 + 0.5 * rng.random::<f32>());
            let noise = rng.random::<f32>() - 0.5;
            states.extend([if is_due { 3.0 } else { 1.0 } + noise, 4.0 * rng.random::<f32>(), 7.0]);
            let mut metrics = [probability; METRICS.len()];
            metrics[position(Metric::Classifier)] = f32::NEG_INFINITY;
            Outcome { metrics, is_right: !is_due && rng.random::<f32>() < probability, gate: 1.0 }
        };
        let outcomes = (0..n).map(|_| outcome()).collect();
        (states, outcomes)
    }

    #[test]
    fn what_the_state_shows_lets_more_tokens_leave_also_unseen_ones() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        let (states, outcomes) = tokens(4000, &mut rng);
        let sequences: Vec<Range<u64>> = (0..100).map(|i| i * 40..(i + 1) * 40).collect();
        let mut outcomes: Vec<Vec<Outcome>> = outcomes.chunks(40).map(<[Outcome]>::to_vec).collect();
        let mut of_tokens =
            |tokens: Range<u64>| Ok(states[3 * tokens.start as usize..3 * tokens.end as usize].to_vec());
        let classifier = fit(3, &mut of_tokens, &sequences, &mut outcomes, &mut |_, _| true).unwrap();
        let (top, learnt) = (position(Metric::TopProbability), position(Metric::Classifier));
        let gain = |outcomes: &[Outcome]| marginal(outcomes, learnt, 0.05) - marginal(outcomes, top, 0.05);
        assert!(gain(&outcomes.concat()) > 0.1, "cross-fitted: {}", gain(&outcomes.concat()));
        let (states, mut unseen) = tokens(4000, &mut rng);
        for (outcome, state) in unseen.iter_mut().zip(states.chunks(3)) {
            outcome.metrics[learnt] = classifier.log_odds(state, outcome.metrics[top]);
        }
        assert!(gain(&unseen) > 0.1, "unseen: {}", gain(&unseen));
        assert!(fit(3, &mut |_| Ok(vec![0.0; 3]), &sequences, &mut outcomes, &mut |_, _| true).is_err());
        let stopped = fit(3, &mut of_tokens, &sequences, &mut outcomes, &mut |done, _| done < 9).unwrap_err();
        assert!(matches!(stopped.downcast_ref(), Some(Error::Interrupted)));
    }

    #[test]
    fn nothing_is_learnt_from_a_sequence_about_itself() {
        // What is due is noise: a fit that saw it would seem to know it.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let n_embd = 60;
        let states: Vec<f32> = (0..n_embd * 160).map(|_| 10.0 * (rng.random::<f32>() - 0.5)).collect();
        let outcome = |is_right| Outcome { metrics: [0.5; METRICS.len()], is_right, gate: 1.0 };
        let mut outcomes: Vec<Vec<Outcome>> =
            (0..16).map(|_| (0..10).map(|_| outcome(rng.random::<bool>())).collect()).collect();
        let sequences: Vec<Range<u64>> = (0..16).map(|i| i * 10..(i + 1) * 10).collect();
        let range = |tokens: Range<u64>| n_embd * tokens.start as usize..n_embd * tokens.end as usize;
        let mut of_tokens = |tokens: Range<u64>| Ok(states[range(tokens)].to_vec());
        let classifier = fit(n_embd, &mut of_tokens, &sequences, &mut outcomes, &mut |_, _| true).unwrap();
        let learnt = position(Metric::Classifier);
        let correct = |odds: f32, outcome: &Outcome| usize::from((odds > 0.0) == outcome.is_right);
        let outcomes = outcomes.concat();
        let crossed: usize = outcomes.iter().map(|outcome| correct(outcome.metrics[learnt], outcome)).sum();
        let seen = outcomes.iter().zip(states.chunks(n_embd));
        let seen: usize = seen.map(|(outcome, state)| correct(classifier.log_odds(state, 0.5), outcome)).sum();
        assert!(seen > 105 && crossed < 100, "{seen} and {crossed} of 160");
    }
}
