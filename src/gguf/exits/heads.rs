//! Heads as the runtime uses them: every tensor found by its name, and its type and shape checked once.
//!
//! Refuses tensors that are missing, have another shape, or belong to no declared exit; what is handed out
//! needs no further check. Shapes are in ggml's order, `[n_in, n_out]`.

mod finder;

use super::super::atomic::Progress;
use super::super::error::{Error, Result, printable};
use super::super::reader::{File, TensorInfo};
use super::meta::{Base, ExitMeta, Metric, base_name};
use finder::Finder;

/// The heads of a merged file or a sidecar.
pub struct ExitHeads<'a> {
    file: &'a File,
    form: Form,
    meta: ExitMeta,
    screen: Option<Screen<'a>>,
    vocab: Option<Vec<u32>>,
    vocab_classifier: Option<Classifier<'a>>,
    draft: Option<Draft<'a>>,
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

impl View<'_> {
    /// The values of an F32 tensor, which may lie at any address of its file.
    pub(crate) fn f32(&self) -> Vec<f32> {
        self.data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }
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

/// The head that drafts the token after the next, from the final state and the token that came of it.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The weight of the norms, `[2 * n_embd]`, F32: of the final state, then of the token's row of the output matrix.
    pub norm: View<'a>,
    /// The map to the final state of the token after, `[2 * n_embd, n_embd]`.
    pub map: View<'a>,
    /// Its bias, `[n_embd]`, F32.
    pub bias: View<'a>,
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
    /// What tells how sure it is, where [`Metric::Classifier`] is the metric.
    pub classifier: Option<Classifier<'a>>,
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

/// A logistic regression of whether the best candidate is the full model's choice.
#[derive(Clone, Copy, Debug)]
pub struct Classifier<'a> {
    /// `[n_embd + 1]`, F32: the final state's weights, then that of the log-odds of the best candidate's probability.
    pub weight: View<'a>,
    /// `[1]`, F32.
    pub bias: View<'a>,
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
        let mut finder = Finder::new(file, meta.base.n_embd);
        let screen = finder.screen(&meta)?;
        let vocab = finder.vocab(&meta)?;
        let has_classifiers = meta.metric == Metric::Classifier;
        let of_vocab = vocab.is_some() && has_classifiers;
        let vocab_classifier = of_vocab.then(|| finder.classifier("exit_vocab.classifier")).transpose()?;
        let mut heads = Vec::new();
        for (index, &layer) in meta.layers.iter().enumerate() {
            let mut head = finder.head(layer, meta.head_types[index], meta.head_ranks[index].into(), &meta.base)?;
            if has_classifiers {
                head.classifier = Some(finder.classifier(&format!("blk.{layer}.exit_classifier"))?);
            }
            heads.push(head);
        }
        let draft = meta.draft.as_ref().map(|_| finder.draft()).transpose()?;
        finder.refuse_others()?;
        let has_gate = heads.iter().any(|head| head.gate.is_some());
        if has_gate && meta.gate_thresholds.is_empty() && !meta.agreements.is_empty() {
            return Err(Error::MissingKey { key: "exit.gate_thresholds".into(), why: "the heads have gates" });
        }
        let heads = ExitHeads { file, form, meta, screen, vocab, vocab_classifier, draft, heads };
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

    /// What tells how sure the check among those tokens is at full depth, where [`Metric::Classifier`] is the metric.
    pub fn vocab_classifier(&self) -> Option<Classifier<'a>> {
        self.vocab_classifier
    }

    /// The head that drafts the token after the next.
    pub fn draft(&self) -> Option<Draft<'a>> {
        self.draft
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
