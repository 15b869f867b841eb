//! Crafted and damaged files: a typed error each, never a panic, and no memory beyond the file's own.

use crate::cases::Case;
use offramp::gguf::{Error, File, preflight};

/// The variant's name.
fn variant(error: &Error) -> String {
    format!("{error:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

fn check(cases: Vec<Case>, read: impl Fn(Vec<u8>) -> Result<(), Error>) {
    let mut wrong = Vec::new();
    for case in cases {
        let error = read(case.bytes).err();
        if let Some(error) = &error {
            let message = error.to_string();
            assert!(message.len() < 600 && !message.chars().any(char::is_control), "{}: {message:?}", case.name);
        }
        let found = error.as_ref().map(variant);
        if found.as_deref() != case.expected {
            wrong.push(format!("{}: expected {:?}, found {found:?} ({error:?})", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn read(bytes: Vec<u8>) -> Result<(), Error> {
    File::from_bytes(bytes, "hostile").map(drop)
}

fn read_model(bytes: Vec<u8>) -> Result<(), Error> {
    preflight(&File::from_bytes(bytes, "hostile")?).map(drop)
}

#[test]
fn the_33_files_of_test_gguf() {
    let cases = crate::cases::test_gguf();
    assert_eq!(cases.len(), 33);
    assert_eq!(cases.iter().filter(|case| case.expected.is_some()).count(), 26);
    check(cases, read);
}

#[test]
fn the_files_that_test_gguf_leaves_out() {
    check(crate::cases::more(), read);
}

#[test]
fn models_that_would_crash_llama_cpp() {
    check(crate::cases::models(), read_model);
}

#[test]
fn a_file_cut_at_any_byte_of_its_header_is_truncated() {
    let whole = crate::random::model(1).to_bytes().unwrap();
    let header = File::from_bytes(whole.clone(), "whole").unwrap().data_start() as usize;
    for end in 0..header {
        match File::from_bytes(whole[..end].to_vec(), "cut") {
            // A count that the rest of the file cannot hold is the same defect, seen earlier.
            Err(Error::Truncated { .. } | Error::CountTooLarge { .. }) => {}
            Err(other) => panic!("cut at {end}: {other}"),
            Ok(_) => panic!("cut at {end}: accepted"),
        }
    }
    for end in [header, header + 1, whole.len() - 257] {
        assert!(matches!(read(whole[..end].to_vec()), Err(Error::TensorBeyondFile { .. })), "cut at {end}");
    }
}

/// Damages a header in `n` places; the same damage for the same seed.
fn damage(bytes: &mut [u8], header: usize, n: usize, random: &mut crate::random::Random) {
    for _ in 0..n {
        let at = random.below(header as u64) as usize;
        bytes[at] = match random.below(4) {
            0 => random.below(256) as u8,
            1 => bytes[at] ^ (1 << random.below(8)),
            2 => bytes[at].wrapping_add(1),
            _ => [0, 0x7f, 0x80, 0xff][random.below(4) as usize],
        };
    }
}

#[test]
fn random_damage_never_panics() {
    let plain = crate::random::model(1).to_bytes().unwrap();
    let model = crate::random::open(&crate::random::model(1));
    let types = [offramp::gguf::exits::HeadType::LowRankMlp];
    let sidecar = crate::random::open(&crate::random::heads(&model, &[0], &types, 2));
    let merged = offramp::gguf::exits::attach(&model, &sidecar, &mut |_, _| true).unwrap().to_bytes().unwrap();
    let mut accepted = 0;
    for (seed, whole) in [(1, plain), (2, merged)] {
        let header = File::from_bytes(whole.clone(), "whole").unwrap().data_start() as usize;
        let mut random = crate::random::Random::new(seed);
        for round in 0..4000 {
            let mut bytes = whole.clone();
            damage(&mut bytes, header, 1 + round % 8, &mut random);
            if let Ok(file) = File::from_bytes(bytes, "damaged") {
                for (_, value) in file.keys() {
                    let _ = value.to_owned();
                }
                accepted += usize::from(preflight(&file).is_ok());
                if let Ok(heads) = offramp::gguf::exits::ExitHeads::open(&file) {
                    assert!(heads.heads().len() <= 1);
                }
            }
        }
    }
    println!("{accepted} of 8,000 damaged files are still sound models");
}

/// A model of one layer in a few kilobytes.
fn micro_model() -> offramp::gguf::Writer {
    use offramp::gguf::{TensorType, Writer};
    let model = crate::random::open(&crate::random::model(1));
    let mut writer = Writer::new();
    let changed = ["llama.block_count", "llama.embedding_length", "llama.rope.dimension_count"];
    writer.copy_keys(&model, |name| !changed.contains(&name)).unwrap();
    for (name, value) in changed.into_iter().zip([1u32, 32, 8]) {
        writer.key(name, value).unwrap();
    }
    for tensor in model
        .tensors()
        .iter()
        .filter(|tensor| !tensor.name().starts_with("blk.1") && !tensor.name().starts_with("blk.2"))
    {
        let halved: Vec<u64> = tensor.dims().iter().map(|&dim| if dim % 32 == 0 { dim / 2 } else { dim }).collect();
        let ty = if halved.len() == 1 { TensorType::F32 } else { TensorType::Q4_0 };
        writer.tensor(tensor.name(), ty, &halved, vec![0; ty.bytes(&halved).unwrap() as usize]).unwrap();
    }
    writer
}

/// Writes the seeds of the fuzz targets: `cargo test --release --test gguf seeds -- --ignored`.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn seeds() {
    let micro = micro_model().to_bytes().unwrap();
    read_model(micro.clone()).unwrap();
    let mut files: Vec<Vec<u8>> =
        crate::cases::test_gguf().into_iter().chain(crate::cases::more()).map(|case| case.bytes).collect();
    let base = File::from_bytes(micro.clone(), "micro").unwrap();
    // Without layers there are no exits, but a screen and all the keys.
    let sidecar = crate::random::heads(&base, &[], &[], 3);
    let merged = offramp::gguf::exits::attach(&base, &crate::random::open(&sidecar), &mut |_, _| true).unwrap();
    files.extend([micro, sidecar.to_bytes().unwrap(), merged.to_bytes().unwrap()]);
    for target in ["reader", "round_trip"] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (index, bytes) in files.iter().enumerate().filter(|(_, bytes)| bytes.len() < 1 << 16) {
            std::fs::write(folder.join(format!("seed-{index:03}")), bytes).unwrap();
        }
    }
}
