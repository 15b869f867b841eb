//! A store that is read, in pieces of any length.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use half::f16;
use offramp::gate::Tap;

use super::super::label::Label;
use super::{LABELS, Manifest, Series, read_manifest, read_sequences, sequences};

/// A store that is read.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    manifest: Manifest,
    turns: Vec<Range<u64>>,
    answers: Vec<Range<u64>>,
}

impl Reader {
    /// Opens the store in `folder`.
    ///
    /// # Errors
    ///
    /// A folder that holds none, or files that are shorter than their sequences.
    pub fn open(folder: &Path) -> anyhow::Result<Reader> {
        let manifest = read_manifest(folder)?;
        let (mut answers, mut turns) = (Vec::new(), Vec::new());
        let mut end = 0u64;
        for line in read_sequences(folder)? {
            let answer = end + line.turn;
            turns.push(end..answer);
            end = answer + line.tokens;
            answers.push(answer..end);
        }
        let series = manifest.series().into_iter().map(|(series, width)| (series.file_name(), width as u64 * 2));
        for (name, row) in series.chain([(LABELS.to_string(), Label::BYTES as u64)]) {
            let path = folder.join(name);
            let found = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
            let needed = end.saturating_mul(row);
            ensure!(found >= needed, "{} holds {found} bytes of {needed}: collect again", path.display());
        }
        Ok(Reader { folder: folder.to_path_buf(), manifest, turns, answers })
    }

    /// What the store is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokens of each answer, in order.
    pub fn answers(&self) -> &[Range<u64>] {
        &self.answers
    }

    /// The tokens of the user's turn before each answer; none where the model did not write it.
    pub fn turns(&self) -> &[Range<u64>] {
        &self.turns
    }

    /// The tokens of all answers.
    pub fn n_tokens(&self) -> u64 {
        sequences::count(&self.answers)
    }

    /// The labels of `tokens`.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub fn labels(&self, tokens: Range<u64>) -> anyhow::Result<Vec<Label>> {
        let bytes = self.read(LABELS, &tokens, Label::BYTES as u64)?;
        let labels: Vec<Label> = bytes.as_chunks::<{ Label::BYTES }>().0.iter().map(Label::from_bytes).collect();
        let n_vocab = self.manifest.n_vocab;
        let is_known = |label: &Label| label.token < n_vocab && label.top.iter().all(|(id, _)| *id < n_vocab);
        ensure!(labels.iter().all(is_known), "{LABELS} names tokens that the model does not have: collect again");
        Ok(labels)
    }

    /// The hidden states of `tokens` at `tap`, `[n_embd, n_tokens]`.
    ///
    /// # Errors
    ///
    /// Hidden states that were not collected; what the disk says.
    pub fn hidden(&self, tap: Tap, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        self.values(Series::Hidden(tap), tokens)
    }

    /// K of block `layer` for `tokens`, before rope and after any norm of K, `[n_embd_k_gqa, n_tokens]`.
    ///
    /// # Errors
    ///
    /// A layer whose K was not collected; what the disk says.
    pub fn k(&self, layer: u32, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        self.values(Series::K(layer), tokens)
    }

    /// V of block `layer` for `tokens`, as it is cached, `[n_embd_v_gqa, n_tokens]`.
    ///
    /// # Errors
    ///
    /// As [`Reader::k`].
    pub fn v(&self, layer: u32, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        self.values(Series::V(layer), tokens)
    }

    fn values(&self, series: Series, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        let (_, width) = self.manifest.series().into_iter().find(|(other, _)| *other == series).with_context(|| {
            format!("{} has no {}: collect with this layer", self.folder.display(), series.file_name())
        })?;
        let bytes = self.read(&series.file_name(), &tokens, width as u64 * 2)?;
        Ok(bytes.as_chunks::<2>().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect())
    }

    fn read(&self, name: &str, tokens: &Range<u64>, row: u64) -> anyhow::Result<Vec<u8>> {
        let path = self.folder.join(name);
        let mut file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
        file.seek(SeekFrom::Start(tokens.start * row))?;
        let mut bytes = vec![0; usize::try_from((tokens.end - tokens.start) * row)?];
        file.read_exact(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
        Ok(bytes)
    }
}
