//! Exit heads at run time: read and checked once, then evaluated on the session's own threads.
//!
//! Heads lie around their model in a merged file, or in a sidecar of their own; either way nothing of them is read into
//! memory before a session uses them. The screen is the output matrix in two small factors, which choose a few hundred
//! candidates, and the model's own rows, which give those their exact logits; an exit head maps the hidden state after a
//! block to where the screen can take it. It refuses heads of another model, and models whose output is more than a
//! matrix and a soft cap.

mod confidence;
mod draft;
mod ggml;
mod head;
pub(crate) mod kv;
mod output;
#[cfg(test)]
mod plain;
mod screen;
mod select;
#[cfg(test)]
mod written;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::gguf;
use crate::gguf::exits::{self, BaseCheck, ExitHeads, ExitMeta};
pub(crate) use draft::DraftHead;
use draft::DraftWeights;
pub(crate) use head::ExitHead;
use head::HeadWeights;
use kv::KvWeights;
use output::OutputMatrix;
use screen::ScreenWeights;
pub(crate) use screen::{Candidates, Screen, best};

/// The heads of one model.
pub(crate) struct Heads {
    /// The file that the heads' tensors lie in: the sidecar, or the merged file.
    file: gguf::File,
    model: gguf::File,
    meta: ExitMeta,
    screen: OnceLock<Arc<ScreenWeights>>,
    exit_screen: OnceLock<Option<Arc<ScreenWeights>>>,
    exits: OnceLock<Vec<Arc<HeadWeights>>>,
    kv_maps: OnceLock<Vec<Option<Arc<KvWeights>>>>,
    draft: OnceLock<Option<Arc<DraftWeights>>>,
}

/// The confidences that tokens must reach for one level of agreement. Infinite: never.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Thresholds {
    /// At the screen.
    pub(crate) screen: f32,
    /// At the final norm, where the tokens that exits choose among are scored alone; infinite where those are all.
    pub(crate) vocab: f32,
    /// At each exit, in the order of their layers.
    pub(crate) exits: Vec<f32>,
    /// What each exit's cheap gate must answer before the head is evaluated.
    pub(crate) gates: Vec<f32>,
}

impl std::fmt::Debug for Heads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heads").field("file", &self.file.path()).finish_non_exhaustive()
    }
}

impl Heads {
    /// The heads in `sidecar`, or those around the model in `file`; `None` if there are none.
    ///
    /// # Errors
    /// [`Error::Gguf`] for heads that are damaged or made for another model.
    pub(crate) fn open(file: gguf::File, sidecar: Option<&Path>) -> Result<Option<Self>> {
        let inner = exits::base(&file)?;
        let (heads, model) = match (sidecar, inner) {
            (Some(path), inner) => (gguf::File::open(path)?, inner.unwrap_or(file)),
            (None, Some(inner)) => (file, inner),
            (None, None) => return Ok(None),
        };
        let view = ExitHeads::open(&heads)?;
        view.check_base(&model, BaseCheck::Infos, &mut |_, _| true)?;
        let meta = view.meta().clone();
        Ok(Some(Self {
            file: heads,
            model,
            meta,
            screen: OnceLock::new(),
            exit_screen: OnceLock::new(),
            exits: OnceLock::new(),
            kv_maps: OnceLock::new(),
            draft: OnceLock::new(),
        }))
    }

    /// What the file says about its heads.
    pub(crate) fn meta(&self) -> &ExitMeta {
        &self.meta
    }

    /// The levels of agreement that the heads were calibrated for, ascending, each with whether it lets any token leave.
    pub(crate) fn levels(&self) -> Vec<(f32, bool)> {
        let agreements = self.meta.agreements.iter().filter(|_| self.meta.calibration.is_some());
        agreements.map(|&level| (level, matches!(self.thresholds(level), Ok(Some(_))))).collect()
    }

    /// The confidences that the wanted agreement asks for. `None` if the heads were not calibrated, or never let a token
    /// exit at that level.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] if the file has no level that high.
    pub(crate) fn thresholds(&self, agreement: f32) -> Result<Option<Thresholds>> {
        let meta = &self.meta;
        if meta.screen.rank == 0 || meta.calibration.is_none() {
            return Ok(None);
        }
        let level = meta.level(agreement).ok_or_else(|| Error::InvalidValue {
            name: "agreement",
            found: agreement.to_string(),
            expected: "at most the highest level that the heads were calibrated for (see offramp inspect)",
        })?;
        let n_exits = meta.layers.len();
        let row =
            |table: &[Vec<f32>], missing: f32| table.get(level).cloned().unwrap_or_else(|| vec![missing; n_exits]);
        let thresholds = Thresholds {
            screen: meta.screen.thresholds.get(level).copied().unwrap_or(f32::INFINITY),
            vocab: meta.vocab.as_ref().and_then(|vocab| vocab.thresholds.get(level).copied()).unwrap_or(f32::INFINITY),
            exits: row(&meta.thresholds, f32::INFINITY),
            gates: row(&meta.gate_thresholds, 0.0),
        };
        let exits = [thresholds.screen, thresholds.vocab]
            .iter()
            .chain(&thresholds.exits)
            .any(|threshold| threshold.is_finite());
        Ok(exits.then_some(thresholds))
    }

    /// The screen's weights, brought into the layout they are multiplied in at the first call.
    ///
    /// # Errors
    /// [`Error::Heads`], [`Error::Unsupported`].
    pub(crate) fn screen(self: &Arc<Self>) -> Result<Arc<ScreenWeights>> {
        if let Some(weights) = self.screen.get() {
            return Ok(Arc::clone(weights));
        }
        let output = OutputMatrix::of(&self.model)?;
        let view = ExitHeads::open(&self.file)?;
        let screen = view.screen().ok_or_else(|| ggml::failed("a file without a screen"))?;
        let weights = Arc::new(ScreenWeights::new(&screen, output, self.meta.screen.shortlist)?);
        Ok(Arc::clone(self.screen.get_or_init(|| weights)))
    }

    /// The weights of the screen of the tokens that exits choose among, laid out at the first call; `None` where those
    /// are all.
    ///
    /// # Errors
    /// As [`Heads::screen`].
    pub(crate) fn exit_screen(&self) -> Result<Option<Arc<ScreenWeights>>> {
        if let Some(weights) = self.exit_screen.get() {
            return Ok(weights.clone());
        }
        let view = ExitHeads::open(&self.file)?;
        let weights = match (&self.meta.vocab, view.vocab(), view.screen()) {
            (Some(vocab), Some(tokens), Some(screen)) => {
                let output = OutputMatrix::of(&self.model)?;
                Some(Arc::new(ScreenWeights::among(
                    &screen,
                    output,
                    vocab.shortlist,
                    (tokens, view.vocab_classifier()),
                )?))
            }
            _ => None,
        };
        Ok(self.exit_screen.get_or_init(|| weights).clone())
    }

    /// The exits' weights, by layer, brought into the layout they are multiplied in at the first call.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn exits(&self) -> Result<&[Arc<HeadWeights>]> {
        if let Some(exits) = self.exits.get() {
            return Ok(exits);
        }
        let view = ExitHeads::open(&self.file)?;
        let exits = view.heads().iter().map(|head| HeadWeights::new(head).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        Ok(self.exits.get_or_init(|| exits))
    }

    /// The K/V maps of each exit, `None` for one that has none; laid out at the first call.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn kv_maps(&self) -> Result<&[Option<Arc<KvWeights>>]> {
        if let Some(maps) = self.kv_maps.get() {
            return Ok(maps);
        }
        let view = ExitHeads::open(&self.file)?;
        let maps =
            view.heads().iter().map(|head| Ok(KvWeights::new(head)?.map(Arc::new))).collect::<Result<Vec<_>>>()?;
        Ok(self.kv_maps.get_or_init(|| maps))
    }

    /// The weights of the head that drafts, laid out at the first call; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn draft(&self) -> Result<Option<Arc<DraftWeights>>> {
        if let Some(weights) = self.draft.get() {
            return Ok(weights.clone());
        }
        let view = ExitHeads::open(&self.file)?;
        let weights = match (view.draft(), &self.meta.draft) {
            (Some(draft), Some(map)) => Some(Arc::new(DraftWeights::new(&draft, map.clone())?)),
            _ => None,
        };
        Ok(self.draft.get_or_init(|| weights).clone())
    }

    /// The raw rows of the model's output matrix, one a token.
    pub(crate) fn output_rows(&self) -> Result<&[u8]> {
        let info =
            self.model.tensor(OutputMatrix::name(&self.model)).ok_or_else(|| ggml::failed("no output matrix"))?;
        Ok(self.model.data(info))
    }
}
