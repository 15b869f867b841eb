//! One head while it is trained: its weights on candle's device, started from the closed form, on whitened inputs.
//!
//! Decay pulls its factors towards the closed form and not towards zero ([`super::adamw`]). Steps are scaled by how much each output
//! varies. [`Network::trained`] folds whitening and scales away and gives plain matrices that act on `x` itself.

use anyhow::{anyhow, ensure};
use candle_core::{DType, Device, Tensor, Var};
use faer::MatRef;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::adamw::Variable;
use super::input::Whitening;
use super::product::times;
use super::ridge::Affine;
use crate::screen::basis::product;

/// The shape of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The waist of a low-rank map; `None` for a square one.
    pub rank: Option<usize>,
    /// Whether a gated MLP of [`WIDENING`] times the width comes before the map.
    pub mlp: bool,
}

/// The inner width of an MLP over the width of its input.
pub const WIDENING: usize = 2;

/// The map of a trained head, its matrices in ggml order (a row for each output).
#[derive(Debug, Clone, PartialEq)]
pub enum TrainedMap {
    /// `[n_embd, n_embd]`
    Affine(Vec<f32>),
    /// `[n_embd, rank]`, then `[rank, n_embd]`.
    LowRank {
        /// The first.
        down: Vec<f32>,
        /// The second.
        up: Vec<f32>,
    },
}

/// A head's weights, in ggml order.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Gate and up `[n_embd, n_ff]`, down `[n_ff, n_embd]`.
    pub mlp: Option<[Vec<f32>; 3]>,
    /// The map.
    pub map: TrainedMap,
    /// `[n_embd]`
    pub bias: Vec<f32>,
}

/// Inputs of a batch.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Whitened, `[n, n_embd]`.
    pub white: Tensor,
    /// As they are, `[n, n_embd]`; for heads with an MLP alone.
    pub plain: Option<Tensor>,
}

/// A head in training.
#[derive(Debug)]
pub struct Network {
    n_in: usize,
    /// The factors of the map, first to last, `[n_in, n_out]` each, and where they started.
    factors: Vec<Variable>,
    /// What a step of one in an output's weights is worth, `[1, n_embd]`.
    scale: Tensor,
    /// `[1, n_embd]`: where it started, and what was added, in steps of the scale.
    bias: (Tensor, Var),
    /// Gate, up (`[n_embd, n_ff]`) and down (`[n_ff, n_embd]`, into whitened space).
    mlp: Option<[Var; 3]>,
}

impl Network {
    /// Starts from `start`, a map of inputs as they are, whose outputs vary by `deviations`, `[n_embd]`.
    ///
    /// # Errors
    ///
    /// A rank that is no compression, a decomposition that fails, what the device says.
    pub fn new(
        form: Form,
        start: &Affine,
        deviations: &[f32],
        whitening: &Whitening,
        device: &Device,
        rng: &mut ChaCha8Rng,
    ) -> anyhow::Result<Network> {
        let n = deviations.len();
        let n_in = start.weight.len() / n.max(1);
        ensure!(start.weight.len() == n_in * n && start.bias.len() == n, "a closed form of another size");
        let mut bias = start.bias.clone();
        let rows = whitening.unfold(&start.weight, &mut bias);
        let mean = deviations.iter().sum::<f32>() / n.max(1) as f32;
        let scale: Vec<f32> = deviations.iter().map(|value| value.max(mean * 1e-3).max(f32::MIN_POSITIVE)).collect();
        let zeros = |shape: (usize, usize)| Var::zeros(shape, DType::F32, device);
        // Columns over their scale, so that all outputs count alike in a truncated decomposition, too.
        let transposed: Vec<f32> = (0..n_in * n).map(|i| rows[(i % n) * n_in + i / n] / scale[i % n]).collect();
        let mut factors = Vec::new();
        let mut factor = |values: Vec<f32>, shape: (usize, usize)| -> candle_core::Result<()> {
            let origin = Tensor::from_vec(values, shape, device)?;
            factors.push(Variable { value: Var::from_tensor(&origin)?, origin: Some(origin) });
            Ok(())
        };
        if let Some(rank) = form.rank {
            ensure!(rank > 0 && rank < n, "a head of rank {rank}: give 1 to {}, or none for a square map", n - 1);
            let (first, second) = truncated(&transposed, n, rank)?;
            factor(first, (n_in, rank))?;
            factor(second, (rank, n))?;
        } else {
            factor(transposed, (n_in, n))?;
        }
        let mlp = match form.mlp {
            true => {
                let n_ff = WIDENING * n_in;
                let deviation = (1.0 / n_in as f32).sqrt();
                // Uniform of the wanted deviation; down starts at zero, so that the head starts at the closed form.
                let mut draw = || -> anyhow::Result<Var> {
                    let width = deviation * 12f32.sqrt();
                    let values = (0..n_in * n_ff).map(|_| (rng.random::<f32>() - 0.5) * width).collect();
                    Ok(Var::from_tensor(&Tensor::from_vec::<_, f32>(values, (n_in, n_ff), device)?)?)
                };
                Some([draw()?, draw()?, zeros((n_ff, n_in))?])
            }
            false => None,
        };
        Ok(Network {
            n_in,
            factors,
            scale: Tensor::from_vec(scale, (1, n), device)?,
            bias: (Tensor::from_vec(bias, (1, n), device)?, zeros((1, n))?),
            mlp,
        })
    }

    /// The outputs for `inputs`, `[n, n_embd]`.
    ///
    /// # Errors
    ///
    /// Inputs without their plain form for a head with an MLP; what the device says.
    pub fn forward(&self, inputs: &Inputs) -> anyhow::Result<Tensor> {
        let mut state = inputs.white.clone();
        if let Some([gate, up, down]) = &self.mlp {
            let plain = inputs.plain.as_ref().ok_or_else(|| anyhow!("an MLP needs its inputs as they are"))?;
            let inner = (times(plain, gate)?.silu()? * times(plain, up)?)?;
            state = (state + times(&inner, down)?)?;
        }
        for factor in &self.factors {
            state = times(&state, &factor.value)?;
        }
        let state = state.broadcast_mul(&self.scale)?;
        let bias = (&self.bias.0 + self.bias.1.broadcast_mul(&self.scale)?)?;
        Ok(state.broadcast_add(&bias)?)
    }

    /// Whether it has an MLP, and so needs its inputs as they are.
    pub fn has_mlp(&self) -> bool {
        self.mlp.is_some()
    }

    /// What is trained.
    pub fn variables(&self) -> Vec<Variable> {
        let others = [&self.bias.1].into_iter().chain(self.mlp.iter().flatten());
        let others = others.map(|value| Variable { value: value.clone(), origin: None });
        self.factors.iter().cloned().chain(others).collect()
    }

    /// The present values of all variables.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn snapshot(&self) -> candle_core::Result<Vec<Tensor>> {
        self.variables().iter().map(|variable| variable.value.copy()).collect()
    }

    /// Goes back to a snapshot.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn restore(&self, snapshot: &[Tensor]) -> candle_core::Result<()> {
        self.variables().iter().zip(snapshot).try_for_each(|(variable, value)| variable.value.set(value))
    }

    /// The head as it stands, acting on inputs as they are.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn trained(&self, whitening: &Whitening) -> anyhow::Result<Trained> {
        let n = self.n_in;
        let values = |tensor: &Tensor| -> anyhow::Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
        let mut bias = values(&(&self.bias.0 + self.bias.1.broadcast_mul(&self.scale)?)?)?;
        let mut factors = Vec::new();
        for (i, factor) in self.factors.iter().enumerate() {
            let mut factor = factor.value.as_tensor().clone();
            if i + 1 == self.factors.len() {
                factor = factor.broadcast_mul(&self.scale)?;
            }
            factors.push(values(&factor.t()?.contiguous()?)?);
        }
        let map = match factors.as_slice() {
            [down, up] => {
                let rank = down.len() / n;
                let mut shift = vec![0.0; rank];
                let down = whitening.fold(down, &mut shift);
                let shifts = product(up, rank, &shift, 1);
                bias.iter_mut().zip(shifts).for_each(|(bias, shift)| *bias += shift);
                TrainedMap::LowRank { down, up: up.clone() }
            }
            _ => TrainedMap::Affine(whitening.fold(&factors.concat(), &mut bias)),
        };
        let mlp = match &self.mlp {
            Some([gate, up, down]) => {
                let rows = |variable: &Var| values(&variable.t()?.contiguous()?);
                Some([rows(gate)?, rows(up)?, whitening.additions(&values(down)?)])
            }
            None => None,
        };
        Ok(Trained { mlp, map, bias })
    }
}

/// The best factors `[n_in, rank]` and `[rank, n]` of a matrix with rows of `n`, both in rows, of equal size.
fn truncated(matrix: &[f32], n: usize, rank: usize) -> anyhow::Result<(Vec<f32>, Vec<f32>)> {
    let matrix: Vec<f64> = matrix.iter().map(|value| f64::from(*value)).collect();
    let n_in = matrix.len() / n.max(1);
    let svd = MatRef::from_row_major_slice(&matrix, n_in, n)
        .thin_svd()
        .map_err(|error| anyhow!("the closed form has no singular values: {error:?}"))?;
    let root = |k: usize| svd.S()[k].max(0.0).sqrt();
    let first = (0..n_in * rank).map(|i| (svd.U()[(i / rank, i % rank)] * root(i % rank)) as f32).collect();
    let second = (0..rank * n).map(|i| (svd.V()[(i % n, i / n)] * root(i / n)) as f32).collect();
    Ok((first, second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::basis::product_of_rows;
    use faer::Mat;
    use rand::SeedableRng;

    const N: usize = 8;

    fn draw(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.random::<f32>() - 0.5).collect()
    }

    /// What a trained head makes of `x`, from its plain matrices.
    fn apply(trained: &Trained, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        if let Some([gate, up, down]) = &trained.mlp {
            let silu = |v: f32| v / (1.0 + (-v).exp());
            let pairs = product_of_rows(&x, gate, N).into_iter().zip(product_of_rows(&x, up, N));
            let inner: Vec<f32> = pairs.map(|(gate, up)| silu(gate) * up).collect();
            let added = product_of_rows(&inner, down, down.len() / N);
            x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
        }
        let mut z = match &trained.map {
            TrainedMap::Affine(weight) => product_of_rows(&x, weight, N),
            TrainedMap::LowRank { down, up } => product_of_rows(&product_of_rows(&x, down, N), up, up.len() / N),
        };
        z.iter_mut().enumerate().for_each(|(i, z)| *z += trained.bias[i % N]);
        z
    }

    #[test]
    fn what_is_written_is_what_was_trained_in_every_form() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mixing = draw(&mut rng, N * N);
        let covariance =
            Mat::from_fn(N, N, |i, j| (0..N).map(|k| f64::from(mixing[i * N + k] * mixing[j * N + k])).sum::<f64>());
        let whitening = Whitening::new(&[0.3; N], covariance.as_ref()).unwrap();
        let start = Affine { weight: draw(&mut rng, N * N), bias: draw(&mut rng, N) };
        let deviations: Vec<f32> = (0..N).map(|i| 0.5 + i as f32).collect();
        let x = draw(&mut rng, 5 * N);
        let device = Device::Cpu;
        for form in [
            Form { rank: None, mlp: false },
            Form { rank: Some(3), mlp: false },
            Form { rank: None, mlp: true },
            Form { rank: Some(4), mlp: true },
        ] {
            let network = Network::new(form, &start, &deviations, &whitening, &device, &mut rng).unwrap();
            let inputs = Inputs {
                white: Tensor::from_vec(whitening.apply(&x), (5, N), &device).unwrap(),
                plain: Some(Tensor::from_vec(x.clone(), (5, N), &device).unwrap()),
            };
            let outputs =
                || -> Vec<f32> { network.forward(&inputs).unwrap().flatten_all().unwrap().to_vec1().unwrap() };
            if form.rank.is_none() {
                let mut expected = product_of_rows(&x, &start.weight, N);
                expected.iter_mut().enumerate().for_each(|(i, z)| *z += start.bias[i % N]);
                assert!(
                    outputs().iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3),
                    "{form:?} starts elsewhere"
                );
            }
            let before = network.snapshot().unwrap();
            for Variable { value, .. } in network.variables() {
                let values = draw(&mut rng, value.elem_count());
                value.set(&Tensor::from_vec(values, value.shape(), &device).unwrap()).unwrap();
            }
            let found = apply(&network.trained(&whitening).unwrap(), &x);
            assert!(outputs().iter().zip(&found).all(|(a, b)| (a - b).abs() < 2e-3), "{form:?}");
            network.restore(&before).unwrap();
            let found = apply(&network.trained(&whitening).unwrap(), &x);
            assert!(outputs().iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-3), "{form:?}");
        }
        let impossible = Form { rank: Some(N), mlp: false };
        assert!(Network::new(impossible, &start, &deviations, &whitening, &device, &mut rng).is_err());
    }
}
