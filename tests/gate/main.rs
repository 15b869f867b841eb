//! The gate: tokens that stop after a layer, resume, and share one cache, on every architecture and on the default model.

mod architectures;
mod default_model;
mod sequences;

#[path = "../common/mod.rs"]
mod common;
