//! From collected tokens to exits that can be written: split, fit, choose, certify.
//!
//! Sequences are divided once, at random: three tenths to fit the screen, two tenths to choose its size and to map its slack
//! to a confidence, and half to certify its thresholds, which is what takes the most. It refuses collections that
//! are too small for that, and those of another model.

use anyhow::{Context, bail, ensure};
use offramp::gguf::exits::{Base, Calibration, ExitMeta, KvPolicy, Metric, ScreenMeta};
use offramp::gguf::{Error, TensorType, Writer};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::calibrate::bounds;
use crate::collect::store::Reader;
use crate::screen::basis::{Moments, Subspace};
use crate::screen::certify::{self, Level};
use crate::screen::choose::{COUNTS, Candidate, RANKS, cheapest};
use crate::screen::evaluate::{Evaluator, Found};
use crate::screen::output_matrix::OutputMatrix;
use crate::screen::{Screen, q4_0};

/// The tokens that choosing looks at, at most: each rank is evaluated on all of them.
const CHOOSING_TOKENS: u64 = 4000;
/// The fewest sequences that can be divided.
const LEAST_SEQUENCES: usize = 20;
/// The tokens that are read at once.
const CHUNK: u64 = 1024;

/// What to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// The rank of the screen; `None` chooses.
    pub rank: Option<usize>,
    /// The number of candidates; `None` chooses.
    pub count: Option<usize>,
    /// The levels of agreement, ascending.
    pub agreements: Vec<f32>,
    /// The probability with which a certified level may be broken.
    pub delta: f64,
    /// The seed of everything random.
    pub seed: u64,
    /// The day, as `2026-01-31`.
    pub date: String,
}

/// Steps of the work, for progress.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) -> bool + 'a;

/// What was made, and what was measured on the way.
#[derive(Debug)]
pub struct Made {
    /// The keys.
    pub meta: ExitMeta,
    /// The screen's tensors.
    pub screen: Screen,
    /// Every pair of rank and number of candidates that was measured.
    pub candidates: Vec<Candidate>,
    /// The chosen one, measured on the prompts that certify.
    pub chosen: Candidate,
    /// The certified levels.
    pub levels: Vec<Level>,
    /// Prompts that certify.
    pub n_prompts: usize,
    /// How many of them the screen alone would have changed.
    pub n_changed: usize,
    /// The exact upper bound on the share of prompts that the screen alone changes.
    pub changed_bound: f64,
}

/// Makes a screen for the model whose tokens `reader` holds.
///
/// # Errors
///
/// Too few sequences, tokens of another model, [`Error::Interrupted`].
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
    let split = Split::of(reader, options.seed)?;
    let subspace = Subspace::fit(matrix, &moments(matrix, reader, &split.fit, progress)?)?;
    let (candidates, screen, choice) = choose(matrix, reader, &subspace, &split.choose, options, progress)?;

    let evaluator = Evaluator::new(*matrix, &screen)?;
    let mut evaluate = |what: &'static str, sequences: &[usize]| -> anyhow::Result<Vec<Vec<Found>>> {
        let total = count(reader, sequences);
        let found = evaluator.run(reader, sequences, &[choice.count], &mut |done| progress(what, done, total))?;
        Ok(found.into_iter().next().unwrap_or_default())
    };
    let tuning = evaluate("mapping", &split.choose)?;
    let map = certify::confidence(&tuning);
    let thresholds = certify::thresholds(&map, &tuning);
    let found = evaluate("certifying", &split.certify)?;
    let levels = certify::levels(&map, &thresholds, &found, &options.agreements, options.delta)?;
    let n_changed = found.iter().filter(|prompt| prompt.iter().any(|token| !token.is_found)).count();

    let calibration = calibration(reader, &split.certify, &levels, options)?;
    let meta = ExitMeta {
        base,
        layers: Vec::new(),
        head_types: Vec::new(),
        head_ranks: Vec::new(),
        screen: ScreenMeta {
            rank: u32::try_from(screen.rank)?,
            shortlist: u32::try_from(choice.count)?,
            confidence: map,
            thresholds: levels.iter().map(|level| level.threshold).collect(),
        },
        metric: Metric::TopProbability,
        confidence: Vec::new(),
        agreements: options.agreements.clone(),
        thresholds: Vec::new(),
        gate_thresholds: Vec::new(),
        calibration: Some(calibration),
    };
    Ok(Made {
        meta,
        screen,
        candidates,
        chosen: Candidate::measure(choice.rank, choice.count, choice.screened, &found),
        levels,
        n_prompts: found.len(),
        n_changed,
        changed_bound: bounds::binomial_upper_bound(n_changed, found.len(), options.delta),
    })
}

impl Made {
    /// Adds the tensors to a file in the making.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn write_tensors(&self, writer: &mut Writer) -> offramp::gguf::Result<()> {
        let base = &self.meta.base;
        let (n_embd, rank) = (u64::from(base.n_embd), self.screen.rank as u64);
        let basis = self.screen.basis.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.tensor("exit_screen.basis", TensorType::F16, &[n_embd, rank], basis)?;
        let output = self.screen.output.clone();
        writer.tensor("exit_screen.output", TensorType::Q4_0, &[rank, base.n_vocab.into()], output)?;
        Ok(())
    }
}

/// The positions of sequences that serve each purpose.
struct Split {
    fit: Vec<usize>,
    choose: Vec<usize>,
    certify: Vec<usize>,
}

impl Split {
    fn of(reader: &Reader, seed: u64) -> anyhow::Result<Split> {
        let n = reader.sequences().len();
        if n < LEAST_SEQUENCES {
            bail!("{n} answers were collected; at least {LEAST_SEQUENCES} are needed: raise --tokens or --time-limit");
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let certify = order.split_off(n / 2);
        let choose = order.split_off(n * 3 / 10);
        Ok(Split { fit: order, choose, certify })
    }
}

fn count(reader: &Reader, sequences: &[usize]) -> u64 {
    sequences.iter().map(|i| reader.sequences()[*i].end - reader.sequences()[*i].start).sum()
}

fn moments(
    matrix: &OutputMatrix<'_>,
    reader: &Reader,
    sequences: &[usize],
    progress: &mut Progress<'_>,
) -> anyhow::Result<Moments> {
    let mut moments = Moments::new(matrix.n_embd(), matrix.n_vocab());
    let (mut done, total) = (0, count(reader, sequences));
    for &i in sequences {
        let tokens = reader.sequences()[i].clone();
        for first in tokens.clone().step_by(CHUNK as usize) {
            let part = first..tokens.end.min(first + CHUNK);
            if !progress("fitting", done, total) {
                return Err(Error::Interrupted.into());
            }
            done += part.end - part.start;
            moments.add(&reader.hidden(offramp::gate::Tap::ResultNorm, part.clone())?, &reader.labels(part)?)?;
        }
    }
    Ok(moments)
}

/// Measures the pairs of rank and number of candidates, and makes the screen of the cheapest.
fn choose(
    matrix: &OutputMatrix<'_>,
    reader: &Reader,
    subspace: &Subspace,
    sequences: &[usize],
    options: &Options,
    progress: &mut Progress<'_>,
) -> anyhow::Result<(Vec<Candidate>, Screen, Candidate)> {
    let mut left = CHOOSING_TOKENS;
    let few: Vec<usize> = sequences
        .iter()
        .copied()
        .take_while(|i| {
            let is_wanted = left > 0;
            left = left.saturating_sub(count(reader, &[*i]));
            is_wanted
        })
        .collect();
    let (n_embd, n_vocab) = (matrix.n_embd(), matrix.n_vocab());
    // More than half of the directions, or an eighth of the rows, would not save enough to be tried.
    let ranks = |rank: &usize| *rank * 2 <= n_embd || *rank == q4_0::BLOCK;
    let ranks: Vec<usize> = options.rank.map_or_else(|| RANKS.into_iter().filter(ranks).collect(), |rank| vec![rank]);
    let counts: Vec<usize> = match options.count {
        Some(count) => vec![count],
        None => COUNTS.into_iter().filter(|count| count * 8 <= n_vocab).collect(),
    };
    let is_right = counts.iter().all(|count| (1..=n_vocab).contains(count));
    ensure!(is_right, "a shortlist of {counts:?} candidates: give 1 to {n_vocab}");
    ensure!(
        !ranks.is_empty() && !counts.is_empty(),
        "a model of {n_embd} wide states and {n_vocab} tokens is too small for a screen to be worth it: \
         give --screen-rank and --shortlist"
    );
    let total = count(reader, &few) * ranks.len() as u64;
    let mut candidates = Vec::new();
    let mut best: Option<(Candidate, Screen)> = None;
    for (i, rank) in ranks.into_iter().enumerate() {
        let screen = Screen::new(matrix, subspace, rank, options.seed)?;
        let before = count(reader, &few) * i as u64;
        let found = Evaluator::new(*matrix, &screen)?
            .run(reader, &few, &counts, &mut |done| progress("choosing", before + done, total))?;
        let measured: Vec<Candidate> = counts
            .iter()
            .zip(&found)
            .map(|(count, found)| {
                let bytes = screen.bytes() + (count * matrix.row_bytes()) as u64;
                Candidate::measure(rank, *count, bytes as f64 / matrix.bytes() as f64, found)
            })
            .collect();
        if let Some(candidate) =
            cheapest(&measured).filter(|new| best.as_ref().is_none_or(|(old, _)| new.cost() < old.cost()))
        {
            best = Some((candidate, screen));
        }
        candidates.extend(measured);
    }
    let (choice, screen) = best.context("no pair of rank and shortlist could be measured")?;
    Ok((candidates, screen, choice))
}

fn calibration(
    reader: &Reader,
    sequences: &[usize],
    levels: &[Level],
    options: &Options,
) -> anyhow::Result<Calibration> {
    // A margin that is smaller than what logits differ by between batch widths.
    let near_tie = reader.manifest().width_difference;
    let mut near_ties = 0u64;
    for &i in sequences {
        let labels = reader.labels(reader.sequences()[i].clone())?;
        near_ties += labels.iter().filter(|label| label.margin < near_tie).count() as u64;
    }
    let n_tokens = count(reader, sequences);
    let of = |value: fn(&Level) -> f64| levels.iter().map(|level| value(level) as f32).collect();
    Ok(Calibration {
        prompts: reader.manifest().prompts.clone(),
        n_prompts: u32::try_from(sequences.len())?,
        n_tokens,
        delta: options.delta as f32,
        risk: of(|level| level.certified.as_ref().map_or(0.0, |certified| certified.risk)),
        risk_bound: of(|level| level.certified.as_ref().map_or(0.0, |certified| certified.bound)),
        exit_rate: of(|level| level.usage),
        kv_policy: KvPolicy::CatchUp,
        sampler: "greedy, and temperature 0.8 with min-p 0.05, by turns".to_string(),
        batch_width: reader.manifest().batch_width,
        near_ties: near_ties as f32 / n_tokens.max(1) as f32,
        engine: reader.manifest().engine.clone(),
        date: options.date.clone(),
    })
}
