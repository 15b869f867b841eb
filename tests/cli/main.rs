//! `offramp` as its users see it: what each command prints where, on a terminal and off it, and how it ends.

mod architectures;
mod bench;
mod chat;
mod doctor;
mod heads;
#[cfg(feature = "hf")]
mod hub;
#[cfg(target_os = "linux")]
mod pty;
mod run;
#[cfg(target_os = "linux")]
mod terminal;
mod usage;

#[path = "../gguf/random.rs"]
#[allow(dead_code)]
mod random;
#[path = "../screen/mod.rs"]
mod screen;
#[path = "../support/mod.rs"]
mod support;
