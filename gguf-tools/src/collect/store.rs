//! Collected tokens on disk: written in one pass, read in pieces, and gone on with after an interruption.
//!
//! ```text
//! manifest.json      the model, the layers, the seed, the counts
//! sequences.jsonl    one line a sequence: its number, its prompt's length, its tokens; written last
//! labels.bin         one label a token
//! layer-<il>.f16     hidden states after block il, [n_embd] a token
//! result_norm.f16    hidden states after the final norm, [n_embd] a token
//! ```
//!
//! All numbers are little-endian. A sequence counts once its line is there; what lies beyond the last line is cut off
//! when the store is opened again. It refuses a store of another model, other layers or another seed, files that are
//! shorter than their sequences, and hidden states that half precision cannot hold.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use offramp::gate::Tap;
use serde::{Deserialize, Serialize};

use super::label::Label;

const MANIFEST: &str = "manifest.json";
const SEQUENCES: &str = "sequences.jsonl";
const LABELS: &str = "labels.bin";

/// What a store is of. Two stores with equal settings hold equal bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this layout.
    pub version: u32,
    /// The model's name.
    pub model: String,
    /// The SHA-256 of its tensors.
    pub sha256: String,
    /// The length of a hidden state.
    pub n_embd: u32,
    /// The size of the vocabulary.
    pub n_vocab: u32,
    /// The blocks after which hidden states are kept, ascending.
    pub layers: Vec<u32>,
    /// Where the prompts come from.
    pub prompts: String,
    /// The most tokens of an answer.
    pub answer: usize,
    /// The seed.
    pub seed: u64,
    /// This program and its llama.cpp.
    pub engine: String,
    /// How much logits differ between batch widths, as measured when the store was begun: the scale of a near-tie.
    pub width_difference: f32,
}

impl Manifest {
    /// The present layout.
    pub const VERSION: u32 = 1;

    /// The bytes that each token takes on disk.
    pub fn bytes_per_token(&self) -> u64 {
        (self.layers.len() as u64 + 1) * u64::from(self.n_embd) * 2 + Label::BYTES as u64
    }
}

/// One collected sequence, without the number of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its number.
    pub index: u64,
    /// The tokens of its prompt.
    pub n_prompt: u32,
    /// Whether the answer is greedy.
    pub is_greedy: bool,
}

#[derive(Serialize, Deserialize)]
struct Line {
    index: u64,
    prompt: u32,
    greedy: bool,
    tokens: u64,
}

/// A store that is written to.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    manifest: Manifest,
    labels: BufWriter<File>,
    /// One for each layer, then that of the final norm.
    hidden: Vec<BufWriter<File>>,
    sequences: File,
    n_tokens: u64,
    n_pending: u64,
    n_sequences: u64,
    next_index: u64,
}

impl Store {
    /// Starts a store in `folder`, or goes on with the one that is there where `resume` is set.
    ///
    /// # Errors
    ///
    /// A store that is there already, that belongs to other settings, or that is damaged; a disk with less than
    /// `tokens` need.
    pub fn open(folder: &Path, mut manifest: Manifest, tokens: u64, resume: bool) -> anyhow::Result<Store> {
        let present = folder.join(MANIFEST);
        let kept = if present.exists() {
            ensure!(resume, "{} holds collected tokens already: go on with --resume", folder.display());
            let found = read_manifest(folder)?;
            if let Some((what, expected, found)) = first_difference(&manifest, &found) {
                bail!("{} was collected with {what} {found}, not {expected}: give another folder", folder.display());
            }
            manifest.width_difference = found.width_difference;
            read_sequences(folder)?
        } else {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            Vec::new()
        };
        let n_tokens: u64 = kept.iter().map(|line| line.tokens).sum();
        ensure_room(folder, tokens.saturating_sub(n_tokens).saturating_mul(manifest.bytes_per_token()))?;
        let open = |name: &str, bytes: u64| -> anyhow::Result<File> {
            let path = folder.join(name);
            let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            let found = file.metadata()?.len();
            ensure!(found >= bytes, "{} holds {found} bytes of {bytes}: collect again", path.display());
            file.set_len(bytes)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let labels = BufWriter::new(open(LABELS, n_tokens * Label::BYTES as u64)?);
        let row = u64::from(manifest.n_embd) * 2;
        let mut hidden = Vec::new();
        for name in taps_of(&manifest).into_iter().map(file_name) {
            hidden.push(BufWriter::new(open(&name, n_tokens * row)?));
        }
        // The lines that count, rewritten: a torn last line must not run into the next.
        let mut text = String::new();
        for line in &kept {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        let mut sequences = open(SEQUENCES, 0)?;
        sequences.write_all(text.as_bytes())?;
        fs::write(&present, serde_json::to_string_pretty(&manifest)? + "\n")?;
        Ok(Store {
            folder: folder.to_path_buf(),
            manifest,
            labels,
            hidden,
            sequences,
            n_tokens,
            n_pending: 0,
            n_sequences: kept.len() as u64,
            next_index: kept.last().map_or(0, |line| line.index + 1),
        })
    }

    /// The tokens of whole sequences.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The number of whole sequences.
    pub fn n_sequences(&self) -> u64 {
        self.n_sequences
    }

    /// The number of the sequence to collect next.
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// Where hidden states are kept, lowest first.
    pub fn taps(&self) -> Vec<Tap> {
        taps_of(&self.manifest)
    }

    /// Leaves a sequence out that turned out empty.
    pub fn skip(&mut self, index: u64) {
        self.next_index = index + 1;
    }

    /// Adds a token: its label and its hidden states at each tap, `[n_embd]`.
    ///
    /// # Errors
    ///
    /// Hidden states of another length or that are no half-precision numbers; what the disk says.
    pub fn push(&mut self, label: &Label, hidden: &[Vec<f32>]) -> anyhow::Result<()> {
        let n_embd = self.manifest.n_embd as usize;
        let mut row = vec![f16::ZERO; n_embd];
        let mut bytes = Vec::with_capacity(2 * n_embd);
        for (file, values) in self.hidden.iter_mut().zip(hidden) {
            ensure!(values.len() == n_embd, "a hidden state of {} values, not {n_embd}", values.len());
            row.convert_from_f32_slice(values);
            let is_finite = row.iter().all(|value| value.is_finite());
            ensure!(is_finite, "a hidden state does not fit into half precision");
            bytes.clear();
            bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
            file.write_all(&bytes)?;
        }
        self.labels.write_all(&label.to_bytes())?;
        self.n_pending += 1;
        Ok(())
    }

    /// Makes the tokens pushed since the last sequence one sequence; nothing where there are none.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub fn commit(&mut self, sequence: &Sequence) -> anyhow::Result<()> {
        self.next_index = sequence.index + 1;
        if self.n_pending == 0 {
            return Ok(());
        }
        for file in self.hidden.iter_mut().chain([&mut self.labels]) {
            file.flush().with_context(|| format!("writing to {}", self.folder.display()))?;
        }
        let line = Line {
            index: sequence.index,
            prompt: sequence.n_prompt,
            greedy: sequence.is_greedy,
            tokens: self.n_pending,
        };
        self.sequences.write_all((serde_json::to_string(&line)? + "\n").as_bytes())?;
        self.n_tokens += self.n_pending;
        self.n_pending = 0;
        self.n_sequences += 1;
        Ok(())
    }
}

/// A store that is read.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    manifest: Manifest,
    /// The tokens of each sequence.
    sequences: Vec<Range<u64>>,
}

impl Reader {
    /// Opens the store in `folder`.
    ///
    /// # Errors
    ///
    /// A folder that holds none, or files that are shorter than their sequences.
    pub fn open(folder: &Path) -> anyhow::Result<Reader> {
        let manifest = read_manifest(folder)?;
        let mut sequences = Vec::new();
        let mut end = 0u64;
        for line in read_sequences(folder)? {
            let start = end;
            end = end.checked_add(line.tokens).context("sequences.jsonl: more tokens than can be counted")?;
            sequences.push(start..end);
        }
        let row = u64::from(manifest.n_embd) * 2;
        let files = taps_of(&manifest).into_iter().map(|tap| (file_name(tap), row));
        for (name, row) in files.chain([(LABELS.to_string(), Label::BYTES as u64)]) {
            let path = folder.join(name);
            let found = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
            let needed = end.saturating_mul(row);
            ensure!(found >= needed, "{} holds {found} bytes of {needed}: collect again", path.display());
        }
        Ok(Reader { folder: folder.to_path_buf(), manifest, sequences })
    }

    /// What the store is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokens of each sequence, in order.
    pub fn sequences(&self) -> &[Range<u64>] {
        &self.sequences
    }

    /// The tokens of all sequences.
    pub fn n_tokens(&self) -> u64 {
        self.sequences.last().map_or(0, |tokens| tokens.end)
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
    /// What the disk says.
    pub fn hidden(&self, tap: Tap, tokens: Range<u64>) -> anyhow::Result<Vec<f32>> {
        let bytes = self.read(&file_name(tap), &tokens, u64::from(self.manifest.n_embd) * 2)?;
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

fn taps_of(manifest: &Manifest) -> Vec<Tap> {
    manifest.layers.iter().map(|il| Tap::Layer(*il)).chain([Tap::ResultNorm]).collect()
}

fn file_name(tap: Tap) -> String {
    match tap {
        Tap::Layer(il) => format!("layer-{il}.f16"),
        Tap::ResultNorm => "result_norm.f16".to_string(),
    }
}

fn read_manifest(folder: &Path) -> anyhow::Result<Manifest> {
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let manifest: Manifest =
        serde_json::from_str(&text).with_context(|| format!("{} is no manifest", path.display()))?;
    let (expected, found) = (Manifest::VERSION, manifest.version);
    ensure!(found == expected, "{} has version {found}, not {expected}: collect again", path.display());
    Ok(manifest)
}

/// The lines of whole sequences; a torn last one is left out.
fn read_sequences(folder: &Path) -> anyhow::Result<Vec<Line>> {
    let path = folder.join(SEQUENCES);
    let mut text = String::new();
    if path.exists() {
        BufReader::new(File::open(&path)?).read_to_string(&mut text)?;
    }
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines: Vec<Line> = Vec::new();
    for (i, text) in whole.lines().enumerate() {
        let line: Line = serde_json::from_str(text).with_context(|| format!("{}, line {}", path.display(), i + 1))?;
        let follows = lines.last().is_none_or(|last| last.index < line.index);
        ensure!(follows && line.tokens > 0, "{}, line {}: out of order", path.display(), i + 1);
        lines.push(line);
    }
    Ok(lines)
}

/// The first setting in which two manifests differ: its name, what was wanted, what was found.
fn first_difference(wanted: &Manifest, found: &Manifest) -> Option<(String, String, String)> {
    let (wanted, found) = (serde_json::to_value(wanted).ok()?, serde_json::to_value(found).ok()?);
    let fields = wanted.as_object()?;
    // What was measured is no setting, and may differ a little on another machine.
    let mut settings = fields.iter().filter(|(name, _)| *name != "width_difference");
    let (name, value) = settings.find(|(name, value)| found.get(name) != Some(value))?;
    Some((name.clone(), value.to_string(), found.get(name).map_or("none".into(), ToString::to_string)))
}

#[cfg(unix)]
fn ensure_room(folder: &Path, needed: u64) -> anyhow::Result<()> {
    let disk = rustix::fs::statvfs(folder).with_context(|| format!("looking at the disk of {}", folder.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // A twentieth stays free: a full disk harms more than this program.
    let usable = free - free / 20;
    ensure!(
        needed <= usable,
        "{} needs {} MiB more and has {} MiB: collect fewer tokens or layers, or give another folder",
        folder.display(),
        needed >> 20,
        usable >> 20
    );
    Ok(())
}

#[cfg(not(unix))]
fn ensure_room(_: &Path, _: u64) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
