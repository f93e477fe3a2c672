//! The ceilings of this machine: raw figures that no broker on it can beat.
//!
//! [`run`] takes a directory on the device in question, makes a scratch directory in it, measures one
//! short bounded case after the other, and removes what it made. Each case runs on a thread of its own,
//! pinned to the last core. Cases are data ([`storage`], [`host`], [`wake`], [`sketch`]); a new question is a new row.
//!
//! Latency is from the submission of an operation to the moment at which its data is durable (where the
//! case has a sync), which may be the completion of a later flush.
//!
//! [`disk`] asks narrower questions of the same device: those whose answers decide how a broker writes.

pub mod disk;
mod host;
mod sketch;
mod storage;
mod wake;

use hdrhistogram::Histogram;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long and what to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The length of one case, seconds; writes into fresh extents end earlier when 1 GiB is used up.
    pub seconds: f64,
    /// Only cases whose name contains this.
    pub only: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: 1.0, only: None }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Ceiling {
    /// What was done: pattern, size, depth.
    pub name: String,
    /// How much of it.
    pub value: f64,
    /// The unit of `value`.
    pub unit: Unit,
    /// Median latency of one operation, microseconds.
    pub p50_us: f64,
    /// The latency that one operation in a hundred exceeds, microseconds.
    pub p99_us: f64,
}

/// What a ceiling counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Unit {
    /// 10^6 bytes per second.
    #[serde(rename = "MB/s")]
    MbPerSecond,
    /// Operations per second.
    #[serde(rename = "1/s")]
    PerSecond,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Unit::MbPerSecond => "MB/s",
            Unit::PerSecond => "1/s",
        })
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum CeilingError {
    /// The scratch directory, its files, or the ring.
    #[error("{what} in {}: {error}", directory.display())]
    Io {
        /// What was being done.
        what: String,
        /// Where.
        directory: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The file system has no `O_DIRECT`.
    #[error("{} has no O_DIRECT (tmpfs?): name a directory on the data device", directory.display())]
    NoDirectIo {
        /// Where.
        directory: PathBuf,
    },
}

/// Measures every case that `options` select, on the device of `directory` (which must exist).
/// Needs about 1.6 GiB there, freed again at the end.
pub fn run(directory: &Path, options: &Options) -> Result<Vec<Ceiling>, CeilingError> {
    let mut ceilings = Vec::new();
    run_each(directory, options, &mut |ceiling| ceilings.push(ceiling))?;
    Ok(ceilings)
}

/// As [`run`], giving each figure to `report` as soon as it is there.
pub fn run_each(
    directory: &Path,
    options: &Options,
    report: &mut dyn FnMut(Ceiling),
) -> Result<(), CeilingError> {
    let duration = Duration::from_secs_f64(options.seconds);
    let selected = |name: &str| options.only.as_ref().is_none_or(|part| name.contains(part));
    let fail = |what: &str, error: io::Error| {
        let directory = directory.to_owned();
        match error.raw_os_error() {
            Some(libc::EINVAL) => CeilingError::NoDirectIo { directory },
            _ => CeilingError::Io { what: what.to_owned(), directory, error },
        }
    };
    let scratch = tempfile::Builder::new()
        .prefix("ringlog-ceilings-")
        .tempdir_in(directory)
        .map_err(|error| fail("creating the scratch directory", error))?;
    for case in storage::cases().iter().filter(|case| selected(&case.name())) {
        let name = case.name();
        let sample = on_last_core(|| storage::measure(case, scratch.path(), duration));
        report(sample.map_err(|error| fail(&name, error))?.ceiling(name));
    }
    for case in host::CASES.iter().chain(&wake::CASES).filter(|case| selected(case.name)) {
        let sample = on_last_core(|| (case.measure)(duration));
        report(sample.map_err(|error| fail(case.name, error))?.ceiling(case.name.to_owned()));
    }
    for case in sketch::CASES.iter().filter(|case| selected(case.name)) {
        let sample = on_last_core(|| sketch::measure(case, scratch.path(), duration));
        report(sample.map_err(|error| fail(case.name, error))?.ceiling(case.name.to_owned()));
    }
    Ok(())
}

/// The names of all cases, in the order in which they run.
pub fn names() -> Vec<String> {
    let of_host = host::CASES.iter().chain(&wake::CASES).map(|case| case.name.to_owned());
    let of_sketch = sketch::CASES.iter().map(|case| case.name.to_owned());
    storage::cases().iter().map(storage::Case::name).chain(of_host).chain(of_sketch).collect()
}

/// `ceilings` as an aligned table with a heading, one line each.
pub fn table(ceilings: &[Ceiling]) -> String {
    let width = ceilings.iter().map(|ceiling| ceiling.name.len()).max().unwrap_or(0).max(7);
    let mut out =
        format!("{:width$} {:>10} {:<5} {:>10} {:>10}\n", "CEILING", "VALUE", "UNIT", "P50_US", "P99_US");
    for Ceiling { name, value, unit, p50_us, p99_us } in ceilings {
        let _ = writeln!(out, "{name:width$} {value:>10.0} {unit:<5} {p50_us:>10.1} {p99_us:>10.1}");
    }
    out
}

/// What one case collects while it runs.
struct Sample {
    latency_ns: Histogram<u64>,
    started: Instant,
    operations: u64,
    bytes: u64,
    elapsed: Duration,
}

impl Sample {
    fn start() -> Self {
        Self {
            // A minute is beyond any operation here; what is longer is recorded as a minute.
            latency_ns: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are valid"),
            started: Instant::now(),
            operations: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
        }
    }

    /// One operation of `bytes` that began at `since` is finished now.
    fn finished(&mut self, since: Instant, bytes: usize) {
        let now = Instant::now();
        self.latency_ns.saturating_record((now - since).as_nanos() as u64);
        self.operations += 1;
        self.bytes += bytes as u64;
        self.elapsed = now - self.started;
    }

    fn ceiling(&self, name: String) -> Ceiling {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        // Operations of no bytes are rounds: how many of them is the figure.
        let (amount, unit) = if self.bytes == 0 {
            (self.operations as f64, Unit::PerSecond)
        } else {
            (self.bytes as f64 / 1e6, Unit::MbPerSecond)
        };
        let quantile = |q| self.latency_ns.value_at_quantile(q) as f64 / 1e3;
        Ceiling { name, value: amount / seconds, unit, p50_us: quantile(0.5), p99_us: quantile(0.99) }
    }
}

/// Runs `work` on a thread pinned to the last core (or unpinned where that is not permitted).
fn on_last_core<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    on_core(core_count() - 1, work)
}

fn on_core<T: Send>(core: usize, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            pin(core);
            work()
        });
        thread.join().expect("a measurement does not panic")
    })
}

/// The cores that this process may use. Asked once, by a thread that is not pinned: a pinned one, and those that it
/// starts, would be told of their own core only.
fn cores() -> &'static [core_affinity::CoreId] {
    static CORES: OnceLock<Vec<core_affinity::CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// Pins the calling thread to the `core`-th core that this process may use, counted modulo their number.
fn pin(core: usize) {
    if let Some(at) = core.checked_rem(cores().len()) {
        core_affinity::set_for_current(cores()[at]);
    }
}

pub(crate) fn core_count() -> usize {
    cores().len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The build's output is on a real device where /tmp may be a tmpfs.
    pub(super) fn beside_this_test() -> PathBuf {
        std::env::current_exe().unwrap().parent().unwrap().to_owned()
    }

    #[test]
    fn a_thread_of_a_pinned_thread_gets_the_core_that_it_asks_for() {
        let mine = || core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect::<Vec<_>>();
        let all: Vec<usize> = cores().iter().map(|core| core.id).collect();
        let (last, first) = on_last_core(|| (mine(), on_core(0, mine)));
        assert_eq!((last, first), (vec![all[all.len() - 1]], vec![all[0]]));
    }

    #[test]
    fn the_table_is_aligned() {
        let row = |name: &str, value| Ceiling {
            name: name.into(),
            value,
            unit: Unit::MbPerSecond,
            p50_us: 1.0,
            p99_us: 2.5,
        };
        let table = table(&[row("a", 12.4), row("a longer name", 123456.0)]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
        assert!(lines[1].contains(" 12 MB/s"), "{table}");
    }

    #[test]
    fn selected_cases_run_and_leave_nothing_behind() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        for only in ["CRC-32C", "loopback TCP, 1 MiB", "round over 1 ", "acknowledge, 4 in flight"] {
            let options = Options { seconds: 0.02, only: Some(only.into()) };
            match run(directory.path(), &options) {
                Ok(ceilings) => {
                    assert_eq!(ceilings.len(), 1, "{only}");
                    assert!(ceilings[0].value > 0.0 && ceilings[0].p99_us >= ceilings[0].p50_us);
                }
                Err(CeilingError::NoDirectIo { .. }) => {}
                Err(error) => panic!("{only}: {error}"),
            }
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
