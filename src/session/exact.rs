//! Exact mode: drafts that the full model verifies, several in one batch.
//!
//! A draft is what followed in the text before, what the head says that drafts, or what exits say one after another; the
//! token that is certain and its drafts then run through the full model together, and the logits after each are compared
//! with the draft that follows it. Those logits are the full model's own, whatever was drafted: a wrong draft costs time and
//! is taken out of the cache. So that they are also those of `off`, bit for bit, batches keep to where this model's kernels round alike at
//! any narrow width, if there is such a place. It refuses memories that cannot forget a wrong draft.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::cascade::{Cascade, Drafted};
use super::exits::{Lookup, Policy};
use super::lookup;
use super::model::Model;
use super::params::{FlashAttn, SPLIT_FROM, SessionParams};
use crate::error::Result;
use crate::gate::{Gate, Tap};
use crate::heads::{DraftHead, Heads};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::policy::{Draft, DraftPolicy, Drafters, Offer, Verified};

/// What drafts and verifies in one session.
#[derive(Debug)]
pub(super) struct Drafting {
    cascade: Option<Cascade>,
    head: Option<DraftHead>,
    states: States,
    lookup: bool,
    /// Tokens of a batch, the certain one included.
    width: usize,
    /// Positions from which on a batch would round otherwise than single tokens.
    until: usize,
    always: bool,
    policy: DraftPolicy,
    /// Drafts in the cache that were not compared yet, oldest first.
    ahead: VecDeque<Token>,
    /// What the batch that they are from was.
    batch: Option<Batch>,
    n_drafted: usize,
    n_right: usize,
}

#[derive(Debug, Clone, Copy)]
struct Batch {
    draft: Draft,
    n_matched: usize,
    n_drafted: usize,
    n_right: usize,
    /// What asking the head took, which is not part of the others, and the chance that it gave its draft.
    asked: (f64, f32),
    seconds: f64,
}

/// The final states of the last decode, for the head that drafts. One that an edit of the text has overtaken drafts badly,
/// and does no other harm.
#[derive(Debug, Default)]
struct States {
    /// The position of the first.
    first: usize,
    /// `[n_embd, n]`.
    values: Vec<f32>,
}

impl States {
    /// The state `[n_embd]` at a position.
    fn at(&self, position: usize, n_embd: usize) -> Option<&[f32]> {
        let start = position.checked_sub(self.first)?.checked_mul(n_embd)?;
        self.values.get(start..start.checked_add(n_embd)?)
    }
}

impl Drafting {
    /// `None` where nothing can be drafted.
    ///
    /// # Errors
    /// As [`Cascade::new`], and when the model's self-test cannot decode.
    pub(super) fn new(
        model: &Model,
        heads: Option<&Arc<Heads>>,
        params: &SessionParams,
        gate: &mut Gate,
    ) -> Result<Option<Self>> {
        let info = model.info();
        if info.recurrent || info.hybrid {
            tracing::info!("nothing is drafted: the model's memory cannot forget a wrong draft");
            return Ok(None);
        }
        // Any sure exit may draft, since it is verified: the laxest level of the file.
        let laxest = heads.and_then(|heads| Some((heads, *heads.meta().agreements.first()?)));
        let thresholds = laxest.map(|(heads, agreement)| heads.thresholds(agreement)).transpose()?.flatten();
        let cascade = match heads.zip(thresholds) {
            Some((heads, thresholds)) => {
                let catch_up = SessionParams { kv: super::Kv::CatchUp, ..params.clone() };
                Cascade::new(model, heads, &thresholds, &catch_up, gate)?.filter(Cascade::has_exits)
            }
            None => None,
        };
        let lookup = params.lookup == Lookup::Auto;
        let can_draft = gate.can_tap() && gate.n_ubatch() > 1;
        let (n_threads, pool) = gate.threads();
        let head = match heads.filter(|_| can_draft) {
            Some(heads) => DraftHead::new(heads, n_threads, pool)?,
            None => None,
        };
        if cascade.is_none() && head.is_none() && !lookup {
            return Ok(None);
        }
        let rounds_alike = model.width_difference()? == 0.0;
        let splits = params.flash_attn != FlashAttn::Off && gate.threads().0 > 1;
        Ok(Some(Self {
            policy: DraftPolicy::new(Drafters { exits: cascade.is_some(), head: head.is_some() }),
            cascade,
            head,
            states: States::default(),
            lookup,
            width: (params.max_pending as usize).clamp(2, gate.n_ubatch().max(2)),
            until: if rounds_alike && splits { SPLIT_FROM } else { usize::MAX },
            always: params.policy == Policy::Always,
            ahead: VecDeque::new(),
            batch: None,
            n_drafted: 0,
            n_right: 0,
        }))
    }

    /// Decodes the last token of `text`, the only one that is not in the cache, perhaps with drafts. The gate has the
    /// logits after it as the first, and after each draft that [`Drafting::agrees`] will tell of as the following ones.
    ///
    /// # Errors
    /// As [`Gate::decode`]. The cache may then hold drafts.
    pub(super) fn decode(&mut self, gate: &mut Gate, text: &[Token]) -> Result<()> {
        let Some(&token) = text.last() else { return Ok(()) };
        let room = gate.n_ctx().min(self.until).saturating_sub(gate.position() + 1).min(self.width - 1);
        let found = if self.lookup && room > 0 { lookup::find(text, room) } else { None };
        let offer = found.map(|found| Offer { n_matched: found.n_matched, n_tokens: found.continuation.len() });
        let before = gate.position().checked_sub(1);
        let has_state = before.is_some_and(|before| self.states.at(before, gate.n_embd()).is_some());
        let mut draft = self.policy.plan(offer, room, has_state);
        if self.always && room > 0 {
            let from_text = offer.map(|offer| Draft::Lookup(offer.n_tokens));
            let by_head = self.head.as_ref().filter(|_| has_state).map(|_| Draft::Head(0.0));
            let by_exits = self.cascade.as_ref().map(|_| Draft::Exits(room));
            draft = from_text.or(by_head).or(by_exits).unwrap_or(Draft::None);
        }
        let mut start = Instant::now();
        let mut asked = (0.0, 0.0);
        match (draft, found) {
            (Draft::Lookup(n), Some(found)) => {
                let drafts = &found.continuation[..n.min(found.continuation.len())];
                let mut tokens = vec![token];
                tokens.extend_from_slice(drafts);
                self.decode_batch(gate, &tokens)?;
                self.ahead.extend(drafts);
            }
            (Draft::Head(least), _) => {
                let next = self.ask(before, token, least)?;
                let seconds = start.elapsed().as_secs_f64();
                start = Instant::now();
                let Some((next, chance)) = next else {
                    self.decode_batch(gate, &[token])?;
                    self.policy.learn_alone(start.elapsed().as_secs_f64());
                    self.policy.learn_head(seconds, None);
                    return Ok(());
                };
                asked = (seconds, chance);
                self.decode_batch(gate, &[token, next])?;
                self.ahead.push_back(next);
            }
            (Draft::Exits(n), _) if self.cascade.is_some() => self.draft_by_exits(gate, token, n.min(room))?,
            _ => {
                self.decode_batch(gate, &[token])?;
                self.policy.learn_alone(start.elapsed().as_secs_f64());
                return Ok(());
            }
        }
        let n_matched = offer.map_or(0, |offer| offer.n_matched);
        let seconds = start.elapsed().as_secs_f64();
        self.batch = Some(Batch { draft, n_matched, n_drafted: self.ahead.len(), n_right: 0, asked, seconds });
        self.n_drafted += self.ahead.len();
        if self.ahead.is_empty() {
            self.learn();
        }
        Ok(())
    }

    /// What the head drafts after `token`, which came of the state at `before`, and the chance that it is right, if that is at
    /// least `least`.
    fn ask(&mut self, before: Option<usize>, token: Token, least: f32) -> Result<Option<(Token, f32)>> {
        let Some(head) = &mut self.head else { return Ok(None) };
        match before.and_then(|before| self.states.at(before, head.n_embd())) {
            Some(state) => head.draft(state, token, least),
            None => Ok(None),
        }
    }

    /// Decodes `tokens`, with logits for all, and keeps their final states where a head reads them.
    fn decode_batch(&mut self, gate: &mut Gate, tokens: &[Token]) -> Result<()> {
        if self.head.is_none() {
            return gate.decode(tokens, Logits::All);
        }
        let States { first, values } = &mut self.states;
        values.clear();
        *first = gate.position();
        gate.decode_tapped(tokens, &[Tap::ResultNorm], &mut |_, hidden| {
            values.extend_from_slice(hidden);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// Decodes `token` and at most `n` drafts up to an exit, one after another, and the blocks above in one batch.
    fn draft_by_exits(&mut self, gate: &mut Gate, token: Token, n: usize) -> Result<()> {
        let Some(cascade) = &mut self.cascade else { return Ok(()) };
        let mut next = token;
        for i in 0..=n {
            match cascade.draft(gate, next, i == n)? {
                Drafted::Token(draft) => {
                    self.ahead.push_back(draft);
                    next = draft;
                }
                Drafted::Joined => break,
                Drafted::Complete => return Ok(()),
            }
        }
        gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(()))?;
        Ok(())
    }

    /// The full model has picked `token`. True if that was drafted: the gate has the logits after it, too. If not, what
    /// is left of the drafts is wrong, and has to go from the cache.
    pub(super) fn agrees(&mut self, token: Token) -> bool {
        let Some(draft) = self.ahead.pop_front() else { return false };
        let agrees = draft == token;
        if let Some(batch) = self.batch.as_mut().filter(|_| agrees) {
            batch.n_right += 1;
            self.n_right += 1;
        }
        if !agrees {
            self.ahead.clear();
        }
        if self.ahead.is_empty() {
            self.learn();
        }
        agrees
    }

    /// Forgets the drafts that were not compared. True if there were some.
    pub(super) fn forget(&mut self) -> bool {
        self.batch = None;
        let some = !self.ahead.is_empty();
        self.ahead.clear();
        some
    }

    /// Drafts so far, and how many of them the full model agreed with.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.n_drafted, self.n_right)
    }

    /// What has been learnt of costs and successes.
    pub(super) fn policy(&self) -> &DraftPolicy {
        &self.policy
    }

    fn learn(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        match batch.draft {
            Draft::Lookup(_) => {
                self.policy.learn_lookup(batch.n_matched, batch.n_drafted, batch.n_right, batch.seconds);
            }
            Draft::Head(_) => {
                let (asked, chance) = batch.asked;
                let draft = Verified { chance, is_right: batch.n_right > 0, seconds: batch.seconds };
                self.policy.learn_head(asked, Some(draft));
            }
            Draft::Exits(_) => self.policy.learn_exits(batch.n_drafted, batch.n_right, batch.seconds),
            Draft::None => {}
        }
    }
}
