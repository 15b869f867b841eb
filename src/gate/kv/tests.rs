//! K and V that a decode shows, against what it stored, on tiny models of each kind of graph.

use std::collections::HashMap;

use offramp_fixtures::{Arch, TinyModel, WeightType};

use crate::gate::{Gate, Seen, Tap};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::{CacheType, Error, FlashAttn, Model, ModelParams, SessionParams};

const ATTENTION: [Arch; 6] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3, Arch::Gemma3, Arch::Phi3, Arch::Gpt2];

fn model(arch: Arch) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(arch).seed(3).weights(WeightType::Q4_0).write_to(&path).unwrap();
    // Mapped, the file may go with its folder.
    Model::load(&path, &ModelParams::default()).unwrap()
}

fn params() -> SessionParams {
    SessionParams {
        n_ctx: 256,
        n_ubatch: 32,
        n_threads: Some(1),
        type_k: CacheType::F32,
        type_v: CacheType::F32,
        gate: true,
        ..SessionParams::default()
    }
}

fn tokens(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + 5) % 256) as i32)).collect()
}

fn watched(gate: &mut Gate, tokens: &[Token], taps: &[Tap], layers: &[u32]) -> HashMap<Seen, Vec<f32>> {
    let mut seen = HashMap::new();
    gate.decode_watched(tokens, taps, layers, &mut |what, values| {
        assert!(seen.insert(what, values.to_vec()).is_none(), "{what:?} came twice");
    })
    .unwrap();
    seen
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_ne_bytes(bytes)).collect()
}

#[test]
fn what_is_shown_is_what_is_stored() {
    for arch in ATTENTION {
        for flash_attn in [FlashAttn::On, FlashAttn::Off] {
            let model = model(arch);
            let mut gate = model.new_gate(&SessionParams { flash_attn, ..params() }).unwrap();
            let n_layer = model.info().n_layer;
            let layers: Vec<u32> = (0..n_layer).collect();
            gate.kv_layout().unwrap();
            let text = tokens(5);
            let seen = watched(&mut gate, &text, &[], &layers);
            assert_eq!(seen.len(), 2 * layers.len());
            for &il in &layers {
                let shape = gate.kv_layout().unwrap().shape(il).unwrap();
                let (k, v) = (&seen[&Seen::K(il)], &seen[&Seen::V(il)]);
                assert_eq!(k.len(), shape.n_embd_k_gqa * text.len(), "{arch:?}");
                assert_eq!(v.len(), shape.n_embd_v_gqa * text.len(), "{arch:?}");
                for i in 0..text.len() {
                    let [stored_k, stored_v] = gate.stored(il, i).unwrap();
                    let v = &v[i * shape.n_embd_v_gqa..][..shape.n_embd_v_gqa];
                    assert_eq!(floats(&stored_v), v, "{arch:?} {flash_attn:?} V of layer {il}, token {i}");
                    let k = &k[i * shape.n_embd_k_gqa..][..shape.n_embd_k_gqa];
                    // Position 0 is rotated by nothing, and GPT-2 rotates nothing at all.
                    let same = floats(&stored_k) == k;
                    assert_eq!(same, i == 0 || arch == Arch::Gpt2, "{arch:?} K of layer {il}, token {i}");
                }
            }
        }
    }
}

#[test]
fn watching_changes_nothing_and_shows_hidden_states_in_the_order_of_the_graph() {
    for arch in ATTENTION {
        let model = model(arch);
        let mut gate = model.new_gate(&params()).unwrap();
        let text = tokens(7);
        gate.decode(&text, Logits::All).unwrap();
        let expected: Vec<Vec<f32>> = (0..text.len()).map(|i| gate.logits(i).unwrap().to_vec()).collect();
        gate.clear();
        gate.kv_layout().unwrap();
        let mut order = Vec::new();
        let taps = [Tap::Layer(1), Tap::Layer(3), Tap::ResultNorm];
        gate.decode_watched(&text, &taps, &[2, 3], &mut |seen, _| order.push(seen)).unwrap();
        for (i, expected) in expected.iter().enumerate() {
            assert_eq!(gate.logits(i).unwrap(), expected, "{arch:?}");
        }
        let at = |seen| order.iter().position(|&other| other == seen).unwrap();
        for (earlier, later) in [
            (Seen::Hidden(Tap::Layer(1)), Seen::K(2)),
            (Seen::V(2), Seen::K(3)),
            (Seen::V(3), Seen::Hidden(Tap::Layer(3))),
            (Seen::Hidden(Tap::Layer(3)), Seen::Hidden(Tap::ResultNorm)),
        ] {
            assert!(at(earlier) < at(later), "{arch:?}: {order:?}");
        }
        assert_eq!(order.len(), 7);
    }
}

#[test]
fn layers_without_keys_are_refused_with_the_reason() {
    let model = model(Arch::Lfm2);
    let mut gate = model.new_gate(&params()).unwrap();
    let layout = gate.kv_layout().unwrap();
    assert!(layout.shape(1).is_ok());
    let refused = layout.shape(0).unwrap_err().to_string();
    assert!(refused.contains("layer 0 has no K of its own"), "{refused}");
    assert!(matches!(layout.shape(99), Err(Error::InvalidValue { .. })));
    let refused = gate.decode_watched(&tokens(2), &[], &[0], &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(gate.position(), 0);
}

#[test]
fn the_layout_is_learnt_in_an_empty_cache_alone() {
    let model = model(Arch::Llama);
    let mut gate = model.new_gate(&params()).unwrap();
    gate.decode(&tokens(2), Logits::Last).unwrap();
    assert!(matches!(gate.kv_layout(), Err(Error::InvalidValue { name: "position", .. })));
    gate.clear();
    gate.kv_layout().unwrap();
    assert_eq!(gate.position(), 0);
    gate.decode(&tokens(2), Logits::Last).unwrap();
    assert!(gate.kv_layout().is_ok());
}
