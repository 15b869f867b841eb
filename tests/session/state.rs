//! Saved sessions: what comes back is what was saved, and nothing else is let in.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use offramp::{
    CacheType, Error, Exits, GenerateParams, Kv, Model, ModelParams, Policy, Sampler, SamplerParams, Session,
    SessionParams, StateError, Token,
};
use offramp_fixtures::{Arch, Memory, TinyModel, WeightType};
use sha2::{Digest, Sha256};

/// Bytes before the tokens, and of the hash at the end.
const HEADER: usize = 108;
const DIGEST: usize = 32;

struct Tiny {
    model: Model,
    folder: tempfile::TempDir,
}

impl Tiny {
    fn new(arch: Arch, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        TinyModel::new(arch).seed(seed).weights(WeightType::Q4_0).write_to(&path).unwrap();
        Self { model: Model::load(&path, &ModelParams::default()).unwrap(), folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("saved")
    }

    fn session(&self, change: impl FnOnce(&mut SessionParams)) -> Session {
        let mut params = SessionParams::default();
        params.n_ctx = 512;
        params.n_ubatch = 32;
        params.n_threads = Some(1);
        change(&mut params);
        Session::new(&self.model, &params).unwrap()
    }

    fn prompted(&self, n: usize) -> Session {
        let mut session = self.session(|_| {});
        session.set_prompt(&text(n), &mut |_| {}).unwrap();
        session
    }
}

fn text(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token(((i * 37 + 5) % 256) as i32)).collect()
}

fn generate(session: &mut Session, n: usize) -> Vec<Token> {
    let mut params = GenerateParams::default();
    params.max_tokens = n;
    params.ignore_eos = true;
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let mut sampler = Sampler::new(session.model(), &greedy).unwrap();
    session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

fn plain() -> impl Iterator<Item = Arch> {
    Arch::ALL.into_iter().filter(|arch| matches!(arch.memory(), Memory::Attention | Memory::SlidingWindow))
}

fn refusal(error: Error) -> StateError {
    match error {
        Error::State { source, .. } => source,
        other => panic!("not a refusal of the file: {other}"),
    }
}

/// Changes a saved file, with a hash that is right again.
fn tampered(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.truncate(bytes.len() - DIGEST);
    change(&mut bytes);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_loaded_session_goes_on_as_the_saved_one() {
    for arch in plain() {
        for flash_attn in ["on", "off"] {
            let tiny = Tiny::new(arch, 3);
            let with = |params: &mut SessionParams| params.flash_attn = flash_attn.parse().unwrap();
            let mut saved = tiny.session(with);
            // Beyond the sliding window and its cache.
            saved.set_prompt(&text(300), &mut |_| {}).unwrap();
            generate(&mut saved, 5);
            saved.save(tiny.file()).unwrap();
            let mut loaded = tiny.session(with);
            loaded.load(tiny.file()).unwrap();
            assert_eq!(loaded.tokens(), saved.tokens());
            let cached = loaded.gate().position();
            assert_eq!(cached, saved.gate().position(), "{arch:?}: the cache came along");
            assert_eq!(generate(&mut loaded, 12), generate(&mut saved, 12), "{arch:?}, flash attention {flash_attn}");
        }
    }
}

#[test]
fn a_loaded_session_replaces_what_was_there() {
    let tiny = Tiny::new(Arch::Llama, 3);
    tiny.prompted(40).save(tiny.file()).unwrap();
    let mut session = tiny.prompted(100);
    generate(&mut session, 3);
    session.load(tiny.file()).unwrap();
    assert_eq!(session.tokens(), text(40));
    assert_eq!(generate(&mut session, 8), generate(&mut tiny.prompted(40), 8));
}

#[test]
fn an_empty_session_is_saved_and_loaded() {
    let tiny = Tiny::new(Arch::Qwen2, 3);
    tiny.session(|_| {}).save(tiny.file()).unwrap();
    let mut session = tiny.prompted(10);
    session.load(tiny.file()).unwrap();
    assert!(session.tokens().is_empty());
    assert_eq!(session.set_prompt(&text(10), &mut |_| {}).unwrap().decoded, 10);
}

#[test]
fn what_a_cancelled_prompt_left_out_is_decoded_after_loading() {
    let tiny = Tiny::new(Arch::Llama, 3);
    let mut session = tiny.session(|_| {});
    let cancel = session.cancel_handle();
    let report = session.set_prompt(&text(200), &mut |_| cancel.cancel()).unwrap();
    assert!(report.cancelled && report.decoded < 200);
    cancel.reset();
    session.save(tiny.file()).unwrap();
    let mut loaded = tiny.session(|_| {});
    loaded.load(tiny.file()).unwrap();
    assert_eq!(loaded.tokens().len(), 200);
    assert_eq!(generate(&mut loaded, 6), generate(&mut tiny.prompted(200), 6));
}

#[test]
fn tokens_that_wait_for_their_upper_blocks_and_drafts_are_settled_before_saving() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    let model = files.load(Some(&files.write_exits(&Spec::new(&[2, 4], Kind::Perfect))));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("saved");
    let new = |exits| {
        let mut params = SessionParams::default();
        params.n_ctx = 512;
        params.n_threads = Some(1);
        params.exits = exits;
        params.agreement = 0.9;
        params.kv = Kv::CatchUp;
        params.policy = Policy::Always;
        Session::new(&model, &params).unwrap()
    };
    for exits in [Exits::Calibrated, Exits::Exact] {
        let mut session = new(exits);
        session.set_prompt(&text(9), &mut |_| {}).unwrap();
        for n in [1, 6, 13] {
            generate(&mut session, n);
            session.save(&file).unwrap();
            assert_eq!(session.gate().n_pending(), 0);
            // A plain session takes it up: what lies in the cache is the full model's.
            let mut loaded = new(Exits::Off);
            loaded.load(&file).unwrap();
            assert_eq!(loaded.tokens(), session.tokens());
            assert!(loaded.gate().position() + 1 >= session.tokens().len(), "{exits}: the cache came along");
            let mut fresh = new(Exits::Off);
            fresh.set_prompt(session.tokens(), &mut |_| {}).unwrap();
            assert_eq!(generate(&mut loaded, 12), generate(&mut fresh, 12), "{exits} after {n}");
        }
        // And the session that was saved goes on as if it had not been.
        let mut undisturbed = new(exits);
        undisturbed.set_prompt(&text(9), &mut |_| {}).unwrap();
        let before = session.tokens()[9..].to_vec();
        assert_eq!(generate(&mut undisturbed, 30), [before, generate(&mut session, 10)].concat());
    }
}

#[test]
fn a_session_that_has_just_forgotten_its_older_half_is_saved_with_its_keys_in_place() {
    let tiny = Tiny::new(Arch::Llama, 3);
    let new = || tiny.session(|params| (params.n_ctx, params.context_shift) = (256, true));
    let mut session = new();
    session.set_prompt(&text(256), &mut |_| {}).unwrap();
    // Room is made for the second token, and the session is cancelled before its decode.
    generate(&mut session, 1);
    session.cancel_handle().cancel();
    assert!(generate(&mut session, 5).is_empty());
    session.cancel_handle().reset();
    session.save(tiny.file()).unwrap();
    let mut loaded = new();
    loaded.load(tiny.file()).unwrap();
    assert!(loaded.tokens().len() < 200);
    let mut undisturbed = new();
    undisturbed.set_prompt(&text(256), &mut |_| {}).unwrap();
    let expected = generate(&mut undisturbed, 13).split_off(1);
    assert_eq!(generate(&mut session, 12), expected);
    // What is loaded lies in other cells, and attention sums over cells in their order: roundings part the two in the end.
    assert_eq!(generate(&mut loaded, 4), expected[..4]);
}

#[test]
fn models_with_a_recurrent_state_are_refused() {
    for arch in Arch::ALL.into_iter().filter(|arch| !plain().any(|plain| plain == *arch)) {
        let tiny = Tiny::new(arch, 3);
        let error = tiny.prompted(10).save(tiny.file()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{arch:?}: {error}");
        assert!(!tiny.file().exists());
    }
}

#[test]
fn another_model_another_cache_and_a_shorter_context_are_refused_by_name() {
    let tiny = Tiny::new(Arch::Llama, 3);
    tiny.prompted(300).save(tiny.file()).unwrap();
    let load = |session: &mut Session| refusal(session.load(tiny.file()).unwrap_err());
    // The same shapes, other weights.
    let other = Tiny::new(Arch::Llama, 4);
    assert!(matches!(load(&mut other.prompted(5)), StateError::OtherModel { .. }));
    let mut q8 = tiny.session(|params| params.type_k = CacheType::Q8_0);
    assert!(matches!(load(&mut q8), StateError::OtherCache { .. }));
    let mut short = tiny.session(|params| params.n_ctx = 256);
    assert!(matches!(load(&mut short), StateError::TooLong { n_tokens: 300, n_ctx: 256 }));
}

#[test]
fn a_refused_file_leaves_the_session_as_it_was() {
    let tiny = Tiny::new(Arch::Gemma3, 3);
    let mut other = tiny.prompted(30);
    other.save(tiny.file()).unwrap();
    let bytes = std::fs::read(tiny.file()).unwrap();
    let mut session = tiny.prompted(50);
    let expected = generate(&mut tiny.prompted(50), 6);
    // Each byte of the header and of the first cells, then samples; and every kind of cut.
    let damaged = (0..HEADER + 30 * 4 + 64).chain((HEADER..bytes.len()).step_by(997));
    for at in damaged {
        let mut changed = bytes.clone();
        changed[at] ^= 0x20;
        std::fs::write(tiny.file(), changed).unwrap();
        refusal(session.load(tiny.file()).unwrap_err());
    }
    for len in [0, 7, HEADER - 1, HEADER + DIGEST - 1, HEADER + DIGEST, bytes.len() - 1] {
        std::fs::write(tiny.file(), &bytes[..len]).unwrap();
        refusal(session.load(tiny.file()).unwrap_err());
    }
    std::fs::write(tiny.file(), [&bytes[..], &[0]].concat()).unwrap();
    refusal(session.load(tiny.file()).unwrap_err());
    assert!(matches!(session.load(tiny.folder.path().join("none")), Err(Error::Io { .. })));
    assert_eq!(session.tokens(), text(50));
    assert_eq!(session.set_prompt(&text(50), &mut |_| {}).unwrap().reused, 49, "the cache is still there");
    assert_eq!(generate(&mut session, 6), expected);
}

#[test]
fn a_crafted_file_with_the_right_hash_is_refused_before_llama_cpp_sees_it() {
    let tiny = Tiny::new(Arch::Llama, 3);
    let n = 20;
    tiny.prompted(n).save(tiny.file()).unwrap();
    let whole = std::fs::read(tiny.file()).unwrap();
    let state = HEADER + n * 4;
    // Behind llama.cpp's magic number and sequence: streams, cells, then 12 bytes a cell, then the kind of cache.
    let cell = |i: usize| state + 16 + i * 12;
    let kind = cell(n);
    let mut session = tiny.session(|_| {});
    let mut crafted = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        std::fs::write(tiny.file(), &whole).unwrap();
        tampered(&tiny.file(), |bytes| change(bytes));
        let error = refusal(session.load(tiny.file()).expect_err(name));
        assert!(matches!(error, StateError::Damaged { .. } | StateError::TooLong { .. }), "{name}: {error}");
    };
    let put = |bytes: &mut Vec<u8>, at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    crafted("magic", &|b| put(b, state, 1));
    crafted("sequence", &|b| put(b, state + 4, 1));
    crafted("streams", &|b| put(b, state + 8, 2));
    crafted("no cells", &|b| put(b, state + 12, 0));
    crafted("more cells", &|b| put(b, state + 12, n as u32 + 1));
    crafted("most cells", &|b| put(b, state + 12, u32::MAX));
    crafted("a negative position", &|b| put(b, cell(3), u32::MAX));
    crafted("a position twice", &|b| put(b, cell(3), 4));
    crafted("a position beyond the text", &|b| put(b, cell(n - 1), n as u32));
    crafted("no sequence", &|b| put(b, cell(3) + 4, 0));
    crafted("many sequences", &|b| put(b, cell(3) + 4, u32::MAX));
    crafted("another sequence", &|b| put(b, cell(3) + 8, 7));
    for (i, name) in ["transposed", "layers", "K rotation", "V rotation", "K type", "K row"].iter().enumerate() {
        crafted(name, &|b| put(b, kind + i * 4, 0x0101_0101));
    }
    crafted("bytes after the state", &|b| {
        b.extend_from_slice(&[0; 4]);
        let n_state = (b.len() - state) as u64;
        b[100..108].copy_from_slice(&n_state.to_le_bytes());
    });
    crafted("a huge state", &|b| b[100..108].copy_from_slice(&u64::MAX.to_le_bytes()));
    crafted("huge tokens", &|b| b[84..92].copy_from_slice(&u64::MAX.to_le_bytes()));
    crafted("more cached than tokens", &|b| b[92..100].copy_from_slice(&21u64.to_le_bytes()));
    crafted("a token outside of the vocabulary", &|b| put(b, HEADER, 100_000));
    crafted("a negative token", &|b| put(b, HEADER, u32::MAX));
    // Nothing of that was taken, and the untouched file still is.
    std::fs::write(tiny.file(), &whole).unwrap();
    session.load(tiny.file()).unwrap();
    assert_eq!(generate(&mut session, 6), generate(&mut tiny.prompted(n), 6));
}
