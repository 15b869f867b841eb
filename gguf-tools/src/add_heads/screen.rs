//! The screen of a collection: fitted to one group of sequences, its size chosen on another.
//!
//! Every rank is measured on a few thousand tokens; the two that read the fewest bytes are measured again on all that choose,
//! because few tokens flatter: a pair of rank and number of candidates that misses nothing on them need not be good.

use std::ops::Range;

use anyhow::{Context, ensure};
use offramp::gate::Tap;
use offramp::gguf::Error;

use super::split::Split;
use super::{Options, Progress};
use crate::collect::store::{Reader, sequences};
use crate::screen::basis::{Moments, Subspace};
use crate::screen::choose::{COUNTS, Candidate, RANKS, cheapest};
use crate::screen::evaluate::Evaluator;
use crate::screen::output_matrix::OutputMatrix;
use crate::screen::{Screen, q4_0};
use crate::train::data;

/// The tokens that every rank is measured on, at most.
const FIRST_TOKENS: u64 = 2000;
/// How many ranks are measured on all tokens that choose.
const FINALISTS: usize = 2;

/// A screen of a chosen size.
#[derive(Debug)]
pub struct Chosen {
    /// The screen.
    pub screen: Screen,
    /// Its size, as measured.
    pub choice: Candidate,
    /// Every pair of rank and number of candidates that was measured, on the most tokens it was measured on.
    pub candidates: Vec<Candidate>,
}

/// Fits and chooses.
///
/// # Errors
///
/// A model too small for a screen, sizes that do not fit it, what the disk says, [`Error::Interrupted`].
pub fn make(
    matrix: &OutputMatrix<'_>,
    reader: &Reader,
    split: &Split,
    options: &Options,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Chosen> {
    let subspace = Subspace::fit(matrix, &moments(matrix, reader, &split.fit, progress)?)?;
    let (ranks, counts) = sizes(matrix, options)?;
    let few = sequences::first(&split.choose, FIRST_TOKENS);
    let mut measure = |ranks: &[usize], sequences: &[Range<u64>]| {
        measure(matrix, reader, &subspace, (ranks, &counts), sequences, options.seed, progress)
    };
    let mut candidates = measure(&ranks, &few)?;
    if let [only] = candidates[..] {
        return Ok(Chosen {
            screen: Screen::new(matrix, &subspace, only.rank, options.seed)?,
            choice: only,
            candidates,
        });
    }
    let mut finalists = Vec::new();
    let mut left = candidates.clone();
    while let Some(best) = cheapest(&left).filter(|_| finalists.len() < FINALISTS) {
        left.retain(|pair| pair.rank != best.rank);
        finalists.push(best.rank);
    }
    let again = measure(&finalists, &split.choose)?;
    let choice = cheapest(&again).context("no pair of rank and shortlist could be measured")?;
    for pair in &mut candidates {
        let newer = again.iter().find(|newer| (newer.rank, newer.count) == (pair.rank, pair.count));
        *pair = newer.copied().unwrap_or(*pair);
    }
    Ok(Chosen { screen: Screen::new(matrix, &subspace, choice.rank, options.seed)?, choice, candidates })
}

/// The ranks and the numbers of candidates to try.
fn sizes(matrix: &OutputMatrix<'_>, options: &Options) -> anyhow::Result<(Vec<usize>, Vec<usize>)> {
    let (n_embd, n_vocab) = (matrix.n_embd(), matrix.n_vocab());
    // More than half of the directions, or an eighth of the rows, would not save enough to be tried.
    let is_worth_trying = |rank: &usize| *rank * 2 <= n_embd || *rank == q4_0::BLOCK;
    let ranks: Vec<usize> =
        options.screen_rank.map_or_else(|| RANKS.into_iter().filter(is_worth_trying).collect(), |rank| vec![rank]);
    let counts: Vec<usize> = match options.shortlist {
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
    Ok((ranks, counts))
}

/// Measures each of the ranks with each of the numbers of candidates.
fn measure(
    matrix: &OutputMatrix<'_>,
    reader: &Reader,
    subspace: &Subspace,
    (ranks, counts): (&[usize], &[usize]),
    sequences: &[Range<u64>],
    seed: u64,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Vec<Candidate>> {
    let n_tokens = sequences::count(sequences);
    let total = n_tokens * ranks.len() as u64;
    let mut candidates = Vec::new();
    for (i, rank) in ranks.iter().enumerate() {
        let screen = Screen::new(matrix, subspace, *rank, seed)?;
        let before = n_tokens * i as u64;
        let found = Evaluator::new(*matrix, &screen)?
            .run(reader, sequences, counts, &mut |done| progress("choosing", before + done, total))?;
        candidates.extend(counts.iter().zip(&found).map(|(count, found)| {
            let bytes = screen.bytes() + (count * matrix.row_bytes()) as u64;
            Candidate::measure(*rank, *count, bytes as f64 / matrix.bytes() as f64, found)
        }));
    }
    Ok(candidates)
}

fn moments(
    matrix: &OutputMatrix<'_>,
    reader: &Reader,
    sequences: &[Range<u64>],
    progress: &mut Progress<'_>,
) -> anyhow::Result<Moments> {
    let mut moments = Moments::new(matrix.n_embd(), matrix.n_vocab());
    let (mut done, total) = (0, sequences::count(sequences));
    for tokens in sequences.iter().cloned().flat_map(data::pieces) {
        if !progress("fitting", done, total) {
            return Err(Error::Interrupted.into());
        }
        done += tokens.end - tokens.start;
        moments.add(&reader.hidden(Tap::ResultNorm, tokens.clone())?, &reader.labels(tokens)?)?;
    }
    Ok(moments)
}
