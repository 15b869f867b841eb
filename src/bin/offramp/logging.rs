//! The log: what llama.cpp and this program say of their work. Silent unless asked for; never on stdout.

use std::fs::File;
use std::io;
use std::sync::Mutex;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::args::LogArgs;
use crate::failure::Failure;

/// # Errors
/// When the log file cannot be written.
pub fn install(arguments: &LogArgs) -> Result<(), Failure> {
    let log = fmt().with_ansi(false).with_max_level(LevelFilter::DEBUG).without_time();
    match &arguments.log_file {
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| Failure::failed(format!("cannot write the log file {}: {error}", path.display())))?;
            log.with_writer(Mutex::new(file)).init();
        }
        None if arguments.verbose => log.with_writer(io::stderr).init(),
        None => {}
    }
    Ok(())
}
