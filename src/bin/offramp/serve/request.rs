//! From a request's JSON to what a reply is made from. Every number is checked against its range, and a field that is not
//! offered here is refused, known or not; only what is known to change nothing (`user`, `metadata`, …) is ignored.

use offramp::{Exits, GenerateParams, Grammar, SamplerParams};
use serde_json::Value;

use super::failure::ApiError;
use super::fields::{Asked, Fields, integer_of};
use super::tools::ToolUse;
use super::{offered, sampling};

/// Most log-probabilities beside a token's own.
const MAX_LOGPROBS: i64 = 20;

/// What both routes share.
#[derive(Debug)]
pub struct Common {
    pub sampler: SamplerParams,
    pub limits: GenerateParams,
    pub exits: Exits,
    pub agreement: f32,
    pub reuse: bool,
    pub stream: bool,
    pub include_usage: bool,
}

/// What the server was started with, for what a request leaves open.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub exits: Exits,
    pub agreement: f32,
    pub max_tokens: usize,
}

impl Common {
    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn read(fields: Fields<'_>, defaults: Defaults) -> Result<Self, ApiError> {
        offered::refuse_not_offered(fields)?;
        fields.text("model")?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let options = fields.object("stream_options", "stream_options.")?;
        if options.is_some() && !stream {
            return Err(ApiError::invalid("stream_options", "stream_options is given without \"stream\": true"));
        }
        let include_usage = options.map(|options| options.bool("include_usage")).transpose()?.flatten();
        let (exits, agreement) = exits(fields, defaults)?;
        let mut sampler = sampling::sampler(fields)?;
        sampler.grammar = grammar(fields)?;
        Ok(Self {
            sampler,
            limits: sampling::limits(fields, defaults.max_tokens)?,
            exits,
            agreement,
            reuse: fields.bool("cache_prompt")?.unwrap_or(true),
            stream,
            include_usage: include_usage.unwrap_or(false),
        })
    }

    /// Reports log-probabilities, of the whole distribution: nothing exits.
    fn with_logprobs(&mut self, n: i64) {
        self.limits.n_logprobs = usize::try_from(n).ok();
        self.exits = Exits::Off;
    }
}

/// `/v1/chat/completions`.
#[derive(Debug)]
pub struct ChatRequest {
    pub common: Common,
    /// What the chat template is rendered with.
    pub variables: serde_json::Map<String, Value>,
    /// The tools that it may call, if any.
    pub tools: Option<ToolUse>,
}

impl ChatRequest {
    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn read(body: &Value, defaults: Defaults) -> Result<Self, ApiError> {
        let asked = Asked::default();
        let fields = Fields::noted(body, &asked)?;
        let mut common = Common::read(fields, defaults)?;
        let n = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
        match (fields.bool("logprobs")?.unwrap_or(false), n) {
            (true, n) => common.with_logprobs(n.unwrap_or(0)),
            (false, Some(1..)) => {
                return Err(ApiError::invalid("top_logprobs", "top_logprobs is given without \"logprobs\": true"));
            }
            (false, _) => {}
        }
        let tools = ToolUse::read(fields)?;
        let variables = super::messages::variables(fields, tools.as_ref())?;
        offered::refuse_unknown(&asked)?;
        Ok(Self { common, variables, tools })
    }
}

/// What `/v1/completions` goes on from.
#[derive(Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<i32>),
}

/// `/v1/completions`.
#[derive(Debug)]
pub struct CompletionRequest {
    pub common: Common,
    pub prompt: Prompt,
}

impl CompletionRequest {
    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn read(body: &Value, defaults: Defaults) -> Result<Self, ApiError> {
        let asked = Asked::default();
        let fields = Fields::noted(body, &asked)?;
        let mut common = Common::read(fields, defaults)?;
        // Some programs send what it is in a chat.
        let is_none = fields.get("logprobs") == Some(&Value::Bool(false));
        if let Some(n) = if is_none { None } else { fields.integer("logprobs", 0..=MAX_LOGPROBS)? } {
            common.with_logprobs(n);
        }
        let prompt = prompt(fields)?;
        offered::refuse_unknown(&asked)?;
        Ok(Self { common, prompt })
    }
}

fn prompt(fields: Fields<'_>) -> Result<Prompt, ApiError> {
    let wrong =
        || ApiError::invalid("prompt", "prompt must be a string, an array with one string, or an array of token ids");
    match fields.get("prompt") {
        Some(Value::String(text)) => Ok(Prompt::Text(text.clone())),
        Some(Value::Array(items)) => match items.as_slice() {
            [] => Err(wrong()),
            [Value::String(text)] => Ok(Prompt::Text(text.clone())),
            ids => {
                let id = |value: &Value| integer_of(value).and_then(|id| i32::try_from(id).ok());
                ids.iter().map(id).collect::<Option<_>>().map(Prompt::Tokens).ok_or_else(wrong)
            }
        },
        _ => Err(wrong()),
    }
}

fn grammar(fields: Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    let Some(format) = fields.object("response_format", "response_format.")? else { return Ok(None) };
    let schema = match format.text("type")? {
        Some("text") => return Ok(None),
        Some("json_object") => match format.get("schema") {
            // As llama.cpp's server and llama-cpp-python take it.
            Some(schema) => schema.clone(),
            None => serde_json::json!({"type": "object"}),
        },
        Some("json_schema") => {
            let named = format.object("json_schema", "response_format.json_schema.")?;
            let schema = named.and_then(|named| named.get("schema"));
            schema.cloned().ok_or_else(|| {
                ApiError::invalid("response_format.json_schema.schema", "response_format.json_schema.schema is missing")
            })?
        }
        _ => {
            let message = "response_format.type must be text, json_object or json_schema";
            return Err(ApiError::invalid("response_format.type", message));
        }
    };
    let refused = |error: offramp::Error| ApiError::invalid("response_format", error.to_string());
    offramp::json_schema_grammar(&schema).map(Some).map_err(refused)
}

fn exits(fields: Fields<'_>, defaults: Defaults) -> Result<(Exits, f32), ApiError> {
    let exits = match fields.text("exits")? {
        Some(text) => text.parse().map_err(|error: offramp::Error| ApiError::invalid("exits", error.to_string()))?,
        None => defaults.exits,
    };
    let agreement = fields.float("agreement", 0.0..=1.0)?.unwrap_or(defaults.agreement);
    if agreement <= 0.0 {
        return Err(ApiError::invalid("agreement", "agreement is 0, a share above 0 is expected"));
    }
    Ok((exits, agreement))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::sampling::MAX_STOP_BYTES;
    use proptest::prelude::*;
    use serde_json::json;

    const DEFAULTS: Defaults = Defaults { exits: Exits::Calibrated, agreement: 0.99, max_tokens: 100 };

    fn chat(mut more: Value) -> Result<ChatRequest, ApiError> {
        let object = more.as_object_mut().unwrap();
        object.entry("messages").or_insert_with(|| json!([{"role": "user", "content": "hi"}]));
        ChatRequest::read(&more, DEFAULTS)
    }

    #[test]
    fn what_is_left_open_is_the_servers_default() {
        let common = chat(json!({})).unwrap().common;
        assert_eq!((common.exits, common.agreement, common.limits.max_tokens), (Exits::Calibrated, 0.99, 100));
        assert!(!common.stream && common.reuse);
    }

    #[test]
    fn openai_s_names_are_read() {
        let request = chat(json!({"temperature": 0, "top_p": 0.5, "max_completion_tokens": 7, "stop": ["a", "b"],
            "seed": 5, "frequency_penalty": 1, "presence_penalty": -1, "stream": true, "n": 1, "best_of": 1,
            "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 3, "user": "x"}));
        let common = request.unwrap().common;
        assert_eq!((common.sampler.temperature, common.sampler.top_p, common.sampler.seed), (0.0, 0.5, Some(5)));
        assert_eq!((common.limits.max_tokens, common.limits.n_logprobs), (7, Some(3)));
        assert_eq!(common.limits.stop, ["a", "b"]);
        assert!(common.stream && common.include_usage && common.exits == Exits::Off);
    }

    #[test]
    fn a_request_cannot_ask_for_more_than_the_server_allows() {
        assert_eq!(chat(json!({"max_tokens": 1_000_000})).unwrap().common.limits.max_tokens, 100);
    }

    #[test]
    fn prompts_are_texts_or_token_ids() {
        let of = |prompt: Value| CompletionRequest::read(&json!({"prompt": prompt}), DEFAULTS).map(|read| read.prompt);
        assert_eq!(of(json!("a")).unwrap(), Prompt::Text("a".to_owned()));
        assert_eq!(of(json!(["a"])).unwrap(), Prompt::Text("a".to_owned()));
        assert_eq!(of(json!([1, 2])).unwrap(), Prompt::Tokens(vec![1, 2]));
        for wrong in [json!([]), json!(["a", "b"]), json!([[1]]), json!([1e20]), json!(5), json!(null), json!({})] {
            assert!(of(wrong).is_err());
        }
    }

    #[test]
    fn every_field_is_read_harmless_or_refused_by_name() {
        let refused = |name: &str| {
            let error = chat(json!({name: 7.5})).unwrap_err().body()["error"].clone();
            (error["param"].as_str().unwrap().to_owned(), error["code"].as_str().unwrap().to_owned())
        };
        for name in
            ["max_length", "guided_json", "temprature", "num_ctx", "Temperature", "stop_sequences", "extra_body"]
        {
            assert_eq!(refused(name), (name.to_owned(), "unknown_parameter".to_owned()));
        }
        for name in ["mirostat", "samplers", "logit_bias", "grammar"] {
            assert_eq!(refused(name), (name.to_owned(), "unsupported_parameter".to_owned()));
        }
        for name in ["user", "metadata", "store", "service_tier", "prompt_cache_key", "keep_alive"] {
            assert!(chat(json!({name: "x"})).is_ok(), "{name}");
        }
        let misplaced = CompletionRequest::read(&json!({"prompt": "x", "messages": []}), DEFAULTS).unwrap_err();
        assert_eq!(misplaced.body()["error"]["param"], "messages");
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {}, "shema": 1}});
        assert_eq!(
            chat(json!({"response_format": format})).unwrap_err().body()["error"]["param"],
            "response_format.json_schema.shema"
        );
    }

    #[test]
    fn log_probabilities_that_are_not_wanted_are_none() {
        assert_eq!(chat(json!({"logprobs": false, "top_logprobs": 0})).unwrap().common.limits.n_logprobs, None);
        assert!(chat(json!({"top_logprobs": 2})).is_err());
        let text = |logprobs: Value| {
            let read = CompletionRequest::read(&json!({"prompt": "x", "logprobs": logprobs}), DEFAULTS);
            read.map(|read| read.common.limits.n_logprobs)
        };
        assert_eq!((text(json!(false)).unwrap(), text(json!(2.0)).unwrap()), (None, Some(2)));
        assert!(text(json!(true)).is_err());
    }

    /// Any JSON, with numbers from the ends of their ranges.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-3i64..30).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-3.0..3.0).prop_map(Value::from),
            prop::sample::select(vec!["", "user", "assistant", "text", "off", "exact", "json_object", "auto", "\0"])
                .prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((prop::sample::select(NAMES), inner), 0..4).prop_map(object),
            ]
        })
    }

    /// Fields of both routes, of messages and of options.
    const NAMES: &[&str] = &[
        "messages",
        "role",
        "content",
        "type",
        "text",
        "prompt",
        "model",
        "stream",
        "stream_options",
        "include_usage",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "frequency_penalty",
        "presence_penalty",
        "repeat_penalty",
        "logprobs",
        "top_logprobs",
        "echo",
        "exits",
        "agreement",
        "cache_prompt",
        "response_format",
        "json_schema",
        "schema",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "tool_calls",
        "name",
        "chat_template_kwargs",
        "logit_bias",
        "best_of",
        "n_predict",
        "min_tokens",
        "stop_token_ids",
        "repetition_penalty",
        "repeat_last_n",
        "typical_p",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "xtc_probability",
        "xtc_threshold",
    ];

    fn object(fields: Vec<(&str, Value)>) -> Value {
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_json_is_a_request_within_its_ranges_or_an_error(
            fields in prop::collection::vec((prop::sample::select(NAMES), any_json()), 0..6),
            is_chat in any::<bool>(),
        ) {
            let mut body = object(fields);
            if is_chat {
                body["messages"] = json!([{"role": "user", "content": "hi"}]);
            } else {
                body["prompt"] = json!("hi");
            }
            let chat = ChatRequest::read(&body, DEFAULTS).map(|request| request.common);
            let text = CompletionRequest::read(&body, DEFAULTS).map(|request| request.common);
            for common in [chat, text].into_iter().flatten() {
                let sampler = &common.sampler;
                prop_assert!(sampler.temperature.is_finite() && sampler.temperature >= 0.0);
                prop_assert!((0.0..=1.0).contains(&sampler.top_p) && (0.0..=1.0).contains(&sampler.min_p));
                prop_assert!(sampler.check().is_ok());
                prop_assert!((0.0..=1.0).contains(&common.agreement));
                prop_assert!(common.limits.stop.iter().all(|stop| stop.len() <= MAX_STOP_BYTES));
                prop_assert!(common.limits.n_logprobs.is_none_or(|n| n <= MAX_LOGPROBS as usize));
            }
        }
    }
}
