//! `offramp pull`: a model from the hub into its cache folder, told beforehand what it takes, continued where it broke off, and
//! compared with the hub's checksum. It refuses what fits neither on the disk nor into the memory, unless it is forced to.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use hf_hub::Cache;
use hf_hub::api::sync::ApiBuilder;
use offramp::{HeadsCache, gguf};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::hub::{self, Name};
use crate::{interrupt, machine, progress};

/// The longest listing of a repository that is read, in bytes.
const MAX_LISTING: u64 = 16 << 20;

/// Arguments of `offramp pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The model, by default its Q4_K_M file
    #[arg(value_name = "USER/MODEL[:QUANT]")]
    pub name: String,
    /// Tell what it takes, and fetch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Fetch it even if it does not fit
    #[arg(long)]
    pub force: bool,
    /// Take the exit heads for it, exits-*.gguf, from this repository instead of the model's own
    #[arg(long, value_name = "USER/MODEL", conflicts_with = "no_heads")]
    pub heads_repo: Option<String>,
    /// Fetch no exit heads
    #[arg(long)]
    pub no_heads: bool,
}

/// What the hub says of a repository.
#[derive(Deserialize)]
struct Listing {
    siblings: Vec<Remote>,
}

#[derive(Deserialize)]
struct Remote {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// # Errors
/// When the hub does not answer or does not have the model, when it does not fit, and when what came is not what was sent.
pub fn pull(arguments: &PullArgs) -> Result<(), Failure> {
    interrupt::install(interrupt::leave)?;
    let name = Name::read(&arguments.name)?;
    let api = ApiBuilder::from_env().with_retries(3).build().map_err(Failure::failed)?;
    let remote = api.model(name.repo.to_owned());
    let answer = remote
        .info_request()
        .query("blobs", "true")
        .call()
        .map_err(|error| hub::explain(&name, &Box::new(error).into()))?;
    let mut text = Vec::new();
    answer.into_body().into_reader().take(MAX_LISTING).read_to_end(&mut text).map_err(Failure::failed)?;
    let listing: Listing = serde_json::from_slice(&text)
        .map_err(|error| Failure::failed(format!("{}: the hub's answer is not as expected ({error})", name.repo)))?;
    let files: Vec<String> = listing.siblings.iter().map(|file| file.rfilename.clone()).collect();
    let wanted =
        hub::choose(&files, name.quant).map_err(|reason| Failure::failed(format!("{}: {reason}", name.repo)))?;
    let heads = match (&arguments.heads_repo, wanted.first()) {
        (None, Some(model)) if !arguments.no_heads => hub::heads_for(&files, model),
        _ => Vec::new(),
    };
    let listed = |names: &[&str]| -> Vec<&Remote> {
        names.iter().filter_map(|file| listing.siblings.iter().find(|known| known.rfilename == **file)).collect()
    };
    let (wanted, heads) = (listed(&wanted), listed(&heads));
    let with_heads: Vec<&Remote> = wanted.iter().chain(&heads).copied().collect();
    let cache = Cache::from_env();
    let repo = cache.repo(hf_hub::Repo::model(name.repo.to_owned()));
    let missing: Vec<&Remote> = with_heads.iter().copied().filter(|file| repo.get(&file.rfilename).is_none()).collect();
    check_room(&name, &with_heads, &missing, cache.path(), arguments.force)?;
    if arguments.dry_run {
        return Ok(());
    }
    for file in &missing {
        // It is not in the cache, as was found out above.
        let path = remote
            .download_with_progress(&file.rfilename, progress::download())
            .map_err(|error| hub::explain(&name, &error))?;
        verify(file, &path)?;
    }
    // The first part of a model in several is what -m takes.
    let first = wanted.first().and_then(|file| repo.get(&file.rfilename));
    let first = first.ok_or_else(|| Failure::failed("the cache lost the file"))?;
    let heads: Vec<PathBuf> = heads.iter().filter_map(|file| repo.get(&file.rfilename)).collect();
    tell_heads(&first, &heads, arguments.heads_repo.as_deref())?;
    println!("{}", first.display());
    Ok(())
}

/// Says which of the exit heads that came are for the model; those of another repository are fetched for that.
fn tell_heads(model: &Path, heads: &[PathBuf], heads_repo: Option<&str>) -> Result<(), Failure> {
    if heads.is_empty() && heads_repo.is_none() {
        return Ok(());
    }
    let file = gguf::File::open_model(model).map_err(offramp::Error::from)?;
    let cache = HeadsCache::of_user()
        .ok_or_else(|| Failure::failed("there is no home folder to keep what is known of models in"))?;
    if let Some(repo) = heads_repo {
        let path = hub::fetch_heads(repo, &file, &cache)?;
        eprintln!("offramp: exit heads for it in {}; run it with --heads-repo {repo}", path.display());
        return Ok(());
    }
    for path in heads {
        let fits = cache.fits(path, &file, &mut |_, _| true)?;
        let told = if fits { "exit heads for it" } else { "exit heads of another model, which are not used" };
        eprintln!("offramp: {told} in {}", path.display());
    }
    Ok(())
}

/// Tells what a model takes, and whether that is there.
fn check_room(
    name: &Name<'_>,
    wanted: &[&Remote],
    missing: &[&Remote],
    folder: &Path,
    force: bool,
) -> Result<(), Failure> {
    let sum = |files: &[&Remote]| files.iter().map(|file| file.size.unwrap_or(0)).fold(0, u64::saturating_add);
    let (size, to_fetch) = (sum(wanted), sum(missing));
    let free = machine::free_disk(folder);
    let memory = machine::available_memory();
    let told = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), machine::size);
    eprintln!(
        "offramp: {}: {} to fetch of {} ({} free on the disk)\nofframp: in memory its weights take {}, the context comes on top ({} available)",
        name.repo,
        machine::size(to_fetch),
        machine::size(size),
        told(free),
        machine::size(size),
        told(memory),
    );
    let lacks = |room: Option<u64>, needed: u64| room.is_some_and(|room| needed > room);
    let what = if lacks(free, to_fetch) {
        "the disk has no room for it"
    } else if lacks(memory, size) {
        "its weights do not fit into the memory"
    } else {
        return Ok(());
    };
    if force {
        eprintln!("offramp: {what}");
        return Ok(());
    }
    Err(Failure::failed(format!("{what}; take a smaller quantization, or --force")))
}

/// Compares a file with the hub's checksum, and takes it out of the cache if they differ.
fn verify(file: &Remote, path: &Path) -> Result<(), Failure> {
    let blob = path.canonicalize().map_err(Failure::failed)?;
    let Some(expected) = expected_digest(file, &blob) else {
        eprintln!("offramp: the hub has no checksum for {}", file.rfilename);
        return Ok(());
    };
    let found = digest(&blob).map_err(|error| Failure::failed(format!("cannot read {}: {error}", blob.display())))?;
    if found == expected {
        eprintln!("offramp: {} has the SHA-256 that the hub says", file.rfilename);
        return Ok(());
    }
    for damaged in [path, blob.as_path()] {
        // One of the two may be gone with the other.
        let _ = std::fs::remove_file(damaged);
    }
    Err(Failure::failed(format!(
        "{} came damaged: SHA-256 {expected} is expected, {found} was found; it is removed, pull it again",
        file.rfilename
    )))
}

/// The hub's digest of a file; its cache names blobs by it too.
fn expected_digest(file: &Remote, blob: &Path) -> Option<String> {
    let told = file.lfs.as_ref().and_then(|lfs| lfs.sha256.clone());
    let named = blob.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    told.filter(is_digest).or_else(|| named.filter(is_digest)).map(|text| text.to_ascii_lowercase())
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let bar = progress::checking(file.metadata()?.len());
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
        bar.inc(1 << 20);
    }
    bar.finish_and_clear();
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
