//! Which rank and how many candidates: the pair that reads the fewest bytes a token.
//!
//! Bytes are those of the basis, the 4-bit rows and the rescored rows, and of the whole matrix for the tokens whose slack
//! is too small to trust the screen. How many tokens that are is measured on tokens that the screen was not fitted to:
//! the fewest for which the others miss the full model's choice in at most [`MISSES`] of all tokens, by a bound and not
//! by the count, which flatters where tokens are few.

use super::evaluate::Found;
use crate::calibrate::bounds;

/// The ranks that are tried.
pub const RANKS: [usize; 6] = [64, 96, 128, 160, 192, 256];
/// The numbers of candidates that are tried.
pub const COUNTS: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// The share of tokens whose choice the screen may miss, after the full matrix has taken the doubtful ones.
pub const MISSES: f64 = 0.001;
/// The probability with which the bound on that share may be broken.
const DOUBT: f64 = 0.2;

/// One pair of rank and number of candidates, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The rank.
    pub rank: usize,
    /// The number of candidates.
    pub count: usize,
    /// The share of tokens whose choice is among the candidates.
    pub recall: f64,
    /// The share of tokens that go to the full matrix.
    pub fallback: f64,
    /// The bytes that the screen and its candidates read, over those of the matrix; without the fallback.
    pub screened: f64,
}

impl Candidate {
    /// Measures a pair: `bytes` are those that every token reads, over those of the matrix.
    pub fn measure(rank: usize, count: usize, screened: f64, found: &[Vec<Found>]) -> Candidate {
        let mut tokens: Vec<Found> = found.concat();
        let n = tokens.len().max(1) as f64;
        let recall = tokens.iter().filter(|token| token.is_found).count() as f64 / n;
        // Surest first; of equals those that are missed, so that a cut between them is never taken for granted.
        tokens.sort_by(|a, b| b.slack.total_cmp(&a.slack).then(a.is_found.cmp(&b.is_found)));
        // Too few tokens to show it at all leave the one demand that none is missed.
        let proves = |misses: &usize| bounds::binomial_upper_bound(*misses, tokens.len(), DOUBT) <= MISSES;
        let allowed = (0..=tokens.len()).take_while(proves).last().unwrap_or(0);
        let mut misses = 0;
        let kept = tokens.iter().take_while(|token| {
            misses += usize::from(!token.is_found);
            misses <= allowed
        });
        let fallback = 1.0 - kept.count() as f64 / n;
        Candidate { rank, count, recall, fallback, screened }
    }

    /// All bytes that a token reads on average, over those of the matrix.
    pub fn cost(&self) -> f64 {
        self.screened + self.fallback
    }
}

/// The cheapest pair; of equals the first.
pub fn cheapest(candidates: &[Candidate]) -> Option<Candidate> {
    candidates.iter().copied().reduce(|best, other| if other.cost() < best.cost() { other } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_tokens_go_to_the_full_matrix_until_few_enough_are_missed() {
        // 20,000 tokens, of which those with the least slack are missed: 120, where 20 may be and 15 are sure to be fine.
        let tokens: Vec<Found> = (0..20_000).map(|i| Found { slack: i as f32, is_found: i >= 120 }).collect();
        let candidate = Candidate::measure(64, 256, 0.1, &[tokens[..9000].to_vec(), tokens[9000..].to_vec()]);
        assert!((candidate.recall - 0.994).abs() < 1e-9);
        assert!((candidate.fallback - 0.00525).abs() < 1e-9, "{}", candidate.fallback);
        assert!((candidate.cost() - 0.10525).abs() < 1e-9);
    }

    #[test]
    fn few_tokens_are_not_taken_for_proof() {
        // One miss in 1,000 is a share of 0.1 %, but no proof of one.
        let tokens: Vec<Found> = (0..1000).map(|i| Found { slack: 1.0, is_found: i != 500 }).collect();
        assert!(Candidate::measure(64, 256, 0.1, &[tokens]).fallback > 0.99);
    }

    #[test]
    fn a_slack_that_says_nothing_saves_nothing() {
        let tokens: Vec<Found> = (0..2000).map(|i| Found { slack: 1.0, is_found: i % 10 != 0 }).collect();
        assert!(Candidate::measure(64, 256, 0.1, &[tokens]).fallback > 0.99);
    }

    #[test]
    fn the_cheapest_pair_counts_its_fallback() {
        let pair = |rank, screened, fallback| Candidate { rank, count: 256, recall: 1.0, fallback, screened };
        let best = cheapest(&[pair(64, 0.08, 0.2), pair(96, 0.1, 0.01), pair(128, 0.15, 0.0)]).unwrap();
        assert_eq!(best.rank, 96);
        assert_eq!(cheapest(&[]), None);
    }
}
