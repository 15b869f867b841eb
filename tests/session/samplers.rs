//! The samplers against plain reckoning, at ordinary numbers and at their ends, and what ends a reply early or late.

use std::ops::ControlFlow;

use crate::common::tiny::{Tiny, load, tiny};
use offramp::{
    GenerateParams, Generation, Grammar, Model, Sampler, SamplerParams, Session, SessionParams, StopReason, Token,
};
use offramp_fixtures::{Arch, WeightType};

fn model() -> Tiny {
    tiny(Arch::Llama, WeightType::Q4_0)
}

fn session(model: &Model) -> Session {
    let mut params = SessionParams::default();
    params.n_ctx = 512;
    params.n_threads = Some(1);
    Session::new(model, &params).unwrap()
}

fn grammar(text: &str) -> Grammar {
    Grammar::gbnf(text).unwrap()
}

fn prompt() -> Vec<Token> {
    (0..20).map(|i| Token((i * 37 + 5) % 256)).collect()
}

fn with(change: impl FnOnce(&mut SamplerParams)) -> SamplerParams {
    let mut params = SamplerParams::default();
    params.seed = Some(1);
    change(&mut params);
    params
}

fn limits(n: usize, change: impl FnOnce(&mut GenerateParams)) -> GenerateParams {
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    params.ignore_eos = true;
    change(&mut params);
    params
}

fn reply(model: &Model, params: &SamplerParams, limits: &GenerateParams) -> Generation {
    let mut session = session(model);
    session.set_prompt(&prompt(), &mut |_| {}).unwrap();
    let mut sampler = Sampler::new(model, params).unwrap();
    session.generate(&mut sampler, limits, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn tokens(model: &Model, n: usize, change: impl FnOnce(&mut SamplerParams)) -> Vec<Token> {
    reply(model, &with(change), &limits(n, |_| {})).tokens
}

/// By how long a sequence the token would go on, which stands before an earlier occurrence of it too; `None` if there is no
/// earlier one after another token.
fn repeated(reply: &[Token], token: Token) -> Option<usize> {
    let common = |at: usize| (0..at).take_while(|i| reply[at - 1 - i] == reply[reply.len() - 1 - i]).count();
    (1..reply.len()).filter(|&at| reply[at] == token).map(common).max()
}

#[test]
fn repeated_sequences_are_penalised_by_how_long_they_are() {
    let tiny = model();
    let plainly = tokens(&tiny.model, 60, |params| params.temperature = 0.0);
    let mut n_changed = 0;
    for (multiplier, base, allowed) in [(1.5f32, 2.0f32, 1usize), (2.0, 2.0, 0), (6.0, 4.0, 0)] {
        let found = tokens(&tiny.model, 60, |params| {
            params.temperature = 0.0;
            (params.dry_multiplier, params.dry_base, params.dry_allowed_length) = (multiplier, base, allowed as i32);
            (params.dry_penalty_last_n, params.dry_sequence_breakers) = (-1, Vec::new());
        });
        let mut plain = session(&tiny.model);
        let mut reckoned: Vec<Token> = Vec::new();
        for _ in 0..60 {
            plain.set_prompt(&[prompt(), reckoned.clone()].concat(), &mut |_| {}).unwrap();
            let mut best = (Token(0), f32::NEG_INFINITY);
            for (id, &logit) in (0..).zip(plain.gate().logits(0).unwrap()) {
                let length = repeated(&reckoned, Token(id)).filter(|&length| length >= allowed);
                let penalty = length.map_or(0.0, |length| multiplier * base.powi((length - allowed) as i32));
                if logit - penalty > best.1 {
                    best = (Token(id), logit - penalty);
                }
            }
            reckoned.push(best.0);
        }
        assert_eq!(found, reckoned, "{multiplier} {base} {allowed}");
        n_changed += usize::from(found != plainly);
    }
    assert!(n_changed >= 2, "the penalty changes what the model says");
}

/// Probabilities after the prompt, falling.
fn probabilities(model: &Model) -> Vec<(Token, f64)> {
    let mut session = session(model);
    session.set_prompt(&prompt(), &mut |_| {}).unwrap();
    let logits = session.gate().logits(0).unwrap().to_vec();
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let mut all: Vec<(Token, f64)> =
        (0..).map(Token).zip(logits.iter().map(|&logit| f64::from(logit - largest).exp() / sum)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

/// The first tokens that are drawn with 300 seeds, each once.
fn drawn(model: &Model, change: impl Fn(&mut SamplerParams)) -> Vec<Token> {
    let mut session = session(model);
    session.set_prompt(&prompt(), &mut |_| {}).unwrap();
    let mut found = Vec::new();
    for seed in 0..300 {
        let params = with(|params| {
            (params.top_k, params.top_p, params.min_p, params.temperature) = (0, 1.0, 0.0, 1.0);
            params.seed = Some(seed);
            change(params);
        });
        session.set_prompt(&prompt(), &mut |_| {}).unwrap();
        let mut sampler = Sampler::new(model, &params).unwrap();
        let made = session.generate(&mut sampler, &limits(1, |_| {}), &mut |_| ControlFlow::Continue(())).unwrap();
        found.push(made.tokens[0]);
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn typical_sampling_keeps_what_is_about_as_surprising_as_expected() {
    let tiny = model();
    let all = probabilities(&tiny.model);
    let entropy: f64 = all.iter().map(|(_, p)| -p * p.ln()).sum();
    let mut by_surprise = all.clone();
    by_surprise.sort_by(|a, b| (-a.1.ln() - entropy).abs().total_cmp(&(-b.1.ln() - entropy).abs()));
    let mut sum = 0.0;
    let mut n = 0;
    while sum <= 0.5 {
        sum += by_surprise[n].1;
        n += 1;
    }
    // One more than reckoned, for what roundings do to the last one's place.
    let kept: Vec<Token> = by_surprise.iter().take(n + 1).map(|(token, _)| *token).collect();
    let found = drawn(&tiny.model, |params| params.typical_p = 0.5);
    assert!(found.len() > 1 && found.iter().all(|token| kept.contains(token)), "{found:?} of {kept:?}");
    assert!(drawn(&tiny.model, |_| {}).iter().any(|token| !kept.contains(token)));
}

#[test]
fn the_likeliest_tokens_are_left_out_where_that_is_asked_for() {
    let tiny = model();
    let all = probabilities(&tiny.model);
    let n_above = all.iter().take_while(|(_, p)| *p >= 0.02).count();
    assert!(n_above >= 2, "{all:?}");
    let left_out: Vec<Token> = all.iter().take(n_above - 1).map(|(token, _)| *token).collect();
    let found = drawn(&tiny.model, |params| (params.xtc_probability, params.xtc_threshold) = (1.0, 0.02));
    assert!(found.iter().all(|token| !left_out.contains(token)), "{found:?} without {left_out:?}");
    let sometimes = drawn(&tiny.model, |params| (params.xtc_probability, params.xtc_threshold) = (0.5, 0.02));
    assert!(sometimes.iter().any(|token| left_out.contains(token)));
    let coldest = tokens(&tiny.model, 1, |params| {
        (params.top_k, params.top_p, params.min_p) = (0, 1.0, 0.0);
        (params.temperature, params.xtc_probability, params.xtc_threshold) = (1e-40, 1.0, 0.02);
    });
    assert_eq!(coldest, [all[n_above - 1].0]);
}

#[test]
fn temperatures_that_nothing_can_be_divided_by_take_the_best() {
    let tiny = model();
    let greedy = tokens(&tiny.model, 24, |params| params.temperature = 0.0);
    for temperature in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-37, 1e-20, 9e-6, 1e-5] {
        for top_k in [0, 40] {
            let found = tokens(&tiny.model, 24, |params| (params.temperature, params.top_k) = (temperature, top_k));
            assert_eq!(found, greedy, "{temperature} {top_k}");
        }
    }
    let penalised = |temperature: f32| {
        tokens(&tiny.model, 24, |params| (params.temperature, params.repeat_penalty) = (temperature, 1.3))
    };
    assert_eq!(penalised(1e-39), penalised(0.0));
}

#[test]
fn every_number_is_a_seed_that_can_be_repeated() {
    let tiny = model();
    let hot = |seed: Option<u32>| {
        tokens(&tiny.model, 24, |params| (params.temperature, params.top_k, params.seed) = (3.0, 0, seed))
    };
    for seed in [0, 1, u32::MAX - 1, u32::MAX] {
        assert_eq!(hot(Some(seed)), hot(Some(seed)), "{seed}");
    }
    assert_ne!(hot(Some(0)), hot(Some(1)));
    assert_ne!(hot(None), hot(None));
}

/// What penalises a sequence of hundreds of tokens beyond every number leaves a token to pick.
#[test]
fn penalties_beyond_all_numbers_leave_what_a_grammar_allows() {
    let tiny = model();
    for temperature in [0.0, 0.2, 2.0] {
        let params = with(|params| {
            (params.temperature, params.grammar) = (temperature, Some(grammar(r#"root ::= ("a" | "b")+"#)));
            (params.dry_multiplier, params.dry_base, params.dry_penalty_last_n) = (100.0, 100.0, -1);
            (params.dry_allowed_length, params.typical_p, params.dry_sequence_breakers) = (0, 0.9, Vec::new());
        });
        let made =
            reply(&tiny.model, &params, &limits(200, |params| (params.min_tokens, params.ignore_eos) = (190, false)));
        assert!(made.tokens.len() >= 190, "{made:?}");
        assert!(made.text.chars().all(|c| c == 'a' || c == 'b'), "{}", made.text);
    }
}

#[test]
fn a_stop_token_ends_a_reply_and_is_no_part_of_it() {
    let tiny = model();
    let greedy = with(|params| params.temperature = 0.0);
    let whole = reply(&tiny.model, &greedy, &limits(30, |_| {})).tokens;
    let (at, stop) = (0..).zip(&whole).find(|(at, token)| *at > 0 && !whole[..*at].contains(token)).unwrap();
    let stops = |params: &mut GenerateParams| params.stop_token_ids = vec![*stop];
    let made = reply(&tiny.model, &greedy, &limits(30, stops));
    assert_eq!((made.tokens.as_slice(), made.stop_reason), (&whole[..at], StopReason::Stop));
    assert_eq!(made.exits.len(), made.tokens.len());
}

#[test]
fn nothing_ends_a_reply_before_the_fewest_tokens() {
    let tiny = model();
    let eog = tiny.model.vocab().eog_tokens();
    assert!(!eog.is_empty() && eog.iter().all(|&token| tiny.model.vocab().is_eog(token)));
    for greedy in [true, false] {
        let params = with(|params| params.temperature = if greedy { 0.0 } else { 1.0 });
        let whole = reply(&tiny.model, &params, &limits(30, |_| {})).tokens;
        // All of the first tokens would end it.
        let made = reply(
            &tiny.model,
            &params,
            &limits(30, |params| {
                (params.stop_token_ids, params.min_tokens) = (whole[..5].to_vec(), 12);
                params.ignore_eos = false;
            }),
        );
        assert!(made.tokens.len() >= 12, "{made:?}");
        assert!(made.tokens[..12].iter().all(|token| !whole[..5].contains(token) && !eog.contains(token)), "{made:?}");
    }
    let params = with(|params| params.grammar = Some(grammar(r#"root ::= "a""#)));
    let made = reply(&tiny.model, &params, &limits(30, |params| (params.min_tokens, params.ignore_eos) = (9, false)));
    assert_eq!((made.text.as_str(), made.stop_reason), ("a", StopReason::Eos), "a grammar may allow nothing else");
}

#[test]
fn a_prompt_has_no_end_token_behind_it() {
    let with_end = |adds_eos| load(&offramp_fixtures::TinyModel::new(Arch::Llama).adds_eos(adds_eos));
    let (plain, ends) = (with_end(false), with_end(true));
    let (plain, ends) = (plain.model.vocab(), ends.model.vocab());
    for text in ["", "hello", "one two </s>", "<|im_start|>user\nhi"] {
        assert_eq!(ends.tokenize_prompt(text, true).unwrap(), plain.tokenize(text, true, true).unwrap(), "{text:?}");
        let whole = ends.tokenize(text, true, true).unwrap();
        assert_eq!((ends.adds_eos(), whole.last().copied()), (true, ends.eos()), "{text:?}");
    }
}
