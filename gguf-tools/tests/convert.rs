//! From a tiny model to one with a screen, as the program does it: the tokens, the file, and what is refused.

mod folder;

use std::ops::Range;
use std::path::Path;

use folder::Folder;
use gguf_tools::collect::store::Reader;
use offramp::gate::Tap;
use offramp::gguf::File;
use offramp::gguf::exits::{ExitHeads, Form};
use offramp_fixtures::Arch;

/// The names and contents of a folder's files.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_collection_in_two_parts_is_byte_for_byte_that_in_one() {
    let folder = Folder::new();
    folder.text("collect model.gguf -o whole --tokens 120 --answer 8 --layers 0,1 --seed 5");
    folder.text("collect model.gguf -o parts --tokens 40 --answer 8 --layers 0,1 --seed 5");
    assert_ne!(contents(&folder.path("parts")), contents(&folder.path("whole")));
    folder.text("collect model.gguf -o parts --tokens 120 --answer 8 --layers 0,1 --seed 5 --resume");
    assert_eq!(contents(&folder.path("parts")), contents(&folder.path("whole")));

    let reader = Reader::open(&folder.path("whole")).unwrap();
    assert!((120..128).contains(&reader.n_tokens()));
    let n_tokens = reader.answers().last().unwrap().end;
    let follows = |(turn, answer): (&Range<u64>, &Range<u64>)| !turn.is_empty() && turn.end == answer.start;
    assert!(reader.turns().iter().zip(reader.answers()).all(follows), "the model wrote each turn, which comes first");
    for tap in [Tap::Layer(0), Tap::Layer(1), Tap::ResultNorm] {
        let hidden = reader.hidden(tap, 0..n_tokens).unwrap();
        assert!(hidden.len() as u64 == 128 * n_tokens && hidden.iter().any(|value| *value != 0.0));
    }
    // K and V are kept of every layer above the lowest, and are those of the same tokens: no two rows are alike.
    let kv: Vec<u32> = reader.manifest().kv.iter().map(|widths| widths.layer).collect();
    assert_eq!(kv, [1, 2]);
    for layer in kv {
        let (k, v) = (reader.k(layer, 0..n_tokens).unwrap(), reader.v(layer, 0..n_tokens).unwrap());
        assert!(k.len() == v.len() && k.iter().chain(&v).any(|value| *value != 0.0));
    }
    assert!(reader.k(0, 0..1).is_err());
    // Where the answer is greedy, each decoded token is the choice at the one before.
    let labels = reader.labels(reader.answers()[0].clone()).unwrap();
    assert!(labels.windows(2).all(|pair| pair[0].argmax() == pair[1].token));
    let labels = reader.labels(0..n_tokens).unwrap();
    for label in labels {
        let mass: f32 = label.top.iter().map(|(_, probability)| probability).sum();
        assert!((mass + label.rest - 1.0).abs() < 1e-4);
    }
}

/// A log file gets lines with the step, what is done and the time left; none of them draws a bar.
#[test]
fn long_work_is_told_in_lines_where_no_bar_is_drawn() {
    let folder = Folder::new();
    let program = env!("CARGO_BIN_EXE_gguf-tools");
    let words = "collect model.gguf -o told --tokens 400 --answer 8 --layers 0,1 -v".split_whitespace();
    let mut command = std::process::Command::new(program);
    command.args(words).env("OFFRAMP_PROGRESS_SECONDS", "0.002").current_dir(folder.path("."));
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    let is_told = |line: &str| {
        line.starts_with("gguf-tools: collecting: ") && line.contains(" of 400 tokens in ") && line.ends_with(" left")
    };
    assert!(told.lines().any(is_told), "{told}");
    assert!(!told.contains(['\r', '\x1b']), "{told}");
}

#[test]
fn the_width_of_a_batch_changes_nothing_where_kernels_do_not_round_by_it() {
    let folder = Folder::new();
    let collect = |name: &str, more: &str| {
        folder.text(&format!("collect model.gguf -o {name} --tokens 90 --answer 8 --layers 1 --seed 2 {more}"));
        let mut files = contents(&folder.path(name));
        files.retain(|(name, _)| name != "manifest.json");
        files
    };
    let wide = collect("wide", "");
    assert_eq!(collect("narrow", "--sequences 3"), wide);
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert!(names(&wide).contains(&"k-2.f16".to_string()));
    let without = collect("without", "--kv-maps off");
    assert!(!names(&without).iter().any(|name| name.starts_with("k-") || name.starts_with("v-")));
    assert!(
        folder
            .refusal(1, "collect model.gguf -o narrow --sequences 4 --resume --answer 8 --layers 1 --seed 2")
            .contains("batch_width 3, not 4")
    );
    for bad in [0, 65] {
        assert!(folder.refusal(1, &format!("collect model.gguf -o t --sequences {bad}")).contains("between 1 and 64"));
    }
}

#[test]
fn a_file_is_certified_anew_on_other_prompts() {
    let folder = Folder::new();
    folder.text(
        "add-heads model.gguf -o heads.gguf --sidecar --tokens 500 --answer 8 --layers 0 --screen-rank 64 --shortlist 64 \
         --kv-maps on --agreement-levels 0.5,0.9 --max-prompts 60",
    );
    folder.text("attach model.gguf heads.gguf -o merged.gguf");
    let calibrated = |arguments: &str, output: &str| -> serde_json::Value {
        let text = folder.text(&format!("calibrate {arguments} -o {output} --json --answer 6 --seed 4"));
        serde_json::from_str(&text).unwrap()
    };
    let found = calibrated("merged.gguf --self --max-prompts 40 --agreement-levels 0.5,0.999", "own.gguf");
    assert_eq!((found["prompts"].as_u64(), found["kv_policy"].as_str()), (Some(40), Some("predict")));
    let levels = found["levels"].as_array().unwrap();
    assert_eq!((&levels[0]["is_certified"], &levels[1]["is_certified"]), (&true.into(), &false.into()));
    assert_eq!(levels[1]["least_prompts"], 2995);
    assert!(levels[0]["risk"].as_f64() <= levels[0]["risk_bound"].as_f64());
    assert!(!folder.path("own.gguf.candidates").exists());

    // The heads and the model are what they were; levels and record are new.
    let (old, new) = (File::open(folder.path("merged.gguf")).unwrap(), File::open(folder.path("own.gguf")).unwrap());
    let heads = ExitHeads::open(&new).unwrap();
    let meta = heads.meta();
    assert_eq!(meta.agreements, [0.5, 0.999]);
    assert!(meta.screen.thresholds[0].is_finite() && meta.screen.thresholds[1].is_infinite());
    let calibration = meta.calibration.as_ref().unwrap();
    // A level that is certified needs no more prompts.
    assert!((5..40).contains(&calibration.n_prompts), "{}", calibration.n_prompts);
    assert!(calibration.sampler.contains("greedy") && calibration.prompts.contains("written by the model"));
    for tensor in old.tensors() {
        let again = new.tensor(tensor.name()).unwrap();
        assert!(old.data(tensor) == new.data(again), "{}", tensor.name());
    }
    // Prompts of a file, for heads beside their model; the same prompts give the same file.
    let prompts: String = (0..40).map(|i| format!("{{\"prompt\": \"Tell me about number {i}\"}}\n")).collect();
    folder.write("mine.jsonl", prompts);
    let arguments = "heads.gguf --model model.gguf --prompts mine.jsonl --agreement-levels 0.5 --kv catch-up";
    assert_eq!(calibrated(arguments, "mine.gguf")["kv_policy"], "catch_up");
    calibrated(arguments, "again.gguf");
    // Sessions that draft are certified where that is wanted, with the worse of both decodes.
    let long = |drafts: &str, output: &str| -> serde_json::Value {
        let arguments = format!("calibrate {arguments} -o {output} --json --answer 60 {drafts}");
        serde_json::from_str(&folder.text(&arguments)).unwrap()
    };
    let (alone, drafting) = (long("", "alone.gguf"), long("--drafts", "drafting.gguf"));
    assert_eq!((&alone["batch_width"], &drafting["batch_width"]), (&1.into(), &8.into()), "{drafting}");
    assert!(drafting["candidates"][0]["drafted"].as_u64() > Some(0), "{drafting}");
    let bytes = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert!(bytes("mine.gguf") == bytes("again.gguf"));
    folder.text("verify mine.gguf --model model.gguf");

    let text = folder.text("calibrate merged.gguf --prompts mine.jsonl -o few.gguf --max-prompts 3 --answer 6");
    assert!(text.contains("off: 3 prompts cannot certify it, which takes"), "{text}");
    let plan = folder.text("calibrate merged.gguf --prompts mine.jsonl -o plan.gguf --dry-run --answer 6");
    assert!(plan.contains("40 prompts would be decoded") && !folder.path("plan.gguf").exists(), "{plan}");
    let refused = |arguments: &str, reason: &str| {
        let text = folder.refusal(1, arguments);
        assert!(text.contains(reason), "{arguments}: {text}");
    };
    refused("calibrate merged.gguf --self -o own.gguf", "own.gguf");
    refused("calibrate heads.gguf --self -o out.gguf", "give their model with --model");
    refused("calibrate merged.gguf --model model.gguf --self -o out.gguf", "leave --model out");
    refused("calibrate model.gguf --self -o out.gguf", "model.gguf");
    refused("calibrate few.gguf --self -o out.gguf", "nothing to certify");
    refused("calibrate merged.gguf --self -o out.gguf --agreement-levels 0.9,0.8", "ascending shares");
    refused("calibrate merged.gguf --self -o out.gguf --delta 0", "delta");
    folder.write("empty.txt", "\n");
    refused("calibrate merged.gguf --prompts empty.txt -o out.gguf", "holds no prompt");
    assert!(!folder.path("out.gguf").exists() && !folder.path("out.gguf.candidates").exists());
}

#[test]
fn a_base_model_and_a_corpus_give_tokens_too() {
    let folder = Folder::new();
    folder.model("base.gguf", Arch::Gemma3);
    folder.text("collect base.gguf -o base --tokens 30 --answer 8");
    folder.write("prompts.txt", "What is up?\n\nTell me more\nof that.\n");
    folder.write("prompts.jsonl", "{\"turns\": [\"Hello\", \"again\"]}\n");
    let text = folder.text("collect model.gguf -o corpus --answer 4 --corpus prompts.txt prompts.jsonl");
    assert!(text.contains("the corpus has no more"), "{text}");
    let corpus = Reader::open(&folder.path("corpus")).unwrap();
    assert!(corpus.answers().len() <= 3 && corpus.turns().iter().all(Range::is_empty), "no turn was written");
}

#[test]
fn a_model_gets_a_screen_and_the_same_one_again() {
    let folder = Folder::new();
    let arguments = "--tokens 500 --answer 8 --layers off --draft-head --epochs 1 --screen-rank 64 --shortlist 64 \
                     --agreement-levels 0.5,0.9 --max-prompts 60";
    let text = folder.text(&format!("add-heads model.gguf -o merged.gguf {arguments}"));
    assert!(text.contains("screen: rank 64, 64 candidates") && text.contains("head that drafts"), "{text}");
    assert!(!folder.path("merged.gguf.tokens").exists(), "the tokens were of use for this file alone");
    let file = File::open(folder.path("merged.gguf")).unwrap();
    let heads = ExitHeads::open(&file).unwrap();
    assert_eq!(heads.form(), Form::Merged);
    assert!(heads.heads().is_empty() && heads.draft().is_some());
    let meta = heads.meta();
    assert_eq!((meta.screen.rank, meta.screen.shortlist, meta.agreements.as_slice()), (64, 64, [0.5, 0.9].as_slice()));
    assert_eq!(meta.screen.thresholds.len(), 2);
    let calibration = meta.calibration.as_ref().unwrap();
    assert!(calibration.n_prompts >= 5 && calibration.risk[0] <= calibration.risk_bound[0]);

    folder.text("verify merged.gguf");
    folder.text("strip-heads merged.gguf -o again.gguf");
    assert_eq!(std::fs::read(folder.path("again.gguf")).unwrap(), std::fs::read(folder.path("model.gguf")).unwrap());

    folder.text("collect model.gguf -o tokens --tokens 500 --answer 8");
    folder.text(&format!("add-heads model.gguf -o heads.gguf --sidecar --resume tokens {arguments}"));
    folder.text("attach model.gguf heads.gguf -o same.gguf");
    let bytes = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert!(bytes("same.gguf") == bytes("merged.gguf"), "the same tokens and seed give the same file");
    assert!(folder.path("tokens").exists());

    let again = format!("add-heads model.gguf -o merged.gguf --resume tokens {arguments}");
    assert!(folder.refusal(1, &again).contains("merged.gguf"));
    folder.text(&format!("{again} --force"));
    assert!(bytes("same.gguf") == bytes("merged.gguf"));
    assert!(
        folder.refusal(1, &again.replace("model.gguf -o merged", "merged.gguf -o out")).contains("strip-heads first")
    );
}

#[test]
fn what_cannot_work_is_refused_before_the_work() {
    let folder = Folder::new();
    let refused = |arguments: &str, reason: &str| {
        let text = folder.refusal(1, arguments);
        assert!(text.contains(reason), "{arguments}: {text}");
    };
    refused("collect model.gguf -o t --layers 2", "give ascending layers from 0 to 1");
    refused("collect model.gguf -o t --answer 0", "answers of 0 tokens");
    refused("collect missing.gguf -o t", "missing.gguf");
    folder.write("empty.txt", "\n\n");
    refused("collect model.gguf -o t --corpus empty.txt", "holds no prompt");
    folder.write("bad.jsonl", "{\"prompt\": \"a\"}\n{}\n");
    refused("collect model.gguf -o t --corpus bad.jsonl", "bad.jsonl, line 2");
    refused("add-heads model.gguf -o model.gguf", "model.gguf");
    refused("add-heads model.gguf -o out.gguf --agreement-levels 0.9,0.8", "ascending shares");
    refused("add-heads model.gguf -o out.gguf --delta 1", "delta");

    folder.text("collect model.gguf -o few --tokens 40 --answer 8");
    refused("collect model.gguf -o few --tokens 40 --answer 8", "go on with --resume");
    refused(
        "add-heads model.gguf -o out.gguf --resume few --tokens 40 --answer 8 --layers off",
        "at least 20 are needed",
    );
    refused("collect model.gguf -o few --tokens 40 --answer 8 --seed 9 --resume", "seed 0, not 9");
    folder.model("other.gguf", Arch::Qwen3);
    refused("add-heads other.gguf -o out.gguf --resume few --tokens 40 --layers off", "the tokens were collected from");
    refused("add-heads other.gguf -o out.gguf --resume few --tokens 400 --answer 8 --layers off", "was collected with");
    folder.write("few/labels.bin", "short");
    refused(
        "add-heads model.gguf -o out.gguf --resume few --tokens 40 --answer 8 --layers off",
        "labels.bin holds 5 bytes",
    );
    assert!(!folder.path("out.gguf").exists() && !folder.path("t").exists());

    let plan = folder.text("add-heads model.gguf -o out.gguf --dry-run --tokens 2k");
    assert!(plan.contains("2000 tokens would be collected in out.gguf.tokens"), "{plan}");
    assert!(!folder.path("out.gguf").exists() && !folder.path("out.gguf.tokens").exists());
}
