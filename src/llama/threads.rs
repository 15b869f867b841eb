//! A ggml thread pool that one context computes on.
//!
//! Without one, ggml starts and joins threads at every graph it computes, and a gated decode computes several. With
//! one, the workers of an idle session sleep. Heads evaluated inside a decode share the pool of their session, since two
//! pools that spin on the same cores slow each other down.

use std::ffi::c_void;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::backend;

/// The most threads of a pool: ggml's `GGML_MAX_N_THREADS`, a macro that the bindings leave out.
pub(crate) const MAX_THREADS: usize = 512;

type New = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type Free = unsafe extern "C" fn(*mut sys::ggml_threadpool);

/// An owned ggml thread pool.
#[derive(Debug)]
pub(crate) struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    free: Free,
}

// SAFETY: a pool may be used from any thread, one graph at a time; the session that owns it computes one at a time.
unsafe impl Send for ThreadPool {}
// SAFETY: through a shared reference only the address can be had; the context and the heads that share a pool belong to
// one session, and the heads compute inside a decode of it, when llama.cpp has no graph running.
unsafe impl Sync for ThreadPool {}

impl ThreadPool {
    /// A pool of `n_threads` (at least 1). `None` if this build's CPU backend has no pools, or if the system refuses.
    pub(crate) fn new(n_threads: usize) -> Option<Self> {
        let n_threads = i32::try_from(n_threads.clamp(1, MAX_THREADS)).ok()?;
        let new = backend::proc_address(c"ggml_threadpool_new")?;
        let free = backend::proc_address(c"ggml_threadpool_free")?;
        // SAFETY: ggml's CPU backend hands these two functions out under these names (`ggml-cpu.cpp`).
        let (new, free) = unsafe {
            (std::mem::transmute::<NonNull<c_void>, New>(new), std::mem::transmute::<NonNull<c_void>, Free>(free))
        };
        // SAFETY: fills a plain struct with defaults.
        let mut params = unsafe { sys::ggml_threadpool_params_default(n_threads) };
        // SAFETY: `params` is complete and outlives the call.
        let raw = NonNull::new(unsafe { new(&mut params) })?;
        Some(Self { raw, free })
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_threadpool {
        self.raw.as_ptr()
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: created by the matching `new`, freed once, and nothing refers to it any more: what does holds an `Arc` of it.
        unsafe { (self.free)(self.raw.as_ptr()) };
    }
}

/// Threads that a session uses by default: the physical cores, which for a memory-bound decode is as fast as all of
/// the logical ones or faster.
pub(crate) fn default_threads() -> usize {
    num_cpus::get_physical().min(num_cpus::get()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_come_and_go() {
        for n in [0, 1, 2] {
            assert!(ThreadPool::new(n).is_some());
        }
    }
}
