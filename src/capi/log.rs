//! The log, to a callback: what this library and llama.cpp tell, through `tracing`.
//!
//! A process has one log. A program that has set a `tracing` subscriber of its own keeps it, and this refuses.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::fmt::Write;
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::status::*;

/// What went wrong.
pub const OFFRAMP_LOG_ERROR: i32 = 1;
/// What may be wrong, llama.cpp's errors among it.
pub const OFFRAMP_LOG_WARN: i32 = 2;
/// What was done.
pub const OFFRAMP_LOG_INFO: i32 = 3;
/// How it was done.
pub const OFFRAMP_LOG_DEBUG: i32 = 4;

/// Called with one line: `length` bytes of UTF-8, not ended by NUL, valid during the call only. It runs on whichever
/// thread logs, llama.cpp's own included, possibly on several at once; it must not call this library.
pub type offramp_log_callback =
    Option<unsafe extern "C" fn(level: i32, text: *const c_char, length: usize, user_data: *mut c_void)>;

struct Sink {
    callback: unsafe extern "C" fn(i32, *const c_char, usize, *mut c_void),
    user_data: *mut c_void,
    level: i32,
}

// SAFETY: the caller of `offramp_log_set` promises that the callback may run on any thread with this data.
unsafe impl Send for Sink {}
// SAFETY: as above, also on several at once.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// True while this thread is inside of the callback.
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

/// Sends the log up to `level` (one of OFFRAMP_LOG_*) to `callback`; NULL ends it. When this returns, the callback that
/// was set before no longer runs, on no thread: its user_data may be freed then. Any thread; not from the callback.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_log_set(callback: offramp_log_callback, user_data: *mut c_void, level: i32) -> i32 {
    boundary("offramp_log_set", || {
        if LOGGING.get() {
            return Err(Failure::new(OFFRAMP_ERROR_BUSY, "the log callback cannot set the log"));
        }
        if callback.is_some() && !(OFFRAMP_LOG_ERROR..=OFFRAMP_LOG_DEBUG).contains(&level) {
            return Err(Failure::value("level", level, "one of OFFRAMP_LOG_*"));
        }
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        if callback.is_some() && !INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(Forward).is_ok()) {
            return Err(Failure::new(OFFRAMP_ERROR_BUSY, "this process has a tracing subscriber already"));
        }
        let sink = callback.map(|callback| Sink { callback, user_data, level });
        // Waits for the callbacks that are running. A callback cannot poison the lock: it has nothing to panic with.
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
        Ok(())
    })
}

/// The process's subscriber: forwards events, knows no spans.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => OFFRAMP_LOG_ERROR,
            Level::WARN => OFFRAMP_LOG_WARN,
            Level::INFO => OFFRAMP_LOG_INFO,
            _ => OFFRAMP_LOG_DEBUG,
        };
        // What a callback causes to be logged is not logged: it would never end.
        if LOGGING.get() {
            return;
        }
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = sink.as_ref().filter(|sink| level <= sink.level) else { return };
        let mut line = Line(format!("{}: ", event.metadata().target()));
        event.record(&mut line);
        LOGGING.set(true);
        // SAFETY: the callback and the data that the caller of `offramp_log_set` vouched for, which the lock keeps set.
        unsafe { (sink.callback)(level, line.0.as_ptr().cast(), line.0.len(), sink.user_data) };
        LOGGING.set(false);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as text: the message, then its other fields.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
