//! The parameters of a session, with the names and defaults of llama.cpp.

use std::fmt;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

use super::exits::{Drafts, Exits, Kv, Lookup, Policy};
use crate::error::{Error, Result};
use crate::llama::context::ContextParams;
use crate::llama::threads::{MAX_THREADS, default_threads};

/// The position from which on the cache is read as 512 cells, and fused attention splits a single token's K/V between the
/// threads (`use_split_kv_path` in ggml's `ops.cpp`), which no batch does.
pub(super) const SPLIT_FROM: usize = 256;

/// When attention uses the fused kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlashAttn {
    /// Where the device supports it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl FromStr for FlashAttn {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" | "-1" => Ok(Self::Auto),
            "on" | "1" => Ok(Self::On),
            "off" | "0" => Ok(Self::Off),
            _ => Err(Error::InvalidValue {
                name: "flash attention",
                found: text.to_owned(),
                expected: "auto, on or off",
            }),
        }
    }
}

/// The number format of a K or V cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // The names are ggml's own.
pub enum CacheType {
    F32,
    #[default]
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Iq4Nl,
    Q5_0,
    Q5_1,
}

/// Name, ggml type, block length in values and block size in bytes of each cache type.
const CACHE_TYPES: [(CacheType, &str, sys::ggml_type, u64, u64); 9] = [
    (CacheType::F32, "f32", sys::GGML_TYPE_F32, 1, 4),
    (CacheType::F16, "f16", sys::GGML_TYPE_F16, 1, 2),
    (CacheType::Bf16, "bf16", sys::GGML_TYPE_BF16, 1, 2),
    (CacheType::Q8_0, "q8_0", sys::GGML_TYPE_Q8_0, 32, 34),
    (CacheType::Q4_0, "q4_0", sys::GGML_TYPE_Q4_0, 32, 18),
    (CacheType::Q4_1, "q4_1", sys::GGML_TYPE_Q4_1, 32, 20),
    (CacheType::Iq4Nl, "iq4_nl", sys::GGML_TYPE_IQ4_NL, 32, 18),
    (CacheType::Q5_0, "q5_0", sys::GGML_TYPE_Q5_0, 32, 22),
    (CacheType::Q5_1, "q5_1", sys::GGML_TYPE_Q5_1, 32, 24),
];

impl CacheType {
    fn row(self) -> &'static (CacheType, &'static str, sys::ggml_type, u64, u64) {
        CACHE_TYPES.iter().find(|row| row.0 == self).unwrap_or(&CACHE_TYPES[1])
    }

    /// Bytes that `n` values take, rounded up to whole blocks.
    pub(crate) fn bytes(self, n: u64) -> u64 {
        let (_, _, _, block, bytes) = self.row();
        n.div_ceil(*block).saturating_mul(*bytes)
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

impl FromStr for CacheType {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        CACHE_TYPES.iter().find(|row| row.1 == text).map(|row| row.0).ok_or_else(|| Error::InvalidValue {
            name: "cache type",
            found: text.to_owned(),
            expected: "one of f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1",
        })
    }
}

/// What a session is made with.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionParams {
    /// Tokens that the context holds; 0 takes what the model was trained with. llama.cpp rounds up to 256.
    pub n_ctx: u32,
    /// Tokens that one decode takes at most.
    pub n_batch: u32,
    /// Tokens that one graph takes at most.
    pub n_ubatch: u32,
    /// Threads for single tokens; `None` takes the physical cores.
    pub n_threads: Option<u32>,
    /// Threads for prompts; `None` takes as many as for single tokens.
    pub n_threads_batch: Option<u32>,
    /// Fused attention.
    pub flash_attn: FlashAttn,
    /// Format of the K cache.
    pub type_k: CacheType,
    /// Format of the V cache.
    pub type_v: CacheType,
    /// Installs the layer gate, for programs that decode by hand. Without it, and without exits, a session decodes exactly
    /// as plain llama.cpp does.
    pub gate: bool,
    /// Whether tokens may leave the model early; without heads, [`Exits::Calibrated`] is off and [`Exits::Exact`] drafts
    /// from the text alone.
    pub exits: Exits,
    /// The wanted share of tokens that equal the full model's, in (0, 1]: a level that the heads were calibrated for, or
    /// the next higher one is taken.
    pub agreement: f32,
    /// Where the K/V of the blocks that a token skipped come from.
    pub kv: Kv,
    /// The most tokens of a batch that catches up or verifies: those that wait for it and the one that ends their waiting.
    pub max_pending: u32,
    /// No token leaves after a block below this one.
    pub min_exit_layer: u32,
    /// Which of the checks are made.
    pub policy: Policy,
    /// Whether tokens are drafted, which the full model verifies.
    pub drafts: Drafts,
    /// Whether drafts come from the text itself, too.
    pub lookup: Lookup,
    /// Where the context is full, forgets the older half of the text and goes on, instead of ending the generation. What is
    /// left keeps K/V that were computed from what is forgotten.
    pub context_shift: bool,
}

impl Default for SessionParams {
    fn default() -> Self {
        Self {
            n_ctx: 0,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads: None,
            n_threads_batch: None,
            flash_attn: FlashAttn::Auto,
            type_k: CacheType::F16,
            type_v: CacheType::F16,
            gate: false,
            exits: Exits::Calibrated,
            agreement: 0.99,
            kv: Kv::Auto,
            max_pending: 8,
            min_exit_layer: 0,
            policy: Policy::Auto,
            drafts: Drafts::Auto,
            lookup: Lookup::Auto,
            context_shift: false,
        }
    }
}

impl SessionParams {
    /// What is to be said of more threads than there are cores for this process; `None` where there are enough.
    ///
    /// Threads wait for each other after each operation, so that one without a core of its own holds up all others.
    pub fn threads_warning(&self) -> Option<String> {
        self.threads_warning_on(default_threads())
    }

    fn threads_warning_on(&self, cores: usize) -> Option<String> {
        let above = |n: Option<u32>| n.filter(|n| *n as usize > cores);
        let (what, n) = match (above(self.n_threads), above(self.n_threads_batch)) {
            (Some(n), _) => ("threads", n),
            (None, Some(n)) => ("batch threads", n),
            (None, None) => return None,
        };
        let there = if cores == 1 { "is 1 core".to_owned() } else { format!("are {cores} cores") };
        Some(format!(
            "{n} {what} are asked for, but there {there} for them: they wait for each other, which can be a hundred \
             times slower; use {cores}"
        ))
    }

    pub(crate) fn context(&self) -> Result<ContextParams> {
        let at_least_1 = |name, value: u32| match value {
            0 => Err(Error::InvalidValue { name, found: "0".to_owned(), expected: "at least 1" }),
            _ => Ok(value),
        };
        let n_threads = self.n_threads.map(|n| at_least_1("threads", n)).transpose()?;
        let n_threads_batch = self.n_threads_batch.map(|n| at_least_1("batch threads", n)).transpose()?;
        let n_threads = n_threads.map_or_else(default_threads, |n| (n as usize).min(MAX_THREADS));
        if let Some(warning) = self.threads_warning() {
            tracing::warn!("{warning}");
        }
        let n_batch = at_least_1("n_batch", self.n_batch)?;
        if self.n_ctx > i32::MAX as u32 {
            return Err(Error::InvalidValue {
                name: "n_ctx",
                found: self.n_ctx.to_string(),
                expected: "below 2147483648",
            });
        }
        Ok(ContextParams {
            n_ctx: self.n_ctx,
            n_sequences: 1,
            n_batch,
            n_ubatch: at_least_1("n_ubatch", self.n_ubatch)?.min(n_batch),
            n_threads,
            n_threads_batch: n_threads_batch.map_or(n_threads, |n| (n as usize).min(MAX_THREADS)),
            flash_attn: match self.flash_attn {
                FlashAttn::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
                FlashAttn::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
                FlashAttn::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            },
            type_k: self.type_k.row().2,
            type_v: self.type_v.row().2,
            eval_callback: self.gate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_types_are_read_as_they_are_printed() {
        for (kind, name, ..) in CACHE_TYPES {
            assert_eq!(name.parse::<CacheType>().unwrap(), kind);
            assert_eq!(kind.to_string(), name);
        }
        assert!("q2_k".parse::<CacheType>().is_err());
    }

    #[test]
    fn more_threads_than_cores_are_told_with_what_to_use() {
        let told = |n_threads, n_threads_batch, cores| {
            SessionParams { n_threads, n_threads_batch, ..SessionParams::default() }.threads_warning_on(cores)
        };
        for (n, batch) in [(None, None), (Some(2), None), (Some(1), Some(2)), (None, Some(2))] {
            assert_eq!(told(n, batch, 2), None);
        }
        let warning = told(Some(3), None, 2).unwrap();
        assert!(warning.starts_with("3 threads") && warning.ends_with("use 2"), "{warning}");
        let warning = told(Some(1), Some(4), 1).unwrap();
        assert!(warning.starts_with("4 batch threads") && warning.contains("is 1 core"), "{warning}");
    }

    #[test]
    fn no_threads_and_no_batch_are_refused() {
        let params = SessionParams { n_threads: Some(0), ..SessionParams::default() };
        assert!(params.context().is_err());
        let params = SessionParams { n_batch: 0, ..SessionParams::default() };
        assert!(params.context().is_err());
    }
}
