//! Quantizes activations to 8 bits: one scale for 32 or 256 of them, and the sums that offsets and minima need.
//!
//! What is not finite makes the block's scale NaN, so that it is seen in the product.

use super::format::Format;
use super::isa::Isa;
use super::layout::At;

/// Adding and subtracting this rounds a small float to the nearest integer, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// Below this, `127 / largest` is no longer finite; such activations count as zeros.
const SMALLEST: f32 = 4e-37;

/// Quantizes `COLUMNS` activations.
#[inline(always)]
pub(super) fn block<I: Isa, F: Format>(x: &[f32], out: &mut [u8]) {
    let (mut largest, mut exponents) = ([0f32; 16], [0u32; 16]);
    for x in x.chunks_exact(16) {
        for i in 0..16 {
            largest[i] = if x[i].abs() > largest[i] { x[i].abs() } else { largest[i] };
            let exponent = x[i].to_bits() & 0x7f80_0000;
            exponents[i] = if exponent > exponents[i] { exponent } else { exponents[i] };
        }
    }
    let largest = largest.iter().fold(0f32, |a, &b| a.max(b));
    let is_finite = exponents.iter().all(|&exponent| exponent < 0x7f80_0000);
    let (scale, inverse) = match is_finite {
        true if largest >= SMALLEST => (largest / 127.0, 127.0 / largest),
        true => (0.0, 0.0),
        false => (f32::NAN, 0.0),
    };
    out[..4].copy_from_slice(&scale.to_le_bytes());
    let (head, values) = out.split_at_mut(At::<I, F>::VALUES);
    let mut sums = [0i32; 16];
    for (j, (x, values)) in x.chunks_exact(16).zip(values.chunks_exact_mut(16)).enumerate() {
        let mut quantized = [0i32; 16];
        for i in 0..16 {
            quantized[i] = ((x[i] * inverse + ROUNDER).to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
        }
        for i in 0..16 {
            values[i] = quantized[i] as u8;
        }
        sums[j] = quantized.iter().fold(0, |a, &b| a.wrapping_add(b));
    }
    let put = |head: &mut [u8], i: usize, bytes: [u8; 4]| {
        head[At::<I, F>::SUMS + 4 * i..At::<I, F>::SUMS + 4 * i + 4].copy_from_slice(&bytes);
    };
    if F::COLUMNS == 32 {
        let sum = sums[0].wrapping_add(sums[1]);
        let bytes = if F::MIN {
            (scale * sum as f32).to_le_bytes()
        } else {
            sum.wrapping_mul(-At::<I, F>::OFFSET).to_le_bytes()
        };
        put(head, 0, bytes);
        return;
    }
    if F::GROUP == 32 {
        for j in 0..8 {
            sums[j] = sums[2 * j].wrapping_add(sums[2 * j + 1]);
        }
    }
    if F::MIN {
        for j in 0..F::GROUPS / 2 {
            let [a, b] = [sums[2 * j] as i16, sums[2 * j + 1] as i16].map(i16::to_le_bytes);
            put(head, j, [a[0], a[1], b[0], b[1]]);
        }
    } else {
        for (j, sum) in sums[..F::GROUPS].iter().enumerate() {
            put(head, j, sum.wrapping_mul(-At::<I, F>::OFFSET).to_le_bytes());
        }
    }
}
