//! Counters for Prometheus, in its text format. Labels are names of this program alone, never a client's text, so that
//! their number is bounded.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use offramp::measure::Depths;
use offramp::{Generation, PromptReport};

/// Upper bounds of the histogram of times to the first token, in seconds.
const BOUNDS: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// What the server has done since its start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests by route and status.
    requests: Mutex<std::collections::BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    prompt_tokens_reused: AtomicU64,
    cancelled: AtomicU64,
    depths: Mutex<Depths>,
    drafted: AtomicU64,
    drafted_right: AtomicU64,
    /// Times in microseconds.
    waiting: AtomicU64,
    prompt: AtomicU64,
    decode: AtomicU64,
    first_token: Mutex<([u64; BOUNDS.len()], u64, f64)>,
}

impl Metrics {
    /// A request to `route` was answered with `status`.
    pub fn answered(&self, route: &'static str, status: u16) {
        if let Ok(mut requests) = self.requests.lock() {
            *requests.entry((route, status)).or_default() += 1;
        }
    }

    /// `n` requests were cancelled before anything was computed for them.
    pub fn left(&self, n: u64) {
        self.cancelled.fetch_add(n, Ordering::Relaxed);
    }

    pub fn waited(&self, time: Duration) {
        add_time(&self.waiting, time);
    }

    pub fn prompted(&self, report: &PromptReport) {
        self.prompt_tokens.fetch_add(report.decoded as u64, Ordering::Relaxed);
        self.prompt_tokens_reused.fetch_add(report.reused as u64, Ordering::Relaxed);
        self.cancelled.fetch_add(report.cancelled.into(), Ordering::Relaxed);
        add_time(&self.prompt, report.elapsed);
    }

    pub fn first_token(&self, time: Duration) {
        if let Ok(mut histogram) = self.first_token.lock() {
            let seconds = time.as_secs_f64();
            for (count, bound) in histogram.0.iter_mut().zip(BOUNDS) {
                *count += u64::from(seconds <= bound);
            }
            histogram.1 += 1;
            histogram.2 += seconds;
        }
    }

    pub fn generated(&self, generation: &Generation) {
        let cancelled = generation.stop_reason == offramp::StopReason::Cancelled;
        self.cancelled.fetch_add(cancelled.into(), Ordering::Relaxed);
        add_time(&self.decode, generation.elapsed);
        self.drafted.fetch_add(generation.n_drafted as u64, Ordering::Relaxed);
        self.drafted_right.fetch_add(generation.n_right as u64, Ordering::Relaxed);
        let made = Depths::of(&generation.exits);
        if let Ok(mut depths) = self.depths.lock() {
            depths.add(&made);
        }
    }

    /// In Prometheus' text format, with what is going on now, of a model of `n_layer` blocks.
    pub fn text(&self, n_layer: u32, waiting: usize, busy: usize) -> String {
        let mut out = String::new();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = |counter: &AtomicU64| count(counter) as f64 / 1e6;
        let depths = self.depths.lock().map(|depths| depths.clone()).unwrap_or_default();

        head(&mut out, "requests_total", "counter", "Requests that were answered");
        for ((route, status), n) in self.requests.lock().map(|requests| requests.clone()).unwrap_or_default() {
            let _ = writeln!(out, "offramp_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        head(&mut out, "generated_tokens_total", "counter", "Generated tokens by where they left the model");
        for (exit, n) in depths.rows() {
            let _ = writeln!(out, "offramp_generated_tokens_total{{exit=\"{exit}\"}} {n}");
        }
        for (name, kind, help, value) in [
            (
                "generated_blocks_total",
                "counter",
                "Blocks that generated tokens ran through",
                depths.n_blocks(n_layer) as f64,
            ),
            ("model_blocks", "gauge", "Blocks of the model", f64::from(n_layer)),
            ("prompt_tokens_total", "counter", "Prompt tokens that were decoded", count(&self.prompt_tokens) as f64),
            (
                "prompt_tokens_reused_total",
                "counter",
                "Prompt tokens whose K/V was there already",
                count(&self.prompt_tokens_reused) as f64,
            ),
            ("drafted_tokens_total", "counter", "Tokens that were drafted", count(&self.drafted) as f64),
            (
                "accepted_tokens_total",
                "counter",
                "Drafted tokens that the full model agreed with",
                count(&self.drafted_right) as f64,
            ),
            ("cancelled_total", "counter", "Replies that nobody waited for any more", count(&self.cancelled) as f64),
            ("waiting_seconds_total", "counter", "Time that requests waited for a slot", seconds(&self.waiting)),
            ("prompt_seconds_total", "counter", "Time spent on prompts", seconds(&self.prompt)),
            ("decode_seconds_total", "counter", "Time spent on generated tokens", seconds(&self.decode)),
            ("requests_waiting", "gauge", "Requests that wait for a slot", waiting as f64),
            ("slots_busy", "gauge", "Slots that work", busy as f64),
        ] {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "offramp_{name} {value}");
        }
        head(&mut out, "first_token_seconds", "histogram", "Time from a request's arrival to its first token");
        if let Ok(histogram) = self.first_token.lock() {
            let (counts, n, sum) = *histogram;
            for (bound, count) in BOUNDS.iter().zip(counts) {
                let _ = writeln!(out, "offramp_first_token_seconds_bucket{{le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "offramp_first_token_seconds_bucket{{le=\"+Inf\"}} {n}");
            let _ = writeln!(out, "offramp_first_token_seconds_sum {sum}\nofframp_first_token_seconds_count {n}");
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP offramp_{name} {help}.\n# TYPE offramp_{name} {kind}");
}

fn add_time(counter: &AtomicU64, time: Duration) {
    counter.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_help_a_type_and_a_number() {
        let metrics = Metrics::default();
        metrics.answered("/health", 200);
        metrics.first_token(Duration::from_millis(50));
        let text = metrics.text(30, 3, 1);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        for sample in samples {
            let (name, value) = sample.rsplit_once(' ').unwrap();
            assert!(name.starts_with("offramp_") && value.parse::<f64>().is_ok(), "{sample}");
            let family = name.split('{').next().unwrap();
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end)).unwrap_or(family);
            assert!(
                text.contains(&format!("# HELP {family} ")) && text.contains(&format!("# TYPE {family} ")),
                "{sample}"
            );
        }
        assert!(text.contains("offramp_requests_total{route=\"/health\",status=\"200\"} 1"));
        assert!(text.contains("offramp_first_token_seconds_bucket{le=\"0.03\"} 0"));
        assert!(text.contains("offramp_first_token_seconds_bucket{le=\"0.1\"} 1"));
        assert!(text.contains("offramp_requests_waiting 3"));
    }
}
