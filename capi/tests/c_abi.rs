//! The C ABI as C and C++ see it: the suite, the examples, and what the shared library exports.
//!
//! Needs a C and a C++ compiler. Valgrind, where it is installed, watches a shorter run if it knows the instructions of this build:
//! `--features valgrind` leaves out those of SHA-256.

#[path = "../../tests/screen/mod.rs"]
mod screen;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use offramp_fixtures::{Arch, TinyModel, WeightType};
use screen::Files;
use screen::heads::{Kind, Spec};

struct Ground {
    folder: tempfile::TempDir,
    model: PathBuf,
}

fn ground() -> Ground {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::new(Arch::Llama).seed(3).write_to(&model).unwrap();
    // Deep enough that leaving after the second block pays beyond any doubt.
    let deep = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0).layers(24), 2);
    let heads = deep.write_exits(&Spec::new(&[1], Kind::Perfect));
    std::fs::copy(deep.path("model.gguf"), folder.path().join("exits.gguf")).unwrap();
    std::fs::copy(heads, folder.path().join("heads.gguf")).unwrap();
    Ground { folder, model }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo put the libraries: beside this test.
fn libraries() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

enum Link {
    Shared,
    Static,
}

impl Ground {
    /// Compiles source files against the header and a library.
    fn compile(&self, compiler: &str, sources: &[&str], link: &Link, flags: &[&str]) -> PathBuf {
        let name = Path::new(sources[0]).file_stem().unwrap().to_str().unwrap();
        let program = self.folder.path().join(format!("{name}{}", flags.join("").replace(['/', '='], "_")));
        let mut command = Command::new(compiler);
        command.args(["-Wall", "-Wextra", "-Werror", "-O1", "-g"]).args(flags);
        command.arg("-I").arg(root().join("include")).arg("-o").arg(&program);
        command.args(sources.iter().map(|source| root().join(source)));
        match link {
            Link::Shared => {
                command.arg(libraries().join("libofframp_c.so"));
                command.arg(format!("-Wl,-rpath,{}", libraries().display()));
            }
            Link::Static => {
                command.arg(libraries().join("libofframp_c.a")).args(["-lstdc++", "-lm", "-ldl"]);
            }
        }
        success(command.arg("-lpthread").output().expect("a C and a C++ compiler are installed"));
        program
    }

    fn suite(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg(&self.model).arg(self.folder.path()).args(arguments);
        command
    }
}

fn success(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

const SUITE: [&str; 4] =
    ["capi/tests/c/suite.c", "capi/tests/c/mistakes.c", "capi/tests/c/replies.c", "capi/tests/c/lives.c"];

fn tests_of(program: &Path) -> Vec<String> {
    let list = success(Command::new(program).arg("--list").output().unwrap());
    list.lines().map(str::to_owned).collect()
}

#[test]
fn the_suite_passes() {
    let ground = ground();
    let program = ground.compile("cc", &SUITE, &Link::Shared, &["-std=c11"]);
    print!("{}", success(ground.suite(&program, &[]).output().unwrap()));
}

#[test]
fn the_suite_passes_under_the_address_and_leak_sanitizers() {
    let ground = ground();
    let flags = ["-std=c11", "-fsanitize=address", "-fno-omit-frame-pointer"];
    let program = ground.compile("cc", &SUITE, &Link::Shared, &flags);
    for test in tests_of(&program) {
        let count = match test.as_str() {
            "cancels" => "100",
            "cycles" => "200",
            _ => "10",
        };
        // The allocator's quarantine grows as it is meant to; the sanitizer itself tells what leaks.
        if test != "cycles" {
            let mut command = ground.suite(&program, &[&test, count]);
            success(command.env("ASAN_OPTIONS", "detect_leaks=1:quarantine_size_mb=1").output().unwrap());
        }
    }
}

/// The sanitizer sees the C side, and what the library does through the C library: a callback that races its caller, say.
#[test]
fn the_suite_passes_under_the_thread_sanitizer() {
    let ground = ground();
    let program = ground.compile("cc", &SUITE, &Link::Shared, &["-std=c11", "-fsanitize=thread"]);
    for (test, count) in [("callbacks", "1"), ("logs", "1"), ("cancels", "100"), ("threads", "10")] {
        // The sanitizer's own memory lies where newer kernels put a randomized program.
        let mut command = Command::new("setarch");
        command.arg("-R").arg(&program).arg(&ground.model).arg(ground.folder.path()).args([test, count]);
        success(command.output().expect("util-linux is installed"));
    }
}

#[test]
fn the_suite_passes_under_valgrind() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        if cfg!(feature = "valgrind") {
            panic!("valgrind is not installed");
        }
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    if cfg!(all(target_feature = "sha", not(feature = "valgrind"))) {
        eprintln!("skipped: valgrind knows no SHA instructions; run with --features valgrind");
        return;
    }
    let ground = ground();
    let program = ground.compile("cc", &SUITE, &Link::Shared, &["-std=c11"]);
    // `cycles` is about resident memory, which valgrind makes its own; leaks it tells itself.
    for test in tests_of(&program).iter().filter(|test| *test != "cycles") {
        let mut command = Command::new("valgrind");
        command.args(["--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
        command.arg(&program).arg(&ground.model).arg(ground.folder.path()).args([test.as_str(), "3"]);
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        success(output);
        let told = told.lines().filter_map(|line| line.split_once("== ")).map(|(_, line)| line.trim());
        let summary =
            |line: &&str| ["ERROR SUMMARY", "definitely lost", "no leaks"].iter().any(|part| line.contains(part));
        println!("{test}: {}", told.filter(summary).collect::<Vec<_>>().join("; "));
    }
}

#[test]
fn the_shared_library_exports_its_functions_and_nothing_else() {
    let nm = Command::new("nm").args(["-D", "--defined-only"]).arg(libraries().join("libofframp_c.so")).output();
    let exported = success(nm.unwrap());
    let mut exported: Vec<&str> = exported.lines().filter_map(|line| line.split(' ').next_back()).collect();
    exported.sort_unstable();
    let mut declared: Vec<String> = declarations().into_iter().map(|(name, _)| name).collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
}

/// The declarations of the header: name, and the parameters' texts.
fn declarations() -> Vec<(String, Vec<String>)> {
    let header = std::fs::read_to_string(root().join("include/offramp.h")).unwrap();
    let (_, functions) = header.split_once("extern \"C\" {").unwrap();
    let code = functions.lines().filter(|line| !line.starts_with("//") && !line.starts_with('#'));
    let code = code.collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for statement in code.split(';') {
        let Some((before, after)) = statement.split_once('(') else { continue };
        let Some(name) = before.split([' ', '*']).next_back().filter(|name| name.starts_with("offramp_")) else {
            continue;
        };
        let parameters = after.trim_end_matches(')').split(',').map(|text| text.trim().to_owned());
        found.push((name.to_owned(), parameters.filter(|text| text != "void").collect()));
    }
    found
}

/// The arguments of every call of `name` in the suite, with the macro around the call.
fn calls(suite: &str, name: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in suite.match_indices(&format!("{name}(")) {
        let around = suite[..at].rsplit(['\n', ';', '{']).next().unwrap().trim();
        let (mut depth, mut arguments) = (0, vec![String::new()]);
        for c in suite[at + name.len() + 1..].chars() {
            match c {
                ')' if depth == 0 => break,
                ',' if depth == 0 => arguments.push(String::new()),
                _ => {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    arguments.last_mut().unwrap().push(c);
                }
            }
        }
        found.push((around.to_owned(), arguments.iter().map(|text| text.trim().to_owned()).collect()));
    }
    found
}

/// Whether NULL for a parameter is a mistake. What it is good for: defaults, a greedy sampler, nothing to free, a callback
/// without data.
fn is_needed(function: &str, parameter: &str) -> bool {
    let optional = match function {
        "offramp_session_generate" => &["sampler", "params", "user_data"][..],
        _ if function.ends_with("_default_params") => &[],
        _ => &["params", "user_data"],
    };
    let is_optional = optional.iter().any(|name| parameter.ends_with(&format!("*{name}")));
    parameter.contains('*') && !is_optional && !function.ends_with("_free")
}

#[test]
fn the_suite_passes_null_for_every_pointer_and_a_wrong_size_for_every_struct() {
    let suite: String =
        SUITE.iter().map(|source| std::fs::read_to_string(root().join(source)).unwrap()).collect::<Vec<_>>().join("\n");
    let declarations = declarations();
    assert_eq!(declarations.len(), 33);
    for (name, parameters) in &declarations {
        let calls = calls(&suite, name);
        assert!(!calls.is_empty(), "{name} is not called");
        for (i, parameter) in parameters.iter().enumerate() {
            let nulled = calls.iter().filter(|(_, arguments)| arguments[i] == "NULL");
            let refused = nulled.clone().any(|(around, arguments)| {
                let others = arguments.iter().zip(parameters).filter(|(argument, _)| *argument == "NULL");
                around == "NULLED(" && others.filter(|(_, other)| is_needed(name, other)).count() == 1
            });
            assert!(!parameter.contains('*') || nulled.count() > 0, "{name}: {parameter} is never NULL");
            assert!(!is_needed(name, parameter) || refused, "{name}: nothing shows that a NULL {parameter} is refused");
            let is_sized = parameter.ends_with(" struct_size") || parameter.ends_with("_params *params");
            let wrong = calls.iter().any(|(around, _)| around == "FAILS(OFFRAMP_ERROR_ABI,");
            assert!(!is_sized || wrong, "{name}: nothing shows that a wrong size is refused");
        }
    }
}

#[test]
fn the_c_and_the_cpp_example_say_the_same() {
    let ground = ground();
    let c = ground.compile("cc", &["examples/c/chat.c"], &Link::Shared, &["-std=c11"]);
    let c_static = ground.compile("cc", &["examples/c/chat.c"], &Link::Static, &["-std=c11", "-DSTATIC"]);
    let cpp = ground.compile("c++", &["examples/cpp/chat.cpp"], &Link::Shared, &["-std=c++17"]);
    let input = ground.folder.path().join("turns");
    std::fs::write(&input, "Hello there\nAnd again\n").unwrap();
    let said = |program: &Path| {
        let stdin = std::fs::File::open(&input).unwrap();
        success(Command::new(program).arg(&ground.model).args(["--greedy", "20"]).stdin(stdin).output().unwrap())
    };
    let expected = said(&c);
    assert!(expected.trim().len() > 20, "{expected}");
    assert_eq!(said(&c_static), expected);
    assert_eq!(said(&cpp), expected);
}

#[test]
fn the_cpp_wrapper_turns_statuses_into_exceptions_and_frees_what_it_holds() {
    let ground = ground();
    let flags = ["-std=c++17", "-fsanitize=address"];
    let program = ground.compile("c++", &["capi/tests/c/wrapper.cpp"], &Link::Shared, &flags);
    success(ground.suite(&program, &[]).output().unwrap());
}
