//! The build for 64-bit ARM Linux, run under qemu as a Cortex-A72: a Raspberry Pi 4, without dotprod.
//!
//! Ignored unless asked for: it compiles llama.cpp a second time. Needs what `scripts/build-aarch64` names.

mod support;

use std::process::Command;

use support::{Finished, default_model, manifest_folder};

/// As a Pi 4's processor: an instruction that it lacks ends the program with SIGILL here as there.
const QEMU: [&str; 5] = ["qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu"];

fn emulated(program: &str) -> Command {
    let mut command = Command::new(QEMU[0]);
    command
        .args(&QEMU[1..])
        .arg(manifest_folder().join("target/aarch64/aarch64-unknown-linux-gnu/release").join(program));
    command
}

#[test]
#[ignore = "compiles llama.cpp for another processor"]
fn a_raspberry_pi_4_says_what_this_machine_says() {
    let built = Command::new(manifest_folder().join("scripts/build-aarch64")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let arguments =
        ["run", "--raw", "-p", "The capital of France is", "--temp", "0", "-n", "8", "-c", "256", "-t", "2"];
    let model = default_model().to_str().unwrap();
    let there = emulated("offramp").args(arguments).args(["-m", model]).output().expect("qemu-user is installed");
    let here = support::run(&[&arguments[..], &["-m", model]].concat()).success();
    let there = Finished::of(there);
    assert!(!here.trim().is_empty());
    assert_eq!(there.success(), here);
}

#[test]
#[ignore = "compiles llama.cpp for another processor"]
fn the_arm_library_holds_a_session_too() {
    let library = manifest_folder().join("target/aarch64/aarch64-unknown-linux-gnu/release");
    let program = library.join("chat");
    let compiled = Command::new("aarch64-linux-gnu-gcc")
        .args(["-std=c11", "-O1", "-I"])
        .arg(manifest_folder().join("include"))
        .arg(manifest_folder().join("examples/c/chat.c"))
        .arg("-o")
        .arg(&program)
        .arg(library.join("libofframp_c.so"))
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .output()
        .expect("the cross compiler is installed");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let folder = support::TempFolder::new("aarch64");
    let turns = folder.file("turns", "What is the capital of France?\n");
    let mut chat = emulated("chat");
    chat.arg(default_model()).args(["--greedy", "6"]).stdin(std::fs::File::open(turns).unwrap());
    let said = Finished::of(chat.output().unwrap()).success();
    assert!(said.contains("Paris") || said.contains("capital"), "{said}");
}
