//! What the exits of a file do to replies: every mode on the same prompts, prompt after prompt in turn, in one process.
//!
//! ```text
//! tasks -> replies of off, calibrated at each certified level, exact -> read again by the full model -> figures -> tables
//! ```
//!
//! Replies run freely through the sessions that `offramp run` makes, and the modes take turns at going first, so that a
//! machine that slows down slows all of them. It measures and certifies nothing; only `calibrate` does. Generated programs
//! are executed only where the caller has asked for it ([`sandbox`]). It refuses files without heads, and prompts that leave
//! no room for a reply.

pub mod answers;
pub mod figures;
pub mod humaneval;
pub mod sandbox;
pub mod tables;
pub mod tasks;

use std::time::Instant;

use anyhow::{bail, ensure};
use offramp::gguf::Error;
use offramp::gguf::exits::ExitMeta;
use offramp::measure::{Reply, Rescored};
use offramp::{Drafts, Exits, Kv, Model, Policy, Rescorer, SamplerParams, Session, SessionParams, Token};

use crate::calibrate::candidates::Candidate;
use crate::collect::prompts::Source;
use crate::report::Sample;
use figures::{Evaluation, ModeFigures};
use sandbox::Sandbox;
use tasks::{Check, Task};

/// Tokens of the decode before the measurement, which fills caches and lets the policy see its first costs.
const N_WARM_UP: usize = 8;
/// Replies that a report shows.
const N_SAMPLES: usize = 4;

/// How to evaluate.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most tokens of a reply.
    pub n_predict: usize,
    /// The levels to measure; empty for all that the file certifies.
    pub levels: Vec<f32>,
    /// Where the K/V of skipped layers come from; calibrated exits are measured once with each.
    pub kv: Vec<Kv>,
    /// Which checks are made.
    pub policy: Policy,
    /// The temperature; 0 is greedy, which certificates are for.
    pub temperature: f32,
    /// The seed of draws at a temperature.
    pub seed: u32,
    /// Threads that decode; `None` takes the physical cores.
    pub threads: Option<u32>,
    /// The error probability of the bounds on what is measured.
    pub delta: f64,
    /// When to stop; what was measured by then stays.
    pub deadline: Option<Instant>,
}

/// A way of decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Mode {
    /// Whether tokens may leave.
    pub exits: Exits,
    /// Where skipped K and V come from; `None` where nothing is skipped for good.
    pub kv: Option<Kv>,
    /// The positions of the file's levels that have these thresholds; several where one threshold certified several.
    pub levels: Vec<usize>,
}

/// What was measured of one mode, prompt by prompt.
#[derive(Debug)]
pub struct Measured {
    /// The mode.
    pub mode: Mode,
    /// The replies.
    pub replies: Vec<Reply>,
    /// The replies as the full model sees them.
    pub rescored: Vec<Rescored>,
    /// Whether each reply passed its task's check; `None` without one.
    pub passed: Vec<Option<bool>>,
}

/// What was measured: figures for tables, and replies to look at.
#[derive(Debug)]
pub struct Evaluated {
    /// All figures.
    pub evaluation: Evaluation,
    /// Replies of the laxest level that was measured.
    pub samples: Vec<Sample>,
}

/// The modes to compare: `off`, calibrated exits at the wanted levels with each policy, `exact`. The levels that are off are
/// left out, and given as the second value.
///
/// # Errors
///
/// A level that the file does not have.
pub fn modes(meta: &ExitMeta, wanted: &[f32], kv: &[Kv]) -> anyhow::Result<(Vec<Mode>, Vec<f32>)> {
    if let Some(missing) = wanted.iter().find(|level| !meta.agreements.contains(level)) {
        bail!("the file has no level {missing}: its levels are {:?}", meta.agreements);
    }
    let mut modes = vec![Mode { exits: Exits::Off, kv: None, levels: Vec::new() }];
    let mut off = Vec::new();
    for &kv in kv {
        let mut distinct: Vec<(Candidate, Vec<usize>)> = Vec::new();
        for (level, agreement) in meta.agreements.iter().enumerate() {
            if !(wanted.is_empty() || wanted.contains(agreement)) {
                continue;
            }
            let candidate = Candidate { agreement: 0.0, ..Candidate::of_level(meta, level) };
            let is_finite = candidate.exits.iter().chain([&candidate.screen]).any(|threshold| threshold.is_finite());
            if meta.calibration.is_none() || !is_finite {
                off.push(*agreement);
            } else if let Some((_, levels)) = distinct.iter_mut().find(|(other, _)| *other == candidate) {
                levels.push(level);
            } else {
                distinct.push((candidate, vec![level]));
            }
        }
        let calibrated = |(_, levels)| Mode { exits: Exits::Calibrated, kv: Some(kv), levels };
        modes.extend(distinct.into_iter().map(calibrated));
    }
    modes.push(Mode { exits: Exits::Exact, kv: None, levels: Vec::new() });
    // Each policy finds the same ones.
    off.truncate(off.len() / kv.len().max(1));
    Ok((modes, off))
}

/// Evaluates `model`, which was loaded with the heads that `meta` describes, on `tasks`. Programs run in `sandbox`; without
/// one they are not judged. `progress` is told of the replies made and to be made, and stops with `false`.
///
/// # Errors
///
/// No task that fits, a level that is not there, a decode that fails, [`Error::Interrupted`].
pub fn run(
    model: &Model,
    meta: &ExitMeta,
    tasks: &[Task],
    options: &Options,
    sandbox: Option<&Sandbox>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Evaluated> {
    let (modes, levels_off) = modes(meta, &options.levels, &options.kv)?;
    let (prompts, n_ctx) = fitting(model, tasks, options.n_predict)?;
    let mut params = SessionParams::default();
    (params.n_ctx, params.n_threads, params.policy) = (n_ctx, options.threads, options.policy);
    let mut sampler = SamplerParams::default();
    (sampler.temperature, sampler.seed) = (options.temperature, Some(options.seed));
    let mut sessions: Vec<Session> = Vec::new();
    for mode in &modes {
        let mut params = params.clone();
        params.exits = mode.exits;
        if options.policy == Policy::Always && mode.exits == Exits::Calibrated {
            // Drafted tokens would leave at no exit.
            params.drafts = Drafts::Off;
        }
        params.kv = mode.kv.unwrap_or_default();
        params.agreement = mode.levels.first().and_then(|level| meta.agreements.get(*level)).copied().unwrap_or(0.99);
        let mut session = match sessions.first() {
            Some(first) => first.beside(&params)?,
            None => Session::new(model, &params)?,
        };
        Reply::decode(&mut session, &prompts[0].1, &sampler, N_WARM_UP.min(options.n_predict))?;
        sessions.push(session);
    }
    let mut rescorer = Rescorer::new(model, &params)?;
    let empty =
        |mode: &Mode| Measured { mode: mode.clone(), replies: Vec::new(), rescored: Vec::new(), passed: Vec::new() };
    let mut measured: Vec<Measured> = modes.iter().map(empty).collect();
    let (n_modes, total) = (modes.len(), (modes.len() * prompts.len()) as u64);
    let mut is_cut_short = false;
    for (i, (task, prompt)) in prompts.iter().enumerate() {
        is_cut_short = i > 0 && options.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_cut_short {
            break;
        }
        let mut replies: Vec<Option<Reply>> = (0..n_modes).map(|_| None).collect();
        for turn in 0..n_modes {
            if !progress((i * n_modes + turn) as u64, total) {
                return Err(Error::Interrupted.into());
            }
            let mode = (turn + i) % n_modes;
            replies[mode] = Some(Reply::decode(&mut sessions[mode], prompt, &sampler, options.n_predict)?);
        }
        // A text that another mode gave as well needs no second reading and no second check.
        let mut known: Vec<(Vec<Token>, Rescored, Option<bool>)> = Vec::new();
        for (measured, reply) in measured.iter_mut().zip(replies.into_iter().flatten()) {
            let (rescored, passed) = match known.iter().find(|(tokens, ..)| *tokens == reply.tokens) {
                Some((_, rescored, passed)) => (rescored.with_exits_of(&reply), *passed),
                None => {
                    let rescored = Rescored::of(&mut rescorer, prompt, &reply, &mut || true)?;
                    let passed = passes(task, &reply.text, sandbox)?;
                    known.push((reply.tokens.clone(), rescored.clone(), passed));
                    (rescored, passed)
                }
            };
            measured.replies.push(reply);
            measured.rescored.push(rescored);
            measured.passed.push(passed);
        }
    }
    let used: Vec<&Task> = prompts.iter().map(|(task, _)| *task).take(measured[0].replies.len()).collect();
    let info = model.info();
    let file = || info.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let calibration = meta.calibration.as_ref();
    let evaluation = Evaluation {
        model: info.name.clone().unwrap_or_else(file),
        description: info.description.clone(),
        engine: offramp::ENGINE.to_string(),
        layers: meta.layers.clone(),
        n_layer: info.n_layer,
        certified_on: calibration.map(|calibration| calibration.prompts.clone()),
        certified_kv: calibration.map(|calibration| calibration.kv_policy.name()),
        prompts: used.len(),
        left_out: tasks.len() - prompts.len(),
        is_cut_short,
        n_predict: options.n_predict,
        temperature: options.temperature,
        threads: options.threads,
        delta: options.delta,
        levels_off,
        modes: measured
            .iter()
            .map(|mode| ModeFigures::of(mode, &measured[0], &used, meta, info.n_layer, options.delta))
            .collect::<anyhow::Result<_>>()?,
    };
    Ok(Evaluated { evaluation, samples: samples(model, &measured, &used) })
}

/// A task with its prompt's tokens.
type Prompted<'t> = (&'t Task, Vec<Token>);

/// The tasks whose prompts leave room for a reply, with their tokens, and the length of a context for them.
fn fitting<'t>(model: &Model, tasks: &'t [Task], n_predict: usize) -> anyhow::Result<(Vec<Prompted<'t>>, u32)> {
    ensure!(n_predict > 0, "replies of no token: give -n 1 or more");
    let n_most = model.info().n_ctx_train as usize;
    let texts: Vec<String> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let prompts = Source::tokens_of(model, &texts)?;
    let all = tasks.iter().zip(prompts);
    let prompts: Vec<Prompted<'_>> =
        all.filter(|(_, prompt)| !prompt.is_empty() && prompt.len().saturating_add(n_predict) <= n_most).collect();
    let longest = prompts.iter().map(|(_, prompt)| prompt.len()).max();
    let Some(longest) = longest else {
        bail!("no prompt leaves room for a reply of {n_predict} tokens in a context of {n_most}");
    };
    Ok((prompts, u32::try_from(longest + n_predict)?))
}

/// Whether a reply passes its task's check.
fn passes(task: &Task, reply: &str, sandbox: Option<&Sandbox>) -> anyhow::Result<Option<bool>> {
    Ok(match &task.check {
        Check::None => None,
        Check::Answer(expected) => Some(answers::is_match(reply, expected)),
        Check::Program(problem) => match sandbox {
            Some(sandbox) => Some(sandbox.passes(&problem.program(reply))?),
            None => None,
        },
    })
}

/// Replies of the laxest level, spread over the prompts.
fn samples(model: &Model, measured: &[Measured], tasks: &[&Task]) -> Vec<Sample> {
    let laxest = measured.iter().filter(|measured| measured.mode.exits == Exits::Calibrated);
    let Some(laxest) = laxest.min_by_key(|measured| measured.mode.levels.first().copied()) else { return Vec::new() };
    let n = laxest.replies.len();
    let step = n.div_ceil(N_SAMPLES).max(1);
    (0..n)
        .step_by(step)
        .map(|i| Sample::of(model.vocab(), &tasks[i].prompt, &laxest.replies[i], &laxest.rescored[i]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp::gguf::exits::{Base, Calibration, ConfidenceMap, HeadType, KvPolicy, Metric, ScreenMeta};

    pub(super) fn meta(thresholds: &[f32]) -> ExitMeta {
        let map = ConfidenceMap { metric: vec![0.0, 1.0], agreement: vec![0.0, 1.0] };
        let n = thresholds.len();
        ExitMeta {
            vocab: None,
            draft: None,
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
            screen: ScreenMeta { rank: 32, shortlist: 16, confidence: map.clone(), thresholds: vec![f32::INFINITY; n] },
            metric: Metric::Margin,
            confidence: vec![map],
            agreements: [0.9, 0.95, 0.99][..n].to_vec(),
            thresholds: thresholds.iter().map(|threshold| vec![*threshold]).collect(),
            gate_thresholds: Vec::new(),
            calibration: Some(Calibration {
                prompts: "some".to_string(),
                n_prompts: 400,
                n_tokens: 4000,
                delta: 0.05,
                risk: vec![0.01; n],
                risk_bound: vec![0.03; n],
                exit_rate: vec![0.5; n],
                kv_policy: KvPolicy::Predict,
                sampler: "greedy".to_string(),
                batch_width: 1,
                near_ties: 0.0,
                engine: "test".to_string(),
                date: "2026-01-31".to_string(),
            }),
        }
    }

    #[test]
    fn levels_of_one_threshold_are_measured_once_and_those_that_are_off_not_at_all() {
        let mut meta = meta(&[0.7, 0.7, f32::INFINITY]);
        let levels = |meta: &ExitMeta, wanted: &[f32]| -> (Vec<Vec<usize>>, Vec<f32>) {
            let (modes, off) = modes(meta, wanted, &[Kv::Auto]).unwrap();
            assert!(modes.first().unwrap().exits == Exits::Off && modes.last().unwrap().exits == Exits::Exact);
            (modes[1..modes.len() - 1].iter().map(|mode| mode.levels.clone()).collect(), off)
        };
        assert_eq!(levels(&meta, &[]), (vec![vec![0, 1]], vec![0.99]));
        assert_eq!(levels(&meta, &[0.95]), (vec![vec![1]], vec![]));
        assert!(modes(&meta, &[0.5], &[Kv::Auto]).unwrap_err().to_string().contains("no level 0.5"));
        let both = modes(&meta, &[0.9], &[Kv::Predict, Kv::CatchUp]).unwrap().0;
        assert_eq!(both.iter().filter_map(|mode| mode.kv).collect::<Vec<_>>(), [Kv::Predict, Kv::CatchUp]);
        meta.calibration = None;
        assert_eq!(levels(&meta, &[]), (vec![], vec![0.9, 0.95, 0.99]));
    }
}
