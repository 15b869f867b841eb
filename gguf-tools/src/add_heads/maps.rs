//! Whether the keys and values of skipped blocks are predicted: by how much of them maps explain.
//!
//! What predicted keys and values change in later tokens no simulation of single tokens shows, only decodes that run freely, and
//! there it is the weak maps that keep strict levels from being certified (`docs/training.md`).

use super::Progress;
use super::split::Split;
use crate::collect::store::{Reader, sequences};
use crate::train::head::Head;
use crate::train::kv::{self, Quality};

/// The share of the values' variance that maps must explain, in the mean over the blocks above each exit.
const LEAST_R2: f64 = 0.9;

/// Whether skipped keys and values are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Where they were collected and maps explain enough of them.
    Auto,
    /// Where they were collected.
    On,
    /// Never.
    Off,
}

/// Fits the maps of each of `heads` to all blocks above it.
///
/// # Errors
///
/// As [`kv::fit`].
pub fn fit(
    heads: &mut [Head],
    n_layer: u32,
    reader: &Reader,
    split: &Split,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Vec<Vec<Quality>>> {
    let total = sequences::count(&split.fit) + sequences::count(&split.held_out);
    let of_head = |head: &mut Head| {
        let mut progress = |done| progress("mapping", done, total);
        kv::fit(head, n_layer, reader, &split.fit, &split.held_out, &mut progress)
    };
    heads.iter_mut().map(of_head).collect()
}

/// True if the maps of every exit explain enough for their predictions to be used.
pub fn are_good(exits: &[Vec<Quality>]) -> bool {
    let of_values =
        |blocks: &Vec<Quality>| blocks.iter().map(|block| block.v.0).sum::<f64>() / blocks.len().max(1) as f64;
    exits.iter().map(of_values).all(|r2| r2 >= LEAST_R2)
}
