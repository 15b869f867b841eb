//! `offramp` on a tiny random model of each architecture: it runs, and says what the layer gate can do.

use crate::support::{TempFolder, run};
use offramp_fixtures::{Arch, Memory, TinyModel};
use serde_json::Value;

fn tiny(folder: &TempFolder, arch: Arch) -> String {
    folder.file(&format!("{}.gguf", arch.name()), TinyModel::new(arch).bytes())
}

#[test]
fn every_architecture_generates_the_same_greedy_text_twice() {
    let folder = TempFolder::new("arch-run");
    for arch in Arch::ALL {
        let model = tiny(&folder, arch);
        let arguments =
            ["run", "-m", &model, "--raw", "-p", "Once", "-n", "8", "--temp", "0", "--ignore-eos", "--json"];
        let tokens = |stdout: String| serde_json::from_str::<Value>(&stdout).unwrap()["tokens"].clone();
        let first = tokens(run(&arguments).success());
        assert_eq!(first.as_array().unwrap().len(), 8, "{arch:?}");
        assert_eq!(first, tokens(run(&arguments).success()), "{arch:?}");
    }
}

#[test]
fn inspect_tells_where_the_gate_can_resume() {
    let folder = TempFolder::new("arch-inspect");
    for arch in Arch::ALL {
        let said = run(&["inspect", "-m", &tiny(&folder, arch)]).success();
        let can_resume = matches!(arch.memory(), Memory::Attention | Memory::SlidingWindow);
        let expected = if can_resume { "resume: yes" } else { "resume is not supported here" };
        assert!(said.contains(expected) && said.contains(arch.name()), "{arch:?} lacks {expected:?}:\n{said}");
    }
}

#[test]
fn a_model_without_a_template_gets_the_text_as_it_is_and_says_so() {
    let folder = TempFolder::new("no-template");
    let model = tiny(&folder, Arch::Gpt2);
    let finished = run(&["run", "-m", &model, "-p", "Once upon", "-n", "4", "--json"]);
    assert!(finished.stderr.contains("no chat template"), "{finished:?}");
    let record: Value = serde_json::from_str(&finished.success()).unwrap();
    assert_eq!(record["prompt_text"], "Once upon");
}

#[test]
fn a_model_cut_short_anywhere_fails_in_one_line() {
    let folder = TempFolder::new("cut");
    let whole = TinyModel::new(Arch::Llama).bytes();
    for share in [1, 10, 50, 90, 99] {
        let cut = folder.file("cut.gguf", &whole[..whole.len() * share / 100]);
        let finished = run(&["run", "-m", &cut, "-p", "a"]);
        assert!(finished.failure(1).contains("cut.gguf"), "{share} %: {finished:?}");
        assert_eq!((finished.stderr.lines().count(), finished.stdout.as_str()), (1, ""), "{finished:?}");
    }
}

#[test]
fn a_context_that_does_not_fit_into_memory_is_refused_with_the_figure() {
    let folder = TempFolder::new("memory");
    let finished = run(&["run", "-m", &tiny(&folder, Arch::Llama), "-c", "2000000000", "-p", "a"]);
    let line = finished.failure(1);
    assert!(line.contains("needs about") && line.contains("MiB are free"), "{line}");
}
