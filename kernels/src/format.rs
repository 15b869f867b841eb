//! The weight formats: how a block of a file becomes codes, scales and minima.
//!
//! Every format is described by constants, so that packing and products need one loop each. Refuses nothing: the
//! caller hands over whole blocks.

use super::half::{bf16_of_e8m0, f16_to_f32};

/// How the scales of a format are laid out.
pub(super) trait Format: 'static {
    /// Columns of a block; 32 columns have one scale, 256 have scales of their own for each `GROUP`.
    const COLUMNS: usize;
    /// Bytes of a block in a file.
    const BYTES: usize;
    /// Bits of a code; packed, 32 columns of a row take `4 * BITS` bytes.
    const BITS: usize;
    /// Columns that share an integer scale (blocks of 256 columns alone).
    const GROUP: usize = 32;
    /// A weight is `scale * (value - OFFSET)`; 0 where the format has minima.
    const OFFSET: i32 = 0;
    /// True where a weight is `scale * value + minimum` (32 columns) or `scale * value - minimum` (256).
    const MIN: bool = false;
    /// The scale is stored as BF16 instead of F16, for powers of two that F16 does not reach.
    const SCALE_BF16: bool = false;
    /// Values of the codes, `OFFSET` added; `None` where a code is its value.
    const TABLE: Option<[u8; 16]> = None;

    /// Values up to 255, which a product of signed bytes cannot take as they are.
    const WIDE: bool = Self::BITS == 8 || Self::TABLE.is_some();
    /// Integer scales of a block.
    const GROUPS: usize = Self::COLUMNS / Self::GROUP;

    /// The block's codes, one a byte, `[COLUMNS]`.
    fn codes(block: &[u8], out: &mut [u8; 256]);
    /// The block's scale and minimum, as stored.
    fn scales(block: &[u8]) -> (u16, u16);
    /// The integer scales and minima of the groups, `[GROUPS]` each.
    fn group_scales(_block: &[u8], _scales: &mut [i8; 16], _minima: &mut [u8; 16]) {}
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Sixteen bytes whose low nibbles are columns 0 to 15, and whose high ones are 16 to 31.
fn nibbles(bytes: &[u8], out: &mut [u8]) {
    for (i, byte) in bytes[..16].iter().enumerate() {
        out[i] = byte & 15;
        out[i + 16] = byte >> 4;
    }
}

fn fifth_bits(bits: &[u8], out: &mut [u8]) {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    for (i, code) in out[..32].iter_mut().enumerate() {
        *code |= ((bits >> i & 1) as u8) << 4;
    }
}

const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

const fn shifted(values: [i8; 16]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (values[i] as i16 + 128) as u8;
        i += 1;
    }
    out
}

pub(super) struct Q4_0;
impl Format for Q4_0 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 18;
    const BITS: usize = 4;
    const OFFSET: i32 = 8;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        nibbles(&block[2..], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), 0)
    }
}

pub(super) struct Q4_1;
impl Format for Q4_1 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 20;
    const BITS: usize = 4;
    const MIN: bool = true;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        nibbles(&block[4..], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), u16_at(block, 2))
    }
}

pub(super) struct Q5_0;
impl Format for Q5_0 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 22;
    const BITS: usize = 5;
    const OFFSET: i32 = 16;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        nibbles(&block[6..], out);
        fifth_bits(&block[2..6], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), 0)
    }
}

pub(super) struct Q5_1;
impl Format for Q5_1 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 24;
    const BITS: usize = 5;
    const MIN: bool = true;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        nibbles(&block[8..], out);
        fifth_bits(&block[4..8], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), u16_at(block, 2))
    }
}

pub(super) struct Q8_0;
impl Format for Q8_0 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 34;
    const BITS: usize = 8;
    const OFFSET: i32 = 128;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        for (code, byte) in out.iter_mut().zip(&block[2..34]) {
            *code = byte ^ 0x80;
        }
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), 0)
    }
}

pub(super) struct Iq4Nl;
impl Format for Iq4Nl {
    const COLUMNS: usize = 32;
    const BYTES: usize = 18;
    const BITS: usize = 4;
    const OFFSET: i32 = 128;
    const TABLE: Option<[u8; 16]> = Some(shifted(IQ4));
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        nibbles(&block[2..], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), 0)
    }
}

pub(super) struct Mxfp4;
impl Format for Mxfp4 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 17;
    const BITS: usize = 4;
    const OFFSET: i32 = 128;
    const SCALE_BF16: bool = true;
    const TABLE: Option<[u8; 16]> = Some(shifted(FP4));
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        nibbles(&block[1..], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (bf16_of_e8m0(block[0]), 0)
    }
}

/// Scale and minimum of each of eight groups, six bits each, out of twelve bytes.
fn six_bits(packed: &[u8], scales: &mut [i8; 16], minima: &mut [u8; 16]) {
    for j in 0..8 {
        let (scale, minimum) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            let low = packed[j + 4];
            (low & 15 | packed[j - 4] >> 6 << 4, low >> 4 | packed[j] >> 6 << 4)
        };
        scales[j] = scale as i8;
        minima[j] = minimum;
    }
}

/// Four times 32 bytes: low nibbles are 32 columns, high ones the next 32.
fn paired_nibbles(bytes: &[u8], out: &mut [u8; 256]) {
    for (pair, bytes) in bytes[..128].chunks_exact(32).enumerate() {
        for (i, byte) in bytes.iter().enumerate() {
            out[pair * 64 + i] = byte & 15;
            out[pair * 64 + 32 + i] = byte >> 4;
        }
    }
}

pub(super) struct Q4K;
impl Format for Q4K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 144;
    const BITS: usize = 4;
    const MIN: bool = true;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        paired_nibbles(&block[16..], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), u16_at(block, 2))
    }
    fn group_scales(block: &[u8], scales: &mut [i8; 16], minima: &mut [u8; 16]) {
        six_bits(&block[4..16], scales, minima);
    }
}

pub(super) struct Q5K;
impl Format for Q5K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 176;
    const BITS: usize = 5;
    const MIN: bool = true;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        paired_nibbles(&block[48..], out);
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            for (code, high) in out.iter_mut().zip(&block[16..48]) {
                *code |= (high >> j & 1) << 4;
            }
        }
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), u16_at(block, 2))
    }
    fn group_scales(block: &[u8], scales: &mut [i8; 16], minima: &mut [u8; 16]) {
        six_bits(&block[4..16], scales, minima);
    }
}

pub(super) struct Q6K;
impl Format for Q6K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 210;
    const BITS: usize = 6;
    const GROUP: usize = 16;
    const OFFSET: i32 = 32;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        for (part, out) in out.chunks_exact_mut(128).enumerate() {
            let (low, high) = (&block[part * 64..part * 64 + 64], &block[128 + part * 32..160 + part * 32]);
            for l in 0..32 {
                out[l] = low[l] & 15 | (high[l] & 3) << 4;
                out[l + 32] = low[l + 32] & 15 | (high[l] >> 2 & 3) << 4;
                out[l + 64] = low[l] >> 4 | (high[l] >> 4 & 3) << 4;
                out[l + 96] = low[l + 32] >> 4 | (high[l] >> 6) << 4;
            }
        }
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 208), 0)
    }
    fn group_scales(block: &[u8], scales: &mut [i8; 16], _minima: &mut [u8; 16]) {
        for (scale, byte) in scales.iter_mut().zip(&block[192..208]) {
            *scale = *byte as i8;
        }
    }
}

pub(super) struct Q3K;
impl Format for Q3K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 110;
    const BITS: usize = 3;
    const GROUP: usize = 16;
    const OFFSET: i32 = 4;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        two_bits(&block[32..96], out);
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            for (code, high) in out.iter_mut().zip(&block[..32]) {
                *code |= (high >> j & 1) << 2;
            }
        }
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 108), 0)
    }
    fn group_scales(block: &[u8], scales: &mut [i8; 16], _minima: &mut [u8; 16]) {
        let packed = &block[96..108];
        for (j, scale) in scales.iter_mut().enumerate() {
            let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
            let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
            *scale = (low | high << 4) as i8 - 32;
        }
    }
}

/// Twice 32 bytes: four times 32 columns, two bits each, lowest first.
fn two_bits(bytes: &[u8], out: &mut [u8; 256]) {
    for (part, bytes) in bytes[..64].chunks_exact(32).enumerate() {
        for (i, byte) in bytes.iter().enumerate() {
            for quarter in 0..4 {
                out[part * 128 + quarter * 32 + i] = byte >> (2 * quarter) & 3;
            }
        }
    }
}

pub(super) struct Q2K;
impl Format for Q2K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 84;
    const BITS: usize = 2;
    const GROUP: usize = 16;
    const MIN: bool = true;
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        two_bits(&block[16..80], out);
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 80), u16_at(block, 82))
    }
    fn group_scales(block: &[u8], scales: &mut [i8; 16], minima: &mut [u8; 16]) {
        for j in 0..16 {
            scales[j] = (block[j] & 15) as i8;
            minima[j] = block[j] >> 4;
        }
    }
}

pub(super) struct Iq4Xs;
impl Format for Iq4Xs {
    const COLUMNS: usize = 256;
    const BYTES: usize = 136;
    const BITS: usize = 4;
    const OFFSET: i32 = 128;
    const TABLE: Option<[u8; 16]> = Some(shifted(IQ4));
    fn codes(block: &[u8], out: &mut [u8; 256]) {
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            nibbles(&block[8 + 16 * j..], out);
        }
    }
    fn scales(block: &[u8]) -> (u16, u16) {
        (u16_at(block, 0), 0)
    }
    fn group_scales(block: &[u8], scales: &mut [i8; 16], _minima: &mut [u8; 16]) {
        let high = u16_at(block, 2);
        for (j, scale) in scales[..8].iter_mut().enumerate() {
            let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
            *scale = (low | ((high >> (2 * j) & 3) as u8) << 4) as i8 - 32;
        }
    }
}

/// A stored scale as a number.
pub(super) fn scale<F: Format>(bits: u16) -> f32 {
    if F::SCALE_BF16 { f32::from_bits(u32::from(bits) << 16) } else { f16_to_f32(bits) }
}
