//! The reader and the writer on real models, where `OFFRAMP_MODELS` names a folder that holds some; the
//! tests pass with a note where it is not set.

use std::path::PathBuf;

use offramp::gguf::{File, WriteOptions, Writer};

fn models() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("OFFRAMP_MODELS") else {
        eprintln!("skipped: OFFRAMP_MODELS names no folder of GGUF models");
        return Vec::new();
    };
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    models.sort();
    models
}

#[test]
fn a_model_read_and_written_again_is_the_same_file() {
    for path in models() {
        let file = File::open(&path).unwrap();
        let mut writer = Writer::new();
        writer.copy_keys(&file, |_| true).unwrap();
        for tensor in file.tensors() {
            writer.copy_tensor(&file, tensor).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.gguf");
        writer.write(&copy, WriteOptions::default(), &mut |_, _| true).unwrap();
        let (a, b) = (std::fs::read(&path).unwrap(), std::fs::read(&copy).unwrap());
        assert!(a == b, "{} differs from its copy", path.display());
    }
}
