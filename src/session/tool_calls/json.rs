//! Calls as JSON: one object, several, or a list of them, with the arguments passed on as they come.
//!
//! An object that says its name before its arguments is read as it comes, any other once it is complete. Refuses objects
//! without a name, and names that none can be.

use serde_json::Value;

use super::{Out, Step, Tools, is_name, skip};

/// Keys of a function's name and of its arguments.
const NAMES: &[&str] = &["name", "tool_name", "function", "function_name"];
const ARGUMENTS: &[&str] = &["arguments", "parameters", "args"];
/// Longest object without a mark that may be a call and does not begin with its name, in bytes.
const MAX_BARE: usize = 1 << 16;
/// Cohere's name for no call at all.
const NO_CALLS: &[&str] = &["directly-answer", "directly_answer"];

/// Finds the end of a JSON value that begins with a bracket.
#[derive(Debug, Default, Clone)]
pub(super) struct Scanner {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Scanner {
    /// Inside of an object.
    fn inside() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    /// Where in `text` the value ends.
    pub(super) fn feed(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Where the reader of calls is.
#[derive(Debug)]
enum At {
    /// Before a call, or after one.
    Between,
    /// At the beginning of an object, all of which is held.
    Object,
    /// In an object that is read once it is complete, with how much of it was looked at.
    Whole(Scanner, usize),
    /// In the arguments, which were given up to what is held.
    Arguments(Scanner),
    /// In what follows the arguments in their object.
    Tail(Scanner),
}

/// Reads calls.
#[derive(Debug)]
pub(super) struct Calls {
    at: At,
    closes: &'static [&'static str],
    in_list: bool,
    /// Whether the arguments stand alone.
    alone: bool,
    n_calls: usize,
}

impl Calls {
    /// Calls that end at one of `closes`, or where no further call comes.
    pub(super) fn new(closes: &'static [&'static str]) -> Self {
        Self { at: At::Between, closes, in_list: false, alone: false, n_calls: 0 }
    }

    /// The arguments alone of a call that was given already.
    pub(super) fn arguments() -> Self {
        Self { alone: true, ..Self::new(&[]) }
    }

    /// Calls in a list whose bracket was read already.
    pub(super) fn listed() -> Self {
        Self { in_list: true, ..Self::new(&[]) }
    }

    /// Calls without a mark, if the object that `begun` begins with calls a known function.
    pub(super) fn bare(begun: &str, tools: &Tools) -> Result<Self, Step> {
        let known = |name: &str| if tools.has(name) { Ok(Self::new(&[])) } else { Err(Step::Failed) };
        match header(begun) {
            Header::Found { name, .. } => known(&name),
            Header::Open => Err(Step::More),
            Header::None => match Scanner::default().feed(begun) {
                Some(end) if end <= MAX_BARE => {
                    let value: Value = serde_json::from_str(&begun[..end]).map_err(|_| Step::Failed)?;
                    call(&value).map_or(Err(Step::Failed), |(name, _)| known(name))
                }
                None if begun.len() <= MAX_BARE => Err(Step::More),
                _ => Err(Step::Failed),
            },
        }
    }

    /// True once a call or an empty list was read.
    pub(super) fn has_any(&self) -> bool {
        self.n_calls > 0
    }

    pub(super) fn step(&mut self, held: &mut String, out: &mut Out) -> Step {
        loop {
            match &mut self.at {
                At::Between => {
                    if !skip(held, self.closes) && held.is_empty() {
                        return Step::More;
                    }
                    match held.chars().next() {
                        Some('[') if !self.in_list && self.n_calls == 0 && !self.alone => {
                            self.in_list = true;
                            held.drain(..1);
                        }
                        Some('{') if self.alone => self.at = At::Arguments(Scanner::default()),
                        Some('{') => self.at = At::Object,
                        Some(',' | ';') if self.n_calls > 0 => drop(held.drain(..1)),
                        Some(']') if self.in_list => {
                            self.in_list = false;
                            held.drain(..1);
                            // An empty list is no call, and no text either.
                            self.n_calls += 1;
                        }
                        _ if self.closes.iter().any(|close| close.starts_with(held.as_str())) => return Step::More,
                        _ if self.n_calls > 0 => return Step::Done,
                        _ => return Step::Failed,
                    }
                }
                At::Object => match header(held) {
                    Header::Found { name, at } => {
                        out.call(&name);
                        self.n_calls += 1;
                        held.drain(..at);
                        self.at = At::Arguments(Scanner::default());
                    }
                    Header::Open => return Step::More,
                    Header::None => self.at = At::Whole(Scanner::default(), 0),
                },
                At::Whole(scanner, seen) => {
                    let end = scanner.feed(&held[*seen..]).map(|end| *seen + end);
                    let Some(end) = end else {
                        *seen = held.len();
                        return Step::More;
                    };
                    let value: Option<Value> = serde_json::from_str(&held[..end]).ok();
                    let Some((name, arguments)) = value.as_ref().and_then(call) else { return Step::Failed };
                    if !NO_CALLS.contains(&name) {
                        out.whole_call(name, &arguments);
                    }
                    self.n_calls += 1;
                    held.drain(..end);
                    self.at = At::Between;
                }
                At::Arguments(scanner) => {
                    let end = scanner.feed(held);
                    out.arguments(&held[..end.unwrap_or(held.len())]);
                    held.drain(..end.unwrap_or(held.len()));
                    if end.is_none() {
                        return Step::More;
                    }
                    out.close();
                    if self.alone {
                        return Step::Done;
                    }
                    self.at = At::Tail(Scanner::inside());
                }
                At::Tail(scanner) => {
                    // An object that was left open ends where no JSON comes.
                    let foreign = tail_end(scanner, held);
                    let to = foreign.unwrap_or(held.len());
                    let end = scanner.feed(&held[..to]);
                    held.drain(..end.unwrap_or(to));
                    if end.is_none() && foreign.is_none() {
                        return Step::More;
                    }
                    self.at = At::Between;
                }
            }
        }
    }
}

/// Where in the rest of an object something stands that is no JSON outside of a text.
fn tail_end(scanner: &Scanner, held: &str) -> Option<usize> {
    let mut scanner = scanner.clone();
    held.char_indices()
        .find_map(|(at, c)| {
            let is_foreign = !scanner.in_text && matches!(c, '<' | '`' | '|' | '>' | ';');
            (is_foreign || scanner.feed(&held[at..at + c.len_utf8()]).is_some()).then_some((at, is_foreign))
        })
        .and_then(|(at, is_foreign)| is_foreign.then_some(at))
}

/// What the beginning of an object says.
enum Header {
    /// It calls `name`; the arguments, an object, begin at `at`.
    Found { name: String, at: usize },
    /// Not known yet.
    Open,
    /// It has another order; it is to be read as a whole.
    None,
}

fn header(held: &str) -> Header {
    let Some(mut rest) = held.strip_prefix('{') else { return Header::None };
    let mut name: Option<String> = None;
    loop {
        rest = rest.trim_start();
        let key = match text(rest) {
            Ok(Some((key, after))) => {
                rest = after.trim_start();
                key
            }
            Ok(None) => return Header::Open,
            Err(()) => return Header::None,
        };
        match rest.strip_prefix(':') {
            Some(after) => rest = after.trim_start(),
            None if rest.is_empty() => return Header::Open,
            None => return Header::None,
        }
        let Some(first) = rest.chars().next() else { return Header::Open };
        if ARGUMENTS.contains(&key.as_str()) {
            return match name {
                Some(name) if first == '{' && !NO_CALLS.contains(&name.as_str()) => {
                    Header::Found { name, at: held.len() - rest.len() }
                }
                _ => Header::None,
            };
        }
        if first == '"' {
            let (value, after) = match text(rest) {
                Ok(Some(found)) => found,
                Ok(None) => return Header::Open,
                Err(()) => return Header::None,
            };
            rest = after;
            if NAMES.contains(&key.as_str()) {
                if !is_name(&value) || name.is_some() {
                    return Header::None;
                }
                name = Some(value);
            }
        } else {
            let plain = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
            if plain.len() == rest.len() {
                return Header::None;
            }
            rest = plain;
        }
        rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Header::Open,
            None => return Header::None,
        }
    }
}

/// The JSON text at the beginning, and what follows it; `None` while it is not complete.
fn text(rest: &str) -> Result<Option<(String, &str)>, ()> {
    match rest.chars().next() {
        None => return Ok(None),
        Some('"') => {}
        Some(_) => return Err(()),
    }
    let mut escaped = false;
    let end = rest.bytes().skip(1).position(|byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    });
    let Some(end) = end.map(|at| at + 2) else { return Ok(None) };
    serde_json::from_str(&rest[..end]).map(|text| Some((text, &rest[end..]))).map_err(|_| ())
}

/// Name and arguments of a call that is complete.
pub(super) fn call(value: &Value) -> Option<(&str, String)> {
    // OpenAI's own shape, which some models write.
    if let Some(function @ Value::Object(_)) = value.get("function") {
        return call(function);
    }
    let name = NAMES.iter().find_map(|key| value.get(*key)?.as_str()).filter(|name| is_name(name))?;
    let arguments = ARGUMENTS.iter().find_map(|key| value.get(*key));
    let arguments = match arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(_)) => text.clone(),
            _ => return None,
        },
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some((name, arguments))
}
