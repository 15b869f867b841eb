//! What a cascade promises: for each level of agreement the laxest threshold that prompts nothing was made from certify.
//!
//! The sequence of thresholds is fixed for all models, and the gates of a level were set on other prompts. A prompt's loss at a
//! threshold is the share of its tokens that an exit or the screen emits and the full model, in the same context, would
//! not have. Contexts are the full model's own here; a decode that runs freely confirms it (`calibrate`).

use crate::calibrate::bounds::{self, OutOfRange};
use crate::calibrate::sequence::{Certified, certify};
use crate::train::cascade::{Cascade, Rule, Summary, Token};
use crate::train::choose::{AtLevel, Choice, thresholds};

/// One level of agreement.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The wanted share of tokens that equal the full model's.
    pub agreement: f32,
    /// The confidence that a token must reach to be emitted by an exit; infinite where the level could not be certified.
    pub threshold: f32,
    /// The confidence that it must reach to be emitted by the screen; likewise.
    pub screen: f32,
    /// What each exit's gate must give; infinite where the exit is not used at this level.
    pub gates: Vec<f32>,
    /// What was measured at the threshold.
    pub certified: Option<Certified>,
    /// What becomes of the prompts that certify, and what it would take.
    pub summary: Summary,
    /// How many times as many tokens as without exits and screen that would be.
    pub gain: f64,
    /// The fewest prompts that could certify this level.
    pub least_prompts: usize,
}

/// Certifies each level of `choice`, whose exits `cascade` and `prompts` (tokens, prompt by prompt) are of.
///
/// # Errors
///
/// A level or a delta that is no share.
pub fn levels(
    cascade: &Cascade,
    choice: &Choice,
    prompts: &[Vec<Token>],
    delta: f64,
) -> Result<Vec<Level>, OutOfRange> {
    let thresholds = thresholds();
    let mut levels = Vec::new();
    for at in &choice.levels {
        let gates = gates(at, choice);
        let screen = screen(at);
        let losses = |index: usize| -> Vec<f64> {
            let rule = Rule { threshold: thresholds[index], screen, gates: gates.clone() };
            prompts.iter().map(|prompt| cascade.summary(prompt, &rule).error).collect()
        };
        let certified = certify(thresholds.len(), losses, allowed(at.agreement), delta)?;
        let threshold = certified.as_ref().map_or(f32::INFINITY, |certified| thresholds[certified.index]);
        let screen = if certified.is_some() { screen } else { f32::INFINITY };
        levels.push(Level { certified, ..level(cascade, at, prompts, Rule { threshold, screen, gates }, delta) });
    }
    Ok(levels)
}

/// The levels as `choice` suggests them, with nothing certified.
pub fn suggested(cascade: &Cascade, choice: &Choice, prompts: &[Vec<Token>], delta: f64) -> Vec<Level> {
    let of_level = |at: &AtLevel| {
        let threshold = at.rule.as_ref().map_or(f32::INFINITY, |rule| rule.threshold);
        level(cascade, at, prompts, Rule { threshold, screen: screen(at), gates: gates(at, choice) }, delta)
    };
    choice.levels.iter().map(of_level).collect()
}

fn gates(at: &AtLevel, choice: &Choice) -> Vec<f32> {
    at.rule.as_ref().map_or_else(|| vec![0.0; choice.exits.len()], |rule| rule.gates.clone())
}

fn screen(at: &AtLevel) -> f32 {
    at.rule.as_ref().map_or(f32::INFINITY, |rule| rule.screen)
}

/// The share of tokens that may differ. In single precision 1 - 0.99 is more than 0.01.
fn allowed(agreement: f32) -> f64 {
    1.0 - (f64::from(agreement) * 1e6).round() / 1e6
}

/// What a rule does with prompts.
fn level(cascade: &Cascade, at: &AtLevel, prompts: &[Vec<Token>], rule: Rule, delta: f64) -> Level {
    let summary = cascade.summary(prompts.iter().flatten(), &rule);
    Level {
        agreement: at.agreement,
        threshold: rule.threshold,
        screen: rule.screen,
        gain: if rule.threshold.is_finite() || rule.screen.is_finite() {
            cascade.plain() / summary.time.max(f64::MIN_POSITIVE)
        } else {
            1.0
        },
        certified: None,
        gates: rule.gates,
        summary,
        least_prompts: bounds::least_prompts(allowed(at.agreement), delta),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::cascade::{AtExit, Costs};
    use crate::train::choose;

    /// Prompts of 20 tokens; an exit is sure of half of them, and wrong about one in 50 of those.
    fn prompts(n: usize) -> Vec<Vec<Token>> {
        let token = |i: usize| {
            let confidence = [0.2, 0.97][i % 2];
            let at = AtExit { confidence, gate: confidence, is_right: i % 2 == 1 && (i / 2) % 50 != 3 };
            Token { exits: vec![at], screen: (0.9999, (i * 7) % 2000 != 11) }
        };
        (0..n).map(|prompt| (0..20).map(|t| token(prompt * 20 + t)).collect()).collect()
    }

    fn cascade() -> Cascade {
        let costs = Costs { layer: 1.0, output: 8.0, screen: 1.0, heads: vec![0.1], skipped: 0.02 };
        Cascade { layers: vec![9], n_layer: 20, costs }
    }

    #[test]
    fn a_level_counts_the_errors_of_exits_and_of_the_screen() {
        let (cascade, prompts) = (cascade(), prompts(600));
        let tokens: Vec<Token> = prompts.concat();
        let choice = choose::set(&cascade, &tokens, &[0], &[0.9, 0.98, 0.999]);
        let levels = levels(&cascade, &choice, &prompts, 0.05).unwrap();
        // One in 100 tokens is an exit's error: 0.98 has room for that, 0.999 not even for the screen's with 600 prompts.
        assert!(levels[0].certified.is_some() && levels[0].gain > 1.4, "{:?}", levels[0]);
        let strict = &levels[1];
        let certified = strict.certified.as_ref().unwrap();
        assert!(strict.summary.exits[0] > 0.4 && certified.risk > 0.009 && certified.bound <= 0.02, "{strict:?}");
        assert!((certified.risk - strict.summary.error).abs() < 1e-9);
        assert_eq!((levels[2].threshold, levels[2].gain, levels[2].least_prompts), (f32::INFINITY, 1.0, 2995));
        let suggested = suggested(&cascade, &choice, &prompts, 0.05);
        assert!(suggested.iter().all(|level| level.certified.is_none() && level.threshold.is_finite()));
        assert!(suggested.iter().all(|level| level.summary.error <= allowed(level.agreement)), "{suggested:?}");
    }
}
