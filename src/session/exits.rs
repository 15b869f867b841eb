//! Early exits at work in a session: one decode that may end at the screen.
//!
//! The screen is evaluated inside the decode, where llama.cpp has computed `result_norm` and its threads wait. If it is
//! confident the output matrix is left out, and the rescored candidates stand for the distribution; if not, the decode
//! goes on as it always does. All layers have run either way, so that the K/V cache is a plain decode's. It refuses
//! nothing by itself: a session without calibrated heads has none of this.

use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::gate::{Gate, Outcome, Tap};
use crate::gguf::exits::ConfidenceMap;
use crate::heads::{Heads, Screen};
use crate::llama::Token;
use crate::policy::{Plan, ScreenPolicy, Seen};

/// Whether tokens may leave the model early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Exits {
    /// Never: plain llama.cpp.
    Off,
    /// Where the heads are confident enough for the wanted agreement; off for a model without calibrated heads.
    #[default]
    Calibrated,
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Calibrated => "calibrated",
        })
    }
}

impl FromStr for Exits {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        [Self::Off, Self::Calibrated]
            .into_iter()
            .find(|exits| exits.to_string() == text)
            .ok_or_else(|| Error::InvalidValue { name: "exits", found: text.to_owned(), expected: "off or calibrated" })
    }
}

/// The screen of one session, with its threshold and its policy.
#[derive(Debug)]
pub(super) struct ScreenExit {
    screen: Screen,
    confidence: ConfidenceMap,
    threshold: f32,
    policy: ScreenPolicy,
}

/// The confidence that a screened token must reach; `None` if the heads never exit at the wanted agreement.
///
/// # Errors
/// [`Error::InvalidValue`] for an agreement that the heads have no level for.
pub(super) fn threshold(heads: &Heads, agreement: f32) -> Result<Option<f32>> {
    let threshold = heads.screen_threshold(agreement)?;
    if threshold.is_none() {
        tracing::info!(agreement, "the heads were not certified for this agreement: nothing exits");
    }
    Ok(threshold)
}

impl ScreenExit {
    /// On the threads of `gate`.
    ///
    /// # Errors
    /// [`Error::Heads`], [`Error::Unsupported`].
    pub(super) fn new(heads: &Arc<Heads>, threshold: f32, gate: &Gate) -> Result<Self> {
        let (n_threads, pool) = gate.threads();
        Ok(Self {
            screen: Screen::new(heads, n_threads, pool)?,
            confidence: heads.meta().screen.confidence.clone(),
            threshold,
            policy: ScreenPolicy::default(),
        })
    }

    /// Decodes one token. True if it exited: then [`ScreenExit::candidates`] is its distribution; otherwise the gate has
    /// its logits.
    ///
    /// # Errors
    /// As [`Gate::decode_tapped`], and [`Error::Heads`].
    pub(super) fn decode(&mut self, gate: &mut Gate, token: Token) -> Result<bool> {
        let plan = self.policy.plan();
        if plan == Plan::Plain {
            gate.decode(&[token], crate::llama::batch::Logits::Last)?;
            return Ok(false);
        }
        let mut seen = Ok(None);
        let mut matrix_from = Instant::now();
        let outcome = gate.decode_tapped(&[token], &[Tap::ResultNorm], &mut |_, hidden| {
            let start = Instant::now();
            let slack = self.screen.evaluate(hidden);
            matrix_from = Instant::now();
            let confident = slack.map(|slack| slack.is_some_and(|s| self.confidence.agreement_at(s) >= self.threshold));
            let exit = *confident.as_ref().unwrap_or(&true) && plan == Plan::Screen;
            seen = confident.map(|confident| Some((confident, (matrix_from - start).as_secs_f64())));
            if exit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let exited = outcome == Outcome::Stopped(Tap::ResultNorm);
        if let Some((confident, screen)) = seen? {
            let matrix = (!exited).then(|| matrix_from.elapsed().as_secs_f64());
            self.policy.learn(Seen { screen, matrix, confident });
        }
        Ok(exited)
    }

    /// What has been learnt of costs and successes.
    pub(super) fn policy(&self) -> &ScreenPolicy {
        &self.policy
    }

    /// The candidates of the last token that exited, with their logits, by ascending id.
    pub(super) fn candidates(&self) -> &[(Token, f32)] {
        self.screen.candidates()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_read_as_they_are_printed() {
        for exits in [Exits::Off, Exits::Calibrated] {
            assert_eq!(exits.to_string().parse::<Exits>().unwrap(), exits);
        }
        assert!("sometimes".parse::<Exits>().is_err());
    }
}
