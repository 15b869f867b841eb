//! `hash FILE`: SHA-256 of every tensor, of the model as heads know it, and of the file or each part of a split model.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value as Json, json};

use offramp::gguf::{File, exits};

use crate::output::{Output, Progress, escape};

pub fn run(path: &Path, out: &mut Output) -> anyhow::Result<ExitCode> {
    let file = crate::split::open(path)?;
    let inner = exits::base(&file)?;
    let model = inner.as_ref().unwrap_or(&file);
    let mut progress = Progress::new("hashing");
    let mut hashes = Map::new();
    let total = file.tensors().iter().map(|tensor| tensor.bytes()).sum();
    let mut done = 0;
    for tensor in file.tensors() {
        let hash = exits::tensor_sha256(&file, tensor, &mut |part, _| progress.step(done + part, total))?;
        hashes.insert(tensor.name().to_string(), Json::String(hash));
        done += tensor.bytes();
    }
    let infos = exits::infos_sha256(model);
    let base = exits::base_sha256(model, &mut |done, total| progress.step(done, total))?;
    let mut whole = Vec::new();
    for part in file.paths() {
        let sha256 = exits::file_sha256(&File::open(part)?, &mut |done, total| progress.step(done, total))?;
        whole.push((part, sha256));
    }
    drop(progress);
    if out.json {
        let mut found = json!({ "tensors": hashes, "model_infos": infos, "model": base });
        match &whole[..] {
            [(_, sha256)] => found["file"] = json!(sha256),
            parts => found["parts"] = parts.iter().map(|(_, sha256)| sha256.as_str()).collect(),
        }
        out.value(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, hash) in &hashes {
        out.line(format!("{}  tensor {}", hash.as_str().unwrap_or_default(), escape(name)))?;
    }
    out.line(format!("{infos}  the model's tensor entries"))?;
    out.line(format!("{base}  the model's tensor entries and data"))?;
    for (path, sha256) in whole {
        let name = if out.diffable { "the file".into() } else { format!("the file {}", path.display()) };
        out.line(format!("{sha256}  {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
