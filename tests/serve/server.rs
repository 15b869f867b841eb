//! What the server's tests share: a server on a tiny model, and a client that sends exactly the bytes it is given.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr};
use std::time::Duration;

use offramp_fixtures::{Arch, TinyModel, WeightType};
use serde_json::{Value, json};

use crate::support::{TempFolder, offramp};

/// How long a test waits for bytes before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs until it is dropped.
pub struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    pub address: SocketAddr,
    /// What must live as long as the server: its files.
    _files: Box<dyn std::any::Any + Send + Sync>,
}

impl Server {
    /// On a tiny model with a context of 512 tokens, on one thread.
    pub fn start(name: &str, more: &[&str]) -> Self {
        let folder = TempFolder::new(name);
        let model = folder.file("tiny.gguf", TinyModel::new(Arch::Llama).weights(WeightType::Q4_1).bytes());
        Self::start_on(&model, folder, &[&["-c", "512", "-t", "1"], more].concat())
    }

    /// On a tiny model of many layers, whose replies take long enough to be left alone in the middle.
    pub fn start_slow(name: &str, more: &[&str]) -> Self {
        let folder = TempFolder::new(name);
        let model = folder.file("slow.gguf", TinyModel::new(Arch::Llama).layers(64).bytes());
        Self::start_on(&model, folder, &[&["-c", "512", "-t", "1"], more].concat())
    }

    pub fn start_on(model: &str, files: impl std::any::Any + Send + Sync, more: &[&str]) -> Self {
        let mut child = offramp(&[&["serve", "-m", model, "--port", "0"], more].concat()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the server ended: {:?}", child.wait());
            if let Some((_, rest)) = line.split_once("listening on http://") {
                break rest.split(',').next().unwrap().parse().unwrap();
            }
        };
        Self { child, stderr, address, _files: Box::new(files) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal and gives the exit code and the rest of stderr.
    pub fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let pid = self.pid().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and reads the answer to its end.
    pub fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that refuses early closes while we still write; its answer is what counts.
        let _ = stream.write_all(bytes);
        Answer::read(stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&post(path, body))
    }

    /// The text of a chat reply.
    pub fn chat(&self, body: &Value) -> String {
        let answer = self.post("/v1/chat/completions", body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of a request with a JSON body.
pub fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// A greedy chat request of one turn.
pub fn greedy(text: &str, max_tokens: usize) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true})
}

/// What came back, to the end of the connection. Status 0: nothing did.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A connection that is reset has answered before, or not at all.
        if let Err(error) = stream.read_to_end(&mut bytes) {
            assert!(error.kind() != std::io::ErrorKind::WouldBlock, "no answer within {PATIENCE:?}");
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { dechunk(body) } else { body.to_owned() };
        Self { status, head: head.to_owned(), body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The code of an error, or its message where it has no code.
    pub fn error(&self) -> String {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", self.body);
        error["code"].as_str().or(error["message"].as_str()).unwrap().to_owned()
    }

    /// The data of each server-sent event.
    pub fn events(&self) -> Vec<String> {
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    /// The text of a streamed chat reply, which has come to its end.
    pub fn streamed(&self) -> String {
        let events = self.events();
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{self:?}");
        let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
    }
}

fn dechunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Some(size) = usize::from_str_radix(size, 16).ok().filter(|size| *size > 0 && *size <= after.len()) else {
            break;
        };
        body.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    body
}
