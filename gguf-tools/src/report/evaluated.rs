//! The page of an evaluation: speed against agreement, depths, levels against what was measured, and replies in colour.

use offramp::Exits;

use super::{Axis, Bars, Chart, Page, Section, Series, Stroke, percent};
use crate::eval::figures::{Evaluation, ModeFigures};
use crate::eval::{Evaluated, tables};

/// The page.
///
/// # Errors
///
/// A plot that cannot be drawn.
pub fn evaluated(evaluated: &Evaluated) -> anyhow::Result<Page> {
    let evaluation = &evaluated.evaluation;
    let notes = tables::notes(evaluation);
    let mut overview = Section::new("Speed and agreement");
    for note in notes.iter().skip(1) {
        overview = overview.text(note.clone());
    }
    let mut found = tables::of(evaluation).into_iter();
    let mut table = || found.next().unwrap_or_default();
    overview = overview.plot(speed(evaluation).draw()?).table(table());
    let has_levels = evaluation.modes.iter().any(|mode| !mode.levels.is_empty());
    let mut levels = Section::new("What the levels promise, and what was measured");
    if has_levels {
        levels = levels.plot(promises(evaluation).draw()?).table(table());
    }
    let depths = Section::new("Where tokens left the model").plot(depths(evaluation).draw()?).table(table());
    let rest = found.fold(Section::new("Tasks, kinds of prompts, length"), Section::table);
    let samples = Section::new("Replies")
        .text("At the laxest level. Each token is coloured by where it left the model; what the full model would have said instead is in the tooltip.")
        .samples(evaluated.samples.clone());
    let samples = if evaluated.samples.is_empty() { Section::new("") } else { samples };
    Ok(Page::new(format!("Exits of {}", evaluation.model))
        .fact("Model", format!("{} ({})", evaluation.model, evaluation.description))
        .fact("Prompts", format!("{}, up to {} tokens each", evaluation.prompts, evaluation.n_predict))
        .fact(
            "Decoding",
            if evaluation.temperature == 0.0 {
                "greedy".to_string()
            } else {
                format!("temperature {}", evaluation.temperature)
            },
        )
        .fact(
            "Exits after blocks",
            if evaluation.layers.is_empty() {
                "none: the screen alone".to_string()
            } else {
                evaluation.layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            },
        )
        .fact("Engine", evaluation.engine.clone())
        .sections([overview, levels, depths, rest, samples]))
}

fn short(mode: &ModeFigures) -> String {
    match mode.agreement_levels.first() {
        Some(_) => mode.agreement_levels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        None => mode.exits.to_string(),
    }
}

/// Speed over disagreement, a point each mode.
fn speed(evaluation: &Evaluation) -> Chart {
    let modes = || evaluation.modes.iter().filter(|mode| mode.ratio_to_off.median.is_some());
    let ratios: Vec<f64> = modes().filter_map(|mode| mode.ratio_to_off.median).collect();
    let (least, most) = ratios.iter().fold((1.0f64, 1.0f64), |range, ratio| (range.0.min(*ratio), range.1.max(*ratio)));
    let room = ((most - least) * 0.2).max(0.05);
    let mut groups: Vec<(String, Vec<&ModeFigures>)> = Vec::new();
    for mode in modes() {
        let name = match mode.kv {
            Some(kv) => format!("calibrated, by level, K/V {kv}"),
            None => mode.exits.to_string(),
        };
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, modes)) => modes.push(mode),
            None => groups.push((name, vec![mode])),
        }
    }
    let series = groups.into_iter().map(|(name, modes)| Series {
        name,
        points: modes.iter().map(|mode| (1.0 - mode.agreement, mode.ratio_to_off.median.unwrap_or(1.0))).collect(),
        // The others have a colour of their own, and lie close together.
        labels: modes.iter().filter(|mode| mode.kv.is_some()).map(|mode| short(mode)).collect(),
        stroke: Stroke::Points,
    });
    let words: Vec<String> = modes()
        .map(|mode| {
            let ratio = mode.ratio_to_off.median.unwrap_or(1.0);
            format!(
                "{}: {} of tokens differ, {ratio:.2} times as fast",
                tables::name(mode),
                percent(1.0 - mode.agreement, 2)
            )
        })
        .collect();
    Chart {
        title: "Speed against disagreement".to_string(),
        description: words.join(". "),
        x: Axis::shares(
            "tokens that the full model would not have emitted",
            modes().map(|mode| (1.0 - mode.agreement) * 1.3),
        ),
        y: Axis::numbers("speed, off = 1", (least - room, most + room), 2),
        series: series.collect(),
    }
}

/// Allowed, certified and measured disagreement for each level.
fn promises(evaluation: &Evaluation) -> Bars {
    let levels: Vec<_> =
        evaluation.modes.iter().flat_map(|mode| mode.levels.iter().map(move |level| (mode, level))).collect();
    let several = evaluation.modes.iter().filter_map(|mode| mode.kv).collect::<Vec<_>>();
    let several = several.iter().any(|kv| Some(kv) != several.first());
    let names = levels.iter().map(|(mode, level)| match mode.kv.filter(|_| several) {
        Some(kv) => format!("{} {kv}", level.agreement),
        None => level.agreement.to_string(),
    });
    let parts = vec![
        ("allowed by the level".to_string(), levels.iter().map(|(_, level)| level.allowed).collect::<Vec<_>>()),
        (
            "bound of its certificate".to_string(),
            levels.iter().map(|(_, level)| level.certified_bound.unwrap_or(0.0)).collect(),
        ),
        ("measured here".to_string(), levels.iter().map(|(_, level)| level.disagreement).collect()),
    ];
    let words: Vec<String> = levels
        .iter()
        .map(|(_, level)| {
            format!(
                "{}: {} allowed, {} measured",
                level.agreement,
                percent(level.allowed, 2),
                percent(level.disagreement, 2)
            )
        })
        .collect();
    let highest: Vec<f64> = parts.iter().flat_map(|(_, values)| values.iter().copied()).collect();
    Bars {
        title: "Disagreement: allowed, certified, measured".to_string(),
        description: words.join(". "),
        x: Axis::names("level of agreement", names.collect()),
        y: Axis::shares("share of tokens that differ", highest),
        parts,
        stacked: false,
    }
}

/// Where the tokens of each mode left.
fn depths(evaluation: &Evaluation) -> Bars {
    let modes: Vec<&ModeFigures> = evaluation.modes.iter().filter(|mode| mode.exits == Exits::Calibrated).collect();
    let share = |mode: &ModeFigures, n: usize| n as f64 / mode.exit_histogram.n_tokens().max(1) as f64;
    let mut parts: Vec<(String, Vec<f64>)> = evaluation
        .layers
        .iter()
        .map(|layer| {
            let of = |mode: &&ModeFigures| share(mode, mode.exit_histogram.layers.get(layer).copied().unwrap_or(0));
            (format!("after block {layer}"), modes.iter().map(of).collect())
        })
        .collect();
    parts.push((
        "at the screen".to_string(),
        modes.iter().map(|mode| share(mode, mode.exit_histogram.screen)).collect(),
    ));
    parts.push(("whole model".to_string(), modes.iter().map(|mode| share(mode, mode.exit_histogram.full)).collect()));
    let words: Vec<String> = parts
        .iter()
        .map(|(name, shares)| {
            let shares: Vec<String> = shares.iter().map(|share| percent(*share, 0)).collect();
            format!("{name}: {}", shares.join(", "))
        })
        .collect();
    Bars {
        title: "Where tokens left the model, by level".to_string(),
        description: words.join(". "),
        x: Axis::names("level of agreement", modes.iter().map(|mode| short(mode)).collect()),
        y: Axis::shares("share of tokens", [1.0]),
        parts,
        stacked: true,
    }
}
