//! Lines about work that takes long, one every half minute, for where no bar can be drawn: a log file, a pipe, a service.
//! One thread tells all of a program; it says nothing while there is no work to tell of.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines, unless [`VARIABLE`] says otherwise.
const EVERY: Duration = Duration::from_secs(30);
/// The seconds between two lines, in the environment.
const VARIABLE: &str = "OFFRAMP_PROGRESS_SECONDS";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, told in MiB.
    Bytes,
    /// Things of this name; it may be empty.
    Count(&'static str),
}

/// How much of how much is done; the whole is 0 where it is not known.
type Read = Box<dyn Fn() -> Option<(u64, u64)> + Send>;

struct Work {
    what: String,
    unit: Unit,
    read: Read,
    since: Instant,
    /// What was done when it began.
    first: u64,
}

static WORK: Mutex<Option<Work>> = Mutex::new(None);
static TELLER: OnceLock<()> = OnceLock::new();

/// From now on a line on stderr tells every half minute of `what`, in the name of `program`, until other work takes its
/// place or `read` has nothing to say any more. `OFFRAMP_PROGRESS_SECONDS` sets another time than half a minute.
pub fn watch(program: &'static str, what: &str, unit: Unit, read: impl Fn() -> Option<(u64, u64)> + Send + 'static) {
    let first = read().map_or(0, |(done, _)| done);
    let work = Work { what: what.to_owned(), unit, read: Box::new(read), since: Instant::now(), first };
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    TELLER.get_or_init(|| {
        let every = interval(std::env::var(VARIABLE).ok().as_deref());
        // Without a thread there are no lines, and the work goes on.
        let _ = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(every);
                if let Some(line) = line() {
                    eprintln!("{program}: {line}");
                }
            }
        });
    });
}

fn interval(seconds: Option<&str>) -> Duration {
    let seconds = seconds.and_then(|text| text.parse::<f64>().ok()).filter(|seconds| (0.001..1e6).contains(seconds));
    seconds.map_or(EVERY, Duration::from_secs_f64)
}

/// What there is to tell now.
fn line() -> Option<String> {
    let mut work = WORK.lock().unwrap_or_else(PoisonError::into_inner);
    let told = work.as_ref().and_then(|work| Some(work.line((work.read)()?, work.since.elapsed())));
    if told.is_none() {
        *work = None;
    }
    told
}

impl Work {
    fn line(&self, (done, total): (u64, u64), elapsed: Duration) -> String {
        let what = &self.what;
        if total == 0 {
            return format!("{what}: {} so far", time(elapsed));
        }
        let done_of = match self.unit {
            Unit::Bytes => format!("{} of {} MiB", done >> 20, total >> 20),
            Unit::Count(unit) => format!("{done} of {total} {unit}").trim_end().to_owned(),
        };
        // What was done before it began says nothing about how fast it goes.
        let new = done.saturating_sub(self.first);
        let left = (new > 0 && done < total).then(|| elapsed.mul_f64(total.saturating_sub(done) as f64 / new as f64));
        match left {
            Some(left) => format!("{what}: {done_of} in {}, about {} left", time(elapsed), time(left)),
            None => format!("{what}: {done_of}, {} so far", time(elapsed)),
        }
    }
}

/// A time as people say it.
fn time(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6000 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(unit: Unit, first: u64) -> Work {
        Work { what: "training".to_owned(), unit, read: Box::new(|| None), since: Instant::now(), first }
    }

    #[test]
    fn a_line_has_the_step_what_is_done_and_the_time_left() {
        let minute = Duration::from_secs(60);
        let told = |unit, first, at| work(unit, first).line(at, minute);
        assert_eq!(told(Unit::Count("steps"), 0, (10, 40)), "training: 10 of 40 steps in 60 s, about 3 min left");
        assert_eq!(told(Unit::Count("steps"), 5, (10, 40)), "training: 10 of 40 steps in 60 s, about 6 min left");
        assert_eq!(told(Unit::Count(""), 0, (0, 40)), "training: 0 of 40, 60 s so far");
        assert_eq!(told(Unit::Bytes, 0, (3 << 20, 6 << 20)), "training: 3 of 6 MiB in 60 s, about 60 s left");
        assert_eq!(told(Unit::Count("steps"), 0, (40, 40)), "training: 40 of 40 steps, 60 s so far");
        assert_eq!(told(Unit::Bytes, 0, (7, 0)), "training: 60 s so far");
        assert_eq!(time(Duration::from_secs(9000)), "2.5 h");
    }

    #[test]
    fn the_time_between_lines_is_half_a_minute_unless_it_is_set() {
        assert_eq!([None, Some("x"), Some("0"), Some("-1"), Some("NaN")].map(interval), [EVERY; 5]);
        assert_eq!(interval(Some("0.5")), Duration::from_millis(500));
    }
}
