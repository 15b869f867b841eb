//! Numbers at and beyond the ends of their ranges, clients that take their time, and clients that leave: in the middle of a
//! request, of its prompt, or of its reply.

use std::io::Write;
use std::net::Shutdown;

use crate::server::{Answer, Server, greedy, post};
use crate::support::TempFolder;
use offramp_fixtures::{Arch, TinyModel};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A field, values of it that are still taken, and values of the right type that are not.
fn numbers() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    let least = i64::MIN;
    let above = u64::MAX;
    vec![
        ("temperature", vec![json!(0), json!(-0.0), json!(5e-324), json!(100)], vec![json!(-5e-324), json!(100.1)]),
        ("top_p", vec![json!(0), json!(5e-324), json!(1)], vec![json!(-0.1), json!(1.0000001)]),
        ("min_p", vec![json!(0), json!(1)], vec![json!(-0.1), json!(1.1)]),
        ("repeat_penalty", vec![json!(0.01), json!(100)], vec![json!(0), json!(-1), json!(100.5)]),
        ("frequency_penalty", vec![json!(-2), json!(2)], vec![json!(-2.1), json!(2.1)]),
        ("presence_penalty", vec![json!(-2), json!(2)], vec![json!(-2.1), json!(2.1)]),
        ("top_k", vec![json!(-1), json!(0), json!(1e6)], vec![json!(-2), json!(1_000_001), json!(1.5), json!(least)]),
        ("repeat_last_n", vec![json!(-1), json!(0), json!(1_000_000)], vec![json!(-2), json!(0.5), json!(above)]),
        (
            "max_tokens",
            vec![json!(1), json!(16.0), json!(-1)],
            vec![json!(0), json!(-2), json!(2_147_483_648u64), json!(1.5), json!(above)],
        ),
        ("max_completion_tokens", vec![json!(1), json!(-1)], vec![json!(0), json!(2_147_483_648u64), json!(least)]),
        ("n_predict", vec![json!(0), json!(-2)], vec![json!(-3), json!(2_147_483_648u64), json!(least)]),
        ("min_tokens", vec![json!(0), json!(1)], vec![json!(-1), json!(2), json!(above)]),
        ("seed", vec![json!(least), json!(-1), json!(i64::MAX)], vec![json!(above), json!(0.5)]),
        ("n", vec![json!(1), json!(1.0)], vec![json!(0), json!(-1), json!(129), json!(above)]),
        ("repetition_penalty", vec![json!(0.01), json!(100)], vec![json!(0), json!(-1), json!(100.5)]),
        ("typical_p", vec![json!(0), json!(5e-324), json!(1)], vec![json!(-0.1), json!(1.1)]),
        ("dry_multiplier", vec![json!(0), json!(100)], vec![json!(-0.1), json!(101)]),
        ("dry_base", vec![json!(1), json!(100)], vec![json!(0.9), json!(101)]),
        ("dry_allowed_length", vec![json!(0), json!(1_000_000)], vec![json!(-1), json!(1.5), json!(above)]),
        ("dry_penalty_last_n", vec![json!(-1), json!(1_000_000)], vec![json!(-2), json!(1_000_001)]),
        ("xtc_probability", vec![json!(0), json!(1)], vec![json!(-0.1), json!(1.1)]),
        ("xtc_threshold", vec![json!(0), json!(1)], vec![json!(-0.1), json!(1.1)]),
        ("agreement", vec![json!(1)], vec![json!(0), json!(5e-324), json!(-1), json!(1.0000001)]),
    ]
}

#[test]
fn every_number_is_taken_up_to_its_end_and_no_further() {
    let server = Server::start("numbers", &[]);
    let never = [json!(1e308), json!(-1e308), json!("1"), json!(true), json!([]), json!({})];
    let mut wrong = Vec::new();
    let mut n_cases = 0;
    let mut ask = |field: &str, value: &Value, due: u16| {
        let mut body = greedy("hello", 1);
        body[field] = value.clone();
        let answer = server.post(CHAT, &body);
        n_cases += 1;
        let code = if answer.status == 400 { answer.error() } else { String::new() };
        if answer.status != due || (due == 400 && code != "invalid_value") {
            wrong.push(format!("{field}: {value} is answered with {} {code}, {due} is due", answer.status));
        }
    };
    for (field, taken, refused) in numbers() {
        taken.iter().for_each(|value| ask(field, value, 200));
        refused.iter().chain(&never).for_each(|value| ask(field, value, 400));
    }
    assert!(wrong.is_empty(), "{} of {n_cases} cases:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{n_cases} cases");
    server.chat(&greedy("hello", 1));
}

/// Bytes that no JSON encoder writes for a number.
#[test]
fn what_is_no_number_is_no_json() {
    let server = Server::start("no-numbers", &[]);
    for text in ["NaN", "Infinity", "-Infinity", "1e999", "01", "1.", ".5", "0x10", "+1", "--1"] {
        let sound = greedy("hello", 1).to_string();
        let body = sound.replace("\"temperature\":0", &format!("\"temperature\":{text}"));
        assert_ne!(body, sound);
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        );
        let answer = server.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert_eq!(answer.status, 400, "{text}: {answer:?}");
    }
}

/// Clients that take their time: what they sent of a head is thrown away, what they sent of a body is answered.
#[test]
fn slow_clients_are_not_waited_for() {
    let server = Server::start("slow", &["--timeout", "1"]);
    let after = |bytes: &[u8]| {
        let mut connection = server.connect();
        connection.write_all(bytes).unwrap();
        Answer::read(connection)
    };
    assert!(matches!(after(b"").status, 0 | 408), "nothing at all");
    assert!(matches!(after(b"GET /health HTTP/1.1\r\nHost: loc").status, 0 | 408), "half of a head");
    let mut half = post(CHAT, &greedy("hello", 1));
    half.truncate(half.len() - 5);
    let answer = after(&half);
    assert_eq!((answer.status, answer.error().as_str()), (408, "body_timeout"));
    let idle = after(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(idle.status, 200, "and then the idle connection ends");
    server.chat(&greedy("hello", 1));
}

/// Clients that go away in the middle: of a head, of a body, of a reply, by halves and all at once.
#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let server = Server::start("vanish", &["--parallel", "1"]);
    let mut body = greedy("hello", 400);
    body["stream"] = json!(true);
    let request = post(CHAT, &body);
    for end in (0..request.len()).step_by(7).chain([request.len(); 20]) {
        let mut connection = server.connect();
        connection.write_all(&request[..end]).unwrap();
        if end % 2 == 0 {
            connection.shutdown(Shutdown::Both).unwrap();
        }
    }
    // A client that only says that it has sent everything still wants its answer.
    let mut connection = server.connect();
    connection.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(Answer::read(connection).status, 200);
    server.chat(&greedy("hello", 1));
    while server.metric("offramp_slots_busy") != 0.0 || server.metric("offramp_requests_waiting") != 0.0 {}
}

/// A prompt of thousands of tokens on a deep model, and a client that does not wait for it.
#[test]
fn a_client_that_leaves_while_its_prompt_is_read_frees_its_slot() {
    let folder = TempFolder::new("serve-prefill");
    let model = folder.file("deep.gguf", TinyModel::new(Arch::Llama).layers(64).bytes());
    let server = Server::start_on(&model, folder, &["-c", "8192", "-t", "1", "--parallel", "1"]);
    let prompt = "word ".repeat(1500);
    for stream in [true, false] {
        let mut body = greedy(&prompt, 400);
        body["stream"] = json!(stream);
        let before = server.metric("offramp_prompt_tokens_total");
        let mut connection = server.connect();
        connection.write_all(&post(CHAT, &body)).unwrap();
        while server.metric("offramp_slots_busy") == 0.0 {}
        drop(connection);
        while server.metric("offramp_slots_busy") != 0.0 {}
        let read = server.metric("offramp_prompt_tokens_total") - before;
        assert!(read < 1500.0, "{read} tokens were read for nobody");
    }
    assert_eq!(server.metric("offramp_generated_blocks_total"), 0.0, "nothing was generated");
    // The one slot has come to the end of both before it serves another.
    server.chat(&greedy("hello", 1));
    assert_eq!(server.metric("offramp_cancelled_total"), 2.0);
}
