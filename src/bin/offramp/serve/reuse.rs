//! What of a slot's K/V cache the next request may use again.
//!
//! Kernels round differently by how many tokens they compute at once: ggml's attention on the CPU has one way for a single
//! token, one for a few and one for 64 and more. A cache that was filled in other widths than a fresh prompt is read in
//! therefore differs in its last bits, and a greedy reply could then depend on what the slot did before. Prompts are read in
//! chunks of fixed width from position 0 on, and a chunk that was read whole is the same in every prompt that begins so.

use std::fmt;
use std::str::FromStr;

use offramp::{PromptReport, Token};

/// Most tokens of a chunk: little enough that replies under way are not held up for long by somebody's prompt.
pub const MAX_CHUNK: u32 = 128;

/// What is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Chunks of prompts that were read whole: a reply never depends on what was asked before.
    Exact,
    /// Everything that is the same text, replies too. Faster in long conversations; a greedy reply may differ from that on an
    /// empty cache where two tokens are nearly equal.
    All,
    /// Nothing.
    None,
}

impl Reuse {
    /// How many tokens of `held` a slot keeps for `prompt`. The first `n_read` of them were read as chunks of `chunk` tokens.
    pub fn kept(self, held: &[Token], prompt: &[Token], n_read: usize, chunk: usize) -> usize {
        let common = held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        match self {
            Self::None => 0,
            Self::All => common,
            // The last token is read in any case, and then with the whole of its chunk.
            Self::Exact => common.min(n_read).min(prompt.len().saturating_sub(1)) / chunk * chunk,
        }
    }
}

/// How many tokens of a slot have been read as whole chunks, after a prompt.
pub fn n_read(report: &PromptReport, chunk: usize) -> usize {
    (report.reused + report.decoded) / chunk * chunk
}

impl fmt::Display for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::All => "all",
            Self::None => "none",
        })
    }
}

impl FromStr for Reuse {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Exact, Self::All, Self::None]
            .into_iter()
            .find(|reuse| reuse.to_string() == text)
            .ok_or_else(|| format!("it is {text:?}, but must be exact, all or none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: i32) -> Vec<Token> {
        (0..n).map(Token).collect()
    }

    #[test]
    fn whole_chunks_of_prompts_are_kept_alone() {
        let kept = |held, prompt, n_read| Reuse::Exact.kept(&tokens(held), &tokens(prompt), n_read, 10);
        assert_eq!(kept(50, 60, 50), 50);
        assert_eq!(kept(50, 60, 30), 30, "what was generated is read again");
        assert_eq!(kept(35, 60, 30), 30);
        assert_eq!(kept(50, 50, 50), 40, "the last chunk is read whole, for the last token's logits");
        assert_eq!(kept(5, 60, 0), 0);
        assert_eq!(kept(0, 1, 0), 0);
    }

    #[test]
    fn all_is_all_that_is_common() {
        let mut prompt = tokens(20);
        prompt[7] = Token(99);
        assert_eq!(Reuse::All.kept(&tokens(30), &prompt, 0, 10), 7);
        assert_eq!(Reuse::None.kept(&tokens(30), &tokens(30), 30, 10), 0);
    }

    #[test]
    fn modes_are_read_as_they_are_printed() {
        for reuse in [Reuse::Exact, Reuse::All, Reuse::None] {
            assert_eq!(reuse.to_string().parse(), Ok(reuse));
        }
        assert!("some".parse::<Reuse>().is_err());
    }
}
