//! Text to tokens and back, and chat messages to text.

use std::ffi::c_char;

use super::model::offramp_model;
use super::pointers::{copy_out, handle, slice, text, text_of};
use super::status::*;
use crate::{Message, Token};

/// One turn of a conversation. Both texts are UTF-8, end with NUL, and need to live for the call only.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct offramp_message {
    /// Who speaks: "system", "user", "assistant", or what else the model's template knows.
    pub role: *const c_char,
    /// What is said.
    pub content: *const c_char,
}

/// The messages as the library has them.
pub(super) unsafe fn read_messages(pointer: *const offramp_message, n: usize) -> Result<Vec<Message>, Failure> {
    // SAFETY: the caller's promise (module `capi`).
    let messages = unsafe { slice(pointer, n, "messages") }?;
    let message = |message: &offramp_message| {
        // SAFETY: as above.
        let (role, content) = unsafe { (text(message.role, "role")?, text(message.content, "content")?) };
        Ok(Message::new(role, content))
    };
    messages.iter().map(message).collect()
}

impl offramp_model {
    /// The tokens of a conversation, where the assistant's next turn begins.
    pub(super) fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<Token>, Failure> {
        let text = self.template()?.render(messages, true).map_err(crate::Error::from)?;
        let vocab = self.model.vocab();
        // Templates write out the token that the tokenizer adds by itself; a model must not see it twice.
        let bos = vocab.bos().filter(|_| vocab.adds_bos()).map(|token| vocab.text(&[token], true));
        let text = bos.as_deref().and_then(|bos| text.strip_prefix(bos)).unwrap_or(&text);
        Ok(vocab.tokenize_prompt(text, true)?)
    }
}

/// Renders `n_messages` messages with the model's chat template, up to where the assistant's next turn begins, and
/// copies the text (UTF-8, without a NUL) to `buffer`, which has room for `capacity` bytes. `*length` gets its length,
/// with OFFRAMP_ERROR_BUFFER also where the room does not suffice; a NULL buffer with capacity 0 asks for it alone.
///
/// Nothing is kept. Any thread, any time.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_chat_render(
    model: *const offramp_model,
    messages: *const offramp_message,
    n_messages: usize,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    boundary("offramp_chat_render", || {
        // SAFETY: the caller's promise (module `capi`).
        let (model, messages) = unsafe { (handle(model, "model")?, read_messages(messages, n_messages)?) };
        let text = model.template()?.render(&messages, true).map_err(crate::Error::from)?;
        // SAFETY: as above.
        unsafe { copy_out(text.as_bytes(), buffer.cast(), capacity, length, "buffer") }
    })
}

/// Tokenizes `length` bytes of UTF-8. Not 0: `add_special` adds what the model wants around a text, such as its BOS, and
/// `parse_special` recognises special tokens that are written out. Say 0 to the latter for text that is not yours.
///
/// Copies the token ids to `tokens`, which has room for `capacity`. `*n_tokens` gets their number, with
/// OFFRAMP_ERROR_BUFFER also where the room does not suffice; NULL tokens with capacity 0 ask for it alone. Any thread.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_tokenize(
    model: *const offramp_model,
    text: *const c_char,
    length: usize,
    add_special: i32,
    parse_special: i32,
    tokens: *mut i32,
    capacity: usize,
    n_tokens: *mut usize,
) -> i32 {
    boundary("offramp_tokenize", || {
        // SAFETY: the caller's promise (module `capi`).
        let (model, text) = unsafe { (handle(model, "model")?, text_of(text, length, "text")?) };
        let found = model.model.vocab().tokenize(text, add_special != 0, parse_special != 0)?;
        let ids: Vec<i32> = found.iter().map(|token| token.0).collect();
        // SAFETY: as above.
        unsafe { copy_out(&ids, tokens, capacity, n_tokens, "tokens") }
    })
}

/// Copies the text of `n_tokens` tokens to `buffer` (UTF-8, without a NUL; bytes that are no whole code point become
/// U+FFFD). Not 0: `special` writes special tokens out. `*length` gets the length, with OFFRAMP_ERROR_BUFFER also where
/// the room of `capacity` bytes does not suffice; a NULL buffer with capacity 0 asks for it alone. Any thread.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn offramp_detokenize(
    model: *const offramp_model,
    tokens: *const i32,
    n_tokens: usize,
    special: i32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    boundary("offramp_detokenize", || {
        // SAFETY: the caller's promise (module `capi`).
        let (model, ids) = unsafe { (handle(model, "model")?, slice(tokens, n_tokens, "tokens")?) };
        let tokens: Vec<Token> = ids.iter().copied().map(Token).collect();
        let text = model.model.vocab().text(&tokens, special != 0);
        // SAFETY: as above.
        unsafe { copy_out(text.as_bytes(), buffer.cast(), capacity, length, "buffer") }
    })
}
