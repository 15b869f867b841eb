//! How a command ends other than well, and the exit code of it: 1 failed, 2 wrong usage, 130 interrupted. One line on stderr names the fix.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// It could not be done. The line says why, and what to do.
    Failed(String),
    /// It was called wrongly. The line says how to call it.
    Usage(String),
    /// clap's own message: a usage error, or help that was asked for.
    Arguments(clap::Error),
    /// The user pressed Ctrl-C.
    Interrupted,
    /// Whoever read our output has gone, for example `head`. Nothing is wrong.
    OutputClosed,
}

impl Failure {
    pub fn failed(reason: impl Display) -> Self {
        Self::Failed(reason.to_string())
    }

    pub fn usage(reason: impl Display) -> Self {
        Self::Usage(reason.to_string())
    }

    /// Tells the user and gives the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Failed(reason) => {
                eprintln!("offramp: {reason}");
                ExitCode::from(1)
            }
            Self::Usage(reason) => {
                eprintln!("offramp: {reason}; see 'offramp --help'");
                ExitCode::from(2)
            }
            Self::Arguments(error) => {
                // Nothing can be done about a terminal that cannot be written to.
                let _ = error.print();
                ExitCode::from(if error.use_stderr() { 2 } else { 0 })
            }
            Self::Interrupted => ExitCode::from(130),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

impl From<offramp::Error> for Failure {
    fn from(error: offramp::Error) -> Self {
        match error {
            offramp::Error::Cancelled => Self::Interrupted,
            error => Self::failed(error),
        }
    }
}

/// An error of writing results to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}
