//! Collected tokens on disk: written in one pass, read in pieces, and gone on with after an interruption.
//!
//! ```text
//! manifest.json      the model, the layers, the seed, the widths
//! sequences.jsonl    one line a sequence: its number, its prompt's length, the tokens of its turn and of its answer; written last
//! labels.bin         one label a token
//! layer-<il>.f16     hidden states after block il, [n_embd] a token
//! result_norm.f16    hidden states after the final norm, [n_embd] a token
//! k-<il>.f16         K of block il before rope and after any norm of K, [n_embd_k_gqa] a token
//! v-<il>.f16         V of block il as it is cached, [n_embd_v_gqa] a token
//! ```
//!
//! All numbers are little-endian. The rows of a sequence are those of the user's turn, where the model wrote it, then those of the
//! answer. A sequence counts once its line is there; what lies beyond the last line is cut off
//! when the store is opened again. It refuses a store of another model, other layers or another seed, files that are
//! shorter than their sequences, and values that half precision cannot hold.

mod reader;
pub mod sequences;
mod writer;

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, ensure};
use offramp::gate::{Seen, Tap};
use serde::{Deserialize, Serialize};

use super::label::Label;
pub use reader::Reader;
pub use writer::{Rows, Sequence, Store};

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
    /// The blocks whose K and V are kept, ascending; none where K/V maps are not wanted.
    pub kv: Vec<KvWidths>,
    /// Where the prompts come from.
    pub prompts: String,
    /// The most tokens of an answer.
    pub answer: usize,
    /// The seed.
    pub seed: u64,
    /// The tokens of each decode. Kernels of some quantizations round by it.
    pub batch_width: u32,
    /// This program and its llama.cpp.
    pub engine: String,
    /// How much logits differ between batch widths, as measured when the store was begun: the scale of a near-tie.
    pub width_difference: f32,
}

/// What one block caches of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvWidths {
    /// The block.
    pub layer: u32,
    /// Values of K, over all of its heads.
    pub k: u32,
    /// Values of V.
    pub v: u32,
}

/// One file of numbers, a row a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// Hidden states.
    Hidden(Tap),
    /// K of a block.
    K(u32),
    /// V of a block.
    V(u32),
}

impl Series {
    /// The one that what a decode shows belongs to.
    pub fn of(seen: Seen) -> Series {
        match seen {
            Seen::Hidden(tap) => Series::Hidden(tap),
            Seen::K(il) => Series::K(il),
            Seen::V(il) => Series::V(il),
        }
    }

    fn file_name(self) -> String {
        match self {
            Series::Hidden(Tap::Layer(il)) => format!("layer-{il}.f16"),
            Series::Hidden(Tap::ResultNorm) => "result_norm.f16".to_string(),
            Series::K(il) => format!("k-{il}.f16"),
            Series::V(il) => format!("v-{il}.f16"),
        }
    }
}

impl Manifest {
    /// The present layout.
    pub const VERSION: u32 = 3;

    /// Of a store without a model, for sequences that are not kept.
    pub(super) fn of_nothing() -> Manifest {
        Manifest {
            version: Manifest::VERSION,
            model: String::new(),
            sha256: String::new(),
            n_embd: 0,
            n_vocab: 0,
            layers: Vec::new(),
            kv: Vec::new(),
            prompts: String::new(),
            answer: 0,
            seed: 0,
            batch_width: 0,
            engine: String::new(),
            width_difference: 0.0,
        }
    }

    /// Where hidden states are kept, lowest first.
    pub fn taps(&self) -> Vec<Tap> {
        self.layers.iter().map(|il| Tap::Layer(*il)).chain([Tap::ResultNorm]).collect()
    }

    /// The files beside the labels, with the values that each holds of a token: hidden states, then K and V by layer.
    pub fn series(&self) -> Vec<(Series, usize)> {
        let hidden = self.taps().into_iter().map(|tap| (Series::Hidden(tap), self.n_embd as usize));
        let kv = self.kv.iter().flat_map(|widths| {
            [(Series::K(widths.layer), widths.k as usize), (Series::V(widths.layer), widths.v as usize)]
        });
        hidden.chain(kv).collect()
    }

    /// The bytes that each token takes on disk.
    pub fn bytes_per_token(&self) -> u64 {
        self.series().iter().map(|(_, width)| *width as u64 * 2).sum::<u64>() + Label::BYTES as u64
    }
}

/// A line of `sequences.jsonl`.
#[derive(Serialize, Deserialize)]
struct Line {
    index: u64,
    prompt: u32,
    greedy: bool,
    /// Tokens of the user's turn, which lie before the answer's.
    turn: u64,
    tokens: u64,
}

fn read_manifest(folder: &Path) -> anyhow::Result<Manifest> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let no_manifest = || format!("{} is no manifest", path.display());
    let (expected, found) =
        (Manifest::VERSION, serde_json::from_str::<Version>(&text).with_context(no_manifest)?.version);
    ensure!(found == expected, "{} has version {found}, not {expected}: collect again", path.display());
    serde_json::from_str(&text).with_context(no_manifest)
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
    let mut n_rows = 0u64;
    for (i, text) in whole.lines().enumerate() {
        let line: Line = serde_json::from_str(text).with_context(|| format!("{}, line {}", path.display(), i + 1))?;
        let follows = lines.last().is_none_or(|last| last.index < line.index);
        ensure!(follows && line.tokens > 0, "{}, line {}: out of order", path.display(), i + 1);
        let sum = n_rows.checked_add(line.turn).and_then(|sum| sum.checked_add(line.tokens));
        n_rows = sum.with_context(|| format!("{}, line {}: more tokens than can be counted", path.display(), i + 1))?;
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
