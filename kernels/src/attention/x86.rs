//! The attention kernels' vectors on x86-64: AVX-512 with 16 lanes, and AVX2 with FMA and F16C with 8.

use std::arch::x86_64::*;

use super::simd::Simd;

/// AVX-512 F.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

// SAFETY of every block below: the callers run where the set exists and pass pointers to as many values as are moved.
impl Simd<16> for Avx512 {
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn pow2(t: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(v: __m512, x: __m512, limit: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit), v) }
    }
    #[inline(always)]
    unsafe fn sums(v: &[__m512; 16]) -> __m512 {
        // Lane l is added to l + 8, then l + 4, l + 2, l + 1; the inputs are paired so that sums come out in order.
        // SAFETY: see above.
        unsafe {
            macro_rules! half {
                ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {{
                    let (a, b) = ($a, $b);
                    _mm512_add_ps($shuffle::<$low>(a, b), $shuffle::<$high>(a, b))
                }};
            }
            macro_rules! column {
                ($i:literal) => {{
                    let low = half!(_mm512_shuffle_f32x4, 0x44, 0xee, v[$i], v[$i + 4]);
                    let high = half!(_mm512_shuffle_f32x4, 0x44, 0xee, v[$i + 8], v[$i + 12]);
                    half!(_mm512_shuffle_f32x4, 0x88, 0xdd, low, high)
                }};
            }
            let low = half!(_mm512_shuffle_ps, 0x44, 0xee, column!(0), column!(1));
            let high = half!(_mm512_shuffle_ps, 0x44, 0xee, column!(2), column!(3));
            half!(_mm512_shuffle_ps, 0x88, 0xdd, low, high)
        }
    }
}

// SAFETY of every block below: as above.
impl Simd<8> for Avx2 {
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn pow2(t: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
            _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(v: __m256, x: __m256, limit: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, limit), v) }
    }
    #[inline(always)]
    unsafe fn sums(v: &[__m256; 8]) -> __m256 {
        // Lane l is added to l + 4, then l + 2, l + 1; the inputs are paired so that sums come out in order.
        // SAFETY: see above.
        unsafe {
            macro_rules! half {
                ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {{
                    let (a, b) = ($a, $b);
                    _mm256_add_ps($shuffle::<$low>(a, b), $shuffle::<$high>(a, b))
                }};
            }
            macro_rules! column {
                ($i:literal) => {
                    half!(_mm256_permute2f128_ps, 0x20, 0x31, v[$i], v[$i + 4])
                };
            }
            let low = half!(_mm256_shuffle_ps, 0x44, 0xee, column!(0), column!(1));
            let high = half!(_mm256_shuffle_ps, 0x44, 0xee, column!(2), column!(3));
            half!(_mm256_shuffle_ps, 0x88, 0xdd, low, high)
        }
    }
}
