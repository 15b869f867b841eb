//! `hash FILE`: SHA-256 of every tensor, of the model as heads know it, and of the file.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value as Json, json};

use offramp::gguf::{File, exits};

use crate::output::{Output, Progress, escape};

pub fn run(path: &Path, out: &mut Output) -> anyhow::Result<ExitCode> {
    let file = File::open(path)?;
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
    let whole = exits::file_sha256(&file, &mut |done, total| progress.step(done, total))?;
    drop(progress);
    if out.json {
        out.value(&json!({ "tensors": hashes, "model_infos": infos, "model": base, "file": whole }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, hash) in &hashes {
        out.line(format!("{}  tensor {}", hash.as_str().unwrap_or_default(), escape(name)))?;
    }
    out.line(format!("{infos}  the model's tensor entries"))?;
    out.line(format!("{base}  the model's tensor entries and data"))?;
    let name = if out.diffable { "the file".into() } else { format!("the file {}", path.display()) };
    out.line(format!("{whole}  {name}"))?;
    Ok(ExitCode::SUCCESS)
}
