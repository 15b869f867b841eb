//! What a certificate rests on: the risk at each threshold with its bound, and what was certified for each level.

use super::{Axis, Bars, Chart, Sample, Section, Series, Stroke, Table, percent};
use crate::calibrate::confirm::Confirmed;

/// The sections of a page on `confirmed`, with replies at the laxest level that was certified.
///
/// # Errors
///
/// A plot that cannot be drawn.
pub fn calibrated(confirmed: &Confirmed, samples: Vec<Sample>) -> anyhow::Result<Vec<Section>> {
    let samples = if samples.is_empty() {
        Section::new("")
    } else {
        Section::new("Replies")
            .text("At the laxest level that was certified. Each token is coloured by where it left the model; what the full model would have said instead is in the tooltip.")
            .samples(samples)
    };
    Ok(vec![walk(confirmed)?, levels(confirmed)?, samples])
}

/// Risk against threshold.
fn walk(confirmed: &Confirmed) -> anyhow::Result<Section> {
    let chosen = |i: usize| -> String {
        let levels = confirmed.levels.iter().filter(|level| level.certified.as_ref().is_some_and(|c| c.index == i));
        levels.map(|level| level.agreement.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut table = Table::new(
        "Thresholds, strictest first",
        [
            "",
            "made for",
            "confidence asked of exits",
            "of the screen",
            "prompts",
            "tokens",
            "left early",
            "differ",
            "bound",
            "certifies",
        ],
    );
    for (i, (candidate, step)) in confirmed.steps.iter().enumerate() {
        let mut exits: Vec<String> = candidate.exits.iter().map(|threshold| format!("{threshold:.4}")).collect();
        exits.dedup();
        table.row([
            (i + 1).to_string(),
            candidate.agreement.to_string(),
            exits.join(", "),
            format!("{:.4}", candidate.screen),
            step.n_prompts.to_string(),
            step.n_tokens.to_string(),
            percent(step.exit_rate(), 1),
            percent(step.risk(), 3),
            percent(confirmed.bounds[i], 3),
            chosen(i),
        ]);
    }
    let steps = || confirmed.steps.iter().enumerate();
    let risk: Vec<(f64, f64)> = steps().map(|(i, (_, step))| (i as f64, step.risk())).collect();
    let bound: Vec<(f64, f64)> = confirmed.bounds.iter().enumerate().map(|(i, bound)| (i as f64, *bound)).collect();
    let mut marked = Series::new("certified for the level beside it", Stroke::Points, Vec::new());
    for at in bound.iter().filter(|at| !chosen(at.0 as usize).is_empty()) {
        let i = at.0 as usize;
        marked.points.push(*at);
        marked.labels.push(chosen(i));
    }
    let words: Vec<String> = steps()
        .map(|(i, (_, step))| {
            format!(
                "threshold {}: {} differ, bound {}",
                i + 1,
                percent(step.risk(), 2),
                percent(confirmed.bounds[i], 2)
            )
        })
        .collect();
    // A threshold that was given up after a few prompts has a bound near 1, which would flatten everything else.
    let highest = risk.iter().map(|at| at.1).chain(marked.points.iter().map(|at| at.1)).fold(0.005f64, f64::max) * 2.5;
    let seen = bound.iter().copied().filter(|at| at.1 <= highest).collect();
    let chart = Chart {
        title: "Risk against threshold".to_string(),
        description: words.join("; "),
        x: Axis::names("threshold, strict to lax", steps().map(|(i, _)| (i + 1).to_string()).collect()),
        y: Axis::shares("disagreement, mean of prompts", [highest.min(1.0)]),
        series: vec![
            Series::new("measured", Stroke::Line, risk),
            Series::new("its bound", Stroke::Dashed, seen),
            marked,
        ],
    };
    Ok(Section::new("Risk and thresholds")
        .text("Each threshold was decoded freely, and the full model read the same texts. Bounds beyond the picture are in the table: a threshold that can no longer pass is given up early, and its bound is then wide.")
        .plot(chart.draw()?)
        .table(table)
        .table(pilot(confirmed)))
}

/// What the pilot saw.
fn pilot(confirmed: &Confirmed) -> Table {
    let title = "Pilot, on other prompts: it chose which thresholds were walked, and certifies nothing";
    let mut table = Table::new(title, ["made for", "prompts", "tokens", "left early", "differ"]);
    for (candidate, step) in &confirmed.pilot {
        table.row([
            candidate.agreement.to_string(),
            step.n_prompts.to_string(),
            step.n_tokens.to_string(),
            percent(step.exit_rate(), 1),
            percent(step.risk(), 3),
        ]);
    }
    table
}

fn levels(confirmed: &Confirmed) -> anyhow::Result<Section> {
    let mut table =
        Table::new("Levels", ["level", "left early", "disagreement", "bound", "Hoeffding-Bentkus", "verdict"]);
    for level in &confirmed.levels {
        let bound = |value: fn(&crate::calibrate::sequence::Certified) -> f64| {
            level.certified.as_ref().map_or_else(|| "-".to_string(), |certified| percent(value(certified), 3))
        };
        table.row([
            level.agreement.to_string(),
            percent(level.exit_rate, 1),
            bound(|certified| certified.risk),
            bound(|certified| certified.bound),
            bound(|certified| certified.reference_bound),
            match level.certified {
                Some(_) => "certified".to_string(),
                None => format!("off; it takes {} prompts or more", level.least_prompts),
            },
        ]);
    }
    let words: Vec<String> = confirmed
        .levels
        .iter()
        .map(|level| format!("{}: {} leave early", level.agreement, percent(level.exit_rate, 1)))
        .collect();
    let bars = Bars {
        title: "Tokens that leave early, by level".to_string(),
        description: words.join("; "),
        x: Axis::names(
            "level of agreement",
            confirmed.levels.iter().map(|level| level.agreement.to_string()).collect(),
        ),
        y: Axis::shares("share of tokens", [1.0]),
        parts: vec![("left early".to_string(), confirmed.levels.iter().map(|level| level.exit_rate).collect())],
        stacked: false,
    };
    Ok(Section::new("Certified levels").plot(bars.draw()?).table(table))
}
