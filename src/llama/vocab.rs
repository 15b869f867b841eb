//! Text to tokens and back, through the model's own tokenizer.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use llama_cpp_sys_2 as sys;

use super::model::RawModel;
use crate::error::{Error, Result};
use crate::grammar::{Grammar, Matcher, Tokens};

/// A token id of one model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct Token(pub i32);

/// A model's vocabulary. Cheap to clone; keeps the model alive.
#[derive(Debug, Clone)]
pub struct Vocab {
    raw: NonNull<sys::llama_vocab>,
    n_tokens: usize,
    /// What grammars need of it; made when the first one asks.
    grammar_tokens: Arc<Mutex<Option<Arc<Tokens>>>>,
    _model: Arc<RawModel>,
}

// SAFETY: llama.cpp's vocabulary is immutable after loading, and its lookups are const methods.
unsafe impl Send for Vocab {}
// SAFETY: as above.
unsafe impl Sync for Vocab {}

impl Vocab {
    pub(crate) fn new(model: Arc<RawModel>) -> Self {
        // SAFETY: the model is live; it owns the vocabulary that it returns a pointer to.
        let raw = unsafe { sys::llama_model_get_vocab(model.as_ptr()) };
        let raw = NonNull::new(raw.cast_mut()).expect("a loaded model has a vocabulary");
        // SAFETY: `raw` belongs to the live model.
        let n_tokens = unsafe { sys::llama_vocab_n_tokens(raw.as_ptr()) };
        Self { raw, n_tokens: usize::try_from(n_tokens).unwrap_or(0), grammar_tokens: Arc::default(), _model: model }
    }

    pub(crate) fn as_ptr(&self) -> *const sys::llama_vocab {
        self.raw.as_ptr()
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Tokenizes `text`. `add_special` adds what the model wants around a text (its BOS, for most); `parse_special`
    /// recognises special tokens written out in the text, such as `<|im_start|>`.
    ///
    /// # Errors
    /// [`Error::Tokenize`] for a text of 2 GiB or more.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>> {
        let too_long = || Error::Tokenize { bytes: text.len() };
        let len = i32::try_from(text.len()).map_err(|_| too_long())?;
        let mut tokens: Vec<Token> = Vec::new();
        // One token a byte and a few special ones are enough for every tokenizer but the odd normalising one, which
        // then answers with the room that it needs.
        let mut room = text.len().saturating_add(8);
        for _ in 0..2 {
            tokens.resize(room, Token(0));
            let capacity = i32::try_from(room).map_err(|_| too_long())?;
            // SAFETY: both buffers are valid for the lengths given, and `Token` is
            // `repr(transparent)` over i32.
            let n = unsafe {
                sys::llama_tokenize(
                    self.as_ptr(),
                    text.as_ptr().cast(),
                    len,
                    tokens.as_mut_ptr().cast(),
                    capacity,
                    add_special,
                    parse_special,
                )
            };
            if let Ok(n) = usize::try_from(n) {
                tokens.truncate(n);
                return Ok(tokens);
            }
            // i32::MIN is llama.cpp's "the count does not fit".
            room = usize::try_from(n.checked_neg().ok_or_else(too_long)?).map_err(|_| too_long())?;
        }
        Err(too_long())
    }

    /// Tokenizes a text that is to be continued: with the model's BOS, but without the end token that some models want
    /// behind a text. A reply to that would be empty.
    ///
    /// # Errors
    /// As [`Vocab::tokenize`].
    pub fn tokenize_prompt(&self, text: &str, parse_special: bool) -> Result<Vec<Token>> {
        let mut tokens = self.tokenize(text, true, parse_special)?;
        if self.adds_eos() && tokens.last().copied() == self.eos() {
            tokens.pop();
        }
        Ok(tokens)
    }

    /// The bytes of a token; not necessarily whole UTF-8. Special tokens have none unless `special` is set, and neither
    /// has an id outside of the vocabulary.
    pub fn piece(&self, token: Token, special: bool) -> Vec<u8> {
        if !self.contains(token) {
            return Vec::new();
        }
        let mut bytes = vec![0u8; 32];
        for _ in 0..2 {
            let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
            // SAFETY: `bytes` is valid for `room` bytes, and the token is within the vocabulary.
            let n = unsafe {
                sys::llama_token_to_piece(self.as_ptr(), token.0, bytes.as_mut_ptr().cast(), room, 0, special)
            };
            if let Ok(n) = usize::try_from(n) {
                bytes.truncate(n);
                return bytes;
            }
            bytes.resize(n.unsigned_abs() as usize, 0);
        }
        Vec::new()
    }

    /// The text of several tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn text(&self, tokens: &[Token], special: bool) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| self.piece(token, special)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// True if the id is one of this vocabulary.
    pub fn contains(&self, token: Token) -> bool {
        usize::try_from(token.0).is_ok_and(|id| id < self.n_tokens)
    }

    /// True if the token ends a generation (end of sequence, of turn, of message).
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: the token is within the vocabulary.
        self.contains(token) && unsafe { sys::llama_vocab_is_eog(self.as_ptr(), token.0) }
    }

    /// True for control tokens, which have no text of their own.
    pub fn is_control(&self, token: Token) -> bool {
        // SAFETY: the token is within the vocabulary.
        self.contains(token) && unsafe { sys::llama_vocab_is_control(self.as_ptr(), token.0) }
    }

    /// The token that starts a text, if the model has one.
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: a live vocabulary.
        self.known(unsafe { sys::llama_vocab_bos(self.as_ptr()) })
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<Token> {
        // SAFETY: a live vocabulary.
        self.known(unsafe { sys::llama_vocab_eos(self.as_ptr()) })
    }

    /// True if the model wants its BOS before a text.
    pub fn adds_bos(&self) -> bool {
        // SAFETY: a live vocabulary.
        unsafe { sys::llama_vocab_get_add_bos(self.as_ptr()) }
    }

    /// Follows a text of `grammar` in this vocabulary.
    ///
    /// # Errors
    /// [`Error::Grammar`] for a grammar that names tokens which are none here.
    pub(crate) fn matcher(&self, grammar: &Grammar) -> Result<Matcher> {
        let token_id = |text: &str| match self.tokenize(text, false, true).ok()?.as_slice() {
            [token] => u32::try_from(token.0).ok(),
            _ => None,
        };
        Ok(Matcher::new(grammar, &self.grammar_tokens()?, &token_id)?)
    }

    fn grammar_tokens(&self) -> Result<Arc<Tokens>> {
        let mut known = self.grammar_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = known.as_ref() {
            return Ok(Arc::clone(tokens));
        }
        let ids = (0i32..).map(Token).take(self.n_tokens);
        // The bytes that a token adds to a reply.
        let (words, ends) = ids.map(|token| (self.piece(token, false), self.is_eog(token))).unzip();
        let tokens = Arc::new(Tokens::new(words, ends)?);
        *known = Some(Arc::clone(&tokens));
        Ok(tokens)
    }

    /// True if the model wants an end token behind a text.
    pub fn adds_eos(&self) -> bool {
        // SAFETY: a live vocabulary.
        unsafe { sys::llama_vocab_get_add_eos(self.as_ptr()) }
    }

    /// All tokens that end a generation, by ascending id.
    pub fn eog_tokens(&self) -> Vec<Token> {
        (0..).take(self.n_tokens).map(Token).filter(|&token| self.is_eog(token)).collect()
    }

    fn known(&self, id: sys::llama_token) -> Option<Token> {
        Some(Token(id)).filter(|&token| self.contains(token))
    }
}
