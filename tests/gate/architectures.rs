//! The layer gate on tiny random models of each kind of graph and memory, weights in several formats.

use std::ops::ControlFlow;

use crate::common::tiny::{load, tiny};
use offramp::gate::{Gate, Outcome, Tap};
use offramp::{Error, Logits, Model, Session, SessionParams, Token};
use offramp_fixtures::{Arch, Memory, TinyModel, WeightType};

fn gated(model: &Model) -> Session {
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.n_ubatch = 32;
    // One thread: with more, llama.cpp's fused attention splits a single token's K/V between them from 512 cells on
    // (`use_split_kv_path` in ggml's ops.cpp) and rounds otherwise than for a batch.
    params.n_threads = Some(1);
    params.gate = true;
    Session::new(model, &params).unwrap()
}

fn text(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + 5) % 256) as i32)).collect()
}

fn stop_after(gate: &mut Gate, token: Token, taps: &[Tap]) {
    let outcome = gate.decode_tapped(&[token], taps, &mut |tap, _| {
        if Some(&tap) == taps.last() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(outcome.unwrap(), Outcome::Stopped(*taps.last().unwrap()));
}

fn catch_up(gate: &mut Gate) {
    gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(())).unwrap();
}

fn all_logits(gate: &mut Gate) -> Vec<Vec<f32>> {
    (0..).map_while(|i| gate.logits(i).map(<[f32]>::to_vec)).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn resumable() -> impl Iterator<Item = Arch> {
    Arch::ALL.into_iter().filter(|arch| matches!(arch.memory(), Memory::Attention | Memory::SlidingWindow))
}

#[test]
fn the_self_test_says_what_each_memory_supports() {
    for arch in Arch::ALL {
        let tiny = tiny(arch, WeightType::F32);
        let support = tiny.model.gate_support().unwrap();
        let expected = matches!(arch.memory(), Memory::Attention | Memory::SlidingWindow);
        assert_eq!(support.can_resume(), expected, "{arch:?}: {support}");
        assert_eq!(support.can_predict(), expected, "{arch:?}: {support}");
        assert!(support.stop_at_result_norm, "{arch:?}: {support}");
        if !expected {
            assert!(support.to_string().contains("resume is not supported here"), "{support}");
        }
    }
}

#[test]
fn windows_equal_plain_decodes_bit_for_bit_where_widths_do() {
    for arch in resumable() {
        for weights in [WeightType::Q4_0, WeightType::Q4_1] {
            let tiny = tiny(arch, weights);
            let mut session = gated(&tiny.model);
            let gate = session.gate();
            let (prompt, reply) = (text(40), text(24));
            for width in [1, 2, 4, 8] {
                gate.clear();
                gate.decode(&prompt, Logits::Last).unwrap();
                let expected: Vec<_> = reply
                    .chunks(width)
                    .flat_map(|chunk| {
                        gate.decode(chunk, Logits::All).unwrap();
                        all_logits(gate)
                    })
                    .collect();
                for layer in 0..tiny.model.info().n_layer - 1 {
                    gate.clear();
                    gate.decode(&prompt, Logits::Last).unwrap();
                    let mut found = Vec::new();
                    for chunk in reply.chunks(width) {
                        chunk.iter().for_each(|&token| stop_after(gate, token, &[Tap::Layer(layer)]));
                        catch_up(gate);
                        found.extend(all_logits(gate));
                    }
                    let difference = largest_difference(&expected, &found);
                    assert_eq!(difference, 0.0, "{arch:?} {weights:?} width {width} block {layer}");
                }
            }
            assert_eq!(gate.n_redone(), 0, "{arch:?} {weights:?}");
        }
    }
}

/// Of several tokens, the first have the logits of a decode of all of them, bit for bit, the others have none, and what is decoded
/// next is none the wiser.
#[test]
fn a_batch_gives_logits_to_the_tokens_that_are_wanted() {
    let of_weights =
        [WeightType::Q4_0, WeightType::Q4_1, WeightType::Q8_0, WeightType::Q6_K, WeightType::F32, WeightType::F16];
    let of_weights = of_weights.map(|weights| (TinyModel::new(Arch::Llama).weights(weights), weights));
    let of_arch = Arch::ALL.map(|arch| (TinyModel::new(arch).weights(WeightType::Q4_1), WeightType::Q4_1));
    // Three nodes more after the matrix.
    let capped = (TinyModel::new(Arch::Gemma3).weights(WeightType::Q8_0).softcap(3.0), WeightType::Q8_0);
    for (tiny, weights) in of_arch.iter().chain(&of_weights).chain([&capped]) {
        let loaded = load(tiny);
        let mut session = gated(&loaded.model);
        let gate = session.gate();
        let (prompt, batch, after) = (text(20), text(25)[20..].to_vec(), text(28)[25..].to_vec());
        gate.decode(&prompt, Logits::Last).unwrap();
        gate.decode(&batch, Logits::All).unwrap();
        let expected = all_logits(gate);
        gate.decode(&after, Logits::All).unwrap();
        let expected_after = all_logits(gate);
        for n in 1..=batch.len() {
            gate.clear();
            gate.decode(&prompt, Logits::Last).unwrap();
            let outcome = gate.verify(&batch, &mut |states| {
                assert_eq!(states.len(), batch.len() * tiny.n_embd());
                Ok(n)
            });
            assert_eq!(outcome.unwrap(), Outcome::Complete);
            assert_eq!(gate.n_logits(), n, "{tiny:?}");
            let found = all_logits(gate);
            // Kernels that multiply several rows at once may round a narrower batch otherwise.
            let rounds_alike = !matches!(weights, WeightType::F32 | WeightType::F16);
            let difference = largest_difference(&expected[..n], &found);
            assert!(difference <= if rounds_alike { 0.0 } else { 1e-4 }, "{tiny:?} {n}: {difference}");
            gate.decode(&after, Logits::All).unwrap();
            assert_eq!(all_logits(gate), expected_after, "{tiny:?} after {n}");
        }
        gate.clear();
        gate.decode(&prompt, Logits::Last).unwrap();
        assert_eq!(gate.verify(&batch, &mut |_| Ok(0)).unwrap(), Outcome::Stopped(Tap::ResultNorm));
        assert_eq!((gate.n_logits(), gate.logits(0)), (0, None));
        gate.clear();
        let met = gate.verify(&batch, &mut |_| Err(Error::Gate { found: "no screen".to_owned() }));
        assert!(matches!(met, Err(Error::Gate { found }) if found == "no screen"));
    }
}

#[test]
fn tokens_that_wait_come_along_without_logits() {
    for arch in resumable() {
        let tiny = tiny(arch, WeightType::Q4_1);
        let mut session = gated(&tiny.model);
        let gate = session.gate();
        let (prompt, reply) = (text(20), text(26)[20..].to_vec());
        gate.decode(&prompt, Logits::Last).unwrap();
        gate.decode(&reply, Logits::All).unwrap();
        let expected = all_logits(gate);
        for n in 1..=4 {
            gate.clear();
            gate.decode(&prompt, Logits::Last).unwrap();
            reply[..2].iter().for_each(|&token| stop_after(gate, token, &[Tap::Layer(1)]));
            gate.verify(&reply[2..], &mut |states| {
                assert_eq!(states.len() % 4, 0);
                Ok(n)
            })
            .unwrap();
            assert_eq!(largest_difference(&expected[2..2 + n], &all_logits(gate)), 0.0, "{arch:?} {n}");
            assert_eq!((gate.position(), gate.n_pending()), (26, 0));
        }
    }
}

#[test]
fn with_other_weights_windows_of_one_token_equal_plain_decodes_too() {
    for arch in resumable() {
        for weights in [WeightType::F32, WeightType::F16, WeightType::Q8_0, WeightType::Q4_K, WeightType::Q6_K] {
            let tiny = tiny(arch, weights);
            let support = tiny.model.gate_support().unwrap();
            assert!(support.can_resume(), "{arch:?} {weights:?}: {support}");
            assert_eq!(support.window_difference, 0.0, "{arch:?} {weights:?}: {support}");
        }
    }
}

#[test]
fn tokens_that_stopped_at_falling_blocks_resume_together() {
    let tiny = tiny(Arch::Llama, WeightType::Q4_0);
    let mut session = gated(&tiny.model);
    let gate = session.gate();
    let (prompt, reply) = (text(8), text(4));
    gate.decode(&prompt, Logits::Last).unwrap();
    gate.decode(&reply, Logits::All).unwrap();
    let expected = all_logits(gate);
    gate.clear();
    gate.decode(&prompt, Logits::Last).unwrap();
    let (low, high) = (Tap::Layer(1), Tap::Layer(3));
    stop_after(gate, reply[0], &[low, high]);
    stop_after(gate, reply[1], &[low, high]);
    // A token that is pending after block 1 keeps the next one from passing it, whatever the observer wants.
    stop_after(gate, reply[2], &[low]);
    let outcome = gate.decode_tapped(&[reply[3]], &[low], &mut |_, _| ControlFlow::Continue(()));
    assert_eq!(outcome.unwrap(), Outcome::Stopped(low));
    catch_up(gate);
    assert_eq!(largest_difference(&expected, &all_logits(gate)), 0.0);
    assert_eq!(gate.n_redone(), 0);
}

#[test]
fn a_token_whose_hidden_state_was_not_kept_is_decoded_again() {
    let tiny = tiny(Arch::Qwen2, WeightType::Q4_0);
    let mut session = gated(&tiny.model);
    let gate = session.gate();
    let (prompt, reply) = (text(8), text(2));
    gate.decode(&prompt, Logits::Last).unwrap();
    gate.decode(&reply, Logits::All).unwrap();
    let expected = all_logits(gate);
    gate.clear();
    gate.decode(&prompt, Logits::Last).unwrap();
    stop_after(gate, reply[0], &[Tap::Layer(3)]);
    let passed = gate.decode_tapped(&[reply[1]], &[Tap::Layer(4)], &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(passed, Err(Error::InvalidValue { name: "taps", .. })), "{passed:?}");
    // The first token was not tapped at the block where both would have to resume.
    stop_after(gate, reply[1], &[Tap::Layer(1)]);
    catch_up(gate);
    assert_eq!(gate.n_redone(), 1);
    assert_eq!(largest_difference(&expected, &all_logits(gate)), 0.0);
}

#[test]
fn a_window_that_wraps_stays_right() {
    // 400 positions in a sliding window of 32 whose cache has 256 cells.
    let tiny = tiny(Arch::Gemma3, WeightType::Q4_0);
    let mut session = gated(&tiny.model);
    let gate = session.gate();
    let reply = text(400);
    let mut expected = Vec::new();
    for chunk in reply.chunks(4) {
        gate.decode(chunk, Logits::All).unwrap();
        expected.extend(all_logits(gate));
    }
    gate.clear();
    let mut found = Vec::new();
    for chunk in reply.chunks(4) {
        chunk.iter().for_each(|&token| stop_after(gate, token, &[Tap::Layer(2)]));
        catch_up(gate);
        found.extend(all_logits(gate));
    }
    assert_eq!(largest_difference(&expected, &found), 0.0);
}

#[test]
fn what_was_switched_off_is_on_again_in_the_next_decode() {
    let tiny = tiny(Arch::Qwen3, WeightType::Q4_0);
    let mut session = gated(&tiny.model);
    let gate = session.gate();
    let (prompt, reply) = (text(8), text(12));
    gate.decode(&prompt, Logits::Last).unwrap();
    let mut expected = Vec::new();
    for &token in &reply {
        gate.decode(&[token], Logits::All).unwrap();
        expected.extend(all_logits(gate));
    }
    gate.clear();
    gate.decode(&prompt, Logits::Last).unwrap();
    let mut found = Vec::new();
    for pair in reply.chunks(2) {
        // The window and the plain decode after it share a graph.
        stop_after(gate, pair[0], &[Tap::Layer(2)]);
        catch_up(gate);
        found.extend(all_logits(gate));
        gate.decode(&pair[1..], Logits::All).unwrap();
        found.extend(all_logits(gate));
    }
    assert_eq!(largest_difference(&expected, &found), 0.0);
}

#[test]
fn a_panic_in_an_observer_reaches_the_caller_and_leaves_the_gate_usable() {
    let tiny = tiny(Arch::Llama, WeightType::Q4_0);
    let mut session = gated(&tiny.model);
    let gate = session.gate();
    gate.decode(&text(8), Logits::Last).unwrap();
    let expected = all_logits(gate);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        gate.decode_tapped(&[Token(1)], &[Tap::Layer(1)], &mut |_, _| panic!("from the observer"))
    }));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"from the observer"));
    gate.clear();
    gate.decode(&text(8), Logits::Last).unwrap();
    assert_eq!(largest_difference(&expected, &all_logits(gate)), 0.0);
}

#[test]
fn models_that_cannot_resume_still_generate() {
    for arch in [Arch::Mamba, Arch::Lfm2] {
        let tiny = tiny(arch, WeightType::Q4_0);
        let mut session = gated(&tiny.model);
        session.set_prompt(&text(12), &mut |_| {}).unwrap();
        let mut greedy = offramp::SamplerParams::default();
        greedy.temperature = 0.0;
        let mut sampler = offramp::Sampler::new(&tiny.model, &greedy).unwrap();
        let mut params = offramp::GenerateParams::default();
        params.max_tokens = 16;
        let first = session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(first.tokens.len(), 16);
        // The same prompt again: the memory cannot go back, so that the session starts from scratch.
        session.set_prompt(&text(12), &mut |_| {}).unwrap();
        let again = session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(again.tokens, first.tokens, "{arch:?}");
    }
}
