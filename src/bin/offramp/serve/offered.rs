//! Fields that are known and not offered, and fields that change nothing. A field of the first kind is refused unless its
//! value asks for what is done in any case; one of the second is accepted. Of all others [`Asked::check`] tells.

use serde_json::Value;

use super::failure::ApiError;
use super::fields::{Asked, Fields, integer_of};

/// The values of a field that ask for nothing, beside null.
#[derive(Debug, Clone, Copy)]
enum Off {
    /// false, and an empty text, list or object.
    Empty,
    /// The same, and this number.
    Number(i64),
    True,
    /// One of these texts, or a list of it.
    Text(&'static [&'static str]),
}

/// Fields that would change the reply or the answer, and what of them would not.
const NOT_OFFERED: &[(&str, Off)] = &[
    ("add_generation_prompt", Off::True),
    ("allowed_token_ids", Off::Empty),
    ("audio", Off::Empty),
    ("bad_words", Off::Empty),
    ("best_of", Off::Number(1)),
    ("continue_final_message", Off::Empty),
    ("dynatemp_range", Off::Number(0)),
    ("early_stopping", Off::Empty),
    ("echo", Off::Empty),
    ("function_call", Off::Empty),
    ("functions", Off::Empty),
    ("grammar", Off::Empty),
    ("include_reasoning", Off::True),
    ("include_stop_str_in_output", Off::Empty),
    ("json_schema", Off::Empty),
    ("length_penalty", Off::Number(1)),
    ("logit_bias", Off::Empty),
    ("lora", Off::Empty),
    ("min_keep", Off::Number(0)),
    ("mirostat", Off::Number(0)),
    ("modalities", Off::Text(&["text"])),
    ("n_discard", Off::Number(0)),
    ("n_indent", Off::Number(0)),
    ("n_keep", Off::Number(0)),
    ("n_probs", Off::Number(0)),
    ("post_sampling_probs", Off::Empty),
    ("prompt_cache", Off::Empty),
    ("prompt_logprobs", Off::Number(0)),
    ("reasoning_format", Off::Text(&["auto", "deepseek"])),
    ("return_tokens", Off::Empty),
    ("samplers", Off::Empty),
    ("skip_special_tokens", Off::True),
    ("suffix", Off::Empty),
    ("t_max_predict_ms", Off::Number(0)),
    ("tfs_z", Off::Number(1)),
    ("top_n_sigma", Off::Number(-1)),
    ("use_beam_search", Off::Empty),
    ("web_search_options", Off::Empty),
];

/// Fields that change neither the reply nor what an answer says of it: who asks, what for, how soon, from which slot. The
/// parameters of mirostat and of dynamic temperatures mean nothing while both are off.
const HARMLESS: &[&str] = &[
    "cache_salt",
    "dynatemp_exponent",
    "id_slot",
    "keep_alive",
    "metadata",
    "mirostat_eta",
    "mirostat_tau",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "response_format.json_schema.description",
    "response_format.json_schema.name",
    "response_format.json_schema.strict",
    "return_progress",
    "safety_identifier",
    "service_tier",
    "slot_id",
    "store",
    "stream_options.include_obfuscation",
    "timings_per_token",
    "user",
];

/// # Errors
/// [`ApiError`] with status 400, for a field that is known and asks for something that is not offered.
pub fn refuse_not_offered(fields: Fields<'_>) -> Result<(), ApiError> {
    for &(name, off) in NOT_OFFERED {
        if fields.get(name).is_some_and(|value| !is_off(value, off)) {
            return Err(ApiError::unsupported(name, format!("{name} is not offered here; leave it out")));
        }
    }
    if fields.integer("n", 1..=128)?.unwrap_or(1) != 1 {
        return Err(ApiError::unsupported("n", "n must be 1; send the request again for another reply"));
    }
    Ok(())
}

/// Called when everything that is offered has been read.
///
/// # Errors
/// [`ApiError`] with status 400, for a field that is not known.
pub fn refuse_unknown(asked: &Asked<'_>) -> Result<(), ApiError> {
    asked.check(HARMLESS)
}

fn is_off(value: &Value, off: Off) -> bool {
    let is_empty = match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(is_true) => !is_true,
        _ => false,
    };
    let is_one_of = |texts: &[&str], value: &Value| value.as_str().is_some_and(|text| texts.contains(&text));
    match (off, value) {
        (Off::Empty, _) => is_empty,
        (Off::Number(number), _) => is_empty || integer_of(value) == Some(number),
        (Off::True, _) => value.as_bool() == Some(true),
        (Off::Text(texts), Value::Array(items)) => items.iter().all(|item| is_one_of(texts, item)),
        (Off::Text(texts), _) => is_one_of(texts, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(body: &Value) -> bool {
        refuse_not_offered(Fields::of(body).unwrap()).is_err()
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        for &(name, off) in NOT_OFFERED {
            let none = match off {
                Off::Empty => vec![json!(null), json!(false), json!([]), json!({}), json!("")],
                Off::Number(number) => vec![json!(null), json!(number), json!(number as f64)],
                Off::True => vec![json!(null), json!(true)],
                Off::Text(texts) => vec![json!(null), json!(texts[0]), json!([texts[0]])],
            };
            for value in none {
                assert!(!refused(&json!({name: value})), "{name} {value}");
            }
        }
        assert!(!refused(&json!({"n": 1.0})));
    }

    #[test]
    fn what_asks_for_something_is_not() {
        for &(name, off) in NOT_OFFERED {
            let some = if matches!(off, Off::True) { json!(false) } else { json!(["x"]) };
            assert!(refused(&json!({name: some})), "{name}");
            assert!(refused(&json!({name: 7})), "{name}");
        }
        assert!(refused(&json!({"n": 2})) && refused(&json!({"modalities": ["text", "audio"]})));
    }

    #[test]
    fn no_field_stands_in_two_lists() {
        for (name, _) in NOT_OFFERED {
            assert!(!HARMLESS.contains(name), "{name}");
        }
    }
}
