//! One decode that may end early: after a block, at the exit there, or at the final norm, at the screen.
//!
//! Heads are evaluated inside the decode, where llama.cpp has computed the hidden state and its threads wait. A confident
//! exit ends the decode, and its candidates stand for the distribution. The blocks that were skipped then owe the token
//! its K/V. They are predicted at once; or, under catch-up, it pends: the next token that no exit lets go takes all that
//! pend along through the blocks above, in one batch, with the output matrix for itself alone. The policy says which
//! checks are made. It refuses K/V policies that the heads or the model do not support.

mod verify;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::checks::{Bar, Checks, LayerExit, Watch};
use super::exits::{Kv, Policy};
use super::model::Model;
use super::params::SessionParams;
use super::screens::Screens;
use super::{ExitPoint, Next};
use crate::error::{Error, Result};
use crate::gate::{Gate, Outcome, Tap};
use crate::gguf::exits::{KvPolicy, VocabMeta};
use crate::heads::kv::KvWriter;
use crate::heads::{Candidates, ExitHead, Heads, Thresholds, best};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::policy::{AtNorm, CascadePolicy, CaughtUp, KvCost, Plan, PlannedExit, Seen};

/// The exits of one session.
#[derive(Debug)]
pub(super) struct Cascade {
    checks: Checks,
    max_pending: usize,
    n_layer: u32,
    policy: CascadePolicy,
    /// The candidates after each token of a batch that was verified, from the one on that is asked for.
    verified: VecDeque<Vec<(Token, f32)>>,
}

impl Cascade {
    /// On the threads of `gate`, which is empty. `None` if nothing is left that a token could leave at.
    ///
    /// # Errors
    /// [`Error::Heads`], [`Error::Unsupported`] for a K/V policy that cannot be had, [`Error::InvalidValue`] for
    /// `max_pending` below 2.
    pub(super) fn new(
        model: &Model,
        heads: &Arc<Heads>,
        thresholds: &Thresholds,
        params: &SessionParams,
        gate: &mut Gate,
    ) -> Result<Option<Self>> {
        if params.max_pending < 2 {
            return Err(Error::InvalidValue {
                name: "max_pending",
                found: params.max_pending.to_string(),
                expected: "at least 2: a token that waits and one that ends its waiting",
            });
        }
        let meta = heads.meta();
        let (n_threads, pool) = gate.threads();
        let mut screens = Screens::new(heads, n_threads, pool)?;
        let mut exits = Vec::new();
        for (i, weights) in heads.exits()?.iter().enumerate() {
            let threshold = thresholds.exits[i];
            if threshold.is_finite() && meta.layers[i] >= params.min_exit_layer {
                let head = ExitHead::new(weights, meta.metric, screens.of_exits())?;
                let bar = Bar::new(meta.confidence[i].clone(), threshold);
                exits.push(LayerExit { head, bar, gate: thresholds.gates[i], kv: None });
            }
        }
        let writes = !exits.is_empty() && write_kv(model, heads, params, &mut exits, gate)?;
        if !exits.is_empty()
            && !writes
            && let Some(reason) = model.no_resume(&exits.iter().map(|exit| exit.head.layer()).collect::<Vec<_>>())?
        {
            tracing::info!("no exits after blocks: {reason}");
            exits.clear();
        }
        let bar = || Bar::new(meta.screen.confidence.clone(), thresholds.screen);
        let norm = thresholds.screen.is_finite().then(bar);
        let of_vocab = |vocab: &VocabMeta| (meta.metric, Bar::new(vocab.confidence.clone(), thresholds.vocab));
        let vocab = meta.vocab.as_ref().filter(|_| thresholds.vocab.is_finite()).map(of_vocab);
        if exits.is_empty() && norm.is_none() && vocab.is_none() {
            return Ok(None);
        }
        let n_layer = model.info().n_layer;
        let layers: Vec<u32> = exits.iter().map(|exit| exit.head.layer()).collect();
        let kv = if writes { KvCost::AtExit } else { KvCost::Later };
        let policy =
            CascadePolicy::new(n_layer, &layers, norm.is_some() || vocab.is_some(), kv, params.policy != Policy::Auto);
        let checks = Checks { screens, vocab, norm, exits, states: Vec::new(), is_among: false };
        let max_pending = params.max_pending as usize;
        Ok(Some(Self { checks, max_pending, n_layer, policy, verified: VecDeque::new() }))
    }

    /// True if there are exits after blocks.
    pub(super) fn has_exits(&self) -> bool {
        !self.checks.exits.is_empty()
    }

    /// Decodes a token, or one and drafts after it, which leave at no exit. Where the distribution after the first is, and the
    /// seconds that it took: without what earlier tokens owed, and with what this one will when it is caught up.
    ///
    /// # Errors
    /// As [`Gate::decode_tapped`], and [`Error::Heads`].
    pub(super) fn decode(&mut self, gate: &mut Gate, tokens: &[Token], candidates: Candidates) -> Result<(Next, f64)> {
        self.verified.clear();
        self.checks.states.clear();
        let start = Instant::now();
        let owed = self.owed(gate);
        let next = match tokens {
            [token] => self.decode_one(gate, *token, candidates)?.map_or(Next::Logits(0), Next::Candidates),
            _ => self.verify(gate, tokens, candidates)?,
        };
        Ok((next, (start.elapsed().as_secs_f64() + self.owed(gate) - owed).max(0.0)))
    }

    /// Seconds that it will take to catch up on the tokens that wait.
    fn owed(&self, gate: &Gate) -> f64 {
        gate.pending_layer().map_or(0.0, |layer| self.policy.owed(gate.n_pending(), layer))
    }

    /// Where the token left the model, if it did: then [`Cascade::candidates`] is its distribution; otherwise the gate has its
    /// logits, as the only ones.
    fn decode_one(&mut self, gate: &mut Gate, token: Token, candidates: Candidates) -> Result<Option<ExitPoint>> {
        let pending = gate.pending_layer();
        let mut plan = self.policy.plan(pending);
        if pending.is_some() && gate.n_pending() + 1 >= self.max_pending {
            plan.exits.clear();
        }
        let mut taps: Vec<Tap> =
            plan.exits.iter().map(|planned| Tap::Layer(self.checks.exits[planned.exit].head.layer())).collect();
        match pending {
            // Its hidden state there is what the batch resumes from.
            Some(layer) if taps.is_empty() => taps.push(Tap::Layer(layer)),
            Some(_) => {}
            None if taps.is_empty() && plan.norm == AtNorm::Plain => {
                gate.decode(&[token], Logits::Last)?;
                self.policy.learn(&Seen::default());
                return Ok(None);
            }
            None => taps.push(Tap::ResultNorm),
        }
        let mut watch = Watch::new(&mut self.checks, &plan, self.n_layer, candidates);
        let outcome = gate.decode_tapped(&[token], &taps, &mut |tap, hidden| watch.see(tap, hidden))?;
        watch.complete(outcome);
        let mut left = watch.left;
        if left.is_none() && pending.is_some() {
            let batch = CaughtUp {
                n_tokens: u32::try_from(gate.n_pending().saturating_sub(1)).unwrap_or(u32::MAX),
                n_layers: self.n_layer - 1 - gate.pending_layer().unwrap_or(0),
            };
            watch.catch_up(batch);
            let outcome =
                gate.catch_up_for(Logits::Last, &[Tap::ResultNorm], &mut |tap, hidden| watch.see(tap, hidden))?;
            watch.complete(outcome);
            left = watch.left;
        }
        let mut seen = watch.into_seen()?;
        if let Some(ExitPoint::Layer(layer)) = left {
            seen.kv = self.write_kv(gate, layer);
        }
        self.policy.learn(&seen);
        Ok(left)
    }

    /// Gives the token that just left after `layer` its K/V, where they are not caught up later. The seconds that took.
    fn write_kv(&mut self, gate: &mut Gate, layer: u32) -> Option<f64> {
        let exit = self.checks.exits.iter_mut().find(|exit| exit.head.layer() == layer)?;
        let writer = exit.kv.as_mut()?;
        let start = Instant::now();
        if let Err(error) = gate.predict(writer) {
            // The token pends as before. A cache whose cells the blocks up to here do not show is what this meets.
            tracing::info!("K/V cannot be written after block {layer} ({error}): tokens wait to catch up");
            self.checks.exits.iter_mut().for_each(|exit| exit.kv = None);
            self.policy.catch_up();
            return None;
        }
        Some(start.elapsed().as_secs_f64())
    }

    /// Lets an exit draft the token after `token`: after the block that others wait at, or after the first whose exit is
    /// sure. With `only_join`, `token` just joins those that wait.
    ///
    /// # Errors
    /// As [`Cascade::decode`].
    pub(super) fn draft(&mut self, gate: &mut Gate, token: Token, only_join: bool) -> Result<Drafted> {
        let pending = gate.pending_layer();
        let exits = (0..).zip(&self.checks.exits);
        let usable = exits.filter(|(_, exit)| pending.is_none_or(|layer| layer == exit.head.layer()) && !only_join);
        let exits: Vec<PlannedExit> = usable.map(|(exit, _)| PlannedExit { exit, on_trial: false }).collect();
        let plan = Plan { exits, norm: AtNorm::Plain };
        let mut taps: Vec<Tap> =
            plan.exits.iter().map(|p| Tap::Layer(self.checks.exits[p.exit].head.layer())).collect();
        if let (Some(layer), true) = (pending, taps.is_empty()) {
            taps.push(Tap::Layer(layer));
        }
        let mut watch = Watch::new(&mut self.checks, &plan, self.n_layer, Candidates::Enough);
        let outcome = gate.decode_tapped(&[token], &taps, &mut |tap, hidden| watch.see(tap, hidden))?;
        let left = watch.left;
        watch.into_seen()?;
        Ok(match (left, best(self.candidates()), outcome) {
            (Some(_), Some((draft, _)), _) => Drafted::Token(draft),
            (_, _, Outcome::Complete) => Drafted::Complete,
            _ => Drafted::Joined,
        })
    }

    /// What has been learnt of costs and successes.
    pub(super) fn policy(&self) -> &CascadePolicy {
        &self.policy
    }

    /// The candidates of the last token that left, with their logits, by ascending id.
    pub(super) fn candidates(&self) -> &[(Token, f32)] {
        self.verified.front().map_or_else(|| self.checks.candidates(), Vec::as_slice)
    }

    /// What tells drafts that will be wrong.
    pub(super) fn screens(&mut self) -> &mut Screens {
        &mut self.checks.screens
    }

    /// The final states of the last decode, or what the exit that its token left at predicts; nothing where none was seen.
    pub(super) fn states(&self) -> &[f32] {
        &self.checks.states
    }
}

/// What became of a token that an exit should have drafted after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drafted {
    /// An exit drafted this; the token waits.
    Token(Token),
    /// No exit was sure; the token waits with the others.
    Joined,
    /// No exit was sure and none waited: the token ran through the whole model and has logits.
    Complete,
}

/// Takes the K/V policy that is asked for. False if tokens catch up.
///
/// # Errors
/// [`Error::Unsupported`] for one that was asked for by name and cannot be had.
fn write_kv(
    model: &Model,
    heads: &Heads,
    params: &SessionParams,
    exits: &mut [LayerExit],
    gate: &mut Gate,
) -> Result<bool> {
    let certified = heads.meta().calibration.as_ref().map(|calibration| calibration.kv_policy);
    let propagate = match (params.kv, certified) {
        // Predicting a block's K/V costs less than any share of running it, so that what is certified is what is taken.
        (Kv::Predict, _) | (Kv::Auto, Some(KvPolicy::Predict)) => false,
        (Kv::Propagate, _) | (Kv::Auto, Some(KvPolicy::Propagate)) => true,
        (Kv::CatchUp | Kv::Auto, _) => return Ok(false),
    };
    let is_certified = match certified {
        Some(KvPolicy::Predict) => !propagate,
        Some(KvPolicy::Propagate) => propagate,
        _ => false,
    };
    if !is_certified {
        tracing::info!(kv = %params.kv, "the heads were not certified with this K/V policy");
    }
    let writers = model.no_predict().and_then(|reason| match reason {
        Some(found) => Err(Error::Unsupported { what: "predicting K/V", found, fix: "run with --kv catch-up" }),
        None => exits.iter().map(|exit| writer(heads, exit.head.layer(), propagate, gate)).collect::<Result<Vec<_>>>(),
    });
    match writers {
        Ok(writers) => {
            exits.iter_mut().zip(writers).for_each(|(exit, writer)| exit.kv = Some(writer));
            Ok(true)
        }
        Err(error) if params.kv == Kv::Auto => {
            tracing::info!("K/V are caught up: {error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn writer(heads: &Heads, layer: u32, propagate: bool, gate: &mut Gate) -> Result<KvWriter> {
    if propagate {
        return KvWriter::propagate(layer, gate);
    }
    let index = heads.meta().layers.iter().position(|&il| il == layer);
    let maps = index.and_then(|i| heads.kv_maps().map(|maps| maps.get(i)?.clone()).transpose());
    match maps {
        Some(maps) => KvWriter::maps(&maps?, gate),
        None => Err(Error::Unsupported {
            what: "predicting K/V",
            found: format!("an exit after block {layer} without K/V maps"),
            fix: "run with --kv catch-up",
        }),
    }
}
