//! What is asked: prompts of text and JSONL files, questions with a known answer, and programs to complete.
//!
//! It refuses lines that are no such thing, naming file and line, and files that hold nothing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value as Json;

use super::humaneval::Problem;

/// The most bytes of a file, unpacked.
const MAX_BYTES: u64 = 256 << 20;

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The kind of prompt, if its file names one.
    pub category: Option<String>,
    /// The user's turn.
    pub prompt: String,
    /// How its reply is judged.
    pub check: Check,
}

/// How a reply is judged, besides by the full model.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    /// Not at all.
    None,
    /// By the answer.
    Answer(String),
    /// By running it.
    Program(Problem),
}

/// Prompts: a paragraph each of plain text, a line each of JSONL (`prompt`, `text` or the first of `turns`; `category`).
///
/// # Errors
///
/// A file that cannot be read, a line without a prompt, no prompt at all.
pub fn of_prompts(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for file in files {
        let path = file.as_ref();
        if is_jsonl(path) {
            tasks.extend(lines(path, |record| {
                let prompt = record.get("prompt").or_else(|| record.get("text"));
                let prompt = text(prompt.or_else(|| record.get("turns")?.get(0)));
                let prompt = prompt.context("no text under \"prompt\", \"text\" or the first of \"turns\"")?;
                Ok(Task { category: text(record.get("category")), prompt, check: Check::None })
            })?);
        } else {
            let whole = read(path)?.replace("\r\n", "\n");
            let paragraphs = whole.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
            tasks.extend(paragraphs.map(|paragraph| Task {
                category: None,
                prompt: paragraph.to_string(),
                check: Check::None,
            }));
        }
    }
    ensure!(files.is_empty() || !tasks.is_empty(), "the files hold no prompt");
    Ok(tasks)
}

/// Questions of a JSONL file with their answers: `prompt` and `answer`, a text or a number; `category`.
///
/// # Errors
///
/// As [`of_prompts`], and a line without an answer.
pub fn of_answers(path: &Path) -> anyhow::Result<Vec<Task>> {
    let tasks = lines(path, |record| {
        let prompt = text(record.get("prompt")).context("no text under \"prompt\"")?;
        let answer = match record.get("answer") {
            Some(Json::Number(number)) => Some(number.to_string()),
            other => text(other),
        };
        let answer = answer.filter(|answer| !answer.trim().is_empty());
        let answer = answer.context("no text and no number under \"answer\"")?;
        let category = text(record.get("category")).or_else(|| Some("answers".to_string()));
        Ok(Task { category, prompt, check: Check::Answer(answer) })
    })?;
    ensure!(!tasks.is_empty(), "{} holds no question", path.display());
    Ok(tasks)
}

/// The problems of HumanEval's data file, packed or not, asked in a turn of a chat or as the beginning of a text.
///
/// # Errors
///
/// As [`of_prompts`], and a line that is no problem.
pub fn of_humaneval(path: &Path, is_chat: bool) -> anyhow::Result<Vec<Task>> {
    let tasks = lines(path, |record| {
        let problem = Problem::of(&record, is_chat)?;
        let prompt = problem.question();
        Ok(Task { category: Some("humaneval".to_string()), prompt, check: Check::Program(problem) })
    })?;
    ensure!(!tasks.is_empty(), "{} holds no problem", path.display());
    Ok(tasks)
}

/// At most `n` of `tasks`, evenly spread: files are often sorted by category.
pub fn spread(tasks: Vec<Task>, n: usize) -> Vec<Task> {
    let all = tasks.len();
    let n = n.min(all);
    let is_taken = |i: usize| (i + 1) * n / all > i * n / all;
    tasks.into_iter().enumerate().filter(|(i, _)| is_taken(*i)).map(|(_, task)| task).collect()
}

fn is_jsonl(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")
}

fn text(value: Option<&Json>) -> Option<String> {
    value.and_then(Json::as_str).map(str::to_string)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let mut bytes = Vec::new();
    let read = if is_packed {
        GzDecoder::new(file).take(MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)
    };
    read.with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("{} holds more than {} MiB: give fewer prompts", path.display(), MAX_BYTES >> 20);
    }
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    // Some editors write this mark before UTF-8.
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

fn lines(path: &Path, task: impl Fn(Json) -> anyhow::Result<Task>) -> anyhow::Result<Vec<Task>> {
    let whole = read(path)?;
    let lines = whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let record = serde_json::from_str(line).map_err(anyhow::Error::from);
            record.and_then(&task).with_context(|| format!("{}, line {}", path.display(), i + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn prompts_answers_and_problems_are_read_and_wrong_lines_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let prompts = file("p.jsonl", "{\"prompt\": \"a\", \"category\": \"qa\"}\n\n{\"turns\": [\"b\", \"c\"]}\n");
        let texts = file("p.txt", "one\ntwo\r\n\r\n three \n");
        let tasks = of_prompts(&[prompts, texts]).unwrap();
        let found: Vec<(&str, Option<&str>)> =
            tasks.iter().map(|task| (task.prompt.as_str(), task.category.as_deref())).collect();
        assert_eq!(found, [("a", Some("qa")), ("b", None), ("one\ntwo", None), ("three", None)]);

        let answers =
            file("a.jsonl", "{\"prompt\": \"2 + 2\", \"answer\": 4}\n{\"prompt\": \"sky\", \"answer\": \"blue\"}\n");
        let tasks = of_answers(&answers).unwrap();
        assert_eq!((&tasks[0].check, &tasks[1].check), (&Check::Answer("4".into()), &Check::Answer("blue".into())));

        let line = r#"{"task_id": "x/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c): pass"}"#;
        let packed = folder.path().join("h.jsonl.gz");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        encoder.write_all(line.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert!(matches!(&of_humaneval(&packed, true).unwrap()[0].check, Check::Program(_)));

        let wrong = |error: anyhow::Error, reason: &str| {
            let error = format!("{error:#}");
            assert!(error.contains("line 1") && error.contains(reason), "{error}");
        };
        wrong(of_prompts(&[file("b.jsonl", "{}")]).unwrap_err(), "\"prompt\"");
        wrong(of_answers(&file("b.jsonl", "{\"prompt\": \"a\", \"answer\": \" \"}")).unwrap_err(), "\"answer\"");
        wrong(of_humaneval(&file("b.jsonl", "{\"prompt\": \"a\"}"), true).unwrap_err(), "\"entry_point\"");
        assert!(of_prompts(&[file("e.txt", "\n")]).is_err() && of_prompts(&[folder.path().join("none.txt")]).is_err());
    }

    #[test]
    fn a_few_of_many_are_spread() {
        let task = |i: usize| Task { category: None, prompt: i.to_string(), check: Check::None };
        let of = |all: usize, n| -> Vec<String> {
            spread((0..all).map(task).collect(), n).into_iter().map(|task| task.prompt).collect()
        };
        assert_eq!(of(10, 3), ["3", "6", "9"]);
        assert_eq!(of(2, 9), ["0", "1"]);
        assert!(of(0, 3).is_empty());
    }
}
