//! The drafting head against the same mathematics in plain Rust, in f64.

use super::*;
use crate::gguf::exits::ExitMeta;
use crate::heads::plain::{numbers, product};
use crate::heads::written::{Begun, SHORTLIST, as_it_is};

struct Written {
    heads: Arc<Heads>,
    norm: Vec<f32>,
    map: Vec<f32>,
    bias: Vec<f32>,
    output: Vec<f32>,
    n_embd: usize,
    _folder: tempfile::TempDir,
}

/// A sidecar without exits: a screen of full rank, and a random head that drafts where `drafts`.
fn write(drafts: bool) -> Written {
    let begun = Begun::new();
    let n = begun.n_embd;
    let meta = ExitMeta { draft: drafts.then(as_it_is), ..begun.meta.clone() };
    let (mut writer, output) = begun.sidecar(&meta);
    let (norm, map, bias) = (numbers(2 * n, 1, 1.0), numbers(2 * n * n, 2, 0.6), numbers(n, 3, 0.1));
    if drafts {
        writer.tensor_f32("exit_draft.norm.weight", &[2 * n as u64], &norm).unwrap();
        writer.tensor_f32("exit_draft.head.weight", &[2 * n as u64, n as u64], &map).unwrap();
        writer.tensor_f32("exit_draft.head.bias", &[n as u64], &bias).unwrap();
    }
    let (heads, folder) = begun.open(&writer);
    Written { heads, norm, map, bias, output, n_embd: n, _folder: folder }
}

/// The best token after `token`, and its probability among the best.
fn reference(written: &Written, state: &[f32], token: usize) -> (i32, f64) {
    let n = written.n_embd;
    let row = &written.output[token * n..(token + 1) * n];
    let mut x = Vec::new();
    for (values, norm) in [(state, &written.norm[..n]), (row, &written.norm[n..])] {
        let mean = values.iter().map(|x| f64::from(x * x)).sum::<f64>() / n as f64;
        let scale = 1.0 / (mean + 1e-6).sqrt();
        x.extend(values.iter().zip(norm).map(|(x, w)| f64::from(x * w) * scale));
    }
    let mut z = product(&written.map, &x);
    z.iter_mut().zip(&written.bias).for_each(|(z, bias)| *z += f64::from(*bias));
    let logits = product(&written.output, &z);
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let mut sorted = logits.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let sum: f64 = sorted[..SHORTLIST].iter().map(|logit| (logit - sorted[0]).exp()).sum();
    (best as i32, 1.0 / sum)
}

#[test]
fn a_draft_is_the_plain_mathematics_and_comes_where_it_is_likely_enough() {
    let written = write(true);
    let mut head = DraftHead::new(&written.heads, 1, None).unwrap().unwrap();
    for i in 0..24 {
        let state = numbers(written.n_embd, 100 + i, 3.0);
        let token = (i as usize * 7) % 200;
        let (best, probability) = reference(&written, &state, token);
        let mut draft = |least: f64| head.draft(&state, Token(token as i32), least as f32).unwrap();
        let token_of = |drafted: Option<(Token, f32)>| drafted.map(|(token, _)| token);
        assert_eq!(token_of(draft(0.0)), Some(Token(best)), "draft {i}");
        let (drafted, chance) = draft(probability * 0.97).unwrap();
        assert_eq!(drafted, Token(best), "draft {i} at {probability}");
        assert!((0.96..1.01).contains(&(f64::from(chance) / probability)), "{chance} of {probability}");
        assert_eq!(draft((probability * 1.03).min(1.0 + 1e-6)), None, "draft {i} at {probability}");
    }
}

#[test]
fn states_and_tokens_of_another_model_are_refused() {
    let written = write(true);
    let mut head = DraftHead::new(&written.heads, 1, None).unwrap().unwrap();
    let state = vec![1.0; written.n_embd];
    assert!(matches!(head.draft(&state[1..], Token(3), 0.0), Err(Error::Heads { .. })));
    for token in [-1, i32::MAX] {
        assert!(matches!(head.draft(&state, Token(token), 0.0), Err(Error::Heads { .. })));
    }
}

#[test]
fn heads_may_draft_nothing() {
    assert!(DraftHead::new(&write(false).heads, 1, None).unwrap().is_none());
}
