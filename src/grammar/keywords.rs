//! What the keywords of a JSON schema may be, one by one: types, numbers, counts, formats, literal values.

use serde_json::{Map, Value, json};

use super::error::GrammarError;
use super::schema::Place;

/// Keywords that say nothing about which texts are valid.
pub(super) const ANNOTATIONS: &[&str] = &[
    "$anchor",
    "$comment",
    "$id",
    "$schema",
    "$vocabulary",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "default",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "externalDocs",
    "id",
    "readOnly",
    "title",
    "writeOnly",
    "xml",
];

/// Keywords of the specification that a grammar cannot keep.
pub(super) const KNOWN: &[&str] = &[
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "nullable",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "uniqueItems",
];

const TYPES: &[&str] = &["null", "boolean", "integer", "number", "string", "array", "object"];
/// Formats that are kept.
const FORMATS: &[&str] = &["date", "date-time", "email", "hostname", "ipv4", "ipv6", "time", "uuid"];
/// Without leap seconds, which are valid at few times.
const TIME: &str =
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
/// Short enough, with single hyphens inside.
const HOST: &str = r"(?:[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20})?(?:\.[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20})?){0,4})";
const MAILBOX: &str = r"(?:[A-Za-z0-9_+-]{1,24}(?:\.[A-Za-z0-9_+-]{1,16}){0,2})";
/// Pairs of a lowest and a highest.
const PAIRS: &[(&str, &str)] = &[
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
    ("minimum", "exclusiveMaximum"),
    ("exclusiveMinimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
];
/// Bounds of numbers: all of these are exact, whichever kind of number a program reads them into.
const MAX_NUMBER: f64 = 1e15;
const MIN_FRACTION: f64 = 1e-9;
/// `maxLength` and the like.
const MAX_LENGTH: u64 = 20_000;
const MAX_ITEMS: u64 = 2_000;
const MAX_MULTIPLE: u64 = 1_000;

pub(super) fn types(value: &Value, place: &Place<'_>) -> Result<Value, GrammarError> {
    let names: Vec<&Value> = match value {
        Value::Array(names) => names.iter().collect(),
        one => vec![one],
    };
    let is_type = |name: &&Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    if names.is_empty() || !names.iter().all(is_type) {
        return Err(place.wrong(
            "type",
            value,
            "one or several of null, boolean, integer, number, string, array, object",
        ));
    }
    Ok(value.clone())
}

/// A bound of numbers.
pub(super) fn number(keyword: &str, value: &Value, place: &Place<'_>) -> Result<Value, GrammarError> {
    let expected = "a number of at most 15 digits, below 1e15 and no nearer to 0 than 1e-9";
    let number = value.as_f64().filter(|number| is_plain(*number));
    number.map(|_| value.clone()).ok_or_else(|| place.wrong(keyword, value, expected))
}

/// True for numbers that every program reads as the same one.
fn is_plain(number: f64) -> bool {
    let digits = format!("{number:e}");
    let digits = digits.split('e').next().unwrap_or_default().chars().filter(char::is_ascii_digit).count();
    number == 0.0 || (number.abs() <= MAX_NUMBER && number.abs() >= MIN_FRACTION && digits <= 15)
}

/// The keyword's value, and what it adds to the product of all of them.
pub(super) fn multiple(value: &Value, place: &Place<'_>) -> Result<(Value, u64), GrammarError> {
    let whole = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 1.0);
    if let Some(whole) = whole.filter(|whole| *whole <= MAX_MULTIPLE as f64) {
        return Ok((json!(whole as u64), whole as u64));
    }
    // Validators divide in binary, where other fractions have remainders that they should not have.
    let fraction = [0.5, 0.25, 0.125].into_iter().find(|fraction| value.as_f64() == Some(*fraction));
    let expected = "an integer from 1 to 1000, or 0.5, 0.25 or 0.125";
    fraction.map(|fraction| (json!(fraction), 1000)).ok_or_else(|| place.wrong("multipleOf", value, expected))
}

pub(super) fn count(keyword: &str, value: &Value, place: &Place<'_>) -> Result<Value, GrammarError> {
    let (limit, expected) = match keyword.ends_with("Length") {
        true => (MAX_LENGTH, "an integer from 0 to 20000"),
        false => (MAX_ITEMS, "an integer from 0 to 2000"),
    };
    let number = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0 && *number <= limit as f64);
    number.map(|number| json!(number as u64)).ok_or_else(|| place.wrong(keyword, value, expected))
}

/// What a format becomes.
pub(super) enum Format {
    /// It says nothing about texts, such as `int32`.
    Nothing,
    /// `llguidance` has it.
    Kept,
    /// This pattern, for whole texts.
    Pattern(String),
}

pub(super) fn format(fields: &Map<String, Value>, value: &Value, place: &Place<'_>) -> Result<Format, GrammarError> {
    let name = value.as_str().ok_or_else(|| place.wrong("format", value, "a text"))?;
    let has_text = match fields.get("type") {
        Some(Value::String(one)) => one == "string",
        Some(Value::Array(several)) => several.iter().any(|one| one == "string"),
        _ => true,
    };
    match name {
        _ if !has_text => Ok(Format::Nothing),
        "ipv4" | "ipv6" | "uuid" => Ok(Format::Kept),
        "date" => Ok(Format::Pattern(date())),
        "time" => Ok(Format::Pattern(TIME.to_owned())),
        "date-time" => Ok(Format::Pattern(format!("(?:{})T{TIME}", date()))),
        "hostname" => Ok(Format::Pattern(HOST.to_owned())),
        "email" => Ok(Format::Pattern(format!("{MAILBOX}@{HOST}"))),
        _ => Err(place.unsupported("format", format!("it is none of {}", FORMATS.join(", ")))),
    }
}

/// A day that exists: in a year after 0, with the 29th of February in leap years alone.
fn date() -> String {
    const YEAR: &str = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)";
    const FOURTH: &str = "(?:0[48]|[2468][048]|[13579][26])";
    const DAYS: &str = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)\
                        |02-(?:0[1-9]|1[0-9]|2[0-8]))";
    format!("(?:{YEAR}-{DAYS}|(?:[0-9]{{2}}{FOURTH}|{FOURTH}00)-02-29)")
}

/// The names of `required`.
pub(super) fn names(value: &Value, place: &Place<'_>) -> Result<Value, GrammarError> {
    let names = value.as_array().filter(|names| names.iter().all(Value::is_string));
    let names = names.ok_or_else(|| place.wrong("required", value, "a list of names"))?;
    names.iter().filter_map(Value::as_str).try_for_each(|name| writable(name, "required", place))?;
    Ok(value.clone())
}

/// A value that a reply may have to be equal to.
pub(super) fn literal(value: &Value, keyword: &str, place: &Place<'_>) -> Result<(), GrammarError> {
    match value {
        Value::Number(number) if !number.as_f64().is_some_and(is_plain) => {
            Err(place.wrong(keyword, value, "of numbers of at most 15 digits, below 1e15 and no nearer to 0 than 1e-9"))
        }
        Value::String(text) => writable(text, keyword, place),
        Value::Array(items) => items.iter().try_for_each(|item| literal(item, keyword, place)),
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            writable(name, keyword, place)?;
            literal(field, keyword, place)
        }),
        _ => Ok(()),
    }
}

/// A text in which every character has exactly one way of being written in a reply.
pub(super) fn writable(text: &str, keyword: &str, place: &Place<'_>) -> Result<(), GrammarError> {
    let is_odd = |c: &char| (c.is_control() && !"\u{8}\u{c}\n\r\t".contains(*c)) && u32::from(*c) < 0x80;
    match text.chars().find(is_odd) {
        Some(c) => Err(place.unsupported(keyword, format!("it has the control character U+{:04X}", u32::from(c)))),
        None => Ok(()),
    }
}

/// Bounds that contradict each other.
pub(super) fn check_pairs(fields: &Map<String, Value>, place: &Place<'_>) -> Result<(), GrammarError> {
    for &(low, high) in PAIRS {
        let numbers = (fields.get(low).and_then(Value::as_f64), fields.get(high).and_then(Value::as_f64));
        let (Some(least), Some(most)) = numbers else { continue };
        let is_open = low.starts_with("exclusive") || high.starts_with("exclusive");
        if least > most || (is_open && least == most) {
            let found = format!("{low} is {least} and {high} is {most}");
            return Err(place.unsupported(low, format!("{found}, so that nothing is left")));
        }
    }
    Ok(())
}

/// A grammar cannot count different names, so that names must be known to be different, or one is enough.
pub(super) fn check_count_of_properties(
    written: &mut Map<String, Value>,
    place: &Place<'_>,
) -> Result<(), GrammarError> {
    let Some(least) = written.get("minProperties").and_then(Value::as_u64) else { return Ok(()) };
    let required = written.get("required").and_then(Value::as_array);
    let mut required: Vec<&str> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    required.sort_unstable();
    required.dedup();
    let n_required = required.len() as u64;
    if least <= n_required {
        written.remove("minProperties");
    } else if least > n_required + 1 {
        let found = format!("it asks for {least} properties, of which only {n_required} are required by name");
        return Err(place.unsupported("minProperties", found));
    }
    Ok(())
}
