//! The `exit.*` keys: what heads are, how sure they must be, and how that was measured.
//!
//! [`ExitMeta`] is read from and written to exactly these keys, and is checked both ways: a level without its
//! thresholds, a confidence map that falls, a probability above one or a hash that is none is refused.
//! `docs/gguf.md` lists every key.

mod keys;
mod metric;

pub use metric::log_odds;

use super::super::error::{Error, Result};
use super::super::reader::File;
use super::super::types::ValueType;

/// Everything the `exit.*` keys say.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitMeta {
    /// The model the heads were made for.
    pub base: Base,
    /// The layers with an exit, ascending: `N` stands for the hidden state after block `N`, from 0.
    pub layers: Vec<u32>,
    /// The type of each layer's head.
    pub head_types: Vec<HeadType>,
    /// The rank of each layer's head; 0 for an affine one.
    pub head_ranks: Vec<u32>,
    /// The screen that all exits share.
    pub screen: ScreenMeta,
    /// The tokens that exits choose among; `None` for all.
    pub vocab: Option<VocabMeta>,
    /// How sure the head is that drafts the token after the next: from its best candidate's probability to that of being
    /// right. `None` where there is no such head.
    pub draft: Option<ConfidenceMap>,
    /// What is measured on a head's candidates.
    pub metric: Metric,
    /// For each layer, how the metric translates into the probability of agreement.
    pub confidence: Vec<ConfidenceMap>,
    /// The shares of agreement with the full model for which thresholds exist, ascending, in (0, 1].
    pub agreements: Vec<f32>,
    /// For each level of agreement, the confidence that each layer must reach; infinite where it never exits.
    pub thresholds: Vec<Vec<f32>>,
    /// For each level of agreement, the gate's output that makes a layer's head worth its evaluation; empty
    /// where no layer has a gate.
    pub gate_thresholds: Vec<Vec<f32>>,
    /// How the thresholds were measured; absent from heads that were never calibrated, which must not exit.
    pub calibration: Option<Calibration>,
}

/// The model that heads were made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name, for messages.
    pub name: String,
    /// The SHA-256 of its tensor entries and data ([`super::base_sha256`]).
    pub sha256: String,
    /// The SHA-256 of its tensor entries alone ([`super::infos_sha256`]).
    pub infos_sha256: String,
    /// The length of its hidden states.
    pub n_embd: u32,
    /// The number of its layers.
    pub n_layer: u32,
    /// The size of its vocabulary.
    pub n_vocab: u32,
}

impl Base {
    /// Describes and hashes a model.
    ///
    /// # Errors
    ///
    /// A key or tensor that is missing, or whatever keeps the file from being read.
    pub fn of(model: &File, progress: &mut super::Progress<'_>) -> Result<Base> {
        let architecture = model.str("general.architecture")?.unwrap_or_default();
        let required = |name: &str| {
            let key = format!("{architecture}.{name}");
            model.u32(&key)?.ok_or(Error::MissingKey { key, why: "heads are made for a model of a known size" })
        };
        let tokens = model.array("tokenizer.ggml.tokens", &[ValueType::Str], "arr[str]")?;
        let n_vocab = tokens.ok_or(Error::MissingKey {
            key: "tokenizer.ggml.tokens".into(),
            why: "heads are made for a model with a vocabulary",
        })?;
        Ok(Base {
            name: base_name(model),
            sha256: super::base_sha256(model, progress)?,
            infos_sha256: super::infos_sha256(model),
            n_embd: required("embedding_length")?,
            n_layer: required("block_count")?,
            n_vocab: u32::try_from(n_vocab.len()).unwrap_or(u32::MAX),
        })
    }
}

/// The name by which messages call a model.
pub(super) fn base_name(model: &File) -> String {
    let named = model.get("general.name").and_then(|name| name.as_str());
    let stem = || model.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
    named.map_or_else(stem, str::to_string)
}

macro_rules! names {
    ($(#[$doc:meta])* $ty:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $ty {
            $($(#[$vdoc])* $variant,)*
        }

        impl $ty {
            /// The name in the file.
            pub fn name(self) -> &'static str {
                match self {
                    $($ty::$variant => $name,)*
                }
            }

            fn from_name(name: &str) -> Option<$ty> {
                match name {
                    $($name => Some($ty::$variant),)*
                    _ => None,
                }
            }

            const NAMES: &'static str = concat!("one of" $(, " ", $name)*);
        }
    };
}

names! {
    /// The shape of a head's map from a hidden state to the final one.
    HeadType {
        /// One square matrix.
        Affine = "affine",
        /// Two matrices with a narrow waist.
        LowRank = "low_rank",
        /// A gated MLP, then one square matrix.
        AffineMlp = "affine_mlp",
        /// A gated MLP, then two matrices with a narrow waist.
        LowRankMlp = "low_rank_mlp",
    }
}

impl HeadType {
    /// Whether the matrix is factored into two.
    pub fn is_low_rank(self) -> bool {
        matches!(self, HeadType::LowRank | HeadType::LowRankMlp)
    }

    /// Whether an MLP comes first.
    pub fn has_mlp(self) -> bool {
        matches!(self, HeadType::AffineMlp | HeadType::LowRankMlp)
    }
}

names! {
    /// How sure a check is: what is measured on the probabilities of its candidates.
    Metric {
        /// The largest probability.
        TopProbability = "top_probability",
        /// The largest probability less the second largest.
        Margin = "margin",
        /// One less the entropy over its maximum, so that larger is surer.
        NegativeEntropy = "negative_entropy",
        /// The log-odds of agreement that a trained classifier gives ([`super::Classifier`]), from the largest probability and
        /// the final state: the one that a head predicts, or the true one.
        Classifier = "classifier",
    }
}

names! {
    /// Where the keys and values of skipped layers come from.
    KvPolicy {
        /// Skipped layers are computed before the next token that needs them.
        CatchUp = "catch_up",
        /// Learned maps predict them from the exit's hidden state.
        Predict = "predict",
        /// The exit's hidden state goes through the skipped layers' own matrices.
        Propagate = "propagate",
    }
}

/// How a metric translates into the probability that an exit agrees with the full model: straight lines
/// between points, constant beyond the first and the last.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ConfidenceMap {
    /// The metric's values, ascending.
    pub metric: Vec<f32>,
    /// The probability of agreement at each, never falling, in [0, 1].
    pub agreement: Vec<f32>,
}

/// What the keys say about the screen.
#[derive(Clone, Debug, PartialEq)]
pub struct ScreenMeta {
    /// The rank of its factorization; 0 where the file has no screen.
    pub rank: u32,
    /// How many candidates it hands on to exact rescoring.
    pub shortlist: u32,
    /// How the metric translates into agreement when the screen replaces the full output at full depth.
    pub confidence: ConfidenceMap,
    /// For each level of agreement, the confidence the screen must reach at full depth.
    pub thresholds: Vec<f32>,
}

/// What the keys say about the tokens that exits after layers choose among, and the first check at full depth. Easy tokens
/// are frequent ones: scoring those alone makes a check cost a fraction of what the screen of the whole vocabulary does.
#[derive(Clone, Debug, PartialEq)]
pub struct VocabMeta {
    /// How many tokens there are.
    pub n_tokens: u32,
    /// How many candidates among them are handed on to exact rescoring.
    pub shortlist: u32,
    /// How the metric translates into agreement when these tokens alone are scored at full depth.
    pub confidence: ConfidenceMap,
    /// For each level of agreement, the confidence that they must reach there to stand for the whole vocabulary.
    pub thresholds: Vec<f32>,
}

/// How thresholds were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// What the prompts were, in words or file names.
    pub prompts: String,
    /// How many prompts there were.
    pub n_prompts: u32,
    /// How many tokens were generated and compared.
    pub n_tokens: u64,
    /// The probability that a bound on the risk is exceeded.
    pub delta: f32,
    /// For each level of agreement, the share of tokens that differed from the full model's.
    pub risk: Vec<f32>,
    /// For each level of agreement, the upper bound on that share.
    pub risk_bound: Vec<f32>,
    /// For each level of agreement, the share of tokens that exited.
    pub exit_rate: Vec<f32>,
    /// Where the keys and values of skipped layers came from.
    pub kv_policy: KvPolicy,
    /// The sampler and its settings, in words.
    pub sampler: String,
    /// The most tokens that were decoded at once: one that was certain and its drafts; 1 where nothing was drafted.
    pub batch_width: u32,
    /// The share of tokens whose two best logits are closer than the differences between batch widths.
    pub near_ties: f32,
    /// The version of this program and of llama.cpp.
    pub engine: String,
    /// The day of the measurement, as `2026-01-31`.
    pub date: String,
}

impl ExitMeta {
    /// Whether a file has the keys at all.
    pub fn is_in(file: &File) -> bool {
        file.get("exit.version").is_some()
    }

    /// The position of the least level of agreement that is at least `wanted`.
    pub fn level(&self, wanted: f32) -> Option<usize> {
        self.agreements.iter().position(|&agreement| agreement >= wanted)
    }

    fn check(&self) -> Result<()> {
        for (key, hash) in
            [("exit.base.sha256", &self.base.sha256), ("exit.base.infos_sha256", &self.base.infos_sha256)]
        {
            let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            ensure(is_hash, key, "a SHA-256 in lower-case hexadecimal", hash)?;
        }
        let (n_exits, n_levels) = (self.layers.len(), self.agreements.len());
        ensure(self.layers.is_sorted_by(|a, b| a < b), "exit.layers", "ascending layers", &self.layers)?;
        let before_last = |layer: &u32| layer.checked_add(1).is_some_and(|next| next < self.base.n_layer);
        let expected = format!("layers before the last of {}", self.base.n_layer);
        ensure(self.layers.iter().all(before_last), "exit.layers", &expected, &self.layers)?;
        let one_each = format!("one entry for each of {n_exits} exits");
        ensure(self.head_types.len() == n_exits, "exit.head_types", &one_each, &self.head_types)?;
        ensure(self.head_ranks.len() == n_exits, "exit.head_ranks", &one_each, &self.head_ranks)?;
        for (ty, &rank) in self.head_types.iter().zip(&self.head_ranks) {
            let right = ty.is_low_rank() == (rank > 0) && rank <= self.base.n_embd;
            ensure(right, "exit.head_ranks", "0 for affine heads, 1 to n_embd for low-rank ones", &self.head_ranks)?;
        }
        let screen = &self.screen;
        ensure(screen.rank <= self.base.n_embd, "exit.screen.rank", "at most n_embd", &screen.rank)?;
        let right = screen.shortlist <= self.base.n_vocab && (screen.rank > 0) == (screen.shortlist > 0);
        ensure(right, "exit.screen.shortlist", "1 to n_vocab with a screen, 0 without", &screen.shortlist)?;
        if let Some(vocab) = &self.vocab {
            let right = screen.rank > 0 && (1..=self.base.n_vocab).contains(&vocab.n_tokens);
            ensure(right, "exit.vocab.n_tokens", "1 to n_vocab, beside a screen", &vocab.n_tokens)?;
            let right = (1..=vocab.n_tokens).contains(&vocab.shortlist);
            ensure(right, "exit.vocab.shortlist", "1 to exit.vocab.n_tokens", &vocab.shortlist)?;
            vocab.confidence.check()?;
            let right = vocab.thresholds.len() == self.agreements.len()
                && vocab.thresholds.iter().all(|value| (0.0..=f32::INFINITY).contains(value));
            ensure(right, "exit.vocab.thresholds", "one threshold for each level", &vocab.thresholds)?;
        }
        if let Some(map) = &self.draft {
            let right = screen.rank > 0 && !map.metric.is_empty();
            ensure(right, "exit.draft.confidence.metric", "points, beside a screen", &map.metric)?;
            map.check()?;
        }
        ensure(self.confidence.len() == n_exits, "exit.confidence.*", &one_each, &self.confidence.len())?;
        for map in self.confidence.iter().chain([&screen.confidence]) {
            map.check()?;
        }
        let ascending = self.agreements.is_sorted_by(|a, b| a < b);
        let right = ascending && self.agreements.iter().all(|&level| level > 0.0 && level <= 1.0);
        ensure(right, "exit.agreements", "ascending shares above 0, at most 1", &self.agreements)?;

        let is_threshold = |value: &f32| (0.0..=f32::INFINITY).contains(value);
        let is_table = |table: &[Vec<f32>]| {
            table.len() == n_levels && table.iter().all(|row| row.len() == n_exits && row.iter().all(is_threshold))
        };
        let expected = format!("{n_levels} levels of {n_exits} thresholds that are not negative");
        let is_empty = n_exits == 0 && self.thresholds.is_empty();
        ensure(is_empty || is_table(&self.thresholds), "exit.thresholds", &expected, &self.thresholds)?;
        let right = self.gate_thresholds.is_empty() || is_table(&self.gate_thresholds);
        ensure(right, "exit.gate_thresholds", &expected, &self.gate_thresholds)?;
        let n_screen = if screen.rank > 0 { n_levels } else { 0 };
        let right = screen.thresholds.len() == n_screen && screen.thresholds.iter().all(is_threshold);
        ensure(right, "exit.screen.thresholds", "one threshold for each level", &screen.thresholds)?;
        self.calibration.as_ref().map_or(Ok(()), |calibration| calibration.check(n_levels))
    }
}

impl ConfidenceMap {
    /// The probability of agreement at a value of the metric; 0 where the map is empty or the value no number.
    pub fn agreement_at(&self, value: f32) -> f32 {
        let above = self.metric.partition_point(|&point| point <= value);
        if value.is_nan() || self.metric.is_empty() {
            return 0.0;
        }
        if above == 0 || above == self.metric.len() {
            return self.agreement[above.saturating_sub(1)];
        }
        let (x0, x1) = (self.metric[above - 1], self.metric[above]);
        let (y0, y1) = (self.agreement[above - 1], self.agreement[above]);
        y0 + (y1 - y0) * ((value - x0) / (x1 - x0))
    }

    /// The least value of the metric whose probability of agreement is at least `wanted`; infinite if there is none.
    pub fn least_at(&self, wanted: f32) -> f32 {
        let above = self.agreement.partition_point(|&agreement| agreement < wanted);
        match (above.checked_sub(1), self.metric.get(above)) {
            (_, None) => f32::INFINITY,
            // Below its first point the map is flat.
            (None, Some(_)) => f32::NEG_INFINITY,
            (Some(below), Some(&x1)) => {
                let (x0, y0, y1) = (self.metric[below], self.agreement[below], self.agreement[above]);
                let value = x0 + (x1 - x0) * ((wanted - y0) / (y1 - y0));
                // What is interpolated may round to just below; the point itself is surely enough.
                if self.agreement_at(value) >= wanted { value } else { x1 }
            }
        }
    }

    fn check(&self) -> Result<()> {
        let key = "exit.confidence";
        ensure(self.metric.iter().all(|x| x.is_finite()), key, "finite points", &self.metric)?;
        ensure(self.metric.is_sorted_by(|a, b| a < b), key, "ascending points", &self.metric)?;
        let right = self.agreement.len() == self.metric.len()
            && self.agreement.is_sorted()
            && self.agreement.iter().all(is_share);
        ensure(right, key, "a share for each point, never falling", &self.agreement)
    }
}

impl Calibration {
    fn check(&self, n_levels: usize) -> Result<()> {
        for (key, values) in [
            ("exit.calibration.risk", &self.risk),
            ("exit.calibration.risk_bound", &self.risk_bound),
            ("exit.calibration.exit_rate", &self.exit_rate),
        ] {
            let right = values.len() == n_levels && values.iter().all(is_share);
            ensure(right, key, "one share for each level of agreement", values)?;
        }
        let right = self.delta > 0.0 && self.delta < 1.0;
        ensure(right, "exit.calibration.delta", "a probability between 0 and 1", &self.delta)?;
        ensure(is_share(&self.near_ties), "exit.calibration.near_ties", "a share", &self.near_ties)?;
        ensure(self.batch_width > 0, "exit.calibration.batch_width", "at least 1", &self.batch_width)?;
        let date = self.date.as_bytes();
        let right = date.len() == 10
            && date.iter().enumerate().all(|(i, b)| if i == 4 || i == 7 { *b == b'-' } else { b.is_ascii_digit() });
        ensure(right, "exit.calibration.date", "a day such as 2026-01-31", &self.date)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // for iterators
fn is_share(value: &f32) -> bool {
    (0.0..=1.0).contains(value)
}

fn ensure(is_right: bool, key: &str, expected: &str, found: &impl std::fmt::Debug) -> Result<()> {
    if is_right {
        return Ok(());
    }
    let found = super::super::error::printable(&format!("{found:?}"));
    Err(Error::KeyValue { key: key.into(), offset: 0, expected: expected.into(), found })
}
