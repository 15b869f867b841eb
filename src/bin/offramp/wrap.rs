//! Ends the lines of a text that comes in pieces between words, for a terminal that would break them anywhere.
//!
//! A word waits until it is whole; one that is longer than a line is left to the terminal, so that it can be copied. It
//! refuses nothing: where the width is not known the text stays as it is.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A terminal with fewer columns is left alone.
const LEAST: usize = 8;
/// Columns between two stops of the tabulator.
const TAB: usize = 8;
const ZERO_WIDTH_JOINER: char = '\u{200d}';
/// Signs as wide as ideographs that no line begins with, and that no line ends with.
const CLOSING: &str = "、。，．：；？！）」』】〉》〕］｝…ー・々";
const OPENING: &str = "（「『【〈《〔［｛";

/// Where on its line the text is.
#[derive(Debug, Default)]
pub struct Wrap {
    columns: Option<usize>,
    /// Columns of the line that are written.
    column: usize,
    /// Blanks before the word, which the end of a line takes the place of.
    gap: String,
    /// The word that waits, with the escape codes inside of it.
    word: String,
    in_escape: bool,
    /// The word goes on where a longer part of it is written already.
    is_split: bool,
}

impl Wrap {
    /// What is to be written of the text with `text` behind it, on a terminal of `columns`.
    pub fn push(&mut self, text: &str, columns: Option<usize>) -> String {
        self.resize(columns);
        let mut out = String::new();
        for c in text.chars() {
            if self.in_escape {
                self.word.push(c);
                self.in_escape = !c.is_ascii_alphabetic();
                continue;
            }
            match c {
                '\x1b' => {
                    self.word.push(c);
                    self.in_escape = true;
                }
                '\n' => {
                    out.push_str(&self.finish());
                    out.push(c);
                }
                ' ' | '\t' => {
                    self.end_word(&mut out);
                    self.gap.push(c);
                    self.is_split = false;
                }
                _ => self.letter(c, &mut out),
            }
        }
        if self.columns.is_none() {
            self.end_word(&mut out);
            out.push_str(&std::mem::take(&mut self.gap));
        }
        out
    }

    /// What still waits of a line that ends here.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.end_word(&mut out);
        // Blanks beyond the edge would begin a line of their own.
        let fits = self.columns.is_none_or(|columns| self.column + self.gap_width() <= columns);
        let gap = std::mem::take(&mut self.gap);
        if fits {
            out.push_str(&gap);
        }
        (self.column, self.is_split) = (0, false);
        out
    }

    fn letter(&mut self, c: char, out: &mut String) {
        if self.may_break_before(c) {
            self.end_word(out);
            self.is_split = false;
        }
        self.word.push(c);
        if self.is_split || self.columns.is_some_and(|columns| width(&self.word) > columns) {
            self.end_word(out);
            self.is_split = true;
        }
    }

    /// True between ideographs, which have no blanks between them, and beside one.
    fn may_break_before(&self, c: char) -> bool {
        let Some(last) = self.word.chars().next_back() else { return false };
        let is_wide = |c: char| c.width() == Some(2);
        // Skin tones belong to the sign before them.
        let joins = CLOSING.contains(c) || ('\u{1f3fb}'..='\u{1f3ff}').contains(&c);
        let holds = OPENING.contains(last) || last == ZERO_WIDTH_JOINER;
        (is_wide(c) || is_wide(last) && c.is_alphanumeric()) && !joins && !holds
    }

    fn end_word(&mut self, out: &mut String) {
        if self.word.is_empty() {
            return;
        }
        let (gap, word) = (self.gap_width(), width(&self.word));
        let is_over = self.columns.is_some_and(|columns| self.column + gap + word > columns);
        if is_over && self.column > 0 && word > 0 && !self.is_split {
            out.push('\n');
            self.column = 0;
        } else {
            out.push_str(&self.gap);
            self.column += gap;
        }
        self.gap.clear();
        out.push_str(&std::mem::take(&mut self.word));
        self.column += word;
        self.fold();
    }

    fn gap_width(&self) -> usize {
        let end = self.gap.chars().fold(self.column, |column, c| match c {
            '\t' => column / TAB * TAB + TAB,
            _ => column + 1,
        });
        end - self.column
    }

    fn resize(&mut self, columns: Option<usize>) {
        self.columns = columns.filter(|columns| *columns >= LEAST);
        self.fold();
    }

    /// A terminal folds a line that is longer than it is wide.
    fn fold(&mut self) {
        if let Some(columns) = self.columns.filter(|columns| self.column > *columns) {
            self.column = (self.column - 1) % columns + 1;
        }
    }
}

/// Columns that a text takes; escape codes take none.
fn width(text: &str) -> usize {
    let mut in_escape = false;
    let is_seen = |c: &char| {
        let was_in_escape = in_escape;
        in_escape = if in_escape { !c.is_ascii_alphabetic() } else { *c == '\x1b' };
        !was_in_escape && !in_escape
    };
    text.chars().filter(is_seen).collect::<String>().width()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrapped(pieces: &[&str], columns: usize) -> String {
        let mut wrap = Wrap::default();
        let text: String = pieces.iter().map(|piece| wrap.push(piece, Some(columns))).collect();
        text + &wrap.finish()
    }

    #[test]
    fn lines_end_between_words() {
        assert_eq!(
            wrapped(&["light is scat", "tered mo", "re\nthan", " red"], 20),
            "light is scattered\nmore\nthan red"
        );
        assert_eq!(wrapped(&["twelve chars", " next"], 12), "twelve chars\nnext");
        assert_eq!(wrapped(&["a  b"], 20), "a  b", "blanks inside of a line stay");
        assert_eq!(wrapped(&["- item\n    code here"], 12), "- item\n    code\nhere");
        assert_eq!(wrapped(&["abc\tdefgh ij"], 13), "abc\tdefgh\nij");
    }

    #[test]
    fn a_word_longer_than_a_line_is_left_whole() {
        let link = "https://example.org/a/long/path";
        assert_eq!(wrapped(&["see ", link, " now"], 12), format!("see\n{link} now"));
        // Three letters are on its last line: nine more fit.
        assert_eq!(wrapped(&[&"x".repeat(27), " 12345678 9"], 12), format!("{} 12345678\n9", "x".repeat(27)));
    }

    #[test]
    fn wide_characters_take_two_columns_and_break_anywhere_but_before_a_full_stop() {
        assert_eq!(wrapped(&["空は青いです。"], 8), "空は青い\nです。");
        assert_eq!(wrapped(&["青い空です。"], 10), "青い空で\nす。");
        assert_eq!(wrapped(&["hello 空 wor"], 9), "hello 空\nwor");
        assert_eq!(wrapped(&["ab 👩‍👩‍👧‍👦 👍🏽 cd"], 8), "ab 👩‍👩‍👧‍👦 👍🏽\ncd");
        assert_eq!(wrapped(&["cafe\u{301} au lait"], 8), "cafe\u{301} au\nlait");
    }

    #[test]
    fn escape_codes_take_no_columns() {
        assert_eq!(wrapped(&["\x1b[2mdim text\x1b[0m", " is"], 8), "\x1b[2mdim text\x1b[0m\nis");
        assert_eq!(
            wrapped(&["\x1b[38;5;34mone\x1b[0m", "\x1b[38;5;33m two\x1b[0m"], 8),
            "\x1b[38;5;34mone\x1b[0m\x1b[38;5;33m two\x1b[0m"
        );
    }

    #[test]
    fn another_width_counts_from_the_next_word_on() {
        let mut wrap = Wrap::default();
        let wide = wrap.push("one two three four ", Some(40));
        let narrow = wrap.push("five six seven eight", Some(10)) + &wrap.finish();
        // The terminal has folded the 18 columns that were there: eight are on its last line.
        assert_eq!((wide.as_str(), narrow.as_str()), ("one two three four", "\nfive six\nseven\neight"));
    }

    proptest! {
        #[test]
        fn nothing_but_blanks_at_ends_of_lines_changes(words in "[a-z ñ空\n👍]{0,80}", at in 0usize..80, columns in 8usize..40) {
            let at = words.char_indices().nth(at).map_or(words.len(), |(at, _)| at);
            let shown = wrapped(&[&words[..at], &words[at..]], columns);
            let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(bare(&shown), bare(&words));
            for line in shown.lines() {
                let is_indented = line.starts_with(' ');
                let longest = line.trim().split(' ').map(width).max().unwrap_or_default();
                // A word that is too long for a line, or for an indented one, is left to the terminal.
                prop_assert!(is_indented || longest > columns || width(line) <= columns, "{:?}", line);
            }
            let mut wrap = Wrap::default();
            prop_assert_eq!(wrap.push(&words, None) + &wrap.finish(), words);
        }
    }
}
