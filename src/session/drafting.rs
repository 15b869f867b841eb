//! Drafts, which the full model verifies several at once.
//!
//! A draft is what followed in the text before, what the head says that drafts, or, in exact mode, what exits say one after
//! another; the token that is certain and its drafts then run through the full model together, and what the model makes of each
//! is compared with the draft that follows it. A wrong draft costs time and is taken out of the cache.
//!
//! In exact mode the logits are the full model's own, whatever was drafted, for as many tokens as the screen says will be asked
//! for. So that they are also those of `off`, bit for bit, batches keep to where this model's kernels round alike at any narrow width, if there is such a place. In calibrated mode
//! the screen verifies where it is sure, as it lets single tokens go; tokens of a batch leave at no exit. It refuses memories
//! that cannot forget a wrong draft, and unless it is told to, batches that round otherwise than single tokens and are wider
//! than those that the file was certified with.

mod chain;
mod guess;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::Next;
use super::cascade::{Cascade, Drafted};
use super::exits::{Drafts, Exits, Lookup, Policy};
use super::lookup;
use super::model::Model;
use super::params::{FlashAttn, SPLIT_FROM, SessionParams};
use super::screens::Screens;
use crate::error::Result;
use crate::gate::Gate;
use crate::heads::{Candidates, DraftHead, Heads};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::policy::{Draft, DraftPolicy, Drafters, Offer, Verified};
use chain::Chain;
use guess::Guess;

/// What drafts and verifies in one session.
#[derive(Debug)]
pub(super) struct Drafting {
    /// The exits that draft.
    exits: Option<Cascade>,
    /// The head that drafts.
    chain: Option<Chain>,
    /// What tells drafts that will be wrong, in exact mode and where the exits that draft have none.
    screens: Option<Screens>,
    lookup: bool,
    /// Tokens of a batch, the certain one included.
    width: usize,
    /// Positions from which on a batch would round otherwise than single tokens.
    until: usize,
    always: bool,
    /// Costs are taken to be the fixed ones, whatever they are here.
    is_fixed: bool,
    policy: DraftPolicy,
    /// Drafts in the cache that were not compared yet, oldest first.
    ahead: VecDeque<Token>,
    /// What the batch that they are from was.
    batch: Option<Batch>,
    n_drafted: usize,
    n_right: usize,
}

/// What a further token of a batch and a draft of the head cost, in tokens alone, where that is not measured: about what they
/// do where the bytes of the weights are the limit, so that most drafts pay which pay anywhere.
const FIXED_FURTHER: f64 = 1.0 / 8.0;
const FIXED_ASKED: f64 = 1.0 / 32.0;

#[derive(Debug, Clone, Copy)]
struct Batch {
    draft: Draft,
    n_matched: usize,
    n_drafted: usize,
    n_right: usize,
    /// What asking the head took, which is not part of the other.
    asked: f64,
    seconds: f64,
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
        let is_exact = params.exits == Exits::Exact;
        let alike = model.alike_width()?;
        let certified = heads.and_then(|heads| heads.meta().calibration.as_ref()).map_or(1, |found| found.batch_width);
        // A certificate is of batches up to a width, and of what rounds as they do.
        let keeps_certificate = !is_exact && params.drafts == Drafts::Auto;
        let widest = if keeps_certificate { alike.max(certified as usize) } else { usize::MAX };
        let width = (params.max_pending as usize).clamp(2, gate.n_ubatch().max(2)).min(widest);
        if width < 2 {
            tracing::info!("nothing is drafted: batches round otherwise than the single tokens that were certified");
            return Ok(None);
        }
        // Any sure exit may draft, since it is verified: the laxest level of the file.
        let laxest = heads.filter(|_| is_exact).and_then(|heads| Some((heads, *heads.meta().agreements.first()?)));
        let thresholds = laxest.map(|(heads, agreement)| heads.thresholds(agreement)).transpose()?.flatten();
        let exits = match heads.zip(thresholds) {
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
            Some(heads) => DraftHead::new(heads, n_threads, pool.clone())?,
            None => None,
        };
        let screens = match heads.filter(|_| is_exact && can_draft && exits.is_none()) {
            Some(heads) => Screens::to_guess(heads, n_threads, pool),
            None => None,
        };
        if exits.is_none() && head.is_none() && !lookup {
            return Ok(None);
        }
        let splits = params.flash_attn != FlashAttn::Off && gate.threads().0 > 1 && !model.is_batch_invariant(params);
        // Who counts on batches that round as single tokens do, and would lose that there.
        let is_limited = splits && width <= alike && (is_exact || keeps_certificate && width > certified as usize);
        let drafters = Drafters { exits: exits.is_some(), head: head.is_some(), tokens_leave: !is_exact };
        Ok(Some(Self {
            policy: DraftPolicy::new(drafters),
            exits,
            chain: head.map(Chain::new),
            screens,
            lookup,
            width,
            until: if is_limited { SPLIT_FROM } else { usize::MAX },
            always: params.policy == Policy::Always,
            is_fixed: params.policy == Policy::Fixed,
            ahead: VecDeque::new(),
            batch: None,
            n_drafted: 0,
            n_right: 0,
        }))
    }

    /// Decodes the last token of `text`, the only one that is not in the cache, perhaps with drafts: in calibrated mode through
    /// `cascade`, else by the full model. The sampler wants as many `candidates`. Where the distribution after it is; those
    /// after each draft that [`Drafting::agrees`] will tell of follow it, unless they seemed not to be wanted.
    ///
    /// # Errors
    /// As [`Gate::decode`]. The cache may then hold drafts.
    pub(super) fn decode(
        &mut self,
        gate: &mut Gate,
        cascade: Option<&mut Cascade>,
        candidates: Candidates,
        text: &[Token],
    ) -> Result<Next> {
        let Some(&token) = text.last() else { return Ok(Next::Unknown) };
        let room = gate.n_ctx().min(self.until).saturating_sub(gate.position() + 1);
        let room = room.min(self.width.saturating_sub(1 + gate.n_pending()));
        let found = if self.lookup && room > 0 { lookup::find(text, room) } else { None };
        let offer = found.map(|found| Offer { n_matched: found.n_matched, n_tokens: found.continuation.len() });
        let before = gate.position().checked_sub(1);
        let has_state = self.chain.as_ref().zip(before).is_some_and(|(chain, before)| chain.can_follow(before));
        let draft = if self.always {
            self.everything(offer, room, has_state)
        } else {
            self.policy.plan(offer, room, has_state)
        };
        let start = Instant::now();
        let mut asked = None;
        let tokens: Vec<Token> = match (draft, found, &mut self.chain, before) {
            (Draft::Lookup(n), Some(found), ..) => {
                [token].iter().chain(found.continuation.iter().take(n)).copied().collect()
            }
            (Draft::Head, _, Some(chain), Some(before)) => {
                chain.draft(before, token, room, &self.policy, self.always)?;
                let n = if self.always { chain.drafts.len() } else { self.policy.take(&chain.chances, room) };
                let fixed = FIXED_ASKED * chain.drafts.len() as f64;
                asked = Some(if self.is_fixed { fixed } else { start.elapsed().as_secs_f64() });
                [token].iter().chain(chain.drafts.iter().take(n)).copied().collect()
            }
            _ => vec![token],
        };
        let (next, seconds) = match draft {
            Draft::Exits(n) if self.exits.is_some() => {
                self.draft_by_exits(gate, token, n.min(room), candidates)?;
                (Next::Logits(0), start.elapsed().as_secs_f64())
            }
            _ => {
                self.ahead.extend(&tokens[1..]);
                self.verify(gate, cascade, candidates, &tokens)?
            }
        };
        let seconds = if self.is_fixed { 1.0 + FIXED_FURTHER * self.ahead.len() as f64 } else { seconds };
        if tokens.len() == 1 && !matches!(draft, Draft::Exits(_)) {
            self.policy.learn_alone(seconds);
            if let Some(asked) = asked {
                self.policy.learn_head(asked, None);
            }
            return Ok(next);
        }
        let (n_matched, asked) = (offer.map_or(0, |offer| offer.n_matched), asked.unwrap_or(0.0));
        self.batch = Some(Batch { draft, n_matched, n_drafted: self.ahead.len(), n_right: 0, asked, seconds });
        self.n_drafted += self.ahead.len();
        if self.ahead.is_empty() {
            self.learn();
        }
        Ok(next)
    }

    /// What is drafted where everything is.
    fn everything(&self, offer: Option<Offer>, room: usize, has_state: bool) -> Draft {
        if room == 0 {
            return Draft::None;
        }
        let from_text = offer.map(|offer| Draft::Lookup(offer.n_tokens));
        let by_head = has_state.then_some(Draft::Head);
        let by_exits = self.exits.as_ref().map(|_| Draft::Exits(room));
        from_text.or(by_head).or(by_exits).unwrap_or(Draft::None)
    }

    /// Decodes `tokens`, all but the first of which are drafts, and keeps their final states where a head reads them. Where the
    /// distribution after the first is, and the seconds that it took, as [`Cascade::decode`] counts them.
    fn verify(
        &mut self,
        gate: &mut Gate,
        cascade: Option<&mut Cascade>,
        candidates: Candidates,
        tokens: &[Token],
    ) -> Result<(Next, f64)> {
        let first = gate.position();
        if let Some(cascade) = cascade {
            let decoded = cascade.decode(gate, tokens, candidates)?;
            if let Some(chain) = &mut self.chain {
                chain.states.restart(first);
                chain.states.extend(cascade.states());
            }
            return Ok(decoded);
        }
        let start = Instant::now();
        let guesses = self.guesses(candidates);
        let screens = self.exits.as_mut().map(Cascade::screens).or(self.screens.as_mut());
        let could_guess = screens.is_some() && tokens.len() > 1;
        match (&mut self.chain, screens.filter(|_| could_guess && guesses)) {
            // Else what the matrix takes is learnt.
            (None, None) if !could_guess => gate.decode(tokens, Logits::All)?,
            (chain, screens) => {
                let mut guess = Guess::new(screens, tokens);
                let mut wanted = |states: &[f32]| {
                    if let Some(chain) = chain {
                        chain.states.restart(first);
                        chain.states.extend(states);
                    }
                    guess.n_wanted(states)
                };
                gate.verify(tokens, &mut wanted)?;
                guess.finish(gate, &mut self.policy);
            }
        }
        Ok((Next::Logits(0), start.elapsed().as_secs_f64()))
    }

    /// Decodes `token` and at most `n` drafts up to an exit, one after another, and the blocks above in one batch.
    fn draft_by_exits(&mut self, gate: &mut Gate, token: Token, n: usize, candidates: Candidates) -> Result<()> {
        let guesses = self.guesses(candidates);
        let Some(cascade) = &mut self.exits else { return Ok(()) };
        let mut tokens = vec![token];
        for i in 0..=n {
            match cascade.draft(gate, tokens[i], i == n)? {
                Drafted::Token(draft) => {
                    self.ahead.push_back(draft);
                    tokens.push(draft);
                }
                Drafted::Joined => break,
                Drafted::Complete => return Ok(()),
            }
        }
        let mut guess = Guess::new(guesses.then(|| cascade.screens()), &tokens);
        gate.verify_pending(Logits::All, &mut |states| guess.n_wanted(states))?;
        guess.finish(gate, &mut self.policy);
        Ok(())
    }

    /// Whether to guess which rows of the output matrix will be asked for, where the sampler wants as many `candidates`: a draw
    /// may ask for any.
    fn guesses(&self, candidates: Candidates) -> bool {
        candidates == Candidates::Enough && (self.always || self.policy.guesses_rows())
    }

    /// The model has picked `token`. True if that was drafted and the distribution after it `is_there`, too. If not, what is
    /// left of the drafts is of no use, and has to go from the cache.
    pub(super) fn agrees(&mut self, token: Token, is_there: bool) -> bool {
        let Some(draft) = self.ahead.pop_front() else { return false };
        let agrees = draft == token && is_there;
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
        match (batch.draft, &self.chain) {
            (Draft::Lookup(_), _) => {
                self.policy.learn_lookup(batch.n_matched, batch.n_drafted, batch.n_right, batch.seconds);
            }
            (Draft::Head, Some(chain)) => {
                let chances = chain.chances.get(..batch.n_drafted).unwrap_or_default();
                let verified = Verified { chances, n_right: batch.n_right, seconds: batch.seconds };
                self.policy.learn_head(batch.asked, Some(verified));
            }
            (Draft::Exits(_), _) => self.policy.learn_exits(batch.n_drafted, batch.n_right, batch.seconds),
            _ => {}
        }
    }
}
