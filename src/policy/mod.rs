//! What is worth evaluating: pure decisions from measured costs and observed successes. No clock, no llama.cpp.
//!
//! Costs are seconds of this machine, measured by the caller while it decodes. A policy may cost a little to learn what
//! pays, and never more than that: it keeps an account of what its checks cost and saved, and no check is made that the
//! account does not cover.

mod account;
mod cascade;
mod check;
mod cost;
mod draft;

pub(crate) use cascade::{AtNorm, CascadePolicy, CaughtUp, KvCost, Plan, PlannedExit, Reached, Seen};
pub(crate) use draft::{Draft, DraftPolicy, Drafters, Offer, Verified};
