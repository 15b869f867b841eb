//! The steps of attention, written once over [`Simd`] and compiled for each instruction set.
//!
//! A step takes slices and checks their lengths; inside it are pointers. It refuses nothing else: what a tensor may be
//! is `problem.rs`'s, and which cells a step gets is `worker.rs`'s.

use super::Type;
use super::simd::{Plain, Simd, half};

/// The cells that a row sees, as a range of the cells at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub lo: usize,
    pub hi: usize,
}

/// What turns a product of Q and K into a score, for one row.
pub(super) struct Softening<'a> {
    pub scale: f32,
    /// 0 for none; `scale` is then already divided by it.
    pub softcap: f32,
    pub slope: f32,
    /// The mask's values of the same cells; empty where all are 0.
    pub mask: &'a [f32],
}

/// The steps of one instruction set.
///
/// Safety of each: the processor must have the set.
pub(super) struct Ops {
    pub lanes: usize,
    /// Rows of K or V as f32: `(type, bytes, stride, cells, d, out, padded d)`; zeros behind the `d` values.
    #[allow(clippy::type_complexity)]
    pub expand: unsafe fn(Type, &[u8], usize, &[u32], usize, &mut [f32], usize),
    /// Products of Q's rows with expanded cells `from..`: `(q, d, k, from, spans, out, out's row length)`.
    #[allow(clippy::type_complexity)]
    pub products: unsafe fn(&[f32], usize, &[f32], usize, &[Span], &mut [f32], usize),
    /// Products to weights exp(score - maximum), in place; returns the maximum and the weights' sum.
    pub weights: unsafe fn(&mut [f32], usize, &Softening) -> (f32, f32),
    /// Adds weights times expanded cells `from..`: `(weights, their row length, spans, v, from, d, sums)`.
    #[allow(clippy::type_complexity)]
    pub values: unsafe fn(&[f32], usize, &[Span], &[f32], usize, usize, &mut [f32]),
    /// `a = a * x + b * y`.
    pub blend: unsafe fn(&mut [f32], f32, &[f32], f32),
    /// `a = a * x`.
    pub scale: unsafe fn(&mut [f32], f32),
    /// exp of one value, as `weights` computes it.
    pub exp: unsafe fn(f32) -> f32,
    /// Marks the cells that a row of the mask shows; says how many, and whether any of their values is not 0.
    pub mark: unsafe fn(&[u8], &mut [u8]) -> (usize, bool),
}

/// Compiles the steps for one set: its name, vectors, lanes, rows and vectors of one register tile, and attribute.
macro_rules! ops {
    ($name:ident, $simd:ty, $lanes:literal, $rows:literal, $vectors:literal $(, #[$feature:meta])?) => {
        pub(super) static $name: Ops = {
            $(#[$feature])?
            unsafe fn expand(ty: Type, bytes: &[u8], stride: usize, cells: &[u32], d: usize, out: &mut [f32], dp: usize) {
                // SAFETY: the caller runs where the set exists.
                unsafe { super::ops::expand::<$simd, $lanes>(ty, bytes, stride, cells, d, out, dp) }
            }
            $(#[$feature])?
            unsafe fn products(q: &[f32], d: usize, k: &[f32], from: usize, spans: &[Span], out: &mut [f32], width: usize) {
                // SAFETY: as above.
                unsafe { super::ops::products::<$simd, $lanes>(q, d, k, from, spans, out, width) }
            }
            $(#[$feature])?
            unsafe fn weights(s: &mut [f32], n: usize, how: &Softening) -> (f32, f32) {
                // SAFETY: as above.
                unsafe { super::ops::weights::<$simd, $lanes>(s, n, how) }
            }
            $(#[$feature])?
            unsafe fn values(p: &[f32], width: usize, spans: &[Span], v: &[f32], from: usize, d: usize, out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::ops::values::<$simd, $lanes, $rows, $vectors>(p, width, spans, v, from, d, out) }
            }
            $(#[$feature])?
            unsafe fn blend(a: &mut [f32], x: f32, b: &[f32], y: f32) {
                // SAFETY: as above.
                unsafe { super::ops::blend::<$simd, $lanes>(a, x, b, y) }
            }
            $(#[$feature])?
            unsafe fn scale(a: &mut [f32], x: f32) {
                a.iter_mut().for_each(|a| *a *= x);
            }
            $(#[$feature])?
            unsafe fn exp(x: f32) -> f32 {
                let mut out = [0.0; $lanes];
                // SAFETY: as above; `out` has room for all lanes.
                unsafe {
                    let v = super::ops::exp::<$simd, $lanes>(<$simd>::splat(x));
                    <$simd>::store(out.as_mut_ptr(), v);
                }
                out[0]
            }
            $(#[$feature])?
            unsafe fn mark(mask: &[u8], marks: &mut [u8]) -> (usize, bool) {
                super::ops::mark(mask, marks)
            }
            Ops { lanes: $lanes, expand, products, weights, values, blend, scale, exp, mark }
        };
    };
}

ops!(PLAIN, Plain, 8, 1, 2);
#[cfg(target_arch = "x86_64")]
ops!(AVX2, super::x86::Avx2, 8, 3, 3, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
ops!(AVX512, super::x86::Avx512, 16, 6, 4, #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
ops!(NEON, super::neon::Neon, 4, 4, 4, #[target_feature(enable = "neon")]);

/// e^x for x up to 88, at most 1.5e-7 off relatively; 0 below -87.3, exactly 1 at 0, NaN of NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7, 5.2e-9 off at most.
#[inline(always)]
unsafe fn exp<S: Simd<L>, const L: usize>(x: S::V) -> S::V {
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

#[inline(always)]
unsafe fn expand<S: Simd<L>, const L: usize>(
    ty: Type,
    bytes: &[u8],
    stride: usize,
    cells: &[u32],
    d: usize,
    out: &mut [f32],
    dp: usize,
) {
    assert!(d <= dp && dp % L == 0 && out.len() >= cells.len() * dp);
    let row_bytes = ty.row_bytes(d);
    for (&cell, out) in cells.iter().zip(out.chunks_exact_mut(dp)) {
        let at = cell as usize * stride;
        let row = &bytes[at..at + row_bytes];
        let whole = d / L * L;
        // A macro, not closures: a closure would be compiled without the set's instructions.
        macro_rules! each {
            ($from:expr, $bytes:literal, $to:expr, $p:ident => $value:expr) => {
                for (from, to) in $from.chunks_exact($bytes * L).zip($to.chunks_exact_mut(L)) {
                    let $p = from.as_ptr();
                    S::store(to.as_mut_ptr(), $value);
                }
            };
        }
        // SAFETY: each chunk of bytes holds L values of the type, and each chunk of f32 has room for them.
        unsafe {
            match ty {
                Type::F32 => each!(row, 4, out, p => S::load(p.cast())),
                Type::F16 => each!(row, 2, out, p => S::f16(p)),
                Type::Bf16 => each!(row, 2, out, p => S::bf16(p)),
                Type::Q8_0 => {
                    for (block, out) in row.chunks_exact(34).zip(out.chunks_exact_mut(32)) {
                        let scale = S::splat(half(u16::from_le_bytes([block[0], block[1]])));
                        each!(block[2..], 1, out, p => S::mul(scale, S::i8(p)));
                    }
                }
            }
        }
        for (i, out) in out.iter_mut().enumerate().skip(whole) {
            *out = if i < d { ty.value(row, i) } else { 0.0 };
        }
    }
}

#[inline(always)]
unsafe fn products<S: Simd<L>, const L: usize>(
    q: &[f32],
    d: usize,
    k: &[f32],
    from: usize,
    spans: &[Span],
    out: &mut [f32],
    width: usize,
) {
    let blocks = k.len() / d / L;
    assert!(d % L == 0 && q.len() >= spans.len() * d && out.len() >= spans.len() * width);
    assert!(from + blocks * L <= width);
    for block in 0..blocks {
        let first = from + block * L;
        for (row, span) in spans.iter().enumerate() {
            if span.hi <= first || span.lo >= first + L {
                continue;
            }
            // SAFETY: the asserts above: `q` has a row of d, `k` L rows of d, `out` L values.
            unsafe {
                let q = q.as_ptr().add(row * d);
                let k = k.as_ptr().add(block * L * d);
                let mut sums = [S::splat(0.0); L];
                for i in (0..d).step_by(L) {
                    let x = S::load(q.add(i));
                    for (cell, sum) in sums.iter_mut().enumerate() {
                        *sum = S::fma(x, S::load(k.add(cell * d + i)), *sum);
                    }
                }
                S::store(out.as_mut_ptr().add(row * width + first), S::sums(&sums));
            }
        }
    }
}

#[inline(always)]
unsafe fn weights<S: Simd<L>, const L: usize>(s: &mut [f32], n: usize, how: &Softening) -> (f32, f32) {
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
unsafe fn values<S: Simd<L>, const L: usize, const R: usize, const V: usize>(
    p: &[f32],
    width: usize,
    spans: &[Span],
    v: &[f32],
    from: usize,
    d: usize,
    out: &mut [f32],
) {
    let to = from + v.len() / d;
    assert!(d % L == 0 && out.len() >= spans.len() * d && p.len() >= spans.len() * width && to <= width);
    for first in (0..spans.len()).step_by(R) {
        let rows = &spans[first..(first + R).min(spans.len())];
        // What all rows of a full tile see is read once for all of them; what precedes and follows it, row by row.
        let mut lo = rows.iter().map(|s| s.lo).max().unwrap_or(0).clamp(from, to);
        let mut hi = rows.iter().map(|s| s.hi).min().unwrap_or(0).clamp(from, to);
        if rows.len() < R || lo >= hi {
            (lo, hi) = (to, to);
        }
        // SAFETY: rows are below `spans.len()` and cells in from..to; the assert above covers both.
        unsafe {
            let (p, v, out) = (p.as_ptr().add(first * width), v.as_ptr(), out.as_mut_ptr().add(first * d));
            for (row, span) in rows.iter().enumerate() {
                let cells = Span { lo: span.lo.clamp(from, lo), hi: span.hi.clamp(from, lo) };
                tiles::<S, L, 1, V>(p.add(row * width), width, cells, v, from, d, out.add(row * d));
            }
            tiles::<S, L, R, V>(p, width, Span { lo, hi }, v, from, d, out);
            for (row, span) in rows.iter().enumerate() {
                let cells = Span { lo: span.lo.clamp(hi, to), hi: span.hi.clamp(hi, to) };
                tiles::<S, L, 1, V>(p.add(row * width), width, cells, v, from, d, out.add(row * d));
            }
        }
    }
}

/// Adds weights times values for `R` rows and all of `d`, `V` vectors at a time; a sum takes its cells in order.
#[inline(always)]
unsafe fn tiles<S: Simd<L>, const L: usize, const R: usize, const V: usize>(
    p: *const f32,
    width: usize,
    cells: Span,
    v: *const f32,
    from: usize,
    d: usize,
    out: *mut f32,
) {
    if cells.lo >= cells.hi {
        return;
    }
    let mut at = 0;
    // SAFETY: the caller's pointers hold what is read: rows of `width` and `d`, cells from `from`.
    unsafe {
        while at + V * L <= d {
            tile::<S, L, R, V>(p, width, cells, v.add(at), from, d, out.add(at));
            at += V * L;
        }
        while at < d {
            tile::<S, L, R, 1>(p, width, cells, v.add(at), from, d, out.add(at));
            at += L;
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd<L>, const L: usize, const R: usize, const V: usize>(
    p: *const f32,
    width: usize,
    cells: Span,
    v: *const f32,
    from: usize,
    d: usize,
    out: *mut f32,
) {
    // SAFETY: as `tiles`.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        for r in 0..R {
            for i in 0..V {
                sums[r][i] = S::load(out.add(r * d + i * L));
            }
        }
        let mut row = v.add((cells.lo - from) * d);
        for cell in cells.lo..cells.hi {
            let p = p.add(cell);
            let mut x = [S::splat(0.0); V];
            for i in 0..V {
                x[i] = S::load(row.add(i * L));
            }
            for r in 0..R {
                let weight = S::splat(*p.add(r * width));
                for i in 0..V {
                    sums[r][i] = S::fma(weight, x[i], sums[r][i]);
                }
            }
            row = row.add(d);
        }
        for r in 0..R {
            for i in 0..V {
                S::store(out.add(r * d + i * L), sums[r][i]);
            }
        }
    }
}

#[inline(always)]
unsafe fn blend<S: Simd<L>, const L: usize>(a: &mut [f32], x: f32, b: &[f32], y: f32) {
    assert!(a.len() % L == 0 && a.len() == b.len());
    // SAFETY: L divides both lengths.
    unsafe {
        let (x, y) = (S::splat(x), S::splat(y));
        for i in (0..a.len()).step_by(L) {
            let p = a.as_mut_ptr().add(i);
            S::store(p, S::fma(S::load(p), x, S::mul(S::load(b.as_ptr().add(i)), y)));
        }
    }
}

/// The bits of -inf as a half: a cell that the mask hides.
const HIDDEN: u16 = 0xfc00;

#[inline(always)]
fn mark(mask: &[u8], marks: &mut [u8]) -> (usize, bool) {
    let (mut seen, mut values) = (0, 0u16);
    // In pieces, so that the inner loop counts in narrow lanes.
    for (mask, marks) in mask.chunks(2 * 128).zip(marks.chunks_mut(128)) {
        let mut count = 0u8;
        for (bytes, mark) in mask.as_chunks::<2>().0.iter().zip(marks) {
            let bits = u16::from_le_bytes(*bytes);
            let shown = u8::from(bits != HIDDEN);
            *mark |= shown;
            count += shown;
            values |= bits & 0x7fff & u16::from(shown).wrapping_neg();
        }
        seen += usize::from(count);
    }
    (seen, values != 0)
}
