//! `offramp doctor`, `completions` and `man`: that they tell something on any machine, and in the form they promise.

use crate::support::{TempFolder, offramp, run};

#[test]
fn the_doctor_tells_what_this_machine_is() {
    let home = TempFolder::new("doctor");
    let mut command = offramp(&["doctor"]);
    let output = command.env("HF_HOME", home.path()).env("OFFRAMP_CACHE", home.path()).output().unwrap();
    let told = crate::support::Finished::of(output).success();
    for line in ["build: offramp", "CPU features", "cores: ", "memory: ", "problem: there is no model yet"] {
        assert!(told.contains(line), "{line} is missing:\n{told}");
    }
    let report: serde_json::Value = serde_json::from_str(&run(&["doctor", "--json"]).success()).unwrap();
    assert!(report["threads_to_use"].as_u64() >= Some(1), "{report}");
}

#[test]
fn shells_and_man_are_served() {
    for (shell, word) in [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete -c offramp")] {
        assert!(run(&["completions", shell]).success().contains(word), "{shell}");
    }
    assert!(run(&["man"]).success().contains(".TH offramp 1"));
    let folder = TempFolder::new("man");
    run(&["man", folder.path().to_str().unwrap()]).success();
    assert!(folder.path().join("offramp-serve.1").is_file() || !cfg!(feature = "serve"));
    assert!(run(&["completions", "tcsh"]).failure(2).contains("--help"));
}
