//! What a pipe, a file or a socket on stdin brings beside a prompt. A terminal brings nothing, and neither does /dev/null.
//!
//! A pipe is waited for, however long its writer takes: a prompt without its text would be answered wrongly. A socket is not: some
//! programs give one to everything they start and write nothing to it.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::failure::Failure;
use crate::prompts;

/// How long nothing comes before the user is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What stdin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A pipe or a file.
    Pipe,
    Socket,
    /// A terminal, a device such as /dev/null, or nothing.
    Other,
}

/// The text that is piped in, if there is one that is not blank.
///
/// # Errors
/// When stdin cannot be read or is not UTF-8.
pub fn text() -> Result<Option<String>, Failure> {
    let kind = kind();
    if kind == Kind::Other {
        return Ok(None);
    }
    let (tell, told) = mpsc::channel();
    // It may wait for ever; then it ends with the program.
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let begun = stdin.fill_buf().map(|_| Vec::new());
        let fails = begun.is_err();
        // Nobody may listen any more.
        let _ = tell.send(begun);
        if !fails {
            let mut bytes = Vec::new();
            let _ = tell.send(stdin.read_to_end(&mut bytes).map(|_| bytes));
        }
    });
    let cannot = |error: &dyn std::fmt::Display| Failure::failed(format!("cannot read stdin: {error}"));
    match told.recv_timeout(PATIENCE) {
        Ok(begun) => drop(begun.map_err(|error| cannot(&error))?),
        Err(RecvTimeoutError::Timeout) if kind == Kind::Socket => {
            eprintln!("offramp: nothing comes from stdin, so the prompt goes alone");
            return Ok(None);
        }
        Err(RecvTimeoutError::Timeout) => {
            eprintln!(
                "offramp: waiting for the text on stdin, which goes before the prompt; < /dev/null leaves it out"
            );
            drop(told.recv().map_err(|error| cannot(&error))?.map_err(|error| cannot(&error))?);
        }
        Err(error) => return Err(cannot(&error)),
    }
    let bytes = told.recv().map_err(|error| cannot(&error))?.map_err(|error| cannot(&error))?;
    Ok(Some(prompts::decoded(bytes, "stdin")?).filter(|text| !text.trim().is_empty()))
}

#[cfg(unix)]
fn kind() -> Kind {
    use rustix::fs::FileType;
    match rustix::fs::fstat(io::stdin()).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Fifo | FileType::RegularFile) => Kind::Pipe,
        Ok(FileType::Socket) => Kind::Socket,
        _ => Kind::Other,
    }
}

#[cfg(not(unix))]
fn kind() -> Kind {
    use std::io::IsTerminal;
    if io::stdin().is_terminal() { Kind::Other } else { Kind::Pipe }
}
