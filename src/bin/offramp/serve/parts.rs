//! The parts of a chat reply in OpenAI's shapes: a message, and the deltas that add up to it.

use std::hash::{DefaultHasher, Hash, Hasher};

use offramp::ReplyPart;
use serde_json::{Value, json};

/// Characters of a call's id. Mistral's templates take ids of nine letters and digits alone.
const ID_LENGTH: u32 = 9;

/// A delta of a reply.
pub struct Piece<'a> {
    pub part: &'a ReplyPart,
    /// Calls so far, this one included.
    pub n_calls: usize,
    /// The reply's own id.
    pub id: &'a str,
}

impl Piece<'_> {
    pub fn json(&self) -> Value {
        let index = self.n_calls.saturating_sub(1);
        match self.part {
            ReplyPart::Content(text) => json!({ "content": text }),
            ReplyPart::Thought(text) => json!({ "reasoning_content": text }),
            ReplyPart::Call(name) => {
                let mut call = call(self.id, index, name, "");
                call["index"] = json!(index);
                json!({ "tool_calls": [call] })
            }
            ReplyPart::Arguments(text) => json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}),
            _ => json!({}),
        }
    }
}

/// A whole message.
#[derive(Debug, Default)]
pub struct Message<'a> {
    content: String,
    thought: String,
    calls: Vec<(&'a str, String)>,
}

impl<'a> Message<'a> {
    pub fn of(parts: &'a [ReplyPart]) -> Self {
        let mut message = Self::default();
        for part in parts {
            match part {
                ReplyPart::Content(text) => message.content += text,
                ReplyPart::Thought(text) => message.thought += text,
                ReplyPart::Call(name) => message.calls.push((name, String::new())),
                ReplyPart::Arguments(text) => {
                    message.calls.iter_mut().last().into_iter().for_each(|call| call.1 += text)
                }
                _ => {}
            }
        }
        message
    }

    pub fn json(&self, id: &str) -> Value {
        let mut message = json!({"role": "assistant", "content": self.content});
        if !self.thought.is_empty() {
            message["reasoning_content"] = json!(self.thought);
        }
        if !self.calls.is_empty() {
            if self.content.is_empty() {
                message["content"] = Value::Null;
            }
            let calls = self.calls.iter().enumerate();
            message["tool_calls"] = calls.map(|(i, (name, arguments))| call(id, i, name, arguments)).collect();
        }
        message
    }
}

fn call(id: &str, index: usize, name: &str, arguments: &str) -> Value {
    json!({"id": call_id(id, index), "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// The id of a call: the same wherever the reply is written, another for each call and reply.
fn call_id(id: &str, index: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut hasher = DefaultHasher::new();
    (id, index).hash(&mut hasher);
    let number = hasher.finish();
    (0..ID_LENGTH).map(|i| char::from(DIGITS[(number / 62u64.pow(i) % 62) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_add_up_to_the_message() {
        let parts = [
            ReplyPart::Content("I look.".to_owned()),
            ReplyPart::Call("f".to_owned()),
            ReplyPart::Arguments("{\"a\":".to_owned()),
            ReplyPart::Arguments(" 1}".to_owned()),
            ReplyPart::Call("g".to_owned()),
            ReplyPart::Arguments("{}".to_owned()),
        ];
        let whole = Message::of(&parts).json("chatcmpl-1");
        let calls = whole["tool_calls"].as_array().unwrap();
        assert_eq!((calls[0]["function"]["arguments"].as_str(), calls.len()), (Some("{\"a\": 1}"), 2));
        let mut n_calls = 0;
        let mut arguments = [String::new(), String::new()];
        for part in &parts {
            n_calls += usize::from(matches!(part, ReplyPart::Call(_)));
            let delta = Piece { part, n_calls, id: "chatcmpl-1" }.json();
            let Some(call) = delta.pointer("/tool_calls/0") else { continue };
            let index = call["index"].as_u64().unwrap() as usize;
            arguments[index] += call["function"]["arguments"].as_str().unwrap();
            if let Some(id) = call.get("id") {
                assert_eq!(*id, calls[index]["id"]);
            }
        }
        assert_eq!(arguments, ["{\"a\": 1}", "{}"]);
    }

    #[test]
    fn ids_are_nine_letters_and_digits_and_differ() {
        let ids = [call_id("a", 0), call_id("a", 1), call_id("b", 0)];
        assert!(ids.iter().all(|id| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric())), "{ids:?}");
        assert!(ids[0] != ids[1] && ids[0] != ids[2]);
    }

    #[test]
    fn a_message_of_calls_alone_has_no_content() {
        let parts = [ReplyPart::Call("f".to_owned()), ReplyPart::Arguments("{}".to_owned())];
        assert_eq!(Message::of(&parts).json("x")["content"], Value::Null);
        assert_eq!(Message::of(&[]).json("x")["content"], "");
    }
}
