//! The program as its users see it: what each verb prints, where, and with which exit status.

#[path = "../../tests/gguf/random.rs"]
#[allow(dead_code)]
mod random;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use offramp::gguf::exits::HeadType;
use offramp::gguf::{File, TensorType, WriteOptions, Writer};
use serde_json::Value as Json;

/// A folder with `model.gguf`, `heads.gguf` and, made by `attach`, `merged.gguf`.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        write(&random::model(1), &files.path("model.gguf"));
        let base = File::open(files.path("model.gguf")).unwrap();
        let types = [HeadType::Affine, HeadType::LowRankMlp];
        write(&random::heads(&base, &[0, 1], &types, 2), &files.path("heads.gguf"));
        let done = files.run(&["attach", "model.gguf", "heads.gguf", "-o", "merged.gguf"]);
        assert!(done.status.success(), "{}", stderr(&done));
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let program = env!("CARGO_BIN_EXE_gguf-tools");
        // A machine that is busy with something else may take long enough for a line about progress.
        let quiet = ("OFFRAMP_PROGRESS_SECONDS", "100000");
        Command::new(program).args(arguments).env(quiet.0, quiet.1).current_dir(self.0.path()).output().unwrap()
    }

    /// What a verb prints, which must succeed and say nothing on stderr.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Json {
        serde_json::from_str(&self.text(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The exit status and stderr of a verb that must fail and print nothing on stdout.
    fn failure(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), stderr(&output))
    }
}

fn write(writer: &Writer, path: &Path) {
    writer.write(path, WriteOptions::default(), &mut |_, _| true).unwrap();
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn show_lists_keys_and_tensors_and_explains_heads() {
    let files = Files::new();
    let model = files.text(&["show", "model.gguf"]);
    assert!(model.starts_with("model.gguf: GGUF version 3, 17 keys, 29 tensors, alignment 32\n"), "{model}");
    assert!(model.contains("\nllama.block_count: [u32] 3\n"));
    assert!(model.contains("\ntokenizer.ggml.tokens: [arr[str, 259]] [\"Ā\", \"ā\""));
    assert!(model.contains("... 251 more]\n"));
    assert!(model.contains("\nf32 tensor blk.0.attn_q.weight @"));
    assert!(model.contains(", 4096 weights, dims [64, 64], 16384 bytes\n"));
    assert!(!model.contains("Exit heads"));
    assert!(files.text(&["show", "model.gguf", "--verbose"]).contains("\"the\", \"<|end|>\"]"));

    let merged = files.text(&["show", "merged.gguf"]);
    for sentence in [
        "Exit heads, merged with their model: 2 exits, ",
        "A screen of rank 8 picks 64 candidates, which are then scored exactly.",
        "After block 0: affine, behind a gate, with maps to the keys and values of 2 skipped layers.",
        "After block 1: low rank mlp (rank 16), behind a gate, with maps to the keys and values of 1 skipped layers.",
        "For 95 % agreement, exits happen by confidence (the best candidate's probability): after block 0 from 0.9, after \
         block 1 from 0.9, in place of the full output from 0.9.",
        "after block 0 never",
        "Calibrated on 2026-01-31 by offramp 0.1.0 over 64 prompts (64 random prompts) and 5832 tokens",
        "The original model starts at byte ",
    ] {
        assert!(merged.contains(sentence), "{sentence}: {merged}");
    }
    assert!(files.text(&["show", "heads.gguf"]).contains("Exit heads, in a file of their own: 2 exits, "));
}

#[test]
fn show_writes_json_and_can_be_compared() {
    let files = Files::new();
    let shown = files.json(&["show", "merged.gguf"]);
    assert_eq!(shown["keys"]["llama.block_count"], serde_json::json!({ "type": "u32", "value": 3 }));
    assert_eq!(shown["heads"]["layers"], serde_json::json!([0, 1]));
    assert_eq!(shown["heads"]["form"], "merged");
    let offset = shown["heads"]["base_offset"].as_u64().unwrap() as usize;
    assert_eq!(&std::fs::read(files.path("merged.gguf")).unwrap()[offset..offset + 4], b"GGUF");
    let tensors = shown["tensors"].as_array().unwrap();
    assert_eq!(tensors.iter().find(|tensor| tensor["name"] == "exit.base_header").unwrap()["type"], "I8");

    std::fs::copy(files.path("model.gguf"), files.path("copy.gguf")).unwrap();
    let [a, b] = ["model.gguf", "copy.gguf"].map(|name| files.text(&["show", name, "--diffable"]));
    assert_eq!(a, b);
    assert!(!a.contains('@') && !a.contains("model.gguf"));
}

#[test]
fn inspect_tensor_decodes_weights() {
    let files = Files::new();
    let expected = File::open(files.path("model.gguf")).unwrap();
    let expected = expected.data(expected.tensor("blk.0.attn_norm.weight").unwrap()).to_vec();
    let expected: Vec<f32> = expected.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect();
    let text = files.text(&["inspect-tensor", "model.gguf", "blk.0.attn_norm.weight", "3"]);
    assert!(text.starts_with("f32 tensor blk.0.attn_norm.weight, dims [64]\n"));
    assert!(text.contains(&format!("{:12.6} {:12.6} {:12.6}\n", expected[0], expected[1], expected[2])), "{text}");
    let json = files.json(&["inspect-tensor", "heads.gguf", "blk.0.exit_head.weight", "5"]);
    assert_eq!((json["type"].as_str(), json["values"].as_array().unwrap().len()), (Some("Q8_0"), 5));
    assert_eq!(json["not_finite"], 0);
    let (status, message) = files.failure(&["inspect-tensor", "model.gguf", "nope"]);
    assert_eq!(status, 1);
    assert!(message.contains("no tensor \"nope\""), "{message}");
}

#[test]
fn compare_finds_what_differs() {
    let files = Files::new();
    let same = files.text(&["compare", "model.gguf", "model.gguf"]);
    assert_eq!(same, "46 keys and tensors are equal, 0 differ\n");

    let mut other = Writer::new();
    let base = File::open(files.path("model.gguf")).unwrap();
    other.copy_keys(&base, |name| name != "general.name").unwrap().key("general.name", "other").unwrap();
    other.key("more", 1u32).unwrap();
    for tensor in base.tensors() {
        match tensor.name() {
            "blk.0.ffn_up.weight" => {}
            "blk.0.attn_q.weight" => {
                other.tensor(tensor.name(), TensorType::F32, &[64, 64], vec![0; 16384]).unwrap();
            }
            _ => {
                other.copy_tensor(&base, tensor).unwrap();
            }
        }
    }
    write(&other, &files.path("other.gguf"));
    let output = files.run(&["compare", "model.gguf", "other.gguf"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "key general.name: [str] tiny / other\n",
        "key more: only in the second file\n",
        "tensor blk.0.ffn_up.weight: only in the first file\n",
        "tensor blk.0.attn_q.weight: F32, average difference of weights ",
        "100.0000 % of their magnitude\n",
        "43 keys and tensors are equal, 4 differ\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn hash_agrees_with_sha256sum() {
    let files = Files::new();
    let hashes = files.json(&["hash", "model.gguf"]);
    if let Ok(output) = Command::new("sha256sum").arg(files.path("model.gguf")).output() {
        let expected = String::from_utf8(output.stdout).unwrap();
        assert_eq!(hashes["file"].as_str(), expected.split_whitespace().next());
    }
    assert_eq!(hashes["tensors"].as_object().unwrap().len(), 29);
    // The model inside a merged file has the same hash, the file has another.
    let merged = files.json(&["hash", "merged.gguf"]);
    assert_eq!(merged["model"], hashes["model"]);
    assert_ne!(merged["file"], hashes["file"]);
    let text = files.text(&["hash", "model.gguf"]);
    assert_eq!(text.lines().count(), 29 + 3);
}

#[test]
fn verify_checks_models_and_heads() {
    let files = Files::new();
    let text = files.text(&["verify", "model.gguf"]);
    assert!(text.contains("model: llama with 3 layers and a vocabulary of 259 can be loaded\n"), "{text}");
    let text = files.text(&["verify", "merged.gguf"]);
    assert!(text.contains("base: the heads were made for this model, \"tiny\""), "{text}");
    assert!(files.text(&["verify", "heads.gguf"]).contains("name \"tiny\" with --model"));
    assert!(files.text(&["verify", "heads.gguf", "--model", "model.gguf"]).contains("made for this model"));

    write(&random::model(2), &files.path("other.gguf"));
    let (status, message) = files.failure(&["verify", "heads.gguf", "--model", "other.gguf"]);
    assert_eq!(status, 1);
    assert!(message.contains("the heads were made for \"tiny\" (SHA-256 "), "{message}");

    let mut broken = Writer::new();
    random::model_keys(&mut broken);
    for (name, dims) in random::model_tensors() {
        let mut data = vec![1.0; dims.iter().product::<u64>() as usize];
        if name == "blk.1.ffn_up.weight" {
            (data[7], data[8]) = (f32::NAN, f32::INFINITY);
        }
        broken.tensor_f32(&name, &dims, &data).unwrap();
    }
    write(&broken, &files.path("broken.gguf"));
    let (status, message) = files.failure(&["verify", "broken.gguf"]);
    assert_eq!(status, 1);
    assert!(message.contains("NaN or infinite: blk.1.ffn_up.weight (2)"), "{message}");
}

#[test]
fn heads_come_off_as_they_went_on() {
    let files = Files::new();
    let text = files.text(&["strip-heads", "merged.gguf", "-o", "stripped.gguf"]);
    assert!(text.contains("the SHA-256 is the original model's"));
    files.text(&["extract-heads", "merged.gguf", "-o", "extracted.gguf"]);
    for (a, b) in [("stripped.gguf", "model.gguf"), ("extracted.gguf", "heads.gguf")] {
        assert!(std::fs::read(files.path(a)).unwrap() == std::fs::read(files.path(b)).unwrap(), "{a}");
    }
}

#[test]
fn outputs_are_guarded() {
    let files = Files::new();
    let merged = std::fs::read(files.path("merged.gguf")).unwrap();
    // A dry run checks all, says what would be, and writes nothing.
    let dry = files.json(&["attach", "model.gguf", "heads.gguf", "-o", "new.gguf", "--dry-run"]);
    assert_eq!((dry["is_written"].as_bool(), dry["bytes"].as_u64()), (Some(false), Some(merged.len() as u64)));
    assert!(files.text(&["strip-heads", "merged.gguf", "-o", "new.gguf", "--dry-run"]).contains("would be written"));
    assert!(!files.path("new.gguf").exists());
    // An existing output needs --force; an input is never replaced.
    for arguments in [
        vec!["attach", "model.gguf", "heads.gguf", "-o", "merged.gguf"],
        vec!["extract-heads", "merged.gguf", "-o", "heads.gguf"],
        vec!["strip-heads", "merged.gguf", "-o", "model.gguf"],
    ] {
        let (status, message) = files.failure(&arguments);
        assert_eq!(status, 1);
        assert!(message.contains("the file exists"), "{message}");
        let (status, message) = files.failure(&[&arguments[..], &["--dry-run"]].concat());
        assert_eq!((status, message.contains("the file exists")), (1, true), "{message}");
        files.text(&[&arguments[..], &["--force"]].concat());
    }
    for arguments in [
        ["attach", "model.gguf", "heads.gguf", "-o", "model.gguf", "--force"].as_slice(),
        &["extract-heads", "merged.gguf", "-o", "merged.gguf", "--force"],
        &["strip-heads", "merged.gguf", "-o", "merged.gguf", "--force"],
    ] {
        let (status, message) = files.failure(arguments);
        assert_eq!((status, message.contains("is also an input")), (1, true), "{message}");
    }
    assert!(std::fs::read(files.path("merged.gguf")).unwrap() == merged);
    let names = std::fs::read_dir(files.0.path()).unwrap().count();
    assert_eq!(names, 3, "nothing but the three files");
}

#[test]
fn wrong_usage_and_wrong_files_have_their_own_status() {
    let files = Files::new();
    for arguments in
        [&[][..], &["show"], &["shout", "x"], &["show", "a", "b"], &["attach", "a", "b"], &["hash", "--loud", "a"]]
    {
        assert_eq!(files.failure(arguments).0, 2, "{arguments:?}");
    }
    std::fs::write(files.path("text.gguf"), "no model at all").unwrap();
    for arguments in
        [&["show", "text.gguf"][..], &["show", "absent.gguf"], &["strip-heads", "model.gguf", "-o", "x.gguf"]]
    {
        let (status, message) = files.failure(arguments);
        assert_eq!(status, 1, "{arguments:?}");
        assert!(message.starts_with("gguf-tools: ") && message.lines().count() == 1, "{message}");
    }
}

#[test]
#[cfg(unix)]
fn a_reader_that_goes_away_is_no_failure() {
    let files = Files::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gguf-tools"))
        .args(["show", "model.gguf", "--verbose"])
        .current_dir(files.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}
