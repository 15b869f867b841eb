//! Ctrl-C. The first one stops what is going on and keeps what there is; a second one while that is still stopping ends the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use offramp::CancelHandle;

use crate::failure::Failure;
use crate::terminal;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static RUNNING: OnceLock<Mutex<Option<CancelHandle>>> = OnceLock::new();

/// Exit code of an interrupted program: 128 and the number of SIGINT.
const INTERRUPTED: i32 = 130;

/// Catches Ctrl-C from here on. `when_idle` is called when it comes while nothing is being generated.
///
/// # Errors
/// When the system does not let us.
pub fn install(when_idle: impl Fn() + Send + 'static) -> Result<(), Failure> {
    let handler = move || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            leave();
        }
        match running().lock() {
            Ok(running) if running.is_some() => running.iter().for_each(CancelHandle::cancel),
            _ => when_idle(),
        }
    };
    ctrlc::set_handler(handler).map_err(|error| Failure::failed(format!("cannot catch Ctrl-C: {error}")))
}

/// Ends the program as one that was interrupted, with the terminal as it was.
pub fn leave() {
    terminal::restore();
    std::process::exit(INTERRUPTED);
}

/// True since Ctrl-C was pressed, until [`forget`].
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Lets the next Ctrl-C be a first one again.
pub fn forget() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// While this lives, Ctrl-C cancels a session.
pub struct Cancels(());

/// Ctrl-C cancels the session of `handle` as long as the result lives. One that came before counts too.
pub fn cancels(handle: &CancelHandle) -> Cancels {
    handle.reset();
    if let Ok(mut running) = running().lock() {
        *running = Some(handle.clone());
    }
    if is_requested() {
        handle.cancel();
    }
    Cancels(())
}

impl Drop for Cancels {
    fn drop(&mut self) {
        if let Ok(mut running) = running().lock()
            && let Some(handle) = running.take()
        {
            handle.reset();
        }
    }
}

fn running() -> &'static Mutex<Option<CancelHandle>> {
    RUNNING.get_or_init(|| Mutex::new(None))
}
