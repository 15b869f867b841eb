//! Exit codes and messages of `offramp` where no model is needed: help, version, devices, wrong usage, files that are missing or damaged.

use crate::support::{Finished, TempFolder, offramp, run, run_with_input};

#[test]
fn help_is_a_result_and_goes_to_stdout() {
    for arguments in [&["--help"][..], &["run", "--help"], &["chat", "--help"], &["inspect", "--help"]] {
        assert!(run(arguments).success().contains("Usage: offramp"), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_leaves_stdout_empty() {
    for arguments in [
        &[][..],
        &["walk"],
        &["run"],
        &["run", "-p"],
        &["run", "-p", "a", "-f", "b"],
        &["run", "-p", "a", "-n", "many"],
        &["run", "-p", "a", "-ngl", "most"],
        &["run", "-p", "a", "-ctk", "q2_k"],
        &["run", "-p", "a", "--no-such-flag"],
        &["run", "-p", "a", "--seed", "99999999999"],
        &["run", "-m", "a.gguf", "-hf", "user/model", "-p", "a"],
    ] {
        let finished = run(arguments);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", finished.stderr);
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn version_tells_how_the_program_was_built_when_asked() {
    assert_eq!(run(&["--version"]).success(), format!("offramp {}\n", env!("CARGO_PKG_VERSION")));
    let verbose = run(&["--version", "--verbose"]).success();
    for line in ["commit: ", "target-cpu: ", "llama-cpp-sys-2: 0.1.", "CPU features that ggml uses: "] {
        assert!(verbose.lines().any(|found| found.starts_with(line)), "{line} is missing in {verbose}");
    }
}

#[test]
fn devices_are_listed_a_line_each() {
    assert!(run(&["--list-devices"]).success().lines().any(|line| line.starts_with("CPU")));
}

#[test]
fn a_missing_model_is_named() {
    let finished = run(&["run", "-m", "/no/such/model.gguf", "-p", "a"]);
    assert!(finished.failure(1).contains("/no/such/model.gguf"), "{finished:?}");
    assert_eq!(finished.stdout, "");
}

#[test]
fn a_missing_default_model_names_the_command_that_fetches_it() {
    let folder = TempFolder::new("no-default");
    let output = offramp(&["run", "-p", "a"]).env("OFFRAMP_CACHE", folder.path()).output().unwrap();
    let finished = Finished::of(output);
    assert!(finished.failure(1).contains("make model"), "{finished:?}");
}

#[test]
fn files_that_are_no_model_fail_in_one_line() {
    let folder = TempFolder::new("damaged");
    let files: [(&str, &[u8]); 4] = [
        ("empty.gguf", b""),
        ("text.gguf", b"This is not a model."),
        ("header.gguf", b"GGUF\x03\0\0\0"),
        ("counts.gguf", b"GGUF\x03\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F"),
    ];
    for (name, content) in files {
        let finished = run(&["run", "-m", &folder.file(name, content), "-p", "a"]);
        assert!(finished.failure(1).contains(name), "{finished:?}");
        assert_eq!((finished.stderr.lines().count(), finished.stdout.as_str()), (1, ""), "{finished:?}");
    }
}

#[test]
fn a_folder_is_no_model() {
    let folder = TempFolder::new("folder");
    let finished = run(&["run", "-m", folder.path().to_str().unwrap(), "-p", "a"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
}

#[test]
fn mistakes_in_prompts_are_found_before_a_model_is_loaded() {
    let folder = TempFolder::new("prompts");
    let not_unicode = folder.file("latin1.txt", b"caf\xE9");
    let finished = run(&["run", "-m", "/no/such/model.gguf", "-f", &not_unicode]);
    assert!(finished.failure(1).contains("not UTF-8 at byte 3"), "{finished:?}");
    let no_json = folder.file("prompts.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n");
    let finished = run(&["run", "-m", "/no/such/model.gguf", "--prompts", &no_json]);
    assert!(finished.failure(1).contains("prompts.jsonl line 2"), "{finished:?}");
    assert!(run_with_input(&["run", "--prompts", "-"], "").failure(1).contains("no prompts"));
}

#[test]
fn environment_variables_of_llama_cpp_count() {
    let output = offramp(&["run", "-p", "a"]).env("LLAMA_ARG_MODEL", "/from/the/environment.gguf").output().unwrap();
    assert!(Finished::of(output).failure(1).contains("/from/the/environment.gguf"));
}

#[cfg(unix)]
#[test]
fn output_that_nobody_reads_is_no_failure() {
    use std::process::Stdio;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = offramp(&["--version", "--verbose"]).stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}
