//! From a model to a model with calibrated exits, step by step: the parts behind the verb `add-heads`.
//!
//! ```text
//! prompts -> hidden states and labels -> screen -> thresholds with a guarantee -> GGUF file
//! ```
//!
//! The program `gguf-tools` puts a command line around these; they print nothing themselves.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod add_heads;
pub mod calibrate;
pub mod collect;
pub mod eval;
pub mod report;
pub mod screen;
pub mod train;
