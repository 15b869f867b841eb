//! Forced panics in every function: none passes the boundary, and no output is written.
//!
//! They are raised before a function looks at its arguments; what a panic in the midst of a call leaves is tested on a tiny
//! model's session.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};

use offramp_fixtures::{Arch, TinyModel};

use super::*;

thread_local! {
    static PANIC: Cell<bool> = const { Cell::new(false) };
}

/// Called by the boundary: panics once if a test has asked for it.
pub(super) fn maybe_panic(function: &str) {
    if PANIC.take() {
        panic!("forced in {function}");
    }
}

fn last_error() -> String {
    // SAFETY: the library's own string, copied at once.
    unsafe { CStr::from_ptr(offramp_last_error()) }.to_str().unwrap().to_owned()
}

/// Runs a call that is about to panic.
fn panicking(name: &str, call: impl FnOnce() -> i32) {
    PANIC.set(true);
    assert_eq!(call(), OFFRAMP_ERROR_PANIC, "{name}");
    assert!(!PANIC.get(), "{name} has no boundary");
    assert_eq!(last_error(), format!("panic in {name}: forced in {name}"));
}

#[test]
fn a_panic_in_any_function_is_a_status_and_writes_nothing() {
    let text = c"text";
    let mut n = 77usize;
    let mut ids = [77i32; 4];
    let mut bytes = [77 as c_char; 4];
    let mut model = null_mut();
    let mut sampler = null_mut();
    let mut session = null_mut();
    let mut model_params = offramp_model_params { gpu_layers: 77, ..Default::default() };
    let mut session_params = offramp_session_params { n_ctx: 77, ..Default::default() };
    let mut sampler_params = offramp_sampler_params { top_k: 77, ..Default::default() };
    let mut generate_params = offramp_generate_params { max_tokens: 77, ..Default::default() };
    let mut info = std::mem::MaybeUninit::<offramp_model_info>::zeroed();
    let mut memory = std::mem::MaybeUninit::<offramp_memory>::zeroed();
    let mut statistics = std::mem::MaybeUninit::<offramp_statistics>::zeroed();
    let data: *mut c_void = null_mut();
    // SAFETY: no argument is looked at; the places are of the sizes that are given all the same.
    unsafe {
        macro_rules! panics {
            ($($name:ident($($argument:expr),*);)*) => { $(panicking(stringify!($name), || $name($($argument),*));)* };
        }
        panics! {
            offramp_model_default_params(&mut model_params, size_of::<offramp_model_params>());
            offramp_session_default_params(&mut session_params, size_of::<offramp_session_params>());
            offramp_sampler_default_params(&mut sampler_params, size_of::<offramp_sampler_params>());
            offramp_generate_default_params(&mut generate_params, size_of::<offramp_generate_params>());
            offramp_log_set(None, data, OFFRAMP_LOG_INFO);
            offramp_model_load(text.as_ptr(), null(), &mut model);
            offramp_model_get_info(null_mut(), info.as_mut_ptr(), size_of::<offramp_model_info>());
            offramp_memory_estimate(text.as_ptr(), null(), memory.as_mut_ptr(), size_of::<offramp_memory>());
            offramp_chat_render(null_mut(), null(), 0, bytes.as_mut_ptr(), 4, &mut n);
            offramp_tokenize(null_mut(), text.as_ptr(), 4, 1, 1, ids.as_mut_ptr(), 4, &mut n);
            offramp_detokenize(null_mut(), [1].as_ptr(), 1, 0, bytes.as_mut_ptr(), 4, &mut n);
            offramp_sampler_new(null_mut(), null(), &mut sampler);
            offramp_session_new(null_mut(), null(), &mut session);
            offramp_session_cancel(null_mut());
            offramp_session_clear_cancel(null_mut());
            offramp_session_set_prompt(null_mut(), [1].as_ptr(), 1, None, data);
            offramp_session_set_text(null_mut(), text.as_ptr(), 4, None, data);
            offramp_session_set_chat(null_mut(), null(), 0, None, data);
            offramp_session_tokens(null_mut(), ids.as_mut_ptr(), 4, &mut n);
            offramp_session_n_ctx(null_mut(), &mut n);
            offramp_session_truncate(null_mut(), 0);
            offramp_session_clear(null_mut());
            offramp_session_save(null_mut(), text.as_ptr());
            offramp_session_load(null_mut(), text.as_ptr());
            offramp_session_generate(null_mut(), null_mut(), null(), None, data);
            offramp_session_statistics(null_mut(), statistics.as_mut_ptr(), size_of::<offramp_statistics>());
        }
        // Functions that answer nothing keep the panic in as well.
        for free in [
            || offramp_model_free(null_mut()),
            || offramp_sampler_free(null_mut()),
            || offramp_session_free(null_mut()),
        ] {
            PANIC.set(true);
            free();
            assert!(!PANIC.get() && last_error().contains("_free: forced"));
        }
    }
    assert_eq!((n, ids, bytes), (77, [77; 4], [77; 4]));
    assert!(model.is_null() && sampler.is_null() && session.is_null());
    assert_eq!((model_params.gpu_layers, session_params.n_ctx), (77, 77));
    assert_eq!((sampler_params.top_k, generate_params.max_tokens), (77, 77));
    // SAFETY: zeroed above, and valid as zeros.
    let sizes = unsafe {
        [info.assume_init().struct_size, memory.assume_init().struct_size, statistics.assume_init().struct_size]
    };
    assert_eq!(sizes, [0; 3]);
}

#[test]
fn the_list_of_forced_panics_is_complete() {
    let this = include_str!("tests.rs");
    let sources = [
        include_str!("version.rs"),
        include_str!("status.rs"),
        include_str!("params.rs"),
        include_str!("log.rs"),
        include_str!("model.rs"),
        include_str!("chat.rs"),
        include_str!("sampler.rs"),
        include_str!("session.rs"),
        include_str!("generate.rs"),
    ];
    // These only answer what was known before.
    let without_body = ["offramp_version", "offramp_abi_version", "offramp_engine", "offramp_last_error"];
    for source in sources {
        for name in source.split("extern \"C\" fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            let named = name.starts_with("offramp_") && !without_body.contains(&name);
            assert!(!named || this.contains(&format!(" {name}(")), "{name}");
        }
    }
}

#[test]
fn a_session_that_a_panic_went_through_can_only_be_freed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(Arch::Llama).write_to(&path).unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let params = offramp_session_params { n_ctx: 256, n_threads: 1, ..Default::default() };
    let (mut model, mut session) = (null_mut(), null_mut());
    let (text, tokens, data) = (c"text".as_ptr(), [5], null_mut());
    let mut n = 77usize;
    let mut statistics = std::mem::MaybeUninit::<offramp_statistics>::uninit();
    // SAFETY: handles and places as the functions ask for; both handles are freed at the end.
    unsafe {
        assert_eq!(offramp_model_load(path.as_ptr(), null(), &mut model), OFFRAMP_OK);
        assert_eq!(offramp_session_new(model, &params, &mut session), OFFRAMP_OK);
        assert_eq!(offramp_session_set_text(session, text, 4, None, data), OFFRAMP_OK);
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let _state = (*session).enter().unwrap();
            panic!("inside of a call");
        }));
        assert!(broken.is_err());
        for status in [
            offramp_session_set_prompt(session, tokens.as_ptr(), 1, None, data),
            offramp_session_set_text(session, text, 4, None, data),
            offramp_session_set_chat(
                session,
                &offramp_message { role: c"user".as_ptr(), content: text },
                1,
                None,
                data,
            ),
            offramp_session_tokens(session, null_mut(), 0, &mut n),
            offramp_session_n_ctx(session, &mut n),
            offramp_session_truncate(session, 1),
            offramp_session_clear(session),
            offramp_session_save(session, path.as_ptr()),
            offramp_session_load(session, path.as_ptr()),
            offramp_session_generate(session, null(), null(), None, data),
            offramp_session_statistics(session, statistics.as_mut_ptr(), size_of::<offramp_statistics>()),
        ] {
            assert_eq!(status, OFFRAMP_ERROR_PANIC);
            assert!(last_error().contains("free it"));
        }
        assert_eq!(n, 77);
        // Threads that do not know of it yet may go on cancelling.
        assert_eq!(offramp_session_cancel(session), OFFRAMP_OK);
        offramp_session_free(session);
        offramp_model_free(model);
    }
}
