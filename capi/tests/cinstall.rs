//! What `cargo cinstall` puts in place: header, libraries, pkg-config file; and that a C program builds against it, both ways.
//!
//! Ignored unless asked for: it needs cargo-c and compiles llama.cpp once more, into target/cinstall.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use offramp_fixtures::{Arch, TinyModel};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn success(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

struct Installed {
    prefix: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        let prefix = tempfile::tempdir().unwrap();
        let mut install = Command::new(env!("CARGO"));
        install.current_dir(root()).args(["cinstall", "--locked", "--release", "-p", "offramp-c", "--libdir", "lib"]);
        install.arg("--prefix").arg(prefix.path()).arg("--target-dir").arg(root().join("target/cinstall"));
        success(install.output().expect("cargo runs"));
        Self { prefix }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.prefix.path().join(name)
    }

    fn pkg_config(&self, arguments: &[&str]) -> Vec<String> {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", self.path("lib/pkgconfig")).args(arguments).arg("offramp");
        let flags = success(pkg_config.output().expect("pkg-config is installed"));
        flags.split_whitespace().map(str::to_owned).collect()
    }

    /// The example in C with what pkg-config says, and nothing else.
    fn chat(&self, name: &str, flags: &[String]) -> PathBuf {
        let program = self.path(name);
        let mut compile = Command::new("cc");
        compile.args(["-std=c11", "-Wall", "-Wextra", "-Werror"]).arg(root().join("examples/c/chat.c"));
        success(compile.args(flags).arg("-o").arg(&program).output().expect("a C compiler is installed"));
        program
    }
}

#[test]
#[ignore = "needs cargo-c, and compiles llama.cpp again"]
fn a_c_program_builds_against_what_is_installed() {
    let installed = Installed::new();
    for header in ["offramp.h", "offramp.hpp"] {
        let found = std::fs::read(installed.path("include").join(header)).unwrap();
        assert_eq!(found, std::fs::read(root().join("include").join(header)).unwrap(), "{header}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let soname = format!("libofframp.so.{version}");
    let shared = installed.path("lib").join(&soname);
    let dynamic = success(Command::new("readelf").arg("-d").arg(&shared).output().expect("binutils are installed"));
    assert!(dynamic.contains(&format!("Library soname: [{soname}]")), "{dynamic}");
    assert_eq!(std::fs::canonicalize(installed.path("lib/libofframp.so")).unwrap(), shared.canonicalize().unwrap());
    assert_eq!(installed.pkg_config(&["--modversion"]), [version]);

    let model = installed.path("tiny.gguf");
    TinyModel::new(Arch::Llama).seed(3).write_to(&model).unwrap();
    let said = |program: &Path, libraries: &Path| {
        let turns = installed.path("turns");
        std::fs::write(&turns, "Hello there\nAnd again\n").unwrap();
        let mut chat = Command::new(program);
        chat.env("LD_LIBRARY_PATH", libraries).arg(&model).args(["--greedy", "20"]);
        success(chat.stdin(std::fs::File::open(turns).unwrap()).output().unwrap())
    };
    let dynamic = installed.chat("dynamic", &installed.pkg_config(&["--cflags", "--libs"]));
    let expected = said(&dynamic, &installed.path("lib"));
    assert!(expected.trim().len() > 20, "{expected}");
    // Without the shared library in sight the linker takes the archive, which needs what --static names.
    for name in ["libofframp.so", &soname] {
        std::fs::remove_file(installed.path("lib").join(name)).unwrap();
    }
    let fixed = installed.chat("static", &installed.pkg_config(&["--static", "--cflags", "--libs"]));
    assert_eq!(said(&fixed, Path::new("/nonexistent")), expected);
}
