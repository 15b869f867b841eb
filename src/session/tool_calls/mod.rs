//! Tool calls in a reply: tells them from what is said, as the text comes.
//!
//! Models write calls in the format of their chat template, which [`ToolFormat::of`] recognises. [`ReplyReader`] takes the
//! reply in any pieces and gives what was said, what was thought, and the calls, with the arguments as the JSON text that
//! the model wrote. What one call of [`ReplyReader::push`] gives for a whole text is what many give for its pieces. What is
//! no call in the format stays text: nothing is lost. Pure: no model, no I/O. It judges no arguments by their schema.

mod forced;
mod json;
mod python;
mod routed;
mod sections;
mod tagged;
#[cfg(test)]
mod tests;
mod xml;

use std::sync::Arc;

use serde_json::Value;

pub use forced::Forced;

/// What a piece of a reply is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyPart {
    /// For the user.
    Content(String),
    /// Thought aloud.
    Thought(String),
    /// A call of this function begins; its arguments follow.
    Call(String),
    /// More of the JSON text of the arguments of the last call.
    Arguments(String),
}

/// How a model writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolFormat {
    /// None that is known here: all of a reply is text.
    Unknown,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen and many others.
    Hermes,
    /// `<tool_call><function=…><parameter=…>…`: Qwen3-Coder.
    QwenCoder,
    /// `<tool_call>name<arg_key>…</arg_key><arg_value>…`: GLM.
    Glm,
    /// `{"name": …, "parameters": …}` alone, or behind `<|python_tag|>`: Llama 3.x.
    Llama3,
    /// `[TOOL_CALLS]`, and a JSON list or `name[ARGS]{…}`: Mistral.
    Mistral,
    /// `<｜tool▁calls▁begin｜>…`: DeepSeek V3, R1 and V3.1.
    DeepSeek,
    /// `<|tool_calls_section_begin|>…`: Kimi K2.
    Kimi,
    /// `>>>name` and a line break before the arguments: Functionary 3.2.
    Functionary,
    /// `<|recipient|>name<|content|>…`: Functionary 2.
    FunctionaryV2,
    /// `<function=name>{…}</function>`: Functionary 3.1.
    FunctionTag,
    /// `<|START_ACTION|>[{"tool_name": …}]`: Command R7B and Command A.
    Command,
    /// `Action:` and a JSON list in a code block: Command R and R+.
    CommandR,
    /// Channels with recipients: gpt-oss.
    GptOss,
    /// `<|tool_call|>` and JSON: Granite 3, Phi-4-mini.
    Piped,
    /// `<tool_calls>` and a JSON list: Jamba.
    Plural,
    /// ` functools` and a JSON list: Firefunction.
    Functools,
}

impl ToolFormat {
    /// The format that a chat template's source speaks of.
    pub fn of(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        if has("<|channel|>") && has("<|message|>") {
            Self::GptOss
        } else if has("<｜tool▁calls▁begin｜>") {
            Self::DeepSeek
        } else if has("<|tool_calls_section_begin|>") {
            Self::Kimi
        } else if has("<|START_ACTION|>") {
            Self::Command
        } else if has("<|CHATBOT_TOKEN|>") && has("Action:") {
            Self::CommandR
        } else if has(">>>all") {
            Self::Functionary
        } else if has("<|recipient|>") {
            Self::FunctionaryV2
        } else if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has("<tool_call>") && has("<arg_key>") {
            Self::Glm
        } else if has("<tool_call>") && has("<function=") {
            Self::QwenCoder
        } else if has("<tool_call>") {
            Self::Hermes
        } else if has("<function=") {
            Self::FunctionTag
        } else if has("<|python_tag|>") || has("<|start_header_id|>") && (has("ipython") || has("\"parameters\"")) {
            Self::Llama3
        } else if has("<|tool_call|>") {
            Self::Piped
        } else if has("<tool_calls>") {
            Self::Plural
        } else if has(" functools[") {
            Self::Functools
        } else {
            Self::Unknown
        }
    }

    /// True if replies have this format's marks even where no tools are offered.
    pub fn is_everywhere(self) -> bool {
        matches!(self, Self::GptOss | Self::Command | Self::Functionary | Self::FunctionaryV2)
    }

    /// Texts of the format that may be control tokens, which a reply otherwise leaves out.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Unknown => &[],
            Self::Hermes | Self::QwenCoder | Self::Glm => &["<tool_call>", "</tool_call>"],
            Self::Llama3 | Self::FunctionTag => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"],
            Self::DeepSeek => sections::DEEPSEEK_MARKS,
            Self::Kimi => sections::KIMI_MARKS,
            Self::Functionary => &[],
            Self::FunctionaryV2 => &["<|from|>", "<|recipient|>", "<|content|>"],
            Self::Command => tagged::COMMAND_MARKS,
            Self::CommandR => &[],
            Self::GptOss => routed::HARMONY_MARKS,
            Self::Piped => &["<|tool_call|>", "<|/tool_call|>"],
            Self::Plural => &["<tool_calls>", "</tool_calls>"],
            Self::Functools => &[],
        }
    }
}

/// The functions that may be called, with the schemas of their parameters.
#[derive(Debug, Clone, Default)]
pub struct Tools(Arc<Vec<(String, Value)>>);

impl Tools {
    /// From a request's `tools`, in OpenAI's shape; what has no name is left out.
    pub fn new(tools: &[Value]) -> Self {
        let one = |tool: &Value| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?.to_owned();
            Some((name, function.get("parameters").cloned().unwrap_or_default()))
        };
        Self(Arc::new(tools.iter().filter_map(one).collect()))
    }

    /// True if a function has this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// True if the function takes the parameter as a text; `None` if it does not say.
    fn is_text(&self, function: &str, parameter: &str) -> Option<bool> {
        let (_, schema) = self.0.iter().find(|(known, _)| known == function)?;
        match schema.get("properties")?.get(parameter)?.get("type")? {
            Value::String(kind) => Some(kind == "string"),
            Value::Array(kinds) => Some(kinds.iter().any(|kind| kind == "string")),
            _ => None,
        }
    }
}

/// Longest name of a function that a reply may call, in bytes.
const MAX_NAME: usize = 256;

/// True for what can be a function's name.
fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(is_part)
}

/// What was read, with space held back that may stand before a call.
#[derive(Debug, Default)]
struct Out {
    parts: Vec<ReplyPart>,
    space: String,
    n_calls: usize,
    /// Calls from this one on are left out.
    most: Option<usize>,
    has_content: bool,
    /// Whether a call has begun whose arguments are not complete.
    open: bool,
}

impl Out {
    fn content(&mut self, text: &str) {
        let said = text.trim_end();
        if said.is_empty() {
            self.space.push_str(text);
            return;
        }
        let before = std::mem::take(&mut self.space);
        self.space = text[said.len()..].to_owned();
        let text = if self.has_content || self.n_calls == 0 { before + said } else { said.trim_start().to_owned() };
        self.has_content = true;
        self.add(ReplyPart::Content(text));
    }

    fn thought(&mut self, text: &str) {
        self.add(ReplyPart::Thought(text.to_owned()));
    }

    /// A call begins.
    fn call(&mut self, name: &str) {
        self.space.clear();
        self.open = true;
        self.n_calls += 1;
        if self.is_wanted() {
            self.parts.push(ReplyPart::Call(name.to_owned()));
        }
    }

    fn arguments(&mut self, text: &str) {
        if self.is_wanted() {
            self.add(ReplyPart::Arguments(text.to_owned()));
        }
    }

    fn close(&mut self) {
        self.open = false;
    }

    fn whole_call(&mut self, name: &str, arguments: &str) {
        self.call(name);
        self.arguments(arguments);
        self.close();
    }

    fn is_wanted(&self) -> bool {
        self.most.is_none_or(|most| self.n_calls <= most)
    }

    fn add(&mut self, part: ReplyPart) {
        use ReplyPart::{Arguments, Content, Thought};
        match (self.parts.last_mut(), part) {
            (_, Content(text) | Thought(text) | Arguments(text)) if text.is_empty() => {}
            (Some(Content(last)), Content(text))
            | (Some(Thought(last)), Thought(text))
            | (Some(Arguments(last)), Arguments(text)) => last.push_str(&text),
            (_, part) => self.parts.push(part),
        }
    }
}

/// What became of a step through what is held.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// More text is needed.
    More,
    /// The calls end here; what is held comes after them.
    Done,
    /// What is held is no call.
    Failed,
}

/// What stands behind an opening mark.
#[derive(Debug)]
enum Body {
    Json(json::Calls),
    Tagged(tagged::Tagged),
    Xml(xml::Function),
    Section(sections::Section),
    Python,
    Routed(routed::Routed),
    /// The text up to a mark is thought.
    Thought(&'static str),
}

#[derive(Debug)]
enum State {
    /// Before anything but space.
    Start,
    Text,
    Body {
        body: Body,
        /// What opened it, and what came behind, for the text that both are if there is no call.
        mark: String,
        raw: String,
        /// Calls before it.
        n_calls: usize,
    },
}

/// Reads a reply as it comes.
#[derive(Debug)]
pub struct ReplyReader {
    format: ToolFormat,
    tools: Tools,
    state: State,
    held: String,
    out: Out,
}

impl ReplyReader {
    /// Of a reply in `format` by a model that was offered `tools`.
    pub fn new(format: ToolFormat, tools: Tools) -> Self {
        let state = match routed::Routed::new(format, &tools) {
            Some(routed) => State::body(Body::Routed(routed), "", "", 0),
            None => State::Start,
        };
        Self { format, tools, state, held: String::new(), out: Out::default() }
    }

    /// Of a reply that a grammar makes calls, as [`Forced`] asks for.
    pub fn of_forced(forced: &Forced, tools: Tools) -> Self {
        let mut reader = Self::new(ToolFormat::Unknown, tools);
        let calls = match forced.function() {
            Some(name) => {
                reader.out.call(name);
                json::Calls::arguments()
            }
            None => json::Calls::new(&[]),
        };
        reader.state = State::body(Body::Json(calls), "", "", 0);
        reader
    }

    /// Gives at most the first `most` calls.
    #[must_use]
    pub fn at_most(mut self, most: usize) -> Self {
        self.out.most = Some(most);
        self
    }

    /// Calls so far.
    pub fn n_calls(&self) -> usize {
        self.out.most.map_or(self.out.n_calls, |most| self.out.n_calls.min(most))
    }

    /// Takes the next piece of the reply and gives what is known by now.
    pub fn push(&mut self, text: &str) -> Vec<ReplyPart> {
        self.held.push_str(text);
        if let State::Body { body, raw, n_calls, .. } = &mut self.state
            && *n_calls == self.out.n_calls
            && !matches!(body, Body::Routed(_) | Body::Thought(_))
        {
            raw.push_str(text);
        }
        self.advance(false)
    }

    /// What was held back, at the end of the reply.
    pub fn finish(&mut self) -> Vec<ReplyPart> {
        let mut parts = self.advance(true);
        if self.out.n_calls == 0 {
            let space = std::mem::take(&mut self.out.space);
            self.out.add(ReplyPart::Content(space));
            parts.append(&mut self.out.parts);
        }
        parts
    }

    fn advance(&mut self, end: bool) -> Vec<ReplyPart> {
        if self.format == ToolFormat::Unknown && !matches!(self.state, State::Body { .. }) {
            self.out.content(&std::mem::take(&mut self.held));
            return std::mem::take(&mut self.out.parts);
        }
        loop {
            match &mut self.state {
                State::Start => {
                    let begun = self.held.trim_start();
                    if begun.is_empty() && !end {
                        break;
                    }
                    self.state = match tagged::at_start(self.format, begun) {
                        Some(body) => State::body(body, "", &self.held, self.out.n_calls),
                        None => State::Text,
                    };
                }
                State::Text => match tagged::next_mark(self.format, &self.held) {
                    Some(found) if found.is_whole => {
                        self.out.content(&self.held[..found.at]);
                        self.held.drain(..found.at + found.mark.len());
                        if let Some(body) = tagged::body(self.format, found.mark) {
                            self.state = State::body(body, found.mark, &self.held, self.out.n_calls);
                        }
                    }
                    Some(found) if !end => {
                        self.out.content(&self.held[..found.at]);
                        self.held.drain(..found.at);
                        break;
                    }
                    _ => {
                        self.out.content(&std::mem::take(&mut self.held));
                        break;
                    }
                },
                State::Body { body, mark, raw, n_calls } => {
                    let mut step = body.step(&mut self.held, &self.tools, &mut self.out, end);
                    if step == Step::More && !end {
                        break;
                    }
                    if step == Step::More && self.out.open {
                        // The reply broke off inside of a call; what there is of it was given.
                        self.held.clear();
                        step = Step::Done;
                    }
                    if step != Step::Done && self.out.n_calls == *n_calls && !body.is_settled() {
                        self.out.content(mark);
                        self.held = std::mem::take(raw);
                    }
                    self.out.close();
                    self.state = State::Text;
                }
            }
        }
        std::mem::take(&mut self.out.parts)
    }
}

impl State {
    fn body(body: Body, mark: &str, held: &str, n_calls: usize) -> Self {
        Self::Body { body, mark: mark.to_owned(), raw: held.to_owned(), n_calls }
    }
}

impl Body {
    /// True if what was read was understood, though it called nothing.
    fn is_settled(&self) -> bool {
        matches!(self, Self::Json(calls) if calls.has_any())
    }

    fn step(&mut self, held: &mut String, tools: &Tools, out: &mut Out, end: bool) -> Step {
        match self {
            Self::Json(calls) => calls.step(held, out),
            Self::Tagged(tagged) => match tagged.choose(held, tools, out) {
                Ok(body) => {
                    *self = body;
                    self.step(held, tools, out, end)
                }
                Err(step) => step,
            },
            Self::Xml(function) => function.step(held, tools, out, end),
            Self::Section(section) => section.step(held, out),
            Self::Python => python::step(held, tools, out, end),
            Self::Routed(routed) => routed.step(held, out, end),
            Self::Thought(close) => {
                let (to, rest) = match held.find(*close) {
                    Some(at) => (at, Some(at + close.len())),
                    None if end => (held.len(), None),
                    None => (held.len() - partial(held, &[close]), None),
                };
                out.thought(&held[..to]);
                held.drain(..rest.unwrap_or(to));
                if rest.is_some() || end { Step::Done } else { Step::More }
            }
        }
    }
}

/// Length of the longest end of `text` that one of `marks` begins with.
fn partial(text: &str, marks: &[&str]) -> usize {
    let of = |mark: &str| {
        let begins = mark.char_indices().map(|(at, _)| at).filter(|&at| at > 0 && text.ends_with(&mark[..at]));
        begins.max().unwrap_or(0)
    };
    marks.iter().map(|mark| of(mark)).max().unwrap_or(0)
}

/// Takes space, and whichever of `marks` come, off the front. False if what is left may become one.
fn skip(held: &mut String, marks: &[&str]) -> bool {
    loop {
        let begun = held.trim_start();
        if let Some(mark) = marks.iter().find(|mark| begun.starts_with(**mark)) {
            *held = begun[mark.len()..].to_owned();
            continue;
        }
        let is_open = begun.is_empty() || marks.iter().any(|mark| mark.starts_with(begun));
        *held = begun.to_owned();
        return !is_open;
    }
}
