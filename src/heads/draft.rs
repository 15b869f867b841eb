//! The head that drafts the token after the next, for the full model to verify: a look at two vectors instead of any block.
//!
//! `x = [rms_norm(h) * norm[..n], rms_norm(w) * norm[n..]]`, where `h` is the state after the final norm that a token came of
//! and `w` that token's row of the output matrix, and `z = map x + bias`, which stands in for the final state that the token
//! itself will have: it is screened and rescored as that one is, among the tokens that exits choose among. From `z` and the
//! drafted token the next is drafted in the same way. It refuses states of another length and tokens outside of the
//! vocabulary.

use std::cell::Cell;
use std::sync::Arc;

use super::ggml::{Graph, Layout, Tensor, Tensors};
use super::head::normalize;
use super::output::OutputMatrix;
use super::screen::{Candidates, Screen, best, weight};
use super::{Heads, ggml};
use crate::error::{Error, Result};
use crate::gguf::exits::{self, ConfidenceMap, Metric};
use crate::gguf::quants::dequantize;
use crate::gguf::{TensorType, exits::View};
use crate::llama::Token;
use crate::llama::threads::ThreadPool;

/// What all sessions of a model share of it.
#[derive(Debug)]
pub(crate) struct DraftWeights {
    /// `[2 * n_embd]`.
    norm: Vec<f32>,
    /// `[2 * n_embd, n_embd]`.
    map: (Tensors, Tensor),
    /// `[n_embd]`.
    bias: Vec<f32>,
    /// From the best candidate's probability to that of being right.
    confidence: ConfidenceMap,
}

impl DraftWeights {
    /// Shapes as [`exits::Draft`] tells; they have been checked.
    ///
    /// # Errors
    /// [`Error::Heads`] for types that the CPU backend does not multiply, or without memory.
    pub(super) fn new(draft: &exits::Draft<'_>, confidence: ConfidenceMap) -> Result<Self> {
        let [n_in, n_out, ..] = draft.map.info.dims4().map(|n| n as usize);
        let map = weight(&draft.map, n_in, n_out)?;
        Ok(Self { norm: View::f32(&draft.norm), map, bias: draft.bias.f32(), confidence })
    }
}

/// The drafting head on the threads of one session.
#[derive(Debug)]
pub(crate) struct DraftHead {
    screen: Screen,
    work: Tensors,
    input: Tensor,
    graph: Graph,
    x: Vec<f32>,
    output: OutputMatrix,
    weights: Arc<DraftWeights>,
    heads: Arc<Heads>,
}

impl DraftHead {
    /// `None` for heads without one.
    ///
    /// # Errors
    /// [`Error::Heads`], [`Error::Unsupported`].
    pub(crate) fn new(heads: &Arc<Heads>, n_threads: usize, pool: Option<Arc<ThreadPool>>) -> Result<Option<Self>> {
        let Some(weights) = heads.draft()? else { return Ok(None) };
        let screen = match Screen::of_exits(heads, n_threads, pool.clone())? {
            Some(screen) => screen,
            None => Screen::new(heads, n_threads, pool)?,
        };
        let n_embd = screen.n_embd();
        let mut work = Tensors::new()?;
        let input = work.matrix(TensorType::F32, 2 * n_embd, 1)?;
        let bias = work.matrix(TensorType::F32, n_embd, 1)?;
        let mapped = work.mul_mat(weights.map.1, input);
        let state = work.add(mapped, bias);
        // SAFETY: the screen lives beside the graph, which runs in `draft` alone.
        unsafe { work.place(state, screen.input())? };
        let graph = work.graph(&[state, screen.scores()])?;
        work.allocate(Layout::plain()?)?;
        work.set_values(bias, &weights.bias);
        let output = screen.output();
        let x = Vec::with_capacity(2 * n_embd);
        Ok(Some(Self { screen, work, input, graph, x, output, weights, heads: Arc::clone(heads) }))
    }

    /// Length of a final state.
    pub(crate) fn n_embd(&self) -> usize {
        self.output.n_embd
    }

    /// The state `[n_embd]` that the last draft was read from: what the token that it was made after is predicted to have.
    pub(crate) fn state(&self) -> &[f32] {
        self.screen.state()
    }

    /// The token that is likely to follow `token`, which came of the final state `[n_embd]`, and the chance that it does, which
    /// may be a little more. `None` where that is below `least`.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn draft(&mut self, state: &[f32], token: Token, least: f32) -> Result<Option<(Token, f32)>> {
        let n_embd = self.output.n_embd;
        if state.len() != n_embd {
            return Err(Error::Heads { found: format!("a final state of {} values", state.len()) });
        }
        let row_bytes = self.output.row_bytes();
        let rows = self.heads.output_rows()?;
        let row = usize::try_from(token.0).ok().and_then(|id| rows.chunks_exact(row_bytes).nth(id));
        let row = row.ok_or_else(|| Error::Heads { found: format!("a draft after token {}", token.0) })?;
        let row = dequantize(self.output.ty, row).map_err(Error::Gguf)?;
        self.x.clear();
        normalize(state, &self.weights.norm[..n_embd], &mut self.x);
        normalize(&row, &self.weights.norm[n_embd..], &mut self.x);
        self.work.set_values(self.input, &self.x);
        self.screen.score_graph(&mut self.work, &mut self.graph)?;
        let chance = Cell::new(0.0);
        let is_likely = |probability: f32| {
            chance.set(self.weights.confidence.agreement_at(probability));
            chance.get() >= least
        };
        if !self.screen.is_sure(Metric::TopProbability, None, Candidates::Enough, &is_likely)? {
            return Ok(None);
        }
        best(self.screen.candidates())
            .map(|(token, _)| Some((token, chance.get())))
            .ok_or_else(|| ggml::failed("a draft without candidates"))
    }
}

#[cfg(test)]
mod tests;
