//! Drafts in calibrated mode: the screen verifies several at once as it lets single tokens go, and whatever is drafted, a screen
//! that never errs gives the tokens of plain decoding.

use std::ops::ControlFlow;

use crate::exact::{self, diagonal, prompt, sampler};
use crate::exits::{self, logits_after};
use crate::screen::Files;
use crate::screen::heads::{Kind, Spec, random};
use crate::screened::n_screened;
use offramp::gate::GateSupport;
use offramp::gguf::File;
use offramp::gguf::quants::dequantize;
use offramp::{Drafts, Exits, GenerateParams, Generation, Kernels, Lookup, Policy, Session, SessionParams};
use offramp_fixtures::{Arch, TinyModel, WeightType};

/// Of full rank, the screen never errs, and these bars let it speak for most tokens and not for all.
const SURE_OF_MOST: [f32; 2] = [0.05; 2];

fn params(exits: Exits) -> SessionParams {
    let mut params = exits::params(exits);
    params.drafts = Drafts::Auto;
    params
}

fn reply(session: &mut Session, temperature: f32, n: usize) -> Generation {
    let mut sampler = sampler(session.model(), temperature, 5, 1.0, None);
    exact::reply(session, &mut sampler, &prompt(30), n)
}

#[test]
fn a_screen_that_never_errs_verifies_drafts() {
    for (arch, first_idle) in [(Arch::Llama, 0), (Arch::Qwen2, 0), (Arch::Qwen2, 2), (Arch::Gemma3, 0)] {
        let files = Files::with_idle_blocks(&TinyModel::new(arch).weights(WeightType::Q4_0), first_idle);
        // With blocks that add nothing and tied embeddings, a token's final state is its own row, normalized.
        let model = File::open(files.path("model.gguf")).unwrap();
        let norm = model.tensor("output_norm.weight").unwrap();
        let norm = dequantize(norm.ty(), model.data(norm)).unwrap();
        let (of_state, of_token) = (vec![0.0; norm.len() * norm.len()], diagonal(&norm));
        let draft = Some((&of_state[..], &of_token[..]));
        let spec = Spec { screen: SURE_OF_MOST, shortlist: 256, draft, ..Spec::new(&[], Kind::Perfect) };
        let model = files.load(Some(&files.write_exits(&spec)));
        for (temperature, lookup) in [(0.0, Lookup::Auto), (0.0, Lookup::Off), (0.7, Lookup::Off)] {
            let mut params = params(Exits::Calibrated);
            params.lookup = lookup;
            let mut session = Session::new(&model, &params).unwrap();
            let made = reply(&mut session, temperature, 100);
            params.exits = Exits::Off;
            let off = reply(&mut Session::new(&model, &params).unwrap(), temperature, 100);
            let which = format!("{arch:?} idle from {first_idle} at {temperature}, look-up {lookup}");
            assert_eq!(off.tokens, made.tokens, "{which}");
            assert!(made.n_drafted > 40, "{which}: {made:?}");
            assert!(n_screened(&made) > 40, "{which}: {made:?}");
            // A draft that ends the text is not always looked at.
            let right = made.n_right + 3 >= made.n_drafted;
            assert!(right || first_idle > 0 || arch == Arch::Gemma3 || temperature > 0.0, "{which}: {made:?}");
            assert!(session.gate().position() <= session.tokens().len());
        }
    }
}

/// As certificates need it.
#[test]
fn at_fixed_costs_the_same_is_drafted_each_time() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 0);
    let spec = Spec { screen: SURE_OF_MOST, shortlist: 256, ..Spec::new(&[], Kind::Perfect) };
    let model = files.load(Some(&files.write_exits(&spec)));
    let mut params = params(Exits::Calibrated);
    params.policy = Policy::Fixed;
    let [one, other] = [(); 2].map(|()| {
        let mut session = Session::new(&model, &params).unwrap();
        [40, 20].map(|n| reply(&mut session, 0.7, n)).map(|made| (made.tokens, made.n_drafted, made.n_right))
    });
    assert!(one == other && one[0].1 > 0, "{one:?} and {other:?}");
}

#[test]
fn nothing_is_drafted_where_that_is_off() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 4);
    let spec = Spec { screen: SURE_OF_MOST, ..Spec::new(&[2], Kind::Perfect) };
    let model = files.load(Some(&files.write_exits(&spec)));
    for exits in [Exits::Calibrated, Exits::Exact] {
        let mut params = params(exits);
        params.drafts = Drafts::Off;
        let made = reply(&mut Session::new(&model, &params).unwrap(), 0.0, 60);
        assert_eq!((made.n_drafted, made.n_right), (0, 0), "{exits}");
    }
}

/// Tokens that wait for their upper blocks come along with the batch, and the cache is a plain one in the end.
#[test]
fn drafts_take_tokens_that_wait_along() {
    let files = Files::new(&TinyModel::new(Arch::Qwen2).weights(WeightType::Q4_0));
    let model = File::open(files.path("model.gguf")).unwrap();
    let n = model.tensor("output_norm.weight").unwrap().dims4()[0] as usize;
    let (of_state, of_token) = (random(n * n, 1), random(n * n, 2));
    // The exit and the drafting head are random: some tokens leave, some drafts are wrong.
    let spec = Spec {
        thresholds: [0.02; 2],
        screen: SURE_OF_MOST,
        draft: Some((&of_state, &of_token)),
        ..Spec::new(&[1], Kind::Random(4))
    };
    let model = files.load(Some(&files.write_exits(&spec)));
    let mut params = params(Exits::Calibrated);
    (params.policy, params.lookup) = (Policy::Auto, Lookup::Auto);
    for policy in [Policy::Auto, Policy::Always] {
        params.policy = policy;
        let mut session = Session::new(&model, &params).unwrap();
        reply(&mut session, 0.0, 150);
        let text = session.tokens().to_vec();
        let mut off = params.clone();
        off.exits = Exits::Off;
        let mut plain = Session::new(&model, &off).unwrap();
        let [found, expected] = [&mut session, &mut plain].map(|session| logits_after(session, &text));
        assert!(found == expected, "{policy}");
    }
}

#[test]
fn a_grammar_holds_among_drafts() {
    let files = Files::new(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0));
    // Few candidates: the grammar often allows none of them, and the full matrix is asked.
    let spec = Spec { screen: [0.0; 2], shortlist: 16, ..Spec::new(&[], Kind::Perfect) };
    let model = files.load(Some(&files.write_exits(&spec)));
    let texts = [Exits::Off, Exits::Calibrated].map(|exits| {
        let mut session = Session::new(&model, &params(exits)).unwrap();
        session.set_prompt(&prompt(30), &mut |_| {}).unwrap();
        let mut limits = GenerateParams::default();
        limits.max_tokens = 60;
        let mut sampler = sampler(&model, 0.0, 5, 1.0, Some("root ::= [ab]+"));
        session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(())).unwrap().text
    });
    assert!(texts.iter().all(|text| !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'a' | b'b'))));
}

/// With our kernels a batch of any width and type rounds as single tokens do: drafts cost no certificate anything.
#[test]
fn batches_of_every_type_round_as_single_tokens_do() {
    for weights in WeightType::ALL {
        let (_, support) = drafted(weights, Kernels::Auto, (1, Exits::Off), Drafts::Auto, 8);
        assert_eq!((support.alike_width, support.width_difference), (usize::MAX, 0.0), "{weights:?}");
    }
    for weights in [WeightType::Q4_0, WeightType::F16, WeightType::Q4_K] {
        let made = |exits, drafts| drafted(weights, Kernels::Auto, (1, exits), drafts, 8).0;
        let off = made(Exits::Off, Drafts::Auto);
        for (exits, drafts) in
            [(Exits::Calibrated, Drafts::Auto), (Exits::Calibrated, Drafts::On), (Exits::Exact, Drafts::Auto)]
        {
            let reply = made(exits, drafts);
            assert!(reply.n_drafted > 0 && reply.tokens == off.tokens, "{weights:?}, {exits:?} with drafts {drafts:?}");
        }
    }
}

/// A reply by a model with idle blocks and perfect heads, and what its gate can do.
fn drafted(
    weights: WeightType,
    kernels: Kernels,
    (batch_width, exits): (u32, Exits),
    drafts: Drafts,
    max_pending: u32,
) -> (Generation, GateSupport) {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(weights), 0);
    let spec = Spec { screen: SURE_OF_MOST, shortlist: 256, batch_width, ..Spec::new(&[], Kind::Perfect) };
    let model = files.load_by(Some(&files.write_exits(&spec)), kernels);
    let mut params = params(exits);
    (params.drafts, params.max_pending) = (drafts, max_pending);
    (reply(&mut Session::new(&model, &params).unwrap(), 0.0, 60), model.gate_support().unwrap())
}

/// llama.cpp's kernels round by width: batches that do not round as single tokens are left alone unless the file was
/// certified with them, or they are asked for.
#[test]
fn batches_that_round_otherwise_want_a_certificate_of_their_own() {
    let mut widths = Vec::new();
    for weights in [WeightType::Q4_0, WeightType::Q4_1, WeightType::F16, WeightType::Q8_0, WeightType::Q4_K] {
        let made = |batch_width, exits, drafts, max_pending| {
            drafted(weights, Kernels::LlamaCpp, (batch_width, exits), drafts, max_pending)
        };
        let off = made(1, Exits::Off, Drafts::Auto, 8).0;
        let (auto, support) = made(1, Exits::Calibrated, Drafts::Auto, 8);
        let [certified, on] = [(8, Drafts::Auto), (1, Drafts::On)]
            .map(|(batch_width, drafts)| made(batch_width, Exits::Calibrated, drafts, 8).0.n_drafted);
        assert_eq!(support.alike_width == usize::MAX, support.width_difference == 0.0, "{weights:?}");
        assert_eq!(auto.n_drafted > 0, support.alike_width > 1, "{weights:?}: {support:?}");
        assert!(certified > 0 && on == certified, "{weights:?}: {certified} and {on} drafts");
        assert!(auto.n_drafted <= on, "{weights:?}: {} of {on} drafts", auto.n_drafted);
        assert_eq!(auto.tokens, off.tokens, "{weights:?}");
        // Exact mode drafts in any, and is exact in batches that round alike.
        if support.alike_width > 1 {
            let narrow = support.alike_width.min(8) as u32;
            let exact = made(1, Exits::Exact, Drafts::Auto, narrow).0;
            assert!(exact.n_drafted > 0 && exact.tokens == off.tokens, "{weights:?} in batches of {narrow}");
        }
        widths.push(support.alike_width);
    }
    assert!(widths.contains(&usize::MAX) && widths.iter().any(|width| *width < 8), "{widths:?}");
}

/// Beyond the cells from which llama.cpp splits a token's K/V between threads, and beyond those of a whole batch.
#[test]
fn exact_mode_drafts_at_any_length_and_equals_off() {
    for weights in [WeightType::Q4_K, WeightType::F16] {
        let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(weights), 0);
        let spec = Spec { screen: SURE_OF_MOST, shortlist: 256, ..Spec::new(&[], Kind::Perfect) };
        let model = files.load(Some(&files.write_exits(&spec)));
        let replies = [(Exits::Off, 1), (Exits::Off, 2), (Exits::Exact, 2)].map(|(exits, n_threads)| {
            let mut params = params(exits);
            (params.n_ctx, params.n_threads) = (512, Some(n_threads));
            assert!(model.is_batch_invariant(&params));
            let mut session = Session::new(&model, &params).unwrap();
            let mut sampler = sampler(&model, 0.0, 5, 1.0, None);
            exact::reply(&mut session, &mut sampler, &prompt(400), 60)
        });
        let [one, two, exact] = &replies;
        assert!(exact.n_drafted > 0, "{weights:?}");
        assert!(one.tokens == two.tokens && exact.tokens == two.tokens, "{weights:?}");
    }
}
