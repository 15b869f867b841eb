//! What a cascade is likely to do at each level of agreement: the thresholds and gates that were chosen, on prompts that
//! nothing was made from.
//!
//! Contexts are the full model's own here, so that this is no promise: what exits emit, and the K and V that they leave
//! behind, change what follows. `calibrate` certifies on decodes that run freely; until then nothing exits.

use crate::train::cascade::{Cascade, Rule, Summary, Token};
use crate::train::choose::{AtLevel, Choice};

/// One level of agreement.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The wanted share of tokens that equal the full model's.
    pub agreement: f32,
    /// The confidence that a token must reach to be emitted by an exit; infinite where none keeps the level.
    pub threshold: f32,
    /// The confidence that it must reach at full depth among the tokens that exits choose among; likewise.
    pub vocab: f32,
    /// The confidence that it must reach to be emitted by the screen; likewise.
    pub screen: f32,
    /// What each exit's gate must give; infinite where the exit is not used at this level.
    pub gates: Vec<f32>,
    /// What becomes of the prompts that judge.
    pub summary: Summary,
    /// How many times as many tokens as without exits and screen that would be.
    pub gain: f64,
}

/// The levels of `choice`, whose exits `cascade` and `tokens` are of.
pub fn levels(cascade: &Cascade, choice: &Choice, tokens: &[Token]) -> Vec<Level> {
    choice.levels.iter().map(|at| level(cascade, at, choice, tokens)).collect()
}

fn level(cascade: &Cascade, at: &AtLevel, choice: &Choice, tokens: &[Token]) -> Level {
    let rule = at.rule.clone().unwrap_or_else(|| Rule {
        threshold: f32::INFINITY,
        vocab: f32::INFINITY,
        screen: f32::INFINITY,
        gates: vec![0.0; choice.exits.len()],
    });
    let summary = cascade.summary(tokens, &rule);
    let does_something = [rule.threshold, rule.vocab, rule.screen].iter().any(|threshold| threshold.is_finite());
    let gain = if does_something { cascade.plain() / summary.time.max(f64::MIN_POSITIVE) } else { 1.0 };
    Level {
        agreement: at.agreement,
        threshold: rule.threshold,
        vocab: rule.vocab,
        screen: rule.screen,
        gates: rule.gates,
        summary,
        gain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::cascade::{AtExit, Costs};
    use crate::train::choose;

    /// An exit is sure of half of the tokens, and wrong about one in 50 of those.
    fn tokens(n: usize) -> Vec<Token> {
        let token = |i: usize| {
            let confidence = [0.2, 0.97][i % 2];
            let at = AtExit { confidence, gate: confidence, is_right: i % 2 == 1 && (i / 2) % 50 != 3 };
            Token { exits: vec![at], vocab: (0.0, false), screen: (0.9999, (i * 7) % 2000 != 11) }
        };
        (0..n).map(token).collect()
    }

    fn cascade() -> Cascade {
        let costs = Costs { layer: 1.0, output: 8.0, screen: 1.0, check: 1.0, heads: vec![0.1], skipped: 0.02 };
        Cascade { layers: vec![9], n_layer: 20, costs }
    }

    #[test]
    fn a_level_counts_the_errors_of_exits_and_of_the_screen() {
        let (cascade, tokens) = (cascade(), tokens(12_000));
        let choice = choose::set(&cascade, &tokens, &[0], &[0.9, 0.98, 0.999]);
        let levels = levels(&cascade, &choice, &tokens);
        // One in 100 tokens is an exit's error: 0.98 has room for that, 0.999 has not.
        assert!(levels[0].gain > 1.4 && levels[1].summary.exits[0] > 0.4, "{levels:?}");
        assert!(levels[2].summary.exits[0] == 0.0 && levels[2].gain >= 1.0, "{:?}", levels[2]);
        for level in &levels {
            assert!(level.summary.error <= 1.0 - f64::from(level.agreement) + 1e-6, "{level:?}");
        }
    }
}
