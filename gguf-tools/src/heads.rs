//! `attach`, `extract-heads`, `strip-heads`: between a model with its heads beside it and a merged file.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use offramp::gguf::{Error, File, WriteOptions, Writer, exits};

use crate::args::Write;
use crate::output::{Output, Progress};

pub fn attach(model: &Path, heads: &Path, write: &Write, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (model, heads) = (File::open_model(model)?, File::open(heads)?);
    let mut progress = Progress::new("hashing");
    let merged = exits::attach(&model, &heads, &mut |done, total| progress.step(done, total))?;
    progress.next("writing");
    finish(&merged, &write.output, write.force, write.dry_run, progress, out)
}

pub fn extract(file: &Path, write: &Write, out: &mut Output) -> anyhow::Result<ExitCode> {
    let file = File::open(file)?;
    let progress = Progress::new("writing");
    finish(&exits::extract(&file)?, &write.output, write.force, write.dry_run, progress, out)
}

pub fn strip(file: &Path, write: &Write, out: &mut Output) -> anyhow::Result<ExitCode> {
    let file = File::open(file)?;
    let mut progress = Progress::new("writing");
    let mut step = |done, total| progress.step(done, total);
    let (size, sha256) = match exits::base(&file)? {
        Some(inner) if write.dry_run => (inner.file_size() - inner.start(), exits::file_sha256(&inner, &mut step)?),
        inner => {
            let options = WriteOptions::replacing(write.force);
            let sha256 = exits::strip(&file, &write.output, options, &mut step)?;
            (inner.map_or(0, |inner| inner.file_size() - inner.start()), sha256)
        }
    };
    drop(progress);
    if write.dry_run {
        refuse_existing(&write.output, write.force)?;
        let expected = file.str("exit.base.file_sha256")?.unwrap_or_default();
        if sha256 != expected {
            let what = "the model inside the merged file".into();
            return Err(Error::HashMismatch { what, expected: expected.into(), found: sha256 }.into());
        }
    }
    let path = write.output.display().to_string();
    if out.json {
        out.value(&json!({ "output": path, "bytes": size, "sha256": sha256, "is_written": !write.dry_run }))?;
    } else {
        out.line(format!("{sha256}  {path}"))?;
        let done = if write.dry_run { "would be" } else { "are" };
        out.line(format!("{size} bytes {done} written; the SHA-256 is the original model's"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file, or says what it would be.
pub fn finish(
    writer: &Writer,
    output: &Path,
    force: bool,
    dry_run: bool,
    mut progress: Progress,
    out: &mut Output,
) -> anyhow::Result<ExitCode> {
    if dry_run {
        refuse_existing(output, force)?;
    } else {
        let options = WriteOptions::replacing(force);
        writer.write(output, options, &mut |done, total| progress.step(done, total))?;
    }
    drop(progress);
    let (path, bytes, tensors) = (output.display().to_string(), writer.size(), writer.n_tensors());
    if out.json {
        out.value(&json!({ "output": path, "bytes": bytes, "tensors": tensors, "is_written": !dry_run }))?;
    } else {
        let done = if dry_run { "would be" } else { "are" };
        out.line(format!("{path}: {tensors} tensors in {bytes} bytes {done} written"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse_existing(output: &Path, force: bool) -> anyhow::Result<()> {
    if !force && output.exists() {
        return Err(Error::OutputExists { path: output.to_path_buf() }.into());
    }
    Ok(())
}
