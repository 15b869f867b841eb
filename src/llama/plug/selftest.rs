//! Computes a small product through ggml and looks whether our kernels were asked, and gave the right numbers.
//!
//! A ggml whose hook works otherwise than `vendor/README.md` assumes fails here, and llama.cpp's kernels are used. It
//! refuses nothing.

use std::sync::atomic::Ordering;

use llama_cpp_sys_2 as sys;

use super::hooks;

const N_IN: usize = 64;
const N_OUT: usize = 20;
const N_TOKENS: usize = 3;

/// True if `ours` computes what it should.
pub(super) fn run(ours: sys::ggml_backend_buffer_type_t) -> bool {
    // Rows of Q8_0: scale 1/2, values -8 to 7 by row and column.
    let weight = |row: usize, column: usize| ((row * 5 + column * 3) % 16) as i8 - 8;
    let mut raw = Vec::new();
    for row in 0..N_OUT {
        for block in 0..N_IN / 32 {
            raw.extend_from_slice(&0x3800u16.to_le_bytes());
            raw.extend((0..32).map(|i| weight(row, block * 32 + i) as u8));
        }
    }
    // Activations that 8 bits hold exactly: multiples of the scale, of which 127 is the largest.
    let x = |token: usize, column: usize| {
        if column.is_multiple_of(32) { 127 } else { (token * 7 + column) as i32 % 50 - 25 }
    };
    let inputs: Vec<f32> = (0..N_TOKENS * N_IN).map(|i| x(i / N_IN, i % N_IN) as f32).collect();
    let Some(found) = through_ggml(ours, &raw, &inputs) else { return false };
    let is_right = (0..N_TOKENS * N_OUT).all(|i| {
        let (token, row) = (i / N_OUT, i % N_OUT);
        let exact: i32 = (0..N_IN).map(|column| i32::from(weight(row, column)) * x(token, column)).sum();
        (found[i] - exact as f32 / 2.0).abs() <= 1e-3 * exact.abs().max(1) as f32
    });
    is_right && hooks::N_PRODUCTS.load(Ordering::Relaxed) > 0
}

/// The product as ggml's CPU backend computes it, with the weights in a buffer of type `ours`.
fn through_ggml(ours: sys::ggml_backend_buffer_type_t, raw: &[u8], inputs: &[f32]) -> Option<Vec<f32>> {
    // SAFETY: a context with room for the tensors and one graph; each object is checked and freed after its last use.
    // Weights, inputs and outputs are copied whole, with the sizes of their tensors.
    unsafe {
        let params = sys::ggml_init_params {
            mem_size: sys::ggml_tensor_overhead() * 8 + sys::ggml_graph_overhead_custom(8, false),
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        let weights = sys::ggml_init(params);
        let rest = sys::ggml_init(params);
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        let backend =
            if device.is_null() { std::ptr::null_mut() } else { sys::ggml_backend_dev_init(device, std::ptr::null()) };
        let mut found = None;
        if !weights.is_null() && !rest.is_null() && !backend.is_null() {
            let w = sys::ggml_new_tensor_2d(weights, sys::GGML_TYPE_Q8_0, N_IN as i64, N_OUT as i64);
            let x = sys::ggml_new_tensor_2d(rest, sys::GGML_TYPE_F32, N_IN as i64, N_TOKENS as i64);
            let out = sys::ggml_mul_mat(rest, w, x);
            let graph = sys::ggml_new_graph_custom(rest, 8, false);
            sys::ggml_build_forward_expand(graph, out);
            let packed = sys::ggml_backend_alloc_ctx_tensors_from_buft(weights, ours);
            let plain = sys::ggml_backend_dev_buffer_type(device);
            let plain = sys::ggml_backend_alloc_ctx_tensors_from_buft(rest, plain);
            if !packed.is_null() && !plain.is_null() {
                sys::ggml_backend_tensor_set(w, raw.as_ptr().cast(), 0, raw.len());
                sys::ggml_backend_tensor_set(x, inputs.as_ptr().cast(), 0, size_of_val(inputs));
                if sys::ggml_backend_graph_compute(backend, graph) == sys::GGML_STATUS_SUCCESS {
                    let mut values = vec![0f32; N_TOKENS * N_OUT];
                    sys::ggml_backend_tensor_get(out, values.as_mut_ptr().cast(), 0, size_of_val(&values[..]));
                    found = Some(values);
                }
            }
            for buffer in [packed, plain] {
                if !buffer.is_null() {
                    sys::ggml_backend_buffer_free(buffer);
                }
            }
        }
        if !backend.is_null() {
            sys::ggml_backend_free(backend);
        }
        for context in [weights, rest] {
            if !context.is_null() {
                sys::ggml_free(context);
            }
        }
        found
    }
}
