//! What the fields of a request do, one by one: each that is offered changes the reply as it says, in a stream as in a whole.

use crate::server::{Server, greedy};
use crate::support::TempFolder;
use offramp_fixtures::{Arch, TinyModel, WeightType};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A chat request of 40 tokens with `more` put over it.
fn ask(server: &Server, more: &Value) -> Value {
    let mut body = greedy("hello", 40);
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = server.post(CHAT, &body);
    assert_eq!(answer.status, 200, "{more}: {}", answer.body);
    answer.json()
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_seed_of_minus_one_is_another_one_each_time() {
    let server = Server::start("fields-seed", &[]);
    let drawn = |seed: Value| text(&ask(&server, &json!({"temperature": 2, "top_k": 0, "top_p": 1, "seed": seed})));
    for random in [json!(-1), json!(-1.0), json!(4_294_967_295u32), json!(null)] {
        assert_ne!(drawn(random.clone()), drawn(random.clone()), "{random}");
    }
    // The last one's halves meet in llama.cpp's number for a random seed.
    for fixed in [0i64, -2, 7, i64::MAX, 0x1_FFFF_FFFE] {
        assert_eq!(drawn(json!(fixed)), drawn(json!(fixed)), "{fixed}");
    }
}

#[test]
fn temperatures_next_to_nothing_are_greedy() {
    let server = Server::start("fields-cold", &[]);
    let best = text(&ask(&server, &json!({})));
    for temperature in [1e-6, 1e-20, 1e-37, 9e-38, 1e-38, 1e-40, 1e-45, 1e-60, 5e-324] {
        for more in [json!({}), json!({"repeat_penalty": 1.0, "top_k": 0}), json!({"typical_p": 1})] {
            let mut with = more;
            with["temperature"] = json!(temperature);
            with["seed"] = json!(3);
            assert_eq!(text(&ask(&server, &with)), best, "{with}");
        }
    }
}

#[test]
fn each_sampler_changes_the_reply() {
    let server = Server::start("fields-samplers", &[]);
    let drawn = |mut more: Value| {
        more["seed"] = json!(5);
        more["temperature"] = json!(1.5);
        more["max_tokens"] = json!(60);
        text(&ask(&server, &more))
    };
    let plain = drawn(json!({}));
    assert_eq!(
        plain,
        drawn(json!({"typical_p": 1, "xtc_probability": 0, "dry_multiplier": 0, "repetition_penalty": 1}))
    );
    for more in [
        json!({"typical_p": 0.2}),
        json!({"typical_p": 0.2, "top_k": 0, "top_p": 1, "min_p": 0}),
        json!({"xtc_probability": 1, "xtc_threshold": 0.02}),
        json!({"repetition_penalty": 1.5}),
        json!({"dry_multiplier": 50, "dry_allowed_length": 0}),
    ] {
        let found = drawn(more.clone());
        assert_ne!(found, plain, "{more}");
        assert_eq!(found, drawn(more.clone()), "{more}: the same seed gives the same text");
    }
    assert_eq!(drawn(json!({"repetition_penalty": 1.5})), drawn(json!({"repeat_penalty": 1.5})));
    assert_eq!(drawn(json!({"xtc_probability": 1, "xtc_threshold": 0.6})), plain, "above a half nothing is left out");
    let all = drawn(json!({"repeat_penalty": 1.5, "repeat_last_n": -1}));
    assert_eq!(all, drawn(json!({"repeat_penalty": 1.5, "repeat_last_n": 512})));
    assert_eq!(drawn(json!({"top_k": -1})), drawn(json!({"top_k": 0})));
}

#[test]
fn lengths_have_all_their_names_and_sentinels() {
    let server = Server::start("fields-length", &["-n", "12"]);
    let n = |more: Value| {
        let mut body = greedy("hello", 0);
        body.as_object_mut().unwrap().remove("max_tokens");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200, "{more}: {}", answer.body);
        answer.json()["usage"]["completion_tokens"].as_u64().unwrap()
    };
    for name in ["max_tokens", "max_completion_tokens", "n_predict"] {
        assert_eq!((n(json!({name: 5})), n(json!({name: 5.0})), n(json!({name: -1}))), (5, 5, 12), "{name}");
    }
    assert_eq!((n(json!({"n_predict": 0})), n(json!({"n": 1.0, "stop": [""]})), n(json!({"stop": ""}))), (0, 12, 12));
    assert_eq!(n(json!({"max_completion_tokens": 4, "max_tokens": 5, "n_predict": 6})), 4);
}

#[test]
fn no_stop_text_ends_a_reply_too_early() {
    let server = Server::start("fields-min", &[]);
    let whole = text(&ask(&server, &json!({"logprobs": true})));
    let first: String = whole.chars().take(1).collect();
    let stopped = ask(&server, &json!({"stop": [first]}));
    assert_eq!((text(&stopped).as_str(), &stopped["choices"][0]["finish_reason"]), ("", &json!("stop")));
    let later = ask(&server, &json!({"stop": [first], "min_tokens": 7}));
    assert!(later["usage"]["completion_tokens"].as_u64() >= Some(7), "{later}");
    assert!(whole.starts_with(&text(&later)) && !text(&later).is_empty(), "{later}");
}

/// The log-probabilities of a reply in both forms: of the whole, and of all chunks.
fn both_logprobs(server: &Server, path: &str, body: &Value, lists: &[&str]) -> [Vec<Value>; 2] {
    let of = |answers: Vec<Value>| {
        let found = answers.iter().map(|answer| &answer["choices"][0]["logprobs"]);
        let entries = |list: &&str| -> Value {
            found.clone().flat_map(|logprobs| logprobs[*list].as_array().cloned().unwrap_or_default()).collect()
        };
        lists.iter().map(entries).collect()
    };
    let whole = server.post(path, body);
    assert_eq!(whole.status, 200, "{}", whole.body);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = server.post(path, &streamed).events();
    let chunks = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    [of(vec![whole.json()]), of(chunks)]
}

#[test]
fn a_stream_has_every_log_probability_of_a_whole_reply() {
    let server = Server::start("fields-logprobs", &[]);
    let whole: String = text(&ask(&server, &json!({})));
    let characters: Vec<char> = whole.chars().collect();
    let mut n_longer = 0;
    let middle = characters.len() / 2;
    assert!(middle >= 8, "{whole:?}");
    for (at, length) in [(0, 1), (3, 4), (5, 2), (1, 7), (middle, 3)] {
        let stop: String = characters[at..at + length].iter().collect();
        // And one that the reply begins and does not end.
        let begun: String = format!("{}\u{1}", characters[at..at + 2].iter().collect::<String>());
        for stops in [json!([stop]), json!([begun]), json!([stop, begun])] {
            let mut body = greedy("hello", 40);
            body["stop"] = stops;
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(2);
            let [one, streamed] = both_logprobs(&server, CHAT, &body, &["content"]);
            assert_eq!(one, streamed, "{body}");
            n_longer += one[0].as_array().unwrap().len();
            let body = json!({"prompt": "hello", "temperature": 0, "max_tokens": 40, "ignore_eos": true, "logprobs": 2,
                "stop": body["stop"]});
            let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
            let [one, streamed] = both_logprobs(&server, TEXT, &body, &lists);
            assert_eq!(one, streamed, "{body}");
            assert!(!one[0].as_array().unwrap().is_empty(), "{body}");
        }
    }
    assert!(n_longer > 15);
}

/// A model whose file asks for an end token behind every text replies as the one does whose file does not.
#[test]
fn no_end_token_stands_behind_a_prompt() {
    let start = |name: &str, adds_eos: bool| {
        let folder = TempFolder::new(name);
        let tiny = TinyModel::new(Arch::Llama).weights(WeightType::Q4_1).adds_eos(adds_eos);
        let model = folder.file("tiny.gguf", tiny.bytes());
        Server::start_on(&model, folder, &["-c", "512", "-t", "1"])
    };
    let (plain, ends) = (start("fields-plain", false), start("fields-ends", true));
    let (a, b) = (ask(&plain, &json!({})), ask(&ends, &json!({})));
    assert_eq!(a["choices"], b["choices"]);
    assert_eq!(a["usage"], b["usage"]);
    let body = json!({"prompt": "hello", "temperature": 0, "max_tokens": 20, "ignore_eos": true});
    let of = |server: &Server| server.post(TEXT, &body).json()["choices"].clone();
    assert_eq!(of(&plain), of(&ends));
}

#[test]
fn a_field_that_would_do_nothing_is_refused_by_its_name() {
    let server = Server::start("fields-unknown", &[]);
    let cases = [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("max_length", "max_tokens"),
        ("repeat_penality", "repeat_penalty"),
        ("stop_sequences", "stop"),
        ("guided_json", "response_format"),
        ("min_token", "min_tokens"),
        ("logprob", "logprobs"),
        ("streem", "stream"),
    ];
    for (field, meant) in cases {
        for (path, mut body) in [(CHAT, greedy("hello", 1)), (TEXT, json!({"prompt": "hello", "max_tokens": 1}))] {
            body[field] = json!(0.7);
            let answer = server.post(path, &body);
            assert_eq!((answer.status, answer.error().as_str()), (400, "unknown_parameter"), "{field}");
            let error = answer.json()["error"].clone();
            assert_eq!(error["param"], field);
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with(field) && message.contains(&format!("; {meant} may be meant")), "{message}");
        }
    }
    let harmless = json!({"user": "x", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "keep_alive": "5m",
        "mirostat": 0, "mirostat_tau": 5.0, "samplers": [], "logit_bias": {}, "best_of": 1, "temprature": null,
        "parallel_tool_calls": true, "modalities": ["text"], "grammar": "", "n_probs": 0, "echo": false});
    ask(&server, &harmless);
}

/// A linked list: each property that refers to the whole schema is kept as deep as the reply goes.
#[test]
fn a_property_may_refer_to_the_whole_schema() {
    let server = Server::start("fields-list", &[]);
    let next = json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]});
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "next": next},
        "required": ["ok", "next"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "list", "schema": schema}});
    for seed in 0..6 {
        let answer = ask(
            &server,
            &json!({"response_format": format, "ignore_eos": false, "max_tokens": 300, "temperature": 1, "seed": seed}),
        );
        if answer["choices"][0]["finish_reason"] == "stop" {
            let mut list: Value = serde_json::from_str(&text(&answer)).unwrap();
            while !list.is_null() {
                assert!(list["ok"].is_boolean() && list.as_object().unwrap().len() == 2, "{list}");
                list = list["next"].take();
            }
        }
    }
}
