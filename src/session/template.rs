//! The chat template of a model: from messages to the text that the model was trained on.
//!
//! A GGUF file carries its template as Jinja source in `tokenizer.chat_template`, written for Python's `transformers`. This renders it the way
//! `transformers` does (`trim_blocks`, `lstrip_blocks`, Python's methods on strings and dictionaries, Python's way of printing values,
//! `raise_exception`, `strftime_now`, `tojson` as `json.dumps`, the `generation` block). The source comes from a file that nobody vouches for,
//! so work, memory and time are bounded (`guard`, `program`), and a template sees nothing but the values it is given. It refuses `include`, `import` and
//! `extends`: there is one template.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::OnceLock;

use minijinja::machinery::{Vm, make_string_output};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, context};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::tool_calls::ToolFormat;
use adapt::Wants;

mod adapt;
mod filters;
mod guard;
mod operators;
mod program;
mod python;
#[cfg(test)]
mod tests;

/// Longest template source that is accepted, in bytes. The longest in use today have about 20 thousand.
const MAX_SOURCE: usize = 1 << 20;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Why a chat template gave no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is not Jinja that we know.
    #[error("the chat template does not parse: {detail} (line {line}); run with --raw and write the format yourself")]
    Syntax {
        /// Line in the template's source, from 1; 0 when unknown.
        line: usize,
        /// What the parser met.
        detail: String,
    },
    /// The template refused the conversation by `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    /// Evaluation failed, for example on an attribute of something undefined.
    #[error("the chat template failed: {detail} (line {line})")]
    Failed {
        /// Line in the template's source, from 1; 0 when unknown.
        line: usize,
        /// What went wrong.
        detail: String,
    },
    /// The template asks for more work, memory or time than any real one needs.
    #[error(
        "the chat template was stopped: {0}; the model file may be hostile, run with --raw to do without its template"
    )]
    Stopped(String),
}

/// A parsed chat template with the special tokens that it may print.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
    tool_format: ToolFormat,
    /// Found by trying, once it is asked for.
    wants: OnceLock<Wants>,
}

impl ChatTemplate {
    /// Parses `source`. `bos` and `eos` are the texts of the model's special tokens, empty where it has none.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] when the source does not parse, [`TemplateError::Stopped`] when it is longer than 1 MiB.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Stopped(format!(
                "its source has {} bytes, at most {MAX_SOURCE} are accepted",
                source.len()
            )));
        }
        let tool_format = ToolFormat::of(source);
        let source = without_generation_marks(source);
        let source = program::without_folded_products(&source)?;
        program::compile(&source)?;
        let (source, bos, eos) = (source.into_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self { source, bos, eos, tool_format, wants: OnceLock::new() })
    }

    /// How the model writes tool calls, as far as the template tells.
    pub fn tool_format(&self) -> ToolFormat {
        self.tool_format
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant's next turn begins.
    ///
    /// # Errors
    /// Any [`TemplateError`] but `Syntax`.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let mut variables = Map::new();
        variables.insert("messages".to_owned(), json!(messages));
        variables.insert("add_generation_prompt".to_owned(), json!(add_generation_prompt));
        self.render_chat(variables)
    }

    /// Renders with everything a template may ask for: `messages`, `add_generation_prompt` and what else the caller has,
    /// such as `tools` or `enable_thinking`. `bos_token` and `eos_token` are added. The messages have texts as their content
    /// and objects as the arguments of their calls; they are given to the template in the way that it shows.
    ///
    /// # Errors
    /// Any [`TemplateError`] but `Syntax`.
    pub fn render_chat(&self, mut variables: Map<String, Json>) -> Result<String, TemplateError> {
        let wants = self.wants.get_or_init(|| {
            let stopped = Cell::new(false);
            Wants::of(|variables| match stopped.get() {
                // One that takes too long is not tried again.
                true => None,
                false => self.render_with(variables).map_err(|error| stopped.set(is_stopped(&error))).ok(),
            })
        });
        if let Some(messages) = variables.get_mut("messages") {
            wants.adapt(messages);
        }
        self.render_with(variables)
    }

    /// Renders with `variables` as they are; they are a map.
    ///
    /// # Errors
    /// Any [`TemplateError`] but `Syntax`.
    pub fn render_with(&self, variables: impl Serialize) -> Result<String, TemplateError> {
        let bos_token = &self.bos;
        let eos_token = &self.eos;
        let root = context! { bos_token, eos_token, ..Value::from_serialize(variables) };
        guard::on_deep_stack(|| self.evaluate(root))
    }

    fn evaluate(&self, root: Value) -> Result<String, TemplateError> {
        let mut program = program::compile(&self.source)?;
        let calls = program::Calls::of(&program);
        let mut environment = environment();
        program::install(&mut environment, &mut program, &calls)?;
        let mut text = String::new();
        let spending = guard::start_spending();
        Vm::new(&environment)
            .eval(&program.root, root, &program.blocks, &mut make_string_output(&mut text), AutoEscape::None)
            .map_err(|error| explain(&error))?;
        drop(spending);
        if text.len() > guard::MAX_TEXT {
            return Err(TemplateError::Stopped(format!("its text has more than {} bytes", guard::MAX_TEXT)));
        }
        Ok(text)
    }
}

fn is_stopped(error: &TemplateError) -> bool {
    matches!(error, TemplateError::Stopped(_))
}

/// What a template may call, as `transformers` provides it.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_formatter(|out, _, value| guard::emit(out, value));
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised").with_source(TemplateError::Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| python::strftime_now(format));
    filters::install(&mut environment);
    environment
}

/// `transformers` knows `{% generation %}` around what the assistant says, to mask losses in training; it prints what is inside.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((start, length)) = rest.find("{%").and_then(|start| Some((start, rest[start..].find("%}")?))) {
        let (before, tag) = (&rest[..start], &rest[start..start + length]);
        plain.push_str(before);
        match tag[2..].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            "generation" => plain.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => plain.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => plain.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// Finds the typed cause inside an engine's error, or tells its kind and line.
fn explain(error: &minijinja::Error) -> TemplateError {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(typed) = inner.downcast_ref::<TemplateError>() {
            return typed.clone();
        }
        cause = inner.source();
    }
    let line = error.line().unwrap_or(0);
    let detail = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.kind() {
        ErrorKind::SyntaxError => {
            TemplateError::Syntax { line, detail: error.detail().unwrap_or("syntax error").to_owned() }
        }
        ErrorKind::OutOfFuel => TemplateError::Stopped("it runs longer than any real one".to_owned()),
        _ => TemplateError::Failed { line, detail },
    }
}
