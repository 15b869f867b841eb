//! Models with one thing changed: what the reader accepts, and the preflight must refuse where llama.cpp would
//! not survive it.

use offramp::gguf::{OwnedValue, TensorType, ValueType, Writer};

use super::Case;
use crate::random;

/// A sound small model in which one key has another value, or none.
fn with_key(key: &str, value: Option<OwnedValue>) -> Vec<u8> {
    with_keys(vec![(key, value)])
}

fn with_keys(changes: Vec<(&str, Option<OwnedValue>)>) -> Vec<u8> {
    let model = random::open(&random::model(1));
    let mut writer = Writer::new();
    writer.copy_keys(&model, |name| changes.iter().all(|(key, _)| *key != name)).unwrap();
    for (key, value) in changes {
        if let Some(value) = value {
            writer.key(key, value).unwrap();
        }
    }
    for tensor in model.tensors() {
        writer.copy_tensor(&model, tensor).unwrap();
    }
    writer.to_bytes().unwrap()
}

/// A sound small model in which one tensor has another type and shape, or is missing.
fn with_tensor(name: &str, replacement: Option<(TensorType, &[u64])>) -> Vec<u8> {
    let model = random::open(&random::model(1));
    let mut writer = Writer::new();
    writer.copy_keys(&model, |_| true).unwrap();
    for tensor in model.tensors() {
        match replacement {
            _ if tensor.name() != name => {
                writer.copy_tensor(&model, tensor).unwrap();
            }
            Some((ty, dims)) => {
                writer.tensor(name, ty, dims, vec![0; ty.bytes(dims).unwrap() as usize]).unwrap();
            }
            None => {}
        }
    }
    writer.to_bytes().unwrap()
}

/// The vocabulary with one text replaced.
fn tokens_with(index: usize, text: &str) -> Option<OwnedValue> {
    let mut tokens = random::tokens();
    tokens[index] = text.to_string();
    Some(tokens.into())
}

/// Models that the reader accepts and the preflight must refuse, and some that it must not.
pub fn models() -> Vec<Case> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const TYPES: &str = "tokenizer.ggml.token_type";
    const SCORES: &str = "tokenizer.ggml.scores";
    const MERGES: &str = "tokenizer.ggml.merges";
    let n = random::tokens().len();
    let some = |value: OwnedValue| Some(value);
    let u32 = |value: u32| Some(OwnedValue::from(value));
    let f32 = |value: f32| Some(OwnedValue::from(value));
    let i32s = |values: Vec<i32>| Some(OwnedValue::from(values));
    let spm = |tokens: Vec<String>| {
        with_keys(vec![("tokenizer.ggml.model", Some("llama".into())), (TOKENS, Some(tokens.into())), (TYPES, None)])
    };
    let bytes_spelled =
        || (0..n).map(|i| if i < 256 { format!("<0x{i:02X}>") } else { format!("t{i}") }).collect::<Vec<_>>();
    let byte_types = |text: &str| {
        let mut types = vec![1; n];
        types[3] = 6;
        with_keys(vec![(TYPES, Some(types.into())), (TOKENS, tokens_with(3, text))])
    };
    let experts = |count: u32, used: u32| {
        with_keys(vec![("llama.expert_count", Some(count.into())), ("llama.expert_used_count", Some(used.into()))])
    };
    let cases = vec![
        ("the model itself", random::model(1).to_bytes().unwrap(), None),
        // Tokenizer arrays of the wrong type or length.
        ("tokens as bytes", with_key(TOKENS, some(vec![0u8; n].into())), Some("KeyType")),
        ("tokens as one text", with_key(TOKENS, some("text".into())), Some("KeyType")),
        ("no tokens", with_key(TOKENS, some(Vec::<String>::new().into())), Some("KeyValue")),
        ("tokens missing", with_key(TOKENS, None), Some("MissingKey")),
        ("token types as bytes", with_key(TYPES, some(vec![1u8; n].into())), Some("KeyType")),
        ("token types as u32", with_key(TYPES, some(vec![1u32; n].into())), Some("KeyType")),
        ("token types as one number", with_key(TYPES, some(1i32.into())), Some("KeyType")),
        ("one token type too few", with_key(TYPES, i32s(vec![1; n - 1])), Some("KeyValue")),
        ("one token type too many", with_key(TYPES, i32s(vec![1; n + 1])), Some("KeyValue")),
        ("unknown token type", with_key(TYPES, i32s(vec![7; n])), Some("ArrayEntry")),
        ("negative token type", with_key(TYPES, i32s(vec![-1; n])), Some("ArrayEntry")),
        ("scores as bytes", with_key(SCORES, some(vec![1u8; n].into())), Some("KeyType")),
        ("scores as f64", with_key(SCORES, some(vec![1f64; n].into())), Some("KeyType")),
        ("one score too few", with_key(SCORES, some(vec![1f32; n - 1].into())), Some("KeyValue")),
        ("a score that is no number", with_key(SCORES, some(vec![f32::NAN; n].into())), Some("ArrayEntry")),
        ("merges as numbers", with_key(MERGES, some(vec![1u32; 4].into())), Some("KeyType")),
        ("merges missing", with_key(MERGES, None), Some("MissingKey")),
        ("a merge of one text", with_key(MERGES, some(vec!["th"].into())), Some("ArrayEntry")),
        ("an empty merge", with_key(MERGES, some(vec![""].into())), Some("ArrayEntry")),
        (
            "suppressed tokens as f32",
            with_key("tokenizer.ggml.suppress_tokens", some(vec![1f32].into())),
            Some("KeyType"),
        ),
        ("add_bos_token as a number", with_key("tokenizer.ggml.add_bos_token", u32(1)), Some("KeyType")),
        // The vocabulary's contents.
        ("two tokens with one text", with_key(TOKENS, tokens_with(256, "!")), Some("ArrayEntry")),
        ("two tokens alike up to a zero byte", with_key(TOKENS, tokens_with(256, "!\0x")), Some("ArrayEntry")),
        (
            "a token that spells a replacement",
            with_keys(vec![(TOKENS, tokens_with(256, "[EMPTY_7]"))]),
            Some("ArrayEntry"),
        ),
        ("byte token <0x-1>", byte_types("<0x-1>"), Some("ArrayEntry")),
        ("byte token <0x>", byte_types("<0x>"), Some("ArrayEntry")),
        ("byte token without a text", byte_types(""), Some("ArrayEntry")),
        ("a sound byte token", byte_types("<0x03>"), None),
        ("SentencePiece without byte tokens", spm(random::tokens()), Some("ArrayEntry")),
        ("SentencePiece with byte tokens", spm(bytes_spelled()), None),
        ("begin token beyond the vocabulary", with_key("tokenizer.ggml.bos_token_id", u32(n as u32)), Some("KeyValue")),
        ("end token of 2^32 - 1", with_key("tokenizer.ggml.eos_token_id", u32(u32::MAX)), Some("KeyValue")),
        ("padding token beyond the vocabulary", with_key("tokenizer.ggml.padding_token_id", u32(u32::MAX)), None),
        ("begin token as i32", with_key("tokenizer.ggml.bos_token_id", some(1i32.into())), Some("KeyType")),
        ("end token to be added, but none there", gemma4(), Some("MissingKey")),
        ("unknown tokenizer", with_key("tokenizer.ggml.model", some("magic".into())), Some("UnreadLoader")),
        ("tokenizer of an encoder", with_key("tokenizer.ggml.model", some("bert".into())), Some("UnreadLoader")),
        ("no tokenizer", with_key("tokenizer.ggml.model", None), Some("MissingKey")),
        // The architecture and its numbers.
        ("no architecture", with_key("general.architecture", None), Some("MissingKey")),
        ("architecture as a number", with_key("general.architecture", u32(1)), Some("KeyType")),
        ("unknown architecture", with_key("general.architecture", some("magic".into())), Some("UnreadLoader")),
        ("another architecture's keys", with_key("general.architecture", some("qwen2".into())), Some("MissingKey")),
        ("a part of a split model", with_key("split.count", some(2u16.into())), Some("KeyValue")),
        ("an adapter", with_key("general.type", some("adapter".into())), Some("KeyValue")),
        ("no layers", with_key("llama.block_count", u32(0)), Some("KeyValue")),
        ("513 layers", with_key("llama.block_count", u32(513)), Some("KeyValue")),
        ("layers as u64", with_key("llama.block_count", some(3u64.into())), Some("KeyType")),
        ("more layers than tensors", with_key("llama.block_count", u32(4)), Some("MissingTensor")),
        ("context of no tokens", with_key("llama.context_length", u32(0)), Some("KeyValue")),
        ("context of 2^32 - 1 tokens", with_key("llama.context_length", u32(u32::MAX)), Some("KeyValue")),
        ("hidden states of length 0", with_key("llama.embedding_length", u32(0)), Some("KeyValue")),
        ("hidden states of another length", with_key("llama.embedding_length", u32(128)), Some("KeyValue")),
        ("no heads", with_key("llama.attention.head_count", u32(0)), Some("KeyValue")),
        ("heads missing", with_key("llama.attention.head_count", None), Some("MissingKey")),
        ("more heads than values", with_key("llama.attention.head_count", u32(128)), Some("KeyValue")),
        ("no K/V heads", with_key("llama.attention.head_count_kv", u32(0)), Some("KeyValue")),
        ("K/V heads that do not divide the heads", with_key("llama.attention.head_count_kv", u32(3)), Some("KeyValue")),
        ("heads of two layers", with_key("llama.attention.head_count", some(vec![4u32; 2].into())), Some("KeyValue")),
        (
            "heads of each layer, one of them 0",
            with_key("llama.attention.head_count", some(vec![4u32, 0, 4].into())),
            Some("ArrayEntry"),
        ),
        (
            "heads of each layer, negative",
            with_key("llama.attention.head_count", i32s(vec![4, -4, 4])),
            Some("ArrayEntry"),
        ),
        (
            "heads of each layer as f32",
            with_key("llama.attention.head_count", some(vec![4f32; 3].into())),
            Some("KeyType"),
        ),
        (
            "heads of each layer as texts",
            with_key("llama.attention.head_count", some(vec!["4"; 3].into())),
            Some("KeyType"),
        ),
        ("heads of each layer", with_key("llama.attention.head_count", some(vec![4u32; 3].into())), None),
        (
            "feed-forward lengths of four layers",
            with_key("llama.feed_forward_length", some(vec![128u32; 4].into())),
            Some("KeyValue"),
        ),
        ("keys of another length than values", with_key("llama.attention.key_length", u32(32)), Some("KeyValue")),
        ("keys of length 0", with_key("llama.attention.key_length", u32(0)), Some("KeyValue")),
        ("uneven rope dimensions", with_key("llama.rope.dimension_count", u32(15)), Some("KeyValue")),
        ("more rope dimensions than values", with_key("llama.rope.dimension_count", u32(18)), Some("KeyValue")),
        ("unknown rope scaling", with_key("llama.rope.scaling.type", some("magic".into())), Some("KeyValue")),
        ("rope scaling as a number", with_key("llama.rope.scaling.type", u32(1)), Some("KeyValue")),
        ("infinite rope base", with_key("llama.rope.freq_base", f32(f32::INFINITY)), Some("KeyValue")),
        ("negative epsilon", with_key("llama.attention.layer_norm_rms_epsilon", f32(-1.0)), Some("KeyValue")),
        (
            "epsilon that is no number",
            with_key("llama.attention.layer_norm_rms_epsilon", f32(f32::NAN)),
            Some("KeyValue"),
        ),
        ("more experts used than there are", experts(2, 3), Some("KeyValue")),
        ("no experts used", experts(2, 0), Some("KeyValue")),
        ("2,000 experts", experts(2000, 2), Some("KeyValue")),
        ("experts used of none", experts(0, 1), Some("KeyValue")),
        ("expert groups without experts", with_key("llama.expert_group_count", u32(1)), Some("KeyValue")),
        ("an encoder's attention", with_key("llama.attention.causal", some(false.into())), Some("KeyValue")),
        ("unknown pooling", with_key("llama.pooling_type", u32(9)), Some("KeyValue")),
        ("only layers that predict further tokens", with_key("llama.nextn_predict_layers", u32(3)), Some("KeyValue")),
        (
            "output states longer than hidden ones",
            with_key("llama.embedding_length_out", u32(1 << 20)),
            Some("KeyValue"),
        ),
        // Tensors.
        ("zero dimension", with_tensor("blk.0.ffn_gate.weight", Some((TensorType::F32, &[64, 0]))), Some("ZeroDim")),
        (
            "norm in half precision",
            with_tensor("blk.0.attn_norm.weight", Some((TensorType::F16, &[64]))),
            Some("TensorShape"),
        ),
        (
            "norm of quantized numbers",
            with_tensor("blk.0.attn_norm.weight", Some((TensorType::Q8_0, &[64]))),
            Some("TensorShape"),
        ),
        (
            "matrix of whole numbers",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::I32, &[64, 128]))),
            Some("TensorShape"),
        ),
        (
            "matrix of Q8_1",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::Q8_1, &[64, 128]))),
            Some("TensorShape"),
        ),
        (
            "matrix of F64",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::F64, &[64, 128]))),
            Some("TensorShape"),
        ),
        (
            "embedding of another vocabulary",
            with_tensor("token_embd.weight", Some((TensorType::F32, &[64, 100]))),
            Some("TensorShape"),
        ),
        ("embedding missing", with_tensor("token_embd.weight", None), Some("MissingTensor")),
        (
            "attention of another width",
            with_tensor("blk.1.attn_k.weight", Some((TensorType::F32, &[64, 64]))),
            Some("TensorShape"),
        ),
        ("attention missing", with_tensor("blk.2.attn_v.weight", None), Some("MissingTensor")),
        // llama.cpp itself reports these.
        ("feed-forward missing", with_tensor("blk.1.ffn_up.weight", None), None),
        ("feed-forward of another shape", with_tensor("blk.1.ffn_up.weight", Some((TensorType::F32, &[64, 64]))), None),
        ("an unknown pre-tokenizer", with_key("tokenizer.ggml.pre", some("magic".into())), None),
        ("a name that is a number", with_key("general.name", u32(1)), None),
        (
            "an empty array of numbers among the keys",
            with_key("more", Some(OwnedValue::Array(ValueType::U8, vec![]))),
            None,
        ),
        (
            "every matrix type that rows of 64 allow",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::NVFP4, &[64, 128]))),
            None,
        ),
    ];
    cases.into_iter().map(|(name, bytes, expected)| Case { name, bytes, expected }).collect()
}

fn gemma4() -> Vec<u8> {
    with_keys(vec![
        ("tokenizer.ggml.model", Some("gemma4".into())),
        ("tokenizer.ggml.bos_token_id", None),
        ("tokenizer.ggml.eos_token_id", None),
        ("tokenizer.ggml.add_eos_token", Some(true.into())),
    ])
}
