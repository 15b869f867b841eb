//! What `train` and `add-heads` measured: layers, training, measures of sureness, and what is expected of each level.

use super::{Axis, Bars, Chart, Section, Series, Stroke, Table, percent};
use crate::add_heads::Made;
use crate::add_heads::heads::ERRORS;
use crate::train::evaluate;

/// The marginal error at which layers are shown.
const SHOWN_ERROR: usize = 1;

/// The sections of a page on `made`.
///
/// # Errors
///
/// A plot that cannot be drawn.
pub fn trained(made: &Made) -> anyhow::Result<Vec<Section>> {
    let mut sections = vec![expected(made)?];
    if !made.quality.is_empty() {
        sections.push(layers(made)?);
        sections.push(training(made)?);
        sections.push(metrics(made)?);
    }
    sections.push(reliability(made)?);
    Ok(sections)
}

fn layer_names(made: &Made) -> Vec<String> {
    made.quality.iter().map(|quality| quality.layer.to_string()).collect()
}

fn places(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
    values.into_iter().enumerate().map(|(i, value)| (i as f64, value)).collect()
}

/// Agreement and exit rate by layer.
fn layers(made: &Made) -> anyhow::Result<Section> {
    let mut series =
        vec![Series::new("agrees with the full model", Stroke::Line, places(made.quality.iter().map(|q| q.agreement)))];
    let metric = evaluate::position(made.meta.metric);
    for (i, error) in ERRORS.iter().enumerate() {
        let name = format!("may leave, {} of all tokens wrong", percent(*error, 1));
        series.push(Series::new(name, Stroke::Line, places(made.quality.iter().map(|q| q.exits[metric][i]))));
    }
    let mut table = Table::new("By layer, on held-out tokens", ["layer", "R2", "agrees"]);
    ERRORS.iter().for_each(|error| table.column(format!("may leave at {}", percent(*error, 1))));
    for quality in &made.quality {
        let exits = quality.exits[metric].iter().map(|share| percent(*share, 1));
        let first = [quality.layer.to_string(), format!("{:.3}", quality.r2), percent(quality.agreement, 1)];
        table.row(first.into_iter().chain(exits));
    }
    let words: Vec<String> = made
        .quality
        .iter()
        .map(|q| {
            let share = percent(q.exits[metric][SHOWN_ERROR], 0);
            format!("after block {}: {} agree, {share} may leave at 1 %", q.layer, percent(q.agreement, 0))
        })
        .collect();
    let chart = Chart {
        title: "Agreement and exit rate by layer".to_string(),
        description: words.join("; "),
        x: Axis::names("exit after block", layer_names(made)),
        y: Axis::shares("share of tokens", [1.0]),
        series,
    };
    Ok(Section::new("Layers").plot(chart.draw()?).table(table))
}

/// Divergence and agreement while training went on.
fn training(made: &Made) -> anyhow::Result<Section> {
    let most = made.looks.last().map_or(1.0, |look| look.n_tokens as f64).max(1.0);
    // Thousands of tokens, where there are so many.
    let (unit, name) = if most >= 2000.0 { (1000.0, "thousands of tokens") } else { (1.0, "tokens") };
    let of = |values: fn(&crate::train::fit::Look) -> &Vec<f64>| -> Vec<Series> {
        let layers = made.quality.iter().enumerate();
        layers
            .map(|(i, quality)| {
                let points = made.looks.iter().filter_map(|look| {
                    let value = values(look).get(i)?;
                    Some((look.n_tokens as f64 / unit, *value))
                });
                Series::new(format!("after block {}", quality.layer), Stroke::Line, points.collect())
            })
            .collect()
    };
    let highest = made.looks.iter().flat_map(|look| &look.divergence).fold(0.0f64, |most, value| most.max(*value));
    let mut table = Table::new("Held-out tokens: divergence in nats, agreement", ["tokens"]);
    made.quality.iter().for_each(|quality| table.column(format!("after block {}", quality.layer)));
    for look in &made.looks {
        let cells = look.divergence.iter().zip(&look.agreement).map(|(d, a)| format!("{d:.3}, {}", percent(*a, 1)));
        table.row([look.n_tokens.to_string()].into_iter().chain(cells));
    }
    let ends = made.looks.first().zip(made.looks.last());
    let words = ends.map_or_else(String::new, |(first, last)| {
        let pairs = made.quality.iter().zip(first.divergence.iter().zip(&last.divergence));
        let words: Vec<String> =
            pairs.map(|(q, (from, to))| format!("after block {} from {from:.3} to {to:.3}", q.layer)).collect();
        words.join("; ")
    });
    let divergence = Chart {
        title: "Divergence from the full model while training".to_string(),
        description: words.clone(),
        x: Axis::numbers(name, (0.0, most / unit * 1.02), 0),
        y: Axis::numbers("nats", (0.0, (highest * 1.05).max(1e-3)), 2),
        series: of(|look| &look.divergence),
    };
    let agreement = Chart {
        title: "Agreement with the full model while training".to_string(),
        description: words,
        x: Axis::numbers(name, (0.0, most / unit * 1.02), 0),
        y: Axis::shares("share of held-out tokens", [1.0]),
        series: of(|look| &look.agreement),
    };
    Ok(Section::new("Training").plot(divergence.draw()?).plot(agreement.draw()?).table(table))
}

/// Measures of sureness at equal risk.
fn metrics(made: &Made) -> anyhow::Result<Section> {
    const MOST: f64 = 0.06;
    let mut table =
        Table::new("All exits together: tokens that may leave, by the share of all that is wrong", ["measure"]);
    ERRORS.iter().for_each(|error| table.column(percent(*error, 1)));
    for coverage in &made.comparison {
        let cells = coverage.exits.iter().map(|share| percent(*share, 1));
        table.row([coverage.name.to_string()].into_iter().chain(cells));
    }
    let series = made.comparison.iter().map(|coverage| {
        let shown = coverage.curve.iter().copied().filter(|(wrong, _)| *wrong <= MOST);
        // A line needs no more points than the eye sees.
        let shown: Vec<(f64, f64)> = shown.collect();
        let step = (shown.len() / 24).max(1);
        Series::new(coverage.name, Stroke::Line, shown.into_iter().step_by(step).collect())
    });
    let words: Vec<String> = made
        .comparison
        .iter()
        .map(|coverage| format!("{}: {} at 1 %", coverage.name, percent(coverage.exits[SHOWN_ERROR], 1)))
        .collect();
    let highest: Vec<f64> =
        made.comparison.iter().flat_map(|c| &c.curve).filter(|at| at.0 <= MOST).map(|at| at.1).collect();
    let chart = Chart {
        title: "Coverage at equal risk".to_string(),
        description: words.join("; "),
        x: Axis::shares("share of all tokens that is wrong", [MOST / 1.1]),
        y: Axis::shares("share of tokens that leaves", highest),
        series: series.collect(),
    };
    Ok(Section::new("Measures of sureness")
        .text("One threshold for all exits, every gate open, on prompts that neither heads nor maps were fitted to. A raw metric means something else at each exit; the calibrated map puts them on one scale.")
        .plot(chart.draw()?)
        .table(table))
}

/// Confidence against what came true.
fn reliability(made: &Made) -> anyhow::Result<Section> {
    let name =
        |layer: Option<u32>| layer.map_or_else(|| "the screen".to_string(), |layer| format!("after block {layer}"));
    let mut series = Vec::new();
    let mut table = Table::new(
        "Tokens in ten groups, from unsure to sure",
        ["exit", "tokens", "confidence", "agreed with the full model"],
    );
    for curve in made.reliability.iter().filter(|curve| !curve.groups.is_empty()) {
        let points = curve.groups.iter().map(|(confidence, agreed, _)| (*confidence, *agreed)).collect();
        series.push(Series::new(name(curve.layer), Stroke::Line, points));
        for (confidence, agreed, n) in &curve.groups {
            table.row([name(curve.layer), n.to_string(), percent(*confidence, 2), percent(*agreed, 2)]);
        }
    }
    series.push(Series::new("as it should be", Stroke::Dashed, vec![(0.0, 0.0), (1.0, 1.0)]));
    let gaps = made.reliability.iter().map(|curve| {
        let n: usize = curve.groups.iter().map(|group| group.2).sum();
        let gap: f64 = curve.groups.iter().map(|(confidence, agreed, n)| (confidence - agreed).abs() * *n as f64).sum();
        format!("{}: {} apart on average", name(curve.layer), percent(gap / n.max(1) as f64, 2))
    });
    let chart = Chart {
        title: "Confidence against what came true".to_string(),
        description: gaps.collect::<Vec<_>>().join("; "),
        x: Axis::shares("confidence: claimed probability of agreement", [1.0]),
        y: Axis::shares("share that agreed", [1.0]),
        series,
    };
    Ok(Section::new("Reliability").plot(chart.draw()?).table(table))
}

/// What each level is expected to do.
fn expected(made: &Made) -> anyhow::Result<Section> {
    let levels: Vec<String> = made.levels.iter().map(|level| level.agreement.to_string()).collect();
    let mut parts: Vec<(String, Vec<f64>)> = made
        .meta
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            let shares = made.levels.iter().map(|level| level.summary.exits.get(i).copied().unwrap_or(0.0));
            (format!("after block {layer}"), shares.collect())
        })
        .collect();
    if made.vocab.is_some() {
        let shares = made.levels.iter().map(|level| level.summary.vocab).collect();
        parts.push(("all blocks, frequent tokens".to_string(), shares));
    }
    parts.push(("at the screen".to_string(), made.levels.iter().map(|level| level.summary.screen).collect()));
    let rest = |i: usize| 1.0 - parts.iter().map(|(_, shares)| shares[i]).sum::<f64>();
    let rest: Vec<f64> = (0..made.levels.len()).map(|i| rest(i).max(0.0)).collect();
    parts.push(("whole model".to_string(), rest));
    let mut table = Table::new("By level, on prompts that nothing was made from", ["level", "expected speed, off = 1"]);
    parts.iter().for_each(|(name, _)| table.column(name.clone()));
    table.column("differs from the full model");
    for (i, level) in made.levels.iter().enumerate() {
        let shares: Vec<String> = parts.iter().map(|(_, shares)| percent(shares[i], 1)).collect();
        let first = [level.agreement.to_string(), format!("{:.2}", level.gain)];
        table.row(first.into_iter().chain(shares).chain([percent(level.summary.error, 2)]));
    }
    let words: Vec<String> =
        made.levels.iter().map(|level| format!("{}: {:.2} times as fast", level.agreement, level.gain)).collect();
    let most = made.levels.iter().map(|level| level.gain).fold(1.0f64, f64::max);
    let speed = Bars {
        title: "Expected speed by level".to_string(),
        description: words.join("; "),
        x: Axis::names("level of agreement", levels.clone()),
        y: Axis::numbers("speed, off = 1", (0.0, most * 1.1), 1),
        parts: vec![("speed".to_string(), made.levels.iter().map(|level| level.gain).collect())],
        stacked: false,
    };
    let depths = Bars {
        title: "Expected exits by level".to_string(),
        description: words.join("; "),
        x: Axis::names("level of agreement", levels),
        y: Axis::shares("share of tokens", [1.0]),
        parts,
        stacked: true,
    };
    Ok(Section::new("What is expected of each level")
        .text("Simulated, in contexts of the full model: only decodes that run freely certify a level, and only a benchmark shows its speed.")
        .plot(speed.draw()?)
        .plot(depths.draw()?)
        .table(table))
}
