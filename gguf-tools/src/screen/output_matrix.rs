//! The model's own output matrix, row by row and in whatever quantization the file has.
//!
//! Its rows are `output.weight`, or `token_embd.weight` where the model ties the two. It is never held in memory whole.

use anyhow::{Context, ensure};
use offramp::gguf::{File, TensorInfo, quants};

/// The rows of one chunk.
const CHUNK: usize = 4096;

/// What `gemma2` caps its logits at when its file does not say, as the runtime knows it.
const GEMMA2_SOFTCAP: f32 = 30.0;

/// The output matrix of an open model file.
#[derive(Debug, Clone, Copy)]
pub struct OutputMatrix<'a> {
    data: &'a [u8],
    info: &'a TensorInfo,
    n_embd: usize,
    n_vocab: usize,
    softcap: Option<f32>,
}

impl<'a> OutputMatrix<'a> {
    /// # Errors
    ///
    /// A model without an output matrix, with a bias on its logits, or whose rows are no whole number of blocks.
    pub fn of(file: &'a File) -> anyhow::Result<OutputMatrix<'a>> {
        let info = file.tensor("output.weight").or_else(|| file.tensor("token_embd.weight"));
        let info = info.context("the model has neither output.weight nor token_embd.weight: it has no logits")?;
        ensure!(
            file.tensor("output.bias").is_none(),
            "the model adds a bias to its logits (output.bias), which a screen does not reproduce: make no screen"
        );
        let [n_embd, n_vocab, ..] = info.dims4();
        let (n_embd, n_vocab) = (usize::try_from(n_embd)?, usize::try_from(n_vocab)?);
        let whole = n_embd > 0 && n_vocab > 0 && info.dims().len() == 2;
        let whole = whole && (n_embd as u64).is_multiple_of(info.ty().block_size());
        ensure!(whole, "{} of shape {:?} is no matrix of whole blocks", info.name(), info.dims());
        let architecture = file.str("general.architecture")?.unwrap_or_default();
        let softcap = match file.f32(&format!("{architecture}.final_logit_softcapping"))? {
            None if architecture == "gemma2" => Some(GEMMA2_SOFTCAP),
            Some(cap) if matches!(architecture, "gemma2" | "gemma3") => Some(cap).filter(|cap| *cap != 0.0),
            _ => None,
        };
        ensure!(softcap.is_none_or(f32::is_normal), "the model caps its logits at {softcap:?}, which is no number");
        Ok(OutputMatrix { data: file.data(info), info, n_embd, n_vocab, softcap })
    }

    /// What logits are capped at: `cap * tanh(logit / cap)`.
    pub fn softcap(&self) -> Option<f32> {
        self.softcap
    }

    /// The length of a row.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// The number of rows.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// The bytes of the matrix as stored.
    pub fn bytes(&self) -> u64 {
        self.info.bytes()
    }

    /// The bytes of one row as stored.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.n_vocab
    }

    /// One row, `[n_embd]`.
    ///
    /// # Errors
    ///
    /// A row beyond the last.
    pub fn row(&self, id: usize) -> anyhow::Result<Vec<f32>> {
        self.rows(id, 1)
    }

    /// Shows all rows in order, some thousand at a time: the number of the first, and `[n_embd, n]` of them.
    ///
    /// # Errors
    ///
    /// What `each` says.
    pub fn for_each_chunk(&self, each: &mut dyn FnMut(usize, &[f32]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for first in (0..self.n_vocab).step_by(CHUNK) {
            each(first, &self.rows(first, CHUNK.min(self.n_vocab - first))?)?;
        }
        Ok(())
    }

    fn rows(&self, first: usize, n: usize) -> anyhow::Result<Vec<f32>> {
        let bytes = self.row_bytes();
        let data = self.data.get(first * bytes..(first + n) * bytes);
        let data =
            data.with_context(|| format!("row {first} of {}: it has {} rows", self.info.name(), self.n_vocab))?;
        Ok(quants::dequantize(self.info.ty(), data)?)
    }
}
