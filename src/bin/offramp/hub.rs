//! tmp
use crate::failure::Failure;
use std::path::PathBuf;
pub fn fetch(_: &str) -> Result<PathBuf, Failure> {
    Ok(PathBuf::new())
}
