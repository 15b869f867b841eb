//! The server as the `openai` package for Python sees it, since that is what most programs that speak this interface use.

use std::process::Command;

use crate::server::Server;

#[test]
fn the_package_is_served() {
    let Some(python) = crate::python::with("openai==3.57.0") else { return };
    let server = Server::start("openai", &["--api-key", "sesame"]);
    let script = crate::support::manifest_folder().join("tests/serve/openai_client.py");
    let output = Command::new(python).arg(script).arg(format!("http://{}/v1", server.address)).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert_eq!(printed.lines().last(), Some("all is well"));
}
