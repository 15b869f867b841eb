//! Exit heads at run time: read and checked once, then evaluated on the session's own threads.
//!
//! Heads lie around their model in a merged file, or in a sidecar of their own; either way nothing of them is read into
//! memory before a session uses them. What is evaluated here is the screen: the output matrix in two small factors,
//! which choose a few hundred candidates, and the model's own rows, which give those their exact logits. It refuses
//! heads of another model, and models whose output is more than a matrix and a soft cap.

mod ggml;
pub(crate) mod kv;
mod output;
mod screen;
mod select;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::gguf;
use crate::gguf::exits::{self, BaseCheck, ExitHeads, ExitMeta};
use output::OutputMatrix;
pub(crate) use screen::Screen;
use screen::ScreenWeights;

/// The heads of one model.
pub(crate) struct Heads {
    /// The file that the heads' tensors lie in: the sidecar, or the merged file.
    file: gguf::File,
    model: gguf::File,
    meta: ExitMeta,
    screen: OnceLock<Arc<ScreenWeights>>,
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
        Ok(Some(Self { file: heads, model, meta, screen: OnceLock::new() }))
    }

    /// What the file says about its heads.
    pub(crate) fn meta(&self) -> &ExitMeta {
        &self.meta
    }

    /// The confidence that a screened token must reach for the wanted agreement. `None` if the screen was not
    /// calibrated, or never exits at that level.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] if the file has no level that high.
    pub(crate) fn screen_threshold(&self, agreement: f32) -> Result<Option<f32>> {
        if self.meta.screen.rank == 0 || self.meta.calibration.is_none() {
            return Ok(None);
        }
        let level = self.meta.level(agreement).ok_or_else(|| Error::InvalidValue {
            name: "agreement",
            found: agreement.to_string(),
            expected: "at most the highest level that the heads were calibrated for (see offramp inspect)",
        })?;
        Ok(self.meta.screen.thresholds.get(level).copied().filter(|threshold| threshold.is_finite()))
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

    /// The raw rows of the model's output matrix, one a token.
    pub(crate) fn output_rows(&self) -> Result<&[u8]> {
        let info =
            self.model.tensor(OutputMatrix::name(&self.model)).ok_or_else(|| ggml::failed("no output matrix"))?;
        Ok(self.model.data(info))
    }
}
