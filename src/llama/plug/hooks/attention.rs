//! Fused attention, as `GGML_OP_FLASH_ATTN_EXT` describes it, by our kernels.
//!
//! Refuses types and shapes that the kernels do not take; llama.cpp's own code computes those.

use llama_cpp_sys_2 as sys;
use offramp_kernels::attention::{Isa, Plan, Problem, Shared, Tensor, Type, Worker};

use super::{Thread, offramp_barrier};

/// Scratch memory of one thread begins at a multiple of this.
const LINE: usize = 64;

/// What ggml's own code wants of scratch memory, which may compute the operation after all (`ggml_graph_plan`): its
/// tiles are 64 queries by 64 cells.
fn of_ggml(problem: &Problem<'_>, n_threads: usize) -> usize {
    const TILE: usize = 64;
    let (dk, dv, n_head) = (problem.k.ne[0], problem.v.ne[0], problem.q.ne[2]);
    let tiled = (TILE * dk + 2 * TILE * TILE + TILE * dv + TILE * dv + TILE * dk) * n_threads;
    let single = n_head * n_threads * (2 + dv) + n_threads * (dk + 2 * dv);
    size_of::<f32>() * tiled.max(single)
}

/// The bytes of scratch memory that `op` takes; `None` leaves it to ggml.
pub(super) fn work_size(op: &sys::ggml_tensor, n_threads: usize) -> Option<usize> {
    // SAFETY: nothing is read through the tensors' memory here.
    let problem = unsafe { problem(op) }?;
    let plan = Plan::new(problem, Isa::here(), n_threads).ok()?;
    let per_thread = plan.scratch_bytes().next_multiple_of(LINE);
    let ours = LINE + n_threads * per_thread + size_of::<f32>() * plan.partials();
    Some(ours.max(of_ggml(&problem, n_threads)))
}

/// Computes this thread's part of `op`; false leaves it to ggml.
pub(super) fn compute(thread: &Thread, op: &sys::ggml_tensor) -> bool {
    // SAFETY: ggml computes a live operation, whose sources were computed before.
    let Some(problem) = (unsafe { problem(op) }) else { return false };
    let n_threads = thread.nth.unsigned_abs().max(1) as usize;
    let Ok(plan) = Plan::new(problem, Isa::here(), n_threads) else { return false };
    let is_whole = op.type_ == sys::GGML_TYPE_F32 && unsafe { sys::ggml_is_contiguous(op) };
    if !is_whole {
        return false;
    }
    let per_thread = plan.scratch_bytes().next_multiple_of(LINE);
    let skip = thread.wdata.addr().next_multiple_of(LINE) - thread.wdata.addr();
    let needed = skip + n_threads * per_thread + size_of::<f32>() * plan.partials();
    assert!(needed <= thread.wsize, "scratch memory as `work_size` asked for");
    let base = thread.wdata.wrapping_add(skip);
    let mine = base.wrapping_add(thread.ith.unsigned_abs() as usize * per_thread);
    let partials = base.wrapping_add(n_threads * per_thread).cast::<f32>();
    // SAFETY: the operation's output, and parts of the scratch memory that were just bounded: one of this thread's own,
    // one of all. Each unit and each row is one thread's, and merges start behind the barrier.
    unsafe {
        let out = Shared::new(op.data.cast(), plan.outputs());
        let partials = Shared::new(partials, plan.partials());
        let mut worker = Worker::new(&plan, std::slice::from_raw_parts_mut(mine, plan.scratch_bytes()));
        for unit in thread.part(plan.units()) {
            worker.run(unit, &out, &partials);
        }
        if plan.merges() > 0 {
            offramp_barrier(thread.pool);
            for row in thread.part(plan.merges()) {
                worker.merge(row, &out, &partials);
            }
        }
    }
    true
}

/// The operation's tensors as the kernels take them.
///
/// # Safety
/// `op` is a live fused attention; its sources' memory may be read for as long as the problem is used.
unsafe fn problem(op: &sys::ggml_tensor) -> Option<Problem<'_>> {
    let source = |i: usize| {
        // SAFETY: ggml's operations keep their sources alive.
        let source: Option<&sys::ggml_tensor> = unsafe { op.src[i].as_ref() };
        source
    };
    // The parameters are floats in the operation's integers (`ggml_flash_attn_ext`).
    let [scale, max_bias, logit_softcap] = [0, 1, 2].map(|i| f32::from_bits(op.op_params[i] as u32));
    let mask = match source(3) {
        Some(mask) => Some(tensor(mask)?),
        None => None,
    };
    let sinks = match source(4) {
        Some(sinks) if sinks.type_ == sys::GGML_TYPE_F32 && !sinks.data.is_null() => {
            // SAFETY: a live tensor of one float a head.
            Some(unsafe { std::slice::from_raw_parts(sinks.data.cast(), usize::try_from(sinks.ne[0]).ok()?) })
        }
        Some(_) => return None,
        None => None,
    };
    let (q, k, v) = (tensor(source(0)?)?, tensor(source(1)?)?, tensor(source(2)?)?);
    Some(Problem { q, k, v, mask, sinks, scale, max_bias, logit_softcap })
}

/// A tensor and the bytes that it spans.
fn tensor(from: &sys::ggml_tensor) -> Option<Tensor<'_>> {
    let ty = match from.type_ {
        sys::GGML_TYPE_F32 => Type::F32,
        sys::GGML_TYPE_F16 => Type::F16,
        sys::GGML_TYPE_BF16 => Type::Bf16,
        sys::GGML_TYPE_Q8_0 => Type::Q8_0,
        _ => return None,
    };
    let ne = from.ne.map(|n| usize::try_from(n).unwrap_or(0));
    // SAFETY: reads the tensor's own fields.
    let n_bytes = unsafe { sys::ggml_nbytes(from) };
    if from.data.is_null() {
        return None;
    }
    // SAFETY: a live tensor's memory.
    let data = unsafe { std::slice::from_raw_parts(from.data.cast(), n_bytes) };
    Some(Tensor { data, ty, ne, nb: from.nb })
}
