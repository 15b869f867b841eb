//! `run --show-exits`: where each token left the model, shown beside its text.
//!
//! On a terminal a token's colour says it: from green (after few blocks) over yellow to the usual colour (all of them),
//! blue where only the output matrix was left out. Elsewhere, and with NO_COLOR, a mark follows the text: the block's
//! number, or `s` for the screen. Tokens that ran through all of the model bear neither.

use std::io::{self, IsTerminal};

use offramp::ExitPoint;

use crate::style;

/// 256-colour codes from early to late.
const BY_DEPTH: [u8; 6] = [46, 82, 118, 154, 190, 226];
const SCREEN: u8 = 75;

/// How exits are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    n_layer: u32,
    coloured: bool,
}

impl Marks {
    /// For text on stdout, of a model of `n_layer` blocks.
    pub fn new(n_layer: u32) -> Self {
        Self { n_layer, coloured: io::stdout().is_terminal() && style::is_allowed() }
    }

    /// What is shown of a token whose text is `text`, which may be empty.
    pub fn mark(self, text: &str, exit: Option<ExitPoint>) -> String {
        let Some(exit) = exit else { return text.to_owned() };
        if !self.coloured {
            return match exit {
                ExitPoint::Layer(il) => format!("{text}[{il}]"),
                _ => format!("{text}[s]"),
            };
        }
        if text.is_empty() {
            return String::new();
        }
        let colour = match exit {
            ExitPoint::Layer(il) => {
                let last = BY_DEPTH.len() as u32 - 1;
                BY_DEPTH[(il * last / self.n_layer.max(1)).min(last) as usize]
            }
            _ => SCREEN,
        };
        format!("\x1b[38;5;{colour}m{text}\x1b[0m")
    }

    /// One line on stderr that says what the marks mean.
    pub fn explain(self) {
        if self.coloured {
            eprintln!(
                "offramp: green to yellow left after early to late blocks of {}, blue at the screen, the rest nowhere",
                self.n_layer
            );
        } else {
            eprintln!("offramp: [N] left after block N of {}, [s] at the screen, the rest nowhere", self.n_layer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_without_colour_are_plain_text() {
        let marks = Marks { n_layer: 30, coloured: false };
        assert_eq!(marks.mark(" the", Some(ExitPoint::Layer(9))), " the[9]");
        assert_eq!(marks.mark("", Some(ExitPoint::Screen)), "[s]");
        assert_eq!(marks.mark(" cat", None), " cat");
    }

    #[test]
    fn colours_go_from_early_to_late_and_end_with_the_token() {
        let marks = Marks { n_layer: 30, coloured: true };
        assert_eq!(marks.mark("a", Some(ExitPoint::Layer(0))), "\x1b[38;5;46ma\x1b[0m");
        assert_eq!(marks.mark("a", Some(ExitPoint::Layer(29))), "\x1b[38;5;190ma\x1b[0m");
        assert_eq!(marks.mark("a", Some(ExitPoint::Screen)), "\x1b[38;5;75ma\x1b[0m");
        assert_eq!(marks.mark("", Some(ExitPoint::Screen)), "");
    }
}
