//! `split` and `merge`: a model in one file or in several, with the arguments of llama.cpp's `llama-gguf-split`.
//!
//! Unlike that program they replace no file without `--force`, and leave either all parts or none.

use std::path::Path;
use std::process::ExitCode;

use offramp::gguf::{self, Error, File, SplitLimit, SplitOptions, WriteOptions};
use serde_json::{Value as Json, json};

use crate::args::{Replace, Split};
use crate::heads::finish;
use crate::output::{Output, Progress};

pub fn split(args: &Split, out: &mut Output) -> anyhow::Result<ExitCode> {
    let model = File::open_model(&args.model)?;
    let mut options = SplitOptions::default();
    options.limit = args.split_max_size.map_or(SplitLimit::Tensors(args.split_max_tensors), SplitLimit::Bytes);
    options.tensors_in_first = !args.no_tensor_first_split;
    let split = gguf::Split::of(&model, &options)?;
    let paths = split.paths(&args.output);
    if args.how.dry_run {
        if let Some(path) = paths.iter().find(|path| !args.how.force && path.exists()) {
            return Err(Error::OutputExists { path: path.clone() }.into());
        }
    } else {
        let mut progress = Progress::new("writing");
        let options = WriteOptions::replacing(args.how.force);
        split.write(&args.output, options, &mut |done, total| progress.step(done, total))?;
    }
    let written = paths.iter().zip(split.parts());
    if out.json {
        let parts: Vec<Json> = written
            .map(|(path, part)| {
                json!({ "output": path.display().to_string(), "bytes": part.size(), "tensors": part.n_tensors() })
            })
            .collect();
        out.value(&json!({ "parts": parts, "is_written": !args.how.dry_run }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let done = if args.how.dry_run { "would be" } else { "are" };
    for (path, part) in written {
        let (path, tensors, bytes) = (path.display(), part.n_tensors(), part.size());
        out.line(format!("{path}: {tensors} tensors in {bytes} bytes {done} written"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn merge(first: &Path, output: &Path, how: &Replace, out: &mut Output) -> anyhow::Result<ExitCode> {
    let whole = gguf::merge(&File::open_model(first)?)?;
    finish(&whole, output, how.force, how.dry_run, Progress::new("writing"), out)
}

/// Opens a model with all of its parts, or one part alone that is not the first.
pub fn open(path: &Path) -> gguf::Result<File> {
    match File::open_model(path) {
        Err(Error::NotFirstPart { .. }) => File::open(path),
        result => result,
    }
}
