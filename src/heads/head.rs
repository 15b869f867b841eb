//! An exit head: from the hidden state after a block to candidates for the next token, and how sure they are.
//!
//! `x = rms_norm(h) * norm`, an optional gated MLP `x' = x + down(silu(gate x) * (up x))`, and `z = map x' + bias`, which
//! stands in for the hidden state after the final norm: it is screened and rescored as that one is, by the same weights
//! and the same code. The norm and the gate are a few thousand multiplications and are done here, before any graph; the
//! map, the screen's two factors and their barriers are one graph. It refuses hidden states of another length.

use std::sync::Arc;

use super::confidence::Classifier;
use super::ggml::{Graph, Layout, Tensor, Tensors};
use super::screen::{Candidates, Screen, weight};
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::gguf::exits::{self, HeadMap, Metric};

/// What keeps the norm of a hidden state from dividing by nothing; the same in training.
const NORM_EPS: f64 = 1e-6;

/// What all sessions of a model share of an exit head.
#[derive(Debug)]
pub(crate) struct HeadWeights {
    layer: u32,
    /// `[n_embd]`.
    norm: Vec<f32>,
    gate: Option<CheapGate>,
    classifier: Option<Classifier>,
    mlp: Option<Mlp>,
    /// One matrix `[n_embd, n_embd]`, or two over a narrow waist.
    map: Vec<(Tensors, Tensor)>,
    /// `[n_embd]`.
    bias: Option<Vec<f32>>,
}

/// `sigmoid(weight . x + bias)`.
#[derive(Debug)]
struct CheapGate {
    weight: Vec<f32>,
    bias: f32,
}

#[derive(Debug)]
struct Mlp {
    gate: (Tensors, Tensor),
    up: (Tensors, Tensor),
    down: (Tensors, Tensor),
}

impl HeadWeights {
    /// Shapes as [`exits::Head`] tells; they have been checked.
    ///
    /// # Errors
    /// [`Error::Heads`] for types that the CPU backend does not multiply, or without memory.
    pub(super) fn new(head: &exits::Head<'_>) -> Result<Self> {
        let n_embd = head.norm.info.dims4()[0] as usize;
        let width = |view: &exits::View<'_>| view.info.dims4()[1] as usize;
        let mlp = match &head.mlp {
            None => None,
            Some(mlp) => {
                let n_ff = width(&mlp.gate);
                Some(Mlp {
                    gate: weight(&mlp.gate, n_embd, n_ff)?,
                    up: weight(&mlp.up, n_embd, n_ff)?,
                    down: weight(&mlp.down, n_ff, n_embd)?,
                })
            }
        };
        let map = match &head.map {
            HeadMap::Affine(map) => vec![weight(map, n_embd, n_embd)?],
            HeadMap::LowRank { down, up } => {
                let rank = width(down);
                vec![weight(down, n_embd, rank)?, weight(up, rank, n_embd)?]
            }
        };
        let gate = head.gate.map(|gate| CheapGate {
            weight: gate.weight.f32(),
            bias: gate.bias.map_or(0.0, |bias| bias.f32().first().copied().unwrap_or(0.0)),
        });
        let classifier = head.classifier.as_ref().map(Classifier::new).transpose()?;
        let bias = head.bias.as_ref().map(exits::View::f32);
        Ok(Self { layer: head.layer, norm: head.norm.f32(), gate, classifier, mlp, map, bias })
    }
}

/// An exit head on the threads of one session, beside the screen that it shares.
#[derive(Debug)]
pub(crate) struct ExitHead {
    work: Tensors,
    input: Tensor,
    graph: Graph,
    normed: Vec<f32>,
    metric: Metric,
    weights: Arc<HeadWeights>,
}

impl ExitHead {
    /// A head that is evaluated with `screen`, and with no other.
    ///
    /// # Errors
    /// [`Error::Heads`] without memory.
    pub(crate) fn new(weights: &Arc<HeadWeights>, metric: Metric, screen: &Screen) -> Result<Self> {
        let n_embd = weights.norm.len();
        if n_embd != screen.n_embd() {
            return Err(Error::Heads { found: format!("a head of {n_embd} values beside another screen") });
        }
        let mut work = Tensors::new()?;
        let input = work.matrix(TensorType::F32, n_embd, 1)?;
        let mut state = input;
        if let Some(mlp) = &weights.mlp {
            let gate = work.mul_mat(mlp.gate.1, input);
            let up = work.mul_mat(mlp.up.1, input);
            let inner = work.swiglu(gate, up);
            let down = work.mul_mat(mlp.down.1, inner);
            state = work.add(input, down);
        }
        for (_, map) in &weights.map {
            state = work.mul_mat(*map, state);
        }
        let mut bias = None;
        if weights.bias.is_some() {
            let tensor = work.matrix(TensorType::F32, n_embd, 1)?;
            state = work.add(state, tensor);
            bias = Some(tensor);
        }
        // The screen's product reads what is computed here; that is not to be seen from its own nodes.
        // SAFETY: the screen outlives its heads' graphs: they run in `evaluate` alone, which borrows it.
        unsafe { work.place(state, screen.input())? };
        let graph = work.graph(&[state, screen.scores()])?;
        work.allocate(Layout::plain()?)?;
        if let (Some(tensor), Some(values)) = (bias, &weights.bias) {
            work.set_values(tensor, values);
        }
        Ok(Self { work, input, graph, normed: Vec::with_capacity(n_embd), metric, weights: Arc::clone(weights) })
    }

    /// The block that the head reads after.
    pub(crate) fn layer(&self) -> u32 {
        self.weights.layer
    }

    /// Takes the hidden state `[n_embd]` after the block; returns the cheap gate's guess, in \[0, 1\], of whether an
    /// evaluation would make the token exit. 1 without a gate.
    ///
    /// # Errors
    /// [`Error::Heads`] for a hidden state of another length.
    pub(crate) fn guess(&mut self, hidden: &[f32]) -> Result<f32> {
        if hidden.len() != self.weights.norm.len() {
            return Err(Error::Heads { found: format!("a hidden state of {} values", hidden.len()) });
        }
        self.normed.clear();
        normalize(hidden, &self.weights.norm, &mut self.normed);
        let Some(gate) = &self.weights.gate else { return Ok(1.0) };
        let score = dot(&gate.weight, &self.normed) + gate.bias;
        Ok(1.0 / (1.0 + (-score).exp()))
    }

    /// Evaluates the head on the state that [`ExitHead::guess`] took. True if the metric over the candidates, which are
    /// then [`Screen::candidates`], is `sure`, as [`Screen::is_sure`] finds it.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn evaluate(
        &mut self,
        screen: &mut Screen,
        candidates: Candidates,
        sure: &dyn Fn(f32) -> bool,
    ) -> Result<bool> {
        self.work.set_values(self.input, &self.normed);
        screen.score_graph(&mut self.work, &mut self.graph)?;
        screen.is_sure(self.metric, self.weights.classifier.as_ref(), candidates, sure)
    }
}

/// Adds `hidden / sqrt(mean(hidden²) + eps) * norm` to the end of `to`.
pub(super) fn normalize(hidden: &[f32], norm: &[f32], to: &mut Vec<f32>) {
    // Sums of 64 squares in f32 and those in f64: as exact as is seen after the product's 8-bit rounding, and fast.
    let sum: f64 = hidden.chunks(64).map(|part| f64::from(part.iter().map(|x| x * x).sum::<f32>())).sum();
    let scale = (1.0 / (sum / hidden.len().max(1) as f64 + NORM_EPS).sqrt()) as f32;
    to.extend(hidden.iter().zip(norm).map(|(x, weight)| x * scale * weight));
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests;
