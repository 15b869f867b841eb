//! The same hostile files before the real llama.cpp, in a child process: whatever the preflight lets through
//! is loaded and decodes, or is refused with an error. Neither may end the process.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp::gguf::{ARCHITECTURES, File, preflight};
use offramp::{Model, ModelParams, Session, SessionParams};
use offramp_fixtures::{Arch, TinyModel};

/// Names the folder of files that the child is to load.
const FOLDER: &str = "OFFRAMP_LOAD_FOLDER";

/// What the child does with one file.
fn load(path: &Path) -> &'static str {
    let Ok(file) = File::open(path) else { return "unread" };
    if preflight(&file).is_err() {
        return "refused";
    }
    let Ok(model) = Model::load(path, &ModelParams::default()) else { return "llama.cpp refused" };
    let mut params = SessionParams::default();
    params.n_ctx = 64;
    let Ok(mut session) = Session::new(&model, &params) else { return "no session" };
    // Every byte, so that each fallback of the tokenizer runs.
    let text: String = (1..=0x7ff).filter_map(char::from_u32).step_by(97).chain("the tests <|end|>".chars()).collect();
    let Ok(mut prompt) = model.vocab().tokenize(&text, true, true) else { return "no tokens" };
    prompt.truncate(32);
    for &token in &prompt {
        let _ = model.vocab().piece(token, true);
    }
    match session.set_prompt(&prompt, &mut |_| {}) {
        Ok(_) => "decoded",
        Err(_) => "not decoded",
    }
}

/// Run in the child alone: loads each file of the folder and says so before and after.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files {
        println!("\nstart {}", path.file_name().unwrap().to_string_lossy());
        println!("end {}", load(&path));
    }
}

/// Loads files in a child; returns what became of each, and fails where the child did not survive.
fn load_in_child(files: Vec<(String, Vec<u8>)>) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let count = files.len();
    for (index, (_, bytes)) in files.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{index:04}.gguf")), bytes).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "load::child", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let ends: Vec<&str> = stdout.lines().filter_map(|line| line.strip_prefix("end ")).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && ends.len() == count,
        "the child ended with {:?} at {:?}: {}",
        output.status,
        files.get(ends.len()).map(|(name, _)| name),
        stderr.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    );
    files.into_iter().map(|(name, _)| name).zip(ends.into_iter().map(str::to_string)).collect()
}

#[test]
fn no_hostile_file_ends_the_process() {
    let cases = crate::cases::test_gguf().into_iter().chain(crate::cases::more()).chain(crate::cases::models());
    let results = load_in_child(cases.map(|case| (case.name.to_string(), case.bytes)).collect());
    for (name, end) in results.iter().filter(|(_, end)| !["unread", "refused"].contains(&&**end)) {
        println!("{name}: {end}");
    }
    let decoded = |name: &str| results.iter().any(|(other, end)| other == name && end == "decoded");
    for name in ["the model itself", "SentencePiece with byte tokens", "heads of each layer", "a sound byte token"] {
        assert!(decoded(name), "{name} must decode");
    }
}

/// Damaged copies of a model that the preflight lets through. The damage avoids the bulk of the vocabulary, of
/// which the hostile files have their own.
fn damaged(name: &str, whole: &[u8], n: usize, seed: u64) -> Vec<(String, Vec<u8>)> {
    let find = |needle: &[u8]| whole.windows(needle.len()).position(|window| window == needle).unwrap() as u64;
    let header = File::from_bytes(whole.to_vec(), "whole").unwrap().data_start();
    let (tokens, tensors) = (find(b"tokenizer.ggml.tokens"), find(b"token_embd.weight"));
    let mut random = crate::random::Random::new(seed);
    let mut files = Vec::new();
    for _ in 0..100_000 {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + random.below(3) {
            let at = random.below(tokens + header - tensors);
            let at = if at < tokens { at } else { at - tokens + tensors } as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        if File::from_bytes(bytes.clone(), "damaged").is_ok_and(|file| preflight(&file).is_ok()) {
            files.push((format!("damaged {name} {}", files.len()), bytes));
            if files.len() == n {
                break;
            }
        }
    }
    files
}

#[test]
fn no_damaged_model_that_passes_ends_the_process() {
    let mut models = vec![("tiny".to_string(), crate::random::model(1).to_bytes().unwrap())];
    for arch in Arch::ALL.into_iter().filter(|arch| ARCHITECTURES.contains(&arch.name())) {
        models.push((arch.name().to_string(), TinyModel::new(arch).bytes()));
    }
    for (name, whole) in models {
        let mut files = vec![(name.clone(), whole.clone())];
        files.extend(damaged(&name, &whole, 100, 11));
        let results = load_in_child(files);
        assert_eq!(results[0].1, "decoded", "{name}");
        let decoded = results.iter().filter(|(_, end)| end == "decoded").count();
        println!("{name}: {decoded} of {} decode", results.len());
    }
}
