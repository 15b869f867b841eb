//! Heads after every candidate layer, their gates, and what all of them say on the tokens that choose.

use std::ops::Range;

use anyhow::{Context, bail, ensure};
use offramp::gguf::Error;
use offramp::gguf::exits::{ConfidenceMap, Metric};

use super::Progress;
use super::split::Split;
use crate::calibrate::isotonic;
use crate::collect::store::{Reader, sequences};
use crate::screen::evaluate::Evaluator;
use crate::screen::output_matrix::OutputMatrix;
use crate::train::classifier::{self, Classifier};
use crate::train::data::{self, Exit, Source};
use crate::train::evaluate::{self, METRICS, Outcome};
use crate::train::fit::{self, Look, Settings};
use crate::train::gate;
use crate::train::head::Head;

/// The tokens that a gate learns from, at most.
const GATE_TOKENS: u64 = 6000;
/// The share of wrong tokens at which a gate learns what its head is sure of.
const GATE_ERROR: f64 = 0.01;
/// The share of wrong tokens at which metrics are compared.
const METRIC_ERROR: f64 = 0.01;

/// How one candidate layer turned out, on the tokens that choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// The block whose output it reads.
    pub layer: u32,
    /// The share of the final state's variance that the closed form explains.
    pub r2: f64,
    /// The share of tokens on which it agrees with the full model.
    pub agreement: f64,
    /// The share of tokens that may exit so that at most 0.5, 1, 2 and 5 % of all are wrong, by each of [`METRICS`].
    pub exits: [[f64; 4]; METRICS.len()],
}

/// The marginal errors of [`Quality::exits`].
pub const ERRORS: [f64; 4] = [0.005, 0.01, 0.02, 0.05];

/// Heads after all candidate layers.
#[derive(Debug)]
pub struct Candidates {
    /// Lowest first.
    pub heads: Vec<Head>,
    /// How each turned out.
    pub quality: Vec<Quality>,
    /// How training went.
    pub looks: Vec<Look>,
    /// The metric.
    pub metric: Metric,
    /// For each head, from the metric to the probability of agreement.
    pub confidence: Vec<ConfidenceMap>,
    /// For each head, for each sequence that chooses, for each token.
    pub outcomes: Vec<Vec<Vec<Outcome>>>,
}

impl Default for Candidates {
    /// No heads.
    fn default() -> Candidates {
        Candidates {
            heads: Vec::new(),
            quality: Vec::new(),
            looks: Vec::new(),
            metric: Metric::TopProbability,
            confidence: Vec::new(),
            outcomes: Vec::new(),
        }
    }
}

/// The candidates that a model of `n_layer` blocks is given where nobody chose: six from a third of its depth on.
pub fn candidate_layers(n_layer: u32) -> Vec<u32> {
    let shares = [0.34, 0.5, 0.6, 0.7, 0.8, 0.9];
    let last = n_layer.saturating_sub(2);
    let mut layers: Vec<u32> =
        shares.into_iter().map(|share| ((f64::from(n_layer) * share) as u32).saturating_sub(1).min(last)).collect();
    layers.dedup();
    if n_layer < 2 { Vec::new() } else { layers }
}

/// Trains heads after each of `layers`, judges them on the sequences that choose, and chooses the metric where none is given.
///
/// # Errors
///
/// Layers that were not collected, what training says, [`Error::Interrupted`].
pub fn train(
    matrix: &OutputMatrix<'_>,
    (evaluator, count): (&Evaluator<'_>, usize),
    reader: &Reader,
    split: &Split,
    (layers, metric, settings): (&[u32], Option<Metric>, &Settings),
    progress: &mut Progress<'_>,
) -> anyhow::Result<Candidates> {
    let collected = &reader.manifest().layers;
    if let Some(layer) = layers.iter().find(|layer| !collected.contains(layer)) {
        bail!("layer {layer} was not collected: the tokens are of layers {collected:?}");
    }
    let exits = measure(matrix, reader, split, layers, progress)?;
    let fitted = fit::fit(reader, matrix, &exits, &split.fit, &split.held_out, settings, &mut |done, total| {
        progress("training", done, total)
    })?;
    let mut heads = Vec::new();
    for ((layer, exit), trained) in layers.iter().zip(&exits).zip(&fitted.heads) {
        heads.push(Head::new(*layer, exit.norm.clone(), trained)?);
    }
    let mut held_out = outcomes(&heads, evaluator, count, reader, &split.held_out, "judging", progress)?;
    let mut outcomes = outcomes(&heads, evaluator, count, reader, &split.choose, "judging", progress)?;
    for ((head, held_out), chooses) in heads.iter_mut().zip(&mut held_out).zip(&mut outcomes) {
        let mut states = |tokens: Range<u64>| Ok(head.apply(&data::inputs(reader, head.layer, &head.norm, tokens)?));
        head.classifier = Some(classifier(&mut states, reader, split, (held_out, chooses), progress)?);
    }
    let quality: Vec<Quality> =
        layers.iter().zip(&exits).zip(&outcomes).map(|(of, outcomes)| Quality::of(of, &outcomes.concat())).collect();
    let chosen = match metric {
        Some(metric) => METRICS.iter().position(|other| *other == metric).context("a metric that is not measured")?,
        None => best_metric(&outcomes),
    };
    teach_gates(&mut heads, &exits, reader, &split.held_out, (&held_out, chosen))?;
    for (head, outcomes) in heads.iter().zip(&mut outcomes) {
        for (tokens, outcomes) in split.choose.iter().zip(outcomes) {
            let x = data::inputs(reader, head.layer, &head.norm, tokens.clone())?;
            let gates = x.chunks(head.norm.len()).map(|x| head.gate_output(x));
            outcomes.iter_mut().zip(gates).for_each(|(outcome, gate)| outcome.gate = gate);
        }
    }
    let confidence = outcomes.iter().map(|outcomes| confidence(&outcomes.concat(), METRICS[chosen])).collect();
    Ok(Candidates { heads, quality, looks: fitted.looks, metric: METRICS[chosen], confidence, outcomes })
}

/// From one of [`METRICS`] to the probability of agreement.
pub fn confidence(outcomes: &[Outcome], metric: Metric) -> ConfidenceMap {
    let metric = evaluate::position(metric);
    let observations: Vec<(f32, bool)> =
        outcomes.iter().map(|outcome| (outcome.metrics[metric], outcome.is_right)).collect();
    isotonic::fit(&observations)
}

/// How sure a check is, learnt from what it said of the tokens that were held out and of those that choose, and of these what
/// a classifier says that they had no part in.
///
/// # Errors
///
/// As [`classifier::fit`].
pub fn classifier(
    states: &mut dyn FnMut(Range<u64>) -> anyhow::Result<Vec<f32>>,
    reader: &Reader,
    split: &Split,
    (held_out, choose): (&mut Vec<Vec<Outcome>>, &mut Vec<Vec<Outcome>>),
    progress: &mut Progress<'_>,
) -> anyhow::Result<Classifier> {
    let n_held_out = held_out.len();
    let mut both = std::mem::take(held_out);
    both.append(choose);
    let sequences = [&split.held_out[..], &split.choose].concat();
    let n_embd = reader.manifest().n_embd as usize;
    let mut progress = |done, total| progress("classifying", done, total);
    let fitted = classifier::fit(n_embd, states, &sequences, &mut both, &mut progress);
    *choose = both.split_off(n_held_out);
    *held_out = both;
    fitted
}

/// The position of the metric by which most tokens may exit.
pub fn best_metric(outcomes: &[Vec<Vec<Outcome>>]) -> usize {
    let exits = |metric: usize| -> f64 {
        outcomes.iter().map(|outcomes| evaluate::marginal(&outcomes.concat(), metric, METRIC_ERROR)).sum()
    };
    // Of equals the first, which is the cheapest.
    (0..METRICS.len()).reduce(|best, other| if exits(other) > exits(best) { other } else { best }).unwrap_or(0)
}

fn measure(
    matrix: &OutputMatrix<'_>,
    reader: &Reader,
    split: &Split,
    layers: &[u32],
    progress: &mut Progress<'_>,
) -> anyhow::Result<Vec<Exit>> {
    let of_layer = sequences::count(&split.fit) + sequences::count(&split.held_out);
    let mut exits = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let before = of_layer * i as u64;
        let exit = Exit::measure(reader, matrix, Source::Layer(*layer), &split.fit, &split.held_out, &mut |done| {
            progress("measuring", before + done, of_layer * layers.len() as u64)
        });
        exits.push(exit.with_context(|| format!("the exit after layer {layer}"))?);
    }
    Ok(exits)
}

/// Teaches each gate what its head is sure of by a metric, on tokens that the head was not trained on and their outcomes.
fn teach_gates(
    heads: &mut [Head],
    exits: &[Exit],
    reader: &Reader,
    sequences: &[Range<u64>],
    (outcomes, metric): (&[Vec<Vec<Outcome>>], usize),
) -> anyhow::Result<()> {
    let few = sequences::first(sequences, GATE_TOKENS);
    for ((head, exit), outcomes) in heads.iter_mut().zip(exits).zip(outcomes) {
        let outcomes = outcomes[..few.len()].concat();
        let least = least_sure(&outcomes, metric, GATE_ERROR);
        let is_sure: Vec<bool> = outcomes.iter().map(|outcome| outcome.metrics[metric] >= least).collect();
        let mut x = Vec::new();
        for tokens in &few {
            x.extend(data::inputs(reader, head.layer, &head.norm, tokens.clone())?);
        }
        ensure!(x.len() == is_sure.len() * head.norm.len(), "a gate's inputs are not those of its head");
        head.gate = gate::fit(&x, &is_sure, &exit.whitening)?;
    }
    Ok(())
}

/// The metric above which at most `error` of all tokens are wrong; infinite where there is none.
fn least_sure(outcomes: &[Outcome], metric: usize, error: f64) -> f32 {
    let n = (evaluate::marginal(outcomes, metric, error) * outcomes.len() as f64).round() as usize;
    let mut metrics: Vec<f32> = outcomes.iter().map(|outcome| outcome.metrics[metric]).collect();
    metrics.sort_by(|a, b| b.total_cmp(a));
    n.checked_sub(1).and_then(|last| metrics.get(last).copied()).unwrap_or(f32::INFINITY)
}

/// What each head says on sequences: for each head, for each sequence, for each token.
///
/// # Errors
///
/// What the disk says, [`Error::Interrupted`].
pub fn outcomes(
    heads: &[Head],
    evaluator: &Evaluator<'_>,
    count: usize,
    reader: &Reader,
    sequences: &[Range<u64>],
    what: &'static str,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Vec<Vec<Vec<Outcome>>>> {
    let of_head = sequences::count(sequences);
    let total = of_head * heads.len() as u64;
    let mut all = Vec::new();
    for (i, head) in heads.iter().enumerate() {
        let before = of_head * i as u64;
        all.push(evaluate::run(head, evaluator, count, reader, sequences, &mut |done| {
            progress(what, before + done, total)
        })?);
    }
    if !progress(what, total, total) {
        return Err(Error::Interrupted.into());
    }
    Ok(all)
}

impl Quality {
    fn of((layer, exit): (&u32, &Exit), outcomes: &[Outcome]) -> Quality {
        let mut exits = [[0.0; ERRORS.len()]; METRICS.len()];
        for (metric, exits) in exits.iter_mut().enumerate() {
            for (share, error) in exits.iter_mut().zip(ERRORS) {
                *share = evaluate::marginal(outcomes, metric, error);
            }
        }
        Quality { layer: *layer, r2: exit.r2, agreement: evaluate::agreement(outcomes), exits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_lie_in_the_upper_two_thirds_and_before_the_last_block() {
        assert_eq!(candidate_layers(30), [9, 14, 17, 20, 23, 26]);
        assert_eq!(candidate_layers(28), [8, 13, 15, 18, 21, 24]);
        assert_eq!(candidate_layers(3), [0, 1]);
        assert_eq!(candidate_layers(1), [0u32; 0]);
    }

    #[test]
    fn a_gate_learns_what_is_above_the_wanted_error() {
        let outcome =
            |sure: usize| Outcome { metrics: [sure as f32; METRICS.len()], is_right: sure % 50 != 3, gate: 1.0 };
        let outcomes: Vec<Outcome> = (0..100).map(outcome).collect();
        // The two that are wrong are the fourth and the fifty-fourth from below.
        assert_eq!(least_sure(&outcomes, 0, 0.0), 54.0);
        assert_eq!(least_sure(&outcomes, 0, 0.01), 4.0);
        assert_eq!(least_sure(&[Outcome { is_right: false, ..outcome(1) }], 0, 0.5), f32::INFINITY);
    }
}
