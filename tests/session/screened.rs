//! Sessions with a screen, on tiny random models with sidecars that are built here: a screen of full rank, which cannot
//! miss, and ones that are sure of too much or of nothing.

use std::ops::ControlFlow;

use crate::screen::Files;
use offramp::gguf::exits;
use offramp::gguf::{File, TensorType, WriteOptions};
use offramp::{
    Drafts, Error, ExitPoint, Exits, GenerateParams, Generation, Model, ModelParams, Policy, Sampler, SamplerParams,
    Session, SessionParams, Token,
};
use offramp_fixtures::{Arch, TinyModel, WeightType};

/// Of every generation here, all tokens but the first, which comes with the prompt, may leave at the screen.
const N_TRIED: usize = 28;

fn session(model: &Model, exits: Exits, agreement: f32) -> Session {
    let mut params = SessionParams::default();
    params.n_ctx = 256;
    params.n_threads = Some(1);
    params.exits = exits;
    params.agreement = agreement;
    // Whether a screen of full rank pays on a model this small is not what these tests ask.
    params.policy = Policy::Always;
    params.drafts = Drafts::Off;
    Session::new(model, &params).unwrap()
}

fn sampler(model: &Model, temperature: f32, grammar: Option<&str>) -> Sampler {
    let mut params = SamplerParams::default();
    params.temperature = temperature;
    params.seed = Some(7);
    params.grammar = grammar.map(|text| offramp::Grammar::gbnf(text).unwrap());
    Sampler::new(model, &params).unwrap()
}

fn generate(session: &mut Session, temperature: f32, n: usize) -> Generation {
    let mut sampler = sampler(session.model(), temperature, None);
    let prompt: Vec<Token> = (0..9).map(|i| Token(20 + 7 * i)).collect();
    session.clear();
    session.set_prompt(&prompt, &mut |_| {}).unwrap();
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    params.ignore_eos = true;
    session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap()
}

pub(crate) fn n_screened(made: &Generation) -> usize {
    made.exits.iter().filter(|exit| **exit == Some(ExitPoint::Screen)).count()
}

/// The candidates' logits are the full matrix's own, bit for bit: sampling draws the same tokens from them. In every
/// quantization, repacked ones included.
#[test]
fn rescored_candidates_have_the_full_matrix_s_logits() {
    let types = [
        WeightType::F32,
        WeightType::F16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q8_0,
        WeightType::Q4_K,
        WeightType::Q6_K,
    ];
    let of_llama = types.map(|weights| TinyModel::new(Arch::Llama).weights(weights).tied(false));
    let others = [Arch::Gemma3, Arch::Qwen2, Arch::Phi3].map(|arch| TinyModel::new(arch).weights(WeightType::Q8_0));
    for tiny in of_llama.into_iter().chain(others) {
        let files = Files::new(&tiny);
        let model = files.load(Some(&files.write_screen(72, [0.0, 0.0], TensorType::F32, true)));
        for temperature in [0.0, 0.8] {
            let off = generate(&mut session(&model, Exits::Off, 0.9), temperature, 60);
            let screened = generate(&mut session(&model, Exits::Calibrated, 0.9), temperature, 60);
            assert_eq!(off.tokens, screened.tokens, "{tiny:?} at temperature {temperature}");
            assert!(n_screened(&screened) >= N_TRIED, "{tiny:?}: {:?}", screened.exits);
            assert_eq!(n_screened(&off), 0);
        }
    }
}

#[test]
fn a_threshold_is_that_of_the_wanted_level_or_the_next_higher_one() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let model = files.load(Some(&files.write_screen(64, [0.0, f32::INFINITY], TensorType::F32, true)));
    let exits = |agreement| n_screened(&generate(&mut session(&model, Exits::Calibrated, agreement), 0.0, 30));
    assert!(exits(0.5) >= N_TRIED && exits(0.9) >= N_TRIED);
    assert_eq!(exits(0.95), 0);
    let mut params = SessionParams::default();
    params.agreement = 0.999;
    assert!(matches!(Session::new(&model, &params), Err(Error::InvalidValue { name: "agreement", .. })));
}

#[test]
fn nothing_exits_without_heads_without_calibration_or_when_off() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let path = files.write_screen(64, [0.0, 0.0], TensorType::F32, true);
    let off = generate(&mut session(&files.load(None), Exits::Calibrated, 0.9), 0.0, 30);
    let switched_off = generate(&mut session(&files.load(Some(&path)), Exits::Off, 0.9), 0.0, 30);
    let path = files.write_screen(64, [0.0, 0.0], TensorType::F32, false);
    let uncalibrated = generate(&mut session(&files.load(Some(&path)), Exits::Calibrated, 0.9), 0.0, 30);
    for made in [&off, &switched_off, &uncalibrated] {
        assert_eq!(n_screened(made), 0);
        assert_eq!(made.tokens, off.tokens);
    }
}

/// A screen that is never sure leaves every token to the full matrix, which then runs after it in the same decode.
#[test]
fn a_screen_that_is_never_sure_changes_nothing() {
    let files = Files::new(&TinyModel::new(Arch::Qwen2).weights(WeightType::Q4_0));
    let model = files.load(Some(&files.write_screen(64, [1.0, 1.0], TensorType::F32, true)));
    let off = generate(&mut session(&model, Exits::Off, 0.9), 0.0, 60);
    let made = generate(&mut session(&model, Exits::Calibrated, 0.9), 0.0, 60);
    assert_eq!((n_screened(&made), made.tokens), (0, off.tokens));
}

/// What the grammar allows may be outside of a small shortlist: the token is then taken from the full matrix.
#[test]
fn a_grammar_that_allows_no_candidate_falls_back_to_the_full_matrix() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let model = files.load(Some(&files.write_screen(1, [0.0, 0.0], TensorType::F32, true)));
    let texts = [Exits::Off, Exits::Calibrated].map(|exits| {
        let mut session = session(&model, exits, 0.9);
        session.set_prompt(&[Token(20), Token(30)], &mut |_| {}).unwrap();
        let mut params = GenerateParams::default();
        params.max_tokens = 20;
        let mut sampler = sampler(&model, 0.0, Some("root ::= [ab]+"));
        session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap().text
    });
    assert_eq!(texts[0], texts[1]);
    assert!(texts[0].len() >= 5 && texts[0].bytes().all(|byte| matches!(byte, b'a' | b'b')), "{texts:?}");
}

/// After exits, the K/V cache is a plain decode's: a second turn continues as if nothing had exited.
#[test]
fn a_second_turn_after_exits_equals_one_without() {
    let files = Files::new(&TinyModel::new(Arch::Gemma3));
    let model = files.load(Some(&files.write_screen(64, [0.0, 0.0], TensorType::F32, true)));
    let turns = [Exits::Off, Exits::Calibrated].map(|exits| {
        let mut session = session(&model, exits, 0.9);
        let first = generate(&mut session, 0.0, 25).tokens;
        let mut longer = session.tokens().to_vec();
        longer.extend([Token(40), Token(41), Token(42)]);
        session.set_prompt(&longer, &mut |_| {}).unwrap();
        let mut params = GenerateParams::default();
        params.max_tokens = 25;
        params.ignore_eos = true;
        let mut greedy = sampler(&model, 0.0, None);
        let second = session.generate(&mut greedy, &params, &mut |_| ControlFlow::Continue(())).unwrap();
        (first, second.tokens)
    });
    assert_eq!(turns[0], turns[1]);
}

/// Sessions of one model with heads run on threads of their own, and move between them.
#[test]
fn sessions_of_one_model_run_on_different_threads() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let model = files.load(Some(&files.write_screen(64, [0.0, 0.0], TensorType::F32, true)));
    let expected = generate(&mut session(&model, Exits::Off, 0.9), 0.0, 30).tokens;
    let mut first = session(&model, Exits::Calibrated, 0.9);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| generate(&mut first, 0.0, 30).tokens);
        let other = scope.spawn(|| generate(&mut session(&model, Exits::Calibrated, 0.9), 0.0, 30).tokens);
        assert_eq!([one.join().unwrap(), other.join().unwrap()], [expected.clone(), expected]);
    });
}

#[test]
fn heads_of_another_model_are_refused() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let path = files.write_screen(64, [0.0, 0.0], TensorType::F32, true);
    TinyModel::new(Arch::Llama).layers(4).write_to(files.path("other.gguf")).unwrap();
    let mut params = ModelParams::default();
    params.heads = Some(path);
    let error = Model::load(files.path("other.gguf"), &params).unwrap_err();
    assert!(matches!(error, Error::Gguf(offramp::gguf::Error::WrongBase { .. })), "{error}");
}

/// The same heads, around their model in one file.
#[test]
fn a_merged_file_brings_its_heads() {
    let files = Files::new(&TinyModel::new(Arch::Qwen2).weights(WeightType::Q8_0));
    let sidecar = files.write_screen(64, [0.0, 0.0], TensorType::Q8_0, true);
    let (model, heads) = (File::open(files.path("model.gguf")).unwrap(), File::open(&sidecar).unwrap());
    let merged = files.path("merged.gguf");
    let writer = exits::attach(&model, &heads, &mut |_, _| true).unwrap();
    writer.write(&merged, WriteOptions::default(), &mut |_, _| true).unwrap();
    let model = Model::load(&merged, &ModelParams::default()).unwrap();
    let made = generate(&mut session(&model, Exits::Calibrated, 0.9), 0.0, 30);
    assert!(n_screened(&made) >= N_TRIED);
    assert_eq!(made.tokens, generate(&mut session(&files.load(None), Exits::Off, 0.9), 0.0, 30).tokens);
}
