//! Which tokens serve which purpose: answers are divided once, at random by the seed, so that nothing is judged by what it was made
//! from. A user's turn that the model wrote is text of its own as well, to be fitted to wherever its answer is.

use std::ops::Range;

use anyhow::bail;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::collect::store::Reader;
use crate::collect::store::sequences::first;

/// The tokens that are enough to hold out, to choose by, or to judge by: what there is beyond is worth more to what is fitted.
const ENOUGH: u64 = 12_000;
/// The fewest answers that can be divided.
const LEAST_ANSWERS: usize = 20;

/// The tokens of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What screen, heads and K/V maps are fitted to: half of all answers and what the other parts do not need, and the
    /// users' turns before these answers.
    pub fit: Vec<Range<u64>>,
    /// What stops training, chooses penalties and teaches the gates: a tenth of the answers, and no more than is enough.
    pub held_out: Vec<Range<u64>>,
    /// What maps metrics to confidences and chooses sizes, layers and gates: three twentieths, and no more than is enough.
    pub choose: Vec<Range<u64>>,
    /// What judges all of it: a quarter, and no more than is enough.
    pub judge: Vec<Range<u64>>,
}

impl Split {
    /// # Errors
    ///
    /// Fewer answers than can be divided.
    pub fn of(reader: &Reader, seed: u64) -> anyhow::Result<Split> {
        let n = reader.answers().len();
        if n < LEAST_ANSWERS {
            bail!("{n} answers were collected; at least {LEAST_ANSWERS} are needed: raise --tokens or --time-limit");
        }
        Ok(Split::divide(reader.turns(), reader.answers(), seed))
    }

    /// Divides answers, and with each the turn before it.
    fn divide(turns: &[Range<u64>], answers: &[Range<u64>], seed: u64) -> Split {
        let n = answers.len();
        let mut fit: Vec<(&Range<u64>, &Range<u64>)> = answers.iter().zip(turns).collect();
        fit.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let mut more = Vec::new();
        let [judge, choose, held_out] = [n * 3 / 4, n * 3 / 5, n / 2].map(|start| {
            let part = fit.split_off(start);
            let answers: Vec<Range<u64>> = part.iter().map(|(answer, _)| (*answer).clone()).collect();
            let enough = first(&answers, ENOUGH);
            more.extend_from_slice(&part[enough.len()..]);
            enough
        });
        fit.append(&mut more);
        let turns = fit.iter().map(|(_, turn)| *turn).filter(|turn| !turn.is_empty());
        let fit = fit.iter().map(|(answer, _)| *answer).chain(turns).cloned().collect();
        Split { fit, held_out, choose, judge }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::store::sequences::count;

    /// Of `n` turns of 30 tokens and answers of 50: the tokens of each part.
    fn parts(n: u64) -> [u64; 4] {
        let turns: Vec<Range<u64>> = (0..n).map(|i| i * 80..i * 80 + 30).collect();
        let answers: Vec<Range<u64>> = (0..n).map(|i| i * 80 + 30..(i + 1) * 80).collect();
        let Split { fit, held_out, choose, judge } = Split::divide(&turns, &answers, 1);
        let mut all = [&fit[..], &held_out, &choose, &judge].concat();
        all.sort_unstable_by_key(|tokens| tokens.start);
        all.dedup();
        let n_turns = fit.iter().filter(|tokens| turns.contains(tokens)).count();
        assert_eq!(
            (all.len(), fit.len()),
            (n as usize + n_turns, 2 * n_turns),
            "an answer has one purpose, and its turn no other"
        );
        [fit, held_out, choose, judge].map(|part| count(&part))
    }

    #[test]
    fn what_choosing_and_judging_do_not_need_is_fitted_to() {
        assert_eq!(parts(800), [32_000, 4_000, 6_000, 10_000]);
        assert_eq!(parts(4000), [262_400, 12_000, 12_000, 12_000]);
    }

    #[test]
    fn a_store_without_turns_is_divided_as_one_with_them() {
        let answers: Vec<Range<u64>> = (0..100).map(|i| i * 10..(i + 1) * 10).collect();
        let split = Split::divide(&vec![0..0; 100], &answers, 1);
        assert_eq!([&split.fit, &split.held_out, &split.choose, &split.judge].map(|part| part.len()), [50, 10, 15, 25]);
    }
}
