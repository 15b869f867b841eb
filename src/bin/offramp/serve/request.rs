//! From a request's JSON to what a reply is made from. Every number is checked against its range, and a field that would
//! change the reply but is not offered here is refused; what changes nothing (`user`, `metadata`, …) is ignored.
//! No unknown field is ever passed on.

use offramp::{Exits, GenerateParams, Grammar, SamplerParams};
use serde_json::Value;

use super::failure::ApiError;
use super::fields::Fields;

/// Most log-probabilities beside a token's own.
const MAX_LOGPROBS: i64 = 20;
/// Most stop texts, and bytes of one.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// Fields that would change the reply and that are not offered.
const UNSUPPORTED: &[&str] = &[
    "audio",
    "best_of",
    "function_call",
    "functions",
    "grammar",
    "json_schema",
    "logit_bias",
    "prompt_cache",
    "suffix",
    "web_search_options",
];

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
        refuse_unsupported(fields)?;
        fields.text("model")?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let options = fields.object("stream_options", "stream_options.")?;
        if options.is_some() && !stream {
            return Err(ApiError::invalid("stream_options", "stream_options is given without \"stream\": true"));
        }
        let include_usage = options.map(|options| options.bool("include_usage")).transpose()?.flatten();
        let (exits, agreement) = exits(fields, defaults)?;
        Ok(Self {
            sampler: sampler(fields)?,
            limits: limits(fields, defaults)?,
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
}

impl ChatRequest {
    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn read(body: &Value, defaults: Defaults) -> Result<Self, ApiError> {
        let fields = Fields::of(body)?;
        let mut common = Common::read(fields, defaults)?;
        let n = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
        match (fields.bool("logprobs")?.unwrap_or(false), n) {
            (true, n) => common.with_logprobs(n.unwrap_or(0)),
            (false, Some(_)) => {
                return Err(ApiError::invalid("top_logprobs", "top_logprobs is given without \"logprobs\": true"));
            }
            (false, None) => {}
        }
        Ok(Self { common, variables: super::messages::variables(fields)? })
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
        let fields = Fields::of(body)?;
        let mut common = Common::read(fields, defaults)?;
        if let Some(n) = fields.integer("logprobs", 0..=MAX_LOGPROBS)? {
            common.with_logprobs(n);
        }
        if fields.bool("echo")?.unwrap_or(false) {
            return Err(ApiError::unsupported("echo", "echo is not offered; the prompt is known to whoever sent it"));
        }
        Ok(Self { common, prompt: prompt(fields)? })
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
                let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok());
                ids.iter().map(id).collect::<Option<_>>().map(Prompt::Tokens).ok_or_else(wrong)
            }
        },
        _ => Err(wrong()),
    }
}

fn refuse_unsupported(fields: Fields<'_>) -> Result<(), ApiError> {
    let is_empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    for &name in UNSUPPORTED {
        // One reply is what is made in any case.
        let is_one = name == "best_of" && fields.get(name).and_then(Value::as_i64) == Some(1);
        if fields.get(name).is_some_and(|value| !is_empty(value) && !is_one) {
            return Err(ApiError::unsupported(name, format!("{name} is not offered here; leave it out")));
        }
    }
    if fields.integer("n", 1..=128)?.unwrap_or(1) != 1 {
        return Err(ApiError::unsupported("n", "n must be 1; send the request again for another reply"));
    }
    Ok(())
}

fn sampler(fields: Fields<'_>) -> Result<SamplerParams, ApiError> {
    let mut params = SamplerParams::default();
    let set = |value: &mut f32, found: Option<f32>| *value = found.unwrap_or(*value);
    set(&mut params.temperature, fields.float("temperature", 0.0..=100.0)?);
    set(&mut params.top_p, fields.float("top_p", 0.0..=1.0)?);
    set(&mut params.min_p, fields.float("min_p", 0.0..=1.0)?);
    set(&mut params.repeat_penalty, fields.float("repeat_penalty", 0.01..=100.0)?);
    set(&mut params.frequency_penalty, fields.float("frequency_penalty", -2.0..=2.0)?);
    set(&mut params.presence_penalty, fields.float("presence_penalty", -2.0..=2.0)?);
    let small = |n: i64| i32::try_from(n).unwrap_or(i32::MAX);
    params.top_k = fields.integer("top_k", 0..=1_000_000)?.map_or(params.top_k, small);
    params.repeat_last_n = fields.integer("repeat_last_n", 0..=1_000_000)?.map_or(params.repeat_last_n, small);
    // OpenAI's seeds have 64 bits and ours 32: both halves count.
    params.seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| (seed as u64 ^ (seed as u64 >> 32)) as u32);
    params.grammar = grammar(fields)?;
    Ok(params)
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

fn limits(fields: Fields<'_>, defaults: Defaults) -> Result<GenerateParams, ApiError> {
    const MOST: i64 = i32::MAX as i64;
    let mut params = GenerateParams::default();
    let asked = fields.integer("max_tokens", 1..=MOST)?;
    let asked = fields.integer("max_completion_tokens", 1..=MOST)?.or(asked);
    let asked = asked.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    params.max_tokens = asked.min(defaults.max_tokens);
    params.ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
    let texts = match fields.get("stop") {
        None => Vec::new(),
        Some(one @ Value::String(_)) => vec![one],
        Some(_) => fields.array("stop", MAX_STOPS)?.into_iter().flatten().collect(),
    };
    for text in texts {
        match text.as_str() {
            Some(text) if !text.is_empty() && text.len() <= MAX_STOP_BYTES => params.stop.push(text.to_owned()),
            _ => return Err(ApiError::invalid("stop", "stop must have texts of 1 to 1024 bytes")),
        }
    }
    Ok(params)
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
    fn seeds_of_64_bits_are_told_apart() {
        let seed = |seed: i64| chat(json!({"seed": seed})).unwrap().common.sampler.seed;
        assert_eq!(seed(42), Some(42));
        assert_ne!(seed(1 << 40), seed(1 << 41));
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
        "tool_calls",
        "name",
        "chat_template_kwargs",
        "logit_bias",
        "best_of",
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
                prop_assert!((0.0..=1.0).contains(&common.agreement));
                prop_assert!(common.limits.stop.iter().all(|stop| stop.len() <= MAX_STOP_BYTES));
                prop_assert!(common.limits.n_logprobs.is_none_or(|n| n <= MAX_LOGPROBS as usize));
            }
        }
    }
}
