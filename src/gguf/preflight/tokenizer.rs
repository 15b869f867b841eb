//! A model's tokenizer: the keys below `tokenizer.ggml`.
//!
//! Refuses vocabularies on which `llama_vocab::impl::load` asserts (two tokens with one text), reads arrays
//! by another type or length than they have, or later, while a prompt is tokenized, throws where nothing
//! catches (a SentencePiece vocabulary without its byte tokens) or asserts (a begin token that is to be added
//! but does not exist). Boundary tokens beyond the vocabulary and malformed byte tokens are refused as well.

use std::collections::HashSet;

use super::super::error::{Error, Result, printable};
use super::super::reader::File;
use super::super::types::ValueType;
use super::super::value::Value;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// The number that marks a byte token in `tokenizer.ggml.token_type` (`LLAMA_TOKEN_TYPE_BYTE`).
const BYTE: i32 = 6;

/// The tokenizers whose loaders have been read, with the begin and end tokens they assume.
const KNOWN: &[(&str, Option<u64>, Option<u64>)] =
    &[("llama", Some(1), Some(2)), ("gpt2", Some(11), Some(11)), ("gemma4", None, None)];

/// The tokens that begin and end texts, turns and messages. Other special tokens beyond the vocabulary are left
/// alone: real models have them (a padding token that was never added), and llama.cpp drops them.
const BOUNDARIES: &[&str] = &["bos", "eos", "eot", "eom"];

/// Checks the tokenizer; returns the size of the vocabulary.
pub(super) fn check(model: &File, allow_unread: bool) -> Result<u32> {
    let kind = model
        .str("tokenizer.ggml.model")?
        .ok_or(Error::MissingKey { key: "tokenizer.ggml.model".into(), why: "text cannot be tokenized without it" })?;
    let known = KNOWN.iter().find(|(name, ..)| *name == kind);
    if known.is_none() && !allow_unread {
        return Err(Error::UnreadLoader {
            what: "tokenizer",
            found: printable(kind),
            known: KNOWN.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", "),
        });
    }
    let (texts, n_vocab) = tokens(model)?;
    let types = types(model, n_vocab)?;
    scores(model, n_vocab)?;
    for boundary in BOUNDARIES {
        let key = format!("tokenizer.ggml.{boundary}_token_id");
        if let Some(id) = model.u32(&key)?.filter(|&id| id >= n_vocab) {
            return Err(model.key_value_error(&key, format!("a token of the {n_vocab} in the vocabulary"), id));
        }
    }
    model.array("tokenizer.ggml.suppress_tokens", &[ValueType::I32], "arr[i32]")?;
    for flag in ["add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces"] {
        flag_value(model, flag)?;
    }
    if let Some(&(_, bos, eos)) = known {
        let sentence_piece = kind == "llama";
        byte_tokens(model, &texts, types)?;
        if sentence_piece {
            all_bytes(&texts)?;
        } else {
            merges(model)?;
        }
        // Some pre-tokenizers add the begin token unasked, so it may only be missing where that is ruled out.
        added_token(model, "bos", flag_value(model, "add_bos_token")? != Some(false), bos, n_vocab)?;
        added_token(model, "eos", flag_value(model, "add_eos_token")? == Some(true), eos, n_vocab)?;
    }
    Ok(n_vocab)
}

/// The tokens' texts, each once, as llama.cpp keeps them: cut at a zero byte, replaced where empty.
fn tokens(model: &File) -> Result<(HashSet<&str>, u32)> {
    let array = model
        .array(TOKENS, &[ValueType::Str], "arr[str]")?
        .ok_or(Error::MissingKey { key: TOKENS.into(), why: "a model cannot be loaded without its vocabulary" })?;
    let n_vocab = u32::try_from(array.len()).ok().filter(|&n| n > 0 && n <= i32::MAX as u32);
    let Some(n_vocab) = n_vocab else {
        return Err(model.key_value_error(TOKENS, "at least one token", format!("{} tokens", array.len())));
    };
    let mut texts = HashSet::with_capacity(n_vocab as usize);
    for (index, token) in array.iter().enumerate() {
        let text = token.as_str().unwrap_or_default();
        let text = text.split('\0').next().unwrap_or_default();
        let is_new = match text {
            // The replacement text is unique unless another token spells it out.
            "" => true,
            _ => texts.insert(text),
        };
        let is_replacement = text
            .strip_prefix("[EMPTY_")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|digits| digits.parse::<u32>().is_ok());
        if !is_new || is_replacement {
            return Err(Error::ArrayEntry {
                key: TOKENS.into(),
                index: index as u64,
                expected: "a text that no other token has".into(),
                found: format!("{:?}", printable(text)),
            });
        }
    }
    Ok((texts, n_vocab))
}

/// The tokens' types, where the file has them.
fn types(model: &File, n_vocab: u32) -> Result<Option<Vec<i32>>> {
    let Some(array) = model.array(TYPES, &[ValueType::I32], "arr[i32]")? else {
        return Ok(None);
    };
    one_each(model, TYPES, array.len(), n_vocab)?;
    let mut types = Vec::with_capacity(n_vocab as usize);
    for (index, value) in array.iter().enumerate() {
        match value {
            Value::I32(ty @ 0..=BYTE) => types.push(ty),
            other => {
                return Err(Error::ArrayEntry {
                    key: TYPES.into(),
                    index: index as u64,
                    expected: format!("a token type from 0 to {BYTE}"),
                    found: format!("{other:?}"),
                });
            }
        }
    }
    Ok(Some(types))
}

fn scores(model: &File, n_vocab: u32) -> Result<()> {
    let types = [ValueType::F32, ValueType::I32];
    let Some(array) = model.array(SCORES, &types, "arr[f32] or arr[i32]")? else {
        return Ok(());
    };
    one_each(model, SCORES, array.len(), n_vocab)?;
    match array.iter().position(|value| matches!(value, Value::F32(score) if score.is_nan())) {
        Some(index) => Err(Error::ArrayEntry {
            key: SCORES.into(),
            index: index as u64,
            expected: "a number".into(),
            found: "NaN".into(),
        }),
        None => Ok(()),
    }
}

fn one_each(model: &File, key: &str, found: u64, n_vocab: u32) -> Result<()> {
    if found != u64::from(n_vocab) {
        let expected = format!("{n_vocab} entries, one for each token");
        return Err(model.key_value_error(key, expected, format!("{found} entries")));
    }
    Ok(())
}

/// Byte tokens must spell their byte as `<0x` and two hexadecimal digits and `>`.
fn byte_tokens(model: &File, texts: &HashSet<&str>, types: Option<Vec<i32>>) -> Result<()> {
    debug_assert!(!texts.is_empty());
    let (Some(types), Some(array)) = (types, model.array(TOKENS, &[ValueType::Str], "arr[str]")?) else {
        return Ok(());
    };
    for (index, (token, ty)) in array.iter().zip(types).enumerate() {
        let text = token.as_str().unwrap_or_default();
        if ty == BYTE && byte_of(text).is_none() {
            return Err(Error::ArrayEntry {
                key: TOKENS.into(),
                index: index as u64,
                expected: "a byte token such as \"<0x0A>\"".into(),
                found: format!("{:?}", printable(text)),
            });
        }
    }
    Ok(())
}

fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// SentencePiece falls back to one token a byte, and llama.cpp throws where that token does not exist.
fn all_bytes(texts: &HashSet<&str>) -> Result<()> {
    for byte in 0..=u8::MAX {
        let spelled = format!("<0x{byte:02X}>");
        let plain = [byte];
        let plain = std::str::from_utf8(&plain).unwrap_or_default();
        if !texts.contains(&*spelled) && (byte == 0 || !texts.contains(plain)) {
            return Err(Error::ArrayEntry {
                key: TOKENS.into(),
                index: texts.len() as u64,
                expected: format!("the byte token {spelled:?} somewhere in the vocabulary"),
                found: "no such token".into(),
            });
        }
    }
    Ok(())
}

/// Each merge is two texts with a space between them.
fn merges(model: &File) -> Result<()> {
    let Some(array) = model.array(MERGES, &[ValueType::Str], "arr[str]")? else {
        return Err(Error::MissingKey { key: MERGES.into(), why: "byte pair encoding needs its merges" });
    };
    for (index, merge) in array.iter().enumerate() {
        let merge = merge.as_str().unwrap_or_default();
        let has_space = merge.bytes().skip(1).any(|byte| byte == b' ');
        if !has_space || merge.contains('\0') {
            return Err(Error::ArrayEntry {
                key: MERGES.into(),
                index: index as u64,
                expected: "two texts with a space between them".into(),
                found: format!("{:?}", printable(merge)),
            });
        }
    }
    Ok(())
}

fn flag_value(model: &File, flag: &str) -> Result<Option<bool>> {
    let key = format!("tokenizer.ggml.{flag}");
    match model.get(&key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(model.key_type_error(&key, "bool")),
    }
}

/// A token that is added to prompts must exist.
fn added_token(model: &File, name: &str, is_added: bool, default: Option<u64>, n_vocab: u32) -> Result<()> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let id = model.u32(&key)?.map(u64::from).or(default);
    if is_added && id.is_none_or(|id| id >= n_vocab.into()) {
        return Err(Error::MissingKey { key, why: "the tokenizer adds this token to every prompt" });
    }
    Ok(())
}
