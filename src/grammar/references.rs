//! The references of a JSON schema that was written again: `#/$defs/0`, `#/$defs/1`, … It refuses those that lead to
//! themselves without a value in between.

use serde_json::{Map, Value};

use super::error::GrammarError;

/// The number of the definition that a `$ref` names.
pub(super) fn number(target: &Value) -> Option<usize> {
    target.as_str()?.strip_prefix("#/$defs/")?.parse().ok()
}

/// # Errors
/// [`GrammarError::Unsupported`] for a reference that leads to itself.
pub(super) fn check_loops(definitions: &[Value]) -> Result<(), GrammarError> {
    // 0 is unseen, 1 is on the way, 2 is done.
    let mut states = vec![0u8; definitions.len()];
    (0..definitions.len()).try_for_each(|number| visit(definitions, number, &mut states))
}

fn visit(definitions: &[Value], number: usize, states: &mut [u8]) -> Result<(), GrammarError> {
    match states.get(number) {
        Some(0) => {}
        Some(1) => {
            return Err(GrammarError::Unsupported {
                keyword: "$ref".to_owned(),
                place: "#".to_owned(),
                found: "it leads to itself".to_owned(),
            });
        }
        _ => return Ok(()),
    }
    states[number] = 1;
    let mut targets = Vec::new();
    in_place(&definitions[number], &mut targets);
    targets.into_iter().try_for_each(|target| visit(definitions, target, states))?;
    states[number] = 2;
    Ok(())
}

/// The schemas that stand directly in one.
pub(super) fn inner(fields: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    fields.iter().flat_map(|(name, field)| match (name.as_str(), field) {
        ("properties" | "patternProperties", Value::Object(schemas)) => schemas.values().collect(),
        ("prefixItems" | "allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => schemas.iter().collect(),
        ("items" | "additionalProperties", schema) => vec![schema],
        _ => Vec::new(),
    })
}

/// What `schema` refers to for the value itself.
fn in_place(schema: &Value, targets: &mut Vec<usize>) {
    let Some(fields) = schema.as_object() else { return };
    targets.extend(fields.get("$ref").and_then(number));
    for name in ["allOf", "anyOf", "oneOf"] {
        let schemas = fields.get(name).and_then(Value::as_array);
        schemas.into_iter().flatten().for_each(|schema| in_place(schema, targets));
    }
}

/// Writes out what the alternatives of each `oneOf` refer to: whether they exclude each other is seen there.
/// [`check_loops`] comes first. `budget` is how many values may be added.
pub(super) fn write_out_one_of(definitions: &mut [Value], budget: &mut usize) -> Result<(), GrammarError> {
    let before = definitions.to_vec();
    definitions.iter_mut().try_for_each(|definition| write_out(definition, &before, budget))
}

fn write_out(schema: &mut Value, definitions: &[Value], budget: &mut usize) -> Result<(), GrammarError> {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(schemas)) = fields.get_mut("oneOf") {
                for schema in schemas {
                    while let Some(found) = alone(schema).and_then(|number| definitions.get(number)) {
                        *budget = budget.checked_sub(n_values(found)).ok_or_else(|| GrammarError::TooLarge {
                            what: "JSON schema",
                            found: "more values behind the references of its oneOf".to_owned(),
                            limit: super::schema::MAX_VALUES as u64,
                        })?;
                        *schema = found.clone();
                    }
                }
            }
            fields.iter_mut().try_for_each(|(name, field)| match (name.as_str(), field) {
                ("properties" | "patternProperties", Value::Object(schemas)) => {
                    schemas.values_mut().try_for_each(|schema| write_out(schema, definitions, budget))
                }
                ("prefixItems" | "allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                    schemas.iter_mut().try_for_each(|schema| write_out(schema, definitions, budget))
                }
                ("items" | "additionalProperties", schema) => write_out(schema, definitions, budget),
                _ => Ok(()),
            })
        }
        _ => Ok(()),
    }
}

/// What a schema refers to that does nothing else.
fn alone(schema: &Value) -> Option<usize> {
    let fields = schema.as_object().filter(|fields| fields.len() == 1)?;
    fields.get("$ref").and_then(number)
}

fn n_values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(n_values).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(n_values).sum::<usize>(),
        _ => 1,
    }
}
