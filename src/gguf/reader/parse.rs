//! Walks through a file's header, entry by entry, and refuses the first that is not right.
//!
//! Every length is compared with what is left of the file before it is used, every sum is checked, and
//! nothing is allocated by a number from the file that has not been bounded.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::error::{Error, Result, printable, type_label};
use super::super::source::Source;
use super::super::types::{TensorType, ValueType};
use super::super::value::{Value, decode};
use super::{
    DEFAULT_ALIGNMENT, File, Key, MAX_ALIGNMENT, MAX_ARRAY_LEN, MAX_DIMS, MAX_KEY_BYTES, MAX_KEYS, MAX_STRING_BYTES,
    MAX_TENSOR_NAME_BYTES, MAX_TENSORS, TensorInfo, pad,
};

impl File {
    /// Checks the GGUF that starts at byte `start` of `source` and reaches to its end.
    pub(in super::super) fn parse(source: Arc<Source>, start: u64) -> Result<File> {
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
        // The smallest entries: a tensor without a name and dimensions takes 24 bytes, a key without a name
        // and with a value of one byte 13; both are refused for other reasons, but only once they are seen.
        let n_tensors = cursor.count("tensors", MAX_TENSORS, 24)?;
        let n_keys = cursor.count("keys", MAX_KEYS, 13)?;

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

        Ok(File {
            source,
            start,
            version,
            alignment,
            keys,
            key_index,
            tensors,
            tensor_index,
            data_start,
            others: Vec::new(),
        })
    }
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
        Ok(TensorInfo { name: name.into(), ty, dims, n_dims, offset, bytes, part: 0, place: offset })
    }
}
