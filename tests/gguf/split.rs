//! Split models: cut and joined byte for byte, opened as one file, and held against llama.cpp's own loader.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llama_cpp_sys_2 as sys;
use offramp::gguf::exits::{self, BaseCheck, ExitHeads, HeadType};
use offramp::gguf::{Error, File, OwnedValue, Split, SplitLimit, SplitOptions, WriteOptions, Writer, merge};
use offramp::{
    GenerateParams, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams, Token, memory_estimate,
};
use offramp_fixtures::{Arch, TinyModel};
use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::random;
use crate::round_trip::{NAME, tensor, value};

fn options(limit: SplitLimit, tensors_in_first: bool) -> SplitOptions {
    let mut options = SplitOptions::default();
    options.limit = limit;
    options.tensors_in_first = tensors_in_first;
    options
}

/// Writes the parts of a model into a folder and returns their paths.
fn split_into(folder: &Path, model: &File, options: &SplitOptions) -> Vec<PathBuf> {
    let split = Split::of(model, options).unwrap();
    split.write(&folder.join("model"), WriteOptions::default(), &mut |_, _| true).unwrap()
}

fn names(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

/// The logits after a few tokens of a model that llama.cpp's own loader loads by its first file; `None` where it refuses.
#[allow(unsafe_code)]
pub fn plain_logits(path: &Path) -> Option<Vec<f32>> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: plain calls of the C interface in their documented order; every pointer is checked before use, and the logits
    // are copied before the context is freed.
    unsafe {
        sys::llama_backend_init();
        let model = sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
        if model.is_null() {
            return None;
        }
        let mut params = sys::llama_context_default_params();
        (params.n_ctx, params.n_threads, params.n_threads_batch) = (64, 1, 1);
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null());
        let mut tokens = [7, 10, 8, 8, 11];
        let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
        assert_eq!(sys::llama_decode(context, batch), 0);
        let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model));
        let found = std::slice::from_raw_parts(sys::llama_get_logits_ith(context, -1), n_vocab as usize).to_vec();
        sys::llama_free(context);
        sys::llama_model_free(model);
        Some(found)
    }
}

/// Greedy tokens of this library.
fn own_tokens(path: &Path) -> Vec<Token> {
    let model = Model::load(path, &ModelParams::default()).unwrap();
    let mut params = SessionParams::default();
    (params.n_ctx, params.n_threads, params.n_threads_batch) = (64, Some(1), Some(1));
    let mut session = Session::new(&model, &params).unwrap();
    session.set_prompt(&[7, 10, 8, 8, 11].map(Token), &mut |_| {}).unwrap();
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let mut sampler = Sampler::new(&model, &greedy).unwrap();
    let mut limits = GenerateParams::default();
    (limits.max_tokens, limits.ignore_eos) = (16, true);
    session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_split_is_joined_to_the_same_file(
        keys in btree_map(NAME, value(), 0..8),
        tensors in btree_map(NAME, tensor(), 1..12),
        alignment in prop::option::of(3..9u32),
        limit in prop_oneof![(1..6u64).prop_map(SplitLimit::Tensors), (1..4000u64).prop_map(SplitLimit::Bytes)],
        again in 1..6u64,
        tensors_in_first in any::<bool>(),
    ) {
        let mut writer = Writer::new();
        if let Some(power) = alignment {
            writer.key("general.alignment", 1u32 << power).unwrap();
        }
        for (name, value) in keys.iter().filter(|(name, _)| *name != "general.alignment") {
            writer.key(name, value.clone()).unwrap();
        }
        for (name, (ty, dims, fill)) in &tensors {
            let mut dims = dims.clone();
            if let Some(row) = dims.first_mut() {
                *row *= ty.block_size();
            } else if ty.block_size() > 1 {
                dims = vec![ty.block_size()];
            }
            let bytes = ty.bytes(&dims).unwrap();
            let data = (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ fill).collect();
            writer.tensor(name, *ty, &dims, data).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole.gguf");
        writer.write(&path, WriteOptions::default(), &mut |_, _| true).unwrap();
        let whole = File::open(&path).unwrap();

        let options = options(limit, tensors_in_first);
        let paths = split_into(folder.path(), &whole, &options);
        for (no, part) in paths.iter().enumerate() {
            let part = File::open(part).unwrap();
            let n_tensors = part.tensors().len() as u64;
            prop_assert_eq!(n_tensors == 0, no == 0 && !tensors_in_first);
            let bytes: u64 = part.tensors().iter().map(|tensor| tensor.bytes().next_multiple_of(32)).sum();
            match limit {
                SplitLimit::Tensors(limit) => prop_assert!(n_tensors <= limit),
                SplitLimit::Bytes(limit) => prop_assert!(bytes <= limit || n_tensors == 1),
            }
        }

        let parts = File::open_model(&paths[0]).unwrap();
        prop_assert_eq!(parts.paths().len(), paths.len());
        prop_assert_eq!(exits::infos_sha256(&parts), exits::infos_sha256(&whole));
        let base = |file: &File| exits::base_sha256(file, &mut |_, _| true).unwrap();
        prop_assert_eq!(base(&parts), base(&whole));
        prop_assert_eq!(exits::sample_sha256(&parts).unwrap(), exits::sample_sha256(&whole).unwrap());
        for tensor in whole.tensors() {
            let other = parts.tensor(tensor.name()).unwrap();
            prop_assert_eq!((other.ty(), other.dims(), other.offset()), (tensor.ty(), tensor.dims(), tensor.offset()));
            prop_assert_eq!(parts.data(other), whole.data(tensor));
        }
        if paths.len() > 1 {
            prop_assert!(merge(&parts).unwrap().to_bytes().unwrap() == std::fs::read(&path).unwrap());
        }

        // Parts are split again as the whole would be.
        let folder = tempfile::tempdir().unwrap();
        let anew = self::options(SplitLimit::Tensors(again), true);
        let paths = split_into(folder.path(), &parts, &anew);
        for (path, part) in paths.iter().zip(Split::of(&whole, &anew).unwrap().parts()) {
            prop_assert!(std::fs::read(path).unwrap() == part.to_bytes().unwrap());
        }
    }
}

#[test]
fn parts_are_cut_where_llama_gguf_split_cuts() {
    let mut writer = Writer::new();
    for (index, n) in [3u64, 1000, 8, 2000, 8, 8].into_iter().enumerate() {
        writer.tensor_f32(&format!("t.{index}"), &[n], &vec![0.5; n as usize]).unwrap();
    }
    let file = random::open(&writer);
    let sizes = |options: &SplitOptions| -> Vec<usize> {
        Split::of(&file, options).unwrap().parts().iter().map(Writer::n_tensors).collect()
    };
    assert_eq!(sizes(&SplitOptions::default()), [6]);
    assert_eq!(sizes(&options(SplitLimit::Tensors(4), true)), [4, 2]);
    assert_eq!(sizes(&options(SplitLimit::Tensors(4), false)), [0, 4, 2]);
    // 32 + 4000, 32 + 8000, 32 + 32 bytes: a part ends before the tensor that would exceed the limit.
    assert_eq!(sizes(&options(SplitLimit::Bytes(4064), true)), [3, 1, 2]);
    assert_eq!(sizes(&options(SplitLimit::Bytes(4063), true)), [2, 1, 1, 2]);
    assert_eq!(sizes(&options(SplitLimit::Bytes(1), true)), [1; 6]);
    let paths = Split::of(&file, &options(SplitLimit::Tensors(4), true)).unwrap().paths(Path::new("to/model"));
    assert_eq!(paths, [Path::new("to/model-00001-of-00002.gguf"), Path::new("to/model-00002-of-00002.gguf")]);
    let first = random::open(&Split::of(&file, &options(SplitLimit::Tensors(4), true)).unwrap().parts()[0]);
    let keys: Vec<_> = first.keys().map(|(name, value)| (name.to_string(), value.to_owned())).collect();
    let expected = [("split.no", 0u16.into()), ("split.count", 2u16.into()), ("split.tensors.count", 6i32.into())];
    assert_eq!(keys, expected.map(|(name, value): (&str, OwnedValue)| (name.to_string(), value)));
}

#[test]
fn parts_give_the_logits_of_the_whole_in_llama_cpp_and_here() {
    for arch in Arch::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole.gguf");
        TinyModel::new(arch).seed(5).write_to(&path).unwrap();
        let whole = File::open(&path).unwrap();
        let (expected, own) = (plain_logits(&path).unwrap(), own_tokens(&path));
        for (tensors_in_first, limit) in
            [(true, SplitLimit::Tensors(5)), (false, SplitLimit::Tensors(9)), (true, SplitLimit::Bytes(40_000))]
        {
            let folder = tempfile::tempdir().unwrap();
            let paths = split_into(folder.path(), &whole, &options(limit, tensors_in_first));
            assert!(paths.len() > 1, "{arch:?}");
            assert!(plain_logits(&paths[0]).unwrap() == expected, "{arch:?} {limit:?}: llama.cpp");
            assert_eq!(own_tokens(&paths[0]), own, "{arch:?} {limit:?}");
            let estimate = |path: &Path| {
                let mut estimate = memory_estimate(path, &SessionParams::default()).unwrap();
                estimate.available = None;
                estimate
            };
            assert_eq!(estimate(&paths[0]), estimate(&path));
        }
    }
}

#[test]
fn parts_are_loaded_by_whatever_path_leads_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let whole = random::open(&random::model(1));
    let paths = split_into(folder.path(), &whole, &options(SplitLimit::Tensors(10), true));
    let model = Model::load(&paths[0], &ModelParams::default()).unwrap();
    assert_eq!((model.info().n_parts, model.info().path.as_path()), (3, paths[0].as_path()));
    #[cfg(unix)]
    {
        // As in the cache folder of a hub: links by the right names to files of other names.
        let blobs = folder.path().join("blobs");
        let links = folder.path().join("links");
        std::fs::create_dir(&blobs).unwrap();
        std::fs::create_dir(&links).unwrap();
        for (index, path) in paths.iter().enumerate() {
            std::fs::rename(path, blobs.join(index.to_string())).unwrap();
            std::os::unix::fs::symlink(blobs.join(index.to_string()), links.join(path.file_name().unwrap())).unwrap();
        }
        let first = links.join(paths[0].file_name().unwrap());
        assert_eq!(Model::load(&first, &ModelParams::default()).unwrap().info().n_parts, 3);
    }
}

#[test]
fn heads_of_the_whole_fit_the_parts_and_merge_with_them_as_with_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let whole = random::open(&random::model(1));
    let paths = split_into(folder.path(), &whole, &options(SplitLimit::Tensors(10), true));
    let parts = File::open_model(&paths[0]).unwrap();
    let heads = random::open(&random::heads(&whole, &[0, 1], &[HeadType::Affine, HeadType::LowRank], 2));
    let view = ExitHeads::open(&heads).unwrap();
    view.check_base(&parts, BaseCheck::Data, &mut |_, _| true).unwrap();

    let attach = |model: &File| exits::attach(model, &heads, &mut |_, _| true).unwrap();
    let merged = folder.path().join("merged.gguf");
    attach(&parts).write(&merged, WriteOptions::default(), &mut |_, _| true).unwrap();
    assert!(std::fs::read(&merged).unwrap() == attach(&whole).to_bytes().unwrap());
    let stripped = folder.path().join("stripped.gguf");
    let merged = File::open(&merged).unwrap();
    exits::strip(&merged, &stripped, WriteOptions::default(), &mut |_, _| true).unwrap();
    assert!(std::fs::read(&stripped).unwrap() == random::model(1).to_bytes().unwrap());

    // The heads beside the parts are taken as beside the whole.
    let sidecar = folder.path().join("heads.gguf");
    random::heads(&whole, &[0, 1], &[HeadType::Affine, HeadType::LowRank], 2)
        .write(&sidecar, WriteOptions::default(), &mut |_, _| true)
        .unwrap();
    let mut params = ModelParams::default();
    params.heads = Some(sidecar);
    assert_eq!(Model::load(&paths[0], &params).unwrap().exit_layers(), [0, 1]);

    // A file with heads around its model is not cut, and parts of one (which other programs make) are told apart.
    let cut = Split::of(&merged, &SplitOptions::default()).err().unwrap().to_string();
    assert!(cut.contains("strip-heads"), "{cut}");
}

#[test]
fn parts_appear_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    random::model(1).write(&whole, WriteOptions::default(), &mut |_, _| true).unwrap();
    let model = File::open(&whole).unwrap();
    let split = Split::of(&model, &options(SplitLimit::Tensors(10), true)).unwrap();
    let prefix = folder.path().join("model");
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    for stop_at in 0..6 {
        let mut calls = 0;
        let stopped = split.write(&prefix, WriteOptions::default(), &mut |_, _| {
            calls += 1;
            calls <= stop_at * 3
        });
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stop_at}");
        assert_eq!(files(), 1);
    }
    // A part that is there already is found before anything is written.
    let last = &split.paths(&prefix)[2];
    std::fs::write(last, "old").unwrap();
    assert!(matches!(split.write(&prefix, WriteOptions::default(), &mut |_, _| true), Err(Error::OutputExists { .. })));
    assert_eq!((files(), std::fs::read_to_string(last).unwrap().as_str()), (2, "old"));
    let written = split.write(&prefix, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
    assert_eq!(
        names(&written),
        ["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"]
    );

    // No part that is read is written over, also where others hold its tensors.
    let parts = File::open_model(&written[0]).unwrap();
    let before = std::fs::read(&written[1]).unwrap();
    let again = Split::of(&parts, &options(SplitLimit::Tensors(12), true)).unwrap();
    let refused = again.write(&prefix, WriteOptions::replacing(true), &mut |_, _| true);
    assert!(matches!(refused, Err(Error::OutputIsInput { .. })));
    for path in &written {
        let refused = merge(&parts).unwrap().write(path, WriteOptions::replacing(true), &mut |_, _| true);
        assert!(matches!(refused, Err(Error::OutputIsInput { .. })));
    }
    assert!(std::fs::read(&written[1]).unwrap() == before);
    assert!(matches!(merge(&model), Err(Error::WrongForm { .. })));
}
