//! Certifying heads on decodes that run freely: what `calibrate` and the end of `add-heads` share.
//!
//! The candidates' thresholds are written beside the output as levels of a file, the model is loaded with it as a user
//! would, and the walk decides ([`confirm`]). It refuses prompts that leave no room for an answer, K/V policies that
//! the model or the heads do not know, and files in which nothing could ever exit.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{bail, ensure};
use gguf_tools::calibrate::candidates::{self, Candidate};
use gguf_tools::calibrate::confirm::{self, Confirmed};
use gguf_tools::calibrate::free_run::Step;
use gguf_tools::calibrate::pilot;
use gguf_tools::collect::prompts::Source;
use gguf_tools::collect::{self, Options};
use gguf_tools::report::Sample;
use offramp::gguf::exits::{self, ExitHeads, ExitMeta, KvPolicy};
use offramp::gguf::{File, WriteOptions, Writer};
use offramp::measure::{Reply, Rescored};
use offramp::{Kv, Model, ModelParams, Policy, Rescorer, SamplerParams, Session, SessionParams, Token};
use serde_json::{Value as Json, json};

use crate::args::Certify;
use crate::output::{Output, Progress};

/// Where the prompts begin that the model writes here: beyond any that heads were made from with the same seed.
const FIRST_PROMPT: u64 = 1 << 40;
/// Replies that a report shows.
const N_SAMPLES: usize = 4;
/// The share of the time that is left in which prompts may be written: fewer that are decoded prove more than many that are not.
const WRITING: f64 = 0.25;
/// Prompts that the model writes at once.
const SEQUENCES: u32 = 16;

/// What is certified, and with what.
pub struct Job<'a> {
    /// The heads.
    pub heads: &'a File,
    /// The model that they were made for.
    pub base: &'a File,
    /// The file that the model is loaded from.
    pub model: &'a Path,
    /// The files of prompts; none where the model writes them.
    pub prompts: &'a [PathBuf],
    /// How many of the first prompts of those files heads were made from: they certify nothing.
    pub n_used: usize,
    /// The most tokens of an answer.
    pub answer: usize,
    /// The levels; those of the heads where there are none.
    pub agreements: &'a [f32],
    /// The rest of how.
    pub how: &'a Certify,
    /// The seed of prompts and of their order.
    pub seed: u64,
    /// Threads that decode.
    pub threads: Option<u32>,
    /// When to stop.
    pub deadline: Option<Instant>,
    /// The file to be written; the candidates are kept beside it.
    pub output: &'a Path,
    /// Whether replies are to be shown.
    pub wants_samples: bool,
}

/// A job whose prompts are there and whose candidates are chosen; nothing has been decided yet.
pub struct Ready<'a> {
    job: &'a Job<'a>,
    meta: ExitMeta,
    agreements: Vec<f32>,
    prompts: Prompts,
    kv_policy: KvPolicy,
    sequence: Vec<Candidate>,
}

/// What is known of prompts and model before anything exits.
struct Prompts {
    prompts: Vec<Vec<Token>>,
    /// What the prompts are, in words.
    description: String,
    /// The length of a context for them and their answers.
    n_ctx: u32,
    /// Why K and V cannot be predicted on this model.
    no_predict: Option<String>,
}

impl Certify {
    /// Checks the numbers.
    pub fn check(&self) -> anyhow::Result<()> {
        let delta = self.delta;
        ensure!(delta > 0.0 && delta < 1.0, "delta {delta}: give a probability between 0 and 1");
        ensure!(self.max_prompts > 0, "no prompts certify nothing: give --max-prompts 1 or more");
        Ok(())
    }
}

impl Job<'_> {
    /// Checks all that can be checked, writes the prompts and chooses the candidates.
    pub fn prepare(&self) -> anyhow::Result<Ready<'_>> {
        let heads = ExitHeads::open(self.heads)?;
        let meta = heads.meta().clone();
        let agreements = self.levels(&meta)?;
        candidates::of_file(&meta, 0.0)?;
        self.how.check()?;
        let has_maps = !heads.heads().is_empty() && heads.heads().iter().all(|head| !head.kv.is_empty());
        let prompts = self.prompts()?;
        let kv_policy = kv_policy(self.how.kv, has_maps, prompts.no_predict.as_deref())?;
        let n = prompts.prompts.len();
        let n_pilot = pilot::size(n);
        let highest = confirm::highest_certifiable(&agreements, self.how.delta, n - n_pilot)?.unwrap_or(0.0);
        // A pilot can afford to look at thresholds that are twice as strict: decodes that run freely err more often than
        // those that the thresholds were chosen on.
        let highest = if n_pilot > 0 { 1.0 - (1.0 - highest) / 2.0 } else { highest };
        let sequence = candidates::of_file(&meta, highest)?;
        Ok(Ready { job: self, meta, agreements, prompts, kv_policy, sequence })
    }

    /// The levels to certify.
    fn levels(&self, meta: &ExitMeta) -> anyhow::Result<Vec<f32>> {
        let levels = if self.agreements.is_empty() { &meta.agreements } else { self.agreements };
        // A level of 1 cannot be certified by any number of prompts.
        let levels: Vec<f32> =
            levels.iter().copied().filter(|level| *level < 1.0 || !self.agreements.is_empty()).collect();
        let ascending = levels.is_sorted_by(|a, b| a < b) && levels.iter().all(|level| *level > 0.0 && *level < 1.0);
        ensure!(ascending && !levels.is_empty(), "agreement levels {levels:?}: give ascending shares between 0 and 1");
        Ok(levels)
    }

    /// The prompts, with the full model alone in memory.
    fn prompts(&self) -> anyhow::Result<Prompts> {
        let model = Model::load(self.model, &ModelParams::default())?;
        let source = match self.prompts {
            [] => Source::of_model(&model)?,
            files => Source::of_corpus(&model, files)?.after(self.n_used).shuffled(self.seed),
        };
        let options = Options {
            tokens: 0,
            answer: self.answer,
            seed: self.seed,
            sequences: SEQUENCES,
            threads: self.threads,
            time_limit: self.deadline.map(|at| at.saturating_duration_since(Instant::now()).mul_f64(WRITING)),
        };
        let first = if self.prompts.is_empty() { FIRST_PROMPT } else { 0 };
        let mut progress = Progress::counting("prompts", "prompts");
        let mut step = |done, total| progress.step(done, total);
        let (prompts, n_ctx) = collect::prompts(&model, &source, self.how.max_prompts, first, &options, &mut step)?;
        ensure!(!prompts.is_empty(), "no prompt leaves room for an answer of {} tokens in {n_ctx}", self.answer);
        let no_predict = model.gate_support()?.no_predict;
        Ok(Prompts { prompts, description: source.description(), n_ctx, no_predict })
    }
}

impl Ready<'_> {
    /// Says what would be done.
    pub fn plan(&self, out: &mut Output) -> anyhow::Result<()> {
        let output = self.job.output.display().to_string();
        let (prompts, candidates) = (self.prompts.prompts.len(), self.sequence.len());
        if out.json {
            return out.value(
                &json!({ "output": output, "prompts": prompts, "candidates": candidates, "is_written": false }),
            );
        }
        out.line(format!("{prompts} prompts would be decoded at up to {candidates} thresholds, for {output}"))
    }

    /// Decodes and decides.
    pub fn confirm(self) -> anyhow::Result<Certificate> {
        let job = self.job;
        let levels = candidates::as_levels(&self.meta, &self.sequence, self.kv_policy)?;
        let scratch = Scratch(beside(job.output));
        rewritten(job.heads, job.base, &levels)?.write(&scratch.0, WriteOptions::replacing(true), &mut |_, _| true)?;
        let mut params = ModelParams::default();
        params.heads = Some(scratch.0.clone());
        let model = Model::load(job.model, &params)?;
        let mut progress = Progress::counting("certifying", "prompts");
        let mut session = SessionParams::default();
        (session.n_ctx, session.n_threads) = (self.prompts.n_ctx, job.threads);
        // Every check is made whatever it costs here: what is certified must not depend on this machine's speed.
        (session.kv, session.policy) = (kv_of(self.kv_policy), Policy::Fixed);
        let options = confirm::Options {
            agreements: self.agreements,
            delta: job.how.delta,
            tokens: job.answer,
            session,
            with_drafts: job.how.drafts,
            kv_policy: self.kv_policy,
            prompts: self.prompts.description,
            date: chrono::Local::now().format("%Y-%m-%d").to_string(),
            deadline: job.deadline,
        };
        let (prompts, session) = (&self.prompts.prompts, options.session.clone());
        let confirmed = confirm::confirm(&model, &self.meta, &self.sequence, prompts, &options, &mut |done, total| {
            progress.step(done, total)
        })?;
        let samples = match job.wants_samples {
            true => samples(&model, &confirmed, &self.sequence, prompts, session, job.answer)?,
            false => Vec::new(),
        };
        Ok(Certificate { confirmed, n_prompts: prompts.len(), samples })
    }
}

/// Replies to a few of the prompts at the laxest thresholds that were certified; none where nothing was.
fn samples(
    model: &Model,
    confirmed: &Confirmed,
    sequence: &[Candidate],
    prompts: &[Vec<Token>],
    mut session: SessionParams,
    answer: usize,
) -> anyhow::Result<Vec<Sample>> {
    let laxest = confirmed.levels.iter().filter_map(|level| level.certified.as_ref()).map(|found| found.index).max();
    let Some((candidate, _)) = laxest.and_then(|index| confirmed.steps.get(index)) else { return Ok(Vec::new()) };
    let Some(index) = sequence.iter().position(|other| other == candidate) else { return Ok(Vec::new()) };
    session.agreement = candidates::agreement(index, sequence.len());
    let mut rescorer = Rescorer::new(model, &session)?;
    let mut session = Session::new(model, &session)?;
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let mut samples = Vec::new();
    for prompt in prompts.iter().step_by(prompts.len().div_ceil(N_SAMPLES).max(1)) {
        let reply = Reply::decode(&mut session, prompt, &greedy, answer)?;
        let rescored = Rescored::of(&mut rescorer, prompt, &reply, &mut || true)?;
        samples.push(Sample::of(model.vocab(), &model.vocab().text(prompt, false), &reply, &rescored));
    }
    Ok(samples)
}

/// The K/V policy to certify and to store.
fn kv_policy(wanted: Kv, has_maps: bool, no_predict: Option<&str>) -> anyhow::Result<KvPolicy> {
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

/// The heads of `file` with other keys, as a file of their own.
pub fn rewritten(file: &File, base: &File, meta: &ExitMeta) -> anyhow::Result<Writer> {
    let mut writer = exits::sidecar(base, meta)?;
    for tensor in ExitHeads::open(file)?.tensors() {
        writer.copy_tensor(file, tensor)?;
    }
    Ok(writer)
}

/// What was certified.
pub struct Certificate {
    /// The walk's outcome, with the keys to write.
    pub confirmed: Confirmed,
    /// The prompts that were there.
    pub n_prompts: usize,
    /// Replies at the laxest level that was certified.
    pub samples: Vec<Sample>,
}

impl Certificate {
    /// As JSON, to stand beside `output` and `bytes`.
    pub fn json(&self) -> Json {
        let found = &self.confirmed;
        let levels = found.levels.iter().map(|level| {
            let certified = level.certified.as_ref();
            json!({ "agreement": level.agreement, "is_certified": certified.is_some(), "exit_rate": level.exit_rate,
                    "prompts": certified.map(|certified| certified.n_prompts),
                    "risk": certified.map(|certified| certified.risk),
                    "risk_bound": certified.map(|certified| certified.bound),
                    "hoeffding_bentkus_bound": certified.map(|certified| certified.reference_bound),
                    "candidate": certified.map(|certified| certified.index), "least_prompts": level.least_prompts })
        });
        let of_step = |(candidate, step): &(Candidate, Step)| {
            json!({ "thresholds": candidate.exits, "screen_threshold": candidate.screen, "prompts": step.n_prompts,
                    "tokens": step.n_tokens, "wrong": step.n_wrong, "exited": step.n_exited,
                    "near_ties": step.n_near_ties, "drafted": step.n_drafted, "risk": step.risk() })
        };
        let calibration = found.meta.calibration.as_ref();
        let kv_policy = calibration.map(|calibration| calibration.kv_policy.name());
        let batch_width = calibration.map(|calibration| calibration.batch_width);
        let walked = found.steps.iter().zip(&found.bounds).map(|(step, bound)| {
            let mut step = of_step(step);
            step["risk_bound"] = json!(bound);
            step
        });
        json!({
            "prompts": self.n_prompts, "kv_policy": kv_policy, "batch_width": batch_width, "is_cut_short": found.is_cut_short,
            "levels": levels.collect::<Vec<_>>(), "candidates": walked.collect::<Vec<_>>(),
            "pilot": found.pilot.iter().map(of_step).collect::<Vec<_>>(),
        })
    }

    /// In words: a line for each level, and with `--verbose` one for each candidate.
    pub fn print(&self, out: &mut Output) -> anyhow::Result<()> {
        let (found, n_prompts) = (&self.confirmed, self.n_prompts);
        if out.verbose {
            out.line("thresholds  prompts  tokens  disagreement  wrong tokens    exits")?;
            let pilot = found.pilot.iter().map(|step| ("pilot", step));
            for (what, (candidate, step)) in pilot.chain(found.steps.iter().map(|step| ("", step))) {
                let wrong = 100.0 * step.n_wrong as f64 / step.n_tokens.max(1) as f64;
                let (prompts, tokens, exits) = (step.n_prompts, step.n_tokens, 100.0 * step.exit_rate());
                let (made_for, risk) = (candidate.agreement, 100.0 * step.risk());
                out.line(format!(
                    "{made_for:<10}  {prompts:7}  {tokens:6}  {risk:10.3} %  {wrong:10.3} %  {exits:5.2} %  {what}"
                ))?;
            }
        }
        out.line(format!("of {n_prompts} prompts, decoded freely and read again by the full model:"))?;
        out.line("agreement  prompts  exits     disagreement  bound     Hoeffding-Bentkus")?;
        for level in &found.levels {
            out.line(match &level.certified {
                Some(certified) => format!(
                    "{:<9}  {:7}  {:6.2} %  {:10.3} %  {:6.3} %  {:6.3} %",
                    level.agreement,
                    certified.n_prompts,
                    100.0 * level.exit_rate,
                    100.0 * certified.risk,
                    100.0 * certified.bound,
                    100.0 * certified.reference_bound
                ),
                None if n_prompts < level.least_prompts => format!(
                    "{:<9}  off: {n_prompts} prompts cannot certify it, which takes {} without any loss",
                    level.agreement, level.least_prompts
                ),
                None => format!(
                    "{:<9}  off: not even the strictest thresholds passed on {n_prompts} prompts",
                    level.agreement
                ),
            })?;
        }
        if found.is_cut_short {
            out.line("the time was over before the laxest thresholds were tried")?;
        }
        Ok(())
    }
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
