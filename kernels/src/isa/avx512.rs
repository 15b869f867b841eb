//! AVX-512 with VNNI: 16 rows a vector, four products a lane and instruction. Refuses nothing.

use std::arch::x86_64::*;

use super::Isa;

pub(crate) struct Avx512;

impl Isa for Avx512 {
    const ROWS: usize = 16;
    const SIGNED: bool = false;
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, mask: u8) -> __m512i {
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn up<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn down<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: __m512i) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, codes)
        }
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FROM: usize, const N: usize>(
        init: i32,
        w: &[__m512i; 8],
        y: *const i8,
    ) -> __m512i {
        unsafe {
            let mut sum = _mm512_set1_epi32(init);
            for g in 0..N {
                let y = _mm512_set1_epi32(y.add(4 * g).cast::<i32>().read_unaligned());
                sum = _mm512_dpbusd_epi32(sum, w[FROM + g], y);
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn minima<const PAIRS: usize>(p: *const u8, y: *const i32) -> __m512i {
        unsafe {
            let mut sum = _mm512_setzero_si512();
            for j in 0..PAIRS {
                let w = _mm512_cvtepu8_epi16(_mm256_loadu_si256(p.add(2 * Self::ROWS * j).cast()));
                sum = _mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(y.add(j).read_unaligned()));
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn floats(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, a: __m512) {
        unsafe { _mm512_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
