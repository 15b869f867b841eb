//! `offramp serve`: what it promises to clients that behave, to those that do not, and to those whose prompts it reads.
#![cfg(feature = "serve")]

mod canary;
mod fields;
mod hostile;
mod limits;
mod openai;
mod page;
mod requests;
mod server;
mod tools;

#[path = "../python/mod.rs"]
mod python;
#[path = "../screen/mod.rs"]
mod screen;
#[path = "../support/mod.rs"]
mod support;
