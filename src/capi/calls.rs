//! Random sequences of calls with arguments of every kind: each answers a status of the header and says why, and the session's
//! text is what the calls that succeeded made of it.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use offramp_fixtures::{Arch, TinyModel};
use proptest::prelude::*;

use super::*;

/// Tokens of the context, the fewest that there are: texts meet its end.
const N_CTX: u32 = 256;

/// What these calls may answer: no panic, nothing without a name of its own, nothing about files of models.
const STATUSES: [i32; 12] = [
    OFFRAMP_OK,
    OFFRAMP_ERROR_NULL,
    OFFRAMP_ERROR_VALUE,
    OFFRAMP_ERROR_UTF8,
    OFFRAMP_ERROR_BUFFER,
    OFFRAMP_ERROR_IO,
    OFFRAMP_ERROR_UNSUPPORTED,
    OFFRAMP_ERROR_STATE,
    OFFRAMP_ERROR_CONTEXT_LENGTH,
    OFFRAMP_ERROR_CONTEXT,
    OFFRAMP_ERROR_TEMPLATE,
    OFFRAMP_ERROR_CANCELLED,
];

#[derive(Debug, Clone)]
enum Call {
    Prompt(Vec<i32>),
    Text(Vec<u8>),
    Chat(Vec<(String, String)>),
    Truncate(usize),
    Clear,
    Generate {
        max_tokens: u32,
        sampler: Option<(f32, i32, f32)>,
    },
    Save,
    Load,
    Cancel,
    ClearCancel,
    /// NULL in the place of the session, or of what a call needs.
    Null(usize),
    Tokenize(Vec<u8>, usize),
    Detokenize(Vec<i32>, usize),
}

fn call() -> impl Strategy<Value = Call> {
    let id = || prop_oneof![12 => 0i32..256, 1 => any::<i32>()];
    let ids = move || prop::collection::vec(id(), 0..280);
    let bytes =
        || prop_oneof![8 => "\\PC{0,40}".prop_map(String::into_bytes), 1 => prop::collection::vec(any::<u8>(), 0..40)];
    let number = || prop_oneof![4 => 0.0f32..2.0, 1 => any::<f32>()];
    prop_oneof![
        4 => ids().prop_map(Call::Prompt),
        3 => bytes().prop_map(Call::Text),
        1 => prop::collection::vec(("[a-z]{0,9}", "\\PC{0,20}"), 0..3).prop_map(Call::Chat),
        2 => (0usize..300).prop_map(Call::Truncate),
        1 => Just(Call::Clear),
        4 => (0u32..80, prop::option::of((number(), -2i32..40, number())))
            .prop_map(|(max_tokens, sampler)| Call::Generate { max_tokens, sampler }),
        1 => Just(Call::Save),
        2 => Just(Call::Load),
        1 => Just(Call::Cancel),
        2 => Just(Call::ClearCancel),
        1 => (0usize..9).prop_map(Call::Null),
        1 => (bytes(), 0usize..20).prop_map(|(text, room)| Call::Tokenize(text, room)),
        1 => (ids(), 0usize..20).prop_map(|(ids, room)| Call::Detokenize(ids, room)),
    ]
}

/// The handles of one sequence, and the text that the session should have.
struct World {
    model: *mut offramp_model,
    session: *mut offramp_session,
    state: CString,
    text: Vec<i32>,
    saved: Option<Vec<i32>>,
}

impl World {
    fn tokens(&self) -> Vec<i32> {
        let mut ids = vec![0; 2 * N_CTX as usize];
        let mut n = 0;
        // SAFETY: a live session, and room for as many tokens as are told.
        let status = unsafe { offramp_session_tokens(self.session, ids.as_mut_ptr(), ids.len(), &mut n) };
        assert_eq!(status, OFFRAMP_OK);
        ids.truncate(n);
        ids
    }

    /// Makes `call` and gives its status; the expected text follows where it succeeds.
    fn make(&mut self, call: &Call) -> i32 {
        let (session, data) = (self.session, null_mut::<c_void>());
        // SAFETY: live handles, and pointers that are NULL or to as many values as are told.
        unsafe {
            match call {
                Call::Prompt(ids) => offramp_session_set_prompt(session, ids.as_ptr(), ids.len(), None, data),
                Call::Text(text) => offramp_session_set_text(session, text.as_ptr().cast(), text.len(), None, data),
                Call::Chat(turns) => {
                    let owned: Vec<[CString; 2]> =
                        turns.iter().map(|(role, text)| [role, text].map(|part| c_text(part))).collect();
                    let turn = |[role, content]: &[CString; 2]| offramp_message {
                        role: role.as_ptr(),
                        content: content.as_ptr(),
                    };
                    let turns: Vec<offramp_message> = owned.iter().map(turn).collect();
                    offramp_session_set_chat(session, turns.as_ptr(), turns.len(), None, data)
                }
                Call::Truncate(n) => {
                    let status = offramp_session_truncate(session, *n);
                    if status == OFFRAMP_OK {
                        self.text.truncate(*n);
                    }
                    status
                }
                Call::Clear => {
                    self.text.clear();
                    offramp_session_clear(session)
                }
                Call::Generate { max_tokens, sampler } => self.generate(*max_tokens, *sampler),
                Call::Save => {
                    let status = offramp_session_save(session, self.state.as_ptr());
                    if status == OFFRAMP_OK {
                        self.saved = Some(self.text.clone());
                    }
                    status
                }
                Call::Load => {
                    let status = offramp_session_load(session, self.state.as_ptr());
                    assert!(status != OFFRAMP_OK || self.saved.is_some(), "nothing was saved");
                    if let (OFFRAMP_OK, Some(saved)) = (status, &self.saved) {
                        self.text.clone_from(saved);
                    }
                    status
                }
                Call::Cancel => offramp_session_cancel(session),
                Call::ClearCancel => offramp_session_clear_cancel(session),
                Call::Null(which) => {
                    let status = self.null(*which);
                    assert_ne!(status, OFFRAMP_OK, "{which}");
                    status
                }
                Call::Tokenize(text, room) => {
                    let (mut ids, mut n) = (vec![0; *room], 0);
                    offramp_tokenize(
                        self.model,
                        text.as_ptr().cast(),
                        text.len(),
                        1,
                        0,
                        ids.as_mut_ptr(),
                        *room,
                        &mut n,
                    )
                }
                Call::Detokenize(ids, room) => {
                    let (mut bytes, mut n) = (vec![0; *room], 0);
                    offramp_detokenize(self.model, ids.as_ptr(), ids.len(), 1, bytes.as_mut_ptr(), *room, &mut n)
                }
            }
        }
    }

    fn generate(&mut self, max_tokens: u32, sampler: Option<(f32, i32, f32)>) -> i32 {
        let params = offramp_generate_params { max_tokens, ..Default::default() };
        let mut handle = null_mut();
        // SAFETY: live handles; the sampler is freed once.
        unsafe {
            if let Some((temperature, top_k, top_p)) = sampler {
                let params = offramp_sampler_params { temperature, top_k, top_p, ..Default::default() };
                let status = offramp_sampler_new(self.model, &params, &mut handle);
                if status != OFFRAMP_OK {
                    assert!(handle.is_null());
                    return status;
                }
            }
            let status = offramp_session_generate(self.session, handle, &params, None, null_mut());
            offramp_sampler_free(handle);
            status
        }
    }

    fn null(&self, which: usize) -> i32 {
        let (session, data) = (self.session, null_mut::<c_void>());
        // SAFETY: NULL is what every function must bear.
        unsafe {
            match which {
                0 => offramp_session_set_prompt(session, null(), 3, None, data),
                1 => offramp_session_set_text(session, null(), 3, None, data),
                2 => offramp_session_set_chat(session, null(), 3, None, data),
                3 => offramp_session_generate(null_mut(), null(), null(), None, data),
                4 => offramp_session_save(session, null()),
                5 => offramp_session_load(session, null()),
                6 => offramp_session_tokens(session, null_mut(), 0, null_mut()),
                7 => offramp_session_truncate(null_mut(), 0),
                _ => offramp_session_new(null(), null(), null_mut()),
            }
        }
    }
}

/// Without what C ends texts at.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap()
}

#[test]
fn whatever_is_called_in_any_order_a_status_comes_and_the_text_is_the_expected_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::new(Arch::Llama).write_to(&path).unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let state = CString::new(folder.path().join("state").to_str().unwrap()).unwrap();
    let mut model = null_mut();
    // SAFETY: a path, and a place for the handle.
    assert_eq!(unsafe { offramp_model_load(path.as_ptr(), null(), &mut model) }, OFFRAMP_OK);
    let params = offramp_session_params { n_ctx: N_CTX, n_threads: 1, ..Default::default() };
    let config = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(calls in prop::collection::vec(call(), 1..40))| {
        let _ = std::fs::remove_file(state.to_str().unwrap());
        let mut session = null_mut();
        // SAFETY: a live model, and a place for the handle.
        prop_assert_eq!(unsafe { offramp_session_new(model, &params, &mut session) }, OFFRAMP_OK);
        let mut world = World { model, session, state: state.clone(), text: Vec::new(), saved: None };
        for call in &calls {
            let before = world.text.clone();
            let status = world.make(call);
            prop_assert!(STATUSES.contains(&status), "{:?}: {}", call, status);
            // SAFETY: the library's own string.
            let reason = unsafe { std::ffi::CStr::from_ptr(offramp_last_error()) };
            prop_assert!(status == OFFRAMP_OK || !reason.is_empty(), "{:?}: no reason", call);
            let text = world.tokens();
            match (call, status) {
                (Call::Prompt(ids), OFFRAMP_OK) => prop_assert_eq!(&text, ids),
                // A text that was taken, as tokens that only the model knows, or in part.
                (Call::Text(_) | Call::Chat(_), OFFRAMP_OK | OFFRAMP_ERROR_CANCELLED) => {}
                (Call::Prompt(_), OFFRAMP_ERROR_CANCELLED) => {}
                (Call::Generate { max_tokens, .. }, _) => {
                    prop_assert!(text.starts_with(&before));
                    // 0 is no limit; the end token counts extra.
                    let most = if *max_tokens == 0 { N_CTX as usize } else { *max_tokens as usize };
                    prop_assert!(text.len() <= before.len() + most + 1);
                }
                _ => prop_assert_eq!(&text, &world.text, "{:?}: {}", call, status),
            }
            world.text = text;
        }
        // SAFETY: nothing uses it any more.
        unsafe { offramp_session_free(session) };
    });
    // SAFETY: the sessions are gone.
    unsafe { offramp_model_free(model) };
}
