//! `offramp chat`: a conversation with streaming. On a terminal it reads with a line editor; from a pipe it takes a line as a turn and ends with
//! the last one, so that a script never hangs. Ctrl-C stops a reply and keeps what there is of it; Ctrl-D leaves.

use offramp::StopReason;

use crate::args::ChatArgs;
use crate::chat_input::Input;
use crate::conversation::{Conversation, Settings};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, TextOutput};

const HELP: &str = "\
/help    show this
/clear   start a new conversation
/exit    leave (or Ctrl-D)
Ctrl-C stops a reply; what there is of it stays in the conversation.";

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
    let session = arguments.model.open_session(&model)?;
    output::announce(&session);
    let mut conversation = Conversation::new(session, settings, false)?;
    if !conversation.has_template() {
        eprintln!(
            "offramp: this model has no chat template and will not answer like an assistant; take one that is tuned to chat"
        );
    }
    let mut input = Input::new();
    if input.is_terminal() {
        eprintln!("offramp: /help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves");
    }
    while let Some(line) = input.next_turn()? {
        match line.trim() {
            "" => {}
            "/exit" | "/bye" | "/quit" => break,
            "/help" | "/?" => eprintln!("{HELP}"),
            "/clear" => {
                conversation.restart();
                eprintln!("offramp: a new conversation");
            }
            command
                if command.starts_with('/')
                    && !command.contains(char::is_whitespace)
                    && !command[1..].contains('/') =>
            {
                eprintln!("offramp: there is no command {command}; /help lists those that there are");
            }
            _ => answer(&mut conversation, &line, input.is_terminal())?,
        }
    }
    Ok(())
}

fn answer(conversation: &mut Conversation, turn: &str, is_terminal: bool) -> Result<(), Failure> {
    let mut text = TextOutput::new();
    let reply = match conversation.reply(turn, &mut |piece, _| text.show(piece)) {
        // A turn that does not fit or that the template refuses is the user's to change; the conversation is as before.
        Err(Failure::Failed(reason)) if is_terminal => {
            text.end()?;
            eprintln!("offramp: {reason}");
            return Ok(());
        }
        reply => reply?,
    };
    text.end()?;
    if reply.stop_reason() == StopReason::Cancelled {
        if !is_terminal {
            return Err(Failure::Interrupted);
        }
        eprintln!("offramp: stopped");
        interrupt::forget();
    }
    if reply.generation.is_some_and(|made| made.context_full) {
        output::report_full_context(conversation.session());
    }
    Ok(())
}
