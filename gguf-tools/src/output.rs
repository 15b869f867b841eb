//! Where results go, and how progress is shown.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};

use offramp::beat::{self, Unit};
use offramp::gguf::{TensorInfo, Value};

/// The entries of an array that are shown without `--verbose`.
const SHOWN_ENTRIES: usize = 8;
/// The characters of a string that are shown without `--verbose`.
const SHOWN_CHARS: usize = 120;

/// Stdout, and the flags that shape what goes there.
pub struct Output {
    stdout: BufWriter<Stdout>,
    pub json: bool,
    pub verbose: bool,
    pub diffable: bool,
}

impl Output {
    pub fn new(json: bool, verbose: bool, diffable: bool) -> Output {
        Output { stdout: BufWriter::new(std::io::stdout()), json, verbose, diffable }
    }

    /// Writes a line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> anyhow::Result<()> {
        Ok(writeln!(self.stdout, "{text}")?)
    }

    /// Writes JSON, indented.
    pub fn value(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        serde_json::to_writer_pretty(&mut self.stdout, value).map_err(std::io::Error::from)?;
        self.line("")
    }

    pub fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.stdout.flush()?)
    }

    /// A key's type, as in `u32` or `arr[str, 49152]`.
    pub fn type_of(value: &Value<'_>) -> String {
        match value {
            Value::Array(array) => format!("arr[{}, {}]", array.element_type(), array.len()),
            other => other.ty().to_string(),
        }
    }

    /// A key's value in one line; long ones are cut unless all is to be shown.
    pub fn text_of(&self, value: &Value<'_>) -> String {
        match value {
            Value::Str(text) => self.cut(text),
            Value::Array(array) => {
                let shown = if self.verbose { usize::MAX } else { SHOWN_ENTRIES };
                let mut parts: Vec<String> = array
                    .iter()
                    .take(shown)
                    .map(|value| match value {
                        Value::Str(text) => format!("{:?}", self.cut(text)),
                        other => self.text_of(&other),
                    })
                    .collect();
                if array.len() > parts.len() as u64 {
                    parts.push(format!("... {} more", array.len() - parts.len() as u64));
                }
                format!("[{}]", parts.join(", "))
            }
            other => scalar(other),
        }
    }

    fn cut(&self, text: &str) -> String {
        let shown = if self.verbose { usize::MAX } else { SHOWN_CHARS };
        let mut cut = escape(&text.chars().take(shown).collect::<String>());
        if text.chars().nth(shown).is_some() {
            cut.push_str("...");
        }
        cut
    }

    /// A key's value as JSON; arrays of more than a few entries are left out unless all is to be shown.
    pub fn json_of(&self, value: &Value<'_>) -> Json {
        match value {
            Value::U8(v) => json!(v),
            Value::I8(v) => json!(v),
            Value::U16(v) => json!(v),
            Value::I16(v) => json!(v),
            Value::U32(v) => json!(v),
            Value::I32(v) => json!(v),
            Value::F32(v) => json!(v),
            Value::Bool(v) => json!(v),
            Value::Str(v) => json!(v),
            Value::U64(v) => json!(v),
            Value::I64(v) => json!(v),
            Value::F64(v) => json!(v),
            Value::Array(array) if self.verbose || array.len() <= 64 => {
                array.iter().map(|value| self.json_of(&value)).collect()
            }
            Value::Array(_) => Json::Null,
        }
    }
}

/// A number or boolean as text.
fn scalar(value: &Value<'_>) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Str(_) | Value::Array(_) => String::new(),
    }
}

/// Text from a file with its control characters escaped, so that it cannot drive the terminal.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A tensor's entry as JSON.
pub fn tensor_json(tensor: &TensorInfo) -> Json {
    json!({
        "name": tensor.name(),
        "type": tensor.ty().name(),
        "dims": tensor.dims(),
        "elements": tensor.elements(),
        "bytes": tensor.bytes(),
    })
}

/// A progress bar on a terminal, and a line every half minute elsewhere; stops the work when the user interrupts it.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    unit: Unit,
}

/// Tells of work of which nobody says how much it is, until a [`Progress`] begins.
pub fn tell_of(what: &'static str) {
    if !std::io::stderr().is_terminal() {
        beat::watch("gguf-tools", what, Unit::Count(""), || Some((0, 0)));
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

impl Progress {
    pub fn new(what: &'static str) -> Progress {
        // A second interruption ends the program at once. Where no handler can be set, the first one does,
        // and the unfinished output disappears all the same.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{msg:10} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        let progress = Progress { bar, what, unit: Unit::Bytes };
        progress.tell();
        progress
    }

    /// A progress bar that counts `unit` and tells the time left.
    pub fn counting(what: &'static str, unit: &'static str) -> Progress {
        let mut progress = Progress::new(what);
        progress.unit = Unit::Count(unit);
        progress.tell();
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        let template = format!("{{msg:10}} {{bar:40}} {{pos}}/{{len}}{unit}, {{per_sec}}, {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            progress.bar.set_style(style);
        }
        progress
    }

    /// Reports `done` of `total`; `false` asks the work to stop.
    pub fn step(&mut self, done: u64, total: u64) -> bool {
        self.bar.set_length(total);
        self.bar.set_position(done);
        !INTERRUPTED.load(Ordering::Relaxed)
    }

    /// A progress bar for the next part of the work; nothing where it is still the same part.
    pub fn next(&mut self, what: &'static str) {
        if self.what != what {
            self.what = what;
            self.bar.reset();
            self.bar.set_message(what);
            self.tell();
        }
    }

    /// Where no bar is drawn, lines tell of it until the next part of the work begins.
    fn tell(&self) {
        if !std::io::stderr().is_terminal() {
            let bar = self.bar.clone();
            let read = move || Some((bar.position(), bar.length().unwrap_or(0)));
            beat::watch("gguf-tools", self.what, self.unit, read);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
