//! The context's K/V memory: positions that are dropped or moved, and its state as bytes.
//!
//! A shift leaves K rotated for the old positions until the next decode; that decode cannot be cancelled.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::{Context, ContextParams, on_abort};
use crate::error::{LlamaLog, Result};
use crate::llama::batch::Logits;
use crate::llama::log;
use crate::llama::vocab::Token;

impl Context {
    /// Drops all positions of sequence 0 from `position` on. False if this cache cannot (a recurrent state, say).
    pub(crate) fn remove_from(&mut self, position: usize) -> bool {
        self.remove_from_sequence(0, position)
    }

    /// Drops all positions of `sequence` from `position` on. False if this cache cannot, or has no such sequence.
    pub(crate) fn remove_from_sequence(&mut self, sequence: usize, position: usize) -> bool {
        let Ok(position) = i32::try_from(position) else { return true };
        let Some(sequence) = self.sequence_id(sequence) else { return false };
        // SAFETY: a live context's memory, which has this sequence.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw.as_ptr()), sequence, position, -1) }
    }

    /// Drops `n` positions of sequence 0 from `from` on and moves the later ones down by as many. False if this cache
    /// cannot; then nothing has changed.
    pub(crate) fn shift(&mut self, from: usize, n: usize) -> bool {
        let (Ok(from), Ok(n)) = (i32::try_from(from), i32::try_from(n)) else { return false };
        let Some(end) = from.checked_add(n) else { return false };
        // SAFETY: a live context's memory, asked whether it can shift before it is told to; it aborts otherwise.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            if !sys::llama_memory_can_shift(memory) || !sys::llama_memory_seq_rm(memory, 0, from, end) {
                return false;
            }
            sys::llama_memory_seq_add(memory, 0, end, -1, -n);
        }
        self.await_rotation(true);
        true
    }

    /// llama.cpp's id of a sequence that the context has.
    fn sequence_id(&self, sequence: usize) -> Option<sys::llama_seq_id> {
        sys::llama_seq_id::try_from(sequence).ok().filter(|_| sequence < self.n_sequences)
    }

    /// True if a state would hold K of other positions than it says: after a shift, until the next decode.
    pub(crate) fn awaits_rotation(&self) -> bool {
        self.awaits_rotation
    }

    /// llama.cpp rotates K in a graph of its own before the decode that follows a shift, and forgets that it had begun where
    /// it is given up half way: the first layers would be rotated twice. Such a decode cannot be cancelled.
    pub(super) fn await_rotation(&mut self, awaits: bool) {
        if awaits == self.awaits_rotation {
            return;
        }
        self.awaits_rotation = awaits;
        let callback: sys::ggml_abort_callback = if awaits { None } else { Some(on_abort) };
        // SAFETY: a live context, and the flag that the `Arc` in this context keeps alive.
        unsafe {
            sys::llama_set_abort_callback(self.raw.as_ptr(), callback, Arc::as_ptr(&self.cancelled).cast_mut().cast());
        }
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        self.await_rotation(false);
        // SAFETY: a live context's memory. The cells' data need not be cleared: an empty cell is never read.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw.as_ptr()), false) };
    }

    /// ggml's type ids of the K and the V cache.
    pub(crate) fn cache_types(&self) -> (u32, u32) {
        (self.params.type_k, self.params.type_v)
    }

    /// The state of one token in a small context of its own: shows how llama.cpp lays out a cache of this kind.
    ///
    /// # Errors
    /// As [`Context::new`] and [`Context::decode`].
    pub(crate) fn sample_state(&self) -> Result<Vec<u8>> {
        let params = ContextParams {
            n_ctx: 256,
            n_batch: 32,
            n_ubatch: 32,
            n_threads: 1,
            n_threads_batch: 1,
            eval_callback: false,
            ..self.params.clone()
        };
        let mut sample = Self::new(Arc::clone(&self.model), self.n_vocab, &params, None)?;
        sample.decode(&[Token(0)], 0, Logits::Last)?;
        // A model whose state llama.cpp cannot give has no layout that anyone could check.
        Ok(sample.state().unwrap_or_default())
    }

    /// Everything in the cache, in llama.cpp's own format for sequence 0, or llama.cpp's reason why it gives none.
    pub(crate) fn state(&mut self) -> Result<Vec<u8>, LlamaLog> {
        let raw = self.raw.as_ptr();
        let ((bytes, written), log) = log::recorded(|| {
            // SAFETY: a live context; sequence 0 exists in every context.
            let mut bytes = vec![0; unsafe { sys::llama_state_seq_get_size(raw, 0) }];
            // SAFETY: as above, and a buffer of the length that is given.
            let written = unsafe { sys::llama_state_seq_get_data(raw, bytes.as_mut_ptr(), bytes.len(), 0) };
            (bytes, written)
        });
        if written == 0 || written != bytes.len() { Err(log) } else { Ok(bytes) }
    }

    /// Replaces the cache by a state that has been checked. After an error, which is llama.cpp's reason, the cache is in
    /// no certain state: clear it.
    pub(crate) fn restore(&mut self, state: &[u8]) -> Result<(), LlamaLog> {
        self.n_outputs = 0;
        let raw = self.raw.as_ptr();
        // SAFETY: a live context and a slice with its length. llama.cpp catches its own exceptions here, and answers 0.
        let (read, log) =
            log::recorded(|| unsafe { sys::llama_state_seq_set_data(raw, state.as_ptr(), state.len(), 0) });
        if read == state.len() { Ok(()) } else { Err(log) }
    }

    /// The lowest position of sequence 0 that every layer's cache still holds; `None` for an empty cache. Sliding windows
    /// forget.
    pub(crate) fn first_position(&self) -> Option<usize> {
        self.first_position_of(0)
    }

    /// The lowest position of `sequence` that every layer's cache still holds; `None` if it is empty.
    pub(crate) fn first_position_of(&self, sequence: usize) -> Option<usize> {
        let sequence = self.sequence_id(sequence)?;
        // SAFETY: a live context's memory, which has this sequence.
        let position = unsafe { sys::llama_memory_seq_pos_min(sys::llama_get_memory(self.raw.as_ptr()), sequence) };
        usize::try_from(position).ok()
    }
}
