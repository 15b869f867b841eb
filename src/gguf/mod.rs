//! GGUF files: read strictly, written safely, and able to carry exit heads.
//!
//! Bytes become keys and tensor views ([`File`]), and keys and tensors become bytes ([`Writer`]).
//! No llama.cpp in here.

mod atomic;
mod error;
pub mod exits;
mod preflight;
pub mod quants;
mod reader;
mod source;
mod split;
mod types;
mod value;
mod writer;

pub(crate) use atomic::AtomicFile;
pub use atomic::Progress;
pub use error::{Error, Result};
pub use preflight::{ARCHITECTURES, Preflight, preflight, preflight_unread};
pub use reader::{
    DEFAULT_ALIGNMENT, File, MAX_ALIGNMENT, MAX_ARRAY_LEN, MAX_DIMS, MAX_KEY_BYTES, MAX_KEYS, MAX_PARTS,
    MAX_STRING_BYTES, MAX_TENSOR_NAME_BYTES, MAX_TENSORS, PartName, TensorInfo,
};
pub use split::{DEFAULT_SPLIT_TENSORS, Split, SplitLimit, SplitOptions, merge};
pub use types::{TensorType, ValueType};
pub use value::{Array, OwnedValue, Value};
pub use writer::{WriteOptions, Writer};
