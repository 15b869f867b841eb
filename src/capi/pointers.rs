//! What comes through a pointer, checked as far as a callee can: NULL, alignment, length, UTF-8, the struct's version.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use super::OFFRAMP_ABI_VERSION;
use super::status::*;

/// A struct that starts with its size and the ABI version.
///
/// # Safety
/// The type is `repr(C)` and begins with two `u32`: `struct_size` and `abi_version`.
pub(super) unsafe trait Versioned: Copy {
    /// The name in the header.
    const NAME: &'static str;
}

fn check<T>(pointer: *const T, name: &str) -> Result<NonNull<T>, Failure> {
    let Some(pointer) = NonNull::new(pointer.cast_mut()) else {
        return Err(Failure::new(OFFRAMP_ERROR_NULL, format!("{name} is NULL")));
    };
    if !pointer.is_aligned() {
        return Err(Failure::value(name, "not aligned", "a pointer to a value of its type"));
    }
    Ok(pointer)
}

/// A place that the caller lets us write to, last and on success alone.
pub(super) struct Output<T>(NonNull<T>);

impl<T> Output<T> {
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        check(pointer, name).map(Self)
    }

    pub(super) fn write(self, value: T) {
        // SAFETY: the caller vouches for a place of this type, and `new` has checked what can be checked.
        unsafe { self.0.as_ptr().write(value) };
    }
}

/// A place for a struct whose size the caller states.
pub(super) unsafe fn output_struct<T: Versioned>(
    pointer: *mut T,
    struct_size: usize,
    name: &str,
) -> Result<Output<T>, Failure> {
    // SAFETY: as this function's.
    let output = unsafe { Output::new(pointer, name) }?;
    if struct_size != size_of::<T>() {
        return Err(Failure::new(
            OFFRAMP_ERROR_ABI,
            format!(
                "{} has {struct_size} bytes, and {} in this library; compile with its header",
                T::NAME,
                size_of::<T>()
            ),
        ));
    }
    Ok(output)
}

/// A struct of parameters; NULL takes `default`.
pub(super) unsafe fn input_struct<T: Versioned>(
    pointer: *const T,
    default: impl FnOnce() -> T,
    name: &str,
) -> Result<T, Failure> {
    if pointer.is_null() {
        return Ok(default());
    }
    let pointer = check(pointer, name)?;
    // SAFETY: the caller vouches for a struct that begins with these two, however long it is (`Versioned`).
    let [struct_size, abi_version] = unsafe { pointer.cast::<[u32; 2]>().read() };
    if struct_size as usize != size_of::<T>() || abi_version != OFFRAMP_ABI_VERSION {
        return Err(Failure::new(
            OFFRAMP_ERROR_ABI,
            format!(
                "{} has struct_size {struct_size} and abi_version {abi_version}, but this library's are {} and {}; \
                 fill it with its default_params function, and compile with this library's header",
                T::NAME,
                size_of::<T>(),
                OFFRAMP_ABI_VERSION
            ),
        ));
    }
    // SAFETY: it is as long as it says, which is this type's length.
    Ok(unsafe { pointer.read() })
}

/// A NUL-terminated UTF-8 text.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    let pointer = check(pointer, name)?;
    // SAFETY: the caller vouches for a NUL-terminated string that outlives the call.
    let text = unsafe { CStr::from_ptr(pointer.as_ptr()) };
    text.to_str().map_err(|error| not_utf8(name, error))
}

/// As [`text`], or `None` for NULL.
pub(super) unsafe fn optional_text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as this function's.
    unsafe { text(pointer, name) }.map(Some)
}

/// A path. Bytes as the system has them on Unix, UTF-8 elsewhere.
pub(super) unsafe fn path<'a>(pointer: *const c_char, name: &str) -> Result<&'a Path, Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let pointer = check(pointer, name)?;
        // SAFETY: the caller vouches for a NUL-terminated string that outlives the call.
        let bytes = unsafe { CStr::from_ptr(pointer.as_ptr()) }.to_bytes();
        Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)))
    }
    #[cfg(not(unix))]
    // SAFETY: as this function's.
    unsafe { text(pointer, name) }.map(Path::new)
}

/// `n` values; NULL is allowed for none.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, n: usize, name: &str) -> Result<&'a [T], Failure> {
    if n == 0 {
        return Ok(&[]);
    }
    let pointer = check(pointer, name)?;
    if n.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::value(name, format!("{n} values long"), "an array that memory can hold"));
    }
    // SAFETY: the caller vouches for `n` values that outlive the call; the length fits.
    Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), n) })
}

/// A UTF-8 text of `length` bytes.
pub(super) unsafe fn text_of<'a>(pointer: *const c_char, length: usize, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: as this function's.
    let bytes = unsafe { slice(pointer.cast::<u8>(), length, name) }?;
    std::str::from_utf8(bytes).map_err(|error| not_utf8(name, error))
}

fn not_utf8(name: &str, error: std::str::Utf8Error) -> Failure {
    Failure::new(OFFRAMP_ERROR_UTF8, format!("{name} is no UTF-8: {error}"))
}

/// Copies `values` to the caller's buffer and tells their number; a NULL buffer asks for the number alone.
pub(super) unsafe fn copy_out<T: Copy>(
    values: &[T],
    buffer: *mut T,
    capacity: usize,
    n_out: *mut usize,
    name: &str,
) -> Result<(), Failure> {
    // SAFETY: as this function's.
    let n = unsafe { Output::new(n_out, "the length") }?;
    if buffer.is_null() && capacity == 0 {
        n.write(values.len());
        return Ok(());
    }
    let buffer = check(buffer, name)?;
    n.write(values.len());
    if values.len() > capacity {
        let reason = format!("{name} has room for {capacity}, and {} are needed", values.len());
        return Err(Failure::new(OFFRAMP_ERROR_BUFFER, reason));
    }
    // SAFETY: the caller vouches for `capacity` values, which are enough; the two do not overlap, since ours are ours.
    unsafe { buffer.as_ptr().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    Ok(())
}

/// Hands a value to the caller as a handle.
pub(super) fn into_handle<T>(value: Arc<T>) -> *mut T {
    Arc::into_raw(value).cast_mut()
}

/// The value of a handle. What is returned keeps it alive, so that a callback may free the handle.
pub(super) unsafe fn handle<T>(pointer: *const T, name: &str) -> Result<Arc<T>, Failure> {
    let pointer = check(pointer, name)?;
    // SAFETY: the caller vouches for a handle that `into_handle` made and nobody has freed.
    unsafe {
        Arc::increment_strong_count(pointer.as_ptr());
        Ok(Arc::from_raw(pointer.as_ptr()))
    }
}

/// Takes a handle back; NULL is nothing.
pub(super) unsafe fn free_handle<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: as `handle`, and the caller gives it up.
        drop(unsafe { Arc::from_raw(pointer) });
    }
}
