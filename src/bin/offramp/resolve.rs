//! Where a model's file is: given with -m, fetched from a hub with -hf, or the default model in the user's cache folder.
//! It fetches nothing but what -hf names; the default model is fetched by `make model`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The default model, as `scripts/fetch-model` places it.
const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// # Errors
/// When there is no default model yet, and when the hub does not have what -hf names.
pub fn model_file(file: Option<&Path>, hf_repo: Option<&str>) -> Result<PathBuf, Failure> {
    match (file, hf_repo) {
        (Some(file), _) => Ok(file.to_owned()),
        (None, Some(name)) => from_hub(name),
        (None, None) => default_model(),
    }
}

fn default_model() -> Result<PathBuf, Failure> {
    let folder = cache_folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    let path = folder.map(|folder| folder.join(DEFAULT_MODEL)).ok_or_else(|| {
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

/// The folder of `scripts/fetch-model`, computed the same way from the environment.
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(folder) = variable("OFFRAMP_CACHE") {
        return Some(folder.into());
    }
    if cfg!(target_os = "macos") {
        return Some(Path::new(&variable("HOME")?).join("Library/Caches/offramp"));
    }
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
    Some(base.or_else(|| Some(Path::new(&variable("HOME")?).join(".cache")))?.join("offramp"))
}

#[cfg(feature = "hf")]
fn from_hub(name: &str) -> Result<PathBuf, Failure> {
    crate::hub::fetch(name)
}

#[cfg(not(feature = "hf"))]
fn from_hub(_: &str) -> Result<PathBuf, Failure> {
    Err(Failure::usage("this offramp was built without the feature 'hf'; download the file and give it with -m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(variables: &[(&str, &str)]) -> Option<PathBuf> {
        cache_folder(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn our_own_variable_goes_first() {
        assert_eq!(folder(&[("OFFRAMP_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/a".into()));
        assert_eq!(folder(&[]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn by_default_it_is_under_the_home_folder() {
        assert_eq!(folder(&[("HOME", "/c")]), Some("/c/.cache/offramp".into()));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/b/offramp".into()));
    }
}
