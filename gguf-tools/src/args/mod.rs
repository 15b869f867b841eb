//! The command line.

mod convert;
mod measure;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use offramp::gguf::DEFAULT_SPLIT_TENSORS;

pub use convert::{AddHeads, Collect, HeadShape, Heads, KvMaps, Layers, MetricChoice, Tokens, Train};
pub use measure::{Calibrate, Certify, Eval};

/// Look into GGUF files, and move exit heads in and out of them.
///
/// No input is ever changed. Exit status: 0, 1 where something failed or differs, 2 for wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 100, args_override_self = true)]
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

    /// Split a model into parts, as llama-gguf-split does
    Split {
        #[command(flatten)]
        args: Split,
    },

    /// Join the parts of a split model into one file
    Merge {
        /// The first part, whose name ends in -00001-of-0000N.gguf; the others lie beside it
        first: PathBuf,
        /// The file to write
        output: PathBuf,
        #[command(flatten)]
        how: Replace,
    },
}

/// How to split.
#[derive(clap::Args)]
pub struct Split {
    /// The model, left as it is
    pub model: PathBuf,

    /// What the names of the parts begin with: PREFIX-00001-of-0000N.gguf and so on
    #[arg(value_name = "PREFIX")]
    pub output: PathBuf,

    /// The most tensors of a part
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SPLIT_TENSORS, value_parser = clap::value_parser!(u64).range(1..))]
    pub split_max_tensors: u64,

    /// The most bytes of a part's tensors, such as 300M or 2G (of 1000 each); a larger tensor is a part by itself
    #[arg(long, value_name = "N(M|G)", conflicts_with = "split_max_tensors", value_parser = size)]
    pub split_max_size: Option<u64>,

    /// Put no tensors into the first part, the keys alone
    #[arg(long)]
    pub no_tensor_first_split: bool,

    #[command(flatten)]
    pub how: Replace,
}

/// How to write files that are named by their place.
#[derive(clap::Args)]
pub struct Replace {
    /// Replace existing outputs
    #[arg(long)]
    pub force: bool,

    /// Tell what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
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

/// How to write heads, or a model with them.
#[derive(clap::Args)]
pub struct WriteHeads {
    /// The file to write; with --sidecar and without this flag the heads go into the user's cache, where offramp finds them
    /// for this model without a flag
    #[arg(long = "output", short = 'o', value_name = "FILE", required_unless_present = "sidecar")]
    pub output: Option<PathBuf>,

    /// Replace an existing output
    #[arg(long)]
    pub force: bool,

    /// Make every check, but write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A size in bytes: a whole number of millions or thousands of millions.
fn size(text: &str) -> Result<u64, String> {
    let units = [("M", 1_000_000), ("G", 1_000_000_000u64)];
    let found = units.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let size = found.and_then(|(digits, bytes)| digits.parse::<u64>().ok()?.checked_mul(bytes));
    size.filter(|size| *size > 0).ok_or_else(|| "expected a size such as 300M or 2G".to_string())
}

/// A number of tokens, in thousands with a `k`.
fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1000));
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.filter(|number| *number > 0).ok_or_else(|| "expected a number such as 50000 or 50k".to_string())
}

/// When `limit` is over that began at `start`; never where it is `off`.
pub fn deadline(start: Instant, limit: Duration) -> Option<Instant> {
    start.checked_add(limit)
}

/// A time with its unit; the longest there is for `off`.
fn duration(text: &str) -> Result<Duration, String> {
    if text == "off" {
        return Ok(Duration::MAX);
    }
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let found = units.into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let seconds = found.and_then(|(digits, seconds)| digits.parse::<u64>().ok()?.checked_mul(seconds));
    let seconds = seconds.filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| "expected a time such as 90s, 30m or 2h, or off".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_read_with_their_units() {
        assert_eq!((count("200k"), count("17")), (Ok(200_000), Ok(17)));
        assert_eq!((duration("30m"), duration("off")), (Ok(Duration::from_secs(1800)), Ok(Duration::MAX)));
        for bad in ["", "k", "0", "-3", "1.5k", "99999999999999999999k"] {
            assert!(count(bad).is_err(), "{bad}");
        }
        assert_eq!((size("300M"), size("2G")), (Ok(300_000_000), Ok(2_000_000_000)));
        for bad in ["", "300", "0M", "G", "-1G", "1.5G", "2g", "99999999999999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["", "30", "0s", "m", "-1h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
