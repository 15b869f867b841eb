//! llama.cpp's log: forwarded to `tracing`, and the warnings and errors of the calling thread kept as error causes.
//!
//! llama.cpp has one log callback for the process. Ours never blocks and never unwinds into C.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use crate::error::LlamaLog;

/// Lines kept for one failing call. More would only repeat a cause that the first ones name.
const MAX_LINES: usize = 8;
/// Bytes kept of one line.
const MAX_LINE: usize = 400;

thread_local! {
    static RECORD: RefCell<Record> = const { RefCell::new(Record { lines: Vec::new(), depth: 0 }) };
}

struct Record {
    lines: Vec<String>,
    depth: u32,
}

/// Routes llama.cpp's and ggml's log through this module, once a process.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `on_log` has the signature llama.cpp asks for, lives as long as the program, and uses no user data.
        unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) };
    });
}

/// Runs `call` and returns, beside its result, what llama.cpp warned about on this thread meanwhile.
pub(crate) fn recorded<T>(call: impl FnOnce() -> T) -> (T, LlamaLog) {
    struct Close;
    impl Drop for Close {
        fn drop(&mut self) {
            RECORD.with_borrow_mut(|r| r.depth -= 1);
        }
    }
    RECORD.with_borrow_mut(|r| {
        if r.depth == 0 {
            r.lines.clear();
        }
        r.depth += 1;
    });
    let close = Close;
    let value = call();
    let lines = RECORD.with_borrow(|r| r.lines.clone());
    drop(close);
    (value, LlamaLog(lines))
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let line = text.trim_end();
    // llama.cpp draws its load progress with single dots.
    if line.is_empty() || line == "." {
        return;
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => tracing::warn!(target: "llama.cpp", "{line}"),
        sys::GGML_LOG_LEVEL_WARN => tracing::info!(target: "llama.cpp", "{line}"),
        _ => tracing::debug!(target: "llama.cpp", "{line}"),
    }
    if level == sys::GGML_LOG_LEVEL_ERROR || level == sys::GGML_LOG_LEVEL_WARN {
        // `try_with`: a thread may log while its locals are being destroyed. A line is dropped sooner than a panic.
        let _ = RECORD.try_with(|record| {
            if let Ok(mut record) = record.try_borrow_mut()
                && record.depth > 0
                && record.lines.len() < MAX_LINES
            {
                record.lines.push(line.chars().take(MAX_LINE).collect());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(level: sys::ggml_log_level, text: &CStr) {
        // SAFETY: a valid C string, and the callback takes no user data.
        unsafe { on_log(level, text.as_ptr(), std::ptr::null_mut()) };
    }

    #[test]
    fn only_what_was_logged_during_the_call_is_its_cause() {
        log(sys::GGML_LOG_LEVEL_ERROR, c"before");
        let ((), record) = recorded(|| log(sys::GGML_LOG_LEVEL_ERROR, c"during\n"));
        assert_eq!(record.lines(), ["during"]);
    }

    #[test]
    fn progress_and_information_are_no_causes() {
        let ((), record) = recorded(|| {
            log(sys::GGML_LOG_LEVEL_INFO, c"loading");
            log(sys::GGML_LOG_LEVEL_WARN, c".");
        });
        assert!(record.lines().is_empty());
    }

    #[test]
    fn a_flood_of_errors_stays_bounded() {
        let ((), record) = recorded(|| (0..1000).for_each(|_| log(sys::GGML_LOG_LEVEL_ERROR, c"again")));
        assert_eq!(record.lines().len(), MAX_LINES);
    }
}
