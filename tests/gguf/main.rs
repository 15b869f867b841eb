//! GGUF files: what is read, written and refused, against damage, real models, llama.cpp and another implementation.

mod cases;
#[cfg(unix)]
mod crash;
mod exits;
mod found;
mod hostile;
mod load;
mod models;
mod package;
mod parts;
mod quants;
mod random;
mod round_trip;
mod split;
#[cfg(unix)]
mod tail;
mod write;

#[path = "../python/mod.rs"]
mod python;
