//! The steps of attention as functions of each instruction set, to be chosen while running.
//!
//! What a step does is `steps.rs`'s, which cells it gets is `worker.rs`'s, and what a tensor may be `problem.rs`'s.

use super::Type;
use super::simd::{Plain, Simd};

/// The cells that a row sees, as a range of the cells at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub lo: usize,
    pub hi: usize,
}

/// Rows of Q, K or V: `d` values of a type, `stride` bytes from one cell's to the next's.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub ty: Type,
    pub bytes: &'a [u8],
    pub stride: usize,
    pub d: usize,
}

/// How expanded rows lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Laid {
    /// One behind the other.
    Rows,
    /// In blocks of as many cells as the set has lanes: the first vectors of all of them, then the second ones.
    Blocks,
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
#[allow(clippy::type_complexity)]
pub(super) struct Ops {
    pub lanes: usize,
    /// Rows of K or V as f32: `(rows, cells, out, padded d, laid)`; zeros behind the row's values.
    pub expand: unsafe fn(&Rows, &[u32], &mut [f32], usize, Laid),
    /// Products of Q's rows with expanded cells `from..`: `(q, d, k, from, spans, rows of WIDTH)`.
    pub products: unsafe fn(&[f32], usize, &[f32], usize, &[Span], &mut [f32]),
    /// Products to weights exp(score - maximum), in place; returns the maximum and the weights' sum.
    pub weights: unsafe fn(&mut [f32], usize, &Softening) -> (f32, f32),
    /// Adds weights times expanded cells `from..`: `(rows of WIDTH weights, spans, v, from, d, sums)`.
    pub values: unsafe fn(&[f32], &[Span], &[f32], usize, usize, &mut [f32]),
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
            unsafe fn expand(rows: &Rows, cells: &[u32], out: &mut [f32], d: usize, laid: Laid) {
                // SAFETY: the caller runs where the set exists.
                unsafe { super::steps::expand::<$simd, $lanes>(rows, cells, out, d, laid) }
            }
            $(#[$feature])?
            unsafe fn products(q: &[f32], d: usize, k: &[f32], from: usize, spans: &[Span], out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::steps::products::<$simd, $lanes>(q, d, k, from, spans, out) }
            }
            $(#[$feature])?
            unsafe fn weights(s: &mut [f32], n: usize, how: &Softening) -> (f32, f32) {
                // SAFETY: as above.
                unsafe { super::steps::weights::<$simd, $lanes>(s, n, how) }
            }
            $(#[$feature])?
            unsafe fn values(p: &[f32], spans: &[Span], v: &[f32], from: usize, d: usize, out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::steps::values::<$simd, $lanes, $rows, $vectors>(p, spans, v, from, d, out) }
            }
            $(#[$feature])?
            unsafe fn blend(a: &mut [f32], x: f32, b: &[f32], y: f32) {
                // SAFETY: as above.
                unsafe { super::steps::blend::<$simd, $lanes>(a, x, b, y) }
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
                    let v = super::steps::exp::<$simd, $lanes>(<$simd>::splat(x));
                    <$simd>::store(out.as_mut_ptr(), v);
                }
                out[0]
            }
            $(#[$feature])?
            unsafe fn mark(mask: &[u8], marks: &mut [u8]) -> (usize, bool) {
                super::steps::mark(mask, marks)
            }
            Ops { lanes: $lanes, expand, products, weights, values, blend, scale, exp, mark }
        };
    };
}

ops!(PLAIN, Plain, 8, 2, 1);
#[cfg(target_arch = "x86_64")]
ops!(AVX2, super::x86::Avx2, 8, 6, 2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
ops!(AVX512, super::x86::Avx512, 16, 6, 4, #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
ops!(NEON, super::neon::Neon, 4, 6, 4, #[target_feature(enable = "neon")]);
