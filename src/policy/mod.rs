//! What is worth evaluating: pure decisions from measured costs and observed successes. No clock, no llama.cpp.
//!
//! Costs are seconds of this machine, measured by the caller while it decodes. A policy may cost a little to learn what
//! pays, and never more than that: a screen that always fails is dropped after a few tokens and asked again ever more
//! rarely.

mod screen;

pub(crate) use screen::{Plan, ScreenPolicy, Seen};
