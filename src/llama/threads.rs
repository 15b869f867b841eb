//! A ggml thread pool that one context computes on, or several that take turns.
//!
//! Without one, ggml starts and joins threads at every graph it computes, and a gated decode computes several. With
//! one, the workers of an idle session sleep. Heads evaluated inside a decode share the pool of their session, since two
//! pools that spin on the same cores slow each other down. For the same reason sessions that compute at once had better
//! share one: a pool's workers spin for a while after a graph, and would hold up the other's. Whoever computes on a pool
//! takes a [`Turn`] first; turns are given in the order in which they were asked for.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::ThreadId;

use llama_cpp_sys_2 as sys;

use super::backend;
use super::plug::{self, Kernels};

/// The most threads of a pool: ggml's `GGML_MAX_N_THREADS`, a macro that the bindings leave out.
pub(crate) const MAX_THREADS: usize = 512;

type New = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type Free = unsafe extern "C" fn(*mut sys::ggml_threadpool);

/// An owned ggml thread pool.
#[derive(Debug)]
pub(crate) struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    free: Free,
    queue: Mutex<Queue>,
    next: Condvar,
}

/// Who waits for a pool, by the numbers they drew.
#[derive(Debug, Default)]
struct Queue {
    drawn: u64,
    called: u64,
    holder: Option<ThreadId>,
    depth: u32,
}

/// While this lives, its thread alone computes on the pool.
pub(crate) struct Turn<'a>(&'a ThreadPool);

// SAFETY: a pool may be used from any thread, one graph at a time; the session that owns it computes one at a time.
unsafe impl Send for ThreadPool {}
// SAFETY: through a shared reference only the address and a `Turn` can be had. Contexts and heads compute on a pool during
// their turn alone, and within one thread's turn the heads compute when llama.cpp has no graph running.
unsafe impl Sync for ThreadPool {}

impl ThreadPool {
    /// A pool of `n_threads` (at least 1) that computes by `kernels`. `None` if this build's CPU backend has no pools, or if
    /// the system refuses.
    pub(crate) fn new(n_threads: usize, kernels: Kernels) -> Option<Self> {
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
        if kernels == Kernels::LlamaCpp {
            plug::leave_alone(raw);
        }
        Some(Self { raw, free, queue: Mutex::default(), next: Condvar::new() })
    }

    /// Waits until it is this thread's turn to compute. A thread that has the turn already gets it at once.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let me = std::thread::current().id();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.holder != Some(me) {
            let mine = queue.drawn;
            queue.drawn += 1;
            while queue.called != mine {
                queue = self.next.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.holder = Some(me);
        }
        queue.depth += 1;
        Turn(self)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_threadpool {
        self.raw.as_ptr()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.depth -= 1;
        if queue.depth == 0 {
            queue.holder = None;
            queue.called += 1;
            self.0.next.notify_all();
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        plug::forget(self.raw);
        // SAFETY: created by the matching `new`, freed once, and nothing refers to it any more: what does holds an `Arc` of it.
        unsafe { (self.free)(self.raw.as_ptr()) };
    }
}

/// Threads that a session uses by default: the physical cores, which for a memory-bound decode is as fast as all of
/// the logical ones or faster, as far as this process may use them. An affinity and a quota of a cgroup (v1 and v2, its
/// parents' too) count, the latter rounded down: a thread that is held up holds up all others.
pub fn default_threads() -> usize {
    let usable = std::thread::available_parallelism().map_or_else(|_| num_cpus::get(), usize::from);
    num_cpus::get_physical().min(usable).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_come_and_go() {
        for n in [0, 1, 2] {
            assert!(ThreadPool::new(n, Kernels::Auto).is_some());
        }
    }

    #[test]
    fn turns_are_given_in_the_order_in_which_they_were_asked_for() {
        let pool = ThreadPool::new(1, Kernels::LlamaCpp).unwrap();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let turn = pool.turn();
            let again = pool.turn();
            for i in 0..8 {
                let drawn = pool.queue.lock().unwrap().drawn;
                let (pool, order) = (&pool, &order);
                scope.spawn(move || {
                    let _turn = pool.turn();
                    order.lock().unwrap().push(i);
                });
                while pool.queue.lock().unwrap().drawn == drawn {
                    std::thread::yield_now();
                }
            }
            drop(turn);
            assert!(order.lock().unwrap().is_empty(), "a turn that was taken twice is given back twice");
            drop(again);
        });
        assert_eq!(order.into_inner().unwrap(), (0..8).collect::<Vec<_>>());
    }
}
