//! What a screen finds on tokens that it was not fitted to, as stored: 4-bit rows, half-precision basis, and the 8-bit
//! rounding that ggml gives the vector that 4-bit rows are multiplied by.

use std::ops::Range;

use anyhow::Context;
use half::f16;
use half::slice::HalfFloatSliceExt;
use offramp::gate::Tap;
use offramp::gguf::{TensorType, quants};
use rayon::prelude::*;

use super::output_matrix::OutputMatrix;
use super::{Screen, basis};
use crate::collect::label::Label;
use crate::collect::store::Reader;

/// The most bytes that the output matrix may take unpacked.
const MAX_UNPACKED: usize = 1 << 30;

/// How far below the best score, in nats, a candidate's score may lie for its logit to be computed exactly. What lies
/// further down would have to be underestimated by more than this to matter.
const NEAR: f32 = 12.0;

/// Tokens that are scored at once.
const BATCH: u64 = 64;

/// What a screen made of one token, for one number of candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// The best exact logit of the candidates, less the screened score of the last candidate.
    pub slack: f32,
    /// Whether the full model's choice is among the candidates.
    pub is_found: bool,
}

/// A screen with its values unpacked.
#[derive(Debug)]
pub struct Evaluator<'a> {
    matrix: OutputMatrix<'a>,
    rank: usize,
    basis: Vec<f32>,
    output: Vec<f32>,
    /// The tokens that are scored, ascending; `None` for all.
    tokens: Option<Vec<u32>>,
    /// The rows of the scored tokens, `[n_embd, n]`, where [`Evaluator::unpack`] was asked for and there is room.
    unpacked: Vec<f32>,
}

impl<'a> Evaluator<'a> {
    /// # Errors
    ///
    /// A screen whose data is no whole number of blocks.
    pub fn new(matrix: OutputMatrix<'a>, screen: &Screen) -> anyhow::Result<Evaluator<'a>> {
        let mut basis = vec![0.0; screen.basis.len()];
        screen.basis.convert_to_f32_slice(&mut basis);
        let output = quants::dequantize(TensorType::Q4_0, &screen.output)?;
        Ok(Evaluator { matrix, rank: screen.rank, basis, output, tokens: None, unpacked: Vec::new() })
    }

    /// The same for `tokens` alone, which ascend: what exits after layers choose among.
    ///
    /// # Errors
    ///
    /// A token that is not in the vocabulary.
    pub fn among(&self, tokens: &[u32]) -> anyhow::Result<Evaluator<'a>> {
        let mut output = Vec::with_capacity(tokens.len() * self.rank);
        for id in tokens {
            let first = *id as usize * self.rank;
            let row = self.output.get(first..first + self.rank);
            output.extend_from_slice(row.with_context(|| format!("token {id} is not in the vocabulary"))?);
        }
        Ok(Evaluator {
            matrix: self.matrix,
            rank: self.rank,
            basis: self.basis.clone(),
            output,
            tokens: Some(tokens.to_vec()),
            unpacked: Vec::new(),
        })
    }

    /// Unpacks the rows of the scored tokens, so that rescoring need not do it row by row; not for one above [`MAX_UNPACKED`].
    ///
    /// # Errors
    ///
    /// Rows that cannot be read.
    pub fn unpack(&mut self) -> anyhow::Result<()> {
        let n_tokens = self.tokens.as_ref().map_or(self.matrix.n_vocab(), Vec::len);
        let n_values = self.matrix.n_embd() * n_tokens;
        if n_values * size_of::<f32>() > MAX_UNPACKED || !self.unpacked.is_empty() {
            return Ok(());
        }
        let mut unpacked = Vec::with_capacity(n_values);
        match &self.tokens {
            Some(tokens) => {
                for id in tokens {
                    unpacked.extend(self.matrix.row(*id as usize)?);
                }
            }
            None => self.matrix.for_each_chunk(&mut |_, rows| {
                unpacked.extend_from_slice(rows);
                Ok(())
            })?,
        }
        self.unpacked = unpacked;
        Ok(())
    }

    /// The screened scores of the tokens that are chosen among, for hidden states `[n_embd, n]` in the output matrix's space.
    pub fn scores(&self, hidden: &[f32]) -> Vec<f32> {
        let halves: Vec<f32> = hidden.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        let mut inner = basis::product_of_rows(&halves, &self.basis, self.matrix.n_embd());
        round_to_q8_0(&mut inner);
        basis::product_of_rows(&inner, &self.output, self.rank)
    }

    /// The `count` tokens that score best (of equals the lowest ids) by ascending id, with their logits, capped where the
    /// model caps them. Exact where a candidate scores within [`NEAR`] of the best; the others weigh next to nothing,
    /// and their screened scores stand for their logits.
    ///
    /// # Errors
    ///
    /// Rows that cannot be read.
    pub fn candidates(&self, scores: &[f32], hidden: &[f32], count: usize) -> anyhow::Result<Vec<(u32, f32)>> {
        let count = count.clamp(1, scores.len().max(1));
        let last = nth_largest(scores, count);
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut n_ties = count - scores.iter().filter(|score| **score > last).count();
        let mut candidates = Vec::with_capacity(count);
        for (i, score) in scores.iter().enumerate().filter(|(_, score)| **score >= last) {
            if *score == last {
                if n_ties == 0 {
                    continue;
                }
                n_ties -= 1;
            }
            let id = self
                .tokens
                .as_ref()
                .map_or(Ok(u32::try_from(i)?), |tokens| tokens.get(i).copied().context("more scores than tokens"))?;
            let logit = if *score >= highest - NEAR { self.logit(i, id, hidden)? } else { *score };
            let cap = |logit: f32| self.matrix.softcap().map_or(logit, |cap| cap * (logit / cap).tanh());
            candidates.push((id, cap(logit)));
        }
        Ok(candidates)
    }

    /// Of the `i`-th scored token.
    fn logit(&self, i: usize, id: u32, hidden: &[f32]) -> anyhow::Result<f32> {
        let n_embd = self.matrix.n_embd();
        match self.unpacked.get(i * n_embd..(i + 1) * n_embd) {
            Some(row) => Ok(dot(row, hidden)),
            None => Ok(dot(&self.matrix.row(id as usize)?, hidden)),
        }
    }

    /// Evaluates sequences: for each of `counts` (numbers of candidates, ascending), for each sequence, what was found
    /// for each of its tokens. `progress` is told the tokens done; `false` stops.
    ///
    /// # Errors
    ///
    /// What the disk says, and [`offramp::gguf::Error::Interrupted`].
    pub fn run(
        &self,
        reader: &Reader,
        sequences: &[Range<u64>],
        counts: &[usize],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> anyhow::Result<Vec<Vec<Vec<Found>>>> {
        let mut found = vec![Vec::with_capacity(sequences.len()); counts.len()];
        let mut done = 0;
        for tokens in sequences {
            found.iter_mut().for_each(|of_count| of_count.push(Vec::new()));
            for first in tokens.clone().step_by(BATCH as usize) {
                let batch = first..tokens.end.min(first + BATCH);
                if !progress(done) {
                    return Err(offramp::gguf::Error::Interrupted.into());
                }
                done += batch.end - batch.start;
                let hidden = reader.hidden(Tap::ResultNorm, batch.clone())?;
                let labels = reader.labels(batch)?;
                for (i, of_token) in self.batch(&hidden, &labels, counts)?.into_iter().enumerate() {
                    let place = found.get_mut(i % counts.len().max(1)).and_then(|of_count| of_count.last_mut());
                    place.into_iter().for_each(|place| place.push(of_token));
                }
            }
        }
        Ok(found)
    }

    /// One batch: token by token, and of each token count by count.
    fn batch(&self, hidden: &[f32], labels: &[Label], counts: &[usize]) -> anyhow::Result<Vec<Found>> {
        let n_embd = self.matrix.n_embd();
        let scores = self.scores(hidden);
        let n_vocab = self.matrix.n_vocab();
        let rows = scores.par_chunks(n_vocab).zip(hidden.par_chunks(n_embd)).zip(labels);
        let found: Vec<Vec<Found>> = rows
            .map(|((scores, hidden), label)| self.token(scores, hidden, label, counts))
            .collect::<anyhow::Result<_>>()?;
        Ok(found.concat())
    }

    /// One token, count by count.
    fn token(&self, scores: &[f32], hidden: &[f32], label: &Label, counts: &[usize]) -> anyhow::Result<Vec<Found>> {
        let best = label.argmax() as usize;
        let exact = dot(&self.matrix.row(best)?, hidden);
        let before = |id: usize, score: f32| score > scores[best] || (score == scores[best] && id < best);
        let place = scores.iter().enumerate().filter(|(id, score)| before(*id, **score)).count();
        let of_count = |count: &usize| {
            let last = nth_largest(scores, (*count).clamp(1, scores.len()));
            let is_found = place < *count;
            let exact = if is_found { exact } else { self.best_of(scores, last, hidden)? };
            Ok(Found { slack: exact - last, is_found })
        };
        counts.iter().map(of_count).collect()
    }

    /// The best exact logit of the tokens that score at least `last`.
    fn best_of(&self, scores: &[f32], last: f32, hidden: &[f32]) -> anyhow::Result<f32> {
        let mut best = f32::NEG_INFINITY;
        for (id, _) in scores.iter().enumerate().filter(|(_, score)| **score >= last) {
            best = best.max(dot(&self.matrix.row(id)?, hidden));
        }
        Ok(best)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

/// The `n`-th largest value, from 1. A sample gives a bound that few values pass.
fn nth_largest(values: &[f32], n: usize) -> f32 {
    const STEP: usize = 16;
    let nth = |values: &mut [f32], n: usize| *values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1;
    let mut sample: Vec<f32> = values.iter().copied().step_by(STEP).collect();
    // A quarter more than expected, so that the bound is rarely too high.
    let wanted = n * 5 / (4 * STEP) + 8;
    if wanted < sample.len() {
        let bound = nth(&mut sample, wanted);
        let mut passed: Vec<f32> = values.iter().copied().filter(|value| *value >= bound).collect();
        if passed.len() >= n {
            return nth(&mut passed, n);
        }
    }
    nth(&mut values.to_vec(), n.min(values.len()))
}

/// Rounds to what ggml makes of a vector before it multiplies 4-bit rows by it: 32 values share one scale.
fn round_to_q8_0(values: &mut [f32]) {
    for block in values.chunks_mut(32) {
        let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let step = largest / 127.0;
        let stored = f16::from_f32(step).to_f32();
        for value in block {
            *value = if step > 0.0 { (*value / step).round() * stored } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn the_nth_largest_is_found_whatever_the_sample_says() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        let mut values: Vec<f32> = (0..5000).map(|_| rng.random::<f32>()).collect();
        // The sample sees large values alone.
        let misleading: Vec<f32> = (0..5000).map(|i| if i % 16 == 0 { 2.0 } else { 1.0 - i as f32 / 1e4 }).collect();
        for values in [&mut values, &mut misleading.clone()] {
            let mut sorted = values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for n in [1, 2, 300, 2048, 4999, 5000] {
                assert_eq!(nth_largest(values, n), sorted[n - 1], "{n}");
            }
        }
    }
}
