//! The layer gate on the real default model (Q4_1): windows equal plain decoding bit for bit.

use std::ops::ControlFlow;

use offramp::gate::{Gate, Outcome, Tap};
use offramp::{CacheType, Logits, Model, Session, SessionParams, Token};

fn session(model: &Model) -> Session {
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.gate = true;
    Session::new(model, &params).unwrap()
}

fn logits(gate: &mut Gate) -> Vec<Vec<f32>> {
    (0..).map_while(|i| gate.logits(i).map(<[f32]>::to_vec)).collect()
}

/// Leaves the prompt alone in the cache.
fn restart(gate: &mut Gate, prompt: &[Token]) {
    gate.clear();
    gate.decode(prompt, Logits::Last).unwrap();
}

/// Plain decodes of `text`, `width` tokens at a time, after `prompt`.
fn plain(gate: &mut Gate, prompt: &[Token], text: &[Token], width: usize) -> Vec<Vec<f32>> {
    restart(gate, prompt);
    let mut all = Vec::new();
    for chunk in text.chunks(width) {
        gate.decode(chunk, Logits::All).unwrap();
        all.extend(logits(gate));
    }
    all
}

/// Each token stops after `layer`; every `width` of them one batch resumes there.
fn windowed(gate: &mut Gate, prompt: &[Token], text: &[Token], width: usize, layer: u32) -> Vec<Vec<f32>> {
    restart(gate, prompt);
    let mut all = Vec::new();
    for chunk in text.chunks(width) {
        for &token in chunk {
            let outcome = gate.decode_tapped(&[token], &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Break(()));
            assert_eq!(outcome.unwrap(), Outcome::Stopped(Tap::Layer(layer)));
        }
        assert_eq!(gate.n_pending(), chunk.len());
        gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(gate.n_pending(), 0);
        all.extend(logits(gate));
    }
    assert_eq!(gate.n_redone(), 0, "windows fell back to full decodes");
    all
}

fn sample(model: &Model) -> (Vec<Token>, Vec<Token>) {
    let prompt = crate::common::chat_tokens(model, "Explain how a bicycle stays upright while moving.");
    let reply = "A bicycle stays upright because its rider steers into a fall, and because the front wheel turns by \
                 itself when the frame leans. Both bring the wheels back under the centre of mass.";
    (prompt, model.vocab().tokenize(reply, false, false).unwrap())
}

#[test]
fn windows_equal_plain_decodes_of_the_same_width_bit_for_bit() {
    let model = crate::common::default_model();
    let mut session = session(&model);
    let (prompt, text) = sample(&model);
    for width in [1, 2, 4, 8] {
        let text = &text[..text.len() / width * width];
        let expected = plain(session.gate(), &prompt, text, width);
        for layer in [0, 7, 14, 28] {
            let found = windowed(session.gate(), &prompt, text, width, layer);
            assert!(found == expected, "width {width}, block {layer}");
        }
    }
}

#[test]
fn the_self_test_finds_resume_supported_bit_for_bit() {
    let support = crate::common::default_model().gate_support().unwrap();
    assert!(support.can_resume() && support.stop_at_result_norm, "{support}");
    assert_eq!(support.window_difference, 0.0);
    assert!(support.can_predict(), "{support}");
}

#[test]
fn a_cache_whose_rows_llama_cpp_rotates_before_it_quantizes_them_is_refused() {
    let model = crate::common::default_model();
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.gate = true;
    params.type_k = CacheType::Q8_0;
    let mut session = Session::new(&model, &params).unwrap();
    let refused = session.gate().kv_layout().unwrap().shape(0).unwrap_err();
    assert!(refused.to_string().contains("attn_inp_k_rot"), "{refused}");
}

#[test]
fn a_watched_decode_that_is_not_stopped_equals_a_plain_one() {
    let model = crate::common::default_model();
    let mut session = session(&model);
    let (prompt, text) = sample(&model);
    let expected = plain(session.gate(), &prompt, &text, 1);
    let gate = session.gate();
    restart(gate, &prompt);
    let taps = [Tap::Layer(3), Tap::Layer(15), Tap::Layer(29), Tap::ResultNorm];
    for (token, expected) in text.iter().zip(expected) {
        let mut seen = Vec::new();
        let outcome = gate
            .decode_tapped(&[*token], &taps, &mut |tap, hidden| {
                assert_eq!(hidden.len(), 576);
                seen.push(tap);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!((outcome, seen.as_slice()), (Outcome::Complete, &taps[..]));
        assert!(gate.logits(0) == Some(expected.as_slice()));
    }
}

#[test]
fn stopping_at_the_final_norm_leaves_the_same_cache() {
    let model = crate::common::default_model();
    let mut session = session(&model);
    let (prompt, text) = sample(&model);
    let expected = plain(session.gate(), &prompt, &text, 1);
    let gate = session.gate();
    restart(gate, &prompt);
    for (i, &token) in text.iter().enumerate() {
        if i % 4 == 3 {
            gate.decode(&[token], Logits::Last).unwrap();
            assert!(gate.logits(0) == Some(expected[i].as_slice()), "token {i}");
        } else {
            let outcome = gate.decode_tapped(&[token], &[Tap::ResultNorm], &mut |_, _| ControlFlow::Break(()));
            assert_eq!(outcome.unwrap(), Outcome::Stopped(Tap::ResultNorm));
        }
    }
}
