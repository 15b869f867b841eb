//! What the model makes of its last hidden state: the output matrix, and what follows it.

use crate::error::{Error, Result};
use crate::gguf::{ARCHITECTURES, File, TensorType};

/// What `gemma2` caps its logits at when its file does not say (`llama_hparams::f_final_logit_softcapping`).
const GEMMA2_SOFTCAP: f32 = 30.0;

/// The output matrix `[n_embd, n_vocab]` of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OutputMatrix {
    pub(super) ty: TensorType,
    pub(super) n_embd: usize,
    pub(super) n_vocab: usize,
    /// Logits are `cap * tanh(logit / cap)`.
    pub(super) softcap: Option<f32>,
}

impl OutputMatrix {
    /// The matrix's name: its own, or that of the token embeddings that it is tied to.
    pub(super) fn name(model: &File) -> &'static str {
        if model.tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" }
    }

    /// # Errors
    /// [`Error::Unsupported`] for an architecture whose graph after the final norm has not been read, and for a matrix
    /// that comes with a bias or scales of its own.
    pub(super) fn of(model: &File) -> Result<Self> {
        let unsupported =
            |found| Error::Unsupported { what: "screening the output matrix", found, fix: "run with --exits off" };
        let architecture = model.str("general.architecture")?.unwrap_or_default();
        // The graphs of these were read from `result_norm` to `result_output`; that of another may scale its logits.
        if !ARCHITECTURES.contains(&architecture) {
            return Err(unsupported(format!("architecture {architecture}")));
        }
        let beside = model.tensors().iter().find(|tensor| {
            let name = tensor.name();
            name.starts_with("output.") && name != "output.weight"
        });
        if let Some(tensor) = beside {
            return Err(unsupported(format!("a model with the tensor {}", tensor.name())));
        }
        let name = Self::name(model);
        let info = model.tensor(name).ok_or_else(|| unsupported(format!("a model without {name}")))?;
        let [n_embd, n_vocab, ..] = info.dims4();
        let softcap = match model.f32(&format!("{architecture}.final_logit_softcapping"))? {
            None if architecture == "gemma2" => Some(GEMMA2_SOFTCAP),
            Some(cap) if matches!(architecture, "gemma2" | "gemma3") => Some(cap).filter(|&cap| cap != 0.0),
            _ => None,
        };
        if softcap.is_some_and(|cap| !cap.is_normal()) {
            return Err(unsupported(format!("a soft cap of {softcap:?}")));
        }
        let size = |n: u64| usize::try_from(n).map_err(|_| unsupported(format!("a matrix of {n} rows or columns")));
        Ok(Self { ty: info.ty(), n_embd: size(n_embd)?, n_vocab: size(n_vocab)?, softcap })
    }

    /// Bytes of one row.
    pub(super) fn row_bytes(&self) -> usize {
        self.n_embd / self.ty.block_size() as usize * self.ty.block_bytes() as usize
    }
}
