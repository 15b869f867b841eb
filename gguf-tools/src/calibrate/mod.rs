//! Thresholds that keep their promise: from losses of prompts to certified levels of agreement.
//!
//! A *loss* is one prompt's, in [0, 1]: the share of its generated tokens that an exit emitted and the full model, in
//! the same context, would not have. The *risk* is its mean over prompts. Prompts are the unit everywhere, because the
//! tokens of one prompt depend on each other. Prompts must come from where the user's prompts come from, in an order
//! that does not depend on their losses: that is all the bounds assume.
//!
//! - [`bounds`]: p-values and upper bounds on the risk;
//! - [`sequence`]: Learn-then-Test along a fixed sequence of thresholds;
//! - [`isotonic`]: from a metric to the probability of agreement;
//! - [`candidates`], [`pilot`], [`walk`], [`free_run`], [`confirm`]: the certificate of a file, by free-running decodes.
//!
//! All but the last two are pure arithmetic: no model, no file, no randomness. It refuses losses outside [0, 1].

pub mod bounds;
pub mod candidates;
pub mod confirm;
pub mod free_run;
pub mod isotonic;
pub mod pilot;
pub mod sequence;
pub mod walk;

#[cfg(test)]
mod simulation;
