//! Whether tokens may leave the model early, whether some are drafted, and where the K/V of what is skipped come from: the modes
//! and their names.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Prints and reads an enum by the names of its variants, as the command line and JSON have them.
macro_rules! named {
    ($type:ident, $parameter:literal, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $name),+
                })
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Error::InvalidValue { name: $parameter, found: text.to_owned(), expected: $expected }),
                }
            }
        }
    };
}

/// Whether tokens may leave the model early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Exits {
    /// Never: plain llama.cpp.
    Off,
    /// Where the heads are confident enough for the wanted agreement; off for a model without calibrated heads.
    #[default]
    Calibrated,
    /// Exits and the text so far only draft: every token is the full model's own, which verifies several drafts in one
    /// batch. Greedy output is that of `off`, and sampled output is drawn as `off` draws it.
    Exact,
}

named!(Exits, "exits", "off, calibrated or exact", Off = "off", Calibrated = "calibrated", Exact = "exact");

/// Where the keys and values of the blocks that a token skipped come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kv {
    /// Predicted, where the heads have maps and were certified with them; caught up otherwise.
    #[default]
    Auto,
    /// The exit's learned maps predict them at once.
    Predict,
    /// The skipped blocks run later, for several tokens in one batch: exactly the full model's.
    CatchUp,
    /// The exit's hidden state goes through the skipped blocks' own matrices: a baseline to compare with.
    Propagate,
}

named!(
    Kv,
    "kv",
    "auto, predict, catch-up or propagate",
    Auto = "auto",
    Predict = "predict",
    CatchUp = "catch-up",
    Propagate = "propagate"
);

/// Whether tokens are drafted: several at once are then verified by the full model, in calibrated mode with the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Drafts {
    /// None: in calibrated mode every token may leave at every exit, which is what is certified.
    Off,
    /// Where that is likely to pay; in calibrated mode only in batches that round as single tokens do, or that the file was
    /// certified with. Tokens of a batch are the full model's more often, since they leave at no exit; but batches that round
    /// otherwise turn near-ties over, which a certificate of single tokens does not count.
    #[default]
    Auto,
    /// Where that is likely to pay, however batches round.
    On,
}

named!(Drafts, "drafts", "off, auto or on", Off = "off", Auto = "auto", On = "on");

/// Whether drafts come from the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lookup {
    /// Never.
    Off,
    /// Where the text has gone the same way before and that is likely to pay.
    #[default]
    Auto,
}

named!(Lookup, "lookup", "off or auto", Off = "off", Auto = "auto");

/// Which checks and drafts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// Those that pay here, by measured costs and observed successes.
    #[default]
    Auto,
    /// All of them, whatever they cost: for tests.
    Always,
    /// All checks, and the drafts that would pay on a machine where further tokens of a batch cost little: for calibration,
    /// whose outcome must not depend on how fast this machine is.
    Fixed,
}

named!(Policy, "policy", "auto, always or fixed", Auto = "auto", Always = "always", Fixed = "fixed");

#[cfg(test)]
mod tests {
    use super::*;

    fn are_read_as_they_are_printed<T: FromStr + fmt::Display + PartialEq>(values: &[T]) -> bool {
        values.iter().all(|value| value.to_string().parse().is_ok_and(|read: T| read == *value))
    }

    #[test]
    fn modes_are_read_as_they_are_printed() {
        assert!(are_read_as_they_are_printed(&[Exits::Off, Exits::Calibrated, Exits::Exact]));
        assert!(are_read_as_they_are_printed(&[Kv::Auto, Kv::Predict, Kv::CatchUp, Kv::Propagate]));
        assert!(are_read_as_they_are_printed(&[Drafts::Off, Drafts::Auto, Drafts::On]));
        assert!(are_read_as_they_are_printed(&[Lookup::Off, Lookup::Auto]));
        assert!(are_read_as_they_are_printed(&[Policy::Auto, Policy::Always, Policy::Fixed]));
        assert!("sometimes".parse::<Exits>().is_err() && "never".parse::<Kv>().is_err());
    }
}
