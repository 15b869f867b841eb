//! A terminal for tests: a program on a pseudo-terminal of 80 columns, what it has drawn so far, and keys for it. The
//! pseudo-terminal is `script`'s, which Linux systems have.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long a test waits for something to be drawn before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an editor asks a terminal, and what one answers that has its cursor in the first column.
const WHERE: &str = "\x1b[6n";
const HERE: &[u8] = b"\x1b[1;1R";

/// A program on a terminal.
pub struct Terminal {
    child: Child,
    keys: Arc<Mutex<ChildStdin>>,
    drawn: Arc<(Mutex<String>, Condvar)>,
    /// How much of what was drawn a test has seen.
    seen: usize,
    /// A file with the terminal's name.
    name: tempfile::NamedTempFile,
}

impl Terminal {
    /// True where there is a `script` that gives programs a terminal as Linux's does.
    pub fn is_there() -> bool {
        let version = Command::new("script").arg("--version").output();
        version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("util-linux"))
    }

    /// Starts a program with these variables set.
    pub fn start(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let quoted = |word: &&str| format!("'{}'", word.replace('\'', r"'\''"));
        let words: Vec<String> = std::iter::once(&program).chain(arguments).map(quoted).collect();
        let name = tempfile::NamedTempFile::new().unwrap();
        let line = format!("tty > '{}'; stty cols 80 rows 24; exec {}", name.path().display(), words.join(" "));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(variables.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let keys = Arc::new(Mutex::new(child.stdin.take().unwrap()));
        let drawn = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let mut output = child.stdout.take().unwrap();
        let (to_answer, to_tell) = (Arc::clone(&keys), Arc::clone(&drawn));
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut block = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut block) {
                bytes.extend_from_slice(&block[..n]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut drawn = to_tell.0.lock().unwrap();
                for _ in drawn.matches(WHERE).count()..text.matches(WHERE).count() {
                    // A program that has ended needs no answer.
                    let _ = to_answer.lock().unwrap().write_all(HERE);
                }
                *drawn = text;
                to_tell.1.notify_all();
            }
        });
        Self { child, keys, drawn, seen: 0, name }
    }

    /// Gives it another width, as its window's user does. The program must have begun.
    pub fn resize(&self, columns: usize) {
        let name = std::fs::read_to_string(self.name.path()).unwrap();
        let set = Command::new("stty").args(["-F", name.trim(), "cols", &columns.to_string()]).status();
        assert!(set.unwrap().success());
    }

    /// Presses keys.
    pub fn keys(&self, text: &str) {
        let mut keys = self.keys.lock().unwrap();
        keys.write_all(text.as_bytes()).unwrap();
        keys.flush().unwrap();
    }

    /// Waits until `text` is drawn, and gives what was drawn since the last one that was waited for, up to its end.
    pub fn until(&mut self, text: &str) -> String {
        let start = Instant::now();
        let mut drawn = self.drawn.0.lock().unwrap();
        loop {
            if let Some(at) = drawn[self.seen..].find(text) {
                let end = self.seen + at + text.len();
                let new = drawn[self.seen..end].to_owned();
                self.seen = end;
                return new;
            }
            assert!(start.elapsed() < PATIENCE, "{text:?} is not drawn: {:?}", &drawn[self.seen..]);
            drawn = self.drawn.1.wait_timeout(drawn, Duration::from_millis(200)).unwrap().0;
        }
    }

    /// Waits until this many bytes more are drawn than a test has seen.
    pub fn until_more(&self, n_bytes: usize) {
        let start = Instant::now();
        let mut drawn = self.drawn.0.lock().unwrap();
        while drawn.len() < self.seen + n_bytes {
            assert!(start.elapsed() < PATIENCE, "nothing more is drawn: {:?}", &drawn[self.seen..]);
            drawn = self.drawn.1.wait_timeout(drawn, Duration::from_millis(200)).unwrap().0;
        }
    }

    /// The exit code, once the program has ended.
    pub fn code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
