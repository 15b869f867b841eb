//! What a hook changes of a graph: nodes that it switches off, and nodes that it lets compute their first rows alone.
//!
//! llama.cpp keeps the graph of the last decode and reuses it, so that all of it is put back: a node that was narrowed as soon as
//! it has been computed, since llama.cpp reads the results at their full length; one that was switched off after the decode.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::{Node, NodeId};

type Tensor = NonNull<sys::ggml_tensor>;

/// The changes that are in force.
#[derive(Debug, Default)]
pub(super) struct Edits {
    muted: Vec<(Tensor, sys::ggml_op)>,
    narrowed: Vec<(Tensor, i64)>,
}

// SAFETY: what it points to is used by the thread alone that holds the context mutably, while a decode runs.
unsafe impl Send for Edits {}

impl Edits {
    fn mute(&mut self, mut tensor: Tensor) {
        // SAFETY: a node of the live graph, which nothing else uses during a callback.
        let tensor_mut = unsafe { tensor.as_mut() };
        if tensor_mut.op != sys::GGML_OP_NONE {
            self.muted.push((tensor, tensor_mut.op));
            tensor_mut.op = sys::GGML_OP_NONE;
        }
    }

    /// `tensor` has no more than `n` rows until [`Edits::widen`].
    fn narrow(&mut self, mut tensor: Tensor, n: i64) {
        // SAFETY: as in `mute`; with fewer rows, every row lies where it lay.
        let tensor_mut = unsafe { tensor.as_mut() };
        self.narrowed.push((tensor, tensor_mut.ne[1]));
        tensor_mut.ne[1] = n;
    }

    fn widen(&mut self) {
        for (mut tensor, n) in self.narrowed.drain(..).rev() {
            // SAFETY: as in `undo`.
            unsafe { tensor.as_mut() }.ne[1] = n;
        }
    }

    /// Puts everything back.
    pub(super) fn undo(&mut self) {
        self.widen();
        for (mut tensor, op) in self.muted.drain(..).rev() {
            // SAFETY: llama.cpp keeps the graph of the last decode, and its tensors with it, until the next one.
            unsafe { tensor.as_mut() }.op = op;
        }
    }
}

impl Node<'_> {
    /// Switches the node off for this decode: whatever its memory holds is taken for its result.
    pub(crate) fn mute(&mut self) {
        self.edits.mute(self.tensor);
    }

    /// Lets the node compute its first `n` rows alone, if it computes each row from the same row of one of `sources`, of which the
    /// first `n` are what counts, and from weights: a product with a matrix, a scale, a sum with a bias. True if it does so;
    /// it must then be asked for and [widened](Node::widen) once it has been computed. What its other rows hold is undefined.
    ///
    /// Only called while the node is asked about, before ggml plans what to compute (`ggml_graph_plan`).
    pub(crate) fn narrow(&mut self, n: usize, sources: &[NodeId]) -> bool {
        let tensor = self.tensor();
        let (Ok(n), Some(rows)) = (i64::try_from(n), rows_source(tensor)) else { return false };
        let (Some(source), true) = (NonNull::new(rows), sources.contains(&NodeId(rows.addr()))) else { return false };
        // SAFETY: a node's sources live as long as its graph.
        let source_ne = unsafe { source.as_ref() }.ne;
        let is_rows = |ne: [i64; 4]| ne[1] > n && ne[2] == 1 && ne[3] == 1;
        if n < 1 || !is_rows(tensor.ne) || !is_rows(source_ne) || tensor.ne[1] != source_ne[1] {
            return false;
        }
        self.edits.narrow(self.tensor, n);
        self.edits.narrow(source, n);
        true
    }

    /// Gives the node that was narrowed its length again.
    pub(crate) fn widen(&mut self) {
        self.edits.widen();
    }
}

/// The source whose rows a node's rows are computed from, one from one; null or `None` if that is not so.
fn rows_source(tensor: &sys::ggml_tensor) -> Option<*mut sys::ggml_tensor> {
    match tensor.op {
        sys::GGML_OP_MUL_MAT => Some(tensor.src[1]),
        sys::GGML_OP_SCALE | sys::GGML_OP_UNARY => Some(tensor.src[0]),
        sys::GGML_OP_ADD | sys::GGML_OP_MUL => {
            // SAFETY: a node's sources live as long as its graph.
            let beside = unsafe { tensor.src[1].as_ref() }?;
            // The other operand is one row for all.
            (beside.ne[1] == 1).then_some(tensor.src[0])
        }
        _ => None,
    }
}
