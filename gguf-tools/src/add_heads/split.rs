//! Which sequences serve which purpose: divided once, at random by the seed, so that nothing is judged by what it was made from.

use anyhow::bail;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::collect::store::Reader;

/// The fewest sequences that can be divided.
const LEAST_SEQUENCES: usize = 20;

/// The positions of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What screen, heads and K/V maps are fitted to: half of all.
    pub fit: Vec<usize>,
    /// What stops training, chooses penalties and teaches the gates: a tenth.
    pub held_out: Vec<usize>,
    /// What maps metrics to confidences and chooses sizes, layers and gates: three twentieths.
    pub choose: Vec<usize>,
    /// What judges all of it: a quarter.
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
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let judge = order.split_off(n * 3 / 4);
        let choose = order.split_off(n * 3 / 5);
        let held_out = order.split_off(n / 2);
        Ok(Split { fit: order, held_out, choose, judge })
    }
}

/// The tokens of sequences.
pub fn count(reader: &Reader, sequences: &[usize]) -> u64 {
    sequences.iter().map(|i| reader.sequences()[*i].end - reader.sequences()[*i].start).sum()
}

/// The first of `sequences` that hold `tokens`, or all.
pub fn first(reader: &Reader, sequences: &[usize], tokens: u64) -> Vec<usize> {
    let mut left = tokens;
    let few = sequences.iter().copied().take_while(|i| {
        let is_wanted = left > 0;
        left = left.saturating_sub(count(reader, &[*i]));
        is_wanted
    });
    few.collect()
}
