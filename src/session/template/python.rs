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

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(super) fn write_json(out: &mut dyn Write, value: &Value, indent: Option<usize>, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    let new_line = |out: &mut dyn Write, depth: usize| match indent {
        Some(width) => {
            out.write_char('\n')?;
            (0..width.checked_mul(depth).ok_or(fmt::Error)?).try_for_each(|_| out.write_char(' '))
        }
        None => Ok(()),
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None => out.write_str("null"),
        ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => write_json_text(out, value.as_str().unwrap_or_default()),
        kind @ (ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) => {
            let (open, close) = if kind == ValueKind::Map { ('{', '}') } else { ('[', ']') };
            out.write_char(open)?;
            let mut empty = true;
            for item in value.try_iter().map_err(|_| fmt::Error)? {
                out.write_str(if empty { "" } else { comma })?;
                empty = false;
                new_line(out, depth + 1)?;
                if kind == ValueKind::Map {
                    let mut key = String::new();
                    write_str(&mut key, &item)?;
                    write_json_text(out, &key)?;
                    out.write_str(": ")?;
                    write_json(out, &value.get_item(&item).unwrap_or_default(), indent, depth + 1)?;
                } else {
                    write_json(out, &item, indent, depth + 1)?;
                }
            }
            if !empty {
                new_line(out, depth)?;
            }
            out.write_char(close)
        }
        _ => Err(fmt::Error),
    }
}

fn write_json_text(out: &mut dyn Write, text: &str) -> fmt::Result {
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
            c if (c as u32) < 0x20 => write!(out, "\\u{:04x}", c as u32)?,
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
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
