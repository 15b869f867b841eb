//! `offramp bench` and the exit flags of `run`, as whole programs on a tiny random model.

mod screen;
mod support;

use offramp::gguf::TensorType;
use offramp_fixtures::{Arch, TinyModel, WeightType};
use screen::Files;
use serde_json::Value;
use support::run;

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

fn bench(files: &Files, more: &[&str]) -> support::Finished {
    let prompts = files.path("p.jsonl");
    let all = [&["--prompts", prompts.to_str().unwrap()], more].concat();
    let all = arguments(files, "bench", &all);
    run(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn every_mode_is_measured_and_scored_again() {
    let report: Value = serde_json::from_str(&bench(&files(), &["--agreement", "0.9", "--json"]).success()).unwrap();
    assert_eq!((&report["n_prompts"], &report["n_predict"]), (&2.into(), &40.into()));
    let [off, calibrated] = report["modes"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&off["exits"], &calibrated["exits"]), (&"off".into(), &"calibrated".into()));
    assert_eq!(off["exit_histogram"].get("screen"), None);
    assert!(calibrated["exit_histogram"]["screen"].as_u64().unwrap() >= 5, "{report}");
    for mode in [off, calibrated] {
        assert_eq!(mode["rescored"]["differing"], 0, "{report}");
        assert!(mode["rescored"]["tokens"].as_u64() > Some(2));
        assert!(mode["decode_per_second"].as_f64() > Some(0.0) && mode["ratio_to_off"]["median"].as_f64() > Some(0.0));
    }
    assert_eq!(off["ratio_to_off"]["p10"], 1.0);
}

#[test]
fn markdown_is_a_table_with_a_row_a_mode() {
    let text = bench(&files(), &["--agreement", "0.9", "--markdown"]).success();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 4, "{text}");
    assert!(rows[1].chars().all(|c| matches!(c, '|' | '-' | ' ')), "{text}");
    assert!(rows[3].starts_with("| calibrated"), "{text}");
}

#[test]
fn without_exits_off_alone_is_measured() {
    let report: Value = serde_json::from_str(&bench(&files(), &["--exits", "off", "--json"]).success()).unwrap();
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
    let (calibrated, n_calibrated) = exits(&["--agreement", "0.9"]);
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
