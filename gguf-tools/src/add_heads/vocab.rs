//! The tokens that exits choose among: those that the full model says most.
//!
//! An exit is for easy tokens, and easy tokens are frequent ones. Scoring some thousand of them makes a check cost a fraction
//! of what the screen of the whole vocabulary does; a token that is not among them waits for the final norm. What that
//! misses is part of every figure by which layers, gates and thresholds are chosen. It refuses more tokens than there are.

use std::ops::Range;

use anyhow::ensure;
use offramp::gguf::Error;

use super::Progress;
use crate::collect::store::{Reader, sequences};
use crate::train::data;

/// How many tokens are tried where nobody says: `docs/training.md` has the table.
const TRIED: [usize; 4] = [8192, 16384, 32768, 65536];
/// Of so many tokens, one is a candidate that gets exact logits; and the fewest and the most of these.
const CANDIDATES: (usize, usize, usize) = (16, 512, 1024);
/// The share of checks that let a token go, where gates leave out those that would not.
const LEAVING: f64 = 0.5;
/// Rows are interleaved by up to this many where ggml repacks a matrix.
const ROWS: usize = 16;

/// Which tokens exits are to choose among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// As many as pay: at least 8,192 of a vocabulary that is at least twice as large, and all of a smaller one.
    Auto,
    /// All.
    All,
    /// So many.
    These(usize),
}

/// Tokens, and how many of them are rescored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitVocab {
    /// Their ids, ascending.
    pub tokens: Vec<u32>,
    /// The candidates among them that get exact logits.
    pub shortlist: usize,
}

/// What an exit saves and a check costs, in milliseconds.
pub struct Worth<'a> {
    /// Saved by a token that leaves.
    pub saved: f64,
    /// A check among so many tokens with so many candidates.
    pub check: &'a dyn Fn(usize, usize) -> f64,
}

impl Worth<'_> {
    /// What a check among `n` tokens earns that hold a share `covered` of all choices.
    fn of(&self, n: usize, covered: f64) -> f64 {
        LEAVING * covered * self.saved - (self.check)(n, shortlist(n))
    }
}

impl ExitVocab {
    /// The most probable tokens of the full model on the sequences that heads are fitted to; of equals the lowest ids.
    /// `None` for all tokens. How many pay is judged by `worth` and by what they hold of the choices on `chooses`.
    ///
    /// # Errors
    ///
    /// More tokens than the vocabulary has, or fewer than one group of rows; what the disk says; [`Error::Interrupted`].
    pub fn choose(
        wanted: Wanted,
        n_vocab: usize,
        reader: &Reader,
        (fit, chooses): (&[Range<u64>], &[Range<u64>]),
        worth: &Worth<'_>,
        progress: &mut Progress<'_>,
    ) -> anyhow::Result<Option<ExitVocab>> {
        match wanted {
            Wanted::All => return Ok(None),
            Wanted::Auto if n_vocab < 2 * TRIED[0] => return Ok(None),
            Wanted::Auto => {}
            Wanted::These(n) => ensure!(
                (ROWS..=n_vocab).contains(&n),
                "exits that choose among {n} tokens: give {ROWS} to {n_vocab}, auto or all"
            ),
        }
        let mut mass = vec![0.0f64; n_vocab];
        let (mut done, total) = (0, sequences::count(fit));
        for tokens in fit.iter().cloned().flat_map(data::pieces) {
            if !progress("counting", done, total) {
                return Err(Error::Interrupted.into());
            }
            done += tokens.end - tokens.start;
            for (id, probability) in reader.labels(tokens)?.iter().flat_map(|label| label.top) {
                if let Some(mass) = mass.get_mut(id as usize) {
                    *mass += f64::from(probability);
                }
            }
        }
        let mut order: Vec<u32> = (0..u32::try_from(n_vocab)?).collect();
        order.sort_by(|a, b| mass[*b as usize].total_cmp(&mass[*a as usize]).then(a.cmp(b)));
        let n = match wanted {
            Wanted::These(n) => n,
            _ => best_number(&order, &choices(reader, chooses)?, worth),
        };
        order.truncate(n / ROWS * ROWS);
        order.sort_unstable();
        let shortlist = shortlist(order.len());
        Ok(Some(ExitVocab { tokens: order, shortlist }))
    }
}

/// The candidates among `n` tokens that get exact logits.
fn shortlist(n: usize) -> usize {
    let (one_in, fewest, most) = CANDIDATES;
    (n / one_in).clamp(fewest, most).min(n / 4).max(1)
}

/// The full model's choices on some sequences.
fn choices(reader: &Reader, sequences: &[Range<u64>]) -> anyhow::Result<Vec<u32>> {
    let mut choices = Vec::new();
    for tokens in sequences.iter().cloned().flat_map(data::pieces) {
        choices.extend(reader.labels(tokens)?.iter().map(|label| label.top[0].0));
    }
    Ok(choices)
}

/// How many of the tokens in `order` earn most.
fn best_number(order: &[u32], choices: &[u32], worth: &Worth<'_>) -> usize {
    let mut places = vec![usize::MAX; order.len()];
    order.iter().enumerate().for_each(|(place, id)| places[*id as usize] = place);
    let place = |id: &u32| places.get(*id as usize).copied().unwrap_or(usize::MAX);
    let earns = |n: usize| {
        let n_covered = choices.iter().filter(|id| place(id) < n).count();
        worth.of(n, n_covered as f64 / choices.len().max(1) as f64)
    };
    let tried = TRIED.into_iter().filter(|n| 2 * n <= order.len());
    tried
        .map(|n| (n, earns(n)))
        .fold((TRIED[0], f64::NEG_INFINITY), |best, new| if new.1 > best.1 { new } else { best })
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dear_exit_is_worth_a_wide_choice_and_a_cheap_one_is_not() {
        let order: Vec<u32> = (0..200_000).collect();
        // Nine tenths of the choices are among the first 8,192, the others spread over the first 30,000.
        let choices: Vec<u32> = (0..10_000).map(|i| if i % 10 < 9 { i % 8192 } else { 8192 + i * 2 }).collect();
        let number = |saved: f64| best_number(&order, &choices, &Worth { saved, check: &|n, _| n as f64 * 1e-5 });
        assert_eq!([number(0.5), number(20.0)], [8192, 32768]);
        // No more than half of a vocabulary: then all of it is hardly dearer.
        let few: Vec<u32> = (0..20_000).collect();
        let worth = Worth { saved: 1e9, check: &|_, _| 0.0 };
        assert_eq!(best_number(&few, &choices, &worth), 8192);
        assert_eq!([shortlist(4096), shortlist(8192), shortlist(65536), shortlist(64)], [512, 512, 1024, 16]);
    }
}
