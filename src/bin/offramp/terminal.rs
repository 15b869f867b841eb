//! The terminal of a chat, where the line editor does not hold it: what is typed while a reply is written is not shown in
//! the middle of the reply but kept, whole, for the next prompt. Ctrl-C and Ctrl-Z act as always. It is for a terminal that
//! this program reads from: the mode of one that others read from is never touched.

#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::sync::Mutex;

#[cfg(unix)]
use rustix::termios::{self, InputModes, LocalModes, OptionalActions, Termios};

/// How the terminal was, as long as it is otherwise.
#[cfg(unix)]
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Columns of the terminal that stdout is, if it tells.
pub fn columns() -> Option<usize> {
    #[cfg(unix)]
    if let Ok(size) = termios::tcgetwinsize(io::stdout()) {
        return Some(usize::from(size.ws_col)).filter(|columns| *columns > 0);
    }
    None
}

/// While this lives, what is typed is kept and not shown.
pub struct Quiet(());

/// Keeps what is typed from being shown, as long as the result lives. Where that cannot be had it is shown.
pub fn quiet() -> Quiet {
    #[cfg(unix)]
    if let Ok(before) = termios::tcgetattr(io::stdin())
        && let Ok(mut kept) = BEFORE.lock()
    {
        let mut quiet = before.clone();
        // Not by lines either, and Enter as what it is: the line editor takes a line feed for another key, and would
        // drop what came after it.
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
        quiet.input_modes.remove(InputModes::ICRNL);
        if termios::tcsetattr(io::stdin(), OptionalActions::Now, &quiet).is_ok() {
            *kept = Some(before);
        }
    }
    Quiet(())
}

/// Makes the terminal what it was. A program that ends without running destructors must call it.
pub fn restore() {
    #[cfg(unix)]
    if let Ok(mut kept) = BEFORE.lock()
        && let Some(before) = kept.take()
    {
        // A terminal that has gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        restore();
    }
}
