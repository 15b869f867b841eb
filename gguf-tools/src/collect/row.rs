//! One position's logits, prepared so that what a label and a sampler want of them costs little.
//!
//! A vocabulary has up to a few hundred thousand tokens, nearly all of them out of the question. The largest logit of
//! each block is found first; after that only the few blocks that matter are looked into. The sum of exponentials needs
//! every token and uses a polynomial instead of the library's function, in lanes that compilers turn into vectors.

use std::cmp::Ordering;

use super::label::TOP_K;

/// Logits that share one maximum.
const BLOCK: usize = 64;
/// Partial sums side by side.
const LANES: usize = 16;
/// Below this an exponential is too small to change a sum of which 1 is a part.
const NEGLIGIBLE: f32 = -60.0;

/// Logits, `[n_vocab]`, with the largest of each block.
#[derive(Debug)]
pub struct Row<'a> {
    logits: &'a [f32],
    largest: Vec<f32>,
}

impl<'a> Row<'a> {
    /// Looks through `logits` once.
    pub fn new(logits: &'a [f32]) -> Row<'a> {
        Row { logits, largest: logits.chunks(BLOCK).map(largest).collect() }
    }

    /// The best token and its logit; of equals the lowest id. 0 for no logits at all.
    pub fn argmax(&self) -> (u32, f32) {
        let highest = largest(&self.largest);
        self.at_least(highest).next().unwrap_or((0, 0.0))
    }

    /// The [`TOP_K`] best ids and logits, best first, of equals the lowest id.
    pub fn best(&self) -> Vec<(u32, f32)> {
        // As many blocks reach the least of their `TOP_K` largest maxima, so that it bounds the tokens from below.
        let mut order: Vec<f32> = self.largest.clone();
        let least = if order.len() > TOP_K {
            *order.select_nth_unstable_by(TOP_K - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        let mut best: Vec<(u32, f32)> = self.at_least(least).collect();
        // No NaN passes `at_least`, and 0 must tie with -0.
        best.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
        best.truncate(TOP_K);
        best
    }

    /// The tokens whose logits are at least `least`, by ascending id.
    pub fn at_least(&self, least: f32) -> impl Iterator<Item = (u32, f32)> + '_ {
        let blocks = self.largest.iter().zip(self.logits.chunks(BLOCK)).enumerate();
        blocks.filter(move |(_, (largest, _))| **largest >= least).flat_map(move |(block, (_, logits))| {
            let ids = (block * BLOCK) as u32..;
            ids.zip(logits.iter().copied()).filter(move |(_, logit)| *logit >= least)
        })
    }

    /// The sum of `exp(logit - highest)` over all tokens; `highest` is their largest.
    pub fn exp_sum(&self, highest: f32) -> f64 {
        let blocks = self.largest.iter().zip(self.logits.chunks(BLOCK));
        let heavy = blocks.filter(|(largest, _)| **largest - highest >= NEGLIGIBLE);
        heavy.map(|(_, logits)| f64::from(exp_sum(logits, highest))).sum()
    }
}

/// The largest value; negative infinity of none, and a NaN is passed over.
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, value| if *value > largest { *value } else { largest })
}

/// The sum of `exp(value - highest)` of one block.
fn exp_sum(values: &[f32], highest: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += exp(value - highest);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|value| exp(value - highest)).sum::<f32>()
}

/// `e^x` for `x <= 0` to a relative 1e-6, and next to nothing below [`NEGLIGIBLE`].
///
/// `x = n ln 2 + r` with a whole `n` and `|r| <= ln 2 / 2`; `e^r` is its series to the sixth power, and `2^n` the bits of
/// a float.
fn exp(x: f32) -> f32 {
    // Adding this rounds to whole numbers and leaves them in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > NEGLIGIBLE { x } else { NEGLIGIBLE };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the product with `n` is exact in the first.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r / 720.0)))));
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    series * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(n: u32) -> Vec<f32> {
        (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0).collect()
    }

    #[test]
    fn the_best_are_those_of_a_sort() {
        for n in [0, 1, 31, 63, 64, 65, 2048, 2100, 50_000] {
            let logits = logits(n);
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(TOP_K);
            let row = Row::new(&logits);
            assert_eq!(row.best(), sorted, "{n}");
            assert_eq!(row.argmax(), sorted.first().copied().unwrap_or((0, 0.0)), "{n}");
        }
    }

    #[test]
    fn ties_and_numbers_that_are_none_do_not_confuse_it() {
        let mut logits = vec![-1.0; 5000];
        (logits[4000], logits[300], logits[299]) = (2.0, 2.0, f32::NAN);
        let row = Row::new(&logits);
        assert_eq!(row.argmax(), (300, 2.0));
        let best = row.best();
        assert_eq!((best[0], best[1], best[2]), ((300, 2.0), (4000, 2.0), (0, -1.0)));
    }

    #[test]
    fn exponentials_are_those_of_the_library() {
        for i in 0..6000 {
            let x = -0.01 * i as f32;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 1e-6, "{x}: {found} for {expected}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-25 && exp(0.0) == 1.0);
        let logits = logits(50_000);
        let highest = Row::new(&logits).argmax().1;
        let expected: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        assert!((Row::new(&logits).exp_sum(highest) / expected - 1.0).abs() < 1e-6);
    }
}
