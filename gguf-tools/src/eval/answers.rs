//! Whether a generated reply gives the expected answer.
//!
//! An expected number is compared with the *last* number of the reply, as a value: thousands' commas, a currency sign and
//! a percent sign do not count. Any other expected text must be contained in the reply as whole words, compared without
//! case, punctuation and repeated spaces. What follows a last `####` in the expected answer is taken alone, as in GSM8K.

/// Whether `reply` gives `expected`.
pub fn is_match(reply: &str, expected: &str) -> bool {
    let expected = expected.rsplit_once("####").map_or(expected, |(_, answer)| answer).trim();
    match number(expected) {
        Some(expected) => {
            last_number(reply).is_some_and(|found| (found - expected).abs() <= 1e-6 * expected.abs().max(1.0))
        }
        None => {
            let expected = normal(expected);
            !expected.trim().is_empty() && normal(reply).contains(&expected)
        }
    }
}

/// A text that is one number.
fn number(text: &str) -> Option<f64> {
    let text = text.trim().trim_end_matches(['.', '%', ' ']).trim_start_matches(['$', '€', '£']);
    let is_number = text.chars().any(|c| c.is_ascii_digit())
        && text
            .chars()
            .enumerate()
            .all(|(i, c)| c.is_ascii_digit() || c == ',' || c == '.' || (i == 0 && (c == '-' || c == '+')));
    if is_number { text.replace(',', "").parse().ok() } else { None }
}

/// The last number in a text.
fn last_number(text: &str) -> Option<f64> {
    let is_part = |c: char| c.is_ascii_digit() || c == ',' || c == '.';
    let mut words = text.split(|c: char| !is_part(c)).filter(|word| word.chars().any(|c| c.is_ascii_digit()));
    let last = words.next_back()?;
    let start = last.as_ptr() as usize - text.as_ptr() as usize;
    let trimmed = last.trim_matches(['.', ',']);
    let value: f64 = trimmed.replace(',', "").parse().ok()?;
    // A minus counts only where no number or letter stands before it: 7-5 is no -5.
    let before = text.get(..start)?;
    let is_negative = last.starts_with(|c: char| c.is_ascii_digit())
        && before.strip_suffix('-').is_some_and(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == ')'));
    Some(if is_negative { -value } else { value })
}

/// Lower-case words with one space around each.
fn normal(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!(" {} ", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_values_and_the_last_one_counts() {
        for (reply, expected) in [
            ("4 pens cost 12, so it is $1,028.00.", "1028"),
            ("The answer is 42.", "blah 7 #### 42"),
            ("It is -3", "-3"),
            ("x = 7-5", "5"),
            ("about 12.50%", "12.5 %"),
            ("So 18", "18.0"),
        ] {
            assert!(is_match(reply, expected), "{reply} / {expected}");
        }
        for (reply, expected) in [("42, no: 43", "42"), ("none", "1"), ("13", "3"), ("1.5.2", "2"), ("it is -3", "3")] {
            assert!(!is_match(reply, expected), "{reply} / {expected}");
        }
    }

    #[test]
    fn texts_are_found_as_whole_words() {
        assert!(is_match("It was **Ulm**, in  Germany!", "ulm in germany"));
        assert!(is_match("Zürich", "ZÜRICH."));
        assert!(!is_match("Ulmer Münster", "Ulm"));
        assert!(!is_match("anything", "?!"), "an answer without a word matches nothing");
    }
}
