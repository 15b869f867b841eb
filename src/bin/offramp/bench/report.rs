//! The measurements as a table, as Markdown, or as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use offramp::{ExitPoint, Exits, Model};
use serde::Serialize;

use super::measure::Rescored;
use super::stats::quantile;
use crate::failure::Failure;
use crate::model_args::ModelArgs;

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    model: String,
    description: String,
    threads: Option<u32>,
    n_prompts: usize,
    n_predict: usize,
    wanted_agreement: f32,
    modes: Vec<ModeReport>,
}

/// One mode. Rates are tokens a second, over all prompts.
#[derive(Serialize)]
pub struct ModeReport {
    exits: Exits,
    prompt_per_second: f64,
    decode_per_second: f64,
    ratio_to_off: Ratio,
    /// Tokens by where they left the model: `screen`, a layer, or `full`.
    exit_histogram: BTreeMap<String, usize>,
    rescored: Agreement,
    /// Bytes by which the process grew when this mode's session was opened and first used.
    session_bytes: u64,
}

/// Decode speed against `off`, prompt by prompt.
#[derive(Serialize)]
struct Ratio {
    median: Option<f64>,
    p10: Option<f64>,
    p90: Option<f64>,
}

/// How many of the emitted tokens are the full model's own.
#[derive(Serialize)]
struct Agreement {
    tokens: usize,
    differing: usize,
    agreement: f64,
    /// Logits by which the full model preferred its own token, where they differ.
    median_gap: Option<f64>,
}

impl ModeReport {
    pub fn new(
        exits: Exits,
        prompt: (usize, Duration),
        decode: (usize, Duration),
        ratios: Vec<f64>,
        points: Vec<Option<ExitPoint>>,
        rescored: &Rescored,
        session_bytes: u64,
    ) -> Self {
        let rate = |(n, time): (usize, Duration)| n as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE);
        let mut exit_histogram = BTreeMap::new();
        for point in points {
            *exit_histogram.entry(name(point)).or_insert(0) += 1;
        }
        let gaps: Vec<f64> = rescored.gaps.iter().map(|&gap| gap.into()).collect();
        Self {
            exits,
            prompt_per_second: rate(prompt),
            decode_per_second: rate(decode),
            ratio_to_off: Ratio {
                median: quantile(&ratios, 0.5),
                p10: quantile(&ratios, 0.1),
                p90: quantile(&ratios, 0.9),
            },
            exit_histogram,
            rescored: Agreement {
                tokens: rescored.n_tokens,
                differing: rescored.gaps.len(),
                agreement: rescored.agreement(),
                median_gap: quantile(&gaps, 0.5),
            },
            session_bytes,
        }
    }

    fn cells(&self) -> [String; 7] {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let ratio = &self.ratio_to_off;
        let total: usize = self.exit_histogram.values().sum();
        let share = |n: usize| 100.0 * n as f64 / total.max(1) as f64;
        let exits: Vec<String> =
            self.exit_histogram.iter().map(|(name, &n)| format!("{name} {:.0} %", share(n))).collect();
        let scored = &self.rescored;
        [
            self.exits.to_string(),
            format!("{:.0}", self.prompt_per_second),
            format!("{:.1}", self.decode_per_second),
            format!("{} ({} to {})", number(ratio.median), number(ratio.p10), number(ratio.p90)),
            exits.join(", "),
            format!("{:.2} % of {}", 100.0 * scored.agreement, scored.tokens),
            format!("{} MiB", self.session_bytes >> 20),
        ]
    }
}

const HEADER: [&str; 7] = [
    "exits",
    "prompt tokens/s",
    "decode tokens/s",
    "against off: median (10 % to 90 %)",
    "left the model at",
    "agreement, re-scored",
    "session memory",
];

impl Report {
    pub fn new(
        model: &Model,
        arguments: &ModelArgs,
        n_predict: usize,
        n_prompts: usize,
        modes: Vec<ModeReport>,
    ) -> Self {
        let info = model.info();
        let file = || info.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            model: info.name.clone().unwrap_or_else(file),
            description: info.description.clone(),
            threads: arguments.threads,
            n_prompts,
            n_predict,
            wanted_agreement: arguments.agreement,
            modes,
        }
    }

    /// Writes the report to stdout.
    ///
    /// # Errors
    /// When whoever reads has gone.
    pub fn print(&self, json: bool, markdown: bool) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            out.write_all(self.table(markdown).as_bytes())?;
        }
        out.flush()?;
        Ok(())
    }

    fn table(&self, markdown: bool) -> String {
        let mut rows = vec![HEADER.map(str::to_owned)];
        rows.extend(self.modes.iter().map(ModeReport::cells));
        let widths: Vec<usize> =
            (0..HEADER.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
        let line = |row: &[String; 7]| {
            let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            if markdown {
                format!("| {} |\n", padded.join(" | "))
            } else {
                format!("{}\n", padded.join("  ").trim_end())
            }
        };
        let title = format!(
            "{} ({}), {} prompts, up to {} greedy tokens each, wanted agreement {}\n",
            self.model, self.description, self.n_prompts, self.n_predict, self.wanted_agreement
        );
        let mut text = if markdown { format!("{title}\n") } else { title };
        for (i, row) in rows.iter().enumerate() {
            text.push_str(&line(row));
            if i == 0 && markdown {
                let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
                text.push_str(&format!("| {} |\n", rule.join(" | ")));
            }
        }
        text
    }
}

fn name(point: Option<ExitPoint>) -> String {
    match point {
        None => "full".to_owned(),
        Some(ExitPoint::Screen) => "screen".to_owned(),
        Some(ExitPoint::Layer(il)) => format!("layer {il:03}"),
        Some(other) => format!("{other:?}"),
    }
}
