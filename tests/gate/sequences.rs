//! Several texts side by side in one context, on tiny random models: each is decoded as if it were alone.

use crate::common::tiny::tiny;
use offramp::gate::{Seen, Sequences, Tap};
use offramp::{Error, Logits, Session, SessionParams, Token};
use offramp_fixtures::{Arch, WeightType};

fn params() -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = 256;
    params.n_batch = 32;
    params.n_ubatch = 32;
    params.n_threads = Some(1);
    params
}

fn text(seed: usize, n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + seed * 11 + 5) % 256) as i32)).collect()
}

/// One row of each thing that a step shows, of one sequence.
fn shown(sequences: &mut Sequences, tokens: &[Option<Token>], of: usize) -> (Vec<f32>, Vec<(Seen, Vec<f32>)>) {
    let n = sequences.n_sequences();
    let mut seen = Vec::new();
    let taps = [Tap::Layer(0), Tap::ResultNorm];
    sequences
        .step(tokens, &taps, &[1], &mut |what, values| {
            let width = values.len() / n;
            seen.push((what, values[of * width..(of + 1) * width].to_vec()));
        })
        .unwrap();
    (sequences.logits(of).unwrap().to_vec(), seen)
}

#[test]
fn a_text_does_not_depend_on_those_beside_it() {
    for weights in [WeightType::Q4_0, WeightType::Q8_0, WeightType::F16] {
        let tiny = tiny(Arch::Llama, weights);
        // Alone among rows without a token, at place 1.
        let mut alone = tiny.model.sequences(&params(), 4).unwrap();
        alone.extend(1, &text(1, 9)).unwrap();
        let expected: Vec<_> =
            text(2, 5).into_iter().map(|token| shown(&mut alone, &[None, Some(token), None, None], 1)).collect();
        // Among texts of other lengths, at place 3.
        let mut among = tiny.model.sequences(&params(), 4).unwrap();
        for place in 0..3 {
            among.extend(place, &text(5 + place, 20 * place + 1)).unwrap();
        }
        among.extend(3, &text(1, 9)).unwrap();
        for (i, (token, expected)) in text(2, 5).into_iter().zip(expected).enumerate() {
            let other = |place: usize| Some(text(40 + place, 8)[i]);
            let found = shown(&mut among, &[other(0), other(1), None, Some(token)], 3);
            assert_eq!(found, expected, "{weights:?}, token {i}");
        }
        assert_eq!((among.position(0), among.position(2), among.position(3)), (6, 41, 14));
    }
}

#[test]
fn a_step_gives_what_a_session_gives() {
    for arch in [Arch::Llama, Arch::Gemma3, Arch::Qwen2] {
        let tiny = tiny(arch, WeightType::F32);
        let mut sequences = tiny.model.sequences(&params(), 3).unwrap();
        let mut session = Session::new(&tiny.model, &params()).unwrap();
        for place in 0..3 {
            sequences.extend(place, &text(place, 7 + place)).unwrap();
        }
        let next = text(9, 3);
        sequences.step(&next.iter().map(|token| Some(*token)).collect::<Vec<_>>(), &[], &[], &mut |_, _| {}).unwrap();
        for place in 0..3 {
            session.clear();
            session.gate().decode(&text(place, 7 + place), Logits::Last).unwrap();
            session.gate().decode(&next[place..=place], Logits::Last).unwrap();
            let expected = session.gate().logits(0).unwrap().to_vec();
            let found = sequences.logits(place).unwrap();
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-2, "{arch:?}, place {place}: {difference}");
        }
        assert!(sequences.logits(3).is_none());
    }
}

#[test]
fn what_is_cut_off_leaves_the_beginning_as_it_was() {
    let tiny = tiny(Arch::Llama, WeightType::Q8_0);
    let mut fresh = tiny.model.sequences(&params(), 2).unwrap();
    fresh.extend(0, &text(1, 6)).unwrap();
    let expected = shown(&mut fresh, &[Some(Token(3)), None], 0);

    let mut cut = tiny.model.sequences(&params(), 2).unwrap();
    cut.extend(0, &text(1, 6)).unwrap();
    cut.extend(0, &text(2, 30)).unwrap();
    cut.extend(1, &text(3, 4)).unwrap();
    assert!(cut.truncate(0, 6) && cut.position(0) == 6);
    assert_eq!(shown(&mut cut, &[Some(Token(3)), None], 0), expected);
    assert_eq!((cut.position(0), cut.position(1)), (7, 4));
    assert!(cut.truncate(1, 0) && cut.position(1) == 0);
}

#[test]
fn a_memory_that_cannot_forget_one_token_takes_rows_without_one_where_it_is_empty() {
    let tiny = tiny(Arch::Mamba, WeightType::F32);
    let mut sequences = tiny.model.sequences(&params(), 2).unwrap();
    sequences.extend(0, &text(1, 5)).unwrap();
    for _ in 0..3 {
        sequences.step(&[Some(Token(1)), None], &[Tap::ResultNorm], &[], &mut |_, _| {}).unwrap();
    }
    assert_eq!((sequences.position(0), sequences.position(1)), (8, 0));
    assert!(!sequences.truncate(0, 3) && sequences.position(0) == 0);
    sequences.extend(0, &text(1, 2)).unwrap();
    let error = sequences.step(&[None, Some(Token(1))], &[], &[], &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("cannot forget"), "{error}");
}

#[test]
fn wrong_use_is_refused_and_changes_nothing() {
    let tiny = tiny(Arch::Llama, WeightType::Q8_0);
    let mut few = params();
    (few.n_batch, few.n_ubatch) = (4, 4);
    assert!(matches!(tiny.model.sequences(&few, 5), Err(Error::InvalidValue { name: "sequences", .. })));
    assert!(matches!(tiny.model.sequences(&params(), 0), Err(Error::InvalidValue { .. })));
    let mut sequences = tiny.model.sequences(&params(), 2).unwrap();
    let mut step =
        |tokens: &[Option<Token>], taps: &[Tap], kv: &[u32]| sequences.step(tokens, taps, kv, &mut |_, _| {});
    assert!(matches!(step(&[None], &[], &[]), Err(Error::InvalidValue { name: "tokens of a step", .. })));
    for (taps, kv) in [(&[Tap::Layer(99)][..], &[][..]), (&[Tap::ResultNorm, Tap::Layer(0)], &[]), (&[], &[1, 1])] {
        assert!(matches!(step(&[None, None], taps, kv), Err(Error::InvalidValue { .. })), "{taps:?} {kv:?}");
    }
    assert!(matches!(step(&[None, Some(Token(-1))], &[], &[]), Err(Error::TokenOutOfRange { token: -1, .. })));
    assert!(matches!(sequences.extend(2, &[Token(1)]), Err(Error::InvalidValue { name: "sequence", .. })));
    assert!(matches!(sequences.extend(0, &text(1, 300)), Err(Error::ContextLengthExceeded { n_ctx: 256, .. })));
    assert_eq!((sequences.position(0), sequences.position(1)), (0, 0));
}
