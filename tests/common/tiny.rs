//! A tiny random model, loaded from a file of its own.

use offramp::{Model, ModelParams};
use offramp_fixtures::{Arch, TinyModel, WeightType};

/// Holds a model file for as long as it is used.
pub struct Tiny {
    pub model: Model,
    _folder: tempfile::TempDir,
}

pub fn tiny(arch: Arch, weights: WeightType) -> Tiny {
    load(&TinyModel::new(arch).seed(7).weights(weights))
}

pub fn load(tiny: &TinyModel) -> Tiny {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny.write_to(&path).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap_or_else(|error| panic!("{tiny:?}: {error}"));
    Tiny { model, _folder: folder }
}
