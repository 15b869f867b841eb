//! Exact mode: whatever is drafted, the tokens are those of plain decoding.

use std::ops::ControlFlow;

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec, random};
use offramp::gguf::File;
use offramp::gguf::quants::dequantize;
use offramp::{
    CancelHandle, Exits, FlashAttn, GenerateParams, Generation, Lookup, Model, Policy, Sampler, SamplerParams, Session,
    SessionParams, Token,
};
use offramp_fixtures::{Arch, TinyModel, WeightType};

fn params(exits: Exits) -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = 1024;
    params.n_ubatch = 32;
    params.n_threads = Some(1);
    params.exits = exits;
    params.policy = Policy::Always;
    params
}

pub(crate) fn sampler(model: &Model, temperature: f32, seed: u32, penalty: f32, grammar: Option<&str>) -> Sampler {
    let mut params = SamplerParams::default();
    params.temperature = temperature;
    params.seed = Some(seed);
    params.repeat_penalty = penalty;
    params.grammar = grammar.map(|text| offramp::Grammar::gbnf(text).unwrap());
    Sampler::new(model, &params).unwrap()
}

/// A prompt that repeats itself, so that look-up has something to offer.
pub(crate) fn prompt(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i % 11) * 37 % 200 + 20) as i32)).collect()
}

fn limits(n: usize) -> GenerateParams {
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    params.ignore_eos = true;
    params
}

pub(crate) fn reply(session: &mut Session, sampler: &mut Sampler, prompt: &[Token], n: usize) -> Generation {
    session.set_prompt(prompt, &mut |_| {}).unwrap();
    session.generate(sampler, &limits(n), &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn greedy_and_sampled_tokens_are_those_of_off() {
    let of_arch = [
        (Arch::Llama, &[WeightType::Q4_0, WeightType::Q4_1][..]),
        (Arch::Qwen2, &[WeightType::Q4_1]),
        (Arch::Gemma3, &[WeightType::Q4_0]),
        (Arch::Gpt2, &[WeightType::Q4_0]),
    ];
    for (arch, weights) in of_arch {
        for &weights in weights {
            let files = Files::with_idle_blocks(&TinyModel::new(arch).weights(weights), 4);
            for kind in [Kind::Perfect, Kind::Wrong, Kind::Random(1)] {
                let heads = (arch != Arch::Gpt2).then(|| files.write_exits(&Spec::new(&[2, 4], kind)));
                let model = files.load(heads.as_deref());
                for (temperature, penalty) in [(0.0, 1.0), (0.7, 1.3)] {
                    let mut off = Session::new(&model, &params(Exits::Off)).unwrap();
                    let mut exact = Session::new(&model, &params(Exits::Exact)).unwrap();
                    let [expected, made] = [&mut off, &mut exact].map(|session| {
                        let mut sampler = sampler(&model, temperature, 3, penalty, None);
                        reply(session, &mut sampler, &prompt(40), 60)
                    });
                    assert_eq!(made.tokens, expected.tokens, "{arch:?} {weights:?} {kind:?} at {temperature}");
                    assert!(heads.is_none() || made.n_drafted > 20, "{arch:?} {kind:?}: {made:?}");
                    assert!(made.exits.iter().all(Option::is_none));
                    // What is left in the cache is the text, and nothing of the drafts.
                    assert!(exact.gate().position() <= exact.tokens().len());
                }
            }
        }
    }
}

#[test]
fn perfect_heads_are_agreed_with_and_wrong_ones_are_not() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    let drafts = |kind| {
        let model = files.load(Some(&files.write_exits(&Spec::new(&[3], kind))));
        let mut params = params(Exits::Exact);
        params.lookup = Lookup::Off;
        let mut session = Session::new(&model, &params).unwrap();
        let made = reply(&mut session, &mut sampler(&model, 0.0, 0, 1.0, None), &prompt(20), 57);
        (made.n_drafted, made.n_right)
    };
    // 56 tokens after the prompt's own: 7 batches of 7 drafts and the token that follows them.
    assert_eq!(drafts(Kind::Perfect), (49, 49));
    let (drafted, right) = drafts(Kind::Wrong);
    assert!(drafted > 200 && right == 0, "{drafted} {right}");
}

/// What a greedy choice will not ask for is not computed; a draw may pick any draft, however unlikely.
#[test]
fn the_output_matrix_ends_at_the_first_wrong_draft() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    for (kind, temperature, expected) in [(Kind::Perfect, 0.0, 8), (Kind::Wrong, 0.0, 1), (Kind::Wrong, 0.8, 8)] {
        let model = files.load(Some(&files.write_exits(&Spec::new(&[3], kind))));
        let mut params = params(Exits::Exact);
        params.lookup = Lookup::Off;
        let mut session = Session::new(&model, &params).unwrap();
        reply(&mut session, &mut sampler(&model, temperature, 0, 1.0, None), &prompt(20), 57);
        assert_eq!(session.gate().n_logits(), expected, "{kind:?} at {temperature}");
    }
}

/// The rows of a square map that multiplies each of these values.
pub(crate) fn diagonal(values: &[f32]) -> Vec<f32> {
    let n = values.len();
    (0..n * n).map(|i| if i % (n + 1) == 0 { values[i / n] } else { 0.0 }).collect()
}

#[test]
fn a_head_that_drafts_is_verified() {
    let tiny = TinyModel::new(Arch::Llama).weights(WeightType::Q4_0);
    // With blocks that add nothing and tied embeddings, a token's final state is its own row, normalized.
    for first_idle in [0, 2] {
        let files = Files::with_idle_blocks(&tiny, first_idle);
        let model = File::open(files.path("model.gguf")).unwrap();
        let norm = model.tensor("output_norm.weight").unwrap();
        let norm = dequantize(norm.ty(), model.data(norm)).unwrap();
        let n = norm.len();
        for (of_state, of_token) in [
            (vec![0.0; n * n], diagonal(&norm)),
            (random(n * n, 1), random(n * n, 2)),
            (diagonal(&norm), random(n * n, 3)),
        ] {
            let is_perfect = first_idle == 0 && of_state[0] == 0.0;
            let heads =
                files.write_exits(&Spec { draft: Some((&of_state, &of_token)), ..Spec::new(&[], Kind::Perfect) });
            let model = files.load(Some(&heads));
            for (temperature, policy) in [(0.0, Policy::Always), (0.8, Policy::Always), (0.0, Policy::Auto)] {
                let [off, exact] = [Exits::Off, Exits::Exact].map(|exits| {
                    let mut params = params(exits);
                    (params.policy, params.lookup) = (policy, Lookup::Off);
                    let mut session = Session::new(&model, &params).unwrap();
                    reply(&mut session, &mut sampler(&model, temperature, 7, 1.0, None), &prompt(20), 57)
                });
                assert_eq!(off.tokens, exact.tokens, "idle from {first_idle} at {temperature}, {policy:?}");
                if policy == Policy::Always {
                    assert!(exact.n_drafted >= 27, "{exact:?}");
                    // The first token has no state to be drafted from; then each batch is a token and three drafts.
                    let right = exact.n_drafted == 42 && exact.n_right == 42;
                    assert!(!is_perfect || temperature > 0.0 || right, "{exact:?}");
                }
            }
        }
    }
}

/// Beyond 256 cells, fused attention on several threads rounds single tokens otherwise than batches: there, tokens are
/// decoded alone, unless there is one thread or no fused attention.
#[test]
fn identity_holds_at_any_length() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 4);
    let model = files.load(Some(&files.write_exits(&Spec::new(&[3], Kind::Perfect))));
    for (threads, flash_attn) in [(2, FlashAttn::On), (2, FlashAttn::Off)] {
        let [off, exact] = [Exits::Off, Exits::Exact].map(|exits| {
            let mut params = params(exits);
            params.n_threads = Some(threads);
            params.flash_attn = flash_attn;
            let mut session = Session::new(&model, &params).unwrap();
            reply(&mut session, &mut sampler(&model, 0.9, 5, 1.0, None), &prompt(230), 300)
        });
        assert_eq!(off.tokens, exact.tokens, "{threads} threads, {flash_attn:?}");
        let drafts_everywhere = flash_attn == FlashAttn::Off;
        assert!(exact.n_drafted > if drafts_everywhere { 200 } else { 5 }, "{}", exact.n_drafted);
    }
}

#[test]
fn a_grammar_holds_in_exact_mode() {
    let files = Files::new(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0));
    let model = files.load(None);
    let texts = [Exits::Off, Exits::Exact].map(|exits| {
        let mut session = Session::new(&model, &params(exits)).unwrap();
        session.set_prompt(&prompt(30), &mut |_| {}).unwrap();
        let mut sampler = sampler(&model, 0.8, 1, 1.0, Some("root ::= [ab]+"));
        let mut limits = GenerateParams::default();
        limits.max_tokens = 60;
        session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(())).unwrap().text
    });
    assert_eq!(texts[0], texts[1]);
    assert!(texts[0].bytes().all(|byte| matches!(byte, b'a' | b'b')), "{texts:?}");
}

/// Stops, cancels and turns in the middle of drafts leave the text and the cache as plain decoding would.
#[test]
fn stopping_among_drafts_leaves_no_trace() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 4);
    let model = files.load(Some(&files.write_exits(&Spec::new(&[2], Kind::Perfect))));
    let [off, exact] = [Exits::Off, Exits::Exact].map(|exits| {
        let mut session = Session::new(&model, &params(exits)).unwrap();
        let mut tokens = Vec::new();
        session.set_prompt(&prompt(25), &mut |_| {}).unwrap();
        for n in [1, 2, 5, 1, 13] {
            let mut sampler = sampler(&model, 0.6, n as u32, 1.0, None);
            let mut left = n;
            let generation = session.generate(&mut sampler, &limits(30), &mut |_| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            tokens.extend(generation.unwrap().tokens);
            let cancel: CancelHandle = session.cancel_handle();
            cancel.cancel();
            session.generate(&mut sampler, &limits(30), &mut |_| ControlFlow::Continue(())).unwrap();
            cancel.reset();
            let kept = session.tokens().len() - 1;
            session.truncate(kept);
        }
        let mut longer = session.tokens().to_vec();
        longer.extend(prompt(3));
        tokens.extend(reply(&mut session, &mut sampler(&model, 0.0, 0, 1.0, None), &longer, 20).tokens);
        tokens
    });
    assert_eq!(off, exact);
}

/// Sampled tokens have `off`'s distribution, and not only its sequence for a seed: over many seeds, the counts of the
/// first three tokens, the last two of which are drafted, differ by no more than chance (chi-squared, p = 0.001).
#[test]
fn sampled_tokens_have_the_distribution_of_off() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    let model = files.load(Some(&files.write_exits(&Spec::new(&[3], Kind::Perfect))));
    let n = 1500;
    let mut n_drafted = 0;
    let [off, exact] = [(Exits::Off, 0), (Exits::Exact, 1_000_000)].map(|(exits, first_seed)| {
        let mut session = Session::new(&model, &params(exits)).unwrap();
        let mut counts = std::collections::BTreeMap::<Vec<Token>, f64>::new();
        for i in 0..n {
            let mut sampler_params = SamplerParams::default();
            (sampler_params.temperature, sampler_params.top_k) = (3.0, 3);
            sampler_params.seed = Some(first_seed + i);
            let mut sampler = Sampler::new(&model, &sampler_params).unwrap();
            let made = reply(&mut session, &mut sampler, &prompt(12), 3);
            n_drafted += made.n_drafted;
            *counts.entry(made.tokens).or_default() += 1.0;
        }
        counts
    });
    assert!(n_drafted > 1000);
    let texts: std::collections::BTreeSet<&Vec<Token>> = off.keys().chain(exact.keys()).collect();
    let count = |counts: &std::collections::BTreeMap<Vec<Token>, f64>, text| counts.get(text).copied().unwrap_or(0.0);
    let statistic: f64 = texts
        .iter()
        .map(|text| {
            let (a, b) = (count(&off, *text), count(&exact, *text));
            (a - b).powi(2) / (a + b)
        })
        .sum();
    // The 0.999 quantile of chi-squared with 26 degrees of freedom is 54.1.
    assert!((9..=27).contains(&texts.len()) && statistic < 54.1, "{statistic} over {} texts", texts.len());
}
