//! Reads a GGUF file: header, keys and tensor entries, all checked before anything is handed out.
//!
//! Refuses whatever llama.cpp refuses, and what it lets through to its own harm: sums that wrap, counts that
//! the file cannot hold, tensors beyond its end, huge alignments, nested arrays, booleans other than 0 and 1,
//! text that is not UTF-8. Keys and tensor data stay where they are in the mapped file; what is kept beside
//! it is one small entry for each key and tensor, of which there are at most [`MAX_KEYS`] and
//! [`MAX_TENSORS`], so that memory stays below the file's size plus 64 MiB.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::error::{Error, Result, printable, type_label};
use super::source::Source;
use super::types::{TensorType, ValueType};
use super::value::{Array, Value, decode};

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

/// A checked GGUF file.
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

    /// Where its data starts, in bytes from the start of the data section.
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

    /// Checks the GGUF that starts at byte `start` of `source` and reaches to its end.
    pub(super) fn parse(source: Arc<Source>, start: u64) -> Result<File> {
        let mut cursor = Cursor { bytes: &source, at: usize::try_from(start).unwrap_or(usize::MAX) };

        let magic = cursor.take("the magic", 4)?;
        if magic != b"GGUF" {
            return Err(Error::BadMagic { offset: start, found: magic.escape_ascii().to_string() });
        }
        let version_at = cursor.offset();
        let version = cursor.u32("the version")?;
        if version != 0 && version & 0xffff == 0 {
            return Err(Error::BigEndian { offset: version_at, found: version });
        }
        if !(2..=3).contains(&version) {
            return Err(Error::BadVersion { offset: version_at, found: version });
        }
        // The smallest entries: a tensor without dimensions and a one-byte name takes 25 bytes, a key with a
        // one-byte name and a one-byte value 14.
        let n_tensors = cursor.count("tensors", MAX_TENSORS, 25)?;
        let n_keys = cursor.count("keys", MAX_KEYS, 14)?;

        let mut keys = Vec::new();
        let mut key_index = HashMap::new();
        for index in 0..n_keys {
            let key = cursor.key()?;
            if key_index.insert(key.name.clone(), index).is_some() {
                return Err(Error::Duplicate { what: "key", offset: key.start, name: printable(&key.name) });
            }
            keys.push(key);
        }
        let alignment = match key_index.get("general.alignment") {
            Some(&index) => alignment(&keys[index], cursor.bytes)?,
            None => DEFAULT_ALIGNMENT,
        };

        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut tensor_index = HashMap::new();
        let mut next_offset = 0u64;
        for index in 0..n_tensors {
            let at = cursor.offset();
            let tensor = cursor.tensor()?;
            if tensor_index.insert(tensor.name.clone(), index).is_some() {
                return Err(Error::Duplicate { what: "tensor name", offset: at, name: printable(&tensor.name) });
            }
            if tensor.offset != next_offset {
                return Err(Error::BadOffset {
                    offset: at,
                    name: printable(&tensor.name),
                    expected: next_offset,
                    found: tensor.offset,
                });
            }
            next_offset =
                pad(tensor.bytes, alignment).and_then(|padded| next_offset.checked_add(padded)).ok_or_else(|| {
                    Error::TensorTooLarge { offset: at, name: printable(&tensor.name), dims: tensor.dims().to_vec() }
                })?;
            tensors.push(tensor);
        }

        let header_end = cursor.offset();
        let file_size = source.len() as u64;
        let data_start = if n_tensors == 0 {
            header_end
        } else {
            // Alignment counts from the start of this GGUF, which may lie inside another file.
            start + pad(header_end - start, alignment).unwrap_or(u64::MAX - start)
        };
        if data_start > file_size {
            return Err(Error::Truncated {
                what: "the padding before the tensor data",
                offset: header_end,
                needed: data_start - header_end,
                file_size,
            });
        }
        for tensor in &tensors {
            let place = data_start.checked_add(tensor.offset);
            let end = place.and_then(|place| place.checked_add(tensor.bytes));
            if end.is_none_or(|end| end > file_size) {
                return Err(Error::TensorBeyondFile {
                    name: printable(&tensor.name),
                    start: place.unwrap_or(u64::MAX),
                    end: end.unwrap_or(u64::MAX),
                    file_size,
                });
            }
        }

        Ok(File { source, start, version, alignment, keys, key_index, tensors, tensor_index, data_start })
    }

    /// The path the file was opened by.
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

    /// Where this GGUF starts in the file; 0 unless it lies inside a merged one.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where the tensor data starts, in bytes from the start of the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The size of the whole file in bytes.
    pub fn file_size(&self) -> u64 {
        self.source.len() as u64
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
        &self.source[range.start as usize..range.end as usize]
    }

    /// Where the data of one of this file's tensors lies, in bytes from the start of the file.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let start = self.data_start + tensor.offset;
        start..start + tensor.bytes
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

    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
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

fn alignment(key: &Key, bytes: &[u8]) -> Result<u64> {
    let found = match (key.array, decode(key.ty, &bytes[key.value.clone()])) {
        (None, Some((Value::U32(found), _))) => u64::from(found),
        _ => {
            return Err(Error::KeyType {
                key: key.name.to_string(),
                offset: key.start,
                expected: "u32",
                found: type_label(key.array.map_or(key.ty, |(ty, _)| ty), key.array.map(|(_, len)| len)),
            });
        }
    };
    if !found.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&found) {
        return Err(Error::BadAlignment { offset: key.start, found, limit: MAX_ALIGNMENT });
    }
    Ok(found)
}

/// A position in the file's bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn offset(&self) -> u64 {
        self.at as u64
    }

    fn remaining(&self) -> u64 {
        self.bytes.len().saturating_sub(self.at) as u64
    }

    fn take(&mut self, what: &'static str, needed: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(needed).ok().and_then(|needed| self.at.checked_add(needed));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(Error::Truncated { what, offset: self.offset(), needed, file_size: self.bytes.len() as u64 }),
        }
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        let bytes = self.take(what, 4)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64> {
        let bytes = self.take(what, 8)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Reads a count and refuses it where the rest of the file cannot hold so many entries of at least
    /// `smallest` bytes each.
    fn count(&mut self, what: &'static str, cap: u64, smallest: u64) -> Result<usize> {
        let offset = self.offset();
        let found = self.u64(what)?;
        let limit = cap.min(self.remaining() / smallest);
        if found > limit {
            return Err(Error::CountTooLarge { what, offset, found, limit });
        }
        Ok(found as usize)
    }

    fn string(&mut self, what: &'static str, limit: u64) -> Result<&'a str> {
        let offset = self.offset();
        let found = self.u64(what)?;
        if found > limit {
            return Err(Error::StringTooLong { what, offset, found, limit });
        }
        let bytes = self.take(what, found)?;
        std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8 { what, offset: offset + 8 })
    }

    fn name(&mut self, what: &'static str, limit: u64) -> Result<&'a str> {
        let offset = self.offset();
        let name = self.string(what, limit)?;
        let defect = match name {
            "" => "empty",
            _ if name.chars().any(char::is_control) => "not printable",
            _ => return Ok(name),
        };
        Err(Error::BadName { what, offset, name: printable(name), defect })
    }

    fn key(&mut self) -> Result<Key> {
        let start = self.offset();
        let name = self.name("key", MAX_KEY_BYTES)?;
        let ty = self.value_type(name)?;
        if ty != ValueType::Array {
            let value = self.at..self.scalar(name, ty)?;
            return Ok(Key { name: name.into(), start, ty, array: None, value });
        }
        let element_at = self.offset();
        let element = self.value_type(name)?;
        if element == ValueType::Array {
            return Err(Error::NestedArray { offset: element_at, key: printable(name) });
        }
        let smallest = element.size().unwrap_or(8) as u64;
        let len = self.count("array elements", MAX_ARRAY_LEN, smallest)? as u64;
        let from = self.at;
        match element {
            ValueType::Str => {
                for _ in 0..len {
                    self.string("a string in an array", MAX_STRING_BYTES)?;
                }
            }
            ValueType::Bool => {
                for _ in 0..len {
                    self.scalar(name, ValueType::Bool)?;
                }
            }
            _ => {
                self.take("an array", len * smallest)?;
            }
        }
        Ok(Key { name: name.into(), start, ty, array: Some((element, len)), value: from..self.at })
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let offset = self.offset();
        let found = self.u32("the type of a key")?;
        ValueType::from_id(found).ok_or_else(|| Error::BadValueType { offset, key: printable(key), found })
    }

    /// Steps over one value that is not an array; returns where it ends.
    fn scalar(&mut self, key: &str, ty: ValueType) -> Result<usize> {
        let offset = self.offset();
        match ty.size() {
            None => {
                self.string("a string", MAX_STRING_BYTES)?;
            }
            Some(size) => {
                let bytes = self.take("a value", size as u64)?;
                if ty == ValueType::Bool && bytes[0] > 1 {
                    return Err(Error::BadBool { offset, key: printable(key), found: bytes[0] });
                }
            }
        }
        Ok(self.at)
    }

    fn tensor(&mut self) -> Result<TensorInfo> {
        let entry = self.offset();
        let name = self.name("tensor name", MAX_TENSOR_NAME_BYTES)?;
        let offset = self.offset();
        let n_dims = self.u32("the number of dimensions")?;
        if n_dims as usize > MAX_DIMS {
            return Err(Error::TooManyDims { offset, name: printable(name), found: n_dims });
        }
        let n_dims = n_dims as usize;
        let mut dims = [1; MAX_DIMS];
        for (axis, dim) in dims.iter_mut().enumerate().take(n_dims) {
            let offset = self.offset();
            *dim = self.u64("a dimension")?;
            if *dim > i64::MAX as u64 {
                return Err(Error::BadDim { offset, name: printable(name), axis, found: *dim });
            }
        }
        let offset = self.offset();
        let found = self.u32("the type of a tensor")?;
        let ty =
            TensorType::from_id(found).ok_or_else(|| Error::BadTensorType { offset, name: printable(name), found })?;
        if dims[0] % ty.block_size() != 0 {
            return Err(Error::PartialBlock {
                offset: entry,
                name: printable(name),
                ty,
                found: dims[0],
                block: ty.block_size(),
            });
        }
        // Zeros are left out of the product, so that no order of dimensions hides one that wraps.
        let elements = dims.iter().filter(|&&dim| dim != 0).try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let bytes = ty.bytes(&dims).filter(|&bytes| bytes <= i64::MAX as u64);
        let (Some(..=0x7fff_ffff_ffff_ffff), Some(bytes)) = (elements, bytes) else {
            return Err(Error::TensorTooLarge { offset: entry, name: printable(name), dims: dims[..n_dims].to_vec() });
        };
        let offset = self.u64("the offset of a tensor")?;
        Ok(TensorInfo { name: name.into(), ty, dims, n_dims, offset, bytes })
    }
}
