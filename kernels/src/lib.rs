//! Matrix products of quantized weights, and attention, for any number of tokens: bytes and floats in, floats out.
//!
//! Weights are packed once: the rows of a *tile* lie beside each other, four columns of each at a time, so that one
//! instruction multiplies as many rows as a vector has lanes and a tile is unpacked once for up to eight tokens.
//! Activations are quantized to 8 bits. A token's outputs depend on nothing but its own activations: whatever the
//! number of tokens beside it, of threads, or the range of tiles, they are the same bit for bit (`product`).
//!
//! No threads and no llama.cpp in here; callers share tiles out. Refuses shapes whose columns do not fill blocks, and
//! buffers of other lengths than the shape's.

#![deny(missing_docs)]

mod activations;
pub mod attention;
mod cpu;
mod dense;
mod format;
mod half;
mod isa;
mod layout;
mod pack;
mod product;

use std::ops::Range;

pub use cpu::Cpu;
use cpu::{SetTask, Task, dispatch, dispatch_set};
pub use dense::Numbers;
use format::Format;
use isa::Isa;
use layout::At;

/// A weight format that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)] // The names are ggml's own.
pub enum Weights {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// A matrix of packed weights: `[n_in, n_out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    weights: Weights,
    n_in: usize,
    n_out: usize,
    sizes: Sizes,
    cpu: Cpu,
}

/// Bytes and counts that a format has on an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    columns: usize,
    raw_block: usize,
    packed_block: usize,
    activation_block: usize,
    rows: usize,
}

impl Shape {
    /// `None` where `n_in` is no whole number of blocks, or the sizes overflow.
    pub fn new(cpu: Cpu, weights: Weights, n_in: usize, n_out: usize) -> Option<Self> {
        let sizes = dispatch(cpu, weights, SizesOf);
        let is_whole = n_in > 0 && n_out > 0 && n_in.is_multiple_of(sizes.columns);
        let shape = Self { weights, n_in, n_out, sizes, cpu };
        let blocks = (n_in / sizes.columns).checked_mul(sizes.packed_block)?;
        blocks.checked_mul(n_out.div_ceil(sizes.rows)).filter(|_| is_whole).map(|_| shape)
    }

    /// Tiles of rows; the last one may be filled up with zeros.
    pub fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(self.sizes.rows)
    }

    /// Bytes of a row in a file.
    pub fn raw_row(&self) -> usize {
        self.n_blocks() * self.sizes.raw_block
    }

    /// Bytes of a packed tile.
    pub fn packed_tile(&self) -> usize {
        self.n_blocks() * self.sizes.packed_block
    }

    /// Bytes of the packed matrix.
    pub fn packed(&self) -> usize {
        self.n_tiles() * self.packed_tile()
    }

    /// Bytes of a token's quantized activations.
    pub fn activations(&self) -> usize {
        self.n_blocks() * self.sizes.activation_block
    }

    /// Columns of a block.
    pub fn block_columns(&self) -> usize {
        self.sizes.columns
    }

    /// Blocks of a row.
    pub fn n_blocks(&self) -> usize {
        self.n_in / self.sizes.columns
    }

    /// Packs a tile from its rows as a file has them, `None` for rows that are filled with zeros.
    ///
    /// # Panics
    /// Where a row or `out` has another length than the shape's.
    pub fn pack_tile<'a>(&self, row: impl Fn(usize) -> Option<&'a [u8]>, out: &mut [u8]) {
        assert_eq!(out.len(), self.packed_tile(), "a packed tile");
        let row = |i| row(i).inspect(|row| assert_eq!(row.len(), self.raw_row(), "a row"));
        dispatch(self.cpu, self.weights, PackTile { row, n_blocks: self.n_blocks(), out });
    }

    /// Packs `tiles` of a matrix `raw` into `out`, which starts at the first of them.
    ///
    /// # Panics
    /// Where `raw` is not the whole matrix, or `out` not those tiles.
    pub fn pack(&self, raw: &[u8], tiles: Range<usize>, out: &mut [u8]) {
        assert_eq!(raw.len(), self.n_out * self.raw_row(), "a matrix");
        assert_eq!(out.len(), tiles.len() * self.packed_tile(), "packed tiles");
        for (t, out) in tiles.zip(out.chunks_exact_mut(self.packed_tile())) {
            let row = |i: usize| {
                let row = t * self.sizes.rows + i;
                raw.get(row * self.raw_row()..(row + 1) * self.raw_row())
            };
            self.pack_tile(row, out);
        }
    }

    /// Quantizes whole blocks of one token's activations.
    ///
    /// # Panics
    /// Where `x` is no whole number of blocks, or `out` has another length than its.
    pub fn quantize(&self, x: &[f32], out: &mut [u8]) {
        let blocks = x.len() / self.sizes.columns;
        assert_eq!((x.len() % self.sizes.columns, out.len()), (0, blocks * self.sizes.activation_block), "blocks");
        dispatch(self.cpu, self.weights, Quantize { x, out });
    }

    /// Computes the rows of `tiles` for tokens whose activations were quantized.
    ///
    /// # Safety
    /// `packed` points to [`Shape::packed`] bytes; each of `tokens` to [`Shape::activations`] bytes; each of `out`, of
    /// which there are as many, to `n_out` floats, of which nobody else uses the rows of `tiles` meanwhile.
    ///
    /// # Panics
    /// Where `tiles` reach past the last one, or `out` and `tokens` differ in length.
    pub unsafe fn product(&self, packed: *const u8, tiles: Range<usize>, tokens: &[*const u8], out: &[*mut f32]) {
        assert!(tiles.end <= self.n_tiles() && tokens.len() == out.len(), "tiles and tokens of a product");
        let operands = product::Operands { packed, n_blocks: self.n_blocks(), n_out: self.n_out, tokens, out };
        dispatch(self.cpu, self.weights, Product { operands, tiles });
    }
}

/// Multiplies rows of plain numbers with tokens: `out[token][row]`, for `n_rows` rows that lie `row_bytes` apart.
///
/// # Safety
/// `w` points to that many rows of `n_in` numbers, each of `tokens` to `n_in` floats, and each of `out`, of which there
/// are as many, to `n_rows` floats that nobody else uses meanwhile.
pub unsafe fn dense(
    cpu: Cpu,
    numbers: Numbers,
    (w, row_bytes, n_rows): (*const u8, usize, usize),
    n_in: usize,
    tokens: &[*const f32],
    out: &[*mut f32],
) {
    dispatch_set(cpu, Dense { numbers, rows: (w, row_bytes, n_rows), n_in, tokens, out });
}

struct Dense<'a> {
    numbers: Numbers,
    rows: (*const u8, usize, usize),
    n_in: usize,
    tokens: &'a [*const f32],
    out: &'a [*mut f32],
}
impl SetTask for Dense<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: `dispatch_set` has checked the processor; the rest is `dense`'s contract.
        unsafe {
            match self.numbers {
                Numbers::F32 => dense::rows::<I, 0>(self.rows, self.n_in, self.tokens, self.out),
                Numbers::F16 => dense::rows::<I, 1>(self.rows, self.n_in, self.tokens, self.out),
                Numbers::BF16 => dense::rows::<I, 2>(self.rows, self.n_in, self.tokens, self.out),
            }
        }
    }
}

/// The weights of a row as a file has it, in double precision: what tests hold products against.
pub fn row_values(weights: Weights, row: &[u8]) -> Vec<f64> {
    dispatch(Cpu::Plain, weights, RowValues(row))
}

struct RowValues<'a>(&'a [u8]);
impl Task for RowValues<'_> {
    type Output = Vec<f64>;
    unsafe fn run<I: Isa, F: Format>(self) -> Vec<f64> {
        let mut out = Vec::new();
        for block in self.0.chunks_exact(F::BYTES) {
            let (mut codes, mut scales, mut minima) = ([0; 256], [1; 16], [1; 16]);
            F::codes(block, &mut codes);
            if F::COLUMNS > 32 {
                F::group_scales(block, &mut scales, &mut minima);
            }
            let (d, m) = F::scales(block);
            let d = f64::from(format::scale::<F>(d));
            let m = if F::MIN { f64::from(half::f16_to_f32(m)) } else { 0.0 };
            let m = if F::COLUMNS > 32 { -m } else { m };
            for (i, &code) in codes[..F::COLUMNS].iter().enumerate() {
                let value = F::TABLE.map_or(i32::from(code), |table| i32::from(table[usize::from(code & 15)]));
                let group = i / F::GROUP;
                let scaled = d * f64::from(scales[group]) * f64::from(value - F::OFFSET);
                out.push(scaled + m * f64::from(minima[group]));
            }
        }
        out
    }
}

struct SizesOf;
impl Task for SizesOf {
    type Output = Sizes;
    unsafe fn run<I: Isa, F: Format>(self) -> Sizes {
        Sizes {
            columns: F::COLUMNS,
            raw_block: F::BYTES,
            packed_block: At::<I, F>::BLOCK,
            activation_block: At::<I, F>::ACTIVATIONS,
            rows: I::ROWS,
        }
    }
}

struct PackTile<'o, R> {
    row: R,
    n_blocks: usize,
    out: &'o mut [u8],
}
impl<'a, R: Fn(usize) -> Option<&'a [u8]>> Task for PackTile<'_, R> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<I: Isa, F: Format>(self) {
        pack::tile::<I, F>(self.row, self.n_blocks, self.out);
    }
}

struct Quantize<'a> {
    x: &'a [f32],
    out: &'a mut [u8],
}
impl Task for Quantize<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<I: Isa, F: Format>(self) {
        let blocks = self.out.chunks_exact_mut(At::<I, F>::ACTIVATIONS);
        for (x, out) in self.x.chunks_exact(F::COLUMNS).zip(blocks) {
            activations::block::<I, F>(x, out);
        }
    }
}

struct Product<'a> {
    operands: product::Operands<'a>,
    tiles: Range<usize>,
}
impl Task for Product<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<I: Isa, F: Format>(self) {
        // SAFETY: `dispatch` has checked the processor; the rest is `Shape::product`'s contract.
        unsafe { product::rows::<I, F>(&self.operands, self.tiles) }
    }
}
