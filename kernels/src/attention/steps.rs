//! The steps of attention, written once over [`Simd`].
//!
//! A step takes slices and checks their lengths; inside it are pointers. It refuses nothing else. All of it is inlined
//! into the functions of `ops.rs`, which have the instruction set; `unsafe` says that a step runs only there.

use super::ops::{Laid, Rows, Softening, Span};
use super::simd::{Simd, half};
use super::{HIDDEN, Type, WIDTH};

/// e^x for x up to 88, at most 1.5e-7 off relatively; 0 below -87.3, exactly 1 at 0, NaN of NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7, 5.2e-9 off at most.
#[inline(always)]
pub(super) unsafe fn exp<S: Simd<L>, const L: usize>(x: S::V) -> S::V {
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: only registers.
    unsafe {
        let t = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(t, S::splat(ROUND));
        let r = S::fma(n, S::splat(-LN2_HIGH), x);
        let r = S::fma(n, S::splat(-LN2_LOW), r);
        let mut e = S::splat(1.0 / 5040.0);
        for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            e = S::fma(e, r, S::splat(factor));
        }
        S::zero_below(S::mul(e, S::pow2(t)), x, S::splat(-87.3))
    }
}

/// tanh, at most 2e-7 off: (e - 1) / (e + 1) with e = exp(2 x).
#[inline(always)]
unsafe fn tanh<S: Simd<L>, const L: usize>(x: S::V) -> S::V {
    // SAFETY: only registers.
    unsafe {
        let x = S::max(S::splat(-9.0), S::min(S::splat(9.0), x));
        let e = exp::<S, L>(S::add(x, x));
        S::div(S::sub(e, S::splat(1.0)), S::add(e, S::splat(1.0)))
    }
}

// The crate checks sums for overflow, so the loops below step pointers: a check in them would halve their speed.

#[inline(always)]
pub(super) unsafe fn expand<S: Simd<L>, const L: usize>(
    rows: &Rows,
    cells: &[u32],
    out: &mut [f32],
    dp: usize,
    laid: Laid,
) {
    let Rows { ty, bytes, stride, d } = *rows;
    assert!(d > 0 && d <= dp && dp.is_multiple_of(L) && out.len() >= cells.len().next_multiple_of(L) * dp);
    let row_bytes = ty.row_bytes(d);
    let (whole, rest) = (d / L, d % L);
    let step = if laid == Laid::Blocks { L * L } else { L };
    // Behind the whole vectors comes at most one of the values that fill none, and zeros.
    let padding = dp / L - whole;
    for (i, &cell) in cells.iter().enumerate() {
        let at = cell as usize * stride;
        let row = &bytes[at..at + row_bytes];
        let start = if laid == Laid::Blocks { (i / L * dp + i % L) * L } else { i * dp };
        // A macro, not closures: a closure would be compiled without the set's instructions.
        macro_rules! each {
            ($from:expr, $n:expr, $bytes:literal, $to:ident, $p:ident => $value:expr) => {{
                let mut $p = $from;
                for _ in 0..$n {
                    S::store($to, $value);
                    $to = $to.add(step);
                    $p = $p.add($bytes * L);
                }
            }};
        }
        // SAFETY: `row` holds `whole` vectors and `rest` values of its type; `out` has all of the cell's vectors, which
        // end at `start + dp` among rows, and within the cell's block of L among blocks, by the assert above.
        unsafe {
            let (mut to, from) = (out.as_mut_ptr().add(start), row.as_ptr());
            match ty {
                Type::F32 => each!(from, whole, 4, to, p => S::load(p.cast())),
                Type::F16 => each!(from, whole, 2, to, p => S::f16(p)),
                Type::Bf16 => each!(from, whole, 2, to, p => S::bf16(p)),
                Type::Q8_0 => {
                    for block in row.chunks_exact(34) {
                        let scale = S::splat(half(u16::from_le_bytes([block[0], block[1]])));
                        each!(block.as_ptr().add(2), 32 / L, 1, to, p => S::mul(scale, S::i8(p)));
                    }
                }
            }
            if padding > 0 {
                let mut last = [0.0; L];
                for (value, i) in last[..rest].iter_mut().zip(d - rest..) {
                    *value = ty.value(row, i);
                }
                S::store(to, S::load(last.as_ptr()));
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn products<S: Simd<L>, const L: usize>(
    q: &[f32],
    d: usize,
    k: &[f32],
    from: usize,
    spans: &[Span],
    out: &mut [f32],
) {
    let steps = d / L;
    let blocks = k.len() / d / L;
    assert!(d.is_multiple_of(L) && q.len() >= spans.len() * d && out.len() >= spans.len() * WIDTH);
    assert!(from + blocks * L <= WIDTH);
    for block in 0..blocks {
        let first = from + block * L;
        let k = &k[block * L * d..];
        for (row, span) in spans.iter().enumerate() {
            if span.hi <= first || span.lo >= first + L {
                continue;
            }
            // SAFETY: the asserts above: `q` has a row of d, `k` L rows of d in a block, `out` L values.
            unsafe {
                let (mut q, mut k) = (q.as_ptr().add(row * d), k.as_ptr());
                let mut sums = [S::splat(0.0); L];
                for _ in 0..steps {
                    let x = S::load(q);
                    for sum in &mut sums {
                        *sum = S::fma(x, S::load(k), *sum);
                        k = k.add(L);
                    }
                    q = q.add(L);
                }
                S::store(out.as_mut_ptr().add(row * WIDTH + first), S::sums(&sums));
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn weights<S: Simd<L>, const L: usize>(s: &mut [f32], n: usize, how: &Softening) -> (f32, f32) {
    let padded = n.next_multiple_of(L);
    assert!(n > 0 && padded <= s.len() && (how.mask.is_empty() || how.mask.len() >= padded));
    // SAFETY: `s` has `padded` values, and so has the mask where there is one.
    unsafe {
        let (scale, slope) = (S::splat(how.scale), S::splat(how.slope));
        let p = s.as_mut_ptr();
        for i in (0..padded).step_by(L) {
            let mut x = S::mul(S::load(p.add(i)), scale);
            if how.softcap != 0.0 {
                x = S::mul(tanh::<S, L>(x), S::splat(how.softcap));
            }
            if !how.mask.is_empty() {
                x = S::fma(slope, S::load(how.mask.as_ptr().add(i)), x);
            }
            S::store(p.add(i), x);
        }
        s[n..padded].fill(f32::NEG_INFINITY);
        let p = s.as_mut_ptr();
        let mut most = S::load(p);
        for i in (L..padded).step_by(L) {
            most = S::max(most, S::load(p.add(i)));
        }
        let mut lanes = [0.0; L];
        S::store(lanes.as_mut_ptr(), most);
        let most = lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let mut sum = S::splat(0.0);
        for i in (0..padded).step_by(L) {
            let x = exp::<S, L>(S::sub(S::load(p.add(i)), S::splat(most)));
            S::store(p.add(i), x);
            sum = S::add(sum, x);
        }
        let mut all = [S::splat(0.0); L];
        all[0] = sum;
        S::store(lanes.as_mut_ptr(), S::sums(&all));
        (most, lanes[0])
    }
}

#[inline(always)]
pub(super) unsafe fn values<S: Simd<L>, const L: usize, const R: usize, const V: usize>(
    p: &[f32],
    spans: &[Span],
    v: &[f32],
    from: usize,
    d: usize,
    out: &mut [f32],
) {
    let to = from + v.len() / d;
    assert!(d.is_multiple_of(L) && out.len() >= spans.len() * d && p.len() >= spans.len() * WIDTH && to <= WIDTH);
    for first in (0..spans.len()).step_by(R) {
        let rows = &spans[first..(first + R).min(spans.len())];
        // What all rows of a tile see is read once for all of them; what precedes and follows it, row by row.
        let (mut lo, mut hi) = (from, to);
        for span in rows {
            (lo, hi) = (lo.max(span.lo), hi.min(span.hi));
        }
        if lo >= hi {
            (lo, hi) = (to, to);
        }
        // SAFETY: rows are below `spans.len()` and cells in from..to; the assert above covers both.
        unsafe {
            let (p, v, out) = (p.as_ptr().add(first * WIDTH), v.as_ptr(), out.as_mut_ptr().add(first * d));
            for (row, span) in rows.iter().enumerate() {
                let (p, out) = (p.add(row * WIDTH), out.add(row * d));
                let cells = Span { lo: span.lo.clamp(from, lo), hi: span.hi.clamp(from, lo) };
                tiles::<S, L, 1, V>(p, cells, v, from, d, out);
            }
            let cells = Span { lo, hi };
            match rows.len() {
                1 => tiles::<S, L, 1, V>(p, cells, v, from, d, out),
                2 => tiles::<S, L, 2, V>(p, cells, v, from, d, out),
                3 => tiles::<S, L, 3, V>(p, cells, v, from, d, out),
                4 => tiles::<S, L, 4, V>(p, cells, v, from, d, out),
                5 => tiles::<S, L, 5, V>(p, cells, v, from, d, out),
                _ => tiles::<S, L, R, V>(p, cells, v, from, d, out),
            }
            for (row, span) in rows.iter().enumerate() {
                let (p, out) = (p.add(row * WIDTH), out.add(row * d));
                let cells = Span { lo: span.lo.clamp(hi, to), hi: span.hi.clamp(hi, to) };
                tiles::<S, L, 1, V>(p, cells, v, from, d, out);
            }
        }
    }
}

/// Adds weights times values for `R` rows and all of `d`, `V` vectors at a time; a sum takes its cells in order.
#[inline(always)]
unsafe fn tiles<S: Simd<L>, const L: usize, const R: usize, const V: usize>(
    p: *const f32,
    cells: Span,
    v: *const f32,
    from: usize,
    d: usize,
    out: *mut f32,
) {
    if cells.lo >= cells.hi {
        return;
    }
    let n = cells.hi - cells.lo;
    let vectors = d / L;
    // SAFETY: the caller's pointers hold what is read: rows of WIDTH and `d`, cells from `from`.
    unsafe {
        let p = p.add(cells.lo);
        let (mut v, mut out) = (v.add((cells.lo - from) * d), out);
        for _ in 0..vectors / V {
            tile::<S, L, R, V>(p, n, v, d, out);
            (v, out) = (v.add(V * L), out.add(V * L));
        }
        for _ in 0..vectors % V {
            tile::<S, L, R, 1>(p, n, v, d, out);
            (v, out) = (v.add(L), out.add(L));
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd<L>, const L: usize, const R: usize, const V: usize>(
    mut p: *const f32,
    n: usize,
    mut v: *const f32,
    d: usize,
    out: *mut f32,
) {
    // SAFETY: as `tiles`.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        let mut row = out;
        for sums in &mut sums {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(row.add(i * L));
            }
            row = row.add(d);
        }
        for _ in 0..n {
            let mut x = [S::splat(0.0); V];
            for (i, x) in x.iter_mut().enumerate() {
                *x = S::load(v.add(i * L));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = S::splat(*p.add(r * WIDTH));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = S::fma(weight, x, *sum);
                }
            }
            (p, v) = (p.add(1), v.add(d));
        }
        let mut row = out;
        for sums in sums {
            for (i, sum) in sums.into_iter().enumerate() {
                S::store(row.add(i * L), sum);
            }
            row = row.add(d);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn blend<S: Simd<L>, const L: usize>(a: &mut [f32], x: f32, b: &[f32], y: f32) {
    assert!(a.len().is_multiple_of(L) && a.len() == b.len());
    // SAFETY: L divides both lengths.
    unsafe {
        let (x, y) = (S::splat(x), S::splat(y));
        for i in (0..a.len()).step_by(L) {
            let p = a.as_mut_ptr().add(i);
            S::store(p, S::fma(S::load(p), x, S::mul(S::load(b.as_ptr().add(i)), y)));
        }
    }
}

#[inline(always)]
pub(super) fn mark(mask: &[u8], marks: &mut [u8]) -> (usize, bool) {
    let (mut seen, mut values) = (0, 0u16);
    // In pieces, so that the inner loop counts in narrow lanes.
    for (mask, marks) in mask.chunks(2 * 128).zip(marks.chunks_mut(128)) {
        let mut count = 0u8;
        for (bytes, mark) in mask.as_chunks::<2>().0.iter().zip(marks) {
            let bits = u16::from_le_bytes(*bytes);
            let shown = u8::from(bits != HIDDEN);
            *mark |= shown;
            // At most 128: a checked sum would keep the loop from being vectorized.
            count = count.wrapping_add(shown);
            values |= bits & 0x7fff & u16::from(shown).wrapping_neg();
        }
        seen += usize::from(count);
    }
    (seen, values != 0)
}
