//! Parts that do not fit: refused with the reason, as llama.cpp's own loader refuses them or should; and damaged ones, which
//! end no process.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp::gguf::{Error, File, OwnedValue, WriteOptions, Writer, preflight};
use offramp::{Model, ModelParams, Session, SessionParams, Token};

use crate::random;
use crate::split::plain_logits;

/// What a hostile set is made from: the model's first part, its second and third.
type Parts = Vec<Writer>;

/// Parts whose keys the caller chooses: of the first, `keys` beside the model's own; of the others, those alone.
fn parts_with(keys: impl Fn(usize, &mut Writer)) -> Parts {
    let model = random::open(&random::model(1));
    let n = model.tensors().len();
    [0..10, 10..20, 20..n]
        .into_iter()
        .enumerate()
        .map(|(no, range)| {
            let mut part = Writer::new();
            if no == 0 {
                part.copy_keys(&model, |_| true).unwrap();
            }
            keys(no, &mut part);
            for tensor in &model.tensors()[range] {
                let data = model.data(tensor).to_vec();
                part.tensor(tensor.name(), tensor.ty(), tensor.dims(), data).unwrap();
            }
            part
        })
        .collect()
}

fn sound_keys(no: usize, part: &mut Writer) {
    part.key("split.no", no as u16).unwrap();
    part.key("split.count", 3u16).unwrap();
    part.key("split.tensors.count", 29i32).unwrap();
}

/// All keys sound but one, of one part.
fn with_key(at: usize, key: &'static str, value: Option<OwnedValue>) -> Parts {
    parts_with(|no, part| {
        let sound: [(&str, OwnedValue); 3] =
            [("split.no", (no as u16).into()), ("split.count", 3u16.into()), ("split.tensors.count", 29i32.into())];
        for (name, sound) in sound {
            match &value {
                Some(value) if no == at && name == key => part.key(name, value.clone()).unwrap(),
                None if no == at && name == key => continue,
                _ => part.key(name, sound).unwrap(),
            };
        }
    })
}

fn write_parts(folder: &Path, parts: &Parts) -> Vec<PathBuf> {
    (0..parts.len())
        .map(|no| {
            let path = folder.join(format!("model-{:05}-of-{:05}.gguf", no + 1, parts.len()));
            parts[no].write(&path, WriteOptions::default(), &mut |_, _| true).unwrap();
            path
        })
        .collect()
}

/// The variant's name; of a part's error, that within.
fn variant(error: &Error) -> String {
    match error {
        Error::Part { source, .. } => format!("Part {}", variant(source)),
        error => format!("{error:?}").chars().take_while(|c| c.is_alphanumeric()).collect(),
    }
}

/// What llama.cpp's loader makes of a set that is refused here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    Refuses,
    /// Loads it all the same.
    Loads,
    /// Ends the process, so that it is not asked.
    Aborts,
}

#[test]
fn parts_that_do_not_fit_are_refused_with_the_reason() {
    use Theirs::{Aborts, Loads, Refuses};
    let nothing = |_: &Path| {};
    let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let second = "model-00002-of-00003.gguf";
    let third = "model-00003-of-00003.gguf";
    let sound = || parts_with(sound_keys);
    let swapped = move |folder: &Path| {
        std::fs::rename(folder.join(second), folder.join("x")).unwrap();
        std::fs::rename(folder.join(third), folder.join(second)).unwrap();
        std::fs::rename(folder.join("x"), folder.join(third)).unwrap();
    };
    let doubled = move |folder: &Path| {
        std::fs::copy(folder.join(second), folder.join(third)).unwrap();
    };
    let damaged = move |folder: &Path| std::fs::write(folder.join(second), b"GGUX").unwrap();
    let emptied = move |folder: &Path| std::fs::write(folder.join(third), b"").unwrap();
    let cut = move |folder: &Path| {
        let bytes = std::fs::read(folder.join(second)).unwrap();
        std::fs::write(folder.join(second), &bytes[..bytes.len() - 5000]).unwrap();
    };
    let folder_instead = move |folder: &Path| {
        std::fs::remove_file(folder.join(second)).unwrap();
        std::fs::create_dir(folder.join(second)).unwrap();
    };
    // The third part holds a tensor of the second.
    let same_tensor = || {
        let mut parts = sound();
        parts[2].tensor_f32("blk.1.attn_k.weight", &[4], &[0.0; 4]).unwrap();
        parts
    };
    let u16 = |n: u16| Some(OwnedValue::from(n));
    type Change<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: Vec<(&str, Parts, Change<'_>, &str, Theirs)> = vec![
        ("the second part is missing", sound(), Box::new(remove(second)), "MissingPart", Refuses),
        ("the last part is missing", sound(), Box::new(remove(third)), "MissingPart", Refuses),
        ("two parts changed places", sound(), Box::new(swapped), "Part KeyValue", Refuses),
        ("one part is there twice", sound(), Box::new(doubled), "Part KeyValue", Refuses),
        ("a part is no GGUF", sound(), Box::new(damaged), "Part BadMagic", Refuses),
        ("a part is empty", sound(), Box::new(emptied), "Part Truncated", Refuses),
        ("a part is cut short", sound(), Box::new(cut), "Part TensorBeyondFile", Refuses),
        ("a part is a folder", sound(), Box::new(folder_instead), "Io", Refuses),
        ("a tensor is in two parts", same_tensor(), Box::new(nothing), "Part Duplicate", Refuses),
        ("the first has no number", with_key(0, "split.no", None), Box::new(nothing), "MissingKey", Refuses),
        (
            "the first's number is u32",
            with_key(0, "split.no", Some(0u32.into())),
            Box::new(nothing),
            "KeyType",
            Refuses,
        ),
        ("the first is the second", with_key(0, "split.no", u16(1)), Box::new(nothing), "NotFirstPart", Refuses),
        ("a part has no number", with_key(1, "split.no", None), Box::new(nothing), "Part MissingKey", Refuses),
        (
            "a part's number is u32",
            with_key(1, "split.no", Some(1u32.into())),
            Box::new(nothing),
            "Part KeyType",
            Aborts,
        ),
        (
            "a part's number is text",
            with_key(2, "split.no", Some("2".into())),
            Box::new(nothing),
            "Part KeyType",
            Aborts,
        ),
        ("a part has another number", with_key(2, "split.no", u16(7)), Box::new(nothing), "Part KeyValue", Refuses),
        ("a part is of another split", with_key(1, "split.count", u16(4)), Box::new(nothing), "Part KeyValue", Loads),
        ("the count is i32", with_key(0, "split.count", Some(3i32.into())), Box::new(nothing), "KeyType", Refuses),
        ("the count is one too many", with_key(0, "split.count", u16(4)), Box::new(nothing), "PartName", Refuses),
        ("the count is one too few", with_key(0, "split.count", u16(2)), Box::new(nothing), "PartName", Refuses),
        ("the count is the largest", with_key(0, "split.count", u16(65_535)), Box::new(nothing), "KeyValue", Refuses),
        ("no count of tensors", with_key(0, "split.tensors.count", None), Box::new(nothing), "MissingKey", Refuses),
        (
            "the count of tensors is u64",
            with_key(0, "split.tensors.count", Some(29u64.into())),
            Box::new(nothing),
            "KeyType",
            Refuses,
        ),
        (
            "the count of tensors is negative",
            with_key(0, "split.tensors.count", Some((-1i32).into())),
            Box::new(nothing),
            "KeyValue",
            Refuses,
        ),
        (
            "more tensors than there are",
            parts_with(|no, part| {
                part.key("split.no", no as u16).unwrap();
                part.key("split.count", 3u16).unwrap();
                part.key("split.tensors.count", 30i32).unwrap();
            }),
            Box::new(nothing),
            "KeyValue",
            Refuses,
        ),
        (
            "a part of a model with other tensors",
            with_key(2, "split.tensors.count", Some(28i32.into())),
            Box::new(nothing),
            "Part KeyValue",
            Loads,
        ),
    ];
    for (name, parts, change, expected, theirs) in cases {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_parts(folder.path(), &parts);
        change(folder.path());
        let error = File::open_model(&paths[0]).err().unwrap_or_else(|| panic!("{name}: accepted"));
        assert_eq!(variant(&error), expected, "{name}: {error}");
        let message = error.to_string();
        assert!(message.len() < 600 && !message.chars().any(char::is_control), "{name}: {message:?}");
        assert!(Model::load(&paths[0], &ModelParams::default()).is_err(), "{name}");
        if theirs != Aborts {
            assert_eq!(plain_logits(&paths[0]).is_some(), theirs == Loads, "{name}: llama.cpp");
        }
    }
}

#[test]
fn what_is_no_first_part_says_which_is() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_parts(folder.path(), &parts_with(sound_keys));
    assert!(File::open_model(&paths[0]).is_ok());
    let error = File::open_model(&paths[1]).err().unwrap().to_string();
    assert!(
        error.ends_with("this is part 2 of 3 of a split model; give the first part, model-00001-of-00003.gguf"),
        "{error}"
    );
    let missing = || File::open_model(&paths[0]).err().unwrap().to_string();
    std::fs::remove_file(&paths[2]).unwrap();
    let error = missing();
    assert!(error.contains("model-00003-of-00003.gguf: this part 3 of 3 is missing; put all parts"), "{error}");
    let other = folder.path().join("renamed.gguf");
    std::fs::rename(&paths[0], &other).unwrap();
    let error = File::open_model(&other).err().unwrap().to_string();
    assert!(error.contains("its name must end in -00001-of-00003.gguf"), "{error}");
    // One part alone is a sound file, and no model.
    assert!(matches!(preflight(&File::open(&other).unwrap()), Err(Error::KeyValue { .. })));
}

/// Names the folder of folders that the child is to load.
const FOLDER: &str = "OFFRAMP_SPLIT_FOLDER";

/// Run in the child alone: loads what is in each folder, and decodes with it.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    for index in 0.. {
        let first = folder.join(format!("{index}/model-00001-of-00003.gguf"));
        if !first.exists() {
            break;
        }
        println!("\nstart {index}");
        let decoded = Model::load(&first, &ModelParams::default()).is_ok_and(|model| {
            let mut params = SessionParams::default();
            params.n_ctx = 64;
            Session::new(&model, &params).is_ok_and(|mut session| session.set_prompt(&[Token(7)], &mut |_| {}).is_ok())
        });
        println!("end {index} {decoded}");
    }
}

#[test]
fn no_damaged_part_ends_the_process() {
    let parts: Vec<Vec<u8>> = parts_with(sound_keys).iter().map(|part| part.to_bytes().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut random = random::Random::new(23);
    let (mut n, mut refused) = (0, 0);
    for round in 0..3000 {
        let mut damaged = parts.clone();
        // The keys and tensor entries of the later parts, which a single file has not.
        let part = &mut damaged[1 + random.below(2) as usize];
        let header = File::from_bytes(part.clone(), "part").unwrap().data_start();
        for _ in 0..1 + random.below(2) {
            part[random.below(header) as usize] ^= 1 << random.below(8);
        }
        let set = folder.path().join(n.to_string());
        std::fs::create_dir(&set).unwrap();
        for (no, bytes) in damaged.iter().enumerate() {
            std::fs::write(set.join(format!("model-{:05}-of-00003.gguf", no + 1)), bytes).unwrap();
        }
        let file = File::open_model(set.join("model-00001-of-00003.gguf"));
        // The first is the model as it is.
        if round > 0 && !file.is_ok_and(|file| preflight(&file).is_ok()) {
            std::fs::remove_dir_all(&set).unwrap();
            refused += 1;
            continue;
        }
        n += 1;
        if n == 40 {
            break;
        }
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parts::child", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let ends = stdout.lines().filter(|line| line.starts_with("end ")).count();
    assert!(output.status.success() && ends == n, "{:?} after {ends} of {n}: {stdout}", output.status);
    println!("{refused} sets were refused, {n} loaded");
}
