//! Split models: the parts `NAME-00001-of-0000N.gguf` opened as one file.
//!
//! The first part has the keys, and every part some of the tensors. What comes out is the file that the parts were cut from:
//! tensors in the order of the parts, offsets as if they lay one after another, no `split.*` keys. So the hashes of a model
//! are the same in one file and in many, and heads made for one fit the other.
//!
//! Refuses what llama.cpp's loader refuses (a part that is missing, out of order or doubled, other counts than declared), what
//! it aborts on (a `split.no` of another type), and what it takes although it cannot be right (parts of different splits).
//! At most [`MAX_PARTS`] parts are opened.

use std::path::{Path, PathBuf};

use super::super::error::{Error, Result, printable};
use super::super::value::Value;
use super::{File, MAX_TENSORS, OtherPart, pad};

/// The most files that a split model may have.
pub const MAX_PARTS: u64 = 512;

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// What the name of a split model's file says: `NAME-00002-of-00003.gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartName<'a> {
    /// What comes before the numbers, folders included.
    pub prefix: &'a str,
    /// Which part it is, from 1.
    pub no: u64,
    /// How many parts there are.
    pub count: u64,
}

impl<'a> PartName<'a> {
    /// Reads a file's name; `None` where it is not that of a part.
    pub fn parse(name: &'a str) -> Option<PartName<'a>> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        // As many digits as are written: five, and more where five are not enough.
        let number = |digits: &str| {
            let is_number = digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|number| is_number && format!("{number:05}") == digits)
        };
        let (no, count) = (number(no)?, number(count)?);
        (!prefix.is_empty() && (1..=count).contains(&no)).then_some(PartName { prefix, no, count })
    }

    /// The name of part `no`, from 1, of `count`.
    pub fn of(prefix: &str, no: u64, count: u64) -> String {
        format!("{prefix}{}", ending(no, count))
    }
}

fn ending(no: u64, count: u64) -> String {
    format!("-{no:05}-of-{count:05}.gguf")
}

/// Whether a key says how a file is split, and nothing about the model.
pub(in super::super) fn is_split_key(key: &str) -> bool {
    [NO, COUNT, TENSORS].contains(&key)
}

impl File {
    /// Maps and checks the model at `path`, with all of its parts where it is the first of several.
    ///
    /// # Errors
    ///
    /// As [`File::open`]; [`Error::MissingPart`], [`Error::NotFirstPart`] and [`Error::PartName`] where the parts cannot be
    /// found, and [`Error::Part`] for a defect of one of them.
    pub fn open_model(path: impl AsRef<Path>) -> Result<File> {
        let first = File::open(path)?;
        match first.number(COUNT)? {
            None | Some(0 | 1) => Ok(first),
            Some(count) => first.with_parts(count),
        }
    }

    /// A 16-bit key; of any integer type where it says that the file is whole, since llama.cpp then has its own say.
    fn number(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::U16(number)) => Ok(Some(number.into())),
            Some(value) if value.as_u64().is_some_and(|number| number <= 1) && key == COUNT => Ok(value.as_u64()),
            Some(_) => Err(self.key_type_error(key, "u16")),
        }
    }

    fn required_number(&self, key: &str) -> Result<u64> {
        self.number(key)?.ok_or(Error::MissingKey { key: key.into(), why: "every part of a split model has it" })
    }

    fn with_parts(mut self, count: u64) -> Result<File> {
        if count > MAX_PARTS {
            return Err(self.key_value_error(COUNT, format!("at most {MAX_PARTS} parts"), count));
        }
        let no = self.required_number(NO)?;
        let name = self.path().file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if no != 0 {
            let first = match PartName::parse(&name) {
                Some(part) => PartName::of(part.prefix, 1, part.count),
                None => format!("*{}", ending(1, count)),
            };
            return Err(Error::NotFirstPart { path: self.path().to_path_buf(), no: no + 1, count, first });
        }
        let ending = ending(1, count);
        let Some(prefix) = name.strip_suffix(&ending) else {
            return Err(Error::PartName { path: self.path().to_path_buf(), count, ending });
        };
        let n_tensors = self.n_tensors_declared()?;
        let mut next_offset = self.data_bytes();
        for no in 1..count {
            let path = self.path().with_file_name(PartName::of(prefix, no + 1, count));
            let part = open_part(&path, no, count)?;
            let within = |source| Error::Part { path: path.clone(), source: Box::new(source) };
            part.check_part(no, count, n_tensors).map_err(within)?;
            self.add(part, &mut next_offset).map_err(within)?;
        }
        let found = self.tensors.len() as u64;
        if n_tensors != found {
            return Err(self.key_value_error(TENSORS, format!("the {found} that all parts have together"), n_tensors));
        }
        self.keys.retain(|key| !is_split_key(&key.name));
        self.key_index = self.keys.iter().enumerate().map(|(index, key)| (key.name.clone(), index)).collect();
        Ok(self)
    }

    /// How many tensors the first part says that all parts have together.
    fn n_tensors_declared(&self) -> Result<u64> {
        match self.get(TENSORS) {
            Some(Value::I32(n)) => u64::try_from(n).map_err(|_| self.key_value_error(TENSORS, "a count", n)),
            Some(_) => Err(self.key_type_error(TENSORS, "i32")),
            None => Err(Error::MissingKey { key: TENSORS.into(), why: "the first part of a split model has it" }),
        }
    }

    /// The bytes of the tensor data, padding included, as they count for the offset of what follows.
    fn data_bytes(&self) -> u64 {
        self.tensors.last().and_then(|last| pad(last.bytes, self.alignment)?.checked_add(last.offset)).unwrap_or(0)
    }

    /// Checks what a part says about the split that it is of.
    fn check_part(&self, no: u64, count: u64, n_tensors: u64) -> Result<()> {
        let found = self.required_number(NO)?;
        if found != no {
            return Err(self.key_value_error(NO, format!("{no}, as its name says"), found));
        }
        // llama.cpp reads neither of the two in the parts after the first; where they are there, they must not contradict.
        if let Some(found) = self.number(COUNT)?.filter(|&found| found != count) {
            return Err(self.key_value_error(COUNT, format!("{count}, as in the first part"), found));
        }
        if self.get(TENSORS).is_some() {
            let found = self.n_tensors_declared()?;
            if found != n_tensors {
                return Err(self.key_value_error(TENSORS, format!("{n_tensors}, as in the first part"), found));
            }
        }
        Ok(())
    }

    /// Takes a part's tensors over.
    fn add(&mut self, part: File, next_offset: &mut u64) -> Result<()> {
        let index = self.others.len() + 1;
        let total = self.tensors.len() as u64 + part.tensors.len() as u64;
        if total > MAX_TENSORS {
            return Err(Error::CountTooLarge { what: "tensors", offset: 0, found: total, limit: MAX_TENSORS });
        }
        for mut tensor in part.tensors {
            if self.tensor_index.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(Error::Duplicate { what: "tensor name", offset: 0, name: printable(&tensor.name) });
            }
            (tensor.part, tensor.offset) = (index, *next_offset);
            let end = pad(tensor.bytes, self.alignment).and_then(|padded| next_offset.checked_add(padded));
            *next_offset = end.filter(|&end| end <= i64::MAX as u64).ok_or_else(|| Error::TensorTooLarge {
                offset: 0,
                name: printable(&tensor.name),
                dims: tensor.dims().to_vec(),
            })?;
            self.tensors.push(tensor);
        }
        self.others.push(OtherPart { source: part.source, data_start: part.data_start });
        Ok(())
    }
}

fn open_part(path: &PathBuf, no: u64, count: u64) -> Result<File> {
    File::open(path).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::MissingPart { path: path.clone(), no: no + 1, count }
        }
        // These name the file themselves.
        error @ Error::Io { .. } => error,
        source => Error::Part { path: path.clone(), source: Box::new(source) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_read_as_they_are_written() {
        let part = PartName { prefix: "dir/m-Q4_0", no: 2, count: 3 };
        assert_eq!(PartName::parse("dir/m-Q4_0-00002-of-00003.gguf"), Some(part));
        assert_eq!(PartName::of(part.prefix, 2, 3), "dir/m-Q4_0-00002-of-00003.gguf");
        for other in [
            "m.gguf",
            "-00001-of-00002.gguf",
            "m-1-of-2.gguf",
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-00001-of-00002.bin",
            "m-0000x-of-00002.gguf",
            "m-000001-of-00002.gguf",
            "m-+0001-of-00002.gguf",
            "m-00001-of-.gguf",
            "m-99999999999999999999-of-99999999999999999999.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }
}
