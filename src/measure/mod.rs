//! What exits did to replies: decoded alone in an empty cache, and read again by the full model.
//!
//! One rule holds everywhere: a reply's tokens are those that the model emitted, its end token among them, and each counts
//! once, for agreement, exits and depth alike. The first of them comes with the prompt, so that it ran through the whole
//! model and no time is counted for it. Every figure of `offramp bench`, `gguf-tools calibrate` and `gguf-tools eval`
//! rests on this module; it prints nothing and knows no files.

mod depths;
mod quantile;
mod reply;
mod rescored;

pub use depths::Depths;
pub use quantile::quantile;
pub use reply::Reply;
pub use rescored::{Differing, Rescored};
