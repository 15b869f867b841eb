//! Dim text on stderr, where that is a terminal that shows it and the user does not refuse colours.

use std::io::{self, IsTerminal};

/// False where `NO_COLOR` is set, and on terminals that know no colours.
pub fn is_allowed() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// True if stderr takes colours.
pub fn is_coloured() -> bool {
    io::stderr().is_terminal() && is_allowed()
}

/// A line for stderr, dim if it takes colours.
pub fn dim(text: &str) -> String {
    if is_coloured() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}
