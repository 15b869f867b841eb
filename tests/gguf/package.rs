//! Our files under the eyes of the Python package `gguf`: what we write it reads, tensor by tensor, and what
//! we decode it decodes alike. Needs `python3` and, the first time, the package index.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp::gguf::exits::{self, HeadType};
use offramp::gguf::{File, TensorType, WriteOptions, Writer, quants};

/// The interpreter of an environment with the package, or `None` where the machine has no Python. The version is pinned:
/// tests compare with its reader, its dumps and its decoders.
fn python() -> Option<PathBuf> {
    static PYTHON: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    PYTHON.get_or_init(|| crate::python::with("gguf==0.19.0")).clone()
}

/// Runs one of the scripts beside this test; returns what it printed.
fn run(python: &Path, script: &str, arguments: &[&Path]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf").join(script);
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Merges random heads into a model and has the package read the result.
fn merged_file_is_read(python: &Path, model: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = File::open(model).unwrap();
    let last = exits::Base::of(&base, &mut |_, _| true).unwrap().n_layer - 2;
    let sidecar = crate::random::heads(&base, &[0, last], &[HeadType::LowRank, HeadType::AffineMlp], 7);
    sidecar.write(path("heads.gguf"), WriteOptions::default(), &mut |_, _| true).unwrap();
    let sidecar = File::open(path("heads.gguf")).unwrap();
    let merged = exits::attach(&base, &sidecar, &mut |_, _| true).unwrap();
    merged.write(path("merged.gguf"), WriteOptions::default(), &mut |_, _| true).unwrap();

    let merged = File::open(path("merged.gguf")).unwrap();
    let entries: Vec<String> = merged
        .tensors()
        .iter()
        .map(|tensor| {
            let (ty, dims, start) = (tensor.ty(), tensor.dims(), merged.data_range(tensor).start);
            format!("{:?}: [\"{ty}\", {dims:?}, {start}]", tensor.name())
        })
        .collect();
    std::fs::write(path("expected.json"), format!("{{{}}}", entries.join(", "))).unwrap();
    let printed = run(python, "compare.py", &[model, &path("merged.gguf"), &path("expected.json")]);
    let n_heads = sidecar.tensors().len();
    assert_eq!(printed.trim(), format!("{} base tensors and {n_heads} head tensors", base.tensors().len()));

    let sha256 = exits::strip(&merged, &path("stripped.gguf"), WriteOptions::default(), &mut |_, _| true).unwrap();
    assert_eq!(sha256, exits::file_sha256(&base, &mut |_, _| true).unwrap());
    println!("{}: {}, SHA-256 {sha256} restored", model.display(), printed.trim());
}

#[test]
fn the_package_reads_merged_files() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    crate::random::model(1).write(&model, WriteOptions::default(), &mut |_, _| true).unwrap();
    merged_file_is_read(&python, &model);
}

/// The same on real models, where `OFFRAMP_MODELS` names a folder that holds some.
#[test]
fn the_package_reads_merged_files_of_real_models() {
    let Some(folder) = std::env::var_os("OFFRAMP_MODELS") else {
        eprintln!("skipped: OFFRAMP_MODELS names no folder of GGUF models");
        return;
    };
    let Some(python) = python() else { return };
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    for model in models.iter().filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        merged_file_is_read(&python, model);
    }
}

#[test]
fn the_package_decodes_every_type_alike() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut writer = Writer::new();
    let mut random = crate::random::Random::new(3);
    // The package is older than Q2_0, and refuses a whole file for it.
    for &ty in TensorType::ALL.iter().filter(|&&ty| ty != TensorType::Q2_0) {
        let dims = [8 * ty.block_size(), 16];
        let n_bytes = ty.bytes(&dims).unwrap();
        let bytes = (0..n_bytes).map(|_| random.below(256) as u8).collect();
        writer.tensor(ty.name(), ty, &dims, bytes).unwrap();
    }
    writer.write(path("types.gguf"), WriteOptions::default(), &mut |_, _| true).unwrap();
    let file = File::open(path("types.gguf")).unwrap();

    let printed = run(&python, "dequantize.py", &[&path("types.gguf"), &path("values.bin")]);
    let values = std::fs::read(path("values.bin")).unwrap();
    let mut expected = values.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
    let mut compared = 0;
    for name in printed.lines() {
        let tensor = file.tensor(name).unwrap();
        for (index, found) in quants::dequantize(tensor.ty(), file.data(tensor)).unwrap().into_iter().enumerate() {
            let expected = expected.next().unwrap();
            // The package sums and scales in another order for some types, so the last digit may differ.
            let same = found == expected
                || (found.is_nan() && expected.is_nan())
                || (found - expected).abs() <= 1e-6 * expected.abs().max(1e-30);
            assert!(same, "{name}, value {index}: expected {expected:e}, found {found:e}");
        }
        compared += 1;
    }
    assert!(expected.next().is_none());
    println!("compared: {printed}");
    assert!(compared >= 24, "only {compared} types: {printed}");
}
