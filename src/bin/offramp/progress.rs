//! Progress bars on stderr. Drawn on a terminal only: a log file gets no bar, and nothing spins in it.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A prompt that is read faster than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often a bar is drawn again, so that its clock runs while a long step is computed.
const TICK: Duration = Duration::from_millis(500);

/// Loading a model, in percent.
pub fn loading() -> ProgressBar {
    // indicatif hides a bar of this target when stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
    bar.set_style(style("loading {wide_bar} {percent} %"));
    bar
}

/// Hashing a model, in bytes.
pub fn hashing() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("hashing {wide_bar} {bytes}/{total_bytes}, once for this file"));
    bar
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
