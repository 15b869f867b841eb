//! `offramp chat` fed from a pipe: turns, commands, and that it always ends.

use offramp_fixtures::{Arch, TinyModel, WeightType};

use crate::support::{Finished, TempFolder, default_model, offramp, run_with_input};

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
    let finished = chat("/help\n/undo it\n/clear\n/exit\nnever reached\n", &[]);
    for line in ["/clear", "/undo takes nothing after it", "a new conversation"] {
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

/// A chat with a tiny model, whose replies are noise of 12 tokens that is the same each time.
fn tiny_chat(folder: &TempFolder, input: &str, more: &[&str]) -> Finished {
    let model = folder.file("tiny.gguf", TinyModel::new(Arch::Llama).weights(WeightType::Q4_1).bytes());
    let all = ["chat", "-m", &model, "-c", "512", "-t", "1", "--temp", "0", "-n", "12"];
    run_with_input(&[&all, more].concat(), input)
}

#[test]
fn names_of_commands_alone_are_commands() {
    let folder = TempFolder::new("chat-slash");
    let told = tiny_chat(&folder, "/tmp is full, what can I do?\n/etc/hosts\n//help\n/stats\n", &[]);
    assert!(told.stderr.contains("chat: 3 replies,") && !told.stderr.contains("no command"), "{told:?}");
    let told = tiny_chat(&folder, "/nothing\n/undo\n", &[]);
    assert!(told.stderr.contains("there is no command /nothing, so it goes to the model"), "{told:?}");
    assert!(told.stderr.contains("taken back: /nothing"), "{told:?}");
    let told = tiny_chat(&folder, "//exit\n/undo\n", &[]);
    assert!(told.stderr.contains("taken back: /exit") && !told.stderr.contains("no command"), "{told:?}");
}

#[test]
fn what_windows_adds_to_a_piped_chat_is_no_part_of_it() {
    let folder = TempFolder::new("chat-windows");
    let plain = tiny_chat(&folder, "hello\n\"\"\"one\ntwo\"\"\"\n/exit\n", &[]).success();
    let windows = "\u{feff}hello\r\n\"\"\"one\r\ntwo\"\"\"\r\n/exit\r\n";
    assert_eq!(tiny_chat(&folder, windows, &[]).success(), plain);
}

/// The second turn of a chat may come from a pipe; where there is none, the pipe is part of the first.
#[test]
fn a_pipe_is_part_of_the_only_turn() {
    let folder = TempFolder::new("chat-joined");
    let joined = tiny_chat(&folder, "hello\n\nyou\n", &["--single-turn"]).success();
    assert_ne!(
        tiny_chat(&folder, "hello", &["-p", "you", "-st"]).success(),
        tiny_chat(&folder, "", &["-p", "you", "-st"]).success()
    );
    let quoted = tiny_chat(&folder, "\"\"\"hello\n\nyou\"\"\"\n", &["--single-turn"]).success();
    assert_eq!(tiny_chat(&folder, "hello\r\n", &["-p", "you", "-st"]).success(), quoted);
    assert_ne!(joined, quoted);
}

#[test]
fn the_first_line_has_the_file_s_name_and_its_number_of_weights() {
    let folder = TempFolder::new("chat-named");
    let model = TinyModel::new(Arch::Llama).weights(WeightType::Q4_1).bytes();
    let file = offramp::gguf::File::from_bytes(model, "tiny").unwrap();
    let n: u64 = file.tensors().iter().map(offramp::gguf::TensorInfo::elements).sum();
    let told = tiny_chat(&folder, "/show model\n", &[]);
    let weights =
        if n < 1_000_000 { format!("{n} weights (llama ") } else { format!("{:.1}M weights (llama ", n as f64 / 1e6) };
    assert!(told.stderr.starts_with(&format!("offramp: tiny.gguf, {weights}")), "{weights} in {told:?}");
    assert_eq!(told.stderr.matches(&weights).count(), 2, "/show model tells it too: {told:?}");
}

#[test]
fn one_reply_is_made_without_waiting_for_more() {
    let folder = TempFolder::new("chat-single");
    let asked = tiny_chat(&folder, "", &["-p", "hello", "-st"]).success();
    assert!(!asked.is_empty());
    assert_eq!(tiny_chat(&folder, "hello\nnever asked\n", &["--single-turn"]).success(), asked);
    assert_eq!(tiny_chat(&folder, "", &["-p", "hello"]).success(), asked, "the end of the input ends the chat");
}

#[test]
fn a_reply_can_be_made_again_and_taken_back() {
    let folder = TempFolder::new("chat-again");
    let once = tiny_chat(&folder, "hello\n", &[]).success();
    let twice = tiny_chat(&folder, "hello\n/regen\n", &[]);
    assert_eq!(twice.success(), once.repeat(2));
    let back = tiny_chat(&folder, "something\n/undo\nhello\n/undo\n/undo\n/regen\n", &[]);
    assert!(back.stderr.contains("taken back: something") && back.stderr.contains("nothing to take back"), "{back:?}");
    assert!(back.success().ends_with(&once));
}

#[test]
fn quotes_hold_a_turn_of_several_lines_together() {
    let folder = TempFolder::new("chat-quotes");
    let quoted = tiny_chat(&folder, "\"\"\"hello\nyou\"\"\"\n/stats\n", &[]);
    assert!(quoted.stderr.contains("chat: 1 reply,"), "{quoted:?}");
}

#[test]
fn a_conversation_is_gone_on_with_after_it_was_saved() {
    let folder = TempFolder::new("chat-saved");
    let path = folder.path().join("talk");
    let path = path.to_str().unwrap();
    let whole = tiny_chat(&folder, "hello\nand then\n", &[]).success();
    let first = tiny_chat(&folder, &format!("hello\n/save {path}\n"), &[]).success();
    let loaded = tiny_chat(&folder, &format!("/load {path}\nand then\n"), &[]);
    assert!(loaded.stderr.contains("2 messages loaded"), "{loaded:?}");
    assert_eq!(format!("{first}{}", loaded.success()), whole);
    std::fs::remove_file(path).unwrap();
    let without = tiny_chat(&folder, &format!("/load {path}\n/undo\n"), &[]);
    assert!(without.stderr.contains("reads it again") && without.stderr.contains("taken back: hello"), "{without:?}");
    std::fs::write(format!("{path}.json"), "{}").unwrap();
    let wrong = tiny_chat(&folder, &format!("/load {path}\n"), &[]);
    assert!(wrong.stderr.contains("it is no saved chat"), "{wrong:?}");
}

#[test]
fn commands_show_and_change_what_replies_are_made_with() {
    let folder = TempFolder::new("chat-set");
    let notes = folder.file("notes.txt", "some notes");
    let input = format!(
        "/set\n/set temp hot\n/set temp 0.5\n/set\n/system be kind\n/show system\n/show model\n/exits exact\n/exits 7\n\
         /read {notes}\n/read {notes}.not\nhello\n/exits show\n/context\n/exits\n"
    );
    let finished = tiny_chat(&folder, &input, &[]);
    for line in [
        "temp               0\n",
        "temp is \"hot\", but must be a number",
        "temp               0.5\n",
        "be kind",
        "exit heads: none",
        "exits are exact",
        "the share is 7",
        "go before your next message",
        "cannot read",
        "of 512 tokens [#",
    ] {
        assert!(finished.stderr.contains(line), "{line:?} is missing: {finished:?}");
    }
    let stdout = finished.success();
    assert!(stdout.contains("full    12  100 % ####"), "{stdout}");
}
