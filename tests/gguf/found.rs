//! Heads without a flag: found by the hash of the whole model, in the user's cache or beside the file, in the library and
//! through the C ABI; and the hash computed once.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp::gguf::exits::HeadType;
use offramp::gguf::{File, Split, SplitLimit, SplitOptions, WriteOptions, Writer};
use offramp::{Error, HeadsCache, Model, ModelParams};

use crate::random;

/// A folder with `model.gguf`, and a cache folder in it.
struct World {
    folder: tempfile::TempDir,
    cache: HeadsCache,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let cache = HeadsCache::at(folder.path().join("cache/heads"));
        let world = World { folder, cache };
        write(&random::model(1), &world.path("model.gguf"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> File {
        File::open_model(self.path("model.gguf")).unwrap()
    }

    /// Writes heads for the tiny model of a seed.
    fn heads(&self, seed: u64, path: &Path) {
        let base = random::open(&random::model(seed));
        write(&random::heads(&base, &[0, 1], &[HeadType::Affine, HeadType::LowRank], 2), path);
    }

    /// Puts heads for the tiny model of a seed where `add-heads --sidecar` puts them.
    fn keep(&self, seed: u64) -> PathBuf {
        let base = random::open(&random::model(seed));
        let path = self.cache.path_for(&offramp::gguf::exits::base_sha256(&base, &mut |_, _| true).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        self.heads(seed, &path);
        path
    }

    /// What is found for a model, and whether it was read whole for that.
    fn find(&self, model: &File) -> (Option<PathBuf>, bool) {
        let mut is_hashed = false;
        let found = self.cache.find(model, &mut |_, _| {
            is_hashed = true;
            true
        });
        (found.unwrap(), is_hashed)
    }

    fn index(&self) -> PathBuf {
        self.path("cache/heads/index.json")
    }
}

fn write(writer: &Writer, path: &Path) {
    writer.write(path, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
}

fn touch(path: &Path, seconds: u64) {
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn the_users_own_heads_are_found_for_the_model_wherever_it_lies() {
    let world = World::new();
    assert_eq!(world.find(&world.model()), (None, false), "without heads of this shape nothing is hashed");
    let kept = world.keep(1);
    assert_eq!(world.find(&world.model()), (Some(kept.clone()), true));
    assert_eq!(world.find(&world.model()), (Some(kept.clone()), false), "the index remembers the model");

    // A copy elsewhere is another file, and the same model.
    std::fs::create_dir(world.path("elsewhere")).unwrap();
    let copy = world.path("elsewhere/renamed.gguf");
    std::fs::copy(world.path("model.gguf"), &copy).unwrap();
    touch(&copy, 1_700_000_000);
    assert_eq!(world.find(&File::open(&copy).unwrap()).0, Some(kept.clone()));
    // So are its parts.
    let mut options = SplitOptions::default();
    options.limit = SplitLimit::Tensors(10);
    let split = Split::of(&world.model(), &options).unwrap();
    let parts = split.write(&world.path("elsewhere/m"), WriteOptions::default(), &mut |_, _| true).unwrap();
    let parts = File::open_model(&parts[0]).unwrap();
    assert_eq!(world.find(&parts), (Some(kept.clone()), true));
    assert_eq!(world.find(&parts), (Some(kept), false));
}

#[test]
fn heads_of_another_model_are_never_taken() {
    let world = World::new();
    // Of the same shape, but of other weights: the whole model has to be read to tell them apart, once.
    world.keep(2);
    assert_eq!(world.find(&world.model()), (None, true));
    assert_eq!(world.find(&world.model()), (None, false));
    // Also where they have the name of this model's.
    let name = world.keep(1);
    world.heads(2, &name);
    assert_eq!(world.find(&world.model()), (None, false));
    // Damaged ones, and files that are none, are passed over.
    std::fs::write(&name, b"GGUF").unwrap();
    std::fs::write(name.with_file_name("0.gguf"), b"").unwrap();
    std::fs::create_dir(name.with_file_name("1.gguf")).unwrap();
    assert_eq!(world.find(&world.model()), (None, false));
    let kept = world.keep(1);
    assert_eq!(world.find(&world.model()).0, Some(kept.clone()));
    let fits = |path: &Path| world.cache.fits(path, &world.model(), &mut |_, _| true).unwrap();
    assert!(fits(&kept) && !fits(&name.with_file_name("0.gguf")) && !fits(&world.path("none.gguf")));
}

#[test]
fn a_model_that_changed_is_hashed_anew() {
    let world = World::new();
    let kept = world.keep(1);
    assert_eq!(world.find(&world.model()), (Some(kept.clone()), true));
    // Other weights of the same size, the time set back: samples of the weights tell.
    let time = std::fs::metadata(world.path("model.gguf")).unwrap().modified().unwrap();
    write(&random::model(3), &world.path("model.gguf"));
    std::fs::File::options().write(true).open(world.path("model.gguf")).unwrap().set_modified(time).unwrap();
    assert_eq!(world.find(&world.model()), (None, true));
    // A file that was only written again: hashed, and found.
    write(&random::model(1), &world.path("model.gguf"));
    touch(&world.path("model.gguf"), 1_600_000_000);
    assert_eq!(world.find(&world.model()), (Some(kept), true));
}

#[test]
fn a_damaged_index_is_made_anew_and_an_unwritable_one_does_without() {
    let world = World::new();
    let kept = world.keep(1);
    let huge = "[".repeat(2 << 20);
    for damaged in ["", "{", "[1, 2]", r#"{"models": [{"sizes": 3}]}"#, "\0\0", &huge] {
        std::fs::write(world.index(), damaged).unwrap();
        assert_eq!(world.find(&world.model()), (Some(kept.clone()), true));
        assert_eq!(world.find(&world.model()), (Some(kept.clone()), false));
    }
    // A folder in its place can be neither read nor replaced.
    std::fs::remove_file(world.index()).unwrap();
    std::fs::create_dir(world.index()).unwrap();
    for _ in 0..2 {
        assert_eq!(world.find(&world.model()), (Some(kept.clone()), true));
    }
}

#[test]
fn the_index_keeps_the_models_that_came_last() {
    let world = World::new();
    for seconds in 0..501 {
        touch(&world.path("model.gguf"), seconds);
        world.cache.base_sha256(&world.model(), &mut |_, _| true).unwrap();
    }
    let text = std::fs::read_to_string(world.index()).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(index["models"].as_array().unwrap().len(), 500);
    let is_known = |seconds| {
        touch(&world.path("model.gguf"), seconds);
        world.cache.base_sha256(&world.model(), &mut |_, _| false).is_ok()
    };
    assert!(is_known(500) && is_known(1) && !is_known(0));
}

#[test]
fn heads_beside_the_model_come_after_the_users_own() {
    let world = World::new();
    // In the order of their names; only those that are for this model.
    world.heads(2, &world.path("exits-a.gguf"));
    world.heads(1, &world.path("exits-b.gguf"));
    world.heads(1, &world.path("other.gguf"));
    assert_eq!(world.find(&world.model()).0, Some(world.path("exits-b.gguf")));
    let kept = world.keep(1);
    assert_eq!(world.find(&world.model()).0, Some(kept));
}

#[test]
fn a_look_can_be_stopped() {
    let world = World::new();
    world.keep(1);
    assert!(matches!(world.cache.find(&world.model(), &mut |_, _| false), Err(Error::Cancelled)));
    assert!(!world.index().exists());
}

/// Names the folder of the child's models.
const FOLDER: &str = "OFFRAMP_FOUND_FOLDER";

/// Whether heads came with a model that the C ABI loads; `heads_path` is that of its params.
#[allow(unsafe_code)]
fn c_has_heads(path: &Path, find_heads: i32) -> i32 {
    use offramp::capi::*;
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let params = offramp_model_params { find_heads, ..Default::default() };
    let mut model = std::ptr::null_mut();
    // SAFETY: a NUL-terminated path, params of this library's making, and places of the sizes that are given; the model is
    // freed once.
    unsafe {
        assert_eq!(offramp_model_load(path.as_ptr(), &params, &mut model), OFFRAMP_OK);
        let mut info = std::mem::MaybeUninit::<offramp_model_info>::zeroed();
        assert_eq!(offramp_model_get_info(model, info.as_mut_ptr(), size_of::<offramp_model_info>()), OFFRAMP_OK);
        offramp_model_free(model);
        info.assume_init().has_heads
    }
}

/// Run in the child alone, whose environment names its cache.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let model = folder.join("model.gguf");
    let load = |params: &ModelParams| Model::load(&model, params).unwrap().has_heads();
    assert!(!load(&ModelParams::default()), "the library looks only where it is told to");
    let mut params = ModelParams::default();
    params.find_heads = true;
    assert!(load(&params));
    assert_eq!((c_has_heads(&model, 1), c_has_heads(&model, 0)), (1, 0));
    assert_eq!(offramp::capi::offramp_model_params::default().find_heads, 1);
    assert_eq!(c_has_heads(&folder.join("other.gguf"), 1), 0);
    println!("\nfound");
}

#[test]
fn the_library_and_the_c_abi_find_them() {
    let world = World::new();
    world.keep(1);
    write(&random::model(2), &world.path("other.gguf"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "found::child", "--nocapture"])
        .env(FOLDER, world.folder.path())
        .env("OFFRAMP_CACHE", world.path("cache"))
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("found"), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(world.index().is_file());
}
