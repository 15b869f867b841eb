//! The loss of exits: the divergence of what they say from what the full model said.
//!
//! A label is the full model's best tokens and the mass of all others, so the divergence is over those outcomes:
//! `KL = Σ p_k ln(p_k / q_k) + p_rest ln(p_rest / q_rest)`, where `q` is the softmax of `W z` at temperature 1. `W` is
//! the model's own output matrix and stays as it is. Its rows that are in play are few: those of the batch's labels, and those
//! of the tokens that the model uses most ([`Rows`]); what the exit gives to the others is not looked at in this batch.
//!
//! `q` is needed twice, for the loss and for its gradient `Wᵀ (∂KL/∂logits)`, and both are written out here: it spares the automatic
//! differentiation of a dozen passes over `[n_rows, n_tokens]` values. The head's own weights are left to it.

use candle_core::{D, Device, Result, Tensor};

use crate::collect::label::{Label, TOP_K};

/// The least mass that is divided by.
const LEAST: f64 = 1e-6;

/// Which rows of the output matrix a batch is scored by, and where each label's tokens are among them.
#[derive(Debug, Clone)]
pub struct Rows {
    ids: Vec<u32>,
    /// The place among the rows of each token of the vocabulary; `u32::MAX` for those that are not there.
    places: Vec<u32>,
    n_fixed: usize,
}

impl Rows {
    /// The rows that every batch has.
    pub fn new(n_vocab: usize, fixed: &[u32]) -> Rows {
        let mut rows = Rows { ids: Vec::new(), places: vec![u32::MAX; n_vocab], n_fixed: 0 };
        fixed.iter().for_each(|id| rows.add(*id));
        rows.n_fixed = rows.ids.len();
        rows
    }

    fn add(&mut self, id: u32) {
        if let Some(place) = self.places.get_mut(id as usize).filter(|place| **place == u32::MAX) {
            *place = self.ids.len() as u32;
            self.ids.push(id);
        }
    }

    /// Takes in the tokens of a batch's labels, in place of those of the last batch.
    pub fn set_batch(&mut self, labels: &[Label]) {
        for id in self.ids.drain(self.n_fixed..) {
            self.places[id as usize] = u32::MAX;
        }
        for (id, _) in labels.iter().flat_map(|label| &label.top) {
            self.add(*id);
        }
    }

    /// The tokens whose rows are in play.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The targets of labels whose tokens are all in play, on `device`.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn targets(&self, labels: &[Label], device: &Device) -> Result<Targets> {
        let n = labels.len();
        let of = |value: &dyn Fn(&(u32, f32)) -> f32| -> Vec<f32> {
            labels.iter().flat_map(|label| label.top.iter().map(value)).collect()
        };
        let places: Vec<u32> = labels
            .iter()
            .flat_map(|label| label.top.iter().map(|(id, _)| self.places.get(*id as usize).copied().unwrap_or(0)))
            .collect();
        let rest: Vec<f32> = labels.iter().map(|label| label.rest).collect();
        let entropy: Vec<f32> = labels.iter().map(negative_entropy).collect();
        Ok(Targets {
            places: Tensor::from_vec(places, (n, TOP_K), device)?,
            top: Tensor::from_vec(of(&|(_, probability)| *probability), (n, TOP_K), device)?,
            rest: Tensor::from_vec(rest, (n, 1), device)?,
            negative_entropy: Tensor::from_vec(entropy, n, device)?,
        })
    }
}

/// `Σ p ln p` of a label's outcomes.
fn negative_entropy(label: &Label) -> f32 {
    let outcomes = label.top.iter().map(|(_, probability)| *probability).chain([label.rest]);
    outcomes.filter(|p| *p > 0.0).map(|p| p * p.ln()).sum()
}

/// The labels of a batch as tensors.
#[derive(Debug, Clone)]
pub struct Targets {
    /// `[n, TOP_K]`, among the rows.
    places: Tensor,
    /// `[n, TOP_K]`
    top: Tensor,
    /// `[n, 1]`
    rest: Tensor,
    /// `[n]`
    negative_entropy: Tensor,
}

impl Targets {
    /// The same labels `n` times over, for as many exits.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn repeated(&self, n: usize) -> Result<Targets> {
        let repeat = |tensor: &Tensor| Tensor::cat(&vec![tensor; n], 0);
        Ok(Targets {
            places: repeat(&self.places)?,
            top: repeat(&self.top)?,
            rest: repeat(&self.rest)?,
            negative_entropy: repeat(&self.negative_entropy)?,
        })
    }
}

/// What an exit's outputs are worth.
#[derive(Debug)]
pub struct Scored {
    /// The divergence of each token, `[n]`.
    pub divergence: Tensor,
    /// Whether the best of the rows is the full model's choice, `[n]`, as 0 and 1.
    pub agreed: Tensor,
    /// `∂divergence/∂z` of each token, `[n, n_embd]`.
    pub gradient: Option<Tensor>,
}

/// Scores outputs `z`, `[n, n_embd]`, by `rows`, `[n_rows, n_embd]`; logits are capped where the model caps them.
///
/// # Errors
///
/// What the device says.
pub fn score(z: &Tensor, rows: &Tensor, targets: &Targets, softcap: Option<f64>, wants_gradient: bool) -> Result<Scored> {
    let mut logits = z.matmul(&rows.t()?)?;
    let mut slope = None;
    if let Some(cap) = softcap {
        let squashed = (logits / cap)?.tanh()?;
        slope = Some((1.0 - squashed.sqr()?)?);
        logits = (squashed * cap)?;
    }
    let best = logits.argmax(D::Minus1)?;
    let agreed = best.eq(&targets.places.narrow(1, 0, 1)?.squeeze(1)?)?.to_dtype(candle_core::DType::F32)?;
    let q = candle_nn::ops::softmax_last_dim(&logits)?;
    let q_top = q.gather(&targets.places, 1)?;
    let q_rest = (1.0 - q_top.sum_keepdim(1)?)?.maximum(LEAST)?;
    let of_top = (&targets.top * q_top.maximum(LEAST)?.log()?)?.sum(1)?;
    let of_rest = (&targets.rest * q_rest.log()?)?.squeeze(1)?;
    let divergence = (&targets.negative_entropy - (of_top + of_rest)?)?;
    let gradient = if wants_gradient {
        // ∂KL/∂logit is q - p for the label's tokens, and q (1 - p_rest / q_rest) for all others.
        let ratio = (&targets.rest / &q_rest)?;
        let others = q.broadcast_mul(&(1.0 - &ratio)?)?;
        let correction = (q_top.broadcast_mul(&ratio)? - &targets.top)?;
        let mut by_logit = others.scatter_add(&targets.places, &correction, 1)?;
        if let Some(slope) = slope {
            by_logit = (by_logit * slope)?;
        }
        Some(by_logit.matmul(rows)?)
    } else {
        None
    };
    Ok(Scored { divergence, agreed, gradient })
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp::Token;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const N_EMBD: usize = 12;
    const N_VOCAB: usize = 90;

    fn world(n: usize) -> (Vec<f32>, Vec<Label>, Vec<f32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random::<f32>() - 0.5).collect() };
        let matrix = draw(N_VOCAB * N_EMBD);
        let truth = draw(n * N_EMBD);
        let z = draw(n * N_EMBD);
        let logits = crate::screen::basis::product_of_rows(&truth, &matrix, N_EMBD);
        let labels = logits.chunks(N_VOCAB).map(|logits| Label::of(Token(0), logits)).collect();
        (matrix, labels, z)
    }

    fn divergences(z: &[f32], matrix: &[f32], labels: &[Label], cap: Option<f64>) -> Vec<f64> {
        let logits = crate::screen::basis::product_of_rows(z, matrix, N_EMBD);
        let of = |(logits, label): (&[f32], &Label)| {
            let capped = |x: &f32| cap.map_or(f64::from(*x), |cap| cap * (f64::from(*x) / cap).tanh());
            let weights: Vec<f64> = logits.iter().map(|x| capped(x).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut rest = 1.0;
            let mut divergence = 0.0;
            for (id, p) in label.top {
                let q = weights[id as usize] / sum;
                rest -= q;
                divergence += f64::from(p) * (f64::from(p) / q).ln();
            }
            divergence + f64::from(label.rest) * (f64::from(label.rest) / rest).ln()
        };
        logits.chunks(N_VOCAB).zip(labels).map(of).collect()
    }

    #[test]
    fn divergence_and_gradient_are_those_of_the_formula() {
        let (matrix, labels, z) = world(4);
        let device = Device::Cpu;
        let all: Vec<u32> = (0..N_VOCAB as u32).rev().collect();
        let rows = Rows::new(N_VOCAB, &all);
        let reversed: Vec<f32> = matrix.chunks(N_EMBD).rev().flatten().copied().collect();
        let row_tensor = Tensor::from_vec(reversed, (N_VOCAB, N_EMBD), &device).unwrap();
        let targets = rows.targets(&labels, &device).unwrap();
        for cap in [None, Some(1.5)] {
            let zs = Tensor::from_vec(z.clone(), (4, N_EMBD), &device).unwrap();
            let scored = score(&zs, &row_tensor, &targets, cap, true).unwrap();
            let found: Vec<f32> = scored.divergence.to_vec1().unwrap();
            let expected = divergences(&z, &matrix, &labels, cap);
            assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4), "{found:?} {expected:?}");
            let gradient: Vec<f32> = scored.gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for i in [0, 7, 20, 47] {
                let moved = |by: f32| {
                    let mut z = z.clone();
                    z[i] += by;
                    divergences(&z, &matrix, &labels, cap)[i / N_EMBD]
                };
                let slope = (moved(0.01) - moved(-0.01)) / 0.02;
                assert!((slope - f64::from(gradient[i])).abs() < 1e-3, "{i}: {slope} {}", gradient[i]);
            }
        }
    }

    #[test]
    fn a_batch_brings_its_own_rows_and_takes_them_away() {
        let (_, labels, _) = world(3);
        let mut rows = Rows::new(N_VOCAB, &[5, 80, 5]);
        assert_eq!(rows.ids(), [5, 80]);
        rows.set_batch(&labels[..1]);
        let first = rows.ids().to_vec();
        assert!(first.len() > TOP_K - 2 && labels[0].top.iter().all(|(id, _)| first.contains(id)));
        rows.set_batch(&labels[1..]);
        assert!(labels[1..].iter().flat_map(|label| &label.top).all(|(id, _)| rows.ids().contains(id)));
        rows.set_batch(&labels[..1]);
        assert_eq!(rows.ids(), first);
    }
}
