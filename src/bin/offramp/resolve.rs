//! Where a model's file is: given with -m, fetched from a hub with -hf, or the default model in the user's cache folder.
//! It fetches nothing but what -hf and --heads-repo name; the default model is fetched by `make model`.

use std::path::{Path, PathBuf};

use offramp::{HeadsCache, gguf};

use crate::failure::Failure;

/// The default model, as `scripts/fetch-model` places it.
const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Of a split model this is the first file. `with_heads` fetches the exit heads of the repository, too, where it has some.
///
/// # Errors
/// When there is no default model yet, and when the hub does not have what -hf names.
pub fn model_file(file: Option<&Path>, hf_repo: Option<&str>, with_heads: bool) -> Result<PathBuf, Failure> {
    match (file, hf_repo) {
        (Some(file), _) => Ok(file.to_owned()),
        (None, Some(name)) => from_hub(name, with_heads),
        (None, None) => default_model(),
    }
}

fn default_model() -> Result<PathBuf, Failure> {
    // The folder of `scripts/fetch-model`, which computes it the same way.
    let path = offramp::cache_folder().map(|folder| folder.join(DEFAULT_MODEL)).ok_or_else(|| {
        Failure::failed("there is no home folder to look for the default model in; give a model with -m FILE")
    })?;
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::failed(format!(
        "there is no default model at {}; fetch it with 'make model', or give one with -m FILE or -hf USER/MODEL",
        path.display()
    )))
}

/// The exit heads of the default model, which `scripts/fetch-model` places beside it; `None` where they are not there.
pub fn default_heads() -> Option<PathBuf> {
    let heads = default_model().ok()?.with_extension("exits.gguf");
    heads.is_file().then_some(heads)
}

#[cfg(feature = "hf")]
fn from_hub(name: &str, with_heads: bool) -> Result<PathBuf, Failure> {
    crate::hub::fetch(name, with_heads)
}

/// The exit heads that a repository has for a model.
///
/// # Errors
/// When the hub does not answer, and when the repository has none that were made for the model.
#[cfg(feature = "hf")]
pub fn heads_from_hub(repo: &str, model: &gguf::File, cache: &HeadsCache) -> Result<PathBuf, Failure> {
    crate::hub::fetch_heads(repo, model, cache)
}

#[cfg(not(feature = "hf"))]
pub fn heads_from_hub(_: &str, _: &gguf::File, _: &HeadsCache) -> Result<PathBuf, Failure> {
    Err(Failure::usage(
        "this offramp was built without the feature 'hf'; download the heads and give them with --heads",
    ))
}

#[cfg(not(feature = "hf"))]
fn from_hub(_: &str, _: bool) -> Result<PathBuf, Failure> {
    Err(Failure::usage("this offramp was built without the feature 'hf'; download the file and give it with -m"))
}
