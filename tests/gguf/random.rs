//! Small models and heads with random weights, from fixed seeds, for tests that need a file of the right
//! shape and no sense in it.

use offramp::gguf::exits::{self, Base, Calibration, ConfidenceMap, ExitMeta, HeadType, KvPolicy, Metric, ScreenMeta};
use offramp::gguf::{File, TensorType, Writer};

/// A xorshift generator: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// Numbers between -0.1 and 0.1.
    pub fn floats(&mut self, n: u64) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 10_000.0 - 0.1).collect()
    }
}

/// The shape of the tiny model.
pub const N_EMBD: u64 = 64;
pub const N_LAYER: u64 = 3;
pub const N_FF: u64 = 128;
pub const N_HEAD: u64 = 4;
pub const N_HEAD_KV: u64 = 2;
pub const HEAD_LENGTH: u64 = N_EMBD / N_HEAD;

/// The texts of a byte-level vocabulary: the 256 bytes as byte pair encoding spells them, two merges and an
/// end token.
pub fn tokens() -> Vec<String> {
    let mut next = 256;
    let mut texts: Vec<String> = (0..=255u8)
        .map(|byte| {
            let code = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    next += 1;
                    next - 1
                }
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    texts.extend(["th".to_string(), "the".to_string(), "<|end|>".to_string()]);
    texts
}

/// The keys of the tiny model.
pub fn model_keys(writer: &mut Writer) {
    let n_vocab = tokens().len();
    writer.key("general.architecture", "llama").unwrap();
    writer.key("general.name", "tiny").unwrap();
    writer.key("llama.context_length", 256u32).unwrap();
    writer.key("llama.embedding_length", N_EMBD as u32).unwrap();
    writer.key("llama.block_count", N_LAYER as u32).unwrap();
    writer.key("llama.feed_forward_length", N_FF as u32).unwrap();
    writer.key("llama.attention.head_count", N_HEAD as u32).unwrap();
    writer.key("llama.attention.head_count_kv", N_HEAD_KV as u32).unwrap();
    writer.key("llama.attention.layer_norm_rms_epsilon", 1e-5f32).unwrap();
    writer.key("llama.rope.dimension_count", HEAD_LENGTH as u32).unwrap();
    writer.key("tokenizer.ggml.model", "gpt2").unwrap();
    writer.key("tokenizer.ggml.pre", "gpt-2").unwrap();
    writer.key("tokenizer.ggml.tokens", tokens()).unwrap();
    let types: Vec<i32> = (0..n_vocab).map(|id| if id + 1 == n_vocab { 3 } else { 1 }).collect();
    writer.key("tokenizer.ggml.token_type", types).unwrap();
    writer.key("tokenizer.ggml.merges", vec!["t h", "th e"]).unwrap();
    writer.key("tokenizer.ggml.bos_token_id", n_vocab as u32 - 1).unwrap();
    writer.key("tokenizer.ggml.eos_token_id", n_vocab as u32 - 1).unwrap();
}

/// The names and shapes of the tiny model's tensors.
pub fn model_tensors() -> Vec<(String, Vec<u64>)> {
    let n_vocab = tokens().len() as u64;
    let kv = HEAD_LENGTH * N_HEAD_KV;
    let mut tensors = vec![("token_embd.weight".to_string(), vec![N_EMBD, n_vocab])];
    for layer in 0..N_LAYER {
        for (name, dims) in [
            ("attn_norm", vec![N_EMBD]),
            ("attn_q", vec![N_EMBD, N_EMBD]),
            ("attn_k", vec![N_EMBD, kv]),
            ("attn_v", vec![N_EMBD, kv]),
            ("attn_output", vec![N_EMBD, N_EMBD]),
            ("ffn_norm", vec![N_EMBD]),
            ("ffn_gate", vec![N_EMBD, N_FF]),
            ("ffn_up", vec![N_EMBD, N_FF]),
            ("ffn_down", vec![N_FF, N_EMBD]),
        ] {
            tensors.push((format!("blk.{layer}.{name}.weight"), dims));
        }
    }
    tensors.push(("output_norm.weight".to_string(), vec![N_EMBD]));
    tensors
}

/// Adds the tiny model's tensors, all F32.
pub fn model_weights(writer: &mut Writer, seed: u64) {
    let mut random = Random::new(seed);
    for (name, dims) in model_tensors() {
        let mut data = random.floats(dims.iter().product());
        if dims.len() == 1 {
            data.iter_mut().for_each(|value| *value += 1.0);
        }
        writer.tensor_f32(&name, &dims, &data).unwrap();
    }
}

/// A model of three small layers that llama.cpp loads and runs.
pub fn model(seed: u64) -> Writer {
    let mut writer = Writer::new();
    model_keys(&mut writer);
    model_weights(&mut writer, seed);
    writer
}

/// A complete description of heads after `layers` for any model.
pub fn meta(base: Base, layers: &[u32], types: &[HeadType]) -> ExitMeta {
    let n = layers.len();
    let rank = 8.min(base.n_embd);
    let map = ConfidenceMap { metric: vec![0.0, 0.5, 1.0], agreement: vec![0.1, 0.8, 0.999] };
    ExitMeta {
        layers: layers.to_vec(),
        head_types: types.to_vec(),
        head_ranks: types.iter().map(|ty| if ty.is_low_rank() { 16.min(base.n_embd) } else { 0 }).collect(),
        screen: ScreenMeta {
            rank,
            shortlist: 64.min(base.n_vocab),
            confidence: map.clone(),
            thresholds: vec![0.9, 0.95],
        },
        vocab: None,
        draft: Some(map.clone()),
        metric: Metric::TopProbability,
        confidence: vec![map; n],
        agreements: vec![0.95, 0.99],
        thresholds: vec![vec![0.9; n], vec![f32::INFINITY; n]],
        gate_thresholds: vec![vec![0.5; n]; 2],
        calibration: Some(Calibration {
            prompts: "64 random prompts".into(),
            n_prompts: 64,
            n_tokens: 5_832,
            delta: 0.05,
            risk: vec![0.04, 0.005],
            risk_bound: vec![0.05, 0.01],
            exit_rate: vec![0.5, 0.2],
            kv_policy: KvPolicy::Predict,
            sampler: "greedy".into(),
            batch_width: 1,
            near_ties: 0.005,
            engine: "offramp 0.1.0".into(),
            date: "2026-01-31".into(),
        }),
        base,
    }
}

/// A sidecar with random heads after `layers` for any decoder-only model: every kind of head tensor, and
/// Q8_0 matrices where the rows allow it.
pub fn heads(base: &File, layers: &[u32], types: &[HeadType], seed: u64) -> Writer {
    let described = Base::of(base, &mut |_, _| true).unwrap();
    let meta = meta(described, layers, types);
    let mut writer = exits::sidecar(base, &meta).unwrap();
    let mut random = Random::new(seed);
    let (n_embd, n_vocab) = (u64::from(meta.base.n_embd), u64::from(meta.base.n_vocab));
    let rank = u64::from(meta.screen.rank);
    matrix(&mut writer, &mut random, "exit_screen.basis", [n_embd, rank]);
    matrix(&mut writer, &mut random, "exit_screen.output", [rank, n_vocab]);
    let ones: Vec<f32> = random.floats(2 * n_embd).iter().map(|value| value + 1.0).collect();
    writer.tensor_f32("exit_draft.norm.weight", &[2 * n_embd], &ones).unwrap();
    matrix(&mut writer, &mut random, "exit_draft.head.weight", [2 * n_embd, n_embd]);
    writer.tensor_f32("exit_draft.head.bias", &[n_embd], &random.floats(n_embd)).unwrap();
    let n_kv = base.tensor("blk.0.attn_k.weight").unwrap().dims()[1];
    for (index, &layer) in layers.iter().enumerate() {
        let name = |part: &str| format!("blk.{layer}.exit_{part}");
        let ones: Vec<f32> = random.floats(n_embd).iter().map(|value| value + 1.0).collect();
        writer.tensor_f32(&name("norm.weight"), &[n_embd], &ones).unwrap();
        if types[index].has_mlp() {
            let n_ff = 2 * n_embd;
            matrix(&mut writer, &mut random, &name("ffn_gate.weight"), [n_embd, n_ff]);
            matrix(&mut writer, &mut random, &name("ffn_up.weight"), [n_embd, n_ff]);
            matrix(&mut writer, &mut random, &name("ffn_down.weight"), [n_ff, n_embd]);
        }
        if types[index].is_low_rank() {
            let rank = u64::from(meta.head_ranks[index]);
            matrix(&mut writer, &mut random, &name("down.weight"), [n_embd, rank]);
            matrix(&mut writer, &mut random, &name("up.weight"), [rank, n_embd]);
        } else {
            matrix(&mut writer, &mut random, &name("head.weight"), [n_embd, n_embd]);
        }
        writer.tensor_f32(&name("head.bias"), &[n_embd], &random.floats(n_embd)).unwrap();
        writer.tensor_f32(&name("gate.weight"), &[n_embd], &random.floats(n_embd)).unwrap();
        writer.tensor_f32(&name("gate.bias"), &[1], &random.floats(1)).unwrap();
        for skipped in layer + 1..meta.base.n_layer {
            for kind in ["k", "v"] {
                matrix(&mut writer, &mut random, &name(&format!("{kind}.{skipped}.weight")), [n_embd, n_kv]);
                let bias = random.floats(n_kv);
                writer.tensor_f32(&name(&format!("{kind}.{skipped}.bias")), &[n_kv], &bias).unwrap();
            }
        }
    }
    writer
}

fn matrix(writer: &mut Writer, random: &mut Random, name: &str, dims: [u64; 2]) {
    let values = random.floats(dims[0] * dims[1]);
    if !dims[0].is_multiple_of(32) {
        writer.tensor_f32(name, &dims, &values).unwrap();
        return;
    }
    let mut bytes = Vec::new();
    for block in values.chunks(32) {
        // 0x1000 is 2^-11 in half precision.
        bytes.extend([0x00, 0x10]);
        bytes.extend(block.iter().map(|value| (value * 1270.0) as i8 as u8));
    }
    writer.tensor(name, TensorType::Q8_0, &dims, bytes).unwrap();
}

/// A file in memory.
pub fn open(writer: &Writer) -> File {
    File::from_bytes(writer.to_bytes().unwrap(), "memory").unwrap()
}
