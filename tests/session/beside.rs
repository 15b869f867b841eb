//! Sessions that share threads: each does what it does alone, whatever the others do, and together they are not slower
//! than one after the other.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use offramp::{GenerateParams, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams, Token};
use offramp_fixtures::{Arch, TinyModel, WeightType};

fn params() -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.n_threads = Some(2);
    params
}

/// Greedy tokens after a prompt that `i` decides, and how long they took.
fn generate(session: &mut Session, i: usize, n: usize) -> (Vec<Token>, Duration) {
    let mut sampler = SamplerParams::default();
    sampler.temperature = 0.0;
    let mut sampler = Sampler::new(session.model(), &sampler).unwrap();
    let prompt: Vec<Token> = (0..30).map(|k| Token((20 + 7 * k + 13 * i as i32) % 300)).collect();
    session.set_prompt(&prompt, &mut |_| {}).unwrap();
    let mut limits = GenerateParams::default();
    limits.max_tokens = n;
    limits.ignore_eos = true;
    let made = session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(())).unwrap();
    (made.tokens, made.elapsed)
}

/// All at once, each on a thread.
fn at_once(sessions: &mut [Session], n: usize) -> (Vec<Vec<Token>>, Duration) {
    let start = Instant::now();
    let tokens = std::thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .enumerate()
            .map(|(i, session)| scope.spawn(move || generate(session, i, n).0))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (tokens, start.elapsed())
}

fn beside(model: &Model, n: usize) -> Vec<Session> {
    let mut sessions = vec![Session::new(model, &params()).unwrap()];
    while sessions.len() < n {
        let next = sessions[0].beside(&params()).unwrap();
        sessions.push(next);
    }
    sessions
}

#[test]
fn what_others_do_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for arch in [Arch::Llama, Arch::Gemma3, Arch::Mamba] {
        let path = folder.path().join("tiny.gguf");
        TinyModel::new(arch).weights(WeightType::Q8_0).write_to(&path).unwrap();
        let model = Model::load(&path, &ModelParams::default()).unwrap();
        let alone: Vec<_> = (0..4).map(|i| generate(&mut Session::new(&model, &params()).unwrap(), i, 60).0).collect();
        let (together, _) = at_once(&mut beside(&model, 4), 60);
        assert_eq!(alone, together, "{arch:?}");
    }
}

#[test]
fn a_session_outlives_the_one_whose_threads_it_shares() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(Arch::Llama).write_to(&path).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let mut sessions = beside(&model, 2);
    sessions.remove(0);
    assert_eq!(generate(&mut sessions[0], 0, 5).0.len(), 5);
}

/// What sharing gains: `cargo test --release --test session beside -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement on the default model"]
fn sessions_that_take_turns_against_sessions_that_compete() {
    let model = crate::common::default_model();
    let n = 24;
    let mut alone = Session::new(&model, &params()).unwrap();
    generate(&mut alone, 0, 4);
    let start = Instant::now();
    let one_after_another: Vec<_> = (0..4).map(|i| generate(&mut alone, i, n).0).collect();
    eprintln!("one after another: {:?}", start.elapsed());
    drop(alone);
    let (turns, time) = at_once(&mut beside(&model, 4), n);
    eprintln!("taking turns:      {time:?}");
    assert_eq!(turns, one_after_another);
    let mut own: Vec<_> = (0..4).map(|_| Session::new(&model, &params()).unwrap()).collect();
    let (competing, time) = at_once(&mut own, n);
    eprintln!("competing:         {time:?}");
    assert_eq!(competing, one_after_another);
}
