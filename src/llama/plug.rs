//! Our kernels inside ggml's CPU backend: answers to what `vendor/plug.cpp` asks, on ggml's own threads.
//!
//! Weights that there are kernels for are loaded into a buffer type of ours, packed; ggml then offers us every
//! operation before its own. It refuses what it cannot compute alike for every number of tokens, which ggml then does.
//! Models and thread pools that are to use llama.cpp's own kernels are left alone.

#[cfg(offramp_plug)]
mod hooks;
#[cfg(offramp_plug)]
mod selftest;

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use offramp_kernels::Cpu;

/// Whose kernels compute a model on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Ours where they can be plugged in, llama.cpp's elsewhere.
    #[default]
    Auto,
    /// llama.cpp's own, in the layout that it chooses; weights it does not repack stay mapped.
    LlamaCpp,
}

impl FromStr for Kernels {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "llama.cpp" => Ok(Self::LlamaCpp),
            _ => Err(Error::InvalidValue { name: "kernels", found: text.to_owned(), expected: "auto or llama.cpp" }),
        }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::LlamaCpp => "llama.cpp",
        })
    }
}

/// Tells which instruction set our kernels use here, or why llama.cpp's own compute.
///
/// # Errors
/// The reason, in words.
pub fn kernels_here() -> std::result::Result<&'static str, &'static str> {
    super::backend::init();
    match PLUGGED.get() {
        Some(Plugged::Yes) => Ok(Cpu::here().name()),
        Some(Plugged::Failed) => Err("the self-test found other numbers than it should"),
        _ => Err("this build cannot reach ggml's CPU backend"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plugged {
    Yes,
    /// The self-test was not passed.
    Failed,
    /// This build does not reach ggml's CPU backend, or had no memory.
    #[allow(dead_code)]
    Unreachable,
}

static PLUGGED: OnceLock<Plugged> = OnceLock::new();

/// Plugs in, once a process, before the first model is loaded.
pub(super) fn install() {
    #[cfg(offramp_plug)]
    PLUGGED.get_or_init(|| {
        let ours = hooks::plug_in();
        match ours.is_null() {
            true => Plugged::Unreachable,
            false if selftest::run(ours) => Plugged::Yes,
            false => Plugged::Failed,
        }
    });
    #[cfg(not(offramp_plug))]
    PLUGGED.get_or_init(|| Plugged::Unreachable);
}

#[cfg(offramp_plug)]
fn is_plugged() -> bool {
    PLUGGED.get() == Some(&Plugged::Yes)
}

thread_local! {
    /// What the model that this thread loads, or the graph that it makes, is to be computed by.
    static WANTED: Cell<Wanted> = const { Cell::new(Wanted { ours: true, is_mapped: false }) };
}

#[derive(Clone, Copy)]
struct Wanted {
    ours: bool,
    /// The weights come from a mapping of the file, whose pages may be dropped once they are packed.
    is_mapped: bool,
}

/// Runs `load`, which loads a model on this thread, by the kernels that are wanted.
pub(super) fn loading<R>(kernels: Kernels, is_mapped: bool, load: impl FnOnce() -> R) -> R {
    struct Restore(Wanted);
    impl Drop for Restore {
        fn drop(&mut self) {
            WANTED.set(self.0);
        }
    }
    let _restore = Restore(WANTED.replace(Wanted { ours: kernels == Kernels::Auto, is_mapped }));
    load()
}

/// More pools than a process has of those that llama.cpp's kernels run on; further ones get ours.
const MAX_PLAIN_POOLS: usize = 64;
static PLAIN_POOLS: [AtomicPtr<sys::ggml_threadpool>; MAX_PLAIN_POOLS] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_PLAIN_POOLS];

/// From now on operations of ordinary tensors are left to llama.cpp on this pool.
pub(super) fn leave_alone(pool: NonNull<sys::ggml_threadpool>) {
    for slot in &PLAIN_POOLS {
        let free = std::ptr::null_mut();
        if slot.compare_exchange(free, pool.as_ptr(), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
    }
}

/// Forgets a pool that is about to be freed.
pub(super) fn forget(pool: NonNull<sys::ggml_threadpool>) {
    for slot in &PLAIN_POOLS {
        let free = std::ptr::null_mut();
        let _ = slot.compare_exchange(pool.as_ptr(), free, Ordering::Relaxed, Ordering::Relaxed);
    }
}
