//! Half-precision numbers, exactly, in plain code. Refuses nothing: every bit pattern has a meaning.

/// F16 bits as a float, exactly.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        // Multiples of 2^-24, which a float holds exactly.
        0 => f32::from_bits((fraction as f32 * f32::from_bits(0x3380_0000)).to_bits() | sign),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// Half of the power of two that an E8M0 byte names, as BF16 bits; ggml's MXFP4 values are doubled to match.
pub(super) fn bf16_of_e8m0(e: u8) -> u16 {
    // 2^(e - 128): below the normal numbers for e of 0 and 1.
    match e {
        0 => 0x20,
        1 => 0x40,
        _ => u16::from(e - 1) << 7,
    }
}
