//! The writer against the model's own layers, on tiny models of each kind of graph and in caches of every type.

use std::ops::ControlFlow;
use std::sync::Arc;

use offramp_fixtures::{Arch, TinyModel, WeightType};

use super::{KvWeights, KvWriter, self_test};
use crate::gate::{Gate, Tap};
use crate::gguf::exits::{Head, HeadMap, KvMap, Linear, View};
use crate::gguf::quants::dequantize;
use crate::gguf::{File, TensorType, Writer};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::{CacheType, Error, FlashAttn, Model, ModelParams, SessionParams};

const ATTENTION: [Arch; 6] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3, Arch::Gemma3, Arch::Phi3, Arch::Gpt2];

fn model(arch: Arch, weights: WeightType) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(arch).seed(5).weights(weights).write_to(&path).unwrap();
    // Mapped, the file may go with its folder.
    Model::load(&path, &ModelParams::default()).unwrap()
}

fn params() -> SessionParams {
    SessionParams { n_ctx: 256, n_ubatch: 32, n_threads: Some(1), gate: true, ..SessionParams::default() }
}

fn tokens(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + 5) % 256) as i32)).collect()
}

fn stop(gate: &mut Gate, token: Token, layer: u32) {
    gate.decode_tapped(&[token], &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Break(())).unwrap();
}

#[test]
fn what_is_written_is_what_the_layers_write_in_every_kind_of_cache() {
    use CacheType::{F16, F32, Iq4Nl, Q4_0, Q5_1, Q8_0};
    for arch in ATTENTION {
        let model = model(arch, WeightType::Q4_0);
        let caches = [
            (FlashAttn::On, F16, F16),
            (FlashAttn::Off, F16, F16),
            (FlashAttn::Off, F32, F32),
            (FlashAttn::On, Q8_0, Q8_0),
            (FlashAttn::On, Q4_0, Q5_1),
            (FlashAttn::Off, Iq4Nl, F16),
        ];
        for (flash_attn, type_k, type_v) in caches {
            let mut gate = model.new_gate(&SessionParams { flash_attn, type_k, type_v, ..params() }).unwrap();
            let reason = self_test(&mut gate, 256).unwrap();
            assert_eq!(reason, None, "{arch:?}, flash attention {flash_attn:?}, {type_k} and {type_v}");
        }
        assert!(model.gate_support().unwrap().can_predict());
    }
}

#[test]
fn what_a_layer_propagates_from_its_own_input_is_its_own() {
    for arch in ATTENTION {
        for weights in [WeightType::Q4_0, WeightType::Q8_0, WeightType::F32, WeightType::Q4_K] {
            let model = model(arch, weights);
            let mut gate = model.new_gate(&params()).unwrap();
            let n_layer = model.info().n_layer;
            // Only the last layer is skipped, and its input is what the token stopped with.
            let mut writer = KvWriter::propagate(n_layer - 2, &mut gate).unwrap();
            let text = tokens(9);
            gate.decode(&text, Logits::Last).unwrap();
            gate.decode(&text[..1], Logits::Last).unwrap();
            let expected = gate.stored(n_layer - 1, text.len()).unwrap();
            assert!(gate.truncate(text.len(), 0));
            gate.decode(&text[1..2], Logits::Last).unwrap();
            assert_ne!(gate.stored(n_layer - 1, text.len()).unwrap(), expected);
            assert!(gate.truncate(text.len(), 0));
            stop(&mut gate, text[0], n_layer - 2);
            gate.predict(&mut writer).unwrap();
            assert_eq!(gate.stored(n_layer - 1, text.len()).unwrap(), expected, "{arch:?} {weights:?}");
        }
    }
}

#[test]
fn models_whose_keys_are_not_found_are_refused_with_the_reason() {
    for arch in [Arch::Mamba, Arch::Lfm2] {
        let model = model(arch, WeightType::Q4_0);
        assert!(!model.gate_support().unwrap().can_predict());
        let mut gate = model.new_gate(&params()).unwrap();
        let refused = KvWriter::propagate(1, &mut gate);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{arch:?}: {refused:?}");
    }
}

#[test]
fn tokens_that_stopped_elsewhere_stay_pending() {
    let model = model(Arch::Llama, WeightType::Q4_0);
    let mut gate = model.new_gate(&params()).unwrap();
    let mut writer = KvWriter::propagate(2, &mut gate).unwrap();
    gate.predict(&mut writer).unwrap();
    gate.decode(&tokens(4), Logits::Last).unwrap();
    stop(&mut gate, Token(7), 1);
    assert!(matches!(gate.predict(&mut writer), Err(Error::InvalidValue { .. })));
    assert_eq!(gate.n_pending(), 1);
    gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(())).unwrap();
    // A writer of another session.
    let mut other = model.new_gate(&params()).unwrap();
    stop(&mut other, Token(7), 2);
    assert!(matches!(other.predict(&mut writer), Err(Error::Heads { .. })));
    assert_eq!(other.n_pending(), 1);
}

#[test]
fn a_cache_whose_cells_were_not_seen_is_refused() {
    // Layers 0 and 1 of this Gemma store to the sliding window alone; layer 2 attends to all positions.
    let model = model(Arch::Gemma3, WeightType::Q4_0);
    let mut gate = model.new_gate(&params()).unwrap();
    let mut writer = KvWriter::propagate(1, &mut gate).unwrap();
    stop(&mut gate, Token(7), 1);
    let refused = gate.predict(&mut writer).unwrap_err().to_string();
    assert!(refused.contains("cells are not known"), "{refused}");
    assert_eq!(gate.n_pending(), 1);
}

/// Numbers in (-1, 1), the same ones every time.
fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Blocks of small numbers: a scale of 0.01 and 32 of 8 bits.
fn q8_0_bytes(n: usize, seed: usize) -> Vec<u8> {
    let blocks = noise(n, seed);
    let block =
        |values: &[f32]| [0x1f, 0x21].into_iter().chain(values.iter().map(|v| (v * 100.0) as i8 as u8)).collect();
    blocks.chunks_exact(32).flat_map(|values| -> Vec<u8> { block(values) }).collect()
}

#[test]
fn maps_write_what_they_give_for_the_normed_hidden_state() {
    const LAYER: u32 = 2;
    let tiny = TinyModel::new(Arch::Qwen3).seed(5).weights(WeightType::Q4_0);
    let (n_embd, n_layer) = (tiny.n_embd(), tiny.n_layer());
    let model = model(Arch::Qwen3, WeightType::Q4_0);
    let mut gate =
        model.new_gate(&SessionParams { type_k: CacheType::F32, type_v: CacheType::F32, ..params() }).unwrap();
    let shape = gate.kv_layout().unwrap().shape(0).unwrap();
    for (ty, tolerance) in [(TensorType::F32, 1e-5), (TensorType::Q8_0, 2e-2)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("maps.gguf");
        let mut file = Writer::new();
        file.tensor("norm", TensorType::F32, &[n_embd as u64], f32_bytes(&noise(n_embd, 1))).unwrap();
        for il in LAYER + 1..n_layer {
            for (part, width) in [("k", shape.n_embd_k_gqa), ("v", shape.n_embd_v_gqa)] {
                let seed = il as usize * 2 + part.len() + width;
                let data = match ty {
                    TensorType::F32 => f32_bytes(&noise(n_embd * width, seed)),
                    _ => q8_0_bytes(n_embd * width, seed),
                };
                file.tensor(&format!("{part}.{il}"), ty, &[n_embd as u64, width as u64], data).unwrap();
                let bias = f32_bytes(&noise(width, seed + 1));
                file.tensor(&format!("{part}.{il}.bias"), TensorType::F32, &[width as u64], bias).unwrap();
            }
        }
        std::fs::write(&path, file.to_bytes().unwrap()).unwrap();
        let file = File::open(&path).unwrap();
        let view = |name: &str| {
            let info = file.tensor(name).unwrap();
            View { info, data: file.data(info) }
        };
        // K of the first skipped layer has no bias.
        let linear = |part: &str, il: u32| Linear {
            weight: view(&format!("{part}.{il}")),
            bias: (part == "v" || il > LAYER + 1).then(|| view(&format!("{part}.{il}.bias"))),
        };
        let map = |il| KvMap { layer: il, k: linear("k", il), v: linear("v", il) };
        let kv: Vec<KvMap<'_>> = (LAYER + 1..n_layer).map(map).collect();
        let mut head = Head {
            layer: LAYER,
            norm: view("norm"),
            mlp: None,
            map: HeadMap::Affine(view("k.3")),
            bias: None,
            gate: None,
            classifier: None,
            kv: kv.clone(),
        };
        let weights = Arc::new(KvWeights::new(&head).unwrap().unwrap());
        let mut writer = KvWriter::maps(&weights, &mut gate).unwrap();

        gate.clear();
        let mut hidden = Vec::new();
        gate.decode_tapped(&[Token(9)], &[Tap::Layer(LAYER)], &mut |_, values| {
            hidden = values.to_vec();
            ControlFlow::Break(())
        })
        .unwrap();
        gate.predict(&mut writer).unwrap();
        let square = hidden.iter().map(|h| f64::from(*h).powi(2)).sum::<f64>() / n_embd as f64;
        let norm = noise(n_embd, 1);
        let x: Vec<f64> =
            hidden.iter().zip(&norm).map(|(h, w)| f64::from(*h) / (square + 1e-6).sqrt() * f64::from(*w)).collect();
        for map in &kv {
            // Position 0 is rotated by nothing.
            let stored = gate.stored(map.layer, 0).unwrap();
            for (linear, bytes) in [map.k, map.v].iter().zip(stored) {
                let rows = dequantize(ty, linear.weight.data).unwrap();
                let bias = linear.bias.map(|bias| dequantize(TensorType::F32, bias.data).unwrap());
                let found = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_ne_bytes(bytes));
                let scale = (n_embd as f64).sqrt();
                for (i, (row, found)) in rows.chunks_exact(n_embd).zip(found).enumerate() {
                    let product: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum();
                    let expected = product + bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
                    let name = linear.weight.info.name();
                    assert!(
                        (f64::from(found) - expected).abs() <= tolerance * scale,
                        "{name} {i}: {found}, {expected}"
                    );
                }
            }
        }

        head.kv.pop();
        let fewer = Arc::new(KvWeights::new(&head).unwrap().unwrap());
        assert!(matches!(KvWriter::maps(&fewer, &mut gate), Err(Error::Unsupported { .. })));
        head.kv.clear();
        assert!(KvWeights::new(&head).unwrap().is_none());
    }
}
