//! Between [`ExitMeta`] and the `exit.*` keys of a file.

use super::super::super::error::{Error, Result};
use super::super::super::reader::File;
use super::super::super::types::ValueType;
use super::super::super::value::{OwnedValue, Value};
use super::super::super::writer::Writer;
use super::{Base, Calibration, ConfidenceMap, ExitMeta, HeadType, KvPolicy, Metric, ScreenMeta, VocabMeta};

/// The version of the `exit.*` keys that is written, and the only one that is read.
const VERSION: u32 = 1;
/// The most exits, agreement levels, or points of a confidence map.
const MAX_ENTRIES: u64 = 4096;

impl ExitMeta {
    /// Reads and checks the keys.
    ///
    /// # Errors
    ///
    /// A key that is missing or has another type, or a contradiction between keys.
    pub fn read(file: &File) -> Result<ExitMeta> {
        let keys = Keys { file };
        let version = keys.u32("exit.version")?;
        if version != VERSION {
            let expected = format!("{VERSION}; this program is older than the file");
            return Err(file.key_value_error("exit.version", expected, version));
        }
        let layers = keys.u32s("exit.layers")?;
        let agreements = keys.f32s("exit.agreements")?;
        let confidence =
            layers.iter().map(|layer| keys.confidence(&format!("exit.confidence.{layer}"))).collect::<Result<_>>()?;
        let rows = |values: Vec<f32>| values.chunks(layers.len().max(1)).map(<[f32]>::to_vec).collect();
        let meta = ExitMeta {
            base: Base {
                name: keys.str("exit.base.name")?,
                sha256: keys.str("exit.base.sha256")?,
                infos_sha256: keys.str("exit.base.infos_sha256")?,
                n_embd: keys.u32("exit.base.n_embd")?,
                n_layer: keys.u32("exit.base.n_layer")?,
                n_vocab: keys.u32("exit.base.n_vocab")?,
            },
            head_types: keys.names("exit.head_types", HeadType::from_name, HeadType::NAMES)?,
            head_ranks: keys.u32s("exit.head_ranks")?,
            screen: ScreenMeta {
                rank: keys.u32("exit.screen.rank")?,
                shortlist: keys.u32("exit.screen.shortlist")?,
                confidence: keys.confidence("exit.screen.confidence")?,
                thresholds: keys.f32s("exit.screen.thresholds")?,
            },
            vocab: keys.vocab()?,
            draft: keys.draft()?,
            metric: keys.name("exit.metric", Metric::from_name, Metric::NAMES)?,
            confidence,
            thresholds: rows(keys.f32s("exit.thresholds")?),
            gate_thresholds: rows(keys.f32s("exit.gate_thresholds")?),
            calibration: keys.calibration()?,
            layers,
            agreements,
        };
        meta.check()?;
        Ok(meta)
    }

    /// Adds the keys to a file in the making.
    ///
    /// # Errors
    ///
    /// A contradiction between the fields, or a key that the file has already.
    pub fn write(&self, writer: &mut Writer) -> Result<()> {
        self.check()?;
        writer.key("exit.version", VERSION)?;
        writer.key("exit.base.name", &*self.base.name)?;
        writer.key("exit.base.sha256", &*self.base.sha256)?;
        writer.key("exit.base.infos_sha256", &*self.base.infos_sha256)?;
        writer.key("exit.base.n_embd", self.base.n_embd)?;
        writer.key("exit.base.n_layer", self.base.n_layer)?;
        writer.key("exit.base.n_vocab", self.base.n_vocab)?;
        writer.key("exit.layers", &*self.layers)?;
        let head_types: Vec<&str> = self.head_types.iter().map(|ty| ty.name()).collect();
        writer.key("exit.head_types", head_types)?;
        writer.key("exit.head_ranks", &*self.head_ranks)?;
        writer.key("exit.screen.rank", self.screen.rank)?;
        writer.key("exit.screen.shortlist", self.screen.shortlist)?;
        write_confidence(writer, "exit.screen.confidence", &self.screen.confidence)?;
        writer.key("exit.screen.thresholds", &*self.screen.thresholds)?;
        if let Some(vocab) = &self.vocab {
            writer.key("exit.vocab.n_tokens", vocab.n_tokens)?;
            writer.key("exit.vocab.shortlist", vocab.shortlist)?;
            write_confidence(writer, "exit.vocab.confidence", &vocab.confidence)?;
            writer.key("exit.vocab.thresholds", &*vocab.thresholds)?;
        }
        if let Some(map) = &self.draft {
            write_confidence(writer, "exit.draft.confidence", map)?;
        }
        writer.key("exit.metric", self.metric.name())?;
        for (layer, map) in self.layers.iter().zip(&self.confidence) {
            write_confidence(writer, &format!("exit.confidence.{layer}"), map)?;
        }
        writer.key("exit.agreements", &*self.agreements)?;
        writer.key("exit.thresholds", self.thresholds.concat())?;
        writer.key("exit.gate_thresholds", self.gate_thresholds.concat())?;
        if let Some(calibration) = &self.calibration {
            calibration.write(writer)?;
        }
        Ok(())
    }
}

impl Calibration {
    fn write(&self, writer: &mut Writer) -> Result<()> {
        let mut key = |name: &str, value: OwnedValue| writer.key(&format!("exit.calibration.{name}"), value).map(drop);
        key("prompts", (&*self.prompts).into())?;
        key("n_prompts", self.n_prompts.into())?;
        key("n_tokens", self.n_tokens.into())?;
        key("delta", self.delta.into())?;
        key("risk", (&*self.risk).into())?;
        key("risk_bound", (&*self.risk_bound).into())?;
        key("exit_rate", (&*self.exit_rate).into())?;
        key("kv_policy", self.kv_policy.name().into())?;
        key("sampler", (&*self.sampler).into())?;
        key("batch_width", self.batch_width.into())?;
        key("near_ties", self.near_ties.into())?;
        key("engine", (&*self.engine).into())?;
        key("date", (&*self.date).into())
    }
}

fn write_confidence(writer: &mut Writer, key: &str, map: &ConfidenceMap) -> Result<()> {
    writer.key(&format!("{key}.metric"), &*map.metric)?;
    writer.key(&format!("{key}.agreement"), &*map.agreement)?;
    Ok(())
}

/// Reads required keys.
struct Keys<'a> {
    file: &'a File,
}

impl Keys<'_> {
    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::MissingKey { key: key.into(), why: "heads are described by it" })
    }

    fn u32(&self, key: &str) -> Result<u32> {
        self.required(key, self.file.u32(key)?)
    }

    fn f32(&self, key: &str) -> Result<f32> {
        self.required(key, self.file.f32(key)?)
    }

    fn u64(&self, key: &str) -> Result<u64> {
        match self.required(key, self.file.get(key))? {
            Value::U64(value) => Ok(value),
            _ => Err(self.file.key_type_error(key, "u64")),
        }
    }

    fn str(&self, key: &str) -> Result<String> {
        self.required(key, self.file.str(key)?).map(str::to_string)
    }

    fn values(&self, key: &str, ty: ValueType, expected: &'static str) -> Result<Vec<Value<'_>>> {
        let array = self.required(key, self.file.array(key, &[ty], expected)?)?;
        if array.len() > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} entries");
            return Err(self.file.key_value_error(key, expected, format!("{} entries", array.len())));
        }
        Ok(array.iter().collect())
    }

    fn u32s(&self, key: &str) -> Result<Vec<u32>> {
        let values = self.values(key, ValueType::U32, "arr[u32]")?;
        Ok(values.iter().filter_map(|value| value.as_u64()?.try_into().ok()).collect())
    }

    fn f32s(&self, key: &str) -> Result<Vec<f32>> {
        let values = self.values(key, ValueType::F32, "arr[f32]")?;
        Ok(values.iter().filter_map(|value| value.as_f64()).map(|value| value as f32).collect())
    }

    fn name<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>, expected: &str) -> Result<T> {
        let name = self.str(key)?;
        read(&name).ok_or_else(|| self.file.key_value_error(key, expected, format!("{name:?}")))
    }

    fn names<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>, expected: &str) -> Result<Vec<T>> {
        let values = self.values(key, ValueType::Str, "arr[str]")?;
        let read = |value: &Value<'_>| {
            let name = value.as_str().unwrap_or_default();
            read(name).ok_or_else(|| self.file.key_value_error(key, expected, format!("{name:?}")))
        };
        values.iter().map(read).collect()
    }

    fn confidence(&self, key: &str) -> Result<ConfidenceMap> {
        Ok(ConfidenceMap {
            metric: self.f32s(&format!("{key}.metric"))?,
            agreement: self.f32s(&format!("{key}.agreement"))?,
        })
    }

    fn vocab(&self) -> Result<Option<VocabMeta>> {
        let Some(n_tokens) = self.file.u32("exit.vocab.n_tokens")? else { return Ok(None) };
        Ok(Some(VocabMeta {
            n_tokens,
            shortlist: self.u32("exit.vocab.shortlist")?,
            confidence: self.confidence("exit.vocab.confidence")?,
            thresholds: self.f32s("exit.vocab.thresholds")?,
        }))
    }

    fn draft(&self) -> Result<Option<ConfidenceMap>> {
        let is_there = self.file.get("exit.draft.confidence.metric").is_some();
        is_there.then(|| self.confidence("exit.draft.confidence")).transpose()
    }

    fn calibration(&self) -> Result<Option<Calibration>> {
        if self.file.get("exit.calibration.prompts").is_none() {
            return Ok(None);
        }
        Ok(Some(Calibration {
            prompts: self.str("exit.calibration.prompts")?,
            n_prompts: self.u32("exit.calibration.n_prompts")?,
            n_tokens: self.u64("exit.calibration.n_tokens")?,
            delta: self.f32("exit.calibration.delta")?,
            risk: self.f32s("exit.calibration.risk")?,
            risk_bound: self.f32s("exit.calibration.risk_bound")?,
            exit_rate: self.f32s("exit.calibration.exit_rate")?,
            kv_policy: self.name("exit.calibration.kv_policy", KvPolicy::from_name, KvPolicy::NAMES)?,
            sampler: self.str("exit.calibration.sampler")?,
            batch_width: self.u32("exit.calibration.batch_width")?,
            near_ties: self.f32("exit.calibration.near_ties")?,
            engine: self.str("exit.calibration.engine")?,
            date: self.str("exit.calibration.date")?,
        }))
    }
}
