//! What the user sees: the model's text on stdout, or one JSON object a prompt; everything about it on stderr.

use std::borrow::Cow;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use offramp::{ExitPoint, Model, ModelInfo, Session, StopReason, Token};
use serde::Serialize;
use serde_json::Value;

use crate::conversation::Reply;
use crate::failure::Failure;
use crate::wrap::Wrap;
use crate::{style, terminal};

/// The model's text, as it comes; on a terminal its lines end between words.
pub struct TextOutput {
    stdout: StdoutLock<'static>,
    ends_line: bool,
    wrap: Option<Wrap>,
}

impl TextOutput {
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        let wrap = stdout.is_terminal().then(Wrap::default);
        Self { stdout, ends_line: true, wrap }
    }

    /// True if the text goes to a terminal that shows colours.
    pub fn is_coloured(&self) -> bool {
        self.stdout.is_terminal() && style::is_allowed()
    }

    /// # Errors
    /// When whoever reads has gone.
    pub fn show(&mut self, text: &str) -> Result<(), Failure> {
        if !text.is_empty() {
            // The terminal is asked each time: its window may have changed.
            let wrapped = self.wrap.as_mut().map(|wrap| wrap.push(text, terminal::columns()));
            self.stdout.write_all(wrapped.as_deref().unwrap_or(text).as_bytes())?;
            self.stdout.flush()?;
            self.ends_line = text.ends_with('\n');
        }
        Ok(())
    }

    /// Ends a reply's last line, unless the model did.
    ///
    /// # Errors
    /// When whoever reads has gone.
    pub fn end(&mut self) -> Result<(), Failure> {
        self.end_word()?;
        if !std::mem::replace(&mut self.ends_line, true) {
            self.stdout.write_all(b"\n")?;
            self.stdout.flush()?;
        }
        Ok(())
    }
}

impl TextOutput {
    /// Writes the word that waits for its end.
    fn end_word(&mut self) -> io::Result<()> {
        if let Some(wrap) = &mut self.wrap {
            self.stdout.write_all(wrap.finish().as_bytes())?;
            self.stdout.flush()?;
        }
        Ok(())
    }
}

impl Drop for TextOutput {
    fn drop(&mut self) {
        // After a failure, which is told; that nobody reads is none.
        let _ = self.end_word();
    }
}

/// Text of a model or of its file, as stdout gets it: unchanged, except that a terminal must not obey what a stranger wrote.
pub fn for_stdout(text: &str) -> Cow<'_, str> {
    if io::stdout().is_terminal() { tamed(text) } else { text.into() }
}

/// `text` with its control characters made visible, but for line breaks and tabs: a terminal would take them for commands,
/// which can change what it shows, its title, or the clipboard.
pub fn tamed(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_command) {
        return text.into();
    }
    let visible = |c: char| match u32::from(c) {
        _ if !is_command(c) => c,
        0x7F => '\u{2421}',
        // Unicode has pictures of the first 32, from here on.
        code @ 0..0x20 => char::from_u32(0x2400 + code).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ => char::REPLACEMENT_CHARACTER,
    };
    text.chars().filter(|c| *c != '\r').map(visible).collect::<String>().into()
}

/// How long things took. Rates are null where nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timings {
    load_ms: f64,
    prompt_ms: f64,
    decode_ms: f64,
    prompt_per_second: Option<f64>,
    decode_per_second: Option<f64>,
}

impl Timings {
    pub fn new(load: Duration, replies: &[Reply]) -> Self {
        let prompt: Duration = replies.iter().map(|reply| reply.prompt_elapsed).sum();
        let decode: Duration = replies.iter().flat_map(|reply| &reply.generation).map(|made| made.elapsed).sum();
        let n_prompt: usize = replies.iter().map(|reply| reply.prompt_decoded).sum();
        let n_decode: usize = replies.iter().flat_map(|reply| &reply.generation).map(|made| made.tokens.len()).sum();
        let per_second =
            |n: usize, time: Duration| (n > 0 && !time.is_zero()).then(|| rounded(n as f64 / time.as_secs_f64()));
        Self {
            load_ms: milliseconds(load),
            prompt_ms: milliseconds(prompt),
            decode_ms: milliseconds(decode),
            prompt_per_second: per_second(n_prompt, prompt),
            decode_per_second: per_second(n_decode, decode),
        }
    }

    /// One line on stderr.
    pub fn report(&self, replies: &[Reply]) {
        let n_prompt: usize = replies.iter().map(|reply| reply.prompt_decoded).sum();
        let n_decode: usize = replies.iter().flat_map(|reply| &reply.generation).map(|made| made.tokens.len()).sum();
        eprintln!(
            "offramp: prompt {n_prompt} tokens in {:.0} ms ({:.0}/s), reply {n_decode} tokens in {:.0} ms ({:.1}/s)",
            self.prompt_ms,
            self.prompt_per_second.unwrap_or(0.0),
            self.decode_ms,
            self.decode_per_second.unwrap_or(0.0),
        );
    }
}

fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3)
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// One reply, as JSON.
#[derive(Serialize)]
struct Turn<'a> {
    prompt_text: &'a str,
    prompt_tokens: usize,
    tokens: &'a [Token],
    text: &'a str,
    exit_layers: &'a [Option<ExitPoint>],
    stop_reason: StopReason,
}

impl<'a> Turn<'a> {
    fn new(reply: &'a Reply) -> Self {
        let generation = reply.generation.as_ref();
        Self {
            prompt_text: &reply.prompt_text,
            prompt_tokens: reply.prompt_tokens,
            tokens: generation.map_or(&[], |made| &made.tokens),
            text: reply.text(),
            exit_layers: generation.map_or(&[], |made| &made.exits),
            stop_reason: reply.stop_reason(),
        }
    }
}

/// One prompt, as JSON: the fields of its last reply, and with several turns all of them.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a Value,
    #[serde(flatten)]
    last: Turn<'a>,
    timings: Timings,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    turns: Vec<Turn<'a>>,
}

/// Writes one line of JSON. `replies` has at least one element; otherwise nothing is written.
///
/// # Errors
/// When whoever reads has gone.
pub fn write_record(id: &Value, replies: &[Reply], timings: Timings) -> Result<(), Failure> {
    let Some(last) = replies.last() else { return Ok(()) };
    let turns = if replies.len() > 1 { replies.iter().map(Turn::new).collect() } else { Vec::new() };
    let record = Record { id, last: Turn::new(last), timings, turns };
    let mut line = serde_json::to_vec(&record).map_err(io::Error::from)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()?;
    Ok(())
}

/// Two lines on stderr: what the model is, and what its text is made with.
pub fn announce(session: &Session, exits: &str) {
    let model: &Model = session.model();
    let info = model.info();
    // What a file calls itself is often wrong, and so is the size class that llama.cpp derives from its shape.
    let name = info.path.file_name().unwrap_or_default().to_string_lossy();
    let name = tamed(&name);
    eprintln!(
        "offramp: {name}, {}, {} layers, {} MiB\nofframp: context {} tokens, {exits}",
        weights(info),
        info.n_layer,
        info.size >> 20,
        session.n_ctx()
    );
}

/// How many weights a model has, of which architecture, and in which format.
pub fn weights(info: &ModelInfo) -> String {
    format!("{} weights ({} {})", short_count(info.n_params), tamed(&info.architecture), quantization(info))
}

/// The format of a model's weights.
pub fn quantization(info: &ModelInfo) -> &str {
    // llama.cpp describes a model by its architecture, a size class and the format; the first two are one word each.
    info.description.splitn(3, ' ').nth(2).unwrap_or(&info.description)
}

/// A number of weights as people write it.
fn short_count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        _ => format!("{:.2}B", n as f64 / 1e9),
    }
}

/// Says on stderr that a reply ended because nothing more fits.
pub fn report_full_context(session: &Session) {
    eprintln!("offramp: the context of {} tokens is full; raise it with -c, or start over", session.n_ctx());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_weights_are_short() {
        assert_eq!([999, 134_515_008, 7_241_732_096].map(short_count), ["999", "134.5M", "7.24B"]);
    }

    #[test]
    fn a_terminal_gets_no_commands_from_a_model() {
        assert_eq!(tamed("a\tb\n\u{e9} \u{1f31f}"), "a\tb\n\u{e9} \u{1f31f}");
        assert_eq!(tamed("\x1b]52;c;eA==\x07\x7f\u{9b}2J\r\n"), "\u{241b}]52;c;eA==\u{2407}\u{2421}\u{fffd}2J\n");
    }
}
