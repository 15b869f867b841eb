//! llama.cpp's sampler chain, applied to the candidates that a decode or an exit offers.

use std::ffi::CString;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::vocab::{Token, Vocab};
use crate::error::Result;
use crate::grammar::{Grammar, Matcher};

/// Owns a chain of llama.cpp samplers.
pub(crate) struct Chain {
    /// Applied in this order; and whether it may make logits infinite.
    stages: Vec<(Sampler, bool)>,
    /// The grammar is no stage: what it does not allow is no candidate.
    grammar: Option<Matcher>,
    candidates: Vec<sys::llama_token_data>,
    /// Keeps the model, and so the vocabulary that a grammar points to, alive.
    _vocab: Vocab,
}

/// One sampler of llama.cpp.
struct Sampler(NonNull<sys::llama_sampler>);

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: made by one of llama.cpp's `init` functions, freed once.
        unsafe { sys::llama_sampler_free(self.0.as_ptr()) };
    }
}

/// No logit is lower: what penalties make infinite would not be a number once it is divided by a temperature.
const LOWEST_LOGIT: f32 = -1e30;

// SAFETY: a sampler is plain data that one thread uses at a time (`&mut self`).
unsafe impl Send for Chain {}

/// One stage of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage<'a> {
    Penalties {
        last_n: i32,
        repeat: f32,
        frequency: f32,
        presence: f32,
    },
    /// Against repeated sequences.
    Dry {
        multiplier: f32,
        base: f32,
        allowed_length: i32,
        last_n: i32,
        /// Without NUL, of at most 40 bytes each.
        breakers: &'a [String],
    },
    TopK(i32),
    Typical(f32),
    TopP(f32),
    MinP(f32),
    /// Leaves the likeliest out, now and then.
    Xtc {
        probability: f32,
        threshold: f32,
        seed: u32,
    },
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
    pub(crate) fn new(vocab: &Vocab, stages: &[Stage<'_>], grammar: Option<&Grammar>) -> Result<Self> {
        let grammar = grammar.map(|grammar| vocab.matcher(grammar)).transpose()?;
        let stages = stages.iter().map(|stage| (sampler(vocab, stage), matches!(stage, Stage::Dry { .. }))).collect();
        Ok(Self { stages, grammar, candidates: Vec::new(), _vocab: vocab.clone() })
    }

    /// Picks a token from `candidates` (id and logit), none of `barred`. `None` if there are none, or if the grammar allows
    /// none of them.
    ///
    /// # Errors
    /// [`crate::Error::Grammar`] if the grammar has become too intricate to follow.
    pub(crate) fn pick(
        &mut self,
        candidates: impl Iterator<Item = (Token, f32)>,
        barred: &[Token],
    ) -> Result<Option<Token>> {
        self.grammar.as_mut().map(Matcher::prepare).transpose()?;
        let grammar = self.grammar.as_ref();
        let allows = |id: Token| grammar.is_none_or(|grammar| usize::try_from(id.0).is_ok_and(|id| grammar.allows(id)));
        let candidates = candidates.filter(|&(id, _)| allows(id));
        self.candidates.clear();
        let offered = candidates.filter(|(id, _)| barred.is_empty() || !barred.contains(id));
        self.candidates.extend(offered.map(|(id, logit)| sys::llama_token_data { id: id.0, logit, p: 0.0 }));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        if array.size == 0 {
            return Ok(None);
        }
        for (stage, is_unbounded) in &self.stages {
            // SAFETY: a live sampler, and an array that is valid for its size.
            unsafe { sys::llama_sampler_apply(stage.0.as_ptr(), &mut array) };
            if *is_unbounded {
                // SAFETY: a sampler leaves `size` valid elements behind `data`.
                let left = unsafe { std::slice::from_raw_parts_mut(array.data, array.size) };
                left.iter_mut().for_each(|candidate| candidate.logit = candidate.logit.max(LOWEST_LOGIT));
            }
        }
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
        for (stage, _) in &self.stages {
            // SAFETY: a live sampler. None of those that are used here throws.
            unsafe { sys::llama_sampler_accept(stage.0.as_ptr(), token.0) };
        }
        Ok(())
    }

    /// Forgets what was emitted, and starts the random numbers again.
    pub(crate) fn reset(&mut self) {
        for (stage, _) in &self.stages {
            // SAFETY: a live sampler.
            unsafe { sys::llama_sampler_reset(stage.0.as_ptr()) };
        }
        self.grammar.as_mut().map(Matcher::reset);
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("grammar", &self.grammar.is_some()).finish_non_exhaustive()
    }
}

fn sampler(vocab: &Vocab, stage: &Stage<'_>) -> Sampler {
    let n_vocab = vocab.n_tokens() as i32;
    // SAFETY: each call makes a sampler from plain numbers, and from a live vocabulary and NUL-terminated texts that it
    // copies what it needs of.
    let raw = unsafe {
        match *stage {
            Stage::Penalties { last_n, repeat, frequency, presence } => {
                sys::llama_sampler_init_penalties(n_vocab, last_n, repeat, frequency, presence)
            }
            Stage::Dry { multiplier, base, allowed_length, last_n, breakers } => {
                let texts: Vec<CString> = breakers.iter().filter_map(|text| CString::new(text.as_str()).ok()).collect();
                let mut texts: Vec<*const std::ffi::c_char> = texts.iter().map(|text| text.as_ptr()).collect();
                let (first, n) = (texts.as_mut_ptr(), texts.len());
                sys::llama_sampler_init_dry(vocab.as_ptr(), multiplier, base, allowed_length, last_n, first, n)
            }
            Stage::TopK(k) => sys::llama_sampler_init_top_k(k),
            Stage::Typical(p) => sys::llama_sampler_init_typical(p, 1),
            Stage::TopP(p) => sys::llama_sampler_init_top_p(p, 1),
            Stage::MinP(p) => sys::llama_sampler_init_min_p(p, 1),
            Stage::Xtc { probability, threshold, seed } => sys::llama_sampler_init_xtc(probability, threshold, 1, seed),
            Stage::Temperature(t) => sys::llama_sampler_init_temp(t),
            Stage::Draw { seed } => sys::llama_sampler_init_dist(seed),
            Stage::Greedy => sys::llama_sampler_init_greedy(),
        }
    };
    Sampler(NonNull::new(raw).expect("llama.cpp allocates a sampler or throws"))
}
