//! A loaded model: its weights, owned, and what llama.cpp knows about it.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::plug::{self, Kernels};
use super::{backend, log};
use crate::error::{Error, Result};

/// How a model is brought into memory.
#[derive(Debug, Clone)]
pub(crate) struct LoadParams {
    /// Layers to offload; `None` for all of them.
    pub(crate) n_gpu_layers: Option<u32>,
    pub(crate) use_mmap: bool,
    pub(crate) use_mlock: bool,
    /// Where in the file the model's own GGUF begins, in bytes; 0 but for files that carry heads before it.
    pub(crate) offset: u64,
    pub(crate) kernels: Kernels,
    /// All files of a split model in order, the first one among them; those that were checked are those that are loaded.
    pub(crate) parts: Vec<PathBuf>,
}

/// Owns a `llama_model`.
#[derive(Debug)]
pub(crate) struct RawModel {
    raw: NonNull<sys::llama_model>,
    kernels: Kernels,
}

// SAFETY: llama.cpp's model is immutable once loaded; contexts on several threads share it by design (`llama.h`).
unsafe impl Send for RawModel {}
// SAFETY: as above.
unsafe impl Sync for RawModel {}

impl Drop for RawModel {
    fn drop(&mut self) {
        // SAFETY: loaded by `RawModel::load`, freed once, and each context holds the `Arc` that keeps it alive.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) };
    }
}

impl RawModel {
    /// Loads the GGUF at `path`. The caller has run the preflight of `gguf`: llama.cpp aborts on some damaged files.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `progress` answered false, [`Error::Io`] and [`Error::Load`].
    pub(crate) fn load(path: &Path, params: &LoadParams, progress: &mut dyn FnMut(f32) -> bool) -> Result<Self> {
        backend::init();
        // llama.cpp says no more than NULL for a file that is not there; the system says why.
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;

        let mut watch = Progress { call: progress, cancelled: false, panic: None };
        // SAFETY: fills a plain struct with defaults.
        let mut raw = unsafe { sys::llama_model_default_params() };
        raw.n_gpu_layers = params.n_gpu_layers.map_or(-1, |n| i32::try_from(n).unwrap_or(i32::MAX));
        raw.load_mode = match (params.use_mmap, params.use_mlock) {
            (true, false) => sys::LLAMA_LOAD_MODE_MMAP,
            (true, true) => sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
            (false, true) => sys::LLAMA_LOAD_MODE_MLOCK,
            (false, false) => sys::LLAMA_LOAD_MODE_NONE,
        };
        raw.progress_callback = Some(on_progress);
        raw.progress_callback_user_data = (&raw mut watch).cast();

        let load = || {
            if params.parts.len() > 1 {
                drop(file);
                load_parts(&params.parts, raw)
            } else if params.offset == 0 {
                drop(file);
                let path = backend::c_path(path)?;
                // SAFETY: a NUL-terminated path; `raw` and the progress state behind it outlive the call.
                NonNull::new(unsafe { sys::llama_model_load_from_file(path.as_ptr(), raw) })
            } else {
                load_tail(&file, params.offset, raw)
            }
        };
        let kernels = params.kernels;
        let (model, log) = log::recorded(|| plug::loading(kernels, params.use_mmap, load));
        if let Some(panic) = watch.panic.take() {
            std::panic::resume_unwind(panic);
        }
        match model {
            Some(raw) => Ok(Self { raw, kernels }),
            None if watch.cancelled => Err(Error::Cancelled),
            None => Err(Error::Load { path: path.to_owned(), log }),
        }
    }

    /// Whose kernels compute it.
    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    /// A number that llama.cpp keeps about the model.
    pub(crate) fn number(&self, get: unsafe extern "C" fn(*const sys::llama_model) -> i32) -> u32 {
        // SAFETY: a live model, and a getter that only reads it.
        u32::try_from(unsafe { get(self.as_ptr()) }).unwrap_or(0)
    }

    /// A property that llama.cpp keeps about the model.
    pub(crate) fn flag(&self, get: unsafe extern "C" fn(*const sys::llama_model) -> bool) -> bool {
        // SAFETY: a live model, and a getter that only reads it.
        unsafe { get(self.as_ptr()) }
    }

    /// A size that llama.cpp keeps about the model.
    pub(crate) fn size(&self, get: unsafe extern "C" fn(*const sys::llama_model) -> u64) -> u64 {
        // SAFETY: a live model, and a getter that only reads it.
        unsafe { get(self.as_ptr()) }
    }

    /// llama.cpp's one-line description, such as `llama 135M Q4_1`.
    pub(crate) fn description(&self) -> String {
        let mut text = [0u8; 256];
        // SAFETY: the buffer is valid for its length, and llama.cpp NUL-terminates within it.
        let n = unsafe { sys::llama_model_desc(self.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
        let n = usize::try_from(n).unwrap_or(0).min(text.len() - 1);
        String::from_utf8_lossy(&text[..n]).into_owned()
    }

    /// The text of a metadata key; arrays have none.
    pub(crate) fn metadata(&self, key: &CStr) -> Option<String> {
        let mut text = vec![0u8; 256];
        for _ in 0..2 {
            // SAFETY: as in `description`.
            let n = unsafe {
                sys::llama_model_meta_val_str(self.as_ptr(), key.as_ptr(), text.as_mut_ptr().cast(), text.len())
            };
            let n = usize::try_from(n).ok()?;
            if n < text.len() {
                return Some(String::from_utf8_lossy(&text[..n]).into_owned());
            }
            text.resize(n + 1, 0);
        }
        None
    }

    /// The model's own chat template.
    pub(crate) fn chat_template(&self, name: Option<&CStr>) -> Option<String> {
        let name = name.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: a live model; NULL asks for the default template, and the text it returns lives with the model.
        let text = unsafe { sys::llama_model_chat_template(self.as_ptr(), name) };
        // SAFETY: NUL-terminated if not NULL.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

/// Loads the GGUF that these files are together.
fn load_parts(parts: &[PathBuf], params: sys::llama_model_params) -> Option<NonNull<sys::llama_model>> {
    let paths = parts.iter().map(|path| backend::c_path(path)).collect::<Option<Vec<_>>>()?;
    let mut pointers: Vec<_> = paths.iter().map(|path| path.as_ptr()).collect();
    // SAFETY: as many NUL-terminated paths as said, which llama.cpp copies.
    NonNull::new(unsafe { sys::llama_model_load_from_splits(pointers.as_mut_ptr(), pointers.len(), params) })
}

/// Loads the GGUF that begins `offset` bytes into `file`. llama.cpp reads from the stream's position and maps the file.
fn load_tail(file: &File, offset: u64, params: sys::llama_model_params) -> Option<NonNull<sys::llama_model>> {
    let stream = Stream::open(file, offset)?;
    // SAFETY: an open stream; llama.cpp neither keeps nor closes it (`llama_file::impl`, `owns_fp(false)`).
    NonNull::new(unsafe { sys::llama_model_load_from_file_ptr(stream.0.as_ptr().cast(), params) })
}

/// A C stream, closed on drop.
struct Stream(NonNull<libc::FILE>);

impl Stream {
    #[cfg(unix)]
    fn open(file: &File, offset: u64) -> Option<Self> {
        use std::os::fd::IntoRawFd;
        let fd = file.try_clone().ok()?.into_raw_fd();
        // SAFETY: a descriptor that is ours, and a NUL-terminated mode.
        let Some(stream) = NonNull::new(unsafe { libc::fdopen(fd, c"rb".as_ptr()) }) else {
            // SAFETY: fdopen failed, so that the descriptor is still ours to close.
            unsafe { libc::close(fd) };
            return None;
        };
        let stream = Self(stream);
        let offset = libc::off_t::try_from(offset).ok()?;
        // SAFETY: an open stream.
        (unsafe { libc::fseeko(stream.0.as_ptr(), offset, libc::SEEK_SET) } == 0).then_some(stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { libc::fclose(self.0.as_ptr()) };
    }
}

struct Progress<'a> {
    call: &'a mut dyn FnMut(f32) -> bool,
    cancelled: bool,
    panic: Option<Box<dyn std::any::Any + Send>>,
}

unsafe extern "C" fn on_progress(progress: f32, user_data: *mut c_void) -> bool {
    // SAFETY: the user data is the `Progress` of the `load` that is running, on this thread.
    let Some(watch) = (unsafe { user_data.cast::<Progress<'_>>().as_mut() }) else { return true };
    match catch_unwind(AssertUnwindSafe(|| (watch.call)(progress))) {
        Ok(go_on) => {
            watch.cancelled |= !go_on;
            go_on
        }
        Err(panic) => {
            watch.panic = Some(panic);
            false
        }
    }
}
