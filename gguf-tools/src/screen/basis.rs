//! The subspace that a screen scores in: whitened by the hidden states, weighted by the tokens' prior.
//!
//! All in closed form and in double precision where it matters: the covariance of the hidden states, its Cholesky factor
//! `L`, and the eigenvectors of `Lᵀ Wᵀ D² W L`, which are the right singular vectors of `D W L`.

use anyhow::{Context, anyhow, ensure};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

use super::output_matrix::OutputMatrix;
use crate::collect::label::Label;

/// What is added to the covariance's diagonal, as a share of its mean: directions that no collected token used.
const RIDGE: f64 = 1e-3;

/// What the fit needs to know of the hidden states and the tokens: filled piece by piece.
#[derive(Debug)]
pub struct Moments {
    /// The sum of `x xᵀ`.
    second: Mat<f64>,
    /// The sum of the full model's probabilities of each token.
    mass: Vec<f64>,
    n_tokens: u64,
}

impl Moments {
    /// Nothing seen yet.
    pub fn new(n_embd: usize, n_vocab: usize) -> Moments {
        Moments { second: Mat::zeros(n_embd, n_embd), mass: vec![0.0; n_vocab], n_tokens: 0 }
    }

    /// Adds hidden states, `[n_embd, n]`, and their labels.
    ///
    /// # Errors
    ///
    /// Labels of another vocabulary.
    pub fn add(&mut self, hidden: &[f32], labels: &[Label]) -> anyhow::Result<()> {
        let n_embd = self.second.nrows();
        ensure!(hidden.len() == n_embd * labels.len(), "{} values of {} hidden states", hidden.len(), labels.len());
        let hidden: Vec<f64> = hidden.iter().map(|value| f64::from(*value)).collect();
        let rows = MatRef::from_row_major_slice(&hidden, labels.len(), n_embd);
        matmul(&mut self.second, Accum::Add, rows.transpose(), rows, 1.0, Par::rayon(0));
        for label in labels {
            for (id, probability) in label.top {
                *self.mass.get_mut(id as usize).context("a label beyond the vocabulary")? += f64::from(probability);
            }
        }
        self.n_tokens += labels.len() as u64;
        Ok(())
    }

    /// The Cholesky factor of the covariance.
    fn cholesky(&self) -> anyhow::Result<Mat<f64>> {
        let n = self.second.nrows();
        ensure!(self.n_tokens > 0, "no tokens to fit a screen to");
        let scale = 1.0 / self.n_tokens as f64;
        let trace: f64 = (0..n).map(|i| self.second[(i, i)] * scale).sum();
        let ridge = RIDGE * trace / n as f64;
        let covariance = Mat::from_fn(n, n, |i, j| self.second[(i, j)] * scale + if i == j { ridge } else { 0.0 });
        let factor =
            covariance.llt(Side::Lower).map_err(|error| anyhow!("the hidden states' covariance: {error:?}"))?;
        Ok(factor.L().to_owned())
    }

    /// `D²` for each token: the square root of its prior, with a mean of 1. The prior is half what was seen and half
    /// uniform: nearly all choices that a screen misses are of tokens that the collected text never chose.
    fn weights(&self) -> Vec<f32> {
        let share = self.n_tokens as f64 / self.mass.len().max(1) as f64;
        let roots: Vec<f64> = self.mass.iter().map(|mass| (mass + share).sqrt()).collect();
        let mean = roots.iter().sum::<f64>() / roots.len().max(1) as f64;
        roots.iter().map(|root| if mean > 0.0 { (root / mean) as f32 } else { 1.0 }).collect()
    }
}

/// All directions of the whitened space, most wanted first.
#[derive(Debug)]
pub struct Subspace {
    /// `L`.
    cholesky: Mat<f64>,
    /// The eigenvectors as columns.
    directions: Mat<f64>,
}

/// The two factors of one rank before they are rounded.
#[derive(Debug)]
pub struct Rotated {
    /// `P = (L⁻ᵀ V Q)ᵀ`: `[n_embd, r]` in ggml order.
    pub basis: Vec<f32>,
    /// `L V Q`, by which a row of the output matrix is multiplied: `n_embd` rows of `r`.
    pub output: Vec<f32>,
}

impl Subspace {
    /// Fits it. Reads the output matrix once.
    ///
    /// # Errors
    ///
    /// Moments of no token or of another size, and matrices with values that are no numbers.
    pub fn fit(matrix: &OutputMatrix<'_>, moments: &Moments) -> anyhow::Result<Subspace> {
        let n = matrix.n_embd();
        let fits = moments.second.nrows() == n && moments.mass.len() == matrix.n_vocab();
        ensure!(fits, "the collected tokens are of another model than the output matrix");
        let weights = moments.weights();
        let mut gram = Mat::<f64>::zeros(n, n);
        matrix.for_each_chunk(&mut |first, rows| {
            let weighted: Vec<f32> = rows
                .chunks_exact(n)
                .zip(&weights[first..])
                .flat_map(|(row, w)| row.iter().map(move |x| x * w))
                .collect();
            let n_rows = rows.len() / n;
            let rows = MatRef::from_row_major_slice(rows, n_rows, n);
            let weighted = MatRef::from_row_major_slice(&weighted, n_rows, n);
            add_product(&mut gram, weighted, rows);
            Ok(())
        })?;
        let cholesky = moments.cholesky()?;
        let whitened = cholesky.transpose() * &gram * &cholesky;
        let eigen =
            whitened.self_adjoint_eigen(Side::Lower).map_err(|error| anyhow!("the output matrix: {error:?}"))?;
        // Eigenvalues come in ascending order.
        let vectors = eigen.U();
        let directions = Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)]);
        Ok(Subspace { cholesky, directions })
    }

    /// The `rank` most wanted directions, rotated among themselves at random.
    ///
    /// # Errors
    ///
    /// A rank above the number of directions.
    pub fn rotated(&self, rank: usize, seed: u64) -> anyhow::Result<Rotated> {
        let n = self.directions.nrows();
        ensure!(rank <= n, "rank {rank} of {n} directions");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let gaussian = Mat::from_fn(rank, rank, |_, _| normal(&mut rng));
        let rotation = gaussian.qr().compute_thin_Q();
        let chosen = self.directions.subcols(0, rank) * &rotation;
        let output = &self.cholesky * &chosen;
        let mut basis = chosen;
        solve_upper_triangular_in_place(self.cholesky.transpose(), basis.as_mut(), Par::rayon(0));
        let by_column = |j: usize| (0..n).map(move |i| (i, j));
        let by_row = |i: usize| (0..rank).map(move |j| (i, j));
        Ok(Rotated {
            basis: (0..rank).flat_map(by_column).map(|place| basis[place] as f32).collect(),
            output: (0..n).flat_map(by_row).map(|place| output[place] as f32).collect(),
        })
    }
}

/// A draw from the standard normal distribution (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let uniform = |rng: &mut ChaCha8Rng| ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (radius, angle) = ((-2.0 * uniform(rng).ln()).sqrt(), std::f64::consts::TAU * uniform(rng));
    radius * angle.cos()
}

/// Adds `aᵀ b`, a product in single precision, to sums in double. On all threads.
pub fn add_product(sum: &mut Mat<f64>, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    let mut part = Mat::<f32>::zeros(a.ncols(), b.ncols());
    matmul(&mut part, Accum::Replace, a.transpose(), b, 1.0, Par::rayon(0));
    sum.par_col_iter_mut().zip(part.par_col_iter()).for_each(|(sum, part)| {
        sum.iter_mut().zip(part.iter()).for_each(|(sum, part)| *sum += f64::from(*part));
    });
}

/// Rows of `n_inner` values times a matrix of `n_inner` rows of `n_columns`: rows of `n_columns` values. On all threads.
pub fn product(rows: &[f32], n_inner: usize, matrix: &[f32], n_columns: usize) -> Vec<f32> {
    let n_rows = rows.len() / n_inner.max(1);
    let matrix = MatRef::from_row_major_slice(matrix, n_inner, n_columns);
    product_in_rows(MatRef::from_row_major_slice(rows, n_rows, n_inner), matrix)
}

/// The columns of rows of `n_a` values times those of as many rows of `n_b`: `n_a` rows of `n_b` sums over the rows. On all threads.
pub fn product_of_columns(a: &[f32], n_a: usize, b: &[f32], n_b: usize) -> Vec<f32> {
    let n_rows = a.len() / n_a.max(1);
    let b = MatRef::from_row_major_slice(b, n_rows, n_b);
    product_in_rows(MatRef::from_row_major_slice(a, n_rows, n_a).transpose(), b)
}

/// Rows of `n_inner` values times the rows of another matrix: one row of dot products for each row. On all threads.
pub fn product_of_rows(rows: &[f32], others: &[f32], n_inner: usize) -> Vec<f32> {
    let (n_rows, n_others) = (rows.len() / n_inner.max(1), others.len() / n_inner.max(1));
    let others = MatRef::from_row_major_slice(others, n_others, n_inner).transpose();
    product_in_rows(MatRef::from_row_major_slice(rows, n_rows, n_inner), others)
}

/// `a b`, row after row.
fn product_in_rows(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Vec<f32> {
    let (n_rows, n_columns) = (a.nrows(), b.ncols());
    let mut out = vec![0.0; n_rows * n_columns];
    let into = MatMut::from_row_major_slice_mut(&mut out, n_rows, n_columns);
    matmul(into, Accum::Replace, a, b, 1.0, Par::rayon(0));
    out
}
