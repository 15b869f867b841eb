//! The tokens of one decode, in the layout that llama.cpp reads.

use llama_cpp_sys_2 as sys;

use super::vocab::Token;

/// A batch of tokens and the places they take. Reused between decodes: no allocation once it has grown.
#[derive(Debug)]
pub(crate) struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    n_seq_ids: Vec<i32>,
    seq_ids: Vec<*mut sys::llama_seq_id>,
    outputs: Vec<i8>,
    /// The ids 0, 1, …, one a sequence of the context, for `seq_ids` to point to.
    ids: Box<[sys::llama_seq_id]>,
}

// SAFETY: `seq_ids` holds pointers to `ids` alone, which the batch owns and nobody writes.
unsafe impl Send for Batch {}

/// Which tokens of a batch get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Every token.
    All,
    /// The last one.
    Last,
    /// As many of the last as this.
    LastOf(usize),
}

impl Logits {
    /// How many of `n_tokens` get some.
    pub(crate) fn count(self, n_tokens: usize) -> usize {
        match self {
            Self::All => n_tokens,
            Self::Last => n_tokens.min(1),
            Self::LastOf(n) => n.min(n_tokens),
        }
    }
}

/// Where the tokens of a batch go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places<'a> {
    /// To consecutive positions of one sequence, from this one on.
    From { sequence: usize, position: usize },
    /// The i-th to this position of sequence i.
    Each(&'a [usize]),
}

impl Places<'_> {
    /// The sequence and the position of the `index`-th token.
    pub(crate) fn of(&self, index: usize) -> Option<(usize, usize)> {
        match self {
            Self::From { sequence, position } => Some((*sequence, position.checked_add(index)?)),
            Self::Each(positions) => Some((index, *positions.get(index)?)),
        }
    }
}

impl Batch {
    /// For a context of `n_sequences`.
    pub(crate) fn new(n_sequences: usize) -> Self {
        Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            n_seq_ids: Vec::new(),
            seq_ids: Vec::new(),
            outputs: Vec::new(),
            // A context has at most `LLAMA_MAX_SEQ` sequences, so the cast keeps the value.
            ids: (0..n_sequences.max(1)).map(|id| id as sys::llama_seq_id).collect(),
        }
    }

    /// Refills the batch with `tokens`; their places are those of existing sequences, and positions below 2^31
    /// (`Context::prepare` checks both).
    pub(crate) fn fill(&mut self, tokens: &[Token], places: Places<'_>, logits: Logits) {
        let n = tokens.len();
        self.tokens.clear();
        self.tokens.extend(tokens.iter().map(|token| token.0));
        self.positions.clear();
        self.seq_ids.clear();
        for (sequence, position) in (0..n).filter_map(|i| places.of(i)) {
            self.positions.push(position as sys::llama_pos);
            self.seq_ids.push(&raw mut self.ids[sequence]);
        }
        self.n_seq_ids.clear();
        self.n_seq_ids.resize(n, 1);
        self.outputs.clear();
        self.outputs.resize(n - logits.count(n), 0);
        self.outputs.resize(n, 1);
    }

    /// llama.cpp's view of the batch; valid until the batch is filled again or dropped.
    pub(crate) fn raw(&mut self) -> sys::llama_batch {
        sys::llama_batch {
            n_tokens: self.tokens.len() as i32,
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.n_seq_ids.as_mut_ptr(),
            seq_id: self.seq_ids.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sequence of each token.
    fn sequences(batch: &Batch) -> Vec<i32> {
        // SAFETY: `fill` made the pointers from `ids`, which the batch still owns.
        batch.seq_ids.iter().map(|id| unsafe { **id }).collect()
    }

    #[test]
    fn positions_follow_and_only_the_last_token_has_logits() {
        let mut batch = Batch::new(3);
        batch.fill(&[Token(5), Token(6), Token(7)], Places::From { sequence: 2, position: 10 }, Logits::Last);
        assert_eq!(batch.positions, [10, 11, 12]);
        assert_eq!(sequences(&batch), [2, 2, 2]);
        assert_eq!(batch.outputs, [0, 0, 1]);
        batch.fill(&[Token(5), Token(6)], Places::Each(&[4, 9]), Logits::All);
        assert_eq!(batch.positions, [4, 9]);
        assert_eq!(sequences(&batch), [0, 1]);
        assert_eq!(batch.outputs, [1, 1]);
        assert_eq!(batch.raw().n_tokens, 2);
    }
}
