//! Pages in headless Chromium: the one at `/`, used as a person would use it, and one from elsewhere that uses the server
//! through OpenAI's package for JavaScript.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use crate::server::Server;
use crate::support::TempFolder;
use offramp_fixtures::{Arch, TinyModel, WeightType};

/// The first of these programs that there is.
fn found(names: &[&str]) -> Option<String> {
    let is_there =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    names.iter().find(is_there).map(|name| (*name).to_owned())
}

#[test]
fn the_page_is_safe_to_open() {
    let server = Server::start("page-policy", &[]);
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(page.header("x-frame-options"), Some("DENY"));
}

/// Asks, regenerates, stops, and looks whether the browser complains. Screenshots stay in `OFFRAMP_SCREENSHOTS`, if it is set.
#[test]
fn the_page_can_be_used() {
    let Some(chromium) = found(&["chromium", "chromium-browser", "google-chrome"]) else {
        eprintln!("skipped: there is no Chromium on this machine");
        return;
    };
    let Some(node) = found(&["node"]) else {
        eprintln!("skipped: there is no Node on this machine");
        return;
    };
    // The layers above the head's add nothing, so that it is right and sure, and tokens leave there.
    let files = Files::with_idle_blocks(&TinyModel::new(Arch::Llama).weights(WeightType::Q4_0).layers(32), 21);
    let heads = files.write_exits(&Spec::new(&[20], Kind::Perfect));
    let model = files.path("model.gguf").to_str().unwrap().to_owned();
    let heads = heads.to_str().unwrap();
    let more = ["-c", "512", "-t", "1", "--heads", heads, "--policy", "always", "--agreement", "0.9"];
    let server = Server::start_on(&model, files, &more);
    let folder = TempFolder::new("page-screenshots");
    let shots = std::env::var("OFFRAMP_SCREENSHOTS").unwrap_or_else(|_| folder.path().to_str().unwrap().to_owned());
    let script = crate::support::manifest_folder().join("tests/serve/page.mjs");
    let mut command = Command::new(node);
    command.arg("--experimental-websocket").arg(script).args([
        &chromium,
        &format!("http://{}/", server.address),
        &shots,
    ]);
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!printed.contains("coloured tokens: 0"), "{printed}");
    assert_eq!(printed.lines().last(), Some("all is well"));
}

#[test]
fn openai_s_package_works_in_a_page_from_elsewhere() {
    const PACKAGE: &str = "openai@7.59.0";
    let Some(chromium) = found(&["chromium", "chromium-browser", "google-chrome"]) else {
        eprintln!("skipped: there is no Chromium on this machine");
        return;
    };
    let (Some(node), Some(_)) = (found(&["node"]), found(&["npm"])) else {
        eprintln!("skipped: there is no Node with npm on this machine");
        return;
    };
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE);
    let tests = crate::support::manifest_folder().join("tests");
    let output = Command::new(tests.join("node/package.sh")).arg(&package).arg(PACKAGE).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = TempFolder::new("openai-page");
    let mut command = Command::new(node);
    command.arg("--experimental-websocket").arg(tests.join("serve/openai_page.mjs")).arg(chromium);
    command.arg(package.join("node_modules/openai")).arg(folder.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut script = command.spawn().unwrap();
    let mut stdout = BufReader::new(script.stdout.take().unwrap());
    let mut origin = String::new();
    stdout.read_line(&mut origin).unwrap();
    let server = Server::start("openai-page", &["--api-key", "sesame", "--allow-origin", origin.trim()]);
    writeln!(script.stdin.take().unwrap(), "http://{}", server.address).unwrap();
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).unwrap();
    let output = script.wait_with_output().unwrap();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.lines().last(), Some("all is well"), "{printed}");
}
