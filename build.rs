//! Facts about this build for `offramp --version --verbose`: commit, target, profile, processor, version of the llama.cpp crate.
//! Each goes into an `OFFRAMP_BUILD_*` variable of the compiler; what cannot be known says so. Compiles nothing.

use std::path::Path;
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
