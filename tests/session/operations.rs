//! Whatever is done with a session that exits early, in any order: its cache is that of a plain decode of its text.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use offramp::{
    Drafts, Exits, GenerateParams, Kv, Model, Policy, Sampler, SamplerParams, Session, SessionParams, StopReason, Token,
};
use offramp_fixtures::{Arch, TinyModel, WeightType};
use proptest::prelude::*;

const N_CTX: u32 = 256;

fn params(exits: Exits) -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = N_CTX;
    params.n_ubatch = 32;
    params.n_threads = Some(1);
    params.exits = exits;
    params.kv = Kv::CatchUp;
    params.policy = Policy::Always;
    params
}

fn text(n: usize, seed: usize) -> Vec<Token> {
    (0..n).map(|i| Token((((i % 13) * 37 + seed * 11 + 5) % 256) as i32)).collect()
}

#[derive(Debug, Clone)]
enum Operation {
    /// The first part of the present text, and then another one.
    Prompt {
        kept: usize,
        new: usize,
        seed: usize,
    },
    Generate(usize),
    /// As `Generate`, stopped by the callback after the first number of tokens.
    Break(usize, usize),
    /// As `Generate`, cancelled by another thread after about so many turns of a loop.
    Cancel(usize, u32),
    Truncate(usize),
    /// Takes the last tokens back and generates as many.
    Regenerate(usize),
    Clear,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        3 => (0usize..80, 1usize..40, 0usize..4).prop_map(|(kept, new, seed)| Operation::Prompt { kept, new, seed }),
        6 => (1usize..25).prop_map(Operation::Generate),
        2 => (1usize..25, 1usize..9).prop_map(|(n, stop)| Operation::Break(n, stop)),
        3 => (5usize..25, 0u32..400_000).prop_map(|(n, spins)| Operation::Cancel(n, spins)),
        2 => (0usize..120).prop_map(Operation::Truncate),
        2 => (1usize..12).prop_map(Operation::Regenerate),
        1 => Just(Operation::Clear),
    ];
    prop::collection::vec(operation, 1..10)
}

fn generate(session: &mut Session, n: usize, stop: usize) -> StopReason {
    let mut sampler_params = SamplerParams::default();
    sampler_params.seed = Some(n as u32);
    let mut sampler = Sampler::new(session.model(), &sampler_params).unwrap();
    let mut limits = GenerateParams::default();
    limits.max_tokens = n;
    limits.ignore_eos = true;
    let mut left = stop;
    let made = session.generate(&mut sampler, &limits, &mut |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    made.unwrap().stop_reason
}

fn apply(session: &mut Session, operation: &Operation) {
    let n_tokens = session.tokens().len();
    match *operation {
        Operation::Prompt { kept, new, seed } => {
            let mut prompt = session.tokens()[..kept.min(n_tokens)].to_vec();
            prompt.extend(text(new, seed));
            prompt.truncate(N_CTX as usize - 40);
            session.set_prompt(&prompt, &mut |_| {}).unwrap();
        }
        Operation::Clear => session.clear(),
        Operation::Truncate(n) => session.truncate(n),
        _ if n_tokens == 0 => {}
        Operation::Generate(n) => drop(generate(session, n, usize::MAX)),
        Operation::Break(n, stop) => drop(generate(session, n, stop)),
        Operation::Cancel(n, spins) => {
            let cancel = session.cancel_handle();
            let handle = cancel.clone();
            let other = std::thread::spawn(move || {
                (0..spins).for_each(|_| std::hint::spin_loop());
                handle.cancel();
            });
            generate(session, n, usize::MAX);
            other.join().unwrap();
            cancel.reset();
        }
        Operation::Regenerate(n) => {
            session.truncate(n_tokens.saturating_sub(n).max(1));
            generate(session, n, usize::MAX);
        }
    }
}

/// Logits after the session's text and one token more, from what the cache holds of it.
fn logits(session: &mut Session) -> Vec<f32> {
    let mut longer = session.tokens().to_vec();
    longer.truncate(N_CTX as usize - 1);
    longer.push(Token(77));
    session.set_prompt(&longer, &mut |_| {}).unwrap();
    session.gate().logits(0).unwrap().to_vec()
}

struct Tiny {
    model: Model,
    _files: Files,
}

/// One model for all cases of a test: what they share is immutable.
fn llama() -> &'static Model {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    &TINY.get_or_init(|| tiny(Arch::Llama)).model
}

fn qwen2() -> &'static Model {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    &TINY.get_or_init(|| tiny(Arch::Qwen2)).model
}

fn tiny(arch: Arch) -> Tiny {
    let files = Files::new(&TinyModel::new(arch).weights(WeightType::Q4_0));
    // Some tokens leave and some do not, at each of the exits and at the screen.
    let spec = Spec { thresholds: [0.02, 0.02], screen: [0.05, 0.05], ..Spec::new(&[0, 2, 3], Kind::Random(4)) };
    let model = files.load(Some(&files.write_exits(&spec)));
    Tiny { model, _files: files }
}

fn check(model: &Model, exits: Exits, drafts: Drafts, operations: &[Operation]) -> Result<(), TestCaseError> {
    let mut params_of = params(exits);
    params_of.drafts = drafts;
    let mut session = Session::new(model, &params_of).unwrap();
    for operation in operations {
        apply(&mut session, operation);
        prop_assert!(session.tokens().len() <= N_CTX as usize + 1);
    }
    let mut plain = Session::new(model, &params(Exits::Off)).unwrap();
    if !session.tokens().is_empty() {
        let text = session.tokens().to_vec();
        plain.set_prompt(&text, &mut |_| {}).unwrap();
    }
    prop_assert!(logits(&mut session) == logits(&mut plain), "{} tokens", session.tokens().len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn catching_up_leaves_a_plain_cache(operations in operations()) {
        check(llama(), Exits::Calibrated, Drafts::Off, &operations)?;
    }

    #[test]
    fn drafts_among_exits_leave_a_plain_cache(operations in operations()) {
        check(llama(), Exits::Calibrated, Drafts::Auto, &operations)?;
    }

    #[test]
    fn verifying_leaves_a_plain_cache(operations in operations()) {
        check(qwen2(), Exits::Exact, Drafts::Auto, &operations)?;
    }
}

/// A thousand tokens: every cell is written, none twice.
#[test]
fn a_long_text_keeps_a_plain_cache() {
    let modes = [(Exits::Calibrated, Drafts::Off), (Exits::Calibrated, Drafts::Auto), (Exits::Exact, Drafts::Auto)];
    for (exits, drafts) in modes {
        let mut long = params(exits);
        (long.n_ctx, long.drafts) = (1280, drafts);
        let mut session = Session::new(llama(), &long).unwrap();
        session.set_prompt(&text(30, 1), &mut |_| {}).unwrap();
        generate(&mut session, 1000, usize::MAX);
        let mut tokens = session.tokens().to_vec();
        assert_eq!(tokens.len(), 1030);
        tokens.push(Token(77));
        long.exits = Exits::Off;
        let mut plain = Session::new(llama(), &long).unwrap();
        let [found, expected] = [&mut session, &mut plain].map(|session| {
            session.set_prompt(&tokens, &mut |_| {}).unwrap();
            session.gate().logits(0).unwrap().to_vec()
        });
        assert!(found == expected, "{exits}, drafts {drafts}");
    }
}

/// A full context ends the generation, or loses the older half of its text where that is asked for.
#[test]
fn a_full_context_ends_or_shifts() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    let model = files.load(Some(&files.write_exits(&Spec::new(&[3], Kind::Perfect))));
    let texts = [Exits::Off, Exits::Calibrated, Exits::Exact].map(|exits| {
        let mut session = Session::new(&model, &params(exits)).unwrap();
        session.set_prompt(&text(40, 1), &mut |_| {}).unwrap();
        assert_eq!(generate(&mut session, 600, usize::MAX), StopReason::Length);
        assert_eq!(session.tokens().len(), N_CTX as usize + 1);

        let mut shifting = params(exits);
        shifting.context_shift = true;
        let mut session = Session::new(&model, &shifting).unwrap();
        session.set_prompt(&text(40, 1), &mut |_| {}).unwrap();
        let mut limits = GenerateParams::default();
        (limits.max_tokens, limits.ignore_eos) = (600, true);
        let mut greedy = SamplerParams::default();
        greedy.temperature = 0.0;
        let mut sampler = Sampler::new(&model, &greedy).unwrap();
        let made = session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((made.tokens.len(), made.context_full), (600, false));
        assert!(session.tokens().len() <= N_CTX as usize + 1);
        made.tokens
    });
    assert!(texts[0] == texts[1] && texts[0] == texts[2]);
}
