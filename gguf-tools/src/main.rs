//! `gguf-tools`: looks into GGUF files, moves exit heads in and out of them, and splits and joins them.
//!
//! Verb first, inputs before outputs. Results go to stdout, everything else to stderr; the exit status is 0,
//! 1 where something failed or differs, 2 for wrong usage, 130 when interrupted. No input is ever changed.

mod args;
mod certify;
mod compare;
mod convert;
mod evaluate;
mod hash;
mod heads;
mod inspect;
mod output;
mod recalibrate;
mod reports;
mod show;
mod split;
mod summary;
mod target;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use offramp::gguf;

use args::{Args, Verb};
use output::Output;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = Output::new(args.json, args.verbose, args.diffable);
    output::tell_of("working");
    warn_of_threads(&args.verb);
    let result = match &args.verb {
        Verb::Show { file } => show::run(file, &mut out),
        Verb::InspectTensor { file, name, count } => inspect::run(file, name, *count, &mut out),
        Verb::Compare { a, b } => compare::run(a, b, &mut out),
        Verb::Hash { file } => hash::run(file, &mut out),
        Verb::Verify { file, model } => verify::run(file, model.as_deref(), &mut out),
        Verb::Attach { model, heads, write } => heads::attach(model, heads, write, &mut out),
        Verb::ExtractHeads { file, write } => heads::extract(file, write, &mut out),
        Verb::AddHeads { args } => convert::add_heads(args, &mut out),
        Verb::Train { args } => convert::train(args, &mut out),
        Verb::Collect { args } => convert::collect(args, &mut out),
        Verb::Calibrate { args } => recalibrate::run(args, &mut out),
        Verb::Eval { args } => evaluate::run(args, &mut out),
        Verb::StripHeads { file, write } => heads::strip(file, write, &mut out),
        Verb::Split { args } => split::split(args, &mut out),
        Verb::Merge { first, output, how } => split::merge(first, output, how, &mut out),
    };
    match result.and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => code,
        Err(error) => failure(&error),
    }
}

/// Says where more threads are asked for than there are cores for.
fn warn_of_threads(verb: &Verb) {
    let mut params = offramp::SessionParams::default();
    params.n_threads = match verb {
        Verb::AddHeads { args } => args.tokens.threads,
        Verb::Train { args } => args.threads,
        Verb::Collect { args } => args.tokens.threads,
        Verb::Calibrate { args } => args.threads,
        Verb::Eval { args } => args.threads,
        _ => None,
    };
    if let Some(warning) = params.threads_warning() {
        eprintln!("gguf-tools: {warning}");
    }
}

/// Says what failed; a reader that has gone away is no failure.
fn failure(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("gguf-tools: {error:#}");
    let is_interrupted = matches!(error.downcast_ref(), Some(gguf::Error::Interrupted))
        || matches!(error.downcast_ref(), Some(offramp::Error::Cancelled));
    if is_interrupted { ExitCode::from(130) } else { ExitCode::FAILURE }
}
