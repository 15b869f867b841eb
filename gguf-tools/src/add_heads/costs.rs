//! What the parts of a token cost on this machine: layers and output matrix by a short decode, the rest from their bytes.
//!
//! Blocks, output matrix and catching up are timed through the runtime's own gate, in the middle of a text of some dozens of
//! tokens. Screen, heads and K/V maps read known bytes, at the speed at which the output matrix was read; what the
//! screen costs beyond that (its kernel, the choice of candidates, the gathering of their rows) is taken in the proportions
//! that `docs/performance.md` measured. These figures choose layers and gates; they promise nothing.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use offramp::gate::{Gate, Outcome, Tap};
use offramp::{Model, Session, SessionParams, Token};

use super::vocab::ExitVocab;
use crate::screen::Screen;
use crate::screen::output_matrix::OutputMatrix;
use crate::train::cascade::Costs;
use crate::train::head::Head;

/// The tokens of the text that is decoded after.
const N_TEXT: usize = 48;
/// How often each part is timed, after a first time that does not count.
const N_TIMES: usize = 12;
/// Tokens that are caught up at once.
const N_PENDING: usize = 4;
/// How much slower the screen's 4-bit factor is read than the output matrix.
const FACTOR_SLOWNESS: f64 = 1.7;
/// Choosing the candidates, in milliseconds a token of the vocabulary.
const SELECTION: f64 = 2.5e-6;
/// Gathering and rescoring, in milliseconds a candidate.
const RESCORING: f64 = 1.5e-4;

/// What was timed, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// One block.
    pub layer: f64,
    /// The output matrix.
    pub output: f64,
    /// One block for one of several tokens that are caught up together; `None` where the model cannot resume.
    pub caught_up: Option<f64>,
}

impl Timing {
    /// Times `model`, on `threads` threads or on the physical cores. Takes a second or a few.
    ///
    /// # Errors
    ///
    /// A model that cannot be decoded or watched.
    pub fn measure(model: &Model, threads: Option<u32>) -> anyhow::Result<Timing> {
        let mut params = SessionParams::default();
        params.gate = true;
        params.n_threads = threads;
        params.n_ctx = 256.min(model.info().n_ctx_train);
        let mut session = Session::new(model, &params)?;
        let n_vocab = model.info().n_vocab;
        let start = model.vocab().bos().or(model.vocab().eos()).unwrap_or(Token(0));
        let text: Vec<Token> = [start].into_iter().chain((1..N_TEXT as u32).map(|i| ordinary(i, n_vocab))).collect();
        session.set_prompt(&text, &mut |_| {})?;
        let n_swa = model.info().n_swa as usize;
        let can_resume = model.gate_support()?.no_resume.is_none();
        let n_layer = model.info().n_layer;
        let gate = session.gate();
        let lower = n_layer / 2;
        let stop = |gate: &mut Gate, n: usize, tap: Option<Tap>| (0..n).try_for_each(|_| stop_at(gate, tap));
        let mut parts: Vec<Box<Part<'_>>> =
            vec![Box::new(|gate| stop(gate, 1, None)), Box::new(|gate| stop(gate, 1, Some(Tap::ResultNorm)))];
        if can_resume && n_layer > 2 {
            parts.push(Box::new(|gate| stop(gate, N_PENDING, Some(Tap::Layer(lower)))));
            parts.push(Box::new(|gate| {
                stop(gate, N_PENDING, Some(Tap::Layer(lower)))?;
                gate.catch_up(&[Tap::ResultNorm], &mut |_, _| ControlFlow::Break(()))?;
                Ok(())
            }));
        }
        let times = timed(gate, n_swa, &mut parts)?;
        let [whole, layers, caught_up @ ..] = times.as_slice() else { bail!("nothing was timed") };
        let layer = layers.as_secs_f64() * 1e3 / f64::from(n_layer.max(1));
        let caught_up = match caught_up {
            [below, both] => {
                let above = both.saturating_sub(*below).as_secs_f64() * 1e3;
                Some(above / f64::from(N_PENDING as u32 * (n_layer - lower - 1)))
            }
            _ => None,
        };
        let output = whole.saturating_sub(*layers).as_secs_f64() * 1e3;
        ensure!(layer > 0.0, "the model's blocks could not be timed");
        // On a busy machine the difference of two times may vanish.
        Ok(Timing { layer, output: output.max(layer * 1e-2), caught_up })
    }

    /// What a cascade of `heads` with `screen` costs. Keys and values of a skipped block are predicted by maps of so many
    /// bytes, and computed later without maps.
    pub fn costs(
        &self,
        matrix: &OutputMatrix<'_>,
        screen: &Screen,
        count: usize,
        vocab: Option<&ExitVocab>,
        heads: &[Head],
        map_bytes: Option<u64>,
    ) -> Costs {
        let whole = self.check(matrix, screen, matrix.n_vocab(), count);
        Costs {
            layer: self.layer,
            output: self.output,
            screen: whole,
            check: vocab.map_or(whole, |vocab| self.check(matrix, screen, vocab.tokens.len(), vocab.shortlist)),
            heads: heads.iter().map(|head| head.bytes() as f64 * self.per_byte(matrix)).collect(),
            skipped: self.skipped(matrix, map_bytes),
        }
    }

    /// Scoring `n_tokens` of the vocabulary by `screen`, and rescoring `count` of them.
    pub fn check(&self, matrix: &OutputMatrix<'_>, screen: &Screen, n_tokens: usize, count: usize) -> f64 {
        let rows = screen.output.len() as f64 * n_tokens as f64 / matrix.n_vocab().max(1) as f64;
        let read = (screen.basis_bytes() as f64 + rows) * self.per_byte(matrix) * FACTOR_SLOWNESS;
        read + n_tokens as f64 * SELECTION + count as f64 * RESCORING
    }

    /// Keys and values of a skipped block, as [`Timing::costs`] says.
    pub fn skipped(&self, matrix: &OutputMatrix<'_>, map_bytes: Option<u64>) -> f64 {
        match map_bytes {
            Some(bytes) => bytes as f64 * self.per_byte(matrix),
            None => self.caught_up.unwrap_or(self.layer),
        }
    }

    fn per_byte(&self, matrix: &OutputMatrix<'_>) -> f64 {
        self.output / matrix.bytes().max(1) as f64
    }
}

/// Some token of the vocabulary that is spread over it.
fn ordinary(i: u32, n_vocab: u32) -> Token {
    let id = (i.wrapping_mul(2_654_435_761) >> 8) % n_vocab.max(1);
    Token(i32::try_from(id).unwrap_or(0))
}

/// Decodes one token, up to a tap or whole.
fn stop_at(gate: &mut Gate, tap: Option<Tap>) -> anyhow::Result<()> {
    let token = Token(1);
    let taps: Vec<Tap> = tap.into_iter().collect();
    let outcome = gate.decode_tapped(&[token], &taps, &mut |_, _| ControlFlow::Break(()))?;
    ensure!(outcome == tap.map_or(Outcome::Complete, Outcome::Stopped), "a decode did not stop where it was told to");
    Ok(())
}

/// Something that is timed.
type Part<'a> = dyn FnMut(&mut Gate) -> anyhow::Result<()> + 'a;

/// The least time of each part, each of which is taken back. They take turns, so that what else the machine does hits
/// all of them; the least counts, because that can only add.
fn timed(gate: &mut Gate, n_swa: usize, parts: &mut [Box<Part<'_>>]) -> anyhow::Result<Vec<Duration>> {
    let position = gate.position();
    let mut least = vec![Duration::MAX; parts.len()];
    for i in 0..=N_TIMES {
        for (least, part) in least.iter_mut().zip(parts.iter_mut()) {
            let start = Instant::now();
            part(gate)?;
            if i > 0 {
                *least = start.elapsed().min(*least);
            }
            ensure!(gate.truncate(position, n_swa), "the model's memory cannot forget its last tokens");
        }
    }
    Ok(least)
}
