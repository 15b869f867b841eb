//! Replies in each format, whole and in pieces.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Forced, ReplyPart, ReplyReader, ToolFormat, Tools};

/// Content, thought, and the calls with their arguments.
type Read = (String, String, Vec<(String, String)>);

fn tools() -> Tools {
    let tool = |name: &str, properties: Value| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}});
    Tools::new(&[
        tool(
            "get_weather",
            json!({"city": {"type": "string"}, "days": {"type": "integer"}, "zip": {"type": "string"}}),
        ),
        tool("add", json!({"a": {"type": "number"}, "b": {"type": "number"}})),
        tool("python", json!({"code": {"type": "string"}})),
    ])
}

fn collect(reader: &mut ReplyReader, pieces: &[&str]) -> Read {
    let mut parts: Vec<ReplyPart> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    let mut read = Read::default();
    for part in parts {
        match part {
            ReplyPart::Content(text) => read.0 += &text,
            ReplyPart::Thought(text) => read.1 += &text,
            ReplyPart::Call(name) => read.2.push((name, String::new())),
            ReplyPart::Arguments(text) => read.2.last_mut().expect("a call before its arguments").1 += &text,
        }
    }
    read
}

fn read(format: ToolFormat, pieces: &[&str]) -> Read {
    collect(&mut ReplyReader::new(format, tools()), pieces)
}

/// The reply in each of its splits in two, and character by character.
fn in_pieces(format: ToolFormat, text: &str) -> Read {
    let whole = read(format, &[text]);
    for at in text.char_indices().map(|(at, _)| at).skip(1) {
        assert_eq!(read(format, &[&text[..at], &text[at..]]), whole, "{format:?} split before {:?}", &text[at..]);
    }
    let characters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(read(format, &characters.iter().map(String::as_str).collect::<Vec<_>>()), whole, "{format:?}: {text}");
    whole
}

/// Format, reply, content, thought, calls with the values of their arguments.
#[allow(clippy::type_complexity)]
fn replies() -> Vec<(ToolFormat, &'static str, &'static str, &'static str, Vec<(&'static str, Value)>)> {
    use ToolFormat::*;
    let zurich = || ("get_weather", json!({"city": "Zürich", "days": 2}));
    let sum = || ("add", json!({"a": 1, "b": [2, {"c": "}]"}]}));
    let both = || vec![zurich(), sum()];
    vec![
        (
            Hermes,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}\n</tool_call>",
            "",
            "",
            vec![zurich()],
        ),
        (
            Hermes,
            "I look.\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}}\n</tool_call>",
            "I look.",
            "",
            both(),
        ),
        // Arguments first, as a text, not there, in OpenAI's shape, without the closing tag, without the closing brace.
        (
            Hermes,
            "<tool_call>{\"arguments\": {\"city\": \"Zürich\", \"days\": 2}, \"name\": \"get_weather\"}</tool_call>",
            "",
            "",
            vec![zurich()],
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Zürich\\\", \\\"days\\\": 2}\"}</tool_call>",
            "",
            "",
            vec![zurich()],
        ),
        (Hermes, "<tool_call>{\"name\": \"now\"}</tool_call>", "", "", vec![("now", json!({}))]),
        (Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", "", "", vec![("now", json!({}))]),
        (
            Hermes,
            "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}}</tool_call>",
            "",
            "",
            vec![zurich()],
        ),
        (
            Hermes,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}",
            "",
            "",
            vec![zurich()],
        ),
        (
            Hermes,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}\n</tool_call>\n<tool_call>\n{\"name\": \"now\"}</tool_call>",
            "",
            "",
            vec![zurich(), ("now", json!({}))],
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"</tool_call>\"}}</tool_call>",
            "",
            "",
            vec![("get_weather", json!({"city": "</tool_call>"}))],
        ),
        (
            QwenCoder,
            "Now.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
            "Now.",
            "",
            vec![zurich()],
        ),
        (
            QwenCoder,
            "<function=get_weather>\n<parameter=zip>\n8001\n</parameter>\n<parameter=city>\na\n</function> b\n\n</parameter>\n</function>",
            "",
            "",
            vec![("get_weather", json!({"zip": "8001", "city": "a\n</function> b\n"}))],
        ),
        (
            QwenCoder,
            "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n[2, {\"c\": \"}]\"}]\n</parameter>\n</function>\n</tool_call>",
            "",
            "",
            vec![("now", json!({})), sum()],
        ),
        (
            Glm,
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
            "",
            "",
            vec![zurich(), ("now", json!({}))],
        ),
        (
            Llama3,
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2}}",
            "",
            "",
            vec![zurich()],
        ),
        (
            Llama3,
            "{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2}}; {\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}}",
            "",
            "",
            both(),
        ),
        (
            Llama3,
            "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2}}",
            "",
            "",
            vec![zurich()],
        ),
        (
            Llama3,
            "<|python_tag|>brave_search.call(query=\"Zürich's (lake)\", n=3, deep=True)",
            "",
            "",
            vec![("brave_search", json!({"query": "Zürich's (lake)", "n": 3, "deep": true}))],
        ),
        (
            Llama3,
            "<|python_tag|>import math\nprint(math.pi)",
            "",
            "",
            vec![("python", json!({"code": "import math\nprint(math.pi)"}))],
        ),
        (Llama3, "<function=get_weather>{\"city\": \"Zürich\", \"days\": 2}</function>", "", "", vec![zurich()]),
        (
            FunctionTag,
            "<function=get_weather>{\"city\": \"Zürich\", \"days\": 2}</function><function=add>{\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}</function>",
            "",
            "",
            both(),
        ),
        (
            Mistral,
            "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}, \"id\": \"abcdefghi\"}, {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}}]",
            "",
            "",
            both(),
        ),
        (
            Mistral,
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}]",
            "",
            "",
            vec![zurich()],
        ),
        (
            Mistral,
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Zürich\", \"days\": 2}[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}",
            "",
            "",
            both(),
        ),
        (Mistral, "[THINK]hm [x][/THINK]Yes.", "Yes.", "hm [x]", vec![]),
        (
            DeepSeek,
            "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Zürich\", \"days\": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "I look.",
            "",
            both(),
        ),
        (
            DeepSeek,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Zürich\", \"days\": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "",
            "",
            vec![zurich()],
        ),
        (
            DeepSeek,
            "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>get_weather\n```json\n{\"city\": \"Zürich\", \"days\": 2}\n```<｜tool_call_end｜><｜tool_calls_end｜>",
            "",
            "",
            vec![zurich()],
        ),
        (
            Kimi,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Zürich\", \"days\": 2}<|tool_call_end|><|tool_call_begin|>functions.add:1<|tool_call_argument_begin|>{\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}<|tool_call_end|><|tool_calls_section_end|>",
            "",
            "",
            both(),
        ),
        (
            Functionary,
            "all\nI look.>>>get_weather\n{\"city\": \"Zürich\", \"days\": 2}>>>add\n{\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}",
            "I look.",
            "",
            both(),
        ),
        (Functionary, "get_weather\n{\"city\": \"Zürich\", \"days\": 2}", "", "", vec![zurich()]),
        (Functionary, "all\nType >>> import os\nthere.", "Type >>> import os\nthere.", "", vec![]),
        (
            FunctionaryV2,
            " get_weather\n<|content|> {\"city\": \"Zürich\", \"days\": 2}\n<|from|> assistant\n<|recipient|> add\n<|content|> {\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}",
            "",
            "",
            both(),
        ),
        (FunctionaryV2, "all\n<|content|> Yes.", " Yes.", "", vec![]),
        (
            Command,
            "<|START_THINKING|>I will look.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"add\", \"parameters\": {\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}}\n]<|END_ACTION|>",
            "",
            "I will look.",
            both(),
        ),
        (Command, "<|START_RESPONSE|>Yes.<|END_RESPONSE|>", "Yes.", "", vec![]),
        (
            CommandR,
            "Action: ```json\n[\n    {\n        \"tool_name\": \"get_weather\",\n        \"parameters\": {\"city\": \"Zürich\", \"days\": 2}\n    }\n]```",
            "",
            "",
            vec![zurich()],
        ),
        (
            CommandR,
            "Action: ```json\n[\n    {\n        \"tool_name\": \"directly-answer\",\n        \"parameters\": {}\n    }\n]```",
            "",
            "",
            vec![],
        ),
        (
            GptOss,
            "<|channel|>analysis<|message|>We look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Zürich\", \"days\": 2}<|call|>",
            "",
            "We look.",
            vec![zurich()],
        ),
        (
            GptOss,
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{\"a\": 1, \"b\": [2, {\"c\": \"}]\"}]}",
            "I look.",
            "",
            vec![sum()],
        ),
        (
            GptOss,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n",
            "Yes.",
            "Hm.",
            vec![],
        ),
        (
            Piped,
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}]<|/tool_call|>",
            "",
            "",
            vec![zurich()],
        ),
        (
            Plural,
            "<tool_calls>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}]</tool_calls>",
            "",
            "",
            vec![zurich()],
        ),
        (
            Functools,
            " functools[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}]",
            "",
            "",
            vec![zurich()],
        ),
    ]
}

#[test]
fn calls_are_read_in_each_format_however_the_text_comes() {
    for (format, text, content, thought, calls) in replies() {
        let (said, thinks, made) = in_pieces(format, text);
        assert_eq!((said.trim_end(), thinks.as_str()), (content, thought), "{format:?}: {text}");
        let made: Vec<(&str, Value)> = made
            .iter()
            .map(|(name, arguments)| {
                let value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
                (name.as_str(), value)
            })
            .collect();
        assert_eq!(made, calls, "{format:?}: {text}");
    }
}

#[test]
fn what_is_no_call_stays_text() {
    use ToolFormat::*;
    for (format, text) in [
        (Unknown, "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>\n"),
        (Hermes, "  The tag <tool_call> opens a call.\n"),
        (Hermes, "<tool_call>{\"nam\": 1}</tool_call>"),
        (Hermes, "<tool_call>{\"name\": \"a b\", \"arguments\": {}}</tool_call>"),
        (Hermes, "<tool_call>{\"name\": \"add\", \"arg"),
        (Hermes, "<tool_call>"),
        (Hermes, "a <tool"),
        (Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": [1]}</tool_call> x"),
        (QwenCoder, "<function=a b>"),
        (Llama3, "{\"name\": \"Ann\", \"parameters\": {\"age\": 3}}"),
        (Llama3, "{\"answer\": 42}"),
        (Llama3, "{\"answer\": "),
        (Llama3, "Use {\"name\": \"add\", \"parameters\": {}}."),
        (Mistral, "[TOOL_CALLS] none"),
        (DeepSeek, "<｜tool▁calls▁begin｜>oh"),
        (Functionary, "Hello there\nyou"),
        (FunctionaryV2, "Hello"),
        (GptOss, "Hello"),
        (Command, "<|START_ACTION|>no"),
        (CommandR, "Action: ```json\nno```"),
    ] {
        let (content, _, calls) = in_pieces(format, text);
        assert_eq!((content.as_str(), calls.len()), (text, 0), "{format:?}");
    }
}

#[test]
fn a_reply_that_breaks_off_gives_the_arguments_so_far() {
    let text = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\"";
    let (content, _, calls) = in_pieces(ToolFormat::Hermes, text);
    assert_eq!((content.as_str(), calls), ("", vec![("add".to_owned(), "{\"a\": 1, \"b\"".to_owned())]));
}

#[test]
fn arguments_come_before_the_call_is_complete() {
    let mut reader = ReplyReader::new(ToolFormat::Hermes, tools());
    let parts = reader.push("<tool_call>{\"name\": \"add\", \"arguments\": {\"a\":");
    assert_eq!(parts, [ReplyPart::Call("add".to_owned()), ReplyPart::Arguments("{\"a\":".to_owned())]);
}

#[test]
fn no_more_calls_than_are_wanted() {
    let text = "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"add\", \"arguments\": {\"a\": 1}}]";
    let mut reader = ReplyReader::new(ToolFormat::Mistral, tools()).at_most(1);
    assert_eq!(collect(&mut reader, &[text]).2, [("add".to_owned(), "{}".to_owned())]);
    assert_eq!(reader.n_calls(), 1);
}

#[test]
fn formats_are_told_by_what_templates_say() {
    use ToolFormat::*;
    for (source, format) in [
        ("{{ '<|im_start|>' }}", Unknown),
        ("<tool_call>\\n{\"name\": <function-name>", Hermes),
        ("<tool_call>\\n<function=example>", QwenCoder),
        ("<tool_call>{name}<arg_key>", Glm),
        ("<|start_header_id|>ipython", Llama3),
        ("<|start_header_id|> {\"name\": n, \"parameters\": p}", Llama3),
        ("[TOOL_CALLS]", Mistral),
        ("<｜tool▁calls▁begin｜>", DeepSeek),
        ("<|recipient|>all", FunctionaryV2),
        (">>>all\\n", Functionary),
        ("<|python_tag|><function=f>", FunctionTag),
        ("<|START_ACTION|>", Command),
        ("<|CHATBOT_TOKEN|> 'Action:'", CommandR),
        ("<|start|><|channel|>final<|message|>", GptOss),
        ("<|tool_calls_section_begin|>", Kimi),
    ] {
        assert_eq!(ToolFormat::of(source), format, "{source}");
    }
}

#[test]
fn a_forced_reply_is_the_arguments_of_one_function_or_names_its_own() {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"$defs": {"x": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}}});
    let one = Forced::new(ToolFormat::Hermes, &[tool("add")], false).unwrap();
    assert_eq!(one.after("…<think>\n"), "\n</think>\n\n<tool_call>\n{\"name\": \"add\", \"arguments\": ");
    assert_eq!((one.function(), one.schema()["type"].as_str()), (Some("add"), Some("object")));
    let reply = collect(&mut ReplyReader::of_forced(&one, tools()), &["{\"a\":", " 1} "]);
    assert_eq!(reply, (String::new(), String::new(), vec![("add".to_owned(), "{\"a\": 1}".to_owned())]));

    let two = Forced::new(ToolFormat::Llama3, &[tool("add"), tool("sub")], false).unwrap();
    assert_eq!((two.after("x").as_str(), two.function()), ("", None));
    let call = &two.schema()["anyOf"][1]["properties"];
    assert_eq!(call["parameters"]["$ref"], "#/$defs/function1");
    assert_eq!(two.schema()["$defs"]["function1"]["properties"]["a"]["$ref"], "#/$defs/function1/$defs/x");
    let reply = collect(&mut ReplyReader::of_forced(&two, tools()), &["{\"name\": \"sub\", \"parameters\": {}}"]);
    assert_eq!(reply.2, [("sub".to_owned(), "{}".to_owned())]);

    let several = Forced::new(ToolFormat::Mistral, &[tool("add")], true).unwrap();
    assert_eq!((several.after("x").as_str(), several.schema()["type"].as_str()), ("[TOOL_CALLS]", Some("array")));
}

const FORMATS: &[ToolFormat] = &[
    ToolFormat::Unknown,
    ToolFormat::Hermes,
    ToolFormat::QwenCoder,
    ToolFormat::Glm,
    ToolFormat::Llama3,
    ToolFormat::Mistral,
    ToolFormat::DeepSeek,
    ToolFormat::Kimi,
    ToolFormat::Functionary,
    ToolFormat::FunctionaryV2,
    ToolFormat::FunctionTag,
    ToolFormat::Command,
    ToolFormat::CommandR,
    ToolFormat::GptOss,
    ToolFormat::Piped,
    ToolFormat::Plural,
    ToolFormat::Functools,
];

/// Of these, replies are made that look like calls and often are none.
const PIECES: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "add>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "{\"name\": \"add\", \"arguments\": ",
    "{\"a\": 1}",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "name",
    "add",
    ": ",
    ", ",
    "; ",
    " ",
    "\n",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[THINK]",
    "[/THINK]",
    "<|python_tag|>",
    ".call(",
    "a=1)",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function",
    "<｜tool▁sep｜>",
    "```json\n",
    "```",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    ">>>",
    "all\n",
    "<|from|>",
    "<|recipient|>",
    "<|content|>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    "Action:",
    "<|channel|>",
    "final",
    "analysis",
    "to=functions.add",
    "<|message|>",
    "<|end|>",
    "<|start|>assistant",
    "<|tool_call|>",
    "<tool_calls>",
    "functools[",
    "é",
    "x",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_reply_reads_the_same_in_any_pieces(
        format in prop::sample::select(FORMATS),
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..14),
        cuts in prop::collection::vec(1usize..9, 1..6),
    ) {
        let text = pieces.concat();
        let whole = read(format, &[&text]);
        let mut characters = text.chars().peekable();
        let mut split: Vec<String> = Vec::new();
        for n in cuts.iter().cycle() {
            if characters.peek().is_none() {
                break;
            }
            split.push(characters.by_ref().take(*n).collect());
        }
        let split: Vec<&str> = split.iter().map(String::as_str).collect();
        prop_assert_eq!(read(format, &split), whole.clone());
        // Without a call, and without marks that a format drops or takes as a thought, nothing is lost.
        let is_plain = matches!(format, ToolFormat::Unknown | ToolFormat::Hermes | ToolFormat::QwenCoder | ToolFormat::Llama3);
        if is_plain && whole.2.is_empty() && format != ToolFormat::Hermes {
            prop_assert_eq!(whole.0, text);
        }
    }
}
