//! llama.cpp's sampler chain, applied to the candidates that a decode or an exit offers.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::vocab::{Token, Vocab};
use crate::error::Result;
use crate::grammar::{Grammar, Matcher};

/// Owns a chain of llama.cpp samplers.
pub(crate) struct Chain {
    raw: NonNull<sys::llama_sampler>,
    /// The grammar is no part of the chain: what it does not allow is no candidate.
    grammar: Option<Matcher>,
    candidates: Vec<sys::llama_token_data>,
    /// Keeps the model, and so the vocabulary that a grammar points to, alive.
    _vocab: Vocab,
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
    /// [`crate::Error::Grammar`] if `grammar` cannot be followed with this vocabulary.
    pub(crate) fn new(vocab: &Vocab, stages: &[Stage], grammar: Option<&Grammar>) -> Result<Self> {
        let grammar = grammar.map(|grammar| vocab.matcher(grammar)).transpose()?;
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
    ///
    /// # Errors
    /// [`crate::Error::Grammar`] if the grammar has become too intricate to follow.
    pub(crate) fn pick(&mut self, candidates: impl Iterator<Item = (Token, f32)>) -> Result<Option<Token>> {
        self.grammar.as_mut().map(Matcher::prepare).transpose()?;
        let grammar = self.grammar.as_ref();
        let allows = |id: Token| grammar.is_none_or(|grammar| usize::try_from(id.0).is_ok_and(|id| grammar.allows(id)));
        let candidates = candidates.filter(|&(id, _)| allows(id));
        self.candidates.clear();
        self.candidates.extend(candidates.map(|(id, logit)| sys::llama_token_data { id: id.0, logit, p: 0.0 }));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        if array.size == 0 {
            return Ok(None);
        }
        // SAFETY: a live sampler, and an array that is valid for its size.
        unsafe { sys::llama_sampler_apply(self.raw.as_ptr(), &mut array) };
        // SAFETY: samplers shrink and reorder the array, and may move `data` to memory of their own (`llama.h`).
        let left = unsafe { std::slice::from_raw_parts(array.data, array.size) };
        let selected = usize::try_from(array.selected).ok();
        Ok(selected.and_then(|selected| left.get(selected)).map(|candidate| Token(candidate.id)))
    }

    /// Tells the samplers which token was emitted.
    ///
    /// # Errors
    /// [`crate::Error::Grammar`] if the grammar does not allow the token.
    pub(crate) fn accept(&mut self, token: Token) -> Result<()> {
        if let (Some(grammar), Ok(id)) = (&mut self.grammar, usize::try_from(token.0)) {
            grammar.accept(id)?;
        }
        // SAFETY: a live chain. None of its stages throws.
        unsafe { sys::llama_sampler_accept(self.raw.as_ptr(), token.0) };
        Ok(())
    }

    /// Forgets what was emitted, and starts the random numbers again.
    pub(crate) fn reset(&mut self) {
        // SAFETY: a live sampler.
        unsafe { sys::llama_sampler_reset(self.raw.as_ptr()) };
        self.grammar.as_mut().map(Matcher::reset);
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
