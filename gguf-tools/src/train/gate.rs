//! The cheap gate of an exit: one dot product that guesses whether evaluating the head will pay.
//!
//! Logistic regression of "the head was sure enough" on the head's own input, by Newton's method with a penalty on the
//! weights. What *sure enough* means is up to the caller; when the guess is high enough is decided later, by costs.
//! A gate that cannot tell is no gate: tokens all of one kind give none.

use anyhow::ensure;

use super::head::Gate;
use super::input::Whitening;
use super::logistic::{self, Rows};

/// The penalty on the squared weights (of whitened inputs), times the number of inputs.
const PENALTY: f64 = 1.0;
/// Newton's steps.
const STEPS: usize = 8;

/// Fits a gate to inputs `x`, `[n_embd, n]`, and what the head made of them. `None` where all are of one kind.
///
/// # Errors
///
/// Inputs of another number than `is_sure`, or that are no numbers.
pub fn fit(x: &[f32], is_sure: &[bool], whitening: &Whitening) -> anyhow::Result<Option<Gate>> {
    let n = is_sure.len();
    let n_sure = is_sure.iter().filter(|sure| **sure).count();
    if n_sure == 0 || n_sure == n {
        return Ok(None);
    }
    ensure!(x.len().is_multiple_of(n), "{} values of {n} inputs", x.len());
    let white = whitening.apply(x);
    let n_embd = white.len() / n;
    // A column of ones for the bias, which is hardly penalised.
    let rows: Vec<f32> = white.chunks_exact(n_embd).flat_map(|row| row.iter().copied().chain([1.0])).collect();
    let share = n_sure as f64 / n as f64;
    let mut weights = vec![0.0; n_embd + 1];
    weights[n_embd] = (share / (1.0 - share)).ln();
    let penalties: Vec<f64> = (0..=n_embd).map(|i| if i < n_embd { PENALTY * n_embd as f64 } else { 1e-6 }).collect();
    let rows = Rows { values: &rows, is_true: is_sure };
    for _ in 0..STEPS {
        logistic::step(rows, &|_| true, &penalties, &mut weights)?;
    }
    let white: Vec<f32> = weights[..n_embd].iter().map(|weight| *weight as f32).collect();
    let mut bias = [weights[n_embd] as f32];
    let weight = whitening.fold(&white, &mut bias);
    Ok(Some(Gate { weight, bias: bias[0] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;
    use rand::{Rng, SeedableRng};

    #[test]
    fn a_gate_learns_which_inputs_make_a_head_sure() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let n_embd = 8;
        let mut draw = |n: usize| -> Vec<f32> { (0..n * n_embd).map(|_| rng.random::<f32>() - 0.5).collect() };
        let (x, unseen) = (draw(3000), draw(1000));
        let is_sure = |row: &[f32]| row[2] - row[5] > 0.1;
        let whitening =
            Whitening::new(&[0.0; 8], (Mat::<f64>::identity(8, 8) * faer::Scale(1.0 / 12.0)).as_ref()).unwrap();
        let labels: Vec<bool> = x.chunks(n_embd).map(is_sure).collect();
        let gate = fit(&x, &labels, &whitening).unwrap().unwrap();
        let right = unseen.chunks(n_embd).filter(|row| (gate.output(row) > 0.5) == is_sure(row)).count();
        assert!(right > 950, "{right}");
        assert_eq!(fit(&x, &vec![true; 3000], &whitening).unwrap(), None);
        assert!(fit(&x[1..], &labels, &whitening).is_err());
    }
}
