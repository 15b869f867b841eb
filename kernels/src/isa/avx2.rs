//! AVX2, with or without AVX-VNNI: 8 rows a vector. Refuses nothing.
//!
//! Without VNNI products of bytes are added in 16 bits for as long as their bound allows, which keeps them exact.

use std::arch::x86_64::*;

use super::Isa;

/// `VNNI` where the processor multiplies and adds four bytes at once.
pub(crate) struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Isa for Avx2<VNNI> {
    const ROWS: usize = 8;
    const SIGNED: bool = !VNNI;
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, mask: u8) -> __m256i {
        unsafe { _mm256_and_si256(a, _mm256_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn up<const N: u32>(a: __m256i) -> __m256i {
        unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    unsafe fn down<const N: u32>(a: __m256i) -> __m256i {
        unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: __m256i) -> __m256i {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, codes)
        }
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FROM: usize, const N: usize>(
        init: i32,
        w: &[__m256i; 8],
        y: *const i8,
    ) -> __m256i {
        unsafe {
            let mut sum = _mm256_set1_epi32(init);
            if VNNI {
                for g in 0..N {
                    let y = _mm256_set1_epi32(y.add(4 * g).cast::<i32>().read_unaligned());
                    sum = _mm256_dpbusd_avx_epi32(sum, w[FROM + g], y);
                }
                return sum;
            }
            let ones = _mm256_set1_epi16(1);
            // A pair of products is at most 2 * 127 * (2^BITS - 1), for signed bytes 2 * 127 * 128; 32,767 fit.
            let together = match BITS {
                0..=4 => 8,
                5 => 4,
                6 => 2,
                _ => 1,
            };
            let mut g = 0;
            while g < N {
                let end = if g + together < N { g + together } else { N };
                let mut part = Self::product::<BITS>(w[FROM + g], y.add(4 * g));
                g += 1;
                while g < end {
                    part = _mm256_add_epi16(part, Self::product::<BITS>(w[FROM + g], y.add(4 * g)));
                    g += 1;
                }
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(part, ones));
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn minima<const PAIRS: usize>(p: *const u8, y: *const i32) -> __m256i {
        unsafe {
            let mut sum = _mm256_setzero_si256();
            for j in 0..PAIRS {
                let w = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.add(2 * Self::ROWS * j).cast()));
                let y = _mm256_set1_epi32(y.add(j).read_unaligned());
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, y));
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn floats(a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, a: __m256) {
        unsafe { _mm256_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    /// Sums of two products each, in 16 bits. Signed weights lend their sign to the activations first.
    #[inline(always)]
    unsafe fn product<const BITS: usize>(w: __m256i, y: *const i8) -> __m256i {
        unsafe {
            let y = _mm256_set1_epi32(y.cast::<i32>().read_unaligned());
            if BITS == 8 {
                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(y, w))
            } else {
                _mm256_maddubs_epi16(w, y)
            }
        }
    }
}
