//! Values as Python writes them: `str()`, `repr()`, `json.dumps()` and `strftime`, because templates are written against them.
//! Refuses values nested deeper than any JSON message: writing is recursive.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};

/// Deepest nesting that is written.
const MAX_DEPTH: usize = 64;

/// Python's `str(value)`.
pub(super) fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value, 0),
    }
}

fn write_repr(out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::None => out.write_str("None"),
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default(), depth + 1)?;
            }
            out.write_char('}')
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (i, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        _ => write!(out, "{value}"),
    }
}

/// How JSON is written: the arguments of Python's `json.dumps`.
pub(super) struct Json {
    /// Stands once for each level at the beginning of a line; `None` for all in one line.
    pub(super) indent: Option<String>,
    /// Between elements.
    pub(super) item: String,
    /// After a key.
    pub(super) key: String,
    /// Whether keys come in their order.
    pub(super) sorted: bool,
    /// Whether other characters than ASCII's are escaped.
    pub(super) ascii: bool,
}

impl Json {
    pub(super) fn write(&self, out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
        if depth > MAX_DEPTH {
            return Err(fmt::Error);
        }
        match value.kind() {
            ValueKind::None => out.write_str("null"),
            ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_json_number(out, value),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter().map_err(|_| fmt::Error)?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.all(out, ('{', '}'), depth, keys.into_iter(), |out, key| {
                    match key.kind() {
                        ValueKind::String => self.text(out, key.as_str().unwrap_or_default())?,
                        _ => {
                            out.write_char('"')?;
                            self.write(out, &key, depth + 1)?;
                            out.write_char('"')?;
                        }
                    }
                    out.write_str(&self.key)?;
                    self.write(out, &value.get_item(&key).unwrap_or_default(), depth + 1)
                })
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter().map_err(|_| fmt::Error)?;
                self.all(out, ('[', ']'), depth, items, |out, item| self.write(out, &item, depth + 1))
            }
            _ => Err(fmt::Error),
        }
    }

    /// What is between brackets.
    fn all(
        &self,
        out: &mut dyn Write,
        (open, close): (char, char),
        depth: usize,
        items: impl Iterator<Item = Value>,
        one: impl Fn(&mut dyn Write, Value) -> fmt::Result,
    ) -> fmt::Result {
        let new_line = |out: &mut dyn Write, depth: usize| match &self.indent {
            Some(indent) => {
                out.write_char('\n')?;
                (0..depth).try_for_each(|_| out.write_str(indent))
            }
            None => Ok(()),
        };
        out.write_char(open)?;
        let mut empty = true;
        for item in items {
            out.write_str(if empty { "" } else { &self.item })?;
            empty = false;
            new_line(out, depth + 1)?;
            one(out, item)?;
        }
        if !empty {
            new_line(out, depth)?;
        }
        out.write_char(close)
    }

    fn text(&self, out: &mut dyn Write, text: &str) -> fmt::Result {
        out.write_char('"')?;
        for c in text.chars() {
            match c {
                '"' => out.write_str("\\\"")?,
                '\\' => out.write_str("\\\\")?,
                '\n' => out.write_str("\\n")?,
                '\r' => out.write_str("\\r")?,
                '\t' => out.write_str("\\t")?,
                '\u{8}' => out.write_str("\\b")?,
                '\u{c}' => out.write_str("\\f")?,
                c if (c as u32) < 0x20 || self.ascii && (c as u32) >= 0x7f => {
                    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))?;
                }
                c => out.write_char(c)?,
            }
        }
        out.write_char('"')
    }
}

fn write_json_number(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_nan() => out.write_str("NaN"),
        Ok(number) if number.is_infinite() => out.write_str(if number > 0.0 { "Infinity" } else { "-Infinity" }),
        _ => write_number(out, value),
    }
}

/// Python prefers single quotes and changes to double ones where that saves an escape.
fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if (c as u32) < 0x20 || c as u32 == 0x7f => write!(out, "\\x{:02x}", c as u32)?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// Integers as they are; floats in the shortest digits that round-trip, scientific outside 1e-4..1e16 as Python's `repr` has it.
fn write_number(out: &mut dyn Write, value: &Value) -> fmt::Result {
    if value.is_integer() {
        return write!(out, "{value}");
    }
    let number = f64::try_from(value.clone()).map_err(|_| fmt::Error)?;
    if !number.is_finite() {
        return out.write_str(if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').ok_or(fmt::Error)?;
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if number == 0.0 || (-4..16).contains(&exponent) {
        write!(out, "{number:?}")
    } else {
        write!(out, "{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    }
}

/// Python's `datetime.now().strftime(format)`.
pub(super) fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        minijinja::Error::new(
            minijinja::ErrorKind::InvalidOperation,
            format!("strftime_now does not know the format {format:?}"),
        )
    })?;
    Ok(text)
}

/// Jinja's `indent` filter. The engine's own drops a line break at the end.
pub(super) fn indent(text: &str, width: Option<usize>, first: Option<bool>, blank: Option<bool>) -> String {
    let margin = " ".repeat(width.unwrap_or(4));
    let mut indented = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        indented.push_str(if i > 0 { "\n" } else { "" });
        let wanted = if i == 0 { first.unwrap_or(false) } else { !line.is_empty() || blank.unwrap_or(false) };
        indented.push_str(if wanted { &margin } else { "" });
        indented.push_str(line);
    }
    indented
}
