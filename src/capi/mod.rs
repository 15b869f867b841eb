//! The C ABI: handles, structs and status codes over [`Model`](crate::Model) and [`Session`](crate::Session).
//!
//! `include/offramp.h` is generated from this module and committed; `docs/c-abi.md` tells how to use it. The package
//! `offramp-c` makes the shared and the static library of it. Rules that hold for every function:
//!
//! - it answers an `int32_t` status, 0 for success, and leaves the reason of anything else in `offramp_last_error`;
//! - outputs are written last, and only on success;
//! - NULL where a value is needed, sizes that contradict the ABI, text that is no UTF-8 and numbers out of range are
//!   answered with a status; a panic is caught and answered with one as well;
//! - no exception may leave a callback.
//!
//! The names are exported unless this is a unit test: there the library is linked twice, once as what the fixtures use.
//!
//! The safety of every function rests on the same promise of its caller: a pointer is NULL or points to what the
//! function's comment says, a handle came from this library and has not been freed.
#![allow(non_camel_case_types)] // The names are those of the C header.
#![allow(clippy::missing_safety_doc)] // Said once, above.

#[cfg(test)]
mod calls;
mod chat;
mod generate;
mod log;
mod model;
mod params;
mod pointers;
mod sampler;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod version;

pub use chat::*;
pub use generate::*;
pub use log::*;
pub use model::*;
pub use params::*;
pub use sampler::*;
pub use session::*;
pub use status::*;
pub use version::*;
