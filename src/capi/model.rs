//! The model handle.

use std::ffi::{CString, c_char};
use std::sync::{Arc, OnceLock};

use super::OFFRAMP_ABI_VERSION;
use super::params::{OFFRAMP_GPU_LAYERS_ALL, OFFRAMP_GPU_LAYERS_AUTO, offramp_model_params, offramp_session_params};
use super::pointers::{Output, Versioned, free_handle, handle, input_struct, into_handle, output_struct, path};
use super::status::*;
use crate::{ChatTemplate, GpuLayers, Kernels, Model, ModelParams, TemplateError, Token, memory_estimate};

/// A loaded model. Immutable; any number of threads may use one at the same time.
pub struct offramp_model {
    pub(super) model: Model,
    template: OnceLock<Result<Option<ChatTemplate>, TemplateError>>,
    name: CString,
    architecture: CString,
    description: CString,
}

/// What a model is. The texts are UTF-8, end with NUL, and live as long as the model's handle.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_model_info {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// The model's name, "" if it has none.
    pub name: *const c_char,
    /// Its architecture, for example "llama".
    pub architecture: *const c_char,
    /// llama.cpp's description: architecture, size class, quantization.
    pub description: *const c_char,
    /// Bytes of the weights.
    pub size: u64,
    /// Number of weights.
    pub n_params: u64,
    /// Number of blocks.
    pub n_layer: u32,
    /// Length of a hidden state.
    pub n_embd: u32,
    /// Tokens of the vocabulary.
    pub n_vocab: u32,
    /// Tokens that the model was trained to attend to.
    pub n_ctx_train: u32,
    /// 1 if the file has a chat template.
    pub has_chat_template: i32,
    /// 1 if exit heads came with the model.
    pub has_heads: i32,
}

/// What a model and one session take of the memory, in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_memory {
    /// Size of this struct in bytes.
    pub struct_size: u32,
    /// OFFRAMP_ABI_VERSION.
    pub abi_version: u32,
    /// The weights. Mapped from the file, they take memory as they are used.
    pub weights: u64,
    /// The K/V cache of one session.
    pub kv_cache: u64,
    /// The buffers of one session's graphs, roughly.
    pub compute: u64,
    /// What the system can still give; 0 if it does not tell.
    pub available: u64,
}

// SAFETY: `repr(C)`, beginning with `struct_size` and `abi_version`.
unsafe impl Versioned for offramp_model_info {
    const NAME: &'static str = "offramp_model_info";
}
// SAFETY: as above.
unsafe impl Versioned for offramp_memory {
    const NAME: &'static str = "offramp_memory";
}

impl offramp_model {
    /// The model's chat template, parsed once.
    pub(super) fn template(&self) -> Result<&ChatTemplate, Failure> {
        let parsed = self.template.get_or_init(|| {
            let vocab = self.model.vocab();
            let special = |token: Option<Token>| token.map_or_else(String::new, |token| vocab.text(&[token], true));
            let source = self.model.chat_template();
            source.map(|source| ChatTemplate::new(source, &special(vocab.bos()), &special(vocab.eos()))).transpose()
        });
        match parsed {
            Ok(Some(template)) => Ok(template),
            Ok(None) => Err(Failure::new(
                OFFRAMP_ERROR_TEMPLATE,
                "the model has no chat template; write its format yourself and use offramp_session_set_text",
            )),
            Err(error) => Err(Failure::new(OFFRAMP_ERROR_TEMPLATE, error.to_string())),
        }
    }
}

/// Loads the model at `path_to_model`; of a split model that is the first file, beside which the others lie. `params` may
/// be NULL for the defaults. This can take seconds; its progress callback runs on the calling thread and can stop it.
///
/// The caller owns `*model` and frees it with offramp_model_free. Any thread; loads may run at the same time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_model_load(
    path_to_model: *const c_char,
    params: *const offramp_model_params,
    model: *mut *mut offramp_model,
) -> i32 {
    boundary("offramp_model_load", || {
        // SAFETY: the caller's promise (module `capi`).
        let (file, params, output) = unsafe {
            (
                path(path_to_model, "path_to_model")?,
                input_struct(params, offramp_model_params::default, "params")?,
                Output::new(model, "model")?,
            )
        };
        let gpu_layers = match params.gpu_layers {
            OFFRAMP_GPU_LAYERS_AUTO => GpuLayers::Auto,
            OFFRAMP_GPU_LAYERS_ALL => GpuLayers::All,
            n => GpuLayers::Count(u32::try_from(n).map_err(|_| {
                Failure::value("gpu_layers", n, "a number of layers, OFFRAMP_GPU_LAYERS_AUTO or OFFRAMP_GPU_LAYERS_ALL")
            })?),
        };
        let heads = if params.heads_path.is_null() {
            None
        } else {
            // SAFETY: as above.
            Some(unsafe { path(params.heads_path, "heads_path") }?.to_owned())
        };
        let load = ModelParams {
            gpu_layers,
            use_mmap: params.use_mmap != 0,
            use_mlock: params.use_mlock != 0,
            kernels: Kernels::Auto,
            heads,
            find_heads: params.find_heads != 0,
            check_memory: params.check_memory != 0,
            allow_unread: params.allow_unread != 0,
        };
        let loaded = Model::load_with_progress(file, &load, &mut |done| match params.progress {
            // SAFETY: a callback of the caller, with the caller's data.
            Some(progress) => unsafe { progress(done, params.progress_user_data) != 0 },
            None => true,
        })?;
        let info = loaded.info();
        let c_text = |text: &str| CString::new(text.replace('\0', "")).unwrap_or_default();
        let handle = offramp_model {
            template: OnceLock::new(),
            name: c_text(info.name.as_deref().unwrap_or_default()),
            architecture: c_text(&info.architecture),
            description: c_text(&info.description),
            model: loaded,
        };
        output.write(into_handle(Arc::new(handle)));
        Ok(())
    })
}

/// Frees a model; NULL is nothing. Sessions keep what they need of it: it may be freed before them. No other call may be
/// in progress with this handle on another thread; what was read through offramp_model_info ends with it.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_model_free(model: *mut offramp_model) {
    // SAFETY: the caller's promise (module `capi`).
    quietly("offramp_model_free", || unsafe { free_handle(model) });
}

/// Tells what `model` is. `struct_size` is sizeof(*info). Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_model_get_info(
    model: *const offramp_model,
    info: *mut offramp_model_info,
    struct_size: usize,
) -> i32 {
    boundary("offramp_model_get_info", || {
        // SAFETY: the caller's promise (module `capi`).
        let (model, output) = unsafe { (handle(model, "model")?, output_struct(info, struct_size, "info")?) };
        let info = model.model.info();
        output.write(offramp_model_info {
            struct_size: size_of::<offramp_model_info>() as u32,
            abi_version: OFFRAMP_ABI_VERSION,
            name: model.name.as_ptr(),
            architecture: model.architecture.as_ptr(),
            description: model.description.as_ptr(),
            size: info.size,
            n_params: info.n_params,
            n_layer: info.n_layer,
            n_embd: info.n_embd,
            n_vocab: info.n_vocab,
            n_ctx_train: info.n_ctx_train,
            has_chat_template: model.model.chat_template().is_some().into(),
            has_heads: model.model.heads().is_some().into(),
        });
        Ok(())
    })
}

/// Tells what the model at `path_to_model` would take with one session of `params` (NULL for the defaults), from its
/// header alone. `struct_size` is sizeof(*memory). Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_memory_estimate(
    path_to_model: *const c_char,
    params: *const offramp_session_params,
    memory: *mut offramp_memory,
    struct_size: usize,
) -> i32 {
    boundary("offramp_memory_estimate", || {
        // SAFETY: the caller's promise (module `capi`).
        let (file, params, output) = unsafe {
            (
                path(path_to_model, "path_to_model")?,
                input_struct(params, offramp_session_params::default, "params")?,
                output_struct(memory, struct_size, "memory")?,
            )
        };
        let estimate = memory_estimate(file, &params.to_session(u32::MAX)?)?;
        output.write(offramp_memory {
            struct_size: size_of::<offramp_memory>() as u32,
            abi_version: OFFRAMP_ABI_VERSION,
            weights: estimate.weights,
            kv_cache: estimate.kv_cache,
            compute: estimate.compute,
            available: estimate.available.unwrap_or(0),
        });
        Ok(())
    })
}
