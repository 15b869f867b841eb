//! What the whole-program tests share: where the default model lies, and a plain llama.cpp decode to hold ours against.
#![allow(dead_code)] // Each test program uses its part.

pub mod plain;
pub mod tiny;

use std::path::PathBuf;

use offramp::{Model, ModelParams, Token};

/// The default model, which `make model` puts into the cache folder.
///
/// # Panics
/// If it is not there: these tests hold on a real model or not at all.
pub fn default_model_path() -> PathBuf {
    let folder = std::env::var_os("OFFRAMP_CACHE").map(PathBuf::from).or_else(user_cache).expect("a home folder");
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is missing: run `make model`", path.display());
    path
}

fn user_cache() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME")?);
    if cfg!(target_os = "macos") {
        return Some(home.join("Library/Caches/offramp"));
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    Some(base.join("offramp"))
}

pub fn default_model() -> Model {
    Model::load(default_model_path(), &ModelParams::default()).expect("the default model loads")
}

/// A chat prompt of the default model.
pub fn chat_tokens(model: &Model, user: &str) -> Vec<Token> {
    let text = format!("<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n");
    model.vocab().tokenize(&text, false, true).expect("tokenizes")
}
