//! What an exit sees: a hidden state of unit mean square, with every dimension brought to the same scale.
//!
//! `x = rms_norm(h) * w`, `[n_embd]`, as the runtime computes it. The weight `w` is not learnt but measured: one over the
//! root mean square of each dimension. A map could absorb any other scale, but 8-bit blocks of `x` and of the map's rows
//! could not: hidden states have dimensions hundreds of times larger than their neighbours.
//!
//! Maps are trained on *whitened* inputs (`P (x - mean)` with `PᵀP` the inverse of the covariance), on which one step
//! size suits every direction, and [`Whitening::fold`] brings what was learnt back to `x`.

use anyhow::{anyhow, ensure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Mat, MatRef, Par, Side};

use crate::screen::basis::{product, product_of_rows};

/// What is added to the mean square before its root is taken, at run time and here.
pub const NORM_EPS: f32 = 1e-6;
/// The least root mean square of a dimension, as a share of the mean one.
const LEAST_SCALE: f64 = 1e-3;
/// What is added to the covariance's diagonal before it is inverted, as a share of its mean: what keeps directions of
/// noise from being blown up to the size of those that matter.
const RIDGE: f64 = 1e-2;

/// Brings rows of `n_embd` values to unit mean square.
pub fn rms_norm(rows: &mut [f32], n_embd: usize) {
    for row in rows.chunks_exact_mut(n_embd) {
        let mean = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / n_embd as f64;
        let scale = 1.0 / (mean as f32 + NORM_EPS).sqrt();
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// `x = rms_norm(h) * weight` for rows of `weight.len()` values, in place.
pub fn normalize(rows: &mut [f32], weight: &[f32]) {
    rms_norm(rows, weight.len());
    weigh(rows, weight);
}

/// `x * weight` for rows of `weight.len()` values, in place.
pub fn weigh(rows: &mut [f32], weight: &[f32]) {
    for row in rows.chunks_exact_mut(weight.len()) {
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= w);
    }
}

/// The weight that brings every dimension to a mean square of 1, from the sums of the squares of `n` normalized states.
pub fn norm_weight(squares: &[f64], n: u64) -> Vec<f32> {
    let scales: Vec<f64> = squares.iter().map(|sum| (sum / n.max(1) as f64).sqrt()).collect();
    let mean = scales.iter().sum::<f64>() / scales.len().max(1) as f64;
    let least = (mean * LEAST_SCALE).max(f64::MIN_POSITIVE);
    scales.iter().map(|scale| (1.0 / scale.max(least)) as f32).collect()
}

/// An invertible affine map that makes inputs uncorrelated.
#[derive(Debug, Clone)]
pub struct Whitening {
    mean: Vec<f32>,
    /// `P`, rows of `n_embd` values: lower triangular.
    matrix: Vec<f32>,
    /// The inverse of `P`.
    inverse: Vec<f32>,
}

impl Whitening {
    /// From the mean and the covariance of inputs.
    ///
    /// # Errors
    ///
    /// A covariance that holds values that are no numbers.
    pub fn new(mean: &[f64], covariance: MatRef<'_, f64>) -> anyhow::Result<Whitening> {
        let n = mean.len();
        ensure!(covariance.nrows() == n && covariance.ncols() == n, "a covariance of another size than the mean");
        let trace: f64 = (0..n).map(|i| covariance[(i, i)]).sum();
        let ridge = (RIDGE * trace / n as f64).max(f64::MIN_POSITIVE);
        let ridged = Mat::from_fn(n, n, |i, j| covariance[(i, j)] + if i == j { ridge } else { 0.0 });
        let factor = ridged.llt(Side::Lower).map_err(|error| anyhow!("the covariance of hidden states: {error:?}"))?;
        let mut matrix = Mat::<f64>::identity(n, n);
        solve_lower_triangular_in_place(factor.L(), matrix.as_mut(), Par::rayon(0));
        let by_row = |m: MatRef<'_, f64>| (0..n * n).map(|i| m[(i / n, i % n)] as f32).collect();
        Ok(Whitening {
            mean: mean.iter().map(|x| *x as f32).collect(),
            matrix: by_row(matrix.as_ref()),
            inverse: by_row(factor.L()),
        })
    }

    /// `P (x - mean)` for each row.
    pub fn apply(&self, rows: &[f32]) -> Vec<f32> {
        let n = self.mean.len();
        let centred: Vec<f32> =
            rows.chunks_exact(n).flat_map(|row| row.iter().zip(&self.mean).map(|(x, mean)| x - mean)).collect();
        product_of_rows(&centred, &self.matrix, n)
    }

    /// The map of whitened inputs that a map of inputs is: the reverse of [`Whitening::fold`].
    pub fn unfold(&self, weight: &[f32], bias: &mut [f32]) -> Vec<f32> {
        let n = self.mean.len();
        self.shift(weight, 1.0, bias);
        product(weight, n, &self.inverse, n)
    }

    /// What must be added to `x` so that `P (x - mean)` grows by `rows`: rows of as many values as there are `rows`, of
    /// which each holds one addition.
    pub fn additions(&self, rows: &[f32]) -> Vec<f32> {
        product_of_rows(&self.inverse, rows, self.mean.len())
    }

    /// What a map of whitened inputs is as a map of inputs: `W P` for rows `W`, with the bias `bias - W P mean`.
    pub fn fold(&self, weight: &[f32], bias: &mut [f32]) -> Vec<f32> {
        let n = self.mean.len();
        let folded = product(weight, n, &self.matrix, n);
        self.shift(&folded, -1.0, bias);
        folded
    }

    /// Adds `sign` times what rows make of the mean.
    fn shift(&self, rows: &[f32], sign: f64, bias: &mut [f32]) {
        for (row, bias) in rows.chunks_exact(self.mean.len()).zip(bias) {
            let shift: f64 = row.iter().zip(&self.mean).map(|(w, mean)| f64::from(*w) * f64::from(*mean)).sum();
            *bias += (sign * shift) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn whitened_inputs_are_uncorrelated_and_fold_back() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let (n, n_rows) = (6, 4000);
        let mixing: Vec<f32> = (0..n * n).map(|_| rng.random::<f32>() - 0.5).collect();
        let source: Vec<f32> = (0..n * n_rows).map(|_| rng.random::<f32>()).collect();
        let rows = product_of_rows(&source, &mixing, n);
        let mean: Vec<f64> = (0..n)
            .map(|j| rows.iter().skip(j).step_by(n).map(|x| f64::from(*x)).sum::<f64>() / n_rows as f64)
            .collect();
        let covariance = Mat::from_fn(n, n, |i, j| {
            let row = |row: &[f32]| (f64::from(row[i]) - mean[i]) * (f64::from(row[j]) - mean[j]);
            rows.chunks_exact(n).map(row).sum::<f64>() / n_rows as f64
        });
        let whitening = Whitening::new(&mean, covariance.as_ref()).unwrap();
        let white = whitening.apply(&rows);
        let correlation = |i: usize, j: usize| {
            white.chunks_exact(n).map(|row| f64::from(row[i] * row[j])).sum::<f64>() / n_rows as f64
        };
        // The ridge keeps the weakest directions below a variance of 1.
        assert!((0..n).all(|i| (0.1..1.01).contains(&correlation(i, i))));
        assert!((0..n).all(|i| (0..i).all(|j| correlation(i, j).abs() < 0.3)));

        let weight: Vec<f32> = (0..2 * n).map(|_| rng.random::<f32>()).collect();
        let mut bias = vec![0.5, -0.5];
        let expected = product_of_rows(&white, &weight, n);
        let folded = whitening.fold(&weight, &mut bias);
        let found = product_of_rows(&rows, &folded, n);
        for (found, expected) in found.chunks(2).zip(expected.chunks(2)) {
            assert!((found[0] + bias[0] - expected[0] - 0.5).abs() < 1e-3);
            assert!((found[1] + bias[1] - expected[1] + 0.5).abs() < 1e-3);
        }
        let unfolded = whitening.unfold(&folded, &mut bias);
        assert!(unfolded.iter().zip(&weight).all(|(a, b)| (a - b).abs() < 1e-3));
        assert!((bias[0] - 0.5).abs() < 1e-3 && (bias[1] + 0.5).abs() < 1e-3);
    }

    #[test]
    fn every_dimension_gets_the_same_scale() {
        let mut rows = vec![100.0, 1.0, -100.0, 1.0, 100.0, -1.0];
        rms_norm(&mut rows, 2);
        let squares: Vec<f64> = (0..2).map(|j| rows.chunks(2).map(|row| f64::from(row[j]).powi(2)).sum()).collect();
        let weight = norm_weight(&squares, 3);
        let mut rows = vec![100.0, 1.0];
        normalize(&mut rows, &weight);
        assert!(rows.iter().all(|x| (x - 1.0).abs() < 1e-3), "{rows:?}");
    }
}
