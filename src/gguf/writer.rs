//! Puts keys and tensors together and writes them as one GGUF file.
//!
//! Keys and tensors keep the order in which they were added; offsets are contiguous and aligned (32 bytes
//! unless `general.alignment` says otherwise). Data that comes from another file is copied byte for byte.
//! Refuses what the reader would refuse, an output that is also an input, and an existing output unless it
//! may be replaced. What was written is reopened and compared before it takes its name.

mod checks;
mod embed;

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::atomic::{AtomicFile, Progress};
use super::error::{Error, Result, printable};
use super::reader::{
    DEFAULT_ALIGNMENT, File, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_KEYS, MAX_TENSOR_NAME_BYTES, MAX_TENSORS,
    TensorInfo, pad,
};
use super::source::Source;
use super::types::TensorType;
use super::value::OwnedValue;
pub(super) use checks::refuse_same_file;
use checks::{check_name, check_value, refuse_count};

/// The version of the format that is written.
const VERSION: u32 = 3;

/// How an output file comes to be.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WriteOptions {
    /// Whether an existing file is replaced.
    pub replace: bool,
}

impl WriteOptions {
    /// Options that replace an existing file where `replace` is set.
    pub fn replacing(replace: bool) -> WriteOptions {
        WriteOptions { replace }
    }
}

/// A GGUF file in the making.
pub struct Writer {
    keys: Vec<u8>,
    key_names: HashSet<String>,
    alignment: u64,
    tensors: Vec<Pending>,
    tensor_names: HashSet<String>,
    parts: Vec<Part>,
    /// The bytes of the data section so far, padding included.
    data_bytes: u64,
    /// Whether the data section ends with an embedded file, after which nothing can be added.
    closed: bool,
    /// The files that keys or data come from, none of which may be the output.
    inputs: BTreeSet<PathBuf>,
}

struct Pending {
    name: String,
    ty: TensorType,
    dims: Vec<u64>,
    offset: u64,
}

/// A piece of the data section, followed by padding.
struct Part {
    content: Content,
    padding: u64,
}

enum Content {
    Bytes(Vec<u8>),
    Range(Arc<Source>, Range<u64>),
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl Writer {
    /// A file without keys and tensors.
    pub fn new() -> Writer {
        Writer {
            keys: Vec::new(),
            key_names: HashSet::new(),
            alignment: DEFAULT_ALIGNMENT,
            tensors: Vec::new(),
            tensor_names: HashSet::new(),
            parts: Vec::new(),
            data_bytes: 0,
            closed: false,
            inputs: BTreeSet::new(),
        }
    }

    /// Adds a key. `general.alignment` must come before the first tensor.
    ///
    /// # Errors
    ///
    /// A name or value that the reader would refuse, or a name that is taken.
    pub fn key(&mut self, name: &str, value: impl Into<OwnedValue>) -> Result<&mut Writer> {
        let value = value.into();
        check_value(name, &value)?;
        self.check_key(name)?;
        if name == "general.alignment" {
            self.set_alignment(&value)?;
        }
        self.key_names.insert(name.to_string());
        self.keys.extend((name.len() as u64).to_le_bytes());
        self.keys.extend(name.as_bytes());
        self.keys.extend(value.ty().id().to_le_bytes());
        value.encode(&mut self.keys);
        Ok(self)
    }

    /// Copies the keys of `from` that `keep` wants, byte for byte and in their order.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn copy_keys(&mut self, from: &File, mut keep: impl FnMut(&str) -> bool) -> Result<&mut Writer> {
        self.read_from(from);
        for (index, (name, value)) in from.keys().enumerate() {
            if keep(name) {
                self.check_key(name)?;
                if name == "general.alignment" {
                    self.set_alignment(&value.to_owned())?;
                }
                self.key_names.insert(name.to_string());
                self.keys.extend(from.key_bytes(index));
            }
        }
        Ok(self)
    }

    /// Adds a tensor whose data, of the type's own layout, is `data`. `dims` are in ggml's order, the fastest
    /// dimension first.
    ///
    /// # Errors
    ///
    /// A name or shape that the reader would refuse, a name that is taken, or data of another size.
    pub fn tensor(&mut self, name: &str, ty: TensorType, dims: &[u64], data: Vec<u8>) -> Result<&mut Writer> {
        let expected = self.declare(name, ty, dims, self.data_bytes)?;
        if expected != data.len() as u64 {
            self.retract();
            let found = data.len() as u64;
            return Err(Error::DataSize { name: printable(name), ty, expected, found });
        }
        self.append(Content::Bytes(data), expected)?;
        Ok(self)
    }

    /// Adds an F32 tensor.
    ///
    /// # Errors
    ///
    /// As [`Writer::tensor`].
    pub fn tensor_f32(&mut self, name: &str, dims: &[u64], data: &[f32]) -> Result<&mut Writer> {
        let bytes = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, TensorType::F32, dims, bytes)
    }

    /// Adds a tensor of another file under its own name, byte for byte.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn copy_tensor(&mut self, from: &File, tensor: &TensorInfo) -> Result<&mut Writer> {
        self.declare(tensor.name(), tensor.ty(), tensor.dims(), self.data_bytes)?;
        self.inputs.insert(from.part_of(tensor).to_path_buf());
        let content = Content::Range(from.source_of(tensor).clone(), from.data_range(tensor));
        self.append(content, tensor.bytes())?;
        Ok(self)
    }

    /// Keeps the file from being written over one that it is made for.
    pub(super) fn read_from(&mut self, input: &File) {
        self.inputs.extend(input.paths().map(Path::to_path_buf));
    }

    /// How many tensors have been added.
    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// The size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.header().len() as u64 + self.data_bytes
    }

    /// The file's bytes.
    ///
    /// # Errors
    ///
    /// The system's reason why data of another file cannot be read.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.for_each_chunk(&mut |bytes| {
            out.extend(bytes);
            Ok(())
        })?;
        Ok(out)
    }

    /// Hands the file's bytes to `sink`, in order and in pieces.
    pub(super) fn for_each_chunk(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        sink(&self.header())?;
        for part in &self.parts {
            match &part.content {
                Content::Bytes(bytes) => sink(bytes)?,
                Content::Range(source, range) => source.for_each_chunk(range.clone(), sink)?,
            }
            sink(&vec![0; part.padding as usize])?;
        }
        Ok(())
    }

    /// Writes the file: a temporary sibling, synced, reopened and compared with what it should hold, then
    /// renamed. `progress` is told the bytes written and the bytes in all, and stops the writer by returning
    /// `false`.
    ///
    /// # Errors
    ///
    /// Whatever the system refuses, [`Error::OutputExists`], [`Error::OutputIsInput`], or
    /// [`Error::Interrupted`]; the old file is then whole, and no other is left.
    pub fn write(&self, path: impl AsRef<Path>, options: WriteOptions, progress: &mut Progress<'_>) -> Result<()> {
        self.stage(path.as_ref(), options, progress)?.commit()
    }

    /// Writes the file and checks it, but leaves it to the caller to give it its name.
    pub(super) fn stage(&self, path: &Path, options: WriteOptions, progress: &mut Progress<'_>) -> Result<AtomicFile> {
        self.inputs.iter().try_for_each(|input| refuse_same_file(input, path))?;
        let header = self.header();
        let total = header.len() as u64 + self.data_bytes;
        let mut file = AtomicFile::create(path, options.replace)?;
        file.write_all(&header)?;
        for part in &self.parts {
            match &part.content {
                Content::Bytes(bytes) => file.write_all(bytes)?,
                Content::Range(source, range) => file.copy(source, range.clone(), total, progress)?,
            }
            file.write_all(&vec![0; part.padding as usize])?;
            if !progress(file.written(), total) {
                return Err(Error::Interrupted);
            }
        }
        self.check(&mut file, path, &header, total)?;
        Ok(file)
    }

    /// Reads the written file back, and compares its header and size with what was meant.
    fn check(&self, file: &mut AtomicFile, path: &Path, header: &[u8], total: u64) -> Result<()> {
        let source = Source::from_handle(file.reopen()?, path)?;
        let same_header = source.get(..header.len()) == Some(header);
        let written = File::parse(Arc::new(source), 0)?;
        if !same_header || written.file_size() != total || written.tensors().len() != self.tensors.len() {
            return Err(Error::WrongForm {
                path: path.to_path_buf(),
                defect: "what was read back is not what was written; the disk or the file system is failing",
            });
        }
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.keys.len() + 128 * self.tensors.len() + 64);
        out.extend(b"GGUF");
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.key_names.len() as u64).to_le_bytes());
        out.extend(&self.keys);
        for tensor in &self.tensors {
            encode_tensor(&mut out, &tensor.name, tensor.ty, &tensor.dims, tensor.offset);
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        }
        out
    }

    fn set_alignment(&mut self, value: &OwnedValue) -> Result<()> {
        let found = match value {
            OwnedValue::U32(found) => u64::from(*found),
            other => {
                return Err(Error::KeyType {
                    key: "general.alignment".into(),
                    offset: 0,
                    expected: "u32",
                    found: other.ty().to_string(),
                });
            }
        };
        if !found.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&found) {
            return Err(Error::BadAlignment { offset: 0, found, limit: MAX_ALIGNMENT });
        }
        if !self.tensors.is_empty() && found != self.alignment {
            return Err(Error::KeyValue {
                key: "general.alignment".into(),
                offset: 0,
                expected: "set before the first tensor".into(),
                found: found.to_string(),
            });
        }
        self.alignment = found;
        Ok(())
    }

    fn check_key(&self, name: &str) -> Result<()> {
        check_name("key", name, MAX_KEY_BYTES)?;
        refuse_count("keys", self.key_names.len() as u64 + 1, MAX_KEYS)?;
        if self.key_names.contains(name) {
            return Err(Error::Duplicate { what: "key", offset: 0, name: printable(name) });
        }
        Ok(())
    }

    /// Adds a tensor's entry; returns the bytes its data takes.
    fn declare(&mut self, name: &str, ty: TensorType, dims: &[u64], offset: u64) -> Result<u64> {
        check_name("tensor name", name, MAX_TENSOR_NAME_BYTES)?;
        refuse_count("tensors", self.tensors.len() as u64 + 1, MAX_TENSORS)?;
        if dims.len() > MAX_DIMS {
            return Err(Error::TooManyDims { offset: 0, name: printable(name), found: dims.len() as u32 });
        }
        let row = dims.first().copied().unwrap_or(1);
        if row % ty.block_size() != 0 {
            let (found, block) = (row, ty.block_size());
            return Err(Error::PartialBlock { offset: 0, name: printable(name), ty, found, block });
        }
        let elements = dims.iter().filter(|&&dim| dim != 0).try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let bytes = ty.bytes(dims).filter(|&bytes| bytes <= i64::MAX as u64);
        let (Some(..=0x7fff_ffff_ffff_ffff), Some(bytes)) = (elements, bytes) else {
            return Err(Error::TensorTooLarge { offset: 0, name: printable(name), dims: dims.to_vec() });
        };
        if self.closed {
            return Err(Error::BadOffset {
                offset: 0,
                name: printable(name),
                expected: self.data_bytes,
                found: offset,
            });
        }
        if !self.tensor_names.insert(name.to_string()) {
            return Err(Error::Duplicate { what: "tensor name", offset: 0, name: printable(name) });
        }
        self.tensors.push(Pending { name: name.to_string(), ty, dims: dims.to_vec(), offset });
        Ok(bytes)
    }

    /// Takes back the last declared tensor.
    fn retract(&mut self) {
        if let Some(tensor) = self.tensors.pop() {
            self.tensor_names.remove(&tensor.name);
        }
    }

    fn append(&mut self, content: Content, bytes: u64) -> Result<()> {
        let end = pad(bytes, self.alignment).and_then(|padded| {
            let end = self.data_bytes.checked_add(padded)?;
            Some((padded - bytes, end))
        });
        let Some((padding, end)) = end else {
            let (name, dims) = self.tensors.pop().map(|tensor| (tensor.name, tensor.dims)).unwrap_or_default();
            return Err(Error::TensorTooLarge { offset: 0, name, dims });
        };
        self.data_bytes = end;
        self.parts.push(Part { content, padding });
        Ok(())
    }
}

/// Appends a tensor's entry as it stands in a header.
pub(super) fn encode_tensor(out: &mut Vec<u8>, name: &str, ty: TensorType, dims: &[u64], offset: u64) {
    out.extend((name.len() as u64).to_le_bytes());
    out.extend(name.as_bytes());
    out.extend((dims.len() as u32).to_le_bytes());
    for dim in dims {
        out.extend(dim.to_le_bytes());
    }
    out.extend(ty.id().to_le_bytes());
    out.extend(offset.to_le_bytes());
}
