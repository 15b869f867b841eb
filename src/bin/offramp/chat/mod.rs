//! `offramp chat`: a conversation with streaming. On a terminal it reads with a line editor; from a pipe it takes a line as a turn and ends with
//! the last one, so that a script never hangs. Ctrl-C stops a reply and keeps what there is of it; Ctrl-D leaves.

use std::path::Path;

use offramp::{Generation, Model};

mod command;
mod figures;
mod input;
mod reply;
mod saved;
mod settings;
mod thoughts;

use crate::args::ChatArgs;
use crate::conversation::Conversation;
use crate::failure::Failure;
use crate::marks::Marks;
use crate::modes::Modes;
use crate::output::{self, TextOutput};
use crate::{interrupt, prompts, style, terminal};
use command::{Command, Line, Shown};
use figures::Totals;
use input::Input;

/// # Errors
/// When the model cannot be loaded or fails, and when the user interrupts twice.
pub fn chat(arguments: &ChatArgs) -> Result<(), Failure> {
    let settings = arguments.generation.settings()?;
    let first = match &arguments.file {
        Some(path) => Some(prompts::read_text(path)?),
        None => arguments.prompt.clone(),
    };
    // Without a turn after the first one nobody else would read the pipe.
    let reads_pipe = arguments.single_turn && !arguments.file.as_deref().is_some_and(prompts::is_stdin);
    let first = match first {
        Some(turn) if reads_pipe => Some(prompts::beside_pipe(turn)?),
        first => first,
    };
    // The line editor sees Ctrl-C as a key. As a signal it comes while loading, or while we wait for a pipe.
    interrupt::install(interrupt::leave)?;
    let input = Input::new();
    let _quiet = input.is_terminal().then(terminal::quiet);
    let model = arguments.model.load()?;
    let session = arguments.model.open_chat_session(&model)?;
    let modes = arguments.model.modes();
    output::announce(&session, &modes.told_briefly(&model));
    let conversation = Conversation::new(session, settings, false)?;
    if !conversation.has_template() {
        eprintln!(
            "offramp: this model has no chat template and will not answer like an assistant; take one that is tuned to chat"
        );
    }
    let mut chat = Chat { conversation, input, modes, totals: Totals::default(), last: None, attached: String::new() };
    if let Some(turn) = &first {
        chat.answer(turn)?;
        if arguments.single_turn {
            return Ok(());
        }
    }
    if chat.input.is_terminal() {
        eprintln!("{}\n", style::dim("/help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves"));
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
                Line::Unknown(turn) => {
                    eprintln!(
                        "offramp: there is no command {turn}, so it goes to the model; /help lists those that there are"
                    );
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
                let n = figures::count(self.conversation.messages().len(), "message", "messages");
                eprintln!("offramp: {n} loaded{what}");
            }
            Command::Stats => {
                if let Some(made) = &self.last {
                    eprintln!("last: {}", figures::line(made, self.conversation.session()));
                }
                eprintln!("{}", self.totals.text(self.model().info().n_layer));
            }
            Command::Context => eprintln!("{}", figures::context(self.conversation.session())),
            Command::Exits(None) => self.tell_exits(),
            Command::Exits(Some(word)) => {
                let modes = self.modes.changed(&word)?;
                self.conversation.session_mut().set_exits(modes.exits, modes.agreement)?;
                self.modes = modes;
                self.tell_exits();
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

    fn tell_exits(&self) {
        eprintln!("offramp: {}", self.modes.told(self.model()));
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
                let template = self.model().chat_template().unwrap_or("offramp: this model has no chat template");
                eprintln!("{}", output::tamed(template));
            }
            Shown::Model | Shown::Settings => eprintln!(
                "{}\n{}, {} layers, trained with {} tokens of context, exit heads: {}",
                info.path.display(),
                output::weights(info),
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
