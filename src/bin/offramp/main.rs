//! `offramp`: run, chat with and inspect GGUF models. Each command is a module; this only picks one and turns its outcome into an exit code.

use std::process::ExitCode;

mod args;
mod bench;
#[cfg(feature = "hf")]
mod cache;
mod chat;
mod conversation;
mod doctor;
mod failure;
mod generation_args;
#[cfg(feature = "hf")]
mod hub;
mod inspect;
mod interrupt;
mod logging;
mod machine;
mod manual;
mod marks;
mod model_args;
mod modes;
mod output;
mod piped;
mod progress;
mod prompts;
#[cfg(feature = "hf")]
mod pull;
mod resolve;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod short_flags;
mod style;
mod terminal;
mod thinking;
mod throttle;
mod wrap;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    match args::parse(std::env::args_os()).and_then(execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    if cli.version {
        return inspect::print_version(cli.log.verbose);
    }
    logging::install(&cli.log)?;
    if cli.list_devices {
        return inspect::print_devices();
    }
    match cli.command {
        Some(Command::Run(arguments)) => run::run(&arguments),
        Some(Command::Chat(arguments)) => chat::chat(&arguments),
        #[cfg(feature = "serve")]
        Some(Command::Serve(arguments)) => serve::serve(&arguments),
        Some(Command::Bench(arguments)) => bench::bench(&arguments),
        Some(Command::Inspect(arguments)) => inspect::inspect(&arguments),
        #[cfg(feature = "hf")]
        Some(Command::Pull(arguments)) => pull::pull(&arguments),
        #[cfg(feature = "hf")]
        Some(Command::List(arguments)) => cache::list(&arguments),
        #[cfg(feature = "hf")]
        Some(Command::Rm(arguments)) => cache::remove(&arguments),
        #[cfg(feature = "hf")]
        Some(Command::Show(arguments)) => cache::show(&arguments),
        Some(Command::Doctor(arguments)) => doctor::doctor(&arguments),
        Some(Command::Completions(arguments)) => manual::completions(&arguments),
        Some(Command::Man(arguments)) => manual::man(&arguments),
        None => Err(args::command_missing()),
    }
}
