//! Products of rows of plain numbers (F32, F16, BF16) with tokens, as a file or a cache has them.
//!
//! A row's value for a token is a sum over columns in lanes, whose order depends on nothing but the number of columns;
//! hence it is the same for every number of tokens and of threads. Refuses nothing; the caller knows the lengths.

use super::isa::Isa;

/// Numbers that a row can consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are ggml's own.
pub enum Numbers {
    F32,
    F16,
    BF16,
}

impl Numbers {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// Tokens whose sums stay in registers while a row passes by.
const TOKENS: usize = 4;

/// Computes `n_rows` values for each token: `out[token][row]`.
///
/// # Safety
/// The processor has `I`'s instructions. `w` points to rows of `n_in` numbers that lie `row_bytes` apart, `tokens` to
/// `n_in` floats each, `out` to `n_rows` floats each that nobody else uses meanwhile.
#[inline(always)]
pub(super) unsafe fn rows<I: Isa, const TYPE: u8>(
    (w, row_bytes, n_rows): (*const u8, usize, usize),
    n_in: usize,
    tokens: &[*const f32],
    out: &[*mut f32],
) {
    for (tokens, out) in tokens.chunks(TOKENS).zip(out.chunks(TOKENS)) {
        for row in 0..n_rows {
            // SAFETY: as this function's own.
            unsafe {
                let w = w.add(row * row_bytes);
                match *tokens {
                    [a] => store(row, dots::<I, TYPE, 1>(w, n_in, [a]), out),
                    [a, b] => store(row, dots::<I, TYPE, 2>(w, n_in, [a, b]), out),
                    [a, b, c] => store(row, dots::<I, TYPE, 3>(w, n_in, [a, b, c]), out),
                    [a, b, c, d] => store(row, dots::<I, TYPE, 4>(w, n_in, [a, b, c, d]), out),
                    _ => {}
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store<const N: usize>(row: usize, sums: [f32; N], out: &[*mut f32]) {
    for (sum, out) in sums.iter().zip(out) {
        // SAFETY: as the caller's.
        unsafe { out.add(row).write(*sum) };
    }
}

#[inline(always)]
unsafe fn load<I: Isa, const TYPE: u8>(p: *const u8) -> I::Floats {
    // SAFETY: as the caller's.
    unsafe {
        match TYPE {
            0 => I::f32(p.cast()),
            1 => I::f16(p),
            _ => I::bf16(p),
        }
    }
}

/// One row and `N` tokens. Four sums take turns, so that additions need not wait for each other.
#[inline(always)]
unsafe fn dots<I: Isa, const TYPE: u8, const N: usize>(w: *const u8, n_in: usize, x: [*const f32; N]) -> [f32; N] {
    const SUMS: usize = 4;
    let size = if TYPE == 0 { 4 } else { 2 };
    // SAFETY: as `rows`; the last, partial vector is read from copies.
    unsafe {
        let mut sums = [[I::splat(0.0); SUMS]; N];
        let whole = n_in / I::ROWS;
        for i in 0..whole {
            let at = i * I::ROWS;
            let row = load::<I, TYPE>(w.add(at * size));
            for n in 0..N {
                sums[n][i % SUMS] = I::fma(row, I::f32(x[n].add(at)), sums[n][i % SUMS]);
            }
        }
        let (at, left) = (whole * I::ROWS, n_in % I::ROWS);
        if left > 0 {
            let mut last = [0u8; 64];
            last.as_mut_ptr().copy_from_nonoverlapping(w.add(at * size), left * size);
            let row = load::<I, TYPE>(last.as_ptr());
            for n in 0..N {
                let mut last = [0f32; 16];
                last.as_mut_ptr().copy_from_nonoverlapping(x[n].add(at), left);
                sums[n][0] = I::fma(row, I::f32(last.as_ptr()), sums[n][0]);
            }
        }
        std::array::from_fn(|n| {
            let [a, b, c, d] = sums[n];
            let mut lanes = [0f32; 16];
            I::store(lanes.as_mut_ptr(), I::add(I::add(a, b), I::add(c, d)));
            let mut width = I::ROWS / 2;
            while width > 0 {
                for i in 0..width {
                    lanes[i] += lanes[i + width];
                }
                width /= 2;
            }
            lanes[0]
        })
    }
}
