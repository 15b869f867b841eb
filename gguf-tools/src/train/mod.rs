//! Heads from collected tokens.
pub mod data;
pub mod evaluate;
pub mod fit;
pub mod head;
pub mod input;
pub mod loss;
pub mod network;
pub mod ridge;
pub mod stored;
