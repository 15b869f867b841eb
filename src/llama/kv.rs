//! How a graph stores K and V, read out of the graph itself rather than known by architecture.
//!
//! `llama_kv_cache::cpy_k` and `cpy_v` end in a `SET_ROWS` into a tensor of the cache, which bears the layer in its name
//! (`cache_k_l<layer>`, `cache_v_l<layer>`). What it stores leads back through views to the rotation of K (`ROPE`) and to
//! what was rotated; K that no layer rotates leads back to a product of a weight. It refuses, with the reason, whatever
//! else it meets there: caches that are rotated once more before they are quantized (`attn_inp_k_rot`), K that is changed
//! after its rotation, positions of several dimensions.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::context::Context;
use super::eval::{ContextId, Node, NodeId, name_of};

/// Positions of several dimensions (`GGML_ROPE_TYPE_MROPE` in `ggml.h`), which are not one number a token.
const ROPE_TYPE_MROPE: i32 = 8;
/// More steps than lie between a store and what it stores.
const MAX_STEPS: usize = 16;

/// Which half of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    K,
    V,
}

/// A tensor of a context's cache. It lives as long as that context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheTensor {
    tensor: NonNull<sys::ggml_tensor>,
    owner: ContextId,
}

// SAFETY: a name for a tensor; it is dereferenced only by those who hold its context.
unsafe impl Send for CacheTensor {}
// SAFETY: as above.
unsafe impl Sync for CacheTensor {}

impl CacheTensor {
    pub(crate) fn as_ptr(self) -> *mut sys::ggml_tensor {
        self.tensor.as_ptr()
    }
}

/// A tensor of the model's weights. It lives as long as the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightTensor(NonNull<sys::ggml_tensor>);

// SAFETY: a name for a tensor that nobody writes; it is dereferenced only by those who hold its model.
unsafe impl Send for WeightTensor {}
// SAFETY: as above.
unsafe impl Sync for WeightTensor {}

impl WeightTensor {
    /// `None` for a tensor that is no weight of a model.
    pub(super) fn of(tensor: &sys::ggml_tensor) -> Option<Self> {
        if tensor.op != sys::GGML_OP_NONE || tensor.buffer.is_null() {
            return None;
        }
        // SAFETY: the buffer of a live tensor; `llama_model` marks those of its weights.
        let usage = unsafe { sys::ggml_backend_buffer_get_usage(tensor.buffer) };
        (usage == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS).then(|| Self(NonNull::from(tensor)))
    }

    pub(crate) fn as_ptr(self) -> *mut sys::ggml_tensor {
        self.0.as_ptr()
    }
}

/// The rotation of K by its position, with llama.cpp's own parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rope {
    /// The node's `op_params`.
    pub(crate) params: [i32; 16],
    /// Frequency factors, where the model has some.
    pub(crate) factors: Option<WeightTensor>,
    /// Values of one head.
    pub(crate) n_embd_head: usize,
}

/// The rotation of one graph's K: where it takes K from, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotation {
    pub(crate) rope: Rope,
    /// The node that holds K before it.
    pub(crate) input: NodeId,
    /// The name and operation of that node: the same in every graph of a model.
    pub(crate) input_name: Vec<u8>,
    pub(crate) input_op: sys::ggml_op,
}

impl Rotation {
    /// What is rotated; to be used within the decode alone that showed it.
    pub(super) fn input_tensor(&self) -> *mut sys::ggml_tensor {
        self.input.as_ptr()
    }
}

/// A store of K or V into the cache.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Store {
    pub(crate) cache: CacheTensor,
    /// The tensor that holds the tokens' cells, one for each cache of the model.
    pub(crate) indices: NodeId,
    /// Values that a token stores.
    pub(crate) width: usize,
    /// Tokens that the cache holds.
    pub(crate) n_cells: usize,
    /// Each value is a row of its own: V without flash attention.
    pub(crate) transposed: bool,
    /// `None` if what is stored is not rotated.
    pub(crate) rotation: Option<Rotation>,
}

/// A store that a graph shows, and why it is not understood where it is not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FoundStore {
    pub(crate) part: Part,
    pub(crate) layer: u32,
    pub(crate) store: Result<Store, String>,
}

impl Node<'_> {
    /// What this node stores into the cache, if it does.
    pub(crate) fn kv_store(&self) -> Option<FoundStore> {
        let tensor = self.tensor();
        if tensor.op != sys::GGML_OP_SET_ROWS {
            return None;
        }
        // SAFETY: the destination of a store lives as long as its graph.
        let root = NonNull::new(tensor.view_src)?;
        // SAFETY: as above.
        let (part, layer) = cache_of(name_of(unsafe { root.as_ref() }))?;
        let cache = CacheTensor { tensor: root, owner: self.owner() };
        Some(FoundStore { part, layer, store: recognise(tensor, part, cache) })
    }

    /// True if this node is the one that [`Rotation`] describes in another graph of the model.
    pub(crate) fn is_like_input_of(&self, rotation: &Rotation) -> bool {
        self.tensor().op == rotation.input_op && self.name() == rotation.input_name
    }
}

impl Context {
    /// The bytes that a cell of the cache holds for one token. `None` for a cell that does not exist, or a store of
    /// another context.
    pub(crate) fn stored_bytes(&self, store: &Store, cell: usize) -> Option<Vec<u8>> {
        if store.cache.owner != self.id() {
            return None;
        }
        let pointer = store.cache.as_ptr();
        let n_cells = store.n_cells;
        if cell >= n_cells {
            return None;
        }
        // SAFETY: the tensor lives as long as this context; what is called reads its own fields.
        let (row_bytes, value_bytes) = unsafe { ((*pointer).nb[1], sys::ggml_type_size((*pointer).type_)) };
        let (runs, run_bytes, stride, first) = if store.transposed {
            (store.width, value_bytes, n_cells * value_bytes, cell * value_bytes)
        } else {
            (1, row_bytes, 0, cell * row_bytes)
        };
        let mut bytes = vec![0; runs * run_bytes];
        for (i, run) in bytes.chunks_exact_mut(run_bytes).enumerate() {
            // SAFETY: an allocated tensor of `n_cells` rows of `nb[1]` bytes, or as many columns of `width` values.
            unsafe { sys::ggml_backend_tensor_get(pointer, run.as_mut_ptr().cast(), first + i * stride, run_bytes) };
        }
        Some(bytes)
    }
}

/// `cache_k_l<layer>` and `cache_v_l<layer>`, as `llama_kv_cache` names its tensors.
fn cache_of(name: &[u8]) -> Option<(Part, u32)> {
    let name = std::str::from_utf8(name).ok()?.strip_prefix("cache_")?;
    let (part, layer) = name.split_once("_l")?;
    let part = match part {
        "k" => Part::K,
        "v" => Part::V,
        _ => return None,
    };
    Some((part, layer.parse().ok()?))
}

fn recognise(node: &sys::ggml_tensor, part: Part, cache: CacheTensor) -> Result<Store, String> {
    // SAFETY: a node's sources live as long as its graph.
    let (value, indices) = unsafe { (node.src[0].as_ref(), node.src[1].as_ref()) };
    let (Some(value), Some(indices)) = (value, indices) else { return Err("a store of nothing".to_owned()) };
    let transposed = node.ne[0] == 1;
    // SAFETY: reads the tensor's own fields.
    let n_values = unsafe { sys::ggml_nelements(value) };
    // A transposed store has an index for each value, any other one for each token.
    let n_indices = indices.ne[0].max(1);
    // SAFETY: the cache's tensors live as long as their context.
    let [row, n_cells, n_streams, _] = unsafe { cache.tensor.as_ref() }.ne;
    let width = if transposed { row } else { value.ne[0] };
    let fits = if transposed { part == Part::V && n_values == n_indices } else { width == row };
    if !fits || width <= 0 || indices.type_ != sys::GGML_TYPE_I64 {
        return Err(format!("a store of {n_values} values into rows of {row}"));
    }
    let origin = origin_of(value, n_values)?;
    let rotation = match (part, origin.op) {
        (_, sys::GGML_OP_MUL_MAT) if is_input(origin.src[0]) => {
            return Err(format!("a cache whose rows are rotated before they are stored ({})", name(origin.src[0])));
        }
        (_, sys::GGML_OP_PAD) => return Err("rows that are padded".to_owned()),
        (Part::K, sys::GGML_OP_ROPE) => Some(rotation_of(origin, n_values)?),
        (Part::K, _) => {
            check_unrotated(origin)?;
            None
        }
        (Part::V, _) => None,
    };
    let size = |n: i64| usize::try_from(n).unwrap_or(0);
    let (indices, width, n_cells) = (NodeId::of(indices), size(width), size(n_cells * n_streams));
    Ok(Store { cache, indices, width, n_cells, transposed, rotation })
}

/// The node that computed what `value` is a view of, all of it.
fn origin_of(value: &sys::ggml_tensor, n_values: i64) -> Result<&sys::ggml_tensor, String> {
    let mut tensor = value;
    for _ in 0..MAX_STEPS {
        // SAFETY: a node's sources live as long as its graph; the count reads the tensor's own fields.
        let (source, n) = unsafe { (tensor.src[0].as_ref(), sys::ggml_nelements(tensor)) };
        match (tensor.op, source) {
            (sys::GGML_OP_VIEW | sys::GGML_OP_RESHAPE | sys::GGML_OP_CONT, Some(source)) if n == n_values => {
                tensor = source;
            }
            _ => return Ok(tensor),
        }
    }
    Err("a view of a view without an end".to_owned())
}

fn rotation_of(rope: &sys::ggml_tensor, n_values: i64) -> Result<Rotation, String> {
    if rope.op_params[2] & ROPE_TYPE_MROPE != 0 {
        return Err("positions of several dimensions".to_owned());
    }
    // SAFETY: a node's sources live as long as its graph.
    let input = unsafe { rope.src[0].as_ref() }.ok_or("a rotation of nothing")?;
    // SAFETY: reads the tensor's own fields.
    let n_rotated = unsafe { sys::ggml_nelements(rope) };
    if input.type_ != sys::GGML_TYPE_F32 || rope.type_ != sys::GGML_TYPE_F32 || n_rotated != n_values {
        return Err(format!(
            "a rotation of {n_rotated} values of ggml type {}, of which {n_values} are K",
            input.type_
        ));
    }
    // SAFETY: as above.
    let factors = match unsafe { rope.src[2].as_ref() } {
        None => None,
        Some(factors) => Some(WeightTensor::of(factors).ok_or("frequency factors that are no weight")?),
    };
    let n_embd_head = usize::try_from(rope.ne[0]).unwrap_or(0);
    Ok(Rotation {
        rope: Rope { params: rope.op_params, factors, n_embd_head },
        input: NodeId::of(input),
        input_name: name_of(input).to_vec(),
        input_op: input.op,
    })
}

/// Fails unless `tensor` comes from the product of a weight through nothing but element-wise operations and norms: then
/// no rotation is hidden in it.
fn check_unrotated(tensor: &sys::ggml_tensor) -> Result<(), String> {
    let mut tensor = tensor;
    for _ in 0..MAX_STEPS {
        tensor = match tensor.op {
            sys::GGML_OP_MUL_MAT => return Ok(()),
            sys::GGML_OP_VIEW
            | sys::GGML_OP_RESHAPE
            | sys::GGML_OP_CONT
            | sys::GGML_OP_ADD
            | sys::GGML_OP_MUL
            | sys::GGML_OP_SCALE
            | sys::GGML_OP_CLAMP
            | sys::GGML_OP_NORM
            | sys::GGML_OP_RMS_NORM => {
                // SAFETY: a node's sources live as long as its graph.
                unsafe { tensor.src[0].as_ref() }.ok_or("K without a source")?
            }
            _ => break,
        };
    }
    // SAFETY: answers a static text.
    let op = unsafe { std::ffi::CStr::from_ptr(sys::ggml_op_name(tensor.op)) }.to_string_lossy().into_owned();
    Err(format!("K that comes out of {op} ({})", String::from_utf8_lossy(name_of(tensor))))
}

/// True for a tensor that the graph is given, other than a weight.
fn is_input(tensor: *const sys::ggml_tensor) -> bool {
    // SAFETY: a source of a live node, or NULL.
    unsafe { tensor.as_ref() }.is_some_and(|tensor| tensor.flags & sys::GGML_TENSOR_FLAG_INPUT as i32 != 0)
}

fn name(tensor: *const sys::ggml_tensor) -> String {
    // SAFETY: as in `is_input`.
    unsafe { tensor.as_ref() }.map_or_else(String::new, |tensor| String::from_utf8_lossy(name_of(tensor)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_bears_its_half_and_layer_in_its_name() {
        assert_eq!(cache_of(b"cache_k_l0"), Some((Part::K, 0)));
        assert_eq!(cache_of(b"cache_v_l17"), Some((Part::V, 17)));
        for other in [&b"cache_r_l1"[..], b"cache_s_l1", b"cache_k_l", b"cache_k_lx", b"k_l1", b"\xff"] {
            assert_eq!(cache_of(other), None);
        }
    }
}
