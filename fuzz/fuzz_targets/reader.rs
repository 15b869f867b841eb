//! Any bytes as a model: the reader, the preflight and the heads answer with a value or an error, never a
//! panic, and what they accept can be looked at in full.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../src/gguf/mod.rs"]
mod gguf;

use gguf::exits::ExitHeads;
use gguf::{File, preflight, preflight_unread, quants};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let file = match File::from_bytes(bytes.to_vec(), "fuzz") {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for (name, value) in file.keys() {
        assert_eq!(file.get(name).map(|value| value.ty()), Some(value.ty()));
        if let Some(array) = value.as_array() {
            assert_eq!(array.iter().count() as u64, array.len());
        }
    }
    for tensor in file.tensors() {
        let data = file.data(tensor);
        assert_eq!(data.len() as u64, tensor.bytes());
        let block = tensor.ty().block_bytes() as usize;
        let some = &data[..data.len().min(64 * block)];
        assert!(quants::dequantize(tensor.ty(), some).is_ok());
    }
    if preflight(&file).is_ok() {
        assert!(preflight_unread(&file).is_ok());
    }
    if let Ok(heads) = ExitHeads::open(&file) {
        assert_eq!(heads.heads().len(), heads.meta().layers.len());
        let _ = heads.check_base(&file, gguf::exits::BaseCheck::Data, &mut |_, _| true);
    }
});
