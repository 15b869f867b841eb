//! `offramp run` on the default model: what it prints where, that it is reproducible, and how it ends.

use std::io::{BufReader, Read};
use std::process::{Command, Stdio};

use crate::support::{Finished, TempFolder, default_model, offramp, run, run_with_input};
use offramp_fixtures::{Arch, TinyModel};
use serde_json::Value;

/// Runs `offramp run` on the default model, with few threads' worth of work.
fn run_model(arguments: &[&str]) -> Finished {
    let model = default_model();
    let all = [&["run", "-m", model.to_str().unwrap(), "-c", "512"], arguments].concat();
    run(&all)
}

fn records(arguments: &[&str]) -> Vec<Value> {
    let stdout = run_model(&[arguments, &["--json"]].concat()).success();
    stdout.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
}

fn record(arguments: &[&str]) -> Value {
    let mut records = records(arguments);
    assert_eq!(records.len(), 1);
    records.remove(0)
}

#[test]
fn stdout_is_the_models_text_and_nothing_else() {
    let finished = run_model(&["-p", "What is 2+2?", "-n", "12", "--temp", "0"]);
    let expected = record(&["-p", "What is 2+2?", "-n", "12", "--temp", "0"]);
    assert!(
        finished.stderr.contains("context 512 tokens, no exit heads") && finished.stderr.contains("tokens in"),
        "{finished:?}"
    );
    assert!(!finished.stderr.contains('\r') && !finished.stderr.contains('\u{1b}'), "a bar was drawn: {finished:?}");
    assert_eq!(finished.success(), format!("{}\n", expected["text"].as_str().unwrap()));
}

#[test]
fn json_has_the_documented_fields() {
    let record = record(&["-p", "Hi", "-n", "5", "--temp", "0"]);
    let names: Vec<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "id prompt_text prompt_tokens tokens text exit_layers stop_reason timings";
    assert_eq!(names.join(" "), expected);
    assert!(
        record["prompt_text"].as_str().unwrap().ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    );
    assert_eq!(record["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(record["exit_layers"], serde_json::json!([null, null, null, null, null]));
    assert_eq!((record["stop_reason"].as_str(), record["id"].is_null()), (Some("length"), true));
    let timings: Vec<&str> = record["timings"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(timings.join(" "), "load_ms prompt_ms decode_ms prompt_per_second decode_per_second");
    assert!(timings.iter().all(|name| record["timings"][name].as_f64().is_some_and(|value| value > 0.0)));
}

#[test]
fn raw_text_is_given_as_it_is_with_special_tokens_recognised() {
    let raw = record(&["--raw", "-p", "<|im_start|>user\nHi<|im_end|>\n", "-n", "1", "--temp", "0"]);
    assert_eq!(raw["prompt_text"], "<|im_start|>user\nHi<|im_end|>\n");
    // <|im_start|> user \n Hi <|im_end|> \n
    assert_eq!(raw["prompt_tokens"], 6);
}

#[test]
fn a_system_prompt_is_the_first_message() {
    let record = record(&["-sys", "You count.", "-p", "Go", "-n", "1"]);
    assert!(record["prompt_text"].as_str().unwrap().starts_with("<|im_start|>system\nYou count.<|im_end|>\n"));
}

#[test]
fn greedy_text_is_the_same_each_time_and_so_is_a_seeds() {
    let same = |arguments: &[&str]| {
        let (first, second) = (record(arguments), record(arguments));
        assert_eq!(first["tokens"], second["tokens"], "{arguments:?}");
        first["tokens"].clone()
    };
    let prompt = ["-p", "Tell me a story about a bear", "-n", "24"];
    same(&[&prompt[..], &["--temp", "0"]].concat());
    let seven = same(&[&prompt[..], &["--seed", "7", "--temp", "1.5"]].concat());
    assert_ne!(seven, record(&[&prompt[..], &["--seed", "8", "--temp", "1.5"]].concat())["tokens"]);
}

#[test]
fn a_stop_text_ends_the_reply_and_is_not_part_of_it() {
    let record = record(&["--raw", "-p", "1, 2, 3, 4, 5, 6,", "-n", "40", "--temp", "0", "--stop", "9"]);
    assert_eq!((record["stop_reason"].as_str(), record["text"].as_str()), (Some("stop"), Some(" 7, 8, ")));
}

#[test]
fn text_with_emoji_stays_whole() {
    // Sampling hot makes the model emit parts of code points. `Finished` refuses output that is not UTF-8.
    let prompt = "Answer with many emoji: 😀🎉👩‍👩‍👧‍👦🏳️‍🌈";
    let hot = ["-p", prompt, "-n", "32", "--temp", "2", "--top-k", "0", "--min-p", "0", "--top-p", "1", "-s", "1"];
    let record = record(&hot);
    assert!(record["prompt_text"].as_str().unwrap().contains(prompt));
    let text = run_model(&hot).success();
    assert_eq!(text.trim_end_matches('\n'), record["text"].as_str().unwrap().trim_end_matches('\n'));
}

#[test]
fn a_prompt_that_does_not_fit_says_so() {
    let long = "word ".repeat(600);
    let finished = run_model(&["-p", &long]);
    let line = finished.failure(1);
    assert!(line.contains("context_length_exceeded") && line.contains("512") && line.contains("-c"), "{line}");
    assert_eq!(finished.stdout, "");
}

#[test]
fn a_full_context_ends_the_reply_and_says_so() {
    let finished = run_model(&["--raw", "-p", &"word ".repeat(490), "--ignore-eos", "--temp", "0", "--json"]);
    assert!(finished.stderr.contains("the context of 512 tokens is full"), "{finished:?}");
    let record: Value = serde_json::from_str(finished.success().trim()).unwrap();
    assert_eq!(record["stop_reason"], "length");
}

#[test]
fn prompts_come_from_stdin_and_from_files() {
    let folder = TempFolder::new("prompt-file");
    let expected = record(&["-p", "Name a colour", "-n", "6", "--temp", "0"]);
    let file = folder.file("prompt.txt", "Name a colour\n");
    assert_eq!(record(&["-f", &file, "-n", "6", "--temp", "0"])["tokens"], expected["tokens"]);
    let model = default_model();
    let arguments = ["run", "-m", model.to_str().unwrap(), "-c", "512", "-p", "-", "-n", "6", "--temp", "0", "--json"];
    let stdout = run_with_input(&arguments, "Name a colour\n").success();
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["tokens"], expected["tokens"]);
}

/// What `run` gives to a tiny model, for these arguments and this text on stdin.
fn prompt_text(arguments: &[&str], stdin: Option<&str>) -> String {
    let folder = TempFolder::new("prompt-text");
    let model = folder.file("tiny.gguf", TinyModel::new(Arch::Llama).bytes());
    let all = [&["run", "-m", &model, "-c", "512", "-t", "1", "-n", "1", "--json", "--raw"], arguments].concat();
    let stdout = match stdin {
        Some(text) => run_with_input(&all, text).success(),
        None => run(&all).success(),
    };
    serde_json::from_str::<Value>(&stdout).unwrap()["prompt_text"].as_str().unwrap().to_owned()
}

#[test]
fn a_pipe_beside_a_prompt_goes_before_it() {
    let folder = TempFolder::new("joined");
    let file = folder.file("prompt.txt", "Summarize this\r\n");
    let alone = prompt_text(&["-p", "Summarize this"], None);
    let joined = alone.replace("Summarize this", "one\ntwo\n\nSummarize this");
    assert_ne!(joined, alone);
    for arguments in [["-p", "Summarize this"], ["-f", &file]] {
        assert_eq!(prompt_text(&arguments, Some("one\ntwo\n")), joined);
        assert_eq!(prompt_text(&arguments, Some("\u{feff}one\r\ntwo\r\n")), joined);
        assert_eq!(prompt_text(&arguments, Some(" \n")), alone, "blanks are nothing");
    }
    assert_eq!(prompt_text(&["-p", ""], Some("Summarize this")), alone);
    assert_eq!(prompt_text(&["-p", "-"], Some("Summarize this\n")), alone);
    for stdin in ["-", "/dev/stdin"] {
        assert_eq!(prompt_text(&["-f", stdin], Some("Summarize this\n")), alone, "it is read once");
    }
    let lines = folder.file("prompts.jsonl", "\u{feff}{\"prompt\": \"Summarize this\"}\r\n");
    assert_eq!(prompt_text(&["--prompts", &lines], Some("one\n")), alone, "which of them would it belong to?");
}

#[test]
fn what_windows_adds_to_files_is_no_part_of_them() {
    let folder = TempFolder::new("windows");
    let grammar = folder.file("grammar.gbnf", "\u{feff}root ::= a # a\r\na ::=\r\n  \"ab\" |\r\n  \"cd\"\r\n");
    let schema = folder.file("schema.json", "\u{feff}{\r\n  \"enum\": [17]\r\n}\r\n");
    let system = folder.file("system.txt", "\u{feff}You\r\ncount.\r\n");
    let record = record(&["-sysf", &system, "-p", "Go", "-n", "20", "-jf", &schema]);
    assert!(record["prompt_text"].as_str().unwrap().contains("system\nYou\ncount.<|im_end|>"), "{record}");
    assert_eq!(record["text"].as_str().unwrap().trim(), "17");
    let text = run_model(&["-p", "Go", "-n", "20", "--grammar-file", &grammar]).success();
    assert!(["ab", "cd"].contains(&text.trim()), "{text:?}");
}

#[test]
fn more_threads_than_cores_are_told_with_what_to_use() {
    let folder = TempFolder::new("threads");
    let file = folder.file("no-model.gguf", "");
    let told = |flag: &str, n: usize| run(&["run", "-m", &file, "-p", "a", flag, &n.to_string()]).stderr;
    let cores = offramp::default_threads();
    for flag in ["-t", "-tb"] {
        let stderr = told(flag, cores + 1);
        assert!(stderr.contains(&format!("; use {cores}\n")), "{stderr}");
        assert!(!told(flag, cores).contains("; use "));
    }
}

#[test]
fn long_work_is_told_in_lines_where_no_bar_is_drawn() {
    let model = default_model();
    let all = ["run", "-m", model.to_str().unwrap(), "-c", "2048", "-n", "1", "-p", &"word ".repeat(900)];
    let output = offramp(&all).env("OFFRAMP_PROGRESS_SECONDS", "0.001").output().unwrap();
    let finished = Finished::of(output);
    let is_told =
        |line: &str| line.starts_with("offramp: reading: ") && line.contains(" of ") && line.contains(" tokens");
    assert!(finished.stderr.lines().any(is_told), "{finished:?}");
    assert!(!finished.stderr.contains(['\r', '\x1b']), "{finished:?}");
}

#[test]
fn a_file_of_prompts_is_answered_in_order_and_each_as_if_it_were_alone() {
    let folder = TempFolder::new("jsonl");
    let lines = "{\"id\": \"a\", \"prompt\": \"Name a colour\"}\n{\"id\": 2, \"turns\": [\"I am Bob\", \"Who am I?\"]}\n{\"id\": \"c\", \"prompt\": \"Name a colour\"}\n";
    let records = records(&["--prompts", &folder.file("prompts.jsonl", lines), "-n", "8", "--temp", "0"]);
    let ids: Vec<&Value> = records.iter().map(|record| &record["id"]).collect();
    assert_eq!(ids, [&Value::from("a"), &Value::from(2), &Value::from("c")]);
    assert_eq!(records[0]["tokens"], records[2]["tokens"]);
    assert_eq!(records[0]["tokens"], record(&["-p", "Name a colour", "-n", "8", "--temp", "0"])["tokens"]);

    let turns = records[1]["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2);
    assert_eq!((&turns[1]["text"], &turns[1]["prompt_text"]), (&records[1]["text"], &records[1]["prompt_text"]));
    let second = turns[1]["prompt_text"].as_str().unwrap();
    let first_reply = turns[0]["text"].as_str().unwrap();
    assert!(
        second.contains(&format!("I am Bob<|im_end|>\n<|im_start|>assistant\n{first_reply}<|im_end|>")),
        "{second}"
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_reply_keeps_its_text_and_exits_with_130() {
    let model = default_model();
    for json in [false, true] {
        let arguments =
            ["run", "-m", model.to_str().unwrap(), "-c", "8192", "-p", "Count to ten thousand", "--ignore-eos"];
        let mut child = offramp(&arguments).args(json.then_some("--json")).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        // Wait until the reply has begun: its first byte, or the banner where nothing is streamed.
        let mut first = [0];
        if json { stderr.read_exact(&mut first) } else { stdout.read_exact(&mut first) }.unwrap();
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        if json {
            let record: Value = serde_json::from_str(&rest).unwrap();
            assert_eq!(record["stop_reason"], "cancelled");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let model = default_model();
    let arguments = ["run", "-m", model.to_str().unwrap(), "-c", "8192", "-p", "Count to ten thousand", "--ignore-eos"];
    let mut child = offramp(&arguments).stderr(Stdio::null()).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_log_goes_to_its_file() {
    let folder = TempFolder::new("log");
    let log = folder.path().join("log.txt");
    let finished = run_model(&["-p", "Hi", "-n", "1", "--log-file", log.to_str().unwrap()]);
    assert!(std::fs::read_to_string(log).unwrap().contains("llama"), "{finished:?}");
    assert!(!finished.stderr.contains("llama_"), "{finished:?}");
}
