//! Exit heads by construction: perfect ones (where the blocks above add nothing), ones that are always wrong, random ones.

use offramp::gguf::exits::{self, Base, Calibration, ConfidenceMap, ExitMeta, HeadType, Metric, VocabMeta};
use offramp::gguf::quants::dequantize;
use offramp::gguf::{File, TensorType, Writer};

/// What a head's map is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The identity after the model's own last norm: the full model's choice where the blocks above are idle.
    Perfect,
    /// The opposite of it: the full model's last choice.
    Wrong,
    /// Random weights of this seed.
    Random(u64),
}

/// Exits to write. Confidence is the best candidate's probability.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    pub layers: &'a [u32],
    pub kind: Kind,
    /// For each level, what every exit must reach.
    pub thresholds: [f32; 2],
    /// For each level, what the screen must reach.
    pub screen: [f32; 2],
    /// The cheap gate's answer at every exit, and what it must reach; `None` writes no gates.
    pub gate: Option<(f32, f32)>,
    pub shortlist: u32,
    /// The tokens that exits choose among, and for each level what they must reach at full depth; `None` for all.
    pub vocab: Option<(&'a [u32], [f32; 2])>,
    /// The weights of a head that drafts: what it makes of the final state, and of the token's row; `None` for none.
    pub draft: Option<(&'a [f32], &'a [f32])>,
    /// Tokens of the widest batch that the levels were certified with.
    pub batch_width: u32,
}

impl<'a> Spec<'a> {
    /// Exits that always leave, and a screen that never does.
    pub fn new(layers: &'a [u32], kind: Kind) -> Self {
        Self {
            layers,
            kind,
            thresholds: [0.0; 2],
            screen: [f32::INFINITY; 2],
            gate: None,
            shortlist: 64,
            vocab: None,
            draft: None,
            batch_width: 1,
        }
    }
}

pub fn sidecar(model: &File, spec: &Spec<'_>) -> Writer {
    let base = Base::of(model, &mut |_, _| true).unwrap();
    let (n, n_vocab) = (u64::from(base.n_embd), u64::from(base.n_vocab));
    let n_exits = spec.layers.len();
    let one_each = ConfidenceMap { metric: vec![0.0, 1.0], agreement: vec![0.0, 1.0] };
    let plain = super::meta(base, spec.shortlist, spec.screen, true);
    let calibration = plain.calibration.clone().map(|found| Calibration { batch_width: spec.batch_width, ..found });
    let meta = ExitMeta {
        layers: spec.layers.to_vec(),
        head_types: vec![HeadType::Affine; n_exits],
        head_ranks: vec![0; n_exits],
        vocab: spec.vocab.map(|(tokens, thresholds)| VocabMeta {
            n_tokens: tokens.len() as u32,
            shortlist: tokens.len() as u32,
            confidence: one_each.clone(),
            thresholds: thresholds.to_vec(),
        }),
        draft: spec.draft.is_some().then(|| one_each.clone()),
        metric: Metric::TopProbability,
        confidence: vec![one_each; n_exits],
        thresholds: spec.thresholds.iter().map(|&threshold| vec![threshold; n_exits]).collect(),
        gate_thresholds: spec.gate.iter().flat_map(|gate| vec![vec![gate.1; n_exits]; 2]).collect(),
        calibration,
        ..plain
    };
    let mut writer = exits::sidecar(model, &meta).unwrap();
    let identity = diagonal(n, 1.0);
    writer.tensor_f32("exit_screen.basis", &[n, n], &identity).unwrap();
    let own = model.tensor("output.weight").or(model.tensor("token_embd.weight")).unwrap();
    let rows = dequantize(own.ty(), model.data(own)).unwrap();
    writer.tensor_f32("exit_screen.output", &[n, n_vocab], &rows).unwrap();
    if let Some((tokens, _)) = spec.vocab {
        let ids = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        writer.tensor("exit_vocab.tokens", TensorType::I32, &[tokens.len() as u64], ids).unwrap();
    }
    if let Some((of_state, of_token)) = spec.draft {
        let width = n as usize;
        let map: Vec<f32> =
            of_state.chunks(width).zip(of_token.chunks(width)).flat_map(|rows| [rows.0, rows.1].concat()).collect();
        writer.tensor_f32("exit_draft.norm.weight", &[2 * n], &vec![1.0; 2 * width]).unwrap();
        writer.tensor_f32("exit_draft.head.weight", &[2 * n, n], &map).unwrap();
        writer.tensor_f32("exit_draft.head.bias", &[n], &vec![0.0; width]).unwrap();
    }
    let norm = model.tensor("output_norm.weight").unwrap();
    let norm = dequantize(norm.ty(), model.data(norm)).unwrap();
    for &layer in spec.layers {
        let name = |part: &str| format!("blk.{layer}.exit_{part}");
        let map = match spec.kind {
            Kind::Perfect => identity.clone(),
            Kind::Wrong => diagonal(n, -1.0),
            Kind::Random(seed) => random((n * n) as usize, seed + u64::from(layer)),
        };
        writer.tensor_f32(&name("norm.weight"), &[n], &norm).unwrap();
        writer.tensor_f32(&name("head.weight"), &[n, n], &map).unwrap();
        if let Some((answer, _)) = spec.gate {
            writer.tensor_f32(&name("gate.weight"), &[n], &vec![0.0; n as usize]).unwrap();
            let logit = (answer / (1.0 - answer)).ln();
            writer.tensor_f32(&name("gate.bias"), &[1], &[logit]).unwrap();
        }
    }
    writer
}

fn diagonal(n: u64, value: f32) -> Vec<f32> {
    (0..n * n).map(|i| if i % (n + 1) == 0 { value } else { 0.0 }).collect()
}

/// Numbers between -0.1 and 0.1 (a linear congruential generator: the tests only need them to be the same each time).
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.2
        })
        .collect()
}
