//! The certificate of a file: its levels, confirmed by free-running decodes on prompts that made none of it.
//!
//! The thresholds of the file are the sequence ([`candidates`](super::candidates)), a pilot thins it out
//! ([`pilot`](super::pilot)), the levels walk it together ([`walk`](super::walk)), and each step decodes every prompt ([`free_run`](super::free_run)). What comes out replaces the
//! file's levels and their record; nothing else of it changes. A level that cannot be certified is off.

use std::time::Instant;

use anyhow::ensure;
use offramp::gguf::Error;
use offramp::gguf::exits::{Calibration, ExitMeta, KvPolicy};
use offramp::{Model, SessionParams, Token};

use super::bounds::{self, Losses};
use super::candidates::{self, Candidate};
use super::free_run::{Judge, Step};
use super::pilot::{self, Pilot};
use super::sequence::Certified;
use super::walk::Walk;

/// The share of the time that is left which a pilot may take.
const PILOT: f64 = 0.3;

/// How to confirm.
#[derive(Debug, Clone)]
pub struct Options {
    /// The levels of agreement, ascending.
    pub agreements: Vec<f32>,
    /// The probability with which a certified level may be broken.
    pub delta: f64,
    /// The most tokens of a prompt's answer.
    pub tokens: usize,
    /// How the sessions are made, but for the agreement and for drafts.
    pub session: SessionParams,
    /// Whether each prompt is decoded with drafts, too, and the worse of both counts.
    pub with_drafts: bool,
    /// The K/V policy that those sessions follow, which is the one to be stored.
    pub kv_policy: KvPolicy,
    /// What the prompts are, in words.
    pub prompts: String,
    /// The day, as `2026-01-31`.
    pub date: String,
    /// When to stop; what was certified by then stays.
    pub deadline: Option<Instant>,
}

/// One confirmed level.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The wanted share of tokens that equal the full model's.
    pub agreement: f32,
    /// What was certified; `None` where the level is off.
    pub certified: Option<Certified>,
    /// The share of tokens that exit.
    pub exit_rate: f64,
    /// The fewest prompts that could certify it, all of them free of loss.
    pub least_prompts: usize,
}

/// What a walk has found.
#[derive(Debug)]
pub struct Confirmed {
    /// The file's keys with the confirmed levels.
    pub meta: ExitMeta,
    /// The levels, in the order of their agreements.
    pub levels: Vec<Level>,
    /// The thresholds that were walked, strictest first, and what their decodes gave; of the last one possibly not all
    /// prompts.
    pub steps: Vec<(Candidate, Step)>,
    /// For each of these the betting bound on its risk, from the prompts that were decoded.
    pub bounds: Vec<f64>,
    /// The thresholds that a pilot looked at, strictest first, and what its decodes gave, of each no more prompts than it
    /// took; empty where the prompts were too few for one. They certify nothing.
    pub pilot: Vec<(Candidate, Step)>,
    /// Whether the time was over before the walk was.
    pub is_cut_short: bool,
}

/// The highest of `agreements` that `n_prompts` can certify at all; `None` where they are too few for any.
///
/// # Errors
///
/// A level or a delta that is no share.
pub fn highest_certifiable(agreements: &[f32], delta: f64, n_prompts: usize) -> anyhow::Result<Option<f32>> {
    let mut highest = None;
    for &agreement in agreements {
        if Walk::new(&[disagreement(agreement)], delta, n_prompts)?.is_walking() {
            highest = Some(agreement);
        }
    }
    Ok(highest)
}

/// Confirms the levels of a file on `prompts`, the first of which are a pilot's. `model` was loaded with heads whose levels are `sequence`
/// ([`candidates::as_levels`] of `meta`); `progress` is told of the prompts decoded and to be decoded, and stops the work
/// with `false`.
///
/// # Errors
///
/// No prompts, a level or a delta that is no share, a decode that fails, [`Error::Interrupted`].
pub fn confirm(
    model: &Model,
    meta: &ExitMeta,
    sequence: &[Candidate],
    prompts: &[Vec<Token>],
    options: &Options,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Confirmed> {
    ensure!(!prompts.is_empty(), "no prompts to certify anything with");
    let levels: Vec<f64> = options.agreements.iter().map(|agreement| disagreement(*agreement)).collect();
    let (first, prompts) = prompts.split_at(pilot::size(prompts.len()));
    let n = sequence.len();
    let Piloted { walked, tried } = match first {
        [] => Piloted { walked: (0..n).collect(), tried: Vec::new() },
        _ => run_pilot(model, sequence, first, &levels, prompts.len(), options, progress)?,
    };

    let mut walk = Walk::new(&levels, options.delta, prompts.len())?;
    let mut judge = Judge::new(model, options, prompts)?;
    let mut steps: Vec<(Candidate, Step)> = Vec::new();
    let mut step_bounds = Vec::new();
    let before = tried.iter().map(|(_, step)| step.n_prompts).sum::<usize>();
    let total = before + walked.len() * prompts.len();
    let mut is_cut_short = false;
    for (position, &index) in walked.iter().enumerate() {
        if !walk.is_walking() || is_cut_short {
            break;
        }
        let done = before + position * prompts.len();
        let (losses, step) = judge.losses(candidates::agreement(index, n), &mut |losses| {
            told(progress, done + losses.len(), total)?;
            is_cut_short = options.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            Ok(!is_cut_short && walk.needs_more(losses)?)
        })?;
        let seen = Losses::of_planned(losses.clone(), prompts.len())?;
        step_bounds.push(bounds::betting_upper_bound(&seen, options.delta));
        walk.conclude(position, losses)?;
        steps.push((sequence[index].clone(), step));
    }
    let levels: Vec<Level> = options
        .agreements
        .iter()
        .zip(levels)
        .zip(walk.certified())
        .map(|((&agreement, level), certified)| Level {
            agreement,
            certified: certified.cloned(),
            exit_rate: certified.map_or(0.0, |certified| steps[certified.index].1.exit_rate()),
            least_prompts: bounds::least_prompts(level, options.delta),
        })
        .collect();
    let meta = certified_meta(meta, &levels, &steps, prompts.len(), options)?;
    Ok(Confirmed { meta, levels, steps, bounds: step_bounds, pilot: tried, is_cut_short })
}

/// What a pilot has found.
struct Piloted {
    /// The positions of the thresholds to walk along, strictest first.
    walked: Vec<usize>,
    /// The thresholds that were looked at, strictest first.
    tried: Vec<(Candidate, Step)>,
}

/// Looks for the thresholds to walk along on prompts that certify nothing.
fn run_pilot(
    model: &Model,
    sequence: &[Candidate],
    prompts: &[Vec<Token>],
    levels: &[f64],
    n_walk: usize,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Piloted> {
    let n = sequence.len();
    let end = options.deadline.map(|end| {
        let now = Instant::now();
        now + end.saturating_duration_since(now).mul_f64(PILOT)
    });
    let is_over = || end.is_some_and(|end| Instant::now() >= end);
    let mut pilot = Pilot::new(n, levels, options.delta, n_walk, prompts.len())?;
    let mut judge = Judge::new(model, options, prompts)?;
    let mut tried: Vec<(usize, Step)> = Vec::new();
    let mut n_decoded = 0;
    while let Some(index) = pilot.next() {
        let (losses, step) = judge.losses(candidates::agreement(index, n), &mut |losses| {
            // As if half of the thresholds were to be walked.
            told(progress, n_decoded + losses.len(), n * (prompts.len() + n_walk) / 2)?;
            Ok(!is_over() && pilot.needs_more(index, losses))
        })?;
        if is_over() {
            break;
        }
        n_decoded += losses.len();
        pilot.conclude(index, &losses);
        tried.push((index, step));
    }
    tried.sort_unstable_by_key(|(index, _)| *index);
    let tried = tried.into_iter().map(|(index, step)| (sequence[index].clone(), step)).collect();
    Ok(Piloted { walked: pilot.named(), tried })
}

/// Tells of the decodes that are done.
fn told(progress: &mut dyn FnMut(u64, u64) -> bool, done: usize, total: usize) -> anyhow::Result<()> {
    match progress(done as u64, total as u64) {
        true => Ok(()),
        false => Err(Error::Interrupted.into()),
    }
}

/// The share of tokens that may differ at a level of agreement; in single precision 1 - 0.99 is more than 0.01.
fn disagreement(agreement: f32) -> f64 {
    1.0 - (f64::from(agreement) * 1e6).round() / 1e6
}

/// The keys with the levels that were certified, and how.
fn certified_meta(
    meta: &ExitMeta,
    levels: &[Level],
    steps: &[(Candidate, Step)],
    n_planned: usize,
    options: &Options,
) -> anyhow::Result<ExitMeta> {
    let off = Candidate::off(meta);
    let of = |level: &Level| level.certified.as_ref().map_or(&off, |certified| &steps[certified.index].0).clone();
    let rows: Vec<Candidate> = levels.iter().map(of).collect();
    let mut meta = meta.clone();
    meta.agreements = options.agreements.clone();
    if !meta.layers.is_empty() {
        meta.thresholds = rows.iter().map(|row| row.exits.clone()).collect();
    }
    if !meta.gate_thresholds.is_empty() {
        meta.gate_thresholds = rows.iter().map(|row| row.gates.clone()).collect();
    }
    if meta.screen.rank > 0 {
        meta.screen.thresholds = rows.iter().map(|row| row.screen).collect();
    }
    if let Some(vocab) = &mut meta.vocab {
        vocab.thresholds = rows.iter().map(|row| row.vocab).collect();
    }
    let certified = |value: fn(&Certified) -> f64| {
        levels.iter().map(|level| level.certified.as_ref().map_or(0.0, value) as f32).collect()
    };
    // The record has one count of prompts, the most that any level took, and one of tokens: the laxest threshold that
    // certified anything is where most levels come from.
    let n_prompts =
        levels.iter().filter_map(|level| level.certified.as_ref()).map(|certified| certified.n_prompts).max();
    let last = levels.iter().filter_map(|level| level.certified.as_ref()).map(|certified| certified.index).max();
    let step = last
        .or(steps.len().checked_sub(1))
        .and_then(|index| steps.get(index))
        .map_or_else(Step::default, |step| step.1);
    meta.calibration = Some(Calibration {
        prompts: options.prompts.clone(),
        n_prompts: u32::try_from(n_prompts.unwrap_or(n_planned))?,
        n_tokens: step.n_tokens,
        delta: options.delta as f32,
        risk: certified(|certified| certified.risk),
        risk_bound: certified(|certified| certified.bound),
        exit_rate: levels.iter().map(|level| level.exit_rate as f32).collect(),
        kv_policy: options.kv_policy,
        sampler: format!("greedy, free-running, up to {} tokens a prompt", options.tokens),
        batch_width: if step.n_drafted > 0 { options.session.max_pending } else { 1 },
        near_ties: step.n_near_ties as f32 / step.n_tokens.max(1) as f32,
        engine: offramp::ENGINE.to_string(),
        date: options.date.clone(),
    });
    Ok(meta)
}

/// The record of a file that was never calibrated.
pub(super) fn no_calibration() -> Calibration {
    Calibration {
        prompts: "none".to_string(),
        n_prompts: 0,
        n_tokens: 0,
        delta: 0.5,
        risk: Vec::new(),
        risk_bound: Vec::new(),
        exit_rate: Vec::new(),
        kv_policy: KvPolicy::CatchUp,
        sampler: "none".to_string(),
        batch_width: 1,
        near_ties: 0.0,
        engine: offramp::ENGINE.to_string(),
        date: "2000-01-01".to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use offramp::gguf::exits::{Base, ConfidenceMap, HeadType, Metric, ScreenMeta};

    /// The keys of a file with one exit, a gate and a screen.
    pub(in crate::calibrate) fn meta() -> ExitMeta {
        let map = ConfidenceMap { metric: vec![0.0, 1.0], agreement: vec![0.0, 1.0] };
        ExitMeta {
            base: Base {
                name: "tiny".to_string(),
                sha256: "0".repeat(64),
                infos_sha256: "1".repeat(64),
                n_embd: 64,
                n_layer: 4,
                n_vocab: 256,
            },
            layers: vec![1],
            head_types: vec![HeadType::Affine],
            head_ranks: vec![0],
            screen: ScreenMeta { rank: 32, shortlist: 16, confidence: map.clone(), thresholds: vec![0.4, 0.8] },
            vocab: None,
            draft: None,
            metric: Metric::Margin,
            confidence: vec![map],
            agreements: vec![0.9, 0.99],
            thresholds: vec![vec![0.5], vec![0.9]],
            gate_thresholds: vec![vec![0.1], vec![0.2]],
            calibration: None,
        }
    }

    #[test]
    fn certified_levels_get_their_thresholds_and_the_others_are_off() {
        let meta = meta();
        let sequence = candidates::of_file(&meta, 0.95).unwrap();
        let certified =
            Certified { index: 0, n_prompts: 100, risk: 0.01, bound: 0.02, reference_bound: 0.03, p_value: 0.04 };
        let level = |agreement, certified: Option<Certified>| Level {
            agreement,
            exit_rate: if certified.is_some() { 0.5 } else { 0.0 },
            certified,
            least_prompts: 1,
        };
        let levels = [level(0.9, Some(certified)), level(0.95, None)];
        let step =
            Step { n_prompts: 100, n_tokens: 200, n_wrong: 2, n_exited: 100, n_near_ties: 4, n_drafted: 9, loss: 1.0 };
        let options = Options {
            agreements: vec![0.9, 0.95],
            delta: 0.05,
            tokens: 64,
            session: SessionParams::default(),
            with_drafts: true,
            kv_policy: KvPolicy::Predict,
            prompts: "some".to_string(),
            date: "2026-01-31".to_string(),
            deadline: None,
        };
        let steps = [(sequence[0].clone(), step)];
        let meta = certified_meta(&meta, &levels, &steps, 100, &options).unwrap();
        assert_eq!(meta.thresholds, [[0.9], [f32::INFINITY]], "the strictest of the sequence is the file's own 0.99");
        assert_eq!(meta.gate_thresholds, [[0.2], [f32::INFINITY]]);
        assert_eq!(meta.screen.thresholds, [0.8, f32::INFINITY]);
        let calibration = meta.calibration.unwrap();
        assert_eq!((calibration.risk, calibration.risk_bound), (vec![0.01, 0.0], vec![0.02, 0.0]));
        assert_eq!((calibration.n_prompts, calibration.n_tokens, calibration.near_ties), (100, 200, 0.02));
        assert_eq!((calibration.exit_rate, calibration.kv_policy), (vec![0.5, 0.0], KvPolicy::Predict));
        assert_eq!(calibration.batch_width, options.session.max_pending, "as wide as the batches of drafts were");
    }

    #[test]
    fn levels_are_exact_shares() {
        assert_eq!((disagreement(0.99), disagreement(0.999)), (1.0 - 0.99, 1.0 - 0.999));
        let highest = |n| highest_certifiable(&[0.9, 0.95, 0.98, 0.99, 0.995], 0.05, n).unwrap();
        assert_eq!(
            [highest(10), highest(100), highest(512), highest(1000)],
            [None, Some(0.95), Some(0.99), Some(0.995)]
        );
    }
}
