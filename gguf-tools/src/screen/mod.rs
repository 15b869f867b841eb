//! The screen: a small copy of the output matrix that finds the few tokens worth an exact logit.
//!
//! With `W` the output matrix and `x` a hidden state after the final norm, the logits are `W x`. The screen scores all
//! tokens by `B (P x)`, where `P` maps to a subspace of rank `r` and `B` is kept in 4 bits; the best `shortlist` of them
//! get their exact logits from the model's own rows. The subspace is the one that the hidden states really use: the
//! leading right singular vectors of `D W L`, where `L` is the Cholesky factor of the hidden states' covariance and `D`
//! weighs tokens by how often the model wants them. A random rotation inside the subspace, which costs nothing at run
//! time, spreads the values evenly before they are rounded to 4 bits.
//!
//! How sure a screen is of a token is its *slack*: the best exact logit among the candidates, less the screened score of
//! the last of them. What was not rescored would have to be underestimated by more than that to be the best.
//!
//! It refuses models whose logits have a bias, and ranks that 4-bit blocks do not divide.

pub mod basis;
pub mod choose;
pub mod evaluate;
pub mod output_matrix;
pub mod q4_0;

use anyhow::ensure;
use half::f16;
use half::slice::HalfFloatSliceExt;

use basis::Subspace;
use output_matrix::OutputMatrix;

/// A screen as it is stored.
#[derive(Debug, Clone)]
pub struct Screen {
    /// The rank `r`.
    pub rank: usize,
    /// `[n_embd, r]`, F16.
    pub basis: Vec<f16>,
    /// `[r, n_vocab]`, Q4_0.
    pub output: Vec<u8>,
}

impl Screen {
    /// The screen of rank `rank` in `subspace`, rotated at random by `seed`. Reads the output matrix once.
    ///
    /// # Errors
    ///
    /// A rank that is no multiple of 32 or above that of the subspace.
    pub fn new(matrix: &OutputMatrix<'_>, subspace: &Subspace, rank: usize, seed: u64) -> anyhow::Result<Screen> {
        let largest = matrix.n_embd() / q4_0::BLOCK * q4_0::BLOCK;
        let fits = rank > 0 && rank <= largest && rank.is_multiple_of(q4_0::BLOCK);
        ensure!(fits, "a screen of rank {rank}: give a multiple of {} up to {largest}", q4_0::BLOCK);
        let rotated = subspace.rotated(rank, seed)?;
        let mut basis = vec![f16::ZERO; rotated.basis.len()];
        basis.convert_from_f32_slice(&rotated.basis);
        ensure!(basis.iter().all(|value| value.is_finite()), "the screen's basis does not fit into half precision");
        let mut output = Vec::with_capacity(matrix.n_vocab() * rank / q4_0::BLOCK * q4_0::BLOCK_BYTES);
        matrix.for_each_chunk(&mut |_, rows| {
            let factor = basis::product(rows, matrix.n_embd(), &rotated.output, rank);
            output.extend(q4_0::quantize(&factor));
            Ok(())
        })?;
        Ok(Screen { rank, basis, output })
    }

    /// The bytes that screening one token reads, without the rows that are rescored.
    pub fn bytes(&self) -> u64 {
        self.basis_bytes() + self.output.len() as u64
    }

    /// The bytes of the basis alone.
    pub fn basis_bytes(&self) -> u64 {
        2 * self.basis.len() as u64
    }
}
