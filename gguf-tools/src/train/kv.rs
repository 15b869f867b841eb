//! Maps from an exit's input to the keys and values that the skipped blocks would have stored.
//!
//! One ridge regression a block and kind, in closed form, from the same `x` that the head reads to K before rope and to
//! V. The regressions of one exit share their inputs, so that one eigendecomposition and one pass over the tokens serve
//! all of them. How much each map explains is told as R², on tokens that it was not fitted to.
//!
//! It refuses stores whose K and V were not collected for every block above the exit: an exit has all maps or none.

use std::ops::Range;

use anyhow::{Context, ensure};
use offramp::gguf::Error;

use super::data;
use super::head::{Head, KvMap};
use super::ridge::{Affine, Moments, PENALTIES, Ridge};
use super::stored::ty_of;
use crate::collect::store::Reader;

/// How well one block's keys and values are predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// The block.
    pub layer: u32,
    /// The share of the keys' variance that is explained on held-out tokens, and the penalty that was best there.
    pub k: (f64, f64),
    /// The same of the values.
    pub v: (f64, f64),
}

/// Fits the maps of an exit to every block of `n_layer` above it; they are then part of `head`. `progress` is told the
/// tokens done; `false` stops.
///
/// # Errors
///
/// Blocks whose K and V were not collected, sequences without a token, what the disk says, [`Error::Interrupted`].
pub fn fit(
    head: &mut Head,
    n_layer: u32,
    reader: &Reader,
    fit: &[Range<u64>],
    held_out: &[Range<u64>],
    progress: &mut dyn FnMut(u64) -> bool,
) -> anyhow::Result<Vec<Quality>> {
    let n_embd = head.norm.len();
    let blocks = blocks(reader, head.layer, n_layer)?;
    let n_out = blocks.iter().map(|block| block.k + block.v).sum();
    let mut done = 0;
    let mut moments = |sequences: &[Range<u64>]| -> anyhow::Result<Moments> {
        let rows = sequences.iter().cloned().flat_map(data::pieces).map(|tokens| {
            if !progress(done) {
                return Err(Error::Interrupted.into());
            }
            done += tokens.end - tokens.start;
            let x = data::inputs(reader, head.layer, &head.norm, tokens.clone())?;
            let mut y = vec![0.0; (tokens.end - tokens.start) as usize * n_out];
            let mut first = 0;
            for block in &blocks {
                for (width, values) in [
                    (block.k, reader.k(block.layer, tokens.clone())?),
                    (block.v, reader.v(block.layer, tokens.clone())?),
                ] {
                    for (row, values) in y.chunks_exact_mut(n_out).zip(values.chunks_exact(width)) {
                        row[first..first + width].copy_from_slice(values);
                    }
                    first += width;
                }
            }
            Ok((x, y))
        });
        Moments::gathered(n_embd, n_out, rows)
    };
    let (fitted, held_out) = (moments(fit)?, moments(held_out)?);
    let errors = Ridge::new(&fitted)?.errors(&held_out, &PENALTIES)?;
    let variances = held_out.variances();
    let mut penalties = vec![0.0; n_out];
    let mut first = 0;
    let mut judge = |width: usize| {
        let part = first..first + width;
        first += width;
        let total = |values: &[f64]| values.get(part.clone()).map_or(0.0, |values| values.iter().sum::<f64>());
        let pairs = PENALTIES.into_iter().zip(errors.iter().map(|errors| total(errors)));
        let (penalty, error) = pairs.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((PENALTIES[0], 0.0));
        penalties[part.clone()].fill(penalty);
        (1.0 - error / total(&variances).max(f64::MIN_POSITIVE), penalty)
    };
    let quality =
        blocks.iter().map(|block| Quality { layer: block.layer, k: judge(block.k), v: judge(block.v) }).collect();
    // Chosen on the held-out tokens, fitted to all.
    let map = Ridge::new(&fitted.merged(&held_out))?.solve_each(&penalties);
    let mut first = 0;
    let mut part = |width: usize| {
        let place = first..first + width;
        first += width;
        Affine { weight: map.weight[place.start * n_embd..place.end * n_embd].to_vec(), bias: map.bias[place].to_vec() }
    };
    head.kv = blocks
        .iter()
        .map(|block| KvMap::new(block.layer, n_embd, part(block.k), part(block.v)))
        .collect::<anyhow::Result<_>>()?;
    Ok(quality)
}

/// Whether a store has what maps need: K and V of every block above its lowest layer.
pub fn is_collected(reader: &Reader, n_layer: u32) -> bool {
    reader.manifest().layers.first().is_some_and(|lowest| blocks(reader, *lowest, n_layer).is_ok())
}

/// The bytes of one skipped block's maps, as stored; `None` where nothing was collected to make them from.
pub fn block_bytes(reader: &Reader, n_layer: u32) -> Option<u64> {
    let manifest = reader.manifest();
    let widest = manifest.kv.iter().map(|widths| u64::from(widths.k) + u64::from(widths.v)).max()?;
    ty_of(manifest.n_embd as usize).bytes(&[manifest.n_embd.into(), widest]).filter(|_| is_collected(reader, n_layer))
}

/// One skipped block.
struct Block {
    layer: u32,
    k: usize,
    v: usize,
}

fn blocks(reader: &Reader, layer: u32, n_layer: u32) -> anyhow::Result<Vec<Block>> {
    let widths = &reader.manifest().kv;
    let mut blocks = Vec::new();
    for skipped in layer + 1..n_layer {
        let widths = widths.iter().find(|widths| widths.layer == skipped);
        let widths =
            widths.with_context(|| format!("K and V of block {skipped} were not collected: use --kv-maps off"))?;
        ensure!(widths.k > 0 && widths.v > 0, "block {skipped} stores no K and V: use --kv-maps off");
        blocks.push(Block { layer: skipped, k: widths.k as usize, v: widths.v as usize });
    }
    Ok(blocks)
}
