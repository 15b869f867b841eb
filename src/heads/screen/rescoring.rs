//! The exact logits of candidates, from the raw rows of the output matrix.

use super::super::Heads;
use super::super::ggml::{Cpu, Graph, Tensor, Tensors};
use super::ScreenWeights;
use crate::error::Result;
use crate::gguf::TensorType;
use crate::llama::Token;

/// Repacked layouts interleave up to this many rows: candidates are padded to a multiple of it.
pub(super) const ROWS: usize = 16;

/// The exact logits of a fixed number of candidates.
#[derive(Debug)]
pub(super) struct Rescoring {
    pub(super) n: usize,
    rows: Tensors,
    row_data: Tensor,
    /// The candidates' ids, where the graph itself gathers their rows.
    pub(super) ids: Option<Tensor>,
    logits: Tensor,
    capped: Option<Tensor>,
    graph: Graph,
    /// Rows on their way to the graph; empty where the graph gathers them.
    staging: Vec<u8>,
}

impl Rescoring {
    /// Of `n` candidates, from the hidden state in `input`; `work` is still to be allocated.
    pub(super) fn new(
        n: usize,
        input: Tensor,
        work: &mut Tensors,
        weights: &ScreenWeights,
        heads: &Heads,
    ) -> Result<Self> {
        let output = weights.output;
        let n_rows = n.next_multiple_of(ROWS);
        let mut rows = Tensors::new()?;
        let row_data = rows.matrix(output.ty, output.n_embd, n_rows)?;
        // The gathered rows first: that the product reads them is not to be seen from the graph.
        rows.allocate(weights.layout)?;
        let mut gathered = None;
        let mut ids = None;
        if weights.layout.is_plain() {
            let wanted = work.matrix(TensorType::I32, n_rows, 1)?;
            // SAFETY: the model's file stays mapped as long as `heads`, and `rows` as long as `work`: both are part of
            // the screen.
            gathered = unsafe { work.gather(heads.output_rows()?, output.row_bytes(), wanted, row_data)? };
            ids = gathered.map(|_| wanted);
        }
        let logits = work.mul_mat(row_data, input);
        let capped = output.softcap.map(|cap| work.softcap(logits, cap));
        let last: Vec<Tensor> = gathered.into_iter().chain([capped.unwrap_or(logits)]).collect();
        let graph = work.graph(&last)?;
        let staging = if ids.is_some() { Vec::new() } else { vec![0; n_rows * output.row_bytes()] };
        Ok(Self { n, rows, row_data, ids, logits, capped, graph, staging })
    }

    /// Computes the logits of `chosen`, which are `n`, into `candidates`; returns the best before a soft cap, and by how much
    /// the worst misjudged one exceeds its score.
    pub(super) fn run(
        &mut self,
        chosen: &[(u32, f32)],
        cpu: &mut Cpu,
        work: &mut Tensors,
        matrix: (&[u8], usize),
        candidates: &mut Vec<(Token, f32)>,
    ) -> Result<(f32, f32)> {
        if let Some(ids) = self.ids {
            for (to, &(id, _)) in work.bytes_mut(ids).chunks_exact_mut(4).zip(chosen) {
                to.copy_from_slice(&id.to_ne_bytes());
            }
        } else {
            let (matrix, row_bytes) = matrix;
            for (to, &(id, _)) in self.staging.chunks_exact_mut(row_bytes).zip(chosen) {
                let start = id as usize * row_bytes;
                to.copy_from_slice(&matrix[start..start + row_bytes]);
            }
            self.rows.set(self.row_data, &self.staging);
        }
        cpu.compute(work, &mut self.graph)?;
        // The screen approximates the matrix's product, which a soft cap comes after.
        let exact = work.values(self.logits).iter().take(chosen.len()).copied();
        let misjudged = exact.clone().zip(chosen).map(|(logit, &(_, score))| logit - score).fold(0.0, f32::max);
        let best = exact.fold(f32::NEG_INFINITY, f32::max);
        let logits = work.values(self.capped.unwrap_or(self.logits));
        candidates.clear();
        candidates.extend(chosen.iter().zip(logits).map(|(&(id, _), &logit)| (Token(id as i32), logit)));
        Ok((best, misjudged))
    }
}
