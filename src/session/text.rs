//! Token bytes to text: whole code points only, and never a part of a stop string.

/// Assembles the bytes of tokens into text that can be shown at once.
///
/// A token may end inside of a code point, and a stop string may span several tokens: bytes are held back until they
/// can no longer be part of either. Bytes that are no UTF-8 at all become U+FFFD, as `String::from_utf8_lossy` has it.
#[derive(Debug, Default)]
pub(crate) struct TextStream {
    stops: Vec<String>,
    /// Bytes that are no whole code point yet: at most 3.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// Empty stop strings are ignored: they would stop every text before its first token.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), ..Self::default() }
    }

    /// Adds the bytes of one token; returns what can be shown now. After a stop string nothing more comes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        self.held.push_str(&take_whole(&mut self.partial));
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// As [`TextStream::push`], but no stop string is looked for up to here.
    pub(crate) fn push_through(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&take_whole(&mut self.partial));
        text
    }

    /// True once a stop string has been met.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back, at the end of a generation. An unfinished code point becomes U+FFFD.
    pub(crate) fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.partial)));
        text
    }
}

/// Takes all but an unfinished code point off the front.
fn take_whole(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                bytes.clear();
                return text;
            }
            Err(error) => {
                text.push_str(&String::from_utf8_lossy(&bytes[..error.valid_up_to()]));
                let Some(bad) = error.error_len() else {
                    bytes.drain(..error.valid_up_to());
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..error.valid_up_to() + bad);
            }
        }
    }
}

/// Length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0 && text.ends_with(&stop[..at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn streamed(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut shown: Vec<String> = pieces.iter().map(|piece| stream.push(piece)).collect();
        let stopped = stream.stopped();
        shown.push(stream.finish());
        (shown, stopped)
    }

    #[test]
    fn a_split_emoji_is_shown_whole() {
        let (shown, _) = streamed(&[], &[b"a\xF0\x9F", b"\x99\x82b"]);
        assert_eq!(shown, ["a", "🙂b", ""]);
    }

    #[test]
    fn an_unfinished_code_point_at_the_end_is_replaced() {
        let (shown, _) = streamed(&[], &[b"a\xF0\x9F"]);
        assert_eq!(shown.concat(), "a\u{FFFD}");
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_never_shown() {
        let (shown, stopped) = streamed(&["<END>"], &[b"text <", b"EN", b"D> more"]);
        assert_eq!(shown.concat(), "text ");
        assert!(stopped);
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_shown() {
        let (shown, stopped) = streamed(&["<END>"], &[b"a <E", b"X"]);
        assert_eq!(shown, ["a ", "<EX", ""]);
        assert!(!stopped);
    }

    #[test]
    fn a_stop_string_that_begins_too_early_is_text() {
        let mut stream = TextStream::new(&["ab".to_owned()]);
        assert_eq!(stream.push_through(b"ab a"), "ab a");
        assert_eq!((stream.push(b"bcab"), stream.stopped()), ("bc".to_owned(), true));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_counts() {
        assert_eq!(streamed(&["cd", "b"], &[b"abcd"]).0.concat(), "a");
    }

    proptest! {
        #[test]
        fn without_stop_strings_the_text_is_that_of_all_bytes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..40)) {
            let mut stream = TextStream::new(&[]);
            let mut shown: String = pieces.iter().map(|piece| stream.push(piece)).collect();
            shown.push_str(&stream.finish());
            prop_assert_eq!(shown, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }

        #[test]
        fn the_text_ends_where_the_first_stop_string_begins(text in "[ab]{0,30}", stop in "[ab]{1,4}", cut in 1usize..5) {
            let mut stream = TextStream::new(std::slice::from_ref(&stop));
            let mut shown: String = text.as_bytes().chunks(cut).map(|piece| stream.push(piece)).collect();
            shown.push_str(&stream.finish());
            prop_assert_eq!(shown, text.split(&stop).next().unwrap_or("").to_owned());
        }
    }
}
