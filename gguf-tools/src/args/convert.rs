//! How tokens are collected, and heads made of them: the arguments of `collect`, `train` and `add-heads`.

use std::path::PathBuf;
use std::time::Duration;

use gguf_tools::add_heads::vocab::Wanted as Vocab;

use super::measure::Certify;
use super::{WriteHeads, count, duration};

/// Which prompts a model answers, and how many tokens of that are wanted.
#[derive(clap::Args)]
pub struct Tokens {
    /// Let the model write the prompts itself (the default)
    #[arg(long = "self", conflicts_with = "corpus")]
    pub itself: bool,

    /// Take the prompts from files: a paragraph each of plain text, a line each of JSONL
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub corpus: Vec<PathBuf>,

    /// Tokens of answers to collect, such as 50000 or 200k; what the model writes as users' turns is kept as well
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

    /// Be done after this time, such as 90s, 30m or 2h, with what there is by then; off for as long as it takes. 15m for
    /// add-heads where it is not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
}

/// Whether tokens that exit are to have K and V predicted in the layers that they skip.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvMaps {
    /// Where the model's K and V can be seen and maps explain nine tenths of the values; otherwise they are caught up
    Auto,
    /// Where the model's K and V can be seen
    On,
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
    #[arg(long, value_name = "K,K", value_delimiter = ',', action = clap::ArgAction::Set)]
    pub layers: Vec<u32>,

    /// Whether to keep what K/V maps learn from (unless off): K and V of every layer above the lowest of --layers
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
    pub write: WriteHeads,

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
    pub write: WriteHeads,

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
    #[arg(long, value_name = "MS,MS,MS", value_delimiter = ',', action = clap::ArgAction::Set)]
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

    /// The tokens that exits choose among: so many of the most frequent ones, or all; auto takes 8,192 or more of a large vocabulary,
    /// by what they hold and what a check costs
    #[arg(long, value_name = "auto|all|N", default_value = "auto", value_parser = exit_vocab)]
    pub exit_vocab: Vocab,

    /// Predict the keys and values of skipped layers, where they were collected
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub kv_maps: KvMaps,

    /// Train a head that drafts the token after the next as well, for the full model to verify
    #[arg(long)]
    pub draft_head: bool,

    /// How sure a check is; `auto` takes the metric by which most tokens may exit
    #[arg(long, value_enum, default_value_t = MetricChoice::Auto)]
    pub metric: MetricChoice,

    /// Shares of tokens that must equal the full model's, to choose thresholds for
    #[arg(long, value_name = "A,A", value_delimiter = ',', action = clap::ArgAction::Set, default_value = "0.9,0.95,0.98,0.99,0.995,0.999")]
    pub agreement_levels: Vec<f32>,
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
    /// A trained classifier's log-odds, from the largest probability and the final state.
    Classifier,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_vocabularies_are_read_as_they_are_named() {
        assert_eq!((layers("auto"), layers("9, 17")), (Ok(Layers::Auto), Ok(Layers::These(vec![9, 17]))));
        assert!(["", "17,9", "9,9", "x", "-1"].iter().all(|bad| layers(bad).is_err()));
        assert_eq!((exit_vocab("all"), exit_vocab("4096")), (Ok(Vocab::All), Ok(Vocab::These(4096))));
        assert!(["", "some", "-1"].iter().all(|bad| exit_vocab(bad).is_err()));
    }
}
