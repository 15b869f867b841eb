//! Free-running decodes through the release path, and what the full model makes of them.
//!
//! Each prompt is decoded greedily by a session as `offramp run` makes one, with exits at one candidate's thresholds and
//! the K/V policy that will be stored; then a session of the full model reads the same text. A prompt's loss is the share
//! of its emitted tokens, an end token included, that the full model would not have emitted there: those of exits that
//! were wrong, and those of full depth that predicted K and V have changed. It refuses texts that are longer than the
//! context.

use std::ops::ControlFlow;

use anyhow::Context;
use offramp::{GenerateParams, Model, Rescorer, Sampler, SamplerParams, Session, SessionParams, Token};

/// One prompt's decode, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Tokens that were emitted, an end token included.
    pub n_tokens: usize,
    /// Those that the full model would not have emitted.
    pub n_wrong: usize,
    /// Those that left the model early.
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
    near_tie: f32,
    session: Option<Session>,
    rescorer: Rescorer,
    /// The last text of each prompt, and what the judge said: laxer thresholds often emit the same.
    judged: Vec<Option<(Vec<Token>, usize, usize)>>,
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
        let near_tie = model.gate_support()?.width_difference;
        let rescorer = Rescorer::new(model, &params)?;
        Ok(Judge { model, params, n_tokens, near_tie, session: None, rescorer, judged: vec![None; n_prompts] })
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
        session.clear();
        session.set_prompt(prompt, &mut |_| {})?;
        let mut greedy = SamplerParams::default();
        greedy.temperature = 0.0;
        let mut sampler = Sampler::new(self.model, &greedy)?;
        let mut params = GenerateParams::default();
        params.max_tokens = self.n_tokens;
        let made = session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(()))?;
        // The session's text has the end token, which the generation leaves out.
        let emitted = session.tokens().get(prompt.len()..).context("a text without its prompt")?.to_vec();
        let n_exited = made.exits.iter().filter(|exit| exit.is_some()).count();
        let known = self.judged.get(index).and_then(Option::as_ref).filter(|(tokens, ..)| *tokens == emitted);
        let (n_wrong, n_near_ties) = match known {
            Some((_, n_wrong, n_near_ties)) => (*n_wrong, *n_near_ties),
            None => self.judge(prompt, &emitted)?,
        };
        let run = Run { n_tokens: emitted.len(), n_wrong, n_exited, n_near_ties };
        if let Some(place) = self.judged.get_mut(index) {
            *place = Some((emitted, n_wrong, n_near_ties));
        }
        Ok(run)
    }

    fn judge(&mut self, prompt: &[Token], emitted: &[Token]) -> anyhow::Result<(usize, usize)> {
        let (mut n_wrong, mut n_near_ties) = (0, 0);
        let near_tie = self.near_tie;
        self.rescorer.score(prompt, emitted, &mut |scored| {
            n_wrong += usize::from(!scored.agrees());
            n_near_ties += usize::from(scored.margin < near_tie);
            ControlFlow::Continue(())
        })?;
        Ok((n_wrong, n_near_ties))
    }
}
