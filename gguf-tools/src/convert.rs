//! `collect` and `add-heads`: from a model to a model with exits, on the command line.
//!
//! The steps themselves are the library's part of this package; here are their arguments, progress and summaries; `add-heads` ends
//! with the certificate that `calibrate` gives. An
//! interruption leaves whole sequences in the folder, and the exit status is 130. It refuses models that have heads
//! already, and outputs that exist, before any work.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use gguf_tools::add_heads::costs::Timing;
use gguf_tools::add_heads::heads::candidate_layers;
use gguf_tools::add_heads::{self, HeadOptions, Made, maps};
use gguf_tools::collect::prompts::Source;
use gguf_tools::collect::store::Reader;
use gguf_tools::collect::store::{KvWidths, Manifest, Store};
use gguf_tools::collect::{self, Options, Outcome};
use gguf_tools::screen::output_matrix::OutputMatrix;
use gguf_tools::train::fit::Settings;
use gguf_tools::train::network::Form;
use offramp::gguf::exits::{self, Base, Metric};
use offramp::gguf::{Error, File};
use offramp::{Model, ModelParams};
use serde_json::json;

use crate::args::{AddHeads, Collect, HeadShape, Heads, KvMaps, Layers, MetricChoice, Tokens, Train, deadline};
use crate::certify::{self, Job, Ready};
use crate::output::{Output, Progress};
use crate::target::Target;
use crate::{reports, summary};

/// The time that `add-heads` takes at most where no limit is given.
const TIME_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The share of a time limit that collecting may take.
const COLLECTING: f64 = 0.35;
/// The share of `add-heads`' time limit after which training ends: judging, K/V maps and the certificate want the rest.
const TRAINED: f64 = 0.6;
/// The same where nothing is certified.
const TRAINED_ALONE: f64 = 0.8;
/// The share of training that exits take where a head that drafts is trained after them.
const EXITS: f64 = 0.6;

pub fn collect(args: &Collect, out: &mut Output) -> anyhow::Result<ExitCode> {
    let base = base_of(&args.model)?;
    let wanted = Wanted { layers: &args.layers, kv_maps: args.kv_maps, tokens: &args.tokens, n_prompts: None };
    let (store, outcome) = collect_into(&args.output, &args.model, &base, wanted, args.resume)?;
    let (n_tokens, n_turn_tokens, n_sequences) = (store.n_tokens(), store.n_turn_tokens(), store.n_sequences());
    let folder = args.output.display().to_string();
    if out.json {
        out.value(&json!({
            "output": folder,
            "tokens": n_tokens,
            "turn_tokens": n_turn_tokens,
            "sequences": n_sequences,
            "is_complete": outcome == Outcome::Complete,
        }))?;
    } else {
        let turns = if n_turn_tokens > 0 { format!(", {n_turn_tokens} of users' turns") } else { String::new() };
        out.line(format!("{folder}: {n_tokens} tokens of {n_sequences} answers{turns}{}", why(outcome)))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn add_heads(args: &AddHeads, out: &mut Output) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let limit = args.tokens.time_limit.unwrap_or(TIME_LIMIT);
    args.certify.check()?;
    let model = Target::open(&args.model, &args.write, &args.heads)?;
    let matrix = OutputMatrix::of(&model.file)?;
    let folder = args.resume.clone().unwrap_or_else(|| beside(&model.write.output));
    if args.write.dry_run {
        return plan(args, &model.write.output, &folder, out);
    }
    let base = model.base()?;
    let n_used = n_used(args)?;
    // A folder of a corpus is opened with the corpus: its prompts must not be those that certify.
    let is_there = args.resume.is_some() && n_used.is_none() && has_tokens(&folder, args.tokens.tokens);
    let outcome = if is_there {
        Outcome::Complete
    } else {
        let layers = match &args.heads.layers {
            Layers::Off => Vec::new(),
            Layers::Auto => candidate_layers(base.n_layer),
            Layers::These(layers) => layers.clone(),
        };
        // Training wants its share of the time.
        let time_limit = limit.mul_f64(COLLECTING);
        let tokens = Tokens { time_limit: Some(time_limit), corpus: args.tokens.corpus.clone(), ..args.tokens };
        let kv_maps = if layers.is_empty() { KvMaps::Off } else { args.heads.kv_maps };
        let wanted = Wanted { layers: &layers, kv_maps, tokens: &tokens, n_prompts: n_used };
        collect_into(&folder, &args.model, &base, wanted, args.resume.is_some())?.1
    };
    let timing = timing(&args.model, &args.heads, args.tokens.threads)?;
    let reader = Reader::open(&folder)?;
    let until = deadline(start, limit.mul_f64(TRAINED));
    let options = options(&args.heads, timing, args.tokens.seed, until);
    let go_on = |error: anyhow::Error| match error.downcast_ref::<Error>() {
        Some(Error::Interrupted) => error.context(format!("go on with --resume {}", folder.display())),
        _ => error,
    };
    let made = make(&matrix, base, &reader, &options).map_err(go_on)?;
    if !out.json {
        summary::print(&made, out)?;
        out.flush()?;
    }
    let mut heads = exits::sidecar(&model.file, &made.meta)?;
    made.write_tensors(&mut heads)?;
    let heads = File::from_bytes(heads.to_bytes()?, "the new heads")?;
    let job = Job {
        heads: &heads,
        base: &model.file,
        model: &args.model,
        prompts: &args.tokens.corpus,
        n_used: n_used.unwrap_or(0),
        answer: args.tokens.answer,
        agreements: &args.heads.agreement_levels,
        how: &args.certify,
        seed: args.tokens.seed,
        threads: args.tokens.threads,
        deadline: deadline(start, limit),
        output: &model.write.output,
        wants_samples: args.report.is_some(),
    };
    let certificate = job.prepare().and_then(Ready::confirm).map_err(go_on)?;
    let heads = certify::rewritten(&heads, &model.file, &certificate.confirmed.meta)?;
    let bytes = model.write(heads, &args.heads)?;
    if args.resume.is_none() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let output = model.write.output.display().to_string();
    if let Some(folder) = &args.report {
        reports::made(&made, Some(&certificate), &model.write.output, folder)?;
    }
    if out.json {
        out.value(&json!({ "output": output, "bytes": bytes, "training": summary::json(&made),
                           "calibration": certificate.json() }))?;
    } else {
        certificate.print(out)?;
        out.line(format!("{output}: {bytes} bytes are written{}", why(outcome)))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn train(args: &Train, out: &mut Output) -> anyhow::Result<ExitCode> {
    let until = args.time_limit.and_then(|limit| deadline(Instant::now(), limit.mul_f64(TRAINED_ALONE)));
    let model = Target::open(&args.model, &args.write, &args.heads)?;
    let matrix = OutputMatrix::of(&model.file)?;
    let reader = Reader::open(&args.tokens)?;
    if args.write.dry_run {
        let (tokens, output) = (reader.n_tokens(), model.write.output.display());
        out.line(format!(
            "heads would be trained on {tokens} tokens of {} and written to {output}",
            args.tokens.display()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let base = model.base()?;
    let timing = timing(&args.model, &args.heads, args.threads)?;
    let made = make(&matrix, base, &reader, &options(&args.heads, timing, args.seed, until))?;
    let mut heads = exits::sidecar(&model.file, &made.meta)?;
    made.write_tensors(&mut heads)?;
    let bytes = model.write(heads, &args.heads)?;
    let output = model.write.output.display().to_string();
    if let Some(folder) = &args.report {
        reports::made(&made, None, &model.write.output, folder)?;
    }
    if out.json {
        let mut found = summary::json(&made);
        (found["output"], found["bytes"]) = (output.into(), bytes.into());
        out.value(&found)?;
    } else {
        summary::print(&made, out)?;
        out.line(format!("{output}: {bytes} bytes are written; gguf-tools calibrate lets it exit"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn make(matrix: &OutputMatrix<'_>, base: Base, reader: &Reader, options: &add_heads::Options) -> anyhow::Result<Made> {
    let mut progress = Progress::counting("fitting", "");
    add_heads::make(matrix, base, reader, options, &mut |what, done, total| {
        progress.next(what);
        progress.step(done, total)
    })
}

/// Times the model's parts where exits are to be chosen by them.
fn timing(path: &Path, heads: &Heads, threads: Option<u32>) -> anyhow::Result<Option<Timing>> {
    if heads.layers == Layers::Off {
        return Ok(None);
    }
    if let [layer, output, caught_up] = heads.costs[..] {
        return Ok(Some(Timing { layer, output, caught_up: Some(caught_up) }));
    }
    let model = Model::load(path, &ModelParams::default())?;
    let timing = Timing::measure(&model, threads)?;
    if timing.caught_up.is_none() {
        bail!(
            "the layers of {} cannot be stopped at, so that it cannot get exits: make a screen alone with --layers off",
            model.info().architecture
        );
    }
    Ok(Some(timing))
}

fn options(args: &Heads, timing: Option<Timing>, seed: u64, until: Option<Instant>) -> add_heads::Options {
    let settings =
        |form: Form, until: Option<Instant>| Settings { form, epochs: args.epochs, until, ..Settings::default() };
    // A head that drafts is trained last, in what exits leave of the time.
    let share = if args.draft_head && timing.is_some() { EXITS } else { 1.0 };
    let of_exits = until.map(|until| {
        let now = Instant::now();
        now + until.saturating_duration_since(now).mul_f64(share)
    });
    let heads = timing.map(|timing| HeadOptions {
        layers: match &args.layers {
            Layers::These(layers) => Some(layers.clone()),
            Layers::Auto | Layers::Off => None,
        },
        settings: settings(Form { rank: args.rank, mlp: args.head == HeadShape::Mlp }, of_exits),
        kv_maps: match args.kv_maps {
            KvMaps::Auto => maps::Wanted::Auto,
            KvMaps::On => maps::Wanted::On,
            KvMaps::Off => maps::Wanted::Off,
        },
        timing,
    });
    add_heads::Options {
        screen_rank: args.screen_rank,
        shortlist: args.shortlist,
        vocab: args.exit_vocab,
        heads,
        draft: args.draft_head.then(|| settings(Form { rank: None, mlp: false }, until)),
        metric: match args.metric {
            MetricChoice::Auto => None,
            MetricChoice::MaxProb => Some(Metric::TopProbability),
            MetricChoice::Margin => Some(Metric::Margin),
            MetricChoice::Entropy => Some(Metric::NegativeEntropy),
            MetricChoice::Classifier => Some(Metric::Classifier),
        },
        agreements: args.agreement_levels.clone(),
        seed,
    }
}

/// How many prompts of the corpus heads are made from; the others, half of them at most, certify. `None` where the model
/// writes the prompts: of those there is no end.
fn n_used(args: &AddHeads) -> anyhow::Result<Option<usize>> {
    if args.tokens.corpus.is_empty() {
        return Ok(None);
    }
    let model = Model::load(&args.model, &ModelParams::default())?;
    let n = Source::of_corpus(&model, &args.tokens.corpus)?.n_prompts();
    Ok(n.map(|n| n - args.certify.max_prompts.min(n / 2)))
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

/// Checks the numbers.
pub fn check(args: &Heads) -> anyhow::Result<()> {
    let levels = &args.agreement_levels;
    let is_share = |share: f64| share > 0.0 && share < 1.0;
    let ascending = levels.is_sorted_by(|a, b| a < b) && levels.iter().all(|level| is_share((*level).into()));
    if !ascending || levels.is_empty() {
        bail!("agreement levels {levels:?}: give ascending shares between 0 and 1");
    }
    let are_costs = args.costs.is_empty() || (args.costs.len() == 3 && args.costs.iter().all(|cost| *cost > 0.0));
    if !are_costs {
        bail!("costs {:?}: give three times in milliseconds, each above 0", args.costs);
    }
    if !(args.epochs > 0.0 && args.epochs.is_finite()) {
        bail!("epochs {}: give a number above 0", args.epochs);
    }
    Ok(())
}

/// Says what would be done.
fn plan(args: &AddHeads, output: &Path, folder: &Path, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (output, tokens) = (output.display(), args.tokens.tokens);
    if out.json {
        let folder = folder.display().to_string();
        out.value(&json!({ "output": output.to_string(), "tokens": tokens, "folder": folder, "is_written": false }))?;
    } else {
        let what = if args.heads.sidecar { "the heads" } else { "the model with its heads" };
        out.line(format!(
            "{tokens} tokens would be collected in {}, and {what} written to {output}",
            folder.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Hashes the model.
fn base_of(path: &Path) -> anyhow::Result<Base> {
    let file = File::open_model(path)?;
    let mut progress = Progress::new("hashing");
    Ok(Base::of(&file, &mut |done, total| progress.step(done, total))?)
}

/// What to collect.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    layers: &'a [u32],
    kv_maps: KvMaps,
    tokens: &'a Tokens,
    /// The first prompts of the corpus that may be used; `None` for all.
    n_prompts: Option<usize>,
}

/// Collects into `folder`; an interruption is an error.
fn collect_into(
    folder: &Path,
    path: &Path,
    base: &Base,
    wanted: Wanted<'_>,
    resume: bool,
) -> anyhow::Result<(Store, Outcome)> {
    let Wanted { layers, kv_maps, tokens, n_prompts } = wanted;
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
    let source = source.first(n_prompts.unwrap_or(usize::MAX));
    options.check(&model, &source)?;
    let manifest = Manifest {
        version: Manifest::VERSION,
        model: base.name.clone(),
        sha256: base.sha256.clone(),
        n_embd: base.n_embd,
        n_vocab: base.n_vocab,
        layers: layers.to_vec(),
        kv: if kv_maps == KvMaps::Off { Vec::new() } else { kv_widths(&model, layers) },
        prompts: source.description(),
        answer: tokens.answer,
        seed: tokens.seed,
        batch_width: tokens.sequences,
        engine: offramp::ENGINE.to_string(),
        width_difference,
    };
    let mut store = Store::open(folder, manifest, collect::rows(&source, &options), resume)?;
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
