//! The K types: 256 values in sub-blocks that have their own small scales below one or two large ones.

use super::half;

/// The scale and the minimum of sub-block `j`, six bits each, out of twelve bytes.
fn scale_min(j: usize, scales: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        (low & 0xf | scales[j - 4] >> 6 << 4, low >> 4 | scales[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

pub fn q2(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(scales[sub] & 0xf), dmin * f32::from(scales[sub] >> 4));
        let (from, shift) = (sub / 8 * 32 + sub % 2 * 16, sub % 8 / 2 * 2);
        for (value, q) in out.iter_mut().zip(&quants[from..]) {
            *value = scale * f32::from(q >> shift & 3) - min;
        }
    }
}

pub fn q3(block: &[u8], out: &mut [f32]) {
    let (high, quants, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        // Four low bits from the first eight bytes, two high ones from the last four.
        let low = if sub < 8 { packed[sub] & 0xf } else { packed[sub - 8] >> 4 };
        let top = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
        let scale = d * (f32::from(low | top << 4) - 32.0);
        let (side, shift) = (sub % 2 * 16, sub % 8 / 2 * 2);
        let mask = 1 << (sub / 2);
        let quants = &quants[sub / 8 * 32 + side..];
        for ((value, q), h) in out.iter_mut().zip(quants).zip(&high[side..]) {
            let less = if h & mask == 0 { 4.0 } else { 0.0 };
            *value = scale * (f32::from(q >> shift & 3) - less);
        }
    }
}

pub fn q4(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scales, quants) = (&block[4..16], &block[16..]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(sub, scales);
        let (scale, min) = (d * scale, dmin * min);
        for (value, q) in out.iter_mut().zip(&quants[sub / 2 * 32..]) {
            *value = scale * f32::from(q >> (sub % 2 * 4) & 0xf) - min;
        }
    }
}

pub fn q5(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(sub, scales);
        let (scale, min) = (d * scale, dmin * min);
        for ((value, q), h) in out.iter_mut().zip(&quants[sub / 2 * 32..]).zip(high) {
            let fifth = (h >> sub & 1) << 4;
            *value = scale * f32::from(q >> (sub % 2 * 4) & 0xf | fifth) - min;
        }
    }
}

pub fn q6(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] as i8);
        // Each half of the block has 64 bytes of low nibbles and 32 of high pairs for 128 values.
        let (part, quarter, side) = (sub / 8, sub % 8 / 2, sub % 2 * 16);
        let low = &low[part * 64 + quarter % 2 * 32 + side..];
        let high = &high[part * 32 + side..];
        for ((value, l), h) in out.iter_mut().zip(low).zip(high) {
            let q = l >> (quarter / 2 * 4) & 0xf | (h >> (quarter * 2) & 3) << 4;
            *value = scale * (f32::from(q) - 32.0);
        }
    }
}
