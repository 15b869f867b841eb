//! Sessions: plain, with a screen, with exits, in exact mode, and what judges them.

mod beside;
mod default_model;
mod drafts;
mod exact;
mod exits;
mod greedy_identity;
mod operations;
mod promises;
mod rescore;
mod samplers;
mod screened;
mod state;

#[path = "../common/mod.rs"]
mod common;
#[path = "../screen/mod.rs"]
mod screen;
