//! How large the combinations in a JSON schema become, before anything combines them.
//!
//! `allOf`, and keywords beside `anyOf` or `$ref`, are combined with each other: alternatives multiply. The sizes here are
//! upper bounds of what comes out. A schema whose combinations are too large, or do not end, is refused.

use serde_json::Value;

use super::error::GrammarError;

/// Keywords whose schemas hold for the same value, and are combined with what stands beside them.
pub(super) const IN_PLACE: &[&str] = &["$ref", "allOf", "anyOf", "oneOf", "enum", "const"];
/// Most schemas that all combinations together may have.
const MAX_SIZE: u64 = 50_000;
/// Most comparisons of the alternatives of a `oneOf`, which have to exclude each other.
const MAX_COMPARISONS: u64 = 200_000;

/// An upper bound of what a schema becomes.
#[derive(Clone, Copy)]
struct Weight {
    /// Alternatives for the value itself.
    alternatives: u64,
    /// The most of these, here and anywhere inside.
    widest: u64,
    /// Schemas of all kinds.
    size: u64,
    /// Says something about parts of the value, and not about the value alone.
    nests: bool,
    /// Refers to a schema that contains itself.
    endless: bool,
}

const LEAF: Weight = Weight { alternatives: 1, widest: 1, size: 1, nests: false, endless: false };

/// # Errors
/// [`GrammarError::TooLarge`], [`GrammarError::Unsupported`] for combinations without an end.
pub(super) fn check(definitions: &[Value]) -> Result<(), GrammarError> {
    let mut weights = Weights { definitions, known: vec![None; definitions.len()], spent: 0 };
    definitions.iter().try_for_each(|definition| weights.visit(definition))
}

struct Weights<'a> {
    definitions: &'a [Value],
    /// `Some(None)` while it is worked out.
    known: Vec<Option<Option<Weight>>>,
    /// The size of all combinations so far.
    spent: u64,
}

impl Weights<'_> {
    /// Adds up every combination, wherever it stands.
    fn visit(&mut self, schema: &Value) -> Result<(), GrammarError> {
        let Some(fields) = schema.as_object() else { return Ok(()) };
        let n_parts = fields.keys().filter(|name| IN_PLACE.contains(&name.as_str())).count();
        let has_base = fields.keys().any(|name| !IN_PLACE.contains(&name.as_str()));
        let is_all_of = fields.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
        if n_parts > 1 || (n_parts == 1 && has_base) || is_all_of {
            self.spent = self.spent.saturating_add(self.weigh(schema)?.size);
            limit(self.spent, MAX_SIZE, "schemas in its combinations")?;
        }
        if let Some(one_of) = fields.get("oneOf").and_then(Value::as_array) {
            let mut size: u64 = 0;
            for schema in one_of {
                size = size.saturating_add(self.weigh(schema)?.size);
            }
            limit(size.saturating_mul(one_of.len() as u64), MAX_COMPARISONS, "comparisons in a oneOf")?;
        }
        super::references::inner(fields).try_for_each(|schema| self.visit(schema))
    }

    fn weigh(&mut self, schema: &Value) -> Result<Weight, GrammarError> {
        let Some(fields) = schema.as_object() else { return Ok(LEAF) };
        let mut sum = Weight { size: 6, ..LEAF };
        for (name, value) in fields.iter().filter(|(name, _)| !IN_PLACE.contains(&name.as_str())) {
            let inner: Vec<&Value> = match (name.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(schemas)) => schemas.values().collect(),
                ("prefixItems", Value::Array(schemas)) => schemas.iter().collect(),
                ("items" | "additionalProperties", schema) => vec![schema],
                _ => continue,
            };
            for schema in inner {
                let weight = self.weigh(schema)?;
                sum.size = sum.size.saturating_add(weight.size);
                sum.widest = sum.widest.max(weight.widest);
                sum.endless |= weight.endless;
                sum.nests |= schema.is_object();
            }
        }
        for (name, value) in fields.iter().filter(|(name, _)| IN_PLACE.contains(&name.as_str())) {
            let part = self.part(name, value)?;
            sum = combined(sum, part)?;
        }
        Ok(sum)
    }

    fn part(&mut self, name: &str, value: &Value) -> Result<Weight, GrammarError> {
        match (name, value) {
            ("$ref", target) => self.referred(target),
            ("allOf", Value::Array(schemas)) => {
                schemas.iter().try_fold(LEAF, |sum, schema| combined(sum, self.weigh(schema)?))
            }
            ("anyOf" | "oneOf", Value::Array(schemas)) => {
                let mut sum = Weight { alternatives: 0, ..LEAF };
                for schema in schemas {
                    let weight = self.weigh(schema)?;
                    sum.alternatives = sum.alternatives.saturating_add(weight.alternatives);
                    sum.size = sum.size.saturating_add(weight.size);
                    sum.widest = sum.widest.max(weight.widest);
                    sum.nests |= weight.nests;
                    sum.endless |= weight.endless;
                }
                Ok(Weight { widest: sum.widest.max(sum.alternatives), ..sum })
            }
            (_, Value::Array(values)) if name == "enum" => {
                let alternatives = values.len() as u64;
                let size = values.iter().map(n_values).sum();
                let nests = values.iter().any(|value| value.is_object() || value.is_array());
                Ok(Weight { alternatives, widest: alternatives, size, nests, endless: false })
            }
            (_, value) => Ok(Weight { size: n_values(value), nests: value.is_object() || value.is_array(), ..LEAF }),
        }
    }

    fn referred(&mut self, target: &Value) -> Result<Weight, GrammarError> {
        const CYCLE: Weight = Weight { nests: true, endless: true, ..LEAF };
        let Some(number) = super::references::number(target) else { return Ok(LEAF) };
        match self.known.get(number).copied().flatten() {
            Some(Some(weight)) => Ok(weight),
            Some(None) => Ok(CYCLE),
            None => {
                let Some(definition) = self.definitions.get(number) else { return Ok(LEAF) };
                self.known[number] = Some(None);
                let weight = self.weigh(definition)?;
                self.known[number] = Some(Some(weight));
                Ok(weight)
            }
        }
    }
}

/// Two that hold for the same value: each alternative of the one meets each of the other, here and inside.
fn combined(one: Weight, other: Weight) -> Result<Weight, GrammarError> {
    if one.nests && other.nests && (one.endless || other.endless) {
        return Err(GrammarError::Unsupported {
            keyword: "$ref".to_owned(),
            place: "#".to_owned(),
            found: "it leads to a schema that contains itself, and is combined with another one".to_owned(),
        });
    }
    let size = one.size.saturating_mul(other.widest).saturating_add(other.size.saturating_mul(one.widest));
    limit(size, MAX_SIZE, "schemas in its combinations")?;
    Ok(Weight {
        alternatives: one.alternatives.saturating_mul(other.alternatives),
        widest: one.widest.saturating_mul(other.widest),
        size,
        nests: one.nests || other.nests,
        endless: one.endless || other.endless,
    })
}

fn n_values(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(n_values).sum::<u64>(),
        Value::Object(fields) => 1 + fields.values().map(n_values).sum::<u64>(),
        _ => 1,
    }
}

fn limit(found: u64, limit: u64, what: &str) -> Result<(), GrammarError> {
    if found <= limit {
        return Ok(());
    }
    Err(GrammarError::TooLarge { what: "JSON schema", found: format!("more {what}"), limit })
}
