//! What can be wrong with a GGUF file: one variant per defect, each saying where it is, what was expected
//! and what was found.
//!
//! Offsets count bytes from the start of the file. Text that comes from the file is printed with its
//! control characters escaped and is cut at 80 characters, so that no message can drive a terminal.

use std::path::PathBuf;

use super::types::{TensorType, ValueType};

/// The result of reading, checking or writing a GGUF file.
pub type Result<T> = std::result::Result<T, Error>;

/// A defect of a GGUF file, or a reason why one could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What was tried, as in "open the file".
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The file ends inside its header.
    #[error(
        "the file ends at byte {file_size}, inside {what} at byte {offset}, which needs {needed} bytes; it is truncated, fetch it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How many bytes it takes.
        needed: u64,
        /// Where the file ends.
        file_size: u64,
    },

    /// The first four bytes are not `GGUF`.
    #[error("byte {offset}: expected the magic \"GGUF\", found {found:?}; this is no GGUF file")]
    BadMagic {
        /// Where the magic was expected.
        offset: u64,
        /// The four bytes found, escaped.
        found: String,
    },

    /// The version is that of a big-endian file.
    #[error(
        "byte {offset}: version {found:#010x} is that of a big-endian file; only little-endian files are read, convert it"
    )]
    BigEndian {
        /// Where the version stands.
        offset: u64,
        /// The version as read.
        found: u32,
    },

    /// The version is neither 2 nor 3.
    #[error("byte {offset}: expected GGUF version 2 or 3, found {found}; convert the model again with current tools")]
    BadVersion {
        /// Where the version stands.
        offset: u64,
        /// The version as read.
        found: u32,
    },

    /// A count is larger than the reader's cap, or than the rest of the file could hold.
    #[error("byte {offset}: the file claims {found} {what}, more than the {limit} that are possible here")]
    CountTooLarge {
        /// What is counted.
        what: &'static str,
        /// Where the count stands.
        offset: u64,
        /// The count.
        found: u64,
        /// The largest possible count.
        limit: u64,
    },

    /// A string is longer than the cap.
    #[error("byte {offset}: {what} is {found} bytes long, more than the {limit} allowed")]
    StringTooLong {
        /// Which string.
        what: &'static str,
        /// Where its length stands.
        offset: u64,
        /// The length.
        found: u64,
        /// The cap.
        limit: u64,
    },

    /// A string is not UTF-8.
    #[error("byte {offset}: {what} is not valid UTF-8")]
    NotUtf8 {
        /// Which string.
        what: &'static str,
        /// Where its first byte stands.
        offset: u64,
    },

    /// A key or a tensor's name is empty, or holds control characters.
    #[error("byte {offset}: {what} {name:?} is {defect}")]
    BadName {
        /// "key" or "tensor name".
        what: &'static str,
        /// Where it stands.
        offset: u64,
        /// The name, escaped.
        name: String,
        /// What is wrong with it.
        defect: &'static str,
    },

    /// Two keys, or two tensors, have the same name.
    #[error("byte {offset}: {what} {name:?} occurs twice")]
    Duplicate {
        /// "key" or "tensor name".
        what: &'static str,
        /// Where the second one stands.
        offset: u64,
        /// The name.
        name: String,
    },

    /// A key's type is none that GGUF defines.
    #[error("byte {offset}: key {key:?} has the unknown type {found}; expected 0 to 12")]
    BadValueType {
        /// Where the type stands.
        offset: u64,
        /// The key.
        key: String,
        /// The type as read.
        found: u32,
    },

    /// An array holds arrays.
    #[error("byte {offset}: key {key:?} is an array of arrays, which no reader of model files supports")]
    NestedArray {
        /// Where the element type stands.
        offset: u64,
        /// The key.
        key: String,
    },

    /// A boolean is neither 0 nor 1.
    #[error("byte {offset}: a boolean of key {key:?} is {found}; expected 0 or 1")]
    BadBool {
        /// Where it stands.
        offset: u64,
        /// The key.
        key: String,
        /// The byte found.
        found: u8,
    },

    /// A key is missing.
    #[error("key {key:?} is missing; {why}")]
    MissingKey {
        /// The key.
        key: String,
        /// What needs it.
        why: &'static str,
    },

    /// A key has another type than the one it is read as.
    #[error("byte {offset}: key {key:?} must be of type {expected}, found {found}")]
    KeyType {
        /// The key.
        key: String,
        /// Where the key stands.
        offset: u64,
        /// The types that would do.
        expected: &'static str,
        /// The type found.
        found: String,
    },

    /// A key's value cannot be right.
    #[error("byte {offset}: key {key:?} is {found}; expected {expected}")]
    KeyValue {
        /// The key.
        key: String,
        /// Where the key stands.
        offset: u64,
        /// What would be right.
        expected: String,
        /// What was found.
        found: String,
    },

    /// `general.alignment` is no power of two in the allowed range.
    #[error("byte {offset}: general.alignment is {found}; expected a power of two from 8 to {limit}")]
    BadAlignment {
        /// Where the key stands.
        offset: u64,
        /// The alignment found.
        found: u64,
        /// The largest alignment allowed.
        limit: u64,
    },

    /// A tensor has more than four dimensions.
    #[error("byte {offset}: tensor {name:?} has {found} dimensions; expected at most 4")]
    TooManyDims {
        /// Where the count stands.
        offset: u64,
        /// The tensor.
        name: String,
        /// The count found.
        found: u32,
    },

    /// A dimension is larger than a signed 64-bit number.
    #[error("byte {offset}: dimension {axis} of tensor {name:?} is {found}, which is no signed 64-bit number")]
    BadDim {
        /// Where the dimension stands.
        offset: u64,
        /// The tensor.
        name: String,
        /// Which dimension, from 0.
        axis: usize,
        /// The dimension found.
        found: u64,
    },

    /// The element or byte count of a tensor exceeds 63 bits.
    #[error("byte {offset}: tensor {name:?} of shape {dims:?} has more elements or bytes than 63 bits can count")]
    TensorTooLarge {
        /// Where the tensor's entry starts.
        offset: u64,
        /// The tensor.
        name: String,
        /// Its shape.
        dims: Vec<u64>,
    },

    /// A tensor's type is unknown or withdrawn.
    #[error("byte {offset}: tensor {name:?} has the unknown or withdrawn type {found}")]
    BadTensorType {
        /// Where the type stands.
        offset: u64,
        /// The tensor.
        name: String,
        /// The type as read.
        found: u32,
    },

    /// A row is no whole number of blocks.
    #[error(
        "byte {offset}: rows of tensor {name:?} have {found} elements, no multiple of the {block} in a block of {ty}"
    )]
    PartialBlock {
        /// Where the tensor's entry starts.
        offset: u64,
        /// The tensor.
        name: String,
        /// Its type.
        ty: TensorType,
        /// Elements in a row.
        found: u64,
        /// Elements in a block.
        block: u64,
    },

    /// A tensor's data does not start where the one before it ends.
    #[error(
        "byte {offset}: the data of tensor {name:?} starts at {found}; expected {expected}, right after the tensor before it"
    )]
    BadOffset {
        /// Where the tensor's entry starts.
        offset: u64,
        /// The tensor.
        name: String,
        /// The offset that contiguous data would have.
        expected: u64,
        /// The offset found.
        found: u64,
    },

    /// A tensor's data reaches beyond the end of the file.
    #[error(
        "tensor {name:?} needs the bytes {start} to {end} of a file of {file_size} bytes; it is truncated, fetch it again"
    )]
    TensorBeyondFile {
        /// The tensor.
        name: String,
        /// Where its data starts in the file.
        start: u64,
        /// Where its data ends.
        end: u64,
        /// The size of the file.
        file_size: u64,
    },

    /// One file of a split model is not where the first one says.
    #[error("{path}: this part {no} of {count} is missing; put all parts of the model into one folder")]
    MissingPart {
        /// Where the part was looked for.
        path: PathBuf,
        /// Which part it is, from 1.
        no: u64,
        /// How many parts there are.
        count: u64,
    },

    /// A file of a split model was given that is not its first one.
    #[error("{path}: this is part {no} of {count} of a split model; give the first part, {first}")]
    NotFirstPart {
        /// The file.
        path: PathBuf,
        /// Which part it is, from 1.
        no: u64,
        /// How many parts there are.
        count: u64,
        /// The first part's name.
        first: String,
    },

    /// The name of a split model's first file does not lead to the others.
    #[error(
        "{path}: this is part 1 of {count} of a split model, so that its name must end in {ending}; rename all parts so"
    )]
    PartName {
        /// The file.
        path: PathBuf,
        /// How many parts there are.
        count: u64,
        /// What the name must end in.
        ending: String,
    },

    /// A part of a split model has a defect.
    #[error("{path}: {source}")]
    Part {
        /// The part.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },

    /// A tensor is missing.
    #[error("tensor {name:?} is missing; {why}")]
    MissingTensor {
        /// The tensor.
        name: String,
        /// What needs it.
        why: &'static str,
    },

    /// A tensor's shape or type is not the expected one.
    #[error("tensor {name:?} is {found}; expected {expected}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// The shape and types that would do.
        expected: String,
        /// What the file holds.
        found: String,
    },

    /// A tensor has a dimension of zero, which divides by zero in llama.cpp.
    #[error("tensor {name:?} has a zero dimension in its shape {dims:?}")]
    ZeroDim {
        /// The tensor.
        name: String,
        /// Its shape.
        dims: Vec<u64>,
    },

    /// One entry of an array key cannot be right.
    #[error("key {key:?}: entry {index} is {found}; expected {expected}")]
    ArrayEntry {
        /// The array's key.
        key: String,
        /// The entry, from 0.
        index: u64,
        /// What would be right.
        expected: String,
        /// What was found.
        found: String,
    },

    /// The file names an architecture or tokenizer whose loader in llama.cpp is not known to be safe.
    #[error(
        "the {what} {found:?} is not among those checked against crafted files ({known}); load it only from a source you trust"
    )]
    UnreadLoader {
        /// "architecture" or "tokenizer".
        what: &'static str,
        /// The one named by the file.
        found: String,
        /// Those that are known.
        known: String,
    },

    /// The heads belong to another model.
    #[error(
        "the heads were made for {expected_name:?} (SHA-256 {expected}), but this model is {found_name:?} (SHA-256 {found})"
    )]
    WrongBase {
        /// The model the heads were made for.
        expected_name: String,
        /// Its hash.
        expected: String,
        /// The model at hand.
        found_name: String,
        /// Its hash.
        found: String,
    },

    /// The file has no exit heads.
    #[error("{path}: the file holds no exit heads")]
    NoHeads {
        /// The file.
        path: PathBuf,
    },

    /// The file already has what was to be added, or has the wrong form for what was asked.
    #[error("{path}: {defect}")]
    WrongForm {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        defect: &'static str,
    },

    /// The two views of a merged file contradict each other.
    #[error("tensor {name:?} of the merged file is {outer}, but the model inside it says {inner}")]
    Inconsistent {
        /// The tensor.
        name: String,
        /// What the merged file's own header says.
        outer: String,
        /// What the header inside says.
        inner: String,
    },

    /// A hash in the file and the data it stands for differ.
    #[error("SHA-256 of {what}: expected {expected}, found {found}; the file is damaged")]
    HashMismatch {
        /// What was hashed.
        what: String,
        /// The recorded hash.
        expected: String,
        /// The hash of the data.
        found: String,
    },

    /// Writing would replace one of the files being read.
    #[error("{path}: is also an input; choose another output")]
    OutputIsInput {
        /// The output.
        path: PathBuf,
    },

    /// The output exists.
    #[error("{path}: the file exists; allow it to be replaced, or choose another output")]
    OutputExists {
        /// The output.
        path: PathBuf,
    },

    /// The data handed to the writer does not fit the declared tensor.
    #[error("tensor {name:?}: {found} bytes of data were given for {expected} bytes of {ty}")]
    DataSize {
        /// The tensor.
        name: String,
        /// Its type.
        ty: TensorType,
        /// The bytes its shape needs.
        expected: u64,
        /// The bytes given.
        found: u64,
    },

    /// The caller asked to stop.
    #[error("interrupted; no file was changed")]
    Interrupted,
}

/// Text from a file, fit for a terminal: control characters escaped, cut at 80 characters.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == 80 {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Names a key's type as `arr[u32, 3]` or `u32`.
pub(crate) fn type_label(ty: ValueType, array: Option<u64>) -> String {
    match array {
        Some(len) => format!("arr[{ty}, {len}]"),
        None => ty.to_string(),
    }
}
