//! llama.cpp's eval callback as a safe trait.
//!
//! The scheduler (`ggml_backend_sched_compute_splits` in `ggml-backend.cpp`) asks about each node of a graph, in order,
//! before it runs; nodes are gathered until one is wanted, computed, and shown. A false answer to the showing ends the
//! current split only, so the trampoline here remembers that a graph was abandoned and lets just one node of each later
//! split run. A panic in a hook is parked and resumed after `llama_decode` has returned: nothing unwinds through C. What
//! a hook switches off is switched on again after the decode, because llama.cpp reuses its graph.

mod edits;

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use llama_cpp_sys_2 as sys;

use edits::Edits;

/// What a hook wants after it has seen a node's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on with the graph.
    Continue,
    /// Abandon the rest of the graph.
    Abandon,
}

/// Watches, and may stop, the computation of one graph.
pub(crate) trait EvalHook {
    /// Called before a node is computed; true asks for its data.
    fn ask(&mut self, node: &mut Node<'_>) -> bool;
    /// Called after a node that was asked for has been computed.
    fn data(&mut self, node: &mut Node<'_>) -> Verdict;
}

/// The identity of a tensor during one decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(usize);

impl NodeId {
    pub(super) fn of(tensor: &sys::ggml_tensor) -> Self {
        Self(std::ptr::from_ref(tensor) as usize)
    }

    /// The tensor, which lives as long as the graph that it was seen in.
    pub(super) fn as_ptr(self) -> *mut sys::ggml_tensor {
        self.0 as *mut sys::ggml_tensor
    }
}

/// Tells contexts apart, also from those that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ContextId(u64);

impl ContextId {
    pub(super) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Why a tensor could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor {name} is {found}, expected {expected}")]
pub(crate) struct NodeError {
    pub(crate) name: String,
    pub(crate) found: String,
    pub(crate) expected: String,
}

/// One node of the graph, during the callback that shows it.
pub(crate) struct Node<'a> {
    tensor: NonNull<sys::ggml_tensor>,
    edits: &'a mut Edits,
    owner: ContextId,
}

impl Node<'_> {
    /// The context whose graph this is.
    pub(super) fn owner(&self) -> ContextId {
        self.owner
    }

    pub(super) fn tensor(&self) -> &sys::ggml_tensor {
        // SAFETY: the scheduler passes a node of the live graph, and nothing else uses it during the callback.
        unsafe { self.tensor.as_ref() }
    }

    /// The name, as `llama_context::graph_get_cb` set it: `l_out-<layer>`, `result_norm`, …
    pub(crate) fn name(&self) -> &[u8] {
        name_of(self.tensor())
    }

    pub(crate) fn id(&self) -> NodeId {
        NodeId(self.tensor.as_ptr() as usize)
    }

    /// The tensors that this node is computed from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = NodeId> + '_ {
        let tensor = self.tensor();
        tensor.src.iter().chain([&tensor.view_src]).filter(|source| !source.is_null()).map(|&s| NodeId(s as usize))
    }

    /// True if one of the tensors that this node is computed from bears the name.
    pub(crate) fn reads(&self, name: &[u8]) -> bool {
        self.source_refs().any(|source| name_of(source) == name)
    }

    fn source_refs(&self) -> impl Iterator<Item = &sys::ggml_tensor> {
        // SAFETY: a node's sources live as long as its graph.
        self.tensor().src.iter().filter_map(|&source| unsafe { source.as_ref() })
    }

    /// The tensor of row indices, if this node stores rows (`ggml_set_rows`) through one of that name.
    pub(crate) fn store_indices(&self, name: &[u8]) -> Option<NodeId> {
        let tensor = self.tensor();
        if tensor.op != sys::GGML_OP_SET_ROWS {
            return None;
        }
        // SAFETY: a node's sources live as long as its graph.
        let indices = unsafe { tensor.src[1].as_ref() }?;
        (name_of(indices) == name).then_some(NodeId(tensor.src[1] as usize))
    }

    /// The rows that a K store writes to, as `llama_kv_cache::set_input_k_idxs` filled them in: one cell a token.
    ///
    /// # Errors
    /// If this node stores no rows, or its indices are not 64-bit integers.
    pub(crate) fn stored_cells(&self) -> Result<Vec<i64>, NodeError> {
        let tensor = self.tensor();
        // SAFETY: a node's sources live as long as its graph.
        match unsafe { tensor.src[1].as_ref() } {
            Some(indices) if tensor.op == sys::GGML_OP_SET_ROWS => {
                read_values(indices, sys::GGML_TYPE_I64, "contiguous i64", 0i64)
            }
            _ => Err(node_error(tensor, "another operation".to_owned(), "a store of rows".to_owned())),
        }
    }

    /// Copies the values into `to`, which is resized to fit. Shape as [`Node::shape`] tells.
    ///
    /// # Errors
    /// If the tensor is not contiguous f32, or not allocated.
    pub(crate) fn read_f32(&self, to: &mut Vec<f32>) -> Result<(), NodeError> {
        *to = read_values(self.tensor(), sys::GGML_TYPE_F32, "contiguous f32", 0f32)?;
        Ok(())
    }

    /// Copies the values into `to` in ggml's order, also those of a view whose rows lie apart.
    ///
    /// # Errors
    /// If the tensor is not f32, or not allocated.
    pub(crate) fn read_strided_f32(&self, to: &mut Vec<f32>) -> Result<(), NodeError> {
        read_strided(self.tensor(), to)
    }

    /// Copies what this node, a store of rows that has just run, has stored, as it was before it was converted to the
    /// type of the cache.
    ///
    /// # Errors
    /// As [`Node::read_strided_f32`], and if this node stores no rows.
    pub(crate) fn read_stored_f32(&self, to: &mut Vec<f32>) -> Result<(), NodeError> {
        let tensor = self.tensor();
        // SAFETY: a node's sources live as long as its graph.
        match unsafe { tensor.src[0].as_ref() } {
            Some(rows) if tensor.op == sys::GGML_OP_SET_ROWS => read_strided(rows, to),
            _ => Err(node_error(tensor, "another operation".to_owned(), "a store of rows".to_owned())),
        }
    }

    /// Overwrites the values.
    ///
    /// # Errors
    /// If the tensor is not contiguous f32 of exactly as many values, or not allocated.
    pub(crate) fn write_f32(&mut self, values: &[f32]) -> Result<(), NodeError> {
        let tensor = self.tensor();
        let n = checked_len(tensor, sys::GGML_TYPE_F32, "contiguous f32")?;
        if n != values.len() {
            return Err(node_error(tensor, format!("{n} values"), format!("{} values", values.len())));
        }
        // SAFETY: the tensor is allocated, contiguous, and holds exactly as many f32 values.
        unsafe {
            sys::ggml_backend_tensor_set(self.tensor.as_ptr(), values.as_ptr().cast(), 0, size_of_val(values));
        }
        Ok(())
    }
}

pub(super) fn name_of(tensor: &sys::ggml_tensor) -> &[u8] {
    // SAFETY: the name is an array of 64 chars that ggml keeps NUL-terminated.
    unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_bytes()
}

fn node_error(tensor: &sys::ggml_tensor, found: String, expected: String) -> NodeError {
    NodeError { name: String::from_utf8_lossy(name_of(tensor)).into_owned(), found, expected }
}

/// Number of values of a tensor that is of type `wanted`, contiguous, and allocated.
fn checked_len(tensor: &sys::ggml_tensor, wanted: sys::ggml_type, expected: &str) -> Result<usize, NodeError> {
    let pointer: *const sys::ggml_tensor = tensor;
    // SAFETY: these only read the tensor's own fields.
    let (contiguous, n) = unsafe { (sys::ggml_is_contiguous(pointer), sys::ggml_nelements(pointer)) };
    // SAFETY: a view's source lives as long as the view.
    let buffer = unsafe { tensor.view_src.as_ref() }.map_or(tensor.buffer, |source| source.buffer);
    if tensor.type_ != wanted || !contiguous || buffer.is_null() || tensor.data.is_null() {
        let found = format!(
            "of ggml type {}, {}contiguous, {}allocated",
            tensor.type_,
            if contiguous { "" } else { "not " },
            if buffer.is_null() || tensor.data.is_null() { "not " } else { "" },
        );
        return Err(node_error(tensor, found, expected.to_owned()));
    }
    Ok(usize::try_from(n).unwrap_or(0))
}

fn read_values<T: Copy>(
    tensor: &sys::ggml_tensor,
    wanted: sys::ggml_type,
    expected: &str,
    zero: T,
) -> Result<Vec<T>, NodeError> {
    let n = checked_len(tensor, wanted, expected)?;
    let mut values = vec![zero; n];
    // SAFETY: the tensor is allocated and contiguous, and `values` has room for all of its bytes.
    unsafe {
        sys::ggml_backend_tensor_get(tensor, values.as_mut_ptr().cast(), 0, n * size_of::<T>());
    }
    Ok(values)
}

fn read_strided(tensor: &sys::ggml_tensor, to: &mut Vec<f32>) -> Result<(), NodeError> {
    /// Bytes of a value.
    const SIZE: usize = size_of::<f32>();
    // SAFETY: a view's source lives as long as the view.
    let buffer = unsafe { tensor.view_src.as_ref() }.map_or(tensor.buffer, |source| source.buffer);
    if tensor.type_ != sys::GGML_TYPE_F32 || buffer.is_null() || tensor.data.is_null() {
        return Err(node_error(tensor, format!("of ggml type {}", tensor.type_), "f32 in memory".to_owned()));
    }
    let ne = tensor.ne.map(|n| usize::try_from(n).unwrap_or(0));
    // The leading dimensions that lie without gaps are copied at once.
    let (mut run, mut first_outer) = (1, 0);
    while first_outer < ne.len() && (ne[first_outer] == 1 || tensor.nb[first_outer] == run * SIZE) {
        run *= ne[first_outer];
        first_outer += 1;
    }
    to.clear();
    to.resize(ne.iter().product(), 0.0);
    for (i, values) in to.chunks_exact_mut(run.max(1)).enumerate() {
        let (mut index, mut offset) = (i, 0);
        for (n, stride) in ne.iter().zip(tensor.nb).skip(first_outer) {
            offset += index % n * stride;
            index /= n;
        }
        // SAFETY: the tensor is allocated, and `run` values without gaps begin at this offset within it; `values` has
        // room for them.
        unsafe { sys::ggml_backend_tensor_get(tensor, values.as_mut_ptr().cast(), offset, run * SIZE) };
    }
    Ok(())
}

/// The hook of the decode that is running, at an address that llama.cpp keeps for the life of a context.
#[derive(Default)]
pub(crate) struct Trampoline {
    owner: ContextId,
    hook: Option<NonNull<dyn EvalHook>>,
    abandoned: bool,
    edits: Edits,
    panic: Option<Box<dyn Any + Send>>,
}

// SAFETY: `hook` and `edits` are only set while a decode runs, on the thread that holds the context mutably.
unsafe impl Send for Trampoline {}

impl Trampoline {
    pub(super) fn new(owner: ContextId) -> Self {
        Self { owner, ..Self::default() }
    }

    /// The callback to give to llama.cpp, with a `*mut Trampoline` as user data.
    pub(crate) const CALLBACK: sys::ggml_backend_sched_eval_callback = Some(on_eval);

    /// Runs `decode` with `hook` watching. `this` must be the user data that [`Trampoline::CALLBACK`] was installed with.
    ///
    /// # Safety
    /// `this` is valid, and nothing else uses it meanwhile.
    pub(crate) unsafe fn run<T>(this: *mut Self, hook: &mut (dyn EvalHook + '_), decode: impl FnOnce() -> T) -> T {
        let hook: NonNull<dyn EvalHook + '_> = NonNull::from(hook);
        // SAFETY: only the lifetime changes, and the pointer is taken back below, before the borrow ends.
        let hook: NonNull<dyn EvalHook + 'static> = unsafe { std::mem::transmute(hook) };
        // SAFETY: the caller's promise.
        unsafe {
            (*this).hook = Some(hook);
            (*this).abandoned = false;
        }
        let value = decode();
        // SAFETY: the caller's promise; the decode is over, so that llama.cpp no longer uses the pointer.
        let state = unsafe { &mut *this };
        state.hook = None;
        state.edits.undo();
        if let Some(panic) = state.panic.take() {
            std::panic::resume_unwind(panic);
        }
        value
    }
}

unsafe extern "C" fn on_eval(tensor: *mut sys::ggml_tensor, ask: bool, user_data: *mut c_void) -> bool {
    // SAFETY: the user data is the context's trampoline, used on this thread alone while a decode runs.
    let Some(state) = (unsafe { user_data.cast::<Trampoline>().as_mut() }) else { return !ask };
    let (Some(mut hook), Some(tensor)) = (state.hook, NonNull::new(tensor)) else { return !ask };
    if state.abandoned || state.panic.is_some() {
        // A later split: let its first node run, then refuse again.
        return ask;
    }
    let mut node = Node { tensor, edits: &mut state.edits, owner: state.owner };
    let answer = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: set by `Trampoline::run` for the duration of this decode, and used by this callback alone.
        let hook = unsafe { hook.as_mut() };
        if ask { hook.ask(&mut node) } else { hook.data(&mut node) == Verdict::Continue }
    }));
    match answer {
        Ok(answer) => {
            state.abandoned = !ask && !answer;
            answer
        }
        Err(panic) => {
            state.panic = Some(panic);
            ask
        }
    }
}

#[cfg(test)]
mod tests;
