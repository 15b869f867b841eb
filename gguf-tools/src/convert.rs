//! `collect`: the first step from a model to a model with exits, on the command line.
//!
//! The steps themselves are the library's part of this package; here are their arguments, progress and summaries. An
//! interruption leaves whole sequences in the folder, and the exit status is 130.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use gguf_tools::collect::prompts::Source;
use gguf_tools::collect::store::{Manifest, Store};
use gguf_tools::collect::{self, Options, Outcome};
use offramp::gguf::exits::Base;
use offramp::gguf::{Error, File};
use offramp::{Model, ModelParams};
use serde_json::json;

use crate::args::{Collect, Tokens};
use crate::output::{Output, Progress};

pub fn collect(args: &Collect, out: &mut Output) -> anyhow::Result<ExitCode> {
    let base = base_of(&args.model)?;
    let (store, outcome) = collect_into(&args.output, &args.model, &base, &args.layers, &args.tokens, args.resume)?;
    let (n_tokens, n_sequences) = (store.n_tokens(), store.n_sequences());
    let folder = args.output.display().to_string();
    if out.json {
        out.value(&json!({
            "output": folder,
            "tokens": n_tokens,
            "sequences": n_sequences,
            "is_complete": outcome == Outcome::Complete,
        }))?;
    } else {
        out.line(format!("{folder}: {n_tokens} tokens of {n_sequences} answers{}", why(outcome)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Hashes the model.
fn base_of(path: &Path) -> anyhow::Result<Base> {
    let file = File::open(path)?;
    let mut progress = Progress::new("hashing");
    Ok(Base::of(&file, &mut |done, total| progress.step(done, total))?)
}

/// Collects what `tokens` asks for into `folder`; an interruption is an error.
fn collect_into(
    folder: &Path,
    path: &Path,
    base: &Base,
    layers: &[u32],
    tokens: &Tokens,
    resume: bool,
) -> anyhow::Result<(Store, Outcome)> {
    let model = Model::load(path, &ModelParams::default())?;
    check_layers(&model, layers)?;
    let source =
        if tokens.corpus.is_empty() { Source::of_model(&model)? } else { Source::of_corpus(&model, &tokens.corpus)? };
    let manifest = Manifest {
        version: Manifest::VERSION,
        model: base.name.clone(),
        sha256: base.sha256.clone(),
        n_embd: base.n_embd,
        n_vocab: base.n_vocab,
        layers: layers.to_vec(),
        prompts: source.description(),
        answer: tokens.answer,
        seed: tokens.seed,
        engine: offramp::ENGINE.to_string(),
    };
    let mut store = Store::open(folder, manifest, tokens.tokens, resume)?;
    let options =
        Options { tokens: tokens.tokens, answer: tokens.answer, seed: tokens.seed, time_limit: tokens.time_limit };
    let mut progress = Progress::counting("collecting", "tokens");
    let outcome = collect::run(&model, &source, &mut store, &options, &mut |done, total| progress.step(done, total))?;
    drop(progress);
    if outcome == Outcome::Interrupted {
        let kept = format!("{} tokens are kept in {}; go on with --resume", store.n_tokens(), folder.display());
        return Err(anyhow::Error::new(Error::Interrupted).context(kept));
    }
    if store.n_tokens() == 0 {
        bail!("no tokens were collected: every answer ended at once, or every prompt was too long");
    }
    Ok((store, outcome))
}

fn check_layers(model: &Model, layers: &[u32]) -> anyhow::Result<()> {
    let (support, n_layer) = (model.gate_support()?, model.info().n_layer);
    if !support.stop_at_result_norm {
        bail!("the hidden states of {} cannot be seen, so it cannot get exits: {support}", model.info().architecture);
    }
    if layers.is_empty() {
        return Ok(());
    }
    if let Some(reason) = &support.no_resume {
        bail!("the layers of {} cannot be stopped at: {reason}", model.info().architecture);
    }
    let last = n_layer.checked_sub(2).context("a model of one layer has none to leave early")?;
    if !layers.is_sorted_by(|a, b| a < b) || layers.iter().any(|layer| *layer > last) {
        bail!("layers {layers:?}: give ascending layers from 0 to {last}");
    }
    Ok(())
}

fn why(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete | Outcome::Interrupted => "",
        Outcome::UsedUp => "; the corpus has no more",
        Outcome::TimeOver => "; the time is over",
    }
}
