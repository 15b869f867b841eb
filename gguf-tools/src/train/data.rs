//! Tokens on their way from the store to training: normalized, in random order, a few thousand in memory at once.
//!
//! Sequences are shuffled, taken in until a *pool* is full, and the pool's tokens are shuffled again, so that a batch mixes hundreds
//! of texts without a random read of the disk for each token. What each exit needs of the tokens it learns from
//! ([`Exit`]) is measured in one pass before.

use std::ops::Range;

use anyhow::ensure;
use offramp::gate::Tap;
use offramp::gguf::Error;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::input::{self, Whitening};
use super::ridge::{Affine, Moments, PENALTIES, Ridge};
use crate::collect::label::Label;
use crate::collect::store::Reader;
use crate::screen::output_matrix::OutputMatrix;

/// The tokens of a pool, at least.
const POOL: u64 = 8192;
/// The tokens that are read at once in a pass over all of them.
const CHUNK: u64 = 1024;
/// The tokens that the norm's weight is measured on, at most.
const NORM_TOKENS: u64 = 8192;

/// What a head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The state after this block, `[n_embd]`.
    Layer(u32),
    /// The final state of the token before, then the token's own row of the output matrix, `[2 * n_embd]`. The token must follow
    /// another one of the same text.
    Before,
}

impl Source {
    /// How many vectors it is made of.
    fn n_vectors(self) -> usize {
        match self {
            Source::Layer(_) => 1,
            Source::Before => 2,
        }
    }

    /// What it reads at `tokens`, each vector of unit mean square.
    fn normed(self, reader: &Reader, matrix: &OutputMatrix<'_>, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        let n_embd = reader.manifest().n_embd as usize;
        let mut rows = match self {
            Source::Layer(layer) => reader.hidden(Tap::Layer(layer), tokens)?,
            Source::Before => {
                ensure!(tokens.start > 0, "the first token of all follows nothing");
                let states = reader.hidden(Tap::ResultNorm, tokens.start - 1..tokens.end - 1)?;
                let mut rows = Vec::with_capacity(2 * states.len());
                for (state, label) in states.chunks_exact(n_embd).zip(reader.labels(tokens)?) {
                    rows.extend_from_slice(state);
                    rows.extend(matrix.row(label.token as usize)?);
                }
                rows
            }
        };
        input::rms_norm(&mut rows, n_embd);
        Ok(rows)
    }
}

/// What a head starts from.
#[derive(Debug, Clone)]
pub struct Exit {
    /// What it reads.
    pub source: Source,
    /// The weight of its norm, as wide as what it reads.
    pub norm: Vec<f32>,
    /// What makes its inputs uncorrelated.
    pub whitening: Whitening,
    /// The closed form: the regression of the final state on the inputs.
    pub start: Affine,
    /// The root mean square of what each output varies by, `[n_embd]`.
    pub deviations: Vec<f32>,
    /// The share of the final state's variance that the closed form explains on held-out tokens.
    pub r2: f64,
    /// The penalty of the closed form, which held-out tokens chose.
    pub penalty: f64,
}

/// The pieces of `tokens` that are read at once.
pub fn pieces(tokens: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = tokens.end;
    tokens.step_by(CHUNK as usize).map(move |first| first..end.min(first + CHUNK))
}

impl Exit {
    /// Measures the inputs from `source`, and fits the closed form to `fit`, its penalty to `held_out`. `progress` is
    /// told the tokens done; `false` stops.
    ///
    /// # Errors
    ///
    /// What the disk says, sequences without a token, [`Error::Interrupted`].
    pub fn measure(
        reader: &Reader,
        matrix: &OutputMatrix<'_>,
        source: Source,
        fit: &[Range<u64>],
        held_out: &[Range<u64>],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> anyhow::Result<Exit> {
        let norm = norm_weight(reader, matrix, source, fit)?;
        let n_embd = reader.manifest().n_embd as usize;
        let mut done = 0;
        let mut moments = |sequences: &[Range<u64>]| -> anyhow::Result<Moments> {
            let rows = sequences.iter().cloned().flat_map(pieces).map(|tokens| {
                if !progress(done) {
                    return Err(Error::Interrupted.into());
                }
                done += tokens.end - tokens.start;
                let x = weighted(source.normed(reader, matrix, tokens.clone())?, &norm);
                Ok((x, reader.hidden(Tap::ResultNorm, tokens)?))
            });
            Moments::gathered(norm.len(), n_embd, rows)
        };
        let (fitted, held_out) = (moments(fit)?, moments(held_out)?);
        ensure!(held_out.n_tokens() > 0, "no tokens were held out: collect more");
        let ridge = Ridge::new(&fitted)?;
        let errors = ridge.errors(&held_out, &PENALTIES)?;
        let total = |errors: &[f64]| errors.iter().sum::<f64>();
        let pairs = PENALTIES.into_iter().zip(errors.iter().map(|errors| total(errors)));
        let (penalty, error) = pairs.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((PENALTIES[0], 0.0));
        let variance = total(&held_out.variances()).max(f64::MIN_POSITIVE);
        Ok(Exit {
            source,
            whitening: Whitening::new(&fitted.mean(), fitted.covariance().as_ref())?,
            start: ridge.solve(penalty),
            deviations: fitted.variances().iter().map(|variance| variance.sqrt() as f32).collect(),
            r2: 1.0 - error / variance,
            penalty,
            norm,
        })
    }

    /// Its inputs at `tokens`, as wide as its norm each.
    ///
    /// # Errors
    ///
    /// What the disk says, a token that follows nothing.
    pub fn inputs(&self, reader: &Reader, matrix: &OutputMatrix<'_>, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        Ok(weighted(self.source.normed(reader, matrix, tokens)?, &self.norm))
    }
}

fn weighted(mut rows: Vec<f32>, norm: &[f32]) -> Vec<f32> {
    input::weigh(&mut rows, norm);
    rows
}

/// The inputs after `layer` of `tokens`, `[n_embd, n]`.
///
/// # Errors
///
/// What the disk says.
pub fn inputs(reader: &Reader, layer: u32, norm: &[f32], tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
    let mut rows = reader.hidden(Tap::Layer(layer), tokens)?;
    input::normalize(&mut rows, norm);
    Ok(rows)
}

fn norm_weight(
    reader: &Reader,
    matrix: &OutputMatrix<'_>,
    source: Source,
    sequences: &[Range<u64>],
) -> anyhow::Result<Vec<f32>> {
    let width = source.n_vectors() * reader.manifest().n_embd as usize;
    let mut squares = vec![0.0f64; width];
    let mut n = 0;
    for tokens in sequences.iter().cloned().flat_map(pieces) {
        if n >= NORM_TOKENS {
            break;
        }
        n += tokens.end - tokens.start;
        let rows = source.normed(reader, matrix, tokens)?;
        for row in rows.chunks_exact(width) {
            squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
    }
    ensure!(n > 0, "no tokens to measure hidden states on");
    Ok(input::norm_weight(&squares, n))
}

/// Some thousand tokens in memory.
#[derive(Debug, Default)]
pub struct Pool {
    /// One a token.
    pub labels: Vec<Label>,
    /// For each exit, as wide as its norm, for each token.
    pub inputs: Vec<Vec<f32>>,
    /// For each exit, whitened.
    pub white: Vec<Vec<f32>>,
}

impl Pool {
    /// Reads sequences.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub fn read(
        reader: &Reader,
        matrix: &OutputMatrix<'_>,
        exits: &[Exit],
        sequences: &[Range<u64>],
    ) -> anyhow::Result<Pool> {
        let mut pool = Pool { inputs: vec![Vec::new(); exits.len()], ..Pool::default() };
        for tokens in sequences {
            pool.labels.extend(reader.labels(tokens.clone())?);
            for (exit, rows) in exits.iter().zip(&mut pool.inputs) {
                rows.extend(exit.inputs(reader, matrix, tokens.clone())?);
            }
        }
        pool.white = exits.iter().zip(&pool.inputs).map(|(exit, rows)| exit.whitening.apply(rows)).collect();
        Ok(pool)
    }

    /// The number of its tokens.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// An endless stream of tokens in random order.
#[derive(Debug)]
pub struct Stream<'a> {
    reader: &'a Reader,
    matrix: &'a OutputMatrix<'a>,
    exits: &'a [Exit],
    sequences: Vec<Range<u64>>,
    next: usize,
    pool: Pool,
    /// The pool's tokens that were not handed out yet.
    left: Vec<usize>,
    rng: ChaCha8Rng,
}

impl<'a> Stream<'a> {
    /// # Errors
    ///
    /// Sequences of no token.
    pub fn new(
        reader: &'a Reader,
        matrix: &'a OutputMatrix<'a>,
        exits: &'a [Exit],
        sequences: &[Range<u64>],
        rng: ChaCha8Rng,
    ) -> anyhow::Result<Stream<'a>> {
        ensure!(!sequences.is_empty(), "no tokens to train on");
        let sequences = sequences.to_vec();
        let next = sequences.len();
        Ok(Stream { reader, matrix, exits, sequences, next, pool: Pool::default(), left: Vec::new(), rng })
    }

    /// The pool and the next `n` of its tokens, or as many as it has left.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub fn batch(&mut self, n: usize) -> anyhow::Result<(&Pool, Vec<usize>)> {
        if self.left.is_empty() {
            self.refill()?;
        }
        let rest = self.left.len().saturating_sub(n);
        Ok((&self.pool, self.left.split_off(rest)))
    }

    fn refill(&mut self) -> anyhow::Result<()> {
        if self.next >= self.sequences.len() {
            self.sequences.shuffle(&mut self.rng);
            self.next = 0;
        }
        let (first, mut n) = (self.next, 0);
        while n < POOL && self.next < self.sequences.len() {
            let tokens = &self.sequences[self.next];
            n += tokens.end - tokens.start;
            self.next += 1;
        }
        self.pool = Pool::read(self.reader, self.matrix, self.exits, &self.sequences[first..self.next])?;
        self.left = (0..self.pool.len()).collect();
        self.left.shuffle(&mut self.rng);
        Ok(())
    }
}
