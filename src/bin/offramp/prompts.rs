//! What to generate from: a text, a file, stdin, or a file with one JSON object a line. All of it is read before a model is loaded, so that a
//! mistake costs no time. It refuses text that is not UTF-8 rather than replace parts of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::args::PromptArgs;
use crate::failure::Failure;

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
        (Some(text), _, _) => Ok(single(text.clone())),
        (_, Some(file), _) => read_text(file).map(single),
        (_, _, Some(file)) => read_file(file),
        // clap's group asks for one of them.
        (None, None, None) => Err(Failure::usage("give a prompt with -p, -f or --prompts")),
    }
}

/// The prompts of a file with one JSON object a line; `-` is stdin.
///
/// # Errors
/// When it cannot be read, and when a line is no prompt.
pub fn read_file(path: &Path) -> Result<Vec<Prompt>, Failure> {
    read_lines(&read_text(path)?, &path.display().to_string())
}

/// The text of a file, or of stdin for `-`. One line break at the end is taken for the editor's, not the text's.
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
    read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::failed(format!(
            "{} is not UTF-8 at byte {at}; convert it first, for example with iconv",
            path.display()
        ))
    })?;
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
    fn an_empty_file_is_no_silent_success() {
        assert!(matches!(read_lines("\n", "f"), Err(Failure::Failed(_))));
    }
}
