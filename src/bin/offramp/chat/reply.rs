//! Answering a turn: the reply as it comes, what is said after it, and the choice where it does not fit into the context.
//! Nothing is ever cut off unasked: on a terminal the user says what to forget, elsewhere the chat ends with an error.

use offramp::{Generation, StopReason};

use super::thoughts::Thoughts;
use super::{Chat, figures};
use crate::failure::Failure;
use crate::output::{self, TextOutput};
use crate::thinking::Thinking;
use crate::{interrupt, style};

/// Tokens of the context that are left to a reply where old turns are forgotten to make room: this share of it.
const ROOM: usize = 8;

impl Chat {
    /// Answers a turn; where it does not fit, asks what to do on a terminal and fails elsewhere.
    pub(super) fn answer(&mut self, turn: &str) -> Result<(), Failure> {
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
        let n_ctx = self.conversation.session().n_ctx();
        if self.conversation.tokens_alone(turn)? > n_ctx {
            eprintln!(
                "offramp: it would not fit into a new conversation either; it was not sent, \u{2191} has it again"
            );
            return Ok(false);
        }
        eprintln!(
            "  1  forget the oldest turns, as many as it takes\n  2  start a new conversation with this message\n  3  take the message back"
        );
        match self.input.ask("1, 2 or 3 [3]: ")?.as_str() {
            "1" => {
                let mut n_forgotten = 0;
                while self.conversation.prompt(turn)?.1.len() > n_ctx - n_ctx / ROOM {
                    if !self.conversation.forget_oldest() {
                        break;
                    }
                    n_forgotten += 1;
                }
                eprintln!("offramp: {} forgotten", figures::count(n_forgotten, "turn", "turns"));
                Ok(n_forgotten > 0)
            }
            "2" => {
                self.conversation.restart();
                self.last = None;
                Ok(true)
            }
            _ => {
                eprintln!("offramp: it was not sent; \u{2191} has it again");
                Ok(false)
            }
        }
    }

    fn reply(&mut self, turn: &str) -> Result<(), Failure> {
        let is_terminal = self.input.is_terminal();
        let mut text = TextOutput::new();
        let splits = is_terminal && text.is_coloured();
        let mut thinking = Thinking::new(&self.conversation.prompt(turn)?.0);
        let mut thoughts = Thoughts::default();
        let reply = self.conversation.reply(turn, &mut |piece, _| match splits {
            true => {
                let parts = thinking.push(&output::for_stdout(piece));
                parts.into_iter().try_for_each(|part| text.show(&thoughts.show(part)))
            }
            false => text.show(&output::for_stdout(piece)),
        });
        if let Some(part) = thinking.finish().filter(|_| splits) {
            text.show(&thoughts.show(part))?;
        }
        text.end()?;
        let reply = reply?;
        self.totals.add(&reply);
        let is_stopped = reply.stop_reason() == StopReason::Cancelled;
        if is_stopped && !is_terminal {
            return Err(Failure::Interrupted);
        }
        if is_stopped {
            interrupt::forget();
        }
        self.last = reply.generation;
        if is_terminal {
            self.tell_of(self.last.as_ref(), is_stopped);
        } else if self.last.as_ref().is_some_and(|made| made.context_full) {
            output::report_full_context(self.conversation.session());
        }
        Ok(())
    }

    /// What a person is told after a reply.
    fn tell_of(&self, made: Option<&Generation>, is_stopped: bool) {
        let Some(made) = made else {
            let told = "stopped while it was read: /regen goes on with it, /undo takes it back";
            return eprintln!("{}\n", style::dim(told));
        };
        let stopped = if is_stopped { "stopped; " } else { "" };
        eprintln!("{}", style::dim(&format!("{stopped}{}", figures::line(made, self.conversation.session()))));
        if made.context_full {
            eprintln!(
                "offramp: the context of {} tokens is full, so the reply ends here; with your next message you can say what to forget",
                self.conversation.session().n_ctx()
            );
        }
        eprintln!();
    }
}
