//! Makes the shared and the static library of [`offramp::capi`]. Nothing of its own: the functions keep their names
//! through this re-export, and everything else stays inside.

pub use offramp::capi::*;
