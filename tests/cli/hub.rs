//! `-hf` against a hub on this machine: listing, download, resumption, cache, and what is said when something is not there.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::random;
use crate::support::{Finished, TempFolder, offramp};
use offramp::gguf::exits::HeadType;
use offramp::gguf::{File, Split, SplitLimit, SplitOptions};
use offramp_fixtures::{Arch, TinyModel};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Where a download breaks off.
const CUT: usize = 100_000;
const LISTING: &str = r#"{"sha": "0123456789abcdef0123456789abcdef01234567",
    "siblings": [{"rfilename": "README.md"}, {"rfilename": "tiny-Q4_K_M.gguf"}, {"rfilename": "tiny-q8_0.gguf"}]}"#;

/// A repository of a hub: its name, what the hub says of it, and its files.
struct Repo {
    name: &'static str,
    listing: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Repo {
    /// One that is listed without sizes and digests.
    fn new(name: &'static str, files: Vec<(String, Vec<u8>)>) -> Self {
        let names: Vec<String> = files.iter().map(|(name, _)| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
        Self { name, listing: format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, names.join(", ")), files }
    }
}

/// A hub, most often with the one repository `user/tiny`.
struct Hub {
    endpoint: String,
    /// The `Range` of each request for a file, in order.
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// The first answer with more than one byte of a file breaks off after `cut_after` bytes.
    fn start(cut_after: Option<usize>) -> Self {
        Self::start_with(cut_after, LISTING.to_owned())
    }

    /// One that says this of its repository.
    fn start_with(cut_after: Option<usize>, listing: String) -> Self {
        let model = TinyModel::new(Arch::Llama).bytes();
        let files = ["tiny-Q4_K_M.gguf", "tiny-q8_0.gguf"].map(|name| (name.to_owned(), model.clone())).to_vec();
        Self::of(vec![Repo { name: "user/tiny", listing, files }], cut_after)
    }

    fn of(repos: Vec<Repo>, cut_after: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ranges);
        std::thread::spawn(move || {
            let mut cut_after = cut_after;
            for stream in listener.incoming().flatten() {
                // A client that hangs up is its own business.
                let _ = answer(stream, &repos, &seen, &mut cut_after);
            }
        });
        Self { endpoint, ranges }
    }

    fn inspect(&self, name: &str, home: &Path) -> Finished {
        self.run(&["inspect", "-hf", name], home)
    }

    fn run(&self, arguments: &[&str], home: &Path) -> Finished {
        let mut command = offramp(arguments);
        Finished::of(
            command
                .env("HF_ENDPOINT", &self.endpoint)
                .env("HF_HOME", home)
                .env("OFFRAMP_CACHE", home)
                .output()
                .unwrap(),
        )
    }
}

fn answer(
    mut stream: TcpStream,
    repos: &[Repo],
    ranges: &Mutex<Vec<String>>,
    cut_after: &mut Option<usize>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("range")
        {
            range = value.to_owned();
        }
    }
    if let Some(repo) = repos.iter().find(|repo| target.starts_with(&format!("/api/models/{}/", repo.name))) {
        return respond(&mut stream, "200 OK", &[], repo.listing.as_bytes());
    }
    let found = repos.iter().find_map(|repo| {
        let name = target.strip_prefix(&format!("/{}/resolve/main/", repo.name))?;
        repo.files.iter().find(|(other, _)| other == name)
    });
    let Some((name, model)) = found else {
        return respond(&mut stream, "404 Not Found", &[], b"");
    };
    ranges.lock().unwrap().push(range.clone());
    let size = model.len();
    let (start, end) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(size, |end: usize| end + 1);
    let headers = [
        format!("Content-Range: bytes {start}-{}/{size}", end - 1),
        format!("ETag: \"etag-of-{name}\""),
        format!("X-Repo-Commit: {COMMIT}"),
    ];
    head(&mut stream, "206 Partial Content", &headers, end - start)?;
    let is_content = end - start > 1;
    let sent = cut_after.take_if(|_| is_content).unwrap_or(end - start);
    stream.write_all(&model[start..end][..sent.min(end - start)])
}

fn head(stream: &mut TcpStream, status: &str, headers: &[String], length: usize) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n")
}

fn respond(stream: &mut TcpStream, status: &str, headers: &[String], body: &[u8]) -> std::io::Result<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body)
}

#[test]
fn a_model_is_fetched_once_and_then_taken_from_the_cache() {
    let hub = Hub::start(None);
    let home = TempFolder::new("hub-once");
    assert!(hub.inspect("user/tiny", home.path()).success().contains("architecture: llama"));
    let asked = hub.ranges.lock().unwrap().len();
    assert!(hub.inspect("user/tiny", home.path()).success().contains("tiny-Q4_K_M.gguf"));
    assert_eq!(hub.ranges.lock().unwrap().len(), asked, "the file was fetched again");
    let offline = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ranges: Arc::default() };
    assert!(offline.inspect("user/tiny", home.path()).success().contains("tiny-Q4_K_M.gguf"));
}

#[test]
fn a_download_that_breaks_off_is_continued() {
    let hub = Hub::start(Some(CUT));
    let home = TempFolder::new("hub-resume");
    assert!(hub.inspect("user/tiny:Q8_0", home.path()).success().contains("tiny-q8_0.gguf"));
    assert!(hub.ranges.lock().unwrap().contains(&format!("bytes={CUT}-")));
}

#[test]
fn a_missing_quantization_says_what_there_is() {
    let hub = Hub::start(None);
    let home = TempFolder::new("hub-quant");
    let finished = hub.inspect("user/tiny:Q2_K", home.path());
    let line = finished.failure(1);
    assert!(line.contains("it has no Q2_K; there is: tiny-Q4_K_M, tiny-q8_0"), "{line}");
}

#[test]
fn a_missing_repository_is_named() {
    let hub = Hub::start(None);
    let home = TempFolder::new("hub-repo");
    let finished = hub.inspect("user/other", home.path());
    assert!(finished.failure(1).contains("no model user/other"), "{finished:?}");
}

#[test]
fn a_hub_that_does_not_answer_is_told_apart() {
    let hub = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ranges: Arc::default() };
    let home = TempFolder::new("hub-down");
    assert!(hub.inspect("user/tiny", home.path()).failure(1).contains("does not answer"));
}

#[test]
fn a_name_that_is_none_is_wrong_usage() {
    let home = TempFolder::new("hub-name");
    let hub = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ranges: Arc::default() };
    assert!(hub.inspect("tiny", home.path()).failure(2).contains("USER/MODEL"));
}

/// A listing with sizes and the digest given, as the hub answers when it is asked for both.
fn listing(digest: &str) -> String {
    let size = TinyModel::new(Arch::Llama).bytes().len();
    let file = |name: &str| format!(r#"{{"rfilename": "{name}", "size": {size}, "lfs": {{"sha256": "{digest}"}}}}"#);
    format!(
        r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "README.md", "size": 5}}, {}, {}]}}"#,
        file("tiny-Q4_K_M.gguf"),
        file("tiny-q8_0.gguf")
    )
}

fn true_digest() -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(TinyModel::new(Arch::Llama).bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_model_is_pulled_compared_listed_shown_and_removed() {
    let hub = Hub::start_with(None, listing(&true_digest()));
    let home = TempFolder::new("hub-pull");
    let told = hub.run(&["pull", "user/tiny", "--dry-run"], home.path());
    assert!(told.stderr.contains("to fetch"), "{told:?}");
    assert_eq!((told.success(), hub.ranges.lock().unwrap().len()), (String::new(), 0));

    let pulled = hub.run(&["pull", "user/tiny"], home.path());
    assert!(pulled.stderr.contains("has the SHA-256"), "{pulled:?}");
    let path = pulled.success();
    assert!(Path::new(path.trim_end()).is_file(), "{path}");
    let again = hub.run(&["pull", "user/tiny"], home.path());
    assert!(again.stderr.contains("0 KiB to fetch"), "{again:?}");

    let listed = hub.run(&["list"], home.path()).success();
    assert!(listed.contains("user/tiny") && listed.contains("tiny-Q4_K_M.gguf"), "{listed}");
    assert_eq!(hub.run(&["list", "--json"], home.path()).success().lines().count(), 1);
    let shown = hub.run(&["show", "user/tiny:Q4_K_M"], home.path()).success();
    assert!(shown.contains("architecture: llama") && shown.contains("needs: about"), "{shown}");
    assert_eq!(hub.run(&["show", path.trim_end()], home.path()).success().lines().count(), shown.lines().count());

    assert!(hub.run(&["rm", "user/tiny"], home.path()).failure(1).contains("nothing was removed"));
    hub.run(&["rm", "user/tiny", "--yes"], home.path()).success();
    assert_eq!(hub.run(&["list"], home.path()).success(), "");
    assert!(hub.run(&["rm", "user/tiny", "--yes"], home.path()).failure(1).contains("offramp list"));
}

#[test]
fn a_model_that_came_damaged_is_not_kept() {
    let hub = Hub::start_with(None, listing(&"0".repeat(64)));
    let home = TempFolder::new("hub-damaged");
    assert!(hub.run(&["pull", "user/tiny"], home.path()).failure(1).contains("came damaged"));
    assert_eq!(hub.run(&["list"], home.path()).success(), "");
}

#[test]
fn a_model_that_does_not_fit_is_not_fetched() {
    let size = TinyModel::new(Arch::Llama).bytes().len();
    let huge = listing(&true_digest()).replace(&size.to_string(), "9000000000000000000");
    let hub = Hub::start_with(None, huge);
    let home = TempFolder::new("hub-huge");
    assert!(hub.run(&["pull", "user/tiny"], home.path()).failure(1).contains("--force"));
    assert!(hub.ranges.lock().unwrap().is_empty());
}

/// The files of a split model of random weights.
fn parts(seed: u64) -> Vec<(String, Vec<u8>)> {
    let model = random::open(&random::model(seed));
    let mut options = SplitOptions::default();
    options.limit = SplitLimit::Tensors(12);
    let split = Split::of(&model, &options).unwrap();
    let names = split.paths(Path::new("tiny-Q4_K_M"));
    let names = names.iter().map(|name| name.to_str().unwrap().to_owned());
    names.zip(split.parts().iter().map(|part| part.to_bytes().unwrap())).collect()
}

/// How many files of `user/tiny` the cache keeps, the locks of downloads aside.
fn n_blobs(home: &TempFolder) -> usize {
    let blobs = std::fs::read_dir(home.path().join("hub/models--user--tiny/blobs")).unwrap();
    blobs.filter(|blob| blob.as_ref().unwrap().path().extension().is_none_or(|extension| extension != "lock")).count()
}

/// Heads for the model of that seed.
fn heads(seed: u64) -> Vec<u8> {
    let base: File = random::open(&random::model(seed));
    random::heads(&base, &[0, 1], &[HeadType::Affine, HeadType::Affine], 2).to_bytes().unwrap()
}

#[test]
fn a_split_model_is_fetched_whole_listed_as_one_and_removed_whole() {
    let hub = Hub::of(vec![Repo::new("user/tiny", parts(1))], None);
    let home = TempFolder::new("hub-split");
    let told = hub.inspect("user/tiny", home.path()).success();
    assert!(told.contains("tiny-Q4_K_M-00001-of-00003.gguf") && told.contains("parts: 3 files"), "{told}");
    let pulled = hub.run(&["pull", "user/tiny"], home.path()).success();
    assert!(pulled.trim_end().ends_with("tiny-Q4_K_M-00001-of-00003.gguf"), "{pulled}");
    let listed = hub.run(&["list", "--json"], home.path()).success();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let size: usize = parts(1).iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(
        (listed["size"].as_u64(), &listed["file"]),
        (Some(size as u64), &"tiny-Q4_K_M-00001-of-00003.gguf".into())
    );
    let shown = hub.run(&["show", "user/tiny"], home.path()).success();
    assert!(shown.contains("layers: 3") && shown.contains("needs: about"), "{shown}");
    let offline = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ranges: Arc::default() };
    assert!(offline.inspect("user/tiny", home.path()).success().contains("parts: 3 files"));
    hub.run(&["rm", "user/tiny", "--yes"], home.path()).success();
    assert_eq!(hub.run(&["list"], home.path()).success(), "");
    assert_eq!(n_blobs(&home), 0);

    let mut some = parts(1);
    some.remove(1);
    let hub = Hub::of(vec![Repo::new("user/tiny", some)], None);
    let line = hub.inspect("user/tiny", TempFolder::new("hub-some").path());
    assert!(line.failure(1).contains("2 of the 3 parts of tiny-Q4_K_M"), "{line:?}");
}

#[test]
fn the_exit_heads_of_a_repository_come_with_its_model() {
    let model = ("tiny-Q4_K_M.gguf".to_owned(), random::model(1).to_bytes().unwrap());
    let files = |seed: u64| vec![model.clone(), ("exits-tiny-Q4_K_M.gguf".to_owned(), heads(seed))];
    let hub = Hub::of(vec![Repo::new("user/tiny", files(1))], None);
    let home = TempFolder::new("hub-heads");
    let told = hub.inspect("user/tiny", home.path());
    assert!(told.stderr.contains("exit heads from ") && told.stderr.contains("exits-tiny-Q4_K_M.gguf"), "{told:?}");
    assert!(told.success().contains("exit heads: after"));
    // They are found without the network, and by the path alone.
    let offline = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ranges: Arc::default() };
    assert!(offline.inspect("user/tiny", home.path()).success().contains("exit heads: after"));
    let pulled = hub.run(&["pull", "user/tiny"], home.path());
    assert!(pulled.stderr.contains("exit heads for it in "), "{pulled:?}");
    let path = pulled.success();
    assert!(hub.run(&["inspect", "-m", path.trim_end()], home.path()).success().contains("exit heads: after"));
    // None are looked for where none are wanted; they are no model, and go with it.
    assert!(
        hub.run(&["inspect", "-m", path.trim_end(), "--heads", "none"], home.path()).success().contains("heads: none")
    );
    assert_eq!(hub.run(&["list"], home.path()).success().lines().count(), 1);
    hub.run(&["rm", "user/tiny", "--yes"], home.path()).success();
    assert_eq!(n_blobs(&home), 0);

    // Without them the model is fetched alone.
    let home = TempFolder::new("hub-no-heads");
    assert!(
        hub.run(&["inspect", "-hf", "user/tiny", "--heads", "none"], home.path()).success().contains("heads: none")
    );
    hub.run(&["pull", "user/tiny", "--no-heads"], home.path()).success();
    assert_eq!(n_blobs(&home), 1);

    // Heads of another model are told, and not used.
    let hub = Hub::of(vec![Repo::new("user/tiny", files(2))], None);
    let home = TempFolder::new("hub-wrong-heads");
    let pulled = hub.run(&["pull", "user/tiny"], home.path());
    assert!(pulled.stderr.contains("exit heads of another model, which are not used"), "{pulled:?}");
    assert!(hub.inspect("user/tiny", home.path()).success().contains("exit heads: none"));
}

#[test]
fn exit_heads_come_from_another_repository_where_one_is_named() {
    let model = vec![("tiny-Q4_K_M.gguf".to_owned(), random::model(1).to_bytes().unwrap())];
    let others = |seed: u64| {
        vec![("exits-a-Q4_K_M.gguf".to_owned(), heads(2)), ("exits-tiny-Q4_K_M.gguf".to_owned(), heads(seed))]
    };
    let repos = vec![
        Repo::new("user/tiny", model.clone()),
        Repo::new("other/heads", others(1)),
        Repo::new("other/wrong", others(3)),
    ];
    let hub = Hub::of(repos, None);
    let home = TempFolder::new("hub-heads-repo");
    let arguments = ["inspect", "-hf", "user/tiny", "--heads-repo", "other/heads"];
    assert!(hub.run(&arguments, home.path()).success().contains("exit heads: after"));
    let file = home.file("own-Q4_K_M.gguf", &model[0].1);
    let arguments = ["inspect", "-m", &file, "--heads-repo", "other/heads"];
    assert!(hub.run(&arguments, home.path()).success().contains("exit heads: after"));
    let offline = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ranges: Arc::default() };
    assert!(offline.run(&arguments, home.path()).success().contains("exit heads: after"));
    let pulled = hub.run(&["pull", "user/tiny", "--heads-repo", "other/heads"], home.path());
    assert!(pulled.stderr.contains("run it with --heads-repo other/heads"), "{pulled:?}");

    let wrong = hub.run(&["inspect", "-m", &file, "--heads-repo", "other/wrong"], home.path());
    assert!(wrong.failure(1).contains("no exits-*.gguf that was made for own-Q4_K_M.gguf"), "{wrong:?}");
    assert!(
        hub.run(&["inspect", "-m", &file, "--heads-repo", "other/none"], home.path()).failure(1).contains("other/none")
    );
    assert!(hub.run(&["inspect", "-m", &file, "--heads-repo", "x"], home.path()).failure(2).contains("USER/MODEL"));
}
