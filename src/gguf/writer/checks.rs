//! What a file in the making refuses: names and values that the reader would, and an output that is also an input.

use std::path::Path;

use crate::gguf::error::{Error, Result, printable};
use crate::gguf::reader::{MAX_ARRAY_LEN, MAX_STRING_BYTES};
use crate::gguf::types::ValueType;
use crate::gguf::value::OwnedValue;

/// Refuses an output path that names the same file as an input.
pub(in crate::gguf) fn refuse_same_file(input: &Path, output: &Path) -> Result<()> {
    let (Ok(input), Ok(found)) = (input.canonicalize(), output.canonicalize()) else {
        return Ok(());
    };
    #[cfg(unix)]
    let same = {
        use std::os::unix::fs::MetadataExt;
        match (input.metadata(), found.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    };
    #[cfg(not(unix))]
    let same = input == found;
    if same {
        return Err(Error::OutputIsInput { path: output.to_path_buf() });
    }
    Ok(())
}

pub(super) fn check_name(what: &'static str, name: &str, limit: u64) -> Result<()> {
    if name.len() as u64 > limit {
        return Err(Error::StringTooLong { what, offset: 0, found: name.len() as u64, limit });
    }
    let defect = match name {
        "" => "empty",
        _ if name.chars().any(char::is_control) => "not printable",
        _ => return Ok(()),
    };
    Err(Error::BadName { what, offset: 0, name: printable(name), defect })
}

pub(super) fn check_value(name: &str, value: &OwnedValue) -> Result<()> {
    match value {
        OwnedValue::Str(text) if text.len() as u64 > MAX_STRING_BYTES => {
            Err(Error::StringTooLong { what: "a string", offset: 0, found: text.len() as u64, limit: MAX_STRING_BYTES })
        }
        OwnedValue::Array(ty, values) => {
            if *ty == ValueType::Array {
                return Err(Error::NestedArray { offset: 0, key: printable(name) });
            }
            refuse_count("array elements", values.len() as u64, MAX_ARRAY_LEN)?;
            for (index, value) in values.iter().enumerate() {
                if value.ty() != *ty {
                    return Err(Error::ArrayEntry {
                        key: printable(name),
                        index: index as u64,
                        expected: ty.to_string(),
                        found: value.ty().to_string(),
                    });
                }
                check_value(name, value)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

pub(super) fn refuse_count(what: &'static str, found: u64, limit: u64) -> Result<()> {
    if found > limit {
        return Err(Error::CountTooLarge { what, offset: 0, found, limit });
    }
    Ok(())
}
