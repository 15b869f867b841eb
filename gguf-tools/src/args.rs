//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

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

    /// Take the original model out of a merged file, byte for byte
    StripHeads {
        /// The merged file
        file: PathBuf,
        #[command(flatten)]
        write: Write,
    },
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
