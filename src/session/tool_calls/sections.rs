//! Calls in sections between marks of their own: DeepSeek V3, R1 and V3.1, and Kimi K2.
//!
//! DeepSeek's distilled models write the marks in several spellings, all of which are read. Refuses a section without a
//! function's name or without an object of arguments.

use super::json::Scanner;
use super::{Out, Step, is_name, partial, skip};

pub(super) const DEEPSEEK_MARKS: &[&str] = &[
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
];
pub(super) const KIMI_MARKS: &[&str] = &[
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
];

/// What opens the calls.
pub(super) const DEEPSEEK_OPENS: &[&str] = &[
    "<｜tool▁calls▁begin｜>",
    "<｜tool_calls_begin｜>",
    "<｜tool calls begin｜>",
    "<｜tool\\_calls\\_begin｜>",
    "<｜tool▁calls｜>",
];
pub(super) const KIMI_OPENS: &[&str] = &["<|tool_calls_section_begin|>"];

const BEGINS: &[&str] = &["<｜tool▁call▁begin｜>", "<｜tool_call_begin｜>", "<|tool_call_begin|>"];
const SEPARATORS: &[&str] = &["<｜tool▁sep｜>", "<｜tool_sep｜>", "<|tool_call_argument_begin|>"];
const ENDS: &[&str] = &["```", "<｜tool▁call▁end｜>", "<｜tool_call_end｜>", "<|tool_call_end|>"];
const CLOSES: &[&str] = &["<｜tool▁calls▁end｜>", "<｜tool_calls_end｜>", "<|tool_calls_section_end|>"];

#[derive(Debug)]
enum At {
    Between,
    /// Before the separator.
    Kind,
    /// In the name, which a line break ends.
    Name,
    /// Before the arguments of this function.
    Open(String),
    Arguments(Scanner),
}

/// Reads the calls of a section.
#[derive(Debug)]
pub(super) struct Section {
    at: At,
    n_calls: usize,
}

impl Section {
    pub(super) fn new() -> Self {
        Self { at: At::Between, n_calls: 0 }
    }

    pub(super) fn step(&mut self, held: &mut String, out: &mut Out) -> Step {
        loop {
            match &mut self.at {
                At::Between => {
                    skip(held, ENDS);
                    if let Some(begin) = BEGINS.iter().find(|begin| held.starts_with(**begin)) {
                        held.drain(..begin.len());
                        self.at = At::Kind;
                    } else if let Some(close) = CLOSES.iter().find(|close| held.starts_with(**close)) {
                        held.drain(..close.len());
                        return Step::Done;
                    } else if [BEGINS, CLOSES, ENDS].concat().iter().any(|mark| mark.starts_with(held.as_str())) {
                        return Step::More;
                    } else {
                        return if self.n_calls > 0 { Step::Done } else { Step::Failed };
                    }
                }
                At::Kind => {
                    let found = SEPARATORS.iter().find_map(|mark| Some((held.find(mark)?, mark.len())));
                    let Some((at, length)) = found else {
                        let kept = held.len() - partial(held, SEPARATORS);
                        let begun = held[..kept].trim();
                        return if begun.is_empty() || is_name(begun) { Step::More } else { Step::Failed };
                    };
                    let kind = held[..at].trim().to_owned();
                    // DeepSeek V3 writes what is called before its name; others write the name alone.
                    self.at = if kind == "function" {
                        At::Name
                    } else {
                        // Kimi numbers the calls: functions.name:0.
                        let name = kind.strip_prefix("functions.").unwrap_or(&kind);
                        let name = match name.rsplit_once(':') {
                            Some((name, n)) if n.bytes().all(|byte| byte.is_ascii_digit()) => name,
                            _ => name,
                        };
                        if !is_name(name) {
                            return Step::Failed;
                        }
                        At::Open(name.to_owned())
                    };
                    held.drain(..at + length);
                }
                At::Name => {
                    let Some(at) = held.find('\n') else { return Step::More };
                    let name = held[..at].trim();
                    if !is_name(name) {
                        return Step::Failed;
                    }
                    self.at = At::Open(name.to_owned());
                    held.drain(..at + 1);
                }
                At::Open(name) => {
                    skip(held, &["```json"]);
                    if held.starts_with('{') {
                        out.call(name);
                        self.n_calls += 1;
                        self.at = At::Arguments(Scanner::default());
                    } else if "```json".starts_with(held.as_str()) {
                        return Step::More;
                    } else {
                        return Step::Failed;
                    }
                }
                At::Arguments(scanner) => {
                    let end = scanner.feed(held);
                    out.arguments(&held[..end.unwrap_or(held.len())]);
                    held.drain(..end.unwrap_or(held.len()));
                    if end.is_none() {
                        return Step::More;
                    }
                    out.close();
                    self.at = At::Between;
                }
            }
        }
    }
}
