//! `offramp`: run, chat with and inspect GGUF models. Each command is a module; this only picks one and turns its outcome into an exit code.

use std::process::ExitCode;

mod args;
mod bench;
mod chat;
mod chat_input;
mod conversation;
mod failure;
#[cfg(feature = "hf")]
mod hub;
mod inspect;
mod interrupt;
mod logging;
mod model_args;
mod output;
mod progress;
mod prompts;
mod resolve;
mod run;
mod short_flags;

fn main() -> ExitCode {
    match args::parse(std::env::args_os()).and_then(args::Cli::execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
