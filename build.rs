//! Facts about this build for `offramp --version --verbose`: commit, target, profile, processor, version of the llama.cpp crate.
//! Each goes into an `OFFRAMP_BUILD_*` variable of the compiler; what cannot be known says so. Compiles the shim that
//! plugs our kernels into ggml's CPU backend, where that can be reached (`cfg(offramp_plug)`).

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets the manifest's folder");
    fact("COMMIT", commit(&root));
    fact("TARGET", std::env::var("TARGET").ok());
    fact("PROFILE", std::env::var("PROFILE").ok());
    fact("CPU", target_cpu());
    fact("LLAMA", llama_version(&root));
    plug(Path::new(&root));
}

/// Compiles `vendor/plug.cpp` against the headers of the llama.cpp that is linked. Left out where ggml's CPU backend is a
/// module of its own, and for MSVC, whose C++ interface was not looked at.
fn plug(root: &Path) {
    println!("cargo::rustc-check-cfg=cfg(offramp_plug)");
    println!("cargo::rerun-if-changed=vendor/plug.cpp");
    let is_msvc = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "msvc");
    if is_msvc || std::env::var_os("CARGO_FEATURE_DYNAMIC_BACKENDS").is_some() {
        return;
    }
    let source = llama_source().expect("llama-cpp-sys-2 says where it built llama.cpp, and that names its source");
    let ggml = source.join("ggml");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .file(root.join("vendor/plug.cpp"))
        .include(ggml.join("include"))
        .include(ggml.join("src"))
        .include(ggml.join("src/ggml-cpu"))
        .compile("offramp_plug");
    println!("cargo::rustc-cfg=offramp_plug");
}

/// The folder of llama.cpp's source, out of the cache of the cmake build that is linked.
fn llama_source() -> Option<PathBuf> {
    let installed = PathBuf::from(std::env::var_os("DEP_LLAMA_GGML_CMAKE_DIR")?);
    let cache = installed.parent()?.parent()?.join("build/CMakeCache.txt");
    let cache = std::fs::read_to_string(cache).ok()?;
    let line = cache.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))?;
    Some(PathBuf::from(line))
}

fn fact(name: &str, value: Option<String>) {
    println!("cargo::rustc-env=OFFRAMP_BUILD_{name}={}", value.as_deref().unwrap_or("unknown"));
}

/// The commit of our own repository; none when this is a package inside something else's.
fn commit(root: &str) -> Option<String> {
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(root).canonicalize().ok()? {
        return None;
    }
    // The log of HEAD grows with every commit and checkout, so it tells when to look again.
    let log = git(root, &["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    git(root, &["rev-parse", "--short=12", "HEAD"])
}

fn git(root: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// What rustc was told to compile for; llama-cpp-sys-2 passes it on to llama.cpp.
fn target_cpu() -> Option<String> {
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").ok()?;
    let cpu = flags.rsplit('\u{1f}').find_map(|flag| flag.rsplit_once("target-cpu="));
    Some(cpu.map_or("generic", |(_, cpu)| cpu).to_owned())
}

/// The exact version that the manifest pins.
fn llama_version(root: &str) -> Option<String> {
    let manifest = std::fs::read_to_string(Path::new(root).join("Cargo.toml")).ok()?;
    let (_, dependency) = manifest.split_once("llama-cpp-sys-2")?;
    let (_, version) = dependency.split_once("version = \"=")?;
    Some(version.split_once('"')?.0.to_owned())
}
