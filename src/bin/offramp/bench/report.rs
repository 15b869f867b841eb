//! The measurements as a table, as Markdown, or as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use offramp::measure::{Depths, Rescored, quantile};
use offramp::{ExitPoint, Exits, Kv, Model};
use serde::Serialize;

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
    /// `llama.cpp`, or the name of the exits' mode.
    mode: String,
    exits: Exits,
    /// Where the K/V of skipped blocks came from; null where none were skipped for good.
    kv: Option<Kv>,
    prompt_per_second: f64,
    decode_per_second: f64,
    /// Against the first row: llama.cpp by its own kernels.
    ratio_to_llama_cpp: Ratio,
    /// Tokens by where they left the model: `screen`, a layer, or `full`.
    exit_histogram: BTreeMap<String, usize>,
    /// Blocks that a token ran through before it left, on average, as a share of all.
    mean_depth: f64,
    /// Tokens that were drafted, and those of them that the full model agreed with.
    drafted: usize,
    drafted_right: usize,
    rescored: Agreement,
    /// Bytes by which the process grew when this mode's session was opened and first used.
    session_bytes: u64,
}

/// Decode speed against llama.cpp's, prompt by prompt.
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
    /// Tokens that left early and differ.
    exit_wrong: Difference,
    /// Tokens that ran through all of the model and differ all the same: by predicted K/V of earlier ones, or by rounding.
    kv_changed: Difference,
}

/// Differing tokens, and the logits by which the full model preferred its own.
#[derive(Serialize)]
struct Difference {
    tokens: usize,
    median_gap: Option<f64>,
    p90_gap: Option<f64>,
}

impl Difference {
    fn of(gaps: &[f64]) -> Self {
        Self { tokens: gaps.len(), median_gap: quantile(gaps, 0.5), p90_gap: quantile(gaps, 0.9) }
    }
}

/// What was measured of a mode over all prompts.
pub struct Totals {
    /// Tokens and time.
    pub prompt: (usize, Duration),
    pub decode: (usize, Duration),
    /// Decode rates against llama.cpp's, prompt by prompt.
    pub ratios: Vec<f64>,
    /// Where each token left the model.
    pub points: Vec<Option<ExitPoint>>,
    pub drafts: (usize, usize),
    pub session_bytes: u64,
}

impl ModeReport {
    pub fn new(
        (mode, exits, kv): (String, Exits, Option<Kv>),
        n_layer: u32,
        totals: &Totals,
        rescored: &Rescored,
    ) -> Self {
        let rate = |(n, time): (usize, Duration)| n as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE);
        let mut exit_histogram = BTreeMap::new();
        for &point in &totals.points {
            *exit_histogram.entry(name(point)).or_insert(0) += 1;
        }
        let mean_depth = Depths::of(&totals.points).mean(n_layer).unwrap_or(0.0);
        Self {
            mode,
            exits,
            kv,
            prompt_per_second: rate(totals.prompt),
            decode_per_second: rate(totals.decode),
            ratio_to_llama_cpp: Ratio {
                median: quantile(&totals.ratios, 0.5),
                p10: quantile(&totals.ratios, 0.1),
                p90: quantile(&totals.ratios, 0.9),
            },
            exit_histogram,
            mean_depth: mean_depth / f64::from(n_layer.max(1)),
            drafted: totals.drafts.0,
            drafted_right: totals.drafts.1,
            rescored: Agreement {
                tokens: rescored.n_tokens,
                differing: rescored.differing.len(),
                agreement: rescored.agreement(),
                exit_wrong: Difference::of(&rescored.gaps(true)),
                kv_changed: Difference::of(&rescored.gaps(false)),
            },
            session_bytes: totals.session_bytes,
        }
    }

    fn cells(&self) -> [String; N_COLUMNS] {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let ratio = &self.ratio_to_llama_cpp;
        let total: usize = self.exit_histogram.values().sum();
        let share = |n: usize| 100.0 * n as f64 / total.max(1) as f64;
        let exits: Vec<String> =
            self.exit_histogram.iter().map(|(name, &n)| format!("{name} {:.0} %", share(n))).collect();
        let scored = &self.rescored;
        [
            self.kv.map_or_else(|| self.mode.clone(), |kv| format!("{}, K/V {kv}", self.mode)),
            format!("{:.0}", self.prompt_per_second),
            format!("{:.1}", self.decode_per_second),
            format!("{} ({} to {})", number(ratio.median), number(ratio.p10), number(ratio.p90)),
            if self.drafted > 0 {
                format!("{}; {} of {} drafts right", exits.join(", "), self.drafted_right, self.drafted)
            } else {
                exits.join(", ")
            },
            format!("{:.0} %", 100.0 * self.mean_depth),
            format!("{:.2} % of {}", 100.0 * scored.agreement, scored.tokens),
            [(&scored.exit_wrong, "exit"), (&scored.kv_changed, "K/V")]
                .map(|(part, cause)| match part.median_gap {
                    Some(gap) => format!("{} {cause} (gap {gap:.2})", part.tokens),
                    None => format!("0 {cause}"),
                })
                .join(", "),
            format!("{} MiB", self.session_bytes >> 20),
        ]
    }
}

/// Columns of the table.
const N_COLUMNS: usize = 9;

const HEADER: [&str; N_COLUMNS] = [
    "mode",
    "prompt tokens/s",
    "decode tokens/s",
    "against llama.cpp: median (10 % to 90 %)",
    "left the model at",
    "mean depth",
    "agreement, re-scored",
    "differing by",
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
            threads: arguments.n_threads(),
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
        let line = |row: &[String; N_COLUMNS]| {
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
