//! `offramp bench` and the exit flags of `run`, as whole programs on a tiny random model.

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use crate::support::run;
use offramp::gguf::TensorType;
use offramp_fixtures::{Arch, TinyModel, WeightType};
use serde_json::Value;

/// A model, a screen that cannot miss, and prompts.
fn files() -> Files {
    let files = Files::new(&TinyModel::new(Arch::Llama).weights(WeightType::Q8_0));
    files.write_screen(64, [0.0, f32::INFINITY], TensorType::Q8_0, true);
    std::fs::write(files.path("p.jsonl"), "{\"prompt\": \"one two\"}\n{\"turns\": [\"three\", \"ignored\"]}\n")
        .unwrap();
    files
}

fn arguments(files: &Files, command: &str, more: &[&str]) -> Vec<String> {
    let paths = ["model.gguf", "heads.gguf"].map(|name| files.path(name).to_str().unwrap().to_owned());
    let mut all = vec![command, "-m", &paths[0], "--heads", &paths[1], "-c", "256", "-t", "1", "-n", "40"];
    all.extend(more);
    all.into_iter().map(str::to_owned).collect()
}

fn bench(files: &Files, more: &[&str]) -> crate::support::Finished {
    let prompts = files.path("p.jsonl");
    let all = [&["--prompts", prompts.to_str().unwrap()], more].concat();
    let all = arguments(files, "bench", &all);
    run(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn every_mode_is_measured_and_scored_again() {
    let asked = ["--agreement", "0.9", "--exits", "calibrated", "--policy", "always", "--json"];
    let report: Value = serde_json::from_str(&bench(&files(), &asked).success()).unwrap();
    assert_eq!((&report["n_prompts"], &report["n_predict"]), (&2.into(), &40.into()));
    let [plain, off, calibrated] = report["modes"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&off["exits"], &calibrated["exits"]), (&"off".into(), &"calibrated".into()));
    assert_eq!((&plain["mode"], &off["mode"]), (&"llama.cpp".into(), &"off".into()));
    assert_eq!(off["exit_histogram"].get("screen"), None);
    assert!(calibrated["exit_histogram"]["screen"].as_u64().unwrap() >= 5, "{report}");
    for mode in [off, calibrated] {
        assert_eq!(mode["rescored"]["differing"], 0, "{report}");
        assert!(mode["rescored"]["tokens"].as_u64() > Some(2));
        assert!(
            mode["decode_per_second"].as_f64() > Some(0.0) && mode["ratio_to_llama_cpp"]["median"].as_f64() > Some(0.0)
        );
    }
    assert_eq!(plain["ratio_to_llama_cpp"]["p10"], 1.0);
}

#[test]
fn markdown_is_a_table_with_a_row_a_mode() {
    let text = bench(&files(), &["--agreement", "0.9", "--markdown"]).success();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 6, "{text}");
    assert!(rows[2].starts_with("| llama.cpp"), "{text}");
    assert!(rows[5].starts_with("| exact"), "{text}");
    assert!(rows[1].chars().all(|c| matches!(c, '|' | '-' | ' ')), "{text}");
    assert!(rows[4].starts_with("| calibrated"), "{text}");
}

/// Tokens that exits let go, once with each K/V policy that is asked for, and exact mode beside them.
#[test]
fn exits_after_blocks_are_measured_with_each_kv_policy() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    files.write_exits(&Spec::new(&[2], Kind::Perfect));
    std::fs::write(files.path("p.jsonl"), "{\"prompt\": \"one two\"}\n").unwrap();
    let asked = [
        "--agreement",
        "0.9",
        "--exits",
        "calibrated,exact",
        "--kv",
        "catch-up,propagate",
        // The last drafts of a look-up are never compared: the text ends before.
        "--lookup",
        "off",
        "--policy",
        "always",
        "--json",
    ];
    let report: Value = serde_json::from_str(&bench(&files, &asked).success()).unwrap();
    let modes = report["modes"].as_array().unwrap();
    let names: Vec<_> = modes.iter().map(|mode| (mode["exits"].as_str().unwrap(), mode["kv"].as_str())).collect();
    let calibrated = |kv| ("calibrated", Some(kv));
    assert_eq!(names, [("off", None), ("off", None), calibrated("catch-up"), calibrated("propagate"), ("exact", None)]);
    let [_, off, caught_up, propagated, exact] = modes.as_slice() else { panic!("{report}") };
    for mode in [off, caught_up, exact] {
        assert_eq!(mode["rescored"]["differing"], 0, "{report}");
    }
    for mode in [caught_up, propagated] {
        assert!(mode["exit_histogram"]["layer 002"].as_u64() > Some(10), "{report}");
        assert!(mode["mean_depth"].as_f64() < Some(0.7), "{report}");
    }
    assert!(exact["drafted"].as_u64() > Some(10) && exact["drafted"] == exact["drafted_right"], "{report}");
}

/// Marks follow the text where there is no terminal to colour it.
#[test]
fn exits_are_shown_beside_the_text() {
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0), 3);
    files.write_exits(&Spec::new(&[2], Kind::Perfect));
    let more = ["-p", "one two", "--temp", "0", "--agreement", "0.9", "--policy", "always", "--show-exits"];
    let all = arguments(&files, "run", &more);
    let finished = run(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(finished.stderr.contains("left after layer N of 0 to 5"), "{finished:?}");
    assert!(finished.success().matches("[2]").count() > 10);
}

#[test]
fn without_exits_off_alone_is_measured_beside_llama_cpp() {
    let report: Value = serde_json::from_str(&bench(&files(), &["--exits", "off", "--json"]).success()).unwrap();
    assert_eq!(report["modes"].as_array().unwrap().len(), 2);
    let ours = &["--exits", "off", "--kernels", "llama.cpp", "--json"];
    let report: Value = serde_json::from_str(&bench(&files(), ours).success()).unwrap();
    assert_eq!(report["modes"].as_array().unwrap().len(), 1);
}

#[test]
fn run_reports_where_tokens_left() {
    let files = files();
    let exits = |more: &[&str]| {
        let all = arguments(&files, "run", &[&["--temp", "0", "--raw", "-p", "one two", "--json"], more].concat());
        let record: Value =
            serde_json::from_str(&run(&all.iter().map(String::as_str).collect::<Vec<_>>()).success()).unwrap();
        let screened = record["exit_layers"].as_array().unwrap().iter().filter(|&exit| exit == "screen").count();
        (record["tokens"].clone(), screened)
    };
    let (off, n_off) = exits(&["--exits", "off"]);
    let (calibrated, n_calibrated) = exits(&["--agreement", "0.9", "--policy", "always"]);
    assert_eq!((off, n_off), (calibrated, 0));
    assert!(n_calibrated >= 5);
}

#[test]
fn wrong_heads_and_levels_are_told() {
    let files = files();
    let no_level = arguments(&files, "run", &["-p", "x", "--agreement", "0.9999"]);
    let finished = run(&no_level.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(finished.failure(1).contains("agreement is 0.9999"), "{finished:?}");
    let model = files.path("model.gguf");
    let model = model.to_str().unwrap();
    let finished = run(&["run", "-m", model, "--heads", model, "-p", "x"]);
    assert!(finished.failure(1).contains("heads"), "{finished:?}");
    assert_eq!(run(&["run", "-m", model, "--exits", "sometimes", "-p", "x"]).code, Some(2));
}
