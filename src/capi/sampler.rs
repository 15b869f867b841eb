//! The sampler handle: checked sampling parameters.

use super::offramp_model;
use super::params::offramp_sampler_params;
use super::pointers::{Output, free_handle, handle, input_struct, into_handle, optional_text, slice, text};
use super::status::*;
use crate::{Grammar, Model, Sampler, SamplerParams};
use std::sync::Arc;

/// How tokens are picked. Immutable; any number of sessions on any threads may use one at the same time.
pub struct offramp_sampler {
    params: SamplerParams,
}

impl offramp_sampler {
    /// A sampler for one reply: penalties and grammars remember what was emitted.
    pub(super) fn start(&self, model: &Model) -> Result<Sampler, Failure> {
        Ok(Sampler::new(model, &self.params)?)
    }
}

/// Checks `params` (NULL takes the defaults) for `model` and makes a sampler of them; a grammar is parsed here already.
///
/// The caller owns `*sampler` and frees it with offramp_sampler_free. The grammar's text is copied. Any thread.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_sampler_new(
    model: *const offramp_model,
    params: *const offramp_sampler_params,
    sampler: *mut *mut offramp_sampler,
) -> i32 {
    boundary("offramp_sampler_new", || {
        // SAFETY: the caller's promise (module `capi`).
        let (model, params, output) = unsafe {
            (
                handle(model, "model")?,
                input_struct(params, offramp_sampler_params::default, "params")?,
                Output::new(sampler, "sampler")?,
            )
        };
        // SAFETY: as above.
        let grammar = unsafe { optional_text(params.grammar, "grammar") }?
            .map(Grammar::gbnf)
            .transpose()
            .map_err(crate::Error::from)?;
        // SAFETY: as above.
        let dry_sequence_breakers = unsafe { breakers(&params) }?;
        let sampler = offramp_sampler {
            params: SamplerParams {
                temperature: params.temperature,
                top_k: params.top_k,
                typical_p: params.typical_p,
                top_p: params.top_p,
                min_p: params.min_p,
                repeat_penalty: params.repeat_penalty,
                repeat_last_n: params.repeat_last_n,
                frequency_penalty: params.frequency_penalty,
                presence_penalty: params.presence_penalty,
                dry_multiplier: params.dry_multiplier,
                dry_base: params.dry_base,
                dry_allowed_length: params.dry_allowed_length,
                dry_penalty_last_n: params.dry_penalty_last_n,
                dry_sequence_breakers,
                xtc_probability: params.xtc_probability,
                xtc_threshold: params.xtc_threshold,
                seed: (params.use_seed != 0).then_some(params.seed),
                grammar,
            },
        };
        sampler.start(&model.model)?;
        output.write(into_handle(Arc::new(sampler)));
        Ok(())
    })
}

unsafe fn breakers(params: &offramp_sampler_params) -> Result<Vec<String>, Failure> {
    if params.dry_sequence_breakers.is_null() && params.n_dry_sequence_breakers == 0 {
        return Ok(SamplerParams::default().dry_sequence_breakers);
    }
    let name = "dry_sequence_breakers";
    // SAFETY: the caller's promise (module `capi`).
    let texts = unsafe { slice(params.dry_sequence_breakers, params.n_dry_sequence_breakers, name) }?;
    // SAFETY: as above.
    texts.iter().map(|&breaker| unsafe { text(breaker, name) }.map(str::to_owned)).collect()
}

/// Frees a sampler; NULL is nothing. A reply that has begun keeps what it needs of it, so that its callback may do this;
/// no other thread may still be about to use the handle.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_sampler_free(sampler: *mut offramp_sampler) {
    // SAFETY: the caller's promise (module `capi`).
    quietly("offramp_sampler_free", || unsafe { free_handle(sampler) });
}
