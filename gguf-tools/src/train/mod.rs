//! From collected tokens to heads: what the runtime evaluates after a block, and when it pays.
//!
//! ```text
//! hidden state -> input (norm) -> head -> final state -> the shared screen -> candidates -> confidence
//!                       |-> gate: is the head worth its evaluation?
//!                       '-> K/V maps: keys and values of the blocks that are skipped
//! ```
//!
//! - [`input`], [`stored`], [`head`], [`draft`]: the runtime's mathematics on stored, rounded matrices;
//! - [`ridge`]: closed forms, the start of every head and all there is to K/V maps ([`kv`]);
//! - [`data`], [`network`], [`product`], [`loss`], [`adamw`], [`fit`]: training by gradient, with candle;
//! - [`gate`], [`classifier`] (both by [`logistic`] regression), [`evaluate`]: when a head pays, how sure it is, and what it says on
//!   unseen tokens;
//! - [`cascade`], [`choose`]: several heads in a row, and which of them.
//!
//! It refuses hidden states that were not collected, and training that diverges.

pub mod adamw;
pub mod cascade;
pub mod choose;
pub mod classifier;
pub mod compare;
pub mod data;
pub mod draft;
pub mod evaluate;
pub mod fit;
pub mod gate;
pub mod head;
pub mod input;
pub mod kv;
pub mod logistic;
pub mod loss;
pub mod network;
pub mod product;
pub mod ridge;
pub mod stored;
