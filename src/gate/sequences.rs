//! Several texts side by side in one context, for programs that generate many of them at once.
//!
//! Each sequence has K/V cells of its own, and a step decodes one token of each: the weights are read once for all of
//! them. llama.cpp takes such a batch as one graph only if the sequences in it have consecutive ids
//! (`llama_batch_allocr::split_equal`), so that a step always has one row a sequence, those without a token included.
//! The width is thus the same at every step, and with it the kernels' rounding: what a row gives does not depend on
//! what the other rows hold.
//!
//! It shows hidden states, K and V as a [`Gate`](super::Gate) does, but stops nowhere. It refuses rows without a token
//! in sequences that could not forget them.

use super::hook::{Hook, Rest};
use super::kv::{KvLayout, learn_layout};
use super::{Seen, Tap, Watcher};
use crate::error::{Error, Result};
use crate::llama::Token;
use crate::llama::batch::{Logits, Places};
use crate::llama::context::Context;

/// Texts side by side, numbered from 0.
#[derive(Debug)]
pub struct Sequences {
    context: Context,
    n_layer: u32,
    n_swa: usize,
    /// The next position of each sequence.
    positions: Vec<usize>,
    /// The tokens of one step, kept to spare an allocation.
    row: Vec<Token>,
    kv_layout: KvLayout,
}

impl Sequences {
    /// In an empty context that was made with an eval callback, and with a row of `n_ubatch` for each sequence.
    ///
    /// # Errors
    /// As llama.cpp's decode.
    pub(crate) fn new(mut context: Context, n_layer: u32, n_swa: u32) -> Result<Self> {
        let kv_layout = learn_layout(&mut context, n_layer)?;
        context.clear();
        let (n_swa, positions) = (n_swa as usize, vec![0; context.n_sequences()]);
        Ok(Self { context, n_layer, n_swa, positions, row: Vec::new(), kv_layout })
    }

    /// How many there are: the width of a step.
    pub fn n_sequences(&self) -> usize {
        self.positions.len()
    }

    /// How many values of K and V each layer stores, and which layers are not understood.
    pub fn kv_layout(&self) -> &KvLayout {
        &self.kv_layout
    }

    /// Positions that the context holds of each.
    pub fn n_ctx(&self) -> usize {
        self.context.n_ctx()
    }

    /// Positions that the cache holds of `sequence`, the next token's position; 0 for one that does not exist.
    pub fn position(&self, sequence: usize) -> usize {
        self.positions.get(sequence).copied().unwrap_or(0)
    }

    /// Decodes `tokens` of one sequence, at most `n_ubatch` at a time. Their logits are not kept for [`Sequences::logits`]:
    /// leave the last token of a prompt to [`Sequences::step`].
    ///
    /// # Errors
    /// As llama.cpp's decode; then the sequence is as it was before.
    pub fn extend(&mut self, sequence: usize, tokens: &[Token]) -> Result<()> {
        let start = self.position(sequence);
        for part in tokens.chunks(self.context.n_ubatch()) {
            let position = self.position(sequence);
            match self.context.decode_at(part, Places::From { sequence, position }, Logits::Last) {
                Ok(()) => self.positions[sequence] += part.len(),
                Err(error) => {
                    self.truncate(sequence, start);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Decodes one token of each sequence and shows the hidden states at each of `taps` and K and V of each layer in
    /// `kv_layers`, both lowest first: one row a sequence, in their order, those without a token included. A sequence
    /// without a token is afterwards as it was; where the model's memory cannot forget one token it must be empty.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for another number of tokens than there are sequences, or for taps or layers out of order;
    /// [`Error::Unsupported`] for a layer whose K and V are not understood; [`Error::Gate`] if the graph lacks something;
    /// and as llama.cpp's decode. The tokens are then not in the cache.
    pub fn step(
        &mut self,
        tokens: &[Option<Token>],
        taps: &[Tap],
        kv_layers: &[u32],
        watcher: &mut Watcher<'_>,
    ) -> Result<()> {
        self.check(tokens, taps, kv_layers)?;
        self.row.clear();
        // Any token serves for a row whose result nobody reads.
        self.row.extend(tokens.iter().map(|token| token.unwrap_or(Token(0))));
        let mut sink = |seen: Seen, values: &[f32]| {
            watcher(seen, values);
            Rest::All
        };
        let mut hook = Hook::new(taps, None, &mut sink);
        if !kv_layers.is_empty() {
            hook = hook.with_kv(&self.kv_layout, kv_layers);
        }
        let places = Places::Each(&self.positions);
        let decoded = self.context.decode_hooked_at(&self.row, places, Logits::All, &mut hook);
        let result = decoded.and_then(|()| match hook.error.take().or_else(|| hook.missing()) {
            Some(error) => Err(Error::Gate { found: error.to_string() }),
            None => Ok(()),
        });
        for (sequence, token) in tokens.iter().enumerate() {
            if result.is_ok() && token.is_some() {
                self.positions[sequence] += 1;
            } else if !self.context.remove_from_sequence(sequence, self.positions[sequence]) {
                return result.and(Err(Error::Gate { found: "a memory that cannot forget its last token".to_owned() }));
            }
        }
        result
    }

    /// The logits of `sequence` after the last step, `[n_vocab]`. `None` if the last decode was no step.
    pub fn logits(&mut self, sequence: usize) -> Option<&[f32]> {
        self.context.logits(sequence)
    }

    /// Drops the positions of `sequence` from `position` on. False if the model's memory cannot forget them alone, or
    /// if it has already forgotten what a sliding window would need there; the sequence is then empty.
    pub fn truncate(&mut self, sequence: usize, position: usize) -> bool {
        if position >= self.position(sequence) {
            return true;
        }
        let needed = if self.n_swa == 0 { 0 } else { position.saturating_sub(self.n_swa) };
        let is_there = self.context.first_position_of(sequence).is_none_or(|first| first <= needed);
        if (position == 0 || is_there) && self.context.remove_from_sequence(sequence, position) {
            self.positions[sequence] = position;
            return true;
        }
        // The whole of a sequence can be forgotten by every memory.
        self.context.remove_from_sequence(sequence, 0);
        self.positions[sequence] = 0;
        false
    }

    fn check(&self, tokens: &[Option<Token>], taps: &[Tap], kv_layers: &[u32]) -> Result<()> {
        if tokens.len() != self.positions.len() {
            return Err(Error::InvalidValue {
                name: "tokens of a step",
                found: tokens.len().to_string(),
                expected: "one a sequence, or none in its place",
            });
        }
        let ordered = taps.is_sorted_by(|a, b| a < b) && kv_layers.is_sorted_by(|a, b| a < b);
        let exist = taps.iter().all(|&tap| tap < Tap::Layer(self.n_layer) || tap == Tap::ResultNorm);
        if !ordered || !exist {
            return Err(Error::InvalidValue {
                name: "taps and K/V layers",
                found: format!("{taps:?}, {kv_layers:?}"),
                expected: "existing blocks in ascending order, each once",
            });
        }
        kv_layers.iter().try_for_each(|&layer| self.kv_layout.shape(layer).map(drop))
    }
}
