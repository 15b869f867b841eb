//! Blocks with one scale (and perhaps one minimum) for all their values, of up to 256 of them: the Q*_0 and
//! Q*_1 types, the FP4 types and the ternary ones.

use super::{half, u32_at};

/// The values of a four-bit float, doubled (E2M1).
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Writes the low nibbles of `bytes` to the first half of `out` and the high ones to the second.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    let middle = bytes.len();
    for (j, &byte) in bytes.iter().enumerate() {
        out[j] = value(byte & 0xf, j);
        out[j + middle] = value(byte >> 4, j + middle);
    }
}

pub fn q1_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (j, value) in out.iter_mut().enumerate() {
        *value = if block[2 + j / 8] >> (j % 8) & 1 == 1 { d } else { -d };
    }
}

pub fn q2_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (j, value) in out.iter_mut().enumerate() {
        let q = block[2 + j / 4] >> (j % 4 * 2) & 3;
        *value = (f32::from(q) - 1.0) * d;
    }
}

pub fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |q, _| (f32::from(q) - 8.0) * d);
}

pub fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |q, _| f32::from(q) * d + m);
}

/// The fifth bit of value `j`.
fn fifth(high: u32, j: usize) -> u8 {
    ((high >> j & 1) << 4) as u8
}

pub fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), u32_at(block, 2));
    nibbles(&block[6..], out, |q, j| (f32::from(q | fifth(high, j)) - 16.0) * d);
}

pub fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), u32_at(block, 4));
    nibbles(&block[8..], out, |q, j| f32::from(q | fifth(high, j)) * d + m);
}

pub fn q8(d: f32, quants: &[u8], out: &mut [f32]) {
    for (value, &q) in out.iter_mut().zip(quants) {
        *value = f32::from(q as i8) * d;
    }
}

pub fn mxfp4(block: &[u8], out: &mut [f32]) {
    // Half of 2^(e - 127), because the table is doubled.
    let bits = match u32::from(block[0]) {
        e @ 0..2 => 0x0020_0000 << e,
        e => (e - 1) << 23,
    };
    let d = f32::from_bits(bits);
    nibbles(&block[1..], out, |q, _| f32::from(FP4[usize::from(q)]) * d);
}

pub fn nvfp4(block: &[u8], out: &mut [f32]) {
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let d = ue4m3(block[sub]);
        let quants = &block[4 + 8 * sub..][..8];
        nibbles(quants, out, |q, _| f32::from(FP4[usize::from(q)]) * d);
    }
}

/// Half of an unsigned float of four exponent and three mantissa bits; NaN counts as zero, as in ggml.
fn ue4m3(bits: u8) -> f32 {
    if bits == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let raw = match exponent {
        0 => mantissa * 2.0f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2.0f32.powi(exponent - 7),
    };
    raw * 0.5
}

/// Five ternary digits in a byte: multiplied by a power of three, the digit sought is the first after the
/// point of a fraction of 256.
fn ternary(byte: u8, digit: u32) -> f32 {
    let shifted = byte.wrapping_mul(3u8.pow(digit));
    f32::from((u16::from(shifted) * 3) >> 8) - 1.0
}

pub fn tq1_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 52);
    let mut out = out.iter_mut();
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for digit in 0..digits {
            for (&byte, value) in bytes.iter().zip(&mut out) {
                *value = ternary(byte, digit) * d;
            }
        }
    }
}

pub fn tq2_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 64);
    let mut out = out.iter_mut();
    for bytes in block[..64].chunks_exact(32) {
        for shift in [0, 2, 4, 6] {
            for (&byte, value) in bytes.iter().zip(&mut out) {
                *value = (f32::from(byte >> shift & 3) - 1.0) * d;
            }
        }
    }
}
