//! What a screen finds on tokens that it was not fitted to, as stored: 4-bit rows, half-precision basis, and the 8-bit
//! rounding that ggml gives the vector that 4-bit rows are multiplied by.

use half::f16;
use half::slice::HalfFloatSliceExt;
use offramp::gate::Tap;
use offramp::gguf::{TensorType, quants};

use super::output_matrix::OutputMatrix;
use super::{Screen, basis};
use crate::collect::label::Label;
use crate::collect::store::Reader;

/// Tokens that are scored at once.
const BATCH: u64 = 32;

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
}

impl<'a> Evaluator<'a> {
    /// # Errors
    ///
    /// A screen whose data is no whole number of blocks.
    pub fn new(matrix: OutputMatrix<'a>, screen: &Screen) -> anyhow::Result<Evaluator<'a>> {
        let mut basis = vec![0.0; screen.basis.len()];
        screen.basis.convert_to_f32_slice(&mut basis);
        let output = quants::dequantize(TensorType::Q4_0, &screen.output)?;
        Ok(Evaluator { matrix, rank: screen.rank, basis, output })
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
        sequences: &[usize],
        counts: &[usize],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> anyhow::Result<Vec<Vec<Vec<Found>>>> {
        let mut found = vec![Vec::with_capacity(sequences.len()); counts.len()];
        let mut done = 0;
        for &sequence in sequences {
            let tokens = reader.sequences()[sequence].clone();
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
        let halves = |values: &[f32]| -> Vec<f32> { values.iter().map(|x| f16::from_f32(*x).to_f32()).collect() };
        let mut inner = basis::product_of_rows(&halves(hidden), &self.basis, n_embd);
        round_to_q8_0(&mut inner);
        let scores = basis::product_of_rows(&inner, &self.output, self.rank);
        let mut found = Vec::with_capacity(labels.len() * counts.len());
        let mut sorted = Vec::new();
        for ((scores, hidden), label) in
            scores.chunks_exact(self.matrix.n_vocab()).zip(hidden.chunks_exact(n_embd)).zip(labels)
        {
            let best = label.argmax() as usize;
            let exact = dot(&self.matrix.row(best)?, hidden);
            let before = |id: usize, score: f32| score > scores[best] || (score == scores[best] && id < best);
            let place = scores.iter().enumerate().filter(|(id, score)| before(*id, **score)).count();
            sorted.clear();
            sorted.extend_from_slice(scores);
            let mut lasts = vec![0.0; counts.len()];
            let mut end = sorted.len();
            for (last, count) in lasts.iter_mut().zip(counts).rev() {
                let count = (*count).clamp(1, end);
                let (_, nth, _) = sorted[..end].select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
                *last = *nth;
                end = count;
            }
            for (count, last) in counts.iter().zip(lasts) {
                let is_found = place < *count;
                let exact = if is_found { exact } else { self.best_of(scores, last, hidden)? };
                found.push(Found { slack: exact - last, is_found });
            }
        }
        Ok(found)
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
