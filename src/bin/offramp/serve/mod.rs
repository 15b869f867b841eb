//! `offramp serve`: an HTTP server with OpenAI's interface, for one model.
//!
//! It listens at once and answers 503 until the model is loaded. Models run on threads of their own (`engine`), never on
//! those that serve connections (`listen`). On this machine alone unless asked otherwise; `http` says what stands before
//! every request. It refuses what it cannot do as asked, with the reason, rather than do something else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;

mod access;
mod answer;
mod app;
mod args;
mod engine;
mod failure;
mod fields;
mod http;
mod listen;
mod messages;
mod metrics;
mod offered;
mod page;
mod parts;
mod request;
mod reuse;
mod sampling;
mod slots;
mod stream;
mod timed;
mod tools;

pub use args::ServeArgs;

use crate::failure::Failure;
use crate::interrupt;
use app::{App, Ready};
use engine::{Engine, Size};
use failure::ApiError;
use metrics::Metrics;

/// How long the word of SIGTERM may come after that of Ctrl-C.
const LATER: Duration = Duration::from_millis(100);
/// Threads that render templates and tokenize.
const BLOCKING_THREADS: usize = 8;

/// # Errors
/// When the address is taken or the model does not load, and [`Failure::Interrupted`] after Ctrl-C; SIGTERM is a good end.
pub fn serve(arguments: &ServeArgs) -> Result<(), Failure> {
    let access = arguments.access()?;
    arguments.model.check_modes()?;
    if !access.needs_key() && !arguments.host.is_loopback() {
        eprintln!("offramp: everybody who reaches {} may use this server", arguments.host);
    }
    let (stop, stopped) = watch::channel(false);
    let stop = Arc::new(stop);
    let interrupted = Arc::clone(&stop);
    interrupt::install(move || {
        interrupted.send_replace(true);
    })?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the server's threads: {error}")))?;
    let listener = runtime.block_on(listen::bind(arguments.address()))?;
    let address = listener.local_addr().map_err(Failure::failed)?;
    let limit = Duration::from_secs(arguments.timeout.into());
    let metrics = Arc::new(Metrics::default());
    let app = Arc::new(App::new(access, Arc::clone(&metrics), limit));
    let serving = runtime.spawn(listen::serve(listener, http::router(Arc::clone(&app)), limit, stopped.clone()));
    let terminated = runtime.spawn(stop_when_terminated(Arc::clone(&stop)));

    app.set_ready(load(arguments, metrics)?);
    let ready = app.ready().map_err(|_| Failure::failed("the model is not there"))?;
    if !ready.has_template() {
        eprintln!("offramp: this model has no chat template; /v1/completions goes on from a text");
    }
    eprintln!(
        "offramp: listening on http://{address}, {} at once; open it in a browser to chat, Ctrl-C stops",
        ready.engine.n_slots
    );

    let mut stopped = stopped;
    runtime.block_on(async {
        // The sender lives as long as this function.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    });
    eprintln!("offramp: stopping; Ctrl-C again ends replies under way");
    ready.engine.close();
    // A panic there has been told already.
    let _ = runtime.block_on(serving);
    // Where Ctrl-C is caught together with SIGTERM, the latter's own word may come a little later.
    let terminated = runtime.block_on(async { tokio::time::timeout(LATER, terminated).await });
    // What still runs is dropped, and so cancelled.
    runtime.shutdown_background();
    ready.engine.join();
    if matches!(terminated, Ok(Ok(true))) { Ok(()) } else { Err(Failure::Interrupted) }
}

fn load(arguments: &ServeArgs, metrics: Arc<Metrics>) -> Result<Ready, Failure> {
    let model = arguments.model.load()?;
    let params = arguments.model.session_params(model.info().n_ctx_train);
    let exits = arguments.model.modes().told_briefly(&model);
    eprintln!("offramp: {}, a context of {} tokens each, {exits}", name_of(&model.info().path), params.n_ctx);
    let size = Size { n_slots: arguments.parallel as usize, max_queue: arguments.queue as usize };
    let engine = Engine::start(&model, params, size, arguments.cache_reuse, metrics)?;
    let name = arguments.alias.clone().unwrap_or_else(|| name_of(&model.info().path));
    Ready::new(engine, name, usize::try_from(arguments.n_predict).unwrap_or(usize::MAX))
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Stops the server at SIGTERM, as service managers send it, and says so.
async fn stop_when_terminated(stop: Arc<watch::Sender<bool>>) -> bool {
    #[cfg(unix)]
    if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        && signal.recv().await.is_some()
    {
        stop.send_replace(true);
        return true;
    }
    #[cfg(not(unix))]
    drop(stop);
    false
}

/// What a client is told of an error of the library.
fn api_error(error: &offramp::Error) -> ApiError {
    match error {
        offramp::Error::InvalidValue { name, .. } => ApiError::invalid(name, error.to_string()),
        offramp::Error::Grammar(_) => ApiError::invalid("response_format", error.to_string()),
        offramp::Error::ContextLengthExceeded { prompt, n_ctx } => ApiError::context_length_exceeded(*prompt, *n_ctx),
        offramp::Error::Cancelled => ApiError::stopping(),
        _ => ApiError::internal(),
    }
}
