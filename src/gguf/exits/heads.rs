//! Heads as the runtime uses them: every tensor found by its name, and its type and shape checked once.
//!
//! Refuses tensors that are missing, have another shape, or belong to no declared exit; what is handed out
//! needs no further check. Shapes are in ggml's order, `[n_in, n_out]`.

use std::collections::HashSet;

use super::super::atomic::Progress;
use super::super::error::{Error, Result, printable};
use super::super::reader::{File, TensorInfo};
use super::super::types::TensorType;
use super::meta::{Base, ExitMeta, HeadType, base_name};

/// The heads of a merged file or a sidecar.
pub struct ExitHeads<'a> {
    file: &'a File,
    form: Form,
    meta: ExitMeta,
    screen: Option<Screen<'a>>,
    vocab: Option<Vec<u32>>,
    heads: Vec<Head<'a>>,
}

/// How heads come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Around their model, in one file.
    Merged,
    /// In a file of their own.
    Sidecar,
}

/// How thoroughly heads are compared with their base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseCheck {
    /// By the tensors' names, shapes, types and offsets: instant, blind to other weights of the same shape.
    Infos,
    /// By the tensors' data as well, which is read in full.
    Data,
}

/// One tensor.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its name, type and shape.
    pub info: &'a TensorInfo,
    /// Its data, in the type's own layout.
    pub data: &'a [u8],
}

/// A matrix `[n_in, n_out]` and, where there is one, a bias `[n_out]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The matrix.
    pub weight: View<'a>,
    /// The bias, F32.
    pub bias: Option<View<'a>>,
}

/// The low-rank factors of the output matrix that choose the candidates.
#[derive(Clone, Copy, Debug)]
pub struct Screen<'a> {
    /// `[n_embd, rank]`.
    pub basis: View<'a>,
    /// `[rank, n_vocab]`.
    pub output: View<'a>,
}

/// The exit after one layer.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// `N`: the exit reads the hidden state after block `N`.
    pub layer: u32,
    /// The weight of the norm on that state, `[n_embd]`, F32.
    pub norm: View<'a>,
    /// An MLP before the map.
    pub mlp: Option<Mlp<'a>>,
    /// The map to the final state.
    pub map: HeadMap<'a>,
    /// The bias of the map, `[n_embd]`, F32.
    pub bias: Option<View<'a>>,
    /// What decides whether the head is evaluated.
    pub gate: Option<Gate<'a>>,
    /// What predicts the keys and values of the layers above, in their order; empty, or one for each.
    pub kv: Vec<KvMap<'a>>,
}

/// A gated MLP with `n_ff` inner values.
#[derive(Clone, Copy, Debug)]
pub struct Mlp<'a> {
    /// `[n_embd, n_ff]`.
    pub gate: View<'a>,
    /// `[n_embd, n_ff]`.
    pub up: View<'a>,
    /// `[n_ff, n_embd]`.
    pub down: View<'a>,
}

/// The map from a hidden state to the final one.
#[derive(Clone, Copy, Debug)]
pub enum HeadMap<'a> {
    /// `[n_embd, n_embd]`.
    Affine(View<'a>),
    /// `[n_embd, rank]`, then `[rank, n_embd]`.
    LowRank {
        /// `[n_embd, rank]`.
        down: View<'a>,
        /// `[rank, n_embd]`.
        up: View<'a>,
    },
}

/// A linear guess of whether the head will be sure enough.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// `[n_embd]`, F32.
    pub weight: View<'a>,
    /// `[1]`, F32.
    pub bias: Option<View<'a>>,
}

/// The maps from an exit's hidden state to the keys and values of one skipped layer.
#[derive(Clone, Copy, Debug)]
pub struct KvMap<'a> {
    /// The skipped layer.
    pub layer: u32,
    /// `[n_embd, n_embd_k_gqa]`: keys before rotation.
    pub k: Linear<'a>,
    /// `[n_embd, n_embd_v_gqa]`.
    pub v: Linear<'a>,
}

impl<'a> ExitHeads<'a> {
    /// Reads the heads of a merged file or a sidecar.
    ///
    /// # Errors
    ///
    /// [`Error::NoHeads`], or the first defect of their keys and tensors.
    pub fn open(file: &'a File) -> Result<ExitHeads<'a>> {
        if !ExitMeta::is_in(file) {
            return Err(Error::NoHeads { path: file.path().to_path_buf() });
        }
        let base = super::base(file)?;
        let form = if base.is_some() { Form::Merged } else { Form::Sidecar };
        if form == Form::Sidecar && file.str("adapter.type")? != Some("early_exit") {
            return Err(Error::WrongForm {
                path: file.path().to_path_buf(),
                defect: "the file has exit heads, but is neither a merged file nor an adapter of type early_exit",
            });
        }
        let meta = ExitMeta::read(file)?;
        let mut finder = Finder { file, n_embd: meta.base.n_embd.into(), seen: HashSet::new() };
        let screen = finder.screen(&meta)?;
        let vocab = finder.vocab(&meta)?;
        let mut heads = Vec::new();
        for (index, &layer) in meta.layers.iter().enumerate() {
            heads.push(finder.head(layer, meta.head_types[index], meta.head_ranks[index].into(), &meta.base)?);
        }
        finder.refuse_others()?;
        let has_gate = heads.iter().any(|head| head.gate.is_some());
        if has_gate && meta.gate_thresholds.is_empty() && !meta.agreements.is_empty() {
            return Err(Error::MissingKey { key: "exit.gate_thresholds".into(), why: "the heads have gates" });
        }
        let heads = ExitHeads { file, form, meta, screen, vocab, heads };
        if let Some(base) = &base {
            heads.check_base(base, BaseCheck::Infos, &mut |_, _| true)?;
        }
        Ok(heads)
    }

    /// How the heads come.
    pub fn form(&self) -> Form {
        self.form
    }

    /// What their keys say.
    pub fn meta(&self) -> &ExitMeta {
        &self.meta
    }

    /// The screen that all exits share.
    pub fn screen(&self) -> Option<Screen<'a>> {
        self.screen
    }

    /// The tokens that exits choose among, ascending; `None` for all.
    pub fn vocab(&self) -> Option<&[u32]> {
        self.vocab.as_deref()
    }

    /// The exits, in the order of their layers.
    pub fn heads(&self) -> &[Head<'a>] {
        &self.heads
    }

    /// The heads' tensors, in the file's order.
    pub fn tensors(&self) -> impl Iterator<Item = &'a TensorInfo> + use<'a> {
        self.file.tensors().iter().filter(|tensor| super::is_head_name(tensor.name()))
    }

    /// Checks that `model` is the one the heads were made for.
    ///
    /// # Errors
    ///
    /// [`Error::WrongBase`] with both names and hashes, or a K/V map that does not fit the model's.
    pub fn check_base(&self, model: &File, depth: BaseCheck, progress: &mut Progress<'_>) -> Result<()> {
        let base = &self.meta.base;
        let wrong = |expected: &str, found: String| Error::WrongBase {
            expected_name: printable(&base.name),
            expected: expected.to_string(),
            found_name: printable(&base_name(model)),
            found,
        };
        let found = super::infos_sha256(model);
        if found != base.infos_sha256 {
            return Err(wrong(&base.infos_sha256, found));
        }
        if depth == BaseCheck::Data {
            let found = super::base_sha256(model, progress)?;
            if found != base.sha256 {
                return Err(wrong(&base.sha256, found));
            }
        }
        self.check_size(model, base)?;
        for map in self.heads.iter().flat_map(|head| &head.kv) {
            for (kind, linear) in [("attn_k", &map.k), ("attn_v", &map.v)] {
                // A model whose attention is fused into one matrix has none to compare with.
                let own = model.tensor(&format!("blk.{}.{kind}.weight", map.layer));
                let n_out = linear.weight.info.dims4()[1];
                if own.is_some_and(|own| own.dims4()[1] != n_out) {
                    return Err(Error::TensorShape {
                        name: linear.weight.info.name().into(),
                        expected: format!("as wide as the model's own {kind}"),
                        found: format!("of shape {:?}", linear.weight.info.dims()),
                    });
                }
            }
        }
        Ok(())
    }

    /// The keys that say how large the base is must agree with the base.
    fn check_size(&self, model: &File, base: &Base) -> Result<()> {
        let architecture = model.str("general.architecture")?.unwrap_or_default();
        for (key, name, expected) in
            [("exit.base.n_embd", "embedding_length", base.n_embd), ("exit.base.n_layer", "block_count", base.n_layer)]
        {
            if let Some(found) = model.u32(&format!("{architecture}.{name}"))?.filter(|&found| found != expected) {
                return Err(self.file.key_value_error(key, format!("the model's {found}"), expected));
            }
        }
        let n_vocab = model.get("tokenizer.ggml.tokens").and_then(|tokens| tokens.as_array()).map(|array| array.len());
        if let Some(found) = n_vocab.filter(|&found| found != u64::from(base.n_vocab)) {
            return Err(self.file.key_value_error("exit.base.n_vocab", format!("the model's {found}"), base.n_vocab));
        }
        Ok(())
    }
}

/// Finds tensors by name and remembers which were asked for.
struct Finder<'a> {
    file: &'a File,
    n_embd: u64,
    seen: HashSet<String>,
}

impl<'a> Finder<'a> {
    fn screen(&mut self, meta: &ExitMeta) -> Result<Option<Screen<'a>>> {
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
    fn vocab(&mut self, meta: &ExitMeta) -> Result<Option<Vec<u32>>> {
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

    fn head(&mut self, layer: u32, ty: HeadType, rank: u64, base: &Base) -> Result<Head<'a>> {
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
        Ok(Head { layer, norm, mlp, map, bias, gate, kv })
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
    fn refuse_others(&self) -> Result<()> {
        for tensor in self.file.tensors() {
            if super::is_head_name(tensor.name()) && !self.seen.contains(tensor.name()) {
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
