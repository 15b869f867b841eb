//! Rounding to Q4_0, ggml's plain 4-bit format: 32 values share one half-precision scale.
//!
//! Of several scales for a block the one with the least squared error is taken, which loses a little less than ggml's own
//! rule of letting the largest value decide alone. The layout is ggml's (`block_q4_0`): the scale, then 16 bytes whose low
//! halves are the first 16 values and whose high halves are the others, each plus 8.

use half::f16;

/// Values in a block.
pub const BLOCK: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 18;

/// How far the tried scales are from the one that the largest value suggests.
const TRIED: [f32; 9] = [1.0, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, -0.875];

/// Rounds `values`, whole blocks of them.
///
/// # Panics
///
/// On a number of values that is no multiple of [`BLOCK`].
pub fn quantize(values: &[f32]) -> Vec<u8> {
    assert!(values.len().is_multiple_of(BLOCK), "{} values are no whole blocks", values.len());
    let mut bytes = Vec::with_capacity(values.len() / BLOCK * BLOCK_BYTES);
    for block in values.as_chunks::<BLOCK>().0 {
        let (scale, levels) = best_of(block);
        bytes.extend(scale.to_le_bytes());
        let (low, high) = levels.split_at(BLOCK / 2);
        bytes.extend(low.iter().zip(high).map(|(low, high)| low | (high << 4)));
    }
    bytes
}

fn best_of(block: &[f32; BLOCK]) -> (f16, [u8; BLOCK]) {
    let largest = block.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let mut best = (f16::ZERO, [8; BLOCK], f32::INFINITY);
    for factor in TRIED {
        // Levels reach from -8 to 7: the largest value gets the longer side.
        let scale = f16::from_f32(largest * factor / -8.0);
        let step = scale.to_f32();
        if step == 0.0 {
            continue;
        }
        let mut levels = [0; BLOCK];
        let mut error = 0.0;
        for (level, value) in levels.iter_mut().zip(block) {
            let rounded = (value / step).round().clamp(-8.0, 7.0);
            error += (rounded * step - value).powi(2);
            *level = (rounded + 8.0) as u8;
        }
        if error < best.2 {
            best = (scale, levels, error);
        }
    }
    (best.0, best.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp::gguf::{TensorType, quants};
    use rand::{Rng, SeedableRng};

    #[test]
    fn values_come_back_within_a_step_and_closer_than_by_the_plain_rule() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let values: Vec<f32> = (0..64 * BLOCK).map(|_| (0..6).map(|_| rng.random::<f32>() - 0.5).sum()).collect();
        let back = quants::dequantize(TensorType::Q4_0, &quantize(&values)).unwrap();
        let mut errors = [0.0f32; 2];
        for (block, back) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let largest = block.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
            let step = f16::from_f32(largest / -8.0).to_f32();
            for (value, back) in block.iter().zip(back) {
                assert!((value - back).abs() <= 1.7 * step.abs());
                let plain = (value / step).round().clamp(-8.0, 7.0) * step;
                errors[0] += (value - back).powi(2);
                errors[1] += (value - plain).powi(2);
            }
        }
        assert!(errors[0] < 0.95 * errors[1], "{errors:?}");
    }

    #[test]
    fn zeros_stay_zeros() {
        let back = quants::dequantize(TensorType::Q4_0, &quantize(&[0.0; BLOCK])).unwrap();
        assert_eq!(back, [0.0; BLOCK]);
    }
}
