//! A head against the same mathematics in plain Rust, in f64.

use super::*;
use crate::gguf::exits::{Calibration, ExitMeta, HeadType, KvPolicy, VocabMeta};
use crate::heads::Heads;
use crate::heads::plain::{numbers, product};
use crate::heads::written::{Begun, SHORTLIST, as_it_is};

#[test]
fn a_normed_state_has_a_mean_square_of_one() {
    let hidden: Vec<f32> = (0..200u8).map(|i| f32::from(i) - 90.0).collect();
    let mut normed = Vec::new();
    normalize(&hidden, &[2.0; 200], &mut normed);
    let mean = normed.iter().map(|x| f64::from(x * x)).sum::<f64>() / 200.0;
    assert!((mean - 4.0).abs() < 1e-5, "{mean}");
    assert_eq!(normed[90], 0.0);
}

#[test]
fn a_product_over_lanes_is_the_plain_one() {
    let (a, b): (Vec<f32>, Vec<f32>) = (0..37u8).map(|i| (f32::from(i), f32::from(i % 3) - 1.0)).unzip();
    assert_eq!(dot(&a, &b), a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
}

const N_FF: usize = 96;
const RANK: usize = 32;

struct Written {
    heads: Arc<Heads>,
    /// By name.
    tensors: std::collections::HashMap<String, Vec<f32>>,
    output: Vec<f32>,
    n_embd: usize,
    _folder: tempfile::TempDir,
}

/// A sidecar with one random head of type `ty` and a screen of full rank.
fn write(ty: HeadType, metric: Metric) -> Written {
    write_among(ty, metric, None)
}

/// The same, whose exits choose among `tokens`.
fn write_among(ty: HeadType, metric: Metric, tokens: Option<&[u32]>) -> Written {
    write_changed(ty, metric, tokens, &|_| ())
}

/// The same with other weights of the classifier.
fn write_changed(ty: HeadType, metric: Metric, tokens: Option<&[u32]>, change: &dyn Fn(&mut [f32])) -> Written {
    let begun = Begun::new();
    let n = begun.n_embd;
    let rank = if ty.is_low_rank() { RANK as u32 } else { 0 };
    let meta = ExitMeta {
        vocab: tokens.map(|tokens| VocabMeta {
            n_tokens: tokens.len() as u32,
            shortlist: tokens.len() as u32,
            confidence: as_it_is(),
            thresholds: vec![0.5],
        }),
        layers: vec![2],
        head_types: vec![ty],
        head_ranks: vec![rank],
        metric,
        confidence: vec![as_it_is()],
        thresholds: vec![vec![0.5]],
        gate_thresholds: vec![vec![0.25]],
        calibration: Some(Calibration {
            prompts: "none".to_owned(),
            n_prompts: 1,
            n_tokens: 1,
            delta: 0.05,
            risk: vec![0.0],
            risk_bound: vec![0.0],
            exit_rate: vec![0.0],
            kv_policy: KvPolicy::CatchUp,
            sampler: "greedy".to_owned(),
            batch_width: 1,
            near_ties: 0.0,
            engine: "test".to_owned(),
            date: "2026-01-31".to_owned(),
        }),
        ..begun.meta.clone()
    };
    let (mut writer, output) = begun.sidecar(&meta);
    if let Some(tokens) = tokens {
        let ids = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        writer.tensor("exit_vocab.tokens", TensorType::I32, &[tokens.len() as u64], ids).unwrap();
        if metric == Metric::Classifier {
            writer.tensor_f32("exit_vocab.classifier.weight", &[n as u64 + 1], &of_vocab(n)).unwrap();
            writer.tensor_f32("exit_vocab.classifier.bias", &[1], &[0.3]).unwrap();
        }
    }
    let mut list: Vec<(&str, Vec<usize>)> =
        vec![("norm.weight", vec![n]), ("head.bias", vec![n]), ("gate.weight", vec![n]), ("gate.bias", vec![1])];
    if ty.has_mlp() {
        let ffn = [("ffn_gate.weight", [n, N_FF]), ("ffn_up.weight", [n, N_FF]), ("ffn_down.weight", [N_FF, n])];
        list.extend(ffn.map(|(name, dims)| (name, dims.to_vec())));
    }
    if metric == Metric::Classifier {
        list.extend([("classifier.weight", vec![n + 1]), ("classifier.bias", vec![1])]);
    }
    match ty.is_low_rank() {
        true => list.extend([("down.weight", vec![n, RANK]), ("up.weight", vec![RANK, n])]),
        false => list.push(("head.weight", vec![n, n])),
    }
    let mut tensors = std::collections::HashMap::new();
    for (seed, (name, dims)) in (1..).zip(list) {
        let mut values = numbers(dims.iter().product(), seed, 1.0 / (dims[0] as f32).sqrt());
        if name == "classifier.weight" {
            values[n] = 0.8;
            change(&mut values);
        }
        let dims: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
        writer.tensor_f32(&format!("blk.2.exit_{name}"), &dims, &values).unwrap();
        tensors.insert(name.to_owned(), values);
    }
    let (heads, folder) = begun.open(&writer);
    Written { heads, tensors, output, n_embd: n, _folder: folder }
}

/// The classifier of the tokens that exits choose among.
fn of_vocab(n_embd: usize) -> Vec<f32> {
    numbers(n_embd, 77, 0.1).into_iter().chain([0.7]).collect()
}

/// The gate's answer, all logits, and the metric over the best of them.
fn reference(written: &Written, ty: HeadType, metric: Metric, hidden: &[f32]) -> (f64, Vec<f64>, f64) {
    let tensor = |name: &str| &written.tensors[name];
    let mean = hidden.iter().map(|x| f64::from(x * x)).sum::<f64>() / written.n_embd as f64;
    let scale = 1.0 / (mean + 1e-6).sqrt();
    let mut x: Vec<f64> = hidden.iter().zip(tensor("norm.weight")).map(|(x, w)| f64::from(x * w) * scale).collect();
    let gate = product(tensor("gate.weight"), &x)[0] + f64::from(tensor("gate.bias")[0]);
    if ty.has_mlp() {
        let (gate, up) = (product(tensor("ffn_gate.weight"), &x), product(tensor("ffn_up.weight"), &x));
        let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let down = product(tensor("ffn_down.weight"), &inner);
        x.iter_mut().zip(down).for_each(|(x, down)| *x += down);
    }
    let mut z = match ty.is_low_rank() {
        true => product(tensor("up.weight"), &product(tensor("down.weight"), &x)),
        false => product(tensor("head.weight"), &x),
    };
    z.iter_mut().zip(tensor("head.bias")).for_each(|(z, bias)| *z += f64::from(*bias));
    let logits = product(&written.output, &z);
    let mut best = logits.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    best.truncate(SHORTLIST);
    let sum: f64 = best.iter().map(|logit| (logit - best[0]).exp()).sum();
    let p: Vec<f64> = best.iter().map(|logit| (logit - best[0]).exp() / sum).collect();
    let value = match metric {
        Metric::TopProbability => p[0],
        Metric::Margin => p[0] - p[1],
        Metric::NegativeEntropy => 1.0 + p.iter().map(|p| p * p.ln()).sum::<f64>() / (SHORTLIST as f64).ln(),
        Metric::Classifier => {
            z.push((p[0] / (1.0 - p[0])).ln());
            product(tensor("classifier.weight"), &z)[0] + f64::from(tensor("classifier.bias")[0])
        }
    };
    (1.0 / (1.0 + (-gate).exp()), logits, value)
}

/// The metric over the whole shortlist, which is what is asked about last.
fn metric_of(head: &mut ExitHead, screen: &mut Screen) -> f32 {
    let asked = std::cell::Cell::new(f32::NAN);
    let sure = |metric| {
        asked.set(metric);
        true
    };
    assert!(head.evaluate(screen, Candidates::All, &sure).unwrap());
    asked.get()
}

#[test]
fn a_few_candidates_give_the_answer_of_all_and_are_all_where_that_is_asked_for() {
    for metric in [Metric::TopProbability, Metric::Margin, Metric::NegativeEntropy, Metric::Classifier] {
        let written = write(HeadType::Affine, metric);
        let mut screen = Screen::new(&written.heads, 1, None).unwrap();
        let mut head = ExitHead::new(&written.heads.exits().unwrap()[0], metric, &screen).unwrap();
        let mut n_few = 0;
        for seed in 0..40 {
            let hidden = numbers(written.n_embd, 2000 + seed, 7.0);
            head.guess(&hidden).unwrap();
            let value = metric_of(&mut head, &mut screen);
            // Log-odds may be negative.
            let around = |share: f32| value - (1.0 - share) * value.abs();
            for bar in [0.5, 0.98, 1.02, 1.5].map(around) {
                let sure = |metric| metric >= bar;
                let leaves = head.evaluate(&mut screen, Candidates::Enough, &sure).unwrap();
                assert_eq!(leaves, value >= bar, "{metric:?}: {value} against {bar}");
                n_few += usize::from(screen.candidates().len() < SHORTLIST);
            }
            let slack = screen.evaluate(&hidden, Candidates::All, 0.0).unwrap().unwrap();
            let best = |screen: &Screen| {
                screen.candidates().iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap().0
            };
            let token = best(&screen);
            let few = screen.evaluate(&hidden, Candidates::Enough, 0.0).unwrap().unwrap();
            assert!(few <= slack && best(&screen) == token, "{few} {slack}");
        }
        assert!(n_few > 0 || metric == Metric::NegativeEntropy, "{metric:?}: a few were never enough");
    }
}

#[test]
fn every_type_of_head_computes_its_mathematics() {
    let types = [
        (HeadType::Affine, Metric::TopProbability),
        (HeadType::LowRank, Metric::Margin),
        (HeadType::AffineMlp, Metric::NegativeEntropy),
        (HeadType::LowRankMlp, Metric::TopProbability),
        (HeadType::Affine, Metric::Classifier),
    ];
    for (ty, metric) in types {
        let written = write(ty, metric);
        let mut screen = Screen::new(&written.heads, 2, None).unwrap();
        let mut head = ExitHead::new(&written.heads.exits().unwrap()[0], metric, &screen).unwrap();
        assert_eq!(head.layer(), 2);
        for seed in 0..20 {
            let hidden = numbers(written.n_embd, 1000 + seed, 7.0);
            let (gate, logits, value) = reference(&written, ty, metric, &hidden);
            let found = head.guess(&hidden).unwrap();
            assert!((f64::from(found) - gate).abs() < 1e-5, "{ty:?}: gate {found}, not {gate}");
            let found = metric_of(&mut head, &mut screen);
            assert!((f64::from(found) - value).abs() < 1e-4, "{ty:?}: {metric:?} {found}, not {value}");
            assert_eq!(screen.candidates().len(), SHORTLIST);
            for &(token, logit) in screen.candidates() {
                let expected = logits[token.0 as usize];
                assert!((f64::from(logit) - expected).abs() < 1e-3, "{ty:?}: {logit}, not {expected}");
            }
            // The screen itself, in between, is not disturbed by the head and does not disturb it.
            screen.evaluate(&hidden, Candidates::All, f32::INFINITY).unwrap();
        }
        assert!(head.guess(&[0.0; 3]).is_err());
    }
}

#[test]
fn exits_choose_among_the_tokens_that_the_file_names() {
    let tokens: Vec<u32> = (0..48).map(|i| i * 5 + i % 3).collect();
    let (ty, metric) = (HeadType::Affine, Metric::TopProbability);
    let written = write_among(ty, metric, Some(&tokens));
    let mut screen = Screen::of_exits(&written.heads, 1, None).unwrap().unwrap();
    let mut head = ExitHead::new(&written.heads.exits().unwrap()[0], metric, &screen).unwrap();
    for seed in 0..20 {
        let hidden = numbers(written.n_embd, 3000 + seed, 7.0);
        let (_, logits, _) = reference(&written, ty, metric, &hidden);
        head.guess(&hidden).unwrap();
        let found = f64::from(metric_of(&mut head, &mut screen));
        let ids: Vec<u32> = screen.candidates().iter().map(|&(token, _)| token.0 as u32).collect();
        assert_eq!(ids, tokens);
        for &(token, logit) in screen.candidates() {
            assert!((f64::from(logit) - logits[token.0 as usize]).abs() < 1e-3);
        }
        let of_tokens: Vec<f64> = tokens.iter().map(|&id| logits[id as usize]).collect();
        let best = of_tokens.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let expected = 1.0 / of_tokens.iter().map(|logit| (logit - best).exp()).sum::<f64>();
        assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
    }
    // Where the file names none, there is no second screen.
    assert!(Screen::of_exits(&write(ty, metric).heads, 1, None).unwrap().is_none());
}

#[test]
fn at_full_depth_the_tokens_that_the_file_names_have_a_classifier_of_their_own() {
    let tokens: Vec<u32> = (0..48).map(|i| i * 5).collect();
    let written = write_among(HeadType::Affine, Metric::Classifier, Some(&tokens));
    let mut screen = Screen::of_exits(&written.heads, 1, None).unwrap().unwrap();
    for seed in 0..20 {
        let hidden = numbers(written.n_embd, 4000 + seed, 1.0);
        let mut state: Vec<f64> = hidden.iter().copied().map(f64::from).collect();
        let logits = product(&written.output, &state);
        let best = tokens.iter().map(|&id| logits[id as usize]).fold(f64::NEG_INFINITY, f64::max);
        let p = 1.0 / tokens.iter().map(|&id| (logits[id as usize] - best).exp()).sum::<f64>();
        state.push((p / (1.0 - p)).ln());
        let expected = product(&of_vocab(written.n_embd), &state)[0] + 0.3;
        let asked = std::cell::Cell::new(f32::NAN);
        let sure = |metric| {
            asked.set(metric);
            metric >= expected as f32 + 0.5
        };
        assert!(!screen.evaluate_metric(&hidden, Metric::Classifier, Candidates::All, &sure).unwrap());
        assert!((f64::from(asked.get()) - expected).abs() < 1e-3, "{}, not {expected}", asked.get());
    }
}

#[test]
fn a_state_that_is_no_number_is_not_sure_of_anything() {
    let written = write(HeadType::Affine, Metric::TopProbability);
    let mut screen = Screen::new(&written.heads, 1, None).unwrap();
    let mut head = ExitHead::new(&written.heads.exits().unwrap()[0], Metric::TopProbability, &screen).unwrap();
    head.guess(&vec![f32::NAN; written.n_embd]).unwrap();
    assert!(!head.evaluate(&mut screen, Candidates::All, &|_| true).unwrap());
    assert_eq!(screen.evaluate(&vec![f32::NAN; written.n_embd], Candidates::Enough, 0.0).unwrap(), None);
}

#[test]
fn a_classifier_that_is_none_is_refused() {
    let refused = |change: &dyn Fn(&mut [f32])| {
        let written = write_changed(HeadType::Affine, Metric::Classifier, None, change);
        written.heads.exits().unwrap_err().to_string()
    };
    for bad in [-0.1, f32::NAN, f32::INFINITY] {
        let error = refused(&|weights| *weights.last_mut().unwrap() = bad);
        assert!(error.contains("blk.2.exit_classifier.weight is no classifier"), "{error}");
    }
    assert!(refused(&|weights| weights[3] = f32::NAN).contains("finite"));
}
