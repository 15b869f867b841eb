//! `-hf user/model[:quant]`: a GGUF file from the Hugging Face hub, or from the server that HF_ENDPOINT names, into the hub's own cache folder.
//! An interrupted download is continued. Without a network, a file that is in the cache already is taken. It refuses file names that lead out of
//! the cache folder.

use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo};

use crate::failure::Failure;

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

/// The model's file in the cache, downloaded if it is not there; of a model in several files, the first.
///
/// # Errors
/// When the name is none, the hub does not answer, or does not have the model or the quantization: then it says what there is.
pub fn fetch(name: &str) -> Result<PathBuf, Failure> {
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
    for file in wanted {
        let path = remote.get(file).map_err(|error| explain(&parsed, &error))?;
        first.get_or_insert(path);
    }
    first.ok_or_else(|| Failure::failed(format!("-hf {name}: no file was found")))
}

/// A file of the model that an earlier call left in the cache.
fn cached(name: &Name<'_>) -> Option<PathBuf> {
    let repo = Cache::from_env().repo(Repo::model(name.repo.to_owned()));
    let folder = std::fs::read_dir(repo_folder(name.repo)?.join("snapshots")).ok()?;
    let files: Vec<String> = folder
        .flatten()
        .flat_map(|snapshot| std::fs::read_dir(snapshot.path()).into_iter().flatten().flatten())
        .filter_map(|file| file.file_name().into_string().ok())
        .collect();
    let wanted = choose(&files, name.quant).ok()?;
    let paths: Option<Vec<PathBuf>> = wanted.iter().map(|file| repo.get(file)).collect();
    let first = paths?.into_iter().next()?;
    eprintln!("offramp: the hub does not answer, taking {}", first.display());
    Some(first)
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
    match groups(&chosen).into_iter().next() {
        Some(group) => Ok(chosen.into_iter().filter(|file| base(file) == group).collect()),
        None => Err(format!("it has no {}; there is: {}", quant.unwrap_or(DEFAULT_QUANT), groups(&models).join(", "))),
    }
}

/// True for GGUF files that are models by themselves and stay inside of the cache folder.
pub fn is_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    let stays_inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    let is_companion = name.starts_with("mmproj") || name.starts_with("mtp-") || name.starts_with("imatrix");
    name.ends_with(".gguf") && stays_inside && !file.contains('\\') && !is_companion
}

/// True if the quantization stands in the file's name as a part of its own, in any case of letters.
pub fn has_quant(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    file.match_indices(&quant)
        .any(|(at, _)| is_edge(file[..at].chars().next_back()) && is_edge(file[at + quant.len()..].chars().next()))
}

/// A file's name without the number of its part: `-00001-of-00003`.
fn base(file: &str) -> &str {
    const PART: usize = "-00001-of-00003".len();
    let stem = file.strip_suffix(".gguf").unwrap_or(file);
    let Some((start, part)) = stem.len().checked_sub(PART).and_then(|at| stem.split_at_checked(at)) else {
        return stem;
    };
    let is_part = part.split_once("-of-").is_some_and(|(number, count)| {
        let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        number.strip_prefix('-').is_some_and(digits) && digits(count)
    });
    if is_part { start } else { stem }
}

/// The different models among `files`, in order.
fn groups<'f>(files: &[&'f str]) -> Vec<&'f str> {
    let mut groups: Vec<&str> = files.iter().map(|file| base(file)).collect();
    groups.dedup();
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
