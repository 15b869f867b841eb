//! Drafts from the text itself: what followed the last time that the text went as it goes now.
//!
//! The text is scanned from its end, some microseconds for a few thousand tokens; nothing is indexed, so that nothing
//! grows with it. It refuses matches of a single token: they say little.

use crate::llama::Token;

/// Tokens that must match at least, and those that are looked at to tell a better match from a worse one.
const MATCH: (usize, usize) = (2, 8);

/// An earlier place where the text went as it goes at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// How many tokens match, at most [`MATCH`]'s second.
    pub(super) n_matched: usize,
    /// What followed there, at most as much as was asked for; at least one token.
    pub(super) continuation: &'a [Token],
}

/// The longest match in `text`, of equals the latest, with at most `n` tokens of what followed.
pub(super) fn find(text: &[Token], n: usize) -> Option<Found<'_>> {
    let mut best: Option<(usize, usize)> = None;
    for end in (MATCH.0..text.len()).rev() {
        let same = text[..end].iter().rev().zip(text.iter().rev()).take(MATCH.1).take_while(|(a, b)| a == b);
        let n_matched = same.count();
        if n_matched >= MATCH.0 && best.is_none_or(|(longest, _)| n_matched > longest) {
            best = Some((n_matched, end));
            if n_matched == MATCH.1 {
                break;
            }
        }
    }
    let (n_matched, end) = best?;
    let continuation = &text[end..text.len().min(end.saturating_add(n))];
    (!continuation.is_empty()).then_some(Found { n_matched, continuation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[i32], n: usize) -> Option<(usize, Vec<i32>)> {
        let text: Vec<Token> = text.iter().copied().map(Token).collect();
        find(&text, n).map(|found| (found.n_matched, found.continuation.iter().map(|token| token.0).collect()))
    }

    #[test]
    fn what_followed_the_same_words_is_drafted() {
        assert_eq!(found(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 2), Some((3, vec![4, 5])));
        assert_eq!(found(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 9), Some((3, vec![4, 5, 9, 1, 2, 3])));
    }

    #[test]
    fn the_longer_match_wins_and_of_equals_the_latest() {
        assert_eq!(found(&[7, 1, 2, 3, 5, 1, 2, 4, 7, 1, 2], 1), Some((3, vec![3])));
        assert_eq!(found(&[1, 2, 3, 1, 2, 4, 1, 2], 1), Some((2, vec![4])));
    }

    #[test]
    fn a_repetition_continues_itself() {
        assert_eq!(found(&[5, 5, 5, 5], 2), Some((3, vec![5])));
    }

    #[test]
    fn short_texts_and_single_tokens_match_nothing() {
        assert_eq!(found(&[], 4), None);
        assert_eq!(found(&[1], 4), None);
        assert_eq!(found(&[1, 2, 3, 2], 4), None);
        assert_eq!(found(&[1, 2, 1, 2], 0), None);
    }
}
