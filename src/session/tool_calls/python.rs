//! What Llama writes behind `<|python_tag|>`: `tool.call(key="value")` for its built-in tools, or Python code.
//!
//! Code is a call of the offered function that runs code, by one of the usual names, and otherwise text. Values are literals
//! alone; refuses expressions.

use serde_json::{Map, Value};

use super::{Out, Step, Tools, is_name};

/// Names of functions that run code.
const INTERPRETERS: &[&str] = &["python", "code_interpreter", "ipython", "run_python"];

/// Reads all that is held, at the end of the reply.
pub(super) fn step(held: &mut String, tools: &Tools, out: &mut Out, end: bool) -> Step {
    if !end {
        return Step::More;
    }
    let text = held.trim();
    if let Some((name, arguments)) = call(text) {
        out.whole_call(name, &Value::Object(arguments).to_string());
    } else if let Some(name) = INTERPRETERS.iter().find(|name| tools.has(name)).filter(|_| !text.is_empty()) {
        out.whole_call(name, &serde_json::json!({ "code": text }).to_string());
    } else {
        return Step::Failed;
    }
    held.clear();
    Step::Done
}

/// `name.call(key=value, …)`.
fn call(text: &str) -> Option<(&str, Map<String, Value>)> {
    let (name, rest) = text.split_once(".call(")?;
    let mut rest = rest.strip_suffix(')')?.trim();
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = literal(after.trim_start())?;
        arguments.insert(Some(key.trim()).filter(|key| is_name(key))?.to_owned(), value);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    is_name(name).then_some((name, arguments))
}

/// A literal of Python or JSON at the beginning, and what follows it.
fn literal(text: &str) -> Option<(Value, &str)> {
    for (word, value) in [("True", Value::from(true)), ("False", Value::from(false)), ("None", Value::Null)] {
        if let Some(rest) = text.strip_prefix(word) {
            return Some((value, rest));
        }
    }
    if let Some(inside) = text.strip_prefix('\'') {
        let end = inside.find('\'').filter(|&end| !inside[..end].contains('\\'))?;
        return Some((Value::from(&inside[..end]), &inside[end + 1..]));
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}
