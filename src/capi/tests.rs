//! Forced panics in every function: none passes the boundary, and no output is written.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
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

struct Handles {
    model: *mut offramp_model,
    sampler: *mut offramp_sampler,
    session: *mut offramp_session,
    _folder: tempfile::TempDir,
    path: CString,
}

fn handles() -> Handles {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    TinyModel::new(Arch::Llama).seed(3).write_to(&file).unwrap();
    let path = CString::new(file.to_str().unwrap()).unwrap();
    let (mut model, mut sampler, mut session) = (null_mut(), null_mut(), null_mut());
    let params = offramp_session_params { n_ctx: 256, n_threads: 1, ..Default::default() };
    // SAFETY: live strings and places.
    unsafe {
        assert_eq!(offramp_model_load(path.as_ptr(), null(), &mut model), OFFRAMP_OK, "{}", last_error());
        assert_eq!(offramp_sampler_new(model, null(), &mut sampler), OFFRAMP_OK);
        assert_eq!(offramp_session_new(model, &params, &mut session), OFFRAMP_OK);
    }
    Handles { model, sampler, session, _folder: folder, path }
}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: made by `handles`, freed once.
        unsafe {
            offramp_session_free(self.session);
            offramp_sampler_free(self.sampler);
            offramp_model_free(self.model);
        }
    }
}

#[test]
fn a_panic_in_any_function_is_a_status_and_writes_nothing() {
    let h = handles();
    let text = c"text";
    let saved = CString::new(format!("{}.saved", h.path.to_str().unwrap())).unwrap();
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
    // SAFETY: live handles, strings and places of the sizes that are given.
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
            offramp_model_load(h.path.as_ptr(), null(), &mut model);
            offramp_model_get_info(h.model, info.as_mut_ptr(), size_of::<offramp_model_info>());
            offramp_memory_estimate(h.path.as_ptr(), null(), memory.as_mut_ptr(), size_of::<offramp_memory>());
            offramp_chat_render(h.model, null(), 0, bytes.as_mut_ptr(), 4, &mut n);
            offramp_tokenize(h.model, text.as_ptr(), 4, 1, 1, ids.as_mut_ptr(), 4, &mut n);
            offramp_detokenize(h.model, [1].as_ptr(), 1, 0, bytes.as_mut_ptr(), 4, &mut n);
            offramp_sampler_new(h.model, null(), &mut sampler);
            offramp_session_new(h.model, null(), &mut session);
            offramp_session_cancel(h.session);
            offramp_session_clear_cancel(h.session);
            offramp_session_set_prompt(h.session, [1].as_ptr(), 1, None, data);
            offramp_session_set_text(h.session, text.as_ptr(), 4, None, data);
            offramp_session_set_chat(h.session, null(), 0, None, data);
            offramp_session_tokens(h.session, ids.as_mut_ptr(), 4, &mut n);
            offramp_session_n_ctx(h.session, &mut n);
            offramp_session_truncate(h.session, 0);
            offramp_session_clear(h.session);
            offramp_session_save(h.session, saved.as_ptr());
            offramp_session_load(h.session, saved.as_ptr());
            offramp_session_generate(h.session, h.sampler, null(), None, data);
            offramp_session_statistics(h.session, statistics.as_mut_ptr(), size_of::<offramp_statistics>());
        }
        // Functions that answer nothing keep the panic in as well; the handle is freed by the next call.
        for free in [
            |h: &Handles| offramp_model_free(h.model),
            |h| offramp_sampler_free(h.sampler),
            |h| {
                offramp_session_free(h.session);
            },
        ] {
            PANIC.set(true);
            free(&h);
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
    assert!(!std::path::Path::new(saved.to_str().unwrap()).exists());
    // The handles are as good as before.
    // SAFETY: as above.
    unsafe {
        assert_eq!(offramp_session_set_text(h.session, text.as_ptr(), 4, None, data), OFFRAMP_OK, "{}", last_error());
        let limits = offramp_generate_params { max_tokens: 3, ..Default::default() };
        assert_eq!(offramp_session_generate(h.session, h.sampler, &limits, None, data), OFFRAMP_OK, "{}", last_error());
    }
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
            assert!(!named || this.contains(&format!("{name}(h")) || this.contains(&format!(" {name}(")), "{name}");
        }
    }
}

#[test]
fn a_session_that_a_panic_went_through_answers_so_and_can_be_freed() {
    let h = handles();
    // SAFETY: a live handle.
    let session = unsafe { pointers::handle(h.session, "session") }.unwrap();
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _state = session.enter().unwrap();
        panic!("inside of a call");
    }));
    assert!(broken.is_err());
    // SAFETY: as above.
    assert_eq!(unsafe { offramp_session_clear(h.session) }, OFFRAMP_ERROR_PANIC);
    assert!(last_error().contains("free it"));
}
