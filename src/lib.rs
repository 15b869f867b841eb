//! Early-exit inference for quantized GGUF models on llama.cpp.
//!
//! ```text
//! run:      GGUF file -> model + heads -> session (gate, exits, K/V policy) -> tokens -> CLI | C ABI | server
//! convert:  prompts -> hidden states -> trained heads -> calibrated thresholds -> GGUF file
//! ```
//!
//! Data flows one way, and a module imports only what stands before it in the flow. A [`Model`] is immutable and shared;
//! a [`Session`] is one mutable conversation on it:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use offramp::{GenerateParams, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams};
//!
//! # fn main() -> offramp::Result<()> {
//! let model = Model::load("model.gguf", &ModelParams::default())?;
//! let mut session = Session::new(&model, &SessionParams::default())?;
//! let prompt = model.vocab().tokenize_prompt("The capital of France is", true)?;
//! session.set_prompt(&prompt, &mut |_| {})?;
//! let mut sampler = Sampler::new(&model, &SamplerParams::default())?;
//! session.generate(&mut sampler, &GenerateParams::default(), &mut |event| {
//!     print!("{}", event.text);
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]
#![deny(unsafe_code)]

#[doc(hidden)]
pub mod beat;
#[allow(unsafe_code)]
#[doc(hidden)]
pub mod capi;
mod error;
pub mod gate;
pub mod gguf;
mod grammar;
#[allow(unsafe_code)]
mod heads;
mod heads_cache;
#[allow(unsafe_code)]
mod llama;
pub mod measure;
mod policy;
mod session;

/// This library and its llama.cpp, for records of how something was measured.
pub const ENGINE: &str =
    concat!("offramp ", env!("CARGO_PKG_VERSION"), ", llama-cpp-sys-2 ", env!("OFFRAMP_BUILD_LLAMA"));

pub use error::{Error, LlamaLog, Result};
pub use grammar::{Grammar, GrammarError};
pub use heads_cache::{HeadsCache, cache_folder};
pub use llama::batch::Logits;
pub use llama::threads::default_threads;
pub use llama::{Device, Kernels, Token, Vocab, cpu_features, devices, kernels_here, max_devices};
pub use session::{
    CacheType, CancelHandle, ChatTemplate, Drafts, ExitPoint, Exits, FlashAttn, Forced, GenerateParams, Generation,
    GpuLayers, Kv, Lookup, MemoryEstimate, Message, Model, ModelInfo, ModelParams, Policy, PromptProgress,
    PromptReport, ReplyPart, ReplyReader, Rescorer, Sampler, SamplerParams, Scored, Session, SessionParams, StateError,
    StopReason, TemplateError, TokenEvent, TokenLogprob, ToolFormat, Tools, memory_estimate, system_memory,
};

/// The grammar of the JSON texts that `schema` accepts.
///
/// # Errors
/// [`Error::Grammar`] that names the keyword that cannot be kept, or what is too large.
pub fn json_schema_grammar(schema: &serde_json::Value) -> Result<Grammar> {
    Ok(Grammar::json_schema(schema)?)
}
