//! Reading K and V: what a decode computes of them, and what the cache holds.
//!
//! Where they lie in this context's graphs is learnt by one decode in an empty cache. It refuses layers whose K and V it does
//! not recognise.

use std::ops::ControlFlow;

use super::{Gate, run};
use crate::error::{Error, Result};
use crate::gate::hook::{Hook, Rest};
use crate::gate::kv::{KvLayout, LayerKv, learn_layout};
use crate::gate::{Seen, Tap, Watcher};
use crate::llama::Token;
use crate::llama::batch::Logits;

impl Gate {
    /// Where this context's graphs compute K and V, and how they store them. The first call learns it: it decodes one
    /// token in the empty cache and forgets it again.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] if the first call finds tokens in the cache; as llama.cpp's decode.
    pub fn kv_layout(&mut self) -> Result<&KvLayout> {
        if self.kv_layout.is_none() {
            if self.position > 0 {
                return Err(Error::InvalidValue {
                    name: "position",
                    found: self.position.to_string(),
                    expected: "0: where K and V lie is learnt in an empty cache; clear it first",
                });
            }
            let layout = learn_layout(&mut self.context, self.n_layer);
            self.context.clear();
            self.kv_layout = Some(layout?);
        }
        self.kv_layout.as_ref().ok_or_else(no_layout)
    }

    /// The bytes that `cell` of the caches holds as K and V of a layer.
    ///
    /// # Errors
    /// As [`KvLayout::shape`], and [`Error::InvalidValue`] for a cell that does not exist.
    pub(crate) fn stored(&mut self, il: u32, cell: usize) -> Result<[Vec<u8>; 2]> {
        self.kv_layout()?;
        let layout = self.kv_layout.as_ref().ok_or_else(no_layout)?;
        let LayerKv { k, v, .. } = layout.layer(il)?;
        match (self.context.stored_bytes(k, cell), self.context.stored_bytes(v, cell)) {
            (Some(k), Some(v)) => Ok([k, v]),
            _ => Err(Error::InvalidValue { name: "cell", found: cell.to_string(), expected: "a cell of the cache" }),
        }
    }

    /// Runs `tokens` (at most `n_ubatch`) through all layers, after catching up on the pending ones, and shows their
    /// hidden states at each of `taps` and K and V of each layer in `kv_layers`, both lowest first. All of the tokens get
    /// logits.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for taps or layers that are out of order or do not exist; [`Error::Unsupported`] for a
    /// layer whose K and V this library does not recognise; as [`Gate::kv_layout`] and as llama.cpp's decode. The tokens
    /// are then not in the cache.
    pub fn decode_watched(
        &mut self,
        tokens: &[Token],
        taps: &[Tap],
        kv_layers: &[u32],
        watcher: &mut Watcher<'_>,
    ) -> Result<()> {
        self.check_taps(taps, None, None)?;
        if !kv_layers.is_empty() {
            let layout = self.kv_layout()?;
            if !kv_layers.is_sorted_by(|a, b| a < b) {
                return Err(Error::InvalidValue {
                    name: "K/V layers",
                    found: format!("{kv_layers:?}"),
                    expected: "layers in ascending order, each once",
                });
            }
            for &layer in kv_layers {
                layout.shape(layer)?;
            }
        }
        self.catch_up(&[], &mut |_, _| ControlFlow::Continue(()))?;
        let layout = self.kv_layout.take();
        let result = self.decoded(tokens.len(), |context, position| {
            let mut sink = |seen: Seen, values: &[f32]| {
                watcher(seen, values);
                Rest::All
            };
            let hook = Hook::new(taps, None, &mut sink);
            let hook = match &layout {
                Some(layout) if !kv_layers.is_empty() => hook.with_kv(layout, kv_layers),
                _ => hook,
            };
            run(context, tokens, position, Logits::All, hook)
        });
        self.kv_layout = layout;
        result.map(drop).map_err(Error::from)
    }
}

fn no_layout() -> Error {
    Error::Gate { found: "no K/V layout".to_owned() }
}
