//! The server as the `openai` package for Python sees it, since that is what most programs that speak this interface use.
#![cfg(feature = "serve")]

mod serve_support;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serve_support::Server;

/// The interpreter of an environment with the package, or `None` where the machine has no Python.
fn python() -> Option<PathBuf> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 on this machine");
        return None;
    }
    let script = support::manifest_folder().join("tests/serve_support/venv.sh");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-venv");
    let output = Command::new(script).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

#[test]
fn the_package_is_served() {
    let Some(python) = python() else { return };
    let server = Server::start("openai", &["--api-key", "sesame"]);
    let script = support::manifest_folder().join("tests/serve_support/openai_client.py");
    let output = Command::new(python).arg(script).arg(format!("http://{}/v1", server.address)).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert_eq!(printed.lines().last(), Some("all is well"));
}
