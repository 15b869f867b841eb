//! The head that drafts the token after the next, as it is stored and run.
//!
//! `x = [rms_norm(h) * norm[..n], rms_norm(w) * norm[n..]]`, `h` the final state at one position, `w` the output matrix's row of
//! the token that followed, and `z = map x + bias` predicts the final state of that token: what the model will make of it
//! without running it. Exact mode verifies what it says, so that it is never wrong but in vain.

use offramp::gguf::Writer;
use offramp::gguf::exits::ConfidenceMap;

use super::stored::Stored;

/// A trained head, as it is stored.
#[derive(Debug, Clone)]
pub struct DraftHead {
    /// `[2 * n_embd]`
    pub norm: Vec<f32>,
    /// `[2 * n_embd, n_embd]`
    pub map: Stored,
    /// `[n_embd]`
    pub bias: Vec<f32>,
    /// From the best candidate's probability to that of being right.
    pub confidence: ConfidenceMap,
}

impl DraftHead {
    /// The outputs for inputs `x`, `[2 * n_embd, n]`: predictions of the final state.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut z = self.map.apply(x);
        for row in z.chunks_exact_mut(self.bias.len()) {
            row.iter_mut().zip(&self.bias).for_each(|(z, bias)| *z += bias);
        }
        z
    }

    /// Adds its tensors to a file in the making.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn write(&self, writer: &mut Writer) -> offramp::gguf::Result<()> {
        let dims = [self.map.n_in() as u64, self.map.n_out() as u64];
        writer.tensor_f32("exit_draft.norm.weight", &[self.norm.len() as u64], &self.norm)?;
        writer.tensor("exit_draft.head.weight", self.map.ty(), &dims, self.map.bytes().to_vec())?;
        writer.tensor_f32("exit_draft.head.bias", &[self.bias.len() as u64], &self.bias).map(drop)
    }
}
