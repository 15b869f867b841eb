//! Status codes, the last error of each thread, and the boundary that no panic passes.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;

/// Done.
pub const OFFRAMP_OK: i32 = 0;

/// A pointer that must not be NULL is NULL. -100 to -199: the caller's mistake, nothing has changed.
pub const OFFRAMP_ERROR_NULL: i32 = -100;
/// A value is outside of what the call accepts.
pub const OFFRAMP_ERROR_VALUE: i32 = -101;
/// A struct's struct_size or abi_version is not this library's.
pub const OFFRAMP_ERROR_ABI: i32 = -102;
/// A text or path is no UTF-8.
pub const OFFRAMP_ERROR_UTF8: i32 = -103;
/// Another call on this handle is in progress, on another thread or around this callback.
pub const OFFRAMP_ERROR_BUSY: i32 = -104;
/// The buffer is too small; the length that is needed has been written.
pub const OFFRAMP_ERROR_BUFFER: i32 = -105;

/// A file cannot be read or written. -200 to -299: the file's fault.
pub const OFFRAMP_ERROR_IO: i32 = -200;
/// The file is no sound GGUF.
pub const OFFRAMP_ERROR_GGUF: i32 = -201;
/// llama.cpp refuses the model.
pub const OFFRAMP_ERROR_LOAD: i32 = -202;
/// The model cannot do this.
pub const OFFRAMP_ERROR_UNSUPPORTED: i32 = -203;
/// It does not fit into the memory that is free.
pub const OFFRAMP_ERROR_MEMORY: i32 = -204;
/// The exit heads do not fit the model or cannot be evaluated.
pub const OFFRAMP_ERROR_HEADS: i32 = -205;
/// A saved session that this session cannot take.
pub const OFFRAMP_ERROR_STATE: i32 = -206;

/// The prompt is longer than the context. -300 to -399: while running.
pub const OFFRAMP_ERROR_CONTEXT_LENGTH: i32 = -300;
/// llama.cpp cannot make a context.
pub const OFFRAMP_ERROR_CONTEXT: i32 = -301;
/// llama.cpp failed to decode.
pub const OFFRAMP_ERROR_DECODE: i32 = -302;
/// The chat template gave no text.
pub const OFFRAMP_ERROR_TEMPLATE: i32 = -303;
/// The grammar cannot be used.
pub const OFFRAMP_ERROR_GRAMMAR: i32 = -304;

/// A callback or offramp_session_cancel stopped the call.
pub const OFFRAMP_ERROR_CANCELLED: i32 = -400;

/// A defect of this library was met and contained. A session that was in use can only be freed.
pub const OFFRAMP_ERROR_PANIC: i32 = -900;
/// An error without a code of its own.
pub const OFFRAMP_ERROR_OTHER: i32 = -901;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// The reason of this thread's last status that was not OFFRAMP_OK, in plain words; "" if there was none. Never NULL.
/// Owned by the library, valid until this thread's next call of a function that answers a status.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn offramp_last_error() -> *const c_char {
    // A thread that is ending has no reason to tell any more.
    LAST_ERROR.try_with(|last| last.try_borrow().map_or(c"".as_ptr(), |text| text.as_ptr())).unwrap_or(c"".as_ptr())
}

/// Why a call failed: a status and its reason.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: i32,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn new(status: i32, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    pub(super) fn value(name: &str, found: impl std::fmt::Display, expected: &str) -> Self {
        Self::new(OFFRAMP_ERROR_VALUE, format!("{name} is {found}, but must be {expected}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        use crate::gguf;
        let status = match &error {
            Error::Io { .. } | Error::Gguf(gguf::Error::Io { .. }) => OFFRAMP_ERROR_IO,
            Error::Gguf(_) => OFFRAMP_ERROR_GGUF,
            Error::Load { .. } => OFFRAMP_ERROR_LOAD,
            Error::Unsupported { .. } => OFFRAMP_ERROR_UNSUPPORTED,
            Error::OutOfMemory { .. } => OFFRAMP_ERROR_MEMORY,
            Error::Heads { .. } | Error::Gate { .. } => OFFRAMP_ERROR_HEADS,
            Error::State { .. } => OFFRAMP_ERROR_STATE,
            Error::ContextLengthExceeded { .. } => OFFRAMP_ERROR_CONTEXT_LENGTH,
            Error::Context { .. } => OFFRAMP_ERROR_CONTEXT,
            Error::Decode { .. } => OFFRAMP_ERROR_DECODE,
            Error::Template(_) => OFFRAMP_ERROR_TEMPLATE,
            Error::Grammar(_) => OFFRAMP_ERROR_GRAMMAR,
            Error::Cancelled => OFFRAMP_ERROR_CANCELLED,
            Error::InvalidValue { .. } | Error::TokenOutOfRange { .. } | Error::Tokenize { .. } => OFFRAMP_ERROR_VALUE,
            #[allow(unreachable_patterns)] // Variants come; they get codes of their own in a later ABI version.
            _ => OFFRAMP_ERROR_OTHER,
        };
        Self::new(status, error.to_string())
    }
}

/// Runs the body of an exported function: its failure or panic becomes a status and the thread's last error.
pub(super) fn boundary(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let run = || {
        #[cfg(test)]
        super::tests::maybe_panic(function);
        body()
    };
    // What a panic left half done is behind locks that it has poisoned, or is dropped here.
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        Err(Failure::new(OFFRAMP_ERROR_PANIC, format!("panic in {function}: {}", panic_text(&*payload))))
    });
    match result {
        Ok(()) => OFFRAMP_OK,
        Err(failure) => {
            remember(failure.reason);
            failure.status
        }
    }
}

/// As [`boundary`], for functions that answer nothing.
pub(super) fn quietly(function: &'static str, body: impl FnOnce()) {
    boundary(function, || {
        body();
        Ok(())
    });
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

fn remember(mut reason: String) {
    reason.retain(|c| c != '\0');
    let text = CString::new(reason).unwrap_or_default();
    // A reason is lost sooner than a second panic raised.
    let _ = LAST_ERROR.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = text;
        }
    });
}
