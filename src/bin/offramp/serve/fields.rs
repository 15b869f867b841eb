//! The fields of a JSON request, each taken with its type and range: an error names the field, what was found and what is
//! expected. An explicit null counts as absent, as OpenAI's clients send it, and a whole number may be written with a
//! point (`16.0`), as some languages write all numbers. A field that nobody asked for by name is refused in the end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::failure::ApiError;

/// The object of a request, or one inside of it.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Where it stands, such as `stream_options.`; empty at the top.
    path: &'a str,
    asked: Option<&'a Asked<'a>>,
}

/// Which objects of a request were looked into, and for which fields: those are the fields that are known.
#[derive(Default)]
pub struct Asked<'a> {
    names: RefCell<BTreeSet<String>>,
    objects: RefCell<Vec<(&'a str, &'a Map<String, Value>)>>,
}

impl Asked<'_> {
    /// # Errors
    /// With status 400, for a field that is none of those that were asked for and none of `harmless`.
    pub fn check(&self, harmless: &[&str]) -> Result<(), ApiError> {
        let names = self.names.borrow();
        for (path, object) in self.objects.borrow().iter() {
            for (name, _) in object.iter().filter(|(_, value)| !value.is_null()) {
                let full = format!("{path}{name}");
                if !names.contains(&full) && !harmless.contains(&full.as_str()) {
                    return Err(ApiError::unknown(&full, nearest(&full, &names)));
                }
            }
        }
        Ok(())
    }
}

/// Names that other programs have for what is offered here, which do not look alike.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("guided_grammar", "response_format"),
    ("guided_json", "response_format"),
    ("guided_regex", "response_format"),
    ("format", "response_format"),
    ("max_length", "max_tokens"),
    ("max_new_tokens", "max_tokens"),
    ("num_predict", "max_tokens"),
    ("min_length", "min_tokens"),
    ("n_probs", "logprobs"),
    ("stop_sequences", "stop"),
    ("structured_outputs", "response_format"),
];

/// What a field that is not known was probably meant to be.
fn nearest<'n>(name: &str, names: &'n BTreeSet<String>) -> Option<&'n str> {
    let meant = OTHER_NAMES.iter().find(|(other, _)| *other == name).and_then(|(_, ours)| names.get(*ours));
    let likeness = |known: &String| strsim::normalized_damerau_levenshtein(&name.to_ascii_lowercase(), known);
    let best = || names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|best| likeness(best) >= 0.6);
    // A name may be as long as a body; the comparison takes the product of both lengths.
    meant.or_else(|| if name.len() <= 64 { best() } else { None }).map(String::as_str)
}

impl<'a> Fields<'a> {
    /// # Errors
    /// When the body is no JSON object.
    pub fn of(body: &'a Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(object) => Ok(Self { object, path: "", asked: None }),
            other => Err(ApiError::bad_request(format!("the body is {}, a JSON object is expected", kind(other)))),
        }
    }

    /// As [`Fields::of`], and `asked` notes which fields are read.
    ///
    /// # Errors
    /// As [`Fields::of`].
    pub fn noted(body: &'a Value, asked: &'a Asked<'a>) -> Result<Self, ApiError> {
        let fields = Self { asked: Some(asked), ..Self::of(body)? };
        asked.objects.borrow_mut().push(("", fields.object));
        Ok(fields)
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        if let Some(asked) = self.asked {
            asked.names.borrow_mut().insert(format!("{}{name}", self.path));
        }
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, found: &Value, expected: &str) -> ApiError {
        let param = format!("{}{name}", self.path);
        let found = match found {
            Value::Number(number) => number.to_string(),
            other => kind(other).to_owned(),
        };
        ApiError::invalid(&param, format!("{param} is {found}, {expected} is expected"))
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.wrong(name, value, "true or false"));
        self.get(name).map(read).transpose()
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        let read = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(name, value, "a string"));
        self.get(name).map(read).transpose()
    }

    pub fn float(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let read = |value: &Value| {
            let number = value.as_f64().filter(|number| range.contains(number));
            let expected = || format!("a number from {} to {}", range.start(), range.end());
            number.map(|number| number as f32).ok_or_else(|| self.wrong(name, value, &expected()))
        };
        self.get(name).map(read).transpose()
    }

    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let read = |value: &Value| {
            let expected = || format!("an integer from {} to {}", range.start(), range.end());
            integer_of(value)
                .filter(|number| range.contains(number))
                .ok_or_else(|| self.wrong(name, value, &expected()))
        };
        self.get(name).map(read).transpose()
    }

    /// As [`Fields::integer`], and -1, which other servers take for "without a limit".
    pub fn integer_or_all(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        match self.get(name).and_then(integer_of) {
            Some(-1) => Ok(Some(-1)),
            _ => self.integer(name, range),
        }
    }

    pub fn array(&self, name: &str, max: usize) -> Result<Option<&'a Vec<Value>>, ApiError> {
        let read = |value: &'a Value| match value {
            Value::Array(items) if items.len() <= max => Ok(items),
            Value::Array(items) => {
                let param = format!("{}{name}", self.path);
                let message = format!("{param} has {} elements, at most {max} are expected", items.len());
                Err(ApiError::invalid(&param, message))
            }
            other => Err(self.wrong(name, other, "an array")),
        };
        self.get(name).map(read).transpose()
    }

    /// The object in a field; `path` is the field's name with a dot.
    pub fn object(&self, name: &str, path: &'a str) -> Result<Option<Fields<'a>>, ApiError> {
        let read = |value: &'a Value| match value {
            Value::Object(object) => {
                if let Some(asked) = self.asked {
                    asked.objects.borrow_mut().push((path, object));
                }
                Ok(Fields { object, path, asked: self.asked })
            }
            other => Err(self.wrong(name, other, "an object")),
        };
        self.get(name).map(read).transpose()
    }
}

/// A whole number, however it is written.
pub fn integer_of(value: &Value) -> Option<i64> {
    // Whole numbers of 64 bits with a fraction are exact up to here.
    const EXACT: f64 = (1u64 << 53) as f64;
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() <= EXACT;
    value.as_i64().or_else(|| value.as_f64().filter(whole).map(|number| number as i64))
}

/// What a JSON value is, without its content: a prompt must not come back in an error that somebody logs.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_outside_of_their_range_are_named() {
        let body = json!({"t": 3, "n": 1.5, "big": 1e300, "text": "x"});
        let fields = Fields::of(&body).unwrap();
        assert_eq!(fields.float("t", 0.0..=5.0).unwrap(), Some(3.0));
        for error in [
            fields.float("t", 0.0..=2.0).unwrap_err(),
            fields.float("text", 0.0..=2.0).unwrap_err(),
            fields.integer("n", 0..=2).unwrap_err(),
            fields.integer("big", 0..=2).unwrap_err(),
        ] {
            assert!(error.body()["error"]["message"].as_str().unwrap().contains("is expected"), "{error:?}");
        }
    }

    #[test]
    fn whole_numbers_may_have_a_point() {
        let body = json!({"a": 16.0, "b": -1.0, "c": 1e3, "d": 0.5, "e": 1e300});
        let fields = Fields::of(&body).unwrap();
        let of = |name| fields.integer(name, -5..=1000).ok().flatten();
        assert_eq!((of("a"), of("b"), of("c"), of("d"), of("e")), (Some(16), Some(-1), Some(1000), None, None));
        assert_eq!(fields.integer_or_all("b", 1..=5).unwrap(), Some(-1));
        assert!(fields.integer_or_all("a", 1..=5).is_err());
    }

    #[test]
    fn what_nobody_asked_for_is_named_with_what_it_may_have_meant() {
        let refused = |body: Value| {
            let asked = Asked::default();
            let fields = Fields::noted(&body, &asked).unwrap();
            let options = fields.object("stream_options", "stream_options.").unwrap();
            options.map(|options| options.bool("include_usage")).transpose().unwrap();
            for name in ["temperature", "max_tokens", "response_format"] {
                fields.get(name);
            }
            let error = asked.check(&["user", "stream_options.include_obfuscation"]).err()?;
            Some(error.body()["error"]["message"].as_str().unwrap().to_owned())
        };
        assert_eq!(refused(json!({"temperature": 1, "user": "x", "temprature": null})), None);
        assert_eq!(refused(json!({"stream_options": {"include_usage": true, "include_obfuscation": false}})), None);
        let message = |body| refused(body).unwrap();
        assert!(message(json!({"temprature": 1})).contains("temperature"));
        assert!(message(json!({"Temperature": 1})).contains("temperature"));
        assert!(message(json!({"max_length": 1})).contains("max_tokens"));
        assert!(message(json!({"guided_json": {}})).contains("response_format"));
        let nested = message(json!({"stream_options": {"include_usge": true}}));
        assert!(nested.contains("stream_options.include_usge") && nested.contains("stream_options.include_usage"));
        let foreign = message(json!({"zzz": 1}));
        assert!(foreign.contains("zzz") && !foreign.contains("temperature"), "{foreign}");
        assert!(message(json!({"x".repeat(1 << 20): 1})).len() < 300);
    }

    #[test]
    fn null_is_absent() {
        let body = json!({"t": null});
        assert_eq!(Fields::of(&body).unwrap().float("t", 0.0..=2.0).unwrap(), None);
        assert!(Fields::of(&json!(null)).is_err());
    }
}
