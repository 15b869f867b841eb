//! The judge of agreement: what plain decoding emitted is the full model's own, however many tokens are scored at once.

use std::ops::ControlFlow;

use offramp::{Error, GenerateParams, Model, Rescorer, Sampler, SamplerParams, Scored, Session, SessionParams, Token};
use offramp_fixtures::{Arch, WeightType};

use crate::common::tiny::tiny;

const PROMPT: &str = "Explain in three sentences why the sky is blue.";

fn params() -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = 1024;
    params
}

fn greedy(model: &Model, prompt: &[Token], n: usize) -> Vec<Token> {
    let mut session = Session::new(model, &params()).unwrap();
    session.set_prompt(prompt, &mut |_| {}).unwrap();
    let mut limits = GenerateParams::default();
    limits.max_tokens = n;
    limits.ignore_eos = true;
    session.generate(&mut greedily(model), &limits, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

fn greedily(model: &Model) -> Sampler {
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    Sampler::new(model, &greedy).unwrap()
}

fn score(rescorer: &mut Rescorer, prompt: &[Token], emitted: &[Token]) -> Vec<Scored> {
    let mut scores = Vec::new();
    rescorer
        .score(prompt, emitted, &mut |scored| {
            scores.push(scored);
            ControlFlow::Continue(())
        })
        .unwrap();
    scores
}

#[test]
fn every_token_of_a_plain_decode_is_the_full_models_own() {
    let model = crate::common::default_model();
    let prompt = crate::common::chat_tokens(&model, PROMPT);
    // Past the cells from which batches and single tokens round differently.
    let emitted = greedy(&model, &prompt, 300);
    let scores = score(&mut Rescorer::new(&model, &params()).unwrap(), &prompt, &emitted);
    assert_eq!(scores.len(), emitted.len());
    assert!(scores.iter().all(Scored::agrees), "{:?}", scores.iter().find(|scored| !scored.agrees()));
}

#[test]
fn a_token_that_was_changed_is_found_and_its_gap_told() {
    let model = crate::common::default_model();
    let prompt = crate::common::chat_tokens(&model, PROMPT);
    let mut emitted = greedy(&model, &prompt, 12);
    let own = std::mem::replace(&mut emitted[7], Token(100));
    let mut rescorer = Rescorer::new(&model, &params()).unwrap();
    let scores = score(&mut rescorer, &prompt, &emitted);
    assert!(scores[..7].iter().all(|scored| scored.agrees() && scored.gap == 0.0));
    assert_eq!((scores[7].best, scores[7].agrees()), (own, false));
    assert!(scores[7].gap > 0.0 && scores[7].log_prob < 0.0);

    let error = rescorer.score(&[], &emitted, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::InvalidValue { name: "prompt", .. }), "{error}");
    let error = rescorer.score(&prompt, &[Token(i32::MAX)], &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { .. }), "{error}");
    // After an error it can simply be used again.
    assert_eq!(score(&mut rescorer, &prompt, &emitted), scores);
}

#[test]
fn what_prompts_share_is_read_once_and_changes_no_choice() {
    let model = crate::common::default_model();
    let prompts =
        ["Name three colours.", PROMPT, "Name three rivers."].map(|text| crate::common::chat_tokens(&model, text));
    let n_shared = prompts[0].iter().zip(&prompts[1]).take_while(|(a, b)| a == b).count();
    assert!(n_shared > 1, "the template's opening");
    let mut sharing = Rescorer::new(&model, &params()).unwrap();
    sharing.share(&prompts[0][..n_shared]);
    let mut plain = Rescorer::new(&model, &params()).unwrap();
    // A prompt without it in between, and one that is nothing but it.
    let other = crate::common::default_model().vocab().tokenize("Once upon a time", true, false).unwrap();
    for prompt in prompts.iter().chain([&other, &prompts[0][..n_shared].to_vec(), &prompts[2]]) {
        let emitted = greedy(&model, prompt, 12);
        let (shared, alone) = (score(&mut sharing, prompt, &emitted), score(&mut plain, prompt, &emitted));
        for (shared, alone) in shared.iter().zip(&alone) {
            assert_eq!((shared.token, shared.best), (alone.token, alone.best));
            assert!((shared.log_prob - alone.log_prob).abs() < 1e-3, "{shared:?} {alone:?}");
        }
        assert_eq!(shared.len(), alone.len());
    }
}

#[test]
fn what_two_texts_after_a_prompt_begin_with_is_read_once_and_changes_no_bit() {
    let model = crate::common::default_model();
    let prompt = crate::common::chat_tokens(&model, PROMPT);
    // Past the cells from which several tokens at once round differently.
    let emitted = greedy(&model, &prompt, 230);
    let mut other = emitted.clone();
    other[225] = Token(100);
    let mut early = emitted.clone();
    early[0] = Token(100);
    let mut rescorer = Rescorer::new(&model, &params()).unwrap();
    for text in [&emitted[..], &other, &other[..20], &early] {
        let alone = score(&mut Rescorer::new(&model, &params()).unwrap(), &prompt, text);
        assert_eq!(score(&mut rescorer, &prompt, text), alone);
    }
    // A text that was left in the middle is gone on with.
    let mut n = 0;
    let stop = &mut |_| {
        n += 1;
        if n == 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    rescorer.score(&prompt, &other, stop).unwrap();
    let alone = score(&mut Rescorer::new(&model, &params()).unwrap(), &prompt, &emitted);
    assert_eq!(score(&mut rescorer, &prompt, &emitted), alone);
}

#[test]
fn a_prompt_is_read_once_for_the_judge_and_for_a_session() {
    for arch in Arch::ALL {
        let (ours, other) = (tiny(arch, WeightType::Q8_0), tiny(arch, WeightType::Q8_0));
        let prompt: Vec<Token> = (0..60).map(|i| Token((i * 37 + 5) % 250)).collect();
        let (read, last) = prompt.split_at(59);
        let mut rescorer = Rescorer::new(&ours.model, &params()).unwrap();
        let reply = |session: &mut Session| {
            let report = session.set_prompt(&prompt, &mut |_| {}).unwrap();
            let mut limits = GenerateParams::default();
            (limits.max_tokens, limits.ignore_eos) = (12, true);
            let made = session.generate(&mut greedily(session.model()), &limits, &mut |_| ControlFlow::Continue(()));
            (report.reused, made.unwrap().tokens)
        };
        let mut plain = Session::new(&ours.model, &params()).unwrap();
        plain.set_prompt(read, &mut |_| {}).unwrap();
        let expected = reply(&mut plain);

        let mut session = Session::new(&ours.model, &params()).unwrap();
        // What either held before does not matter.
        session.set_prompt(last, &mut |_| {}).unwrap();
        for _ in 0..2 {
            rescorer.read_prompt(&prompt, std::slice::from_mut(&mut session)).unwrap();
            assert_eq!(session.tokens(), read, "{arch:?}");
            assert_eq!(reply(&mut session), expected, "{arch:?}");
            let scores = score(&mut rescorer, &prompt, &expected.1);
            assert!(scores.len() == 12 && scores.iter().all(Scored::agrees), "{arch:?}: {scores:?}");
        }
        let mut stranger = Session::new(&other.model, &params()).unwrap();
        rescorer.read_prompt(&prompt, std::slice::from_mut(&mut stranger)).unwrap();
        assert!(stranger.tokens().is_empty(), "another model's cache is its own");
        assert_eq!(reply(&mut stranger).0, 0);
        // A text that follows another prompt is scored as ever.
        let fresh = score(&mut Rescorer::new(&ours.model, &params()).unwrap(), read, last);
        assert_eq!(score(&mut rescorer, read, last), fresh);
    }
}
