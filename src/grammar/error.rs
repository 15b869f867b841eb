//! Why a grammar or a schema is refused: the keyword or the place, what was found, and what is accepted.

/// Why text cannot be held to a grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A keyword that cannot be kept.
    #[error("the JSON schema's {keyword} at {place} cannot be kept: {found}; leave it out, or say it another way")]
    Unsupported {
        /// The keyword.
        keyword: String,
        /// Where in the schema.
        place: String,
        /// What about it.
        found: String,
    },
    /// A keyword with a value that it cannot have.
    #[error("the JSON schema's {keyword} at {place} is {found}, but must be {expected}")]
    Value {
        /// The keyword.
        keyword: String,
        /// Where in the schema.
        place: String,
        /// What was given.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A schema or a grammar that is larger than is accepted.
    #[error("the {what} has {found}, but at most {limit} are accepted")]
    TooLarge {
        /// A JSON schema or a grammar.
        what: &'static str,
        /// What there is too much of.
        found: String,
        /// The most that is accepted.
        limit: u64,
    },
    /// A schema that is too intricate, or that no text satisfies.
    #[error("the JSON schema cannot be kept: {0}")]
    Schema(String),
    /// A text that is no grammar.
    #[error("line {line} of the grammar has {found}, but {expected} is expected")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A grammar that cannot be used, for another reason.
    #[error("the grammar cannot be used: {0}")]
    Unusable(String),
}
