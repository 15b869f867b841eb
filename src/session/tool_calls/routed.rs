//! Replies in parts that say whom they are for: gpt-oss's channels, and Functionary 2 and 3.2.
//!
//! Each part has a header and a body. A header with a function as its recipient makes the body the arguments of a call.
//! Refuses a reply that begins with no header: that is text.

use super::{Out, Step, ToolFormat, Tools, is_name, partial};

pub(super) const HARMONY_MARKS: &[&str] =
    &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"];

/// How parts are told apart.
#[derive(Debug, Clone, Copy)]
struct Marks {
    /// Ends a header.
    body: &'static str,
    /// Ends a body. The first of them that is met stays where it begins the next header.
    ends: &'static [&'static str],
}

const HARMONY: Marks = Marks { body: "<|message|>", ends: &["<|end|>", "<|call|>", "<|return|>", "<|start|>"] };
const FUNCTIONARY: Marks = Marks { body: "\n", ends: &[">>>"] };
const FUNCTIONARY_V2: Marks = Marks { body: "<|content|>", ends: &["<|from|>"] };

/// Whom a part is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum To {
    User,
    Thought,
    Function,
}

#[derive(Debug)]
enum At {
    /// With the mark before it; empty for the first.
    Header(&'static str),
    Body(To),
    /// All that comes is text.
    Text,
}

/// Reads the parts of a reply.
#[derive(Debug)]
pub(super) struct Routed {
    format: ToolFormat,
    marks: Marks,
    at: At,
    tools: Tools,
    /// Whether something of the arguments was given.
    has_arguments: bool,
}

impl Routed {
    /// Of a whole reply; `None` for formats of other kinds.
    pub(super) fn new(format: ToolFormat, tools: &Tools) -> Option<Self> {
        let marks = match format {
            ToolFormat::GptOss => HARMONY,
            ToolFormat::Functionary => FUNCTIONARY,
            ToolFormat::FunctionaryV2 => FUNCTIONARY_V2,
            _ => return None,
        };
        let at = At::Header("");
        Some(Self { format, marks, at, tools: tools.clone(), has_arguments: false })
    }

    pub(super) fn step(&mut self, held: &mut String, out: &mut Out, end: bool) -> Step {
        loop {
            match &self.at {
                At::Text => {
                    out.content(&std::mem::take(held));
                    return if end { Step::Done } else { Step::More };
                }
                At::Header(before) => {
                    let before = *before;
                    if before.is_empty() && !self.may_begin(held) {
                        self.at = At::Text;
                        continue;
                    }
                    let at = held.find(self.marks.body);
                    if at.is_none() && !end {
                        return Step::More;
                    }
                    if at.is_none() && !before.is_empty() && self.format == ToolFormat::GptOss {
                        // A header without a body says nothing.
                        held.clear();
                        return Step::Done;
                    }
                    let recipient = at.and_then(|at| Some((at, self.recipient(&held[..at])?)));
                    let Some((at, (to, name))) = recipient else {
                        out.content(before);
                        self.at = At::Text;
                        continue;
                    };
                    if to == To::Function {
                        out.call(&name);
                        self.has_arguments = false;
                    }
                    held.drain(..at + self.marks.body.len());
                    self.at = At::Body(to);
                }
                At::Body(to) => {
                    let to = to.clone();
                    let found = self.marks.ends.iter().filter_map(|mark| Some((held.find(mark)?, *mark))).min();
                    let mut upto = match found {
                        Some((at, _)) => at,
                        None if end => held.len(),
                        None => held.len() - partial(held, self.marks.ends),
                    };
                    let mut text = &held[..upto];
                    if to == To::Function {
                        // Space around the arguments is no part of them.
                        text = text.trim_end();
                        if !self.has_arguments {
                            text = text.trim_start();
                        }
                        if found.is_none() && !end {
                            upto = held[..upto].trim_end().len();
                        }
                        self.has_arguments |= !text.is_empty();
                    }
                    match to {
                        To::User => out.content(text),
                        To::Thought => out.thought(text),
                        To::Function => out.arguments(text),
                    }
                    held.drain(..upto + found.map_or(0, |(_, mark)| mark.len()));
                    if to == To::Function && (found.is_some() || end) {
                        if !self.has_arguments {
                            out.arguments("{}");
                        }
                        out.close();
                    }
                    match found {
                        Some((_, mark)) => self.at = At::Header(mark),
                        None if end => return Step::Done,
                        None => return Step::More,
                    }
                }
            }
        }
    }

    /// False once the reply cannot begin with a header.
    fn may_begin(&self, held: &str) -> bool {
        let begun = held.trim_start();
        if self.format != ToolFormat::GptOss {
            let (name, rest) = match begun.find(['\n', '<']) {
                Some(at) => (begun[..at].trim(), Some(&begun[at..])),
                None => (begun.trim_end(), None),
            };
            let is_known = |name: &str| name == "all" || self.tools.has(name);
            return match rest {
                None => name.is_empty() || is_name(name),
                Some(_) => is_known(name),
            };
        }
        let is_mark = |mark: &str| begun.starts_with(mark) || mark.starts_with(begun);
        ["<|channel|>", "<|start|>", "<|message|>", "to="].iter().any(|mark| is_mark(mark))
    }

    /// Whom a header names; `None` if it is no header.
    fn recipient(&self, header: &str) -> Option<(To, String)> {
        if self.format == ToolFormat::GptOss {
            let named = header.split_once("to=").map(|(_, name)| name);
            let named = named.and_then(|name| name.split([' ', '<', '\n']).next());
            return Some(match named.map(|name| name.strip_prefix("functions.").unwrap_or(name)) {
                Some(name) if is_name(name) => (To::Function, name.to_owned()),
                _ if header.contains("<|channel|>analysis") => (To::Thought, String::new()),
                _ => (To::User, String::new()),
            });
        }
        let name = header.rsplit("<|recipient|>").next().unwrap_or(header).trim();
        match name {
            "all" => Some((To::User, String::new())),
            name if self.tools.has(name) => Some((To::Function, name.to_owned())),
            _ => None,
        }
    }
}
