//! `calibrate`: certifies the levels of a file anew, on prompts of the user's.
//!
//! The heads stay as they are, byte for byte; the thresholds of each level and their record are replaced. The input is
//! never changed, and nothing is written before the work is complete. It refuses heads without their model, prompts
//! that are none, and outputs that exist, before any work.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use gguf_tools::calibrate::candidates;
use gguf_tools::calibrate::confirm::{self, Confirmed};
use gguf_tools::collect::prompts::Source;
use gguf_tools::collect::{self, Options};
use offramp::gguf::exits::{self, ExitHeads, ExitMeta, Form, KvPolicy};
use offramp::gguf::{Error, File, WriteOptions, Writer};
use offramp::{Kv, Model, ModelParams, Policy, SessionParams, Token};
use serde_json::json;

use crate::args::Calibrate;
use crate::output::{Output, Progress};

/// Where the prompts begin that the model writes here: beyond any that heads were made from with the same seed.
const FIRST_PROMPT: u64 = 1 << 40;
/// Prompts that the model writes at once.
const SEQUENCES: u32 = 16;

pub fn run(args: &Calibrate, out: &mut Output) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if !args.write.force && args.write.output.exists() {
        return Err(Error::OutputExists { path: args.write.output.clone() }.into());
    }
    let file = File::open(&args.file)?;
    let heads = ExitHeads::open(&file)?;
    let (form, meta) = (heads.form(), heads.meta().clone());
    let base = match (form, &args.model) {
        (Form::Merged, None) => exits::base(&file)?.context("a merged file without its model")?,
        (Form::Merged, Some(_)) => bail!("{} holds its model: leave --model out", args.file.display()),
        (Form::Sidecar, Some(model)) => File::open(model)?,
        (Form::Sidecar, None) => bail!("{} holds heads alone: give their model with --model", args.file.display()),
    };
    heads.check_base(&base, exits::BaseCheck::Infos, &mut |_, _| true)?;
    let agreements = agreements(args, &meta)?;
    candidates::of_file(&meta, 0.0)?;
    ensure!(args.max_prompts > 0, "no prompts certify nothing: give --max-prompts 1 or more");

    let has_maps = !heads.heads().is_empty() && heads.heads().iter().all(|head| !head.kv.is_empty());
    let Prepared { prompts, description, n_ctx, no_predict } = prepare(args)?;
    let kv_policy = kv_policy(args.kv, has_maps, no_predict)?;
    let highest = confirm::highest_certifiable(&agreements, args.delta, prompts.len())?;
    let sequence = candidates::of_file(&meta, highest.unwrap_or(0.0))?;
    if args.write.dry_run {
        return plan(args, prompts.len(), sequence.len(), out);
    }
    let levels = candidates::as_levels(&meta, &sequence, kv_policy)?;
    let scratch = Scratch(beside(&args.write.output));
    rewritten(&file, &base, &levels)?.write(&scratch.0, WriteOptions::replacing(true), &mut |_, _| true)?;
    let mut params = ModelParams::default();
    params.heads = Some(scratch.0.clone());
    let model = Model::load(model_path(args), &params)?;
    let mut progress = Progress::counting("certifying", "prompts");
    let mut session = SessionParams::default();
    (session.n_ctx, session.n_threads) = (n_ctx, args.threads);
    // Every check is made whatever it costs here: what is certified must not depend on this machine's speed.
    (session.kv, session.policy) = (kv_of(kv_policy), Policy::Always);
    let options = confirm::Options {
        agreements,
        delta: args.delta,
        tokens: args.answer,
        session,
        kv_policy,
        prompts: description,
        date: chrono::Local::now().format("%Y-%m-%d").to_string(),
        deadline: args.time_limit.map(|limit| start + limit),
    };
    let confirmed =
        confirm::confirm(&model, &meta, &sequence, &prompts, &options, &mut |done, total| progress.step(done, total))?;
    drop((progress, model));
    let bytes = write(&file, &base, form, &confirmed.meta, args)?;
    summary(&confirmed, prompts.len(), args, bytes, out)?;
    Ok(ExitCode::SUCCESS)
}

/// What is known of prompts and model before anything exits.
struct Prepared {
    prompts: Vec<Vec<Token>>,
    /// What the prompts are, in words.
    description: String,
    /// The length of a context for them and their answers.
    n_ctx: u32,
    /// Why K and V cannot be predicted on this model.
    no_predict: Option<String>,
}

/// The prompts, with the full model alone in memory.
fn prepare(args: &Calibrate) -> anyhow::Result<Prepared> {
    let model = Model::load(model_path(args), &ModelParams::default())?;
    let source = if args.itself { Source::of_model(&model)? } else { Source::of_corpus(&model, &args.prompts)? };
    let options = Options {
        tokens: 0,
        answer: args.answer,
        seed: args.seed,
        sequences: SEQUENCES,
        threads: args.threads,
        time_limit: None,
    };
    let first = if args.itself { FIRST_PROMPT } else { 0 };
    let mut progress = Progress::counting("prompts", "prompts");
    let mut step = |done, total| progress.step(done, total);
    let (prompts, n_ctx) = collect::prompts(&model, &source, args.max_prompts, first, &options, &mut step)?;
    ensure!(!prompts.is_empty(), "no prompt leaves room for an answer of {} tokens in {n_ctx}", args.answer);
    let no_predict = model.gate_support()?.no_predict.clone();
    Ok(Prepared { prompts, description: source.description(), n_ctx, no_predict })
}

/// The K/V policy to certify and to store.
fn kv_policy(wanted: Kv, has_maps: bool, no_predict: Option<String>) -> anyhow::Result<KvPolicy> {
    Ok(match (wanted, no_predict) {
        (Kv::Predict, None) if has_maps => KvPolicy::Predict,
        (Kv::Predict, None) => bail!("the heads have no K/V maps: certify them with --kv catch-up"),
        (Kv::Predict | Kv::Propagate, Some(reason)) => bail!("K and V cannot be predicted on this model: {reason}"),
        (Kv::Propagate, None) => KvPolicy::Propagate,
        (Kv::Auto, None) if has_maps => KvPolicy::Predict,
        _ => KvPolicy::CatchUp,
    })
}

/// The session's setting for a policy.
fn kv_of(policy: KvPolicy) -> Kv {
    match policy {
        KvPolicy::Predict => Kv::Predict,
        KvPolicy::Propagate => Kv::Propagate,
        _ => Kv::CatchUp,
    }
}

fn model_path(args: &Calibrate) -> &Path {
    args.model.as_ref().unwrap_or(&args.file)
}

/// The levels to certify.
fn agreements(args: &Calibrate, meta: &ExitMeta) -> anyhow::Result<Vec<f32>> {
    let levels = if args.agreement_levels.is_empty() { &meta.agreements } else { &args.agreement_levels };
    // A level of 1 cannot be certified by any number of prompts.
    let levels: Vec<f32> =
        levels.iter().copied().filter(|level| *level < 1.0 || !args.agreement_levels.is_empty()).collect();
    let ascending = levels.is_sorted_by(|a, b| a < b) && levels.iter().all(|level| *level > 0.0 && *level < 1.0);
    ensure!(ascending && !levels.is_empty(), "agreement levels {levels:?}: give ascending shares between 0 and 1");
    ensure!(args.delta > 0.0 && args.delta < 1.0, "delta {}: give a probability between 0 and 1", args.delta);
    Ok(levels)
}

/// The heads of `file` with other keys, as a file of their own.
fn rewritten(file: &File, base: &File, meta: &ExitMeta) -> anyhow::Result<Writer> {
    let mut writer = exits::sidecar(base, meta)?;
    for tensor in ExitHeads::open(file)?.tensors() {
        writer.copy_tensor(file, tensor)?;
    }
    Ok(writer)
}

/// Writes the file in the form that it came in; gives its bytes.
fn write(file: &File, base: &File, form: Form, meta: &ExitMeta, args: &Calibrate) -> anyhow::Result<u64> {
    let heads = rewritten(file, base, meta)?;
    let mut progress = Progress::new("writing");
    let mut step = |done, total| progress.step(done, total);
    let options = WriteOptions::replacing(args.write.force);
    let writer = match form {
        Form::Sidecar => heads,
        Form::Merged => {
            let heads = File::from_bytes(heads.to_bytes()?, "the recalibrated heads")?;
            let merged = exits::attach(base, &heads, &mut step)?;
            merged.write(&args.write.output, options, &mut step)?;
            return Ok(merged.size());
        }
    };
    writer.write(&args.write.output, options, &mut step)?;
    Ok(writer.size())
}

fn plan(args: &Calibrate, prompts: usize, candidates: usize, out: &mut Output) -> anyhow::Result<ExitCode> {
    let output = args.write.output.display().to_string();
    if out.json {
        out.value(&json!({ "output": output, "prompts": prompts, "candidates": candidates, "is_written": false }))?;
    } else {
        out.line(format!("{prompts} prompts would be decoded at up to {candidates} thresholds, for {output}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(found: &Confirmed, n_prompts: usize, args: &Calibrate, bytes: u64, out: &mut Output) -> anyhow::Result<()> {
    let output = args.write.output.display().to_string();
    if out.json {
        let levels = found.levels.iter().map(|level| {
            let certified = level.certified.as_ref();
            json!({ "agreement": level.agreement, "is_certified": certified.is_some(), "exit_rate": level.exit_rate,
                    "risk": certified.map(|certified| certified.risk),
                    "risk_bound": certified.map(|certified| certified.bound),
                    "hoeffding_bentkus_bound": certified.map(|certified| certified.reference_bound),
                    "candidate": certified.map(|certified| certified.index), "least_prompts": level.least_prompts })
        });
        let steps = found.steps.iter().map(|(candidate, step)| {
            json!({ "thresholds": candidate.exits, "screen_threshold": candidate.screen, "prompts": step.n_prompts,
                    "tokens": step.n_tokens, "wrong": step.n_wrong, "exited": step.n_exited,
                    "near_ties": step.n_near_ties })
        });
        let kv_policy = found.meta.calibration.as_ref().map(|calibration| calibration.kv_policy.name());
        return out.value(&json!({
            "output": output, "bytes": bytes, "prompts": n_prompts, "kv_policy": kv_policy,
            "is_cut_short": found.is_cut_short, "levels": levels.collect::<Vec<_>>(),
            "candidates": steps.collect::<Vec<_>>(),
        }));
    }
    if out.verbose {
        out.line("candidate  prompts  tokens  wrong      exits")?;
        for (i, (_, step)) in found.steps.iter().enumerate() {
            let wrong = 100.0 * step.n_wrong as f64 / step.n_tokens.max(1) as f64;
            let (prompts, tokens, exits) = (step.n_prompts, step.n_tokens, 100.0 * step.exit_rate());
            out.line(format!("{:9}  {prompts:7}  {tokens:6}  {wrong:6.3} %  {exits:6.2} %", i + 1))?;
        }
    }
    out.line(format!("on {n_prompts} prompts, decoded freely and read again by the full model:"))?;
    out.line("agreement  exits     disagreement  bound    Hoeffding-Bentkus")?;
    for level in &found.levels {
        out.line(match &level.certified {
            Some(certified) => format!(
                "{:<9}  {:6.2} %  {:10.3} %  {:5.3} %  {:5.3} %",
                level.agreement,
                100.0 * level.exit_rate,
                100.0 * certified.risk,
                100.0 * certified.bound,
                100.0 * certified.reference_bound
            ),
            None if n_prompts < level.least_prompts => format!(
                "{:<9}  off: {n_prompts} prompts cannot certify it, which takes {} without any loss",
                level.agreement, level.least_prompts
            ),
            None => {
                format!("{:<9}  off: not even the strictest thresholds passed on {n_prompts} prompts", level.agreement)
            }
        })?;
    }
    let cut = if found.is_cut_short { "; the time was over before the laxest thresholds were tried" } else { "" };
    out.line(format!("{output}: {bytes} bytes are written{cut}"))
}

/// A file that goes away.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where the heads with the candidates as levels are kept while they are used.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".candidates");
    output.with_file_name(name)
}
