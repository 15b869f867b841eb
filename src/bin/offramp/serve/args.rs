//! Arguments of `offramp serve`, and what of them is refused before a model is loaded.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::access::Access;
use super::reuse::Reuse;
use crate::failure::Failure;
use crate::model_args::ModelArgs;
use crate::prompts;

/// Arguments of `offramp serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; beyond this machine an API key is asked for
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", env = "LLAMA_ARG_HOST")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one, which stderr names
    #[arg(long, value_name = "PORT", default_value_t = 8080, env = "LLAMA_ARG_PORT")]
    pub port: u16,
    /// Replies made at once, each in a context of its own [llama.cpp's -np]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2,
        env = "LLAMA_ARG_N_PARALLEL",
        value_parser = clap::value_parser!(u32).range(1..=64)
    )]
    pub parallel: u32,
    /// Requests that may wait; further ones are answered with 503
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub queue: u32,
    /// What of the K/V of earlier requests is used again: exact, all or none
    #[arg(long, value_name = "WHAT", default_value_t = Reuse::Exact, env = "OFFRAMP_CACHE_REUSE")]
    pub cache_reuse: Reuse,
    /// Seconds that a client may take to send a request, and to read what it is sent
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout: u32,
    /// Most tokens of a reply, whatever a request asks for; -1 is as many as fit
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
    /// Name of the model in answers [default: the file's name]
    #[arg(short, long, value_name = "NAME", env = "LLAMA_ARG_ALIAS")]
    pub alias: Option<String>,
    /// A key that clients must send; may be given several times. Other users of this machine see arguments: prefer a file
    #[arg(long, value_name = "KEY", env = "LLAMA_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// A file with one key a line
    #[arg(long, value_name = "FILE", env = "LLAMA_ARG_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Listen beyond this machine without a key
    #[arg(long, conflicts_with_all = ["api_key", "api_key_file"])]
    pub no_api_key: bool,
    /// A name that this machine is reached by, beside localhost and its addresses; may be given several times
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// A web page's origin, such as https://example.org, that may use this server; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
    #[command(flatten)]
    pub model: ModelArgs,
}

impl ServeArgs {
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// Who may use the server.
    ///
    /// # Errors
    /// For a key file that cannot be read or has no key, for an empty key, and for an address beyond this machine without
    /// a key.
    pub fn access(&self) -> Result<Access, Failure> {
        let mut keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let text = prompts::read_text(path)?;
            let before = keys.len();
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            if keys.len() == before {
                return Err(Failure::failed(format!("{} has no key; one a line is expected", path.display())));
            }
        }
        if keys.iter().any(String::is_empty) {
            return Err(Failure::usage("--api-key is empty; give a key, or leave the flag out"));
        }
        if keys.is_empty() && !self.no_api_key && !self.host.is_loopback() {
            return Err(Failure::usage(format!(
                "--host {} can be reached from other machines: give --api-key-file FILE, or --no-api-key if everybody may use it",
                self.host
            )));
        }
        Ok(Access::new(&keys, &self.allow_host, &self.allow_origin))
    }
}
