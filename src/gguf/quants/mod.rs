//! Turns the data of a tensor of any type into floats.
//!
//! Plain Rust after the layouts of `ggml-common.h`, with ggml's order of operations, so that the results are
//! bit for bit those of its `to_float` functions (tested against them, and against the Python package `gguf`).
//! Refuses data that is no whole number of blocks.

mod grids;
mod iq;
mod k;
mod legacy;

use super::error::{Error, Result};
use super::types::TensorType;

/// Decodes whole blocks of type `ty` from `bytes`, `bytes.len() / block_bytes * block_size` values in all.
/// 64-bit numbers are rounded to the nearest float.
///
/// # Errors
///
/// [`Error::DataSize`] where `bytes` is no whole number of blocks.
pub fn dequantize(ty: TensorType, bytes: &[u8]) -> Result<Vec<f32>> {
    let (block_size, block_bytes) = (ty.block_size() as usize, ty.block_bytes() as usize);
    if !bytes.len().is_multiple_of(block_bytes) {
        let expected = (bytes.len() / block_bytes * block_bytes) as u64;
        return Err(Error::DataSize { name: "data".into(), ty, expected, found: bytes.len() as u64 });
    }
    let mut values = vec![0.0; bytes.len() / block_bytes * block_size];
    for (block, out) in bytes.chunks_exact(block_bytes).zip(values.chunks_exact_mut(block_size)) {
        decode_block(ty, block, out);
    }
    Ok(values)
}

/// Decodes one block; both slices have the type's own lengths.
fn decode_block(ty: TensorType, block: &[u8], out: &mut [f32]) {
    match ty {
        TensorType::F32 => out[0] = f32::from_le_bytes(array(block, 0)),
        TensorType::F16 => out[0] = half(block, 0),
        TensorType::BF16 => out[0] = f32::from_bits(u32::from(u16_at(block, 0)) << 16),
        TensorType::F64 => out[0] = f64::from_le_bytes(array(block, 0)) as f32,
        TensorType::I8 => out[0] = f32::from(block[0] as i8),
        TensorType::I16 => out[0] = f32::from(i16::from_le_bytes(array(block, 0))),
        TensorType::I32 => out[0] = i32::from_le_bytes(array(block, 0)) as f32,
        TensorType::I64 => out[0] = i64::from_le_bytes(array(block, 0)) as f32,
        TensorType::Q1_0 => legacy::q1_0(block, out),
        TensorType::Q2_0 => legacy::q2_0(block, out),
        TensorType::Q4_0 => legacy::q4_0(block, out),
        TensorType::Q4_1 => legacy::q4_1(block, out),
        TensorType::Q5_0 => legacy::q5_0(block, out),
        TensorType::Q5_1 => legacy::q5_1(block, out),
        TensorType::Q8_0 => legacy::q8(half(block, 0), &block[2..], out),
        TensorType::Q8_1 => legacy::q8(half(block, 0), &block[4..], out),
        TensorType::Q8_K => legacy::q8(f32::from_le_bytes(array(block, 0)), &block[4..260], out),
        TensorType::MXFP4 => legacy::mxfp4(block, out),
        TensorType::NVFP4 => legacy::nvfp4(block, out),
        TensorType::TQ1_0 => legacy::tq1_0(block, out),
        TensorType::TQ2_0 => legacy::tq2_0(block, out),
        TensorType::Q2_K => k::q2(block, out),
        TensorType::Q3_K => k::q3(block, out),
        TensorType::Q4_K => k::q4(block, out),
        TensorType::Q5_K => k::q5(block, out),
        TensorType::Q6_K => k::q6(block, out),
        TensorType::IQ2_XXS => iq::iq2_xxs(block, out),
        TensorType::IQ2_XS => iq::iq2_xs(block, out),
        TensorType::IQ2_S => iq::iq2_s(block, out),
        TensorType::IQ3_XXS => iq::iq3_xxs(block, out),
        TensorType::IQ3_S => iq::iq3_s(block, out),
        TensorType::IQ1_S => iq::iq1_s(block, out),
        TensorType::IQ1_M => iq::iq1_m(block, out),
        TensorType::IQ4_NL => iq::iq4_nl(block, out),
        TensorType::IQ4_XS => iq::iq4_xs(block, out),
    }
}

/// `N` bytes of a block; the caller keeps within it.
fn array<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(block, at))
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(block, at))
}

/// A half-precision number at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    half_to_f32(u16_at(block, at))
}

/// Half precision to single, exactly.
fn half_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let mantissa = u32::from(bits & 0x3ff);
    match exponent {
        0 => {
            // Multiples of 2^-24, which single precision holds exactly.
            let value = mantissa as f32 * f32::from_bits(0x3380_0000);
            f32::from_bits(value.to_bits() | sign)
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_exact() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2.0f32.powi(-24)),
            (0x03ff, 1023.0 * 2.0f32.powi(-24)),
            (0x0400, 2.0f32.powi(-14)),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(half_to_f32(bits).to_bits(), value.to_bits(), "{bits:#06x}");
        }
        assert!(half_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn every_type_decodes_any_bytes_and_refuses_a_part_of_a_block() {
        for &ty in TensorType::ALL {
            let block = ty.block_bytes() as usize;
            for byte in [0x00, 0x55, 0xaa, 0xff] {
                let values = dequantize(ty, &vec![byte; 2 * block]).unwrap();
                assert_eq!(values.len() as u64, 2 * ty.block_size());
            }
            if block > 1 {
                assert!(matches!(dequantize(ty, &vec![0; 2 * block - 1]), Err(Error::DataSize { .. })));
            }
        }
    }
}
