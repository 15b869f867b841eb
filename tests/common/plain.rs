//! A plain llama.cpp decode loop, straight on the sys crate: what this library's results are held against.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;

use llama_cpp_sys_2 as sys;
use offramp::Token;

/// A model and one context, with a thread pool attached as llama.cpp's own programs do.
pub struct Plain {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    pool: *mut sys::ggml_threadpool,
    n_vocab: usize,
}

impl Plain {
    pub fn load(path: &Path, n_ctx: u32) -> Self {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        // The same kernels as the library's, which are plugged in before the first model is loaded.
        let _ = offramp::kernels_here();
        // SAFETY: initialisation is idempotent; a NUL-terminated path; each handle is checked and freed in `drop`.
        unsafe {
            sys::llama_backend_init();
            let model = sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
            assert!(!model.is_null());
            let threads = num_cpus::get_physical() as i32;
            let mut params = sys::llama_context_default_params();
            params.n_ctx = n_ctx;
            params.n_threads = threads;
            params.n_threads_batch = threads;
            params.swa_full = false;
            let context = sys::llama_init_from_model(model, params);
            assert!(!context.is_null());
            let mut pool_params = sys::ggml_threadpool_params_default(threads);
            let pool = sys::ggml_threadpool_new(&mut pool_params);
            sys::llama_attach_threadpool(context, pool, pool);
            let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model)) as usize;
            Self { model, context, pool, n_vocab }
        }
    }

    /// Decodes after what the cache holds and returns the best token, the lowest id first.
    pub fn next(&mut self, tokens: &[Token]) -> Token {
        let mut ids: Vec<sys::llama_token> = tokens.iter().map(|token| token.0).collect();
        // SAFETY: the batch points to `ids`, which outlives the decode; the logits are read before the next one.
        let logits = unsafe {
            let batch = sys::llama_batch_get_one(ids.as_mut_ptr(), ids.len() as i32);
            assert_eq!(sys::llama_decode(self.context, batch), 0);
            std::slice::from_raw_parts(sys::llama_get_logits_ith(self.context, -1), self.n_vocab)
        };
        let mut best = 0;
        for (id, &logit) in logits.iter().enumerate() {
            if logit > logits[best] {
                best = id;
            }
        }
        Token(best as i32)
    }

    pub fn clear(&mut self) {
        // SAFETY: a live context.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context), false) };
    }

    /// Greedy tokens after `prompt`: the prompt in one batch, then one token at a time, until `n` or an end token.
    pub fn greedy(&mut self, prompt: &[Token], n: usize) -> Vec<Token> {
        self.clear();
        let mut made = Vec::new();
        let mut next = self.next(prompt);
        while made.len() < n && !self.is_eog(next) {
            made.push(next);
            if made.len() < n {
                next = self.next(&[next]);
            }
        }
        made
    }

    fn is_eog(&self, token: Token) -> bool {
        // SAFETY: a live model.
        unsafe { sys::llama_vocab_is_eog(sys::llama_model_get_vocab(self.model), token.0) }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: each was made by `load` and is freed once, the context before what it uses.
        unsafe {
            sys::llama_free(self.context);
            sys::ggml_threadpool_free(self.pool);
            sys::llama_model_free(self.model);
        }
    }
}
