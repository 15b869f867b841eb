//! The few objects of ggml that heads are computed with: tensors with their memory, a graph, and a CPU backend that
//! works on a session's own threads.
//!
//! Shapes are fixed when a graph is built and memory is allocated once; what is done a token is to fill an input, to
//! compute, and to read an output. It refuses tensor types that the CPU backend does not multiply.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::llama::backend;
use crate::llama::threads::ThreadPool;

/// More tensors than most of these graphs have.
const MAX_TENSORS: usize = 64;

type SetThreads = unsafe extern "C" fn(sys::ggml_backend_t, i32);
type SetPool = unsafe extern "C" fn(sys::ggml_backend_t, *mut sys::ggml_threadpool);
type ExtraBufts = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;

/// What a call of ggml that cannot fail in practice found.
pub(super) fn failed(found: &str) -> Error {
    Error::Heads { found: found.to_owned() }
}

fn cpu_device() -> Result<sys::ggml_backend_dev_t> {
    backend::init();
    // SAFETY: looks a device up; NULL if this build has no CPU backend.
    let device = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
    if device.is_null() { Err(failed("a build of llama.cpp without a CPU backend")) } else { Ok(device) }
}

/// Where a matrix lies: in plain memory, or in a layout of the CPU backend's own ("repacked") that is faster to
/// multiply and rounds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout(sys::ggml_backend_buffer_type_t);

// SAFETY: a buffer type is a static description that nobody writes.
unsafe impl Send for Layout {}
// SAFETY: as above.
unsafe impl Sync for Layout {}

impl Layout {
    pub(super) fn plain() -> Result<Self> {
        let device = cpu_device()?;
        // SAFETY: a live device, which owns its buffer types.
        Ok(Self(unsafe { sys::ggml_backend_dev_buffer_type(device) }))
    }

    /// The layout that llama.cpp gives to a weight of this shape (`select_weight_buft`): the first of the CPU backend's
    /// extra ones that multiplies it, or plain memory.
    ///
    /// # Errors
    /// [`Error::Heads`] if the CPU backend does not multiply this type.
    pub(super) fn of_weight(ty: TensorType, n_in: usize, n_out: usize) -> Result<Self> {
        let device = cpu_device()?;
        let mut layouts = Vec::new();
        if let Some(address) = backend::proc_address(c"ggml_backend_dev_get_extra_bufts") {
            // SAFETY: ggml documents this address as a `ggml_backend_dev_get_extra_bufts_t`.
            let extra = unsafe { std::mem::transmute::<NonNull<c_void>, ExtraBufts>(address) };
            // SAFETY: a live device; the list is static and ends with NULL.
            let mut next = unsafe { extra(device) };
            // SAFETY: as above, and the entry before was not the last.
            while let Some(&buft) = unsafe { next.as_ref() }.filter(|buft| !buft.is_null()) {
                layouts.push(Self(buft));
                // SAFETY: the entry was not the last one.
                next = unsafe { next.add(1) };
            }
        }
        layouts.push(Self::plain()?);
        for layout in layouts {
            if layout.multiplies(device, ty, n_in, n_out)? {
                return Ok(layout);
            }
        }
        Err(Error::Heads { found: format!("a matrix of type {ty}, which the CPU backend does not multiply") })
    }

    fn multiplies(self, device: sys::ggml_backend_dev_t, ty: TensorType, n_in: usize, n_out: usize) -> Result<bool> {
        let mut tensors = Tensors::new()?;
        let mut weight = tensors.matrix(ty, n_in, n_out)?;
        let input = tensors.matrix(TensorType::F32, n_in, 1)?;
        let product = tensors.mul_mat(weight, input);
        // SAFETY: an empty buffer tells the backend where the weight would lie; it is freed below, after its last use.
        unsafe {
            let buffer = sys::ggml_backend_buft_alloc_buffer(self.0, 0);
            weight.0.as_mut().buffer = buffer;
            let answer = sys::ggml_backend_dev_supports_op(device, product.0.as_ptr());
            weight.0.as_mut().buffer = std::ptr::null_mut();
            sys::ggml_backend_buffer_free(buffer);
            Ok(answer)
        }
    }

    pub(super) fn is_plain(self) -> bool {
        Self::plain().is_ok_and(|plain| plain == self)
    }
}

/// A tensor of some [`Tensors`], which must outlive it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor(NonNull<sys::ggml_tensor>);

// SAFETY: a name for a tensor; what it points to is used through its `Tensors`, or read as a weight by a graph.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

/// Tensors of one layout, and their memory once it is allocated.
#[derive(Debug)]
pub(super) struct Tensors {
    context: NonNull<sys::ggml_context>,
    capacity: usize,
    buffer: Option<NonNull<sys::ggml_backend_buffer>>,
    /// Names memory that belongs to someone else.
    borrowed: Option<NonNull<sys::ggml_backend_buffer>>,
}

// SAFETY: a context and a buffer are plain memory without ties to a thread.
unsafe impl Send for Tensors {}
// SAFETY: through a shared reference, tensors can only be named as inputs of a graph.
unsafe impl Sync for Tensors {}

impl Tensors {
    pub(super) fn new() -> Result<Self> {
        Self::sized(MAX_TENSORS)
    }

    /// With room for `capacity` tensors and two graphs of as many nodes.
    pub(super) fn sized(capacity: usize) -> Result<Self> {
        // SAFETY: both only compute sizes.
        let mem_size =
            unsafe { sys::ggml_tensor_overhead() * capacity + 2 * sys::ggml_graph_overhead_custom(capacity, false) };
        let params = sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: complete parameters; ggml allocates the memory itself.
        let context = NonNull::new(unsafe { sys::ggml_init(params) }).ok_or_else(|| failed("no memory"))?;
        Ok(Self { context, capacity, buffer: None, borrowed: None })
    }

    /// A matrix `[n_in, n_out]`; with one row a vector.
    ///
    /// # Errors
    /// [`Error::Heads`] for a row that does not end with a block of its type.
    pub(super) fn matrix(&mut self, ty: TensorType, n_in: usize, n_out: usize) -> Result<Tensor> {
        let (n_in_64, n_out_64) = (i64::try_from(n_in), i64::try_from(n_out));
        let (Ok(ne0), Ok(ne1), true) = (n_in_64, n_out_64, (n_in as u64).is_multiple_of(ty.block_size())) else {
            return Err(Error::Heads { found: format!("a matrix of type {ty} with rows of {n_in} values") });
        };
        // SAFETY: a live context with room for more tensors than are ever made, and a type that ggml knows: `TensorType`
        // lists ggml's own ids.
        let tensor = unsafe { sys::ggml_new_tensor_2d(self.context.as_ptr(), ty.id() as sys::ggml_type, ne0, ne1) };
        NonNull::new(tensor).map(Tensor).ok_or_else(|| failed("no memory"))
    }

    /// `matrix^T input`: `[n_out]` from `[n_in, n_out]` and `[n_in]`, in f32.
    pub(super) fn mul_mat(&mut self, matrix: Tensor, input: Tensor) -> Tensor {
        // SAFETY: live tensors; ggml checks that their shapes fit, which the callers' constructors ensure.
        self.made(unsafe { sys::ggml_mul_mat(self.context.as_ptr(), matrix.0.as_ptr(), input.0.as_ptr()) })
    }

    /// `cap * tanh(input / cap)`, by the nodes that llama.cpp uses for it.
    pub(super) fn softcap(&mut self, input: Tensor, cap: f32) -> Tensor {
        // SAFETY: live tensors of f32.
        let capped = unsafe {
            let context = self.context.as_ptr();
            let scaled = sys::ggml_scale(context, input.0.as_ptr(), 1.0 / cap);
            sys::ggml_scale(context, sys::ggml_tanh(context, scaled), cap)
        };
        self.made(capped)
    }

    /// The sum of two tensors of one shape, in f32.
    pub(super) fn add(&mut self, a: Tensor, b: Tensor) -> Tensor {
        // SAFETY: live tensors of f32; ggml checks that their shapes fit, which the callers' constructors ensure.
        self.made(unsafe { sys::ggml_add(self.context.as_ptr(), a.0.as_ptr(), b.0.as_ptr()) })
    }

    /// `silu(gate) * up`, by the node that llama.cpp uses for it.
    pub(super) fn swiglu(&mut self, gate: Tensor, up: Tensor) -> Tensor {
        // SAFETY: live tensors of f32 and of one shape.
        self.made(unsafe { sys::ggml_swiglu_split(self.context.as_ptr(), gate.0.as_ptr(), up.0.as_ptr()) })
    }

    /// Lets `tensor`, which has no memory yet, be computed into that of `at`, which has: a tensor of another object and
    /// of the same shape.
    ///
    /// # Safety
    /// The memory of `at` must stay valid as long as graphs of this object run.
    ///
    /// # Errors
    /// [`Error::Heads`] if the memory is too small.
    pub(super) unsafe fn place(&mut self, tensor: Tensor, at: Tensor) -> Result<()> {
        // SAFETY: both are live, and `at` is allocated.
        unsafe {
            assert_eq!(sys::ggml_nbytes(tensor.0.as_ptr()), sys::ggml_nbytes(at.0.as_ptr()), "tensors of one size");
            let buffer = at.0.as_ref().buffer;
            assert!(!buffer.is_null() && !at.0.as_ref().data.is_null(), "places are allocated before they are taken");
            let status = sys::ggml_backend_tensor_alloc(buffer, tensor.0.as_ptr(), at.0.as_ref().data);
            if status == sys::GGML_STATUS_SUCCESS { Ok(()) } else { Err(failed("no memory")) }
        }
    }

    /// Copies the rows of `table` that `ids` name, byte by byte and on all threads, to where `to` lies: `table` is
    /// `n_rows` rows of `row_bytes`, and `to` as many of them as there are ids, in plain memory that is allocated. `None`
    /// where ggml cannot: rows that are no whole 4 bytes, a table at an odd address.
    ///
    /// # Safety
    /// `table` must stay valid as long as graphs of this object run, and the memory of `to` as long as this object.
    ///
    /// # Errors
    /// [`Error::Heads`] without memory.
    pub(super) unsafe fn gather(
        &mut self,
        table: &[u8],
        row_bytes: usize,
        ids: Tensor,
        to: Tensor,
    ) -> Result<Option<Tensor>> {
        /// What ggml wants of a buffer's address (`TENSOR_ALIGNMENT`).
        const ALIGNMENT: usize = 32;
        let n_rows = table.len().checked_div(row_bytes).unwrap_or(0);
        if !row_bytes.is_multiple_of(4) || !table.as_ptr().addr().is_multiple_of(ALIGNMENT) || self.borrowed.is_some() {
            return Ok(None);
        }
        // Rows of any type are moved as rows of f32, which the kernel copies without looking at them.
        let source = self.matrix(TensorType::F32, row_bytes / 4, n_rows)?;
        let base = table.as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: the kernel only reads `source`, whose memory is `table`. `rows` has as many rows and bytes as `to`, or
        // ggml aborts, and lies in the same buffer at the same address.
        unsafe {
            let buffer = sys::ggml_backend_cpu_buffer_from_ptr(base, table.len());
            self.borrowed = Some(NonNull::new(buffer).ok_or_else(|| failed("no memory"))?);
            let rows = self.made(sys::ggml_get_rows(self.context.as_ptr(), source.0.as_ptr(), ids.0.as_ptr()));
            assert_eq!(sys::ggml_nbytes(rows.0.as_ptr()), sys::ggml_nbytes(to.0.as_ptr()), "rows and where they go");
            let placed = [
                sys::ggml_backend_tensor_alloc(buffer, source.0.as_ptr(), base),
                sys::ggml_backend_tensor_alloc(to.0.as_ref().buffer, rows.0.as_ptr(), to.0.as_ref().data),
            ];
            if placed != [sys::GGML_STATUS_SUCCESS; 2] {
                return Err(failed("no memory"));
            }
            Ok(Some(rows))
        }
    }

    fn made(&self, tensor: *mut sys::ggml_tensor) -> Tensor {
        Tensor(NonNull::new(tensor).expect("ggml aborts when its context is full, it does not answer NULL"))
    }

    /// Gives all tensors their memory.
    ///
    /// # Errors
    /// [`Error::Heads`] without memory.
    pub(super) fn allocate(&mut self, layout: Layout) -> Result<()> {
        // SAFETY: a live context whose tensors have no memory yet, and a live buffer type.
        let buffer = unsafe { sys::ggml_backend_alloc_ctx_tensors_from_buft(self.context.as_ptr(), layout.0) };
        self.buffer = Some(NonNull::new(buffer).ok_or_else(|| failed("no memory"))?);
        Ok(())
    }

    /// Fills a whole tensor, converting to its layout.
    pub(super) fn set(&mut self, tensor: Tensor, bytes: &[u8]) {
        // SAFETY: reads the tensor's own fields.
        let size = unsafe { sys::ggml_nbytes(tensor.0.as_ptr()) };
        assert!(self.buffer.is_some() && size == bytes.len(), "a tensor is filled whole, after its memory is there");
        // SAFETY: the tensor has memory for exactly these bytes.
        unsafe { sys::ggml_backend_tensor_set(tensor.0.as_ptr(), bytes.as_ptr().cast(), 0, size) };
    }

    /// The bytes of a tensor in plain memory.
    pub(super) fn bytes_mut(&mut self, tensor: Tensor) -> &mut [u8] {
        // SAFETY: reads the tensor's own fields.
        let (data, size) = unsafe { (tensor.0.as_ref().data, sys::ggml_nbytes(tensor.0.as_ptr())) };
        assert!(self.buffer.is_some() && !data.is_null(), "tensors are written after their memory is there");
        // SAFETY: allocated memory of that size, borrowed from this object, which owns it.
        unsafe { std::slice::from_raw_parts_mut(data.cast(), size) }
    }

    /// Fills a whole f32 tensor in plain memory.
    pub(super) fn set_values(&mut self, tensor: Tensor, values: &[f32]) {
        let bytes = self.bytes_mut(tensor);
        assert_eq!(bytes.len(), size_of_val(values), "a tensor is filled whole");
        for (to, value) in bytes.chunks_exact_mut(4).zip(values) {
            to.copy_from_slice(&value.to_ne_bytes());
        }
    }

    /// The values of an f32 tensor in plain memory.
    pub(super) fn values(&self, tensor: Tensor) -> &[f32] {
        // SAFETY: reads the tensor's own fields.
        let (data, ty, n) =
            unsafe { (tensor.0.as_ref().data, tensor.0.as_ref().type_, sys::ggml_nelements(tensor.0.as_ptr())) };
        assert!(self.buffer.is_some() && !data.is_null() && ty == sys::GGML_TYPE_F32, "outputs are f32 in memory");
        // SAFETY: allocated memory of `n` f32 that ggml has zeroed or computed, borrowed from this object.
        unsafe { std::slice::from_raw_parts(data.cast(), n as usize) }
    }

    /// The order in which `outputs` are computed.
    pub(super) fn graph(&mut self, outputs: &[Tensor]) -> Result<Graph> {
        // SAFETY: a live context with room for two graphs.
        let graph = unsafe { sys::ggml_new_graph_custom(self.context.as_ptr(), self.capacity, false) };
        let graph = NonNull::new(graph).ok_or_else(|| failed("no memory"))?;
        for output in outputs {
            // SAFETY: a live graph and a tensor of the same context.
            unsafe { sys::ggml_build_forward_expand(graph.as_ptr(), output.0.as_ptr()) };
        }
        Ok(Graph(graph))
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: both were made by this object and are freed once; no graph of it runs, since that borrows it.
        unsafe {
            for buffer in [self.buffer, self.borrowed].into_iter().flatten() {
                sys::ggml_backend_buffer_free(buffer.as_ptr());
            }
            sys::ggml_free(self.context.as_ptr());
        }
    }
}

/// A graph of some [`Tensors`], which must outlive it.
#[derive(Debug)]
pub(super) struct Graph(NonNull<sys::ggml_cgraph>);

// SAFETY: as `Tensors`.
unsafe impl Send for Graph {}

/// The CPU backend, on the threads of one session.
#[derive(Debug)]
pub(super) struct Cpu {
    backend: NonNull<sys::ggml_backend>,
    /// Held so that the pool lives as long as the backend points to it.
    pool: Option<Arc<ThreadPool>>,
}

// SAFETY: a backend may be used from any thread, one graph at a time (`&mut self`).
unsafe impl Send for Cpu {}

impl Cpu {
    /// Without a pool, ggml starts threads for each graph.
    pub(super) fn new(n_threads: usize, pool: Option<Arc<ThreadPool>>) -> Result<Self> {
        let device = cpu_device()?;
        // SAFETY: a live device; NULL stands for default parameters.
        let backend = NonNull::new(unsafe { sys::ggml_backend_dev_init(device, std::ptr::null()) })
            .ok_or_else(|| failed("no memory"))?;
        let cpu = Self { backend, pool };
        let missing = || failed("a CPU backend that cannot be told its threads");
        let set_threads = backend::proc_address(c"ggml_backend_set_n_threads").ok_or_else(missing)?;
        let n_threads = i32::try_from(n_threads).unwrap_or(1).max(1);
        // SAFETY: ggml documents this address as a `ggml_backend_set_n_threads_t`; the backend is live.
        unsafe { std::mem::transmute::<NonNull<c_void>, SetThreads>(set_threads)(backend.as_ptr(), n_threads) };
        if let Some(pool) = &cpu.pool {
            let set_pool = backend::proc_address(c"ggml_backend_cpu_set_threadpool").ok_or_else(missing)?;
            // SAFETY: the CPU backend hands `ggml_backend_cpu_set_threadpool` out under this name; backend and pool are
            // live, and the pool stays so as long as `cpu` does.
            unsafe {
                std::mem::transmute::<NonNull<c_void>, SetPool>(set_pool)(backend.as_ptr(), pool.as_ptr());
            }
        }
        Ok(cpu)
    }

    /// Computes a graph of `tensors`. The inputs have been filled.
    ///
    /// # Errors
    /// [`Error::Heads`] with ggml's status.
    pub(super) fn compute(&mut self, _tensors: &mut Tensors, graph: &mut Graph) -> Result<()> {
        let _turn = self.pool.as_deref().map(ThreadPool::turn);
        // SAFETY: a live backend, and a graph whose tensors are allocated and borrowed mutably.
        let status = unsafe { sys::ggml_backend_graph_compute(self.backend.as_ptr(), graph.0.as_ptr()) };
        if status == sys::GGML_STATUS_SUCCESS {
            return Ok(());
        }
        Err(Error::Heads { found: format!("a graph that ggml does not compute (status {status})") })
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once, before the pool that it points to.
        unsafe { sys::ggml_backend_free(self.backend.as_ptr()) };
    }
}

mod kv;

#[cfg(test)]
mod tests;
