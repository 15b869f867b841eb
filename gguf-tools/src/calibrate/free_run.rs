//! Free-running decodes through the release path, and what the full model makes of them.
//!
//! Each prompt is decoded greedily by a session as `offramp run` makes one, with exits at one candidate's thresholds and
//! the K/V policy that will be stored; then a session of the full model reads the same text. A prompt's loss is the share
//! of its emitted tokens, an end token included, that the full model would not have emitted there: those of exits that
//! were wrong, and those of full depth that predicted K and V have changed. A prompt is read once for both of
//! them, and what all prompts begin with, a template's opening mostly, once for all. It refuses texts that are longer than the context.

use offramp::measure::{Reply, Rescored};
use offramp::{Model, Rescorer, SamplerParams, Session, SessionParams, Token};

/// One prompt's decode, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    /// Tokens that were emitted, an end token included.
    n_tokens: usize,
    /// Those that the full model would not have emitted.
    n_wrong: usize,
    /// Those that left the model early, an end token included.
    n_exited: usize,
    /// Those at which the full model's two best are closer than the difference between batch widths.
    n_near_ties: usize,
}

impl Run {
    /// The share of wrong tokens.
    fn loss(&self) -> f64 {
        self.n_wrong as f64 / self.n_tokens.max(1) as f64
    }
}

/// The sums over the prompts that were decoded at one candidate's thresholds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Step {
    /// Prompts that were decoded.
    pub n_prompts: usize,
    /// Tokens that were emitted.
    pub n_tokens: u64,
    /// Tokens that the full model would not have emitted.
    pub n_wrong: u64,
    /// Tokens that left the model early.
    pub n_exited: u64,
    /// Tokens at a near-tie of the full model.
    pub n_near_ties: u64,
    /// The losses of the prompts, added up.
    pub loss: f64,
}

impl Step {
    fn add(&mut self, run: &Run) {
        self.n_prompts += 1;
        self.n_tokens += run.n_tokens as u64;
        self.n_wrong += run.n_wrong as u64;
        self.n_exited += run.n_exited as u64;
        self.n_near_ties += run.n_near_ties as u64;
        self.loss += run.loss();
    }

    /// The mean loss of the prompts.
    pub fn risk(&self) -> f64 {
        self.loss / self.n_prompts.max(1) as f64
    }

    /// The share of tokens that left the model early.
    pub fn exit_rate(&self) -> f64 {
        self.n_exited as f64 / self.n_tokens.max(1) as f64
    }
}

/// Decodes and judges prompts.
pub struct Judge<'a> {
    model: &'a Model,
    params: SessionParams,
    n_tokens: usize,
    rescorer: Rescorer,
    prompts: &'a [Vec<Token>],
    /// The last text of each prompt, and what the judge said: laxer thresholds often emit the same.
    judged: Vec<Option<(Vec<Token>, Rescored)>>,
}

impl<'a> Judge<'a> {
    /// For `prompts`; `params` are those of the sessions that exit, but for the agreement; at most `n_tokens` a prompt.
    ///
    /// # Errors
    ///
    /// As [`Rescorer::new`].
    pub fn new(
        model: &'a Model,
        params: SessionParams,
        n_tokens: usize,
        prompts: &'a [Vec<Token>],
    ) -> anyhow::Result<Judge<'a>> {
        let mut rescorer = Rescorer::new(model, &params)?;
        rescorer.share(common_beginning(prompts));
        Ok(Judge { model, params, n_tokens, rescorer, prompts, judged: vec![None; prompts.len()] })
    }

    /// Decodes and judges the first prompts with the level of this agreement, as long as `needs_more` says so of the losses
    /// that there are.
    ///
    /// # Errors
    ///
    /// As [`Session::new`], a decode that fails, and those of `needs_more`.
    pub fn losses(
        &mut self,
        agreement: f32,
        needs_more: &mut dyn FnMut(&[f64]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<(Vec<f64>, Step)> {
        self.params.agreement = agreement;
        let mut session = Session::new(self.model, &self.params)?;
        let (mut losses, mut step) = (Vec::new(), Step::default());
        for (index, prompt) in self.prompts.iter().enumerate() {
            if !needs_more(&losses)? {
                break;
            }
            let run = self.run(&mut session, index, prompt)?;
            step.add(&run);
            losses.push(run.loss());
        }
        Ok((losses, step))
    }

    fn run(&mut self, session: &mut Session, index: usize, prompt: &[Token]) -> anyhow::Result<Run> {
        let mut greedy = SamplerParams::default();
        greedy.temperature = 0.0;
        self.rescorer.read_prompt(prompt, session)?;
        let reply = Reply::decode_after(session, prompt, &greedy, self.n_tokens)?;
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

/// What all of `prompts` begin with, less the last token of the shortest: the rest of each is what a reply follows.
fn common_beginning(prompts: &[Vec<Token>]) -> &[Token] {
    let Some((first, others)) = prompts.split_first().filter(|(_, others)| !others.is_empty()) else { return &[] };
    let shared = |other: &Vec<Token>| {
        first.iter().zip(other).take_while(|(a, b)| a == b).count().min(other.len().saturating_sub(1))
    };
    let n = others.iter().map(shared).fold(first.len().saturating_sub(1), usize::min);
    &first[..n]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_what_all_begin_with_and_each_keeps_a_token_of_its_own() {
        let prompts = |all: &[&[i32]]| -> Vec<Vec<Token>> {
            all.iter().map(|ids| ids.iter().map(|id| Token(*id)).collect()).collect()
        };
        let n = |all: &[&[i32]]| common_beginning(&prompts(all)).len();
        assert_eq!(n(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 3]]), 2);
        assert_eq!(n(&[&[1, 2], &[1, 2, 3]]), 1);
        assert_eq!(n(&[&[1, 2, 3], &[4, 2, 3]]), 0);
        assert_eq!([n(&[&[1, 2, 3]]), n(&[])], [0, 0]);
    }
}
