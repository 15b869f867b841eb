//! The Kotlin wrapper and its chat on a JVM: compiled, and run against the library through JNI.
//!
//! Needs a JDK and pip; the Kotlin compiler comes inside the `kotlin-jupyter-kernel` package (80 MB), kept under target.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use offramp_fixtures::{Arch, TinyModel};

const PACKAGE: &str = "kotlin-jupyter-kernel==0.19.0.944";

fn success(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo put the libraries: beside this test.
fn libraries() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// The compiler's class path, and the standard library's with coroutines.
fn jars() -> (String, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kotlin");
    let jars = folder.join("run_kotlin_kernel/jars");
    if !jars.exists() {
        let unpack =
            "import sys, glob, zipfile; zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0]).extractall(sys.argv[1])";
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest"];
        success(Command::new("python3").args(pip).arg(&folder).output().unwrap());
        success(Command::new("python3").args(["-c", unpack]).arg(&folder).output().unwrap());
    }
    let all: Vec<String> =
        std::fs::read_dir(&jars).unwrap().map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
    let of = |names: &[&str]| {
        let wanted = all.iter().filter(|jar| names.iter().any(|name| jar.contains(name)));
        wanted.cloned().collect::<Vec<_>>().join(":")
    };
    (of(&["kernel", "stdlib", "reflect", "script-runtime", "annotations"]), of(&["kernel", "stdlib"]))
}

fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
#[ignore = "fetches a Kotlin compiler; needs a JDK"]
fn the_kotlin_chat_runs_on_a_jvm() {
    let folder = tempfile::tempdir().unwrap();
    let kotlin = root().join("examples/kotlin/src/main");
    let (compiler, library) = jars();
    let classes = folder.path().join("classes");
    let mut compile = Command::new("java");
    compile.args(["-Xmx1g", "-cp", &compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror"]);
    compile.args(["-no-stdlib", "-no-reflect", "-cp", &library, "-d"]).arg(&classes);
    success(compile.args(sources(&kotlin.join("kotlin"), "kt")).output().expect("java is installed"));

    let settings = Command::new("java").args(["-XshowSettings:properties", "-version"]).output().unwrap().stderr;
    let settings = String::from_utf8(settings).unwrap();
    let home = settings.lines().find_map(|line| line.trim().strip_prefix("java.home = ")).unwrap();
    let jni = folder.path().join("libofframp_jni.so");
    let mut shim = Command::new("cc");
    shim.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-o"]).arg(&jni);
    shim.arg(format!("-I{home}/include")).arg(format!("-I{home}/include/linux")).arg("-I").arg(root().join("include"));
    shim.args(sources(&kotlin.join("cpp"), "c")).arg(libraries().join("libofframp_c.so"));
    shim.arg(format!("-Wl,-rpath,{}", libraries().display()));
    success(shim.output().unwrap());

    let model = folder.path().join("tiny.gguf");
    TinyModel::new(Arch::Llama).seed(3).write_to(&model).unwrap();
    let turns = folder.path().join("turns");
    std::fs::write(&turns, "Hello there\nAnd again\n").unwrap();
    let mut chat = Command::new("java");
    chat.args(["-Xcheck:jni", "-Dstdout.encoding=UTF-8"])
        .arg(format!("-Djava.library.path={}", folder.path().display()));
    chat.arg("-cp")
        .arg(format!("{}:{library}", classes.display()))
        .arg("dev.offramp.ChatEngineKt")
        .arg(&model)
        .arg("20");
    let said = success(chat.stdin(std::fs::File::open(&turns).unwrap()).output().unwrap());

    let program = folder.path().join("chat");
    let mut c = Command::new("cc");
    c.arg("-I").arg(root().join("include")).arg(root().join("examples/c/chat.c")).arg("-o").arg(&program);
    c.arg(libraries().join("libofframp_c.so")).arg(format!("-Wl,-rpath,{}", libraries().display()));
    success(c.output().unwrap());
    let turns = std::fs::File::open(&turns).unwrap();
    let expected = success(Command::new(program).arg(&model).args(["--greedy", "20"]).stdin(turns).output().unwrap());
    assert!(expected.trim().len() > 20);
    assert_eq!(said, expected, "Kotlin says what C says");
}
