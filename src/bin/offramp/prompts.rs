//! What to generate from: a text, a file, stdin, both together, or a file with one JSON object a line. All of it is read before a model
//! is loaded, so that a mistake costs no time. It refuses text that is not UTF-8 rather than replace parts of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::args::PromptArgs;
use crate::failure::Failure;
use crate::piped;

/// What some editors write before UTF-8. It belongs to no text.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// One prompt: the user's turns, answered one after another in one conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The caller's name for it; null where none was given.
    pub id: Value,
    /// At least one.
    pub turns: Vec<String>,
}

/// # Errors
/// When a file cannot be read, and when a line is no prompt.
pub fn read(arguments: &PromptArgs) -> Result<Vec<Prompt>, Failure> {
    let single = |text: String| vec![Prompt { id: Value::Null, turns: vec![text] }];
    match (&arguments.prompt, &arguments.file, &arguments.prompts) {
        (Some(dash), _, _) if dash == "-" => read_text(Path::new("-")).map(single),
        (Some(text), _, _) => beside_pipe(text.clone()).map(single),
        (_, Some(file), _) if is_stdin(file) => read_text(file).map(single),
        (_, Some(file), _) => beside_pipe(read_text(file)?).map(single),
        (_, _, Some(file)) => read_file(file),
        // clap's group asks for one of them.
        (None, None, None) => Err(Failure::usage("give a prompt with -p, -f or --prompts")),
    }
}

/// A prompt behind what is piped in, with an empty line between them; alone where nothing is.
///
/// # Errors
/// When stdin cannot be read or is not UTF-8.
pub fn beside_pipe(prompt: String) -> Result<String, Failure> {
    Ok(match piped::text()? {
        None => prompt,
        Some(text) if prompt.trim().is_empty() => text,
        Some(text) => format!("{text}\n\n{prompt}"),
    })
}

/// True for the names of stdin, which is read once.
pub fn is_stdin(path: &Path) -> bool {
    ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().any(|name| path == Path::new(name))
}

/// The prompts of a file with one JSON object a line; `-` is stdin.
///
/// # Errors
/// When it cannot be read, and when a line is no prompt.
pub fn read_file(path: &Path) -> Result<Vec<Prompt>, Failure> {
    read_lines(&read_text(path)?, &path.display().to_string())
}

/// The text of a file, or of stdin for `-`, as [`decoded`] has it.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
    read.map_err(|error| Failure::failed(format!("cannot read {name}: {error}")))?;
    decoded(bytes, &name)
}

/// A text without what editors add to it: the mark before UTF-8, line breaks of Windows, and one line break at the end.
///
/// # Errors
/// When it is not UTF-8.
pub fn decoded(bytes: Vec<u8>, name: &str) -> Result<String, Failure> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::failed(format!("{name} is not UTF-8 at byte {at}; convert it first, for example with iconv"))
    })?;
    let mut text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).replace("\r\n", "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// One line of a `--prompts` file.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    prompt: Option<String>,
    turns: Option<Vec<String>>,
}

fn read_lines(text: &str, name: &str) -> Result<Vec<Prompt>, Failure> {
    let mut prompts = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: String| Failure::failed(format!("{name} line {number}: {what}"));
        let line: Line =
            serde_json::from_str(line).map_err(|error| wrong(format!("no JSON object as expected ({error})")))?;
        let turns = match (line.prompt, line.turns) {
            (Some(prompt), None) => vec![prompt],
            (None, Some(turns)) if !turns.is_empty() => turns,
            (None, Some(_)) => return Err(wrong("\"turns\" is empty, at least one text is expected".to_owned())),
            _ => return Err(wrong("exactly one of \"prompt\" and \"turns\" is expected".to_owned())),
        };
        prompts.push(Prompt { id: line.id, turns });
    }
    if prompts.is_empty() {
        return Err(Failure::failed(format!("{name} has no prompts; one JSON object a line is expected")));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prompts_and_turns_are_read_and_other_fields_ignored() {
        let text = "{\"id\": 7, \"prompt\": \"a\"}\n\n{\"category\": \"x\", \"turns\": [\"b\", \"c\"]}\n";
        let prompts = read_lines(text, "f").unwrap();
        assert_eq!(prompts[0], Prompt { id: json!(7), turns: vec!["a".to_owned()] });
        assert_eq!(prompts[1], Prompt { id: Value::Null, turns: vec!["b".to_owned(), "c".to_owned()] });
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (line, word) in [
            ("{", "JSON"),
            ("[]", "JSON"),
            ("{\"id\": 1}", "exactly one"),
            ("{\"prompt\": \"a\", \"turns\": [\"b\"]}", "exactly one"),
            ("{\"turns\": []}", "empty"),
        ] {
            let Err(Failure::Failed(reason)) = read_lines(&format!("{{\"prompt\": \"x\"}}\n{line}"), "f.jsonl") else {
                panic!("{line} was taken");
            };
            assert!(reason.starts_with("f.jsonl line 2: ") && reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn what_editors_add_is_no_part_of_a_text() {
        for (bytes, text) in [
            ("\u{feff}a\r\nb\r\n", "a\nb"),
            ("a\n\n", "a\n"),
            ("a\rb \u{feff}c", "a\rb \u{feff}c"),
            ("\u{feff}", ""),
            ("\r\n", ""),
        ] {
            assert_eq!(decoded(bytes.as_bytes().to_vec(), "f").unwrap(), text, "{bytes:?}");
        }
        assert!(
            matches!(decoded(vec![0xFF, 0xFE, 0x61, 0], "f"), Err(Failure::Failed(reason)) if reason.contains("iconv"))
        );
    }

    #[test]
    fn an_empty_file_is_no_silent_success() {
        assert!(matches!(read_lines("\n", "f"), Err(Failure::Failed(_))));
    }
}
