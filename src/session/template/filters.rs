//! Jinja's filters and Python's methods as `transformers` has them, where the engine lacks them or does otherwise.
//!
//! Undefined values count as empty, as in Python's jinja2: `undefined | length` is 0. What can grow is bounded by `guard`,
//! which calls these. Refuses what Python refuses, but takes `none` for nothing where Python raises.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::filters as contrib;
use minijinja_contrib::pycompat::unknown_method_callback;

use super::guard::{text_of, written};
use super::python::{self, Json};

/// What a filter answers.
type Answer = Result<Value, Error>;

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", python::indent);
    environment.add_filter("string", |value: &Value| text_of(value));
    for name in ["length", "count"] {
        environment.add_filter(name, |value: Value| match value.is_undefined() {
            true => Ok(0),
            false => minijinja::filters::length(&value),
        });
    }
    environment.add_filter("first", |value: &Value| -> Answer { Ok(value.try_iter()?.next().unwrap_or_default()) });
    environment.add_filter("last", |value: &Value| -> Answer { Ok(value.try_iter()?.last().unwrap_or_default()) });
    environment.add_filter("items", |value: &Value| match value.is_undefined() {
        true => Ok(Value::from(Vec::<Value>::new())),
        false => minijinja::filters::items(value),
    });
    environment.add_filter("join", join);
    environment.add_filter("int", |value: &Value, arguments: Rest<Value>| -> Answer {
        let [default, base] = by_name(&arguments, ["default", "base"])?;
        let base = base.map_or(Ok(10), u32::try_from)?;
        Ok(whole(value, base).or(default).unwrap_or_else(|| Value::from(0)))
    });
    environment.add_filter("float", |value: &Value, arguments: Rest<Value>| -> Answer {
        let [default] = by_name(&arguments, ["default"])?;
        Ok(real(value).map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0)))
    });
    environment.add_filter("round", round);
    environment.add_filter("striptags", |text: &Value| -> Answer { Ok(Value::from(contrib::striptags(owned(text)?))) });
    environment.add_filter("wordcount", |text: &Value| contrib::wordcount(&text_of(text)?));
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", |text: &Value, width: Option<usize>| -> Answer {
        Ok(Value::from(padded(&owned(text)?, width.unwrap_or(80), ' ')))
    });
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, |text: &Value| -> Answer { Ok(Value::from(escaped(&owned(text)?))) });
    }
}

/// The text of a value as Python writes it, within the bounds.
fn owned(value: &Value) -> Result<String, Error> {
    text_of(value).map(|text| text.as_str().unwrap_or_default().to_owned())
}

fn wrong(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}

/// The arguments of a filter by their names' order, whether they are named or not; `none` counts as not given.
fn by_name<const N: usize>(arguments: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = match arguments.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Kwargs::try_from(last.clone())?),
        _ => (arguments, Kwargs::from_iter(std::iter::empty::<(&str, Value)>())),
    };
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut found = [const { None }; N];
    for (i, name) in names.iter().enumerate() {
        let value = match positional.get(i) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        found[i] = value.filter(|value| !value.is_none() && !value.is_undefined());
    }
    named.assert_all_used()?;
    Ok(found)
}

/// `transformers`' `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Value, arguments: Rest<Value>) -> Answer {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = by_name(&arguments, names)?;
    let [ascii, sorted] = [ascii, sorted].map(|flag| flag.is_some_and(|flag| flag.is_true()));
    if value.is_undefined() {
        return Err(wrong("an undefined value is no JSON"));
    }
    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => Some(owned(&text)?),
        Some(width) => {
            let width = usize::try_from(i64::try_from(width)?.max(0)).unwrap_or(0);
            Some(written(|out| (0..width).try_for_each(|_| out.write_char(' ')))?)
        }
    };
    let (item, key) = match separators {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let [item, key] = pair.as_slice() else { return Err(wrong("separators are two texts")) };
            (owned(item)?, owned(key)?)
        }
    };
    let style = Json { indent, item, key, sorted, ascii };
    written(|out| style.write(out, value, 0)).map(Value::from_safe_string)
}

/// Jinja's `join(separator, attribute)`, each element as Python writes it.
fn join(value: &Value, arguments: Rest<Value>) -> Answer {
    let [separator, attribute] = by_name(&arguments, ["d", "attribute"])?;
    let separator = separator.map_or_else(|| Ok(String::new()), |separator| owned(&separator))?;
    if value.is_none() {
        return Ok(Value::from(""));
    }
    let texts = value.try_iter()?.map(|item| match attribute.as_ref().map(Value::as_str) {
        Some(Some(path)) => {
            path.split('.').try_fold(item, |item, name| item.get_attr(name)).and_then(|item| owned(&item))
        }
        Some(None) => Err(wrong("the attribute to join by is no text")),
        None => owned(&item),
    });
    Ok(Value::from(texts.collect::<Result<Vec<_>, _>>()?.join(&separator)))
}

/// Python's `int(value, base)`, or of its float.
fn whole(value: &Value, base: u32) -> Option<Value> {
    if let Some(text) = value.as_str() {
        let text = text.trim().replace('_', "");
        let digits = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
        let sign = if text.starts_with('-') { "-" } else { "" };
        let parsed = (2..=36).contains(&base).then(|| i64::from_str_radix(&format!("{sign}{digits}"), base).ok());
        return parsed.flatten().map(Value::from).or_else(|| truncated(text.parse().ok()?));
    }
    match value.kind() {
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number | ValueKind::Bool => truncated(real(value)?),
        _ => None,
    }
}

fn truncated(number: f64) -> Option<Value> {
    (number.abs() < 9e18).then(|| Value::from(number.trunc() as i64))
}

/// Python's `float(value)`.
fn real(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => value.as_str()?.trim().replace('_', "").parse().ok(),
    }
}

/// Jinja's `round(precision, method)`: half to even, as Python's.
fn round(value: &Value, arguments: Rest<Value>) -> Answer {
    let [precision, method] = by_name(&arguments, ["precision", "method"])?;
    let precision = precision.map_or(Ok(0), i32::try_from)?;
    let number = match value.kind() {
        ValueKind::Number | ValueKind::Bool => real(value).ok_or_else(|| wrong("this number cannot be rounded"))?,
        kind => return Err(wrong(&format!("a {kind} cannot be rounded"))),
    };
    if !(-300..=300).contains(&precision) {
        return Err(wrong("a precision from -300 to 300 is expected"));
    }
    let factor = 10f64.powi(precision);
    let rounded = match method.as_ref().map_or(Some("common"), Value::as_str).unwrap_or_default() {
        "ceil" => return Ok(Value::from((number * factor).ceil() / factor)),
        "floor" => return Ok(Value::from((number * factor).floor() / factor)),
        "common" if precision < 0 => (number * factor).round_ties_even() / factor,
        "common" => format!("{number:.*}", precision.unsigned_abs() as usize).parse().unwrap_or(number),
        _ => return Err(wrong("the method to round by is common, ceil or floor")),
    };
    let is_whole = value.is_integer() || value.kind() == ValueKind::Bool;
    Ok(if is_whole { truncated(rounded).unwrap_or_else(|| value.clone()) } else { Value::from(rounded) })
}

/// Jinja's `truncate(length, killwords, end, leeway)`.
fn truncate(text: &Value, arguments: Rest<Value>) -> Answer {
    let [length, killwords, end, leeway] = by_name(&arguments, ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), usize::try_from)?;
    let leeway = leeway.map_or(Ok(5), usize::try_from)?;
    let killwords = killwords.is_some_and(|flag| flag.is_true());
    let end = end.map_or_else(|| Ok("...".to_owned()), |end| owned(&end))?;
    let text = owned(text)?;
    let kept = length.checked_sub(end.chars().count()).ok_or_else(|| wrong("length is shorter than the end"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let cut: String = text.chars().take(kept).collect();
    let cut = if killwords { &cut } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words) };
    Ok(Value::from(format!("{cut}{end}")))
}

/// Python's `str.center`: of an odd rest the larger part stands on the left where the width is odd.
fn padded(text: &str, width: usize, fill: char) -> String {
    let rest = width.saturating_sub(text.chars().count());
    let left = rest / 2 + (rest & width & 1);
    let fill = |n: usize| std::iter::repeat_n(fill, n);
    fill(left).chain(text.chars()).chain(fill(rest - left)).collect()
}

/// HTML's special characters as `markupsafe` writes them.
fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

/// Python's methods that the engine's own set lacks.
fn method(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Answer {
    let text = |i: usize| arguments.get(i).and_then(Value::as_str);
    let Some(this) = value.as_str() else {
        if let ("index", ValueKind::Seq, [wanted]) = (name, value.kind(), arguments) {
            let at = value.try_iter()?.position(|item| item == *wanted);
            return at.map(Value::from).ok_or_else(|| wrong("the value is not in the list"));
        }
        return unknown_method_callback(state, value, name, arguments);
    };
    match (name, text(0)) {
        ("removeprefix", Some(prefix)) => Ok(Value::from(this.strip_prefix(prefix).unwrap_or(this))),
        ("removesuffix", Some(suffix)) => Ok(Value::from(this.strip_suffix(suffix).unwrap_or(this))),
        ("partition", Some(mark)) if !mark.is_empty() => {
            let (before, after) = this.split_once(mark).map_or((this, None), |(before, after)| (before, Some(after)));
            Ok(list([before, after.map_or("", |_| mark), after.unwrap_or_default()]))
        }
        ("rpartition", Some(mark)) if !mark.is_empty() => {
            let (before, after) = this.rsplit_once(mark).map_or((None, this), |(before, after)| (Some(before), after));
            Ok(list([before.unwrap_or_default(), before.map_or("", |_| mark), after]))
        }
        ("rsplit", Some(mark)) if !mark.is_empty() => {
            let most = arguments.get(1).map(|most| i64::try_from(most.clone())).transpose()?.unwrap_or(-1);
            let most = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<&str> = this.rsplitn(most, mark).collect();
            parts.reverse();
            Ok(list(parts))
        }
        ("index", Some(wanted)) => {
            let at = this.find(wanted).ok_or_else(|| wrong("the text does not have what is looked for"))?;
            Ok(Value::from(this[..at].chars().count()))
        }
        ("center", None) => {
            let width = arguments.first().and_then(Value::as_usize).unwrap_or(0);
            Ok(Value::from(padded(this, width, text(1).and_then(|fill| fill.chars().next()).unwrap_or(' '))))
        }
        _ => unknown_method_callback(state, value, name, arguments),
    }
}
