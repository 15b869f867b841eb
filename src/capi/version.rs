//! Which library and which ABI this is.

use std::ffi::c_char;

/// Version of this header's structs and functions. A library of another version refuses the structs of this one.
pub const OFFRAMP_ABI_VERSION: u32 = 1;

/// The library's version, for example "0.1.0". A static string; any thread may call this at any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn offramp_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The ABI version that the library was built with, to compare with OFFRAMP_ABI_VERSION. Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn offramp_abi_version() -> u32 {
    OFFRAMP_ABI_VERSION
}

/// The library and its llama.cpp, for records of how something was measured. A static string; any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn offramp_engine() -> *const c_char {
    const ENGINE: &str =
        concat!("offramp ", env!("CARGO_PKG_VERSION"), ", llama-cpp-sys-2 ", env!("OFFRAMP_BUILD_LLAMA"), "\0");
    ENGINE.as_ptr().cast()
}
