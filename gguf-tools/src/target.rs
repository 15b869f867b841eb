//! The model that is to get exits, and the file that they are written to.
//!
//! It refuses outputs that exist, files that hold heads alone, and models that have heads already, unless those are to be
//! replaced.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use offramp::HeadsCache;
use offramp::gguf::exits::{self, Base, ExitMeta};
use offramp::gguf::{Error, File, WriteOptions, Writer};

use crate::args::{Heads, Write, WriteHeads};
use crate::convert::check;
use crate::output::Progress;

/// The model that is to get exits, and the one that it is inside of where it has some already.
pub struct Target {
    /// The model.
    pub file: File,
    /// Where to write.
    pub write: Write,
}

impl Target {
    /// Opens the model, and checks what can be checked before any work.
    pub fn open(path: &Path, write: &WriteHeads, heads: &Heads) -> anyhow::Result<Target> {
        check(heads)?;
        if let Some(output) = write.output.as_ref().filter(|output| !write.force && output.exists()) {
            return Err(Error::OutputExists { path: output.clone() }.into());
        }
        let file = File::open_model(path)?;
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
        let file = inner.unwrap_or(file);
        let output = match &write.output {
            Some(output) => output.clone(),
            None => in_cache(&file, write)?,
        };
        Ok(Target { file, write: Write { output, force: write.force, dry_run: write.dry_run } })
    }

    /// Hashes the model.
    pub fn base(&self) -> anyhow::Result<Base> {
        let mut progress = Progress::new("hashing");
        Ok(Base::of(&self.file, &mut |done, total| progress.step(done, total))?)
    }

    /// Writes the heads, or the model with them; gives the bytes of the file.
    pub fn write(&self, sidecar: Writer, heads: &Heads) -> anyhow::Result<u64> {
        let write = &self.write;
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

/// The place in the user's cache for the heads of a model.
fn in_cache(model: &File, write: &WriteHeads) -> anyhow::Result<PathBuf> {
    let cache = HeadsCache::of_user().context("there is no home folder to keep the heads in; give a file with -o")?;
    let mut progress = Progress::new("hashing");
    let path = cache.path_for(&cache.base_sha256(model, &mut |done, total| progress.step(done, total))?);
    if !write.force && path.exists() {
        return Err(Error::OutputExists { path }.into());
    }
    if let Some(folder) = path.parent().filter(|_| !write.dry_run) {
        std::fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    }
    Ok(path)
}
