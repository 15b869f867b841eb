//! The writer from outside: what it writes is read back, and what it must refuse it refuses.

use offramp::gguf::{Error, File, OwnedValue, TensorType, Value, WriteOptions, Writer};

fn small() -> Writer {
    let mut writer = Writer::new();
    writer.key("general.architecture", "llama").unwrap();
    writer.key("llama.block_count", 2u32).unwrap();
    writer.key("tokenizer.ggml.tokens", vec!["a", "b"]).unwrap();
    writer.tensor_f32("output_norm.weight", &[3], &[1.0, 2.0, 3.0]).unwrap();
    writer.tensor("output.weight", TensorType::Q4_0, &[32, 2], vec![7; 36]).unwrap();
    writer
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    let writer = small();
    writer.write(&path, WriteOptions::default(), &mut |_, _| true).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), writer.size());
    assert_eq!(std::fs::read(&path).unwrap(), writer.to_bytes().unwrap());

    let file = File::open(&path).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.alignment(), 32);
    assert_eq!(file.data_start() % 32, 0);
    assert_eq!(file.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.get("llama.block_count"), Some(Value::U32(2)));
    let tokens = file.get("tokenizer.ggml.tokens").unwrap().as_array().unwrap();
    assert_eq!(tokens.iter().filter_map(|token| token.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let output = file.tensor("output.weight").unwrap();
    assert_eq!((output.ty(), output.dims(), output.offset()), (TensorType::Q4_0, &[32, 2][..], 32));
    assert_eq!(file.data(output), [7; 36]);
    assert!(matches!(file.u32("general.architecture"), Err(Error::KeyType { .. })));
}

#[test]
fn an_existing_file_is_replaced_only_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    std::fs::write(&path, "old").unwrap();
    let refused = small().write(&path, WriteOptions::default(), &mut |_, _| true);
    assert!(matches!(refused, Err(Error::OutputExists { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    small().write(&path, WriteOptions::replacing(true), &mut |_, _| true).unwrap();
    File::open(&path).unwrap();
}

#[test]
fn an_input_is_never_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    small().write(&path, WriteOptions::default(), &mut |_, _| true).unwrap();
    let before = std::fs::read(&path).unwrap();

    let file = File::open(&path).unwrap();
    let mut writer = Writer::new();
    writer.copy_tensor(&file, &file.tensors()[0]).unwrap();
    let mut same = vec![path.clone(), folder.path().join(".").join("small.gguf")];
    #[cfg(unix)]
    {
        same.push(folder.path().join("symbolic.gguf"));
        std::os::unix::fs::symlink(&path, same.last().unwrap()).unwrap();
        same.push(folder.path().join("hard.gguf"));
        std::fs::hard_link(&path, same.last().unwrap()).unwrap();
    }
    for output in same {
        let refused = writer.write(&output, WriteOptions::replacing(true), &mut |_, _| true);
        assert!(matches!(refused, Err(Error::OutputIsInput { .. })), "{}", output.display());
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_stopped_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    for stop_at in 0..2 {
        let mut calls = 0;
        let stopped = small().write(&path, WriteOptions::default(), &mut |_, _| {
            calls += 1;
            calls <= stop_at
        });
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_the_reader_would_refuse_is_never_written() {
    let mut writer = small();
    assert!(matches!(writer.key("", 1u32), Err(Error::BadName { .. })));
    assert!(matches!(writer.key("a\0b", 1u32), Err(Error::BadName { .. })));
    assert!(matches!(writer.key("llama.block_count", 1u32), Err(Error::Duplicate { .. })));
    assert!(matches!(writer.key("general.alignment", 64u32), Err(Error::KeyValue { .. })));
    assert!(matches!(Writer::new().key("general.alignment", 33u32), Err(Error::BadAlignment { .. })));
    assert!(matches!(Writer::new().key("general.alignment", 32u64), Err(Error::KeyType { .. })));
    let mut aligned = Writer::new();
    aligned.key("general.alignment", 64u32).unwrap();
    assert!(matches!(aligned.key("general.alignment", 128u32), Err(Error::Duplicate { .. })));
    assert_eq!(File::from_bytes(aligned.to_bytes().unwrap(), "memory").unwrap().alignment(), 64);
    let nested = OwnedValue::Array(offramp::gguf::ValueType::Array, Vec::new());
    assert!(matches!(writer.key("nested", nested), Err(Error::NestedArray { .. })));
    let mixed = OwnedValue::Array(offramp::gguf::ValueType::U32, vec![OwnedValue::I32(1)]);
    assert!(matches!(writer.key("mixed", mixed), Err(Error::ArrayEntry { .. })));

    let long = "x".repeat(64);
    assert!(matches!(writer.tensor_f32(&long, &[1], &[0.0]), Err(Error::StringTooLong { .. })));
    assert!(matches!(writer.tensor_f32("output_norm.weight", &[1], &[0.0]), Err(Error::Duplicate { .. })));
    assert!(matches!(writer.tensor_f32("t", &[2], &[0.0]), Err(Error::DataSize { .. })));
    assert!(matches!(writer.tensor_f32("t", &[1, 1, 1, 1, 1], &[0.0]), Err(Error::TooManyDims { .. })));
    assert!(matches!(writer.tensor("t", TensorType::Q4_K, &[255], vec![]), Err(Error::PartialBlock { .. })));
    assert!(matches!(writer.tensor_f32("t", &[1 << 62, 4], &[]), Err(Error::TensorTooLarge { .. })));
    // A refused tensor leaves no trace.
    writer.tensor_f32("t", &[1], &[0.5]).unwrap();
    let file = File::from_bytes(writer.to_bytes().unwrap(), "memory").unwrap();
    assert_eq!(file.tensors().len(), 3);
}
