//! `eval`: what the exits of a file do, on the command line.
//!
//! It changes no file. Programs that the model writes run only with `--execute-code`. It refuses models without heads, heads
//! without their model, and prompts that are none, before any work.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use gguf_tools::eval::sandbox::Sandbox;
use gguf_tools::eval::tasks::{self, Task};
use gguf_tools::eval::{self, Options, tables};
use gguf_tools::report;
use offramp::gguf::File;
use offramp::gguf::exits::{self, ExitHeads, ExitMeta, Form};
use offramp::{Model, ModelParams};

use crate::args::{Eval, deadline};
use crate::output::{Output, Progress};
use crate::reports;

pub fn run(args: &Eval, out: &mut Output) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    check(args)?;
    let meta = meta(args)?;
    let sandbox = sandbox(args)?;
    eval::modes(&meta, &args.agreement_levels, &args.kv)?;
    let mut params = ModelParams::default();
    params.heads = args.model.as_ref().map(|_| args.file.clone());
    let model = Model::load(args.model.as_ref().unwrap_or(&args.file), &params)?;
    let tasks = tasks(args, model.chat_template().is_some())?;
    let options = Options {
        n_predict: args.n_predict,
        levels: args.agreement_levels.clone(),
        kv: args.kv.clone(),
        policy: args.policy,
        temperature: args.temp,
        seed: args.seed,
        threads: args.threads,
        delta: args.delta,
        deadline: args.time_limit.and_then(|limit| deadline(start, limit)),
    };
    let mut progress = Progress::counting("evaluating", "replies");
    let mut step = |done, total| progress.step(done, total);
    let found = eval::run(&model, &meta, &tasks, &options, sandbox.as_ref(), &mut step)?;
    drop(progress);
    if let Some(folder) = &args.report {
        reports::write(&report::evaluated(&found)?, folder)?;
    }
    print(&found.evaluation, args.markdown, out)?;
    Ok(ExitCode::SUCCESS)
}

fn check(args: &Eval) -> anyhow::Result<()> {
    ensure!(args.delta > 0.0 && args.delta < 1.0, "delta {}: give a probability between 0 and 1", args.delta);
    ensure!(args.temp >= 0.0 && args.temp.is_finite(), "temperature {}: give a number from 0 on", args.temp);
    ensure!(args.max_prompts != Some(0), "no prompts measure nothing: give --max-prompts 1 or more");
    Ok(())
}

/// The keys of the heads, which belong to their model.
fn meta(args: &Eval) -> anyhow::Result<ExitMeta> {
    let file = File::open(&args.file)?;
    let heads = ExitHeads::open(&file)?;
    let base = match (heads.form(), &args.model) {
        (Form::Merged, None) => exits::base(&file)?.context("a merged file without its model")?,
        (Form::Merged, Some(_)) => bail!("{} holds its model: leave --model out", args.file.display()),
        (Form::Sidecar, Some(model)) => File::open_model(model)?,
        (Form::Sidecar, None) => bail!("{} holds heads alone: give their model with --model", args.file.display()),
    };
    heads.check_base(&base, exits::BaseCheck::Infos, &mut |_, _| true)?;
    Ok(heads.meta().clone())
}

/// What runs programs, if that is wanted.
fn sandbox(args: &Eval) -> anyhow::Result<Option<Sandbox>> {
    if !args.execute_code {
        if args.humaneval.is_some() {
            eprintln!(
                "gguf-tools: the programs are measured like other replies, but not run: --execute-code runs them and gives pass@1"
            );
        }
        return Ok(None);
    }
    let sandbox = Sandbox::new()?;
    if !sandbox.is_cut_off() {
        eprintln!("gguf-tools: this system gives no network namespace: programs are run with the network within reach");
    }
    Ok(Some(sandbox))
}

fn tasks(args: &Eval, is_chat: bool) -> anyhow::Result<Vec<Task>> {
    let most = args.max_prompts.unwrap_or(usize::MAX);
    let mut all = tasks::spread(tasks::of_prompts(&args.prompts)?, most);
    if let Some(path) = &args.answers {
        all.extend(tasks::spread(tasks::of_answers(path)?, most));
    }
    if let Some(path) = &args.humaneval {
        all.extend(tasks::spread(tasks::of_humaneval(path, is_chat)?, most));
    }
    Ok(all)
}

fn print(evaluation: &eval::figures::Evaluation, markdown: bool, out: &mut Output) -> anyhow::Result<()> {
    if out.json {
        return out.value(evaluation);
    }
    for note in tables::notes(evaluation) {
        out.line(if markdown { format!("{note}\n") } else { note })?;
    }
    for table in tables::of(evaluation) {
        if markdown {
            out.line(table.markdown())?;
        } else {
            out.line("")?;
            out.line(table.text().trim_end())?;
        }
    }
    Ok(())
}
