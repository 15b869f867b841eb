//! The IQ types: indices into codebooks, with the signs or shifts of the values beside them.

use super::grids::{IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS};
use super::{half, half_to_f32, u16_at, u32_at};

/// The values of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The shift of all values of an IQ1 group.
const IQ1_DELTA: f32 = 0.125;

/// Value `j` of a codebook entry of the IQ2 types.
fn digit2(entry: u16, j: usize) -> f32 {
    [8.0, 25.0, 43.0, 0.0][usize::from(entry >> (2 * j) & 3)]
}

/// Seven signs and an eighth that makes their number even.
fn even_signs(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    bits | ((bits.count_ones() & 1) << 7) as u8
}

fn signed(value: f32, signs: u8, j: usize) -> f32 {
    if signs >> j & 1 == 1 { -value } else { value }
}

fn group2(entry: u16, scale: f32, signs: u8, out: &mut [f32]) {
    for (j, value) in out.iter_mut().enumerate() {
        *value = signed(scale * digit2(entry, j), signs, j);
    }
}

pub fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let at = 2 + 8 * sub;
        let packed = u32_at(block, at + 4);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let entry = IQ2XXS[usize::from(block[at + l])];
            group2(entry, scale, even_signs(packed >> (7 * l)), out);
        }
    }
}

/// The scale of group `l` of four, of which each half has a nibble.
fn nibble_scale(d: f32, byte: u8, l: usize) -> f32 {
    d * (0.5 + f32::from(byte >> (l / 2 * 4) & 0xf)) * 0.25
}

pub fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let packed = u16_at(block, 2 + 8 * sub + 2 * l);
            let scale = nibble_scale(d, block[66 + sub], l);
            let entry = IQ2XS[usize::from(packed & 511)];
            group2(entry, scale, even_signs(u32::from(packed >> 9)), out);
        }
    }
}

pub fn iq2_s(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let low = usize::from(block[2 + 4 * sub + l]);
            let high = usize::from(block[66 + sub]) >> (2 * l) & 3;
            let scale = nibble_scale(d, block[74 + sub], l);
            group2(IQ2S[low | high << 8], scale, block[34 + 4 * sub + l], out);
        }
    }
}

pub fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let packed = u32_at(block, 66 + 4 * sub);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let signs = even_signs(packed >> (7 * l));
            for (j, value) in out.iter_mut().enumerate() {
                let entry = IQ3XXS[usize::from(block[2 + 8 * sub + 2 * l + j / 4])];
                let digit = entry >> (3 * (j % 4)) & 7;
                let magnitude = if digit == 7 { 62.0 } else { f32::from(8 * digit + 4) };
                *value = signed(scale * magnitude, signs, j);
            }
        }
    }
}

pub fn iq3_s(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let nibble = block[106 + sub / 2] >> (sub % 2 * 4) & 0xf;
        let scale = d * f32::from(1 + 2 * nibble);
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let signs = block[74 + 4 * sub + l];
            for (j, value) in out.iter_mut().enumerate() {
                let index = 2 * l + j / 4;
                let low = usize::from(block[2 + 8 * sub + index]);
                let high = usize::from(block[66 + sub]) >> index & 1;
                let digit = IQ3S[low | high << 8] >> (3 * (j % 4)) & 7;
                *value = signed(scale * f32::from(2 * digit + 1), signs, j);
            }
        }
    }
}

fn group1(index: usize, scale: f32, is_down: bool, out: &mut [f32]) {
    let delta = if is_down { -IQ1_DELTA } else { IQ1_DELTA };
    for (j, value) in out.iter_mut().enumerate() {
        let digit = [0.0, 1.0, -1.0, 0.0][usize::from(IQ1S[index] >> (2 * j) & 3)];
        *value = scale * (digit + delta);
    }
}

pub fn iq1_s(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let packed = u16_at(block, 34 + 2 * sub);
        let scale = d * f32::from(2 * (packed >> 12 & 7) + 1);
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let high = usize::from(packed >> (3 * l) & 7);
            group1(usize::from(block[2 + 4 * sub + l]) | high << 8, scale, packed & 0x8000 != 0, out);
        }
    }
}

pub fn iq1_m(block: &[u8], out: &mut [f32]) {
    // The top nibbles of the four scale words make up the large scale.
    let word = |i: usize| u16_at(block, 48 + 2 * i);
    let d = half_to_f32((0..4).fold(0, |bits, i| bits | (word(i) >> 12) << (4 * i)));
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let small = word(sub / 2) >> (6 * (sub % 2) + 3 * (l / 2)) & 7;
            let scale = d * f32::from(2 * small + 1);
            let high = block[32 + 2 * sub + l / 2] >> (l % 2 * 4);
            let index = usize::from(block[4 * sub + l]) | usize::from(high & 7) << 8;
            group1(index, scale, high & 8 != 0, out);
        }
    }
}

fn group4(quants: &[u8], scale: f32, out: &mut [f32]) {
    for (j, &byte) in quants.iter().enumerate() {
        out[j] = scale * f32::from(IQ4[usize::from(byte & 0xf)]);
        out[j + 16] = scale * f32::from(IQ4[usize::from(byte >> 4)]);
    }
}

pub fn iq4_nl(block: &[u8], out: &mut [f32]) {
    group4(&block[2..18], half(block, 0), out);
}

pub fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), u16_at(block, 2));
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + sub / 2] >> (sub % 2 * 4) & 0xf;
        let top = (high >> (2 * sub) & 3) as u8;
        let scale = d * (f32::from(low | top << 4) - 32.0);
        group4(&block[8 + 16 * sub..][..16], scale, out);
    }
}
