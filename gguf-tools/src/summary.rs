//! What `train` and `add-heads` made, in words or as JSON: the tables that decisions were taken from.

use gguf_tools::add_heads::heads::ERRORS;
use gguf_tools::add_heads::{Made, suggest::Level};
use gguf_tools::train::choose::Choice;
use gguf_tools::train::evaluate::METRICS;
use gguf_tools::train::kv::Quality;
use serde_json::{Value as Json, json};

use crate::output::Output;

/// The sets of layers that are shown without `--verbose`.
const SHOWN_SETS: usize = 5;

/// Prints what was made.
pub fn print(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    if out.verbose {
        screens(made, out)?;
    }
    if !made.quality.is_empty() {
        training(made, out)?;
        qualities(made, out)?;
        measures(made, out)?;
        sets(made, out)?;
    }
    kv_maps(made, out)?;
    draft(made, out)?;
    screen(made, out)?;
    levels(made, out)?;
    if out.verbose {
        let times: Vec<String> =
            made.times.iter().map(|(what, time)| format!("{what} {:.1} s", time.as_secs_f64())).collect();
        out.line(format!("time: {}", times.join(", ")))?;
    }
    Ok(())
}

fn percent(share: f64) -> f64 {
    100.0 * share
}

fn screens(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    out.line("rank  candidates  recall    bytes    to the full matrix")?;
    for pair in &made.candidates {
        out.line(format!(
            "{:4}  {:10}  {:6.2} %  {:5.1} %  {:5.2} %",
            pair.rank,
            pair.count,
            percent(pair.recall),
            percent(pair.screened),
            percent(pair.fallback)
        ))?;
    }
    Ok(())
}

/// Divergence and agreement of held-out tokens while training went on.
fn training(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let layers: Vec<String> = made.quality.iter().map(|quality| format!("{:>15}", quality.layer)).collect();
    out.line(format!("tokens trained on: divergence and agreement after layer {}", layers.concat()))?;
    let shown = if out.verbose { made.looks.len() } else { 1 };
    let looks = made.looks.iter().take(shown.min(made.looks.len().saturating_sub(1))).chain(made.looks.last());
    for look in looks {
        let of_exit = look.divergence.iter().zip(&look.agreement);
        let cells: Vec<String> = of_exit.map(|(d, a)| format!("{d:7.3} {:5.1} %", percent(*a))).collect();
        out.line(format!("{:49}{}", look.n_tokens, cells.join("")))?;
    }
    Ok(())
}

fn qualities(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let errors: Vec<String> = ERRORS.iter().map(|error| format!("{:>6} %", percent(*error))).collect();
    out.line(format!("layer  R2     agrees   metric             may exit at a marginal error of{}", errors.concat()))?;
    for quality in &made.quality {
        for (metric, exits) in METRICS.iter().zip(&quality.exits) {
            if !out.verbose && *metric != made.meta.metric {
                continue;
            }
            let exits: Vec<String> = exits.iter().map(|share| format!("{:>6.1} %", percent(*share))).collect();
            let (layer, r2, agreement) = (quality.layer, quality.r2, percent(quality.agreement));
            out.line(format!("{layer:5}  {r2:5.3}  {agreement:5.1} %  {:48} {}", metric.name(), exits.concat()))?;
        }
    }
    Ok(())
}

/// Metrics and the calibrated map at equal risk, all exits together.
fn measures(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let errors: Vec<String> = ERRORS.iter().map(|error| format!("{:>6} %", percent(*error))).collect();
    out.line(format!(
        "all exits together, one threshold: may leave where so many of all are wrong{}",
        errors.concat()
    ))?;
    for coverage in &made.comparison {
        let exits: Vec<String> = coverage.exits.iter().map(|share| format!("{:>6.1} %", percent(*share))).collect();
        out.line(format!("{:71}{}", coverage.name, exits.concat()))?;
    }
    Ok(())
}

/// The table that layers were chosen from.
fn sets(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let (cascade, sets) = &made.sets;
    let costs = &cascade.costs;
    let heads: Vec<String> = costs.heads.iter().map(|cost| format!("{cost:.3}")).collect();
    out.line(format!(
        "costs in ms: a layer {:.3}, the output matrix {:.3}, the screen {:.3}, a check {:.3}, heads {}, a skipped layer {:.3}",
        costs.layer,
        costs.output,
        costs.screen,
        costs.check,
        heads.join(" "),
        costs.skipped
    ))?;
    let levels: Vec<String> = made.meta.agreements.iter().map(|level| format!("{level:>8}")).collect();
    out.line(format!("expected gain (share of tokens that exit), exits after     at {}", levels.concat()))?;
    let shown = if out.verbose { sets.len() } else { SHOWN_SETS };
    let none = sets.iter().filter(|set| set.exits.is_empty()).take(usize::from(sets.len() > shown));
    for set in sets.iter().take(shown).chain(none) {
        let cells: Vec<String> = set
            .levels
            .iter()
            .map(|level| format!("{:5.2} ({:2.0} %)", level.gain, percent(level.summary.exits.iter().sum())))
            .collect();
        out.line(format!("{:24} {}", layers_of(made, set), cells.join(" ")))?;
    }
    Ok(())
}

fn layers_of(made: &Made, set: &Choice) -> String {
    let layers: Vec<String> =
        set.exits.iter().filter_map(|i| made.sets.0.layers.get(*i)).map(ToString::to_string).collect();
    if layers.is_empty() { "the screen alone".to_string() } else { layers.join(",") }
}

fn kv_maps(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    for qualities in &made.kv_quality {
        let cells: Vec<String> = qualities
            .iter()
            .map(|quality| format!("{}: {:.3}/{:.3}", quality.layer, quality.k.0, quality.v.0))
            .collect();
        let n = qualities.len().max(1) as f64;
        let mean = |of: fn(&Quality) -> f64| qualities.iter().map(of).sum::<f64>() / n;
        out.line(format!(
            "K/V maps of the exit after layer {}, R2 of K/V on held-out tokens, mean {:.3}/{:.3}; by layer {}",
            exit_below(qualities),
            mean(|quality| quality.k.0),
            mean(|quality| quality.v.0),
            cells.join(", ")
        ))?;
    }
    if !made.kv_quality.is_empty() && !made.uses_maps {
        out.line("these maps explain too little of V to keep strict levels: skipped layers are caught up (--kv-maps on uses maps)")?;
    }
    Ok(())
}

fn draft(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let Some(draft) = &made.draft else { return Ok(()) };
    if out.verbose {
        for look in &draft.looks {
            let (divergence, agreement) = (look.divergence.first(), look.agreement.first());
            if let (Some(divergence), Some(agreement)) = (divergence, agreement) {
                let tokens = look.n_tokens;
                out.line(format!(
                    "head that drafts, {tokens} tokens trained on: {divergence:.3}  {:.1} %",
                    percent(*agreement)
                ))?;
            }
        }
    }
    let quality = &draft.quality;
    let named = (quality.r2, percent(quality.agreement));
    out.line(format!("head that drafts the token after the next: R2 {:.3}, names {:.1} % of them", named.0, named.1))?;
    let drafts = quality.drafts.iter().filter(|drafts| drafts.share > 0.0);
    let cells: Vec<String> = drafts
        .map(|d| format!("{:.0} %: {:.1} % ({:.1} %)", percent(d.least.into()), percent(d.share), percent(d.right)))
        .collect();
    out.line(format!("where it is right by this chance or better, share of the tokens (right): {}", cells.join(", ")))?;
    Ok(())
}

/// The exit whose maps are of these blocks.
fn exit_below(qualities: &[Quality]) -> u32 {
    qualities.first().map_or(0, |lowest| lowest.layer.saturating_sub(1))
}

fn screen(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let (chosen, n_tokens) = (&made.chosen, made.n_tokens);
    out.line(format!(
        "screen: rank {}, {} candidates, {:.1} % of the output matrix's bytes, with the rescored rows (1/{:.1})",
        chosen.rank,
        chosen.count,
        percent(chosen.screened),
        1.0 / chosen.screened
    ))?;
    out.line(format!(
        "on {n_tokens} tokens of {} prompts it was not made from: {:.3} % of the model's choices found; \
         99.9 % if {:.2} % of the tokens take the full matrix",
        made.n_prompts,
        percent(chosen.recall),
        percent(chosen.fallback)
    ))?;
    out.line(format!(
        "prompts that it changes anywhere: {}; near-ties: {:.2} % of the tokens",
        made.n_changed,
        percent(near_ties(made))
    ))
}

/// The share of tokens whose label depends on the width of a batch.
fn near_ties(made: &Made) -> f64 {
    made.n_near_ties as f64 / made.n_tokens.max(1) as f64
}

fn levels(made: &Made, out: &mut Output) -> anyhow::Result<()> {
    let layers: Vec<String> = made.meta.layers.iter().map(|layer| format!("  layer {layer:<2}")).collect();
    out.line("expected at each level, in the full model's own contexts; nothing exits before it is calibrated:")?;
    out.line(format!("agreement  threshold{}  frequent  screened  disagreement  gain", layers.concat()))?;
    for level in &made.levels {
        let exits: Vec<String> =
            level.summary.exits.iter().map(|share| format!("  {:6.1} %", percent(*share))).collect();
        out.line(format!(
            "{:<9}  {:<9.4}{}  {:6.1} %  {:6.1} %  {:10.3} %  {:.2}",
            level.agreement,
            level.threshold,
            exits.concat(),
            percent(level.summary.vocab),
            percent(level.summary.screen),
            percent(level.summary.error),
            level.gain
        ))?;
    }
    out.line(format!(
        "an oracle that leaves at the first head that is right, and pays for blocks alone: {:.2} times",
        made.oracle
    ))
}

/// What was made, as JSON.
pub fn json(made: &Made) -> Json {
    let chosen = &made.chosen;
    let candidates = made.candidates.iter().map(|pair| {
        json!({ "rank": pair.rank, "shortlist": pair.count, "recall": pair.recall, "fallback": pair.fallback,
                "bytes": pair.screened })
    });
    let exits = made.quality.iter().map(|quality| {
        let of_metric = |(metric, exits): (&offramp::gguf::exits::Metric, &[f64; 4])| {
            (
                metric.name().to_string(),
                ERRORS.iter().zip(exits).map(|(e, share)| json!({ "error": e, "share": share })).collect(),
            )
        };
        let metrics: serde_json::Map<String, Json> = METRICS.iter().zip(&quality.exits).map(of_metric).collect();
        json!({ "layer": quality.layer, "r2": quality.r2, "agreement": quality.agreement, "exits": metrics })
    });
    let looks = made
        .looks
        .iter()
        .map(|look| json!({ "tokens": look.n_tokens, "divergence": look.divergence, "agreement": look.agreement }));
    let sets = made.sets.1.iter().map(|set| {
        let layers: Vec<u32> = set.exits.iter().filter_map(|i| made.sets.0.layers.get(*i)).copied().collect();
        let gains: Vec<f64> = set.levels.iter().map(|level| level.gain).collect();
        json!({ "layers": layers, "gains": gains })
    });
    let kv = made.kv_quality.iter().map(|qualities| {
        let of_layer = |q: &Quality| json!({ "layer": q.layer, "k_r2": q.k.0, "v_r2": q.v.0 });
        let exit = exit_below(qualities);
        let bytes = made.heads.iter().find(|head| head.layer == exit).map_or(0, |head| head.kv_bytes());
        json!({ "exit": exit, "bytes": bytes, "layers": qualities.iter().map(of_layer).collect::<Vec<_>>() })
    });
    let comparison = made.comparison.iter().map(|coverage| {
        let exits = ERRORS.iter().zip(&coverage.exits).map(|(e, share)| json!({ "error": e, "share": share }));
        json!({ "measure": coverage.name, "exits": exits.collect::<Vec<_>>() })
    });
    let reliability = made.reliability.iter().map(|curve| {
        let group = |(confidence, agreed, n): &(f64, f64, usize)| {
            json!({ "confidence": confidence, "agreement": agreed, "tokens": n })
        };
        json!({ "layer": curve.layer, "groups": curve.groups.iter().map(group).collect::<Vec<_>>() })
    });
    json!({
        "screen": { "rank": chosen.rank, "shortlist": chosen.count, "recall": chosen.recall,
                    "fallback": chosen.fallback, "bytes": chosen.screened },
        "exit_vocab": made.vocab.as_ref().map(|vocab| json!({ "tokens": vocab.tokens.len(), "shortlist": vocab.shortlist })),
        "layers": made.meta.layers, "metric": made.meta.metric.name(),
        "exits": exits.collect::<Vec<_>>(), "training": looks.collect::<Vec<_>>(),
        "measures": comparison.collect::<Vec<_>>(), "reliability": reliability.collect::<Vec<_>>(),
        "sets": sets.collect::<Vec<_>>(), "kv_maps": kv.collect::<Vec<_>>(), "uses_kv_maps": made.uses_maps,
        "draft_head": made.draft.as_ref().map(|draft| json!({
            "r2": draft.quality.r2, "agreement": draft.quality.agreement,
            "drafts": draft.quality.drafts.iter()
                .map(|d| json!({ "chance": d.least, "share": d.share, "right": d.right })).collect::<Vec<_>>(),
        })),
        "prompts": made.n_prompts,
        "tokens": made.n_tokens,
        "near_ties": near_ties(made),
        "oracle": made.oracle,
        "changed_prompts": made.n_changed,
        "candidates": candidates.collect::<Vec<_>>(),
        "levels": made.levels.iter().map(level_json).collect::<Vec<_>>(),
    })
}

fn level_json(level: &Level) -> Json {
    let threshold = level.threshold.is_finite().then_some(level.threshold);
    json!({ "agreement": level.agreement, "threshold": threshold, "exits": level.summary.exits,
            "frequent": level.summary.vocab, "screened": level.summary.screen, "disagreement": level.summary.error, "gain": level.gain })
}
