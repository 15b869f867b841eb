//! Where a chat's turns come from: a line editor on a terminal, lines of stdin otherwise.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal};

use reedline::{Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal};

use crate::failure::Failure;

/// Where turns come from.
pub enum Input {
    Editor(Box<Reedline>),
    Pipe,
}

impl Input {
    pub fn new() -> Self {
        // The editor draws on stderr, so that stdout stays the model's alone.
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            Self::Editor(Box::new(Reedline::create().use_bracketed_paste(true)))
        } else {
            Self::Pipe
        }
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// The next turn, or `None` at the end.
    ///
    /// # Errors
    /// When the terminal or stdin cannot be read.
    pub fn next_turn(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Self::Editor(editor) => loop {
                match editor.read_line(&Mark) {
                    Ok(Signal::Success(line)) => return Ok(Some(line)),
                    Ok(Signal::CtrlC) => eprintln!("offramp: Ctrl-D or /exit leaves"),
                    Ok(Signal::CtrlD) => return Ok(None),
                    Err(error) => return Err(Failure::failed(format!("cannot read from the terminal: {error}"))),
                }
            },
            Self::Pipe => {
                let mut line = String::new();
                match io::stdin().lock().read_line(&mut line) {
                    Ok(0) => Ok(None),
                    Ok(_) => Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned())),
                    Err(error) => Err(Failure::failed(format!("cannot read stdin: {error}"))),
                }
            }
        }
    }
}

/// The mark before what the user types.
struct Mark;

impl Prompt for Mark {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed(". ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}
