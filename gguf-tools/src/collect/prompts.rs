//! Where prompts come from: the model itself, or the user's files.
//!
//! With a chat template the model writes the user's turn after the template's own beginning of one, and the runtime's
//! prompt is made of it as for any other turn. A base model without a template continues from its start token; the first
//! tokens of that are the prompt. A corpus gives one prompt a paragraph (plain text) or a line (JSONL).
//!
//! It refuses templates in which the beginning of a user's turn cannot be found, and corpora without a prompt.

use std::path::Path;

use anyhow::{Context, bail};
use offramp::{ChatTemplate, Message, Model, Token};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The most tokens of a user's turn that the model writes.
pub const MAX_TURN: usize = 64;
/// The tokens of a base model's beginning.
const BEGINNING: std::ops::RangeInclusive<usize> = 4..=32;
/// Stands in for the user's turn when the template is looked at; no template changes letters.
const MARKER: &str = "OFFRAMPUSERTURN";

/// Prompts by their number.
#[derive(Debug)]
pub struct Source {
    template: Option<Template>,
    /// The tokens before a user's turn that the model is to write; for a base model its start token.
    opening: Vec<Token>,
    corpus: Option<Vec<String>>,
}

#[derive(Debug)]
struct Template {
    template: ChatTemplate,
    /// What the tokenizer adds by itself and a template writes out.
    bos: String,
}

impl Template {
    fn tokens(&self, model: &Model, text: &str) -> anyhow::Result<Vec<Token>> {
        let text = text.strip_prefix(&self.bos).unwrap_or(text);
        Ok(model.vocab().tokenize_prompt(text, true)?)
    }
}

/// How a prompt comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// It is there.
    Ready(Vec<Token>),
    /// The model writes at most this many tokens after [`Source::opening`], and [`Source::finish`] makes a prompt of them.
    Write(usize),
    /// It is empty.
    Empty,
}

impl Source {
    /// Prompts that the model writes itself.
    ///
    /// # Errors
    ///
    /// A template that does not parse or that hides where a user's turn begins; a base model without a start token.
    pub fn of_model(model: &Model) -> anyhow::Result<Source> {
        let template = template_of(model)?;
        let opening = match &template {
            Some(template) => {
                let text = template.template.render(&[Message::new("user", MARKER)], true)?;
                let (before, _) = text
                    .split_once(MARKER)
                    .context("the model's chat template changes the user's turn: give prompts with --corpus")?;
                template.tokens(model, before)?
            }
            None => {
                let start = model.vocab().bos().or(model.vocab().eos());
                vec![start.context("the model has no start token to continue from: give prompts with --corpus")?]
            }
        };
        Ok(Source { template, opening, corpus: None })
    }

    /// Prompts from files.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a line of JSONL without a prompt, or no prompt at all.
    pub fn of_corpus(model: &Model, files: &[impl AsRef<Path>]) -> anyhow::Result<Source> {
        let mut prompts = Vec::new();
        for file in files {
            let path = file.as_ref();
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            // The mark that some editors write before UTF-8 belongs to no prompt.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                    let prompt = prompt_of_line(line).with_context(|| format!("{}, line {}", path.display(), i + 1))?;
                    prompts.push(prompt);
                }
            } else {
                prompts.extend(paragraphs(text));
            }
        }
        if prompts.is_empty() {
            bail!("the corpus holds no prompt: plain text gives one a paragraph, JSONL one a line");
        }
        Ok(Source { template: template_of(model)?, opening: Vec::new(), corpus: Some(prompts) })
    }

    /// The tokens of each of `texts`, as the runtime's prompt for a user's turn.
    ///
    /// # Errors
    ///
    /// A template that does not parse or that fails, a text that cannot be tokenized.
    pub fn tokens_of(model: &Model, texts: &[String]) -> anyhow::Result<Vec<Vec<Token>>> {
        let source = Source { template: template_of(model)?, opening: Vec::new(), corpus: None };
        texts.iter().map(|text| source.tokens(model, text)).collect()
    }

    /// How many prompts a corpus has; none where the model writes them.
    pub fn n_prompts(&self) -> Option<usize> {
        self.corpus.as_ref().map(Vec::len)
    }

    /// The first `n` prompts of a corpus alone.
    pub fn first(mut self, n: usize) -> Source {
        if let Some(prompts) = &mut self.corpus {
            prompts.truncate(n);
        }
        self
    }

    /// A corpus without its first `n` prompts.
    pub fn after(mut self, n: usize) -> Source {
        if let Some(prompts) = &mut self.corpus {
            prompts.drain(..n.min(prompts.len()));
        }
        self
    }

    /// Brings the prompts of a corpus into an order by chance: a bound on a sample wants prompts that come as they would, not
    /// sorted by kind. Prompts that the model writes come by chance already.
    pub fn shuffled(mut self, seed: u64) -> Source {
        if let Some(prompts) = &mut self.corpus {
            prompts.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        self
    }

    /// How the prompts are described in a file.
    pub fn description(&self) -> String {
        match (&self.corpus, &self.template) {
            (Some(prompts), _) => format!("{} prompts of a corpus, answered by the model", prompts.len()),
            (None, Some(_)) => "user turns written by the model, answered by it".to_string(),
            (None, None) => "texts written by the model from its start token".to_string(),
        }
    }

    /// Whether there is no prompt with this number or a later one.
    pub fn is_used_up(&self, index: u64) -> bool {
        self.corpus.as_ref().is_some_and(|prompts| index >= prompts.len() as u64)
    }

    /// The tokens that the model writes prompts after; none for a corpus.
    pub fn opening(&self) -> &[Token] {
        &self.opening
    }

    /// The beginning of the prompt with this number.
    ///
    /// # Errors
    ///
    /// A text that cannot be tokenized, a template that fails.
    pub fn begin(&self, model: &Model, index: u64, rng: &mut ChaCha8Rng) -> anyhow::Result<Beginning> {
        let Some(corpus) = &self.corpus else {
            let n = if self.template.is_some() { MAX_TURN } else { rng.random_range(BEGINNING) };
            return Ok(Beginning::Write(n));
        };
        let prompt = usize::try_from(index).ok().and_then(|index| corpus.get(index));
        let tokens = prompt.map_or(Ok(Vec::new()), |prompt| self.tokens(model, prompt))?;
        Ok(if tokens.is_empty() { Beginning::Empty } else { Beginning::Ready(tokens) })
    }

    /// The prompt that `written` after the opening makes; `None` where that is nothing.
    ///
    /// # Errors
    ///
    /// As [`Source::begin`].
    pub fn finish(&self, model: &Model, written: &[Token]) -> anyhow::Result<Option<Vec<Token>>> {
        if self.template.is_none() {
            return Ok((!written.is_empty()).then(|| [&self.opening, written].concat()));
        }
        let turn = model.vocab().text(written, false).trim().to_string();
        Ok(if turn.is_empty() { None } else { Some(self.tokens(model, &turn)?) })
    }

    /// The runtime's prompt for a user's turn.
    fn tokens(&self, model: &Model, turn: &str) -> anyhow::Result<Vec<Token>> {
        match &self.template {
            Some(template) => {
                let text = template.template.render(&[Message::new("user", turn)], true)?;
                template.tokens(model, &text)
            }
            None => Ok(model.vocab().tokenize_prompt(turn, false)?),
        }
    }
}

fn template_of(model: &Model) -> anyhow::Result<Option<Template>> {
    let Some(source) = model.chat_template() else { return Ok(None) };
    let vocab = model.vocab();
    let text = |token: Option<Token>| token.map_or_else(String::new, |token| vocab.text(&[token], true));
    let template = ChatTemplate::new(source, &text(vocab.bos()), &text(vocab.eos()))?;
    Ok(Some(Template { template, bos: text(vocab.bos().filter(|_| vocab.adds_bos())) }))
}

/// The prompt in a line of JSONL: `prompt`, `text`, or the first of `turns`.
fn prompt_of_line(line: &str) -> anyhow::Result<String> {
    let record: serde_json::Value = serde_json::from_str(line)?;
    let field = record.get("prompt").or_else(|| record.get("text")).or_else(|| record.get("turns")?.get(0));
    let text = field.and_then(serde_json::Value::as_str);
    Ok(text.context("no text under \"prompt\", \"text\" or the first of \"turns\"")?.to_string())
}

fn paragraphs(text: &str) -> impl Iterator<Item = String> {
    let normal = text.replace("\r\n", "\n");
    let parts: Vec<String> = normal.split("\n\n").map(|part| part.trim().to_string()).collect();
    parts.into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_found_in_each_form_of_line() {
        assert_eq!(prompt_of_line(r#"{"prompt": "a", "text": "b"}"#).unwrap(), "a");
        assert_eq!(prompt_of_line(r#"{"text": "b"}"#).unwrap(), "b");
        assert_eq!(prompt_of_line(r#"{"turns": ["c", "d"]}"#).unwrap(), "c");
        for bad in ["", "[]", "{}", r#"{"prompt": 3}"#, r#"{"turns": []}"#] {
            assert!(prompt_of_line(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_text_gives_a_prompt_a_paragraph() {
        let found: Vec<String> = paragraphs("one\ntwo\r\n\r\n\n\n three \n\n").collect();
        assert_eq!(found, ["one\ntwo", "three"]);
    }
}
