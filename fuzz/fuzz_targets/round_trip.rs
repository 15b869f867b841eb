//! Whatever the reader accepts is written again without a loss: the same keys, the same tensors, the same
//! data, and a second writing gives the same bytes.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../src/gguf/mod.rs"]
mod gguf;

use gguf::{File, Writer};

fn write(file: &File) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.copy_keys(file, |_| true).expect("accepted keys can be written");
    for tensor in file.tensors() {
        writer.copy_tensor(file, tensor).expect("accepted tensors can be written");
    }
    let bytes = writer.to_bytes().expect("memory can be read");
    assert_eq!(bytes.len() as u64, writer.size());
    bytes
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = File::from_bytes(bytes.to_vec(), "fuzz") else { return };
    let written = write(&file);
    let again = File::from_bytes(written.clone(), "written").expect("what was written can be read");
    assert_eq!(again.alignment(), file.alignment());
    assert_eq!(again.keys().len(), file.keys().len());
    for ((name, value), (other_name, other)) in file.keys().zip(again.keys()) {
        assert_eq!(name, other_name);
        // By their bytes, because NaN is equal to nothing.
        assert_eq!(format!("{value:?}"), format!("{other:?}"));
    }
    assert_eq!(again.tensors(), file.tensors());
    for (tensor, other) in file.tensors().iter().zip(again.tensors()) {
        assert_eq!(file.data(tensor), again.data(other));
    }
    assert_eq!(write(&again), written);
});
