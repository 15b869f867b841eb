//! Attention for ggml's `GGML_OP_FLASH_ATTN_EXT` whose bits do not depend on the batch: bytes and floats in, floats out.
//!
//! There is no llama.cpp here, no thread and no allocation. A [`Plan`] divides a [`Problem`] into units, any thread runs
//! any of them through its own [`Worker`], and where [`Plan::merges`] is not 0, those run after all units are done.
//!
//! # The arithmetic
//!
//! The output of a token and head is a function of its row of Q and of the keys, values and mask values of the cells
//! that its mask shows, in the order of their indices. Hidden cells are dropped before anything is computed. Let the
//! visible cells be numbered from 0. All is f32, `L` is the number of lanes of the instruction set:
//!
//! 1. Score: lane `l` sums `q[i] * k[i]` over `i = l, l + L, ..` in that order, the lanes are summed in a fixed tree.
//!    Then `* scale`, the soft cap, and `slope * mask` is added. K and V are taken as exactly the values they store, and
//!    nothing of Q is rounded.
//! 2. Cells go in chunks of [`CHUNK`] by their number. A chunk's maximum `M` is exact. Its weights are
//!    `exp(score - M)`; `S` sums them in lanes by number, then in the tree; `A[j]` adds `weight * v[j]` cell by cell.
//! 3. Chunks are folded from the first to the last: the greater of both maxima is kept, and both `S` and `A` are scaled
//!    by `exp(M - greater)` and added.
//! 4. A sink raises `M` and adds to `S` alone. The output is `A * (1 / S)`, and 0 where no cell is visible.
//!
//! So a cell's number alone says what it is summed with: neither the batch, nor the place of a token in it, nor the
//! units, nor threads, nor hidden cells and padding change a bit. Another instruction set gives other bits.

mod cells;
#[cfg(target_arch = "aarch64")]
mod neon;
mod ops;
mod problem;
mod simd;
mod steps;
mod worker;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use problem::{Problem, Refused, Tensor};
pub use simd::half;
pub use worker::{Shared, Worker};

use crate::Cpu;
use ops::Ops;

/// Visible cells of a chunk: what one thread can take of one token's context.
pub const CHUNK: usize = 128;

/// Rows, a row being a token and a head, that share what a unit reads.
const ROWS: usize = 32;
/// How far the first cells of a unit's tokens may lie apart, in cells that any of them sees.
const SPREAD: usize = 64;
/// The length of a row of scores: the cells of a chunk of all tokens, and room for whole vectors behind them.
const WIDTH: usize = CHUNK + SPREAD + 32;
/// The bits of -inf as a half: a cell that the mask hides.
const HIDDEN: u16 = 0xfc00;
/// Bytes of partial results beyond which the cells of a token are not split over threads.
const MOST_PARTIALS: usize = 64 << 20;
/// The longest row of K or V.
const MOST_VALUES: usize = 1 << 14;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 32 signed bytes behind a scale in half precision.
    Q8_0,
}

impl Type {
    /// Elements of a block.
    pub fn block(self) -> usize {
        if self == Type::Q8_0 { 32 } else { 1 }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F16 | Type::Bf16 => 2,
            Type::Q8_0 => 34,
        }
    }

    /// Bytes of a row of `d` elements.
    pub fn row_bytes(self, d: usize) -> usize {
        d / self.block() * self.block_bytes()
    }

    /// One value of a row.
    pub fn value(self, row: &[u8], i: usize) -> f32 {
        let two = |at: usize| u16::from_le_bytes([row[at], row[at + 1]]);
        match self {
            Type::F32 => f32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]),
            Type::F16 => simd::half(two(2 * i)),
            Type::Bf16 => f32::from_bits(u32::from(two(2 * i)) << 16),
            Type::Q8_0 => simd::half(two(i / 32 * 34)) * f32::from(row[i / 32 * 34 + 2 + i % 32] as i8),
        }
    }
}

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the target has at least.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F and BW.
    Avx512,
    /// NEON.
    Neon,
}

impl Isa {
    /// All sets that this processor has, the fastest last.
    pub fn available() -> Vec<Isa> {
        [Isa::Plain, Isa::Avx2, Isa::Avx512, Isa::Neon].into_iter().filter(|isa| isa.ops().is_some()).collect()
    }

    /// The set that goes with [`Cpu::here`]: the fastest that this processor has, or the one that is forced.
    pub fn here() -> Isa {
        match Cpu::here() {
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx512 => Isa::Avx512,
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2Vnni | Cpu::Avx2 => Isa::Avx2,
            #[cfg(target_arch = "aarch64")]
            Cpu::NeonDotprod | Cpu::Neon => Isa::Neon,
            Cpu::Plain => Isa::Plain,
        }
    }

    /// The steps compiled for the set, where this processor has it.
    fn ops(self) -> Option<&'static Ops> {
        match self {
            Isa::Plain => Some(&ops::PLAIN),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                let has = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                has.then_some(&ops::AVX2)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
                Isa::Avx2.ops().and_then(|_| has.then_some(&ops::AVX512))
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&ops::NEON),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// `exp` as weights are computed by it; `None` where this processor lacks the set. For tests.
    pub fn exp(self, x: f32) -> Option<f32> {
        // SAFETY: the processor has the set.
        self.ops().map(|ops| unsafe { (ops.exp)(x) })
    }

    /// A row of K or V in f32 as the kernels expand it; `None` where this processor lacks the set. For tests.
    ///
    /// # Panics
    /// Where the row is shorter than `d` values.
    pub fn expand(self, ty: Type, row: &[u8], d: usize) -> Option<Vec<f32>> {
        let ops = self.ops()?;
        assert!(row.len() >= ty.row_bytes(d), "a row of {d} values");
        let padded = d.next_multiple_of(ops.lanes);
        let mut out = vec![0.0; padded * ops.lanes];
        let rows = ops::Rows { ty, bytes: row, stride: 0, d };
        // SAFETY: the processor has the set; one row of `d` values, and room for them.
        unsafe { (ops.expand)(&rows, &[0], &mut out, padded, ops::Laid::Rows) };
        out.truncate(d);
        Some(out)
    }
}

/// How a problem is divided.
///
/// A unit is a tile of tokens, the heads that share a head of K and V, and a part of the chunks of their cells. Units
/// are numbered so that neighbours share their tokens: a thread that takes a range of them looks at the mask once.
pub struct Plan<'a> {
    problem: Problem<'a>,
    ops: &'static Ops,
    /// Heads of a unit, and units beside each other that together have all heads of one head of K and V.
    heads: usize,
    blocks: usize,
    /// Tokens of a unit.
    tokens: usize,
    tiles: usize,
    /// Parts that the chunks are divided in, and chunks of each.
    parts: usize,
    part: usize,
    chunks: usize,
    /// Lengths of expanded rows.
    dk: usize,
    dv: usize,
}

impl<'a> Plan<'a> {
    /// Checks a problem and divides it for a number of threads, which changes the units and no result.
    ///
    /// Fails where a shape, stride or type is none that the kernels take, and where the processor lacks `isa`.
    pub fn new(problem: Problem<'a>, isa: Isa, n_threads: usize) -> Result<Plan<'a>, Refused> {
        problem.check()?;
        let ops = isa.ops().ok_or(Refused::Isa(isa))?;
        let [_, n_tokens, n_head, n_seq] = problem.q.ne;
        let group = n_head / problem.k.ne[2];
        // A mask of each head hides other cells for each: then heads share nothing.
        let heads = if problem.mask.is_some_and(|m| m.ne[2] > 1) { 1 } else { group.min(ROWS / 2) };
        let blocks = group.div_ceil(heads);
        let tokens = (ROWS / heads).min(n_tokens);
        let tiles = n_tokens.div_ceil(tokens);
        let whole = tiles * n_seq * problem.k.ne[2] * blocks;
        let chunks = problem.k.ne[1].div_ceil(CHUNK);
        let dk = problem.k.ne[0].next_multiple_of(ops.lanes);
        let dv = problem.v.ne[0].next_multiple_of(ops.lanes);
        let partials = (n_tokens * n_head * n_seq).saturating_mul(chunks).saturating_mul(4 * (dv + 2));
        // Where every thread gets as many equal units as the others, a split would only cost a wait and the merges.
        let even = whole.is_multiple_of(n_threads.max(1)) && tiles == 1;
        let wanted = if even || partials > MOST_PARTIALS { 1 } else { (4 * n_threads).div_ceil(whole) };
        let part = chunks.div_ceil(wanted.min(chunks));
        let parts = chunks.div_ceil(part);
        Ok(Plan { problem, ops, heads, blocks, tokens, tiles, parts, part, chunks, dk, dv })
    }

    /// The units of the problem; any thread may run any of them, each once.
    pub fn units(&self) -> usize {
        self.problem.q.ne[3] * self.tiles * self.problem.k.ne[2] * self.blocks * self.parts
    }

    /// The merges that must run after all units, each once and by any thread; 0 where units write the output.
    pub fn merges(&self) -> usize {
        if self.parts == 1 { 0 } else { self.rows() }
    }

    /// Bytes that each thread's worker needs for itself.
    pub fn scratch_bytes(&self) -> usize {
        4 * worker::words(self) + 64
    }

    /// The f32 that all threads share for partial results; 0 where there are no merges.
    pub fn partials(&self) -> usize {
        if self.parts == 1 { 0 } else { self.rows() * self.chunks * self.slot() }
    }

    /// The f32 of the output, `[dv, n_head, n_tokens, n_seq]`.
    pub fn outputs(&self) -> usize {
        self.rows() * self.problem.v.ne[0]
    }

    /// Rows of the output.
    fn rows(&self) -> usize {
        self.problem.q.ne[1..].iter().product()
    }

    /// The f32 of one partial result: maximum, sum of weights, sums of values.
    fn slot(&self) -> usize {
        2 + self.dv
    }
}
