//! The fields of a JSON request, each taken with its type and range: an error names the field, what was found and what is
//! expected. An explicit null counts as absent, as OpenAI's clients send it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::failure::ApiError;

/// The object of a request, or one inside of it.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Where it stands, such as `stream_options.`; empty at the top.
    path: &'a str,
}

impl<'a> Fields<'a> {
    /// # Errors
    /// When the body is no JSON object.
    pub fn of(body: &'a Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(object) => Ok(Self { object, path: "" }),
            other => Err(ApiError::bad_request(format!("the body is {}, a JSON object is expected", kind(other)))),
        }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
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
            let number = value.as_i64().filter(|number| range.contains(number));
            number.ok_or_else(|| self.wrong(name, value, &expected()))
        };
        self.get(name).map(read).transpose()
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
            Value::Object(object) => Ok(Fields { object, path }),
            other => Err(self.wrong(name, other, "an object")),
        };
        self.get(name).map(read).transpose()
    }
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
    fn null_is_absent() {
        let body = json!({"t": null});
        assert_eq!(Fields::of(&body).unwrap().float("t", 0.0..=2.0).unwrap(), None);
        assert!(Fields::of(&json!(null)).is_err());
    }
}
