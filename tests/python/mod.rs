//! An environment of Python with one package in it, for tests that hold us against that package.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter of an environment with `package`, given as `name==1.2.3`; `None` where the machine has no Python.
pub fn with(package: &str) -> Option<PathBuf> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 on this machine");
        return None;
    }
    let name = package.split("==").next().unwrap_or(package);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/venv.sh");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-venv"));
    let output = Command::new(script).arg(folder).arg(package).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}
