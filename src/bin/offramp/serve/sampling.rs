//! How a request's reply is sampled and when it ends, from the fields of OpenAI's interface and those that llama.cpp's server
//! and vLLM have beside it. Every number is checked against its range; -1 means "all" where those servers say so.

use offramp::{GenerateParams, SamplerParams, Token};
use serde_json::Value;

use super::failure::ApiError;
use super::fields::{Fields, integer_of};

/// Most stop texts, and bytes of one.
pub const MAX_STOPS: usize = 16;
pub const MAX_STOP_BYTES: usize = 1024;
/// Most tokens that end a reply.
const MAX_STOP_TOKENS: usize = 64;
/// Most texts that break a repeated sequence.
const MAX_BREAKERS: usize = 16;
/// Most tokens that penalties look back on.
const MOST_LAST_N: i64 = 1_000_000;

/// How tokens are picked; the grammar is the caller's to add.
///
/// # Errors
/// [`ApiError`] with status 400.
pub fn sampler(fields: Fields<'_>) -> Result<SamplerParams, ApiError> {
    let mut params = SamplerParams::default();
    let set = |value: &mut f32, found: Option<f32>| *value = found.unwrap_or(*value);
    set(&mut params.temperature, fields.float("temperature", 0.0..=100.0)?);
    set(&mut params.top_p, fields.float("top_p", 0.0..=1.0)?);
    set(&mut params.min_p, fields.float("min_p", 0.0..=1.0)?);
    set(&mut params.typical_p, fields.float("typical_p", 0.0..=1.0)?);
    set(&mut params.repeat_penalty, repeat_penalty(fields)?);
    set(&mut params.frequency_penalty, fields.float("frequency_penalty", -2.0..=2.0)?);
    set(&mut params.presence_penalty, fields.float("presence_penalty", -2.0..=2.0)?);
    set(&mut params.dry_multiplier, fields.float("dry_multiplier", 0.0..=100.0)?);
    set(&mut params.dry_base, fields.float("dry_base", 1.0..=100.0)?);
    set(&mut params.xtc_probability, fields.float("xtc_probability", 0.0..=1.0)?);
    set(&mut params.xtc_threshold, fields.float("xtc_threshold", 0.0..=1.0)?);
    let set = |value: &mut i32, found: Option<i64>| {
        *value = found.map_or(*value, |found| i32::try_from(found).unwrap_or(i32::MAX));
    };
    set(&mut params.top_k, fields.integer_or_all("top_k", 0..=1_000_000)?);
    set(&mut params.repeat_last_n, fields.integer_or_all("repeat_last_n", 0..=MOST_LAST_N)?);
    set(&mut params.dry_penalty_last_n, fields.integer_or_all("dry_penalty_last_n", 0..=MOST_LAST_N)?);
    set(&mut params.dry_allowed_length, fields.integer("dry_allowed_length", 0..=MOST_LAST_N)?);
    if let Some(breakers) = fields.array("dry_sequence_breakers", MAX_BREAKERS)? {
        params.dry_sequence_breakers = texts("dry_sequence_breakers", breakers)?;
    }
    params.seed = fields.integer("seed", i64::MIN..=i64::MAX)?.and_then(seed);
    // What has no range of its own above.
    params.check().map_err(|error| ApiError::invalid("dry_sequence_breakers", error.to_string()))?;
    Ok(params)
}

/// `repeat_penalty` is llama.cpp's name, `repetition_penalty` vLLM's.
fn repeat_penalty(fields: Fields<'_>) -> Result<Option<f32>, ApiError> {
    let ours = fields.float("repeat_penalty", 0.01..=100.0)?;
    let theirs = fields.float("repetition_penalty", 0.01..=100.0)?;
    match (ours, theirs) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("repetition_penalty is {b} and repeat_penalty {a}, which are the same; give one");
            Err(ApiError::invalid("repetition_penalty", message))
        }
        _ => Ok(ours.or(theirs)),
    }
}

/// OpenAI's seeds have 64 bits and ours 32: both halves count. `None`, for -1 and for 2³²-1, is a random one.
fn seed(seed: i64) -> Option<u32> {
    const RANDOM: i64 = u32::MAX as i64;
    if seed == -1 || seed == RANDOM {
        return None;
    }
    Some((seed as u64 ^ (seed as u64 >> 32)) as u32)
}

/// When the reply ends; `most` is what the server was started with.
///
/// # Errors
/// [`ApiError`] with status 400.
pub fn limits(fields: Fields<'_>, most: usize) -> Result<GenerateParams, ApiError> {
    const MOST: i64 = i32::MAX as i64;
    let mut params = GenerateParams::default();
    let asked = fields.integer_or_all("max_completion_tokens", 1..=MOST)?;
    let asked = asked.or(fields.integer_or_all("max_tokens", 1..=MOST)?);
    // llama.cpp's name: 0 only reads the prompt into the cache, and -2 was once "until the context is full".
    let asked = asked.or(fields.integer("n_predict", -2..=MOST)?);
    let asked = asked.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    params.max_tokens = asked.min(most);
    params.min_tokens = fields.integer("min_tokens", 0..=MOST)?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    if params.min_tokens > asked {
        let message = format!("min_tokens is {}, which is more than the {asked} tokens asked for", params.min_tokens);
        return Err(ApiError::invalid("min_tokens", message));
    }
    params.ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
    let stops = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(_) => texts("stop", fields.array("stop", MAX_STOPS)?.map_or(&[], Vec::as_slice))?,
    };
    if stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid("stop", "stop must have texts of at most 1024 bytes"));
    }
    // An empty text is how some programs say that there is none.
    params.stop = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
    for id in fields.array("stop_token_ids", MAX_STOP_TOKENS)?.into_iter().flatten() {
        let id = integer_of(id).and_then(|id| i32::try_from(id).ok());
        params.stop_token_ids.push(
            id.map(Token)
                .ok_or_else(|| ApiError::invalid("stop_token_ids", "stop_token_ids must be a list of token ids"))?,
        );
    }
    Ok(params)
}

fn texts(name: &str, values: &[Value]) -> Result<Vec<String>, ApiError> {
    let texts = values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>();
    texts.ok_or_else(|| ApiError::invalid(name, format!("{name} must be a list of texts")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sampled(body: Value) -> Result<SamplerParams, ApiError> {
        sampler(Fields::of(&body)?)
    }

    fn limited(body: Value) -> Result<GenerateParams, ApiError> {
        limits(Fields::of(&body)?, 100)
    }

    #[test]
    fn seeds_of_64_bits_are_told_apart_and_only_two_are_random() {
        let seed = |seed: i64| sampled(json!({"seed": seed})).unwrap().seed;
        assert_eq!((seed(42), seed(0)), (Some(42), Some(0)));
        assert_ne!(seed(1 << 40), seed(1 << 41));
        assert_eq!((seed(-1), seed(0xFFFF_FFFF)), (None, None));
        for fixed in [-2, i64::MIN, i64::MAX, 0x1_FFFF_FFFE, 0xFFFF_FFFE] {
            assert!(seed(fixed).is_some(), "{fixed}");
        }
    }

    #[test]
    fn what_other_servers_call_all_is_all() {
        let params = sampled(json!({"top_k": -1, "repeat_last_n": -1, "dry_penalty_last_n": -1.0})).unwrap();
        assert_eq!((params.top_k, params.repeat_last_n, params.dry_penalty_last_n), (-1, -1, -1));
        for name in ["max_tokens", "max_completion_tokens", "n_predict"] {
            assert_eq!(limited(json!({name: -1})).unwrap().max_tokens, 100, "{name}");
            assert_eq!(limited(json!({name: 16.0})).unwrap().max_tokens, 16, "{name}");
            assert!(limited(json!({name: -3})).is_err() && limited(json!({name: 1.5})).is_err(), "{name}");
        }
        assert!(limited(json!({"max_tokens": 0})).is_err());
        assert_eq!(limited(json!({"n_predict": 0})).unwrap().max_tokens, 0);
        assert!(sampled(json!({"top_k": -2})).is_err() && sampled(json!({"repeat_last_n": -2})).is_err());
    }

    #[test]
    fn an_empty_stop_is_none() {
        for none in [json!(null), json!(""), json!([""]), json!([]), json!(["", ""])] {
            assert!(limited(json!({"stop": none})).unwrap().stop.is_empty(), "{none}");
        }
        assert_eq!(limited(json!({"stop": ["", "a"]})).unwrap().stop, ["a"]);
        for wrong in [json!(5), json!([5]), json!([null]), json!("x".repeat(2000)), json!(vec!["x"; 17])] {
            assert!(limited(json!({"stop": wrong})).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_fields_of_other_servers_are_read() {
        let params = sampled(json!({"repetition_penalty": 1.5, "typical_p": 0.5, "dry_multiplier": 0.8, "dry_base": 2,
            "dry_allowed_length": 3, "dry_penalty_last_n": 9, "dry_sequence_breakers": ["."], "xtc_probability": 0.25,
            "xtc_threshold": 0.2}))
        .unwrap();
        assert_eq!((params.repeat_penalty, params.typical_p), (1.5, 0.5));
        assert_eq!((params.dry_multiplier, params.dry_base, params.dry_allowed_length), (0.8, 2.0, 3));
        assert_eq!((params.dry_penalty_last_n, params.dry_sequence_breakers), (9, vec![".".to_owned()]));
        assert_eq!((params.xtc_probability, params.xtc_threshold), (0.25, 0.2));
        let limits = limited(json!({"min_tokens": 4, "stop_token_ids": [7, 8.0]})).unwrap();
        assert_eq!((limits.min_tokens, limits.stop_token_ids), (4, vec![Token(7), Token(8)]));
        assert!(sampled(json!({"repetition_penalty": 1.5, "repeat_penalty": 1.5})).is_ok());
        for wrong in [
            json!({"repetition_penalty": 1.5, "repeat_penalty": 1.2}),
            json!({"typical_p": 1.1}),
            json!({"dry_base": 0.5}),
            json!({"dry_sequence_breakers": [""]}),
            json!({"dry_sequence_breakers": [5]}),
            json!({"dry_sequence_breakers": ["x".repeat(41)]}),
            json!({"dry_sequence_breakers": vec!["x"; 17]}),
            json!({"xtc_probability": -1}),
        ] {
            assert!(sampled(wrong.clone()).is_err(), "{wrong}");
        }
        for wrong in
            [json!({"min_tokens": 9, "max_tokens": 8}), json!({"min_tokens": -1}), json!({"stop_token_ids": ["a"]})]
        {
            assert!(limited(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
