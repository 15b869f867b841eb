//! One prompt in one mode, and the scoring of what came out by the full model.

use std::ops::ControlFlow;
use std::time::Duration;

use offramp::{ExitPoint, GenerateParams, Rescorer, Sampler, SamplerParams, Session, Token};

use crate::failure::Failure;
use crate::interrupt;

/// One prompt and its reply.
pub struct Measured {
    pub n_prompt: usize,
    pub prompt: Duration,
    /// The reply, with the end token if the model gave one.
    pub emitted: Vec<Token>,
    /// Where each of these left the model.
    pub exits: Vec<Option<ExitPoint>>,
    pub decode: Duration,
    /// Tokens that were drafted, and those of them that were right.
    pub drafts: (usize, usize),
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
    let mut exits = generation.exits;
    if emitted.len() > exits.len() {
        exits.push(generation.end_exit);
    }
    Ok(Measured {
        n_prompt: report.decoded,
        prompt: report.elapsed,
        emitted,
        exits,
        decode: generation.elapsed,
        drafts: (generation.n_drafted, generation.n_right),
    })
}

/// How replies look to the full model.
#[derive(Debug, Clone, Default)]
pub struct Rescored {
    pub n_tokens: usize,
    /// For each token that left early and that the full model would not have emitted, by how much it preferred its own, in
    /// logits.
    pub exit_gaps: Vec<f32>,
    /// The same for tokens that ran through all of the model: what they differ by, predicted K/V of earlier tokens changed
    /// (or rounding, where kernels round by batch width).
    pub kv_gaps: Vec<f32>,
}

impl Rescored {
    pub fn add(&mut self, other: &Self) {
        self.n_tokens += other.n_tokens;
        self.exit_gaps.extend_from_slice(&other.exit_gaps);
        self.kv_gaps.extend_from_slice(&other.kv_gaps);
    }

    /// Tokens that the full model would not have emitted.
    pub fn n_differing(&self) -> usize {
        self.exit_gaps.len() + self.kv_gaps.len()
    }

    /// Share of tokens that are the full model's own.
    pub fn agreement(&self) -> f64 {
        1.0 - self.n_differing() as f64 / self.n_tokens.max(1) as f64
    }
}

/// Scores a reply to `prompt` by the full model.
///
/// # Errors
/// When the decode fails or is interrupted.
pub fn rescore(rescorer: &mut Rescorer, prompt: &[Token], run: &Measured) -> Result<Rescored, Failure> {
    let mut result = Rescored::default();
    rescorer.score(prompt, &run.emitted, &mut |scored| {
        let exit = run.exits.get(result.n_tokens).copied().flatten();
        result.n_tokens += 1;
        if !scored.agrees() {
            if exit.is_some() { result.exit_gaps.push(scored.gap) } else { result.kv_gaps.push(scored.gap) }
        }
        if interrupt::is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if interrupt::is_requested() { Err(Failure::Interrupted) } else { Ok(result) }
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
