//! Sidecars for tests of heads: a tiny model, and a screen of full rank that is its own output matrix. What else there is, the
//! tests write.

use std::sync::Arc;

use offramp_fixtures::{Arch, TinyModel};

use super::Heads;
use crate::gguf::exits::{self, Base, ConfidenceMap, ExitMeta, Metric, ScreenMeta};
use crate::gguf::quants::dequantize;
use crate::gguf::{File, WriteOptions, Writer};

/// Candidates of the screen.
pub(super) const SHORTLIST: usize = 160;

/// A model whose heads are to be written.
pub(super) struct Begun {
    folder: tempfile::TempDir,
    model: File,
    /// Keys without exits and without a certificate.
    pub(super) meta: ExitMeta,
    pub(super) n_embd: usize,
}

/// Every value as it is.
pub(super) fn as_it_is() -> ConfidenceMap {
    ConfidenceMap { metric: vec![0.0, 1.0], agreement: vec![0.0, 1.0] }
}

impl Begun {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        TinyModel::new(Arch::Llama).write_to(&path).unwrap();
        let model = File::open(&path).unwrap();
        let base = Base::of(&model, &mut |_, _| true).unwrap();
        let screen = ScreenMeta {
            rank: base.n_embd,
            shortlist: SHORTLIST as u32,
            confidence: as_it_is(),
            thresholds: vec![0.5],
        };
        let n_embd = base.n_embd as usize;
        let meta = ExitMeta {
            base,
            screen,
            vocab: None,
            layers: Vec::new(),
            head_types: Vec::new(),
            head_ranks: Vec::new(),
            draft: None,
            metric: Metric::Margin,
            confidence: Vec::new(),
            agreements: vec![0.99],
            thresholds: Vec::new(),
            gate_thresholds: Vec::new(),
            calibration: None,
        };
        Self { folder, model, meta, n_embd }
    }

    /// A sidecar with these keys and the screen, and the rows of the output matrix `[n_embd, n_vocab]`.
    pub(super) fn sidecar(&self, meta: &ExitMeta) -> (Writer, Vec<f32>) {
        let mut writer = exits::sidecar(&self.model, meta).unwrap();
        let own = self.model.tensor("token_embd.weight").unwrap();
        let output = dequantize(own.ty(), self.model.data(own)).unwrap();
        let n = self.n_embd;
        let identity: Vec<f32> = (0..n * n).map(|i| f32::from(u8::from(i % (n + 1) == 0))).collect();
        writer.tensor_f32("exit_screen.basis", &[n as u64, n as u64], &identity).unwrap();
        writer.tensor_f32("exit_screen.output", own.dims(), &output).unwrap();
        (writer, output)
    }

    /// The heads that were written, and the folder that they are in.
    pub(super) fn open(self, writer: &Writer) -> (Arc<Heads>, tempfile::TempDir) {
        let path = self.folder.path().join("heads.gguf");
        writer.write(&path, WriteOptions::default(), &mut |_, _| true).unwrap();
        (Arc::new(Heads::open(self.model, Some(&path)).unwrap().unwrap()), self.folder)
    }
}
