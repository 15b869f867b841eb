//! The screen: every token scored through two small factors, the best of them rescored with the model's own rows.
//!
//! `scores = output^T (basis^T x)` over the whole vocabulary, then the logits of the `shortlist` best are computed from
//! the raw rows of the output matrix, in its own quantization and in the layout that llama.cpp multiplies it in, so
//! that they are the full matrix's own, bit for bit.

use std::sync::Arc;

use super::Heads;
use super::ggml::{Cpu, Graph, Layout, Tensor, Tensors};
use super::output::OutputMatrix;
use super::select::Selection;
use crate::error::{Error, Result};
use crate::gguf::exits;
use crate::llama::Token;
use crate::llama::threads::ThreadPool;

/// Repacked layouts interleave up to this many rows: candidates are padded to a multiple of it.
const ROWS: usize = 16;

/// What all sessions of a model share of a screen.
#[derive(Debug)]
pub(crate) struct ScreenWeights {
    basis: (Tensors, Tensor),
    factor: (Tensors, Tensor),
    output: OutputMatrix,
    /// How llama.cpp lays the output matrix out.
    layout: Layout,
    shortlist: usize,
}

impl ScreenWeights {
    /// Shapes as [`exits::Screen`] tells; they have been checked against the model's.
    ///
    /// # Errors
    /// [`Error::Heads`] for types that the CPU backend does not multiply, or without memory.
    pub(super) fn new(screen: &exits::Screen<'_>, output: OutputMatrix, shortlist: u32) -> Result<Self> {
        let rank = screen.basis.info.dims4()[1] as usize;
        let layout = Layout::of_weight(output.ty, output.n_embd, output.n_vocab)?;
        let basis = weight(&screen.basis, output.n_embd, rank)?;
        let factor = weight(&screen.output, rank, output.n_vocab)?;
        Ok(Self { basis, factor, output, layout, shortlist: (shortlist as usize).min(output.n_vocab) })
    }
}

/// A matrix `[n_in, n_out]` in the layout that multiplies it fastest.
pub(super) fn weight(view: &exits::View<'_>, n_in: usize, n_out: usize) -> Result<(Tensors, Tensor)> {
    let mut tensors = Tensors::new()?;
    let tensor = tensors.matrix(view.info.ty(), n_in, n_out)?;
    tensors.allocate(Layout::of_weight(view.info.ty(), n_in, n_out)?)?;
    tensors.set(tensor, view.data);
    Ok((tensors, tensor))
}

/// A screen on the threads of one session.
#[derive(Debug)]
pub(crate) struct Screen {
    cpu: Cpu,
    work: Tensors,
    rows: Tensors,
    input: Tensor,
    scores: Tensor,
    row_data: Tensor,
    /// The candidates' ids, where the graph itself gathers their rows.
    ids: Option<Tensor>,
    logits: Tensor,
    capped: Option<Tensor>,
    score: Graph,
    rescore: Graph,
    selection: Selection,
    /// Rows on their way to the graph; empty where the graph gathers them.
    staging: Vec<u8>,
    candidates: Vec<(Token, f32)>,
    weights: Arc<ScreenWeights>,
    heads: Arc<Heads>,
}

impl Screen {
    /// # Errors
    /// [`Error::Heads`], [`Error::Unsupported`].
    pub(crate) fn new(heads: &Arc<Heads>, n_threads: usize, pool: Option<Arc<ThreadPool>>) -> Result<Self> {
        use crate::gguf::TensorType::{F32, I32};
        let weights = heads.screen()?;
        let output = weights.output;
        let n_rows = weights.shortlist.next_multiple_of(ROWS);
        let mut rows = Tensors::new()?;
        let row_data = rows.matrix(output.ty, output.n_embd, n_rows)?;
        let mut work = Tensors::new()?;
        let input = work.matrix(F32, output.n_embd, 1)?;
        let projected = work.mul_mat(weights.basis.1, input);
        let scores = work.mul_mat(weights.factor.1, projected);
        // The gathered rows first: that the product reads them is not to be seen from the graph.
        rows.allocate(weights.layout)?;
        let mut gathered = None;
        let mut ids = None;
        if weights.layout.is_plain() {
            let wanted = work.matrix(I32, n_rows, 1)?;
            // SAFETY: the model's file stays mapped as long as `heads`, and `rows` as long as `work`: both are part of
            // the result.
            gathered = unsafe { work.gather(heads.output_rows()?, output.row_bytes(), wanted, row_data)? };
            ids = gathered.map(|_| wanted);
        }
        let logits = work.mul_mat(row_data, input);
        let capped = output.softcap.map(|cap| work.softcap(logits, cap));
        let score = work.graph(&[scores])?;
        let last: Vec<Tensor> = gathered.into_iter().chain([capped.unwrap_or(logits)]).collect();
        let rescore = work.graph(&last)?;
        work.allocate(Layout::plain()?)?;
        // Candidates beyond the shortlist, up to whole groups of rows, are row 0, and nobody reads their logits.
        let staging = if let Some(ids) = ids {
            work.bytes_mut(ids).fill(0);
            Vec::new()
        } else {
            vec![0; n_rows * output.row_bytes()]
        };
        Ok(Self {
            cpu: Cpu::new(n_threads, pool)?,
            work,
            rows,
            input,
            scores,
            row_data,
            ids,
            logits,
            capped,
            score,
            rescore,
            selection: Selection::default(),
            staging,
            candidates: Vec::with_capacity(weights.shortlist),
            weights,
            heads: Arc::clone(heads),
        })
    }

    /// Screens the hidden state `[n_embd]` after the final norm. The slack: by how much the best candidate's exact logit
    /// exceeds the score of the last candidate, which is what a token outside of the candidates would have to be
    /// misjudged by. `None` for hidden states that are no numbers.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn evaluate(&mut self, hidden: &[f32]) -> Result<Option<f32>> {
        if hidden.len() != self.weights.output.n_embd {
            return Err(Error::Heads { found: format!("a hidden state of {} values", hidden.len()) });
        }
        self.work.set_values(self.input, hidden);
        self.cpu.compute(&mut self.work, &mut self.score)?;
        self.rescore()
    }

    /// As [`Screen::evaluate`], of the hidden state that `graph` (of `tensors`) itself computes into [`Screen::input`],
    /// before the scores.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(super) fn evaluate_graph(&mut self, tensors: &mut Tensors, graph: &mut Graph) -> Result<Option<f32>> {
        self.cpu.compute(tensors, graph)?;
        self.rescore()
    }

    /// What is screened, `[n_embd]`.
    pub(super) fn input(&self) -> Tensor {
        self.input
    }

    /// The scores of all tokens, `[n_vocab]`, computed from [`Screen::input`].
    pub(super) fn scores(&self) -> Tensor {
        self.scores
    }

    /// Length of a hidden state.
    pub(super) fn n_embd(&self) -> usize {
        self.weights.output.n_embd
    }

    /// The exact logits of the tokens whose scores are best.
    fn rescore(&mut self) -> Result<Option<f32>> {
        self.candidates.clear();
        let chosen = self.selection.best(self.work.values(self.scores), self.weights.shortlist);
        if chosen.len() < self.weights.shortlist {
            return Ok(None);
        }
        let last = chosen.iter().map(|&(_, score)| score).fold(f32::INFINITY, f32::min);

        if let Some(ids) = self.ids {
            for (to, &(id, _)) in self.work.bytes_mut(ids).chunks_exact_mut(4).zip(chosen) {
                to.copy_from_slice(&id.to_ne_bytes());
            }
        } else {
            let row_bytes = self.weights.output.row_bytes();
            let matrix = self.heads.output_rows()?;
            for (to, &(id, _)) in self.staging.chunks_exact_mut(row_bytes).zip(chosen) {
                let start = id as usize * row_bytes;
                to.copy_from_slice(&matrix[start..start + row_bytes]);
            }
            self.rows.set(self.row_data, &self.staging);
        }
        self.cpu.compute(&mut self.work, &mut self.rescore)?;
        // The screen approximates the matrix's product, which a soft cap comes after.
        let best = self.work.values(self.logits).iter().take(chosen.len()).copied().fold(f32::NEG_INFINITY, f32::max);
        let logits = self.work.values(self.capped.unwrap_or(self.logits));
        self.candidates.extend(chosen.iter().zip(logits).map(|(&(id, _), &logit)| (Token(id as i32), logit)));
        Ok(Some(best - last))
    }

    /// The candidates of the last evaluation with their exact logits, by ascending id.
    pub(crate) fn candidates(&self) -> &[(Token, f32)] {
        &self.candidates
    }
}
