//! The screen on the default model: a screen of full rank, made of the model's own output matrix, samples exactly what
//! the full matrix does, because its candidates' logits are the full matrix's own.

use std::ops::ControlFlow;

use crate::screen::Files;
use offramp::gguf::TensorType;
use offramp::{
    ExitPoint, Exits, GenerateParams, Model, ModelParams, Policy, Sampler, SamplerParams, Session, SessionParams,
};

fn sampled(model: &Model, exits: Exits) -> offramp::Generation {
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.exits = exits;
    // Whether a screen of full rank pays here is not the question.
    params.policy = Policy::Always;
    let mut session = Session::new(model, &params).unwrap();
    let mut sampler_params = SamplerParams::default();
    sampler_params.seed = Some(11);
    let mut sampler = Sampler::new(model, &sampler_params).unwrap();
    let prompt = crate::common::chat_tokens(model, "Describe a walk in the rain.");
    session.set_prompt(&prompt, &mut |_| {}).unwrap();
    let mut limits = GenerateParams::default();
    limits.max_tokens = 48;
    session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn candidates_are_sampled_as_from_the_full_matrix() {
    let files = Files::of_file(&crate::common::default_model_path());
    let heads = files.write_screen(256, [0.0, 0.0], TensorType::Q8_0, true);
    let mut params = ModelParams::default();
    params.heads = Some(heads);
    let model = Model::load(files.path("model.gguf"), &params).unwrap();
    let (off, screened) = (sampled(&model, Exits::Off), sampled(&model, Exits::Calibrated));
    assert_eq!(off.tokens, screened.tokens);
    let n = screened.exits.iter().filter(|exit| **exit == Some(ExitPoint::Screen)).count();
    // The first token comes with the prompt.
    assert!(n > 20 && n + 1 == screened.exits.len(), "{:?}", screened.exits);
}
