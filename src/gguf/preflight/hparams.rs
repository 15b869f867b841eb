//! A model's hyperparameters: the keys below `general.architecture`'s name.
//!
//! Refuses values on which `llama_model_base::load_hparams`, or the graph of an architecture that has been
//! read, asserts or divides by zero: counts of zero, head counts that do not divide, per-layer arrays of
//! another length, unknown rope scaling, uneven rope dimensions, negative epsilons, expert counts out of
//! range, and the options of encoders, classifiers and multi-token predictors, which the graphs do not expect.

use super::super::error::{Error, Result};
use super::super::reader::File;
use super::super::types::ValueType;
use super::super::value::Value;
use super::{MAX_CONTEXT, MAX_EXPERTS, MAX_LAYERS};

/// The largest length that the checks multiply; real models stay far below.
const MAX_LENGTH: u64 = 1 << 24;

/// What the tensor checks need to know.
pub(super) struct Hparams {
    pub architecture: String,
    pub n_embd: u64,
    pub n_layer: u64,
    pub n_ctx: u64,
    pub head_length: u64,
    pub n_head: Vec<u64>,
    pub n_head_kv: Vec<u64>,
}

pub(super) fn check(model: &File, architecture: &str, is_read: bool) -> Result<Hparams> {
    let keys = Keys { model, prefix: architecture };
    let n_ctx = keys.required("context_length", 1, MAX_CONTEXT)?;
    let n_embd = keys.required("embedding_length", 1, MAX_LENGTH)?;
    let n_layer = keys.required("block_count", 1, MAX_LAYERS)?;
    keys.optional("nextn_predict_layers", 0, n_layer - 1)?;
    experts(&keys, n_layer)?;
    rope(&keys)?;
    for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon"] {
        keys.float(name, |value| value >= 0.0, "a number that is not negative")?;
    }
    keys.per_layer("feed_forward_length", n_layer, 0, MAX_LENGTH)?;
    let n_head = keys.per_layer("attention.head_count", n_layer, u64::from(is_read), MAX_LENGTH)?;
    let n_head_kv = keys.per_layer("attention.head_count_kv", n_layer, u64::from(is_read), MAX_LENGTH)?;
    let mut hparams = Hparams {
        architecture: architecture.to_string(),
        n_embd,
        n_layer,
        n_ctx,
        head_length: 0,
        n_head: n_head.unwrap_or_default(),
        n_head_kv: n_head_kv.unwrap_or_default(),
    };
    if is_read {
        decoder(&keys, &mut hparams)?;
    }
    Ok(hparams)
}

/// What the graphs of the architectures that have been read take for granted.
fn decoder(keys: &Keys<'_>, hparams: &mut Hparams) -> Result<()> {
    if hparams.n_head.is_empty() {
        return Err(keys.missing("attention.head_count"));
    }
    if hparams.n_head_kv.is_empty() {
        hparams.n_head_kv = hparams.n_head.clone();
    }
    for (&n_head, &n_head_kv) in hparams.n_head.iter().zip(&hparams.n_head_kv) {
        // Attention repeats each K/V head for a whole number of query heads.
        if n_head % n_head_kv != 0 {
            return Err(keys.value_error("attention.head_count_kv", format!("a divisor of {n_head}"), n_head_kv));
        }
    }
    let derived = hparams.n_embd / hparams.n_head[0];
    let key_length = keys.optional("attention.key_length", 1, MAX_LENGTH)?.unwrap_or(derived);
    let value_length = keys.optional("attention.value_length", 1, MAX_LENGTH)?.unwrap_or(derived);
    if key_length == 0 {
        return Err(keys.value_error(
            "attention.head_count",
            format!("at most the embedding_length {}", hparams.n_embd),
            hparams.n_head[0],
        ));
    }
    if key_length != value_length {
        return Err(keys.value_error("attention.value_length", format!("the key length {key_length}"), value_length));
    }
    // These size their attention tensors by the embedding alone.
    if matches!(&*hparams.architecture, "phi3" | "qwen2moe" | "olmo" | "olmo2" | "internlm2" | "starcoder2")
        && key_length.checked_mul(hparams.n_head[0]) != Some(hparams.n_embd)
    {
        return Err(keys.value_error(
            "attention.key_length",
            format!("{} / {}", hparams.n_embd, hparams.n_head[0]),
            key_length,
        ));
    }
    let n_rot = keys.optional("rope.dimension_count", 1, MAX_LENGTH)?.unwrap_or(key_length);
    let partial = matches!(&*hparams.architecture, "phi3" | "gemma" | "gemma2" | "gemma3");
    if n_rot % 2 != 0 || n_rot > key_length || (!partial && n_rot != key_length) {
        let expected = if partial { "an even number, at most" } else { "an even number, equal to" };
        return Err(keys.value_error("rope.dimension_count", format!("{expected} the key length {key_length}"), n_rot));
    }
    for (name, expected) in [
        ("attention.key_length_swa", key_length),
        ("attention.value_length_swa", key_length),
        ("rope.dimension_count_swa", n_rot),
        ("embedding_length_out", hparams.n_embd),
        ("nextn_predict_layers", 0),
        ("pooling_type", 0),
    ] {
        keys.optional(name, expected, expected)?;
    }
    keys.optional("attention.sliding_window", 0, MAX_CONTEXT)?;
    keys.optional_or_array("attention.sliding_window_pattern", MAX_LAYERS)?;
    if keys.get("attention.causal").is_some_and(|value| value != Value::Bool(true)) {
        return Err(keys.value_error("attention.causal", "true; this is no encoder", "something else"));
    }
    // Inputs for images, which change the length of the embeddings that a batch must hold.
    for name in ["deepstack_mapping", "n_deepstack_layers"] {
        if keys.get(name).is_some() {
            return Err(keys.value_error(name, "absent; this runtime takes text alone", "present"));
        }
    }
    hparams.head_length = key_length;
    Ok(())
}

/// The assertions of `load_hparams` on experts.
fn experts(keys: &Keys<'_>, n_layer: u64) -> Result<()> {
    let n_expert = keys.optional("expert_count", 0, MAX_EXPERTS)?.unwrap_or(0);
    let used = keys.per_layer("expert_used_count", n_layer, 0, n_expert)?.unwrap_or_default();
    let most_used = used.iter().copied().max().unwrap_or(0);
    if n_expert > 0 && most_used == 0 {
        return Err(keys.value_error("expert_used_count", format!("1 to {n_expert}"), 0));
    }
    let groups = keys.optional("expert_group_count", 0, n_expert.saturating_sub(1))?.unwrap_or(0);
    if groups > 1 {
        if n_expert % groups != 0 {
            return Err(keys.value_error("expert_group_count", format!("a divisor of {n_expert}"), groups));
        }
        if keys.optional("expert_group_used_count", 1, groups - 1)?.is_none() {
            return Err(keys.missing("expert_group_used_count"));
        }
    }
    keys.optional("expert_gating_func", 0, 4)?;
    Ok(())
}

fn rope(keys: &Keys<'_>) -> Result<()> {
    if let Some(value) = keys.get("rope.scaling.type") {
        let known = ["none", "linear", "yarn", "longrope"];
        if !value.as_str().is_some_and(|kind| known.contains(&kind)) {
            return Err(keys.value_error("rope.scaling.type", known.join(", "), format!("{value:?}")));
        }
    }
    for name in ["rope.freq_base", "rope.freq_base_swa"] {
        keys.float(name, |value| value > 0.0, "a positive number")?;
    }
    for name in ["rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor", "attention.clamp_kqv"] {
        keys.float(name, |value| value >= 0.0, "a number that is not negative")?;
    }
    keys.optional("rope.scaling.original_context_length", 0, MAX_CONTEXT)?;
    Ok(())
}

/// The keys below the architecture's name.
struct Keys<'a> {
    model: &'a File,
    prefix: &'a str,
}

impl Keys<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn get(&self, name: &str) -> Option<Value<'_>> {
        self.model.get(&self.name(name))
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingKey { key: self.name(name), why: "the model cannot be loaded without it" }
    }

    fn value_error(&self, name: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        self.model.key_value_error(&self.name(name), expected, found)
    }

    /// A `u32` within bounds, as llama.cpp reads it; other types are its errors, and so are ours.
    fn optional(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let key = self.name(name);
        let Some(value) = self.model.u32(&key)?.map(u64::from) else {
            return Ok(None);
        };
        if !(least..=most).contains(&value) {
            let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
            return Err(self.value_error(name, expected, value));
        }
        Ok(Some(value))
    }

    fn required(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        self.optional(name, least, most)?.ok_or_else(|| self.missing(name))
    }

    fn float(&self, name: &str, is_right: impl Fn(f32) -> bool, expected: &str) -> Result<()> {
        match self.model.f32(&self.name(name))? {
            Some(value) if !value.is_finite() || !is_right(value) => Err(self.value_error(name, expected, value)),
            _ => Ok(()),
        }
    }

    /// One number for all layers, or an array of one for each.
    fn per_layer(&self, name: &str, n_layer: u64, least: u64, most: u64) -> Result<Option<Vec<u64>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        if value.as_array().is_none() {
            return Ok(self.optional(name, least, most)?.map(|value| vec![value; n_layer as usize]));
        }
        let key = self.name(name);
        let types = [ValueType::U32, ValueType::I32];
        let Some(array) = self.model.array(&key, &types, "u32 or arr[u32], one for each layer")? else {
            return Ok(None);
        };
        if array.len() != n_layer {
            return Err(self.value_error(name, format!("one number for each of {n_layer} layers"), array.len()));
        }
        let mut values = Vec::new();
        for (index, value) in array.iter().enumerate() {
            match value.as_u64() {
                Some(value) if (least..=most).contains(&value) => values.push(value),
                _ => {
                    return Err(Error::ArrayEntry {
                        key,
                        index: index as u64,
                        expected: format!("{least} to {most}"),
                        found: format!("{value:?}"),
                    });
                }
            }
        }
        Ok(Some(values))
    }

    /// A `u32`, or an array of numbers or booleans of at most `most` entries.
    fn optional_or_array(&self, name: &str, most: u64) -> Result<()> {
        match self.get(name).and_then(|value| value.as_array()) {
            None => self.optional(name, 0, u64::from(u32::MAX)).map(drop),
            Some(array) if array.len() > most => {
                Err(self.value_error(name, format!("at most {most} entries"), array.len()))
            }
            Some(_) => {
                let types = [ValueType::Bool, ValueType::U32, ValueType::I32];
                self.model.array(&self.name(name), &types, "u32 or arr[bool]").map(drop)
            }
        }
    }
}
