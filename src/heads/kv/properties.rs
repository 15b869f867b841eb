//! Whatever is done to a gate, in whatever order, its cache holds what the same text gives when every token is decoded or
//! predicted once, in order: no cell is stale or unwritten.
//!
//! Random operations on tiny models with Q4_0 weights and one thread, where widths do not change what llama.cpp computes.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use offramp_fixtures::{Arch, TinyModel, WeightType};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::KvWriter;
use crate::gate::{Gate, Outcome, Tap};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::{CacheType, Error, Model, ModelParams, SessionParams};

/// Blocks that tokens stop after. Below the first one, this Gemma has stored to both of its caches.
const EXITS: [u32; 3] = [2, 3, 4];
/// More positions than the sliding window sees, fewer than either cache has cells: a token's cell is its position.
const MAX_POSITIONS: usize = 100;

#[derive(Debug, Clone)]
enum Op {
    /// All layers for some tokens.
    Decode {
        tokens: Vec<i32>,
    },
    /// Tokens stop after the exit of this index, or the highest that the pending ones allow.
    Stop {
        tokens: Vec<i32>,
        exit: usize,
    },
    /// K and V of the pending tokens are drawn from the seed.
    Predict {
        seed: u64,
    },
    CatchUp,
    /// Leaves this share of the text.
    Truncate {
        share: f64,
    },
    Clear,
    /// The next operation, cancelled before it begins.
    Cancelled(Box<Op>),
}

fn op() -> impl Strategy<Value = Op> {
    let tokens = |n| prop::collection::vec(0i32..256, 1..=n);
    let plain = prop_oneof![
        4 => tokens(6).prop_map(|tokens| Op::Decode { tokens }),
        8 => (tokens(3), 0..EXITS.len()).prop_map(|(tokens, exit)| Op::Stop { tokens, exit }),
        6 => any::<u64>().prop_map(|seed| Op::Predict { seed }),
        3 => Just(Op::CatchUp),
        2 => (0.0..1.0f64).prop_map(|share| Op::Truncate { share }),
        1 => Just(Op::Clear),
    ];
    plain.prop_flat_map(|op| prop_oneof![12 => Just(op.clone()), 1 => Just(Op::Cancelled(Box::new(op)))])
}

/// A token of the text, and where K and V of the layers above its exit came from if it was predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    token: Token,
    predicted: Option<(u32, u64)>,
}

/// A gate, the writers of its exits, and the text that its cache should hold.
struct Subject {
    gate: Gate,
    writers: Vec<KvWriter>,
    widths: Vec<(usize, usize)>,
    text: Vec<Entry>,
    /// The exit of each pending token, the last ones of the text.
    pending: Vec<u32>,
}

impl Subject {
    fn new(model: &Model) -> Self {
        let params = SessionParams {
            n_ctx: 256,
            n_ubatch: 32,
            n_threads: Some(1),
            type_k: CacheType::F32,
            type_v: CacheType::F32,
            gate: true,
            ..SessionParams::default()
        };
        let mut gate = model.new_gate(&params).unwrap();
        let writers = EXITS.map(|exit| KvWriter::given(exit, &mut gate).unwrap()).into();
        let layout = gate.kv_layout().unwrap();
        let shapes = (0..layout.n_layer()).map(|il| layout.shape(il).unwrap());
        let widths = shapes.map(|shape| (shape.n_embd_k_gqa, shape.n_embd_v_gqa)).collect();
        Self { gate, writers, widths, text: Vec::new(), pending: Vec::new() }
    }

    fn n_layer(&self) -> u32 {
        self.widths.len() as u32
    }

    /// V of each layer above `exit`, drawn from `seed`, after K of each.
    fn draw(&self, exit: u32, seed: u64) -> Vec<f32> {
        let skipped = &self.widths[exit as usize + 1..];
        let n: usize = skipped.iter().map(|(k, v)| k + v).sum();
        let mut state = seed | 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn predict(&mut self, exit: u32, seed: u64) -> crate::Result<()> {
        let values = self.draw(exit, seed);
        let writer = EXITS.iter().position(|&layer| layer == exit).unwrap();
        self.writers[writer].set_given(&values).unwrap();
        self.gate.predict(&mut self.writers[writer])
    }

    /// The text and the pending tokens after an operation that failed or was cut short.
    fn cut(&mut self) {
        self.text.truncate(self.gate.position());
        self.pending.truncate(self.gate.n_pending());
    }

    fn push(&mut self, tokens: &[i32]) -> Vec<Token> {
        let tokens: Vec<Token> = tokens.iter().map(|&token| Token(token)).collect();
        self.text.extend(tokens.iter().map(|&token| Entry { token, predicted: None }));
        tokens
    }

    fn apply(&mut self, op: &Op, cancelled: bool) {
        let check = |result: crate::Result<()>| match result {
            Err(Error::Cancelled) => assert!(cancelled),
            result => result.unwrap(),
        };
        match op {
            Op::Decode { tokens } | Op::Stop { tokens, .. } if self.text.len() + tokens.len() > MAX_POSITIONS => {}
            Op::Decode { tokens } => {
                let tokens = self.push(tokens);
                check(self.gate.decode(&tokens, Logits::Last));
                self.pending.clear();
                self.cut();
            }
            Op::Stop { tokens, exit } => {
                let ceiling = self.pending.last().copied().unwrap_or(u32::MAX);
                let taps: Vec<Tap> =
                    EXITS[..=*exit].iter().filter(|&&il| il <= ceiling).map(|&il| Tap::Layer(il)).collect();
                let last = *taps.last().unwrap();
                let tokens = self.push(tokens);
                let mut stop =
                    |tap, _: &[f32]| if tap == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
                let result = self.gate.decode_tapped(&tokens, &taps, &mut stop);
                if let Ok(outcome) = &result {
                    assert_eq!(*outcome, Outcome::Stopped(last));
                    let Tap::Layer(layer) = last else { unreachable!() };
                    self.pending.extend(tokens.iter().map(|_| layer));
                }
                check(result.map(drop));
                self.cut();
            }
            Op::Predict { seed } => {
                let Some(&exit) = self.pending.first() else { return };
                let result = self.predict(exit, *seed);
                if self.pending.iter().any(|&other| other != exit) {
                    // Nothing that was written counts: the tokens are still pending.
                    assert!(matches!(result, Err(Error::InvalidValue { .. })), "{result:?}");
                    assert_eq!(self.gate.n_pending(), self.pending.len());
                } else {
                    result.unwrap();
                    let n = self.pending.len();
                    let first = self.text.len() - n;
                    self.text[first..].iter_mut().for_each(|entry| entry.predicted = Some((exit, *seed)));
                    self.pending.clear();
                }
            }
            Op::CatchUp => {
                check(self.gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(())).map(drop));
                self.pending.clear();
                self.cut();
            }
            Op::Truncate { share } => {
                let position = (self.text.len() as f64 * share) as usize;
                if !self.gate.truncate(position, offramp_fixtures::SLIDING_WINDOW as usize) {
                    self.gate.clear();
                }
                self.cut();
            }
            Op::Clear => {
                self.gate.clear();
                self.cut();
            }
            Op::Cancelled(op) => {
                self.gate.cancel_flag().store(true, Ordering::Relaxed);
                self.apply(op, true);
                self.gate.cancel_flag().store(false, Ordering::Relaxed);
            }
        }
        assert_eq!(
            (self.gate.position(), self.gate.n_pending()),
            (self.text.len(), self.pending.len()),
            "after {op:?}"
        );
    }

    /// The cells of a layer, K and V of each position.
    fn cells(&mut self, il: u32) -> Vec<[Vec<u8>; 2]> {
        (0..self.text.len()).map(|cell| self.gate.stored(il, cell).unwrap()).collect()
    }

    /// Holds what `text` gives, every token decoded or predicted once, in order.
    fn replay(&mut self, text: &[Entry]) {
        self.gate.clear();
        self.text = text.to_vec();
        for entry in text {
            match entry.predicted {
                None => self.gate.decode(&[entry.token], Logits::Last).unwrap(),
                Some((exit, seed)) => {
                    let mut stop = |_, _: &[f32]| ControlFlow::Break(());
                    self.gate.decode_tapped(&[entry.token], &[Tap::Layer(exit)], &mut stop).unwrap();
                    self.predict(exit, seed).unwrap();
                }
            }
        }
    }

    fn logits_after(&mut self, token: Token) -> Vec<f32> {
        self.gate.decode(&[token], Logits::Last).unwrap();
        self.gate.logits(0).unwrap().to_vec()
    }
}

fn holds_what_its_text_gives(subject: &mut Subject, reference: &mut Subject, plain: &mut Subject) {
    let text = subject.text.clone();
    reference.replay(&text);
    let plain_text: Vec<Entry> = text.iter().map(|entry| Entry { predicted: None, ..*entry }).collect();
    plain.replay(&plain_text);
    let lowest = text.iter().filter_map(|entry| Some(entry.predicted?.0)).min();
    let first_pending = text.len() - subject.pending.len();
    for il in 0..subject.n_layer() {
        let (found, expected, plain) = (subject.cells(il), reference.cells(il), plain.cells(il));
        for (i, entry) in text.iter().enumerate() {
            if i >= first_pending && il > subject.pending[i - first_pending] {
                // Nothing has been stored there yet.
                continue;
            }
            assert!(found[i] == expected[i], "layer {il}, position {i} of {text:?}");
            match entry.predicted {
                // V is stored as it was given, layer after layer behind all of K.
                Some((exit, seed)) if il > exit => {
                    let skipped = &subject.widths[exit as usize + 1..];
                    let above = (il - exit - 1) as usize;
                    let k: usize = skipped.iter().map(|(k, _)| k).sum();
                    let first = k + skipped[..above].iter().map(|(_, v)| v).sum::<usize>();
                    let given = &subject.draw(exit, seed)[first..first + skipped[above].1];
                    let given: Vec<u8> = given.iter().flat_map(|value| value.to_ne_bytes()).collect();
                    assert!(found[i][1] == given, "V of layer {il}, position {i}");
                }
                // What no predicted K or V can have reached is what plain decoding stores.
                _ if lowest.is_none_or(|lowest| il <= lowest) => assert!(found[i] == plain[i], "layer {il}, {i}"),
                _ => {}
            }
        }
    }
    let token = Token(77);
    assert_eq!(subject.logits_after(token), reference.logits_after(token), "{text:?}");
    // That token has taken the pending ones along.
    for il in 0..subject.n_layer() {
        assert!(subject.cells(il) == reference.cells(il), "layer {il} of {text:?}");
    }
}

fn check(arch: Arch, cases: u32) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(arch).seed(11).weights(WeightType::Q4_0).write_to(&path).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let subjects = RefCell::new([(); 3].map(|()| Subject::new(&model)));
    let config = ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Default::default() };
    proptest!(config, |(ops in prop::collection::vec(op(), 1..24))| {
        let [subject, reference, plain] = &mut *subjects.borrow_mut();
        subject.apply(&Op::Clear, false);
        for op in &ops {
            subject.apply(op, false);
        }
        holds_what_its_text_gives(subject, reference, plain);
    });
}

#[test]
fn every_cell_is_what_the_text_gives_with_attention_to_all_positions() {
    check(Arch::Llama, 96);
}

#[test]
fn every_cell_is_what_the_text_gives_with_a_sliding_window() {
    check(Arch::Gemma3, 96);
}
