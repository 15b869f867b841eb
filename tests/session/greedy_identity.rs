//! With no exits, our greedy tokens are those of a plain llama.cpp decode loop.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::common::plain::Plain;
use offramp::{GenerateParams, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams, Token};

/// `n` greedy tokens after `prompt`, through [`Session`].
fn ours(session: &mut Session, prompt: &[Token], n: usize) -> Vec<Token> {
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let mut sampler = Sampler::new(session.model(), &greedy).unwrap();
    session.set_prompt(prompt, &mut |_| {}).unwrap();
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

fn prompts(model: &Model) -> Vec<Vec<Token>> {
    include_str!("../golden/prompts.txt").lines().map(|line| crate::common::chat_tokens(model, line)).collect()
}

fn assert_identity(path: &Path, model: &Model, prompts: &[Vec<Token>], n: usize) {
    let mut params = SessionParams::default();
    params.n_ctx = 2048;
    let mut session = Session::new(model, &params).unwrap();
    let mut plain = Plain::load(path, 2048);
    let mut n_tokens = 0;
    for (i, prompt) in prompts.iter().enumerate() {
        // Where kernels round by batch width (Q4_K), a prompt whose beginning is reused differs in its last bits from
        // one that is decoded whole.
        session.clear();
        let tokens = ours(&mut session, prompt, n);
        assert_eq!(tokens, plain.greedy(prompt, n), "prompt {i}");
        n_tokens += tokens.len();
    }
    println!("{} prompts, {n_tokens} tokens, all equal", prompts.len());
}

#[test]
fn greedy_tokens_equal_those_of_a_plain_loop() {
    let path = crate::common::default_model_path();
    let model = crate::common::default_model();
    assert_identity(&path, &model, &prompts(&model), 128);
}

/// `OFFRAMP_TEST_MODEL=m.gguf OFFRAMP_TEST_PROMPTS=p.jsonl cargo test --release --test session greedy -- --ignored
/// --nocapture`: 20 prompts spread over a JSONL file of `{"turns": ["…"]}`, given to the model as they are, their first 192 tokens.
#[test]
#[ignore = "needs another model and prompts"]
fn greedy_tokens_of_a_given_model_equal_those_of_a_plain_loop() {
    let path = PathBuf::from(std::env::var_os("OFFRAMP_TEST_MODEL").expect("OFFRAMP_TEST_MODEL"));
    let file = std::env::var_os("OFFRAMP_TEST_PROMPTS").expect("OFFRAMP_TEST_PROMPTS");
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let lines: Vec<serde_json::Value> =
        std::fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let every = (lines.len() / 20).max(1);
    let texts = lines.iter().step_by(every).take(20).map(|line| line["turns"][0].as_str().unwrap());
    let mut prompts: Vec<Vec<Token>> = texts.map(|text| model.vocab().tokenize(text, true, true).unwrap()).collect();
    prompts.iter_mut().for_each(|prompt| prompt.truncate(192));
    assert_identity(&path, &model, &prompts, 128);
}

#[test]
fn a_prompt_that_shares_its_beginning_gives_the_same_tokens_as_from_scratch() {
    let model = crate::common::default_model();
    let params = SessionParams::default();
    let mut kept = Session::new(&model, &params).unwrap();
    for prompt in prompts(&model).iter().take(4) {
        let mut fresh = Session::new(&model, &params).unwrap();
        assert_eq!(ours(&mut kept, prompt, 24), ours(&mut fresh, prompt, 24));
        // A second turn after the first reply.
        let mut longer = kept.tokens().to_vec();
        longer.extend(crate::common::chat_tokens(&model, "Say it in fewer words."));
        assert_eq!(ours(&mut kept, &longer, 24), ours(&mut fresh, &longer, 24));
    }
}
