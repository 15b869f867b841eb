//! Tokens as the simulation of a cascade sees them: what every exit said of them, and the checks at the final norm.

use offramp::gguf::exits::{ConfidenceMap, Metric};

use crate::screen::evaluate::Found;
use crate::train::cascade::{AtExit, Token};
use crate::train::evaluate::{Outcome, position};

/// What the checks at the final norm say of a token, as [`Token`] has it.
pub struct AtNorm {
    vocab: (f32, bool),
    screen: (f32, bool),
}

/// Of each token of each sequence: what the screen found, and what was best among the tokens that exits choose among.
pub fn at_norm(
    screened: &[Vec<Found>],
    among: Option<&Vec<Vec<Outcome>>>,
    (screen_map, vocab_map): (&ConfidenceMap, &ConfidenceMap),
    metric: Metric,
) -> Vec<Vec<AtNorm>> {
    let metric = position(metric);
    let of_token = |sequence: usize, token: usize, found: &Found| {
        let outcome = among.and_then(|among| among.get(sequence)?.get(token));
        let vocab = outcome.map(|outcome| (vocab_map.agreement_at(outcome.metrics[metric]), outcome.is_right));
        AtNorm { vocab: vocab.unwrap_or((0.0, false)), screen: (screen_map.agreement_at(found.slack), found.is_found) }
    };
    let of_sequence = |(sequence, found): (usize, &Vec<Found>)| {
        found.iter().enumerate().map(|(token, found)| of_token(sequence, token, found)).collect()
    };
    screened.iter().enumerate().map(of_sequence).collect()
}

/// What is known of each token: outcomes of each exit, and of the checks at the final norm, sequence by sequence.
pub fn tokens_of(
    outcomes: &[Vec<Vec<Outcome>>],
    confidence: &[ConfidenceMap],
    metric: Metric,
    at_norm: &[Vec<AtNorm>],
) -> Vec<Vec<Token>> {
    let metric = position(metric);
    let at = |exit: usize, sequence: usize, token: usize| {
        let outcome = outcomes[exit][sequence][token];
        AtExit {
            confidence: confidence[exit].agreement_at(outcome.metrics[metric]),
            gate: outcome.gate,
            is_right: outcome.is_right,
        }
    };
    let of_sequence = |(sequence, tokens): (usize, &Vec<AtNorm>)| {
        let tokens = tokens.iter().enumerate().map(|(token, norm)| Token {
            exits: (0..outcomes.len()).map(|exit| at(exit, sequence, token)).collect(),
            vocab: norm.vocab,
            screen: norm.screen,
        });
        tokens.collect()
    };
    at_norm.iter().enumerate().map(of_sequence).collect()
}
