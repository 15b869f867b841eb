//! The command line. Parsing only: what the arguments mean for a model is `model_args`, what is done is in the commands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::failure::Failure;
use crate::generation_args::GenerationArgs;
use crate::model_args::ModelArgs;
use crate::short_flags;

/// Runs GGUF models on llama.cpp and lets easy tokens leave the model early.
#[derive(Debug, Parser)]
#[command(name = "offramp", disable_version_flag = true, args_override_self = true, after_help = AFTER_HELP)]
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

const AFTER_HELP: &str = "llama.cpp's names are understood too: -ngl -tb -ub -ctk -ctv -sys -sysf -jf -st -np -fa -hf, and LLAMA_ARG_* in the environment.\n\
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
    pub prompt: PromptArgs,
    /// Give the text to the model as it is, without the chat template; special tokens in it are recognised
    #[arg(long, conflicts_with_all = ["system_prompt", "system_prompt_file"])]
    pub raw: bool,
    /// Print one JSON object a prompt, a line each
    #[arg(long)]
    pub json: bool,
    /// Show where each token left the model: by colour on a terminal, by a mark elsewhere
    #[arg(long, conflicts_with = "json")]
    pub show_exits: bool,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub model: ModelArgs,
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
    /// The first turn
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the first turn
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// End after one reply [llama.cpp's -st]
    #[arg(long)]
    pub single_turn: bool,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Arguments of `offramp bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
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
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Arguments of `offramp inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
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
             --repeat-penalty 1.1 -s 7 -n 9 -sys be --no-mmap --mlock -fa on -ctk q8_0 -ctv q8_0 -j {} -v",
        );
        assert!(arguments.generation.sampler().unwrap().grammar.is_some());
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
    fn a_flag_that_is_given_twice_counts_as_it_was_given_last() {
        let arguments = run_args(
            "run -p a -p b -n 1 -n 2 --temp 0 --temp 1 -t 1 -t 2 -fa -fa off --ignore-eos --ignore-eos -m x -m y \
             --exits off --exits exact --kv predict --kv auto --stop a --stop b --no-mmap --mmap -v -v \
             --stop-token-ids 1,2 --stop-token-ids 3",
        );
        assert_eq!(arguments.prompt.prompt.as_deref(), Some("b"));
        let (sampler, limits) = (arguments.generation.sampler().unwrap(), arguments.generation.limits());
        assert_eq!((limits.max_tokens, sampler.temperature), (2, 1.0));
        assert_eq!(
            (limits.stop, limits.stop_token_ids),
            (vec!["a".to_owned(), "b".to_owned()], vec![offramp::Token(3)])
        );
        let params = arguments.model.session_params(4096);
        assert_eq!((params.n_threads, params.flash_attn), (Some(2), offramp::FlashAttn::Off));
        assert_eq!((params.exits, params.kv), (offramp::Exits::Exact, offramp::Kv::Auto));
        assert!(arguments.model.check_modes().is_ok() && arguments.model.model_params().use_mmap);
        assert_eq!(arguments.model.model.as_deref(), Some(std::path::Path::new("y")));
        let verbose = parsed("-v -v run -v -p a -v").unwrap();
        assert!(verbose.log.verbose);
    }

    #[test]
    fn what_llama_cpp_calls_all_or_its_own_choice_is_understood() {
        let arguments = run_args("run -p a -t -1 -tb -1 --repeat-last-n -1 --dry-penalty-last-n -1 --top-k -1");
        let params = arguments.model.session_params(4096);
        assert_eq!((params.n_threads, params.n_threads_batch), (None, None));
        let sampler = arguments.generation.sampler().unwrap();
        assert_eq!((sampler.repeat_last_n, sampler.dry_penalty_last_n, sampler.top_k), (-1, -1, -1));
        assert!(sampler.check().is_ok());
        assert_eq!(run_args("run -p a -t 0").model.session_params(4096).n_threads, None);
        assert!(parsed("run -p a -t -2").is_err());
    }

    #[test]
    fn llama_cpp_s_other_samplers_have_its_flags() {
        let arguments = run_args(
            "run -p a --typical 0.5 --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n 9 \
             --dry-sequence-breaker \\n --dry-sequence-breaker - --xtc-probability 0.25 --xtc-threshold 0.2 \
             --presence-penalty 0.1 --frequency-penalty -0.1 --min-tokens 4",
        );
        let params = arguments.generation.sampler().unwrap();
        assert_eq!((params.typical_p, params.dry_multiplier, params.dry_base), (0.5, 0.8, 2.0));
        assert_eq!((params.dry_allowed_length, params.dry_penalty_last_n), (3, 9));
        assert_eq!(params.dry_sequence_breakers, ["\n", "-"]);
        assert_eq!((params.xtc_probability, params.xtc_threshold), (0.25, 0.2));
        assert_eq!((params.presence_penalty, params.frequency_penalty), (0.1, -0.1));
        assert_eq!(arguments.generation.limits().min_tokens, 4);
        let none = run_args("run -p a --dry-sequence-breaker none").generation.sampler().unwrap();
        assert!(none.dry_sequence_breakers.is_empty());
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash() {
        assert_eq!(run_args("run -p -").prompt.prompt.as_deref(), Some("-"));
        assert_eq!(run_args("run -p -ngl").prompt.prompt.as_deref(), Some("-ngl"));
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        for line in [
            "run",
            "run -p a -f b",
            "chat -p a -f b",
            "run -p a --raw -sys b",
            "run -p a --raw -sysf b",
            "run -p a -j {} --grammar b",
            "run -p a -n x",
            "walk",
            "run -p a --no-such-flag",
        ] {
            let outcome = parsed(line);
            assert!(matches!(&outcome, Err(Failure::Arguments(error)) if error.use_stderr()), "{line}: {outcome:?}");
        }
        assert!(run_args("run -p a --seed 99999999999").generation.sampler().is_err());
        assert!(run_args("run -p a -j nonsense").generation.sampler().is_err());
    }

    #[test]
    fn the_help_tells_what_is_about_replies_from_what_is_about_models_and_exits() {
        for name in ["run", "chat"] {
            let help = Cli::command().find_subcommand_mut(name).unwrap().render_long_help().to_string();
            let (own, rest) = help.split_once("Reply:").unwrap();
            let (reply, rest) = rest.split_once("Model:").unwrap();
            let (model, exits) = rest.split_once("Early exits:").unwrap();
            assert!(own.contains("--prompt") && reply.contains("--temp") && model.contains("--ctx-size"), "{help}");
            assert!(exits.contains("--agreement") && !model.contains("--agreement"), "{help}");
        }
    }
}
