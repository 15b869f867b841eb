//! What exits say on tokens that they have not seen, exactly as stored: 8-bit maps, the screen's candidates, the model's own rows.
//!
//! For each token of each exit: whether its best candidate is the full model's choice, and by every metric how sure it is.
//! Where exits go, how sure they must be and what that promises is all decided on these.

use std::ops::Range;

use offramp::gate::Tap;
use offramp::gguf::Error;
use offramp::gguf::exits::Metric;
use rayon::prelude::*;

use super::classifier::Classifier;
use super::data;
use super::head::Head;
use crate::collect::label::Label;
use crate::collect::store::Reader;
use crate::screen::evaluate::Evaluator;

/// Tokens that are scored at once.
const BATCH: u64 = 64;

/// The metrics, in the order of [`Outcome::metrics`].
pub const METRICS: [Metric; 4] = [Metric::TopProbability, Metric::Margin, Metric::NegativeEntropy, Metric::Classifier];

/// Where [`Outcome::metrics`] has `metric`.
pub fn position(metric: Metric) -> usize {
    METRICS.iter().position(|other| *other == metric).unwrap_or(0)
}

/// What an exit made of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// How sure it is, by each of [`METRICS`].
    pub metrics: [f32; METRICS.len()],
    /// Whether its best candidate is the full model's choice.
    pub is_right: bool,
    /// What its gate gives; 1 without a gate.
    pub gate: f32,
}

impl Outcome {
    /// From an exit's candidates, of which ties go to the lowest id, and the gate's output. By a classifier, nothing is sure yet.
    pub fn of(candidates: &[(u32, f32)], label: &Label, gate: f32) -> Outcome {
        let best = candidates.iter().copied().reduce(|best, other| {
            let is_better = other.1 > best.1 || (other.1 == best.1 && other.0 < best.0);
            if is_better { other } else { best }
        });
        let highest = best.map_or(0.0, |(_, logit)| logit);
        let mut probabilities: Vec<f32> = candidates.iter().map(|(_, logit)| (logit - highest).exp()).collect();
        let sum: f32 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|probability| *probability /= sum);
        Outcome {
            metrics: METRICS.map(|metric| metric.of(&probabilities).unwrap_or(f32::NEG_INFINITY)),
            is_right: best.is_some_and(|(id, _)| id == label.argmax()),
            gate,
        }
    }
}

/// Evaluates an exit on sequences with `count` candidates: for each sequence, for each of its tokens. `progress` is told
/// the tokens done; `false` stops.
///
/// # Errors
///
/// What the disk says, and [`Error::Interrupted`].
pub fn run(
    head: &Head,
    evaluator: &Evaluator<'_>,
    count: usize,
    reader: &Reader,
    sequences: &[Range<u64>],
    progress: &mut dyn FnMut(u64) -> bool,
) -> anyhow::Result<Vec<Vec<Outcome>>> {
    let n_embd = head.norm.len();
    by_batch(sequences, progress, &mut |batch| {
        let x = data::inputs(reader, head.layer, &head.norm, batch.clone())?;
        let gates: Vec<f32> = x.chunks(n_embd).map(|x| head.gate_output(x)).collect();
        of_batch(evaluator, count, &head.apply(&x), head.classifier.as_ref(), &reader.labels(batch)?, &gates)
    })
}

/// Evaluates what the true final hidden state says among the tokens of `evaluator`, as [`run`] does an exit, with a classifier or
/// without.
///
/// # Errors
///
/// As [`run`].
pub fn run_final(
    evaluator: &Evaluator<'_>,
    classifier: Option<&Classifier>,
    count: usize,
    reader: &Reader,
    sequences: &[Range<u64>],
    progress: &mut dyn FnMut(u64) -> bool,
) -> anyhow::Result<Vec<Vec<Outcome>>> {
    let mut states = |tokens| reader.hidden(Tap::ResultNorm, tokens);
    run_states(&mut states, (evaluator, count), classifier, reader, sequences, progress)
}

/// Evaluates final `states`, true ones or predicted by some other head, as [`run`] does an exit, with a classifier or without.
///
/// # Errors
///
/// What `states` says, and as [`run`].
pub fn run_states(
    states: &mut dyn FnMut(Range<u64>) -> anyhow::Result<Vec<f32>>,
    (evaluator, count): (&Evaluator<'_>, usize),
    classifier: Option<&Classifier>,
    reader: &Reader,
    sequences: &[Range<u64>],
    progress: &mut dyn FnMut(u64) -> bool,
) -> anyhow::Result<Vec<Vec<Outcome>>> {
    by_batch(sequences, progress, &mut |batch| {
        let labels = reader.labels(batch.clone())?;
        of_batch(evaluator, count, &states(batch)?, classifier, &labels, &vec![1.0; labels.len()])
    })
}

/// Sequence by sequence, some tokens at a time.
fn by_batch(
    sequences: &[Range<u64>],
    progress: &mut dyn FnMut(u64) -> bool,
    of_batch: &mut dyn FnMut(Range<u64>) -> anyhow::Result<Vec<Outcome>>,
) -> anyhow::Result<Vec<Vec<Outcome>>> {
    let mut outcomes = Vec::with_capacity(sequences.len());
    let mut done = 0;
    for tokens in sequences {
        let mut of_sequence = Vec::new();
        for first in tokens.clone().step_by(BATCH as usize) {
            let batch = first..tokens.end.min(first + BATCH);
            if !progress(done) {
                return Err(Error::Interrupted.into());
            }
            done += batch.end - batch.start;
            of_sequence.extend(of_batch(batch)?);
        }
        outcomes.push(of_sequence);
    }
    Ok(outcomes)
}

/// One batch of states `z`, `[n_embd, n]`, where the final norm ends.
fn of_batch(
    evaluator: &Evaluator<'_>,
    count: usize,
    z: &[f32],
    classifier: Option<&Classifier>,
    labels: &[Label],
    gates: &[f32],
) -> anyhow::Result<Vec<Outcome>> {
    let scores = evaluator.scores(z);
    let (n_scores, n_embd) = (scores.len() / labels.len().max(1), z.len() / labels.len().max(1));
    let of_token = |i: usize| {
        let scores = &scores[i * n_scores..(i + 1) * n_scores];
        let z = &z[i * n_embd..(i + 1) * n_embd];
        let candidates = evaluator.candidates(scores, z, count)?;
        let mut outcome = Outcome::of(&candidates, &labels[i], gates[i]);
        if let Some(classifier) = classifier {
            let top = outcome.metrics[position(Metric::TopProbability)];
            outcome.metrics[position(Metric::Classifier)] = classifier.log_odds(z, top);
        }
        Ok(outcome)
    };
    (0..labels.len()).into_par_iter().map(of_token).collect()
}

/// The share of tokens that may exit so that at most `error` of all tokens are wrong, by the surest first.
pub fn marginal(outcomes: &[Outcome], metric: usize, error: f64) -> f64 {
    let mut order: Vec<&Outcome> = outcomes.iter().collect();
    order.sort_by(|a, b| b.metrics[metric].total_cmp(&a.metrics[metric]).then(a.is_right.cmp(&b.is_right)));
    let allowed = error * outcomes.len() as f64;
    let mut wrong = 0.0;
    let mut most = 0;
    for (i, outcome) in order.iter().enumerate() {
        wrong += f64::from(u8::from(!outcome.is_right));
        if wrong > allowed {
            break;
        }
        most = i + 1;
    }
    most as f64 / outcomes.len().max(1) as f64
}

/// The share of tokens on which an exit agrees with the full model.
pub fn agreement(outcomes: &[Outcome]) -> f64 {
    outcomes.iter().filter(|outcome| outcome.is_right).count() as f64 / outcomes.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp::Token;

    #[test]
    fn ties_go_to_the_lowest_id_and_surer_means_more() {
        let mut logits = vec![0.0; 64];
        logits[9] = 3.0;
        let label = Label::of(Token(0), &logits);
        let of = |candidates: &[(u32, f32)]| Outcome::of(candidates, &label, 0.5);
        assert!(of(&[(30, 2.0), (9, 2.0), (10, 1.0)]).is_right);
        assert!(!of(&[(3, 2.0), (9, 2.0)]).is_right);
        let (unsure, sure) = (of(&[(9, 1.0), (10, 0.9), (3, 0.0)]), of(&[(9, 9.0), (10, 0.9), (3, 0.0)]));
        assert!(unsure.metrics[..3].iter().zip(&sure.metrics).all(|(unsure, sure)| unsure < sure));
        assert_eq!(sure.metrics[3], f32::NEG_INFINITY);
        assert_eq!(unsure.gate, 0.5);
    }

    #[test]
    fn tokens_exit_surest_first_until_too_many_are_wrong() {
        let outcome = |sure: f32, is_right| Outcome { metrics: [sure; METRICS.len()], is_right, gate: 1.0 };
        let outcomes: Vec<Outcome> = (0..100).map(|i| outcome(i as f32, i % 10 != 0)).collect();
        // The surest 9 are right, the tenth is wrong, and so on.
        assert!((marginal(&outcomes, 0, 0.0) - 0.09).abs() < 1e-9);
        assert!((marginal(&outcomes, 1, 0.02) - 0.29).abs() < 1e-9);
        assert!((marginal(&outcomes, 2, 0.5) - 1.0).abs() < 1e-9);
        assert!((agreement(&outcomes) - 0.9).abs() < 1e-9);
    }
}
