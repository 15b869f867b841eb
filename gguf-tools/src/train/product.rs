//! The product of a head's layer, `x W`, and the gradients that training asks it for.
//!
//! On the processor it is faer's, which uses AVX-512 where there is any and candle's does not, and an input has a gradient only if
//! something before it is trained: candle multiplies for all of them. Other devices use candle's. It refuses matrices that do not
//! fit each other.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use crate::screen::basis::{product, product_of_columns, product_of_rows};

/// `x W`, `[n, n_out]`, of `x`, `[n, n_in]`, and `W`, `[n_in, n_out]`.
///
/// # Errors
///
/// Matrices of other shapes; what the device says.
pub fn times(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => x.contiguous()?.apply_op2(&weight.contiguous()?, Product),
        _ => x.matmul(weight),
    }
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, of_x: &Layout, w: &CpuStorage, of_w: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, n_in), (n_inner, n_out)) = (of_x.shape().dims2()?, of_w.shape().dims2()?);
        if n_in != n_inner {
            bail!("inputs of {n_in} values for a matrix of {n_inner} rows");
        }
        let (CpuStorage::F32(x), CpuStorage::F32(w)) = (x, w) else { bail!("single precision is expected") };
        let (Some(x_at), Some(w_at)) = (of_x.contiguous_offsets(), of_w.contiguous_offsets()) else {
            bail!("matrices are expected in one piece");
        };
        Ok((CpuStorage::F32(product(&x[x_at.0..x_at.1], n_in, &w[w_at.0..w_at.1], n_out)), Shape::from((n, n_out))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let ((n_in, n_out), gradient) = (w.dims2()?, values(gradient)?);
        let of_x = match x.track_op() {
            true => Some(Tensor::from_vec(product_of_rows(&gradient, &values(w)?, n_out), x.shape(), x.device())?),
            false => None,
        };
        let of_w = product_of_columns(&values(x)?, n_in, &gradient, n_out);
        Ok((of_x, Some(Tensor::from_vec(of_w, w.shape(), w.device())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn draw(rng: &mut ChaCha8Rng, shape: (usize, usize)) -> Tensor {
        let values = (0..shape.0 * shape.1).map(|_| rng.random::<f32>() - 0.5).collect();
        Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn two_layers_have_the_values_and_gradients_of_candle() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let x = draw(&mut rng, (7, 12));
        let first = Var::from_tensor(&draw(&mut rng, (12, 5))).unwrap();
        let second = Var::from_tensor(&draw(&mut rng, (5, 9))).unwrap();
        let ours = times(&times(&x, &first).unwrap(), &second).unwrap();
        let theirs = x.matmul(&first).unwrap().matmul(&second).unwrap();
        let near = |a: &Tensor, b: &Tensor| {
            assert_eq!(a.shape(), b.shape());
            let farthest: f32 = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert!(farthest < 1e-5, "{farthest}");
        };
        near(&ours, &theirs);
        let (ours, theirs) = (ours.sqr().unwrap().backward().unwrap(), theirs.sqr().unwrap().backward().unwrap());
        for weight in [&first, &second] {
            near(ours.get(weight).unwrap(), theirs.get(weight).unwrap());
        }
        assert!(ours.get(&x).is_none(), "nobody learns from the gradient of an input");
        assert!(times(&x, &second).is_err());
    }
}
