//! Tensors of heads by their names, each with the type and the shape that it must have.

use std::collections::HashSet;

use super::super::super::error::{Error, Result, printable};
use super::super::super::reader::{File, TensorInfo};
use super::super::super::types::TensorType;
use super::super::meta::{Base, ExitMeta, HeadType};
use super::{Classifier, Draft, Gate, Head, HeadMap, KvMap, Linear, Mlp, Screen, View};

/// Finds tensors by name and remembers which were asked for.
pub(super) struct Finder<'a> {
    file: &'a File,
    n_embd: u64,
    seen: HashSet<String>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(file: &'a File, n_embd: u32) -> Self {
        Finder { file, n_embd: n_embd.into(), seen: HashSet::new() }
    }

    pub(super) fn screen(&mut self, meta: &ExitMeta) -> Result<Option<Screen<'a>>> {
        let rank = u64::from(meta.screen.rank);
        if rank == 0 {
            return Ok(None);
        }
        Ok(Some(Screen {
            basis: self.matrix("exit_screen.basis", self.n_embd, Some(rank))?,
            output: self.matrix("exit_screen.output", rank, Some(meta.base.n_vocab.into()))?,
        }))
    }

    /// The ids of `exit_vocab.tokens`.
    pub(super) fn vocab(&mut self, meta: &ExitMeta) -> Result<Option<Vec<u32>>> {
        let Some(vocab) = &meta.vocab else { return Ok(None) };
        let view = self.required("exit_vocab.tokens")?;
        if view.info.dims4() != [vocab.n_tokens.into(), 1, 1, 1] || view.info.ty() != TensorType::I32 {
            return Err(shape_error(view.info, format!("[{}] of type I32", vocab.n_tokens)));
        }
        let ids: Vec<u32> = view.data.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        // As unsigned numbers, negative ids are too large.
        if !ids.is_sorted_by(|a, b| a < b) || ids.last().is_none_or(|&last| last >= meta.base.n_vocab) {
            return Err(shape_error(view.info, format!("ascending ids below {}", meta.base.n_vocab)));
        }
        Ok(Some(ids))
    }

    pub(super) fn head(&mut self, layer: u32, ty: HeadType, rank: u64, base: &Base) -> Result<Head<'a>> {
        let n_embd = self.n_embd;
        let name = |part: &str| format!("blk.{layer}.exit_{part}");
        let norm = self.vector(&name("norm.weight"), n_embd)?;
        let mlp = if ty.has_mlp() {
            let gate = self.matrix(&name("ffn_gate.weight"), n_embd, None)?;
            let n_ff = gate.info.dims4()[1];
            let up = self.matrix(&name("ffn_up.weight"), n_embd, Some(n_ff))?;
            Some(Mlp { gate, up, down: self.matrix(&name("ffn_down.weight"), n_ff, Some(n_embd))? })
        } else {
            None
        };
        let map = if ty.is_low_rank() {
            let down = self.matrix(&name("down.weight"), n_embd, Some(rank))?;
            HeadMap::LowRank { down, up: self.matrix(&name("up.weight"), rank, Some(n_embd))? }
        } else {
            HeadMap::Affine(self.matrix(&name("head.weight"), n_embd, Some(n_embd))?)
        };
        let bias = self.optional_vector(&name("head.bias"), n_embd)?;
        let gate = match self.optional_vector(&name("gate.weight"), n_embd)? {
            Some(weight) => Some(Gate { weight, bias: self.optional_vector(&name("gate.bias"), 1)? }),
            None => None,
        };
        let mut kv = Vec::new();
        if self.file.tensor(&name(&format!("k.{}.weight", layer + 1))).is_some() {
            for skipped in layer + 1..base.n_layer {
                let k = self.linear(&name(&format!("k.{skipped}")))?;
                kv.push(KvMap { layer: skipped, k, v: self.linear(&name(&format!("v.{skipped}")))? });
            }
        }
        Ok(Head { layer, norm, mlp, map, bias, gate, classifier: None, kv })
    }

    pub(super) fn classifier(&mut self, name: &str) -> Result<Classifier<'a>> {
        let weight = self.vector(&format!("{name}.weight"), self.n_embd + 1)?;
        Ok(Classifier { weight, bias: self.vector(&format!("{name}.bias"), 1)? })
    }

    pub(super) fn draft(&mut self) -> Result<Draft<'a>> {
        let n_embd = self.n_embd;
        let norm = self.vector("exit_draft.norm.weight", 2 * n_embd)?;
        let map = self.matrix("exit_draft.head.weight", 2 * n_embd, Some(n_embd))?;
        Ok(Draft { norm, map, bias: self.vector("exit_draft.head.bias", n_embd)? })
    }

    fn linear(&mut self, name: &str) -> Result<Linear<'a>> {
        let weight = self.matrix(&format!("{name}.weight"), self.n_embd, None)?;
        let bias = self.optional_vector(&format!("{name}.bias"), weight.info.dims4()[1])?;
        Ok(Linear { weight, bias })
    }

    /// A matrix `[n_in, n_out]`, of any width where `n_out` is not given.
    fn matrix(&mut self, name: &str, n_in: u64, n_out: Option<u64>) -> Result<View<'a>> {
        let view = self.required(name)?;
        let [first, second, rest @ ..] = view.info.dims4();
        let right = first == n_in && n_out.is_none_or(|n_out| second == n_out) && second > 0 && rest == [1, 1];
        use TensorType::{F64, I8, I16, I32, I64, Q8_1, Q8_K};
        if !right || matches!(view.info.ty(), I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K) {
            let n_out = n_out.map_or("any".into(), |n_out| n_out.to_string());
            return Err(shape_error(view.info, format!("[{n_in}, {n_out}] of a type that matrices are multiplied in")));
        }
        Ok(view)
    }

    fn vector(&mut self, name: &str, len: u64) -> Result<View<'a>> {
        let view = self.required(name)?;
        if view.info.dims4() != [len, 1, 1, 1] || view.info.ty() != TensorType::F32 {
            return Err(shape_error(view.info, format!("[{len}] of type F32")));
        }
        Ok(view)
    }

    fn optional_vector(&mut self, name: &str, len: u64) -> Result<Option<View<'a>>> {
        if self.file.tensor(name).is_none() {
            return Ok(None);
        }
        self.vector(name, len).map(Some)
    }

    fn required(&mut self, name: &str) -> Result<View<'a>> {
        self.seen.insert(name.to_string());
        let info = self
            .file
            .tensor(name)
            .ok_or_else(|| Error::MissingTensor { name: name.into(), why: "the exit.* keys declare it" })?;
        Ok(View { info, data: self.file.data(info) })
    }

    /// A tensor that no exit asked for is a mistake in its name or in the keys.
    pub(super) fn refuse_others(&self) -> Result<()> {
        for tensor in self.file.tensors() {
            if super::super::is_head_name(tensor.name()) && !self.seen.contains(tensor.name()) {
                return Err(Error::TensorShape {
                    name: printable(tensor.name()),
                    expected: "a tensor of one of the declared exits".into(),
                    found: "none of them".into(),
                });
            }
        }
        Ok(())
    }
}

fn shape_error(info: &TensorInfo, expected: String) -> Error {
    Error::TensorShape { name: printable(info.name()), expected, found: format!("{} {:?}", info.ty(), info.dims()) }
}
