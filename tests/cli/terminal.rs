//! `offramp chat` on a terminal, as a person uses it: keys, colours, Ctrl-C, what is typed ahead, and a full context.

use crate::pty::Terminal;
use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use crate::support::TempFolder;
use offramp_fixtures::{Arch, TinyModel, WeightType};

const UP: &str = "\x1b[A";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
/// The line editor gives the terminal back, and with it the meaning of Ctrl-C.
const EDITED: &str = "\x1b[?2004l";

/// A chat with a model of noise, whose home is `folder`; `None` where there is no terminal to be had.
fn chat(folder: &TempFolder, model: &str, more: &[&str], variables: &[(&str, &str)]) -> Option<Terminal> {
    if !Terminal::is_there() {
        eprintln!("skipped: there is no script of util-linux on this machine");
        return None;
    }
    let all = [&["chat", "-m", model, "-t", "1", "--temp", "0", "-c", "512"], more].concat();
    let home = folder.path().to_str().unwrap();
    let variables = [&[("HOME", home), ("XDG_STATE_HOME", "")], variables].concat();
    let mut terminal = Terminal::start(env!("CARGO_BIN_EXE_offramp"), &all, &variables);
    terminal.until("Ctrl-D leaves");
    terminal.until("> ");
    Some(terminal)
}

fn tiny(folder: &TempFolder) -> String {
    folder.file("tiny.gguf", TinyModel::new(Arch::Llama).weights(WeightType::Q4_1).bytes())
}

/// One whose replies take long enough for something to be typed meanwhile.
fn slow(folder: &TempFolder) -> String {
    folder.file("slow.gguf", TinyModel::new(Arch::Llama).layers(64).bytes())
}

#[test]
fn lines_are_edited_remembered_and_nobody_else_s() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempFolder::new("terminal-edit");
    let model = tiny(&folder);
    let Some(mut terminal) = chat(&folder, &model, &["-n", "4"], &[]) else { return };
    // The cursor goes back over "p" and something is put before it.
    terminal.keys("/hep\x1b[Dl\r");
    terminal.until("leave (or /bye, or Ctrl-D)");
    terminal.keys(UP);
    terminal.until("/help");
    terminal.keys("\x15/exit\r");
    assert_eq!(terminal.code(), Some(0));
    let history = folder.path().join(".local/state/offramp/history");
    assert_eq!(std::fs::read_to_string(&history).unwrap(), "/help\n/exit\n");
    assert_eq!(history.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let Some(mut again) = chat(&folder, &model, &[], &[]) else { return };
    again.keys(&UP.repeat(2));
    again.until("/help");
    again.keys(&format!("\x15{CTRL_D}"));
    assert_eq!(again.code(), Some(0));
}

#[test]
fn what_is_pasted_and_what_is_quoted_is_one_turn() {
    let folder = TempFolder::new("terminal-paste");
    let Some(mut terminal) = chat(&folder, &tiny(&folder), &["-n", "4"], &[]) else { return };
    terminal.keys("\x1b[200~one\n/exit\ntwo\x1b[201~\r");
    terminal.until("tokens/s");
    terminal.keys("\"\"\"\rone\r/exit\r\"\"\"\r");
    terminal.until("tokens/s");
    terminal.keys("/stats\r");
    terminal.until("chat: 2 replies");
    terminal.keys("/undo\r");
    terminal.until("taken back: one /exit");
    terminal.keys(CTRL_D);
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn commands_are_completed() {
    let folder = TempFolder::new("terminal-complete");
    let Some(mut terminal) = chat(&folder, &tiny(&folder), &[], &[]) else { return };
    terminal.keys("/con\t\r");
    terminal.until("of 512 tokens [");
    terminal.keys("/s\t");
    terminal.until("set the system prompt");
    terminal.keys(CTRL_C);
    terminal.until("\n");
    terminal.until("> ");
    terminal.keys("/set te\t 0.25\r");
    terminal.until("temp is 0.25");
    terminal.keys("/exit\r");
    assert_eq!(terminal.code(), Some(0));
}

/// Lines that are typed while a reply is written are not drawn into it, and none of them is lost.
#[test]
fn what_is_typed_ahead_waits_for_the_next_prompt() {
    let folder = TempFolder::new("terminal-ahead");
    let Some(mut terminal) = chat(&folder, &slow(&folder), &["-n", "150"], &[]) else { return };
    terminal.keys("hello\r");
    terminal.until(EDITED);
    terminal.until_more(20);
    terminal.keys("/set temp 0.125\r/set temp 0.375\r/exit\r");
    let reply = terminal.until("tokens/s");
    assert!(!reply.contains("/set"), "typed text is drawn into the reply");
    // The noise has such characters; a terminal must not obey them.
    assert!(reply.contains('\u{241a}') && !reply.contains(['\x01', '\x03', '\x07', '\x1a']), "{reply:?}");
    terminal.until("temp is 0.125");
    terminal.until("temp is 0.375");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn ctrl_c_stops_a_reply_clears_a_line_and_leaves_at_the_second_time() {
    let folder = TempFolder::new("terminal-stop");
    let Some(mut terminal) = chat(&folder, &slow(&folder), &["-n", "400"], &[]) else { return };
    terminal.keys("hello\r");
    terminal.until(EDITED);
    terminal.until_more(20);
    terminal.keys(CTRL_C);
    terminal.until("stopped; ");
    terminal.keys("/context\r");
    let told = terminal.until(" of 512 tokens");
    let kept: usize = told.rsplit(' ').nth(3).unwrap().trim_start_matches("context: ").parse().unwrap();
    assert!((8..400).contains(&kept), "{told}");
    terminal.until("> ");
    terminal.keys(CTRL_C);
    terminal.until("Ctrl-C again");
    terminal.until("> ");
    terminal.keys("not this");
    terminal.until("not this");
    terminal.keys(CTRL_C);
    terminal.until("> ");
    terminal.keys(CTRL_C);
    terminal.until("Ctrl-C again");
    terminal.until("> ");
    terminal.keys(CTRL_C);
    assert_eq!(terminal.code(), Some(130));
}

#[test]
fn a_full_context_is_the_user_s_to_empty() {
    let folder = TempFolder::new("terminal-full");
    let Some(mut terminal) = chat(&folder, &tiny(&folder), &["-n", "150", "--ignore-eos"], &[]) else { return };
    for _ in 0..2 {
        terminal.keys("tell me something\r");
        terminal.until("tokens/s");
    }
    let long = format!("{}\r", "word ".repeat(30));
    for answer in ["3", "1", "2"] {
        terminal.keys(&long);
        terminal.until("context_length_exceeded");
        terminal.until("1, 2 or 3 [3]: ");
        terminal.keys(&format!("{answer}\r"));
        match answer {
            "3" => terminal.until("it was not sent"),
            "1" => terminal.until(" forgotten") + &terminal.until("tokens/s"),
            _ => terminal.until("tokens/s"),
        };
    }
    terminal.keys(&format!("{}\r", "word ".repeat(400)));
    terminal.until("would not fit into a new conversation");
    terminal.keys("/exit\r");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn exits_are_shown_in_colours_and_without_where_none_are_wanted() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let heads = files.write_exits(&Spec::new(&[2], Kind::Random(7)));
    let model = files.path("model.gguf").to_str().unwrap().to_owned();
    let more = ["-n", "20", "--heads", heads.to_str().unwrap(), "--policy", "always", "--agreement", "0.9"];
    for (name, no_colour) in [("colour", ""), ("plain", "1")] {
        let folder = TempFolder::new(&format!("terminal-{name}"));
        let Some(mut terminal) = chat(&folder, &model, &more, &[("NO_COLOR", no_colour)]) else { return };
        terminal.keys("hello\r");
        let figures = terminal.until(" of 6");
        assert!(figures.contains("mean depth"), "{figures}");
        terminal.keys("/exits show\r");
        let shown = terminal.until("after layer 2");
        let shown = shown + &terminal.until("%") + &terminal.until("##");
        let is_coloured = shown.contains("\x1b[38;5;70m");
        assert_eq!((is_coloured, shown.contains("[2]")), (no_colour.is_empty(), !no_colour.is_empty()), "{shown:?}");
        terminal.keys("/exits off\r");
        terminal.until("exits are off");
        terminal.keys("/exits 0.9\r");
        terminal.until("exits are calibrated for 0.9");
        terminal.keys(CTRL_D);
        assert_eq!(terminal.code(), Some(0));
    }
}

/// The lines that a reply has on the terminal, without colours.
fn lines_of(drawn: &str) -> Vec<String> {
    let mut text = String::new();
    let mut in_escape = false;
    for c in drawn.chars().filter(|c| *c != '\r') {
        match in_escape {
            true => in_escape = !c.is_ascii_alphabetic(),
            false if c == '\x1b' => in_escape = true,
            false => text.push(c),
        }
    }
    text.lines().map(str::to_owned).collect()
}

/// A grammar makes the noise twenty words of seven letters, and a link that no line holds.
#[test]
fn lines_end_between_words_on_a_terminal_of_any_width_and_never_in_pipes() {
    let folder = TempFolder::new("terminal-wrap");
    let model = tiny(&folder);
    let (words, link) = ("abcdefg ".repeat(20), "x".repeat(100));
    let grammar = format!("root ::= \"{words}{link} end\"");
    let more = ["-n", "300", "--grammar", &grammar];
    let Some(mut terminal) = chat(&folder, &model, &more, &[]) else { return };
    for columns in [80, 30, 100] {
        terminal.resize(columns);
        terminal.keys("hello\r");
        terminal.until(EDITED);
        let reply = terminal.until("tokens/s");
        let lines = lines_of(&reply);
        let first = lines.iter().position(|line| line.starts_with("abcdefg")).unwrap();
        let last = lines.iter().position(|line| line.contains('x')).unwrap();
        for line in &lines[first..last - 1] {
            let n = (columns + 1) / 8;
            assert_eq!(line.trim_end(), "abcdefg ".repeat(n).trim_end(), "of {columns}: {lines:?}");
        }
        assert!(lines[last].contains(&link), "a long word is left to the terminal: {lines:?}");
        terminal.until("> ");
        terminal.keys("/clear\r");
        terminal.until("a new conversation");
        terminal.until("> ");
    }
    terminal.keys(CTRL_D);
    assert_eq!(terminal.code(), Some(0));
    let all = [&["chat", "-m", &model, "--temp", "0", "-p", "hello", "-st"], &more[..]].concat();
    assert_eq!(crate::support::run(&all).success(), format!("{words}{link} end\n"));
}

/// A grammar makes the noise a thought and an answer.
#[test]
fn thoughts_are_dim_and_scripts_get_them_as_they_are() {
    let folder = TempFolder::new("terminal-thought");
    let model = tiny(&folder);
    let grammar = r#"root ::= "<think>" [a-z]{3} "</think>" [a-z]{3}"#;
    let Some(mut terminal) = chat(&folder, &model, &["-n", "60", "--grammar", grammar], &[]) else { return };
    terminal.keys("hello\r");
    let reply = terminal.until("tokens/s");
    assert!(reply.contains("\x1b[2m<think>\x1b[0m") && reply.contains("\x1b[2m</think>\x1b[0m"), "{reply:?}");
    terminal.keys(CTRL_D);
    assert_eq!(terminal.code(), Some(0));
    let all =
        ["chat", "-m", &model, "-c", "512", "--temp", "0", "-n", "60", "--grammar", grammar, "-p", "hello", "-st"];
    let text = crate::support::run(&all).success();
    assert!(text.starts_with("<think>") && text.contains("</think>") && !text.contains('\x1b'), "{text:?}");
}
