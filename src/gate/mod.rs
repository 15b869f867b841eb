//! The layer gate: which layers one decode runs.
//!
//! Through llama.cpp's public eval callback, with no patch, a [`Gate`] shows the hidden states of a decode at chosen
//! [`Tap`]s, stops it there when told to, and later runs the layers above for all of the tokens that stopped, in one
//! batch, from their saved hidden states. What this rests on is listed in `vendor/README.md` and held by tests; what a
//! model really supports is found out by a self-test ([`GateSupport`]), never assumed from its architecture.
//!
//! It refuses to stop where a model cannot take the skipped layers up again, to run past layers whose K/V other tokens
//! still owe, and to resume on cache cells that moved.

mod engine;
mod hook;
mod kv;
mod predict;
mod selftest;
mod sequences;
mod shift;

pub use engine::{Gate, Outcome, WantedRows};
pub(crate) use kv::LayerKv;
pub use kv::{KvLayout, KvShape};
pub(crate) use predict::KvSource;
pub(crate) use selftest::Findings;
pub use selftest::GateSupport;
pub use sequences::Sequences;

/// A place in the graph where hidden states can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tap {
    /// After block `il`, counted from 0: llama.cpp's `l_out-<il>`, which is the input of block `il + 1`.
    Layer(u32),
    /// After the final norm: llama.cpp's `result_norm`, the input of the output matrix.
    ResultNorm,
}

impl std::fmt::Display for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer(il) => write!(f, "layer {il}"),
            Self::ResultNorm => f.write_str("the final norm"),
        }
    }
}

/// Something that a decode computes and [`Gate::decode_watched`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seen {
    /// The hidden states at a tap, as an [`Observer`] sees them.
    Hidden(Tap),
    /// K of a layer as it is before its rotation and after any norm, `[n_embd_k_gqa, n_tokens]`.
    K(u32),
    /// V of a layer as it is stored, `[n_embd_v_gqa, n_tokens]`.
    V(u32),
}

/// Is shown what a decode computes, in the order of the graph: K and V of a layer come before its hidden states.
/// Everything in ggml order, one token's values after another's.
pub type Watcher<'a> = dyn FnMut(Seen, &[f32]) + 'a;

/// Sees the hidden states at a tap, `[n_embd, n_tokens]` in ggml order (one token's `n_embd` values after another's; at
/// the last block and at [`Tap::ResultNorm`] only the tokens that get logits), and says whether to stop there.
pub type Observer<'a> = dyn FnMut(Tap, &[f32]) -> std::ops::ControlFlow<()> + 'a;
