//! The loop that continues a session's text: decode, pick, show, until something ends it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::drafting::Drafting;
use super::generation::{ExitPoint, GenerateParams, Generation, StopReason, TokenEvent};
use super::logprobs::{self, TokenLogprob};
use super::sampler::Sampler;
use super::text::TextStream;
use super::{Next, Session};
use crate::error::{Error, Result};
use crate::heads::Candidates;
use crate::llama::Token;

impl Session {
    /// Generates a continuation of the session's text and shows each token as it comes; a break stops after that token.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] without a prompt, [`Error::Decode`], [`Error::Grammar`].
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        params: &GenerateParams,
        on_token: &mut dyn FnMut(TokenEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if self.tokens.is_empty() {
            return Err(Error::InvalidValue {
                name: "prompt",
                found: "none".to_owned(),
                expected: "at least one token",
            });
        }
        if self.next == Next::Unknown {
            let last = self.tokens.len() - 1;
            self.roll_back(last.min(self.gate.position()));
        }
        let mut stream = TextStream::new(&params.stop);
        let mut made = Generation {
            tokens: Vec::new(),
            text: String::new(),
            exits: Vec::new(),
            stop_reason: StopReason::Length,
            context_full: false,
            elapsed: Duration::ZERO,
            n_drafted: 0,
            n_right: 0,
            end_exit: None,
        };
        let drafts = self.drafting.as_ref().map_or((0, 0), Drafting::counts);
        let cancel = self.cancel_handle();
        // Log-probabilities are shares of a whole distribution.
        let settled_by_best = sampler.is_greedy() && params.n_logprobs.is_none();
        let candidates = if settled_by_best { Candidates::Enough } else { Candidates::All };
        let ends = if params.min_tokens == 0 { Vec::new() } else { self.ends(params) };
        let mut start = None;
        while made.tokens.len() < params.max_tokens {
            if self.tokens.len() > self.n_ctx() && !(self.params.context_shift && self.shift()?) {
                made.context_full = true;
                break;
            }
            match self.decode_next(candidates) {
                Ok(()) if !cancel.is_cancelled() => {}
                Ok(()) | Err(Error::Cancelled) => {
                    made.stop_reason = StopReason::Cancelled;
                    break;
                }
                Err(error) => return Err(error),
            }
            start.get_or_insert_with(Instant::now);
            let is_early = made.tokens.len() < params.min_tokens;
            let (token, exit) = self.pick(sampler, if is_early { &ends } else { &[] })?;
            let logprobs = params.n_logprobs.map(|n| self.logprobs(token, exit, n)).unwrap_or_default();
            self.follow(token);
            if self.model.vocab().is_eog(token) && !params.ignore_eos {
                made.stop_reason = StopReason::Eos;
                made.end_exit = exit;
                break;
            }
            if params.stop_token_ids.contains(&token) {
                made.stop_reason = StopReason::Stop;
                made.end_exit = exit;
                break;
            }
            let piece = self.model.vocab().piece(token, params.shown.contains(&token));
            let text = if is_early { stream.push_through(&piece) } else { stream.push(&piece) };
            made.tokens.push(token);
            made.exits.push(exit);
            made.text.push_str(&text);
            let answer = on_token(TokenEvent { token, text: &text, exit, logprobs: &logprobs });
            if stream.stopped() || answer.is_break() {
                made.stop_reason = StopReason::Stop;
                break;
            }
        }
        made.text.push_str(&stream.finish());
        made.elapsed = start.map_or(Duration::ZERO, |start| start.elapsed());
        if let Some(cascade) = &self.cascade {
            tracing::debug!(policy = ?cascade.policy(), "what exits cost here, in seconds");
        }
        if let Some(drafting) = &self.drafting {
            tracing::debug!(policy = ?drafting.policy(), "what drafts cost here, in seconds");
            let (n_drafted, n_right) = drafting.counts();
            (made.n_drafted, made.n_right) = (n_drafted - drafts.0, n_right - drafts.1);
        }
        self.drop_drafts();
        Ok(made)
    }

    /// The tokens that end a generation.
    fn ends(&self, params: &GenerateParams) -> Vec<Token> {
        let own = if params.ignore_eos { Vec::new() } else { self.model.vocab().eog_tokens() };
        [own, params.stop_token_ids.clone()].concat()
    }

    /// Picks the next token, none of `barred` if there is another, and tells where it left the model.
    fn pick(&mut self, sampler: &mut Sampler, barred: &[Token]) -> Result<(Token, Option<ExitPoint>)> {
        if let (Next::Candidates(exit), Some(cascade)) = (self.next, &self.cascade) {
            if let Some(token) = sampler.pick_among(cascade.candidates(), barred)? {
                sampler.accept(token)?;
                return Ok((token, Some(exit)));
            }
            // None of the candidates is allowed, by a grammar or so early: the full matrix has what is.
            self.drafting.as_mut().map(Drafting::forget);
            self.roll_back(self.tokens.len().saturating_sub(1));
            self.decode_missing(&mut |_| {})?;
        }
        let no_logits = || Error::Gate { found: "a decode without logits".to_owned() };
        let Next::Logits(row) = self.next else { return Err(no_logits()) };
        let logits = self.gate.logits(row).ok_or_else(no_logits)?;
        let token = sampler.pick(logits, barred)?.ok_or_else(|| Error::InvalidValue {
            name: "logits",
            found: "no token that the model and the grammar allow".to_owned(),
            expected: "at least one; a damaged model or a grammar that the text has left gives none",
        })?;
        sampler.accept(token)?;
        Ok((token, None))
    }

    /// Log-probabilities of the distribution that `token` was picked from: its own, then the `n` best.
    fn logprobs(&mut self, token: Token, exit: Option<ExitPoint>, n: usize) -> Vec<TokenLogprob> {
        if let (Some(_), Some(cascade)) = (exit, &self.cascade) {
            return logprobs::of(cascade.candidates().iter().copied(), token, n);
        }
        let Next::Logits(row) = self.next else { return Vec::new() };
        let logits = self.gate.logits(row).unwrap_or_default().iter().copied();
        logprobs::of((0i32..).map(Token).zip(logits), token, n)
    }
}
