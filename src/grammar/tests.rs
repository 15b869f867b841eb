//! Grammars and schemas from strangers: what is kept, what is refused by name, and that every text ends well.

use std::sync::Arc;

use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::{Map, Value, json};

use super::{Grammar, GrammarError, Matcher, Tokens};

/// What a model that picks among all tokens alike writes, and whether it ended by itself.
fn written(grammar: &Grammar, tokens: &Arc<Tokens>, seed: u64, most: usize) -> Result<(Vec<u8>, bool), GrammarError> {
    let mut random = seed.wrapping_mul(2).wrapping_add(1);
    let mut matcher = Matcher::new(grammar, tokens, &|_| None)?;
    let mut text = Vec::new();
    for _ in 0..most {
        matcher.prepare()?;
        let allowed: Vec<usize> = (0..=256).filter(|&token| matcher.allows(token)).collect();
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let n = allowed.len().max(1) as u64;
        match allowed.get(((random >> 20) % n) as usize) {
            None => break,
            Some(256) => return Ok((text, true)),
            Some(&token) => {
                matcher.accept(token)?;
                text.push(token as u8);
            }
        }
    }
    Ok((text, false))
}

/// The 256 bytes, and an end.
fn bytes() -> Arc<Tokens> {
    let words = (0..=255u8).map(|byte| vec![byte]).chain([Vec::new()]).collect();
    let ends = (0..=256).map(|token| token == 256).collect();
    Arc::new(Tokens::new(words, ends).unwrap())
}

fn gbnf() -> Vec<String> {
    let deep = |n: usize| format!("root ::= {}\"a\"{}", "(".repeat(n), ")".repeat(n));
    vec![
        r#"root ::= "a"{5,2}"#.to_owned(),
        r#"root ::= "a"{99999999999999999999}"#.to_owned(),
        r#"root ::= "a"{2001}"#.to_owned(),
        r"root ::= [z-a]".to_owned(),
        "root ::= [".to_owned(),
        "root ::= \"\\x".to_owned(),
        "root ::= missing".to_owned(),
        "nothing ::= \"a\"".to_owned(),
        String::new(),
        deep(60),
        deep(60_000),
        "(".repeat(100_000),
        format!("root ::= {}", "[a]*".repeat(60_000)),
        format!("root ::= \"{}\"", "ab".repeat(4_000)),
        format!("root ::= \"{}\"", "ab".repeat(2_000_000)),
        format!("root ::= {}", vec!["\"a\" root"; 200].join(" | ")),
        format!("root ::= {}", vec!["\"ab\""; 2_000].join(" | ")),
        format!(
            "root ::= r0\n{}",
            (0..1_000).map(|i| format!("r{i} ::= \"x\" r{} | [a-z]\n", (i + 1) % 1_000)).collect::<String>()
        ),
        format!("root ::= {}", (0..900).map(|i| format!("[^\\u{:04X}]", 0x100 + i)).collect::<Vec<_>>().join(" ")),
        r#"root ::= .* "a" .{300} "b""#.to_owned(),
        r#"root ::= "a" root "b" | "a" root "c" | "a" root | root root | """#.to_owned(),
        "root ::= root root | [a-z ]".to_owned(),
        "root ::= root".to_owned(),
        r#"root ::= (((("a"?){2000} "b"?){2000} [a-z]*){2000} root?){2000}"#.to_owned(),
        "root ::= ([a-z]? [b-x]? .?){2000} root?".to_owned(),
    ]
}

fn schemas() -> Vec<Value> {
    let many = |n: usize, value: &dyn Fn(usize) -> (String, Value)| (0..n).map(value).collect::<Map<_, _>>();
    let choices = |n: usize| {
        let object =
            |i| json!({"type": "object", "properties": many(1, &|_| (format!("a{i}"), json!({"type": "string"})))});
        json!({"anyOf": (0..n).map(object).collect::<Vec<_>>()})
    };
    let tree = json!({"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}});
    let mut deep = json!({"type": "string"});
    for _ in 0..40 {
        deep = json!({"type": "array", "items": deep});
    }
    vec![
        json!({"type": "string", "minLength": 5, "maxLength": 2}),
        json!({"type": "array", "minItems": 5, "maxItems": 2}),
        json!({"minProperties": 5, "maxProperties": 2}),
        json!({"minimum": 5, "maximum": 2}),
        json!({"exclusiveMinimum": 2, "maximum": 2}),
        json!({"pattern": "^a{5,2}$"}),
        json!({"pattern": "^((a{1000}){1000}){1000}$"}),
        json!({"pattern": "(".repeat(1_000)}),
        json!({"pattern": "a{99999999999}"}),
        json!({"type": "string", "maxLength": 4_000_000_000u64}),
        json!({"type": "array", "minItems": 1e300}),
        json!({"type": "string", "pattern": "a.{400}b"}),
        json!({"type": "array", "items": {"type": "string", "pattern": "(a.{50}b.{50}|b.{60}a.{70})c"}}),
        json!({"type": "array", "items": {"type": "string", "minLength": 19_000, "maxLength": 20_000}}),
        json!({"type": "array", "minItems": 2_000, "items": {"type": "array", "minItems": 2_000, "items": {"minLength": 2_000}}}),
        json!({"type": "string", "pattern": format!("^{}$", r"\W\S\w".repeat(20))}),
        json!({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}, {"multipleOf": 983}]}),
        json!({"type": "integer", "multipleOf": 1_000}),
        json!({"type": "object", "properties": many(500, &|i| (format!("p{i}"), json!({"type": "string", "pattern": "x.{30}y"})))}),
        json!({"type": "object", "properties": many(500, &|i| (format!("p{i}"), json!({})))}),
        json!({"type": "object", "patternProperties": many(60, &|i| (format!("^a{{{i}}}b"), json!({"type": "integer"})))}),
        json!({"allOf": [choices(60), choices(60)]}),
        json!({"allOf": [choices(20), choices(20), choices(20), choices(20)]}),
        json!({"allOf": [choices(10), choices(10)]}),
        json!({"oneOf": choices(200)["anyOf"]}),
        json!({"enum": (0..500).map(|i| format!("v{i}{}", "x".repeat(1_900))).collect::<Vec<_>>()}),
        json!({"enum": (0..5_000).collect::<Vec<_>>()}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
        json!({"allOf": [{"$ref": "#/$defs/t"}, {"properties": {"l": {"$ref": "#/$defs/t"}}}], "$defs": {"t": tree}}),
        json!({"$defs": {"t": tree}, "$ref": "#/$defs/t"}),
        json!({"x-guidance": {"whitespace_pattern": "(a{1000}){1000}"}}),
        deep,
    ]
}

#[test]
fn every_hostile_text_ends_in_an_error_or_can_be_followed() {
    let tokens = bytes();
    for text in gbnf() {
        let _ = Grammar::gbnf(&text).map(|grammar| written(&grammar, &tokens, 1, 20));
    }
    for schema in schemas() {
        let _ = Grammar::json_schema(&schema).map(|grammar| written(&grammar, &tokens, 1, 20));
    }
}

#[test]
fn bounds_the_wrong_way_round_are_named() {
    for (schema, word) in [
        (json!({"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
        (json!({"type": "array", "minItems": 5, "maxItems": 2}), "minItems"),
        (json!({"pattern": "^a{5,2}$"}), "pattern"),
        (json!({"items": {"properties": {"a": {"minimum": 5, "maximum": 2}}}}), "#/items/properties/a"),
    ] {
        let error = Grammar::json_schema(&schema).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let error = Grammar::gbnf("# a comment\nroot ::= \"a\"{5,2}").unwrap_err();
    assert!(matches!(error, GrammarError::Syntax { line: 2, .. }), "{error}");
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    for (schema, word) in [
        (json!({"uniqueItems": true}), "uniqueItems"),
        (json!({"contains": {}}), "contains"),
        (json!({"not": {}}), "not"),
        (json!({"if": {}, "then": {}}), "if"),
        (json!({"propertyNames": {"pattern": "a"}}), "propertyNames"),
        (json!({"dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (json!({"unevaluatedItems": false}), "unevaluatedItems"),
        (json!({"allOf": [{}], "unevaluatedProperties": false}), "unevaluatedProperties"),
        (json!({"minProperties": 3}), "minProperties"),
        (json!({"multipleOf": 0.01}), "multipleOf"),
        (json!({"format": "idn-email"}), "format"),
        (json!({"pattern": "(?=a)"}), "pattern"),
        (json!({"pattern": r"\bword\b"}), "pattern"),
        (json!({"pattern": r"(a)\1"}), "pattern"),
        (json!({"patternProperties": {"(?!a)": {}}}), "patternProperties"),
        (json!({"minimun": 3}), "minimun"),
        (json!({"properties": {"a": {"minimun": 3}}}), "#/properties/a"),
        (json!({"minimum": "3"}), "minimum"),
        (json!({"maxLength": -1}), "maxLength"),
        (json!({"type": "text"}), "type"),
        (json!({"required": "a"}), "required"),
        (json!({"enum": []}), "enum"),
        (json!({"const": 9007199254740993u64}), "const"),
        (json!({"$ref": "https://example.com/schema"}), "$ref"),
        (json!({"$ref": "#/$defs/none"}), "$ref"),
        (json!({"nullable": true, "type": "string"}), "nullable"),
        (json!({"oneOf": [{"type": "number"}, {"minimum": 2}]}), "oneOf"),
        (json!([]), "schema"),
    ] {
        let error = Grammar::json_schema(&schema).unwrap_err().to_string();
        assert!(error.contains(word), "{schema}: {error}");
    }
}

#[test]
fn what_means_nothing_for_a_reply_is_accepted() {
    for schema in [
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "a", "title": "A", "description": "b"}),
        json!({"type": "integer", "format": "int32", "default": 3, "examples": [1], "deprecated": true, "x-order": 1}),
        json!({"uniqueItems": false, "nullable": false, "readOnly": true, "contentMediaType": "text/plain"}),
        json!({"$defs": {"unused": {"not": {}}}, "type": "string"}),
        json!({"type": "object", "properties": {"next": {"$ref": "#"}}}),
        json!({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}),
        json!({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {"propertyName": "kind"}, "$defs": {
            "cat": {"type": "object", "properties": {"kind": {"const": "cat", "type": "string"}}, "required": ["kind"]},
            "dog": {"type": "object", "properties": {"kind": {"const": "dog", "type": "string"}}, "required": ["kind"]}}}),
        json!({"type": "object", "properties": {"enum": {"type": "string"}, "$ref": {"type": "string"}, "allOf": {}}}),
        json!({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": false}),
        json!(true),
    ] {
        Grammar::json_schema(&schema).unwrap_or_else(|error| panic!("{schema}: {error}"));
    }
}

#[test]
fn gbnf_means_what_llama_cpp_means() {
    let tokens = bytes();
    let accepts = |grammar: &str, text: &str| {
        let mut matcher = Matcher::new(&Grammar::gbnf(grammar).unwrap(), &tokens, &|_| None).unwrap();
        let follows = text.bytes().all(|byte| matcher.accept(byte.into()).is_ok());
        follows && matcher.prepare().is_ok() && matcher.allows(256)
    };
    let deep = "a".repeat(200) + &"c".repeat(200);
    for (grammar, yes, no) in [
        (r#"root ::= "yes" | "no""#, ["yes", "no"], ["y", "yesno"]),
        // No longest match: what is read first may be the shorter one.
        (r#"root ::= ("a" | "ab") "bc""#, ["abc", "abbc"], ["ab", "abbbc"]),
        (r#"root ::= "(" root ")" | "x"?"#, ["((x))", ""], ["((x)", "xx"]),
        (r#"root ::= "a"*"#, ["", "aaa"], ["b", "ab"]),
        ("root ::= a b # both\na ::= \"x\" a |\n \"\"\nb ::= [^a-z\u{e9}]+", ["xxZ", "Z\u{e8}"], ["xx", "\u{e9}"]),
        (r#"root ::= "a" root "b" | "a" root "c" | """#, ["aabc", &deep], ["aab", "b"]),
        (r"root ::= [a\-\]]{2,3} .", ["a-]", "]]]x"], ["a", "a-"]),
    ] {
        yes.iter().for_each(|text| assert!(accepts(grammar, text), "{grammar} does not accept {text:?}"));
        no.iter().for_each(|text| assert!(!accepts(grammar, text), "{grammar} accepts {text:?}"));
    }
}

#[test]
fn a_schema_keeps_what_it_says() {
    let tokens = bytes();
    let accepts = |schema: &Value, text: &str| {
        let mut matcher = Matcher::new(&Grammar::json_schema(schema).unwrap(), &tokens, &|_| None).unwrap();
        let follows = text.bytes().all(|byte| matcher.accept(byte.into()).is_ok());
        follows && matcher.prepare().is_ok() && matcher.allows(256)
    };
    for (schema, yes, no) in [
        (json!({"type": "number", "maximum": -1}), "-1.5", "-03911170"),
        (json!({"type": "string", "pattern": "^.{3}$"}), r#""ab\\""#, r#""ab\""#),
        (json!({"type": "string", "pattern": "^\"a\"$"}), r#""\"a\"""#, r#"""a"""#),
        (json!({"type": "string", "pattern": "b"}), "\"abc\"", "\"ac\""),
        (json!({"properties": {"foo": {"type": "integer"}}, "type": "object"}), r#"{"foo": 1}"#, r#"{"\u0066oo":"x"}"#),
        (json!({"type": "object", "properties": {"next": {"$ref": "#"}}}), r#"{"next":{"next":{}}}"#, r#"{"next":1}"#),
        (json!({"format": "date"}), "\"2024-02-29\"", "\"2023-02-29\""),
        (json!({"format": "ipv4"}), "\"127.0.0.1\"", "\"256.0.0.1\""),
        (json!({"type": "integer", "multipleOf": 7}), "49", "50"),
        (json!({}), "[1,{\"a\":null}]", "1234567890123456"),
    ] {
        assert!(accepts(&schema, yes), "{schema} does not accept {yes}");
        assert!(!accepts(&schema, no), "{schema} accepts {no}");
    }
}

const PATTERNS: &[&str] = &[
    "^a+b?$",
    "x",
    r"^\d{2,4}-\w+$",
    "^.{3}$",
    "^\"a\"$",
    r"\s",
    "^[^a-z]{1,5}$",
    "^(foo|ba[rz])+?$",
    "(a|b)$",
    r"^\W\S\D$",
    r"[\d.-]+",
    r"^\u00e9?\x41",
    "^$",
    r"\\",
    r"^[\]\[^-]+$",
    "a{2,}$",
    r"^[a-c]{0,3}?\/$",
];
const NAMES: &[&str] = &["a", "b", "foo", "é", "x y", "a\"b", "n\n"];

struct Writer(TestRng);

impl Writer {
    fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn maybe(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn literal(&mut self) -> Value {
        self.one(&[
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(2.5),
            json!(""),
            json!("é\n\t\"\\/"),
            json!([1, "a"]),
            json!({"k": 1}),
            json!([]),
            json!({}),
            json!("b c"),
        ])
    }

    fn numbers(&mut self) -> Value {
        let mut schema = Map::new();
        schema.insert("type".to_owned(), self.one(&[json!("integer"), json!("number"), json!(["integer", "null"])]));
        let all = [-12345.0, -3.0, -2.5, -1.0, -0.001, 0.0, 0.5, 1.0, 2.0, 5.0, 7.0, 99.99, 1e6];
        let (low, high) = (self.below(all.len()), self.below(all.len()));
        if self.maybe(50) {
            let name = self.one(&["minimum", "exclusiveMinimum"]);
            schema.insert(name.to_owned(), json!(all[low.min(high)]));
        }
        if self.maybe(50) {
            let name = self.one(&["maximum", "exclusiveMaximum"]);
            schema.insert(name.to_owned(), json!(all[low.max(high)]));
        }
        if self.maybe(30) {
            schema.insert("multipleOf".to_owned(), self.one(&[json!(1), json!(2), json!(7), json!(100), json!(0.5)]));
        }
        schema.into()
    }

    fn texts(&mut self) -> Value {
        let mut schema = Map::from_iter([("type".to_owned(), json!("string"))]);
        if self.maybe(40) {
            schema.insert("minLength".to_owned(), json!(self.below(4)));
        }
        if self.maybe(60) {
            schema.insert("maxLength".to_owned(), json!(3 + self.below(6)));
        }
        if self.maybe(50) {
            schema.insert("pattern".to_owned(), json!(self.one(PATTERNS)));
        }
        if self.maybe(20) {
            schema.insert("format".to_owned(), json!(self.one(&["date", "email", "ipv4", "ipv6", "uuid"])));
        }
        schema.into()
    }

    fn schemas(&mut self, depth: usize, most: usize) -> Vec<Value> {
        (0..1 + self.below(most)).map(|_| self.schema(depth)).collect()
    }

    fn array(&mut self, depth: usize) -> Value {
        let mut schema = json!({"type": "array", "items": self.schema(depth), "maxItems": 1 + self.below(3)});
        if self.maybe(30) {
            schema["prefixItems"] = self.schemas(depth, 2).into();
        }
        if self.maybe(40) {
            schema["minItems"] = json!(self.below(2));
        }
        schema
    }

    fn object(&mut self, depth: usize) -> Value {
        let mut schema = json!({"type": "object", "properties": {}});
        for _ in 0..self.below(4) {
            let name = self.one(NAMES);
            schema["properties"][name] = self.schema(depth);
        }
        if self.maybe(50) {
            let names: std::collections::BTreeSet<_> = (0..self.below(3)).map(|_| self.one(NAMES)).collect();
            schema["required"] = json!(names);
        }
        if self.maybe(60) {
            schema["additionalProperties"] = if self.maybe(70) { json!(false) } else { self.schema(depth) };
        }
        if self.maybe(20) {
            let pattern = self.one(&["^a", "^x", "b$"]);
            schema["patternProperties"] = json!({pattern: self.schema(depth)});
        }
        if self.maybe(20) {
            schema["minProperties"] = json!(self.below(3));
        }
        schema
    }

    fn schema(&mut self, depth: usize) -> Value {
        match self.below(if depth > 0 { 11 } else { 6 }) {
            0 => self.one(&[json!({"type": "null"}), json!({"type": "boolean"}), json!({"type": ["string", "null"]})]),
            1 => self.numbers(),
            2 | 3 => self.texts(),
            4 => json!({"enum": (0..1 + self.below(3)).map(|_| self.literal()).collect::<Vec<_>>()}),
            5 => json!({"const": self.literal()}),
            6 => self.array(depth - 1),
            7 | 8 => self.object(depth - 1),
            9 => {
                let name = self.one(&["anyOf", "oneOf"]);
                json!({name: self.schemas(depth - 1, 3)})
            }
            _ => {
                let mut schema = json!({"allOf": self.schemas(depth - 1, 2)});
                if self.maybe(40)
                    && let (Value::Object(to), Value::Object(from)) = (&mut schema, self.schema(depth - 1))
                {
                    from.into_iter().for_each(|(name, value)| _ = to.entry(name).or_insert(value));
                }
                schema
            }
        }
    }
}

#[test]
fn whatever_the_schema_a_finished_text_is_json() {
    let tokens = bytes();
    let mut writer = Writer(TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (mut n_kept, mut n_finished) = (0, 0);
    for seed in 0..300 {
        let schema = writer.schema(3);
        let Ok(grammar) = Grammar::json_schema(&schema) else { continue };
        n_kept += 1;
        let (text, ended) = written(&grammar, &tokens, seed, 600).unwrap_or_else(|error| panic!("{schema}: {error}"));
        if ended {
            n_finished += 1;
            let found = serde_json::from_slice::<Value>(&text);
            assert!(found.is_ok(), "{schema} made {:?}", String::from_utf8_lossy(&text));
        }
    }
    assert!(n_kept > 150 && n_finished > 75, "{n_kept} schemas kept, {n_finished} texts finished");
}
