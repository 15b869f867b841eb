//! Runs a generated Python program in a child that can do little harm, and says whether it came to its end.
//!
//! The child is `python3` in isolated mode in an empty folder of its own, with an empty environment, and without input. It may
//! take 5 seconds of processor time, 10 seconds in all, 512 MiB of memory and files of 1 MiB, and may not make further
//! processes (which the system does not enforce for root). On Linux it has user, network, process and IPC namespaces of
//! its own where the system allows them: no network, and nothing that it started outlives it.
//!
//! These are limits for mistakes, not for malice: the child can read and write what the user can. Whoever does not trust a
//! model runs the whole evaluation in a container. It refuses systems that are no Unix, and those without `python3`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// Seconds of processor time of one program.
const CPU_SECONDS: u64 = 5;
/// How long one program may take in all.
const WALL: Duration = Duration::from_secs(10);
/// Bytes of memory of one program.
const MEMORY: u64 = 512 << 20;
/// What runs around the program.
const WRAPPER: &str = include_str!("sandbox.py");
/// Namespaces of the child's own.
const NAMESPACES: [&str; 7] = ["--user", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--"];

/// The means to run programs.
#[derive(Debug, Clone)]
pub struct Sandbox {
    python: PathBuf,
    unshare: Option<PathBuf>,
}

impl Sandbox {
    /// Looks what the system offers.
    ///
    /// # Errors
    ///
    /// No `python3`, no Unix.
    pub fn new() -> anyhow::Result<Sandbox> {
        ensure!(cfg!(unix), "generated programs are executed on Unix systems alone: leave --execute-code out");
        // What is called python3 may be a script that needs an environment.
        let asked = Command::new("python3").args(["-I", "-c", "import sys; print(sys.executable)"]).output();
        let asked = asked.context("generated programs are executed by python3, which is not there: install it")?;
        let python = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
        ensure!(asked.status.success() && python.is_absolute(), "python3 does not say where it is: reinstall it");
        let mut sandbox = Sandbox { python, unshare: found("unshare") };
        if sandbox.unshare.is_some() && !sandbox.passes("pass").unwrap_or(false) {
            sandbox.unshare = None;
        }
        ensure!(sandbox.passes("pass")?, "{} runs no program under the limits", sandbox.python.display());
        Ok(sandbox)
    }

    /// Whether programs are cut off from the network.
    pub fn is_cut_off(&self) -> bool {
        self.unshare.is_some()
    }

    /// Runs `program`; whether it came to its end within the limits.
    ///
    /// # Errors
    ///
    /// A system that makes no folder and no process. A program that fails, hangs or is killed is no error.
    pub fn passes(&self, program: &str) -> anyhow::Result<bool> {
        let folder = tempfile::tempdir().context("making a folder for a generated program")?;
        let mut command = match &self.unshare {
            Some(unshare) => {
                let mut command = Command::new(unshare);
                command.args(NAMESPACES).arg(&self.python);
                command
            }
            None => Command::new(&self.python),
        };
        // What a program prints cannot know this word.
        let word = format!("{:016x}", RandomState::new().build_hasher().finish());
        command.args(["-I", "-S", "-c", WRAPPER, &word, &CPU_SECONDS.to_string(), &MEMORY.to_string()]);
        command.env_clear().current_dir(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().context("starting python3")?;
        let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("python3 was started without its pipes");
        };
        let (sender, receiver) = mpsc::channel();
        let source = program.to_string();
        // A child that dies early breaks the pipe, which its missing word tells as well.
        let writer = std::thread::spawn(move || {
            let _ = input.write_all(source.as_bytes());
        });
        let length = word.len() as u64;
        let reader = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = output.by_ref().take(length + 1).read_to_end(&mut said);
            let _ = sender.send(said);
        });
        let said = receiver.recv_timeout(WALL).unwrap_or_default();
        end(&mut child);
        // Both end with the child's side of their pipes.
        let _ = (writer.join(), reader.join());
        Ok(said == word.as_bytes())
    }
}

/// Ends a child and all of its group, and waits for it.
fn end(child: &mut std::process::Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = (child.kill(), child.wait());
}

/// Where a program of this name is.
fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn programs_pass_that_come_to_their_end_within_the_limits() {
        let Ok(sandbox) = Sandbox::new() else {
            eprintln!("skipped: there is no python3 on this machine");
            return;
        };
        let passes = |program: &str| sandbox.passes(program).unwrap();
        assert!(passes("import math\nassert math.gcd(4, 6) == 2\nprint('x' * 1000000)"));
        assert!(!passes("assert False"));
        assert!(!passes("this is no Python"));
        // Who leaves early has not come to the end, whatever the status.
        assert!(!passes("import sys\nsys.exit(0)") && !passes("import os\nos._exit(0)"));
        assert!(!passes("x = bytearray(1 << 30)"), "memory is limited");
        assert!(!passes("import resource\nwhile True: pass"), "processor time is limited");
        assert!(passes(
            "import os\nassert os.listdir('.') == [] and 'HOME' not in os.environ and 'PATH' not in os.environ"
        ));
        assert!(passes("open('small', 'w').write('x')"));
        assert!(!passes("open('large', 'w').write('x' * (2 << 20))"), "files are limited");
        if sandbox.is_cut_off() {
            assert!(passes(
                "import socket\ntry:\n  socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError as error:\n  assert error.errno in (101, 99)\nelse:\n  raise SystemExit(1)"
            ));
        }
    }
}
