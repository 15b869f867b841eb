//! A world whose answer is known: final states that use few directions, hidden states that show them more or less
//! clearly, and keys and values that follow from hidden states.

use gguf_tools::collect::label::Label;
use gguf_tools::collect::store::{KvWidths, Manifest, Reader, Rows, Sequence, Store};
use gguf_tools::screen::basis::product_of_rows;
use offramp::Token;
use offramp::gguf::exits::Base;
use offramp::gguf::{File, Writer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const N_EMBD: usize = 64;
pub const N_VOCAB: usize = 600;
/// The directions that final states use; the others hold a thousandth of their energy.
const N_USED: usize = 24;
const N_SEQUENCES: u64 = 240;
pub const N_LAYER: u32 = 4;
/// The widths of keys and values.
const KV: (usize, usize) = (8, 4);
/// The layers whose hidden states are kept, and how much noise hides the final state there.
const LAYERS: [(u32, f32); 2] = [(0, 1.0), (1, 0.2)];

pub struct World {
    /// Keeps the store on disk.
    _folder: tempfile::TempDir,
    pub model: File,
    pub base: Base,
    pub reader: Reader,
}

pub fn normal(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}

fn rows(rng: &mut ChaCha8Rng, n: usize, width: usize) -> Vec<f32> {
    (0..n * width).map(|_| normal(rng)).collect()
}

/// A model file of one matrix, and 240 collected sequences of 10 tokens.
pub fn world() -> World {
    world_where(false)
}

/// The same; if it `follows`, a final state comes of the one before and of the row of the token that was emitted there, half
/// and half. Otherwise neither says anything of the next.
pub fn world_where(follows: bool) -> World {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let matrix = rows(&mut rng, N_VOCAB, N_EMBD);
    let mut writer = Writer::new();
    writer.key("general.architecture", "llama").unwrap();
    writer.key("llama.embedding_length", N_EMBD as u32).unwrap();
    writer.key("llama.block_count", N_LAYER).unwrap();
    let tokens: Vec<String> = (0..N_VOCAB).map(|i| format!("t{i}")).collect();
    writer.key("tokenizer.ggml.tokens", tokens.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    writer.tensor_f32("output.weight", &[N_EMBD as u64, N_VOCAB as u64], &matrix).unwrap();
    let model = File::from_bytes(writer.to_bytes().unwrap(), "world.gguf").unwrap();
    let base = Base::of(&model, &mut |_, _| true).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let kv = (1..N_LAYER).map(|layer| KvWidths { layer, k: KV.0 as u32, v: KV.1 as u32 });
    let manifest = Manifest {
        version: Manifest::VERSION,
        model: base.name.clone(),
        sha256: base.sha256.clone(),
        n_embd: N_EMBD as u32,
        n_vocab: N_VOCAB as u32,
        layers: LAYERS.iter().map(|(layer, _)| *layer).collect(),
        kv: kv.collect(),
        prompts: "none".into(),
        answer: 10,
        seed: 0,
        batch_width: 1,
        engine: "test".into(),
        width_difference: 0.0,
    };
    let mut store = Store::open(folder.path(), manifest.clone(), 2400, false).unwrap();
    let directions = rows(&mut rng, N_EMBD, N_EMBD);
    let mixing: Vec<Vec<f32>> = LAYERS.iter().map(|_| rows(&mut rng, N_EMBD, N_EMBD)).collect();
    let (to_k, to_v) = (rows(&mut rng, KV.0, N_EMBD), rows(&mut rng, KV.1, N_EMBD));
    for index in 0..N_SEQUENCES {
        let mut rows = Rows::new(&manifest);
        let mut before: Option<Vec<f32>> = None;
        for _ in 0..10 {
            let mut weights: Vec<f32> =
                (0..N_EMBD).map(|i| normal(&mut rng) * if i < N_USED { 1.0 } else { 0.03 }).collect();
            let mut token = 0;
            if let Some(before) = before.as_ref().filter(|_| follows) {
                token = rng.random_range(0..N_VOCAB);
                let row = &matrix[token * N_EMBD..];
                for i in 0..N_USED {
                    weights[i] = 0.7 * (before[(i + 1) % N_USED] + row[i]);
                }
            }
            before = Some(weights.clone());
            let result = product_of_rows(&weights, &directions, N_EMBD);
            let logits = product_of_rows(&result, &matrix, N_EMBD);
            let mut values = Vec::new();
            for ((_, noise), mixing) in LAYERS.iter().zip(&mixing) {
                let mut hidden = product_of_rows(&result, mixing, N_EMBD);
                let size = (hidden.iter().map(|x| x * x).sum::<f32>() / N_EMBD as f32).sqrt();
                // Half of the tokens are hard to foresee.
                let noise = if rng.random::<f32>() < 0.5 { *noise } else { 0.02 };
                hidden.iter_mut().for_each(|x| *x += noise * size * normal(&mut rng));
                values.push(hidden);
            }
            let upper = values.last().unwrap().clone();
            values.push(result);
            for _ in 1..N_LAYER {
                let size = (upper.iter().map(|x| x * x).sum::<f32>() / N_EMBD as f32).sqrt();
                let unit: Vec<f32> = upper.iter().map(|x| x / size).collect();
                values.push(product_of_rows(&unit, &to_k, N_EMBD));
                values.push(product_of_rows(&unit, &to_v, N_EMBD));
            }
            rows.push(&Label::of(Token(token as i32), &logits), values.iter().map(Vec::as_slice)).unwrap();
        }
        store.commit(&Sequence { index, n_prompt: 1, is_greedy: true }, &rows).unwrap();
    }
    drop(store);
    let reader = Reader::open(folder.path()).unwrap();
    World { _folder: folder, model, base, reader }
}
