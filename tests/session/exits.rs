//! Sessions with exits after blocks, on tiny random models: what leaves where, and what becomes of the skipped K/V.

use std::ops::ControlFlow;

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use offramp::{
    Drafts, ExitPoint, Exits, GenerateParams, Generation, Kv, Model, Policy, Sampler, SamplerParams, Session,
    SessionParams, Token,
};
use offramp_fixtures::{Arch, TinyModel, WeightType};

pub(crate) fn params(exits: Exits) -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.n_ubatch = 32;
    params.n_threads = Some(1);
    params.exits = exits;
    params.agreement = 0.9;
    params.kv = Kv::CatchUp;
    params.policy = Policy::Always;
    params.drafts = Drafts::Off;
    params
}

fn sampler(model: &Model, temperature: f32) -> Sampler {
    let mut params = SamplerParams::default();
    params.temperature = temperature;
    params.seed = Some(7);
    Sampler::new(model, &params).unwrap()
}

fn text(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + 5) % 256) as i32)).collect()
}

fn generate(session: &mut Session, temperature: f32, n: usize) -> Generation {
    let mut sampler = sampler(session.model(), temperature);
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    params.ignore_eos = true;
    session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn reply(session: &mut Session, temperature: f32, n: usize) -> Generation {
    session.clear();
    session.set_prompt(&text(9), &mut |_| {}).unwrap();
    generate(session, temperature, n)
}

fn n_left(made: &Generation, layer: u32) -> usize {
    made.exits.iter().filter(|exit| **exit == Some(ExitPoint::Layer(layer))).count()
}

/// Logits after `tokens` and one more, whatever the session's cache holds of them.
pub(crate) fn logits_after(session: &mut Session, tokens: &[Token]) -> Vec<f32> {
    let mut longer = tokens.to_vec();
    longer.push(Token(77));
    session.set_prompt(&longer, &mut |_| {}).unwrap();
    session.gate().logits(0).unwrap().to_vec()
}

#[test]
fn perfect_heads_change_no_token_and_let_almost_all_leave() {
    for arch in [Arch::Llama, Arch::Qwen2, Arch::Qwen3] {
        let files = Files::with_idle_blocks(&TinyModel::new(arch).weights(WeightType::Q4_0), 3);
        let model = files.load(Some(&files.write_exits(&Spec::new(&[2, 4], Kind::Perfect))));
        for temperature in [0.0, 0.8] {
            let off = reply(&mut Session::new(&model, &params(Exits::Off)).unwrap(), temperature, 60);
            let mut session = Session::new(&model, &params(Exits::Calibrated)).unwrap();
            let made = reply(&mut session, temperature, 60);
            // The distribution is that of the candidates alone: here all that top-k can pick is among them.
            assert_eq!(off.tokens, made.tokens, "{arch:?} at temperature {temperature}");
            // The first token comes with the prompt; each eighth of the others ends the waiting of those before.
            assert_eq!(n_left(&made, 2), 59 - 59 / 8, "{arch:?}: {:?}", made.exits);
            assert_eq!(session.gate().n_redone(), 0);
        }
    }
}

/// At full depth the tokens that exits choose among are tried first, by the model's own logits; what they are not sure of
/// goes on to the screen or the output matrix.
#[test]
fn frequent_tokens_are_tried_first_at_full_depth() {
    let files = Files::new(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0));
    let even: Vec<u32> = (0..128).map(|i| i * 2).collect();
    let session = |thresholds: [f32; 2]| {
        let spec = Spec { vocab: Some((&even, thresholds)), ..Spec::new(&[], Kind::Perfect) };
        let model = files.load(Some(&files.write_exits(&spec)));
        (Session::new(&model, &params(Exits::Calibrated)).unwrap(), model)
    };
    let (mut sure, model) = session([0.0; 2]);
    let made = reply(&mut sure, 0.0, 40);
    assert!(made.exits[1..].iter().all(|exit| *exit == Some(ExitPoint::Screen)), "{:?}", made.exits);
    let mut plain = Session::new(&model, &params(Exits::Off)).unwrap();
    for n in 1..made.tokens.len() {
        plain.set_prompt(&[&text(9)[..], &made.tokens[..n]].concat(), &mut |_| {}).unwrap();
        let logits = plain.gate().logits(0).unwrap();
        let best = even.iter().copied().reduce(|a, b| if logits[b as usize] > logits[a as usize] { b } else { a });
        assert_eq!(best, Some(made.tokens[n].0 as u32), "token {n}");
    }
    let (mut unsure, model) = session([0.9999; 2]);
    let off = reply(&mut Session::new(&model, &params(Exits::Off)).unwrap(), 0.0, 40);
    assert_eq!(reply(&mut unsure, 0.0, 40).tokens, off.tokens);
    assert_ne!(off.tokens, made.tokens);
}

/// Whatever heads let go, under catch-up the cache becomes that of a plain decode of the same tokens.
#[test]
fn skipped_blocks_are_caught_up_exactly() {
    for arch in [Arch::Llama, Arch::Qwen2, Arch::Gemma3] {
        let files = Files::new(&TinyModel::new(arch).weights(WeightType::Q4_0));
        for (layers, seed) in [(&[1u32][..], 1), (&[0, 2, 4], 2), (&[3], 3)] {
            let mut spec = Spec::new(layers, Kind::Random(seed));
            // Some leave and some do not: a random head's best probability lies about here.
            spec.thresholds = [0.02, 0.02];
            let model = files.load(Some(&files.write_exits(&spec)));
            let mut session = Session::new(&model, &params(Exits::Calibrated)).unwrap();
            for n in [5, 13, 40] {
                let made = reply(&mut session, 0.0, n);
                let tokens = session.tokens().to_vec();
                let mut plain = Session::new(&model, &params(Exits::Off)).unwrap();
                let (found, expected) = (logits_after(&mut session, &tokens), logits_after(&mut plain, &tokens));
                assert_eq!(found, expected, "{arch:?} {layers:?} {n}: {:?}", made.exits);
            }
        }
    }
}

#[test]
fn no_more_tokens_pend_than_are_allowed() {
    let files = Files::new(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0));
    let model = files.load(Some(&files.write_exits(&Spec::new(&[2], Kind::Random(1)))));
    for max_pending in [2, 3, 5] {
        let mut params = params(Exits::Calibrated);
        params.max_pending = max_pending;
        let made = reply(&mut Session::new(&model, &params).unwrap(), 0.0, 41);
        let full: Vec<usize> = (0..41).filter(|&i| made.exits[i].is_none()).collect();
        let expected: Vec<usize> = (0..41).step_by(max_pending as usize).collect();
        assert_eq!(full, expected, "{max_pending}");
    }
    let mut params = params(Exits::Calibrated);
    params.max_pending = 1;
    assert!(Session::new(&model, &params).unwrap_err().to_string().contains("max_pending"));
}

#[test]
fn thresholds_gates_and_the_least_layer_keep_exits_shut() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 1);
    let open = Spec::new(&[1, 3], Kind::Perfect);
    let off = {
        let model = files.load(None);
        reply(&mut Session::new(&model, &params(Exits::Off)).unwrap(), 0.0, 30).tokens
    };
    let left = |spec: &Spec<'_>, min_exit_layer: u32| {
        let model = files.load(Some(&files.write_exits(spec)));
        let mut params = params(Exits::Calibrated);
        params.min_exit_layer = min_exit_layer;
        let made = reply(&mut Session::new(&model, &params).unwrap(), 0.0, 30);
        assert_eq!(made.tokens, off, "{spec:?}");
        (n_left(&made, 1), n_left(&made, 3))
    };
    assert_eq!(left(&open, 0), (26, 0));
    assert_eq!(left(&open, 2), (0, 26));
    assert_eq!(left(&open, 4), (0, 0));
    assert_eq!(left(&Spec { thresholds: [1.0, 1.0], ..open }, 0), (0, 0));
    assert_eq!(left(&Spec { thresholds: [f32::INFINITY, 0.0], ..open }, 0), (0, 0));
    assert_eq!(left(&Spec { gate: Some((0.4, 0.5)), ..open }, 0), (0, 0));
    assert_eq!(left(&Spec { gate: Some((0.6, 0.5)), ..open }, 0), (26, 0));
}

/// Tokens that no exit lets go may still leave at the screen, those that end a waiting too.
#[test]
fn exits_and_the_screen_work_together() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    let spec = Spec { screen: [0.0, 0.0], ..Spec::new(&[3], Kind::Perfect) };
    let model = files.load(Some(&files.write_exits(&spec)));
    let off = reply(&mut Session::new(&model, &params(Exits::Off)).unwrap(), 0.0, 41);
    let made = reply(&mut Session::new(&model, &params(Exits::Calibrated)).unwrap(), 0.0, 41);
    assert_eq!(off.tokens, made.tokens);
    let screened: Vec<usize> = (0..41).filter(|&i| made.exits[i] == Some(ExitPoint::Screen)).collect();
    assert_eq!(screened, [8, 16, 24, 32, 40], "{:?}", made.exits);
    assert_eq!(n_left(&made, 3), 35);
}

/// Heads that are always wrong are what thresholds must guard against; they change the text and nothing else.
#[test]
fn wrong_heads_speak_but_leave_a_sound_cache() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    let model = files.load(Some(&files.write_exits(&Spec::new(&[2], Kind::Wrong))));
    let mut session = Session::new(&model, &params(Exits::Calibrated)).unwrap();
    let made = reply(&mut session, 0.0, 20);
    assert_eq!(n_left(&made, 2), 17);
    let tokens = session.tokens().to_vec();
    let mut plain = Session::new(&model, &params(Exits::Off)).unwrap();
    assert_ne!(reply(&mut plain, 0.0, 20).tokens, made.tokens);
    assert_eq!(logits_after(&mut session, &tokens), logits_after(&mut plain, &tokens));
}
