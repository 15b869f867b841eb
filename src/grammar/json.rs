//! Keeps JSON that a model writes within what every program reads: how deep it nests, how long its numbers are.
//!
//! A schema may leave both open, and a model may go on for ever. Python's `json` refuses numbers of thousands of digits and
//! a thousand levels, others refuse less; numbers of more than fifteen digits are read as others than they were meant, and
//! beyond 1e308 as infinite or not at all.

/// Levels of arrays and objects.
const MAX_DEPTH: usize = 100;
/// Digits of a number.
const MAX_DIGITS: usize = 15;
/// Digits of an exponent.
const MAX_EXPONENT: usize = 2;

/// Where in a JSON text its end is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Position {
    depth: usize,
    /// Digits of the number that the text ends in.
    n_digits: usize,
    /// Digits of its exponent; `None` before it has one.
    n_exponent: Option<usize>,
    in_text: bool,
    escaped: bool,
}

impl Position {
    /// The position behind `bytes`. `None` where they go beyond the bounds.
    pub(super) fn behind(mut self, bytes: &[u8]) -> Option<Self> {
        for &byte in bytes {
            self.step(byte);
            let opens = !self.in_text && matches!(byte, b'[' | b'{');
            let counts = !self.in_text && byte.is_ascii_digit();
            if (opens && self.depth > MAX_DEPTH) || (counts && self.has_too_many_digits()) {
                return None;
            }
        }
        Some(self)
    }

    /// The position behind `bytes`, whatever they are.
    pub(super) fn advanced(mut self, bytes: &[u8]) -> Self {
        bytes.iter().for_each(|&byte| self.step(byte));
        self
    }

    fn has_too_many_digits(self) -> bool {
        self.n_digits > MAX_DIGITS || self.n_exponent.is_some_and(|n| n > MAX_EXPONENT)
    }

    fn step(&mut self, byte: u8) {
        if self.in_text {
            self.in_text = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return;
        }
        match byte {
            b'"' => self.in_text = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.n_exponent = match byte {
            b'e' | b'E' if self.n_digits > 0 => Some(0),
            b'0'..=b'9' => self.n_exponent.map(|n| n + 1),
            b'-' | b'+' => self.n_exponent,
            _ => None,
        };
        self.n_digits = match byte {
            b'0'..=b'9' => self.n_digits + 1,
            b'.' | b'-' | b'+' | b'e' | b'E' => self.n_digits,
            _ => 0,
        };
    }

    /// True if no token of `longest` bytes can go beyond the bounds from here.
    pub(super) fn is_far(self, longest: usize) -> bool {
        let is_far = self.depth + longest < MAX_DEPTH && self.n_digits + longest < MAX_DIGITS;
        // The letter of an exponent and its digits.
        is_far && self.n_exponent.is_none() && longest <= MAX_EXPONENT + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_and_digits_end_and_texts_do_not_count() {
        let start = Position::default();
        assert!(start.behind("[".repeat(100).as_bytes()).is_some());
        assert!(start.behind("[".repeat(101).as_bytes()).is_none());
        assert!(start.behind("[]".repeat(500).as_bytes()).is_some());
        assert!(start.behind(b"[123456789012345,123456789012345]").is_some());
        assert!(start.behind(b"0.1234567890123456").is_none());
        assert!(start.behind(b"[1e99,-2.5E-10,true,1234567]").is_some());
        assert!(start.behind(b"[91.81e406]").is_none() && start.behind(b"1e-100").is_none());
        assert!(start.behind(format!("\"{}\\\"[[\"", "[".repeat(200)).as_bytes()).is_some());
    }
}
