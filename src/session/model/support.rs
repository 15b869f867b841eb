//! What the gate can do on a loaded model, found out by trying it, each part when it is first asked for.
//!
//! A session with exits needs one part, a judge of rounding another; on a slow machine the whole self-test of a large model takes
//! as long as a sentence of a reply. It refuses to guess from an architecture's name.

use std::sync::{MutexGuard, PoisonError};

use super::{Model, SessionParams};
use crate::error::{Error, Result};
use crate::gate::{Findings, Gate, GateSupport};
use crate::heads;

/// What was found out about the model by trying it.
#[derive(Debug, Default)]
pub(super) struct Known {
    gate: Findings,
    /// Why K and V cannot be predicted; the outer `None` where that was not tried.
    no_predict: Option<Option<String>>,
}

impl Model {
    /// What the layer gate can do on this model. The first call runs a self-test: some short decodes in a small context of
    /// their own.
    ///
    /// # Errors
    /// [`Error::Context`] or [`Error::Decode`] if the model cannot decode at all.
    pub fn gate_support(&self) -> Result<GateSupport> {
        let no_predict = self.no_predict()?;
        let n_layer = self.0.info.n_layer;
        let mut known = self.known();
        self.try_layers(&mut known, &Findings::layers(n_layer))?;
        let support = known.gate.support(n_layer, no_predict);
        support.ok_or_else(|| Error::Gate { found: "a self-test that tried nothing".to_owned() })
    }

    /// The largest difference of a logit between plain decodes of one token and of a few. A part of the self-test.
    ///
    /// # Errors
    /// As [`Model::gate_support`].
    pub(crate) fn width_difference(&self) -> Result<f32> {
        let mut known = self.known();
        if known.gate.width_difference().is_none() {
            self.try_layers(&mut known, &[])?;
        }
        Ok(known.gate.width_difference().unwrap_or(f32::INFINITY))
    }

    /// Tokens of a batch whose logits are still those of single tokens, bit for bit. A part of the self-test.
    ///
    /// # Errors
    /// As [`Model::gate_support`].
    pub(crate) fn alike_width(&self) -> Result<usize> {
        self.width_difference()?;
        Ok(self.known().gate.alike_width().unwrap_or(1))
    }

    /// Why tokens cannot stop after each of `layers` and resume there; `None` if they can. The part of the self-test that
    /// a session with exits there needs.
    ///
    /// # Errors
    /// As [`Model::gate_support`].
    pub(crate) fn no_resume(&self, layers: &[u32]) -> Result<Option<String>> {
        let mut known = self.known();
        self.try_layers(&mut known, layers)?;
        Ok(known.gate.no_resume(layers).flatten())
    }

    /// Why K and V of skipped layers cannot be predicted; `None` if they can. A part of the self-test.
    ///
    /// # Errors
    /// As [`Model::gate_support`].
    pub(crate) fn no_predict(&self) -> Result<Option<String>> {
        if let Some(known) = &self.known().no_predict {
            return Ok(known.clone());
        }
        let found = match self.no_resume(&Findings::layers(self.0.info.n_layer))? {
            None => heads::kv::self_test(&mut self.small_gate()?, self.0.vocab.n_tokens())?,
            Some(_) => Some("tokens cannot stop after a block".to_owned()),
        };
        tracing::debug!(?found, "why K and V are not predicted");
        self.known().no_predict = Some(found.clone());
        Ok(found)
    }

    /// Tries what is not known of these blocks yet.
    fn try_layers(&self, known: &mut Known, layers: &[u32]) -> Result<()> {
        if known.gate.width_difference().is_none() || known.gate.no_resume(layers).is_none() {
            let n_vocab = self.0.vocab.n_tokens();
            known.gate.extend(&mut self.small_gate()?, layers, self.0.info.n_layer, n_vocab)?;
            tracing::debug!(found = ?known.gate, "gate self-test");
        }
        Ok(())
    }

    /// A gate to try things with.
    fn small_gate(&self) -> Result<Gate> {
        self.new_gate(&SessionParams { n_ctx: 256, n_batch: 64, n_ubatch: 64, gate: true, ..SessionParams::default() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What it holds is sound after any panic: a finding is stored whole.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use offramp_fixtures::{Arch, TinyModel};

    use super::*;
    use crate::ModelParams;

    fn model(arch: Arch) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        TinyModel::new(arch).layers(8).write_to(&path).unwrap();
        Model::load(&path, &ModelParams::default()).unwrap()
    }

    #[test]
    fn each_part_is_tried_when_it_is_asked_for_and_no_other() {
        let model = model(Arch::Llama);
        let tried = |layer| model.known().gate.no_resume(&[layer]).is_some();
        assert!(model.width_difference().unwrap().is_finite());
        assert!((0..8).all(|layer| !tried(layer)));
        assert_eq!(model.no_resume(&[3, 5]).unwrap(), None);
        assert!((0..8).all(|layer| tried(layer) == [3, 5].contains(&layer)));
        assert!(model.known().no_predict.is_none());
        let support = model.gate_support().unwrap();
        assert!(support.can_resume() && support.can_predict() && tried(0) && tried(6));
    }

    #[test]
    fn a_memory_that_cannot_forget_is_found_out_at_any_block() {
        let model = model(Arch::Mamba);
        assert!(model.no_resume(&[2]).unwrap().is_some());
        assert!(!model.gate_support().unwrap().can_predict());
    }
}
