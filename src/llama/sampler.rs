//! llama.cpp's sampler chain, applied to the candidates that a decode or an exit offers.

use std::ffi::CString;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::log;
use super::vocab::{Token, Vocab};
use crate::error::{Error, LlamaLog, Result};

/// Owns a chain of llama.cpp samplers.
pub(crate) struct Chain {
    raw: NonNull<sys::llama_sampler>,
    /// The grammar is no part of the chain: llama.cpp's own tools filter by it first too, and accepting a token needs
    /// the call that catches its exceptions.
    grammar: Option<Grammar>,
    candidates: Vec<sys::llama_token_data>,
    /// Keeps the model, and so the vocabulary that a grammar points to, alive.
    _vocab: Vocab,
}

struct Grammar(NonNull<sys::llama_sampler>);

impl Drop for Grammar {
    fn drop(&mut self) {
        // SAFETY: made by `llama_rs_sampler_init_grammar`, freed once.
        unsafe { sys::llama_sampler_free(self.0.as_ptr()) };
    }
}

// SAFETY: a sampler is plain data that one thread uses at a time (`&mut self`).
unsafe impl Send for Chain {}

/// One stage of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Penalties {
        last_n: i32,
        repeat: f32,
        frequency: f32,
        presence: f32,
    },
    TopK(i32),
    TopP(f32),
    MinP(f32),
    Temperature(f32),
    /// Draws from what is left.
    Draw {
        seed: u32,
    },
    /// Takes the best, the lowest id first.
    Greedy,
}

impl Chain {
    /// # Errors
    /// [`Error::Grammar`] if `grammar` (GBNF, root rule `root`) cannot be parsed.
    pub(crate) fn new(vocab: &Vocab, stages: &[Stage], grammar: Option<&str>) -> Result<Self> {
        let grammar = grammar.map(|text| parse_grammar(vocab, text)).transpose()?;
        // SAFETY: plain parameters.
        let raw = unsafe { sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params()) };
        let raw = NonNull::new(raw).expect("llama.cpp allocates a sampler chain or throws");
        let n_vocab = vocab.n_tokens() as i32;
        for stage in stages {
            // SAFETY: each call makes a sampler from plain numbers, and the chain takes ownership of it.
            unsafe {
                let sampler = match *stage {
                    Stage::Penalties { last_n, repeat, frequency, presence } => {
                        sys::llama_sampler_init_penalties(n_vocab, last_n, repeat, frequency, presence)
                    }
                    Stage::TopK(k) => sys::llama_sampler_init_top_k(k),
                    Stage::TopP(p) => sys::llama_sampler_init_top_p(p, 1),
                    Stage::MinP(p) => sys::llama_sampler_init_min_p(p, 1),
                    Stage::Temperature(t) => sys::llama_sampler_init_temp(t),
                    Stage::Draw { seed } => sys::llama_sampler_init_dist(seed),
                    Stage::Greedy => sys::llama_sampler_init_greedy(),
                };
                sys::llama_sampler_chain_add(raw.as_ptr(), sampler);
            }
        }
        Ok(Self { raw, grammar, candidates: Vec::new(), _vocab: vocab.clone() })
    }

    /// Picks a token from `candidates` (id and logit). `None` if there are none, or if the grammar allows none of them.
    pub(crate) fn pick(&mut self, candidates: impl Iterator<Item = (Token, f32)>) -> Option<Token> {
        self.candidates.clear();
        self.candidates.extend(candidates.map(|(id, logit)| sys::llama_token_data { id: id.0, logit, p: 0.0 }));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        if array.size == 0 {
            return None;
        }
        if let Some(grammar) = &self.grammar {
            // SAFETY: a live sampler, and an array that is valid for its size.
            unsafe { sys::llama_sampler_apply(grammar.0.as_ptr(), &mut array) };
            // SAFETY: a sampler leaves `size` valid elements behind `data`.
            let left = unsafe { std::slice::from_raw_parts(array.data, array.size) };
            if left.iter().all(|candidate| candidate.logit == f32::NEG_INFINITY) {
                return None;
            }
        }
        // SAFETY: as above.
        unsafe { sys::llama_sampler_apply(self.raw.as_ptr(), &mut array) };
        // SAFETY: samplers shrink and reorder the array, and may move `data` to memory of their own (`llama.h`).
        let left = unsafe { std::slice::from_raw_parts(array.data, array.size) };
        left.get(usize::try_from(array.selected).ok()?).map(|candidate| Token(candidate.id))
    }

    /// Tells the samplers which token was emitted.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the grammar does not allow the token.
    pub(crate) fn accept(&mut self, token: Token) -> Result<()> {
        if let Some(grammar) = &self.grammar {
            // SAFETY: a live sampler; this call catches llama.cpp's exceptions.
            let (status, log) = log::recorded(|| unsafe { sys::llama_rs_sampler_accept(grammar.0.as_ptr(), token.0) });
            if status != sys::LLAMA_RS_STATUS_OK {
                return Err(Error::Grammar { log });
            }
        }
        // SAFETY: a live chain. None of its stages throws.
        unsafe { sys::llama_sampler_accept(self.raw.as_ptr(), token.0) };
        Ok(())
    }

    /// Forgets what was emitted, and starts the random numbers again.
    pub(crate) fn reset(&mut self) {
        // SAFETY: live samplers.
        unsafe {
            sys::llama_sampler_reset(self.raw.as_ptr());
            if let Some(grammar) = &self.grammar {
                sys::llama_sampler_reset(grammar.0.as_ptr());
            }
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once; it owns its stages.
        unsafe { sys::llama_sampler_free(self.raw.as_ptr()) };
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("grammar", &self.grammar.is_some()).finish_non_exhaustive()
    }
}

fn parse_grammar(vocab: &Vocab, text: &str) -> Result<Grammar> {
    let Ok(text) = CString::new(text) else {
        return Err(Error::Grammar { log: LlamaLog(vec!["it contains a NUL byte".to_owned()]) });
    };
    // SAFETY: a live vocabulary and NUL-terminated texts; this call catches llama.cpp's exceptions.
    let (raw, log) = log::recorded(|| unsafe {
        sys::llama_rs_sampler_init_grammar(vocab.as_ptr(), text.as_ptr(), c"root".as_ptr())
    });
    NonNull::new(raw).map(Grammar).ok_or(Error::Grammar { log })
}
