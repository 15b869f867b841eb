//! Progress on stderr. Bars are drawn on a terminal only: a log file gets a line every half minute, and nothing spins in it.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use offramp::beat::{self, Unit};

/// A prompt that is read faster than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often a bar is drawn again, so that its clock runs while a long step is computed.
const TICK: Duration = Duration::from_millis(500);

/// Loading a model, in percent.
pub fn loading() -> ProgressBar {
    // indicatif hides a bar of this target when stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
    bar.set_style(style("loading {wide_bar} {percent} %"));
    told("loading", Unit::Count("%"), &bar);
    bar
}

/// Hashing a model, in bytes.
pub fn hashing() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("hashing {wide_bar} {bytes}/{total_bytes}, once for this file"));
    told("hashing", Unit::Bytes, &bar);
    bar
}

/// Work whose steps have lines of their own, so that a terminal gets no bar.
pub fn counting(what: &str, unit: &'static str, total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden());
    told(what, Unit::Count(unit), &bar);
    bar
}

/// Reading all of a file, in bytes.
#[cfg(feature = "hf")]
pub fn checking(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style("checking {wide_bar} {bytes}/{total_bytes}"));
    told("checking", Unit::Bytes, &bar);
    bar
}

/// Lines about a bar's work, where bars are not drawn, until it is finished.
fn told(what: &str, unit: Unit, bar: &ProgressBar) {
    if io::stderr().is_terminal() {
        return;
    }
    let bar = bar.clone();
    let read = move || (!bar.is_finished()).then(|| (bar.position(), bar.length().unwrap_or(0)));
    beat::watch("offramp", what, unit, read);
}

/// The download of a file from the hub.
#[cfg(feature = "hf")]
pub struct Download(ProgressBar);

#[cfg(feature = "hf")]
pub fn download() -> Download {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"));
    Download(bar)
}

#[cfg(feature = "hf")]
impl hf_hub::api::Progress for Download {
    fn init(&mut self, size: usize, filename: &str) {
        self.0.set_length(size as u64);
        let name = crate::output::tamed(filename).into_owned();
        told(&format!("fetching {name}"), Unit::Bytes, &self.0);
        self.0.set_message(name);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The reading of a prompt; the bar goes when this does.
pub struct Reading {
    bar: ProgressBar,
    over: Option<Sender<()>>,
    watcher: Option<JoinHandle<()>>,
}

/// Reading a prompt of `total` tokens. How long that takes is not known beforehand: on a small machine a short prompt may
/// take a minute, and its first step most of that. So the bar comes with time, whatever the length.
pub fn reading(total: usize) -> Reading {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden());
    bar.set_style(style("reading {wide_bar} {pos}/{len} tokens, {elapsed}; Ctrl-C stops"));
    if !io::stderr().is_terminal() {
        told("reading", Unit::Count("tokens"), &bar);
        return Reading { bar, over: None, watcher: None };
    }
    let (over, is_over) = mpsc::channel();
    let shown = bar.clone();
    let watcher = std::thread::spawn(move || {
        if is_over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            shown.set_draw_target(ProgressDrawTarget::stderr());
            shown.enable_steady_tick(TICK);
        }
    });
    Reading { bar, over: Some(over), watcher: Some(watcher) }
}

impl Reading {
    /// `done` tokens have been read.
    pub fn advance(&self, done: usize) {
        self.bar.set_position(done as u64);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(watcher) = self.watcher.take() {
            // It cannot panic, and if it did the bar would be all that is lost.
            let _ = watcher.join();
        }
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
