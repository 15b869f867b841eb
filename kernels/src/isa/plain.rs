//! Plain code, for processors without a set of their own here. Refuses nothing.

use super::Isa;
use crate::half::f16_to_f32;

pub(crate) struct Plain;

const ROWS: usize = 4;

impl Isa for Plain {
    const ROWS: usize = ROWS;
    const TOKENS: usize = 2;
    const SIGNED: bool = false;
    type Bytes = [u8; 4 * ROWS];
    type Ints = [i32; ROWS];
    type Floats = [f32; ROWS];

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::Bytes {
        unsafe { p.cast::<Self::Bytes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn and(a: Self::Bytes, mask: u8) -> Self::Bytes {
        a.map(|byte| byte & mask)
    }
    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn up<const N: u32>(a: Self::Bytes) -> Self::Bytes {
        a.map(|byte| byte << N)
    }
    #[inline(always)]
    unsafe fn down<const N: u32>(a: Self::Bytes) -> Self::Bytes {
        a.map(|byte| byte >> N)
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], codes: Self::Bytes) -> Self::Bytes {
        codes.map(|code| table[usize::from(code & 15)])
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FROM: usize, const N: usize>(
        init: i32,
        w: &[Self::Bytes; 8],
        y: *const i8,
    ) -> Self::Ints {
        let mut sum = [init; ROWS];
        for g in 0..N {
            for (row, sum) in sum.iter_mut().enumerate() {
                for c in 0..4 {
                    let y = unsafe { *y.add(4 * g + c) };
                    *sum += i32::from(w[FROM + g][4 * row + c]) * i32::from(y);
                }
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn minima<const PAIRS: usize>(p: *const u8, y: *const i32) -> Self::Ints {
        let mut sum = [0; ROWS];
        for j in 0..PAIRS {
            let (p, y) = unsafe { (p.add(2 * ROWS * j), y.add(j).read_unaligned()) };
            for (row, sum) in sum.iter_mut().enumerate() {
                let (a, b) = unsafe { (i32::from(*p.add(2 * row)), i32::from(*p.add(2 * row + 1))) };
                *sum += a * i32::from(y as i16) + b * (y >> 16);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn floats(a: Self::Ints) -> Self::Floats {
        a.map(|value| value as f32)
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> Self::Floats {
        unsafe { p.cast::<Self::Floats>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u8) -> Self::Floats {
        std::array::from_fn(|row| f16_to_f32(unsafe { p.cast::<u16>().add(row).read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> Self::Floats {
        std::array::from_fn(|row| f32::from_bits(u32::from(unsafe { p.cast::<u16>().add(row).read_unaligned() }) << 16))
    }
    #[inline(always)]
    unsafe fn i8(p: *const u8) -> Self::Floats {
        std::array::from_fn(|row| f32::from(unsafe { *p.add(row) } as i8))
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        [value; ROWS]
    }
    #[inline(always)]
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|row| a[row] + b[row])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|row| a[row] * b[row])
    }
    // Without an instruction for it, rounding once would cost a call a number: here it is rounded twice.
    #[inline(always)]
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|row| a[row] * b[row] + c[row])
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|row| c[row] - a[row] * b[row])
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, a: Self::Floats) {
        unsafe { p.cast::<Self::Floats>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
}
