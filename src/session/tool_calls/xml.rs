//! Calls as tags: Qwen3-Coder's `<function=…><parameter=…>`, Functionary's `<function=…>{…}`, GLM's `<arg_key>` pairs.
//!
//! Each parameter is given when it is complete. A value is a text where the function's schema says so, and otherwise the
//! JSON that it is, or a text where it is none. Refuses a function without a name.

use serde_json::Value;

use super::json::Scanner;
use super::{Out, Step, Tools, is_name, skip};

const FUNCTION_END: &str = "</function>";
const CALL_END: &str = "</tool_call>";

#[derive(Debug)]
enum At {
    /// In the function's name.
    Name,
    /// Before a parameter, or the end.
    Between,
    /// In arguments that are JSON.
    Json(Scanner),
    /// Behind the call.
    After,
}

/// Reads one call.
#[derive(Debug)]
pub(super) struct Function {
    at: At,
    is_glm: bool,
    name: String,
    n_parameters: usize,
}

impl Function {
    /// Behind `<function=`.
    pub(super) fn new() -> Self {
        Self { at: At::Name, is_glm: false, name: String::new(), n_parameters: 0 }
    }

    /// Behind GLM's `<tool_call>`.
    pub(super) fn glm() -> Self {
        Self { is_glm: true, ..Self::new() }
    }

    pub(super) fn step(&mut self, held: &mut String, tools: &Tools, out: &mut Out, end: bool) -> Step {
        loop {
            match &mut self.at {
                At::Name => {
                    let stops: &[char] = if self.is_glm { &['\n', '<'] } else { &['>'] };
                    let Some(at) = held.find(stops) else {
                        // What cannot be a name is not waited for.
                        let begun = held.trim();
                        return if begun.is_empty() || is_name(begun) { Step::More } else { Step::Failed };
                    };
                    let name = held[..at].trim();
                    if !is_name(name) {
                        return Step::Failed;
                    }
                    self.name = name.to_owned();
                    let is_tag = held[at..].starts_with('<');
                    out.call(&self.name);
                    held.drain(..if is_tag { at } else { at + 1 });
                    self.at = At::Between;
                }
                At::Between => {
                    let is_known = skip(held, &[]);
                    if held.starts_with('{') && self.n_parameters == 0 && !self.is_glm {
                        self.at = At::Json(Scanner::default());
                        continue;
                    }
                    let close = if self.is_glm { CALL_END } else { FUNCTION_END };
                    if held.starts_with(close) || end && !is_known {
                        held.drain(..close.len().min(held.len()));
                        self.finish(out);
                        continue;
                    }
                    let parameter = if self.is_glm { glm(held) } else { qwen(held) };
                    match parameter {
                        Found::Parameter(key, value, length) => {
                            let value = typed(tools, &self.name, &key, value);
                            out.arguments(if self.n_parameters == 0 { "{" } else { ", " });
                            out.arguments(&format!("{}: {value}", Value::from(key)));
                            self.n_parameters += 1;
                            held.drain(..length);
                        }
                        Found::Open => return Step::More,
                        Found::Nothing if close.starts_with(held.as_str()) => return Step::More,
                        // Whatever comes here ends the call.
                        Found::Nothing => self.finish(out),
                    }
                }
                At::Json(scanner) => {
                    let close = scanner.feed(held);
                    out.arguments(&held[..close.unwrap_or(held.len())]);
                    held.drain(..close.unwrap_or(held.len()));
                    if close.is_none() {
                        return Step::More;
                    }
                    out.close();
                    self.at = At::After;
                }
                At::After => {
                    let is_known = skip(held, &[FUNCTION_END, CALL_END]);
                    return if is_known || end { Step::Done } else { Step::More };
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Out) {
        out.arguments(if self.n_parameters == 0 { "{}" } else { "}" });
        out.close();
        self.at = At::After;
    }
}

/// What stands where a parameter may.
enum Found {
    /// Key, value, and the length of both with their tags.
    Parameter(String, String, usize),
    Open,
    Nothing,
}

/// `<parameter=key>value</parameter>`, with a line break around the value.
fn qwen(held: &str) -> Found {
    const OPEN: &str = "<parameter=";
    const CLOSE: &str = "</parameter>";
    let Some(inside) = held.strip_prefix(OPEN) else { return open_or_nothing(held, OPEN) };
    let Some((key, rest)) = inside.split_once('>') else { return Found::Open };
    let Some(end) = rest.find(CLOSE) else { return Found::Open };
    let value = rest[..end].strip_prefix('\n').unwrap_or(&rest[..end]);
    let value = value.strip_suffix('\n').unwrap_or(value);
    let length = held.len() - rest.len() + end + CLOSE.len();
    Found::Parameter(key.trim().to_owned(), value.to_owned(), length)
}

/// `<arg_key>key</arg_key>` and `<arg_value>value</arg_value>`.
fn glm(held: &str) -> Found {
    const OPEN: &str = "<arg_key>";
    const CLOSE: &str = "</arg_value>";
    if !held.starts_with(OPEN) {
        return open_or_nothing(held, OPEN);
    }
    let Some((key, rest)) = held[OPEN.len()..].split_once("</arg_key>") else { return Found::Open };
    let Some(end) = rest.find(CLOSE) else { return Found::Open };
    let Some(value) = rest[..end].trim_start().strip_prefix("<arg_value>") else { return Found::Nothing };
    let length = held.len() - rest.len() + end + CLOSE.len();
    Found::Parameter(key.trim().to_owned(), value.to_owned(), length)
}

fn open_or_nothing(held: &str, open: &str) -> Found {
    if open.starts_with(held) { Found::Open } else { Found::Nothing }
}

/// The value as JSON.
fn typed(tools: &Tools, function: &str, key: &str, value: String) -> Value {
    let is_text = tools.is_text(function, key).unwrap_or(false);
    let parsed = (!is_text).then(|| serde_json::from_str(value.trim()).ok()).flatten();
    let python = || match value.trim() {
        "True" if !is_text => Some(Value::from(true)),
        "False" if !is_text => Some(Value::from(false)),
        "None" if !is_text => Some(Value::Null),
        _ => None,
    };
    parsed.or_else(python).unwrap_or_else(|| Value::from(value.as_str()))
}
