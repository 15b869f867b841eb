//! An evaluation as tables: the same on a terminal, in Markdown and in the report.

use offramp::Exits;

use super::figures::{Difference, Evaluation, ModeFigures, PartFigures, Spread};
use crate::report::{Table, percent};

/// What stands where there is nothing to say.
const NONE: &str = "-";

/// All tables that have rows.
pub fn of(evaluation: &Evaluation) -> Vec<Table> {
    let tables = [
        modes(evaluation),
        levels(evaluation),
        exits(evaluation),
        checks(evaluation),
        parts(evaluation, "By category: agreement (left early, against off)", |mode| &mode.by_category),
        parts(evaluation, "By position in the reply: agreement (left early)", |mode| &mode.by_position),
    ];
    tables.into_iter().filter(|table| !table.is_empty()).collect()
}

/// What was evaluated, and what has to be known to read the figures.
pub fn notes(evaluation: &Evaluation) -> Vec<String> {
    let Evaluation { model, description, prompts, n_predict, temperature, .. } = evaluation;
    let how = if *temperature == 0.0 { "greedy".to_string() } else { format!("temperature {temperature}") };
    let mut notes = vec![format!(
        "{model} ({description}): {prompts} prompts, up to {n_predict} tokens each, {how}, modes by turns"
    )];
    if *temperature != 0.0 {
        notes.push(
            "Certificates are for greedy decoding. At a temperature, agreement is the share of drawn tokens that are the full \
             model's best one: compare a mode with off, not with its level."
                .to_string(),
        );
    }
    let shares = |levels: &[f32]| levels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !evaluation.levels_off.is_empty() {
        notes.push(format!("Not certified, so that nothing exits: {}.", shares(&evaluation.levels_off)));
    }
    if let (Some(prompts), Some(kv)) = (&evaluation.certified_on, evaluation.certified_kv) {
        notes.push(format!(
            "Certified on {prompts}, with K/V policy {kv}. It promises nothing about other kinds of prompts."
        ));
    }
    if evaluation.left_out > 0 {
        notes.push(format!("{} prompts left no room for a reply and were left out.", evaluation.left_out));
    }
    if evaluation.is_cut_short {
        notes.push("The time was over before all prompts were answered.".to_string());
    }
    notes
}

/// The name of a mode.
pub fn name(mode: &ModeFigures) -> String {
    let levels: Vec<String> = mode.agreement_levels.iter().map(ToString::to_string).collect();
    match mode.kv {
        Some(kv) => format!("{} {}, K/V {kv}", mode.exits, levels.join(" = ")),
        None => mode.exits.to_string(),
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| NONE.to_string(), |value| format!("{value:.digits$}"))
}

fn spread(spread: &Spread) -> String {
    format!("{} ({} to {})", number(spread.median, 2), number(spread.p10, 2), number(spread.p90, 2))
}

fn difference(difference: &Difference) -> String {
    match difference.median_gap {
        Some(gap) => format!("{} (gap {gap:.2})", difference.tokens),
        None => "0".to_string(),
    }
}

fn modes(evaluation: &Evaluation) -> Table {
    let header = [
        "exits",
        "agreement",
        "wrong by exits",
        "changed by K/V",
        "tokens/s",
        "against off: median (10 % to 90 %)",
        "mean depth",
        "layers saved",
        "perplexity",
    ];
    let mut table = Table::new("Modes", header);
    for mode in &evaluation.modes {
        let depth = mode.mean_depth.map(|depth| format!("{depth:.1} of {}", evaluation.n_layer));
        table.row([
            name(mode),
            format!("{} of {}", percent(mode.agreement, 2), mode.tokens),
            difference(&mode.exit_wrong),
            difference(&mode.kv_changed),
            format!("{:.1}", mode.tokens_per_second),
            spread(&mode.ratio_to_off),
            depth.unwrap_or_else(|| NONE.to_string()),
            mode.layers_saved.map_or_else(|| NONE.to_string(), |share| percent(share, 1)),
            number(mode.perplexity, 3),
        ]);
    }
    table
}

fn levels(evaluation: &Evaluation) -> Table {
    let header =
        ["level", "K/V", "allowed", "certified bound", "measured, mean of prompts", "its own bound", "verdict"];
    let mut table = Table::new("Levels: disagreement that was promised, and measured here", header);
    let sure = percent(1.0 - evaluation.delta, 0);
    for mode in &evaluation.modes {
        for level in &mode.levels {
            let verdict = match (evaluation.temperature == 0.0, level.is_inside, level.bound <= level.allowed) {
                (false, ..) => "does not apply: not greedy".to_string(),
                (_, true, true) => format!("inside, at {sure} confidence here"),
                (_, true, false) => "inside; too few prompts here to prove it".to_string(),
                (_, false, _) => "OUTSIDE".to_string(),
            };
            table.row([
                level.agreement.to_string(),
                mode.kv.map_or_else(String::new, |kv| kv.to_string()),
                percent(level.allowed, 2),
                level.certified_bound.map_or_else(|| NONE.to_string(), |bound| percent(bound, 2)),
                percent(level.disagreement, 2),
                percent(level.bound, 2),
                verdict,
            ]);
        }
    }
    table
}

fn exits(evaluation: &Evaluation) -> Table {
    let mut table = Table::new("Where tokens left the model", ["exits"]);
    evaluation.layers.iter().for_each(|layer| table.column(format!("block {layer}")));
    ["screen", "whole model", "drafts right"].into_iter().for_each(|column| table.column(column));
    for mode in &evaluation.modes {
        let depths = &mode.exit_histogram;
        let share = |n: usize| percent(n as f64 / depths.n_tokens().max(1) as f64, 1);
        let layers = evaluation.layers.iter().map(|layer| share(depths.layers.get(layer).copied().unwrap_or(0)));
        let drafts = match mode.drafted {
            0 if mode.exits != Exits::Exact => NONE.to_string(),
            drafted => format!("{} of {drafted}", mode.drafted_right),
        };
        table.row([name(mode)].into_iter().chain(layers).chain([share(depths.screen), share(depths.full), drafts]));
    }
    table
}

fn checks(evaluation: &Evaluation) -> Table {
    let mut table = Table::new("Tasks", ["exits"]);
    let names = evaluation.modes.iter().flat_map(|mode| &mode.checks).map(|check| check.name);
    let mut distinct: Vec<&str> = Vec::new();
    names.for_each(|name| {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    });
    for name in &distinct {
        table.column(if *name == "pass_at_1" { "pass@1" } else { "exact match" });
    }
    for mode in evaluation.modes.iter().filter(|_| !distinct.is_empty()) {
        let cells = distinct.iter().map(|name| {
            let check = mode.checks.iter().find(|check| check.name == *name);
            check.map_or_else(
                || NONE.to_string(),
                |check| {
                    format!(
                        "{} ({} of {})",
                        percent(check.passed as f64 / check.tasks as f64, 1),
                        check.passed,
                        check.tasks
                    )
                },
            )
        });
        table.row([name(mode)].into_iter().chain(cells));
    }
    table
}

/// A row for each part, a column for each mode.
fn parts(evaluation: &Evaluation, title: &str, of: fn(&ModeFigures) -> &Vec<PartFigures>) -> Table {
    let mut table = Table::new(title, ["", "prompts", "tokens of off"]);
    let modes: Vec<&ModeFigures> = evaluation.modes.iter().filter(|mode| mode.exits == Exits::Calibrated).collect();
    modes.iter().for_each(|mode| table.column(name(mode)));
    let Some(off) = evaluation.modes.first() else { return table };
    for part in of(off).iter().filter(|_| !modes.is_empty()) {
        let cells = modes.iter().map(|mode| {
            let found = of(mode).iter().find(|other| other.name == part.name);
            found.map_or_else(
                || NONE.to_string(),
                |found| {
                    let ratio = found.ratio_to_off.map(|ratio| format!(", {ratio:.2}")).unwrap_or_default();
                    format!("{} ({}{ratio})", percent(found.agreement, 2), percent(found.exited, 0))
                },
            )
        });
        table.row([part.name.clone(), part.prompts.to_string(), part.tokens.to_string()].into_iter().chain(cells));
    }
    table
}
