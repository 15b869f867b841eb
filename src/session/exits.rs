//! Whether tokens may leave the model early, and where the K/V of what they skip come from: the modes and their names.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

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

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Calibrated => "calibrated",
            Self::Exact => "exact",
        })
    }
}

impl FromStr for Exits {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        [Self::Off, Self::Calibrated, Self::Exact].into_iter().find(|exits| exits.to_string() == text).ok_or_else(
            || Error::InvalidValue { name: "exits", found: text.to_owned(), expected: "off, calibrated or exact" },
        )
    }
}

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

impl fmt::Display for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Predict => "predict",
            Self::CatchUp => "catch-up",
            Self::Propagate => "propagate",
        })
    }
}

impl FromStr for Kv {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        [Self::Auto, Self::Predict, Self::CatchUp, Self::Propagate]
            .into_iter()
            .find(|kv| kv.to_string() == text)
            .ok_or_else(|| Error::InvalidValue {
                name: "kv",
                found: text.to_owned(),
                expected: "auto, predict, catch-up or propagate",
            })
    }
}

/// Whether exact mode drafts from the text itself.
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

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
        })
    }
}

impl FromStr for Lookup {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        [Self::Off, Self::Auto]
            .into_iter()
            .find(|lookup| lookup.to_string() == text)
            .ok_or_else(|| Error::InvalidValue { name: "lookup", found: text.to_owned(), expected: "off or auto" })
    }
}

/// Which checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// Those that pay here, by measured costs and observed successes.
    #[default]
    Auto,
    /// All of them, whatever they cost: for calibration and for tests, whose outcome must not depend on how fast this
    /// machine is.
    Always,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
        })
    }
}

impl FromStr for Policy {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        [Self::Auto, Self::Always]
            .into_iter()
            .find(|policy| policy.to_string() == text)
            .ok_or_else(|| Error::InvalidValue { name: "policy", found: text.to_owned(), expected: "auto or always" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_printed() {
        for exits in [Exits::Off, Exits::Calibrated, Exits::Exact] {
            assert_eq!(exits.to_string().parse::<Exits>().unwrap(), exits);
        }
        for kv in [Kv::Auto, Kv::Predict, Kv::CatchUp, Kv::Propagate] {
            assert_eq!(kv.to_string().parse::<Kv>().unwrap(), kv);
        }
        for lookup in [Lookup::Off, Lookup::Auto] {
            assert_eq!(lookup.to_string().parse::<Lookup>().unwrap(), lookup);
        }
        for policy in [Policy::Auto, Policy::Always] {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
        assert!("sometimes".parse::<Exits>().is_err() && "never".parse::<Kv>().is_err());
    }
}
