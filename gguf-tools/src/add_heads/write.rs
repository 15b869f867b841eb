//! What was made, as the tensors of a file, by the names and shapes of `docs/gguf.md`.

use offramp::gguf::exits::{HeadType, Metric};
use offramp::gguf::{TensorType, Writer};

use super::Made;
use crate::train::choose::Choice;

impl Made {
    /// Adds the tensors to a file in the making.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn write_tensors(&self, writer: &mut Writer) -> offramp::gguf::Result<()> {
        let base = &self.meta.base;
        let (n_embd, rank) = (u64::from(base.n_embd), self.screen.rank as u64);
        let basis = self.screen.basis.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.tensor("exit_screen.basis", TensorType::F16, &[n_embd, rank], basis)?;
        let output = self.screen.output.clone();
        writer.tensor("exit_screen.output", TensorType::Q4_0, &[rank, base.n_vocab.into()], output)?;
        if let Some(vocab) = &self.vocab {
            let ids = vocab.tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
            writer.tensor("exit_vocab.tokens", TensorType::I32, &[vocab.tokens.len() as u64], ids)?;
        }
        let metric = self.meta.metric;
        if let Some(classifier) = self.vocab_classifier.as_ref().filter(|_| metric == Metric::Classifier) {
            classifier.write("exit_vocab.classifier", writer)?;
        }
        if let Some(draft) = &self.draft {
            draft.head.write(writer)?;
        }
        self.heads.iter().try_for_each(|head| head.write(metric, writer))
    }

    /// The chosen set of exits, as simulated.
    pub fn choice(&self) -> Option<&Choice> {
        self.sets.1.first()
    }

    /// The type of the heads; `None` without exits.
    pub fn head_type(&self) -> Option<HeadType> {
        self.meta.head_types.first().copied()
    }
}
