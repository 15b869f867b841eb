//! How tokens may leave early, as people ask for it and as they are told: a mode, or a share of agreement. What was asked for
//! and has no effect is told with the reason, never passed over.

use std::fmt;

use offramp::{Exits, Model};

use crate::failure::Failure;

/// How tokens may leave early.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Modes {
    pub exits: Exits,
    pub agreement: f32,
}

impl Modes {
    /// With a mode's name, or a share for calibrated exits, in place of what was set.
    ///
    /// # Errors
    /// For what is neither.
    pub fn changed(self, word: &str) -> Result<Self, Failure> {
        if let Ok(agreement) = word.parse::<f32>() {
            if !(agreement > 0.0 && agreement <= 1.0) {
                return Err(Failure::usage(format!("the share is {word}, but must be above 0 and at most 1")));
            }
            return Ok(Self { exits: Exits::Calibrated, agreement });
        }
        match word.parse() {
            Ok(exits) => Ok(Self { exits, ..self }),
            Err(_) => Err(Failure::usage(format!(
                "exits are {word:?}, but must be off, calibrated, exact, or a share such as 0.95"
            ))),
        }
    }

    /// What is set, and whether any token of `model` will leave early; in few words where there is nothing to set.
    pub fn told_briefly(self, model: &Model) -> String {
        if self.exits == Exits::Calibrated && !model.has_heads() {
            "no exit heads".to_owned()
        } else {
            self.told(model)
        }
    }

    /// One line: what is set, and whether any token of `model` will leave early.
    pub fn told(self, model: &Model) -> String {
        match self.why_nothing_exits(model) {
            Some(why) => format!("exits are {self}, but {why}"),
            None => format!("exits are {self}"),
        }
    }

    /// Why no token will leave early, where that is so although exits are calibrated.
    pub fn why_nothing_exits(self, model: &Model) -> Option<String> {
        match self.exits {
            Exits::Calibrated if !model.has_heads() => {
                Some("the model has no exit heads: every token takes all blocks".to_owned())
            }
            Exits::Calibrated => nothing_exits(self.agreement, &model.exit_levels()),
            _ => None,
        }
    }
}

/// Why nothing exits for `agreement`, at the first of the levels that is as high; `None` where something does.
fn nothing_exits(agreement: f32, levels: &[(f32, bool)]) -> Option<String> {
    if levels.is_empty() {
        return Some("its heads were never calibrated: every token takes all blocks".to_owned());
    }
    if levels.iter().find(|(level, _)| *level >= agreement).is_some_and(|(_, exits)| *exits) {
        return None;
    }
    let open: Vec<String> = levels.iter().filter(|(_, exits)| *exits).map(|(level, _)| level.to_string()).collect();
    let open = if open.is_empty() { "at no level".to_owned() } else { format!("for {} alone", open.join(", ")) };
    Some(format!("the heads are certified {open}: every token takes all blocks"))
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exits {
            Exits::Calibrated => write!(f, "{} for {}", self.exits, self.agreement),
            exits => exits.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_mode_too() {
        let modes = Modes { exits: Exits::Off, agreement: 0.99 };
        assert_eq!(modes.changed("0.95").unwrap(), Modes { exits: Exits::Calibrated, agreement: 0.95 });
        assert_eq!(modes.changed("exact").unwrap().exits, Exits::Exact);
        assert!(matches!(modes.changed("on"), Err(Failure::Usage(reason)) if reason.contains("0.95")));
        for wrong in ["0", "1.5", "NaN", "sometimes"] {
            assert!(modes.changed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_level_at_which_nothing_exits_is_told_with_those_at_which_something_does() {
        let levels = [(0.9, true), (0.95, true), (0.99, false)];
        assert_eq!(nothing_exits(0.8, &levels), None);
        assert_eq!(nothing_exits(0.95, &levels), None);
        assert!(nothing_exits(0.97, &levels).unwrap().contains("certified for 0.9, 0.95 alone"));
        assert!(nothing_exits(0.9, &[(0.9, false)]).unwrap().contains("certified at no level"));
        assert!(nothing_exits(0.9, &[]).unwrap().contains("never calibrated"));
    }
}
