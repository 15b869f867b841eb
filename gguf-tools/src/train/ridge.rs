//! Linear maps in closed form: ridge regression with an unpenalised bias, its penalty chosen on held-out tokens.
//!
//! Everything comes from sums over tokens (`xxᵀ`, `xyᵀ`, `y²`), so that tokens are read once and held-out errors need no
//! second pass: with `A` the map, the held-out error is `Σy² - 2 tr(A Σxyᵀ) + tr(A Σxxᵀ Aᵀ)`. Products of a piece are in
//! single precision, sums of pieces and everything after them in double.

use anyhow::{anyhow, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};

use crate::screen::basis::add_product;

/// The penalties that are tried, as shares of the mean variance of an input.
pub const PENALTIES: [f64; 8] = [1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1];

/// The tokens whose products are taken at once, at least: sequences are shorter, and a sum is as dear to add to for one token as
/// for a thousand.
const ENOUGH: usize = 1024;

/// Sums over tokens of inputs `x`, `[n_in]`, and outputs `y`, `[n_out]`.
#[derive(Debug, Clone)]
pub struct Moments {
    n: u64,
    x: Vec<f64>,
    y: Vec<f64>,
    /// `Σ x xᵀ`
    xx: Mat<f64>,
    /// `Σ x yᵀ`
    xy: Mat<f64>,
    /// `Σ y²`
    yy: Vec<f64>,
}

/// A map with a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// `[n_in, n_out]` in ggml order: a row for each output.
    pub weight: Vec<f32>,
    /// `[n_out]`.
    pub bias: Vec<f32>,
}

impl Moments {
    /// The sums over all `pieces`: rows of inputs, and the rows of outputs that belong to them.
    ///
    /// # Errors
    ///
    /// A piece that is none, rows of another length.
    pub fn gathered(
        n_in: usize,
        n_out: usize,
        pieces: impl Iterator<Item = anyhow::Result<(Vec<f32>, Vec<f32>)>>,
    ) -> anyhow::Result<Moments> {
        let mut moments = Moments::new(n_in, n_out);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for piece in pieces {
            let piece = piece?;
            x.extend(piece.0);
            y.extend(piece.1);
            if x.len() >= ENOUGH * n_in {
                moments.add(&x, &y)?;
                x.clear();
                y.clear();
            }
        }
        moments.add(&x, &y)?;
        Ok(moments)
    }

    fn new(n_in: usize, n_out: usize) -> Moments {
        Moments {
            n: 0,
            x: vec![0.0; n_in],
            y: vec![0.0; n_out],
            xx: Mat::zeros(n_in, n_in),
            xy: Mat::zeros(n_in, n_out),
            yy: vec![0.0; n_out],
        }
    }

    fn add(&mut self, x: &[f32], y: &[f32]) -> anyhow::Result<()> {
        let (n_in, n_out) = (self.x.len(), self.y.len());
        let n = x.len() / n_in.max(1);
        ensure!(
            x.len() == n * n_in && y.len() == n * n_out,
            "{} inputs and {} outputs of {n} tokens",
            x.len(),
            y.len()
        );
        let (rows, outputs) = (MatRef::from_row_major_slice(x, n, n_in), MatRef::from_row_major_slice(y, n, n_out));
        add_product(&mut self.xx, rows, rows);
        add_product(&mut self.xy, rows, outputs);
        for (sums, values) in [(&mut self.x, x), (&mut self.y, y)] {
            for row in values.chunks_exact(sums.len().max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        }
        for row in y.chunks_exact(n_out.max(1)) {
            self.yy.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) * f64::from(*value));
        }
        self.n += n as u64;
        Ok(())
    }

    /// The sums of both.
    pub fn merged(&self, other: &Moments) -> Moments {
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
        Moments {
            n: self.n + other.n,
            x: sum(&self.x, &other.x),
            y: sum(&self.y, &other.y),
            xx: &self.xx + &other.xx,
            xy: &self.xy + &other.xy,
            yy: sum(&self.yy, &other.yy),
        }
    }

    /// The number of tokens.
    pub fn n_tokens(&self) -> u64 {
        self.n
    }

    /// The mean input.
    pub fn mean(&self) -> Vec<f64> {
        self.x.iter().map(|sum| sum / self.n.max(1) as f64).collect()
    }

    /// The covariance of the inputs.
    pub fn covariance(&self) -> Mat<f64> {
        let (n, mean) = (self.n.max(1) as f64, self.mean());
        Mat::from_fn(mean.len(), mean.len(), |i, j| self.xx[(i, j)] / n - mean[i] * mean[j])
    }

    /// The variance of each output.
    pub fn variances(&self) -> Vec<f64> {
        let n = self.n.max(1) as f64;
        self.yy.iter().zip(&self.y).map(|(square, sum)| (square / n - (sum / n).powi(2)).max(0.0)).collect()
    }
}

/// A regression that can be solved for any penalty.
#[derive(Debug)]
pub struct Ridge {
    n: u64,
    mean_x: Vec<f64>,
    mean_y: Vec<f64>,
    /// Eigenvalues of the inputs' covariance, ascending, and its eigenvectors as columns.
    values: Vec<f64>,
    vectors: Mat<f64>,
    /// `Vᵀ cov(x, y)`.
    rotated: Mat<f64>,
}

impl Ridge {
    /// # Errors
    ///
    /// Moments of no token, or with values that are no numbers.
    pub fn new(moments: &Moments) -> anyhow::Result<Ridge> {
        ensure!(moments.n > 0, "no tokens to fit a map to");
        let (n, n_out) = (moments.n as f64, moments.y.len());
        let mean_x = moments.mean();
        let mean_y: Vec<f64> = moments.y.iter().map(|sum| sum / n).collect();
        let eigen = moments
            .covariance()
            .self_adjoint_eigen(Side::Lower)
            .map_err(|error| anyhow!("the covariance of hidden states: {error:?}"))?;
        let cross = Mat::from_fn(mean_x.len(), n_out, |i, j| moments.xy[(i, j)] / n - mean_x[i] * mean_y[j]);
        let mut rotated = Mat::zeros(mean_x.len(), n_out);
        matmul(&mut rotated, Accum::Replace, eigen.U().transpose(), &cross, 1.0, Par::rayon(0));
        let values = (0..mean_x.len()).map(|i| eigen.S()[i].max(0.0)).collect();
        Ok(Ridge { n: moments.n, mean_x, mean_y, values, vectors: eigen.U().to_owned(), rotated })
    }

    fn shrink(&self, penalty: f64) -> Vec<f64> {
        let mean = self.values.iter().sum::<f64>() / self.values.len().max(1) as f64;
        // Fewer tokens than inputs leave directions without variance: some penalty must stay.
        let penalty = (penalty * mean).max(f64::EPSILON * mean).max(f64::MIN_POSITIVE);
        self.values.iter().map(|value| 1.0 / (value + penalty)).collect()
    }

    /// The map for a penalty.
    pub fn solve(&self, penalty: f64) -> Affine {
        self.solve_each(&vec![penalty; self.mean_y.len()])
    }

    /// The map for a penalty of each output.
    pub fn solve_each(&self, penalties: &[f64]) -> Affine {
        let (n_in, n_out) = (self.mean_x.len(), self.mean_y.len());
        let mut scaled = self.rotated.clone();
        let mut known: Vec<(f64, Vec<f64>)> = Vec::new();
        for (j, penalty) in penalties.iter().enumerate().take(n_out) {
            if !known.iter().any(|(other, _)| other == penalty) {
                known.push((*penalty, self.shrink(*penalty)));
            }
            let shrink = known.iter().find(|(other, _)| other == penalty).map_or(&[][..], |(_, shrink)| shrink);
            scaled.col_as_slice_mut(j).iter_mut().zip(shrink).for_each(|(value, shrink)| *value *= shrink);
        }
        let mut map = Mat::zeros(n_in, n_out);
        matmul(&mut map, Accum::Replace, &self.vectors, &scaled, 1.0, Par::rayon(0));
        let weight = (0..n_out).flat_map(|j| map.col_as_slice(j).iter().map(|value| *value as f32)).collect();
        let bias = (0..n_out).map(|j| {
            let shift: f64 = map.col_as_slice(j).iter().zip(&self.mean_x).map(|(a, mean)| a * mean).sum();
            (self.mean_y[j] - shift) as f32
        });
        Affine { weight, bias: bias.collect() }
    }

    /// For each penalty the mean squared error of each output on held-out tokens.
    ///
    /// # Errors
    ///
    /// Held-out moments of no token or of another size.
    pub fn errors(&self, held_out: &Moments, penalties: &[f64]) -> anyhow::Result<Vec<Vec<f64>>> {
        let (n_in, n_out) = (self.mean_x.len(), self.mean_y.len());
        let fits = held_out.x.len() == n_in && held_out.y.len() == n_out && held_out.n > 0 && self.n > 0;
        ensure!(fits, "no held-out tokens to judge a map by");
        let n = held_out.n as f64;
        // Second moments about the fitted means: the bias makes the map pass through those.
        let (hx, hy) = (&held_out.x, &held_out.y);
        let about = |sum: f64, a: f64, b: f64, mean_a: f64, mean_b: f64| {
            sum / n - mean_a * b / n - mean_b * a / n + mean_a * mean_b
        };
        let (mx, my) = (&self.mean_x, &self.mean_y);
        let xx = Mat::from_fn(n_in, n_in, |i, j| about(held_out.xx[(i, j)], hx[i], hx[j], mx[i], mx[j]));
        let xy = Mat::from_fn(n_in, n_out, |i, j| about(held_out.xy[(i, j)], hx[i], hy[j], mx[i], my[j]));
        let mut half = Mat::zeros(n_in, n_in);
        matmul(&mut half, Accum::Replace, &xx, &self.vectors, 1.0, Par::rayon(0));
        let mut inner = Mat::zeros(n_in, n_in);
        matmul(&mut inner, Accum::Replace, self.vectors.transpose(), &half, 1.0, Par::rayon(0));
        let mut cross = Mat::zeros(n_in, n_out);
        matmul(&mut cross, Accum::Replace, self.vectors.transpose(), &xy, 1.0, Par::rayon(0));
        let mut errors = Vec::new();
        let mut product = Mat::zeros(n_in, n_out);
        for &penalty in penalties {
            let shrink = self.shrink(penalty);
            let map = Mat::from_fn(n_in, n_out, |i, j| self.rotated[(i, j)] * shrink[i]);
            matmul(&mut product, Accum::Replace, &inner, &map, 1.0, Par::rayon(0));
            let error = |j: usize| {
                let square = about(held_out.yy[j], hy[j], hy[j], my[j], my[j]);
                let terms = map.col_as_slice(j).iter().zip(cross.col_as_slice(j)).zip(product.col_as_slice(j));
                (square + terms.map(|((a, cross), product)| a * (product - 2.0 * cross)).sum::<f64>()).max(0.0)
            };
            errors.push((0..n_out).map(error).collect());
        }
        Ok(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::basis::product_of_rows;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn world(n: usize, noise: f32, seed: u64) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let truth: Vec<f32> = (0..3 * 8).map(|_| rng.random::<f32>() - 0.5).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let x: Vec<f32> = (0..8 * n).map(|_| rng.random::<f32>() + 1.0).collect();
        let mut y = product_of_rows(&x, &truth, 8);
        y.iter_mut().enumerate().for_each(|(i, y)| *y += [3.0, 0.0, -2.0][i % 3] + noise * (rng.random::<f32>() - 0.5));
        (x, y, truth)
    }

    fn moments(world: &(Vec<f32>, Vec<f32>, Vec<f32>)) -> Moments {
        let pieces = world.0.chunks(8 * 70).zip(world.1.chunks(3 * 70));
        Moments::gathered(8, 3, pieces.map(|(x, y)| Ok((x.to_vec(), y.to_vec())))).unwrap()
    }

    #[test]
    fn sums_over_many_pieces_are_those_over_one() {
        let world = world(3 * ENOUGH + 5, 1.0, 4);
        let mut whole = Moments::new(8, 3);
        whole.add(&world.0, &world.1).unwrap();
        let pieces = moments(&world);
        assert_eq!(pieces.n_tokens(), whole.n_tokens());
        assert!(pieces.mean().iter().zip(whole.mean()).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!((pieces.covariance() - whole.covariance()).norm_max() < 1e-5);
        assert!((&pieces.xy - &whole.xy).norm_max() < 1e-4 * whole.xy.norm_max());
    }

    #[test]
    fn a_linear_truth_comes_back_with_its_bias() {
        let world = world(500, 0.0, 1);
        let map = Ridge::new(&moments(&world)).unwrap().solve(1e-9);
        assert!(map.weight.iter().zip(&world.2).all(|(found, truth)| (found - truth).abs() < 1e-3));
        assert!(map.bias.iter().zip([3.0, 0.0, -2.0]).all(|(found, truth)| (found - truth).abs() < 2e-3));
    }

    #[test]
    fn held_out_errors_are_those_that_applying_the_map_gives() {
        let (few, held_out) = (world(60, 1.0, 2), world(400, 1.0, 3));
        let ridge = Ridge::new(&moments(&few)).unwrap();
        let errors = ridge.errors(&moments(&held_out), &PENALTIES).unwrap();
        for (penalty, errors) in PENALTIES.iter().zip(&errors) {
            let map = ridge.solve(*penalty);
            let found = product_of_rows(&held_out.0, &map.weight, 8);
            for j in 0..3 {
                let rows = found.chunks_exact(3).zip(held_out.1.chunks_exact(3));
                let direct: f64 = rows.map(|(found, y)| f64::from(found[j] + map.bias[j] - y[j]).powi(2)).sum();
                assert!((direct / 400.0 - errors[j]).abs() < 1e-3, "{penalty}, output {j}: {direct} {}", errors[j]);
            }
        }
        // With 60 noisy tokens a penalty in the middle is best: neither end wins.
        let total = |i: usize| errors[i].iter().sum::<f64>();
        let best = (0..PENALTIES.len()).min_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap();
        assert!(best > 2, "{best}");
        let halves = moments(&few).merged(&moments(&held_out));
        assert_eq!(halves.n_tokens(), 460);
    }

    #[test]
    fn moments_of_nothing_fit_nothing() {
        assert!(Ridge::new(&Moments::new(4, 2)).is_err());
        assert!(Moments::new(4, 2).add(&[0.0; 8], &[0.0; 3]).is_err());
    }
}
