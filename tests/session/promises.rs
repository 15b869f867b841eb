//! What a session promises whatever happens to it, on tiny random models.

use std::ops::ControlFlow;

use offramp::{
    Error, GenerateParams, Generation, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams, StopReason,
    Token,
};
use offramp_fixtures::{Arch, Memory, TinyModel, WeightType};

struct Tiny {
    model: Model,
    _folder: tempfile::TempDir,
}

fn tiny(arch: Arch) -> Tiny {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(arch).seed(3).weights(WeightType::Q4_0).write_to(&path).unwrap();
    Tiny { model: Model::load(&path, &ModelParams::default()).unwrap(), _folder: folder }
}

fn session(model: &Model, n_ctx: u32) -> Session {
    let mut params = SessionParams::default();
    params.n_ctx = n_ctx;
    params.n_ubatch = 32;
    params.n_threads = Some(1);
    Session::new(model, &params).unwrap()
}

fn text(n: usize, seed: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + seed * 11 + 5) % 256) as i32)).collect()
}

fn sampler(model: &Model, temperature: f32, seed: u32) -> Sampler {
    let mut params = SamplerParams::default();
    params.temperature = temperature;
    params.seed = Some(seed);
    Sampler::new(model, &params).unwrap()
}

fn generate(session: &mut Session, n: usize) -> Generation {
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    params.ignore_eos = true;
    let mut sampler = sampler(session.model(), 0.0, 0);
    session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Greedy tokens after `prompt` in a session of its own.
fn fresh(model: &Model, prompt: &[Token], n: usize) -> Vec<Token> {
    let mut session = session(model, 512);
    session.set_prompt(prompt, &mut |_| {}).unwrap();
    generate(&mut session, n).tokens
}

#[test]
fn a_kept_beginning_changes_nothing_in_any_memory() {
    for arch in Arch::ALL {
        let tiny = tiny(arch);
        let mut kept = session(&tiny.model, 512);
        // Longer than the sliding window and its cache, then back behind it, then on from there.
        for (shared, prompt_len) in [(0, 300), (100, 140), (139, 200), (20, 21)] {
            let mut prompt = kept.tokens()[..shared.min(kept.tokens().len())].to_vec();
            prompt.extend(text(prompt_len - prompt.len(), prompt_len));
            kept.set_prompt(&prompt, &mut |_| {}).unwrap();
            let difference = largest_difference(&logits(&mut kept), &fresh_logits(&tiny.model, &prompt));
            // After a roll-back the cells of a sliding window hold its positions in another order, attention adds them
            // up in that order, and roundings differ. The logits' standard deviation is about 3.
            let allowed = if arch.memory() == Memory::SlidingWindow { 0.5 } else { 0.0 };
            assert!(difference <= allowed, "{arch:?} {prompt_len}: {difference}");
            generate(&mut kept, 12);
        }
    }
}

fn logits(session: &mut Session) -> Vec<f32> {
    session.gate().logits(0).unwrap().to_vec()
}

fn fresh_logits(model: &Model, prompt: &[Token]) -> Vec<f32> {
    let mut session = session(model, 512);
    session.set_prompt(prompt, &mut |_| {}).unwrap();
    logits(&mut session)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_common_beginning_is_not_decoded_again() {
    let tiny = tiny(Arch::Llama);
    let mut session = session(&tiny.model, 512);
    session.set_prompt(&text(50, 1), &mut |_| {}).unwrap();
    let mut longer = text(50, 1);
    longer.extend(text(10, 2));
    let report = session.set_prompt(&longer, &mut |_| {}).unwrap();
    assert_eq!((report.reused, report.decoded), (50, 10));
    // The same again: the last token is decoded for its logits.
    let report = session.set_prompt(&longer, &mut |_| {}).unwrap();
    assert_eq!((report.reused, report.decoded), (59, 1));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_and_nothing_is_lost() {
    let tiny = tiny(Arch::Qwen2);
    let mut session = session(&tiny.model, 256);
    session.set_prompt(&text(20, 1), &mut |_| {}).unwrap();
    let error = session.set_prompt(&text(257, 1), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::ContextLengthExceeded { prompt: 257, n_ctx: 256 }), "{error}");
    assert_eq!(session.tokens(), text(20, 1));
    assert_eq!(generate(&mut session, 8).tokens, fresh(&tiny.model, &text(20, 1), 8));
}

#[test]
fn learned_positions_end_where_the_model_has_no_more() {
    let tiny = tiny(Arch::Gpt2);
    let n = tiny.model.info().n_ctx_train as usize;
    let mut session = session(&tiny.model, 2 * n as u32);
    assert_eq!(session.n_ctx(), n);
    assert!(matches!(session.set_prompt(&text(n + 1, 1), &mut |_| {}), Err(Error::ContextLengthExceeded { .. })));
    session.set_prompt(&text(n - 2, 1), &mut |_| {}).unwrap();
    assert!(generate(&mut session, 10).context_full);
}

#[test]
fn a_full_context_ends_a_generation_and_says_so() {
    let tiny = tiny(Arch::Llama);
    let mut session = session(&tiny.model, 256);
    session.set_prompt(&text(250, 1), &mut |_| {}).unwrap();
    let made = generate(&mut session, 100);
    // Six more positions, and the token that the last one's logits give.
    assert_eq!((made.tokens.len(), made.stop_reason, made.context_full), (7, StopReason::Length, true));
    assert_eq!(made.tokens, fresh(&tiny.model, &text(250, 1), 7));
}

#[test]
fn a_cancelled_prompt_is_taken_up_where_it_was_left() {
    let tiny = tiny(Arch::Gemma3);
    let mut session = session(&tiny.model, 512);
    let cancel = session.cancel_handle();
    let prompt = text(200, 4);
    let report = session
        .set_prompt(&prompt, &mut |progress| {
            if progress.done >= 64 {
                cancel.cancel();
            }
        })
        .unwrap();
    assert!(report.cancelled && report.decoded == 64, "{report:?}");
    assert_eq!(generate(&mut session, 4).stop_reason, StopReason::Cancelled);
    cancel.reset();
    let report = session.set_prompt(&prompt, &mut |_| {}).unwrap();
    assert_eq!((report.reused, report.decoded, report.cancelled), (64, 136, false));
    assert_eq!(generate(&mut session, 12).tokens, fresh(&tiny.model, &prompt, 12));
}

#[test]
fn a_cancelled_reply_keeps_its_tokens_and_goes_on_as_if_nothing_had_been() {
    let tiny = tiny(Arch::Phi3);
    let mut session = session(&tiny.model, 512);
    let prompt = text(20, 5);
    session.set_prompt(&prompt, &mut |_| {}).unwrap();
    let cancel = session.cancel_handle();
    let mut greedy = sampler(&tiny.model, 0.0, 0);
    let mut params = GenerateParams::default();
    params.ignore_eos = true;
    let mut n = 0;
    let first = session
        .generate(&mut greedy, &params, &mut |_| {
            n += 1;
            if n == 7 {
                cancel.cancel();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((first.tokens.len(), first.stop_reason), (7, StopReason::Cancelled));
    cancel.reset();
    let rest = generate(&mut session, 9);
    let whole: Vec<Token> = first.tokens.into_iter().chain(rest.tokens).collect();
    assert_eq!(whole, fresh(&tiny.model, &prompt, 16));
}

#[test]
fn a_cut_reply_can_be_made_again() {
    let tiny = tiny(Arch::Gpt2);
    let mut session = session(&tiny.model, 512);
    session.set_prompt(&text(20, 6), &mut |_| {}).unwrap();
    let made = generate(&mut session, 16);
    session.truncate(20 + 5);
    assert_eq!(generate(&mut session, 11).tokens, made.tokens[5..]);
}

#[test]
fn a_seed_gives_the_same_text_and_another_seed_another() {
    let tiny = tiny(Arch::Llama);
    let mut session = session(&tiny.model, 512);
    let mut run = |seed| {
        session.set_prompt(&text(20, 7), &mut |_| {}).unwrap();
        let mut sampler = sampler(&tiny.model, 1.5, seed);
        let mut params = GenerateParams::default();
        params.max_tokens = 32;
        session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap().tokens
    };
    assert_eq!(run(42), run(42));
    assert_ne!(run(42), run(43));
}

#[test]
fn events_carry_the_text_of_the_result_in_whole_code_points() {
    let tiny = tiny(Arch::Llama);
    let mut session = session(&tiny.model, 512);
    session.set_prompt(&text(20, 8), &mut |_| {}).unwrap();
    let mut shown = String::new();
    let mut params = GenerateParams::default();
    params.max_tokens = 64;
    let mut hot = sampler(&tiny.model, 2.0, 1);
    let made = session
        .generate(&mut hot, &params, &mut |event| {
            shown.push_str(event.text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(made.text.starts_with(&shown));
    assert_eq!(made.exits, vec![None; made.tokens.len()]);
}

#[test]
fn a_grammar_allows_what_it_says_and_nothing_else() {
    let tiny = tiny(Arch::Qwen3);
    let mut session = session(&tiny.model, 512);
    session.set_prompt(&text(20, 9), &mut |_| {}).unwrap();
    let mut params = SamplerParams::default();
    params.seed = Some(5);
    params.grammar = Some(offramp::Grammar::gbnf(r#"root ::= "a" [bc]+ "d""#).unwrap());
    let mut sampler = Sampler::new(&tiny.model, &params).unwrap();
    let mut limit = GenerateParams::default();
    limit.max_tokens = 40;
    let made = session.generate(&mut sampler, &limit, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(made.text.starts_with('a') && made.text.trim_end_matches('d')[1..].chars().all(|c| "bc".contains(c)));

    assert!(offramp::Grammar::gbnf("root ::= (").is_err());
}

#[test]
fn two_sessions_of_one_model_run_on_two_threads() {
    let tiny = tiny(Arch::Llama);
    let expected = [fresh(&tiny.model, &text(30, 1), 24), fresh(&tiny.model, &text(30, 2), 24)];
    let found = std::thread::scope(|scope| {
        [1, 2]
            .map(|seed| {
                scope.spawn({
                    let model = &tiny.model;
                    move || fresh(model, &text(30, seed), 24)
                })
            })
            .map(|t| t.join().unwrap())
    });
    assert_eq!(found, expected);
}

#[test]
fn without_a_prompt_there_is_nothing_to_generate_from() {
    let tiny = tiny(Arch::Llama);
    let mut session = session(&tiny.model, 256);
    let mut greedy = sampler(&tiny.model, 0.0, 0);
    let result = session.generate(&mut greedy, &GenerateParams::default(), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(Error::InvalidValue { name: "prompt", .. })));
    assert!(matches!(session.set_prompt(&[], &mut |_| {}), Err(Error::InvalidValue { name: "prompt", .. })));
    let outside = session.set_prompt(&[Token(1_000_000)], &mut |_| {});
    assert!(matches!(outside, Err(Error::TokenOutOfRange { token: 1_000_000, .. })));
}
