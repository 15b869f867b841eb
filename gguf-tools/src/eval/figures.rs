//! Figures of replies: one set for each mode, as they are printed and as they stand in the JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use offramp::gguf::exits::{ExitMeta, KvPolicy};
use offramp::measure::{Depths, Reply, Rescored, quantile};
use offramp::{Exits, Kv};
use serde::Serialize;

use super::Measured;
use super::tasks::{Check, Task};
use crate::calibrate::bounds::{self, Losses};

/// Where parts of a reply begin by which disagreement is told apart, in tokens.
const PARTS: [usize; 6] = [0, 16, 32, 64, 128, 256];

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// The model's name.
    pub model: String,
    /// Its size and quantization, in llama.cpp's words.
    pub description: String,
    /// This library and its llama.cpp.
    pub engine: String,
    /// The blocks that tokens may leave after.
    pub layers: Vec<u32>,
    /// The blocks of the model.
    pub n_layer: u32,
    /// What the file's levels were certified on.
    pub certified_on: Option<String>,
    /// The K/V policy that they were certified with.
    pub certified_kv: Option<&'static str>,
    /// Prompts that were answered.
    pub prompts: usize,
    /// Prompts that left no room for a reply.
    pub left_out: usize,
    /// Whether the time was over before all prompts were answered.
    pub is_cut_short: bool,
    /// The most tokens of a reply.
    pub n_predict: usize,
    /// The temperature; certificates are for 0.
    pub temperature: f32,
    /// Threads that decoded; null for the physical cores.
    pub threads: Option<u32>,
    /// The error probability of each bound.
    pub delta: f64,
    /// Levels that exit nothing, since they were not certified.
    pub levels_off: Vec<f32>,
    /// `off` first, `exact` last.
    pub modes: Vec<ModeFigures>,
}

/// One mode.
#[derive(Debug, Clone, Serialize)]
pub struct ModeFigures {
    /// Whether tokens may leave.
    pub exits: Exits,
    /// Where skipped K and V come from, as asked for; null where nothing is skipped for good.
    pub kv: Option<Kv>,
    /// The levels that have these thresholds.
    pub agreement_levels: Vec<f32>,
    /// Tokens that were emitted, end tokens included.
    pub tokens: usize,
    /// The share of them that the full model would have emitted in the same context, greedily.
    pub agreement: f64,
    /// Tokens that left early and differ.
    pub exit_wrong: Difference,
    /// Tokens that ran through all of the model and differ.
    pub kv_changed: Difference,
    /// The share of tokens at a near-tie of the full model.
    pub near_ties: f64,
    /// The perplexity of the tokens under the full model, at temperature 1.
    pub perplexity: Option<f64>,
    /// Decoded tokens a second, over all prompts.
    pub tokens_per_second: f64,
    /// That against `off`, prompt by prompt.
    pub ratio_to_off: Spread,
    /// Tokens by where they left the model.
    pub exit_histogram: Depths,
    /// The mean number of blocks that a token ran through before it was emitted.
    pub mean_depth: Option<f64>,
    /// The share of the blocks' work that no token asked for; null where skipped blocks run later, or all of them run.
    pub layers_saved: Option<f64>,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Drafts that were right.
    pub drafted_right: usize,
    /// Beside each of [`ModeFigures::agreement_levels`] what was measured.
    pub levels: Vec<LevelFigures>,
    /// The same figures for each category of prompts.
    pub by_category: Vec<PartFigures>,
    /// The same for parts of replies, by position.
    pub by_position: Vec<PartFigures>,
    /// Tasks with a check, and how many passed.
    pub checks: Vec<CheckFigures>,
}

/// Differing tokens, and the logits by which the full model preferred its own.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// How many.
    pub tokens: usize,
    /// The median of the logits.
    pub median_gap: Option<f64>,
    /// What nine in ten of them are below.
    pub p90_gap: Option<f64>,
}

/// Order statistics over prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half are below.
    pub median: Option<f64>,
    /// One in ten is below.
    pub p10: Option<f64>,
    /// Nine in ten are below.
    pub p90: Option<f64>,
}

/// One level of agreement: what its certificate says, and what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct LevelFigures {
    /// The level.
    pub agreement: f32,
    /// The mean disagreement that it allows.
    pub allowed: f64,
    /// The bound that certified it.
    pub certified_bound: Option<f64>,
    /// The mean over the prompts of the share of tokens that differ: what the certificate speaks of.
    pub disagreement: f64,
    /// The betting bound on its expectation, from these prompts alone.
    pub bound: f64,
    /// Whether the measured mean is within what the level allows.
    pub is_inside: bool,
}

/// Some of the tokens.
#[derive(Debug, Clone, Serialize)]
pub struct PartFigures {
    /// Which.
    pub name: String,
    /// Prompts that have any.
    pub prompts: usize,
    /// How many.
    pub tokens: usize,
    /// The share of them that are the full model's own.
    pub agreement: f64,
    /// The share that left early, after a block or at the screen.
    pub exited: f64,
    /// Decode speed against `off`; null for parts of replies.
    pub ratio_to_off: Option<f64>,
}

/// Tasks of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct CheckFigures {
    /// `exact_match` or `pass_at_1`.
    pub name: &'static str,
    /// Tasks that were judged.
    pub tasks: usize,
    /// Those that passed.
    pub passed: usize,
}

impl Difference {
    fn of(gaps: &[f64]) -> Difference {
        Difference { tokens: gaps.len(), median_gap: quantile(gaps, 0.5), p90_gap: quantile(gaps, 0.9) }
    }
}

impl Spread {
    fn of(values: &[f64]) -> Spread {
        Spread { median: quantile(values, 0.5), p10: quantile(values, 0.1), p90: quantile(values, 0.9) }
    }
}

impl ModeFigures {
    /// The figures of `mode` beside those of `off`, whose replies are to the same `tasks`.
    ///
    /// # Errors
    ///
    /// A delta that is no share.
    pub fn of(
        measured: &Measured,
        off: &Measured,
        tasks: &[&Task],
        meta: &ExitMeta,
        n_layer: u32,
        delta: f64,
    ) -> anyhow::Result<ModeFigures> {
        let mode = &measured.mode;
        let mut all = Rescored::default();
        measured.rescored.iter().for_each(|one| all.add(one));
        let replies = || measured.replies.iter();
        let exits: Vec<_> = replies().flat_map(|reply| reply.exits.iter().copied()).collect();
        let depths = Depths::of(&exits);
        let mean_depth = depths.mean(n_layer);
        let saved = || Some(1.0 - mean_depth? / f64::from(n_layer.max(1)));
        let losses = Losses::new(measured.rescored.iter().map(Rescored::loss).collect())?;
        Ok(ModeFigures {
            exits: mode.exits,
            kv: mode.kv,
            agreement_levels: mode.levels.iter().filter_map(|level| meta.agreements.get(*level)).copied().collect(),
            tokens: all.n_tokens,
            agreement: all.agreement(),
            exit_wrong: Difference::of(&all.gaps(true)),
            kv_changed: Difference::of(&all.gaps(false)),
            near_ties: all.n_near_ties as f64 / all.n_tokens.max(1) as f64,
            perplexity: all.perplexity(),
            tokens_per_second: rate(replies()),
            ratio_to_off: Spread::of(&ratios(replies(), off.replies.iter())),
            layers_saved: mode.kv.filter(|kv| !runs_later(*kv, meta)).and_then(|_| saved()),
            exit_histogram: depths,
            mean_depth,
            drafted: replies().map(|reply| reply.n_drafted).sum(),
            drafted_right: replies().map(|reply| reply.n_right).sum(),
            levels: mode.levels.iter().filter_map(|level| level_figures(meta, *level, &losses, delta)).collect(),
            by_category: by_category(measured, off, tasks),
            by_position: by_position(measured),
            checks: checks(measured, tasks),
        })
    }
}

/// Whether skipped blocks run later, for several tokens at once.
fn runs_later(kv: Kv, meta: &ExitMeta) -> bool {
    let certified = meta.calibration.as_ref().map(|calibration| calibration.kv_policy);
    kv == Kv::CatchUp || (kv == Kv::Auto && certified == Some(KvPolicy::CatchUp))
}

fn rate<'a>(replies: impl Iterator<Item = &'a Reply>) -> f64 {
    let (tokens, time) =
        replies.fold((0, Duration::ZERO), |sum, reply| (sum.0 + reply.n_decoded(), sum.1 + reply.decode_time));
    tokens as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// Decode rates against `off`; a reply of one token has none.
fn ratios<'a>(replies: impl Iterator<Item = &'a Reply>, off: impl Iterator<Item = &'a Reply>) -> Vec<f64> {
    let pairs = replies.zip(off).filter(|(reply, off)| reply.n_decoded() > 0 && off.n_decoded() > 0);
    pairs.map(|(reply, off)| reply.decode_rate() / off.decode_rate()).collect()
}

fn level_figures(meta: &ExitMeta, level: usize, losses: &Losses, delta: f64) -> Option<LevelFigures> {
    let agreement = *meta.agreements.get(level)?;
    // In single precision 1 - 0.99 is more than 0.01.
    let allowed = 1.0 - (f64::from(agreement) * 1e6).round() / 1e6;
    let calibration = meta.calibration.as_ref();
    Some(LevelFigures {
        agreement,
        allowed,
        certified_bound: calibration.and_then(|calibration| calibration.risk_bound.get(level)).copied().map(f64::from),
        disagreement: losses.mean(),
        bound: bounds::betting_upper_bound(losses, delta),
        is_inside: losses.mean() <= allowed,
    })
}

/// One sum for each name, in the order of their first prompts.
fn by_category(measured: &Measured, off: &Measured, tasks: &[&Task]) -> Vec<PartFigures> {
    let mut names: Vec<&str> = Vec::new();
    for task in tasks {
        let name = task.category.as_deref().unwrap_or("");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() < 2 && names.iter().all(|name| name.is_empty()) {
        return Vec::new();
    }
    let of_name = |name: &str| {
        let is_of = |i: &usize| tasks[*i].category.as_deref().unwrap_or("") == name;
        let which: Vec<usize> = (0..measured.replies.len()).filter(is_of).collect();
        let mut sum = Rescored::default();
        which.iter().for_each(|i| sum.add(&measured.rescored[*i]));
        let exited: usize = which.iter().map(|i| measured.replies[*i].n_exited()).sum();
        let of = |measured: &'_ Measured| which.iter().map(|i| measured.replies[*i].clone()).collect::<Vec<_>>();
        let (mine, others) = (of(measured), of(off));
        PartFigures {
            name: if name.is_empty() { "none".to_string() } else { name.to_string() },
            prompts: which.len(),
            tokens: sum.n_tokens,
            agreement: sum.agreement(),
            exited: exited as f64 / sum.n_tokens.max(1) as f64,
            ratio_to_off: quantile(&ratios(mine.iter(), others.iter()), 0.5),
        }
    };
    names.into_iter().map(of_name).collect()
}

fn by_position(measured: &Measured) -> Vec<PartFigures> {
    let mut parts: BTreeMap<usize, (usize, usize, usize, usize)> = BTreeMap::new();
    for (reply, rescored) in measured.replies.iter().zip(&measured.rescored) {
        for (i, &from) in PARTS.iter().enumerate() {
            let to = PARTS.get(i + 1).copied().unwrap_or(usize::MAX).min(reply.tokens.len());
            if from >= to {
                break;
            }
            let part = parts.entry(from).or_default();
            part.0 += 1;
            part.1 += to - from;
            part.2 += rescored.differing.iter().filter(|token| (from..to).contains(&token.position)).count();
            part.3 += reply.exits[from..to].iter().filter(|exit| exit.is_some()).count();
        }
    }
    let next = |from: usize| PARTS.iter().copied().find(|part| *part > from);
    let figures = |(from, (prompts, tokens, differing, exited)): (usize, (usize, usize, usize, usize))| PartFigures {
        name: next(from).map_or_else(|| format!("{} and later", from + 1), |next| format!("{} to {next}", from + 1)),
        prompts,
        tokens,
        agreement: 1.0 - differing as f64 / tokens.max(1) as f64,
        exited: exited as f64 / tokens.max(1) as f64,
        ratio_to_off: None,
    };
    parts.into_iter().map(figures).collect()
}

fn checks(measured: &Measured, tasks: &[&Task]) -> Vec<CheckFigures> {
    let name = |task: &Task| match task.check {
        Check::None => None,
        Check::Answer(_) => Some("exact_match"),
        Check::Program(_) => Some("pass_at_1"),
    };
    let of_name = |wanted: &'static str| {
        let judged = measured.passed.iter().zip(tasks).filter(|(_, task)| name(task) == Some(wanted));
        let judged: Vec<bool> = judged.filter_map(|(passed, _)| *passed).collect();
        let passed = judged.iter().filter(|passed| **passed).count();
        (!judged.is_empty()).then_some(CheckFigures { name: wanted, tasks: judged.len(), passed })
    };
    ["exact_match", "pass_at_1"].into_iter().filter_map(of_name).collect()
}

#[cfg(test)]
mod tests;
