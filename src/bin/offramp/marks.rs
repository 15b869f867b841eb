//! `run --show-exits`: where each token left the model, shown beside its text.
//!
//! On a terminal a token's colour says it: from green (after an early layer) over yellow to orange (after a late one), blue where only
//! the output matrix was left out, the usual colour where nothing was. They can be read on a dark ground and on a bright one. Elsewhere, and with NO_COLOR, a mark follows the text: the layer,
//! counted from 0 as everywhere, or `s` for the screen. Tokens that ran through all of the model bear neither.

use std::io::{self, IsTerminal};

use offramp::ExitPoint;

use crate::style;

/// 256-colour codes from early to late.
const BY_DEPTH: [u8; 6] = [34, 70, 106, 136, 172, 166];
const SCREEN: u8 = 33;

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

    /// Without colours, wherever stdout goes.
    #[cfg(test)]
    pub fn plain(n_layer: u32) -> Self {
        Self { n_layer, coloured: false }
    }

    /// What is shown of a token whose text is `text`, which may be empty.
    pub fn mark(self, text: &str, exit: Option<ExitPoint>) -> String {
        let Some(exit) = exit else { return text.to_owned() };
        if self.coloured {
            return self.paint(text, Some(exit));
        }
        match exit {
            ExitPoint::Layer(il) => format!("{text}[{il}]"),
            _ => format!("{text}[s]"),
        }
    }

    /// `text` in the colour of an exit; as it is where there are no colours.
    pub fn paint(self, text: &str, exit: Option<ExitPoint>) -> String {
        let Some(exit) = exit.filter(|_| self.coloured && !text.is_empty()) else { return text.to_owned() };
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
            eprintln!("offramp: green to orange: early to late layers, blue: the screen, plain: all");
        } else {
            let last = self.n_layer.saturating_sub(1);
            eprintln!("offramp: [N]: left after layer N of 0 to {last}, [s]: at the screen, no mark: nowhere");
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
        assert_eq!(marks.mark("a", Some(ExitPoint::Layer(0))), "\x1b[38;5;34ma\x1b[0m");
        assert_eq!(marks.mark("a", Some(ExitPoint::Layer(29))), "\x1b[38;5;172ma\x1b[0m");
        assert_eq!(marks.mark("a", Some(ExitPoint::Screen)), "\x1b[38;5;33ma\x1b[0m");
        assert_eq!(marks.mark("", Some(ExitPoint::Screen)), "");
    }
}
