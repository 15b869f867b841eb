//! The writer against the model's own layers, on tiny models of each kind of graph and in caches of every type.

use std::ops::ControlFlow;

use offramp_fixtures::{Arch, TinyModel, WeightType};

use super::{KvWriter, self_test};
use crate::gate::{Gate, Tap};
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
