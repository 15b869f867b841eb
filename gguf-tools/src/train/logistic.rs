//! Logistic regression with a penalty on its weights, by Newton's method.
//!
//! Rows are many and wide, so that the matrix of second derivatives is added up some rows at a time. Which rows count is asked
//! for each, so that a fit without some of them needs no copy of the others. It refuses what is no number.

use anyhow::{anyhow, ensure};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatRef, Par, Side};

/// Rows that are added up at once.
const CHUNK: usize = 1024;

/// What is fitted to.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// `[width, n]`, a column for the bias included.
    pub values: &'a [f32],
    /// For each row, what is to be told.
    pub is_true: &'a [bool],
}

/// Makes one of Newton's steps from `weights`, `[width]`, by the rows that `counts`; `penalties`, `[width]`, are those on the
/// squared weights.
///
/// # Errors
///
/// Rows of another width, and values that are no numbers.
pub fn step(
    rows: Rows<'_>,
    counts: &(dyn Fn(usize) -> bool + Sync),
    penalties: &[f64],
    weights: &mut [f64],
) -> anyhow::Result<()> {
    let width = weights.len();
    let fits = penalties.len() == width && rows.values.len() == width * rows.is_true.len();
    ensure!(fits, "{} values of {} rows of {width}", rows.values.len(), rows.is_true.len());
    let mut hessian = Mat::<f64>::from_fn(width, width, |i, j| if i == j { penalties[i] } else { 0.0 });
    let mut gradient = Mat::<f64>::from_fn(width, 1, |i, _| -penalties[i] * weights[i]);
    let current = Mat::<f64>::from_fn(width, 1, |i, _| weights[i]);
    for (chunk, values) in rows.values.chunks(CHUNK * width).enumerate() {
        let first = chunk * CHUNK;
        let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
        let n = values.len() / width;
        let values = MatRef::from_row_major_slice(&values, n, width);
        let logits = values * &current;
        let probability = |i: usize| 1.0 / (1.0 + (-logits[(i, 0)]).exp());
        let weigh = |i: usize| f64::from(u8::from(counts(first + i)));
        let residual = |i: usize, _| weigh(i) * (f64::from(u8::from(rows.is_true[first + i])) - probability(i));
        let curvatures: Vec<f64> = (0..n).map(|i| weigh(i) * probability(i) * (1.0 - probability(i))).collect();
        let scaled = Mat::from_fn(n, width, |i, j| values[(i, j)] * curvatures[i]);
        matmul(&mut hessian, Accum::Add, values.transpose(), &scaled, 1.0, Par::rayon(0));
        gradient += values.transpose() * &Mat::from_fn(n, 1, residual);
    }
    let factor = hessian.llt(Side::Lower).map_err(|error| anyhow!("a logistic regression: {error:?}"))?;
    let step = factor.solve(&gradient);
    weights.iter_mut().enumerate().for_each(|(i, weight)| *weight += step[(i, 0)]);
    ensure!(weights.iter().all(|weight| weight.is_finite()), "the weights of a logistic regression are no numbers");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn it_finds_the_weights_that_its_rows_were_drawn_by() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let truth = [1.5, -0.7, 0.4];
        let n = 20_000;
        let values: Vec<f32> =
            (0..n).flat_map(|_| [rng.random::<f32>() * 4.0 - 2.0, rng.random::<f32>(), 1.0]).collect();
        let odds = |row: &[f32]| row.iter().zip(truth).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
        let is_true: Vec<bool> =
            values.chunks(3).map(|row| rng.random::<f64>() < 1.0 / (1.0 + (-odds(row)).exp())).collect();
        let rows = Rows { values: &values, is_true: &is_true };
        let fitted = |rows, counts: &(dyn Fn(usize) -> bool + Sync)| {
            let mut weights = [0.0; 3];
            (0..8).try_for_each(|_| step(rows, counts, &[1e-6; 3], &mut weights)).map(|()| weights)
        };
        let all = fitted(rows, &|_| true).unwrap();
        assert!(all.iter().zip(truth).all(|(found, truth)| (found - truth).abs() < 0.1), "{all:?}");
        // Rows that do not count change nothing, whatever they say.
        let spoilt: Vec<bool> = is_true.iter().enumerate().map(|(i, &is_true)| is_true != (i % 3 == 0)).collect();
        let without = fitted(rows, &|i| i % 3 != 0).unwrap();
        assert_eq!(fitted(Rows { is_true: &spoilt, ..rows }, &|i| i % 3 != 0).unwrap(), without);
        assert!(without != all && fitted(Rows { is_true: &is_true[1..], ..rows }, &|_| true).is_err());
    }
}
