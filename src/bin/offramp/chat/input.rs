//! Where a chat's turns come from: a line editor on a terminal, lines of stdin otherwise. A turn of several lines stands
//! between `"""` and `"""`. What was typed is kept in a file that nobody else may read; it never holds a reply.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reedline::{
    ColumnarMenu, Completer, Emacs, FileBackedHistory, Highlighter, KeyCode, KeyModifiers, MenuBuilder, Prompt,
    PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal, SimpleMatchHighlighter, Span,
    StyledText, Suggestion, ValidationResult, Validator, default_emacs_keybindings,
};

use super::command;
use crate::failure::Failure;
use crate::prompts::BYTE_ORDER_MARK;
use crate::style;

const QUOTES: &str = "\"\"\"";
/// Lines that the history keeps.
const HISTORY: usize = 2000;
const MENU: &str = "completions";

/// Where turns come from.
pub enum Input {
    Editor(Box<Editor>),
    Pipe,
}

impl Input {
    pub fn new() -> Self {
        // The editor draws on stderr, so that stdout stays the model's alone.
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            Self::Editor(Box::new(Editor::new()))
        } else {
            Self::Pipe
        }
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// The next turn or command, or `None` at the end.
    ///
    /// # Errors
    /// When the terminal or stdin cannot be read, and [`Failure::Interrupted`] for two Ctrl-C in a row.
    pub fn next_turn(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Self::Editor(editor) => {
                let line = editor.read_line()?;
                Ok(line.map(|line| unquoted(&line).to_owned()))
            }
            Self::Pipe => from_pipe(&mut io::stdin().lock()),
        }
    }

    /// The answer to a question, which is no part of the history; empty from a pipe and for Ctrl-C and Ctrl-D.
    ///
    /// # Errors
    /// When the terminal cannot be read.
    pub fn ask(&mut self, question: &str) -> Result<String, Failure> {
        if !self.is_terminal() {
            return Ok(String::new());
        }
        let mut editor = Reedline::create().with_ansi_colors(style::is_coloured());
        match patiently(&mut editor, &Mark(question))? {
            Signal::Success(answer) => Ok(answer.trim().to_owned()),
            _ => Ok(String::new()),
        }
    }
}

/// How often a terminal is asked again that has not said where its cursor is.
const TRIES: usize = 10;

/// The line editor.
pub struct Editor {
    editor: Reedline,
    /// Whether there was something on the line when it was last drawn.
    has_text: Arc<AtomicBool>,
}

impl Editor {
    fn new() -> Self {
        let has_text = Arc::new(AtomicBool::new(false));
        Self { editor: editor(&has_text), has_text }
    }

    /// A turn, or `None` for Ctrl-D. Ctrl-C on a line with text clears it; two on empty ones in a row are an interruption.
    fn read_line(&mut self) -> Result<Option<String>, Failure> {
        let mut pressed = false;
        loop {
            self.has_text.store(false, Ordering::Relaxed);
            match patiently(&mut self.editor, &Mark("> "))? {
                Signal::Success(line) => {
                    // Now, not at the end: a chat may end by a signal. A history that cannot be written is no reason to
                    // stop.
                    let _ = self.editor.sync_history();
                    return Ok(Some(line));
                }
                Signal::CtrlC if self.has_text.load(Ordering::Relaxed) => pressed = false,
                Signal::CtrlC if pressed => return Err(Failure::Interrupted),
                Signal::CtrlC => {
                    pressed = true;
                    eprintln!("{}", style::dim("Ctrl-C again, Ctrl-D or /exit leaves"));
                }
                Signal::CtrlD => return Ok(None),
            }
        }
    }
}

/// A line. The editor asks the terminal where its cursor is and gives up after two seconds: over a slow line, or on a busy
/// machine, the answer comes later, and what was typed is still there.
fn patiently(editor: &mut Reedline, mark: &Mark<'_>) -> Result<Signal, Failure> {
    let mut tries = 0;
    loop {
        match editor.read_line(mark) {
            Ok(signal) => return Ok(signal),
            Err(_) if tries < TRIES => tries += 1,
            Err(error) => return Err(Failure::failed(format!("cannot read from the terminal: {error}"))),
        }
    }
}

/// A line, or all lines up to the closing quotes.
fn from_pipe(input: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut turn = String::new();
    loop {
        let before = turn.len();
        let n = input.read_line(&mut turn).map_err(|error| Failure::failed(format!("cannot read stdin: {error}")))?;
        if n == 0 && before == 0 {
            return Ok(None);
        }
        if before == 0 && turn.starts_with(BYTE_ORDER_MARK) {
            turn.remove(0);
        }
        if n == 0 || !is_open(&turn) {
            return Ok(Some(unquoted(turn.trim_end_matches(['\r', '\n'])).replace("\r\n", "\n")));
        }
    }
}

/// True while quotes that were opened are not closed.
fn is_open(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(QUOTES) && (text.len() < 2 * QUOTES.len() || !text.ends_with(QUOTES))
}

/// The text between the quotes, or the whole.
fn unquoted(text: &str) -> &str {
    let inner = text.trim().strip_prefix(QUOTES).map(|rest| rest.strip_suffix(QUOTES).unwrap_or(rest));
    inner.map_or(text, |inner| inner.trim_matches(['\r', '\n']))
}

fn editor(has_text: &Arc<AtomicBool>) -> Reedline {
    let mut keys = default_emacs_keybindings();
    let complete = ReedlineEvent::UntilFound(vec![ReedlineEvent::Menu(MENU.to_owned()), ReedlineEvent::MenuNext]);
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, complete);
    let menu = ColumnarMenu::default().with_name(MENU).with_columns(1).with_marker("");
    let editor = Reedline::create()
        .use_bracketed_paste(true)
        .with_ansi_colors(style::is_coloured())
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_highlighter(Box::new(AsTyped {
            has_text: Arc::clone(has_text),
            plain: SimpleMatchHighlighter::default(),
        }))
        .with_completer(Box::new(Words))
        .with_quick_completions(true)
        .with_partial_completions(true)
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)))
        .with_validator(Box::new(Quotes));
    let path = history_path(|name| std::env::var_os(name));
    match path.map(|path| history(&path)) {
        Some(Ok(history)) => editor.with_history(Box::new(history)),
        Some(Err(reason)) => {
            eprintln!("offramp: no history: {reason}");
            editor
        }
        None => editor,
    }
}

/// Where the history is: `OFFRAMP_HISTORY` names a file, and none if it is empty.
fn history_path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(path) = variable("OFFRAMP_HISTORY") {
        return Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
    }
    let base = variable("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&variable("HOME")?).join(".local/state")));
    Some(base?.join("offramp/history"))
}

fn history(path: &Path) -> Result<FileBackedHistory, String> {
    let cannot = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} {}: {error}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| cannot("make the folder of", &error))?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| cannot("write", &error))?;
    // One that was there before may have been open to others.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(|error| cannot("close to others", &error))?;
    drop(file);
    FileBackedHistory::with_file(HISTORY, path.to_owned()).map_err(|error| cannot("read", &error))
}

/// Shows a line in the terminal's own colour, which is readable on any ground, and notes whether there is one.
struct AsTyped {
    has_text: Arc<AtomicBool>,
    plain: SimpleMatchHighlighter,
}

impl Highlighter for AsTyped {
    fn highlight(&self, line: &str, cursor: usize) -> StyledText {
        self.has_text.store(!line.is_empty(), Ordering::Relaxed);
        self.plain.highlight(line, cursor)
    }
}

/// Completes commands.
struct Words;

impl Completer for Words {
    fn complete(&mut self, line: &str, position: usize) -> Vec<Suggestion> {
        let line = &line[..position];
        let start = line.find(char::is_whitespace).map_or(0, |at| line.len() - line[at..].trim_start().len());
        command::completions(line)
            .into_iter()
            .map(|(value, what)| Suggestion {
                append_whitespace: start == 0,
                value,
                description: what.map(str::to_owned),
                span: Span::new(start, position),
                ..Suggestion::default()
            })
            .collect()
    }
}

/// Goes on to the next line while quotes are open.
struct Quotes;

impl Validator for Quotes {
    fn validate(&self, line: &str) -> ValidationResult {
        if is_open(line) { ValidationResult::Incomplete } else { ValidationResult::Complete }
    }
}

/// The mark before what the user types.
struct Mark<'a>(&'a str);

impl Prompt for Mark<'_> {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(text: &str) -> Vec<String> {
        let mut input = text.as_bytes();
        std::iter::from_fn(|| from_pipe(&mut input).unwrap()).collect()
    }

    #[test]
    fn quotes_hold_lines_together() {
        assert_eq!(turns("a\n\"\"\"b\nc\"\"\"\nd"), ["a", "b\nc", "d"]);
        assert_eq!(turns("\"\"\"\nb\n\n c\n\"\"\"\n"), ["b\n\n c"]);
        assert_eq!(turns("\"\"\"never closed\nat all"), ["never closed\nat all"]);
        assert_eq!(turns("say \"\"\" once\n\n"), ["say \"\"\" once", ""]);
    }

    #[test]
    fn what_windows_adds_to_lines_is_no_part_of_turns() {
        assert_eq!(turns("\u{feff}a\r\nb\r\n"), ["a", "b"]);
        assert_eq!(turns("\u{feff}\"\"\"a\r\n\r\nb\"\"\"\r\n/exit\r\n"), ["a\n\nb", "/exit"]);
        assert_eq!(turns("\u{feff}"), [""]);
    }

    #[test]
    fn the_history_is_where_other_programs_keep_theirs() {
        let of = |variables: &[(&str, &str)]| {
            history_path(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(of(&[("HOME", "/h")]), Some("/h/.local/state/offramp/history".into()));
        assert_eq!(of(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Some("/s/offramp/history".into()));
        assert_eq!(of(&[("OFFRAMP_HISTORY", ""), ("HOME", "/h")]), None);
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_the_history() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/history");
        for _ in 0..2 {
            history(&path).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}
