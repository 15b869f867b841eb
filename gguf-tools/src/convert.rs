//! `collect` and `add-heads`: from a model to a model with exits, on the command line.
//!
//! The steps themselves are the library's part of this package; here are their arguments, progress and summaries. An
//! interruption leaves whole sequences in the folder, and the exit status is 130. It refuses models that have heads
//! already, and outputs that exist, before any work.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use gguf_tools::add_heads::{self, Made};
use gguf_tools::collect::prompts::Source;
use gguf_tools::collect::store::Reader;
use gguf_tools::collect::store::{KvWidths, Manifest, Store};
use gguf_tools::collect::{self, Options, Outcome};
use gguf_tools::screen::output_matrix::OutputMatrix;
use offramp::gguf::exits::{self, Base, ExitMeta};
use offramp::gguf::{Error, File, WriteOptions};
use offramp::{Model, ModelParams};
use serde_json::json;

use crate::args::{AddHeads, Collect, KvMaps, Tokens};
use crate::output::{Output, Progress};

pub fn collect(args: &Collect, out: &mut Output) -> anyhow::Result<ExitCode> {
    let base = base_of(&args.model)?;
    let wanted = Wanted { layers: &args.layers, kv_maps: args.kv_maps, tokens: &args.tokens };
    let (store, outcome) = collect_into(&args.output, &args.model, &base, wanted, args.resume)?;
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

pub fn add_heads(args: &AddHeads, out: &mut Output) -> anyhow::Result<ExitCode> {
    let write = &args.write;
    check_agreements(args)?;
    if !write.force && write.output.exists() {
        return Err(Error::OutputExists { path: write.output.clone() }.into());
    }
    let file = File::open(&args.model)?;
    if exits::base(&file)?.is_some() || ExitMeta::is_in(&file) {
        bail!("{} has exit heads already: take them off with strip-heads first", args.model.display());
    }
    let matrix = OutputMatrix::of(&file)?;
    let folder = args.resume.clone().unwrap_or_else(|| beside(&write.output));
    if write.dry_run {
        return plan(args, &folder, out);
    }
    let base = base_of(&args.model)?;
    let is_there = args.resume.is_some() && has_tokens(&folder, args.tokens.tokens);
    let outcome = if is_there {
        Outcome::Complete
    } else {
        let wanted = Wanted { layers: &[], kv_maps: KvMaps::Off, tokens: &args.tokens };
        collect_into(&folder, &args.model, &base, wanted, args.resume.is_some())?.1
    };
    let options = add_heads::Options {
        rank: args.screen_rank,
        count: args.shortlist,
        agreements: args.agreement_levels.clone(),
        delta: args.delta,
        seed: args.tokens.seed,
        date: chrono::Local::now().format("%Y-%m-%d").to_string(),
    };
    let mut progress = Progress::counting("fitting", "tokens");
    let reader = Reader::open(&folder)?;
    let made = add_heads::make(&matrix, base, &reader, &options, &mut |what, done, total| {
        progress.next(what);
        progress.step(done, total)
    });
    drop(progress);
    let made = made.map_err(|error| match error.downcast_ref::<Error>() {
        Some(Error::Interrupted) => error.context(format!("go on with --resume {}", folder.display())),
        _ => error,
    })?;
    let bytes = write_heads(&file, &made, args)?;
    if args.resume.is_none() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    summary(&made, args, bytes, why(outcome), out)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a folder holds as many tokens as are wanted; they are then used as they are, without the model.
fn has_tokens(folder: &Path, wanted: u64) -> bool {
    Reader::open(folder).is_ok_and(|reader| reader.n_tokens() >= wanted)
}

/// The folder for the tokens of an output.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".tokens");
    output.with_file_name(name)
}

fn check_agreements(args: &AddHeads) -> anyhow::Result<()> {
    let levels = &args.agreement_levels;
    let is_share = |share: f64| share > 0.0 && share < 1.0;
    let ascending = levels.is_sorted_by(|a, b| a < b) && levels.iter().all(|level| is_share((*level).into()));
    if !ascending || levels.is_empty() {
        bail!("agreement levels {levels:?}: give ascending shares between 0 and 1");
    }
    if !is_share(args.delta) {
        bail!("delta {}: give a probability between 0 and 1", args.delta);
    }
    Ok(())
}

/// Says what would be done.
fn plan(args: &AddHeads, folder: &Path, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (output, tokens) = (args.write.output.display(), args.tokens.tokens);
    if out.json {
        let folder = folder.display().to_string();
        out.value(&json!({ "output": output.to_string(), "tokens": tokens, "folder": folder, "is_written": false }))?;
    } else {
        let what = if args.sidecar { "the heads" } else { "the model with its heads" };
        out.line(format!(
            "{tokens} tokens would be collected in {}, and {what} written to {output}",
            folder.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the heads, or the model with them; gives the bytes of the file.
fn write_heads(file: &File, made: &Made, args: &AddHeads) -> anyhow::Result<u64> {
    let mut sidecar = exits::sidecar(file, &made.meta)?;
    made.write_tensors(&mut sidecar)?;
    let mut progress = Progress::new("writing");
    let mut step = |done, total| progress.step(done, total);
    let options = WriteOptions::replacing(args.write.force);
    let output = &args.write.output;
    if args.sidecar {
        sidecar.write(output, options, &mut step)?;
        return Ok(sidecar.size());
    }
    let heads = File::from_bytes(sidecar.to_bytes()?, "the new heads")?;
    let merged = exits::attach(file, &heads, &mut step)?;
    merged.write(output, options, &mut step)?;
    Ok(merged.size())
}

fn summary(made: &Made, args: &AddHeads, bytes: u64, why: &str, out: &mut Output) -> anyhow::Result<()> {
    let (chosen, calibration) = (&made.chosen, made.meta.calibration.as_ref());
    let (n_tokens, near_ties) =
        calibration.map_or((0, 0.0), |calibration| (calibration.n_tokens, calibration.near_ties));
    if out.json {
        let candidates = made.candidates.iter().map(|pair| {
            json!({ "rank": pair.rank, "shortlist": pair.count, "recall": pair.recall, "fallback": pair.fallback,
                    "bytes": pair.screened })
        });
        let levels = made.levels.iter().map(|level| {
            json!({ "agreement": level.agreement, "is_certified": level.certified.is_some(), "usage": level.usage,
                    "threshold": level.threshold, "least_prompts": level.least_prompts,
                    "risk": level.certified.as_ref().map(|certified| certified.risk),
                    "risk_bound": level.certified.as_ref().map(|certified| certified.bound),
                    "hoeffding_bentkus_bound": level.certified.as_ref().map(|certified| certified.reference_bound) })
        });
        return out.value(&json!({
            "output": args.write.output.display().to_string(), "bytes": bytes,
            "screen": { "rank": chosen.rank, "shortlist": chosen.count, "recall": chosen.recall,
                        "fallback": chosen.fallback, "bytes": chosen.screened },
            "prompts": made.n_prompts, "tokens": n_tokens, "near_ties": near_ties, "changed_prompts": made.n_changed,
            "candidates": candidates.collect::<Vec<_>>(), "levels": levels.collect::<Vec<_>>(),
        }));
    }
    if out.verbose {
        out.line("rank  candidates  recall    bytes    to the full matrix")?;
        for pair in &made.candidates {
            let (recall, screened, fallback) = (100.0 * pair.recall, 100.0 * pair.screened, 100.0 * pair.fallback);
            out.line(format!(
                "{:4}  {:10}  {recall:6.2} %  {screened:5.1} %  {fallback:5.2} %",
                pair.rank, pair.count
            ))?;
        }
    }
    out.line(format!(
        "screen: rank {}, {} candidates, {:.1} % of the output matrix's bytes, with the rescored rows (1/{:.1})",
        chosen.rank,
        chosen.count,
        100.0 * chosen.screened,
        1.0 / chosen.screened
    ))?;
    out.line(format!(
        "on {n_tokens} tokens of {} prompts it was not made from: {:.3} % of the model's choices found; \
         99.9 % if {:.2} % of the tokens take the full matrix",
        made.n_prompts,
        100.0 * chosen.recall,
        100.0 * chosen.fallback
    ))?;
    out.line(format!(
        "prompts that it changes anywhere: {} (at most {:.1} % of all); near-ties: {:.2} % of the tokens",
        made.n_changed,
        100.0 * made.changed_bound,
        100.0 * near_ties
    ))?;
    out.line("agreement  screened tokens  disagreement  bound    Hoeffding-Bentkus")?;
    for level in &made.levels {
        out.line(match &level.certified {
            Some(certified) => format!(
                "{:<9}  {:13.2} %  {:10.3} %  {:5.3} %  {:5.3} %",
                level.agreement,
                100.0 * level.usage,
                100.0 * certified.risk,
                100.0 * certified.bound,
                100.0 * certified.reference_bound
            ),
            None => format!(
                "{:<9}  off: {} prompts cannot certify it, which takes {} or more",
                level.agreement, made.n_prompts, level.least_prompts
            ),
        })?;
    }
    out.line(format!("{}: {bytes} bytes are written{why}", args.write.output.display()))
}

/// Hashes the model.
fn base_of(path: &Path) -> anyhow::Result<Base> {
    let file = File::open(path)?;
    let mut progress = Progress::new("hashing");
    Ok(Base::of(&file, &mut |done, total| progress.step(done, total))?)
}

/// What to collect.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    layers: &'a [u32],
    kv_maps: KvMaps,
    tokens: &'a Tokens,
}

/// Collects into `folder`; an interruption is an error.
fn collect_into(
    folder: &Path,
    path: &Path,
    base: &Base,
    wanted: Wanted<'_>,
    resume: bool,
) -> anyhow::Result<(Store, Outcome)> {
    let Wanted { layers, kv_maps, tokens } = wanted;
    let model = Model::load(path, &ModelParams::default())?;
    let width_difference = check_layers(&model, layers)?;
    let options = Options {
        tokens: tokens.tokens,
        answer: tokens.answer,
        seed: tokens.seed,
        sequences: tokens.sequences,
        threads: tokens.threads,
        time_limit: tokens.time_limit,
    };
    let source =
        if tokens.corpus.is_empty() { Source::of_model(&model)? } else { Source::of_corpus(&model, &tokens.corpus)? };
    options.check(&model, &source)?;
    let manifest = Manifest {
        version: Manifest::VERSION,
        model: base.name.clone(),
        sha256: base.sha256.clone(),
        n_embd: base.n_embd,
        n_vocab: base.n_vocab,
        layers: layers.to_vec(),
        kv: if kv_maps == KvMaps::Auto { kv_widths(&model, layers) } else { Vec::new() },
        prompts: source.description(),
        answer: tokens.answer,
        seed: tokens.seed,
        batch_width: tokens.sequences,
        engine: offramp::ENGINE.to_string(),
        width_difference,
    };
    let mut store = Store::open(folder, manifest, tokens.tokens, resume)?;
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

/// What K/V maps learn from; nothing, said aloud, where the model does not show it.
fn kv_widths(model: &Model, layers: &[u32]) -> Vec<KvWidths> {
    collect::kv_widths(model, layers).unwrap_or_else(|error| {
        eprintln!("gguf-tools: no K/V maps: {error:#}");
        Vec::new()
    })
}

/// Checks that the hidden states can be seen; gives the difference of logits between batch widths.
fn check_layers(model: &Model, layers: &[u32]) -> anyhow::Result<f32> {
    let (support, n_layer) = (model.gate_support()?, model.info().n_layer);
    if !support.stop_at_result_norm {
        bail!("the hidden states of {} cannot be seen, so it cannot get exits: {support}", model.info().architecture);
    }
    if layers.is_empty() {
        return Ok(support.width_difference);
    }
    if let Some(reason) = &support.no_resume {
        bail!("the layers of {} cannot be stopped at: {reason}", model.info().architecture);
    }
    let last = n_layer.checked_sub(2).context("a model of one layer has none to leave early")?;
    if !layers.is_sorted_by(|a, b| a < b) || layers.iter().any(|layer| *layer > last) {
        bail!("layers {layers:?}: give ascending layers from 0 to {last}");
    }
    Ok(support.width_difference)
}

fn why(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete | Outcome::Interrupted => "",
        Outcome::UsedUp => "; the corpus has no more",
        Outcome::TimeOver => "; the time is over",
    }
}
