//! How long the parts of the work took.

use std::time::{Duration, Instant};

/// Times of parts, one after another.
pub(super) struct Clock {
    last: Instant,
    pub(super) laps: Vec<(&'static str, Duration)>,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { last: Instant::now(), laps: Vec::new() }
    }
}

impl Clock {
    pub(super) fn lap(&mut self, what: &'static str) {
        let now = Instant::now();
        self.laps.push((what, now - self.last));
        self.last = now;
    }
}
