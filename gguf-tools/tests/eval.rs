//! `eval` and `--report`, as the program does them on a tiny model: figures, tasks, pages, and what is refused.

mod folder;

use std::process::Command;
use std::sync::OnceLock;

use folder::Folder;
use serde_json::Value as Json;

/// A folder with `model.gguf`, prompts of two categories, questions and problems.
fn folder() -> Folder {
    let folder = Folder::new();
    let line = |i: usize| {
        let category = ["writing", "math"][i % 2];
        format!("{{\"prompt\": \"Tell me about {i}\", \"category\": \"{category}\"}}\n")
    };
    folder.write("p.jsonl", (0..6).map(line).collect::<String>());
    folder.write("a.jsonl", "{\"prompt\": \"What is 2 + 2?\", \"answer\": 4}\n");
    let problem = r#"{"prompt": "def f(x):\n    \"\"\"Doubles.\"\"\"\n", "entry_point": "f", "test": "def check(f):\n    assert f(2) == 4\n"}"#;
    folder.write("h.jsonl", problem);
    folder
}

fn json(folder: &Folder, arguments: &str) -> Json {
    serde_json::from_str(&folder.text(&format!("{arguments} --json"))).unwrap()
}

/// The report in a folder of the folder, which must be a whole page that loads nothing.
fn page(folder: &Folder, name: &str) -> String {
    let html = std::fs::read_to_string(folder.path(name).join("report.html")).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    for loads in ["<script", "http://", "https://", " src=", "@import", "url("] {
        assert!(!html.contains(loads), "{loads}");
    }
    let figures = html.matches("role=\"img\"").count();
    assert_eq!((html.matches("<desc id=").count(), html.matches("<title id=").count()), (figures, figures));
    html
}

/// Puts heads with a level that is certified and one that is not beside the model, and the report that was written with
/// them. They are made once.
fn certified(folder: &Folder) {
    static MADE: OnceLock<(Vec<u8>, String)> = OnceLock::new();
    let (heads, page) = MADE.get_or_init(|| {
        folder.text(
            "add-heads model.gguf -o heads.gguf --sidecar --tokens 500 --answer 8 --layers 0 --screen-rank 64 \
             --kv-maps on --shortlist 64 --agreement-levels 0.5,0.999 --max-prompts 40 --threads 1 --report made",
        );
        (std::fs::read(folder.path("heads.gguf")).unwrap(), page(folder, "made"))
    });
    folder.write("heads.gguf", heads);
    std::fs::create_dir_all(folder.path("made")).unwrap();
    folder.write("made/report.html", page);
}

#[test]
fn every_mode_is_measured_on_the_same_prompts() {
    let folder = folder();
    certified(&folder);
    let made = page(&folder, "made");
    for section in
        ["Risk and thresholds", "Certified levels", "Reliability", "Training", "Coverage at equal risk", "Layers"]
    {
        assert!(made.contains(section), "{section}");
    }
    assert!(made.contains("Replies") && made.contains("class=\"sample\""), "a certified level has replies to show");

    let found = json(
        &folder,
        "eval heads.gguf --model model.gguf --prompts p.jsonl --answers a.jsonl -n 12 --policy always --kv predict,catch-up \
         --report evaluated",
    );
    assert_eq!((&found["prompts"], &found["levels_off"]), (&7.into(), &serde_json::json!([0.999])));
    let modes = found["modes"].as_array().unwrap();
    let name = |mode: &Json| format!("{} {}", mode["exits"].as_str().unwrap(), mode["kv"].as_str().unwrap_or("-"));
    let names: Vec<String> = modes.iter().map(name).collect();
    assert_eq!(names, ["off -", "calibrated predict", "calibrated catch-up", "exact -"]);
    let (off, predict, exact) = (&modes[0], &modes[1], &modes[3]);
    // Batches of this model round like single tokens: the full model agrees with itself, and so does exact mode.
    for mode in [off, exact] {
        assert_eq!((&mode["agreement"], &mode["exit_wrong"]["tokens"]), (&1.0.into(), &0.into()));
    }
    assert_eq!(off["perplexity"], exact["perplexity"]);
    assert_eq!(off["ratio_to_off"]["median"], 1.0);
    let tokens = predict["tokens"].as_u64().unwrap();
    let depths: u64 = predict["exit_histogram"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(depths, tokens, "each emitted token left somewhere");
    let wrong = |what: &str| predict[what]["tokens"].as_u64().unwrap();
    let differing = tokens as f64 * (1.0 - predict["agreement"].as_f64().unwrap());
    assert_eq!((wrong("exit_wrong") + wrong("kv_changed")) as f64, differing.round());
    assert!(predict["layers_saved"].as_f64().is_some() && modes[2]["layers_saved"].is_null());
    assert_eq!(predict["levels"][0]["agreement"], 0.5);
    let categories: Vec<&str> =
        off["by_category"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(categories, ["writing", "math", "answers"]);
    assert_eq!(off["checks"][0]["name"], "exact_match");
    let page = page(&folder, "evaluated");
    for section in
        ["Speed and agreement", "What the levels promise", "Where tokens left the model", "exact match", "Replies"]
    {
        assert!(page.contains(section), "{section}");
    }

    // The same prompts give the same tokens, merged or beside the model, in words as in JSON.
    folder.text("attach model.gguf heads.gguf -o merged.gguf");
    let again = json(
        &folder,
        "eval merged.gguf --prompts p.jsonl --answers a.jsonl -n 12 --policy always --kv predict,catch-up",
    );
    assert_eq!(again["modes"][1]["exit_histogram"], predict["exit_histogram"]);
    assert_eq!(again["modes"][1]["agreement"], predict["agreement"]);
    let text = folder.text("eval merged.gguf --prompts p.jsonl -n 8 --max-prompts 2 --agreement-levels 0.5");
    assert!(
        text.contains("2 prompts, up to 8 tokens each, greedy") && text.contains("calibrated 0.5, K/V auto"),
        "{text}"
    );
    let markdown = folder.text("eval merged.gguf --prompts p.jsonl -n 8 --max-prompts 2 --markdown --temp 0.8");
    assert!(markdown.contains("| off ") && markdown.contains("Certificates are for greedy decoding"), "{markdown}");
    assert!(markdown.contains("does not apply: not greedy"), "{markdown}");
}

#[test]
fn programs_run_only_where_that_is_asked_for() {
    let folder = folder();
    certified(&folder);
    let output = folder.run("eval heads.gguf --model model.gguf --humaneval h.jsonl -n 8 --json");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not run: --execute-code"));
    let found: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["prompts"], &found["modes"][0]["checks"]), (&1.into(), &serde_json::json!([])));
    if cfg!(unix) && Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        let found = json(&folder, "eval heads.gguf --model model.gguf --humaneval h.jsonl -n 8 --execute-code");
        // What a model of noise writes is no program.
        assert_eq!(found["modes"][0]["checks"], serde_json::json!([{"name": "pass_at_1", "tasks": 1, "passed": 0}]));
    } else {
        eprintln!("skipped: there is no python3 on this machine");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = folder();
    certified(&folder);
    let refused = |arguments: &str, reason: &str| {
        let text = folder.refusal(1, arguments);
        assert!(text.contains(reason), "{arguments}: {text}");
    };
    refused("eval model.gguf --prompts p.jsonl", "model.gguf");
    refused("eval heads.gguf --prompts p.jsonl", "give their model with --model");
    let with_model = "eval heads.gguf --model model.gguf --prompts";
    refused(&format!("{with_model} p.jsonl --agreement-levels 0.7"), "no level 0.7");
    refused(&format!("{with_model} p.jsonl --max-prompts 0"), "--max-prompts");
    refused(&format!("{with_model} p.jsonl --delta 1"), "delta");
    refused(&format!("{with_model} p.jsonl --temp=-1"), "temperature");
    refused(&format!("{with_model} p.jsonl -n 600"), "no prompt leaves room");
    refused(&format!("{with_model} p.jsonl -n 0"), "-n 1 or more");
    refused(&format!("{with_model} missing.jsonl"), "missing.jsonl");
    folder.write("bad.jsonl", "{\"prompt\": \"a\"}\n{}\n");
    refused(&format!("{with_model} bad.jsonl"), "bad.jsonl, line 2");
    refused("eval heads.gguf --model model.gguf --answers bad.jsonl", "bad.jsonl, line 1");
    for usage in ["eval heads.gguf", "eval heads.gguf --prompts p.jsonl --execute-code"] {
        folder.refusal(2, usage);
    }
}
