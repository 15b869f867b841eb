//! A tiny random model and a sidecar with a screen of full rank, which cannot miss, in a folder of their own.
#![allow(dead_code)] // Each test program uses its part.

pub mod heads;

use std::path::{Path, PathBuf};

use offramp::gguf::exits::{self, Base, Calibration, ConfidenceMap, ExitMeta, KvPolicy, Metric, ScreenMeta};
use offramp::gguf::quants::dequantize;
use offramp::gguf::{File, TensorType, WriteOptions, Writer};
use offramp::{Kernels, Model, ModelParams};
use offramp_fixtures::TinyModel;

/// The levels of agreement that `write_screen` takes a threshold for.
pub const AGREEMENTS: [f32; 2] = [0.9, 0.99];

/// The folder.
pub struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    pub fn new(model: &TinyModel) -> Self {
        let folder = tempfile::tempdir().unwrap();
        model.write_to(folder.path().join("model.gguf")).unwrap();
        Self { folder }
    }

    /// A model of which the blocks from `first_idle` on add nothing to the hidden state, so that a head below them can be
    /// perfect. They still have K/V of their own.
    pub fn with_idle_blocks(model: &TinyModel, first_idle: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let original = File::from_bytes(model.bytes(), "tiny").unwrap();
        let mut writer = Writer::new();
        writer.copy_keys(&original, |_| true).unwrap();
        for tensor in original.tensors() {
            let idle = (first_idle..model.n_layer()).any(|il| {
                ["attn_output", "ffn_down"].iter().any(|part| tensor.name() == format!("blk.{il}.{part}.weight"))
            });
            let data = original.data(tensor);
            let data = if idle { zeros(tensor.ty(), data.len()) } else { data.to_vec() };
            writer.tensor(tensor.name(), tensor.ty(), tensor.dims(), data).unwrap();
        }
        writer.write(folder.path().join("model.gguf"), WriteOptions::default(), &mut |_, _| true).unwrap();
        Self { folder }
    }

    /// A copy of a model that is there already.
    pub fn of_file(model: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(model, folder.path().join("model.gguf")).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a screen of full rank: the identity, then the output matrix itself in `ty`. `thresholds` are confidences,
    /// and a slack of `n` logits is a confidence of `n / 100`.
    pub fn write_screen(&self, shortlist: u32, thresholds: [f32; 2], ty: TensorType, calibrated: bool) -> PathBuf {
        let model = File::open(self.path("model.gguf")).unwrap();
        let base = Base::of(&model, &mut |_, _| true).unwrap();
        let n_embd = base.n_embd as usize;
        let identity: Vec<f32> = (0..n_embd * n_embd).map(|i| f32::from(i % (n_embd + 1) == 0)).collect();
        let own = model.tensor("output.weight").or(model.tensor("token_embd.weight")).unwrap();
        let rows = dequantize(own.ty(), model.data(own)).unwrap();
        let dims = [base.n_embd.into(), base.n_vocab.into()];
        let meta = meta(base, shortlist, thresholds, calibrated);
        let mut writer = exits::sidecar(&model, &meta).unwrap();
        writer.tensor_f32("exit_screen.basis", &[n_embd as u64, n_embd as u64], &identity).unwrap();
        match ty {
            TensorType::F32 => writer.tensor_f32("exit_screen.output", &dims, &rows).unwrap(),
            own_type => writer.tensor("exit_screen.output", own_type, &dims, model.data(own).to_vec()).unwrap(),
        };
        let path = self.path("heads.gguf");
        writer.write(&path, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
        path
    }

    /// Writes exits and a screen of full rank that are calibrated for [`AGREEMENTS`].
    pub fn write_exits(&self, exits: &heads::Spec<'_>) -> PathBuf {
        let model = File::open(self.path("model.gguf")).unwrap();
        let path = self.path("heads.gguf");
        let writer = heads::sidecar(&model, exits);
        writer.write(&path, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
        path
    }

    pub fn load(&self, heads: Option<&Path>) -> Model {
        self.load_by(heads, Kernels::Auto)
    }

    pub fn load_by(&self, heads: Option<&Path>, kernels: Kernels) -> Model {
        let mut params = ModelParams::default();
        params.kernels = kernels;
        params.heads = heads.map(Path::to_owned);
        Model::load(self.path("model.gguf"), &params).unwrap()
    }
}

/// Bytes that stand for zeros: all scales are.
fn zeros(ty: TensorType, n_bytes: usize) -> Vec<u8> {
    assert!(dequantize(ty, &vec![0; n_bytes]).unwrap().iter().all(|&value| value == 0.0));
    vec![0; n_bytes]
}

fn meta(base: Base, shortlist: u32, thresholds: [f32; 2], calibrated: bool) -> ExitMeta {
    ExitMeta {
        screen: ScreenMeta {
            rank: base.n_embd,
            shortlist,
            confidence: ConfidenceMap { metric: vec![0.0, 100.0], agreement: vec![0.0, 1.0] },
            thresholds: thresholds.to_vec(),
        },
        vocab: None,
        draft: None,
        base,
        layers: Vec::new(),
        head_types: Vec::new(),
        head_ranks: Vec::new(),
        metric: Metric::Margin,
        confidence: Vec::new(),
        agreements: AGREEMENTS.to_vec(),
        thresholds: Vec::new(),
        gate_thresholds: Vec::new(),
        calibration: calibrated.then(|| Calibration {
            prompts: "none".to_owned(),
            n_prompts: 1,
            n_tokens: 1,
            delta: 0.05,
            risk: vec![0.0; 2],
            risk_bound: vec![0.0; 2],
            exit_rate: vec![0.0; 2],
            kv_policy: KvPolicy::CatchUp,
            sampler: "greedy".to_owned(),
            batch_width: 1,
            near_ties: 0.0,
            engine: "test".to_owned(),
            date: "2026-01-31".to_owned(),
        }),
    }
}
