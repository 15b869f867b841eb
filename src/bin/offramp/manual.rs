//! `offramp completions` and `offramp man`: what clap knows of the arguments, for shells and for `man`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;

/// Arguments of `offramp completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Arguments of `offramp man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// A folder to write one page a command to; without it the first page is printed
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// Prints a shell's completions.
///
/// # Errors
/// When whoever reads the output has gone.
pub fn completions(arguments: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "offramp", &mut text);
    io::stdout().lock().write_all(&text)?;
    Ok(())
}

/// Prints or writes the manual.
///
/// # Errors
/// When the folder cannot be written, or whoever reads the output has gone.
pub fn man(arguments: &ManArgs) -> Result<(), Failure> {
    let Some(folder) = &arguments.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        io::stdout().lock().write_all(&page)?;
        return Ok(());
    };
    let cannot = |error: io::Error| Failure::failed(format!("cannot write to {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(cannot)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        man(&ManArgs { folder: Some(folder.path().to_owned()) }).unwrap();
        let mut text = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "offramp", &mut text);
        let text = String::from_utf8(text).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(folder.path().join(format!("offramp-{name}.1")).is_file(), "{name}");
            assert!(text.contains(&format!("offramp__subcmd__{name}")) || text.contains(name), "{name}");
        }
    }
}
