//! How a graph computes K and V of a layer from the hidden state before it, kept so that it can be computed again from
//! another one.
//!
//! The nodes between the input of a layer (`l_out-<layer - 1>`) and its stores are few: a norm, the products of the
//! model's own weights, biases, a norm of K. They are noted with their operation, shape and sources, from a decode of one
//! token. It refuses layers that read anything else (other inputs, states, experts) and graphs that are spread over
//! several devices.

use std::collections::HashMap;

use llama_cpp_sys_2 as sys;

use super::eval::{Node, NodeId, name_of};
use super::kv::{Rotation, WeightTensor};

/// More nodes than lie between a layer's input and its stores.
const MAX_STEPS: usize = 64;
/// More nodes than lie on one path between them.
const MAX_DEPTH: usize = 24;

/// One node that is to be computed again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) op: sys::ggml_op,
    pub(crate) op_params: [i32; 16],
    pub(crate) ty: sys::ggml_type,
    pub(crate) ne: [i64; 4],
    pub(crate) nb: [usize; 4],
    pub(crate) sources: Vec<Source>,
    /// What it is a view of, and how many bytes into it.
    pub(crate) view: Option<(Source, usize)>,
}

/// Where a step takes a value from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The hidden state before the layer, `[n_embd]`.
    Hidden,
    Weight(WeightTensor),
    /// An earlier step.
    Step(usize),
}

/// The steps that lead to K and V of one layer, in an order in which they can be computed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recipe {
    pub(crate) steps: Vec<Step>,
    known: HashMap<NodeId, Source>,
}

impl Recipe {
    /// Adds the steps to what `store`, a node that stores K or V of `layer`, stores: K before its rotation, V as it is.
    ///
    /// # Errors
    /// What was met that cannot be computed again.
    pub(crate) fn add(&mut self, store: &Node<'_>, rotation: Option<&Rotation>, layer: u32) -> Result<Source, String> {
        let input = layer.checked_sub(1).ok_or("no layer before it")?;
        let value = match rotation {
            Some(rotation) => rotation.input_tensor(),
            None => store.tensor().src[0],
        };
        let result = self.trace(value, format!("l_out-{input}").as_bytes(), 0)?;
        match result {
            Source::Step(_) => Ok(result),
            Source::Hidden | Source::Weight(_) => Err("K or V that nothing computes".to_owned()),
        }
    }

    /// Forgets what held for the graph alone that this was learnt from.
    pub(crate) fn finish(&mut self) {
        self.known = HashMap::new();
    }

    fn trace(&mut self, pointer: *mut sys::ggml_tensor, input: &[u8], depth: usize) -> Result<Source, String> {
        // SAFETY: a source of a live node, or NULL.
        let tensor = unsafe { pointer.as_ref() }.ok_or("a node without a source")?;
        let id = NodeId::of(tensor);
        if let Some(&known) = self.known.get(&id) {
            return Ok(known);
        }
        let name = || String::from_utf8_lossy(name_of(tensor)).into_owned();
        // SAFETY: reads the tensor's own fields.
        let contiguous = unsafe { sys::ggml_is_contiguous(pointer) };
        let source = if tensor.op == sys::GGML_OP_NONE {
            Source::Weight(WeightTensor::of(tensor).ok_or_else(|| format!("the input {}", name()))?)
        } else if name_of(tensor) == input {
            if tensor.type_ != sys::GGML_TYPE_F32 || tensor.ne[1..] != [1, 1, 1] || !contiguous {
                return Err(format!("{} of an unusual shape", name()));
            }
            Source::Hidden
        } else {
            if !is_plain(tensor.op) || depth >= MAX_DEPTH || self.steps.len() >= MAX_STEPS {
                return Err(format!("{}, which cannot be computed from the hidden state alone", name()));
            }
            let mut sources = Vec::new();
            for &source in tensor.src.iter().take_while(|source| !source.is_null()) {
                sources.push(self.trace(source, input, depth + 1)?);
            }
            let view = match tensor.view_src {
                root if root.is_null() && contiguous => None,
                root if root.is_null() => return Err(format!("{} with gaps", name())),
                root => Some((self.trace(root, input, depth + 1)?, tensor.view_offs)),
            };
            let (op, op_params, ty) = (tensor.op, tensor.op_params, tensor.type_);
            self.steps.push(Step { op, op_params, ty, ne: tensor.ne, nb: tensor.nb, sources, view });
            Source::Step(self.steps.len() - 1)
        };
        self.known.insert(id, source);
        Ok(source)
    }
}

/// Operations whose result depends on their sources and parameters alone.
fn is_plain(op: sys::ggml_op) -> bool {
    matches!(
        op,
        sys::GGML_OP_MUL_MAT
            | sys::GGML_OP_ADD
            | sys::GGML_OP_MUL
            | sys::GGML_OP_SCALE
            | sys::GGML_OP_CLAMP
            | sys::GGML_OP_NORM
            | sys::GGML_OP_RMS_NORM
            | sys::GGML_OP_CONCAT
            | sys::GGML_OP_CONT
            | sys::GGML_OP_RESHAPE
            | sys::GGML_OP_VIEW
    )
}
