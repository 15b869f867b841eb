//! `calibrate`: certifies the levels of a file anew, on prompts of the user's.
//!
//! The heads stay as they are, byte for byte; the thresholds of each level and their record are replaced. The input is
//! never changed, and nothing is written before the work is complete. It refuses heads without their model, prompts
//! that are none, and outputs that exist, before any work.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use offramp::gguf::exits::{self, ExitHeads, ExitMeta, Form};
use offramp::gguf::{Error, File, WriteOptions};

use crate::args::{Calibrate, deadline};
use crate::certify::{self, Job};
use crate::output::{Output, Progress};
use crate::reports;

pub fn run(args: &Calibrate, out: &mut Output) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if !args.write.force && args.write.output.exists() {
        return Err(Error::OutputExists { path: args.write.output.clone() }.into());
    }
    let file = File::open(&args.file)?;
    let heads = ExitHeads::open(&file)?;
    let form = heads.form();
    let base = match (form, &args.model) {
        (Form::Merged, None) => exits::base(&file)?.context("a merged file without its model")?,
        (Form::Merged, Some(_)) => bail!("{} holds its model: leave --model out", args.file.display()),
        (Form::Sidecar, Some(model)) => File::open_model(model)?,
        (Form::Sidecar, None) => bail!("{} holds heads alone: give their model with --model", args.file.display()),
    };
    heads.check_base(&base, exits::BaseCheck::Infos, &mut |_, _| true)?;
    let job = Job {
        heads: &file,
        base: &base,
        model: args.model.as_ref().unwrap_or(&args.file),
        prompts: &args.prompts,
        n_used: 0,
        answer: args.answer,
        agreements: &args.agreement_levels,
        how: &args.how,
        seed: args.seed,
        threads: args.threads,
        deadline: args.time_limit.and_then(|limit| deadline(start, limit)),
        output: &args.write.output,
        wants_samples: args.report.is_some(),
    };
    let ready = job.prepare()?;
    if args.write.dry_run {
        ready.plan(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let certificate = ready.confirm()?;
    let bytes = write(&file, &base, form, &certificate.confirmed.meta, args)?;
    let output = args.write.output.display().to_string();
    if let Some(folder) = &args.report {
        reports::calibrated(&certificate, &args.write.output, folder)?;
    }
    if out.json {
        let mut found = certificate.json();
        (found["output"], found["bytes"]) = (output.into(), bytes.into());
        out.value(&found)?;
    } else {
        certificate.print(out)?;
        out.line(format!("{output}: {bytes} bytes are written"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the file in the form that it came in; gives its bytes.
fn write(file: &File, base: &File, form: Form, meta: &ExitMeta, args: &Calibrate) -> anyhow::Result<u64> {
    let heads = certify::rewritten(file, base, meta)?;
    let mut progress = Progress::new("writing");
    let mut step = |done, total| progress.step(done, total);
    let options = WriteOptions::replacing(args.write.force);
    let writer = match form {
        Form::Sidecar => heads,
        Form::Merged => {
            let heads = File::from_bytes(heads.to_bytes()?, "the recalibrated heads")?;
            let merged = exits::attach(base, &heads, &mut step)?;
            merged.write(&args.write.output, options, &mut step)?;
            return Ok(merged.size());
        }
    };
    writer.write(&args.write.output, options, &mut step)?;
    Ok(writer.size())
}
