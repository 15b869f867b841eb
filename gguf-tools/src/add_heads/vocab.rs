//! The tokens that exits choose among: those that the full model says most.
//!
//! An exit is for easy tokens, and easy tokens are frequent ones. Scoring some thousand of them makes a check cost a fraction
//! of what the screen of the whole vocabulary does; a token that is not among them waits for the final norm. What that
//! misses is part of every figure by which layers, gates and thresholds are chosen. It refuses more tokens than there are.

use anyhow::ensure;
use offramp::gguf::Error;

use super::Progress;
use super::split::{self, Split};
use crate::collect::store::Reader;
use crate::train::data;

/// How many tokens, where nobody says: `docs/training.md` has the table.
const N_TOKENS: usize = 8192;
/// Of these, how many candidates get exact logits.
const SHORTLIST: usize = 512;
/// Rows are interleaved by up to this many where ggml repacks a matrix.
const ROWS: usize = 16;

/// Which tokens exits are to choose among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// As many as pay: [`N_TOKENS`] of a vocabulary that is at least twice as large, and all of a smaller one.
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

impl ExitVocab {
    /// The most probable tokens of the full model on the sequences that heads are fitted to; of equals the lowest ids.
    /// `None` for all tokens.
    ///
    /// # Errors
    ///
    /// More tokens than the vocabulary has, or fewer than one group of rows; what the disk says; [`Error::Interrupted`].
    pub fn choose(
        wanted: Wanted,
        n_vocab: usize,
        reader: &Reader,
        split: &Split,
        progress: &mut Progress<'_>,
    ) -> anyhow::Result<Option<ExitVocab>> {
        let n = match wanted {
            Wanted::All => return Ok(None),
            Wanted::Auto if n_vocab < 2 * N_TOKENS => return Ok(None),
            Wanted::Auto => N_TOKENS,
            Wanted::These(n) => n,
        };
        ensure!(
            (ROWS..=n_vocab).contains(&n),
            "exits that choose among {n} tokens: give {ROWS} to {n_vocab}, auto or all"
        );
        let mut mass = vec![0.0f64; n_vocab];
        let (mut done, total) = (0, split::count(reader, &split.fit));
        for tokens in split.fit.iter().flat_map(|i| data::pieces(reader.sequences()[*i].clone())) {
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
        order.truncate(n / ROWS * ROWS);
        order.sort_unstable();
        let shortlist = SHORTLIST.min(order.len() / 4).max(1);
        Ok(Some(ExitVocab { tokens: order, shortlist }))
    }
}
