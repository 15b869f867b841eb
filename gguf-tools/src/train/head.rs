//! A head as it is stored and run: norm, optional MLP, map and bias, gate, and the maps to skipped keys and values.
//!
//! [`Head::apply`] is the runtime's mathematics on the stored, rounded matrices. Its tensors' names and shapes are those of
//! `docs/gguf.md`.

use offramp::gguf::Writer;
use offramp::gguf::exits::{HeadType, Metric};

use super::classifier::Classifier;
use super::network::{Trained, TrainedMap};
use super::ridge::Affine;
use super::stored::Stored;

/// The exit after one block.
#[derive(Debug, Clone)]
pub struct Head {
    /// The block whose output it reads.
    pub layer: u32,
    /// The weight of its norm, `[n_embd]`.
    pub norm: Vec<f32>,
    /// Gate and up `[n_embd, n_ff]`, down `[n_ff, n_embd]`.
    pub mlp: Option<[Stored; 3]>,
    /// The map to the final state.
    pub map: Map,
    /// `[n_embd]`
    pub bias: Vec<f32>,
    /// What decides whether the head is evaluated.
    pub gate: Option<Gate>,
    /// What tells how sure it is.
    pub classifier: Option<Classifier>,
    /// Keys and values of the blocks above, in their order; none, or one for each.
    pub kv: Vec<KvMap>,
}

/// The map from inputs to the final state.
#[derive(Debug, Clone)]
pub enum Map {
    /// `[n_embd, n_embd]`
    Affine(Stored),
    /// `[n_embd, rank]`, then `[rank, n_embd]`.
    LowRank {
        /// The first.
        down: Stored,
        /// The second.
        up: Stored,
    },
}

/// A linear guess of whether a head will be sure and right.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// `[n_embd]`
    pub weight: Vec<f32>,
    /// Added before the logistic function.
    pub bias: f32,
}

/// The maps from inputs to keys and values of one skipped block.
#[derive(Debug, Clone)]
pub struct KvMap {
    /// The skipped block.
    pub layer: u32,
    /// `[n_embd, n_embd_k_gqa]` with a bias: keys before rotation.
    pub k: (Stored, Vec<f32>),
    /// `[n_embd, n_embd_v_gqa]` with a bias.
    pub v: (Stored, Vec<f32>),
}

impl Head {
    /// Rounds trained weights as they will be stored.
    ///
    /// # Errors
    ///
    /// Weights that no stored type can hold.
    pub fn new(layer: u32, norm: Vec<f32>, trained: &Trained) -> anyhow::Result<Head> {
        let n_embd = norm.len();
        let mlp = match &trained.mlp {
            Some([gate, up, down]) => {
                let n_ff = gate.len() / n_embd.max(1);
                Some([Stored::new(n_embd, gate)?, Stored::new(n_embd, up)?, Stored::new(n_ff, down)?])
            }
            None => None,
        };
        let map = match &trained.map {
            TrainedMap::Affine(weight) => Map::Affine(Stored::new(n_embd, weight)?),
            TrainedMap::LowRank { down, up } => {
                let rank = down.len() / n_embd.max(1);
                Map::LowRank { down: Stored::new(n_embd, down)?, up: Stored::new(rank, up)? }
            }
        };
        Ok(Head { layer, norm, mlp, map, bias: trained.bias.clone(), gate: None, classifier: None, kv: Vec::new() })
    }

    /// Its type, as named in a file.
    pub fn ty(&self) -> HeadType {
        match (&self.map, &self.mlp) {
            (Map::Affine(_), None) => HeadType::Affine,
            (Map::Affine(_), Some(_)) => HeadType::AffineMlp,
            (Map::LowRank { .. }, None) => HeadType::LowRank,
            (Map::LowRank { .. }, Some(_)) => HeadType::LowRankMlp,
        }
    }

    /// The rank of its map; 0 for a square one.
    pub fn rank(&self) -> usize {
        match &self.map {
            Map::Affine(_) => 0,
            Map::LowRank { down, .. } => down.n_out(),
        }
    }

    /// The outputs for inputs `x`, `[n_embd, n]`: predictions of the final state.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let changed = self.mlp.as_ref().map(|[gate, up, down]| {
            let silu = |v: f32| v / (1.0 + (-v).exp());
            let pairs = gate.apply(x).into_iter().zip(up.apply(x));
            let inner: Vec<f32> = pairs.map(|(gate, up)| silu(gate) * up).collect();
            let mut changed = down.apply(&inner);
            changed.iter_mut().zip(x).for_each(|(changed, x)| *changed += x);
            changed
        });
        let x = changed.as_deref().unwrap_or(x);
        let mut z = match &self.map {
            Map::Affine(weight) => weight.apply(x),
            Map::LowRank { down, up } => up.apply(&down.apply(x)),
        };
        for row in z.chunks_exact_mut(self.bias.len()) {
            row.iter_mut().zip(&self.bias).for_each(|(z, bias)| *z += bias);
        }
        z
    }

    /// What the gate gives for one input, in [0, 1]; 1 without a gate.
    pub fn gate_output(&self, x: &[f32]) -> f32 {
        self.gate.as_ref().map_or(1.0, |gate| gate.output(x))
    }

    /// The bytes that evaluating it reads, without gate and K/V maps.
    pub fn bytes(&self) -> u64 {
        let map = match &self.map {
            Map::Affine(weight) => weight.bytes().len(),
            Map::LowRank { down, up } => down.bytes().len() + up.bytes().len(),
        };
        let mlp: usize = self.mlp.iter().flatten().map(|matrix| matrix.bytes().len()).sum();
        (map + mlp) as u64
    }

    /// The bytes of its K/V maps.
    pub fn kv_bytes(&self) -> u64 {
        self.kv.iter().map(|map| (map.k.0.bytes().len() + map.v.0.bytes().len()) as u64).sum()
    }

    /// Adds its tensors to a file in the making, those of its classifier where that is `metric`.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn write(&self, metric: Metric, writer: &mut Writer) -> offramp::gguf::Result<()> {
        let name = |part: &str| format!("blk.{}.exit_{part}", self.layer);
        let matrix = |writer: &mut Writer, part: &str, stored: &Stored| {
            let dims = [stored.n_in() as u64, stored.n_out() as u64];
            writer.tensor(&name(part), stored.ty(), &dims, stored.bytes().to_vec()).map(drop)
        };
        let vector = |writer: &mut Writer, part: &str, values: &[f32]| {
            writer.tensor_f32(&name(part), &[values.len() as u64], values).map(drop)
        };
        vector(writer, "norm.weight", &self.norm)?;
        if let Some([gate, up, down]) = &self.mlp {
            matrix(writer, "ffn_gate.weight", gate)?;
            matrix(writer, "ffn_up.weight", up)?;
            matrix(writer, "ffn_down.weight", down)?;
        }
        match &self.map {
            Map::Affine(weight) => matrix(writer, "head.weight", weight)?,
            Map::LowRank { down, up } => {
                matrix(writer, "down.weight", down)?;
                matrix(writer, "up.weight", up)?;
            }
        }
        vector(writer, "head.bias", &self.bias)?;
        if let Some(gate) = &self.gate {
            vector(writer, "gate.weight", &gate.weight)?;
            vector(writer, "gate.bias", &[gate.bias])?;
        }
        if let Some(classifier) = self.classifier.as_ref().filter(|_| metric == Metric::Classifier) {
            classifier.write(&name("classifier"), writer)?;
        }
        for map in &self.kv {
            for (kind, (weight, bias)) in [("k", &map.k), ("v", &map.v)] {
                matrix(writer, &format!("{kind}.{}.weight", map.layer), weight)?;
                vector(writer, &format!("{kind}.{}.bias", map.layer), bias)?;
            }
        }
        Ok(())
    }
}

impl Gate {
    /// The logistic function of `weight . x + bias`.
    pub fn output(&self, x: &[f32]) -> f32 {
        let sum: f64 = x.iter().zip(&self.weight).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        (1.0 / (1.0 + (-(sum + f64::from(self.bias))).exp())) as f32
    }
}

impl KvMap {
    /// Rounds the closed forms for one block as they will be stored.
    ///
    /// # Errors
    ///
    /// Weights that no stored type can hold.
    pub fn new(layer: u32, n_embd: usize, k: Affine, v: Affine) -> anyhow::Result<KvMap> {
        let stored = |map: Affine| -> anyhow::Result<_> { Ok((Stored::new(n_embd, &map.weight)?, map.bias)) };
        Ok(KvMap { layer, k: stored(k)?, v: stored(v)? })
    }
}
