//! Tells what a model thinks aloud from its answer: the text between `<think>` and `</think>` at the beginning of a reply.
//! Streaming: what may be the beginning of a tag is held back until it is known. Tags elsewhere are plain text.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What a piece of a reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Thought,
    Answer,
}

/// Splits a reply as it comes.
#[derive(Debug)]
pub struct Thinking {
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but blanks and what may become the tag.
    Start,
    /// After the opening tag: line breaks before the thought are not part of it.
    Opened,
    Thought,
    /// After the closing tag: blanks before the answer are not part of it.
    Gap,
    Answer,
}

impl Thinking {
    /// Of a reply to `prompt`: some templates open the tag there.
    pub fn new(prompt: &str) -> Self {
        let state = if prompt.trim_end().ends_with(OPEN) { State::Opened } else { State::Start };
        Self { state, held: String::new() }
    }

    /// Takes the next piece of the reply and gives what is known to be thought or answer.
    pub fn push(&mut self, text: &str) -> Vec<(Part, String)> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            match self.state {
                State::Start => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.state = State::Opened;
                    } else if OPEN.starts_with(begun) {
                        return parts;
                    } else {
                        self.state = State::Answer;
                    }
                }
                State::Opened => {
                    self.held = self.held.trim_start_matches(['\r', '\n']).to_owned();
                    if self.held.is_empty() {
                        return parts;
                    }
                    self.state = State::Thought;
                }
                State::Thought => {
                    let (end, next) = match self.held.find(CLOSE) {
                        Some(at) => (at, Some(at + CLOSE.len())),
                        None => (self.held.len() - beginning_of(CLOSE, &self.held), None),
                    };
                    add(&mut parts, Part::Thought, &self.held[..end]);
                    self.held.drain(..next.unwrap_or(end));
                    if next.is_none() {
                        return parts;
                    }
                    self.state = State::Gap;
                }
                State::Gap => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return parts;
                    }
                    self.state = State::Answer;
                }
                State::Answer => {
                    add(&mut parts, Part::Answer, &std::mem::take(&mut self.held));
                    return parts;
                }
            }
        }
    }

    /// What was held back, at the end of the reply.
    pub fn finish(&mut self) -> Option<(Part, String)> {
        let part = if self.state == State::Thought { Part::Thought } else { Part::Answer };
        let rest = std::mem::take(&mut self.held);
        (!rest.is_empty()).then_some((part, rest))
    }
}

fn add(parts: &mut Vec<(Part, String)>, part: Part, text: &str) {
    if !text.is_empty() {
        parts.push((part, text.to_owned()));
    }
}

/// Length of the longest end of `text` that `tag` begins with.
fn beginning_of(tag: &str, text: &str) -> usize {
    (1..tag.len()).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Thought and answer of a reply that comes in pieces.
    fn split(prompt: &str, pieces: &[&str]) -> (String, String) {
        let mut thinking = Thinking::new(prompt);
        let mut parts: Vec<_> = pieces.iter().flat_map(|piece| thinking.push(piece)).collect();
        parts.extend(thinking.finish());
        let of = |wanted| parts.iter().filter(|(part, _)| *part == wanted).map(|(_, text)| text.as_str()).collect();
        (of(Part::Thought), of(Part::Answer))
    }

    fn both(thought: &str, answer: &str) -> (String, String) {
        (thought.to_owned(), answer.to_owned())
    }

    #[test]
    fn a_thought_at_the_beginning_is_told_apart() {
        assert_eq!(split("", &["\n<thi", "nk>\na b</th", "ink>\n\nyes"]), both("a b", "yes"));
        assert_eq!(split("…<think>\n", &["a</think>yes"]), both("a", "yes"));
        assert_eq!(split("", &["<think>", "\n", "a</think>", "\n", "yes"]), both("a", "yes"));
    }

    #[test]
    fn a_tag_elsewhere_is_text() {
        assert_eq!(split("", &["see <think>", "x</think>"]), both("", "see <think>x</think>"));
        assert_eq!(split("", &["<b>x"]), both("", "<b>x"));
    }

    #[test]
    fn what_is_held_back_comes_at_the_end() {
        assert_eq!(split("", &["<think>a</thi"]), both("a</thi", ""));
        assert_eq!(split("", &[" <th"]), both("", " <th"));
    }

    proptest! {
        #[test]
        fn pieces_split_as_the_whole_does(text in "(<think>)?[ab<>/\n]{0,8}(</think>)?[ab<\n]{0,6}", cut in 1usize..6) {
            let pieces: Vec<String> = text.chars().collect::<Vec<_>>().chunks(cut).map(|piece| piece.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(split("", &pieces), split("", &[&text]));
        }
    }
}
