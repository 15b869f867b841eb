//! Free-running decodes through the release path, and what the full model makes of them.
//!
//! Each prompt is decoded greedily by a session as `offramp run` makes one, with exits at one candidate's thresholds and
//! the K/V policy that will be stored; then a session of the full model reads the same text. A prompt's loss is the share
//! of its emitted tokens, an end token included, that the full model would not have emitted there: those of exits that
//! were wrong, and those of full depth that predicted K and V have changed. A prompt is read once for both of
//! them, and what all prompts begin with, a template's opening mostly, once for all. Where sessions are to be certified that may draft, each prompt
//! is decoded twice, without drafts and with those that pay where batches cost little, and the worse decode counts: what a
//! session drafts lies between the two, by what pays on its machine. It refuses texts that are longer than the context.

use anyhow::Context;
use offramp::measure::{Reply, Rescored};
use offramp::{Drafts, Model, Rescorer, SamplerParams, Session, SessionParams, Token};

use super::confirm::Options;

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
    /// Those that were drafted.
    n_drafted: usize,
}

impl Run {
    /// The share of wrong tokens.
    fn loss(&self) -> f64 {
        self.n_wrong as f64 / self.n_tokens.max(1) as f64
    }

    /// Itself, or `other` where that lost more; the tokens that either drafted.
    fn or_worse(self, other: Run) -> Run {
        let n_drafted = self.n_drafted + other.n_drafted;
        Run { n_drafted, ..if other.loss() > self.loss() { other } else { self } }
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
    /// Tokens that were drafted.
    pub n_drafted: u64,
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
        self.n_drafted += run.n_drafted as u64;
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
    /// Those of the sessions, but for the agreement: one that drafts nothing, and perhaps one that drafts.
    params: Vec<SessionParams>,
    n_tokens: usize,
    rescorer: Rescorer,
    prompts: &'a [Vec<Token>],
    /// The last texts of each prompt, and what the judge said: laxer thresholds often emit the same.
    judged: Vec<Vec<(Vec<Token>, Rescored)>>,
}

impl<'a> Judge<'a> {
    /// For `prompts`, decoded as `options` has it.
    ///
    /// # Errors
    ///
    /// As [`Rescorer::new`].
    pub fn new(model: &'a Model, options: &Options, prompts: &'a [Vec<Token>]) -> anyhow::Result<Judge<'a>> {
        let with = |drafts| {
            let mut params = options.session.clone();
            params.drafts = drafts;
            params
        };
        let params = [Drafts::Off].into_iter().chain(options.with_drafts.then_some(Drafts::On)).map(with).collect();
        let mut rescorer = Rescorer::new(model, &options.session)?;
        rescorer.share(common_beginning(prompts));
        let judged = vec![Vec::new(); prompts.len()];
        Ok(Judge { model, params, n_tokens: options.tokens, rescorer, prompts, judged })
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
        let mut sessions: Vec<Session> = Vec::new();
        for params in &mut self.params {
            params.agreement = agreement;
            sessions.push(match sessions.first() {
                None => Session::new(self.model, params)?,
                Some(first) => first.beside(params)?,
            });
        }
        let (mut losses, mut step) = (Vec::new(), Step::default());
        for (index, prompt) in self.prompts.iter().enumerate() {
            if !needs_more(&losses)? {
                break;
            }
            let run = self.run(&mut sessions, index, prompt)?;
            step.add(&run);
            losses.push(run.loss());
        }
        Ok((losses, step))
    }

    /// The worse of the decodes.
    fn run(&mut self, sessions: &mut [Session], index: usize, prompt: &[Token]) -> anyhow::Result<Run> {
        let mut greedy = SamplerParams::default();
        greedy.temperature = 0.0;
        self.rescorer.read_prompt(prompt, sessions)?;
        let known = &mut self.judged[index];
        let n_before = known.len();
        let mut worst: Option<Run> = None;
        for session in sessions {
            let reply = Reply::decode_after(session, prompt, &greedy, self.n_tokens)?;
            let rescored = match known.iter().find(|(tokens, _)| *tokens == reply.tokens) {
                Some((_, rescored)) => rescored.with_exits_of(&reply),
                None => Rescored::of(&mut self.rescorer, prompt, &reply, &mut || true)?,
            };
            let run = Run {
                n_tokens: reply.tokens.len(),
                n_wrong: rescored.differing.len(),
                n_exited: reply.n_exited(),
                n_near_ties: rescored.n_near_ties,
                n_drafted: reply.n_drafted,
            };
            worst = Some(worst.map_or(run, |worst| worst.or_worse(run)));
            known.push((reply.tokens, rescored));
        }
        known.drain(..n_before);
        worst.context("no session to decode with")
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
    fn of_two_decodes_the_worse_one_counts() {
        let run = |n_wrong, n_drafted| Run { n_tokens: 10, n_wrong, n_exited: 5, n_near_ties: 0, n_drafted };
        for (one, other, n_wrong) in [(0, 1, 1), (1, 0, 1), (0, 0, 0)] {
            let worse = run(one, 0).or_worse(run(other, 7));
            assert_eq!((worse.n_wrong, worse.n_drafted), (n_wrong, 7));
        }
    }

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
