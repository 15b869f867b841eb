//! The only caller of llama.cpp: each C object has one owner here that frees it, and a safe face.
//!
//! llama-cpp-2 wraps much of llama.cpp, but its model type can be opened by path alone and its context hides the eval
//! callback, so that the pieces which the layer gate needs are built on `llama-cpp-sys-2` instead. Nothing in this
//! module knows about exits. It refuses what llama.cpp would answer with an abort: tokens outside of the vocabulary,
//! batches wider than the context was made for, reads past a tensor's end.

pub(crate) mod backend;
pub(crate) mod batch;
pub(crate) mod context;
pub(crate) mod eval;
pub(crate) mod kv;
pub(crate) mod log;
pub(crate) mod model;
pub(crate) mod plug;
pub(crate) mod recipe;
pub(crate) mod sampler;
pub(crate) mod threads;
pub(crate) mod vocab;

pub use backend::{Device, cpu_features, devices, max_devices};
pub use plug::{Kernels, kernels_here};
pub use vocab::{Token, Vocab};
