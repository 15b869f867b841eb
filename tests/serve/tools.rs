//! Tool calls, from the server's door. A model of random weights calls nothing by itself: a grammar makes it, and what it
//! writes then goes the way of any call. How each format is read is tested where that is done, on texts.

use std::process::Command;

use offramp_fixtures::{Arch, TinyModel};
use serde_json::{Value, json};

use crate::server::Server;
use crate::support::TempFolder;

/// A template with tools as Hermes' models have it; it says which template it is, and shows what it was given.
const HERMES: &str = "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool.function.name }} \
    {% endfor %}{{ 'answer with <tool_call>{\"name\": …}</tool_call><|im_end|>\\n' }}{% endif %}\
    {% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}\
    {% if message.tool_calls %}{% for call in message.tool_calls %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}\
    {% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn server(name: &str, model: TinyModel) -> Server {
    let folder = TempFolder::new(name);
    let model = folder.file("tiny.gguf", model.bytes());
    Server::start_on(&model, folder, &["-c", "4096", "-t", "1"])
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "…", "parameters": {
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}, "exact": {"$ref": "#/$defs/flag"}},
        "required": ["unit", "exact"],
        "additionalProperties": false,
        "$defs": {"flag": {"type": "boolean"}},
    }}})
}

fn ask(choice: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": "How warm is it?"}], "tools": [tool("weather"), tool("pool")],
        "tool_choice": choice, "temperature": 0, "max_tokens": 400})
}

/// The tokens of the prompt that messages become.
fn n_prompt(server: &Server, body: &Value) -> u64 {
    let answer = server.post("/v1/chat/completions", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["usage"]["prompt_tokens"].as_u64().unwrap()
}

/// Checks that these arguments are what the schema says.
fn check_arguments(call: &Value) {
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let object = arguments.as_object().unwrap();
    assert!(object.len() == 2 && object["exact"].is_boolean(), "{call}");
    assert!(["C", "F"].contains(&object["unit"].as_str().unwrap()), "{call}");
}

#[test]
fn a_call_that_is_asked_for_comes_whole_and_in_deltas() {
    for (name, template) in [("tools-hermes", Some(HERMES)), ("tools-unknown", None)] {
        let model = TinyModel::new(Arch::Llama);
        let model = if let Some(template) = template { model.chat_template(None, template) } else { model };
        let server = server(name, model);
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "pool"}})] {
            let answer = server.post("/v1/chat/completions", &ask(&choice));
            assert_eq!(answer.status, 200, "{}", answer.body);
            let whole = &answer.json()["choices"][0];
            assert_eq!(whole["finish_reason"], "tool_calls", "{whole}");
            assert_eq!(whole["message"]["content"], Value::Null);
            let calls = whole["message"]["tool_calls"].as_array().unwrap();
            assert!(calls.len() == 1 && calls[0]["type"] == "function" && calls[0]["id"].is_string(), "{calls:?}");
            check_arguments(&calls[0]);
            if choice.is_object() {
                assert_eq!(calls[0]["function"]["name"], "pool");
            }

            let mut body = ask(&choice);
            body["stream"] = json!(true);
            let events = server.post("/v1/chat/completions", &body).events();
            let chunks: Vec<Value> =
                events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
            let deltas: Vec<&Value> =
                chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")).collect();
            assert!(deltas.len() > 2 && deltas.iter().all(|delta| delta["index"] == 0), "{deltas:?}");
            assert!(deltas[0]["id"].is_string() && deltas[1..].iter().all(|delta| delta.get("id").is_none()));
            assert_eq!(deltas[0]["function"]["name"], calls[0]["function"]["name"]);
            let arguments: String =
                deltas.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
            assert_eq!(arguments, calls[0]["function"]["arguments"].as_str().unwrap());
            assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        }
    }
}

#[test]
fn several_calls_come_where_they_are_asked_for() {
    let server = server(
        "tools-several",
        TinyModel::new(Arch::Llama).chat_template(None, "[TOOL_CALLS]{{ messages[0].content }}"),
    );
    let mut body = ask(&json!("required"));
    body["parallel_tool_calls"] = json!(true);
    body["max_tokens"] = json!(2000);
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let calls = answer.json()["choices"][0]["message"]["tool_calls"].clone();
    check_arguments(&calls[0]);
}

#[test]
fn without_a_choice_a_reply_that_is_no_call_is_text() {
    let server = server("tools-auto", TinyModel::new(Arch::Llama).chat_template(None, HERMES));
    let mut body = ask(&json!("auto"));
    body["max_tokens"] = json!(16);
    body["ignore_eos"] = json!(true);
    let answer = server.post("/v1/chat/completions", &body).json();
    let message = &answer["choices"][0]["message"];
    assert!(message["content"].is_string() && message.get("tool_calls").is_none(), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn choices_that_no_reply_could_follow_are_refused() {
    let server = server("tools-refused", TinyModel::new(Arch::Llama));
    for choice in [json!("sometimes"), json!({"type": "function", "function": {"name": "stove"}}), json!(3)] {
        let answer = server.post("/v1/chat/completions", &ask(&choice));
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("tool_choice")), "{choice}");
    }
    let mut body = ask(&json!("required"));
    body["tools"][0]["function"]["parameters"] =
        json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}});
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("tools")), "{}", answer.body);
}

#[test]
fn calls_of_the_history_are_in_the_prompt_whatever_stands_beside_them() {
    // As DeepSeek's distilled models have it: a call only beside null, and its arguments joined to a text.
    let joined = "{% for message in messages %}{% if message.content is none %}{% for call in message.tool_calls %}\
        {{ call.function.name + '\\n' + call.function.arguments }}{% endfor %}{% else %}{{ message.content }}{% endif %}{% endfor %}";
    for (name, template) in [("history-hermes", HERMES), ("history-joined", joined)] {
        let server = server(name, TinyModel::new(Arch::Llama).chat_template(None, template));
        let with = |content: Value, arguments: Value| {
            let call =
                json!({"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}});
            json!({"messages": [
                {"role": "user", "content": "How warm is it?"},
                {"role": "assistant", "content": content, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "abcdefghi", "content": "12"},
            ], "max_tokens": 1})
        };
        let long = "{\"unit\": \"C\", \"where\": \"on top of the mountain\"}";
        let [null, empty, object, short] = [
            with(Value::Null, json!(long)),
            with(json!(""), json!(long)),
            with(Value::Null, serde_json::from_str(long).unwrap()),
            with(Value::Null, json!("{}")),
        ]
        .map(|body| n_prompt(&server, &body));
        assert!(null == empty && null == object && null > short, "{name}: {null}, {empty}, {object}, {short}");
    }
}

#[test]
fn a_template_that_shows_parts_alone_is_given_parts() {
    let parts = "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}\
        {% endif %}{% endfor %}{% endfor %}{{ '>' }}";
    let server = server("parts-alone", TinyModel::new(Arch::Llama).chat_template(None, parts));
    let of = |content: Value| {
        n_prompt(&server, &json!({"messages": [{"role": "user", "content": content}], "max_tokens": 1}))
    };
    let text = of(json!("What does the owl say?"));
    assert!(text > of(json!("What?")));
    assert_eq!(text, of(json!([{"type": "text", "text": "What does "}, {"type": "text", "text": "the owl say?"}])));
}

#[test]
fn a_template_for_tools_is_used_with_tools_alone() {
    let model = TinyModel::new(Arch::Llama)
        .chat_template(None, "short")
        .chat_template(Some("tool_use"), "[TOOL_CALLS] much, much longer");
    let server = server("tool-use", model);
    let body = |choice: &str| {
        let mut body = ask(&json!(choice));
        body["max_tokens"] = json!(1);
        body
    };
    assert!(n_prompt(&server, &body("auto")) > n_prompt(&server, &body("none")));
    assert!(server.get("/props").json()["chat_template_tool_use"].as_str().unwrap().contains("longer"));
}

#[test]
fn the_openai_package_and_an_agent_call_tools() {
    let Some(python) = crate::python::with("openai-agents==0.24.0") else { return };
    let server = server("tools-openai", TinyModel::new(Arch::Llama).chat_template(None, HERMES));
    let script = crate::support::manifest_folder().join("tests/serve/tools_client.py");
    let output = Command::new(python).arg(script).arg(format!("http://{}/v1", server.address)).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert_eq!(printed.lines().last(), Some("all is well"));
}
