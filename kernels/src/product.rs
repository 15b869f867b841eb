//! The product of packed tiles and quantized activations: one loop for every format, instruction set and width.
//!
//! A row's value for a token is a sum over the row's blocks, in order of columns, of operations that do not depend on
//! which other rows or tokens are computed with it. Hence a batch of any width gives bit for bit what single tokens
//! give. Refuses nothing; `Shape` has checked the lengths.

use super::format::Format;
use super::isa::Isa;
use super::layout::At;

/// How far ahead of its use a cache line is asked for, in bytes.
const AHEAD: usize = 4096;

/// Rows whose packed weights stay in the cache while all tokens of a wide batch pass over them.
const ROWS_TOGETHER: usize = 64;

/// Repeats a body for the first `$count` of eight tokens. The compiler leaves a loop over eight rolled up, and its sums
/// in memory.
macro_rules! each_token {
    ($n:ident in 0..$count:ident $body:block) => {
        each_token!($n, $count, $body, 0, 1, 2, 3, 4, 5, 6, 7)
    };
    ($n:ident, $count:ident, $body:block, $($at:literal),*) => {
        $(if $at < $count {
            let $n = $at;
            $body
        })*
    };
}

/// What a product reads and writes.
pub(super) struct Operands<'a> {
    /// The packed tiles, from the matrix's first on.
    pub(super) packed: *const u8,
    /// Blocks of a row.
    pub(super) n_blocks: usize,
    /// Rows of the matrix.
    pub(super) n_out: usize,
    /// Each token's quantized activations.
    pub(super) tokens: &'a [*const u8],
    /// Each token's outputs, `[n_out]`.
    pub(super) out: &'a [*mut f32],
}

/// Computes the rows of `tiles` for all tokens.
///
/// # Safety
/// The processor has `I`'s instructions; the pointers reach as far as the numbers say, and nobody else uses the
/// outputs of these rows meanwhile.
#[inline(always)]
pub(super) unsafe fn rows<I: Isa, F: Format>(operands: &Operands<'_>, tiles: std::ops::Range<usize>) {
    let together = ROWS_TOGETHER / I::ROWS;
    let mut first = tiles.start;
    while first < tiles.end {
        let end = (first + together).min(tiles.end);
        let mut token = 0;
        while token < operands.tokens.len() {
            let n = (operands.tokens.len() - token).min(I::TOKENS);
            // SAFETY: as this function's own.
            unsafe {
                match n {
                    1 => tiles_of::<I, F, 1>(operands, first..end, token),
                    2 => tiles_of::<I, F, 2>(operands, first..end, token),
                    3 if I::TOKENS > 2 => tiles_of::<I, F, 3>(operands, first..end, token),
                    4 if I::TOKENS > 2 => tiles_of::<I, F, 4>(operands, first..end, token),
                    5 if I::TOKENS > 4 => tiles_of::<I, F, 5>(operands, first..end, token),
                    6 if I::TOKENS > 4 => tiles_of::<I, F, 6>(operands, first..end, token),
                    7 if I::TOKENS > 4 => tiles_of::<I, F, 7>(operands, first..end, token),
                    8 if I::TOKENS > 4 => tiles_of::<I, F, 8>(operands, first..end, token),
                    _ => unreachable!("at most `I::TOKENS` at a time"),
                }
            }
            token += n;
        }
        first = end;
    }
}

#[inline(always)]
unsafe fn tiles_of<I: Isa, F: Format, const N: usize>(
    operands: &Operands<'_>,
    tiles: std::ops::Range<usize>,
    token: usize,
) {
    // SAFETY: as `rows`.
    unsafe {
        let y: [*const u8; N] = std::array::from_fn(|n| *operands.tokens.get_unchecked(token + n));
        let out: [*mut f32; N] = std::array::from_fn(|n| *operands.out.get_unchecked(token + n));
        for t in tiles {
            let w = operands.packed.add(t * operands.n_blocks * At::<I, F>::BLOCK);
            let sums = if F::COLUMNS == 32 {
                blocks_of_32::<I, F, N>(w, operands.n_blocks, y)
            } else {
                blocks_of_256::<I, F, N>(w, operands.n_blocks, y)
            };
            let row = t * I::ROWS;
            let left = operands.n_out - row;
            for n in 0..N {
                if left >= I::ROWS {
                    I::store(out[n].add(row), sums[n]);
                } else {
                    let mut last = [0f32; 16];
                    I::store(last.as_mut_ptr(), sums[n]);
                    out[n].add(row).copy_from_nonoverlapping(last.as_ptr(), left);
                }
            }
        }
    }
}

/// The bound on a value's bits that products may count on.
const fn bits<F: Format>() -> usize {
    if F::WIDE { 8 } else { F::BITS }
}

#[inline(always)]
unsafe fn scale<I: Isa, F: Format>(p: *const u8) -> I::Floats {
    // SAFETY: as the caller's.
    unsafe { if F::SCALE_BF16 { I::bf16(p) } else { I::f16(p) } }
}

/// Blocks with one scale, and one minimum where the format has minima.
#[inline(always)]
unsafe fn blocks_of_32<I: Isa, F: Format, const N: usize>(
    mut w: *const u8,
    n_blocks: usize,
    mut y: [*const u8; N],
) -> [I::Floats; N] {
    // SAFETY: as `rows`; prefetches may lie anywhere.
    unsafe {
        let mut sums = [I::splat(0.0); N];
        for _ in 0..n_blocks {
            let d = scale::<I, F>(w);
            let codes = unpack::<I, F>(w.add(At::<I, F>::CODES));
            each_token!(n in 0..N {
                let a = y[n];
                let values = a.add(At::<I, F>::VALUES).cast();
                let factor = I::mul(d, I::splat(a.cast::<f32>().read_unaligned()));
                let dots = dot::<I, F, 0, 8>(offset::<I, F>(a, 0), &codes, values);
                sums[n] = I::fma(I::floats(dots), factor, sums[n]);
                if F::MIN {
                    let minimum = I::f16(w.add(At::<I, F>::MINIMA));
                    let sum = a.add(At::<I, F>::SUMS).cast::<f32>().read_unaligned();
                    sums[n] = I::fma(minimum, I::splat(sum), sums[n]);
                }
                y[n] = a.add(At::<I, F>::ACTIVATIONS);
            });
            w = w.add(At::<I, F>::BLOCK);
        }
        sums
    }
}

/// Blocks of 256 columns, whose groups have integer scales and minima.
#[inline(always)]
unsafe fn blocks_of_256<I: Isa, F: Format, const N: usize>(
    mut w: *const u8,
    n_blocks: usize,
    mut y: [*const u8; N],
) -> [I::Floats; N] {
    // SAFETY: as `rows`; prefetches may lie anywhere.
    unsafe {
        let mut sums = [I::splat(0.0); N];
        for _ in 0..n_blocks {
            let d = scale::<I, F>(w);
            let mut block = [I::splat(0.0); N];
            for c in 0..8 {
                let codes = unpack::<I, F>(w.add(At::<I, F>::CODES + c * F::BITS * At::<I, F>::VECTOR));
                let scales = w.add(At::<I, F>::GROUP_SCALES);
                if F::GROUP == 32 {
                    let scale = I::mul(d, I::i8(scales.add(c * I::ROWS)));
                    each_token!(n in 0..N {
                        let values = y[n].add(At::<I, F>::VALUES + 32 * c).cast();
                        let dots = dot::<I, F, 0, 8>(offset::<I, F>(y[n], c), &codes, values);
                        block[n] = I::fma(I::floats(dots), scale, block[n]);
                    });
                } else {
                    let first = I::mul(d, I::i8(scales.add(2 * c * I::ROWS)));
                    let second = I::mul(d, I::i8(scales.add((2 * c + 1) * I::ROWS)));
                    each_token!(n in 0..N {
                        let values = y[n].add(At::<I, F>::VALUES + 32 * c).cast::<i8>();
                        let dots = dot::<I, F, 0, 4>(offset::<I, F>(y[n], 2 * c), &codes, values);
                        block[n] = I::fma(I::floats(dots), first, block[n]);
                        let dots = dot::<I, F, 4, 4>(offset::<I, F>(y[n], 2 * c + 1), &codes, values.add(16));
                        block[n] = I::fma(I::floats(dots), second, block[n]);
                    });
                }
            }
            if F::MIN {
                let minimum = I::f16(w.add(At::<I, F>::MINIMA));
                let minima = w.add(At::<I, F>::GROUP_MINIMA);
                for n in 0..N {
                    let pairs = y[n].add(At::<I, F>::SUMS).cast::<i32>();
                    let total =
                        if F::GROUPS == 8 { I::minima::<4>(minima, pairs) } else { I::minima::<8>(minima, pairs) };
                    block[n] = I::fnma(I::floats(total), minimum, block[n]);
                }
            }
            for n in 0..N {
                sums[n] = I::fma(block[n], I::splat(y[n].cast::<f32>().read_unaligned()), sums[n]);
                y[n] = y[n].add(At::<I, F>::ACTIVATIONS);
            }
            w = w.add(At::<I, F>::BLOCK);
        }
        sums
    }
}

/// What a group's offset takes from its products.
#[inline(always)]
unsafe fn offset<I: Isa, F: Format>(y: *const u8, group: usize) -> i32 {
    if At::<I, F>::OFFSET == 0 {
        return 0;
    }
    // SAFETY: as the caller's.
    unsafe { y.add(At::<I, F>::SUMS).cast::<i32>().add(group).read_unaligned() }
}

#[inline(always)]
unsafe fn dot<I: Isa, F: Format, const FROM: usize, const N: usize>(
    init: i32,
    codes: &[I::Bytes; 8],
    values: *const i8,
) -> I::Ints {
    // SAFETY: as the caller's.
    unsafe {
        match bits::<F>() {
            8 => I::dot::<8, FROM, N>(init, codes, values),
            6 => I::dot::<6, FROM, N>(init, codes, values),
            5 => I::dot::<5, FROM, N>(init, codes, values),
            _ => I::dot::<4, FROM, N>(init, codes, values),
        }
    }
}

/// The values of 32 columns: eight vectors of four columns each. `pack::planes` is the inverse.
#[inline(always)]
unsafe fn unpack<I: Isa, F: Format>(p: *const u8) -> [I::Bytes; 8] {
    // SAFETY: as the caller's; prefetches may lie anywhere.
    unsafe {
        let vector = |i: usize| I::load(p.add(i * At::<I, F>::VECTOR));
        let mut at = 0;
        while at < F::BITS * At::<I, F>::VECTOR {
            I::prefetch(p.wrapping_add(AHEAD + at));
            at += 64;
        }
        let mut out = [vector(0); 8];
        match F::BITS {
            8 => {
                for (g, out) in out.iter_mut().enumerate() {
                    *out = vector(g);
                }
            }
            4..=6 => {
                for z in 0..4 {
                    let pair = vector(z);
                    out[2 * z] = I::and(pair, 15);
                    out[2 * z + 1] = I::and(I::down::<4>(pair), 15);
                }
                if F::BITS == 5 {
                    let h = vector(4);
                    let fifths = [
                        I::up::<4>(h),
                        I::up::<3>(h),
                        I::up::<2>(h),
                        I::up::<1>(h),
                        h,
                        I::down::<1>(h),
                        I::down::<2>(h),
                        I::down::<3>(h),
                    ];
                    for g in 0..8 {
                        out[g] = I::or(out[g], I::and(fifths[g], 16));
                    }
                }
                if F::BITS == 6 {
                    for half in 0..2 {
                        let h = vector(4 + half);
                        let pairs = [I::up::<4>(h), I::up::<2>(h), h, I::down::<2>(h)];
                        for k in 0..4 {
                            out[4 * half + k] = I::or(out[4 * half + k], I::and(pairs[k], 0x30));
                        }
                    }
                }
                if F::TABLE.is_some() {
                    for out in &mut out {
                        *out = I::lookup(&At::<I, F>::TABLE, *out);
                    }
                }
            }
            _ => {
                for half in 0..2 {
                    let v = vector(half);
                    let pairs = [v, I::down::<2>(v), I::down::<4>(v), I::down::<2>(I::down::<4>(v))];
                    for k in 0..4 {
                        out[4 * half + k] = I::and(pairs[k], 3);
                    }
                }
                if F::BITS == 3 {
                    let h = vector(2);
                    let thirds = [
                        I::up::<2>(h),
                        I::up::<1>(h),
                        h,
                        I::down::<1>(h),
                        I::down::<2>(h),
                        I::down::<3>(h),
                        I::down::<4>(h),
                        I::down::<1>(I::down::<4>(h)),
                    ];
                    for g in 0..8 {
                        out[g] = I::or(out[g], I::and(thirds[g], 4));
                    }
                }
            }
        }
        out
    }
}
