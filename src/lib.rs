//! Early-exit inference for quantized GGUF models on llama.cpp.
//!
//! ```text
//! run:      GGUF file -> model + heads -> session (gate, exits, K/V policy) -> tokens -> CLI | C ABI | server
//! convert:  prompts -> hidden states -> trained heads -> calibrated thresholds -> GGUF file
//! ```

pub mod gguf;
