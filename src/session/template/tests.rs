//! Renderings held against Python's, and hostile templates that have to end in a typed error.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::{ChatTemplate, Message, TemplateError};

fn golden() -> Vec<Json> {
    serde_json::from_str(include_str!("../../../tests/golden/chat_templates.json")).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/chat-templates/{name}.jinja"));
    let source = std::fs::read_to_string(path).unwrap();
    ChatTemplate::new(&source, "<s>", "</s>").unwrap()
}

#[test]
fn renderings_equal_those_of_python() {
    let mut differences = String::new();
    for case in golden() {
        let name = case["template"].as_str().unwrap();
        let rendered = template(name).render_with(&case["variables"]);
        let same = match (&rendered, &case["expected"]) {
            (Ok(text), expected) if expected["text"] == **text => true,
            (Err(TemplateError::Raised(message)), expected) => expected["raised"] == **message,
            (Err(TemplateError::Failed { .. }), expected) => expected["failed"] == true,
            _ => false,
        };
        if !same {
            differences += &format!(
                "{name}, {}:\n  expected {}\n  got      {rendered:?}\n",
                case["conversation"], case["expected"]
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn messages_render_like_the_same_messages_as_a_map() {
    let text = template("chatml").render(&[Message::new("user", "Hi")], true).unwrap();
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn date_comes_from_the_clock() {
    let text = ChatTemplate::new("{{ strftime_now('%Y') }}", "", "").unwrap().render(&[], true).unwrap();
    assert!(text.parse::<u32>().unwrap() >= 2025, "{text}");
}

#[test]
fn syntax_errors_name_the_line() {
    let error = ChatTemplate::new("a\n{% if %}", "", "").unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error:?}");
}

#[test]
fn failures_name_the_line() {
    let error = ChatTemplate::new("a\n\n{{ messages.x.y }}", "", "").unwrap().render(&[], true).unwrap_err();
    assert!(matches!(error, TemplateError::Failed { line: 3, .. }), "{error:?}");
}

/// Each of these would run for years, take all memory or overflow the stack in an engine without bounds.
const HOSTILE: &[(&str, &str)] = &[
    (
        "loop without end",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    ),
    ("printing without end", "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"),
    ("huge range", "{% for i in range(99999999999) %}{% endfor %}"),
    (
        "doubled string",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    ),
    ("added string", "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
    ("repeated string", "{% set n = 99999999999 %}{{ 'x' * n }}"),
    ("string repeated by the compiler", "{{ ('x' * 50000000) * 2 }}"),
    ("repeated repetition", "{% set s = 'x' * 9999999 %}{% set l = [s, s] %}{{ l | join }}{{ l | join }}"),
    (
        "squared by replace",
        "{% set ns = namespace(s='x' * 10000) %}{% for i in range(9) %}{% set ns.s = ns.s | replace('x', ns.s) %}{% endfor %}",
    ),
    (
        "squared by the method",
        "{% set ns = namespace(s='x' * 10000) %}{% for i in range(9) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
    ),
    ("joined list", "{% set s = 'x' * 1000000 %}{{ ([s] * 100000) | join(s) }}"),
    ("wide indent", "{{ ('a\n' * 1000) | indent(99999999999) }}"),
    ("wide JSON indent", "{{ {'a': 1} | tojson(indent=99999999999) }}"),
    ("wide format", "{{ '%99999999999d' | format(1) }}"),
    ("wide format method", "{{ '{:>99999999999}'.format(1) }}"),
    (
        "doubled list",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l | length }}",
    ),
    ("repeated list", "{% set n = 99999999999 %}{{ ([1] * n) | list }}"),
    (
        "list of itself twice",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l == ns.l }}",
    ),
    ("nested list", "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}"),
    ("nested map", "{% set ns = namespace(l={}) %}{% for i in range(99999) %}{% set ns.l = {'a': ns.l} %}{% endfor %}"),
    (
        "nested dict",
        "{% set ns = namespace(l={}) %}{% for i in range(99999) %}{% set ns.l = dict(a=ns.l) %}{% endfor %}",
    ),
    (
        "nested namespace",
        "{% set ns = namespace() %}{% for i in range(99999) %}{% set ns.l = namespace(a=ns) %}{{ ns }}{% endfor %}",
    ),
    ("namespace in itself", "{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}"),
    (
        "batches of batches",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = ns.l | batch(1) | list %}{% endfor %}",
    ),
    ("recursive macro", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"),
    ("macro that doubles", "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('x') }}"),
    ("recursive loop", "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
    (
        "captured raw text",
        "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}0123456789{% endfor %}{% endfor %}{% endset %}",
    ),
    (
        "deep parentheses",
        "{{ (((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))) }}",
    ),
    ("undefined attribute", "{{ nothing.at.all }}"),
    ("undefined call", "{{ nothing() }}"),
    ("attributes of Python's objects", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ("include", "{% include '/etc/passwd' %}"),
    ("import", "{% import 'os' as os %}{{ os.environ }}"),
    ("extends", "{% extends 'other' %}"),
    ("block that holds itself", "{% block a %}{{ self.a() }}{% endblock %}"),
    ("unknown filter", "{{ 1 | system }}"),
    ("zero step", "{{ [1][::0] }}"),
    ("bad date", "{{ strftime_now('%Q%!') }}"),
    ("wrong types", "{{ 1 + 'a' }}"),
    (
        "overflow",
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    ),
];

#[test]
fn hostile_templates_end_in_a_typed_error() {
    for (title, source) in HOSTILE {
        let result =
            ChatTemplate::new(source, "", "").and_then(|template| template.render(&[Message::new("user", "Hi")], true));
        assert!(result.is_err(), "{title} gave {} bytes", result.unwrap().len());
    }
}

#[test]
fn lazy_chains_end() {
    for step in ["ns.l[0:]", "ns.l | reverse", "ns.l | map('trim')", "ns.l | select", "ns.l * 1", "ns.l + []"] {
        let source = format!(
            "{{% set ns = namespace(l=['a']) %}}{{% for i in range(90000) %}}{{% set ns.l = {step} %}}{{% endfor %}}{{{{ ns.l | list }}}}"
        );
        let result = ChatTemplate::new(&source, "", "").unwrap().render(&[], true);
        assert_eq!(result.as_deref(), Ok("['a']"), "{step}");
    }
}

#[test]
fn chain_of_namespaces_is_dropped() {
    let source = "{% set ns = namespace(l=1) %}{% for i in range(90000) %}{% set n = namespace() %}\
                  {% set n.a = ns.l %}{% set ns.l = n %}{% endfor %}done";
    let result = ChatTemplate::new(source, "", "").unwrap().render(&[], true);
    assert!(matches!(result.as_deref(), Ok("done") | Err(TemplateError::Stopped(_))), "{result:?}");
}

#[test]
fn too_long_a_source_is_refused() {
    let error = ChatTemplate::new(&"x".repeat(super::MAX_SOURCE + 1), "", "").unwrap_err();
    assert!(matches!(error, TemplateError::Stopped(_)), "{error:?}");
}

/// Pieces of templates, of which random ones are made that often parse.
const PIECES: &[&str] = &[
    "{% for m in messages %}",
    "{% for i in range(999999999) %}",
    "{% endfor %}",
    "{% if m['role'] == 'user' %}",
    "{% if loop.first %}",
    "{% else %}",
    "{% endif %}",
    "{{ m.content | trim }}",
    "{{ m.content.split('a')[-1] }}",
    "{% set ns = namespace(x=[1], s='ab') %}",
    "{% set ns.x = [ns.x, ns.x] %}",
    "{% set ns.x = ns.x + ns.x %}",
    "{% set ns.s = ns.s * 99999 %}",
    "{% set ns.ns = ns %}",
    "{% macro f(a, b=3) %}",
    "{% endmacro %}",
    "{{ f(ns) }}",
    "{{ f(f(1)) ~ ns }}",
    "{{ ns.x | tojson(indent=9) }}",
    "{{ (ns.x | string)[::-1] }}",
    "{{ messages[0:99] | map(attribute='content') | join(ns.s) }}",
    "{{ 2 ** 9999 }}",
    "{{ 1 // 0 }}",
    "{{ -9223372036854775807 - 2 }}",
    "{{ raise_exception(ns.s) }}",
    "{{ strftime_now(ns.s) }}",
    "{{ '%s%%%d' | format(ns.x, 3) }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{# no end",
    "{{ '",
    "{%- raw -%}",
    "{% endraw %}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_template_ends_in_a_text_or_a_typed_error(
        pieces in prop::collection::vec(prop_oneof![
            9 => prop::sample::select(PIECES).prop_map(str::to_owned),
            1 => "\\PC{0,9}",
        ], 0..12),
        content in "\\PC{0,20}",
    ) {
        if let Ok(template) = ChatTemplate::new(&pieces.concat(), "<s>", "</s>") {
            let _ = template.render(&[Message::new("user", content), Message::new("assistant", "b")], true);
        }
    }
}

#[test]
fn expressions_equal_those_of_python() {
    let cases: Vec<Json> = serde_json::from_str(include_str!("../../../tests/golden/chat_expressions.json")).unwrap();
    let mut differences = String::new();
    for case in cases {
        let (source, expected) = (case["source"].as_str().unwrap(), &case["expected"]);
        let rendered =
            ChatTemplate::new(source, "<s>", "</s>").and_then(|template| template.render_with(&case["variables"]));
        let same = match &rendered {
            Ok(text) => expected["text"] == **text,
            Err(TemplateError::Failed { .. } | TemplateError::Syntax { .. }) => expected["failed"] == true,
            Err(_) => false,
        };
        if !same {
            differences += &format!("{source}\n  expected {expected}\n  got      {rendered:?}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// What a template makes of a conversation with a call.
fn with_call(source: &str, content: Json, arguments: Json) -> Result<String, TemplateError> {
    let call =
        serde_json::json!({"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let variables = serde_json::json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
    ]});
    ChatTemplate::new(source, "", "").unwrap().render_chat(variables.as_object().unwrap().clone())
}

#[test]
fn arguments_are_a_text_for_templates_that_need_one() {
    let object = || serde_json::json!({"a": 1});
    let call = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}CALL{% endfor %}{{ m.content or '' }}{% endfor %}";
    for (shown, expected) in [
        ("{{ c.function.arguments | tojson }}", "{\"a\": 1}"),
        ("{{ '' + c.function.arguments }}", "{\"a\": 1}"),
        ("{{ c.function.arguments }}", "{\"a\": 1}"),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        (
            "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}",
            "{\"a\": 1}",
        ),
    ] {
        let text = with_call(&call.replace("CALL", shown), Json::Null, object()).unwrap();
        assert_eq!(text, format!("Hif{expected}"), "{shown}");
    }
}

#[test]
fn a_call_is_shown_whatever_stands_beside_it() {
    let null_alone = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let text_alone = "{% for m in messages %}{{ m.content + '' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}";
    for source in [null_alone, text_alone] {
        for content in [Json::Null, Json::from("")] {
            let text = with_call(source, content.clone(), serde_json::json!({})).unwrap();
            assert_eq!(text, "Hi{\"name\": \"f\", \"arguments\": {}}", "{content}: {source}");
        }
    }
    // Where the template shows both, null stays null.
    let both = "{% for m in messages %}{{ m.content is none }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ m.content }}{% endfor %}";
    assert!(with_call(both, Json::Null, serde_json::json!({})).unwrap().starts_with("FalseHiTrue"));
}

#[test]
fn text_is_a_part_for_templates_that_show_parts_alone() {
    let parts = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}";
    let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}!{% endif %}{% endfor %}";
    for source in [parts, both] {
        let text = ChatTemplate::new(source, "", "").unwrap().render(&[Message::new("user", "Hi")], true);
        assert_eq!(text.as_deref(), Ok("Hi"), "{source}");
    }
}
