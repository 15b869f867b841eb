//! Heads without a flag: the user's own, kept by the model that they are for, and those that lie beside a model.
//!
//! ```text
//! <cache folder>/heads/<SHA-256 of the base>.gguf    what `add-heads --sidecar` writes
//! <cache folder>/heads/index.json                    size, time and sampled hash of a model's files -> its SHA-256
//! <the model's folder>/exits-*.gguf                  what a repository ships beside its models
//! ```
//!
//! Heads are taken only where the SHA-256 of the whole model is the one they were made for. The model is read for that once,
//! where heads of the same shape are there at all; the index then knows it by the size and the time of its files and by a
//! hash of samples. Damaged heads and a damaged index are passed over: they are no defect of the model.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gguf::exits::{self, BaseCheck, ExitHeads};
use crate::gguf::{AtomicFile, File, Progress};

/// The most files that are looked at in one folder.
const MAX_LOOKED_AT: usize = 1000;
/// The most models that the index remembers; the oldest go first.
const MAX_REMEMBERED: usize = 500;
/// The longest index that is read, in bytes.
const MAX_INDEX: u64 = 1 << 20;
const INDEX: &str = "index.json";

/// Offramp's folder in the user's cache: `$OFFRAMP_CACHE`, `$XDG_CACHE_HOME/offramp`, or the system's own place.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_of(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn cache_folder_of(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(folder) = variable("OFFRAMP_CACHE") {
        return Some(folder.into());
    }
    if cfg!(target_os = "macos") {
        return Some(Path::new(&variable("HOME")?).join("Library/Caches/offramp"));
    }
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
    Some(base.or_else(|| Some(Path::new(&variable("HOME")?).join(".cache")))?.join("offramp"))
}

/// A folder of heads, each named by the model that it is for.
#[derive(Debug, Clone)]
pub struct HeadsCache {
    folder: PathBuf,
}

/// What the index knows of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Bytes of each of its files.
    sizes: Vec<u64>,
    /// When each was last written, in nanoseconds.
    times: Vec<i64>,
    /// The hash of its tensor entries and of samples of their data.
    sample: String,
    /// The hash of all of it.
    sha256: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    models: Vec<Known>,
}

impl HeadsCache {
    /// The user's, which need not exist yet; `None` where there is no home folder.
    pub fn of_user() -> Option<HeadsCache> {
        Some(HeadsCache::at(cache_folder()?.join("heads")))
    }

    /// The one in this folder, which need not exist yet.
    pub fn at(folder: impl Into<PathBuf>) -> HeadsCache {
        HeadsCache { folder: folder.into() }
    }

    /// Where the heads of a model are kept.
    pub fn path_for(&self, base_sha256: &str) -> PathBuf {
        self.folder.join(format!("{base_sha256}.gguf"))
    }

    /// The heads for `model`, opened without any around it: the user's own, or else those beside its file; `None` where there
    /// are none. `progress` is told of the hashing, which happens once for a model.
    ///
    /// # Errors
    /// When the model cannot be read, and [`Error::Cancelled`] when `progress` answers false.
    pub fn find(&self, model: &File, progress: &mut Progress<'_>) -> Result<Option<PathBuf>> {
        let own = files_in(&self.folder, |_| true);
        let beside = files_in(folder_of(model.path()), |name| name.starts_with("exits-"));
        let mut sha256 = None;
        for path in own.into_iter().chain(beside) {
            let Some(base) = base_of(&path, model) else { continue };
            let sha256 = match &sha256 {
                Some(sha256) => sha256,
                None => sha256.insert(self.base_sha256(model, progress)?),
            };
            if base == *sha256 {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Whether the heads in a file are for `model`; false, too, where the file holds none that can be used.
    ///
    /// # Errors
    /// As [`HeadsCache::find`].
    pub fn fits(&self, heads: &Path, model: &File, progress: &mut Progress<'_>) -> Result<bool> {
        match base_of(heads, model) {
            Some(base) => Ok(base == self.base_sha256(model, progress)?),
            None => Ok(false),
        }
    }

    /// The SHA-256 by which heads know `model` ([`exits::base_sha256`]), computed once and remembered.
    ///
    /// # Errors
    /// As [`HeadsCache::find`].
    pub fn base_sha256(&self, model: &File, progress: &mut Progress<'_>) -> Result<String> {
        let cancelled = |error| match error {
            crate::gguf::Error::Interrupted => Error::Cancelled,
            error => error.into(),
        };
        let Some(mut known) = Known::of(model).map_err(cancelled)? else {
            return exits::base_sha256(model, progress).map_err(cancelled);
        };
        let index = self.read_index();
        if let Some(found) = index.models.iter().find(|other| known.is_same_file(other)) {
            return Ok(found.sha256.clone());
        }
        tracing::info!("hashing {} once, to know which heads are for it", model.path().display());
        known.sha256 = exits::base_sha256(model, progress).map_err(cancelled)?;
        let sha256 = known.sha256.clone();
        if let Err(error) = self.remember(known) {
            tracing::warn!("cannot remember the hash of {}: {error}", model.path().display());
        }
        Ok(sha256)
    }

    fn read_index(&self) -> Index {
        let path = self.folder.join(INDEX);
        let is_short = std::fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= MAX_INDEX);
        let text = if is_short { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Adds to the index. Of two programs that do so at once the first may be forgotten, and is then hashed again.
    fn remember(&self, known: Known) -> Result<()> {
        let io = |source| Error::Io { path: self.folder.clone(), source };
        let mut index = self.read_index();
        index.models.retain(|other| !known.is_same_file(other));
        index.models.push(known);
        let excess = index.models.len().saturating_sub(MAX_REMEMBERED);
        index.models.drain(..excess);
        let text = serde_json::to_vec_pretty(&index).map_err(|error| io(error.into()))?;
        std::fs::create_dir_all(&self.folder).map_err(io)?;
        let mut file = AtomicFile::create(&self.folder.join(INDEX), true)?;
        file.write_all(&text)?;
        Ok(file.commit()?)
    }
}

/// What the user's cache has for a model that is about to load; nothing for one with heads around it. `progress` is that of the
/// loading, which has not begun.
pub(crate) fn find_for(model: &File, progress: &mut dyn FnMut(f32) -> bool) -> Result<Option<PathBuf>> {
    let cache = HeadsCache::of_user().filter(|_| model.tensor(exits::BASE_HEADER).is_none());
    let found = cache.map(|cache| cache.find(model, &mut |_, _| progress(0.0))).transpose()?.flatten();
    if let Some(path) = &found {
        tracing::info!("exit heads from {}", path.display());
    }
    Ok(found)
}

impl Known {
    /// What tells a model's files without reading them whole; `None` for what is in no file.
    fn of(model: &File) -> crate::gguf::Result<Option<Known>> {
        let (mut sizes, mut times) = (Vec::new(), Vec::new());
        for path in model.paths() {
            let data = std::fs::metadata(path).and_then(|data| Ok((data.len(), data.modified()?)));
            let Ok((size, modified)) = data else { return Ok(None) };
            let since = modified.duration_since(SystemTime::UNIX_EPOCH).map_or(-1, |since| since.as_nanos() as i64);
            sizes.push(size);
            times.push(since);
        }
        Ok(Some(Known { sizes, times, sample: exits::sample_sha256(model)?, sha256: String::new() }))
    }

    fn is_same_file(&self, other: &Known) -> bool {
        (&self.sizes, &self.times, &self.sample) == (&other.sizes, &other.times, &other.sample)
    }
}

/// The hash of the model that the heads in a file were made for, where that has the shape of `model`.
fn base_of(path: &Path, model: &File) -> Option<String> {
    let read = || {
        let file = File::open(path)?;
        let heads = ExitHeads::open(&file)?;
        heads.check_base(model, BaseCheck::Infos, &mut |_, _| true)?;
        crate::gguf::Result::Ok(heads.meta().base.sha256.clone())
    };
    read().map_err(|error| tracing::debug!("{}: no heads for this model: {error}", path.display())).ok()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The GGUF files of a folder whose names `wants` takes, in the order of their names.
fn files_in(folder: &Path, wants: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| name.ends_with(".gguf") && !name.starts_with('.') && wants(name)).collect();
    names.sort_unstable();
    names.truncate(MAX_LOOKED_AT);
    names.into_iter().map(|name| folder.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(variables: &[(&str, &str)]) -> Option<PathBuf> {
        cache_folder_of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn our_own_variable_goes_first() {
        assert_eq!(folder(&[("OFFRAMP_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/a".into()));
        assert_eq!(folder(&[]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn by_default_it_is_under_the_home_folder() {
        assert_eq!(folder(&[("HOME", "/c")]), Some("/c/.cache/offramp".into()));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/b/offramp".into()));
    }
}
