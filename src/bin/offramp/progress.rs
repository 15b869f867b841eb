//! Progress bars on stderr. Drawn on a terminal only: a log file gets no bar, and nothing spins in it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Loading a model, in percent.
pub fn loading() -> ProgressBar {
    bar(100, "loading {wide_bar} {percent} %")
}

/// Reading a prompt of `total` tokens. Short ones are read before a bar could be seen.
pub fn reading(total: usize) -> ProgressBar {
    const WORTH_SHOWING: usize = 256;
    if total < WORTH_SHOWING {
        return ProgressBar::hidden();
    }
    bar(total as u64, "reading {wide_bar} {pos}/{len} tokens")
}

fn bar(total: u64, template: &str) -> ProgressBar {
    // indicatif hides a bar of this target when stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
