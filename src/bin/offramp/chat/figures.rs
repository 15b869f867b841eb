//! The figures of a chat: one line after each reply, and what `/stats`, `/context` and `/exits show` print.

use std::time::Duration;

use offramp::measure::Depths;
use offramp::{ExitPoint, Generation, Session};

use crate::conversation::Reply;
use crate::marks::Marks;
use crate::output;

/// Columns of the longest bar.
const BAR: usize = 40;

/// Sums over a chat.
#[derive(Debug, Default)]
pub struct Totals {
    n_replies: usize,
    n_prompt: usize,
    prompt: Duration,
    n_tokens: usize,
    decode: Duration,
    depths: Depths,
}

impl Totals {
    pub fn add(&mut self, reply: &Reply) {
        self.n_prompt += reply.prompt_decoded;
        self.prompt += reply.prompt_elapsed;
        if let Some(made) = &reply.generation {
            self.n_replies += 1;
            self.n_tokens += made.tokens.len();
            self.decode += made.elapsed;
            self.depths.add(&Depths::of(&made.exits));
        }
    }

    /// What `/stats` prints of the whole chat.
    pub fn text(&self, n_layer: u32) -> String {
        let mut text = format!(
            "chat: {}, {} ({}), {} ({})",
            count(self.n_replies, "reply", "replies"),
            count(self.n_tokens, "token", "tokens"),
            rate(self.n_tokens, self.decode),
            count(self.n_prompt, "prompt token", "prompt tokens"),
            rate(self.n_prompt, self.prompt),
        );
        if let Some(mean) = self.depths.mean(n_layer) {
            text.push_str(&format!(", mean depth {mean:.1}"));
        }
        text
    }
}

/// `n` of what `one` names, or `many` where it is not one.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn rate(n: usize, time: Duration) -> String {
    if n == 0 || time.is_zero() { "-".to_owned() } else { format!("{:.1}/s", n as f64 / time.as_secs_f64()) }
}

/// One line about a reply: its speed, that speed against full depth as far as it is known, and how deep its tokens went.
pub fn line(made: &Generation, session: &Session) -> String {
    let n_layer = session.model().info().n_layer;
    let n = made.tokens.len();
    let mut parts = vec![count(n, "token", "tokens"), rate(n, made.elapsed).replace("/s", " tokens/s")];
    let depths = Depths::of(&made.exits);
    let has_left = depths.full < depths.n_tokens() || made.n_drafted > 0;
    // The first token's logits come with the prompt.
    if let Some(full) = session.full_depth_cost().filter(|_| has_left && n > 1 && !made.elapsed.is_zero()) {
        let speed = full.as_secs_f64() * (n - 1) as f64 / made.elapsed.as_secs_f64();
        parts.push(format!("about {speed:.2} times full depth"));
    }
    if let Some(mean) = depths.mean(n_layer).filter(|_| depths.full < depths.n_tokens()) {
        parts.push(format!("mean depth {mean:.1} of {n_layer}"));
    }
    if made.n_drafted > 0 {
        parts.push(format!("{} of {} drafts right", made.n_right, made.n_drafted));
    }
    parts.join(", ")
}

/// How full the context is.
pub fn context(session: &Session) -> String {
    // The last token of a full context is in the text, and has no place in the cache.
    let all = session.n_ctx();
    let used = session.tokens().len().min(all);
    let filled = (used * BAR).div_ceil(all.max(1)).min(BAR);
    format!("context: {used} of {all} tokens [{}{}]", "#".repeat(filled), ".".repeat(BAR - filled))
}

/// The reply with each token marked by its exit, and a histogram of the exits.
pub fn exits(made: &Generation, session: &Session, marks: Marks) -> String {
    let vocab = session.model().vocab();
    let mut text = String::new();
    let mut bytes = Vec::new();
    for (token, exit) in made.tokens.iter().zip(&made.exits) {
        bytes.extend(vocab.piece(*token, false));
        // A token may end inside of a code point: then its text comes with the next one.
        if std::str::from_utf8(&bytes).is_err_and(|error| error.error_len().is_none()) {
            continue;
        }
        text.push_str(&marks.mark(&output::for_stdout(&String::from_utf8_lossy(&bytes)), *exit));
        bytes.clear();
    }
    text.push_str("\n\n");
    text.push_str(&histogram(&Depths::of(&made.exits), marks));
    text
}

/// A row for each exit that was taken, its bar in the colour of its tokens, so that it explains the colours too.
fn histogram(depths: &Depths, marks: Marks) -> String {
    let layers = depths.layers.iter().map(|(il, n)| {
        let name = format!("after layer {il}");
        (name, *n, Some(ExitPoint::Layer(*il)))
    });
    let rest = [("screen".to_owned(), depths.screen, Some(ExitPoint::Screen)), ("full".to_owned(), depths.full, None)];
    let rows: Vec<_> = layers.chain(rest).filter(|(_, n, _)| *n > 0).collect();
    let most = rows.iter().map(|(_, n, _)| *n).max().unwrap_or(1).max(1);
    let all = depths.n_tokens().max(1);
    let mut text = String::new();
    for (name, n, exit) in rows {
        let bar = marks.paint(&"#".repeat((n * BAR).div_ceil(most)), exit);
        text.push_str(&format!("{name:>16} {n:>5} {:>4.0} % {bar}\n", 100.0 * n as f64 / all as f64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_a_row_for_each_exit_that_was_taken() {
        let exits = [None, None, Some(ExitPoint::Layer(9)), Some(ExitPoint::Screen)];
        let text = histogram(&Depths::of(&exits), Marks::plain(30));
        let rows: Vec<&str> = text.lines().map(str::trim).collect();
        assert!(rows[0].starts_with("after layer 9") && rows[0].ends_with(&"#".repeat(20)), "{text}");
        assert!(rows[1].starts_with("screen") && rows[2].starts_with("full"), "{text}");
        assert!(rows[2].contains("50 %") && rows[2].ends_with(&"#".repeat(40)), "{text}");
    }
}
