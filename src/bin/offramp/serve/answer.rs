//! The JSON of answers, in OpenAI's shapes: whole replies and the chunks of streamed ones. Beside OpenAI's fields there are
//! `exit_layers` (for each token the block that it left the model after, `"screen"`, or null), `reasoning_content`, and
//! llama.cpp's `timings` with what the exits did.

use offramp::measure::Depths;
use offramp::{ExitPoint, ReplyPart, ReplyReader, StopReason, Token, TokenLogprob, Vocab};
use serde_json::{Value, json};

use super::engine::{Finished, TokenPiece};
use super::parts::{Message, Piece};
use crate::thinking::{Part, Thinking};

/// What JSON has instead of negative infinity; OpenAI writes the same.
const LOWEST_LOGPROB: f32 = -9999.0;

/// What all chunks of a reply, or its whole, have in common.
#[derive(Debug)]
pub struct Writer {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub n_layer: u32,
    pub include_usage: bool,
    /// Of a chat reply; `None` for a completion.
    pub thinking: Option<Thinking>,
    /// Tells tool calls from text; `None` where there are none.
    pub reader: Option<ReplyReader>,
    /// Whether log-probabilities were asked for.
    pub has_logprobs: bool,
    pub vocab: Vocab,
    /// Of tokens whose text is not out yet.
    exits: Vec<Option<ExitPoint>>,
    logprobs: Vec<Vec<TokenLogprob>>,
    /// Bytes of the tokens whose log-probabilities are out.
    n_bytes: usize,
    /// Tool calls so far.
    n_calls: usize,
}

impl Writer {
    pub fn new(id: String, created: u64, model: String, n_layer: u32, vocab: Vocab) -> Self {
        Self {
            id,
            created,
            model,
            n_layer,
            include_usage: false,
            thinking: None,
            reader: None,
            has_logprobs: false,
            vocab,
            exits: Vec::new(),
            logprobs: Vec::new(),
            n_bytes: 0,
            n_calls: 0,
        }
    }

    /// What comes before the first token.
    pub fn first(&self) -> Option<Value> {
        self.thinking.as_ref()?;
        Some(self.chunk(json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null})))
    }

    /// The chunks of one token: none while its text is held back.
    pub fn token(&mut self, piece: TokenPiece) -> Vec<Value> {
        self.exits.push(piece.exit);
        self.logprobs.push(piece.logprobs);
        self.text(&piece.text)
    }

    /// The last chunks.
    pub fn finish(&mut self, finished: &Finished) -> Vec<Value> {
        let mut chunks = self.text(&finished.rest);
        let rest = self.thinking.as_mut().and_then(Thinking::finish).into_iter().collect();
        let mut parts = self.read(rest);
        parts.extend(self.reader.as_mut().map(ReplyReader::finish).into_iter().flatten());
        chunks.extend(parts.iter().map(|part| self.piece(part)));
        let reason = self.finish_reason(finished.generation.stop_reason);
        // Tokens of a stop text, and those without a text, come with no chunk of their own.
        let logprobs = if self.logprobs.is_empty() { Value::Null } else { self.take_logprobs() };
        let mut last = match &self.thinking {
            Some(_) => json!({"index": 0, "delta": {}, "finish_reason": reason}),
            None => json!({"index": 0, "text": "", "finish_reason": reason}),
        };
        last["logprobs"] = logprobs;
        last["exit_layers"] = json!(std::mem::take(&mut self.exits));
        let mut last = self.chunk(last);
        last["timings"] = timings(finished, self.n_layer);
        chunks.push(last);
        if self.include_usage {
            let mut chunk = self.chunk(Value::Null);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(finished);
            chunks.push(chunk);
        }
        chunks
    }

    /// The whole reply. `pieces` are its tokens.
    pub fn whole(&mut self, pieces: Vec<TokenPiece>, finished: &Finished) -> Value {
        self.logprobs = pieces.into_iter().map(|piece| piece.logprobs).collect();
        let text = &finished.generation.text;
        let parts = self.thinking.as_mut().map(|thinking| {
            let mut parts = thinking.push(text);
            parts.extend(thinking.finish());
            parts
        });
        let mut choice = match parts {
            Some(parts) => {
                let mut parts = self.read(parts);
                parts.extend(self.reader.as_mut().map(ReplyReader::finish).into_iter().flatten());
                let message = Message::of(&parts).json(&self.id);
                json!({"index": 0, "message": message})
            }
            None => json!({"index": 0, "text": text}),
        };
        choice["finish_reason"] = json!(self.finish_reason(finished.generation.stop_reason));
        choice["logprobs"] = self.take_logprobs();
        choice["exit_layers"] = json!(finished.generation.exits);
        let mut whole = self.envelope("chat.completion", choice);
        whole["usage"] = usage(finished);
        whole["timings"] = timings(finished, self.n_layer);
        whole
    }

    fn text(&mut self, text: &str) -> Vec<Value> {
        let parts = match &mut self.thinking {
            Some(thinking) => {
                let parts = thinking.push(text);
                self.read(parts)
            }
            None if text.is_empty() => Vec::new(),
            None => vec![ReplyPart::Content(text.to_owned())],
        };
        parts.iter().map(|part| self.piece(part)).collect()
    }

    /// Tells the tool calls in the answer from its text.
    fn read(&mut self, parts: Vec<(Part, String)>) -> Vec<ReplyPart> {
        let read = |(part, text): (Part, String)| match (part, &mut self.reader) {
            (Part::Thought, _) => vec![ReplyPart::Thought(text)],
            (Part::Answer, Some(reader)) => reader.push(&text),
            (Part::Answer, None) => vec![ReplyPart::Content(text)],
        };
        parts.into_iter().flat_map(read).collect()
    }

    fn finish_reason(&self, reason: StopReason) -> &'static str {
        match reason {
            StopReason::Length => "length",
            _ if self.reader.as_ref().is_some_and(|reader| reader.n_calls() > 0) => "tool_calls",
            _ => "stop",
        }
    }

    /// A chunk with a text, and with all that is known of the tokens up to it.
    fn piece(&mut self, part: &ReplyPart) -> Value {
        let logprobs = self.take_logprobs();
        let mut choice = match (part, &self.thinking) {
            (ReplyPart::Content(text), None) => json!({"index": 0, "text": text}),
            (part, _) => {
                if matches!(part, ReplyPart::Call(_)) {
                    self.n_calls += 1;
                }
                json!({"index": 0, "delta": Piece { part, n_calls: self.n_calls, id: &self.id }.json()})
            }
        };
        choice["logprobs"] = logprobs;
        choice["finish_reason"] = Value::Null;
        choice["exit_layers"] = json!(std::mem::take(&mut self.exits));
        self.chunk(choice)
    }

    fn chunk(&self, choice: Value) -> Value {
        self.envelope("chat.completion.chunk", choice)
    }

    /// What every answer has around its choice. `chat` is what it is called in a chat.
    fn envelope(&self, chat: &str, choice: Value) -> Value {
        let object = if self.thinking.is_some() { chat } else { "text_completion" };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        })
    }

    fn take_logprobs(&mut self) -> Value {
        let tokens = std::mem::take(&mut self.logprobs);
        if !self.has_logprobs {
            return Value::Null;
        }
        let text = |token: Token| self.vocab.text(&[token], true);
        let value = |entry: &TokenLogprob| shortest(entry.logprob.max(LOWEST_LOGPROB));
        let tokens: Vec<(&TokenLogprob, &[TokenLogprob])> =
            tokens.iter().filter_map(|entries| entries.split_first()).collect();
        if self.thinking.is_some() {
            let one = |entry: &TokenLogprob| json!({"token": text(entry.token), "logprob": value(entry), "bytes": self.vocab.piece(entry.token, true)});
            let content = tokens.iter().map(|(own, best)| {
                let mut entry = one(own);
                entry["top_logprobs"] = best.iter().map(one).collect();
                entry
            });
            return json!({"content": content.collect::<Vec<_>>()});
        }
        let mut offsets = Vec::with_capacity(tokens.len());
        for (own, _) in &tokens {
            offsets.push(self.n_bytes);
            self.n_bytes += self.vocab.piece(own.token, false).len();
        }
        let best = tokens.iter().map(|(_, best)| {
            best.iter().map(|entry| (text(entry.token), json!(value(entry)))).collect::<serde_json::Map<_, _>>()
        });
        json!({
            "tokens": tokens.iter().map(|(own, _)| text(own.token)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|(own, _)| value(own)).collect::<Vec<_>>(),
            "top_logprobs": best.collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

/// A number of 32 bits as it is written, not with the digits that it has as one of 64.
pub fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn usage(finished: &Finished) -> Value {
    let n = finished.generation.tokens.len();
    json!({
        "prompt_tokens": finished.n_prompt,
        "completion_tokens": n,
        "total_tokens": finished.n_prompt + n,
        "prompt_tokens_details": {"cached_tokens": finished.prompt.reused},
    })
}

/// llama.cpp's `timings`, and what the exits did.
fn timings(finished: &Finished, n_layer: u32) -> Value {
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    let rate = |n: usize, seconds: f64| (n > 0 && seconds > 0.0).then(|| rounded(n as f64 / seconds));
    let generation = &finished.generation;
    let (prompt, decode) = (finished.prompt.elapsed.as_secs_f64(), generation.elapsed.as_secs_f64());
    let depths = Depths::of(&generation.exits);
    json!({
        "cache_n": finished.prompt.reused,
        "prompt_n": finished.prompt.decoded,
        "prompt_ms": rounded(prompt * 1e3),
        "prompt_per_second": rate(finished.prompt.decoded, prompt),
        "predicted_n": generation.tokens.len(),
        "predicted_ms": rounded(decode * 1e3),
        "predicted_per_second": rate(generation.tokens.len(), decode),
        "exits": {
            "mode": finished.exits,
            "agreement": shortest(finished.agreement),
            "tokens": depths,
            "drafted": generation.n_drafted,
            "accepted": generation.n_right,
            "mean_depth": depths.mean(n_layer).map(rounded),
            "n_layer": n_layer,
        },
    })
}
