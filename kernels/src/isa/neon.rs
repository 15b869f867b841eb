//! NEON, with or without dot products: 4 rows a vector. Refuses nothing.
//!
//! Four rows and not eight: a product takes its four activations from a lane, so more rows would share nothing, and the
//! sums of eight tokens fit the registers beside a block's codes. Without dot products, products of bytes are added in
//! 16 bits for as long as their bound allows, which keeps them exact.
//!
//! `usdot` and `smmla` (i8mm) have no set of their own. All weights here fit signed bytes, so `usdot` saves nothing.
//! `smmla` multiplies two rows with two tokens, eight columns of each, which lie otherwise than ours: for 32 columns and
//! two of eight tokens it takes 22 instructions, of which 8 multiply and 8 rearrange, and `sdot` takes 22 as well.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Isa;

/// `DOT` where the processor multiplies and adds four bytes at once.
pub(crate) struct Neon<const DOT: bool>;

impl<const DOT: bool> Isa for Neon<DOT> {
    const ROWS: usize = 4;
    // Without dot products, sums in 16 bits take the registers.
    const TOKENS: usize = if DOT { 8 } else { 4 };
    const SIGNED: bool = true;
    type Bytes = uint8x16_t;
    type Ints = int32x4_t;
    type Floats = float32x4_t;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> uint8x16_t {
        unsafe { vld1q_u8(p) }
    }
    #[inline(always)]
    unsafe fn and(a: uint8x16_t, mask: u8) -> uint8x16_t {
        unsafe { vandq_u8(a, vdupq_n_u8(mask)) }
    }
    #[inline(always)]
    unsafe fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    unsafe fn up<const N: u32>(a: uint8x16_t) -> uint8x16_t {
        unsafe { vshlq_u8(a, vdupq_n_s8(N as i8)) }
    }
    #[inline(always)]
    unsafe fn down<const N: u32>(a: uint8x16_t) -> uint8x16_t {
        unsafe { vshlq_u8(a, vdupq_n_s8(-(N as i8))) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: uint8x16_t) -> uint8x16_t {
        unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), codes) }
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FROM: usize, const N: usize>(
        init: i32,
        w: &[uint8x16_t; 8],
        y: *const i8,
    ) -> int32x4_t {
        const { assert!(N == 4 || N == 8) }
        unsafe {
            let init = vdupq_n_s32(init);
            let four = |i: usize| std::array::from_fn(|g| vreinterpretq_s8_u8(w[FROM + 4 * i + g]));
            if DOT {
                let sum = dot_four(init, four(0), vld1q_s8(y));
                return if N == 4 { sum } else { dot_four(sum, four(1), vld1q_s8(y.add(16))) };
            }
            // A product is at most 127 * (2^BITS - 1), for signed bytes 127 * 128; 32,767 fit.
            let zero = [vdupq_n_s16(0); 2];
            let (y0, y1) = (vld1q_s8(y), if N == 4 { vdupq_n_s8(0) } else { vld1q_s8(y.add(16)) });
            match BITS {
                0..=5 => {
                    let mut sums = long_two::<2>(long_two::<0>(zero, four(0), y0), four(0), y0);
                    if N == 8 {
                        sums = long_two::<2>(long_two::<0>(sums, four(1), y1), four(1), y1);
                    }
                    if BITS <= 4 {
                        vpadalq_s16(init, vpaddq_s16(sums[0], sums[1]))
                    } else {
                        vaddq_s32(init, vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1])))
                    }
                }
                6 => {
                    let sums = long_two::<2>(long_two::<0>(zero, four(0), y0), four(0), y0);
                    let mut total = sums.map(|sums| vpaddlq_s16(sums));
                    if N == 8 {
                        let sums = long_two::<2>(long_two::<0>(zero, four(1), y1), four(1), y1);
                        total = [vpadalq_s16(total[0], sums[0]), vpadalq_s16(total[1], sums[1])];
                    }
                    vaddq_s32(init, vpaddq_s32(total[0], total[1]))
                }
                _ => {
                    let mut total = long_two::<0>(zero, four(0), y0).map(|sums| vpaddlq_s16(sums));
                    let mut add = |sums: [int16x8_t; 2]| {
                        total = [vpadalq_s16(total[0], sums[0]), vpadalq_s16(total[1], sums[1])];
                    };
                    add(long_two::<2>(zero, four(0), y0));
                    if N == 8 {
                        add(long_two::<0>(zero, four(1), y1));
                        add(long_two::<2>(zero, four(1), y1));
                    }
                    vaddq_s32(init, vpaddq_s32(total[0], total[1]))
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn minima<const PAIRS: usize>(p: *const u8, y: *const i32) -> int32x4_t {
        unsafe {
            let mut sum = vdupq_n_s32(0);
            for j in 0..PAIRS / 4 {
                // Eight groups: the two of a pair lie beside each other, row by row.
                let y = vld1q_s16(y.add(4 * j).cast());
                let pairs: [uint8x16_t; 2] = [vld1q_u8(p.add(32 * j)), vld1q_u8(p.add(32 * j + 16))];
                let wide = |pairs: uint8x16_t| {
                    let (a, b) = (vmovl_u8(vget_low_u8(pairs)), vmovl_high_u8(pairs));
                    let (a, b) = (vreinterpretq_s16_u16(a), vreinterpretq_s16_u16(b));
                    [vuzp1q_s16(a, b), vuzp2q_s16(a, b)]
                };
                let [even, odd] = wide(pairs[0]);
                sum = vmlal_laneq_s16::<0>(sum, vget_low_s16(even), y);
                sum = vmlal_laneq_s16::<1>(sum, vget_low_s16(odd), y);
                sum = vmlal_high_laneq_s16::<2>(sum, even, y);
                sum = vmlal_high_laneq_s16::<3>(sum, odd, y);
                let [even, odd] = wide(pairs[1]);
                sum = vmlal_laneq_s16::<4>(sum, vget_low_s16(even), y);
                sum = vmlal_laneq_s16::<5>(sum, vget_low_s16(odd), y);
                sum = vmlal_high_laneq_s16::<6>(sum, even, y);
                sum = vmlal_high_laneq_s16::<7>(sum, odd, y);
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn floats(a: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> float32x4_t {
        // As assembly, since the intrinsic is too new for the oldest compiler that this crate takes.
        unsafe {
            let halves = vld1_u8(p);
            let wide: float32x4_t;
            asm!(
                "fcvtl {wide:v}.4s, {halves:v}.4h",
                wide = out(vreg) wide,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags)
            );
            wide
        }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(p)))) }
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> float32x4_t {
        unsafe {
            let bytes = vreinterpret_s8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn fnma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmsq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, a: float32x4_t) {
        unsafe { vst1q_f32(p, a) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // The intrinsic is not stable. A prefetch of any address does no harm.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p.addr(), options(nomem, nostack, preserves_flags)) }
    }
}

/// Adds the products of four vectors with sixteen activations.
#[inline(always)]
unsafe fn dot_four(sum: int32x4_t, w: [int8x16_t; 4], y: int8x16_t) -> int32x4_t {
    unsafe {
        let sum = dot_lane::<0>(sum, w[0], y);
        let sum = dot_lane::<1>(sum, w[1], y);
        let sum = dot_lane::<2>(sum, w[2], y);
        dot_lane::<3>(sum, w[3], y)
    }
}

/// Adds the products of four bytes of each row with the four activations of a lane. The intrinsic is not stable.
#[inline(always)]
unsafe fn dot_lane<const LANE: i32>(mut sum: int32x4_t, w: int8x16_t, y: int8x16_t) -> int32x4_t {
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {y:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            y = in(vreg) y,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Adds the products of two of four vectors, `LANE` and the next, with their activations: the rows' halves apart.
#[inline(always)]
unsafe fn long_two<const LANE: i32>(sums: [int16x8_t; 2], w: [int8x16_t; 4], y: int8x16_t) -> [int16x8_t; 2] {
    unsafe {
        let y = vreinterpretq_s32_s8(y);
        let both = if LANE == 0 {
            [vdupq_laneq_s32::<0>(y), vdupq_laneq_s32::<1>(y)]
        } else {
            [vdupq_laneq_s32::<2>(y), vdupq_laneq_s32::<3>(y)]
        };
        let [a, b] = both.map(|y| vreinterpretq_s8_s32(y));
        let (v, w) = (w[LANE as usize], w[LANE as usize + 1]);
        let low = vmlal_s8(sums[0], vget_low_s8(v), vget_low_s8(a));
        let high = vmlal_high_s8(sums[1], v, a);
        [vmlal_s8(low, vget_low_s8(w), vget_low_s8(b)), vmlal_high_s8(high, w, b)]
    }
}
