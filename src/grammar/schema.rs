//! From a JSON schema to one that `llguidance` keeps in full: every keyword is kept, means nothing for a reply, or is refused.
//!
//! A schema may come from a stranger over the network. What is unknown, contradicts itself, or is larger or deeper than is
//! accepted is refused by name before anything is compiled. What is left is written again with the accepted keywords alone:
//! annotations are dropped, patterns are made the same in every dialect, and references point to one list of definitions.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::error::GrammarError;
use super::{keywords, pattern, references, weight};

/// How deep a schema may nest.
const MAX_DEPTH: usize = 32;
/// Values of all kinds in a schema.
pub(super) const MAX_VALUES: usize = 8192;
/// Properties of one object, alternatives of one choice.
const MAX_BRANCHES: usize = 512;
/// Bytes of a text in it.
const MAX_TEXT: usize = 2048;
/// Bytes of a name: of a property, or of a definition.
const MAX_NAME: usize = 128;
/// The least common multiple of several `multipleOf` has to be a small number.
const MAX_MULTIPLE: u64 = 10_000;

/// Where the pattern of a format waits to be added to `allOf`; no keyword that is written has this name.
const FORMAT: &str = "pattern of the format";

/// Where in a schema something stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    name: &'a str,
}

impl<'a> Place<'a> {
    pub(super) const ROOT: Self = Place { parent: None, name: "" };

    pub(super) fn at(&'a self, name: &'a str) -> Self {
        Place { parent: Some(self), name }
    }

    /// As a JSON pointer.
    fn text(&self) -> String {
        let mut names = Vec::new();
        let mut place = Some(self);
        while let Some(Place { parent: Some(parent), name }) = place {
            names.push(name.replace('~', "~0").replace('/', "~1"));
            place = Some(parent);
        }
        names.push("#".to_owned());
        names.reverse();
        names.join("/")
    }

    pub(super) fn unsupported(&self, keyword: &str, found: impl Into<String>) -> GrammarError {
        GrammarError::Unsupported { keyword: keyword.to_owned(), place: self.text(), found: found.into() }
    }

    pub(super) fn wrong(&self, keyword: &str, found: &Value, expected: &'static str) -> GrammarError {
        // What a client wrote stays out of errors, which somebody may log.
        let found = match found {
            Value::Number(number) => number.to_string(),
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::String(_) => "another text".to_owned(),
            Value::Array(_) => "another list".to_owned(),
            Value::Object(_) => "another object".to_owned(),
        };
        GrammarError::Value { keyword: keyword.to_owned(), place: self.text(), found, expected }
    }
}

/// A schema with the accepted keywords alone.
///
/// # Errors
/// [`GrammarError`] for one that cannot be kept in full.
pub(super) fn accepted(schema: &Value) -> Result<Value, GrammarError> {
    let mut n_values = 0;
    measure(schema, MAX_DEPTH, &mut n_values)?;
    let mut writer = Writer { root: schema, definitions: Vec::new(), numbers: HashMap::new(), multiple: 1 };
    // The root is the first definition, for those that refer to it.
    writer.define("#", schema)?;
    let mut next = 0;
    while let Some((pointer, definition)) = writer.definitions.get(next).cloned() {
        let place = Place::ROOT;
        let place = if next == 0 { place } else { place.at(&pointer) };
        let written = writer.schema(&definition, &place)?;
        writer.definitions[next].1 = written;
        next += 1;
    }
    let mut definitions: Vec<Value> = writer.definitions.into_iter().map(|(_, definition)| definition).collect();
    references::check_loops(&definitions)?;
    references::write_out_one_of(&mut definitions, &mut MAX_VALUES.clone())?;
    weight::check(&definitions)?;
    if definitions.len() == 1 && !refers(&definitions[0]) {
        return Ok(definitions.into_iter().next().unwrap_or(Value::Bool(true)));
    }
    let definitions: Map<String, Value> =
        definitions.into_iter().enumerate().map(|(i, definition)| (i.to_string(), definition)).collect();
    Ok(json!({"$ref": "#/$defs/0", "$defs": definitions}))
}

/// True if there is a reference anywhere.
fn refers(schema: &Value) -> bool {
    schema.as_object().is_some_and(|fields| fields.contains_key("$ref") || references::inner(fields).any(refers))
}

/// Bounds everything whose number comes from whoever wrote the schema.
fn measure(value: &Value, depth: usize, n_values: &mut usize) -> Result<(), GrammarError> {
    let too_large =
        |found: String, limit: usize| GrammarError::TooLarge { what: "JSON schema", found, limit: limit as u64 };
    *n_values += 1;
    if *n_values > MAX_VALUES {
        return Err(too_large("more values".to_owned(), MAX_VALUES));
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(too_large("more levels".to_owned(), MAX_DEPTH));
    };
    match value {
        Value::String(text) if text.len() > MAX_TEXT => {
            Err(too_large(format!("a text of {} bytes", text.len()), MAX_TEXT))
        }
        Value::Array(items) if items.len() > MAX_BRANCHES => {
            Err(too_large(format!("a list of {} elements", items.len()), MAX_BRANCHES))
        }
        Value::Array(items) => items.iter().try_for_each(|item| measure(item, depth, n_values)),
        Value::Object(fields) if fields.len() > MAX_BRANCHES => {
            Err(too_large(format!("an object of {} fields", fields.len()), MAX_BRANCHES))
        }
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            if name.len() > MAX_NAME {
                return Err(too_large(format!("a name of {} bytes", name.len()), MAX_NAME));
            }
            measure(field, depth, n_values)
        }),
        _ => Ok(()),
    }
}

/// Writes a schema again.
pub(super) struct Writer<'a> {
    root: &'a Value,
    /// Where each one was found, and the schema: as it came, then as it was written.
    definitions: Vec<(String, Value)>,
    numbers: HashMap<String, usize>,
    /// Of all `multipleOf`.
    multiple: u64,
}

impl Writer<'_> {
    /// The number of a definition.
    fn define(&mut self, pointer: &str, schema: &Value) -> Result<usize, GrammarError> {
        if let Some(&number) = self.numbers.get(pointer) {
            return Ok(number);
        }
        if self.definitions.len() >= MAX_BRANCHES {
            let found = "more different references".to_owned();
            return Err(GrammarError::TooLarge { what: "JSON schema", found, limit: MAX_BRANCHES as u64 });
        }
        let number = self.definitions.len();
        self.definitions.push((pointer.to_owned(), schema.clone()));
        self.numbers.insert(pointer.to_owned(), number);
        Ok(number)
    }

    pub(super) fn schema(&mut self, schema: &Value, place: &Place<'_>) -> Result<Value, GrammarError> {
        let fields = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(fields) => fields,
            other => return Err(place.wrong("schema", other, "an object, true or false")),
        };
        keywords::check_pairs(fields, place)?;
        let mut written = Map::new();
        for (keyword, value) in fields {
            self.keyword(fields, keyword, value, place, &mut written)?;
        }
        if let Some(Value::Array(also)) = written.remove(FORMAT) {
            match written.get_mut("allOf") {
                Some(Value::Array(all)) => all.extend(also),
                _ => _ = written.insert("allOf".to_owned(), Value::Array(also)),
            }
        }
        keywords::check_count_of_properties(&mut written, place)?;
        // What says something of the value's parts stays together, whatever stood in between.
        let (last, mut first): (Map<_, _>, Map<_, _>) =
            written.into_iter().partition(|(keyword, _)| weight::IN_PLACE.contains(&keyword.as_str()));
        first.extend(last);
        Ok(Value::Object(first))
    }

    fn keyword(
        &mut self,
        fields: &Map<String, Value>,
        keyword: &str,
        value: &Value,
        place: &Place<'_>,
        written: &mut Map<String, Value>,
    ) -> Result<(), GrammarError> {
        let here = place.at(keyword);
        let kept = match keyword {
            "type" => keywords::types(value, place)?,
            "enum" => {
                let is_some = value.as_array().is_some_and(|items| !items.is_empty());
                if !is_some {
                    return Err(place.wrong(keyword, value, "a list of at least one value"));
                }
                keywords::literal(value, keyword, place)?;
                value.clone()
            }
            "const" => {
                keywords::literal(value, keyword, place)?;
                value.clone()
            }
            "minimum" | "maximum" => keywords::number(keyword, value, place)?,
            "exclusiveMinimum" | "exclusiveMaximum" => match (value, keyword) {
                (Value::Bool(false), _) => return Ok(()),
                // Draft 4 says with true that the other bound is exclusive.
                (Value::Bool(true), "exclusiveMinimum") => bound(fields, "minimum", keyword, value, place)?,
                (Value::Bool(true), _) => bound(fields, "maximum", keyword, value, place)?,
                _ => keywords::number(keyword, value, place)?,
            },
            "multipleOf" => {
                let (kept, multiple) = keywords::multiple(value, place)?;
                self.multiple = self.multiple.saturating_mul(multiple);
                if self.multiple > MAX_MULTIPLE {
                    return Err(place.unsupported(keyword, "all of them together are too large"));
                }
                kept
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                keywords::count(keyword, value, place)?
            }
            "pattern" => {
                let text = value.as_str().ok_or_else(|| place.wrong(keyword, value, "a regular expression"))?;
                whole_text(text, keyword, place)?
            }
            "format" => match keywords::format(fields, value, place)? {
                keywords::Format::Kept => value.clone(),
                keywords::Format::Nothing => return Ok(()),
                keywords::Format::Pattern(pattern) => {
                    // Beside a pattern that the schema has itself.
                    let also = json!([{"pattern": format!("^(?:{pattern})$")}]);
                    written.insert(FORMAT.to_owned(), also);
                    return Ok(());
                }
            },
            "required" => keywords::names(value, place)?,
            "properties" => self.map(value, &here, |_, name, place| {
                keywords::writable(name, "properties", place)?;
                Ok(name.to_owned())
            })?,
            "patternProperties" => self.map(value, &here, |_, name, place| {
                whole_text(name, "patternProperties", place).map(|text| text.as_str().unwrap_or_default().to_owned())
            })?,
            "additionalProperties" | "items" if !value.is_array() => self.schema(value, &here)?,
            "unevaluatedProperties" => {
                // Without others beside it, this is what additionalProperties is.
                let others = ["$ref", "allOf", "anyOf", "oneOf", "additionalProperties"];
                if others.iter().any(|other| fields.contains_key(*other)) {
                    return Err(place.unsupported(keyword, "other keywords beside it decide what is evaluated"));
                }
                let inner = self.schema(value, &here)?;
                written.insert("additionalProperties".to_owned(), inner);
                return Ok(());
            }
            "items" | "prefixItems" => {
                if keyword == "items" && fields.contains_key("prefixItems") {
                    return Err(place.wrong(keyword, value, "a schema, where prefixItems stands beside it"));
                }
                let items = self.list(value, keyword, &here, place)?;
                written.insert("prefixItems".to_owned(), items);
                // What items is beside prefixItems was additionalItems beside a list.
                if let Some(rest) = fields.get("additionalItems").filter(|_| keyword == "items") {
                    let rest = self.schema(rest, &place.at("additionalItems"))?;
                    written.insert("items".to_owned(), rest);
                }
                return Ok(());
            }
            // It means nothing without a list beside it.
            "additionalItems" => return Ok(()),
            "allOf" | "anyOf" | "oneOf" => self.list(value, keyword, &here, place)?,
            "$ref" => {
                let target = value.as_str().ok_or_else(|| place.wrong(keyword, value, "a reference"))?;
                let (pointer, definition) = self.resolve(target, place)?;
                let number = self.define(&pointer, &definition)?;
                Value::String(format!("#/$defs/{number}"))
            }
            "uniqueItems" if *value == Value::Bool(false) => return Ok(()),
            "nullable" if *value == Value::Bool(false) => return Ok(()),
            "$id" | "id" if place.parent.is_some() => {
                return Err(place.unsupported(keyword, "it changes what references mean"));
            }
            "$defs" | "definitions" if value.is_object() => return Ok(()),
            name if keywords::ANNOTATIONS.contains(&name) || name.starts_with("x-") => return Ok(()),
            name if keywords::KNOWN.contains(&name) => {
                return Err(place.unsupported(name, "no grammar can hold a reply to it"));
            }
            name => return Err(place.unsupported(name, "it is no keyword that is known here")),
        };
        written.insert(keyword.to_owned(), kept);
        Ok(())
    }

    fn list(
        &mut self,
        value: &Value,
        keyword: &str,
        here: &Place<'_>,
        place: &Place<'_>,
    ) -> Result<Value, GrammarError> {
        let items = value.as_array().filter(|items| !items.is_empty());
        let items = items.ok_or_else(|| place.wrong(keyword, value, "a list of at least one schema"))?;
        let schemas = items.iter().enumerate().map(|(i, item)| self.schema(item, &here.at(&i.to_string())));
        schemas.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    fn map(
        &mut self,
        value: &Value,
        here: &Place<'_>,
        key: impl Fn(&Self, &str, &Place<'_>) -> Result<String, GrammarError>,
    ) -> Result<Value, GrammarError> {
        let fields = value.as_object().ok_or_else(|| here.wrong(here.name, value, "an object of schemas"))?;
        let mut written = Map::new();
        for (name, schema) in fields {
            let there = here.at(name);
            let name = key(self, name, &there)?;
            let schema = self.schema(schema, &there)?;
            if written.insert(name, schema).is_some() {
                return Err(there.unsupported(here.name, "another one means the same"));
            }
        }
        Ok(Value::Object(written))
    }

    /// Where `target` points to in this document, and what is there.
    fn resolve(&self, target: &str, place: &Place<'_>) -> Result<(String, Value), GrammarError> {
        let outside = || place.unsupported("$ref", "it leads out of this schema");
        let pointer = target.strip_prefix('#').ok_or_else(outside)?;
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err(place.unsupported("$ref", "it is no JSON pointer"));
        }
        let pointer = percent_decoded(pointer).ok_or_else(outside)?;
        let found = self.root.pointer(&pointer);
        let found = found.filter(|found| found.is_object() || found.is_boolean());
        let found = found.ok_or_else(|| place.unsupported("$ref", "there is no schema where it points to"))?;
        Ok((format!("#{pointer}"), found.clone()))
    }
}

/// The other bound, that a draft 4 `true` makes an exclusive one.
fn bound(
    fields: &Map<String, Value>,
    other: &str,
    keyword: &str,
    value: &Value,
    place: &Place<'_>,
) -> Result<Value, GrammarError> {
    let other = fields.get(other).ok_or_else(|| place.wrong(keyword, value, "a number"))?;
    keywords::number(keyword, other, place)
}

fn whole_text(text: &str, keyword: &str, place: &Place<'_>) -> Result<Value, GrammarError> {
    let whole = pattern::whole_text(text).map_err(|found| place.unsupported(keyword, format!("it has {found}")))?;
    Ok(Value::String(format!("^(?:{whole})$")))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        };
        bytes.push(decoded);
    }
    String::from_utf8(bytes).ok()
}
