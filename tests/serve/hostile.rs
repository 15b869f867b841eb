//! Clients that misbehave: each case is the bytes that are sent and the answer that is due. After all of them the server
//! still serves, which is checked as well. One table, so that it can be read as what the server promises. Numbers at and
//! beyond the ends of their ranges are in `serve_limits.rs`.

use crate::server::{Server, greedy, post};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Bytes, the status that is due, and its error code or message; a status of 0 is a connection that is closed without a word.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    status: u16,
    error: &'static str,
}

fn case(name: &'static str, bytes: impl Into<Vec<u8>>, status: u16, error: &'static str) -> Case {
    Case { name, bytes: bytes.into(), status, error }
}

/// A request without a body, with the headers given.
fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")
}

/// A request with a body that need not be JSON.
fn post_raw(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A chat request with `more` put over a sound one.
fn with(more: Value) -> Vec<u8> {
    let mut body = greedy("hello", 1);
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(CHAT, &body)
}

fn schema(schema: Value) -> Vec<u8> {
    with(json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}))
}

/// Who is let in.
fn admission() -> Vec<Case> {
    let local = "Host: localhost\r\n";
    let body = greedy("hello", 1).to_string();
    let simple = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    vec![
        case("no Host", get("/health", ""), 400, "the Host header is missing"),
        case("HTTP/1.0 without Host", "GET /health HTTP/1.0\r\n\r\n", 400, "the Host header is missing"),
        case("a name that points here", get("/health", "Host: evil.example\r\n"), 403, "host_not_allowed"),
        case("a name like ours", get("/health", "Host: localhost.evil.example\r\n"), 403, "host_not_allowed"),
        case("an empty Host", get("/health", "Host: \r\n"), 403, "host_not_allowed"),
        case(
            "a Host that is no text",
            b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n",
            403,
            "host_not_allowed",
        ),
        case(
            "two Hosts",
            get("/health", "Host: localhost\r\nHost: evil.example\r\n"),
            400,
            "the host header is there more than once",
        ),
        case("another name in the target", get("http://evil.example/health", local), 403, "host_not_allowed"),
        case(
            "a page from elsewhere",
            get("/v1/models", "Host: localhost\r\nOrigin: http://evil.example\r\n"),
            403,
            "origin_not_allowed",
        ),
        case(
            "a page without an origin",
            get("/v1/models", "Host: localhost\r\nOrigin: null\r\n"),
            403,
            "origin_not_allowed",
        ),
        case(
            "a page of another port",
            get("/v1/models", "Host: localhost:1\r\nOrigin: http://localhost:2\r\n"),
            403,
            "origin_not_allowed",
        ),
        case(
            "a page that asks first",
            format!(
                "OPTIONS {CHAT} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
            ),
            403,
            "origin_not_allowed",
        ),
        case("a page that does not ask first", simple, 403, "origin_not_allowed"),
        case(
            "two origins",
            get("/v1/models", "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n"),
            400,
            "the origin header is there more than once",
        ),
    ]
}

/// Requests that are no HTTP, or not ours.
fn protocol() -> Vec<Case> {
    let many: String = (0..80).map(|i| format!("X-{i}: 1\r\n")).collect();
    let long = format!("Host: localhost\r\nX-Long: {}\r\n", "a".repeat(1_000_000));
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n");
    vec![
        case("no HTTP", "hello\r\n\r\n", 400, ""),
        case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""),
        case("HTTP/2 without being asked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, ""),
        case("a header with a NUL", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400, ""),
        case("a header without a colon", "GET /health HTTP/1.1\r\nHost localhost\r\n\r\n", 400, ""),
        case("too many headers", get("/health", &format!("Host: localhost\r\n{many}")), 431, ""),
        case("a header that is too long", get("/health", &long), 431, ""),
        case("a length that is none", format!("{head}Content-Length: x\r\n\r\n"), 400, ""),
        case("a negative length", format!("{head}Content-Length: -1\r\n\r\n"), 400, ""),
        case("two lengths", format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n{{}}"), 400, ""),
        case(
            "a length and chunks",
            format!("{head}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
            "the body ends early, at line 1 column 0",
        ),
        case(
            "a chunk without a size",
            format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"),
            400,
            "the body ended early",
        ),
        case(
            "a chunk of all the world",
            format!("{head}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\n"),
            400,
            "the body ended early",
        ),
        case("no such path", get("/v2/models", "Host: localhost\r\n"), 404, "not_found"),
        case("a path that climbs", get("/../../etc/passwd", "Host: localhost\r\n"), 404, "not_found"),
        case("an encoded path that climbs", get("/%2e%2e/%2e%2e/etc/passwd", "Host: localhost\r\n"), 404, "not_found"),
        case("no such model", get("/v1/models/../x", "Host: localhost\r\n"), 404, "model_not_found"),
        case(
            "a method that is none of ours",
            "DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            405,
            "method_not_allowed",
        ),
        case("reading where one writes", get(CHAT, "Host: localhost\r\n"), 405, "method_not_allowed"),
        case("TRACE", "TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405, "method_not_allowed"),
    ]
}

/// Bodies.
fn bodies() -> Vec<Case> {
    let json = "Content-Type: application/json\r\n";
    let sized = |n: u64| {
        format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{json}Content-Length: {n}\r\n\r\n")
    };
    let chunk = "a".repeat(1 << 20);
    let chunks: String = (0..5).map(|_| format!("100000\r\n{chunk}\r\n")).collect();
    let chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{json}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    );
    vec![
        case("no type", post_raw("", b"{}"), 415, "unsupported_media_type"),
        case("another type", post_raw("Content-Type: text/plain\r\n", b"{}"), 415, "unsupported_media_type"),
        case(
            "a packed body",
            post_raw("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", b"{}"),
            415,
            "unsupported_encoding",
        ),
        case("no body", post_raw(json, b""), 400, "the body ends early, at line 1 column 0"),
        case("no JSON", post_raw(json, b"{'a': 1}"), 400, "the body is no JSON, at line 1 column 2"),
        case("half of a JSON", post_raw(json, b"{\"messages\": ["), 400, "the body ends early, at line 1 column 14"),
        case("no object", post_raw(json, b"[]"), 400, "the body is an array, a JSON object is expected"),
        case("no UTF-8", post_raw(json, b"{\"messages\": \"\xff\"}"), 400, "the body is no JSON, at line 1 column 15"),
        case(
            "half of a surrogate",
            post_raw(json, br#"{"messages": "\ud800"}"#),
            400,
            "the body is no JSON, at line 1 column 21",
        ),
        case(
            "JSON that nests without end",
            post_raw(json, "[".repeat(100_000).as_bytes()),
            400,
            "the body is no JSON, at line 1 column 128",
        ),
        case("a body larger than it may be", sized(5 << 20), 413, "body_too_large"),
        case("a body of all the world", sized(u64::MAX), 431, ""),
        case("chunks without end", chunked, 413, "body_too_large"),
    ]
}

/// Fields.
fn fields() -> Vec<Case> {
    let text = |prompt: Value| post(TEXT, &json!({"prompt": prompt, "max_tokens": 1}));
    let mut deep = json!({});
    for _ in 0..60 {
        deep = json!({"type": "array", "items": deep});
    }
    let many: serde_json::Map<_, _> = (0..5000).map(|i| (i.to_string(), json!({}))).collect();
    let hello = json!({"role": "user", "content": "hello"});
    vec![
        case("no messages", post(CHAT, &json!({})), 400, "invalid_value"),
        case("empty messages", with(json!({"messages": []})), 400, "invalid_value"),
        case("messages that are a text", with(json!({"messages": "hello"})), 400, "invalid_value"),
        case("too many messages", with(json!({"messages": vec![hello; 5000]})), 400, "invalid_value"),
        case("a message without a role", with(json!({"messages": [{"content": "x"}]})), 400, "invalid_value"),
        case(
            "a picture",
            with(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            400,
            "invalid_value",
        ),
        case("a negative temperature", with(json!({"temperature": -1})), 400, "invalid_value"),
        case("a temperature without bounds", with(json!({"temperature": 1e300})), 400, "invalid_value"),
        case("a temperature that is a text", with(json!({"temperature": "0"})), 400, "invalid_value"),
        case("a share above one", with(json!({"top_p": 1.5})), 400, "invalid_value"),
        case("a negative count", with(json!({"top_k": -5})), 400, "invalid_value"),
        case("no tokens", with(json!({"max_tokens": 0})), 400, "invalid_value"),
        case("less than no tokens", with(json!({"max_tokens": -2})), 400, "invalid_value"),
        case("more tokens than a number holds", with(json!({"max_tokens": 1e30})), 400, "invalid_value"),
        case("half a token", with(json!({"max_tokens": 1.5})), 400, "invalid_value"),
        case("a penalty without bounds", with(json!({"frequency_penalty": 1e9})), 400, "invalid_value"),
        case(
            "a window of tokens below nothing",
            with(json!({"repeat_last_n": -9_223_372_036_854_775_808i64})),
            400,
            "invalid_value",
        ),
        case("a seed that is no number", with(json!({"seed": "7"})), 400, "invalid_value"),
        case("several replies", with(json!({"n": 2})), 400, "unsupported_parameter"),
        case("replies without end", with(json!({"n": 1_000_000})), 400, "invalid_value"),
        case("a stop that is no text", with(json!({"stop": [7]})), 400, "invalid_value"),
        case("tokens to stop at that are none", with(json!({"stop_token_ids": [1_000_000]})), 400, "invalid_value"),
        case("too many tokens to stop at", with(json!({"stop_token_ids": vec![1; 65]})), 400, "invalid_value"),
        case(
            "a breaker that is too long",
            with(json!({"dry_sequence_breakers": ["x".repeat(41)]})),
            400,
            "invalid_value",
        ),
        case("a breaker with NUL", with(json!({"dry_sequence_breakers": ["a\0b"]})), 400, "invalid_value"),
        case("too many breakers", with(json!({"dry_sequence_breakers": vec!["x"; 17]})), 400, "invalid_value"),
        case("a field that is misspelt", with(json!({"temprature": 1})), 400, "unknown_parameter"),
        case("a field with a name as long as a book", with(json!({"x".repeat(1 << 20): 1})), 400, "unknown_parameter"),
        case("a field of another server", with(json!({"guided_json": {}})), 400, "unknown_parameter"),
        case("a sampler that is not offered", with(json!({"mirostat": 2})), 400, "unsupported_parameter"),
        case("too many stops", with(json!({"stop": vec!["x"; 100]})), 400, "invalid_value"),
        case("a stop that is too long", with(json!({"stop": "x".repeat(5000)})), 400, "invalid_value"),
        case("a bias that is not offered", with(json!({"logit_bias": {"5": -100}})), 400, "unsupported_parameter"),
        case("a grammar of the client's own", with(json!({"grammar": "root ::= root"})), 400, "unsupported_parameter"),
        case("exits that are none", with(json!({"exits": "always"})), 400, "invalid_value"),
        case("an agreement above one", with(json!({"agreement": 7})), 400, "invalid_value"),
        case("an agreement of nothing", with(json!({"agreement": 0})), 400, "invalid_value"),
        case(
            "more log-probabilities than there are",
            with(json!({"logprobs": true, "top_logprobs": 1_000_000})),
            400,
            "invalid_value",
        ),
        case(
            "options of a stream that is none",
            with(json!({"stream_options": {"include_usage": true}})),
            400,
            "invalid_value",
        ),
        case("a stream that is no boolean", with(json!({"stream": 1})), 400, "invalid_value"),
        case("a format that is none", with(json!({"response_format": {"type": "xml"}})), 400, "invalid_value"),
        case("no schema", with(json!({"response_format": {"type": "json_schema"}})), 400, "invalid_value"),
        case("a schema that nests too deep", schema(deep), 400, "invalid_value"),
        case(
            "a schema of too many fields",
            schema(json!({"type": "object", "properties": many})),
            400,
            "invalid_value",
        ),
        case(
            "a schema that repeats without end",
            schema(json!({"type": "array", "minItems": 4_000_000_000u64})),
            400,
            "invalid_value",
        ),
        case("a schema that points nowhere", schema(json!({"$ref": "#/$defs/none"})), 400, "invalid_value"),
        case("a schema from elsewhere", schema(json!({"$ref": "http://127.0.0.1:1/x.json"})), 400, "invalid_value"),
        case("a tool without a name", with(json!({"tools": [{"type": "function"}]})), 400, "invalid_value"),
        case("a call without tools", with(json!({"tool_choice": "required"})), 400, "invalid_value"),
        case("a prompt of nothing", post(TEXT, &json!({})), 400, "invalid_value"),
        case("several prompts", text(json!(["a", "b"])), 400, "invalid_value"),
        case("a token outside of the vocabulary", text(json!([1_000_000])), 400, "invalid_value"),
        case("a token below nothing", text(json!([-1])), 400, "invalid_value"),
        case("a token larger than a number", text(json!([1e300])), 400, "invalid_value"),
        case("a prompt that does not fit", text(json!("word ".repeat(100_000))), 400, "context_length_exceeded"),
    ]
}

#[test]
fn each_case_is_answered_as_it_should_be() {
    let server = Server::start("hostile", &[]);
    let cases: Vec<Case> = [admission(), protocol(), bodies(), fields()].into_iter().flatten().collect();
    let mut wrong = Vec::new();
    for Case { name, bytes, status, error } in &cases {
        let answer = server.send(bytes);
        let found = if answer.body.starts_with("{\"error\"") { answer.error() } else { String::new() };
        if answer.status != *status || found != *error {
            wrong.push(format!("{name}: {status} {error:?} is due, {} {found:?} came", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    eprintln!("{} cases", cases.len());
    server.chat(&greedy("hello", 1));
}

#[test]
fn keys_are_asked_for_where_they_are_set() {
    let server = Server::start("keys", &["--api-key", "first", "--api-key", "second"]);
    let get = |path: &str, key: &str| {
        server.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{key}Connection: close\r\n\r\n").as_bytes())
    };
    for path in ["/v1/models", "/props", "/metrics", "/nothing"] {
        for key in [
            "",
            "Authorization: Bearer firs\r\n",
            "Authorization: Bearer firstt\r\n",
            "Authorization: Basic first\r\n",
            "Authorization: Bearer \r\n",
        ] {
            let answer = get(path, key);
            assert_eq!((answer.status, answer.error().as_str()), (401, "invalid_api_key"), "{path} with {key:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let twice = get("/v1/models", "Authorization: Bearer first\r\nAuthorization: Bearer x\r\n");
    assert_eq!(twice.status, 400);
    let page = "Origin: https://chat.example\r\n";
    let foreign = get("/v1/models", page);
    assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (403, None));
    for key in ["first", "second"] {
        assert_eq!(get("/v1/models", &format!("Authorization: Bearer {key}\r\n")).status, 200);
    }
    for path in ["/", "/health"] {
        assert_eq!(get(path, "").status, 200, "{path} is open to all");
    }
}

#[test]
fn a_page_that_was_allowed_may_read_answers() {
    let server = Server::start("origins", &["--allow-origin", "https://chat.example", "--allow-host", "pi.local"]);
    let ask = |method: &str, origin: &str| {
        server.send(
            format!("{method} /v1/models HTTP/1.1\r\nHost: pi.local\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
    };
    let answer = ask("GET", "https://chat.example");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://chat.example")));
    assert_eq!(ask("OPTIONS", "https://chat.example").status, 204);
    let preflight = |origin: &str, asked: &str| {
        server.send(
            format!(
                "OPTIONS /v1/models HTTP/1.1\r\nHost: pi.local\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: {asked}\r\nConnection: close\r\n\r\n"
            )
            .as_bytes(),
        )
    };
    let asked = "authorization,content-type,openai-beta,x-stainless-lang,x-stainless-retry-count";
    let answer = preflight("https://chat.example", asked);
    assert_eq!((answer.status, answer.header("access-control-allow-headers")), (204, Some(asked)));
    assert_eq!(answer.header("vary"), Some("Origin, Access-Control-Request-Headers"));
    let answer = preflight("https://other.example", asked);
    assert_eq!((answer.status, answer.header("access-control-allow-headers")), (403, None));
    for no_names in ["a b", "x-y, (z)", ",", "*:*"] {
        let answer = preflight("https://chat.example", no_names);
        assert_eq!(answer.header("access-control-allow-headers"), Some("Authorization, Content-Type"), "{no_names}");
    }
    let missing = server
        .send(b"GET /nothing HTTP/1.1\r\nHost: pi.local\r\nOrigin: https://chat.example\r\nConnection: close\r\n\r\n");
    assert_eq!((missing.status, missing.header("access-control-allow-origin")), (404, Some("https://chat.example")));
    let own = ask("GET", "http://pi.local");
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, None));
    assert_eq!(ask("GET", "https://other.example").status, 403);
}

/// Two requests in one write are answered in order; what a request leaves unread is not taken for the next one.
#[test]
fn requests_in_one_write_are_told_apart() {
    let server = Server::start("pipelined", &[]);
    let both = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = server.send(both.as_bytes());
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("HTTP/1.1 404"), "{answer:?}");
    let smuggled = "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let head = format!(
        "POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    let answer = server.send(head.as_bytes());
    assert_eq!((answer.status, answer.body.matches("HTTP/1.1").count()), (404, 0), "{answer:?}");
}

#[test]
fn beyond_this_machine_a_key_is_needed() {
    let finished = crate::support::run(&["serve", "--host", "0.0.0.0", "--port", "0", "-m", "none.gguf"]);
    assert!(finished.failure(2).contains("--api-key-file"), "{finished:?}");
    let finished = crate::support::run(&["serve", "--api-key", "", "-m", "none.gguf"]);
    assert!(finished.failure(2).contains("--api-key is empty"), "{finished:?}");
}
