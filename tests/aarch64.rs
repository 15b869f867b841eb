//! The build for 64-bit ARM Linux, read by a disassembler and run under qemu as a Cortex-A72: a Raspberry Pi 4, without dotprod.
//!
//! Ignored unless asked for: it compiles llama.cpp a second time. Needs what `scripts/build-aarch64` names.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use support::{Finished, default_model, manifest_folder};

/// As a Pi 4's processor: an instruction that it lacks ends the program with SIGILL here as there.
const QEMU: [&str; 5] = ["qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu"];

/// Part of the names of the functions that are called on processors with dot products alone.
const CHOSEN: &str = "neon_dotprod";

/// Where the program and the library are, once they are built.
fn built() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let built = Command::new(manifest_folder().join("scripts/build-aarch64")).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        manifest_folder().join("target/aarch64/aarch64-unknown-linux-gnu/release")
    };
    BUILT.get_or_init(build).clone()
}

fn emulated(program: &str) -> Command {
    let mut command = Command::new(QEMU[0]);
    command.args(&QEMU[1..]).arg(built().join(program));
    command
}

/// Whether an instruction is of an extension that a Cortex-A72 lacks and that nothing here may need: dot products, products of
/// matrices, bfloat16, arithmetic in half precision, SVE. Conversions of half precision are in every ARMv8.
fn is_later(mnemonic: &str, operands: &str) -> bool {
    const LATER: [&str; 13] = [
        "sdot", "udot", "usdot", "sudot", "smmla", "ummla", "usmmla", "bfdot", "bfmmla", "bfcvt", "bfcvtn", "fmlal",
        "fmlsl",
    ];
    const ARITHMETIC: [&str; 10] = ["fadd", "fsub", "fmul", "fmla", "fmls", "fdiv", "fmadd", "fmax", "fmin", "fneg"];
    let halves = operands.contains(".8h") || operands.contains(".4h") || operands.starts_with('h');
    let scalable = operands.split([',', '{', ' ']).any(|operand| {
        let name = operand.split_once('.').map_or(operand, |(name, _)| name);
        name.strip_prefix('z').is_some_and(|n| n.parse::<u8>().is_ok())
    });
    LATER.contains(&mnemonic) || scalable || (ARITHMETIC.contains(&mnemonic) && halves)
}

#[test]
#[ignore = "compiles llama.cpp for another processor"]
fn no_instruction_of_later_processors_is_in_it_but_where_it_is_chosen() {
    for file in ["offramp", "libofframp_c.so"] {
        let mut objdump = Command::new("aarch64-linux-gnu-objdump");
        let listing = objdump.args(["-d", "--no-show-raw-insn"]).arg(built().join(file)).output();
        let listing = Finished::of(listing.expect("the cross binutils are installed")).success();
        let (mut function, mut n, mut n_chosen) = ("", 0, 0);
        for line in listing.lines() {
            if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once('<')) {
                function = name.1;
            }
            let Some((_, text)) = line.split_once(":\t") else { continue };
            let (mnemonic, operands) = text.split_once('\t').unwrap_or((text, ""));
            // Called where the processor says that it has dot products.
            let is_chosen = function.contains(CHOSEN) && mnemonic.trim() == "sdot";
            assert!(is_chosen || !is_later(mnemonic.trim(), operands), "{file}: {text} in {function}");
            n += 1;
            n_chosen += usize::from(is_chosen);
        }
        println!("{file}: {n} instructions, none of a later processor but {n_chosen} that are chosen while running");
        assert!(n > 100_000 && n_chosen > 0, "{file} has {n} instructions and {n_chosen} dot products");
    }
}

#[test]
#[ignore = "compiles for another processor"]
fn kernels_pass_their_tests_on_processors_with_and_without_dot_products() {
    for processor in ["cortex-a72", "neoverse-n1", "max"] {
        let tested = Command::new(manifest_folder().join("scripts/build-aarch64"))
            .args(["test", "--package", "offramp-kernels", "--tests"])
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
                format!("qemu-aarch64 -cpu {processor} -L /usr/aarch64-linux-gnu"),
            )
            .output()
            .unwrap();
        assert!(tested.status.success(), "{processor}: {}", String::from_utf8_lossy(&tested.stdout));
    }
}

#[test]
#[ignore = "compiles llama.cpp for another processor"]
fn a_raspberry_pi_4_says_what_this_machine_says() {
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
    let library = built();
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
