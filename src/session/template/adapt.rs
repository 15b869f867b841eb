//! What a template wants of messages, found by trying it: lists of parts or texts, arguments as objects or as text.
//!
//! Templates differ: some loop over the parts of a content and print nothing of a plain text, some print a call only where
//! the content beside it is null, some join the arguments to a text and fail on an object. The messages come in OpenAI's
//! meaning and leave in the template's. Changes nothing where the template shows what it is given.

use serde_json::{Map, Value, json};

use super::python::Json;

/// Words that no template has.
const TEXT: &str = "~a text to find~";
const NAME: &str = "a_function_to_find";
const KEY: &str = "a_key_to_find";

/// How a template takes messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// A content is a list of parts.
    parts: bool,
    /// Arguments of a call are a JSON text.
    text_arguments: bool,
    /// The content beside calls is null, or is the empty text, because the other loses the calls.
    null_content: Option<bool>,
}

impl Wants {
    /// Tries a template. `render` gives what it makes of variables, if anything.
    pub(super) fn of(render: impl Fn(Value) -> Option<String>) -> Self {
        let conversation = |more: &[Value], parts: bool| {
            let content = if parts { parts_of(TEXT) } else { json!(TEXT) };
            let messages = [&[json!({"role": "user", "content": content})], more].concat();
            json!({"messages": messages, "add_generation_prompt": true})
        };
        let shows_text = |parts: bool| render(conversation(&[], parts)).is_some_and(|text| text.contains(TEXT));
        let parts = !shows_text(false) && shows_text(true);
        let shows_call = |is_text: bool, is_null: bool| {
            let arguments = json!({ KEY: "b" });
            let arguments = if is_text { json!(arguments.to_string()) } else { arguments };
            let call =
                json!({"id": "call12345", "type": "function", "function": {"name": NAME, "arguments": arguments}});
            let content = if is_null { Value::Null } else { json!("") };
            let message = json!({"role": "assistant", "content": content, "tool_calls": [call]});
            let text = render(conversation(&[message], parts));
            // Python's way to print a dictionary is no JSON.
            text.is_some_and(|text| text.contains(NAME) && text.contains(KEY) && !text.contains(&format!("{{'{KEY}'")))
        };
        let [object, text] = [false, true].map(|is_text| [shows_call(is_text, false), shows_call(is_text, true)]);
        let text_arguments = object == [false, false] && text != [false, false];
        let null_content = match if text_arguments { text } else { object } {
            [true, false] => Some(false),
            [false, true] => Some(true),
            _ => None,
        };
        Self { parts, text_arguments, null_content }
    }

    /// Changes `messages` to what the template wants.
    pub(super) fn adapt(self, messages: &mut Value) {
        let messages = messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut);
        messages.for_each(|message| self.adapt_one(message));
    }

    fn adapt_one(self, message: &mut Map<String, Value>) {
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).filter(|calls| !calls.is_empty());
        if let Some(calls) = calls {
            for arguments in calls.iter_mut().filter_map(|call| call.pointer_mut("/function/arguments")) {
                if self.text_arguments && arguments.is_object() {
                    *arguments = json!(written(arguments));
                }
            }
            let is_empty = message.get("content").is_none_or(|content| content.is_null() || content == "");
            if let Some(is_null) = self.null_content.filter(|_| is_empty) {
                message.insert("content".to_owned(), if is_null { Value::Null } else { json!("") });
            }
        }
        if let Some(content) = message.get_mut("content").filter(|_| self.parts)
            && let Some(text) = content.as_str()
        {
            *content = parts_of(text);
        }
    }
}

/// As Python writes JSON, which models were trained on.
fn written(value: &Value) -> String {
    let (item, key) = (", ".to_owned(), ": ".to_owned());
    let style = Json { indent: None, item, key, sorted: false, ascii: false };
    let mut text = String::new();
    match style.write(&mut text, &minijinja::Value::from_serialize(value), 0) {
        Ok(()) => text,
        // Nested deeper than any real arguments.
        Err(_) => value.to_string(),
    }
}

fn parts_of(text: &str) -> Value {
    json!([{"type": "text", "text": text}])
}
