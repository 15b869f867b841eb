//! What ggml asks of us, and the products themselves, on ggml's own threads.
//!
//! Refuses, by answering false, what it cannot compute alike for every number of tokens; ggml does that then.

mod attention;

use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use super::{PLAIN_POOLS, WANTED};
use offramp_kernels::{Cpu, Numbers, Shape, Weights, dense};

/// The format that there are kernels for, if there are.
fn weights(ty: sys::ggml_type) -> Option<Weights> {
    Some(match ty {
        sys::GGML_TYPE_Q4_0 => Weights::Q4_0,
        sys::GGML_TYPE_Q4_1 => Weights::Q4_1,
        sys::GGML_TYPE_Q5_0 => Weights::Q5_0,
        sys::GGML_TYPE_Q5_1 => Weights::Q5_1,
        sys::GGML_TYPE_Q8_0 => Weights::Q8_0,
        sys::GGML_TYPE_Q2_K => Weights::Q2_K,
        sys::GGML_TYPE_Q3_K => Weights::Q3_K,
        sys::GGML_TYPE_Q4_K => Weights::Q4_K,
        sys::GGML_TYPE_Q5_K => Weights::Q5_K,
        sys::GGML_TYPE_Q6_K => Weights::Q6_K,
        sys::GGML_TYPE_IQ4_NL => Weights::IQ4_NL,
        sys::GGML_TYPE_IQ4_XS => Weights::IQ4_XS,
        sys::GGML_TYPE_MXFP4 => Weights::MXFP4,
        _ => return None,
    })
}

/// What a row of plain numbers consists of.
fn numbers(ty: sys::ggml_type) -> Option<Numbers> {
    match ty {
        sys::GGML_TYPE_F32 => Some(Numbers::F32),
        sys::GGML_TYPE_F16 => Some(Numbers::F16),
        sys::GGML_TYPE_BF16 => Some(Numbers::BF16),
        _ => None,
    }
}

/// The shape of a matrix that can be packed.
fn shape(tensor: &sys::ggml_tensor) -> Option<Shape> {
    let [n_in, n_out] = [tensor.ne[0], tensor.ne[1]].map(|n| usize::try_from(n).ok());
    let is_matrix = tensor.ne[2] == 1 && tensor.ne[3] == 1 && tensor.view_src.is_null();
    Shape::new(Cpu::here(), weights(tensor.type_)?, n_in?, n_out?).filter(|_| is_matrix)
}

/// What stands for one of ggml's threads in `vendor/plug.cpp`.
#[repr(C)]
struct Thread {
    ith: i32,
    nth: i32,
    wdata: *mut u8,
    wsize: usize,
    pool: *mut sys::ggml_threadpool,
}

impl Thread {
    /// This thread's part of `n` things.
    fn part(&self, n: usize) -> Range<usize> {
        let (ith, nth) = (self.ith.unsigned_abs() as usize, self.nth.unsigned_abs().max(1) as usize);
        n * ith / nth..n * (ith + 1) / nth
    }
}

/// Rows of a tensor of floats, counted through all of its dimensions.
struct Rows {
    data: *mut u8,
    ne: [usize; 3],
    nb: [usize; 3],
}

impl Rows {
    /// `None` where a row's numbers do not lie one behind another.
    fn of(tensor: &sys::ggml_tensor) -> Option<Self> {
        let ne = [1, 2, 3].map(|i| usize::try_from(tensor.ne[i]).unwrap_or(0));
        let is_float = tensor.type_ == sys::GGML_TYPE_F32 && tensor.nb[0] == 4;
        is_float.then_some(Self { data: tensor.data.cast(), ne, nb: [tensor.nb[1], tensor.nb[2], tensor.nb[3]] })
    }

    fn n(&self) -> usize {
        self.ne[0] * self.ne[1] * self.ne[2]
    }

    fn row(&self, i: usize) -> *mut f32 {
        let (a, rest) = (i % self.ne[0], i / self.ne[0]);
        self.at(a, rest % self.ne[1], rest / self.ne[1])
    }

    fn at(&self, a: usize, b: usize, c: usize) -> *mut f32 {
        self.data.wrapping_add(a * self.nb[0] + b * self.nb[1] + c * self.nb[2]).cast()
    }
}

/// Tokens whose rows one call of the kernels takes.
const TOKENS: usize = 128;

/// Smaller tensors are packed by one thread.
const SPLIT_BYTES: usize = 1 << 20;

#[repr(C)]
struct Plug {
    supports: unsafe extern "C" fn(*const sys::ggml_tensor, bool) -> bool,
    alloc_size: unsafe extern "C" fn(*const sys::ggml_tensor) -> usize,
    set: unsafe extern "C" fn(*mut sys::ggml_tensor, *const u8, usize, usize) -> bool,
    takes: unsafe extern "C" fn(*const sys::ggml_tensor) -> bool,
    work_size: unsafe extern "C" fn(i32, *const sys::ggml_tensor, *mut usize) -> bool,
    compute: unsafe extern "C" fn(*const Thread, *mut sys::ggml_tensor) -> bool,
}

unsafe extern "C" {
    fn offramp_plug_in(plug: *const Plug) -> sys::ggml_backend_buffer_type_t;
    fn offramp_barrier(pool: *mut sys::ggml_threadpool);
}

static PLUG: Plug = Plug { supports, alloc_size, set, takes, work_size, compute };
static OURS: AtomicPtr<sys::ggml_backend_buffer_type> = AtomicPtr::new(std::ptr::null_mut());
/// Products that were computed here, for the self-test.
pub(super) static N_PRODUCTS: AtomicUsize = AtomicUsize::new(0);

/// Puts our buffer type before ggml's own; NULL without memory.
pub(super) fn plug_in() -> sys::ggml_backend_buffer_type_t {
    // SAFETY: the table is static; called once, before a model is loaded.
    let ours = unsafe { offramp_plug_in(&PLUG) };
    OURS.store(ours, Ordering::Release);
    ours
}

fn is_ours(tensor: &sys::ggml_tensor) -> bool {
    // SAFETY: a tensor's buffer is NULL or lives as long as it; the getter reads a field.
    !tensor.buffer.is_null()
        && unsafe { sys::ggml_backend_buffer_get_type(tensor.buffer) } == OURS.load(Ordering::Acquire)
}

/// The first two sources of a matrix product.
fn sources(op: &sys::ggml_tensor) -> Option<(&sys::ggml_tensor, &sys::ggml_tensor)> {
    // SAFETY: ggml's operations keep their sources alive.
    (op.op == sys::GGML_OP_MUL_MAT).then(|| unsafe { Some((op.src[0].as_ref()?, op.src[1].as_ref()?)) })?
}

unsafe extern "C" fn supports(op: *const sys::ggml_tensor, is_load: bool) -> bool {
    // SAFETY: ggml asks about a live tensor.
    let Some((w, x)) = (unsafe { op.as_ref() }).and_then(sources) else { return false };
    let is_wanted = !is_load || (WANTED.get().ours && super::is_plugged());
    is_wanted && x.type_ == sys::GGML_TYPE_F32 && shape(w).is_some()
}

unsafe extern "C" fn alloc_size(tensor: *const sys::ggml_tensor) -> usize {
    // SAFETY: ggml asks about a live tensor.
    let packed = unsafe { tensor.as_ref() }.and_then(shape).map(|shape| shape.packed());
    // SAFETY: as above.
    packed.unwrap_or_else(|| unsafe { sys::ggml_nbytes(tensor) })
}

unsafe extern "C" fn set(tensor: *mut sys::ggml_tensor, data: *const u8, offset: usize, size: usize) -> bool {
    // SAFETY: ggml fills a live tensor.
    let Some(tensor) = (unsafe { tensor.as_ref() }) else { return false };
    // SAFETY: as above.
    let n_bytes = unsafe { sys::ggml_nbytes(tensor) };
    let Some(shape) = shape(tensor).filter(|_| offset == 0 && size == n_bytes && !tensor.data.is_null()) else {
        return false;
    };
    // SAFETY: the caller's data are `size` bytes; the tensor's memory was sized by `alloc_size`.
    let (raw, out) = unsafe {
        (std::slice::from_raw_parts(data, size), std::slice::from_raw_parts_mut(tensor.data.cast(), shape.packed()))
    };
    pack(&shape, raw, out);
    if WANTED.get().is_mapped {
        release(raw);
    }
    true
}

/// Packs on all cores, since ggml has no threads of its own while it loads.
fn pack(shape: &Shape, raw: &[u8], out: &mut [u8]) {
    let n_threads = if raw.len() < SPLIT_BYTES { 1 } else { crate::llama::threads::default_threads() };
    let tiles = shape.n_tiles().div_ceil(n_threads);
    std::thread::scope(|scope| {
        let mut parts = out.chunks_mut(tiles * shape.packed_tile()).enumerate();
        let mine = parts.next();
        for (i, part) in parts {
            let range = i * tiles..i * tiles + part.len() / shape.packed_tile();
            scope.spawn(move || shape.pack(raw, range, part));
        }
        if let Some((_, part)) = mine {
            shape.pack(raw, 0..part.len() / shape.packed_tile(), part);
        }
    });
}

/// Gives pages of a file's mapping back that nobody reads again; touched once more, they come from the file.
#[cfg(unix)]
fn release(raw: &[u8]) {
    const PAGE: usize = 1 << 16;
    let start = raw.as_ptr().addr().next_multiple_of(PAGE);
    let end = (raw.as_ptr().addr() + raw.len()) & !(PAGE - 1);
    if start < end {
        let from = raw.as_ptr().with_addr(start).cast_mut();
        // SAFETY: whole pages within a read-only mapping of a file, whose content they get back at the next touch.
        unsafe { libc::madvise(from.cast(), end - start, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(unix))]
fn release(_raw: &[u8]) {}

unsafe extern "C" fn takes(op: *const sys::ggml_tensor) -> bool {
    // SAFETY: ggml offers a live tensor.
    let Some(op) = (unsafe { op.as_ref() }) else { return false };
    if op.op == sys::GGML_OP_FLASH_ATTN_EXT {
        return super::is_plugged();
    }
    sources(op).is_some_and(|(w, x)| is_ours(w) || is_dense(w, x))
}

/// True for products of plain numbers in ordinary memory.
fn is_dense(w: &sys::ggml_tensor, x: &sys::ggml_tensor) -> bool {
    let size = numbers(w.type_).map(Numbers::size);
    x.type_ == sys::GGML_TYPE_F32 && x.nb[0] == 4 && size == Some(w.nb[0])
}

unsafe extern "C" fn work_size(n_threads: i32, op: *const sys::ggml_tensor, size: *mut usize) -> bool {
    // SAFETY: ggml plans a live tensor, and wants a size.
    let (Some(op), Some(size)) = (unsafe { (op.as_ref(), size.as_mut()) }) else { return false };
    if op.op == sys::GGML_OP_FLASH_ATTN_EXT {
        let wanted = attention::work_size(op, n_threads.unsigned_abs() as usize);
        return wanted.inspect(|wanted| *size = *wanted).is_some();
    }
    let Some((w, x)) = sources(op).filter(|(w, _)| is_ours(w)) else { return false };
    let (Some(shape), Some(x)) = (shape(w), Rows::of(x)) else { return false };
    *size = x.n() * shape.activations();
    true
}

unsafe extern "C" fn compute(thread: *const Thread, op: *mut sys::ggml_tensor) -> bool {
    // SAFETY: ggml computes a live tensor; every thread gets its own description.
    let (Some(thread), Some(op)) = (unsafe { (thread.as_ref(), op.as_ref()) }) else { return false };
    let is_plain = || PLAIN_POOLS.iter().any(|pool| pool.load(Ordering::Relaxed) == thread.pool);
    if op.op == sys::GGML_OP_FLASH_ATTN_EXT {
        return !is_plain() && attention::compute(thread, op);
    }
    let Some((w, x)) = sources(op) else { return false };
    let (Some(x_rows), Some(out)) = (Rows::of(x), Rows::of(op)) else { return false };
    if is_ours(w) {
        return shape(w).is_some_and(|shape| product(thread, &shape, w.data.cast(), &x_rows, &out));
    }
    // A product of a Hadamard matrix is a transform that ggml knows how to do faster.
    let is_hint = op.op_params[1] == sys::GGML_HINT_SRC0_IS_HADAMARD as i32;
    !is_hint && !is_plain() && dense_product(thread, w, &x_rows, &out)
}

/// Multiplies rows of plain numbers as they lie; the rows of each matrix are shared out among the threads.
fn dense_product(thread: &Thread, w: &sys::ggml_tensor, x: &Rows, out: &Rows) -> bool {
    let Some(numbers) = numbers(w.type_) else { return false };
    let [n_in, n_rows, n_2, n_3] = w.ne.map(|n| usize::try_from(n).unwrap_or(0));
    if n_2 == 0 || n_3 == 0 || x.ne[0] == 0 {
        return true;
    }
    let rows = thread.part(n_rows);
    for c in 0..x.ne[2] {
        for b in 0..x.ne[1] {
            // Several matrices of `x` share one of `w`, as heads of queries share one of keys.
            let (b_w, c_w) = (b / (x.ne[1] / n_2).max(1), c / (x.ne[2] / n_3).max(1));
            let first = w.data.cast::<u8>().wrapping_add(rows.start * w.nb[1] + b_w * w.nb[2] + c_w * w.nb[3]);
            let mut tokens = [std::ptr::null(); TOKENS];
            let mut outputs = [std::ptr::null_mut(); TOKENS];
            for from in (0..x.ne[0]).step_by(TOKENS) {
                let count = TOKENS.min(x.ne[0] - from);
                for i in 0..count {
                    tokens[i] = x.at(from + i, b, c).cast_const();
                    outputs[i] = out.at(from + i, b, c).wrapping_add(rows.start);
                }
                let w = (first.cast_const(), w.nb[1], rows.len());
                // SAFETY: rows of a live tensor and of its product, of which this thread alone computes these.
                unsafe { dense(Cpu::here(), numbers, w, n_in, &tokens[..count], &outputs[..count]) };
            }
        }
    }
    true
}

/// Quantizes the tokens of `x` on all threads, then multiplies.
fn product(thread: &Thread, shape: &Shape, packed: *const u8, x: &Rows, out: &Rows) -> bool {
    let (n, per_token) = (x.n(), shape.activations());
    if thread.ith == 0 {
        N_PRODUCTS.fetch_add(1, Ordering::Relaxed);
    }
    assert!(n == out.n() && thread.wsize >= n * per_token, "scratch memory as `work_size` asked for");
    let (n_blocks, columns) = (shape.n_blocks(), shape.block_columns());
    let blocks = thread.part(n * n_blocks);
    let mut at = blocks.start;
    while at < blocks.end {
        let (token, block) = (at / n_blocks, at % n_blocks);
        let end = (at - block + n_blocks).min(blocks.end) - at + block;
        let size = per_token / n_blocks;
        // SAFETY: rows of `n_in` floats that were computed before; this thread's part of the scratch memory.
        let (x, y) = unsafe {
            let x = x.row(token).add(block * columns);
            let y = thread.wdata.add(token * per_token + block * size);
            let n = end - block;
            (std::slice::from_raw_parts(x, n * columns), std::slice::from_raw_parts_mut(y, n * size))
        };
        shape.quantize(x, y);
        at += end - block;
    }
    // SAFETY: the pool that this thread works in, all of whose threads come by here.
    unsafe { offramp_barrier(thread.pool) };
    let tiles = thread.part(shape.n_tiles());
    let mut tokens = [std::ptr::null(); TOKENS];
    let mut outputs = [std::ptr::null_mut(); TOKENS];
    for first in (0..n).step_by(TOKENS) {
        let count = TOKENS.min(n - first);
        for i in 0..count {
            tokens[i] = thread.wdata.wrapping_add((first + i) * per_token).cast_const();
            outputs[i] = out.row(first + i);
        }
        // SAFETY: packed weights of this shape, activations of `n` tokens, and outputs of `n_out` floats each, of
        // which this thread alone computes these tiles.
        unsafe { shape.product(packed, tiles.clone(), &tokens[..count], &outputs[..count]) };
    }
    true
}
