//! `offramp list`, `rm` and `show`: the models of the cache folder, which is the Hugging Face hub's own, so that what other
//! programs fetched is found and what is fetched here is theirs too. It removes nothing without being told so.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hf_hub::Cache;
use offramp::gguf;

use crate::failure::Failure;
use crate::hub::{self, Group, Name};
use crate::machine;
use crate::output::tamed;

/// Arguments of `offramp list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print one JSON object a model, a line each
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `offramp rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// A model as `list` names it; without a quantization all of its files
    #[arg(value_name = "USER/MODEL[:QUANT]")]
    pub name: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Arguments of `offramp show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A model as `list` names it, or a GGUF file [default: the model that `make model` fetches]
    #[arg(value_name = "USER/MODEL[:QUANT] | FILE")]
    pub name: Option<String>,
}

/// A model of the cache, or exit heads: one GGUF file, or all parts of a split model.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Cached {
    /// `user/model`, or `(default)`.
    pub repo: String,
    /// Name within the repository; of a split model, that of the first part.
    pub file: String,
    /// Where it is: a link to its blob, most often.
    pub path: PathBuf,
    pub size: u64,
    /// All of its files.
    #[serde(skip)]
    pub files: Vec<PathBuf>,
}

/// The models of the cache, by name; of several snapshots the last one counts.
pub fn models() -> Vec<Cached> {
    found_in(Cache::from_env().path(), hub::is_model)
}

/// What `wants` takes of a cache.
fn found_in(folder: &Path, wants: fn(&str) -> bool) -> Vec<Cached> {
    let mut files = BTreeMap::new();
    for entry in entries(folder) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(repo) = name.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
        for snapshot in entries(&entry.join("snapshots")) {
            for path in files_under(&snapshot, 3) {
                let file = path.strip_prefix(&snapshot).unwrap_or(&path).to_string_lossy().into_owned();
                // A link whose blob is gone has no size.
                let Ok(data) = std::fs::metadata(&path) else { continue };
                if wants(&file) {
                    files.insert((repo.clone(), file), (path, data.len()));
                }
            }
        }
    }
    let mut found: Vec<Cached> = Vec::new();
    for ((repo, file), (path, size)) in files {
        match found.last_mut() {
            // The parts of a model come one after another.
            Some(last) if last.repo == repo && Group::of(&last.file) == Group::of(&file) => {
                last.size += size;
                last.files.push(path);
            }
            _ => found.push(Cached { repo, file, path: path.clone(), size, files: vec![path] }),
        }
    }
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = read.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

/// Files below `folder`, this many folders deep.
fn files_under(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) = entries(folder).into_iter().partition(|path| path.is_dir());
    let below = folders.iter().filter(|_| depth > 0).flat_map(|folder| files_under(folder, depth - 1));
    below.chain(files).collect()
}

/// The files of a model in the cache.
fn matching(models: Vec<Cached>, name: &Name<'_>) -> Vec<Cached> {
    let is_wanted =
        |model: &Cached| model.repo == name.repo && name.quant.is_none_or(|quant| hub::has_quant(&model.file, quant));
    models.into_iter().filter(is_wanted).collect()
}

/// The model that is taken where none is named, if it is there. It is in no repository, and `rm` does not know it.
fn default_model() -> Option<Cached> {
    let path = crate::resolve::model_file(None, None, false).ok()?;
    let size = std::fs::metadata(&path).ok()?.len();
    let file = path.file_name()?.to_string_lossy().into_owned();
    Some(Cached { repo: "(default)".to_owned(), file, path: path.clone(), size, files: vec![path] })
}

/// # Errors
/// When whoever reads the output has gone.
pub fn list(arguments: &ListArgs) -> Result<(), Failure> {
    let models: Vec<Cached> = default_model().into_iter().chain(models()).collect();
    let mut out = io::stdout().lock();
    for model in &models {
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(model).map_err(Failure::failed)?)?;
        } else {
            writeln!(out, "{:>10}  {}  {}", machine::size(model.size), model.repo, model.file)?;
        }
    }
    if models.is_empty() {
        eprintln!("offramp: no models in {}; offramp pull USER/MODEL fetches one", Cache::from_env().path().display());
    }
    Ok(())
}

/// # Errors
/// When there is no such model, when the user does not say yes, and when a file cannot be removed.
pub fn remove(arguments: &RemoveArgs) -> Result<(), Failure> {
    let name = Name::read(&arguments.name)?;
    let mut doomed = matching(models(), &name);
    doomed.extend(matching(found_in(Cache::from_env().path(), hub::is_heads), &name));
    if doomed.is_empty() {
        return Err(Failure::failed(format!("the cache has no {}; offramp list tells what it has", arguments.name)));
    }
    for model in &doomed {
        eprintln!("{:>10}  {}", machine::size(model.size), model.path.display());
    }
    if !arguments.yes && !is_confirmed()? {
        return Err(Failure::failed("nothing was removed; say yes, or give --yes"));
    }
    for path in doomed.iter().flat_map(|model| &model.files) {
        remove_file(path)?;
    }
    eprintln!("offramp: {} removed", machine::size(doomed.iter().map(|model| model.size).sum()));
    Ok(())
}

fn is_confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("remove these? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::failed(format!("cannot read stdin: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Removes a file of a snapshot, and its blob if no other link leads there.
fn remove_file(path: &Path) -> Result<(), Failure> {
    let cannot = |path: &Path, error: io::Error| Failure::failed(format!("cannot remove {}: {error}", path.display()));
    let blob = path.canonicalize().map_err(|error| cannot(path, error))?;
    std::fs::remove_file(path).map_err(|error| cannot(path, error))?;
    let snapshots = path.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "snapshots"));
    let others = snapshots.into_iter().flat_map(|folder| files_under(folder, 4));
    let is_needed = others.into_iter().any(|other| other.canonicalize().is_ok_and(|other| other == blob));
    let is_blob = blob.parent().is_some_and(|folder| folder.file_name().is_some_and(|name| name == "blobs"));
    if is_blob && !is_needed {
        std::fs::remove_file(&blob).map_err(|error| cannot(&blob, error))?;
    }
    Ok(())
}

/// The file that is called so: itself, or one of the cache.
fn file_named(name: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(path);
    }
    let found = matching(models(), &Name::read(name)?).into_iter().next();
    found
        .map(|model| model.path)
        .ok_or_else(|| Failure::failed(format!("there is no file {name}, and the cache has no model {name}")))
}

/// # Errors
/// When there is no such model, or it is no GGUF file that can be read.
pub fn show(arguments: &ShowArgs) -> Result<(), Failure> {
    let path = match &arguments.name {
        Some(name) => file_named(name)?,
        None => crate::resolve::model_file(None, None, false)?,
    };
    let file = gguf::File::open_model(&path).map_err(offramp::Error::from)?;
    let inner = gguf::exits::base(&file).map_err(offramp::Error::from)?;
    let model = inner.as_ref().unwrap_or(&file);
    let text = |key: &str| tamed(model.str(key).ok().flatten().unwrap_or("-"));
    let architecture = text("general.architecture");
    let number = |key: &str| {
        let value = model.get(&format!("{architecture}.{key}")).and_then(|value| value.as_u64());
        value.map_or_else(|| "-".to_owned(), |value| value.to_string())
    };
    let mut out = io::stdout().lock();
    writeln!(out, "file: {}", path.display())?;
    writeln!(out, "name: {}", text("general.name"))?;
    writeln!(out, "architecture: {architecture}")?;
    writeln!(out, "layers: {}", number("block_count"))?;
    writeln!(out, "trained context: {} tokens", number("context_length"))?;
    writeln!(out, "license: {}", text("general.license"))?;
    writeln!(out, "exit heads: {}", if inner.is_some() { "yes" } else { "none" })?;
    let params = crate::model_args::default_session_params();
    let memory = offramp::memory_estimate(&path, &params)?;
    writeln!(out, "needs: {memory}, with a context of {} tokens", params.n_ctx)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with one repository of two files, one of which two snapshots share.
    #[cfg(unix)]
    fn cache() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("models--user--tiny--one");
        let (blobs, old, new) = (repo.join("blobs"), repo.join("snapshots/a"), repo.join("snapshots/b"));
        for made in [&blobs, &old, &new] {
            std::fs::create_dir_all(made).unwrap();
        }
        for (blob, size) in [("1", 5), ("2", 7)] {
            std::fs::write(blobs.join(blob), vec![0; size]).unwrap();
        }
        let link = |blob: &str, at: &Path| std::os::unix::fs::symlink(format!("../../blobs/{blob}"), at).unwrap();
        link("1", &old.join("m-Q4_0.gguf"));
        link("1", &new.join("m-Q4_0.gguf"));
        link("2", &new.join("m-Q8_0.gguf"));
        link("gone", &new.join("m-F16.gguf"));
        std::fs::write(new.join("README.md"), "").unwrap();
        folder
    }

    #[cfg(unix)]
    #[test]
    fn models_are_found_once_and_with_their_size() {
        let folder = cache();
        let found = found_in(folder.path(), hub::is_model);
        let names: Vec<_> = found.iter().map(|model| (model.repo.as_str(), model.file.as_str(), model.size)).collect();
        assert_eq!(names, [("user/tiny--one", "m-Q4_0.gguf", 5), ("user/tiny--one", "m-Q8_0.gguf", 7)]);
        let name = Name::read("user/tiny--one:q8_0").unwrap();
        assert_eq!(matching(found, &name).len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_blob_goes_with_its_last_link() {
        let folder = cache();
        let repo = folder.path().join("models--user--tiny--one");
        for model in found_in(folder.path(), hub::is_model) {
            remove_file(&model.path).unwrap();
        }
        assert!(repo.join("blobs/1").exists(), "another snapshot has it");
        assert!(!repo.join("blobs/2").exists());
        assert!(repo.join("snapshots/a/m-Q4_0.gguf").exists());
    }
}
