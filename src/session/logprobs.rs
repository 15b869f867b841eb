//! Log-probabilities of a distribution, for programs that show how sure a model was.

use crate::llama::Token;

/// A token and how likely the model found it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub token: Token,
    /// Natural logarithm of its probability; negative infinity for a token that the distribution does not have.
    pub logprob: f32,
}

/// Of `logits`: that of `token`, then the `n` best, falling, of equals the one with the lowest id first.
pub(super) fn of(logits: impl Iterator<Item = (Token, f32)> + Clone, token: Token, n: usize) -> Vec<TokenLogprob> {
    let largest = logits.clone().map(|(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
    if !largest.is_finite() {
        return vec![TokenLogprob { token, logprob: f32::NEG_INFINITY }];
    }
    let sum: f64 = logits.clone().map(|(_, logit)| f64::from(logit - largest).exp()).sum();
    let shift = f64::from(largest) + sum.ln();
    let entry = |(token, logit): (Token, f32)| TokenLogprob { token, logprob: (f64::from(logit) - shift) as f32 };
    let own = logits.clone().find(|(id, _)| *id == token).unwrap_or((token, f32::NEG_INFINITY));
    let mut best: Vec<(Token, f32)> = Vec::with_capacity(n.saturating_add(1).min(1024));
    for (id, logit) in logits.filter(|(_, logit)| !logit.is_nan()) {
        if best.len() == n && best.last().is_none_or(|(_, worst)| logit <= *worst) {
            continue;
        }
        let at = best.partition_point(|(_, other)| *other >= logit);
        best.insert(at, (id, logit));
        best.truncate(n);
    }
    std::iter::once(own).chain(best).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_values(values: &[f32], token: i32, n: usize) -> Vec<(i32, f32)> {
        let found = of((0i32..).map(Token).zip(values.iter().copied()), Token(token), n);
        found.into_iter().map(|entry| (entry.token.0, entry.logprob)).collect()
    }

    #[test]
    fn the_own_one_comes_first_and_the_best_fall() {
        let half = 0.5f32.ln();
        let quarter = 0.25f32.ln();
        let logits = [quarter + 7.0, half + 7.0, quarter + 7.0];
        let found = of_values(&logits, 2, 2);
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1, 0]);
        for ((_, value), expected) in found.iter().zip([quarter, half, quarter]) {
            assert!((value - expected).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn none_beside_its_own_is_none() {
        assert_eq!(of_values(&[0.0], 0, 0), [(0, 0.0)]);
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(of_values(&[f32::NAN, f32::NAN], 1, 3), [(1, f32::NEG_INFINITY)]);
        assert_eq!(of_values(&[], 1, 3), [(1, f32::NEG_INFINITY)]);
    }
}
