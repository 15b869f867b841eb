//! The model that is to get exits, and the file that they are written to.
//!
//! It refuses outputs that exist, files that hold heads alone, and models that have heads already, unless those are to be
//! replaced.

use std::path::Path;

use anyhow::bail;
use offramp::gguf::exits::{self, Base, ExitMeta};
use offramp::gguf::{Error, File, WriteOptions, Writer};

use crate::args::{Heads, Write};
use crate::convert::check;
use crate::output::Progress;

/// The model that is to get exits, and the one that it is inside of where it has some already.
pub struct Target {
    /// The model.
    pub file: File,
}

impl Target {
    /// Opens the model, and checks what can be checked before any work.
    pub fn open(path: &Path, write: &Write, heads: &Heads) -> anyhow::Result<Target> {
        check(heads)?;
        if !write.force && write.output.exists() {
            return Err(Error::OutputExists { path: write.output.clone() }.into());
        }
        let file = File::open(path)?;
        let inner = exits::base(&file)?;
        if inner.is_none() && ExitMeta::is_in(&file) {
            bail!("{} holds exit heads and no model: give the model that they were made for", path.display());
        }
        if inner.is_some() && !write.force {
            bail!(
                "{} has exit heads already: give --force to make new ones for the model inside, or take them off with \
                 strip-heads first",
                path.display()
            );
        }
        Ok(Target { file: inner.unwrap_or(file) })
    }

    /// Hashes the model.
    pub fn base(&self) -> anyhow::Result<Base> {
        let mut progress = Progress::new("hashing");
        Ok(Base::of(&self.file, &mut |done, total| progress.step(done, total))?)
    }

    /// Writes the heads, or the model with them; gives the bytes of the file.
    pub fn write(&self, sidecar: Writer, write: &Write, heads: &Heads) -> anyhow::Result<u64> {
        let mut progress = Progress::new("writing");
        let mut step = |done, total| progress.step(done, total);
        let options = WriteOptions::replacing(write.force);
        if heads.sidecar {
            sidecar.write(&write.output, options, &mut step)?;
            return Ok(sidecar.size());
        }
        let new = File::from_bytes(sidecar.to_bytes()?, "the new heads")?;
        let merged = exits::attach(&self.file, &new, &mut step)?;
        merged.write(&write.output, options, &mut step)?;
        Ok(merged.size())
    }
}
