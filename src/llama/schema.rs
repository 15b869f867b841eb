//! From a JSON schema to the grammar that a reply must follow, by llama.cpp's own converter.
//!
//! A schema may come from a stranger over the network. The converter recurses with the schema's depth and with the number
//! of an object's properties, matches names with a recursive `std::regex`, and multiplies bounds, so that all of these are
//! bounded before it sees the schema. It refuses a schema beyond the bounds, and one that the converter refuses.

use serde_json::Value;

use crate::error::{Error, LlamaLog, Result};

/// How deep a schema may nest.
const MAX_DEPTH: usize = 32;
/// Values of all kinds in a schema.
const MAX_VALUES: usize = 8192;
/// Properties of one object, alternatives of one choice.
const MAX_BRANCHES: usize = 256;
/// Bytes of a name or a text in it.
const MAX_TEXT: usize = 2048;
/// Bytes of a name: of a property, or of a definition.
const MAX_NAME: usize = 128;
/// `minItems`, `maxLength` and the like. llama.cpp's grammars repeat no more than 2000 times.
const MAX_REPEAT: u64 = 2000;
/// Stack of the thread that converts; the bounds above need a small part of it.
const STACK: usize = 64 << 20;

/// Keys whose number is how often something repeats.
const REPEATS: &[&str] = &["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// A GBNF grammar with the root rule `root` for texts that are JSON of this schema.
///
/// # Errors
/// [`Error::InvalidValue`] for a schema that is larger or deeper than is accepted, [`Error::Grammar`] for one that
/// llama.cpp cannot express.
pub fn json_schema_grammar(schema: &Value) -> Result<String> {
    let mut n_values = 0;
    check(schema, MAX_DEPTH, &mut n_values).map_err(|(found, expected)| Error::InvalidValue {
        name: "JSON schema",
        found,
        expected,
    })?;
    let text = schema.to_string();
    let refused = |reason: String| Error::Grammar { log: LlamaLog(vec![reason]) };
    let convert = move || llama_cpp_2::json_schema_to_grammar(&text);
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(convert);
    let thread = thread.map_err(|error| refused(format!("no thread to convert the schema on: {error}")))?;
    match thread.join() {
        Ok(Ok(grammar)) => Ok(grammar),
        Ok(Err(_)) => Err(refused("the JSON schema has something that llama.cpp cannot express".to_owned())),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What was found, and what is accepted.
type Excess = (String, &'static str);

fn check(value: &Value, depth: usize, n_values: &mut usize) -> Result<(), Excess> {
    *n_values += 1;
    if *n_values > MAX_VALUES {
        return Err(("a schema of more than 8192 values".to_owned(), "smaller"));
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(("nested more than 32 levels deep".to_owned(), "less deep"));
    };
    match value {
        Value::String(text) if text.len() > MAX_TEXT => {
            Err((format!("one with a text of {} bytes", text.len()), "of texts of at most 2048 bytes"))
        }
        Value::Array(items) if items.len() > MAX_BRANCHES => {
            Err((format!("one with a list of {} elements", items.len()), "of lists of at most 256 elements"))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check(item, depth, n_values)),
        Value::Object(fields) if fields.len() > MAX_BRANCHES => {
            Err((format!("one with an object of {} fields", fields.len()), "of objects of at most 256 fields"))
        }
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            if name.len() > MAX_NAME {
                return Err((format!("one with a name of {} bytes", name.len()), "of names of at most 128 bytes"));
            }
            if REPEATS.contains(&name.as_str()) && field.is_number() && field.as_u64().is_none_or(|n| n > MAX_REPEAT) {
                return Err((format!("one with {name} {field}"), "of repetitions from 0 to 2000"));
            }
            check(field, depth, n_values)
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_becomes_a_grammar() {
        let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]});
        let grammar = json_schema_grammar(&schema).unwrap();
        assert!(grammar.contains("root ::=") && grammar.contains("age"), "{grammar}");
    }

    #[test]
    fn excess_is_refused_before_llama_cpp_sees_it() {
        let mut deep = json!({"type": "string"});
        for _ in 0..40 {
            deep = json!({"type": "array", "items": deep});
        }
        let many: serde_json::Map<_, _> = (0..300).map(|i| (i.to_string(), json!({}))).collect();
        for (schema, word) in [
            (deep, "deep"),
            (json!({"type": "object", "properties": many}), "300 fields"),
            (json!({"type": "array", "minItems": 1_000_000_000}), "minItems"),
            (json!({"type": "string", "maxLength": -1}), "maxLength"),
            (json!({"properties": {"x".repeat(200): {}}}), "200 bytes"),
            (json!({"const": "y".repeat(5000)}), "5000 bytes"),
            (json!({"enum": (0..1000).collect::<Vec<_>>()}), "1000 elements"),
        ] {
            let error = json_schema_grammar(&schema).unwrap_err();
            assert!(matches!(error, Error::InvalidValue { .. }) && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn what_llama_cpp_cannot_express_is_a_grammar_error() {
        let error = json_schema_grammar(&json!({"$ref": "#/$defs/none"})).unwrap_err();
        assert!(matches!(error, Error::Grammar { .. }), "{error}");
    }

    #[test]
    fn a_schema_at_the_bounds_is_converted() {
        let names: serde_json::Map<_, _> = (0..256).map(|i| (format!("p{i}"), json!({}))).collect();
        json_schema_grammar(&json!({"type": "object", "properties": names})).unwrap();
    }
}
