//! What goes into a session and comes out of it: parameters, events, results, and the handle that stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::logprobs::TokenLogprob;
use crate::llama::Token;

/// Stops what a session is doing, from any thread. The decode in progress is given up within a graph node or so.
#[derive(Debug, Clone)]
pub struct CancelHandle(pub(super) Arc<AtomicBool>);

impl CancelHandle {
    /// Stops the call in progress, and every later one until [`CancelHandle::reset`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True since [`CancelHandle::cancel`], until [`CancelHandle::reset`].
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets the session go on.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// How far a prompt is, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptProgress {
    /// Decoded or reused so far.
    pub done: usize,
    /// All of the prompt.
    pub total: usize,
}

/// What became of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptReport {
    /// Tokens whose K/V were there already.
    pub reused: usize,
    /// Tokens that were decoded.
    pub decoded: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// True if it was cancelled; what was decoded is kept and reused by the next call.
    pub cancelled: bool,
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GenerateParams {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// No end token, stop token or stop text ends it before this many tokens, unless a grammar allows nothing else.
    pub min_tokens: usize,
    /// Texts that end it; they are not part of the result.
    pub stop: Vec<String>,
    /// Tokens that end it, beside the model's own; they are not part of the result.
    pub stop_token_ids: Vec<Token>,
    /// Goes on after the model's own end token.
    pub ignore_eos: bool,
    /// Reports each token's log-probability, and those of this many of the best beside it.
    pub n_logprobs: Option<usize>,
    /// Control tokens that are part of the text, such as those that open a tool call; others have no text.
    pub shown: Vec<Token>,
}

impl Default for GenerateParams {
    fn default() -> Self {
        Self {
            max_tokens: usize::MAX,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            n_logprobs: None,
            shown: Vec::new(),
        }
    }
}

/// Where a token left the model early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitPoint {
    /// After this block, by its exit head.
    Layer(u32),
    /// At the final norm, by the screened output matrix.
    Screen,
}

impl serde::Serialize for ExitPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Layer(il) => serializer.serialize_u32(*il),
            Self::Screen => serializer.serialize_str("screen"),
        }
    }
}

/// One generated token, as it comes.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct TokenEvent<'a> {
    /// The token.
    pub token: Token,
    /// What can be shown now: whole code points, possibly of earlier tokens too, possibly none. What is still held back
    /// when the generation ends (the beginning of a stop text that did not come) is in [`Generation::text`] alone.
    pub text: &'a str,
    /// Where it left the model; `None` if it ran through all of it.
    pub exit: Option<ExitPoint>,
    /// With [`GenerateParams::n_logprobs`]: the token's own log-probability, then the best ones, falling. They are the
    /// model's, before the sampler; of a token that exited they are over the candidates alone.
    pub logprobs: &'a [TokenLogprob],
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The model's own end token.
    Eos,
    /// The most tokens were generated, or the context is full ([`Generation::context_full`]).
    Length,
    /// A stop text, a stop token, or the callback.
    Stop,
    /// [`CancelHandle::cancel`].
    Cancelled,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// The tokens, without an end token.
    pub tokens: Vec<Token>,
    /// Their text, without a stop text.
    pub text: String,
    /// Where each token left the model.
    pub exits: Vec<Option<ExitPoint>>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// True if there was no room for a further token.
    pub context_full: bool,
    /// How long it took, from the logits of the prompt to the last token.
    pub elapsed: Duration,
    /// How many tokens were drafted, and how many of them the full model agreed with.
    pub n_drafted: usize,
    /// See [`Generation::n_drafted`].
    pub n_right: usize,
    /// Where the end token left the model, if one ended the text.
    pub end_exit: Option<ExitPoint>,
}
