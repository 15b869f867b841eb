//! What the gate can safely do on one model, found out by doing it.
//!
//! A few tokens are decoded plainly and through windows, and the logits compared. A window of one token runs the very
//! kernels of a plain decode of one token, so that it must give the same logits (no further off than two plain widths are
//! from each other). A window of several mixes two widths, and kernels round by width: with Q4_K weights a batch of 4
//! differs from single tokens by 1e-6 in a hidden state, which flips roundings of the next block's 8-bit activations and
//! ends as tenths of a logit. There only what no rounding explains counts. Architectures whose graphs carry something past
//! the resumed block (per-layer inputs), or whose memory cannot forget (recurrent states), fail here instead of giving
//! wrong tokens later.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::Tap;
use super::engine::{Gate, Outcome};
use crate::error::{Error, Result};
use crate::llama::Token;
use crate::llama::batch::Logits;

/// Tokens before the window, and in it. Together with the widths they need fewer than 64 positions.
const N_BEFORE: usize = 12;
const N_WINDOW: usize = 4;
/// The share of the logits' spread that roundings may move one of them by. A wrong resume gives unrelated logits, whose
/// largest difference is several times the spread.
const ROUNDING: f32 = 0.5;

/// What the gate can do on a model. `Display` says it in plain words.
#[derive(Debug, Clone, PartialEq)]
pub struct GateSupport {
    /// Decodes can stop at [`Tap::ResultNorm`], which skips the output matrix. Safe on every memory.
    pub stop_at_result_norm: bool,
    /// Why decodes cannot stop after a block and resume there; `None` if they can.
    pub no_resume: Option<String>,
    /// Largest difference of a logit between windows of one token and plain decodes of one token.
    pub window_difference: f32,
    /// Largest difference of a logit between plain decodes of width 1 and of width 4: what rounding alone does.
    pub width_difference: f32,
    /// Tokens that a batch may have so that its logits are those of single tokens, bit for bit; `usize::MAX` where that holds
    /// for any narrow batch. Where attention splits a single token's K/V between threads, that is only below that point.
    pub alike_width: usize,
    /// Why K and V of the layers that a token skipped cannot be written without those layers; `None` if they can.
    pub no_predict: Option<String>,
}

impl GateSupport {
    /// True if K and V of skipped layers can be predicted.
    pub fn can_predict(&self) -> bool {
        self.no_predict.is_none()
    }

    /// True if decodes can stop after blocks and resume there.
    pub fn can_resume(&self) -> bool {
        self.no_resume.is_none()
    }
}

impl std::fmt::Display for GateSupport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.no_resume {
            None if self.window_difference == 0.0 => {
                f.write_str("stop after any block and resume: yes, bit for bit")?
            }
            None => write!(
                f,
                "stop after any block and resume: yes (logits differ by at most {:.2e}; batches of 1 and of {N_WINDOW} \
                 differ by {:.2e})",
                self.window_difference, self.width_difference
            )?,
            Some(reason) => write!(f, "stop after any block and resume: resume is not supported here ({reason})")?,
        }
        let yes = if self.stop_at_result_norm { "yes" } else { "no" };
        write!(f, "\nstop before the output matrix: {yes}")?;
        match &self.no_predict {
            None => f.write_str("\npredict K and V of skipped layers: yes, stored bit for bit as the layers do"),
            Some(reason) => write!(f, "\npredict K and V of skipped layers: not supported here ({reason})"),
        }
    }
}

/// What has been found out so far. Each part costs decodes, and a session needs few of them.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    widths: Option<Widths>,
    /// For blocks that were tried: the largest difference of a window of one token, or why tokens cannot stop there and
    /// resume.
    resumes: BTreeMap<u32, std::result::Result<f32, String>>,
}

#[derive(Debug, Clone, Copy)]
struct Widths {
    stop_at_result_norm: bool,
    difference: f32,
    alike: usize,
}

impl Findings {
    /// Largest difference of a logit between plain decodes of width 1 and of width 4; `None` before anything was tried.
    pub(crate) fn width_difference(&self) -> Option<f32> {
        self.widths.map(|widths| widths.difference)
    }

    /// [`GateSupport::alike_width`]; `None` before anything was tried.
    pub(crate) fn alike_width(&self) -> Option<usize> {
        self.widths.map(|widths| widths.alike)
    }

    /// Why tokens cannot stop after each of `layers` and resume there; the inner `None` if they can, the outer one where
    /// that was not tried yet.
    pub(crate) fn no_resume(&self, layers: &[u32]) -> Option<Option<String>> {
        let found = layers.iter().map(|layer| self.resumes.get(layer).map(|found| found.as_ref().err().cloned()));
        found.collect::<Option<Vec<_>>>().map(|reasons| reasons.into_iter().flatten().next())
    }

    /// All of it, where [`Findings::layers`] were tried, with what the caller knows of the prediction of K and V.
    pub(crate) fn support(&self, n_layer: u32, no_predict: Option<String>) -> Option<GateSupport> {
        let widths = self.widths?;
        let no_resume = self.no_resume(&Self::layers(n_layer))?;
        let differences = self.resumes.values().filter_map(|found| found.as_ref().ok());
        Some(GateSupport {
            stop_at_result_norm: widths.stop_at_result_norm,
            no_resume,
            window_difference: differences.copied().fold(0.0, f32::max),
            width_difference: widths.difference,
            alike_width: widths.alike,
            no_predict,
        })
    }

    /// The blocks that speak for all `n_layer`: the lowest and the highest that leave something to resume, and one between
    /// them.
    pub(crate) fn layers(n_layer: u32) -> Vec<u32> {
        let mut layers = vec![0, (n_layer / 2).min(n_layer.saturating_sub(2)), n_layer.saturating_sub(2)];
        layers.dedup();
        layers
    }

    /// Finds out what is not known yet of the widths and of `layers`, with `gate`, which is empty. Its cache is used and left
    /// empty.
    ///
    /// # Errors
    /// Only if plain decoding fails.
    pub(crate) fn extend(&mut self, gate: &mut Gate, layers: &[u32], n_layer: u32, n_vocab: usize) -> Result<()> {
        let mut missing = layers.to_vec();
        missing.retain(|layer| !self.resumes.contains_key(layer));
        let tokens: Vec<Token> = probe_tokens(n_vocab);
        let (before, window) = tokens.split_at(N_BEFORE);

        restart(gate, before)?;
        gate.decode(window, Logits::All)?;
        let wide = all_logits(gate);

        restart(gate, before)?;
        let mut narrow = Vec::new();
        for &token in window {
            gate.decode(&[token], Logits::All)?;
            narrow.extend(all_logits(gate));
        }
        let difference = largest_difference(&wide, &narrow);
        if self.widths.is_none() {
            let stop_at_result_norm = stops_at_result_norm(gate, before, window, &narrow, difference)?;
            let alike = alike_width(gate, before, window, &narrow, difference)?;
            self.widths = Some(Widths { stop_at_result_norm, difference, alike });
        }
        for layer in missing {
            let found = if n_layer < 2 {
                Err("the model has a single block".to_owned())
            } else {
                resumes(gate, (before, window), (&wide, &narrow), layer, difference)
            };
            self.resumes.insert(layer, found);
        }
        gate.clear();
        Ok(())
    }
}

/// Stops tokens after `layer` and resumes them, one by one and together. The largest difference of a logit for those that
/// resumed alone; why that is no resume otherwise.
fn resumes(
    gate: &mut Gate,
    (before, window): (&[Token], &[Token]),
    (wide, narrow): (&[f32], &[f32]),
    layer: u32,
    width_difference: f32,
) -> std::result::Result<f32, String> {
    let mut windowed = |width| windowed_logits(gate, before, window, layer, width).map_err(|error| error.to_string());
    let single = largest_difference(narrow, &windowed(1)?);
    let batch = largest_difference(wide, &windowed(N_WINDOW)?);
    let rounding = width_difference.max(ROUNDING * spread(narrow));
    // Negated, so that a NaN fails.
    if !(single <= width_difference && batch <= rounding) {
        return Err(format!(
            "after block {layer} the logits differ by {single:.2e} for one token and by {batch:.2e} for {N_WINDOW}; plain \
             decodes of these widths differ by {width_difference:.2e}"
        ));
    }
    Ok(single)
}

/// Leaves `before` alone in the cache. What is there already is kept where the memory can forget the rest.
fn restart(gate: &mut Gate, before: &[Token]) -> Result<()> {
    if gate.position() < before.len() || !gate.truncate(before.len(), 0) {
        gate.clear();
        gate.decode(before, Logits::Last)?;
    }
    Ok(())
}

/// Ids spread over the vocabulary; what they mean is of no account.
fn probe_tokens(n_vocab: usize) -> Vec<Token> {
    (0..N_BEFORE + N_WINDOW).map(|i| Token(((i * 7919 + 11) % n_vocab.max(1)) as i32)).collect()
}

fn all_logits(gate: &mut Gate) -> Vec<f32> {
    let mut all = Vec::new();
    let mut index = 0;
    while let Some(logits) = gate.logits(index) {
        all.extend_from_slice(logits);
        index += 1;
    }
    all
}

/// Each token of the window stops after `layer`, and every `width` of them resume in one batch.
fn windowed_logits(gate: &mut Gate, before: &[Token], window: &[Token], layer: u32, width: usize) -> Result<Vec<f32>> {
    restart(gate, before)?;
    let redone = gate.n_redone();
    let mut logits = Vec::new();
    for chunk in window.chunks(width) {
        for &token in chunk {
            gate.decode_tapped(&[token], &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Break(()))?;
        }
        gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(()))?;
        logits.extend(all_logits(gate));
    }
    if gate.n_redone() != redone {
        return Err(Error::Gate { found: "a cache that hands out other cells than it took back".to_owned() });
    }
    Ok(logits)
}

/// The widest batch of the first tokens of `window` whose logits are those of single tokens, `narrow`. K-quants' repacked
/// kernels take four tokens together and fewer one by one (`forward_mul_mat_one_chunk` in ggml's `repack.cpp`).
fn alike_width(
    gate: &mut Gate,
    before: &[Token],
    window: &[Token],
    narrow: &[f32],
    width_difference: f32,
) -> Result<usize> {
    if width_difference == 0.0 {
        return Ok(usize::MAX);
    }
    for width in (2..window.len()).rev() {
        restart(gate, before)?;
        gate.decode(&window[..width], Logits::All)?;
        let logits = all_logits(gate);
        if narrow.get(..logits.len()).is_some_and(|narrow| largest_difference(narrow, &logits) == 0.0) {
            return Ok(width);
        }
    }
    Ok(1)
}

/// Stopping at the final norm must leave a memory that decodes on as if nothing had been stopped.
fn stops_at_result_norm(
    gate: &mut Gate,
    before: &[Token],
    window: &[Token],
    narrow: &[f32],
    width_difference: f32,
) -> Result<bool> {
    let Some((last, stopped)) = window.split_last() else { return Ok(false) };
    restart(gate, before)?;
    for &token in stopped {
        let outcome = gate.decode_tapped(&[token], &[Tap::ResultNorm], &mut |_, _| ControlFlow::Break(()));
        if !matches!(outcome, Ok(Outcome::Stopped(Tap::ResultNorm))) {
            return Ok(false);
        }
    }
    gate.decode(&[*last], Logits::All)?;
    let logits = all_logits(gate);
    let last_row = &narrow[narrow.len() - logits.len().min(narrow.len())..];
    Ok(largest_difference(last_row, &logits) <= width_difference)
}

/// The standard deviation of the values.
fn spread(values: &[f32]) -> f32 {
    let n = values.len().max(1) as f32;
    let mean = values.iter().sum::<f32>() / n;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / n).sqrt()
}

/// NaN anywhere counts as an infinite difference.
fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() || a.is_empty() {
        return f32::INFINITY;
    }
    let mut largest = 0f32;
    for (a, b) in a.iter().zip(b) {
        let difference = (a - b).abs();
        if difference.is_nan() {
            return f32::INFINITY;
        }
        largest = largest.max(difference);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_never_within_the_scale() {
        assert_eq!(largest_difference(&[1.0, f32::NAN], &[1.0, f32::NAN]), f32::INFINITY);
        assert_eq!(largest_difference(&[1.0], &[1.0, 2.0]), f32::INFINITY);
        assert_eq!(largest_difference(&[1.0, 2.0], &[1.0, 2.5]), 0.5);
    }

    #[test]
    fn the_answer_names_what_is_not_supported() {
        let support = GateSupport {
            stop_at_result_norm: true,
            no_resume: Some("a recurrent state cannot forget".to_owned()),
            window_difference: 0.0,
            width_difference: 0.0,
            alike_width: usize::MAX,
            no_predict: Some("no K of its own".to_owned()),
        };
        let text = support.to_string();
        assert!(text.contains("predict K and V of skipped layers: not supported here (no K of its own)"), "{text}");
        assert!(text.contains("resume is not supported here (a recurrent state cannot forget)"), "{text}");
    }
}
