//! The layout of a merged file before llama.cpp itself: the model inside is mapped from where it lies, gives
//! the same logits bit for bit, and takes no more resident memory than the plain file.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use llama_cpp_sys_2 as sys;
use offramp::gguf::exits::{self, HeadType};
use offramp::gguf::{File, WriteOptions};

/// Names the file that the child is to load.
const MODEL: &str = "OFFRAMP_TAIL_MODEL";

/// Loads the model at `offset` of a file and returns the logits of a few tokens' last one.
#[allow(unsafe_code)]
fn logits(path: &Path, offset: u64) -> Vec<f32> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: plain calls of the C interface in their documented order; every pointer is checked before use,
    // and the logits are copied before the context is freed.
    unsafe {
        sys::llama_backend_init();
        let file = libc::fopen(path.as_ptr(), c"rb".as_ptr());
        assert!(!file.is_null());
        assert_eq!(libc::fseeko(file, offset as libc::off_t, libc::SEEK_SET), 0);
        let mut params = sys::llama_model_default_params();
        params.load_mode = sys::LLAMA_LOAD_MODE_MMAP;
        let model = sys::llama_model_load_from_file_ptr(file.cast(), params);
        assert!(!model.is_null());
        libc::fclose(file);
        let mut params = sys::llama_context_default_params();
        params.n_ctx = 64;
        params.n_threads = 1;
        params.n_threads_batch = 1;
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null());
        let mut tokens = [72, 101, 108, 108, 111];
        let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
        assert_eq!(sys::llama_decode(context, batch), 0);
        let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model));
        let found = std::slice::from_raw_parts(sys::llama_get_logits_ith(context, -1), n_vocab as usize).to_vec();
        sys::llama_free(context);
        sys::llama_model_free(model);
        found
    }
}

/// The largest resident size of this process so far, in bytes.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Run in a child alone: loads one file and prints a hash of the logits and the peak of resident memory.
#[test]
fn child() {
    let Some(path) = std::env::var_os(MODEL).map(PathBuf::from) else { return };
    let offset = exits::base_offset(&File::open(&path).unwrap()).unwrap();
    let bits = logits(&path, offset)
        .iter()
        .fold(0u64, |hash, value| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3));
    println!("\nlogits {bits:016x} peak {}", peak_resident().unwrap_or(0));
}

/// The hash of the logits and the peak of resident memory of a process that loads `path` alone.
fn in_child(path: &Path) -> (String, u64) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tail::child", "--nocapture"])
        .env(MODEL, path)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = stdout.lines().find_map(|line| line.strip_prefix("logits ")).unwrap_or_else(|| {
        panic!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    });
    let (bits, peak) = line.split_once(" peak ").unwrap();
    (bits.to_string(), peak.parse().unwrap())
}

fn merged_is_loaded(model: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let base = File::open(model).unwrap();
    let sidecar = crate::random::open(&crate::random::heads(&base, &[0], &[HeadType::Affine], 2));
    let path = folder.path().join("merged.gguf");
    let merged = exits::attach(&base, &sidecar, &mut |_, _| true).unwrap();
    merged.write(&path, WriteOptions::default(), &mut |_, _| true).unwrap();
    let (plain, merged) = (in_child(model), in_child(&path));
    assert_eq!(plain.0, merged.0);
    println!("{}: peak resident memory {} plain, {} merged", model.display(), plain.1, merged.1);
    // The heads are not touched; what remains is the larger header and chance.
    assert!(merged.1 < plain.1 + plain.1 / 50 + (16 << 20), "{} plain, {} merged", plain.1, merged.1);
}

#[test]
fn the_model_inside_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    crate::random::model(1).write(&model, WriteOptions::default(), &mut |_, _| true).unwrap();
    merged_is_loaded(&model);
}

/// The same on real models, where `OFFRAMP_MODELS` names a folder that holds some.
#[test]
fn the_real_models_inside_compute_the_same() {
    let Some(folder) = std::env::var_os("OFFRAMP_MODELS") else {
        eprintln!("skipped: OFFRAMP_MODELS names no folder of GGUF models");
        return;
    };
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    for model in models.iter().filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        merged_is_loaded(model);
    }
}
