//! Which sequences serve which purpose: divided once, at random by the seed, so that nothing is judged by what it was made from.

use std::ops::Range;

use anyhow::bail;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::collect::store::Reader;

/// The tokens that are enough to hold out, to choose by, or to judge by: what there is beyond is worth more to what is fitted.
const ENOUGH: u64 = 12_000;
/// The fewest sequences that can be divided.
const LEAST_SEQUENCES: usize = 20;

/// The positions of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What screen, heads and K/V maps are fitted to: half of all, and what the other parts do not need.
    pub fit: Vec<usize>,
    /// What stops training, chooses penalties and teaches the gates: a tenth, and no more than is enough.
    pub held_out: Vec<usize>,
    /// What maps metrics to confidences and chooses sizes, layers and gates: three twentieths, and no more than is enough.
    pub choose: Vec<usize>,
    /// What judges all of it: a quarter, and no more than is enough.
    pub judge: Vec<usize>,
}

impl Split {
    /// # Errors
    ///
    /// Fewer sequences than can be divided.
    pub fn of(reader: &Reader, seed: u64) -> anyhow::Result<Split> {
        let n = reader.sequences().len();
        if n < LEAST_SEQUENCES {
            bail!("{n} answers were collected; at least {LEAST_SEQUENCES} are needed: raise --tokens or --time-limit");
        }
        Ok(Split::divide(reader.sequences(), seed))
    }

    /// Divides sequences of these tokens.
    fn divide(sequences: &[Range<u64>], seed: u64) -> Split {
        let n = sequences.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let judge = order.split_off(n * 3 / 4);
        let choose = order.split_off(n * 3 / 5);
        let held_out = order.split_off(n / 2);
        let mut fit = order;
        let mut enough_of = |part: Vec<usize>| {
            let few = first_of(sequences, &part, ENOUGH);
            fit.extend(&part[few.len()..]);
            few
        };
        let [held_out, choose, judge] = [enough_of(held_out), enough_of(choose), enough_of(judge)];
        Split { fit, held_out, choose, judge }
    }
}

/// The tokens of sequences.
pub fn count(reader: &Reader, sequences: &[usize]) -> u64 {
    sequences.iter().map(|i| length(&reader.sequences()[*i])).sum()
}

/// The first of `sequences` that hold `tokens`, or all.
pub fn first(reader: &Reader, sequences: &[usize], tokens: u64) -> Vec<usize> {
    first_of(reader.sequences(), sequences, tokens)
}

fn first_of(all: &[Range<u64>], sequences: &[usize], tokens: u64) -> Vec<usize> {
    let mut left = tokens;
    let few = sequences.iter().copied().take_while(|i| {
        let is_wanted = left > 0;
        left = left.saturating_sub(length(&all[*i]));
        is_wanted
    });
    few.collect()
}

fn length(tokens: &Range<u64>) -> u64 {
    tokens.end - tokens.start
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n_sequences: u64, split: impl Fn(&Split) -> &Vec<usize>) -> u64 {
        let sequences: Vec<Range<u64>> = (0..n_sequences).map(|i| i * 50..(i + 1) * 50).collect();
        let made = Split::divide(&sequences, 1);
        let mut all = [&made.fit[..], &made.held_out, &made.choose, &made.judge].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..sequences.len()), "each sequence has one purpose");
        split(&made).len() as u64 * 50
    }

    #[test]
    fn many_tokens_are_fitted_to_and_a_fixed_number_judges() {
        let parts =
            |n| [tokens(n, |s| &s.fit), tokens(n, |s| &s.held_out), tokens(n, |s| &s.choose), tokens(n, |s| &s.judge)];
        assert_eq!(parts(800), [20_000, 4_000, 6_000, 10_000]);
        assert_eq!(parts(4000), [164_000, 12_000, 12_000, 12_000]);
    }
}
