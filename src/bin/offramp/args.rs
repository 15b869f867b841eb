//! The command line. Parsing only: what the arguments mean for a model is `model_args`, what is done is in the commands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use offramp::SamplerParams;

use crate::failure::Failure;
use crate::model_args::ModelArgs;
use crate::short_flags;

/// Runs GGUF models on llama.cpp and lets easy tokens leave the model early.
#[derive(Debug, Parser)]
#[command(name = "offramp", disable_version_flag = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the version; with --verbose also how it was built and which CPU features are used
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Print the devices that this build can compute on
    #[arg(long)]
    pub list_devices: bool,
    #[command(flatten)]
    pub log: LogArgs,
}

const AFTER_HELP: &str = "llama.cpp's names are understood too: -ngl -tb -ub -ctk -ctv -sys -fa -hf, and LLAMA_ARG_* in the environment.\n\
    stdout carries the model's text and nothing else. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate a text and end
    Run(RunArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Answer programs over HTTP, with OpenAI's interface, and a page to chat on
    #[cfg(feature = "serve")]
    Serve(crate::serve::ServeArgs),
    /// Measure what early exits gain here
    Bench(BenchArgs),
    /// Tell what a model is and what the layer gate can do on it
    Inspect(InspectArgs),
    /// Fetch a model from the Hugging Face hub
    #[cfg(feature = "hf")]
    Pull(crate::pull::PullArgs),
    /// List the models of the cache folder
    #[cfg(feature = "hf")]
    List(crate::cache::ListArgs),
    /// Remove a model from the cache folder
    #[cfg(feature = "hf")]
    Rm(crate::cache::RemoveArgs),
    /// Tell what a model file is, without loading it
    #[cfg(feature = "hf")]
    Show(crate::cache::ShowArgs),
    /// Tell what this machine can do with models, and what stands in the way
    Doctor(crate::doctor::DoctorArgs),
    /// Print completions for a shell
    Completions(crate::manual::CompletionsArgs),
    /// Print the manual, or write a page for each command
    Man(crate::manual::ManArgs),
}

/// Where messages go.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Log on stderr what llama.cpp and offramp do
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Write the log to a file
    #[arg(long, global = true, value_name = "FILE", env = "LLAMA_ARG_LOG_FILE")]
    pub log_file: Option<PathBuf>,
}

/// Arguments of `offramp run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    /// Give the text to the model as it is, without the chat template; special tokens in it are recognised
    #[arg(long, conflicts_with = "system_prompt")]
    pub raw: bool,
    /// Print one JSON object a prompt, a line each
    #[arg(long)]
    pub json: bool,
    /// Show where each token left the model: by colour on a terminal, by a mark elsewhere
    #[arg(long, conflicts_with = "json")]
    pub show_exits: bool,
}

/// What to generate from: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct PromptArgs {
    /// The prompt; - reads it from stdin
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the prompt
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A file with one JSON object a line: {"id": …, "prompt": "…"} or {"id": …, "turns": ["…"]}; - reads stdin
    #[arg(long, value_name = "FILE.jsonl")]
    pub prompts: Option<PathBuf>,
}

/// Arguments of `offramp chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The first turn
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// End after one reply [llama.cpp's -st]
    #[arg(long)]
    pub single_turn: bool,
    #[command(flatten)]
    pub generation: GenerationArgs,
}

/// Arguments of `offramp bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A file with one JSON object a line, as for run; of several turns the first is taken [default: six prompts]
    #[arg(long, value_name = "FILE.jsonl")]
    pub prompts: Option<PathBuf>,
    /// Most tokens of a reply
    #[arg(short = 'n', long = "predict", visible_alias = "n-predict", value_name = "N", default_value_t = 128)]
    pub n_predict: usize,
    /// Give the prompts to the model as they are, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print a Markdown table
    #[arg(long)]
    pub markdown: bool,
}

/// Arguments of `offramp inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
}

/// How tokens are picked and when a reply ends; the names and defaults are llama.cpp's.
#[derive(Debug, Args)]
pub struct GenerationArgs {
    /// System prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// Most tokens of a reply; -1 goes on until the model ends it or the context is full
    #[arg(
        short = 'n',
        long = "predict",
        visible_alias = "n-predict",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true,
        env = "LLAMA_ARG_N_PREDICT"
    )]
    pub n_predict: i64,
    /// End a reply before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Go on after the model's own end token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Temperature; 0 always takes the best token, of equals the one with the lowest id
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "X",
        default_value_t = SamplerParams::default().temperature,
        allow_negative_numbers = true,
        env = "LLAMA_ARG_TEMPERATURE"
    )]
    pub temp: f32,
    /// Keep the K best tokens; 0 keeps all
    #[arg(
        long,
        value_name = "K",
        default_value_t = SamplerParams::default().top_k,
        allow_negative_numbers = true,
        env = "LLAMA_ARG_TOP_K"
    )]
    pub top_k: i32,
    /// Keep the best tokens up to this probability; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().top_p, env = "LLAMA_ARG_TOP_P")]
    pub top_p: f32,
    /// Keep tokens with at least this share of the best one's probability; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().min_p, env = "LLAMA_ARG_MIN_P")]
    pub min_p: f32,
    /// Penalty on repeated tokens; 1 is none
    #[arg(
        long,
        value_name = "X",
        default_value_t = SamplerParams::default().repeat_penalty,
        env = "LLAMA_ARG_REPEAT_PENALTY"
    )]
    pub repeat_penalty: f32,
    /// How many of the last tokens count as repeated; 0 is none
    #[arg(long, value_name = "N", default_value_t = SamplerParams::default().repeat_last_n)]
    pub repeat_last_n: i32,
    /// Seed of the random numbers: the same seed gives the same text; -1 takes a new one each time
    #[arg(short, long, value_name = "SEED", default_value_t = -1, allow_negative_numbers = true)]
    pub seed: i64,
    /// A GBNF grammar that the reply follows
    #[arg(long, value_name = "GBNF")]
    pub grammar: Option<String>,
    /// A file with such a grammar
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    pub grammar_file: Option<PathBuf>,
}

impl GenerationArgs {
    /// # Errors
    /// For a seed that is none, and for a grammar file that cannot be read.
    pub fn sampler(&self) -> Result<SamplerParams, Failure> {
        let mut params = SamplerParams::default();
        params.temperature = self.temp;
        params.top_k = self.top_k;
        params.top_p = self.top_p;
        params.min_p = self.min_p;
        params.repeat_penalty = self.repeat_penalty;
        params.repeat_last_n = self.repeat_last_n;
        params.seed = match self.seed {
            // llama.cpp's own constant for "random" is 2³²-1; both ways of writing it mean the same.
            -1 | 0xFFFF_FFFF => None,
            seed => Some(u32::try_from(seed).map_err(|_| {
                Failure::usage(format!("--seed is {seed}, but must be between 0 and 4294967294, or -1"))
            })?),
        };
        params.grammar = match &self.grammar_file {
            Some(path) => Some(crate::prompts::read_text(path)?),
            None => self.grammar.clone(),
        };
        Ok(params)
    }

    pub fn limits(&self) -> offramp::GenerateParams {
        let mut params = offramp::GenerateParams::default();
        params.max_tokens = usize::try_from(self.n_predict).unwrap_or(usize::MAX);
        params.stop = self.stop.clone();
        params.ignore_eos = self.ignore_eos;
        params
    }
}

/// # Errors
/// [`Failure::Arguments`] for wrong usage, and for help that was asked for.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Failure> {
    Cli::try_parse_from(short_flags::spell_out(arguments)).map_err(Failure::Arguments)
}

/// The failure of a line that names no command.
pub fn command_missing() -> Failure {
    let message = "a command is missing: run, chat, serve, bench, inspect, pull, list, show, rm or doctor";
    Failure::Arguments(Cli::command().error(clap::error::ErrorKind::MissingSubcommand, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, Failure> {
        parse(std::iter::once("offramp").chain(line.split(' ')).map(OsString::from))
    }

    fn run_args(line: &str) -> RunArgs {
        match parsed(line).unwrap().command {
            Some(Command::Run(arguments)) => arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn llama_cpps_flags_are_understood() {
        let arguments = run_args(
            "run -m a.gguf -p hi -c 512 -t 2 -tb 3 -b 64 -ub 32 -ngl all --temp 0 --top-k 1 --top-p 0.5 --min-p 0.1 \
             --repeat-penalty 1.1 -s 7 -n 9 -sys be --no-mmap --mlock -fa on -ctk q8_0 -ctv q8_0 -v",
        );
        assert_eq!(arguments.generation.sampler().unwrap().seed, Some(7));
        assert_eq!(arguments.generation.limits().max_tokens, 9);
        let params = arguments.model.session_params(4096);
        assert_eq!((params.n_ctx, params.n_threads, params.n_threads_batch), (512, Some(2), Some(3)));
        assert_eq!(params.type_k, offramp::CacheType::Q8_0);
        let params = arguments.model.model_params();
        assert!(!params.use_mmap && params.use_mlock);
    }

    #[test]
    fn flash_attention_alone_is_on() {
        let arguments = run_args("run -fa -p hi");
        assert_eq!(arguments.model.session_params(4096).flash_attn, offramp::FlashAttn::On);
    }

    #[test]
    fn negative_counts_are_without_end() {
        let arguments = run_args("run -p hi -n -1 --seed -1");
        assert_eq!(arguments.generation.limits().max_tokens, usize::MAX);
        assert_eq!(arguments.generation.sampler().unwrap().seed, None);
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash() {
        assert_eq!(run_args("run -p -").prompt.prompt.as_deref(), Some("-"));
        assert_eq!(run_args("run -p -ngl").prompt.prompt.as_deref(), Some("-ngl"));
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        for line in
            ["run", "run -p a -f b", "run -p a --raw -sys b", "run -p a -n x", "walk", "run -p a --no-such-flag"]
        {
            let outcome = parsed(line);
            assert!(matches!(&outcome, Err(Failure::Arguments(error)) if error.use_stderr()), "{line}: {outcome:?}");
        }
        assert!(run_args("run -p a --seed 99999999999").generation.sampler().is_err());
    }
}
