//! `offramp run`: answers prompts, one after another in one process, and ends.

use std::time::Instant;

use offramp::StopReason;

use crate::args::RunArgs;
use crate::conversation::{Conversation, Reply};
use crate::failure::Failure;
use crate::interrupt;
use crate::marks::Marks;
use crate::output::{self, TextOutput, Timings};
use crate::prompts::{self, Prompt};

/// # Errors
/// When a prompt cannot be read or answered, and when the user interrupts; what was generated until then has been written.
pub fn run(arguments: &RunArgs) -> Result<(), Failure> {
    let prompts = prompts::read(&arguments.prompt)?;
    let settings = arguments.generation.settings()?;
    interrupt::install(|| {})?;
    let start = Instant::now();
    let model = arguments.model.load()?;
    let session = arguments.model.open_session(&model)?;
    let load = start.elapsed();
    output::announce(&session, &arguments.model.modes().told_briefly(&model));
    let mut conversation = Conversation::new(session, settings, arguments.raw)?;
    if !arguments.raw && !conversation.has_template() {
        eprintln!("offramp: this model has no chat template, the text is given to it as it is");
    }
    let marks = arguments.show_exits.then(|| Marks::new(model.info().n_layer));
    if let Some(marks) = marks {
        marks.explain();
    }
    let several = prompts.len() > 1;
    for prompt in &prompts {
        let replies = answer(&mut conversation, prompt, arguments.json, marks).map_err(|failure| match failure {
            Failure::Failed(reason) if several => Failure::Failed(format!("prompt {}: {reason}", prompt.id)),
            failure => failure,
        })?;
        let timings = Timings::new(load, &replies);
        if arguments.json {
            output::write_record(&prompt.id, &replies, timings)?;
        }
        timings.report(&replies);
        if replies.last().is_some_and(|reply| reply.stop_reason() == StopReason::Cancelled) {
            return Err(Failure::Interrupted);
        }
    }
    Ok(())
}

/// The replies to all turns of a prompt, up to one that was interrupted.
fn answer(
    conversation: &mut Conversation,
    prompt: &Prompt,
    json: bool,
    marks: Option<Marks>,
) -> Result<Vec<Reply>, Failure> {
    conversation.restart();
    let mut replies = Vec::new();
    for turn in &prompt.turns {
        let mut text = TextOutput::new();
        let reply = conversation.reply(turn, &mut |piece, exit| match marks {
            _ if json => Ok(()),
            Some(marks) => text.show(&marks.mark(&output::for_stdout(piece), exit)),
            None => text.show(&output::for_stdout(piece)),
        })?;
        text.end()?;
        if reply.generation.as_ref().is_some_and(|made| made.context_full) {
            output::report_full_context(conversation.session());
        }
        let cancelled = reply.stop_reason() == StopReason::Cancelled;
        replies.push(reply);
        if cancelled {
            break;
        }
    }
    Ok(replies)
}
