//! What the whole-program tests share: running `offramp`, and where the default model is.
#![allow(dead_code)] // Each test program uses its own part of this.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The program, without anything in the environment that would change what it does.
pub fn offramp(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offramp"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("LLAMA_") || name.starts_with("HF_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is whole UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// stdout, once the exit code is known to be 0.
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        self.stdout
    }

    /// The last line of stderr, once the exit code is known to be `code`.
    pub fn failure(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// Runs `offramp` with nothing on stdin.
pub fn run(arguments: &[&str]) -> Finished {
    Finished::of(offramp(arguments).output().unwrap())
}

/// Runs `offramp` with `input` on stdin.
pub fn run_with_input(arguments: &[&str], input: &str) -> Finished {
    let mut child = offramp(arguments).stdin(Stdio::piped()).spawn().unwrap();
    // A program that fails early closes its stdin; that is what is tested then.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Finished::of(child.wait_with_output().unwrap())
}

/// The default model, fetched by `make model` (or `make test`).
pub fn default_model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(fetch_default_model)
}

fn fetch_default_model() -> PathBuf {
    let fetched = Command::new("python3").arg(manifest_folder().join("scripts/fetch-model")).output();
    let fetched = fetched.expect("python3 runs scripts/fetch-model");
    assert!(fetched.status.success(), "no default model: {}", String::from_utf8_lossy(&fetched.stderr));
    PathBuf::from(String::from_utf8(fetched.stdout).unwrap().trim_end())
}

pub fn manifest_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of its own for one test, removed at the end.
pub struct TempFolder(PathBuf);

impl TempFolder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("offramp-test-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path as text.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
