//! The tokens of one decode, in the layout that llama.cpp reads.

use llama_cpp_sys_2 as sys;

use super::vocab::Token;

/// A batch of tokens of sequence 0, at consecutive positions. Reused between decodes: no allocation once it has grown.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    n_seq_ids: Vec<i32>,
    seq_ids: Vec<*mut sys::llama_seq_id>,
    outputs: Vec<i8>,
    seq_id: Box<sys::llama_seq_id>,
}

// SAFETY: `seq_ids` holds pointers to `seq_id` alone, which the batch owns and nobody writes.
unsafe impl Send for Batch {}

/// Which tokens of a batch get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Every token.
    All,
    /// The last one.
    Last,
}

impl Batch {
    /// Refills the batch with `tokens` at `position`, `position + 1`, …
    pub(crate) fn fill(&mut self, tokens: &[Token], position: usize, logits: Logits) {
        let n = tokens.len();
        self.tokens.clear();
        self.tokens.extend(tokens.iter().map(|token| token.0));
        self.positions.clear();
        // A context holds fewer than 2^31 positions (`Context::decode` checks), so the cast keeps the value.
        self.positions.extend((position..position + n).map(|p| p as sys::llama_pos));
        self.n_seq_ids.clear();
        self.n_seq_ids.resize(n, 1);
        self.seq_ids.clear();
        self.seq_ids.resize(n, &mut *self.seq_id);
        self.outputs.clear();
        self.outputs.resize(n, i8::from(logits == Logits::All));
        if let Some(last) = self.outputs.last_mut() {
            *last = 1;
        }
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

    #[test]
    fn positions_follow_and_only_the_last_token_has_logits() {
        let mut batch = Batch::default();
        batch.fill(&[Token(5), Token(6), Token(7)], 10, Logits::Last);
        assert_eq!(batch.positions, [10, 11, 12]);
        assert_eq!(batch.outputs, [0, 0, 1]);
        batch.fill(&[Token(5), Token(6)], 0, Logits::All);
        assert_eq!(batch.outputs, [1, 1]);
        assert_eq!(batch.raw().n_tokens, 2);
    }
}
