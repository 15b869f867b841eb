//! The products that heads rest on, against f64, in every type that a head or an output matrix may have.

use super::*;
use crate::gguf::quants::dequantize;
use TensorType::{BF16, F16, F32, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

const N_IN: usize = 512;
const N_OUT: usize = 48;

/// Values in (-1, 1), the same ones every time.
fn noise(n: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn quantized(ty: TensorType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0u8; ty.bytes(&[N_IN as u64, N_OUT as u64]).unwrap() as usize];
    // SAFETY: `values` are `N_OUT` rows of `N_IN`, and `bytes` has room for them in this type.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            ty.id() as sys::ggml_type,
            values.as_ptr(),
            bytes.as_mut_ptr().cast(),
            0,
            N_OUT as i64,
            N_IN as i64,
            std::ptr::null(),
        )
    };
    assert_eq!(written, bytes.len());
    bytes
}

/// Normalised mean squared error of `values`.
fn nmse(values: &[f32], reference: &[f64]) -> f64 {
    let error: f64 = values.iter().zip(reference).map(|(&value, r)| (f64::from(value) - r).powi(2)).sum();
    error / reference.iter().map(|r| r * r).sum::<f64>()
}

fn multiply(ty: TensorType, bytes: &[u8], input: &[f32]) -> Vec<f32> {
    let mut weights = Tensors::new().unwrap();
    let matrix = weights.matrix(ty, N_IN, N_OUT).unwrap();
    weights.allocate(Layout::of_weight(ty, N_IN, N_OUT).unwrap()).unwrap();
    weights.set(matrix, bytes);
    let mut work = Tensors::new().unwrap();
    let x = work.matrix(F32, N_IN, 1).unwrap();
    let product = work.mul_mat(matrix, x);
    let mut graph = work.graph(&[product]).unwrap();
    work.allocate(Layout::plain().unwrap()).unwrap();
    let x_bytes: Vec<u8> = input.iter().flat_map(|value| value.to_ne_bytes()).collect();
    work.set(x, &x_bytes);
    Cpu::new(1, None).unwrap().compute(&mut work, &mut graph).unwrap();
    work.values(product).to_vec()
}

/// ggml rounds the input of a quantized product to 8 bits a value. On inputs that lie on that grid, with 127/16 the
/// largest of each block, nothing is left to round, and the product is that of the weights as they are stored.
#[test]
fn products_are_those_of_f64_in_every_type() {
    let weights = noise(N_IN * N_OUT, 1);
    let mut input: Vec<f32> = noise(N_IN, 2).iter().map(|value| (value * 127.0).round() / 16.0).collect();
    input.iter_mut().step_by(32).for_each(|value| *value = 127.0 / 16.0);
    let types = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];
    for ty in types {
        let bytes = match ty {
            F32 => weights.iter().flat_map(|value| value.to_ne_bytes()).collect(),
            _ => quantized(ty, &weights),
        };
        let stored = dequantize(ty, &bytes).unwrap();
        let reference: Vec<f64> = stored
            .chunks(N_IN)
            .map(|row| row.iter().zip(&input).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum())
            .collect();
        let error = nmse(&multiply(ty, &bytes, &input), &reference);
        assert!(error <= 1e-7, "{ty}: {error:e}");
    }
}

#[test]
fn a_row_that_ends_inside_a_block_is_refused() {
    assert!(matches!(Tensors::new().unwrap().matrix(Q4_0, 40, 8), Err(Error::Heads { .. })));
    assert!(Layout::of_weight(Q4_K, 128, 8).is_err());
}
