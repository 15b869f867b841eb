//! A prompt and a reply are nobody's but the client's: whatever goes wrong, neither is ever logged, at no level, and no error
//! quotes them. The name of a field that is not known is told to the client alone.

use std::io::{Read, Write};

use crate::server::{Server, greedy, post};
use crate::support::TempFolder;
use serde_json::{Value, json};

const CANARY: &str = "xylophone-canary";
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Requests with the canary in each place that a client's text can be in, with the status that each ends with.
fn requests() -> Vec<(&'static str, Vec<u8>, u16)> {
    let with = |more: Value| {
        let mut body = greedy("hello", 2);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(CHAT, &body)
    };
    let schema = |schema: Value| {
        with(json!({"response_format": {"type": "json_schema", "json_schema": {"name": CANARY, "schema": schema}}}))
    };
    let raw = |line: &str, kind: &str, body: &str| {
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}");
        format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let (json, plain, chat) = ("application/json", "text/plain", format!("POST {CHAT}"));
    vec![
        ("a prompt that is answered", post(CHAT, &greedy(CANARY, 30)), 200),
        ("a text that is gone on with", post(TEXT, &json!({"prompt": CANARY, "max_tokens": 4})), 200),
        ("a prompt that does not fit", post(CHAT, &greedy(&CANARY.repeat(200), 1)), 400),
        ("messages that are a text", with(json!({"messages": CANARY})), 400),
        ("a role of the client's own", with(json!({"messages": [{"role": CANARY, "content": CANARY}]})), 200),
        ("a part that is none", with(json!({"messages": [{"role": "user", "content": [{"type": CANARY}]}]})), 400),
        ("prompts in a list", post(TEXT, &json!({"prompt": [CANARY, CANARY]})), 400),
        ("a temperature that is a text", with(json!({"temperature": CANARY})), 400),
        ("a stop text", with(json!({"stop": [CANARY]})), 200),
        ("a field that is not known", with(json!({"unknown": CANARY})), 400),
        ("a schema that points nowhere", schema(json!({"$ref": format!("#/$defs/{CANARY}")})), 400),
        ("a schema of a type that is none", schema(json!({"type": CANARY})), 400),
        ("a tool", with(json!({"tools": [{"type": "function", "function": {"name": CANARY}}]})), 200),
        ("half of a JSON", raw(&chat, json, &format!("{{\"messages\": \"{CANARY}")), 400),
        ("no JSON at all", raw(&chat, json, CANARY), 400),
        ("a body of another type", raw(&chat, plain, CANARY), 415),
        ("a path that is none", raw(&format!("POST /v1/{CANARY}"), plain, CANARY), 404),
        ("a model that is none", raw(&format!("GET /v1/models/{CANARY}"), plain, ""), 404),
        ("a method that is none", raw(&format!("{CANARY} /"), plain, ""), 405),
    ]
}

/// Every request, then clients that leave, and what the log has of it all.
fn log_of(more: &[&str], name: &str) -> (String, Vec<String>) {
    let server = Server::start(name, more);
    let mut replies = Vec::new();
    for (what, bytes, status) in requests() {
        let answer = server.send(&bytes);
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if status == 200 {
            replies.extend(answer.json()["choices"][0]["message"]["content"].as_str().map(str::to_owned));
        } else {
            assert!(!answer.body.contains(CANARY), "{what}: {answer:?}");
        }
    }
    let mut named = greedy("hello", 2);
    named[CANARY] = json!(CANARY);
    let answer = server.post(CHAT, &named);
    assert_eq!((answer.status, answer.error().as_str()), (400, "unknown_parameter"));
    assert_eq!(answer.json()["error"]["param"], CANARY);
    for end in [40, 200, usize::MAX] {
        let bytes = post(CHAT, &greedy(&CANARY.repeat(10), 300));
        server.connect().write_all(&bytes[..end.min(bytes.len())]).unwrap();
    }
    let host = format!("GET / HTTP/1.1\r\nHost: {CANARY}\r\nConnection: close\r\n\r\n");
    assert_eq!(server.send(host.as_bytes()).status, 403);
    (server.end("-TERM").1, replies.into_iter().filter(|reply| reply.len() > 8).collect())
}

#[test]
fn no_prompt_and_no_reply_reaches_the_log() {
    let folder = TempFolder::new("serve-canary-log");
    let file = folder.path().join("log");
    let levels: [(&str, &[&str]); 3] =
        [("silent", &[]), ("verbose", &["-v"]), ("file", &["-v", "--log-file", file.to_str().unwrap()])];
    for (level, more) in levels {
        let (mut log, replies) = log_of(more, &format!("serve-canary-{level}"));
        if level == "file" {
            std::fs::File::open(&file).unwrap().read_to_string(&mut log).unwrap();
        }
        assert_eq!(log.contains("DEBUG"), level != "silent", "{level}: {log}");
        assert!(!log.contains(CANARY), "{level}: {log}");
        assert!(!replies.is_empty());
        for reply in replies {
            assert!(!log.contains(&reply), "{level}: {reply:?} is in {log}");
        }
    }
}

#[test]
fn a_key_is_not_logged_either() {
    let server = Server::start("serve-canary-key", &["-v", "--api-key", CANARY]);
    for (key, status) in [(CANARY, 200), ("xylophone-canarz", 401)] {
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(server.send(request.as_bytes()).status, status);
    }
    assert!(!server.end("-TERM").1.contains("xylophone"));
}
