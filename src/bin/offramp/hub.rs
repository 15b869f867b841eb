//! `-hf user/model[:quant]`: a GGUF file from the Hugging Face hub, or from the server that HF_ENDPOINT names, into the hub's own cache folder.
//! An interrupted download is continued. Without a network, a file that is in the cache already is taken. It refuses file names that lead out of
//! the cache folder.

use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};
use offramp::HeadsCache;
use offramp::gguf::{self, PartName};

use crate::failure::Failure;
use crate::{interrupt, progress};

/// llama.cpp's default.
const DEFAULT_QUANT: &str = "Q4_K_M";

/// A model on the hub: `user/model`, and the quantization after a colon.
#[derive(Debug, PartialEq, Eq)]
pub struct Name<'a> {
    pub repo: &'a str,
    pub quant: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// # Errors
    /// For what is no name.
    pub fn read(name: &'a str) -> Result<Self, Failure> {
        Self::parse(name)
            .ok_or_else(|| Failure::usage(format!("the name is {name:?}, but must be USER/MODEL or USER/MODEL:QUANT")))
    }

    fn parse(name: &'a str) -> Option<Self> {
        let (repo, quant) = name.split_once(':').map_or((name, None), |(repo, quant)| (repo, Some(quant)));
        let (user, model) = repo.split_once('/')?;
        let is_plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        let is_sound = is_plain(user) && is_plain(model) && quant.is_none_or(|quant| !quant.is_empty());
        is_sound.then_some(Self { repo, quant })
    }
}

/// The model's file in the cache, downloaded if it is not there; of a model in several files, the first. `with_heads` brings the
/// exit heads of the repository, too, beside the model.
///
/// # Errors
/// When the name is none, the hub does not answer, or does not have the model or the quantization: then it says what there is.
pub fn fetch(name: &str, with_heads: bool) -> Result<PathBuf, Failure> {
    let parsed = Name::parse(name)
        .ok_or_else(|| Failure::usage(format!("-hf is {name:?}, but must be USER/MODEL or USER/MODEL:QUANT")))?;
    let api =
        ApiBuilder::from_env().with_retries(3).build().map_err(|error| Failure::failed(format!("-hf: {error}")))?;
    let remote = api.model(parsed.repo.to_owned());
    let files = match remote.info() {
        Ok(info) => info.siblings.into_iter().map(|file| file.rfilename).collect::<Vec<_>>(),
        Err(error) => return cached(&parsed).ok_or_else(|| explain(&parsed, &error)),
    };
    let wanted = choose(&files, parsed.quant).map_err(|reason| Failure::failed(format!("-hf {name}: {reason}")))?;
    let mut first = None;
    for file in &wanted {
        let path = get(&remote, parsed.repo, file).map_err(|error| explain(&parsed, &error))?;
        first.get_or_insert(path);
    }
    let heads = wanted.first().filter(|_| with_heads).map(|model| heads_for(&files, model)).unwrap_or_default();
    for file in heads {
        // The model goes without them, too.
        if let Err(error) = get(&remote, parsed.repo, file) {
            eprintln!("offramp: the exit heads {file} cannot be fetched: {error}");
        }
    }
    first.ok_or_else(|| Failure::failed(format!("-hf {name}: no file was found")))
}

/// The exit heads that a repository has for `model`, downloaded if they are not in the cache.
///
/// # Errors
/// When the name is none, the hub does not answer, and when it has no heads that were made for this very model.
pub fn fetch_heads(repo: &str, model: &gguf::File, cache: &HeadsCache) -> Result<PathBuf, Failure> {
    let name = Name::read(repo)?;
    let api = ApiBuilder::from_env().with_retries(3).build().map_err(Failure::failed)?;
    let remote = api.model(name.repo.to_owned());
    let model_name = model.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let paths: Vec<PathBuf> = match remote.info() {
        Ok(info) => {
            let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
            let heads = heads_for(&files, &model_name);
            let fetched = heads.into_iter().map(|file| get(&remote, name.repo, file));
            fetched.collect::<Result<_, _>>().map_err(|error| explain(&name, &error))?
        }
        Err(error) => {
            let files = cached_files(name.repo).unwrap_or_default();
            let repo = Cache::from_env().repo(Repo::model(name.repo.to_owned()));
            let paths: Vec<PathBuf> = heads_for(&files, &model_name).iter().filter_map(|file| repo.get(file)).collect();
            if paths.is_empty() {
                return Err(explain(&name, &error));
            }
            paths
        }
    };
    for path in paths {
        if cache.fits(&path, model, &mut |_, _| !interrupt::is_requested())? {
            return Ok(path);
        }
    }
    Err(Failure::failed(format!(
        "--heads-repo {repo}: it has no exits-*.gguf that was made for {model_name}, whose SHA-256 has to match"
    )))
}

/// A file's path in the cache, downloaded if it is not there.
///
/// # Errors
/// When the hub does not have it, or the connection fails.
fn get(remote: &ApiRepo, repo: &str, file: &str) -> Result<PathBuf, ApiError> {
    match Cache::from_env().repo(Repo::model(repo.to_owned())).get(file) {
        Some(path) => Ok(path),
        None => remote.download_with_progress(file, progress::download()),
    }
}

/// A file of the model that an earlier call left in the cache.
fn cached(name: &Name<'_>) -> Option<PathBuf> {
    let repo = Cache::from_env().repo(Repo::model(name.repo.to_owned()));
    let files = cached_files(name.repo)?;
    let wanted = choose(&files, name.quant).ok()?;
    let paths: Option<Vec<PathBuf>> = wanted.iter().map(|file| repo.get(file)).collect();
    let first = paths?.into_iter().next()?;
    eprintln!("offramp: the hub does not answer, taking {}", first.display());
    Some(first)
}

/// The names of a repository's files in the cache.
fn cached_files(repo: &str) -> Option<Vec<String>> {
    let folder = std::fs::read_dir(repo_folder(repo)?.join("snapshots")).ok()?;
    let mut files: Vec<String> = folder
        .flatten()
        .flat_map(|snapshot| std::fs::read_dir(snapshot.path()).into_iter().flatten().flatten())
        .filter_map(|file| file.file_name().into_string().ok())
        .collect();
    files.sort_unstable();
    files.dedup();
    Some(files)
}

fn repo_folder(repo: &str) -> Option<PathBuf> {
    Some(Cache::from_env().path().join(Repo::model(repo.to_owned()).folder_name()))
}

/// The files of one quantization: one, or all parts of a split model in order. `Err` says what there is instead.
pub fn choose<'f>(files: &'f [String], quant: Option<&str>) -> Result<Vec<&'f str>, String> {
    let mut models: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_model(file)).collect();
    models.sort_unstable();
    if models.is_empty() {
        return Err("there is no GGUF file in it; look for a repository whose name ends in -GGUF".to_owned());
    }
    let matching = |quant: &str| models.iter().copied().filter(|file| has_quant(file, quant)).collect::<Vec<_>>();
    let chosen = match quant {
        Some(quant) => matching(quant),
        None if groups(&models).len() == 1 => models.clone(),
        None => matching(DEFAULT_QUANT),
    };
    // Two models of one quantization, for example of two sizes: the first, with all of its parts.
    let Some(group) = groups(&chosen).into_iter().next() else {
        let there: Vec<&str> = groups(&models).into_iter().map(|group| group.name).collect();
        return Err(format!("it has no {}; there is: {}", quant.unwrap_or(DEFAULT_QUANT), there.join(", ")));
    };
    let files: Vec<&str> = chosen.into_iter().filter(|file| Group::of(file) == group).collect();
    if let Some(count) = group.parts.filter(|&count| count != files.len() as u64) {
        return Err(format!(
            "it has {} of the {count} parts of {}; ask its author for the others",
            files.len(),
            group.name
        ));
    }
    Ok(files)
}

/// True for GGUF files that are models by themselves and stay inside of the cache folder.
pub fn is_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    let is_companion = name.starts_with("mmproj") || name.starts_with("mtp-") || name.starts_with("imatrix");
    is_sound_gguf(file) && !is_companion && !is_heads(file)
}

/// True for GGUF files that hold exit heads, and stay inside of the cache folder.
pub fn is_heads(file: &str) -> bool {
    file.rsplit('/').next().unwrap_or(file).starts_with("exits-") && is_sound_gguf(file)
}

fn is_sound_gguf(file: &str) -> bool {
    let stays_inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    file.to_ascii_lowercase().ends_with(".gguf") && stays_inside && !file.contains('\\')
}

/// The files among `files` that may be exit heads for a model file, likely ones first: of its own name, of its quantization,
/// of none. Only what is in them tells whether they were made for it.
pub fn heads_for<'f>(files: &'f [String], model: &str) -> Vec<&'f str> {
    /// The most that are fetched for one model.
    const MOST: usize = 3;
    let file_name = |file: &str| file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    let model = file_name(Group::of(model).name);
    let model = model.strip_suffix(".gguf").unwrap_or(&model);
    let quant = quant_of(model);
    let mut found: Vec<(u8, &str)> = files
        .iter()
        .filter(|file| is_heads(file))
        .filter_map(|file| {
            let name = file_name(file);
            let name = name.trim_start_matches("exits-").trim_end_matches(".gguf");
            match quant_of(name) {
                _ if name == model => Some((0, file.as_str())),
                other if other.is_some() && other == quant => Some((1, file.as_str())),
                None => Some((2, file.as_str())),
                Some(_) => None,
            }
        })
        .collect();
    found.sort_unstable();
    found.truncate(MOST);
    found.into_iter().map(|(_, file)| file).collect()
}

/// The part of a name in small letters that says how the weights are stored, such as `q4_k_m`.
fn quant_of(name: &str) -> Option<&str> {
    let is_quant = |part: &&str| {
        let kinds = ["iq", "q", "tq", "bf", "fp", "f", "mxfp"];
        kinds
            .iter()
            .any(|kind| part.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
    };
    name.split(['-', '.']).rfind(is_quant)
}

/// True if the quantization stands in the file's name as a part of its own, in any case of letters.
pub fn has_quant(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    file.match_indices(&quant)
        .any(|(at, _)| is_edge(file[..at].chars().next_back()) && is_edge(file[at + quant.len()..].chars().next()))
}

/// The files that are one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group<'f> {
    /// Their name, without the number of a part and the ending.
    pub name: &'f str,
    /// How many parts there are, where the model is split.
    parts: Option<u64>,
}

impl<'f> Group<'f> {
    /// That of one file.
    pub fn of(file: &'f str) -> Self {
        match PartName::parse(file) {
            Some(part) => Self { name: part.prefix, parts: Some(part.count) },
            None => Self { name: file.strip_suffix(".gguf").unwrap_or(file), parts: None },
        }
    }
}

/// The different models among `files`, in order.
fn groups<'f>(files: &[&'f str]) -> Vec<Group<'f>> {
    let mut groups = Vec::new();
    for group in files.iter().map(|file| Group::of(file)) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// What went wrong with the hub.
pub fn explain(name: &Name<'_>, error: &ApiError) -> Failure {
    let status = match error {
        ApiError::RequestError(request) => match request.as_ref() {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        _ => None,
    };
    Failure::Failed(match status {
        Some(401 | 403 | 404) => format!(
            "-hf: the hub has no model {} that can be read; check the name, and log in for a private or gated one",
            name.repo
        ),
        _ => format!("-hf {}: the hub does not answer ({error}); check the network, or give a file with -m", name.repo),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[&str] = &[
        "README.md",
        "mmproj-model-f16.gguf",
        "model-Q4_K_M.gguf",
        "model-q8_0.gguf",
        "model-IQ4_K_M-00001-of-00002.gguf",
        "model-IQ4_K_M-00002-of-00002.gguf",
        "../escape-Q2_K.gguf",
    ];

    fn chosen(quant: Option<&str>) -> Result<Vec<String>, String> {
        let files: Vec<String> = FILES.iter().map(|file| (*file).to_owned()).collect();
        choose(&files, quant).map(|files| files.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn names_are_user_model_and_quant() {
        assert_eq!(Name::parse("a/b"), Some(Name { repo: "a/b", quant: None }));
        assert_eq!(Name::parse("a/b-GGUF:q8_0"), Some(Name { repo: "a/b-GGUF", quant: Some("q8_0") }));
        for wrong in ["", "a", "a/", "/b", "a/b/c", "a/..", "../b", "a/b:", "a b/c", "a/b?x"] {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_default_is_q4_k_m() {
        assert_eq!(chosen(None).unwrap(), ["model-Q4_K_M.gguf"]);
    }

    #[test]
    fn a_quantization_is_found_in_any_case() {
        assert_eq!(chosen(Some("Q8_0")).unwrap(), ["model-q8_0.gguf"]);
    }

    #[test]
    fn a_split_model_comes_whole_and_in_order() {
        let parts = chosen(Some("iq4_k_m")).unwrap();
        assert_eq!(parts, ["model-IQ4_K_M-00001-of-00002.gguf", "model-IQ4_K_M-00002-of-00002.gguf"]);
    }

    #[test]
    fn a_split_model_without_all_of_its_parts_is_refused() {
        let files: Vec<String> =
            ["m-Q4_0-00001-of-00003.gguf", "m-Q4_0-00003-of-00003.gguf"].map(str::to_owned).to_vec();
        assert!(choose(&files, None).unwrap_err().contains("2 of the 3 parts of m-Q4_0"));
        // Numbers that are no part's are a name like any other.
        let files = ["m-00001-of-2.gguf".to_owned()];
        assert_eq!(choose(&files, None).unwrap(), ["m-00001-of-2.gguf"]);
    }

    #[test]
    fn heads_are_no_models_and_likely_ones_come_first() {
        let files: Vec<String> = [
            "exits-model-Q8_0.gguf",
            "exits-model.gguf",
            "exits-other-Q4_K_M.gguf",
            "exits-model-Q4_K_M.gguf",
            "model-Q4_K_M.gguf",
            "../exits-out.gguf",
            "exits-notes.txt",
        ]
        .map(str::to_owned)
        .to_vec();
        assert_eq!(choose(&files, None).unwrap(), ["model-Q4_K_M.gguf"]);
        let expected = ["exits-model-Q4_K_M.gguf", "exits-other-Q4_K_M.gguf", "exits-model.gguf"];
        assert_eq!(heads_for(&files, "model-Q4_K_M.gguf"), expected);
        assert_eq!(heads_for(&files, "sub/model-Q4_K_M-00001-of-00002.gguf"), expected);
        assert_eq!(heads_for(&files, "model.gguf"), ["exits-model.gguf"]);
        assert!(heads_for(&["model.gguf".to_owned()], "model.gguf").is_empty());
    }

    #[test]
    fn a_missing_quantization_says_what_there_is() {
        let reason = chosen(Some("Q5_0")).unwrap_err();
        assert_eq!(reason, "it has no Q5_0; there is: model-IQ4_K_M, model-Q4_K_M, model-q8_0");
    }

    #[test]
    fn a_name_that_leads_outside_is_never_taken() {
        assert!(chosen(Some("Q2_K")).is_err());
    }

    #[test]
    fn a_single_model_is_taken_whatever_its_quantization() {
        let files = ["only.f16.gguf".to_owned()];
        assert_eq!(choose(&files, None).unwrap(), ["only.f16.gguf"]);
    }
}
