//! One prompt in one mode, and the scoring of what came out by the full model.

use std::ops::ControlFlow;
use std::time::Duration;

use offramp::{ExitPoint, GenerateParams, Logits, Sampler, SamplerParams, Session, Token};

use crate::failure::Failure;
use crate::interrupt;

/// One prompt and its reply.
pub struct Measured {
    pub n_prompt: usize,
    pub prompt: Duration,
    /// The reply, with the end token if the model gave one.
    pub emitted: Vec<Token>,
    pub exits: Vec<Option<ExitPoint>>,
    pub decode: Duration,
}

impl Measured {
    /// Tokens that were decoded one at a time: the first token comes with the prompt.
    pub fn n_decoded(&self) -> usize {
        self.emitted.len().saturating_sub(1)
    }

    pub fn decode_rate(&self) -> f64 {
        self.n_decoded() as f64 / self.decode.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Decodes `prompt` and at most `n` greedy tokens, from an empty cache.
///
/// # Errors
/// When the decode fails or is interrupted.
pub fn run(session: &mut Session, prompt: &[Token], n: usize) -> Result<Measured, Failure> {
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let mut sampler = Sampler::new(session.model(), &greedy)?;
    let mut limits = GenerateParams::default();
    limits.max_tokens = n;
    let _cancels = interrupt::cancels(&session.cancel_handle());
    session.clear();
    let report = session.set_prompt(prompt, &mut |_| {})?;
    let generation = session.generate(&mut sampler, &limits, &mut |_| ControlFlow::Continue(()))?;
    if interrupt::is_requested() {
        return Err(Failure::Interrupted);
    }
    let emitted = session.tokens().get(prompt.len()..).unwrap_or_default().to_vec();
    Ok(Measured {
        n_prompt: report.decoded,
        prompt: report.elapsed,
        emitted,
        exits: generation.exits,
        decode: generation.elapsed,
    })
}

/// How a reply looks to the full model.
#[derive(Debug, Clone, Default)]
pub struct Rescored {
    pub n_tokens: usize,
    /// For each token that the full model would not have emitted, by how much it preferred its own, in logits.
    pub gaps: Vec<f32>,
}

impl Rescored {
    pub fn add(&mut self, other: &Self) {
        self.n_tokens += other.n_tokens;
        self.gaps.extend_from_slice(&other.gaps);
    }

    /// Share of tokens that are the full model's own.
    pub fn agreement(&self) -> f64 {
        1.0 - self.gaps.len() as f64 / self.n_tokens.max(1) as f64
    }
}

/// Runs `emitted` through the full model one token at a time, after `prompt` as a session decodes it. `reference` is a
/// session with a gate and without exits; its text is lost.
///
/// # Errors
/// When the decode fails or is interrupted.
pub fn rescore(reference: &mut Session, prompt: &[Token], emitted: &[Token]) -> Result<Rescored, Failure> {
    reference.clear();
    let gate = reference.gate();
    let n_ubatch = gate.n_ubatch().max(1);
    for chunk in prompt.chunks(n_ubatch) {
        gate.decode(chunk, Logits::Last)?;
    }
    let mut result = Rescored::default();
    for (i, &token) in emitted.iter().enumerate() {
        if i > 0 {
            gate.decode(&emitted[i - 1..i], Logits::Last)?;
        }
        if interrupt::is_requested() {
            return Err(Failure::Interrupted);
        }
        let logits = gate.logits(0).ok_or_else(|| Failure::failed("the full model gave no logits"))?;
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first_best = logits.iter().position(|&logit| logit == best);
        let id = usize::try_from(token.0).unwrap_or(usize::MAX);
        result.n_tokens += 1;
        if first_best != Some(id) {
            result.gaps.push(best - logits.get(id).copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
    Ok(result)
}

/// Bytes of this process in memory; 0 where the system does not tell.
pub fn resident() -> u64 {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let Ok(id) = sysinfo::get_current_pid() else { return 0 };
    let mut system = System::new();
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), false, kind);
    system.process(id).map_or(0, sysinfo::Process::memory)
}
