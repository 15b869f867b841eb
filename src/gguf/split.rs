//! A model into parts, and parts into one file: what `gguf-tools split` and `merge` do.
//!
//! The parts are those of llama.cpp's `llama-gguf-split` for the same limits: the first has all keys, tensors keep their
//! order, and `split.no`, `split.count` and `split.tensors.count` end the keys of each. Joining them gives the file that was
//! split, byte for byte, where that file was as this crate writes files: version 3, no `split.*` keys, nothing behind its data.
//!
//! Refuses merged files with heads, whose second header does not survive, models without tensors, and more than
//! [`MAX_PARTS`] parts. The parts of a model appear together: after an error none of the new ones is left.

use std::path::{Path, PathBuf};

use super::atomic::Progress;
use super::error::{Error, Result};
use super::exits::BASE_HEADER;
use super::reader::{DEFAULT_ALIGNMENT, File, MAX_PARTS, PartName, is_split_key, pad};
use super::writer::{WriteOptions, Writer, refuse_same_file};

/// The most tensors of a part where nothing is said, as in llama.cpp.
pub const DEFAULT_SPLIT_TENSORS: u64 = 128;

/// Where a model is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitLimit {
    /// After this many tensors.
    Tensors(u64),
    /// Before a part's tensors take more bytes than this; a larger tensor is a part by itself.
    Bytes(u64),
}

/// How a model is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SplitOptions {
    /// Where it is cut.
    pub limit: SplitLimit,
    /// Whether the first part has tensors, beside the keys.
    pub tensors_in_first: bool,
}

impl Default for SplitOptions {
    fn default() -> SplitOptions {
        SplitOptions { limit: SplitLimit::Tensors(DEFAULT_SPLIT_TENSORS), tensors_in_first: true }
    }
}

/// The parts of a model in the making.
pub struct Split {
    parts: Vec<Writer>,
    inputs: Vec<PathBuf>,
}

impl Split {
    /// Plans the parts of `model`, which may be split already.
    ///
    /// # Errors
    ///
    /// [`Error::WrongForm`] for a merged file with heads or one without tensors, and for limits of nothing or with more than
    /// [`MAX_PARTS`] parts.
    pub fn of(model: &File, options: &SplitOptions) -> Result<Split> {
        let wrong = |defect| Err(Error::WrongForm { path: model.path().to_path_buf(), defect });
        if model.tensor(BASE_HEADER).is_some() {
            return wrong(
                "the file has exit heads around its model, which parts cannot have: take them out with extract-heads, split \
                 what strip-heads gives, and keep the heads beside it",
            );
        }
        if model.tensors().is_empty() {
            return wrong("the file holds no tensors, so that there is nothing to split");
        }
        if matches!(options.limit, SplitLimit::Tensors(0) | SplitLimit::Bytes(0)) {
            return wrong("a part cannot be smaller than one tensor; give a limit above 0");
        }
        let groups = groups(model, options);
        if groups.len() as u64 > MAX_PARTS {
            return wrong("more than 512 parts would come of it; give a larger limit");
        }
        let mut parts = Vec::with_capacity(groups.len());
        for (no, tensors) in groups.iter().enumerate() {
            let mut part = Writer::new();
            if no == 0 {
                part.copy_keys(model, |key| !is_split_key(key))?;
            }
            // Both counts are bounded above, far below these types' limits.
            part.key("split.no", no as u16)?;
            part.key("split.count", groups.len() as u16)?;
            part.key("split.tensors.count", model.tensors().len() as i32)?;
            for tensor in &model.tensors()[tensors.clone()] {
                part.copy_tensor(model, tensor)?;
            }
            parts.push(part);
        }
        Ok(Split { parts, inputs: model.paths().map(Path::to_path_buf).collect() })
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Writer] {
        &self.parts
    }

    /// Where the parts are written: `PREFIX-00001-of-0000N.gguf` and so on.
    pub fn paths(&self, prefix: &Path) -> Vec<PathBuf> {
        let count = self.parts.len() as u64;
        let path = |no| {
            let mut path = prefix.as_os_str().to_os_string();
            path.push(PartName::of("", no, count));
            PathBuf::from(path)
        };
        (1..=count).map(path).collect()
    }

    /// Writes all parts, then gives them their names, the first part last: no loader takes the others without it.
    ///
    /// # Errors
    ///
    /// As [`Writer::write`]; none of the parts is then left that was not there before.
    pub fn write(&self, prefix: &Path, options: WriteOptions, progress: &mut Progress<'_>) -> Result<Vec<PathBuf>> {
        let paths = self.paths(prefix);
        for path in &paths {
            self.inputs.iter().try_for_each(|input| refuse_same_file(input, path))?;
            if !options.replace && path.symlink_metadata().is_ok() {
                return Err(Error::OutputExists { path: path.clone() });
            }
        }
        let total = self.parts.iter().map(Writer::size).sum();
        let (mut before, mut staged) = (0, Vec::with_capacity(self.parts.len()));
        for (part, path) in self.parts.iter().zip(&paths) {
            staged.push(part.stage(path, options, &mut |done, _| progress(before + done, total))?);
            before += part.size();
        }
        let mut placed = Vec::new();
        for (file, path) in staged.into_iter().zip(&paths).rev() {
            let is_new = path.symlink_metadata().is_err();
            if let Err(error) = file.commit() {
                for path in placed {
                    // The error that brought us here matters more than this one.
                    let _ = std::fs::remove_file(path);
                }
                return Err(error);
            }
            placed.extend(is_new.then_some(path));
        }
        Ok(paths)
    }
}

/// The tensors of each part, as ranges of the model's.
fn groups(model: &File, options: &SplitOptions) -> Vec<std::ops::Range<usize>> {
    let mut groups: Vec<_> = std::iter::repeat_n(0..0, usize::from(!options.tensors_in_first)).collect();
    let (mut start, mut bytes) = (0, 0u64);
    for (index, tensor) in model.tensors().iter().enumerate() {
        // Sizes are those of the data alone, aligned as in any file that says nothing else.
        let size = pad(tensor.bytes(), DEFAULT_ALIGNMENT).unwrap_or(u64::MAX);
        let next = bytes.saturating_add(size);
        let is_full = match options.limit {
            SplitLimit::Tensors(limit) => (index - start) as u64 >= limit,
            SplitLimit::Bytes(limit) => next > limit,
        };
        if is_full && index > start {
            groups.push(start..index);
            (start, bytes) = (index, size);
        } else {
            bytes = next;
        }
    }
    groups.push(start..model.tensors().len());
    groups
}

/// Joins the parts of a split model, opened with [`File::open_model`].
///
/// # Errors
///
/// [`Error::WrongForm`] for a file that is whole.
pub fn merge(model: &File) -> Result<Writer> {
    if model.paths().len() == 1 {
        let defect = "the file is no part of a split model, so that there is nothing to merge";
        return Err(Error::WrongForm { path: model.path().to_path_buf(), defect });
    }
    let mut whole = Writer::new();
    whole.copy_keys(model, |_| true)?;
    for tensor in model.tensors() {
        whole.copy_tensor(model, tensor)?;
    }
    Ok(whole)
}
