//! The marks that open calls, and what stands behind each: JSON, tags, or a section of its own.
//!
//! Refuses nothing: what is behind a mark and is no call stays text.

use super::json::Calls;
use super::xml::Function;
use super::{Body, Out, Step, ToolFormat, Tools, is_name, partial, sections};

pub(super) const COMMAND_MARKS: &[&str] = &[
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
];

/// Marks that a format has for the text alone.
const COMMAND_TEXT: &[&str] = &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"];
const ACTIONS: &[&str] = &["Action: ```json", "Action:```json", "Action:\n```json"];

/// A body that its first characters choose.
#[derive(Debug)]
pub(super) enum Tagged {
    /// Behind `<tool_call>`.
    Call,
    /// Behind `[TOOL_CALLS]`.
    Mistral,
    /// Behind `<|python_tag|>`.
    Python,
    /// An object alone, if it calls a function that is known.
    Bare,
}

/// A mark in a text.
pub(super) struct Found {
    pub(super) at: usize,
    /// The mark, or the first of those that may begin there.
    pub(super) mark: &'static str,
    pub(super) is_whole: bool,
}

/// What opens something in the text of a format.
fn marks(format: ToolFormat) -> Vec<&'static str> {
    let fixed: &[&[&str]] = match format {
        ToolFormat::Unknown | ToolFormat::Functionary | ToolFormat::FunctionaryV2 | ToolFormat::GptOss => &[],
        ToolFormat::Hermes | ToolFormat::Glm => &[&["<tool_call>"]],
        ToolFormat::QwenCoder => &[&["<tool_call>", "<function="]],
        ToolFormat::Llama3 | ToolFormat::FunctionTag => &[&["<|python_tag|>", "<function="]],
        ToolFormat::Mistral => &[&["[TOOL_CALLS]", "[THINK]"]],
        ToolFormat::DeepSeek => &[sections::DEEPSEEK_OPENS],
        ToolFormat::Kimi => &[sections::KIMI_OPENS],
        ToolFormat::Command => &[&["<|START_ACTION|>", "<|START_THINKING|>"], COMMAND_TEXT],
        ToolFormat::CommandR => &[ACTIONS],
        ToolFormat::Piped => &[&["<|tool_call|>", "<tool_call>"]],
        ToolFormat::Plural => &[&["<tool_calls>"]],
        ToolFormat::Functools => &[&["functools["]],
    };
    fixed.concat()
}

/// The first mark in `text`, or the end of it that may become one.
pub(super) fn next_mark(format: ToolFormat, text: &str) -> Option<Found> {
    let marks = marks(format);
    let whole = marks.iter().filter_map(|mark| Some((text.find(mark)?, *mark))).min_by_key(|(at, _)| *at);
    if let Some((at, mark)) = whole {
        return Some(Found { at, mark, is_whole: true });
    }
    let open = partial(text, &marks);
    (open > 0).then(|| Found { at: text.len() - open, mark: "", is_whole: false })
}

/// What a whole reply is, by its beginning.
pub(super) fn at_start(format: ToolFormat, begun: &str) -> Option<Body> {
    (format == ToolFormat::Llama3 && begun.starts_with('{')).then_some(Body::Tagged(Tagged::Bare))
}

/// What stands behind a mark; `None` for one that is dropped.
pub(super) fn body(format: ToolFormat, mark: &str) -> Option<Body> {
    Some(match (format, mark) {
        (_, "<tool_call>") if format != ToolFormat::Piped => Body::Tagged(Tagged::Call),
        (_, "<function=") => Body::Xml(Function::new()),
        (_, "<|python_tag|>") => Body::Tagged(Tagged::Python),
        (_, "[TOOL_CALLS]") => Body::Tagged(Tagged::Mistral),
        (_, "[THINK]") => Body::Thought("[/THINK]"),
        (_, "<|START_THINKING|>") => Body::Thought("<|END_THINKING|>"),
        (ToolFormat::DeepSeek | ToolFormat::Kimi, _) => Body::Section(sections::Section::new()),
        (_, "<|START_ACTION|>") => Body::Json(Calls::new(&["<|END_ACTION|>"])),
        (ToolFormat::CommandR, _) => Body::Json(Calls::new(&["```"])),
        (ToolFormat::Piped, _) => Body::Json(Calls::new(&["<|/tool_call|>", "</tool_call>", "<|tool_call|>"])),
        (ToolFormat::Plural, _) => Body::Json(Calls::new(&["</tool_calls>"])),
        (ToolFormat::Functools, _) => Body::Json(Calls::listed()),
        _ => return None,
    })
}

impl Tagged {
    /// The body that `held` is.
    pub(super) fn choose(&self, held: &mut String, tools: &Tools, out: &mut Out) -> Result<Body, Step> {
        let begun = held.trim_start();
        let Some(first) = begun.chars().next() else { return Err(Step::More) };
        let is_json = matches!(first, '{' | '[');
        match self {
            Self::Call if is_json => Ok(Body::Json(Calls::new(&["</tool_call>", "<tool_call>"]))),
            Self::Call => match begun.strip_prefix("<function=") {
                Some(rest) => {
                    *held = rest.to_owned();
                    Ok(Body::Xml(Function::new()))
                }
                None if "<function=".starts_with(begun) => Err(Step::More),
                None => match begun.find(['\n', '<']) {
                    Some(at) if is_name(begun[..at].trim()) && glm_follows(&begun[at..]) != Some(false) => {
                        match glm_follows(&begun[at..]) {
                            Some(_) => Ok(Body::Xml(Function::glm())),
                            None => Err(Step::More),
                        }
                    }
                    None if is_name(begun.trim_end()) => Err(Step::More),
                    _ => Err(Step::Failed),
                },
            },
            Self::Mistral if is_json => Ok(Body::Json(Calls::new(&["[TOOL_CALLS]"]))),
            Self::Mistral => {
                // name[ARGS]{…} or name[CALL_ID]id[ARGS]{…}
                let Some(at) = begun.find(['[', '{']) else {
                    return Err(if is_name(begun.trim_end()) { Step::More } else { Step::Failed });
                };
                let name = begun[..at].trim();
                let Some(open) = begun.find('{') else {
                    let is_mark = is_name(name) && begun.len() - at < 64;
                    return Err(if is_mark { Step::More } else { Step::Failed });
                };
                let between = &begun[at..open];
                let is_mark = between.is_empty() || between.trim_end().ends_with("[ARGS]");
                if !is_name(name) || !is_mark {
                    return Err(Step::Failed);
                }
                out.call(name);
                *held = begun[open..].to_owned();
                Ok(Body::Json(Calls::arguments()))
            }
            Self::Python if first == '{' => Ok(Body::Json(Calls::new(&["<|python_tag|>"]))),
            Self::Python => Ok(Body::Python),
            Self::Bare => Calls::bare(begun, tools).map(Body::Json),
        }
    }
}

/// Whether GLM's call goes on there; `None` while it is not known.
fn glm_follows(rest: &str) -> Option<bool> {
    let rest = rest.trim_start();
    let is_it = |mark: &str| rest.starts_with(mark);
    if is_it("<arg_key>") || is_it("</tool_call>") {
        return Some(true);
    }
    let may = ["<arg_key>", "</tool_call>"].iter().any(|mark| mark.starts_with(rest));
    (!may).then_some(false)
}
