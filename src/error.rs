//! The one error type of the library.
//!
//! Every variant names what was expected, what was found and what to do about it. Where llama.cpp said something while
//! it failed, its own log text is attached as [`LlamaLog`], because its status codes alone do not tell a damaged file
//! from a missing GPU.

use std::fmt;
use std::path::PathBuf;

/// What can go wrong in this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no sound GGUF, or not safe to hand to llama.cpp.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::Error),
    /// llama.cpp refused a model file.
    #[error("llama.cpp cannot load {}: {log}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's own words.
        log: LlamaLog,
    },
    /// The model can load, but this library cannot run it.
    #[error("{what} is not supported: {found}; {fix}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What the model is instead.
        found: String,
        /// What to do.
        fix: &'static str,
    },
    /// Loading would exceed the memory that is free.
    #[error(
        "{} needs about {} MiB, and only {} MiB are free; \
         take a smaller quantization of the model, or a smaller context with -c",
        path.display(), needed >> 20, available >> 20
    )]
    OutOfMemory {
        /// The model file.
        path: PathBuf,
        /// Bytes that the model and its context need.
        needed: u64,
        /// Bytes that the system has available.
        available: u64,
    },
    /// llama.cpp could not create a context.
    #[error("llama.cpp cannot create a context of {n_ctx} tokens: {log}")]
    Context {
        /// Tokens that were asked for.
        n_ctx: u32,
        /// llama.cpp's own words.
        log: LlamaLog,
    },
    /// A decode failed inside llama.cpp.
    #[error("llama.cpp failed to decode {n_tokens} token(s) at position {position} (status {status}): {log}")]
    Decode {
        /// Tokens in the batch.
        n_tokens: usize,
        /// Position of the first of them.
        position: usize,
        /// What `llama_decode` returned.
        status: i32,
        /// llama.cpp's own words.
        log: LlamaLog,
    },
    /// A prompt, or a prompt and its reply, exceed the context. Agents match on the word `context_length_exceeded`.
    #[error(
        "context_length_exceeded: the prompt has {prompt} tokens and the context holds {n_ctx}; \
         shorten the prompt or raise the context with -c"
    )]
    ContextLengthExceeded {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the context holds.
        n_ctx: usize,
    },
    /// A token id outside of the vocabulary.
    #[error("token id {token} is outside of the vocabulary of {n_vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        token: i32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// A value outside of what the call accepts.
    #[error("{name} is {found}, but must be {expected}")]
    InvalidValue {
        /// The parameter.
        name: &'static str,
        /// What was given.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A grammar or a JSON schema that replies cannot be held to.
    #[error(transparent)]
    Grammar(#[from] crate::GrammarError),
    /// A text that cannot be tokenized.
    #[error("the text of {bytes} bytes cannot be tokenized; it must be under 2 GiB")]
    Tokenize {
        /// Length of the text in bytes.
        bytes: usize,
    },
    /// The model's chat template gave no text.
    #[error(transparent)]
    Template(#[from] crate::TemplateError),
    /// A session cannot be saved, or a saved one not be loaded.
    #[error("the session file {} cannot be used: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: crate::StateError,
    },
    /// The caller cancelled the call.
    #[error("cancelled")]
    Cancelled,
    /// Exit heads cannot be evaluated here.
    #[error("the exit heads cannot be evaluated: {found}; run with --exits off")]
    Heads {
        /// What was met.
        found: String,
    },
    /// The gate met a graph that it does not know how to stop or resume.
    #[error("the layer gate cannot work on this graph: {found}; run with --exits off")]
    Gate {
        /// What was met.
        found: String,
    },
}

/// The library's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What llama.cpp logged (warnings and errors) while a call failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LlamaLog(pub(crate) Vec<String>);

impl LlamaLog {
    /// The logged lines, oldest first.
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for LlamaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it gave no reason");
        }
        f.write_str(&self.0.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_failure_says_so() {
        assert_eq!(LlamaLog::default().to_string(), "it gave no reason");
    }

    #[test]
    fn an_exceeded_context_carries_the_word_that_agents_match() {
        let text = Error::ContextLengthExceeded { prompt: 9, n_ctx: 8 }.to_string();
        assert!(text.starts_with("context_length_exceeded"), "{text}");
    }
}
