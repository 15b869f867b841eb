//! The messages of a chat request, as a chat template wants them: texts instead of lists of parts, and the arguments of a
//! tool call as an object instead of a text. A content beside calls stays null where it is. It refuses pictures and sounds,
//! which no model here sees or hears.

use serde_json::{Map, Value, json};

use super::failure::ApiError;
use super::fields::{Fields, kind};
use super::tools::ToolUse;

/// Most messages, and parts of one.
const MAX_MESSAGES: usize = 4096;
/// Variables of a template that are not a client's to set.
const RESERVED: &[&str] = &["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];
/// Fields of a message that templates read, beside role and content.
const KEPT: &[&str] = &["name", "tool_call_id", "reasoning_content"];

/// What the chat template is rendered with.
///
/// # Errors
/// [`ApiError`] with status 400.
pub fn variables(fields: Fields<'_>, tools: Option<&ToolUse>) -> Result<Map<String, Value>, ApiError> {
    let mut variables = Map::new();
    if let Some(Value::Object(more)) = fields.get("chat_template_kwargs") {
        for (name, value) in more.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str())) {
            variables.insert(name.clone(), value.clone());
        }
    } else {
        fields.object("chat_template_kwargs", "chat_template_kwargs.")?;
    }
    if let Some(effort) = fields.text("reasoning_effort")? {
        variables.insert("reasoning_effort".to_owned(), json!(effort));
    }
    if let Some(tools) = tools {
        variables.insert("tools".to_owned(), Value::Array(tools.all.clone()));
    }
    let messages = fields.array("messages", MAX_MESSAGES)?.filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "messages is missing or empty"))?;
    let messages = messages.iter().enumerate().map(|(i, message)| self::message(i, message));
    variables.insert("messages".to_owned(), Value::Array(messages.collect::<Result<_, _>>()?));
    variables.insert("add_generation_prompt".to_owned(), json!(true));
    Ok(variables)
}

fn message(i: usize, message: &Value) -> Result<Value, ApiError> {
    let wrong = |field: &str, what: &str| {
        let param = format!("messages[{i}]{field}");
        let text = format!("{param} {what}");
        Err(ApiError::invalid(&param, text))
    };
    let Value::Object(object) = message else { return wrong("", &format!("is {}, not an object", kind(message))) };
    let role = match object.get("role").and_then(Value::as_str) {
        // OpenAI's newer name of the same.
        Some("developer") => "system",
        Some(role) if !role.is_empty() && role.len() <= 64 => role,
        _ => return wrong(".role", "is missing, a name such as user is expected"),
    };
    let calls = match object.get("tool_calls") {
        None | Some(Value::Null) => None,
        Some(Value::Array(calls)) if calls.iter().all(Value::is_object) => Some(calls),
        Some(_) => return wrong(".tool_calls", "is no list of objects"),
    };
    let is_thought = object.get("reasoning_content").is_some_and(Value::is_string);
    let content = match object.get("content") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) if parts.len() <= MAX_MESSAGES => {
            let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
                Some("text") => part.get("text").and_then(Value::as_str).map(str::to_owned),
                _ => None,
            };
            match parts.iter().map(text).collect::<Option<Vec<_>>>() {
                Some(texts) => Some(texts.concat()),
                None => return wrong(".content", "has a part that is no text; this model reads text alone"),
            }
        }
        None | Some(Value::Null) if calls.is_some() => None,
        // The whole reply was still thought when it ended.
        None | Some(Value::Null) if is_thought => Some(String::new()),
        _ => return wrong(".content", "is missing, a string or a list of texts is expected"),
    };
    let mut read = Map::new();
    read.insert("role".to_owned(), json!(role));
    read.insert("content".to_owned(), json!(content));
    for name in KEPT {
        match object.get(*name) {
            Some(value @ Value::String(_)) => drop(read.insert((*name).to_owned(), value.clone())),
            None | Some(Value::Null) => {}
            Some(_) => return wrong(&format!(".{name}"), "is no string"),
        }
    }
    if let Some(calls) = calls {
        read.insert("tool_calls".to_owned(), calls.iter().map(with_arguments).collect());
    }
    Ok(Value::Object(read))
}

/// A tool call whose arguments are an object, as templates print them; a text that is no JSON stays.
fn with_arguments(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
    {
        *arguments = object;
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<Map<String, Value>, ApiError> {
        let fields = Fields::of(body).unwrap();
        variables(fields, ToolUse::read(fields)?.as_ref())
    }

    #[test]
    fn parts_become_one_text_and_arguments_an_object() {
        let body = json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "content": "7", "tool_call_id": "1", "unknown": {"deep": true}},
        ]});
        let read = read(&body).unwrap();
        assert_eq!(read["messages"][0], json!({"role": "system", "content": "be kind"}));
        assert_eq!(read["messages"][1]["content"], Value::Null);
        assert_eq!(read["messages"][1]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(read["messages"][2], json!({"role": "tool", "content": "7", "tool_call_id": "1"}));
    }

    #[test]
    fn a_reply_that_was_all_thought_has_no_content() {
        let message = json!({"role": "assistant", "content": null, "reasoning_content": "hm"});
        let read = read(&json!({"messages": [{"role": "user", "content": "x"}, message]})).unwrap();
        assert_eq!(read["messages"][1]["reasoning_content"], json!("hm"));
    }

    #[test]
    fn a_client_sets_no_variable_that_is_ours() {
        let body = json!({"messages": [{"role": "user", "content": "x"}],
            "chat_template_kwargs": {"enable_thinking": false, "messages": [], "bos_token": "y"}});
        let read = read(&body).unwrap();
        assert_eq!(read["enable_thinking"], json!(false));
        assert_eq!(read["messages"].as_array().unwrap().len(), 1);
        assert!(!read.contains_key("bos_token"));
    }

    #[test]
    fn tools_are_passed_on_unless_none_is_wanted() {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": {"name": "f"}}]});
        assert!(read(&body).unwrap().contains_key("tools"));
        body["tool_choice"] = json!("none");
        assert!(!read(&body).unwrap().contains_key("tools"));
    }

    #[test]
    fn what_no_template_could_show_is_refused() {
        let message = |message: Value| read(&json!({"messages": [message]}));
        for wrong in [
            json!("x"),
            json!({"content": "x"}),
            json!({"role": "user"}),
            json!({"role": 1, "content": "x"}),
            json!({"role": "user", "content": 1}),
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
            json!({"role": "user", "content": "x", "name": 1}),
            json!({"role": "assistant", "tool_calls": "x"}),
        ] {
            assert!(message(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
