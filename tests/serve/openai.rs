//! The server as the `openai` package for Python sees it, since that is what most programs that speak this interface use.
#![cfg(feature = "serve")]

mod python;
mod serve_support;
mod support;

use std::process::Command;

use serve_support::Server;

#[test]
fn the_package_is_served() {
    let Some(python) = python::with("openai==3.57.0") else { return };
    let server = Server::start("openai", &["--api-key", "sesame"]);
    let script = support::manifest_folder().join("tests/serve_support/openai_client.py");
    let output = Command::new(python).arg(script).arg(format!("http://{}/v1", server.address)).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert_eq!(printed.lines().last(), Some("all is well"));
}
