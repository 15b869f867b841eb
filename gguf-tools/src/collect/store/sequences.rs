//! Sequences as a store knows them: ranges of its tokens.

use std::ops::Range;

/// The tokens of sequences.
pub fn count(sequences: &[Range<u64>]) -> u64 {
    sequences.iter().map(|tokens| tokens.end - tokens.start).sum()
}

/// The first of `sequences` that hold `tokens`, or all.
pub fn first(sequences: &[Range<u64>], tokens: u64) -> Vec<Range<u64>> {
    let mut left = tokens;
    let few = sequences.iter().cloned().take_while(|tokens| {
        let is_wanted = left > 0;
        left = left.saturating_sub(tokens.end - tokens.start);
        is_wanted
    });
    few.collect()
}
