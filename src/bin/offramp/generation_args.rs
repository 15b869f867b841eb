//! How replies are made: arguments that every command shares that makes some. Names and defaults are llama.cpp's.

use std::path::PathBuf;

use clap::Args;
use offramp::{Grammar, SamplerParams};

use crate::conversation::Settings;
use crate::failure::Failure;
use crate::prompts;

/// How tokens are picked and when a reply ends; the names and defaults are llama.cpp's.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reply")]
pub struct GenerationArgs {
    /// System prompt [llama.cpp's -sys]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// A file with the system prompt [llama.cpp's -sysf]
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    pub system_prompt_file: Option<PathBuf>,
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
    /// End no reply before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_tokens: usize,
    /// End a reply before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// End a reply before one of these tokens, beside the model's own end token
    #[arg(long, value_name = "ID,…", value_delimiter = ',', action = clap::ArgAction::Set)]
    pub stop_token_ids: Vec<i32>,
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
    /// Keep the K best tokens; 0 or -1 keeps all
    #[arg(
        long,
        value_name = "K",
        default_value_t = SamplerParams::default().top_k,
        allow_negative_numbers = true,
        env = "LLAMA_ARG_TOP_K"
    )]
    pub top_k: i32,
    /// Keep the tokens whose surprise is nearest to the expected one, up to this probability; 1 keeps all
    #[arg(
        long,
        visible_alias = "typical-p",
        value_name = "P",
        default_value_t = SamplerParams::default().typical_p
    )]
    pub typical: f32,
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
    /// How many of the reply's last tokens count as repeated; 0 is none, -1 as many as the model was trained with
    #[arg(
        long,
        value_name = "N",
        default_value_t = SamplerParams::default().repeat_last_n,
        allow_negative_numbers = true
    )]
    pub repeat_last_n: i32,
    /// Lowers a token's logit by this for each of its repetitions
    #[arg(
        long,
        value_name = "X",
        default_value_t = SamplerParams::default().frequency_penalty,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Lowers the logit of every token that was there before by this
    #[arg(
        long,
        value_name = "X",
        default_value_t = SamplerParams::default().presence_penalty,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Penalty on tokens that go on repeating a sequence (DRY); 0 is none
    #[arg(long, value_name = "X", default_value_t = SamplerParams::default().dry_multiplier)]
    pub dry_multiplier: f32,
    /// By what that penalty grows with each token of the sequence
    #[arg(long, value_name = "X", default_value_t = SamplerParams::default().dry_base)]
    pub dry_base: f32,
    /// Sequences up to this length may be repeated
    #[arg(long, value_name = "N", default_value_t = SamplerParams::default().dry_allowed_length)]
    pub dry_allowed_length: i32,
    /// How many of the reply's last tokens are searched for the sequence; as --repeat-last-n
    #[arg(
        long,
        value_name = "N",
        default_value_t = SamplerParams::default().dry_penalty_last_n,
        allow_negative_numbers = true
    )]
    pub dry_penalty_last_n: i32,
    /// A text that no repeated sequence reaches across; may be given several times, none is no text [default: \n : " *]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub dry_sequence_breaker: Vec<String>,
    /// How often the likeliest tokens are left out, all but the least likely above the threshold (XTC); 0 is never
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().xtc_probability)]
    pub xtc_probability: f32,
    /// That threshold; above 0.5 nothing is left out
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().xtc_threshold)]
    pub xtc_threshold: f32,
    /// Seed of the random numbers: the same seed gives the same text; -1 takes a new one each time
    #[arg(short, long, value_name = "SEED", default_value_t = -1, allow_negative_numbers = true)]
    pub seed: i64,
    /// A GBNF grammar that the reply follows
    #[arg(long, value_name = "GBNF")]
    pub grammar: Option<String>,
    /// A file with such a grammar
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    pub grammar_file: Option<PathBuf>,
    /// A JSON schema that the reply follows; {} is any JSON
    #[arg(short, long, value_name = "SCHEMA", conflicts_with_all = ["grammar", "grammar_file"])]
    pub json_schema: Option<String>,
    /// A file with such a schema [llama.cpp's -jf]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["grammar", "grammar_file", "json_schema"])]
    pub json_schema_file: Option<PathBuf>,
}

impl GenerationArgs {
    /// How replies are made.
    ///
    /// # Errors
    /// As [`GenerationArgs::sampler`], and for a system prompt that cannot be read.
    pub fn settings(&self) -> Result<Settings, Failure> {
        let system = match &self.system_prompt_file {
            Some(path) => Some(prompts::read_text(path)?),
            None => self.system_prompt.clone(),
        };
        Ok(Settings { sampler: self.sampler()?, limits: self.limits(), system })
    }

    /// # Errors
    /// For a seed that is none, for a file that cannot be read, and for a schema that is none.
    pub fn sampler(&self) -> Result<SamplerParams, Failure> {
        let mut params = SamplerParams::default();
        params.temperature = self.temp;
        params.top_k = self.top_k;
        params.top_p = self.top_p;
        params.min_p = self.min_p;
        params.repeat_penalty = self.repeat_penalty;
        params.repeat_last_n = self.repeat_last_n;
        params.typical_p = self.typical;
        params.frequency_penalty = self.frequency_penalty;
        params.presence_penalty = self.presence_penalty;
        params.dry_multiplier = self.dry_multiplier;
        params.dry_base = self.dry_base;
        params.dry_allowed_length = self.dry_allowed_length;
        params.dry_penalty_last_n = self.dry_penalty_last_n;
        if !self.dry_sequence_breaker.is_empty() {
            // A shell makes it hard to write a line break; llama.cpp takes these two as well.
            let written = |text: &String| text.replace("\\n", "\n").replace("\\t", "\t");
            let texts = self.dry_sequence_breaker.iter().filter(|text| *text != "none");
            params.dry_sequence_breakers = texts.map(written).collect();
        }
        params.xtc_probability = self.xtc_probability;
        params.xtc_threshold = self.xtc_threshold;
        params.seed = match self.seed {
            // llama.cpp's own constant for "random" is 2³²-1; both ways of writing it mean the same.
            -1 | 0xFFFF_FFFF => None,
            seed => Some(u32::try_from(seed).map_err(|_| {
                Failure::usage(format!("--seed is {seed}, but must be between 0 and 4294967294, or -1"))
            })?),
        };
        params.grammar = self.grammar()?;
        Ok(params)
    }

    fn grammar(&self) -> Result<Option<Grammar>, Failure> {
        let text = match &self.grammar_file {
            Some(path) => Some(prompts::read_text(path)?),
            None => self.grammar.clone(),
        };
        if let Some(text) = text {
            return Ok(Some(Grammar::gbnf(&text).map_err(offramp::Error::from)?));
        }
        let schema = match &self.json_schema_file {
            Some(path) => Some(prompts::read_text(path)?),
            None => self.json_schema.clone(),
        };
        let Some(schema) = schema else { return Ok(None) };
        let schema = serde_json::from_str(&schema)
            .map_err(|error| Failure::usage(format!("the JSON schema is no JSON ({error})")))?;
        Ok(Some(offramp::json_schema_grammar(&schema)?))
    }

    pub fn limits(&self) -> offramp::GenerateParams {
        let mut params = offramp::GenerateParams::default();
        params.max_tokens = usize::try_from(self.n_predict).unwrap_or(usize::MAX);
        params.min_tokens = self.min_tokens;
        params.stop = self.stop.clone();
        params.stop_token_ids = self.stop_token_ids.iter().copied().map(offramp::Token).collect();
        params.ignore_eos = self.ignore_eos;
        params
    }
}
