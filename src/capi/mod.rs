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
//! The safety of every function rests on the same promise of its caller: a pointer is NULL or points to what the
//! function's comment says, a handle came from this library and has not been freed.
#![allow(non_camel_case_types)] // The names are those of the C header.
#![allow(clippy::missing_safety_doc)] // Said once, above.

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

pub use chat::*;
pub use generate::*;
pub use log::*;
pub use model::*;
pub use params::*;
pub use sampler::*;
pub use session::*;
pub use status::*;

/// Version of this header's structs and functions. A library of another version refuses the structs of this one.
pub const OFFRAMP_ABI_VERSION: u32 = 1;

/// The library's version, for example "0.1.0". A static string; any thread may call this at any time.
#[unsafe(no_mangle)]
pub extern "C" fn offramp_version() -> *const std::ffi::c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The ABI version that the library was built with, to compare with OFFRAMP_ABI_VERSION. Any thread, any time.
#[unsafe(no_mangle)]
pub extern "C" fn offramp_abi_version() -> u32 {
    OFFRAMP_ABI_VERSION
}

/// The library and its llama.cpp, for records of how something was measured. A static string; any thread, any time.
#[unsafe(no_mangle)]
pub extern "C" fn offramp_engine() -> *const std::ffi::c_char {
    const ENGINE: &str =
        concat!("offramp ", env!("CARGO_PKG_VERSION"), ", llama-cpp-sys-2 ", env!("OFFRAMP_BUILD_LLAMA"), "\0");
    ENGINE.as_ptr().cast()
}
