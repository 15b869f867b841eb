//! What the full model says at one position: the labels that exits are trained and judged by.
//!
//! Its best token, how far ahead of the second that is, and its distribution at temperature 1: the best
//! [`TOP_K`] tokens with their probabilities, and the mass of all the others. Ties go to the lowest token id.

use offramp::Token;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::row::Row;

/// How many of the best tokens are kept.
pub const TOP_K: usize = 32;

/// The full model's answer at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The token that was decoded there.
    pub token: u32,
    /// How far the best logit is above the second.
    pub margin: f32,
    /// The probability of all tokens that are not among the best.
    pub rest: f32,
    /// The best tokens and their probabilities, best first. The first is the full model's choice.
    pub top: [(u32, f32); TOP_K],
}

impl Label {
    /// The bytes of one label in a file.
    pub const BYTES: usize = 12 + 8 * TOP_K;

    /// The label that `row` gives at the position of `token`.
    pub fn of_row(token: Token, row: &Row<'_>) -> Label {
        let best = row.best();
        let highest = best.first().map_or(0.0, |(_, logit)| *logit);
        let sum = row.exp_sum(highest);
        let mut top = [(0, 0.0); TOP_K];
        let mut rest = 1.0f64;
        for (slot, (id, logit)) in top.iter_mut().zip(&best) {
            let probability = f64::from(logit - highest).exp() / sum;
            *slot = (*id, probability as f32);
            rest -= probability;
        }
        let margin = best.get(1).map_or(0.0, |(_, second)| highest - second);
        Label { token: token.0.unsigned_abs(), margin, rest: rest.max(0.0) as f32, top }
    }

    /// The label that `logits`, `[n_vocab]`, give at the position of `token`.
    pub fn of(token: Token, logits: &[f32]) -> Label {
        Label::of_row(token, &Row::new(logits))
    }

    /// The full model's choice.
    pub fn argmax(&self) -> u32 {
        self.top[0].0
    }

    /// The label's bytes, little-endian.
    pub fn to_bytes(&self) -> [u8; Label::BYTES] {
        let mut bytes = [0; Label::BYTES];
        let numbers = [self.token.to_le_bytes(), self.margin.to_le_bytes(), self.rest.to_le_bytes()];
        let top = self.top.iter().flat_map(|(id, probability)| [id.to_le_bytes(), probability.to_le_bytes()]);
        for (slot, number) in bytes.chunks_exact_mut(4).zip(numbers.into_iter().chain(top)) {
            slot.copy_from_slice(&number);
        }
        bytes
    }

    /// Reads what [`Label::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8; Label::BYTES]) -> Label {
        let word = |i: usize| [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]];
        let mut top = [(0, 0.0); TOP_K];
        for (i, slot) in top.iter_mut().enumerate() {
            *slot = (u32::from_le_bytes(word(3 + 2 * i)), f32::from_le_bytes(word(4 + 2 * i)));
        }
        Label {
            token: u32::from_le_bytes(word(0)),
            margin: f32::from_le_bytes(word(1)),
            rest: f32::from_le_bytes(word(2)),
            top,
        }
    }
}

/// How the next token of a text is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The best token.
    Greedy,
    /// At `temperature`, among the tokens of at least `min_p` times the best one's probability.
    Random {
        /// Divides the logits; above 0.
        temperature: f32,
        /// A share of the best token's probability.
        min_p: f32,
    },
}

impl Sampling {
    /// For answers: the runtime's default temperature.
    pub const ANSWER: Sampling = Sampling::Random { temperature: 0.8, min_p: 0.05 };
    /// For prompts, which should differ from each other.
    pub const PROMPT: Sampling = Sampling::Random { temperature: 1.0, min_p: 0.02 };
}

/// Chooses from a row.
pub fn sample(row: &Row<'_>, sampling: Sampling, rng: &mut ChaCha8Rng) -> Token {
    let (best, highest) = row.argmax();
    let mut chosen = best;
    if let Sampling::Random { temperature, min_p } = sampling {
        // A token is kept where exp(logit - highest) >= min_p, before the temperature.
        let kept: Vec<(u32, f64)> = row
            .at_least(highest + min_p.ln())
            .map(|(id, logit)| (id, f64::from((logit - highest) / temperature).exp()))
            .collect();
        let mut left = rng.random::<f64>() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in kept {
            chosen = id;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }
    Token(i32::try_from(chosen).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    fn logits() -> Vec<f32> {
        (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect()
    }

    #[test]
    fn a_label_holds_the_best_tokens_and_all_of_the_mass() {
        let logits = logits();
        let label = Label::of(Token(5), &logits);
        assert_eq!(label.argmax(), (0..1000u32).find(|i| (i * 7919) % 1000 == 999).unwrap());
        assert!((label.margin - 0.01).abs() < 1e-5);
        let sum: f32 = label.top.iter().map(|(_, probability)| probability).sum();
        assert!((sum + label.rest - 1.0).abs() < 1e-5);
        assert!(label.top.is_sorted_by(|a, b| a.1 >= b.1));
        assert_eq!(Label::from_bytes(&label.to_bytes()), label);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        let mut logits = vec![0.0; 100];
        logits[40] = 2.0;
        logits[20] = 2.0;
        let label = Label::of(Token(0), &logits);
        assert_eq!((label.top[0].0, label.top[1].0, label.top[2].0, label.margin), (20, 40, 0, 0.0));
        assert_eq!(sample(&Row::new(&logits), Sampling::Greedy, &mut ChaCha8Rng::seed_from_u64(0)), Token(20));
    }

    #[test]
    fn samples_follow_the_distribution_and_leave_out_the_unlikely() {
        let logits = [0.0, 1.0f32.exp().ln(), -10.0];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sampling = Sampling::Random { temperature: 1.0, min_p: 0.05 };
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[sample(&Row::new(&logits), sampling, &mut rng).0 as usize] += 1;
        }
        let share = f64::from(counts[1]) / 10_000.0;
        assert!((share - 0.731).abs() < 0.02 && counts[2] == 0, "{counts:?}");
    }
}
