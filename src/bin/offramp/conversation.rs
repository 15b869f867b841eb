//! A conversation on a session: turns go in, replies come out, and what both share with the turns before stays in the K/V cache.
//! Without a chat template, or when raw text is asked for, the turns are given to the model as they are.

use std::ops::ControlFlow;
use std::time::Duration;

use offramp::{
    ChatTemplate, ExitPoint, GenerateParams, Generation, Message, Model, Sampler, SamplerParams, Session, StopReason,
    Token,
};

use crate::failure::Failure;
use crate::{interrupt, progress};

/// How replies are made.
pub struct Settings {
    pub sampler: SamplerParams,
    pub limits: GenerateParams,
    pub system: Option<String>,
}

/// Takes a piece of a reply, and where the token that ended it left the model.
pub type Show<'a> = dyn FnMut(&str, Option<ExitPoint>) -> Result<(), Failure> + 'a;

/// One reply and what led to it.
pub struct Reply {
    /// What the model was given, template applied.
    pub prompt_text: String,
    /// Tokens of it.
    pub prompt_tokens: usize,
    /// Tokens of it that had to be decoded, and how long that took.
    pub prompt_decoded: usize,
    pub prompt_elapsed: Duration,
    /// `None` if it was interrupted before the first token.
    pub generation: Option<Generation>,
}

impl Reply {
    pub fn text(&self) -> &str {
        self.generation.as_ref().map_or("", |generation| &generation.text)
    }

    pub fn stop_reason(&self) -> StopReason {
        self.generation.as_ref().map_or(StopReason::Cancelled, |generation| generation.stop_reason)
    }
}

pub struct Conversation {
    session: Session,
    template: Option<ChatTemplate>,
    settings: Settings,
    messages: Vec<Message>,
    /// The text so far, where there is no template.
    plain: String,
}

impl Conversation {
    /// `raw` leaves the model's chat template out.
    ///
    /// # Errors
    /// When the model's template does not parse.
    pub fn new(session: Session, settings: Settings, raw: bool) -> Result<Self, Failure> {
        let template = if raw { None } else { template_of(session.model())? };
        let mut conversation = Self { session, template, settings, messages: Vec::new(), plain: String::new() };
        conversation.restart();
        Ok(conversation)
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Forgets all turns but the system prompt. The cache is emptied too: where kernels round by batch width, a beginning
    /// that is reused differs in its last bits, and a reply must not depend on the conversations before.
    pub fn restart(&mut self) {
        self.session.clear();
        self.messages = self.settings.system.iter().map(|system| Message::new("system", system)).collect();
        self.plain = self.settings.system.iter().map(|system| format!("{system}\n\n")).collect();
    }

    /// Answers `turn`; the reply is shown in pieces of whole code points as it comes, each with where its last token left
    /// the model.
    ///
    /// # Errors
    /// The conversation is as it was before, without `turn`.
    pub fn reply(&mut self, turn: &str, show: &mut Show<'_>) -> Result<Reply, Failure> {
        let (prompt_text, tokens) = self.prompt(turn)?;
        let reply = self.generate(prompt_text, &tokens, show)?;
        if self.template.is_some() {
            self.messages.push(Message::new("user", turn));
            self.messages.push(Message::new("assistant", reply.text()));
        } else {
            self.plain = format!("{}{}", reply.prompt_text, reply.text());
        }
        Ok(reply)
    }

    /// What the model is given for `turn`: text and tokens.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn prompt(&self, turn: &str) -> Result<(String, Vec<Token>), Failure> {
        let vocab = self.session.model().vocab();
        let Some(template) = &self.template else {
            let text = format!("{}{turn}", self.plain);
            let tokens = vocab.tokenize(&text, true, true)?;
            return Ok((text, tokens));
        };
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", turn));
        let text = template.render(&messages, true).map_err(Failure::failed)?;
        // Templates write out the token that the tokenizer adds by itself; a model must not see it twice.
        let bos = special_text(self.session.model(), vocab.bos().filter(|_| vocab.adds_bos()));
        let tokens = vocab.tokenize(text.strip_prefix(&bos).unwrap_or(&text), true, true)?;
        Ok((text, tokens))
    }

    fn generate(&mut self, prompt_text: String, tokens: &[Token], show: &mut Show<'_>) -> Result<Reply, Failure> {
        let mut sampler = Sampler::new(self.session.model(), &self.settings.sampler)?;
        let _cancels = interrupt::cancels(&self.session.cancel_handle());
        let bar = progress::reading(tokens.len());
        let report = self.session.set_prompt(tokens, &mut |done| bar.set_position(done.done as u64));
        bar.finish_and_clear();
        let report = report?;
        let mut reply = Reply {
            prompt_text,
            prompt_tokens: tokens.len(),
            prompt_decoded: report.decoded,
            prompt_elapsed: report.elapsed,
            generation: None,
        };
        if report.cancelled {
            return Ok(reply);
        }
        let mut shown = 0;
        let mut outcome = Ok(());
        let generation = self.session.generate(&mut sampler, &self.settings.limits, &mut |event| {
            shown += event.text.len();
            outcome = show(event.text, event.exit);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome?;
        // What was held back because it could have been the beginning of a stop text.
        show(generation.text.get(shown..).unwrap_or_default(), None)?;
        reply.generation = Some(generation);
        Ok(reply)
    }
}

/// The model's chat template; `None` if it has none.
///
/// # Errors
/// When it does not parse.
pub fn template_of(model: &Model) -> Result<Option<ChatTemplate>, Failure> {
    let Some(source) = model.chat_template() else { return Ok(None) };
    let vocab = model.vocab();
    let (bos, eos) = (special_text(model, vocab.bos()), special_text(model, vocab.eos()));
    ChatTemplate::new(source, &bos, &eos).map(Some).map_err(Failure::failed)
}

/// How a special token is written in a text; empty for none.
pub fn special_text(model: &Model, token: Option<Token>) -> String {
    token.map_or_else(String::new, |token| model.vocab().text(&[token], true))
}
