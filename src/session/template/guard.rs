//! Bounds on what a template from an untrusted file may spend.
//!
//! The engine counts instructions ("fuel"), but one instruction can double a string or repeat it a billion times. So the compiled program is
//! rewritten before it runs: each operator, literal, filter and method call that can make a value larger or nest it deeper first works out how
//! large the result can get, and charges it. What no instruction can build, none can compare, print or drop. The bounds are far above real templates: one value has up to 16 MiB of
//! text, all values together 256 MiB, a rendering five seconds. Refuses nothing by name: what is bounded is harmless.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, Output};

use super::{TemplateError, python};

/// Most bytes of text in one value, and in the rendered prompt.
pub(super) const MAX_TEXT: usize = 16 << 20;
/// Most bytes of text that one rendering may produce on the way.
const MAX_TOTAL: usize = 256 << 20;
/// Most elements of one list.
pub(super) const MAX_ITEMS: usize = 1 << 20;
/// Longest time one rendering may take.
const MAX_TIME: Duration = Duration::from_secs(5);
/// A chain of values that hold each other is dropped recursively; its length is bounded by fuel, and this stack holds the longest.
const STACK: usize = 256 << 20;

/// Filters and methods that look at a list or pass its elements on, and never turn it into text or compare what is deep inside.
const STRUCTURAL: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "get",
    "items",
    "join",
    "keys",
    "last",
    "length",
    "list",
    "map",
    "reject",
    "rejectattr",
    "reverse",
    "round",
    "select",
    "selectattr",
    "slice",
    "tojson",
    "values",
];

/// Filters on text.
const TEXTUAL: &[&str] = &[
    "capitalize",
    "center",
    "indent",
    "lower",
    "replace",
    "striptags",
    "title",
    "trim",
    "truncate",
    "upper",
    "wordcount",
];

/// Filters and methods whose result holds the argument one level deeper.
const NESTING: &[&str] = &["batch", "dictsort", "groupby", "items", "slice", "zip"];

thread_local! {
    static SPENT: Cell<usize> = const { Cell::new(0) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// While this lives, what the thread's template produces is charged.
pub(super) struct Spending;

pub(super) fn start_spending() -> Spending {
    SPENT.set(0);
    DEADLINE.set(Some(Instant::now() + MAX_TIME));
    Spending
}

impl Drop for Spending {
    fn drop(&mut self) {
        DEADLINE.set(None);
    }
}

/// Runs `render` where a long chain of values can be dropped without overflowing the stack.
pub(super) fn on_deep_stack<T: Send>(
    render: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let worker =
            std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK).spawn_scoped(scope, render);
        let worker =
            worker.map_err(|error| TemplateError::Stopped(format!("no thread could be started for it ({error})")))?;
        worker.join().unwrap_or_else(|_| Err(TemplateError::Stopped("its evaluation panicked".to_owned())))
    })
}

pub(super) fn stopped(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, "stopped").with_source(TemplateError::Stopped(reason.into()))
}

fn too_long() -> Error {
    stopped(format!("it makes a text of more than {MAX_TEXT} bytes, or one nested too deep to write"))
}

pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_TEXT {
        return Err(too_long());
    }
    let spent = SPENT.get().saturating_add(bytes);
    SPENT.set(spent);
    if spent > MAX_TOTAL {
        return Err(stopped(format!("it makes more than {MAX_TOTAL} bytes of text on the way")));
    }
    if DEADLINE.get().is_some_and(|deadline| Instant::now() > deadline) {
        return Err(stopped(format!("it takes longer than {} seconds", MAX_TIME.as_secs())));
    }
    Ok(())
}

/// Text that stops growing at [`MAX_TEXT`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_TEXT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// What `write` writes, within the bounds.
pub(super) fn written(write: impl FnOnce(&mut dyn Write) -> fmt::Result) -> Result<String, Error> {
    let mut text = Bounded(String::new());
    write(&mut text).map_err(|_| too_long())?;
    charge(text.0.len())?;
    Ok(text.0)
}

/// Python's `str(value)`, within the bounds.
pub(super) fn text_of(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    written(|out| python::write_str(out, value)).map(Value::from)
}

/// Prints a value into the template's output or a captured block.
pub(super) fn emit(out: &mut Output, value: &Value) -> Result<(), Error> {
    let text = text_of(value)?;
    let text = text.as_str().unwrap_or_default();
    charge(text.len())?;
    out.write_str(text).map_err(Error::from)
}

/// Checks a value that goes into an operation: text by its bytes, lists by their elements, and whole where the operation looks inside.
pub(super) fn admit(value: &Value, whole: bool) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return charge(text.len());
    }
    let container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable);
    if container && value.len().is_none_or(|items| items > MAX_ITEMS) {
        return Err(stopped(format!("it makes a list of more than {MAX_ITEMS} elements")));
    }
    if container && whole { text_of(value).map(drop) } else { charge(0) }
}

/// How large a filter or method can make its result from its arguments, where that is not about their own size.
fn growth(name: &str, arguments: &[Value]) -> usize {
    let text = |i: usize| arguments.get(i).and_then(Value::as_str).unwrap_or_default();
    let number = |i: usize| arguments.get(i).and_then(Value::as_usize).unwrap_or(0);
    match name {
        "replace" => {
            let hits = if text(1).is_empty() { text(0).len() + 1 } else { text(0).matches(text(1)).count() };
            hits.saturating_mul(text(2).len())
        }
        "indent" => (text(0).lines().count() + 1).saturating_mul(number(1)),
        // Without a width, the filter's own.
        "center" => number(1).max(80),
        "ljust" | "rjust" => number(1),
        "e" | "escape" | "forceescape" => text(0).len().saturating_mul(5),
        "format" => longest_number(text(0)),
        _ => 0,
    }
}

/// The largest number written in a format string: what it can pad to.
fn longest_number(format: &str) -> usize {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0)
}

/// Calls a filter or method between the checks of what goes in and what comes out.
pub(super) fn guarded(
    name: &str,
    arguments: &[Value],
    call: impl FnOnce(&[Value]) -> Result<Value, Error>,
) -> Result<Value, Error> {
    let whole = !STRUCTURAL.contains(&name);
    for argument in arguments {
        admit(argument, whole)?;
    }
    let arguments = &*as_text(name, arguments)?;
    if name == "join" {
        // The separator stands first in Python's method and second in the filter; a bound on both at once is enough.
        let texts: usize = arguments.iter().filter_map(Value::as_str).map(str::len).sum();
        let items = arguments.iter().filter_map(Value::len).max().unwrap_or(0);
        charge(texts.saturating_mul(items))?;
    }
    charge(growth(name, arguments))?;
    let result = call(arguments)?;
    admit(&result, NESTING.contains(&name))?;
    settled(result)
}

/// A filter on text takes any other value by its text, as Python writes it.
fn as_text<'v>(name: &str, arguments: &'v [Value]) -> Result<Cow<'v, [Value]>, Error> {
    match arguments.first() {
        Some(value) if TEXTUAL.contains(&name) && !value.is_undefined() && value.as_str().is_none() => {
            let mut arguments = arguments.to_vec();
            arguments[0] = text_of(&arguments[0])?;
            Ok(Cow::Owned(arguments))
        }
        _ => Ok(Cow::Borrowed(arguments)),
    }
}

/// A lazy sequence keeps what it was made from, and a chain of them evaluates recursively: here it becomes a list.
fn settled(value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::Iterable { Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())) } else { Ok(value) }
}
