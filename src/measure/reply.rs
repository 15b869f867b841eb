//! One prompt, decoded by a session from an empty cache: what came out, from which depth, and how long it took.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::llama::Token;
use crate::session::{ExitPoint, GenerateParams, Sampler, SamplerParams, Session, StopReason};

/// One prompt and its reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Tokens of the prompt that were decoded.
    pub n_prompt: usize,
    /// How long the prompt took.
    pub prompt_time: Duration,
    /// What was emitted, with the end token if the model gave one.
    pub tokens: Vec<Token>,
    /// Where each of these left the model.
    pub exits: Vec<Option<ExitPoint>>,
    /// Their text, without the end token's.
    pub text: String,
    /// How long the tokens took, from the logits of the prompt on.
    pub decode_time: Duration,
    /// Tokens that were drafted.
    pub n_drafted: usize,
    /// Drafts that were right.
    pub n_right: usize,
    /// Whether the model itself ended it.
    pub is_ended: bool,
}

impl Reply {
    /// Lets `session` forget its text, and reply to `prompt` with at most `n` tokens.
    ///
    /// # Errors
    /// As [`Session::set_prompt`] and [`Session::generate`]; [`Error::Cancelled`] where the session's handle stopped it.
    pub fn decode(session: &mut Session, prompt: &[Token], sampler: &SamplerParams, n: usize) -> Result<Self> {
        session.clear();
        Self::decode_after(session, prompt, sampler, n)
    }

    /// The same with what `prompt` and the session's text have in common still in the cache: only the rest is decoded.
    ///
    /// # Errors
    /// As [`Reply::decode`].
    pub fn decode_after(session: &mut Session, prompt: &[Token], sampler: &SamplerParams, n: usize) -> Result<Self> {
        let mut sampler = Sampler::new(session.model(), sampler)?;
        let limits = GenerateParams { max_tokens: n, ..GenerateParams::default() };
        let report = session.set_prompt(prompt, &mut |_| {})?;
        let made = session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(()))?;
        if report.cancelled || made.stop_reason == StopReason::Cancelled {
            return Err(Error::Cancelled);
        }
        // The session's text has the end token, which the generation leaves out.
        let tokens = session.tokens().get(prompt.len()..).unwrap_or_default().to_vec();
        let mut exits = made.exits;
        if tokens.len() > exits.len() {
            exits.push(made.end_exit);
        }
        Ok(Self {
            n_prompt: report.decoded,
            prompt_time: report.elapsed,
            tokens,
            exits,
            text: made.text,
            decode_time: made.elapsed,
            n_drafted: made.n_drafted,
            n_right: made.n_right,
            is_ended: made.stop_reason == StopReason::Eos,
        })
    }

    /// Tokens that were decoded one at a time: the first comes with the prompt.
    pub fn n_decoded(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Tokens a second, of those.
    pub fn decode_rate(&self) -> f64 {
        self.n_decoded() as f64 / self.decode_time.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Tokens that left the model early.
    pub fn n_exited(&self) -> usize {
        self.exits.iter().filter(|exit| exit.is_some()).count()
    }
}
