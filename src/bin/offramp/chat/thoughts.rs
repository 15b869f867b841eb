//! How a reply with thoughts looks on a terminal that shows colours: the thought and its tags are dim, and an empty line
//! stands between it and the answer. What a script gets is the model's text as it is, so this is for terminals alone.

use crate::thinking::Part;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Where in a reply the writing is.
#[derive(Debug, Default)]
pub struct Thoughts {
    last: Option<Part>,
    ends_line: bool,
}

impl Thoughts {
    /// What is to be written for the next part of a reply. The tags are those that the splitting took away, or that the
    /// prompt ended with.
    pub fn show(&mut self, (part, text): (Part, String)) -> String {
        let line = if self.ends_line { "" } else { "\n" };
        let before = match (self.last.replace(part), part) {
            (None | Some(Part::Answer), Part::Thought) => format!("{DIM}<think>{PLAIN}\n"),
            (Some(Part::Thought), Part::Answer) => format!("{line}{DIM}</think>{PLAIN}\n\n"),
            _ => String::new(),
        };
        self.ends_line = text.ends_with('\n');
        match part {
            Part::Thought => format!("{before}{DIM}{text}{PLAIN}"),
            Part::Answer => before + &text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parts: &[(Part, &str)]) -> String {
        let mut thoughts = Thoughts::default();
        let shown: String = parts.iter().map(|(part, text)| thoughts.show((*part, (*text).to_owned()))).collect();
        shown.replace(DIM, "[").replace(PLAIN, "]")
    }

    #[test]
    fn a_thought_and_its_tags_are_dim_and_apart_from_the_answer() {
        let parts = [(Part::Thought, "let me"), (Part::Thought, " see"), (Part::Answer, "Blue"), (Part::Answer, ".")];
        assert_eq!(shown(&parts), "[<think>]\n[let me][ see]\n[</think>]\n\nBlue.");
        assert_eq!(shown(&[(Part::Thought, "a\n"), (Part::Answer, "b")]), "[<think>]\n[a\n][</think>]\n\nb");
    }

    #[test]
    fn a_reply_without_thoughts_stays_as_it_is() {
        assert_eq!(shown(&[(Part::Answer, "a\n"), (Part::Answer, "b")]), "a\nb");
    }
}
