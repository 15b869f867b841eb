//! The loss of exits: the divergence of what they say from what the full model said.
//!
//! A label is the full model's best tokens and the mass of all others, so the divergence is over those outcomes:
//! `KL = Σ p_k ln(p_k / q_k) + p_rest ln(p_rest / q_rest)`, where `q` is the softmax of `W z` at temperature 1. `W` is
//! the model's own output matrix and stays as it is. Its rows that are in play are few: those of the batch's labels, and those
//! of the tokens that the model uses most ([`Rows`]); what the exit gives to the others is not looked at in this batch.
//!
//! `q` is needed twice, for the loss and for its gradient `Wᵀ (∂KL/∂logits)`, and both are written out here: that spares
//! the automatic differentiation of a dozen passes over `[n_rows, n_tokens]` values. The head's own weights are left to
//! it. On the processor the passes are one, and the two products are faer's, which work on all cores.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use crate::collect::label::{Label, TOP_K};
use crate::screen::basis::{product, product_of_rows};

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

    /// How many of them, the first, every batch has.
    pub fn n_fixed(&self) -> usize {
        self.n_fixed
    }

    /// The targets of labels whose tokens are all in play.
    pub fn targets(&self, labels: &[Label]) -> Targets {
        let place = |id: u32| self.places.get(id as usize).copied().unwrap_or(0);
        Targets {
            places: labels.iter().flat_map(|label| label.top.iter().map(|(id, _)| place(*id))).collect(),
            top: labels.iter().flat_map(|label| label.top.iter().map(|(_, probability)| *probability)).collect(),
            rest: labels.iter().map(|label| label.rest).collect(),
            negative_entropy: labels.iter().map(negative_entropy).collect(),
        }
    }
}

/// `Σ p ln p` of a label's outcomes.
fn negative_entropy(label: &Label) -> f32 {
    let outcomes = label.top.iter().map(|(_, probability)| *probability).chain([label.rest]);
    outcomes.filter(|p| *p > 0.0).map(|p| p * p.ln()).sum()
}

/// The labels of a batch, by the rows in play.
#[derive(Debug, Clone)]
pub struct Targets {
    /// `[TOP_K, n]`, among the rows.
    places: Vec<u32>,
    /// `[TOP_K, n]`
    top: Vec<f32>,
    /// `[n]`
    rest: Vec<f32>,
    /// `[n]`
    negative_entropy: Vec<f32>,
}

/// The rows in play, `[n_embd, n_rows]`.
#[derive(Debug, Clone)]
pub enum RowValues {
    /// In memory, for the processor.
    Host(Vec<f32>),
    /// On another device.
    Device(Tensor),
}

/// What exits' outputs are worth.
#[derive(Debug)]
pub struct Scored {
    /// The divergence of each output, in nats.
    pub divergence: Vec<f32>,
    /// Whether the best of the rows is the full model's choice, as 0 and 1.
    pub agreed: Vec<f32>,
    /// `∂divergence/∂z` of each output, `[n, n_embd]`, where it was asked for.
    pub gradient: Option<Tensor>,
}

/// Scores outputs `z`, `[n, n_embd]`: those of one exit for all targets, then those of the next. Logits are capped where
/// the model caps them.
///
/// # Errors
///
/// What the device says.
pub fn score(
    z: &Tensor,
    rows: &RowValues,
    targets: &Targets,
    softcap: Option<f32>,
    wants_gradient: bool,
) -> Result<Scored> {
    match rows {
        RowValues::Host(rows) => {
            let n_embd = z.dim(D::Minus1)?;
            let (scored, gradient) =
                on_host(&z.flatten_all()?.to_vec1()?, n_embd, rows, targets, softcap, wants_gradient);
            let gradient = gradient.map(|gradient| Tensor::from_vec(gradient, z.shape(), z.device())).transpose()?;
            Ok(Scored { gradient, ..scored })
        }
        RowValues::Device(rows) => on_device(z, rows, targets, softcap.map(f64::from), wants_gradient),
    }
}

/// On the processor: two products on all threads, and one pass over each output's logits between them.
fn on_host(
    z: &[f32],
    n_embd: usize,
    rows: &[f32],
    targets: &Targets,
    softcap: Option<f32>,
    wants_gradient: bool,
) -> (Scored, Option<Vec<f32>>) {
    let n_rows = rows.len() / n_embd.max(1);
    let n_targets = targets.rest.len().max(1);
    let mut logits = product_of_rows(z, rows, n_embd);
    let of_output = |(i, logits): (usize, &mut [f32])| {
        let i = i % n_targets;
        let labels = i * TOP_K..(i + 1) * TOP_K;
        let target = (&targets.places[labels.clone()], &targets.top[labels], targets.rest[i]);
        let (cross_entropy, agreed) = differentiate(logits, target, softcap, wants_gradient);
        (targets.negative_entropy[i] + cross_entropy, f32::from(u8::from(agreed)))
    };
    let (divergence, agreed) = logits.par_chunks_mut(n_rows.max(1)).enumerate().map(of_output).unzip();
    let gradient = wants_gradient.then(|| product(&logits, n_rows, rows, n_embd));
    (Scored { divergence, agreed, gradient: None }, gradient)
}

/// Turns one output's logits into the derivatives of the divergence by them, where those are wanted. Gives the cross
/// entropy, and whether the best row is the label's.
fn differentiate(
    logits: &mut [f32],
    (places, top, rest): (&[u32], &[f32], f32),
    softcap: Option<f32>,
    wants_gradient: bool,
) -> (f32, bool) {
    let mut slopes = Vec::new();
    if let Some(cap) = softcap {
        for logit in logits.iter_mut() {
            let squashed = (*logit / cap).tanh();
            slopes.push(1.0 - squashed * squashed);
            *logit = squashed * cap;
        }
    }
    let (mut best, mut highest) = (0, f32::NEG_INFINITY);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > highest {
            (best, highest) = (i, *logit);
        }
    }
    let mut sum = 0.0f32;
    for logit in logits.iter_mut() {
        *logit = (*logit - highest).exp();
        sum += *logit;
    }
    let q_top: Vec<f32> = places.iter().map(|place| logits[*place as usize] / sum).collect();
    let least = LEAST as f32;
    let q_rest = (1.0 - q_top.iter().sum::<f32>()).max(least);
    let of_top: f32 = top.iter().zip(&q_top).map(|(p, q)| p * q.max(least).ln()).sum();
    if wants_gradient {
        let scale = (1.0 - rest / q_rest) / sum;
        logits.iter_mut().for_each(|weight| *weight *= scale);
        for ((place, p), q) in places.iter().zip(top).zip(&q_top) {
            logits[*place as usize] = q - p;
        }
        logits.iter_mut().zip(&slopes).for_each(|(derivative, slope)| *derivative *= slope);
    }
    (-of_top - rest * q_rest.ln(), places.first().is_some_and(|place| *place as usize == best))
}

/// On another device, by candle's operations: the same in as many passes as there are operations.
fn on_device(
    z: &Tensor,
    rows: &Tensor,
    targets: &Targets,
    softcap: Option<f64>,
    wants_gradient: bool,
) -> Result<Scored> {
    let (device, n) = (z.device(), targets.rest.len());
    let n_exits = z.dim(0)? / n.max(1);
    let repeated = |tensor: Tensor| Tensor::cat(&vec![tensor; n_exits], 0);
    let places = repeated(Tensor::from_slice(&targets.places, (n, TOP_K), device)?)?;
    let top = repeated(Tensor::from_slice(&targets.top, (n, TOP_K), device)?)?;
    let rest = repeated(Tensor::from_slice(&targets.rest, (n, 1), device)?)?;
    let negative_entropy = repeated(Tensor::from_slice(&targets.negative_entropy, n, device)?)?;

    let mut logits = z.matmul(&rows.t()?)?;
    let mut slope = None;
    if let Some(cap) = softcap {
        let squashed = (logits / cap)?.tanh()?;
        slope = Some((1.0 - squashed.sqr()?)?);
        logits = (squashed * cap)?;
    }
    let best = logits.argmax(D::Minus1)?;
    let agreed = best.eq(&places.narrow(1, 0, 1)?.squeeze(1)?)?.to_dtype(DType::F32)?;
    let q = candle_nn::ops::softmax_last_dim(&logits)?;
    let q_top = q.gather(&places, 1)?;
    let q_rest = (1.0 - q_top.sum_keepdim(1)?)?.maximum(LEAST)?;
    let of_top = (&top * q_top.maximum(LEAST)?.log()?)?.sum(1)?;
    let of_rest = (&rest * q_rest.log()?)?.squeeze(1)?;
    let divergence = (negative_entropy - (of_top + of_rest)?)?;
    let gradient = if wants_gradient {
        // ∂KL/∂logit is q - p for the label's tokens, and q (1 - p_rest / q_rest) for all others.
        let ratio = (&rest / &q_rest)?;
        let others = q.broadcast_mul(&(1.0 - &ratio)?)?;
        let correction = (q_top.broadcast_mul(&ratio)? - &top)?;
        let mut by_logit = others.scatter_add(&places, &correction, 1)?;
        if let Some(slope) = slope {
            by_logit = (by_logit * slope)?;
        }
        Some(by_logit.matmul(rows)?)
    } else {
        None
    };
    Ok(Scored { divergence: divergence.to_vec1()?, agreed: agreed.to_vec1()?, gradient })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
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
        let row_tensor = Tensor::from_vec(reversed.clone(), (N_VOCAB, N_EMBD), &device).unwrap();
        let targets = rows.targets(&labels);
        let forms = [RowValues::Host(reversed), RowValues::Device(row_tensor)];
        for (cap, form) in [None, Some(1.5f32)].into_iter().flat_map(|cap| forms.iter().map(move |form| (cap, form))) {
            let zs = Tensor::from_vec(z.clone(), (4, N_EMBD), &device).unwrap();
            let scored = score(&zs, form, &targets, cap, true).unwrap();
            let found = scored.divergence;
            let expected = divergences(&z, &matrix, &labels, cap.map(f64::from));
            assert!(
                found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4),
                "{found:?} {expected:?}"
            );
            let gradient: Vec<f32> = scored.gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for i in [0, 7, 20, 47] {
                let moved = |by: f32| {
                    let mut z = z.clone();
                    z[i] += by;
                    divergences(&z, &matrix, &labels, cap.map(f64::from))[i / N_EMBD]
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
