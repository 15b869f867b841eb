//! `offramp chat` fed from a pipe: turns, commands, and that it always ends.

mod support;

use support::{Finished, default_model, offramp, run_with_input};

fn chat(input: &str, more: &[&str]) -> Finished {
    let model = default_model();
    let all = [&["chat", "-m", model.to_str().unwrap(), "-c", "512", "--temp", "0", "-n", "16"], more].concat();
    run_with_input(&all, input)
}

#[test]
fn each_line_is_a_turn_and_each_reply_ends_its_line() {
    let stdout = chat("Say one word\n\nSay another word", &["--stop", "\n"]).success();
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
}

#[test]
fn closed_stdin_ends_the_chat_at_once() {
    let model = default_model();
    let output = offramp(&["chat", "-m", model.to_str().unwrap(), "-c", "512"]).output().unwrap();
    assert_eq!(Finished::of(output).success(), "");
}

#[test]
fn commands_are_not_sent_to_the_model() {
    let finished = chat("/help\n/nothing\n/clear\n/exit\nnever reached\n", &[]);
    for line in ["/clear", "there is no command /nothing", "a new conversation"] {
        assert!(finished.stderr.contains(line), "{finished:?}");
    }
    assert_eq!(finished.success(), "");
}

#[test]
fn a_cleared_conversation_answers_as_a_new_one() {
    let alone = chat("Name a colour\n", &[]).success();
    let cleared = chat("I am Bob\n/clear\nName a colour\n", &[]).success();
    assert!(cleared.ends_with(&alone), "{cleared:?} does not end with {alone:?}");
}

#[test]
fn what_does_not_fit_ends_a_scripted_chat_with_a_clear_line() {
    let finished = chat(&format!("{}\n", "word ".repeat(600)), &[]);
    assert!(finished.failure(1).contains("context_length_exceeded"), "{finished:?}");
}
