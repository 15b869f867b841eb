//! `offramp serve` as a well-behaved client meets it: replies, streams, reuse, slots, cancellation, and its end.

use std::io::{BufRead, BufReader, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::screen::Files;
use crate::screen::heads::{Kind, Spec};
use crate::server::{Answer, Server, greedy, post};
use offramp_fixtures::{Arch, TinyModel};
use serde_json::{Value, json};

#[test]
fn a_reply_has_openai_s_shape_and_ours() {
    let server = Server::start("serve-shape", &[]);
    let answer = server.post("/v1/chat/completions", &greedy("hello", 8)).json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["exit_layers"], json!([null, null, null, null, null, null, null, null]));
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    assert_eq!(answer["timings"]["exits"]["tokens"], json!({"full": 8}));
    assert_eq!(answer["timings"]["exits"]["mean_depth"], 6.0);
    let completion =
        server.post("/v1/completions", &json!({"prompt": "abc", "max_tokens": 3, "temperature": 0})).json();
    assert_eq!(completion["object"], "text_completion");
    assert!(completion["choices"][0]["text"].is_string());
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "tiny");
    assert_eq!(server.get("/v1/models/tiny").json()["object"], "model");
    assert_eq!(server.get("/props").json()["n_ctx"], 512);
    assert_eq!(server.get("/health").json()["status"], "ok");
}

#[test]
fn a_stream_says_the_same_as_a_whole_reply() {
    let server = Server::start("serve-stream", &[]);
    let mut body = greedy("tell me something", 40);
    let whole = server.chat(&body);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let streamed = server.post("/v1/chat/completions", &body);
    assert_eq!(streamed.streamed(), whole);
    let events = streamed.events();
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(40)));
    let last: Value = serde_json::from_str(&events[events.len() - 3]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["timings"]["predicted_n"], 40);
    let exits = events[..events.len() - 2].iter().map(|event| {
        let chunk: Value = serde_json::from_str(event).unwrap();
        chunk["choices"][0]["exit_layers"].as_array().map_or(0, Vec::len)
    });
    assert_eq!(exits.sum::<usize>(), 40, "each token's exit is told once");
}

#[test]
fn seeds_stops_and_schemas_are_followed() {
    let server = Server::start("serve-options", &[]);
    let with = |more: Value| {
        let mut body = greedy("hello", 60);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/chat/completions", &body).json()
    };
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let drawn = |seed: i64| text(&with(json!({"temperature": 1.5, "seed": seed})));
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));

    let whole = text(&with(json!({})));
    let stop: String = whole.chars().skip(5).take(2).collect();
    let stopped = with(json!({"stop": [stop]}));
    assert_eq!(text(&stopped), whole.split(&stop).next().unwrap());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    // Nothing else, or a random model may go on with other properties until its tokens are spent.
    let properties = json!({"ok": {"type": "boolean"}});
    let schema = json!({"type": "object", "properties": properties, "required": ["ok"], "additionalProperties": false});
    // As OpenAI has it, and as llama.cpp does.
    for format in [
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        json!({"type": "json_object", "schema": schema}),
    ] {
        let answer = with(json!({"response_format": format, "ignore_eos": false, "max_tokens": 400}));
        let found: Value = serde_json::from_str(&text(&answer)).unwrap();
        assert!(found["ok"].is_boolean(), "{found}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_tokens_that_were_taken() {
    let server = Server::start("serve-logprobs", &[]);
    let mut body = greedy("hello", 5);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(3);
    let answer = server.post("/v1/chat/completions", &body).json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 5);
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (3, &entry["token"]), "greedy takes the most likely one");
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
}

/// Two turns of a conversation whose first is long: what the second has of the cache.
fn cached_of_a_second_turn(server: &Server) -> (u64, Value) {
    let long = "one two three four ".repeat(16);
    let reply = server.chat(&greedy(&long, 20));
    server.chat(&greedy("something else", 20));
    let longer = json!({"messages": [
        {"role": "user", "content": long},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "five"},
    ], "temperature": 0, "max_tokens": 30, "ignore_eos": true});
    let answer = server.post("/v1/chat/completions", &longer).json();
    let mut fresh = longer;
    fresh["cache_prompt"] = json!(false);
    let fresh = server.post("/v1/chat/completions", &fresh).json();
    assert_eq!(fresh["timings"]["cache_n"], 0);
    (answer["timings"]["cache_n"].as_u64().unwrap(), json!([answer["choices"], fresh["choices"]]))
}

#[test]
fn a_conversation_goes_on_from_its_cache() {
    let (cached, choices) = cached_of_a_second_turn(&Server::start("serve-exact", &[]));
    assert!(cached >= 128 && cached % 128 == 0, "whole chunks: {cached}");
    assert_eq!(choices[0], choices[1]);
    let (cached, _) = cached_of_a_second_turn(&Server::start("serve-all", &["--cache-reuse", "all"]));
    assert!(cached > 128 && cached % 128 != 0, "the reply too: {cached}");
    let (cached, _) = cached_of_a_second_turn(&Server::start("serve-none", &["--cache-reuse", "none"]));
    assert_eq!(cached, 0);
}

/// A model whose tokens all leave after block 2, where they may.
#[test]
fn a_request_says_whether_tokens_may_leave_early() {
    let files = Files::new(&TinyModel::new(Arch::Llama));
    let heads = files.write_exits(&Spec::new(&[2], Kind::Random(7)));
    let model = files.path("model.gguf").to_str().unwrap().to_owned();
    let more = ["-c", "512", "-t", "1", "--heads", heads.to_str().unwrap(), "--policy", "always", "--agreement", "0.9"];
    let server = Server::start_on(&model, files, &more);
    let ask = |more: Value| {
        let mut body = greedy("hello", 20);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/chat/completions", &body).json()
    };
    let left = ask(json!({}));
    assert!(left["timings"]["exits"]["tokens"]["2"].as_u64() > Some(10), "{left}");
    assert!(left["timings"]["exits"]["mean_depth"].as_f64() < Some(5.0), "{left}");
    for more in [json!({"exits": "off"}), json!({"exits": "exact"}), json!({"logprobs": true})] {
        let full = ask(more);
        assert_eq!(full["timings"]["exits"]["tokens"], json!({"full": 20}), "{full}");
    }
    assert_eq!(
        ask(json!({"exits": "off"}))["choices"][0]["message"],
        ask(json!({"exits": "exact"}))["choices"][0]["message"]
    );
    assert_eq!(ask(json!({}))["timings"]["exits"]["tokens"], left["timings"]["exits"]["tokens"]);
    let refused = server
        .post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "x"}], "agreement": 0.999}));
    assert_eq!((refused.status, refused.error().as_str()), (400, "invalid_value"));
    assert!(server.get("/metrics").body.contains("offramp_generated_tokens_total{exit=\"2\"}"));
}

/// One slot, a reply that would take long, and a client that leaves: the next one is served.
#[test]
fn a_client_that_leaves_frees_its_slot() {
    let server = Server::start_slow("serve-leave", &["--parallel", "1"]);
    for stream in [true, false] {
        while server.metric("offramp_slots_busy") != 0.0 {}
        let mut body = greedy("hello", 400);
        body["stream"] = json!(stream);
        let mut connection = server.connect();
        connection.write_all(&post("/v1/chat/completions", &body)).unwrap();
        if stream {
            let mut lines = BufReader::new(&connection).lines();
            assert!(lines.any(|line| line.unwrap().contains("\"content\":")), "a token has come");
        } else {
            while server.metric("offramp_slots_busy") == 0.0 {}
        }
        drop(connection);
        server.chat(&greedy("hello", 1));
    }
    assert_eq!(server.metric("offramp_cancelled_total"), 2.0);
    assert!(server.metric("offramp_generated_blocks_total") < 2.0 * 400.0 * 64.0);
}

#[test]
fn more_requests_than_may_wait_are_told_to_come_again() {
    let server = Server::start_slow("serve-queue", &["--parallel", "1", "--queue", "1"]);
    let long = post("/v1/chat/completions", &greedy("hello", 450));
    let mut working = server.connect();
    working.write_all(&long).unwrap();
    while server.metric("offramp_slots_busy") == 0.0 {}
    let mut waiting = server.connect();
    waiting.write_all(&long).unwrap();
    while server.metric("offramp_requests_waiting") == 0.0 {}
    let refused = server.post("/v1/chat/completions", &greedy("hello", 1));
    assert_eq!((refused.status, refused.error().as_str()), (503, "queue_full"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(waiting);
    while server.metric("offramp_requests_waiting") == 1.0 {}
    assert_eq!(server.metric("offramp_cancelled_total"), 1.0, "it left before anything was computed for it");
    drop(working);
    server.chat(&greedy("hello", 1));
    assert_eq!(server.metric("offramp_cancelled_total"), 2.0);
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_the_word_that_agents_match() {
    let server = Server::start("serve-long", &[]);
    let answer = server.post("/v1/chat/completions", &greedy(&"word ".repeat(600), 1));
    assert_eq!((answer.status, answer.error().as_str()), (400, "context_length_exceeded"));
}

#[test]
fn a_reply_under_way_comes_to_its_end_when_the_server_is_told_to_stop() {
    let server = Server::start("serve-stop", &[]);
    let mut connection = server.connect();
    let mut body = greedy("hello", 300);
    body["stream"] = json!(true);
    connection.write_all(&post("/v1/chat/completions", &body)).unwrap();
    let mut first = String::new();
    BufReader::with_capacity(1, &connection).read_line(&mut first).unwrap();
    let (code, _) = server.end("-TERM");
    assert_eq!(code, Some(0));
    let rest = Answer::read(connection);
    assert!(format!("{}{}", rest.head, rest.body).contains("[DONE]"), "{rest:?}");
}

#[test]
fn ctrl_c_ends_an_idle_server_at_once() {
    let server = Server::start("serve-interrupt", &[]);
    assert_eq!(server.end("-INT").0, Some(130));
}

/// `n_clients` stream greedy replies for `time`; each must equal the reply that a single client gets.
fn concurrent_clients(server: &Server, n_clients: usize, time: Duration, max_tokens: usize) {
    let prompts: Vec<String> =
        (0..n_clients).map(|i| format!("{} number {i}", "tell a story ".repeat(1 + 6 * (i % 5)))).collect();
    let body = |prompt: &str| {
        let mut body = greedy(prompt, max_tokens);
        body["stream"] = json!(true);
        body
    };
    let expected: Vec<String> = prompts.iter().map(|prompt| server.chat(&greedy(prompt, max_tokens))).collect();
    let n_replies = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let mut resident = Vec::new();
    std::thread::scope(|scope| {
        for (prompt, expected) in prompts.iter().zip(&expected) {
            let (n_replies, over, body) = (&n_replies, &over, &body);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let answer = server.post("/v1/chat/completions", &body(prompt));
                    assert_eq!(answer.status, 200, "{answer:?}");
                    assert_eq!(&answer.streamed(), expected);
                    n_replies.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let start = Instant::now();
        // Memory is compared from when every client has had a reply or two.
        while n_replies.load(Ordering::Relaxed) < 2 * n_clients && start.elapsed() < time {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        while start.elapsed() < time {
            resident.push(resident_kib(server.pid()));
            std::thread::park_timeout(time / 20);
        }
        resident.push(resident_kib(server.pid()));
        over.store(true, Ordering::Relaxed);
    });
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    eprintln!(
        "{} replies to {n_clients} clients in {time:?}, resident memory {resident:?} KiB",
        n_replies.into_inner()
    );
    assert!(last <= first + 8 * 1024, "resident memory grew: {resident:?} KiB");
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn sixteen_clients_at_once_get_what_one_gets() {
    let server = Server::start("serve-sixteen", &["--parallel", "4"]);
    concurrent_clients(&server, 16, Duration::from_secs(10), 40);
}

/// The long run, on a tiny model or on the one that `OFFRAMP_SOAK_MODEL` names, for as many seconds as `OFFRAMP_SOAK_SECONDS` says:
/// `cargo test --release --test serve -- --ignored --nocapture`.
#[test]
#[ignore = "takes five minutes"]
fn sixteen_clients_for_five_minutes_get_what_one_gets() {
    let server = match std::env::var("OFFRAMP_SOAK_MODEL") {
        Ok(model) => Server::start_on(
            &model,
            crate::support::TempFolder::new("serve-soak"),
            &["-c", "1024", "--parallel", "4", "--exits", "off"],
        ),
        Err(_) => Server::start("serve-soak", &["--parallel", "4"]),
    };
    let seconds = std::env::var("OFFRAMP_SOAK_SECONDS").map_or(300, |seconds| seconds.parse().unwrap());
    concurrent_clients(&server, 16, Duration::from_secs(seconds), 40);
}
