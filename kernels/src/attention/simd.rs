//! Vectors of f32 as the attention kernels need them, and the plain set for any processor.
//!
//! A set says how values are loaded, added and reduced. It refuses to choose: `ops.rs` picks a set while running.

pub use crate::half::f16_to_f32 as half;

/// One instruction set: `L` lanes of f32.
///
/// Every method is `unsafe` because a caller must run where the processor has the set, and must pass pointers to as
/// many values as the method reads or writes. No pointer needs any alignment.
pub(super) trait Simd<const L: usize>: Copy {
    /// `L` values in one register.
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The greater of both, and `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The lesser of both, and `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the set can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `L` halves as f32.
    unsafe fn f16(p: *const u8) -> Self::V;
    /// `L` bfloat16 as f32.
    unsafe fn bf16(p: *const u8) -> Self::V;
    /// `L` signed bytes as f32.
    unsafe fn i8(p: *const u8) -> Self::V;
    /// 2^n, where `t` is n + 1.5 * 2^23.
    unsafe fn pow2(t: Self::V) -> Self::V;
    /// `v`, or 0 in the lanes where `x < limit`.
    unsafe fn zero_below(v: Self::V, x: Self::V, limit: Self::V) -> Self::V;
    /// The sum of the lanes of each of `L` vectors, in the set's own fixed order.
    unsafe fn sums(v: &[Self::V; L]) -> Self::V;
}

/// Eight lanes without any instruction set: the compiler makes of them what the target has at least.
#[derive(Clone, Copy)]
pub(super) struct Plain;

fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd<8> for Plain {
    type V = [f32; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's pointer holds eight values.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller's pointer has room for eight values.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Two roundings: a fused product is a call of the C library where the processor has none.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's pointer holds eight halves.
        unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(half)
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's pointer holds eight values of two bytes.
        unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's pointer holds eight bytes.
        unsafe { p.cast::<[i8; 8]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn pow2(t: [f32; 8]) -> [f32; 8] {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    #[inline(always)]
    unsafe fn zero_below(v: [f32; 8], x: [f32; 8], limit: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] < limit[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    unsafe fn sums(v: &[[f32; 8]; 8]) -> [f32; 8] {
        v.map(|v| ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])))
    }
}
