//! A folder with a tiny model, and the program run in it.

use std::path::PathBuf;
use std::process::{Command, Output};

use offramp_fixtures::{Arch, TinyModel, WeightType};

pub struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with `model.gguf`, which has a chat template.
    pub fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.model("model.gguf", Arch::Llama);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn model(&self, name: &str, arch: Arch) {
        self.write(name, TinyModel::new(arch).seed(3).weights(WeightType::Q8_0).layers(3).bytes());
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    pub fn run(&self, arguments: &str) -> Output {
        let program = env!("CARGO_BIN_EXE_gguf-tools");
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace()).current_dir(self.0.path());
        // Away from the user's own.
        command.env("OFFRAMP_CACHE", self.path("cache")).output().unwrap()
    }

    /// What a verb prints that must succeed.
    pub fn text(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a verb says that must fail with `status`, and print nothing.
    pub fn refusal(&self, status: i32, arguments: &str) -> String {
        let output = self.run(arguments);
        let is_refused = output.status.code() == Some(status) && output.stdout.is_empty();
        assert!(is_refused, "{arguments} must fail with {status}");
        String::from_utf8(output.stderr).unwrap()
    }
}
