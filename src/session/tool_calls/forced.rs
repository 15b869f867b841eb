//! Replies that must be calls: what the prompt goes on with, and the JSON schema of the rest.
//!
//! The prompt gets the beginning of a call in the format of the template, so that a model goes on as it was trained to. What
//! follows is JSON: the arguments alone where one function is possible, and otherwise objects that name theirs. References
//! within a function's schema stay its own. Judges no schema: the grammar does.

use serde_json::{Map, Value, json};

use super::ToolFormat;

/// Most calls that one reply may be made of.
const MAX_CALLS: usize = 16;

/// What makes a reply calls.
#[derive(Debug, Clone)]
pub struct Forced {
    prefix: String,
    schema: Value,
    function: Option<String>,
}

impl Forced {
    /// Of one of `tools`, in OpenAI's shape; of `several`, where that is asked for. `None` without tools.
    pub fn new(format: ToolFormat, tools: &[Value], several: bool) -> Option<Self> {
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        if let ([tool], false) = (tools, several) {
            let name = name(tool)?;
            let prefix = before_arguments(format, &name);
            return Some(Self { prefix, schema: parameters(tool), function: Some(name) });
        }
        let (name_key, arguments_key) = keys(format);
        let mut definitions = Map::new();
        let mut calls = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let mut arguments = parameters(tool);
            if refers(&arguments) {
                let own = format!("function{i}");
                rebase(&mut arguments, &format!("#/$defs/{own}"));
                definitions.insert(own.clone(), arguments);
                arguments = json!({ "$ref": format!("#/$defs/{own}") });
            }
            calls.push(json!({
                "type": "object",
                "properties": {name_key: {"const": name(tool)?}, arguments_key: arguments},
                "required": [name_key, arguments_key],
                "additionalProperties": false,
            }));
        }
        let one = if calls.len() > 1 { json!({ "anyOf": calls }) } else { calls.pop()? };
        let (prefix, is_list) = before_calls(format);
        let mut schema = match is_list || several {
            true => {
                json!({"type": "array", "items": one, "minItems": 1, "maxItems": if several { MAX_CALLS } else { 1 }})
            }
            false => one,
        };
        if !definitions.is_empty() {
            schema["$defs"] = Value::Object(definitions);
        }
        Some(Self { prefix: prefix.to_owned(), schema, function: None })
    }

    /// What `prompt` goes on with. A thought that the prompt opens is closed.
    pub fn after(&self, prompt: &str) -> String {
        let thought = if prompt.trim_end().ends_with("<think>") { "\n</think>\n\n" } else { "" };
        format!("{thought}{}", self.prefix)
    }

    /// The schema of the reply.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// The function, where the reply is its arguments alone.
    pub fn function(&self) -> Option<&str> {
        self.function.as_deref()
    }
}

/// The schema of a function's arguments.
fn parameters(tool: &Value) -> Value {
    match tool.pointer("/function/parameters") {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) => {
            let mut schema = schema.clone();
            if !["type", "$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| schema.contains_key(*key)) {
                schema.insert("type".to_owned(), json!("object"));
            }
            Value::Object(schema)
        }
        Some(other) => other.clone(),
    }
}

/// What a call calls its name and its arguments.
fn keys(format: ToolFormat) -> (&'static str, &'static str) {
    match format {
        ToolFormat::Llama3 => ("name", "parameters"),
        ToolFormat::Command | ToolFormat::CommandR => ("tool_name", "parameters"),
        _ => ("name", "arguments"),
    }
}

/// What stands before calls as JSON objects, and whether they come in a list.
fn before_calls(format: ToolFormat) -> (&'static str, bool) {
    match format {
        ToolFormat::Hermes | ToolFormat::QwenCoder | ToolFormat::Glm => ("<tool_call>\n", false),
        ToolFormat::Mistral => ("[TOOL_CALLS]", true),
        ToolFormat::Command => ("<|START_ACTION|>", true),
        ToolFormat::CommandR => ("Action: ```json\n", true),
        ToolFormat::Piped => ("<|tool_call|>", true),
        ToolFormat::Plural => ("<tool_calls>", true),
        ToolFormat::Functools => (" functools", true),
        _ => ("", false),
    }
}

/// What stands before the arguments of a call of `name`.
fn before_arguments(format: ToolFormat, name: &str) -> String {
    match format {
        ToolFormat::DeepSeek => {
            format!("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n")
        }
        ToolFormat::Kimi => {
            format!("<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>")
        }
        ToolFormat::Functionary => format!("{name}\n"),
        ToolFormat::FunctionaryV2 => format!("{name}\n<|content|>"),
        ToolFormat::FunctionTag => format!("<function={name}>"),
        ToolFormat::GptOss => format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
        _ => {
            let ((name_key, arguments_key), (open, is_list)) = (keys(format), before_calls(format));
            let (list, name) = (if is_list { "[" } else { "" }, Value::from(name));
            format!("{open}{list}{{\"{name_key}\": {name}, \"{arguments_key}\": ")
        }
    }
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.iter().any(|(key, value)| key == "$ref" && value.is_string() || refers(value)),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

/// Makes references from the schema's root start at `root`.
fn rebase(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match value {
                    Value::String(to) if key == "$ref" => {
                        if let Some(rest) = to.strip_prefix('#') {
                            *to = format!("{root}{rest}");
                        }
                    }
                    _ => rebase(value, root),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, root)),
        _ => {}
    }
}
