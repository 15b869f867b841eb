//! `offramp chat`: a conversation with streaming. On a terminal it reads with a line editor; from a pipe it takes a line as a turn and ends with
//! the last one, so that a script never hangs. Ctrl-C stops a reply and keeps what there is of it; Ctrl-D leaves.

use std::path::Path;

use offramp::{Generation, Model, StopReason};

mod command;
mod figures;
mod input;
mod saved;
mod settings;

use crate::args::ChatArgs;
use crate::conversation::{Conversation, Settings};
use crate::failure::Failure;
use crate::marks::Marks;
use crate::output::{self, TextOutput};
use crate::thinking::{Part, Thinking};
use crate::{interrupt, prompts, style};
use command::{Command, Line, Shown};
use figures::Totals;
use input::Input;
use settings::Modes;

/// Tokens of the context that are left to a reply where old turns are forgotten to make room: this share of it.
const ROOM: usize = 8;

/// # Errors
/// When the model cannot be loaded or fails, and when the user interrupts twice.
pub fn chat(arguments: &ChatArgs) -> Result<(), Failure> {
    let settings = Settings {
        sampler: arguments.generation.sampler()?,
        limits: arguments.generation.limits(),
        system: arguments.generation.system_prompt.clone(),
    };
    // The line editor sees Ctrl-C as a key. As a signal it comes while loading, or while we wait for a pipe.
    interrupt::install(|| std::process::exit(130))?;
    let model = arguments.model.load()?;
    let session = arguments.model.open_chat_session(&model)?;
    output::announce(&session);
    let params = arguments.model.session_params(model.info().n_ctx_train);
    let modes = Modes { exits: params.exits, agreement: params.agreement };
    let conversation = Conversation::new(session, settings, false)?;
    if !conversation.has_template() {
        eprintln!(
            "offramp: this model has no chat template and will not answer like an assistant; take one that is tuned to chat"
        );
    }
    let input = Input::new();
    let mut chat = Chat { conversation, input, modes, totals: Totals::default(), last: None, attached: String::new() };
    if let Some(prompt) = &arguments.prompt {
        chat.answer(prompt)?;
    }
    if arguments.single_turn && arguments.prompt.is_some() {
        return Ok(());
    }
    if chat.input.is_terminal() {
        eprintln!("{}", style::dim("/help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves"));
    }
    chat.talk(arguments.single_turn)
}

struct Chat {
    conversation: Conversation,
    input: Input,
    modes: Modes,
    totals: Totals,
    /// The last reply, as long as it is part of the conversation.
    last: Option<Generation>,
    /// Texts of `/read`, for the next turn.
    attached: String,
}

impl Chat {
    /// Until the user leaves; with `single_turn`, until the first turn is answered.
    fn talk(&mut self, single_turn: bool) -> Result<(), Failure> {
        while let Some(line) = self.input.next_turn()? {
            match Line::read(&line) {
                Line::Turn(turn) if turn.trim().is_empty() => {}
                Line::Turn(turn) => {
                    self.answer(&turn)?;
                    if single_turn {
                        break;
                    }
                }
                Line::Command(Command::Exit) => break,
                Line::Command(command) => match self.obey(command) {
                    // A command that cannot be done is the user's to give again.
                    Err(Failure::Failed(reason) | Failure::Usage(reason)) => eprintln!("offramp: {reason}"),
                    done => done?,
                },
                Line::Wrong(reason) => eprintln!("offramp: {reason}"),
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Help => eprintln!("{}", command::help()),
            // The loop has seen to it.
            Command::Exit => {}
            Command::Clear => {
                self.conversation.restart();
                self.forget();
                eprintln!("offramp: a new conversation");
            }
            Command::Regenerate => match self.conversation.undo() {
                Some(turn) => return self.answer(&turn),
                None => eprintln!("offramp: there is no reply yet"),
            },
            Command::Undo => match self.conversation.undo() {
                Some(turn) => {
                    self.last = None;
                    eprintln!("offramp: taken back: {}", shortened(&turn));
                }
                None => eprintln!("offramp: there is nothing to take back"),
            },
            Command::System(text) => {
                let text = Some(text).filter(|text| !text.is_empty());
                eprintln!("offramp: {}", if text.is_some() { "the system prompt is set" } else { "no system prompt" });
                self.conversation.set_system(text);
            }
            Command::Set(Some((name, value))) => {
                settings::set(self.conversation.settings_mut(), &name, &value)?;
                eprintln!("offramp: {name} is {value}");
            }
            Command::Set(None) | Command::Show(Shown::Settings) => {
                eprint!("{}", settings::text(self.conversation.settings(), self.modes));
            }
            Command::Show(shown) => self.show(shown),
            Command::Read(path) => self.read(&path)?,
            Command::Save(path) => {
                saved::save(&mut self.conversation, &path)?;
                eprintln!("offramp: saved to {} and {0}.json", path.display());
            }
            Command::Load(path) => {
                let has_cache = saved::load(&mut self.conversation, &path)?;
                self.forget();
                let what = if has_cache { "" } else { "; its cache was not saved, so the next reply reads it again" };
                eprintln!("offramp: {} messages loaded{what}", self.conversation.messages().len());
            }
            Command::Stats => {
                if let Some(made) = &self.last {
                    eprintln!("last: {}", figures::line(made, self.conversation.session()));
                }
                eprintln!("{}", self.totals.text(self.model().info().n_layer));
            }
            Command::Context => eprintln!("{}", figures::context(self.conversation.session())),
            Command::Exits(None) => eprintln!("offramp: exits are {}", self.modes),
            Command::Exits(Some(word)) => {
                let modes = self.modes.changed(&word)?;
                self.conversation.session_mut().set_exits(modes.exits, modes.agreement)?;
                self.modes = modes;
                eprintln!("offramp: exits are {modes}");
                if !self.model().has_heads() && modes.exits == offramp::Exits::Calibrated {
                    eprintln!("offramp: this model has no exit heads, so that nothing exits; --heads FILE gives some");
                }
            }
            Command::ExitsShow => match &self.last {
                Some(made) => {
                    let marks = Marks::new(self.model().info().n_layer);
                    marks.explain();
                    let mut out = TextOutput::new();
                    out.show(&figures::exits(made, self.conversation.session(), marks))?;
                    out.end()?;
                }
                None => eprintln!("offramp: there is no reply yet"),
            },
        }
        Ok(())
    }

    fn model(&self) -> &Model {
        self.conversation.session().model()
    }

    fn forget(&mut self) {
        self.last = None;
        self.attached.clear();
    }

    fn show(&self, shown: Shown) {
        let info = self.model().info();
        match shown {
            Shown::System => {
                eprintln!("{}", self.conversation.settings().system.as_deref().unwrap_or("offramp: no system prompt"));
            }
            Shown::Template => {
                eprintln!("{}", self.model().chat_template().unwrap_or("offramp: this model has no chat template"));
            }
            Shown::Model | Shown::Settings => eprintln!(
                "{}\n{}, {} layers, trained with {} tokens of context, exit heads: {}",
                info.path.display(),
                info.description,
                info.n_layer,
                info.n_ctx_train,
                if self.model().has_heads() { "yes" } else { "none" }
            ),
        }
    }

    fn read(&mut self, path: &Path) -> Result<(), Failure> {
        let text = prompts::read_text(path)?;
        let n = self.model().vocab().tokenize(&text, false, false)?.len();
        self.attached.push_str(&text);
        self.attached.push_str("\n\n");
        eprintln!("offramp: {n} tokens of {} go before your next message", path.display());
        Ok(())
    }

    /// Answers a turn; where it does not fit, asks what to do on a terminal and fails elsewhere.
    fn answer(&mut self, turn: &str) -> Result<(), Failure> {
        let turn = format!("{}{turn}", std::mem::take(&mut self.attached));
        let is_terminal = self.input.is_terminal();
        loop {
            match self.reply(&turn) {
                Err(Failure::Failed(reason)) if is_terminal => {
                    eprintln!("offramp: {reason}");
                    let is_full = reason.starts_with("context_length_exceeded");
                    if !is_full || !self.make_room(&turn)? {
                        return Ok(());
                    }
                }
                done => return done,
            }
        }
    }

    /// Asks what to do about a full context. True if the turn is to be tried again.
    fn make_room(&mut self, turn: &str) -> Result<bool, Failure> {
        eprintln!(
            "  1  forget the oldest turns, as many as it takes\n  2  start a new conversation with this message\n  3  take the message back"
        );
        match self.input.ask("1, 2 or 3 [3]: ")?.as_str() {
            "1" => {
                let n_ctx = self.conversation.session().n_ctx();
                let mut n_forgotten = 0;
                while self.conversation.prompt(turn)?.1.len() > n_ctx - n_ctx / ROOM {
                    if !self.conversation.forget_oldest() {
                        break;
                    }
                    n_forgotten += 1;
                }
                eprintln!("offramp: {n_forgotten} turns forgotten");
                Ok(n_forgotten > 0)
            }
            "2" => {
                let had_turns = self.conversation.messages().iter().any(|message| message.role != "system");
                self.conversation.restart();
                self.last = None;
                // A message that is too long by itself is too long again.
                Ok(had_turns)
            }
            _ => Ok(false),
        }
    }

    fn reply(&mut self, turn: &str) -> Result<(), Failure> {
        let is_terminal = self.input.is_terminal();
        let mut text = TextOutput::new();
        let splits = is_terminal && text.is_coloured();
        let mut thinking = Thinking::new(&self.conversation.prompt(turn)?.0);
        let reply = self.conversation.reply(turn, &mut |piece, _| match splits {
            true => thinking.push(piece).into_iter().try_for_each(|part| show_part(&mut text, part)),
            false => text.show(piece),
        });
        if let Some(part) = thinking.finish().filter(|_| splits) {
            show_part(&mut text, part)?;
        }
        text.end()?;
        let reply = reply?;
        self.totals.add(&reply);
        if reply.stop_reason() == StopReason::Cancelled {
            if !is_terminal {
                return Err(Failure::Interrupted);
            }
            eprintln!("{}", style::dim("stopped"));
            interrupt::forget();
        }
        self.last = reply.generation;
        let Some(made) = &self.last else { return Ok(()) };
        if made.context_full {
            output::report_full_context(self.conversation.session());
        }
        if is_terminal {
            eprintln!("{}", style::dim(&figures::line(made, self.conversation.session())));
        }
        Ok(())
    }
}

/// Thoughts are dim.
fn show_part(out: &mut TextOutput, (part, text): (Part, String)) -> Result<(), Failure> {
    match part {
        Part::Thought => out.show(&format!("\x1b[2m{text}\x1b[0m")),
        Part::Answer => out.show(&text),
    }
}

/// The beginning of a text, in one line.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} …", &line[..at]),
        None => line,
    }
}
