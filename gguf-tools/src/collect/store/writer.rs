//! A store that is written to: whole sequences at a time, in the order of their numbers.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::super::label::Label;
use super::{LABELS, Line, MANIFEST, Manifest, SEQUENCES, read_manifest, read_sequences};

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

/// The tokens of one sequence, as they will lie on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    widths: Vec<usize>,
    n_tokens: u64,
    /// Those that are the user's turn.
    n_turn: u64,
    labels: Vec<u8>,
    /// One for each series of the manifest.
    series: Vec<Vec<u8>>,
    row: Vec<f16>,
}

impl Rows {
    /// No tokens yet, for a store of this manifest.
    pub fn new(manifest: &Manifest) -> Rows {
        let widths: Vec<usize> = manifest.series().into_iter().map(|(_, width)| width).collect();
        let series = vec![Vec::new(); widths.len()];
        Rows { widths, n_tokens: 0, n_turn: 0, labels: Vec::new(), series, row: Vec::new() }
    }

    /// Adds a token: its label, and its values in each series of the manifest.
    ///
    /// # Errors
    ///
    /// Values of another length, or that are no half-precision numbers.
    pub fn push<'a>(&mut self, label: &Label, values: impl Iterator<Item = &'a [f32]>) -> anyhow::Result<()> {
        let mut n = 0;
        for ((bytes, width), values) in self.series.iter_mut().zip(&self.widths).zip(values) {
            ensure!(values.len() == *width, "a row of {} values, not {width}", values.len());
            self.row.resize(*width, f16::ZERO);
            self.row.convert_from_f32_slice(values);
            ensure!(self.row.iter().all(|value| value.is_finite()), "a value does not fit into half precision");
            bytes.extend(self.row.iter().flat_map(|value| value.to_le_bytes()));
            n += 1;
        }
        ensure!(n == self.widths.len(), "rows of {n} series, not {}", self.widths.len());
        self.labels.extend(label.to_bytes());
        self.n_tokens += 1;
        Ok(())
    }

    /// What was added so far is the user's turn; the answer comes next.
    pub fn end_turn(&mut self) {
        self.n_turn = self.n_tokens;
    }

    /// The tokens of the answer.
    pub fn n_answer(&self) -> u64 {
        self.n_tokens - self.n_turn
    }
}

/// A store that is written to.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    manifest: Manifest,
    labels: File,
    /// One for each series of the manifest.
    series: Vec<File>,
    sequences: File,
    n_tokens: u64,
    n_turn_tokens: u64,
    n_sequences: u64,
    next_index: u64,
    /// Keeps other processes from writing here.
    _lock: Option<File>,
}

impl Store {
    /// Starts a store in `folder`, or goes on with the one that is there where `resume` is set.
    ///
    /// # Errors
    ///
    /// A store that is there already, that belongs to other settings, that another process is writing to, or that is damaged;
    /// a disk with less than `rows` tokens need.
    pub fn open(folder: &Path, mut manifest: Manifest, rows: u64, resume: bool) -> anyhow::Result<Store> {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let lock = lock(folder)?;
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
            Vec::new()
        };
        let n_tokens: u64 = kept.iter().map(|line| line.tokens).sum();
        let n_turn_tokens: u64 = kept.iter().map(|line| line.turn).sum();
        let n_rows = n_tokens + n_turn_tokens;
        ensure_room(folder, rows.saturating_sub(n_rows).saturating_mul(manifest.bytes_per_token()))?;
        let files: Vec<(String, u64)> = manifest
            .series()
            .into_iter()
            .map(|(series, width)| (series.file_name(), width as u64 * 2))
            .chain([(LABELS.to_string(), Label::BYTES as u64)])
            .collect();
        // All of them are looked at before one is cut.
        for (name, row) in &files {
            ensure_holds(&folder.join(name), n_rows.saturating_mul(*row))?;
        }
        let open = |name: &str, bytes: u64| -> anyhow::Result<File> {
            let path = folder.join(name);
            let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            file.set_len(bytes)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let mut series = Vec::new();
        for (name, row) in &files {
            series.push(open(name, n_rows * row)?);
        }
        let labels = series.pop().context("a store without labels")?;
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
            series,
            sequences,
            n_tokens,
            n_turn_tokens,
            n_sequences: kept.len() as u64,
            next_index: kept.last().map_or(0, |line| line.index + 1),
            _lock: lock,
        })
    }

    /// What the store is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokens of the answers of whole sequences.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The tokens of the users' turns that the model wrote before them.
    pub fn n_turn_tokens(&self) -> u64 {
        self.n_turn_tokens
    }

    /// The number of whole sequences.
    pub fn n_sequences(&self) -> u64 {
        self.n_sequences
    }

    /// The number of the sequence to collect next.
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// Adds a sequence; nothing where its answer has no tokens.
    ///
    /// # Errors
    ///
    /// A number that is not above those before it; what the disk says.
    pub fn commit(&mut self, sequence: &Sequence, rows: &Rows) -> anyhow::Result<()> {
        ensure!(sequence.index >= self.next_index, "sequence {} comes too late", sequence.index);
        self.next_index = sequence.index + 1;
        if rows.n_answer() == 0 {
            return Ok(());
        }
        let writing = || format!("writing to {}", self.folder.display());
        for (file, bytes) in self.series.iter_mut().zip(&rows.series).chain([(&mut self.labels, &rows.labels)]) {
            file.write_all(bytes).with_context(writing)?;
        }
        let line = Line {
            index: sequence.index,
            prompt: sequence.n_prompt,
            greedy: sequence.is_greedy,
            turn: rows.n_turn,
            tokens: rows.n_answer(),
        };
        self.sequences.write_all((serde_json::to_string(&line)? + "\n").as_bytes()).with_context(writing)?;
        self.n_tokens += rows.n_answer();
        self.n_turn_tokens += rows.n_turn;
        self.n_sequences += 1;
        Ok(())
    }
}

/// Locks the folder for as long as the file is open; `None` where folders cannot be locked (some network file systems, Windows).
fn lock(folder: &Path) -> anyhow::Result<Option<File>> {
    #[cfg(unix)]
    {
        use rustix::fs::{FlockOperation, flock};
        let file = File::open(folder).with_context(|| format!("opening {}", folder.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another process is collecting into {}: wait for it, or give another folder", folder.display())
            }
            Err(_) => Ok(None),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(None)
    }
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

fn ensure_holds(path: &Path, needed: u64) -> anyhow::Result<()> {
    let found = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    ensure!(found >= needed, "{} holds {found} bytes of {needed}: collect again", path.display());
    Ok(())
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
