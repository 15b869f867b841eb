//! What tests compare heads with: numbers without a source, and a product in f64.

/// Numbers around 0 of about this size.
pub(super) fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * size
    };
    (0..n).map(|_| next()).collect()
}

/// `matrix^T x` for `matrix` `[n_in, n_out]` in ggml's order.
pub(super) fn product(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| f64::from(*a) * b).sum()).collect()
}
