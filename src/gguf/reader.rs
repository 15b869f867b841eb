//! Reads a GGUF file: header, keys and tensor entries, all checked before anything is handed out.
//!
//! Refuses whatever llama.cpp refuses, and what it lets through to its own harm: sums that wrap, counts that
//! the file cannot hold, tensors beyond its end, huge alignments, nested arrays, booleans other than 0 and 1,
//! text that is not UTF-8. Keys and tensor data stay where they are in the mapped file; what is kept beside
//! it is one small entry for each key and tensor, of which there are at most [`MAX_KEYS`] and
//! [`MAX_TENSORS`], so that memory stays below the file's size plus 64 MiB.

mod parse;
mod parts;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::error::{Error, Result, printable, type_label};
use super::source::Source;
use super::types::{TensorType, ValueType};
use super::value::{Array, Value, decode};
pub(super) use parts::is_split_key;
pub use parts::{MAX_PARTS, PartName};

/// The most keys a file may have.
pub const MAX_KEYS: u64 = 65_536;
/// The most tensors a file may have.
pub const MAX_TENSORS: u64 = 131_072;
/// The longest name of a key, in bytes, as the format's specification has it.
pub const MAX_KEY_BYTES: u64 = 65_535;
/// The longest name of a tensor, in bytes: ggml keeps 64 with the terminating zero.
pub const MAX_TENSOR_NAME_BYTES: u64 = 63;
/// The longest string value, in bytes.
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// The most elements in one array.
pub const MAX_ARRAY_LEN: u64 = 64 << 20;
/// The largest alignment of tensor data, in bytes.
pub const MAX_ALIGNMENT: u64 = 1 << 20;
/// The alignment of tensor data where the file names none, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions of a tensor.
pub const MAX_DIMS: usize = 4;

/// A checked GGUF file; of a split model ([`File::open_model`]), all parts of it.
pub struct File {
    source: Arc<Source>,
    start: u64,
    version: u32,
    alignment: u64,
    keys: Vec<Key>,
    key_index: HashMap<Box<str>, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<Box<str>, usize>,
    data_start: u64,
    /// The parts after the first, of a split model.
    others: Vec<OtherPart>,
}

/// A further file of a split model.
struct OtherPart {
    source: Arc<Source>,
    /// Where its tensor data starts, in bytes from its own start.
    data_start: u64,
}

/// A key's place in the file.
#[derive(Clone, Debug)]
struct Key {
    name: Box<str>,
    /// Where the entry starts, with the length of its name.
    start: u64,
    ty: ValueType,
    /// The element type and the length, of an array.
    array: Option<(ValueType, u64)>,
    /// The encoded value; the elements alone of an array.
    value: Range<usize>,
}

/// What a file says about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    name: Box<str>,
    ty: TensorType,
    dims: [u64; MAX_DIMS],
    n_dims: usize,
    offset: u64,
    bytes: u64,
    /// Which part of a split model holds its data, from 0.
    part: usize,
    /// Where its data starts in the data section of that part; `offset` in a file that is whole.
    place: u64,
}

impl TensorInfo {
    /// The tensor's name, at most 63 bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Its shape in ggml's order, the fastest dimension first; at most four dimensions.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.n_dims]
    }

    /// Its shape with the missing dimensions as ones.
    pub fn dims4(&self) -> [u64; MAX_DIMS] {
        self.dims
    }

    /// Where its data starts, in bytes from the start of the data section; of a split model, where it would start if the
    /// parts were one file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The size of its data in bytes, without padding.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

impl File {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// The first defect found, or the system's reason why the file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<File> {
        File::parse(Arc::new(Source::open(path.as_ref())?), 0)
    }

    /// Checks a GGUF held in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    ///
    /// The first defect found.
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<File> {
        File::parse(Arc::new(Source::from_bytes(bytes, name.as_ref())), 0)
    }

    /// The path the file was opened by; of a split model, that of the first part.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in bytes, a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The files that this is made of: one, or all parts of a split model in order.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        (0..self.others.len() + 1).map(|part| self.source_of_part(part).path())
    }

    /// Where this GGUF starts in the file; 0 unless it lies inside a merged one.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where the tensor data starts, in bytes from the start of the (first) file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The size of the whole file in bytes, or of all parts of a split model.
    pub fn file_size(&self) -> u64 {
        (0..=self.others.len()).map(|part| self.source_of_part(part).len() as u64).sum()
    }

    /// The keys and their values, in the file's order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        self.keys.iter().map(|key| (&*key.name, self.value(key)))
    }

    /// The value of a key, `None` where the file has no such key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.key_index.get(key).map(|&index| self.value(&self.keys[index]))
    }

    /// The tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&index| &self.tensors[index])
    }

    /// The data of one of this file's tensors, without padding.
    ///
    /// # Panics
    ///
    /// Where `tensor` came from another file and lies beyond the end of this one.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let range = self.data_range(tensor);
        &self.source_of(tensor)[range.start as usize..range.end as usize]
    }

    /// Where the data of one of this file's tensors lies, in bytes from the start of the file, or of its part of a split
    /// model ([`File::part_of`]).
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let data_start = match tensor.part.checked_sub(1) {
            None => self.data_start,
            Some(other) => self.others[other].data_start,
        };
        let start = data_start + tensor.place;
        start..start + tensor.bytes
    }

    /// The file that holds the data of one of this file's tensors.
    pub fn part_of(&self, tensor: &TensorInfo) -> &Path {
        self.source_of(tensor).path()
    }

    /// Text, `None` where the key is absent.
    ///
    /// # Errors
    ///
    /// [`Error::KeyType`] where the key holds something else.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "str", |value| value.as_str())
    }

    /// A `u32`, `None` where the key is absent.
    ///
    /// # Errors
    ///
    /// [`Error::KeyType`] where the key holds something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "u32", |value| match value {
            Value::U32(v) => Some(v),
            _ => None,
        })
    }

    /// An `f32`, `None` where the key is absent.
    ///
    /// # Errors
    ///
    /// [`Error::KeyType`] where the key holds something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "f32", |value| match value {
            Value::F32(v) => Some(v),
            _ => None,
        })
    }

    /// An array whose elements have one of the types `of`, `None` where the key is absent.
    ///
    /// # Errors
    ///
    /// [`Error::KeyType`] where the key holds something else; the error says `expected`.
    pub fn array(&self, key: &str, of: &[ValueType], expected: &'static str) -> Result<Option<Array<'_>>> {
        self.typed(key, expected, |value| value.as_array().filter(|array| of.contains(&array.ty)))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.key_type_error(key, expected)),
            },
        }
    }

    /// The error for a key that is not of the `expected` type.
    pub(super) fn key_type_error(&self, key: &str, expected: &'static str) -> Error {
        let entry = self.key_index.get(key).map(|&index| &self.keys[index]);
        let found = entry.map(|entry| match entry.array {
            Some((ty, len)) => type_label(ty, Some(len)),
            None => type_label(entry.ty, None),
        });
        Error::KeyType {
            key: printable(key),
            offset: entry.map_or(0, |entry| entry.start),
            expected,
            found: found.unwrap_or_else(|| "nothing".into()),
        }
    }

    /// The error for a key whose value is not the expected one.
    pub(super) fn key_value_error(&self, key: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::KeyValue {
            key: printable(key),
            offset: self.key_index.get(key).map_or(0, |&index| self.keys[index].start),
            expected: expected.into(),
            found: printable(&found.to_string()),
        }
    }

    /// The encoded entry of a key: its name, type and value as they stand in the file.
    pub(super) fn key_bytes(&self, index: usize) -> &[u8] {
        let key = &self.keys[index];
        &self.source[key.start as usize..key.value.end]
    }

    /// The bytes of the (first) file.
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The bytes that hold the data of one of this file's tensors.
    pub(super) fn source_of(&self, tensor: &TensorInfo) -> &Arc<Source> {
        self.source_of_part(tensor.part)
    }

    fn source_of_part(&self, part: usize) -> &Arc<Source> {
        match part.checked_sub(1) {
            None => &self.source,
            Some(other) => &self.others[other].source,
        }
    }

    /// The bytes of each file, in order.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        (0..=self.others.len()).map(|part| self.source_of_part(part))
    }

    fn value(&self, key: &Key) -> Value<'_> {
        let bytes = &self.source[key.value.clone()];
        match key.array {
            Some((ty, len)) => Value::Array(Array { ty, len, bytes }),
            // The parser has decoded this very range before; only another process that rewrites the file
            // meanwhile can make it fail, and an empty string is then as good as any other value.
            None => decode(key.ty, bytes).map_or(Value::Str(""), |(value, _)| value),
        }
    }
}

/// `bytes` rounded up to a multiple of `alignment`, `None` where that exceeds 63 bits.
pub(super) fn pad(bytes: u64, alignment: u64) -> Option<u64> {
    let padded = bytes.checked_next_multiple_of(alignment)?;
    (padded <= i64::MAX as u64).then_some(padded)
}
