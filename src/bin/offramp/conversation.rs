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
    /// The turns so far, and what was there before each.
    past: Vec<Past>,
}

/// A turn that was answered, and how much of messages and text there was before it.
struct Past {
    turn: String,
    n_messages: usize,
    n_plain: usize,
}

impl Conversation {
    /// `raw` leaves the model's chat template out.
    ///
    /// # Errors
    /// When the model's template does not parse.
    pub fn new(session: Session, settings: Settings, raw: bool) -> Result<Self, Failure> {
        let template = if raw { None } else { template_of(session.model())? };
        let mut conversation =
            Self { session, template, settings, messages: Vec::new(), plain: String::new(), past: Vec::new() };
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
        (self.messages, self.plain) = beginning(&self.settings);
        self.past.clear();
    }

    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What replies from now on are made with; the system prompt has [`Conversation::set_system`].
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// What has been said. Where there is no template, it is one message of the role `text`.
    pub fn messages(&self) -> Vec<Message> {
        match self.template {
            Some(_) => self.messages.clone(),
            None => vec![Message::new("text", &self.plain)],
        }
    }

    /// Makes `messages` the conversation. The cache keeps what it shares with them.
    pub fn replace(&mut self, messages: Vec<Message>) {
        self.plain = messages.iter().map(|message| message.content.as_str()).collect();
        self.settings.system =
            messages.first().filter(|first| first.role == "system").map(|first| first.content.clone());
        self.messages = messages;
        self.recall();
    }

    /// Finds the turns of the messages again.
    fn recall(&mut self) {
        let turns = self.messages.iter().enumerate().filter(|(_, message)| message.role == "user");
        self.past = turns
            .map(|(n_messages, message)| Past { turn: message.content.clone(), n_messages, n_plain: self.plain.len() })
            .collect();
    }

    /// Changes the system prompt of this conversation and of later ones. Where there is no template, of later ones alone.
    pub fn set_system(&mut self, system: Option<String>) {
        if self.messages.first().is_some_and(|first| first.role == "system") {
            self.messages.remove(0);
        }
        if let Some(system) = &system {
            self.messages.insert(0, Message::new("system", system));
        }
        self.settings.system = system;
        if self.template.is_some() {
            self.recall();
        }
    }

    /// Takes the last turn and its reply back and gives the turn; `None` if there is none.
    pub fn undo(&mut self) -> Option<String> {
        let past = self.past.pop()?;
        self.messages.truncate(past.n_messages);
        self.plain.truncate(past.n_plain);
        Some(past.turn)
    }

    /// Forgets the oldest turn and its reply, not the system prompt. False if there is none that could be told apart.
    pub fn forget_oldest(&mut self) -> bool {
        let is_user = |message: &Message| message.role == "user";
        let Some(first) = self.messages.iter().position(is_user).filter(|_| self.template.is_some()) else {
            return false;
        };
        let after = self.messages[first + 1..].iter().position(is_user);
        self.messages.drain(first..after.map_or(self.messages.len(), |n| first + 1 + n));
        self.recall();
        true
    }

    /// Answers `turn`; the reply is shown in pieces of whole code points as it comes, each with where its last token left
    /// the model.
    ///
    /// # Errors
    /// The conversation is as it was before, without `turn`.
    pub fn reply(&mut self, turn: &str, show: &mut Show<'_>) -> Result<Reply, Failure> {
        let (prompt_text, tokens) = self.prompt(turn)?;
        let reply = self.generate(prompt_text, &tokens, show)?;
        let past = Past { turn: turn.to_owned(), n_messages: self.messages.len(), n_plain: self.plain.len() };
        self.past.push(past);
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
        self.render(&self.plain, self.messages.clone(), turn)
    }

    /// How many tokens `turn` would be in a conversation of its own, system prompt included.
    ///
    /// # Errors
    /// As [`Conversation::prompt`].
    pub fn tokens_alone(&self, turn: &str) -> Result<usize, Failure> {
        let (messages, plain) = beginning(&self.settings);
        Ok(self.render(&plain, messages, turn)?.1.len())
    }

    fn render(&self, plain: &str, mut messages: Vec<Message>, turn: &str) -> Result<(String, Vec<Token>), Failure> {
        let vocab = self.session.model().vocab();
        let Some(template) = &self.template else {
            let text = format!("{plain}{turn}");
            let tokens = vocab.tokenize_prompt(&text, true)?;
            return Ok((text, tokens));
        };
        messages.push(Message::new("user", turn));
        let text = template.render(&messages, true).map_err(Failure::failed)?;
        // Templates write out the token that the tokenizer adds by itself; a model must not see it twice.
        let bos = special_text(self.session.model(), vocab.bos().filter(|_| vocab.adds_bos()));
        let tokens = vocab.tokenize_prompt(text.strip_prefix(&bos).unwrap_or(&text), true)?;
        Ok((text, tokens))
    }

    fn generate(&mut self, prompt_text: String, tokens: &[Token], show: &mut Show<'_>) -> Result<Reply, Failure> {
        let mut sampler = Sampler::new(self.session.model(), &self.settings.sampler)?;
        let _cancels = interrupt::cancels(&self.session.cancel_handle());
        let bar = progress::reading(tokens.len());
        let report = self.session.set_prompt(tokens, &mut |done| bar.advance(done.done));
        drop(bar);
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

/// What a conversation begins with: the system prompt, as a message and as text.
fn beginning(settings: &Settings) -> (Vec<Message>, String) {
    let messages = settings.system.iter().map(|system| Message::new("system", system)).collect();
    (messages, settings.system.iter().map(|system| format!("{system}\n\n")).collect())
}

/// The model's chat template; `None` if it has none.
///
/// # Errors
/// When it does not parse.
pub fn template_of(model: &Model) -> Result<Option<ChatTemplate>, Failure> {
    model.chat_template().map(|source| parsed(model, source)).transpose()
}

/// The model's template for conversations with tools; `None` if it has none of its own.
///
/// # Errors
/// When it does not parse.
#[cfg_attr(not(feature = "serve"), allow(dead_code))]
pub fn tool_template_of(model: &Model) -> Result<Option<ChatTemplate>, Failure> {
    model.tool_template().map(|source| parsed(model, source)).transpose()
}

fn parsed(model: &Model, source: &str) -> Result<ChatTemplate, Failure> {
    let vocab = model.vocab();
    let (bos, eos) = (special_text(model, vocab.bos()), special_text(model, vocab.eos()));
    ChatTemplate::new(source, &bos, &eos).map_err(Failure::failed)
}

/// How a special token is written in a text; empty for none.
pub fn special_text(model: &Model, token: Option<Token>) -> String {
    token.map_or_else(String::new, |token| model.vocab().text(&[token], true))
}
