//! The checks of one session, and how they are made inside of a decode: at each exit, and at the final norm.
//!
//! A check is timed, and so is what runs between checks: the policy lives on it. An error inside of a decode ends that
//! decode and is told after it, since nothing may unwind through llama.cpp.

use std::ops::ControlFlow;
use std::time::Instant;

use super::ExitPoint;
use super::screens::Screens;
use crate::error::{Error, Result};
use crate::gate::{Outcome, Tap};
use crate::gguf::exits::{ConfidenceMap, Metric};
use crate::heads::kv::KvWriter;
use crate::heads::{Candidates, ExitHead};
use crate::llama::Token;
use crate::policy::{AtNorm, CaughtUp, Plan, Reached, Seen};

/// What can be evaluated inside a decode.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) screens: Screens,
    /// What the tokens that exits choose among must reach at the final norm, by which metric; `None` where they are not
    /// tried there.
    pub(super) vocab: Option<(Metric, Bar)>,
    /// `None` where the screen lets no token go by itself.
    pub(super) norm: Option<Bar>,
    pub(super) exits: Vec<LayerExit>,
    /// The final states of the last decode, or what the exit that a token left at predicts of its own, `[n_embd, n]`.
    pub(super) states: Vec<f32>,
    /// True if the last check was among the tokens that exits choose among.
    pub(super) is_among: bool,
}

impl Checks {
    /// True if the candidates for this final state `[n_embd]` are sure enough to stand for the output matrix.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(super) fn at_norm(&mut self, hidden: &[f32], candidates: Candidates) -> Result<bool> {
        let Self { screens, vocab, norm, is_among, .. } = self;
        if let (Some((metric, bar)), Some(among)) = (vocab, &mut screens.among) {
            // Most tokens are frequent, and a fraction of the screen's work shows it.
            *is_among = true;
            if among.evaluate_metric(hidden, *metric, candidates, &|metric| bar.is_reached(metric))? {
                return Ok(true);
            }
        }
        let Some(bar) = norm else { return Ok(false) };
        *is_among = false;
        let slack = screens.all.evaluate(hidden, candidates, bar.enough)?;
        Ok(slack.is_some_and(|slack| bar.is_reached(slack)))
    }

    /// The candidates of the last check, with their logits, by ascending id.
    pub(super) fn candidates(&self) -> &[(Token, f32)] {
        self.screens.among.as_ref().filter(|_| self.is_among).unwrap_or(&self.screens.all).candidates()
    }
}

#[derive(Debug)]
pub(super) struct LayerExit {
    pub(super) head: ExitHead,
    pub(super) bar: Bar,
    /// What the head's cheap gate must answer.
    pub(super) gate: f32,
    /// Writes the K/V of what is skipped here; `None` where tokens pend for them.
    pub(super) kv: Option<KvWriter>,
}

/// What a token must reach to leave.
#[derive(Debug)]
pub(super) struct Bar {
    confidence: ConfidenceMap,
    threshold: f32,
    /// The least value of the metric that reaches the threshold.
    enough: f32,
}

impl Bar {
    pub(super) fn new(confidence: ConfidenceMap, threshold: f32) -> Self {
        let enough = confidence.least_at(threshold);
        Self { confidence, threshold, enough }
    }

    fn is_reached(&self, metric: f32) -> bool {
        self.confidence.agreement_at(metric) >= self.threshold
    }
}

/// Makes the planned checks during one decode, and times them.
pub(super) struct Watch<'a> {
    checks: &'a mut Checks,
    plan: &'a Plan,
    n_layer: u32,
    candidates: Candidates,
    /// Planned exits that have come by.
    next: usize,
    trial_failed: bool,
    /// Since when the decode has been computing.
    running: Instant,
    batch: Option<CaughtUp>,
    at_norm: bool,
    pub(super) left: Option<ExitPoint>,
    seen: Seen,
    error: Option<Error>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(checks: &'a mut Checks, plan: &'a Plan, n_layer: u32, candidates: Candidates) -> Self {
        Self {
            checks,
            plan,
            n_layer,
            candidates,
            next: 0,
            trial_failed: false,
            running: Instant::now(),
            batch: None,
            at_norm: false,
            left: None,
            seen: Seen::default(),
            error: None,
        }
    }

    pub(super) fn see(&mut self, tap: Tap, hidden: &[f32]) -> ControlFlow<()> {
        let seconds = self.running.elapsed().as_secs_f64();
        match (self.batch, tap) {
            (Some(batch), _) => self.seen.caught_up = Some((batch, seconds)),
            (None, Tap::Layer(layer)) => {
                self.seen.n_layers = layer + 1;
                self.seen.layers += seconds;
            }
            (None, Tap::ResultNorm) => {
                self.seen.n_layers = self.n_layer;
                self.seen.layers += seconds;
            }
        }
        let leaves = match tap {
            Tap::Layer(layer) => self.check_exit(layer, hidden),
            Tap::ResultNorm => {
                self.checks.states.clear();
                self.checks.states.extend_from_slice(hidden);
                self.check_norm(hidden)
            }
        };
        self.running = Instant::now();
        match leaves {
            Ok(false) => ControlFlow::Continue(()),
            Ok(true) => {
                self.left = Some(match tap {
                    Tap::Layer(layer) => ExitPoint::Layer(layer),
                    Tap::ResultNorm => ExitPoint::Screen,
                });
                ControlFlow::Break(())
            }
            Err(error) => {
                self.error.get_or_insert(error);
                ControlFlow::Break(())
            }
        }
    }

    /// True if the token leaves after this block.
    fn check_exit(&mut self, layer: u32, hidden: &[f32]) -> Result<bool> {
        let Some(&planned) = self.plan.exits.get(self.next) else { return Ok(false) };
        let Checks { screens, exits, is_among, states, .. } = &mut *self.checks;
        let exit = &mut exits[planned.exit];
        if exit.head.layer() != layer {
            return Ok(false);
        }
        self.next += 1;
        if planned.on_trial && self.trial_failed {
            return Ok(false);
        }
        let start = Instant::now();
        let bar = &exit.bar;
        *is_among = true;
        let screen = screens.of_exits();
        let leaves = exit.head.guess(hidden)? >= exit.gate
            && exit.head.evaluate(screen, self.candidates, &|metric| bar.is_reached(metric))?;
        if leaves {
            states.clear();
            states.extend_from_slice(screen.state());
        }
        self.trial_failed |= planned.on_trial && !leaves;
        self.seen.exits.push(Reached { exit: planned.exit, seconds: start.elapsed().as_secs_f64(), left: leaves });
        Ok(leaves)
    }

    /// True if the token leaves before the output matrix.
    fn check_norm(&mut self, hidden: &[f32]) -> Result<bool> {
        self.at_norm = true;
        if self.plan.norm == AtNorm::Plain {
            return Ok(false);
        }
        let start = Instant::now();
        let confident = self.checks.at_norm(hidden, self.candidates)?;
        self.seen.screen = Some((start.elapsed().as_secs_f64(), confident));
        Ok(confident && self.plan.norm == AtNorm::Screen)
    }

    /// From here on, the decode is the batch that catches up.
    pub(super) fn catch_up(&mut self, batch: CaughtUp) {
        self.batch = Some(batch);
        self.running = Instant::now();
    }

    /// A decode has ended.
    pub(super) fn complete(&mut self, outcome: Outcome) {
        if outcome == Outcome::Complete && self.at_norm {
            self.seen.matrix = Some(self.running.elapsed().as_secs_f64());
        }
    }

    pub(super) fn into_seen(self) -> Result<Seen> {
        self.error.map_or(Ok(self.seen), Err)
    }
}
