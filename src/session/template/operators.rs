//! The operators and literals of a template, with bounds: `~`, `+`, `*`, slices, lists and maps. They do what Python does.
//! Refuses what Python refuses: adding a number to a text, or repeating by a fraction.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::guard::{MAX_ITEMS, admit, charge, stopped, text_of};

pub(super) const CONCAT: &str = "guarded-concat";
pub(super) const ADD: &str = "guarded-add";
pub(super) const MUL: &str = "guarded-mul";
pub(super) const SLICE: &str = "guarded-slice";
pub(super) const LIST: &str = "guarded-list";
pub(super) const MAP: &str = "guarded-map";
/// A variable that is 1.
pub(super) const ONE: &str = "__one";

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_global(ONE, 1);
    environment.add_filter(CONCAT, concat);
    environment.add_filter(ADD, add);
    environment.add_filter(MUL, multiply);
    environment.add_filter(SLICE, slice);
    environment.add_filter(LIST, |items: Rest<Value>| -> Result<Value, Error> {
        items.iter().try_for_each(|item| admit(item, true))?;
        Ok(Value::from(items.0))
    });
    environment.add_filter(MAP, |flat: Rest<Value>| -> Result<Value, Error> {
        flat.iter().try_for_each(|item| admit(item, true))?;
        Ok(flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    });
    environment.add_function("dict", |value: Option<Value>, named: Kwargs| -> Result<Value, Error> {
        admit_named(&named)?;
        value.iter().try_for_each(|value| admit(value, true))?;
        minijinja::functions::dict(value, named)
    });
    environment.add_function("namespace", |defaults: Option<Value>| -> Result<Value, Error> {
        defaults.iter().try_for_each(|value| admit(value, true))?;
        minijinja::functions::namespace(defaults)
    });
}

fn admit_named(named: &Kwargs) -> Result<(), Error> {
    named.args().try_for_each(|name| admit(&named.get::<Value>(name)?, true))
}

fn refuse(operator: &str, left: &Value, right: &Value) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{operator} does not go with {} and {}", left.kind(), right.kind()))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn concat(left: &Value, right: &Value) -> Result<Value, Error> {
    let (left, right) = (text_of(left)?, text_of(right)?);
    let (left, right) = (left.as_str().unwrap_or_default(), right.as_str().unwrap_or_default());
    charge(left.len() + right.len())?;
    Ok(Value::from([left, right].concat()))
}

fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        charge(left.len() + right.len())?;
        return Ok(Value::from([left, right].concat()));
    }
    if is_list(left) && is_list(right) {
        admit(left, false)?;
        admit(right, false)?;
        let joined: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        let joined = Value::from(joined);
        admit(&joined, false)?;
        return Ok(joined);
    }
    numbers(left, right, "+", i128::checked_add, |a, b| a + b)
}

fn multiply(left: &Value, right: &Value) -> Result<Value, Error> {
    let (repeated, times) = if left.as_str().is_some() || is_list(left) { (left, right) } else { (right, left) };
    if repeated.as_str().is_none() && !is_list(repeated) {
        return numbers(left, right, "*", i128::checked_mul, |a, b| a * b);
    }
    let times = i64::try_from(times.clone()).map_err(|_| refuse("*", left, right))?;
    let times = usize::try_from(times).unwrap_or(0);
    if let Some(text) = repeated.as_str() {
        charge(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    admit(repeated, false)?;
    let items: Vec<Value> = repeated.try_iter()?.collect();
    if items.len().saturating_mul(times) > MAX_ITEMS {
        return Err(stopped(format!("it makes a list of more than {MAX_ITEMS} elements")));
    }
    Ok((0..times).flat_map(|_| items.iter().cloned()).collect())
}

/// Python's arithmetic on two numbers: whole as long as both are, otherwise in floating point.
fn numbers(
    left: &Value,
    right: &Value,
    name: &str,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(left) || !is_number(right) {
        return Err(refuse(name, left, right));
    }
    match (i128::try_from(left.clone()), i128::try_from(right.clone())) {
        (Ok(a), Ok(b)) if is_whole(left) && is_whole(right) => {
            whole(a, b).map(Value::from).ok_or_else(|| refuse(name, left, right))
        }
        _ => Ok(Value::from(real(f64::try_from(left.clone())?, f64::try_from(right.clone())?))),
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_integer() || value.kind() == ValueKind::Bool
}

/// Python's `value[start:stop:step]`.
fn slice(value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    admit(value, false)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "a slice has step 0"));
    }
    if let Some(text) = value.as_str() {
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(
            picks(characters.len(), start, stop, step).filter_map(|i| characters.get(i)).collect::<String>(),
        ));
    }
    if value.is_undefined() || value.is_none() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if !is_list(value) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a {} cannot be sliced", value.kind())));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    Ok(Value::from(picks(items.len(), start, stop, step).filter_map(|i| items.get(i).cloned()).collect::<Vec<_>>()))
}

/// The indices that a slice of `len` elements picks, as in Python's `slice.indices`.
fn picks(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let settle = |bound: i64| {
        if bound < 0 { bound.saturating_add(len).max(lowest) } else { bound.min(highest) }
    };
    let start = start.map_or(if step > 0 { 0 } else { highest }, settle);
    let stop = stop.map_or(if step > 0 { len } else { -1 }, settle);
    let mut at = start;
    std::iter::from_fn(move || {
        let here = at;
        at = at.saturating_add(step);
        (if step > 0 { here < stop } else { here > stop }).then_some(here as usize)
    })
}
