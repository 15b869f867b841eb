//! The operations that K and V take from a hidden state to the cache of a context.
//!
//! Rotation and store are those of llama.cpp's own graph, with its parameters and its tensors: what they write is what a
//! decode would have written, byte for byte. Graphs made of these dereference tensors of a context and of a model, so that
//! they may run only while both live. It refuses caches and weights that lie on another device than the CPU.

use llama_cpp_sys_2 as sys;

use super::{Result, Tensor, TensorType, Tensors, cpu_device, failed};
use crate::llama::kv::{Rope, Store};
use crate::llama::recipe::{Source, Step};

impl Tensors {
    /// A vector of `n` integers of 64 bits: the rows that a store goes to.
    pub(in crate::heads) fn rows(&mut self, n: usize) -> Result<Tensor> {
        self.matrix(TensorType::I64, n, 1)
    }

    /// `rms_norm(input) * weight`, both `[n]`.
    pub(in crate::heads) fn norm(&mut self, input: Tensor, weight: Tensor, eps: f32) -> Tensor {
        // SAFETY: live tensors of f32 and of one shape.
        let normed = unsafe {
            let normed = sys::ggml_rms_norm(self.context.as_ptr(), input.0.as_ptr(), eps);
            sys::ggml_mul(self.context.as_ptr(), normed, weight.0.as_ptr())
        };
        self.made(normed)
    }

    /// `matrix^T input + bias`: `[n_out]` from `[n_in, n_out]`, `[n_in]` and `[n_out]`.
    pub(in crate::heads) fn affine(&mut self, matrix: Tensor, input: Tensor, bias: Tensor) -> Tensor {
        let product = self.mul_mat(matrix, input);
        // SAFETY: live tensors of f32 and of one shape.
        self.made(unsafe { sys::ggml_add(self.context.as_ptr(), product.0.as_ptr(), bias.0.as_ptr()) })
    }

    /// `n` of the values of an f32 tensor without gaps, from the `first` on.
    ///
    /// # Panics
    /// If the tensor has fewer.
    pub(in crate::heads) fn part(&mut self, tensor: Tensor, first: usize, n: usize) -> Tensor {
        // SAFETY: reads the tensor's own fields.
        let n_values = unsafe { sys::ggml_nelements(tensor.0.as_ptr()) };
        assert!(first.checked_add(n).is_some_and(|end| end as i64 <= n_values), "a part lies within its tensor");
        // SAFETY: a live tensor of f32, and values within it.
        let part = unsafe { sys::ggml_view_1d(self.context.as_ptr(), tensor.0.as_ptr(), n as i64, first * 4) };
        self.made(part)
    }

    /// K `[n]` of one token, rotated by its position `[1]` as `rope` says: head by head.
    ///
    /// # Errors
    /// [`crate::Error::Heads`] for K that is no whole number of heads.
    pub(in crate::heads) fn rotated(&mut self, k: Tensor, position: Tensor, rope: &Rope) -> Result<Tensor> {
        // SAFETY: reads the tensor's own fields.
        let n = unsafe { sys::ggml_nelements(k.0.as_ptr()) };
        let n_embd_head = rope.n_embd_head as i64;
        if n_embd_head == 0 || n % n_embd_head != 0 {
            return Err(failed("K that is no whole number of heads"));
        }
        let factors = rope.factors.map_or(std::ptr::null_mut(), |factors| factors.as_ptr());
        let [_, n_dims, mode, ..] = rope.params;
        // SAFETY: live tensors; a position for the one token that `k` is of. ggml checks the shapes, and its own node of
        // the model's graph had these. All parameters, also those that this call does not take, are then that node's.
        let rotated = unsafe {
            let context = self.context.as_ptr();
            let heads = sys::ggml_reshape_3d(context, k.0.as_ptr(), n_embd_head, n / n_embd_head, 1);
            let rotated = sys::ggml_rope_ext(
                context,
                heads,
                position.0.as_ptr(),
                factors,
                n_dims,
                mode,
                0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
            );
            (*rotated).op_params = rope.params;
            sys::ggml_reshape_1d(context, rotated, n)
        };
        Ok(self.made(rotated))
    }

    /// Stores `value`, `[store.width]`, into a cache: at the row that `rows` names, or, where the cache is transposed, each
    /// value at the one that `rows` names for it.
    ///
    /// # Safety
    /// The context of the store must live now and whenever a graph of this object runs.
    ///
    /// # Errors
    /// [`crate::Error::Heads`] for a cache on another device than the CPU, or that is shared by several streams.
    pub(in crate::heads) unsafe fn stored(&mut self, value: Tensor, rows: Tensor, store: &Store) -> Result<Tensor> {
        let cache = store.cache.as_ptr();
        // SAFETY: the caller's promise.
        let (buffer, n_values) = unsafe { ((*cache).buffer, sys::ggml_nelements(cache)) };
        if !on_cpu(buffer)? {
            return Err(failed("a cache on another device than the CPU"));
        }
        if n_values != (store.width * store.n_cells) as i64 {
            return Err(failed("a cache whose rows are wider than K and V"));
        }
        let (row, n_rows) = if store.transposed { (1, n_values) } else { (store.width as i64, store.n_cells as i64) };
        // SAFETY: live tensors; the cache has exactly these rows, and `value` one or all of a column's.
        let stored = unsafe {
            let context = self.context.as_ptr();
            let cache = sys::ggml_reshape_2d(context, cache, row, n_rows);
            let value = sys::ggml_reshape_2d(context, value.0.as_ptr(), row, store.width as i64 / row);
            sys::ggml_set_rows(context, cache, value, rows.0.as_ptr())
        };
        Ok(self.made(stored))
    }

    /// Computes `steps` again, from `hidden`. The result of each.
    ///
    /// # Safety
    /// The model whose weights the steps read must live now and whenever a graph of this object runs.
    ///
    /// # Errors
    /// [`crate::Error::Heads`] for weights on another device than the CPU.
    pub(in crate::heads) unsafe fn replay(&mut self, steps: &[Step], hidden: Tensor) -> Result<Vec<Tensor>> {
        let mut made: Vec<Tensor> = Vec::with_capacity(steps.len());
        for step in steps {
            let tensor_of = |source: Source| match source {
                Source::Hidden => hidden.0.as_ptr(),
                Source::Weight(weight) => weight.as_ptr(),
                Source::Step(i) => made[i].0.as_ptr(),
            };
            for source in &step.sources {
                // SAFETY: the caller's promise.
                if matches!(source, Source::Weight(_)) && !on_cpu(unsafe { (*tensor_of(*source)).buffer })? {
                    return Err(failed("weights on another device than the CPU"));
                }
            }
            let ([ne0, ne1, ne2, ne3], [_, nb1, nb2, nb3]) = (step.ne, step.nb);
            // SAFETY: shape, view and parameters are those of a node that llama.cpp made from sources of these shapes; ggml
            // checks that a view lies within its source.
            let tensor = unsafe {
                let context = self.context.as_ptr();
                let tensor = match step.view {
                    Some((root, offset)) => {
                        sys::ggml_view_4d(context, tensor_of(root), ne0, ne1, ne2, ne3, nb1, nb2, nb3, offset)
                    }
                    None => sys::ggml_new_tensor_4d(context, step.ty, ne0, ne1, ne2, ne3),
                };
                (*tensor).op = step.op;
                (*tensor).op_params = step.op_params;
                (*tensor).src = [std::ptr::null_mut(); 10];
                for (to, &source) in (*tensor).src.iter_mut().zip(&step.sources) {
                    *to = tensor_of(source);
                }
                tensor
            };
            let tensor = self.made(tensor);
            made.push(tensor);
        }
        Ok(made)
    }
}

/// True if the CPU backend computes on what lies in this buffer.
fn on_cpu(buffer: sys::ggml_backend_buffer_t) -> Result<bool> {
    if buffer.is_null() {
        return Ok(false);
    }
    let device = cpu_device()?;
    // SAFETY: a live buffer and a live device.
    Ok(unsafe { sys::ggml_backend_dev_supports_buft(device, sys::ggml_backend_buffer_get_type(buffer)) })
}
