//! Matrices as they are stored and multiplied: rounded to Q8_0, or to F16 where their rows are no whole blocks.
//!
//! The runtime rounds the vector as well before it multiplies 8-bit or half-precision rows by it; [`Stored::apply`] does the same,
//! so that what is measured here is what runs there, up to the order of summation.

use anyhow::ensure;
use half::f16;
use offramp::gguf::{TensorType, quants};

use crate::screen::basis::product_of_rows;

/// Values in a block of Q8_0.
pub const BLOCK: usize = 32;

/// The type that rows of `n_in` values are stored in.
pub fn ty_of(n_in: usize) -> TensorType {
    if n_in.is_multiple_of(BLOCK) { TensorType::Q8_0 } else { TensorType::F16 }
}

/// A matrix `[n_in, n_out]` in ggml order, as stored.
#[derive(Debug, Clone)]
pub struct Stored {
    n_in: usize,
    ty: TensorType,
    bytes: Vec<u8>,
    /// The bytes' values.
    values: Vec<f32>,
}

impl Stored {
    /// Rounds rows of `n_in` values.
    ///
    /// # Errors
    ///
    /// Values that are no whole rows, no numbers, or beyond half precision.
    pub fn new(n_in: usize, values: &[f32]) -> anyhow::Result<Stored> {
        ensure!(n_in > 0 && values.len().is_multiple_of(n_in), "{} values are no rows of {n_in}", values.len());
        // Q8_0 keeps a scale of a 127th, F16 the values themselves; neither may overflow.
        let fits = values.iter().all(|value| f16::from_f32(*value).is_finite());
        ensure!(fits, "a trained matrix holds values beyond half precision: training diverged");
        let ty = ty_of(n_in);
        let bytes = match ty {
            TensorType::Q8_0 => q8_0(values),
            _ => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        };
        let values = quants::dequantize(ty, &bytes)?;
        Ok(Stored { n_in, ty, bytes, values })
    }

    /// The length of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// The number of rows.
    pub fn n_out(&self) -> usize {
        self.values.len() / self.n_in
    }

    /// The type it is stored in.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// The data as stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The matrix times rows of `n_in` values, rounded as the runtime rounds them: rows of `n_out`.
    pub fn apply(&self, rows: &[f32]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        if self.ty == TensorType::Q8_0 {
            rows.chunks_mut(BLOCK).for_each(round_block);
        } else {
            rows.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
        product_of_rows(&rows, &self.values, self.n_in)
    }
}

/// Rounds to ggml's `block_q8_0`: the scale, then 32 signed bytes.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / BLOCK * (2 + BLOCK));
    for block in values.chunks_exact(BLOCK) {
        let step = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
        bytes.extend(f16::from_f32(step).to_le_bytes());
        let level = |value: &f32| if step > 0.0 { (value / step).round() as i8 } else { 0 };
        bytes.extend(block.iter().map(|value| level(value).to_le_bytes()[0]));
    }
    bytes
}

/// What ggml makes of 32 values of a vector before it multiplies 8-bit rows by it.
fn round_block(block: &mut [f32]) {
    let step = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
    let stored = f16::from_f32(step).to_f32();
    block.iter_mut().for_each(|value| *value = if step > 0.0 { (*value / step).round() * stored } else { 0.0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37) % 64) as f32 / 10.0 - 3.0).collect();
        let stored = Stored::new(32, &values).unwrap();
        assert_eq!((stored.ty(), stored.n_out(), stored.bytes().len()), (TensorType::Q8_0, 3, 3 * 34));
        for (block, back) in values.chunks(32).zip(stored.values.chunks(32)) {
            let step = block.iter().fold(0.0f32, |a, b| a.max(b.abs())) / 127.0;
            assert!(block.iter().zip(back).all(|(value, back)| (value - back).abs() <= 0.51 * step));
        }
    }

    #[test]
    fn rows_that_are_no_blocks_are_kept_in_half_precision() {
        let stored = Stored::new(3, &[1.0, 2.0, 3.0, -1.0, 0.5, 0.25]).unwrap();
        assert_eq!((stored.ty(), stored.apply(&[1.0, 1.0, 2.0])), (TensorType::F16, vec![9.0, 0.0]));
        assert!(Stored::new(4, &[0.0; 6]).is_err());
        assert!(Stored::new(2, &[1e9, 0.0]).is_err());
        assert!(Stored::new(2, &[f32::NAN, 0.0]).is_err());
    }

    #[test]
    fn zeros_stay_zeros() {
        let stored = Stored::new(32, &[0.0; 64]).unwrap();
        assert_eq!(stored.apply(&[0.0; 32]), [0.0, 0.0]);
    }
}
