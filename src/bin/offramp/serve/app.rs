//! What the routes share: who may come in, and, once the model is loaded, what prepares and makes replies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use offramp::{ChatTemplate, Exits, Model, ReplyReader, Token, ToolFormat, Tools};
use serde_json::{Value, json};

use super::access::Access;
use super::answer::{Writer, shortest};
use super::engine::{Engine, Request};
use super::failure::ApiError;
use super::metrics::Metrics;
use super::request::{ChatRequest, Common, CompletionRequest, Defaults, Prompt};
use crate::conversation::{special_text, template_of, tool_template_of};
use crate::failure::Failure;
use crate::thinking::Thinking;

/// What a request's `exits` may be.
const EXIT_MODES: [Exits; 3] = [Exits::Off, Exits::Calibrated, Exits::Exact];

/// The server.
#[derive(Debug)]
pub struct App {
    pub access: Access,
    pub metrics: Arc<Metrics>,
    /// How long a body may take to arrive.
    pub limit: Duration,
    ready: OnceLock<Ready>,
}

/// What is there once the model is loaded.
#[derive(Debug)]
pub struct Ready {
    pub engine: Engine,
    /// The model's name in answers.
    pub name: String,
    template: Option<ChatTemplate>,
    /// For conversations with tools, where the model has one.
    tool_template: Option<ChatTemplate>,
    /// What templates write out and the tokenizer adds by itself.
    bos: String,
    defaults: Defaults,
    created: u64,
    n_replies: AtomicU64,
    /// Makes the ids of two runs of the server differ.
    run: u64,
}

/// A request that can be made into a reply.
#[derive(Debug)]
pub struct Prepared {
    pub request: Request,
    pub stream: bool,
    pub writer: Writer,
}

impl App {
    pub fn new(access: Access, metrics: Arc<Metrics>, limit: Duration) -> Self {
        Self { access, metrics, limit, ready: OnceLock::new() }
    }

    /// The model is loaded. Only the first call counts.
    pub fn set_ready(&self, ready: Ready) {
        let _ = self.ready.set(ready);
    }

    /// # Errors
    /// 503 while the model is loaded.
    pub fn ready(&self) -> Result<&Ready, ApiError> {
        self.ready.get().ok_or_else(|| {
            ApiError::with_status(StatusCode::SERVICE_UNAVAILABLE, "loading", "the model is being loaded; try again")
        })
    }
}

impl Ready {
    /// # Errors
    /// When the model's chat template does not parse.
    pub fn new(engine: Engine, name: String, max_tokens: usize) -> Result<Self, Failure> {
        let model = &engine.model;
        let vocab = model.vocab();
        let defaults = Defaults { exits: engine.exits, agreement: engine.agreement, max_tokens };
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            template: template_of(model)?,
            tool_template: tool_template_of(model)?,
            bos: special_text(model, vocab.bos().filter(|_| vocab.adds_bos())),
            defaults,
            name,
            created: run.as_secs(),
            n_replies: AtomicU64::new(0),
            run: run.as_nanos() as u64,
            engine,
        })
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn prepare_chat(&self, body: &Value) -> Result<Prepared, ApiError> {
        let ChatRequest { mut common, variables, tools } = ChatRequest::read(body, self.defaults)?;
        let template = self.template(tools.is_some())?;
        let format = template.tool_format();
        let mut text =
            template.render_chat(variables).map_err(|error| ApiError::invalid("messages", error.to_string()))?;
        let forced = tools.as_ref().and_then(|tools| tools.forced(format));
        if let Some(forced) = &forced {
            text += &forced.after(&text);
            let grammar = offramp::json_schema_grammar(forced.schema());
            common.sampler.grammar = Some(grammar.map_err(|error| ApiError::invalid("tools", error.to_string()))?);
        }
        let reader = match &tools {
            Some(tools) => Some(tools.reader(format, forced.as_ref())),
            None => format.is_everywhere().then(|| ReplyReader::new(format, Tools::default()).at_most(0)),
        };
        if reader.is_some() {
            common.limits.shown = self.controls(format);
        }
        let tokens = self.tokenize(text.strip_prefix(&self.bos).unwrap_or(&text))?;
        let mut prepared = self.prepare(common, tokens, "chatcmpl")?;
        prepared.writer.thinking = Some(Thinking::new(&text));
        prepared.writer.reader = reader;
        Ok(prepared)
    }

    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn prepare_completion(&self, body: &Value) -> Result<Prepared, ApiError> {
        let CompletionRequest { common, prompt } = CompletionRequest::read(body, self.defaults)?;
        let tokens = match prompt {
            Prompt::Text(text) => self.tokenize(&text)?,
            Prompt::Tokens(ids) => {
                let vocab = self.engine.model.vocab();
                let tokens: Vec<Token> = ids.into_iter().map(Token).collect();
                if let Some(token) = tokens.iter().find(|token| !vocab.contains(**token)) {
                    let message =
                        format!("prompt has the token id {}, ids are from 0 to {}", token.0, vocab.n_tokens() - 1);
                    return Err(ApiError::invalid("prompt", message));
                }
                tokens
            }
        };
        self.prepare(common, tokens, "cmpl")
    }

    fn template(&self, has_tools: bool) -> Result<&ChatTemplate, ApiError> {
        let own = self.tool_template.as_ref().filter(|_| has_tools);
        own.or(self.template.as_ref()).ok_or_else(|| {
            ApiError::bad_request("this model has no chat template; send text as it is to /v1/completions")
        })
    }

    /// The control tokens that a format of tool calls is made of.
    fn controls(&self, format: ToolFormat) -> Vec<Token> {
        let vocab = self.engine.model.vocab();
        let control = |mark: &&str| match vocab.tokenize(mark, false, true).ok()?.as_slice() {
            [token] if vocab.is_control(*token) => Some(*token),
            _ => None,
        };
        format.marks().iter().filter_map(control).collect()
    }

    fn tokenize(&self, text: &str) -> Result<Vec<Token>, ApiError> {
        let tokens = self.engine.model.vocab().tokenize_prompt(text, true);
        tokens.map_err(|error| ApiError::bad_request(error.to_string()))
    }

    fn prepare(&self, common: Common, prompt: Vec<Token>, kind: &str) -> Result<Prepared, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::invalid("prompt", "the prompt is empty, at least one token is expected"));
        }
        if let Some(token) =
            common.limits.stop_token_ids.iter().find(|&&token| !self.engine.model.vocab().contains(token))
        {
            let most = self.engine.model.vocab().n_tokens() - 1;
            let message = format!("stop_token_ids has the token id {}, ids are from 0 to {most}", token.0);
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        if prompt.len() > self.engine.n_ctx {
            return Err(ApiError::context_length_exceeded(prompt.len(), self.engine.n_ctx));
        }
        let model = &self.engine.model;
        let id = format!("{kind}-{:x}-{}", self.run, self.n_replies.fetch_add(1, Ordering::Relaxed));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut writer = Writer::new(id, now, self.name.clone(), model.info().n_layer, model.vocab().clone());
        writer.include_usage = common.include_usage;
        writer.has_logprobs = common.limits.n_logprobs.is_some();
        let request = Request {
            prompt,
            sampler: common.sampler,
            limits: common.limits,
            exits: common.exits,
            agreement: common.agreement,
            reuse: common.reuse,
        };
        Ok(Prepared { request, stream: common.stream, writer })
    }

    /// The model, as `/v1/models` lists it.
    pub fn model(&self) -> Value {
        let info = self.engine.model.info();
        json!({
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "offramp",
            "meta": {
                "n_vocab": info.n_vocab,
                "n_ctx_train": info.n_ctx_train,
                "n_embd": info.n_embd,
                "n_params": info.n_params,
                "size": info.size,
            },
        })
    }

    /// What the server runs with. The folder of the model's file is the operator's business, not a client's.
    pub fn props(&self) -> Value {
        let Engine { model, n_ctx, n_slots, .. } = &self.engine;
        let model: &Model = model;
        let info = model.info();
        json!({
            "model": self.name,
            "model_file": info.path.file_name().map(|name| name.to_string_lossy()),
            "description": info.description,
            "architecture": info.architecture,
            "n_layer": info.n_layer,
            "n_ctx": n_ctx,
            "total_slots": n_slots,
            "heads": model.has_heads(),
            "exits": self.defaults.exits,
            "exit_modes": EXIT_MODES,
            "agreement": shortest(self.defaults.agreement),
            "chat_template": model.chat_template(),
            "chat_template_tool_use": model.tool_template(),
            "build": offramp::ENGINE,
        })
    }
}
