//! Exit heads that are found without a flag, by every command that loads a model; and models in parts.

use std::path::PathBuf;

use crate::random;
use crate::support::{Finished, TempFolder, offramp};
use offramp::gguf::exits::{self, HeadType};
use offramp::gguf::{File, Split, SplitLimit, SplitOptions, WriteOptions};

/// A folder with `tiny.gguf`, its parts, and heads for it in a cache folder.
struct Ground {
    folder: TempFolder,
    model: String,
    kept: PathBuf,
}

impl Ground {
    fn new(name: &str) -> Self {
        let folder = TempFolder::new(name);
        let model = folder.file("tiny.gguf", random::model(1).to_bytes().unwrap());
        let base = File::open(&model).unwrap();
        let sha256 = exits::base_sha256(&base, &mut |_, _| true).unwrap();
        let kept = folder.path().join("cache/heads").join(format!("{sha256}.gguf"));
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        let heads = random::heads(&base, &[0, 1], &[HeadType::Affine, HeadType::Affine], 2);
        heads.write(&kept, WriteOptions::default(), &mut |_, _| true).unwrap();
        Self { folder, model, kept }
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = offramp(arguments);
        Finished::of(command.env("OFFRAMP_CACHE", self.folder.path().join("cache")).output().unwrap())
    }

    fn parts(&self) -> Vec<String> {
        let mut options = SplitOptions::default();
        options.limit = SplitLimit::Tensors(10);
        let split = Split::of(&File::open(&self.model).unwrap(), &options).unwrap();
        let paths = split.write(&self.folder.path().join("tiny"), WriteOptions::default(), &mut |_, _| true).unwrap();
        paths.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }
}

/// How many exits `inspect` tells of.
fn n_exits(told: &str) -> usize {
    let line = told.lines().find(|line| line.starts_with("exit heads: after")).unwrap_or_else(|| panic!("{told}"));
    line.split(", and").next().unwrap().split(',').count()
}

#[test]
fn the_users_own_heads_are_found_by_every_command() {
    let ground = Ground::new("heads-own");
    let told = format!("offramp: exit heads from {}\n", ground.kept.display());
    let model = &ground.model;
    for arguments in [
        vec!["inspect", "-m", model],
        vec!["run", "-m", model, "--raw", "-p", "th", "-n", "3"],
        vec!["chat", "-m", model, "-st", "-p", "th", "-n", "3"],
    ] {
        let finished = ground.run(&arguments);
        assert!(finished.code == Some(0) && finished.stderr.contains(&told), "{arguments:?}: {finished:?}");
    }
    assert_eq!(n_exits(&ground.run(&["inspect", "-m", model]).success()), 2);
    let none = ground.run(&["inspect", "-m", model, "--heads", "none"]);
    assert!(!none.stderr.contains("exit heads from") && none.success().contains("exit heads: none"));
    // Heads that are named go first, and must be there.
    let named = ground.folder.path().join("named.gguf");
    let base = File::open(model).unwrap();
    let heads = random::heads(&base, &[1], &[HeadType::Affine], 3);
    heads.write(&named, WriteOptions::default(), &mut |_, _| true).unwrap();
    let named = ground.run(&["inspect", "-m", model, "--heads", named.to_str().unwrap()]).success();
    assert_eq!(n_exits(&named), 1, "{named}");
    assert!(ground.run(&["inspect", "-m", model, "--heads", "gone.gguf"]).failure(1).contains("gone.gguf"));
}

#[test]
fn a_merged_model_keeps_the_heads_inside() {
    let ground = Ground::new("heads-merged");
    let base = File::open(&ground.model).unwrap();
    let heads = random::open(&random::heads(&base, &[1], &[HeadType::Affine], 3));
    let merged = ground.folder.path().join("merged.gguf");
    let writer = exits::attach(&base, &heads, &mut |_, _| true).unwrap();
    writer.write(&merged, WriteOptions::default(), &mut |_, _| true).unwrap();
    for more in [vec![], vec!["--heads", "none"]] {
        let arguments = [vec!["inspect", "-m", merged.to_str().unwrap()], more].concat();
        assert_eq!(n_exits(&ground.run(&arguments).success()), 1);
    }
}

#[test]
fn a_model_in_parts_answers_as_the_whole_and_finds_its_heads() {
    let ground = Ground::new("heads-parts");
    let parts = ground.parts();
    let answer = |model: &str| {
        let arguments =
            ["run", "-m", model, "--raw", "-p", "the", "-n", "12", "--temp", "0", "--exits", "off", "--json"];
        let text = ground.run(&arguments).success();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["tokens"].clone()
    };
    assert_eq!(answer(&parts[0]), answer(&ground.model));
    let told = ground.run(&["inspect", "-m", &parts[0]]).success();
    assert!(told.contains("parts: 3 files") && told.contains("exit heads: after"), "{told}");
    let needs = |model: &str| {
        let shown = ground.run(&["show", model]).success();
        let line = shown.lines().find(|line| line.starts_with("needs: ")).unwrap();
        line.split_once(" (").map_or(line, |(needs, _)| needs).to_owned()
    };
    assert_eq!(needs(&parts[0]), needs(&ground.model));
    // What is wrong names the part and the fix.
    let second = ground.run(&["inspect", "-m", &parts[1]]);
    assert!(second.failure(1).contains("give the first part, tiny-00001-of-00003.gguf"), "{second:?}");
    std::fs::remove_file(&parts[1]).unwrap();
    let missing = ground.run(&["run", "-m", &parts[0], "-p", "th"]);
    let line = missing.failure(1);
    assert!(line.contains("tiny-00002-of-00003.gguf: this part 2 of 3 is missing; put all parts"), "{line}");
}
