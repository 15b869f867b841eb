//! Free-running decodes through the release path, and what the full model makes of them.
//!
//! Each prompt is decoded greedily by a session as `offramp run` makes one, with exits at one candidate's thresholds and
//! the K/V policy that will be stored; then a session of the full model reads the same text. A prompt's loss is the share
//! of its emitted tokens, an end token included, that the full model would not have emitted there: those of exits that
//! were wrong, and those of full depth that predicted K and V have changed. It refuses texts that are longer than the
//! context.

use anyhow::Context;
use offramp::measure::{Reply, Rescored};
use offramp::{Model, Rescorer, SamplerParams, Session, SessionParams, Token};

/// One prompt's decode, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Tokens that were emitted, an end token included.
    pub n_tokens: usize,
    /// Those that the full model would not have emitted.
    pub n_wrong: usize,
    /// Those that left the model early, an end token included.
    pub n_exited: usize,
    /// Those at which the full model's two best are closer than the difference between batch widths.
    pub n_near_ties: usize,
}

impl Run {
    /// The share of wrong tokens.
    pub fn loss(&self) -> f64 {
        self.n_wrong as f64 / self.n_tokens.max(1) as f64
    }
}

/// Decodes and judges prompts.
pub struct Judge<'a> {
    model: &'a Model,
    params: SessionParams,
    n_tokens: usize,
    session: Option<Session>,
    rescorer: Rescorer,
    /// The last text of each prompt, and what the judge said: laxer thresholds often emit the same.
    judged: Vec<Option<(Vec<Token>, Rescored)>>,
}

impl<'a> Judge<'a> {
    /// `params` are those of the sessions that exit, but for the agreement; at most `n_tokens` a prompt.
    ///
    /// # Errors
    ///
    /// As [`Rescorer::new`].
    pub fn new(
        model: &'a Model,
        params: SessionParams,
        n_tokens: usize,
        n_prompts: usize,
    ) -> anyhow::Result<Judge<'a>> {
        let rescorer = Rescorer::new(model, &params)?;
        Ok(Judge { model, params, n_tokens, session: None, rescorer, judged: vec![None; n_prompts] })
    }

    /// Goes on with the level of this agreement.
    ///
    /// # Errors
    ///
    /// As [`Session::new`].
    pub fn set_level(&mut self, agreement: f32) -> anyhow::Result<()> {
        // One session's cache at a time.
        self.session = None;
        self.params.agreement = agreement;
        self.session = Some(Session::new(self.model, &self.params)?);
        Ok(())
    }

    /// Decodes prompt number `index` and judges it.
    ///
    /// # Errors
    ///
    /// A decode that fails, a level that was never set.
    pub fn run(&mut self, index: usize, prompt: &[Token]) -> anyhow::Result<Run> {
        let session = self.session.as_mut().context("a prompt before the level it is decoded at")?;
        let mut greedy = SamplerParams::default();
        greedy.temperature = 0.0;
        let reply = Reply::decode(session, prompt, &greedy, self.n_tokens)?;
        let known = self.judged.get(index).and_then(Option::as_ref).filter(|(tokens, _)| *tokens == reply.tokens);
        let judged = match known {
            Some((_, judged)) => judged.with_exits_of(&reply),
            None => Rescored::of(&mut self.rescorer, prompt, &reply, &mut || true)?,
        };
        let run = Run {
            n_tokens: reply.tokens.len(),
            n_wrong: judged.differing.len(),
            n_exited: reply.n_exited(),
            n_near_ties: judged.n_near_ties,
        };
        if let Some(place) = self.judged.get_mut(index) {
            *place = Some((reply.tokens, judged));
        }
        Ok(run)
    }
}
