//! `show FILE`: keys, tensors (of all parts of a split model), and a section in plain words about exit heads.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value as Json, json};

use offramp::gguf::exits::{self, Calibration, ExitHeads, ExitMeta, Form, KvPolicy, Metric};
use offramp::gguf::{Error, File};

use crate::output::{Output, escape, tensor_json};

pub fn run(path: &Path, out: &mut Output) -> anyhow::Result<ExitCode> {
    let file = crate::split::open(path)?;
    let heads = match ExitHeads::open(&file) {
        Ok(heads) => Some(heads),
        Err(Error::NoHeads { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if out.json {
        let value = as_json(&file, heads.as_ref(), out)?;
        out.value(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = if out.diffable { String::new() } else { format!("{}: ", path.display()) };
    let (n_keys, n_tensors) = (file.keys().len(), file.tensors().len());
    let (version, alignment) = (file.version(), file.alignment());
    out.line(format!("{place}GGUF version {version}, {n_keys} keys, {n_tensors} tensors, alignment {alignment}"))?;
    let names_parts = file.paths().len() > 1 && !out.diffable;
    for part in file.paths().filter(|_| names_parts) {
        out.line(format!("part: {}", part.display()))?;
    }
    for (name, value) in file.keys() {
        let (ty, text) = (Output::type_of(&value), out.text_of(&value));
        out.line(format!("{}: [{ty}] {text}", escape(name)))?;
    }
    for tensor in file.tensors() {
        let (ty, name) = (tensor.ty().name().to_lowercase(), escape(tensor.name()));
        let at = match file.data_range(tensor).start {
            _ if out.diffable => String::new(),
            start if file.paths().len() > 1 => format!(" @{start} of {}", file_name(file.part_of(tensor))),
            start => format!(" @{start}"),
        };
        let (weights, dims, bytes) = (tensor.elements(), tensor.dims(), tensor.bytes());
        out.line(format!("{ty} tensor {name}{at}, {weights} weights, dims {dims:?}, {bytes} bytes"))?;
    }
    if let Some(heads) = &heads {
        out.line("")?;
        for line in describe(heads) {
            out.line(line)?;
        }
        if heads.form() == Form::Merged && !out.diffable {
            out.line(format!("The original model starts at byte {}.", exits::base_offset(&file)?))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn file_name(path: &Path) -> String {
    escape(&path.file_name().unwrap_or_default().to_string_lossy())
}

/// What the heads are and how far they can be trusted, a sentence a line.
fn describe(heads: &ExitHeads<'_>) -> Vec<String> {
    let meta = heads.meta();
    let form = match heads.form() {
        Form::Merged => "merged with their model",
        Form::Sidecar => "in a file of their own",
    };
    let bytes: u64 = heads.tensors().map(|tensor| tensor.bytes()).sum();
    let mut lines = vec![
        format!(
            "Exit heads, {form}: {} exits, {:.1} MB, for {:?}.",
            meta.layers.len(),
            bytes as f64 / 1e6,
            escape(&meta.base.name)
        ),
        format!(
            "The model has {} layers, a vocabulary of {} and SHA-256 {}.",
            meta.base.n_layer, meta.base.n_vocab, meta.base.sha256
        ),
    ];
    if meta.screen.rank > 0 {
        lines.push(format!(
            "A screen of rank {} picks {} candidates, which are then scored exactly.",
            meta.screen.rank, meta.screen.shortlist
        ));
    }
    for (index, head) in heads.heads().iter().enumerate() {
        let kind = match meta.head_ranks[index] {
            0 => meta.head_types[index].name().replace('_', " "),
            rank => format!("{} (rank {rank})", meta.head_types[index].name().replace('_', " ")),
        };
        let gate = if head.gate.is_some() { ", behind a gate" } else { "" };
        let kv = match head.kv.len() {
            0 => String::new(),
            n => format!(", with maps to the keys and values of {n} skipped layers"),
        };
        lines.push(format!("After block {}: {kind}{gate}{kv}.", head.layer));
    }
    for (level, agreement) in meta.agreements.iter().enumerate() {
        lines.push(thresholds(meta, level, *agreement));
    }
    lines.push(match &meta.calibration {
        Some(calibration) => calibrated(calibration),
        None => "The thresholds were never calibrated; the heads will not be used.".into(),
    });
    lines
}

fn thresholds(meta: &ExitMeta, level: usize, agreement: f32) -> String {
    let metric = match meta.metric {
        Metric::TopProbability => "the best candidate's probability",
        Metric::Margin => "the lead of the best candidate's probability",
        Metric::NegativeEntropy => "one less the candidates' relative entropy",
        Metric::Classifier => "a classifier of the best candidate's probability and the final state",
        _ => "the metric",
    };
    let text = |threshold: f32| {
        if threshold.is_finite() { format!("from {threshold}") } else { "never".into() }
    };
    let rows = meta.thresholds.get(level).into_iter().flatten();
    let mut parts: Vec<String> = meta
        .layers
        .iter()
        .zip(rows)
        .map(|(layer, &threshold)| format!("after block {layer} {}", text(threshold)))
        .collect();
    if let Some(&threshold) = meta.screen.thresholds.get(level) {
        parts.push(format!("in place of the full output {}", text(threshold)));
    }
    format!("For {} % agreement, exits happen by confidence ({metric}): {}.", percent(agreement), parts.join(", "))
}

fn calibrated(record: &Calibration) -> String {
    let kv = match record.kv_policy {
        KvPolicy::CatchUp => "computed later",
        KvPolicy::Predict => "predicted",
        KvPolicy::Propagate => "propagated",
        _ => "handled otherwise",
    };
    let list =
        |values: &[f32]| values.iter().map(|&value| format!("{} %", percent(value))).collect::<Vec<_>>().join(", ");
    format!(
        "Calibrated on {} by {} over {} prompts ({}) and {} tokens, sampler {}, batches of up to {} tokens, K/V of skipped layers {kv}: \
         tokens that exited {}, tokens that differed {}, at most {} except with probability {}; near ties {} %.",
        record.date,
        escape(&record.engine),
        record.n_prompts,
        escape(&record.prompts),
        record.n_tokens,
        escape(&record.sampler),
        record.batch_width,
        list(&record.exit_rate),
        list(&record.risk),
        list(&record.risk_bound),
        record.delta,
        percent(record.near_ties),
    )
}

/// A share in percent, with no more digits than it needs.
fn percent(share: f32) -> f64 {
    (f64::from(share) * 1e6).round() / 1e4
}

fn as_json(file: &File, heads: Option<&ExitHeads<'_>>, out: &Output) -> anyhow::Result<Json> {
    let keys: Map<String, Json> = file
        .keys()
        .map(|(name, value)| {
            (name.to_string(), json!({ "type": Output::type_of(&value), "value": out.json_of(&value) }))
        })
        .collect();
    let tensors: Vec<Json> = file
        .tensors()
        .iter()
        .map(|tensor| {
            let mut entry = tensor_json(tensor);
            if !out.diffable {
                entry["offset"] = json!(file.data_range(tensor).start);
                if file.paths().len() > 1 {
                    entry["file"] = json!(file_name(file.part_of(tensor)));
                }
            }
            entry
        })
        .collect();
    let mut value =
        json!({ "version": file.version(), "alignment": file.alignment(), "keys": keys, "tensors": tensors });
    if !out.diffable {
        value["path"] = json!(file.path().display().to_string());
        value["data_offset"] = json!(file.data_start());
        if file.paths().len() > 1 {
            value["parts"] = file.paths().map(|path| path.display().to_string()).collect();
        }
    }
    if let Some(heads) = heads {
        let meta = heads.meta();
        value["heads"] = json!({
            "form": match heads.form() { Form::Merged => "merged", Form::Sidecar => "sidecar" },
            "base": { "name": meta.base.name, "sha256": meta.base.sha256, "n_layer": meta.base.n_layer, "n_vocab": meta.base.n_vocab },
            "layers": meta.layers,
            "head_types": meta.head_types.iter().map(|ty| ty.name()).collect::<Vec<_>>(),
            "head_ranks": meta.head_ranks,
            "screen": { "rank": meta.screen.rank, "shortlist": meta.screen.shortlist, "thresholds": meta.screen.thresholds },
            "metric": meta.metric.name(),
            "agreements": meta.agreements,
            "thresholds": meta.thresholds,
            "gate_thresholds": meta.gate_thresholds,
            "is_calibrated": meta.calibration.is_some(),
            "description": describe(heads),
        });
        if !out.diffable {
            value["heads"]["base_offset"] = json!(exits::base_offset(file)?);
        }
    }
    Ok(value)
}
