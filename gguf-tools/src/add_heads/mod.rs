//! From collected tokens to exits that can be written: split, fit, choose, judge.
//!
//! The screen comes first, because every exit's candidates are its candidates. Then heads are trained after all candidate layers;
//! the layers that pay are chosen by their measured outcomes and costs; and the cascade of them and the screen is judged on
//! prompts that nothing was made from. It certifies nothing: only `calibrate` does. It refuses collections that are too small for that, those of another model, and layers that were not collected.

mod among;
mod clock;
pub mod costs;
pub mod draft;
pub mod heads;
pub mod maps;
pub mod screen;
mod simulate;
pub mod split;
pub mod suggest;
pub mod vocab;
mod write;

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use offramp::gguf::exits::{Base, ConfidenceMap, ExitMeta, Metric, ScreenMeta, VocabMeta};

use crate::calibrate::isotonic;
use crate::collect::store::{Reader, sequences};
use crate::screen::Screen;
use crate::screen::choose::Candidate;
use crate::screen::evaluate::{Evaluator, Found};
use crate::screen::output_matrix::OutputMatrix;
use crate::train::cascade::{Cascade, Token};
use crate::train::choose::{self, Choice};
use crate::train::classifier::Classifier;
use crate::train::compare::{self, Coverage, Reliability};
use crate::train::evaluate::METRICS;
use crate::train::fit::{Look, Settings};
use crate::train::head::Head;
use crate::train::kv;
use among::AmongVocab;
use clock::Clock;
use costs::Timing;
use heads::{Candidates, Quality};
use simulate::{at_norm, tokens_of};
use split::Split;
use suggest::Level;
use vocab::{ExitVocab, Worth};

/// What to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// The rank of the screen; `None` chooses.
    pub screen_rank: Option<usize>,
    /// The number of candidates; `None` chooses.
    pub shortlist: Option<usize>,
    /// The tokens that exits choose among, and the first check at full depth.
    pub vocab: vocab::Wanted,
    /// The exits; `None` makes a screen alone.
    pub heads: Option<HeadOptions>,
    /// How to train a head that drafts the token after the next; `None` makes none.
    pub draft: Option<Settings>,
    /// How sure a check is; `None` chooses.
    pub metric: Option<Metric>,
    /// The levels of agreement, ascending.
    pub agreements: Vec<f32>,
    /// The seed of everything random.
    pub seed: u64,
}

/// Which exits to make, and how.
#[derive(Debug, Clone)]
pub struct HeadOptions {
    /// The layers; `None` chooses among those that were collected.
    pub layers: Option<Vec<u32>>,
    /// How to train.
    pub settings: Settings,
    /// Whether skipped keys and values are predicted.
    pub kv_maps: maps::Wanted,
    /// What parts of a token cost here.
    pub timing: Timing,
}

/// Steps of the work, for progress: what, how much of it is done, of how much; `false` stops.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) -> bool + 'a;

/// What was made, and what was measured on the way.
#[derive(Debug)]
pub struct Made {
    /// The keys.
    pub meta: ExitMeta,
    /// The screen's tensors.
    pub screen: Screen,
    /// The exits, lowest first.
    pub heads: Vec<Head>,
    /// The tokens that exits choose among; `None` for all.
    pub vocab: Option<ExitVocab>,
    /// How sure the check among those tokens is at full depth.
    pub vocab_classifier: Option<Classifier>,
    /// The head that drafts.
    pub draft: Option<draft::Trained>,
    /// Every pair of rank and number of candidates that was measured.
    pub candidates: Vec<Candidate>,
    /// The chosen one, measured on the prompts that judge.
    pub chosen: Candidate,
    /// How the candidate layers turned out; empty without exits.
    pub quality: Vec<Quality>,
    /// How training went; empty without exits.
    pub looks: Vec<Look>,
    /// What all exits together let leave by each metric, and by the calibrated map; empty without exits.
    pub comparison: Vec<Coverage>,
    /// How far the confidence of each exit and of the screen can be believed, on the prompts that judge.
    pub reliability: Vec<Reliability>,
    /// How well maps predict skipped keys and values, exit by exit as they were first chosen.
    pub kv_quality: Vec<Vec<kv::Quality>>,
    /// Whether these maps are used; otherwise the exits were chosen again, to be caught up.
    pub uses_maps: bool,
    /// All candidates as a cascade with its costs, and every set of them that was simulated, best first.
    pub sets: (Cascade, Vec<Choice>),
    /// The levels, as simulated.
    pub levels: Vec<Level>,
    /// How many times as many tokens an oracle would give that asks no head but the first that is right, and pays for
    /// nothing but blocks: what no rule over these heads can reach.
    pub oracle: f64,
    /// Prompts that judge.
    pub n_prompts: usize,
    /// Their tokens.
    pub n_tokens: u64,
    /// How many of them the screen alone would have changed.
    pub n_changed: usize,
    /// Tokens at which the full model's two best are closer than logits differ by between batch widths.
    pub n_near_ties: u64,
    /// How long each part took.
    pub times: Vec<(&'static str, Duration)>,
}

/// Makes exits for the model whose tokens `reader` holds.
///
/// # Errors
///
/// Too few sequences, tokens of another model, layers that were not collected, training that diverges,
/// [`offramp::gguf::Error::Interrupted`].
pub fn make(
    matrix: &OutputMatrix<'_>,
    base: Base,
    reader: &Reader,
    options: &Options,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Made> {
    let manifest = reader.manifest();
    ensure!(
        manifest.sha256 == base.sha256,
        "the tokens were collected from {} ({}), not from {} ({})",
        manifest.model,
        manifest.sha256,
        base.name,
        base.sha256
    );
    let mut clock = Clock::default();
    let split = Split::of(reader, options.seed)?;
    let (choose, judge) = (&split.choose[..], &split.judge[..]);
    let screen::Chosen { screen, choice: size, candidates } = screen::make(matrix, reader, &split, options, progress)?;
    let mut evaluator = Evaluator::new(*matrix, &screen)?;
    let mut screened = |what: &'static str, sequences: &[Range<u64>]| -> anyhow::Result<Vec<Vec<Found>>> {
        let total = sequences::count(sequences);
        let found = evaluator.run(reader, sequences, &[size.count], &mut |done| progress(what, done, total))?;
        Ok(found.into_iter().next().unwrap_or_default())
    };
    let screened = (screened("mapping", choose)?, screened("judging", judge)?);
    let slacks: Vec<(f32, bool)> = screened.0.concat().iter().map(|token| (token.slack, token.is_found)).collect();
    let screen_map = isotonic::fit(&slacks);
    clock.lap("screen");

    // The maps themselves are made for the chosen exits alone, later.
    let wanted_maps = options.heads.as_ref().map_or(maps::Wanted::Off, |wanted| wanted.kv_maps);
    let map_bytes = kv::block_bytes(reader, base.n_layer).filter(|_| wanted_maps != maps::Wanted::Off);
    let layers = options.heads.as_ref().map(|wanted| layers(wanted, reader)).transpose()?.unwrap_or_default();
    let timing = timing(options.heads.as_ref());
    let saved = match &options.heads {
        Some(_) => saved_in_the_middle(&timing, matrix, &layers, base.n_layer, map_bytes),
        // Without exits the fewest tokens do.
        None => 0.0,
    };
    let worth = Worth { saved, check: &|n, count| timing.check(matrix, &screen, n, count) };
    let vocab = ExitVocab::choose(options.vocab, matrix.n_vocab(), reader, (&split.fit, choose), &worth, progress)?;
    let mut count = size.count;
    let mut among = None;
    if let Some(vocab) = &vocab {
        (evaluator, count) = (evaluator.among(&vocab.tokens)?, vocab.shortlist);
        evaluator.unpack()?;
        among = Some(AmongVocab::judge(&evaluator, count, reader, &split, progress)?);
    }
    let mut trained = Candidates::default();
    if let Some(among) = &among {
        trained.metric = options.metric.unwrap_or(METRICS[heads::best_metric(std::slice::from_ref(&among.choosing))]);
    }
    if let Some(wanted) = &options.heads {
        evaluator.unpack()?;
        let settings = Settings { seed: options.seed, ..wanted.settings.clone() };
        let wanted = (&layers[..], options.metric, &settings);
        trained = heads::train(matrix, (&evaluator, count), reader, &split, wanted, progress)?;
        clock.lap("heads");
    }
    let mut draft = None;
    if let Some(settings) = &options.draft {
        evaluator.unpack()?;
        let settings = Settings { seed: options.seed, ..settings.clone() };
        draft = Some(draft::train(matrix, (&evaluator, count), reader, &split, &settings, progress)?);
        clock.lap("draft head");
    }
    let metric = trained.metric;
    let vocab_map = among.as_ref().map(|among| heads::confidence(&among.choosing.concat(), metric)).unwrap_or_default();
    let confidences = (&screen_map, &vocab_map);
    let choosing = at_norm(&screened.0, among.as_ref().map(|among| &among.choosing), confidences, metric);
    let judging = at_norm(&screened.1, among.as_ref().map(|among| &among.judging), confidences, metric);
    let mut cascade = Cascade {
        layers,
        n_layer: base.n_layer,
        costs: timing.costs(matrix, &screen, size.count, vocab.as_ref(), &trained.heads, map_bytes),
    };
    let tokens = tokens_of(&trained.outcomes, &trained.confidence, metric, &choosing).concat();
    let (mut sets, mut choice) = chosen(&cascade, &tokens, options)?;
    clock.lap("layers");

    let of_choice = |choice: &Choice| choice.exits.iter().map(|exit| trained.heads[*exit].clone()).collect();
    let mut heads: Vec<Head> = of_choice(&choice);
    let mut kv_quality = Vec::new();
    if map_bytes.is_some() && kv::is_collected(reader, base.n_layer) {
        kv_quality = maps::fit(&mut heads, base.n_layer, reader, &split, progress)?;
        clock.lap("K/V maps");
    }
    let uses_maps = !kv_quality.is_empty() && (wanted_maps == maps::Wanted::On || maps::are_good(&kv_quality));
    if !kv_quality.is_empty() && !uses_maps {
        // Skipped blocks are caught up then, which costs more, so that other exits may pay.
        cascade.costs.skipped = timing.skipped(matrix, None);
        (sets, choice) = chosen(&cascade, &tokens, options)?;
        heads = of_choice(&choice);
        clock.lap("layers");
    }
    let confidence: Vec<ConfidenceMap> = choice.exits.iter().map(|exit| trained.confidence[*exit].clone()).collect();
    let outcomes = heads::outcomes(&heads, &evaluator, count, reader, judge, "judging", progress)?;
    let judged = tokens_of(&outcomes, &confidence, metric, &judging).concat();
    let chosen_cascade = cascade.of(&choice.exits);
    let levels = suggest::levels(&chosen_cascade, &choice, &judged);
    let oracle = chosen_cascade.plain() / chosen_cascade.oracle(&judged).max(f64::MIN_POSITIVE);
    clock.lap("judging");
    let screen_meta = ScreenMeta {
        rank: u32::try_from(screen.rank)?,
        shortlist: u32::try_from(size.count)?,
        confidence: screen_map,
        thresholds: levels.iter().map(|level| level.screen).collect(),
    };
    let vocab_meta = |vocab: &ExitVocab| -> anyhow::Result<VocabMeta> {
        Ok(VocabMeta {
            n_tokens: u32::try_from(vocab.tokens.len())?,
            shortlist: u32::try_from(vocab.shortlist)?,
            confidence: vocab_map.clone(),
            thresholds: levels.iter().map(|level| level.vocab).collect(),
        })
    };
    let vocab_meta = vocab.as_ref().map(vocab_meta).transpose()?;
    let drafts = draft.as_ref().map(|draft| draft.head.confidence.clone());
    let meta = meta(base, screen_meta, (vocab_meta, drafts), &heads, (metric, confidence), &levels)?;
    Ok(Made {
        chosen: Candidate::measure(size.rank, size.count, size.screened, &screened.1),
        screen,
        vocab,
        draft,
        vocab_classifier: among.map(|among| among.classifier),
        candidates,
        quality: trained.quality,
        looks: trained.looks,
        comparison: compare::metrics(&outcomes, &meta.confidence, metric),
        reliability: compare::reliability(&meta.layers, &judged),
        kv_quality,
        uses_maps,
        sets: (cascade, sets),
        levels,
        oracle,
        n_prompts: screened.1.len(),
        n_tokens: sequences::count(judge),
        n_changed: screened.1.iter().filter(|prompt| prompt.iter().any(|token| !token.is_found)).count(),
        n_near_ties: near_ties(reader, judge)?,
        times: clock.laps,
        heads,
        meta,
    })
}

/// What parts of a token cost. Without exits no time is compared, so that any will do.
fn timing(wanted: Option<&HeadOptions>) -> Timing {
    wanted.map_or(Timing { layer: 1.0, output: 1.0, caught_up: None }, |wanted| wanted.timing)
}

/// Every set of exits that was simulated, best first, and the best. Layers that the user gave are all taken.
fn chosen(cascade: &Cascade, tokens: &[Token], options: &Options) -> anyhow::Result<(Vec<Choice>, Choice)> {
    let agreements = &options.agreements;
    let mut sets = match options.heads.as_ref().and_then(|wanted| wanted.layers.as_ref()) {
        Some(_) => {
            let all: Vec<usize> = (0..cascade.layers.len()).collect();
            vec![choose::set(cascade, tokens, &all, agreements)]
        }
        None => choose::sets(cascade, tokens, agreements),
    };
    let best = sets.first_mut().context("no set of layers could be simulated")?;
    *best = choose::refined(cascade, tokens, best);
    let best = best.clone();
    Ok((sets, best))
}

/// The keys. Without the record of a calibration nothing exits.
fn meta(
    base: Base,
    screen: ScreenMeta,
    (vocab, draft): (Option<VocabMeta>, Option<ConfidenceMap>),
    heads: &[Head],
    (metric, confidence): (Metric, Vec<ConfidenceMap>),
    levels: &[Level],
) -> anyhow::Result<ExitMeta> {
    // Tables of no exit have no rows.
    let with_exits = if heads.is_empty() { &[][..] } else { levels };
    Ok(ExitMeta {
        base,
        layers: heads.iter().map(|head| head.layer).collect(),
        head_types: heads.iter().map(Head::ty).collect(),
        head_ranks: heads.iter().map(|head| u32::try_from(head.rank())).collect::<Result<_, _>>()?,
        screen,
        vocab,
        draft,
        metric,
        confidence,
        agreements: levels.iter().map(|level| level.agreement).collect(),
        thresholds: with_exits.iter().map(|level| vec![level.threshold; heads.len()]).collect(),
        gate_thresholds: with_exits.iter().map(|level| level.gates.clone()).collect(),
        calibration: None,
    })
}

/// What a token saves that leaves after the middle one of `layers`, in milliseconds.
fn saved_in_the_middle(
    timing: &Timing,
    matrix: &OutputMatrix<'_>,
    layers: &[u32],
    n_layer: u32,
    map_bytes: Option<u64>,
) -> f64 {
    let n_spared = layers.get(layers.len() / 2).map_or(0, |layer| n_layer.saturating_sub(layer + 1));
    f64::from(n_spared) * (timing.layer - timing.skipped(matrix, map_bytes)) + timing.output
}

/// The layers to train heads after.
fn layers(wanted: &HeadOptions, reader: &Reader) -> anyhow::Result<Vec<u32>> {
    let layers = wanted.layers.clone().unwrap_or_else(|| reader.manifest().layers.clone());
    if layers.is_empty() {
        bail!(
            "no hidden states of layers were collected: collect with --layers, or make a screen alone with --layers off"
        );
    }
    ensure!(layers.is_sorted_by(|a, b| a < b), "layers {layers:?}: give them in ascending order");
    Ok(layers)
}

/// Tokens whose margin is smaller than what logits differ by between batch widths.
fn near_ties(reader: &Reader, sequences: &[Range<u64>]) -> anyhow::Result<u64> {
    let near_tie = reader.manifest().width_difference;
    let mut n = 0;
    for tokens in sequences {
        let labels = reader.labels(tokens.clone())?;
        n += labels.iter().filter(|label| label.margin < near_tie).count() as u64;
    }
    Ok(n)
}
