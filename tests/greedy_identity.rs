//! With no exits, our greedy tokens are those of a plain llama.cpp decode loop.

mod common;

use std::ops::ControlFlow;

use offramp::{GenerateParams, Model, Sampler, SamplerParams, Session, SessionParams, Token};

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
    include_str!("golden/prompts.txt").lines().map(|line| common::chat_tokens(model, line)).collect()
}

#[test]
fn greedy_tokens_equal_those_of_a_plain_loop() {
    let model = common::default_model();
    let mut params = SessionParams::default();
    params.n_ctx = 1024;
    let mut session = Session::new(&model, &params).unwrap();
    let mut plain = common::plain::Plain::load(&common::default_model_path(), 1024);
    for (i, prompt) in prompts(&model).iter().enumerate() {
        assert_eq!(ours(&mut session, prompt, 64), plain.greedy(prompt, 64), "prompt {i}");
    }
}

#[test]
fn a_prompt_that_shares_its_beginning_gives_the_same_tokens_as_from_scratch() {
    let model = common::default_model();
    let params = SessionParams::default();
    let mut kept = Session::new(&model, &params).unwrap();
    for prompt in prompts(&model).iter().take(4) {
        let mut fresh = Session::new(&model, &params).unwrap();
        assert_eq!(ours(&mut kept, prompt, 24), ours(&mut fresh, prompt, 24));
        // A second turn after the first reply.
        let mut longer = kept.tokens().to_vec();
        longer.extend(common::chat_tokens(&model, "Say it in fewer words."));
        assert_eq!(ours(&mut kept, &longer, 24), ours(&mut fresh, &longer, 24));
    }
}
