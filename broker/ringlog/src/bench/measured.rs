//! One run on a thread of its own, and the report of it: what `bench` and `bench compare` have in common.
//!
//! Owner: the subcommand. An interruption ends the wait, so that the caller stops the broker and removes its
//! directory; the thread ends with the process.

use super::host;
use crate::failure::Failure;
use ::bench::driver::Driver;
use ::bench::report::{Report, Surroundings};
use ::bench::run::{RunError, RunResult};
use ::bench::search::SearchReport;
use ::bench::usage::Usage;
use ::bench::workload::Workload;
use ::perf::sampling::SystemCallCounter;
use std::time::{SystemTime, UNIX_EPOCH};
use tuning::HostFacts;

/// What surrounds a run and stands in its report.
pub struct Around {
    /// The broker's process, if it is on this host.
    pub broker_pid: Option<u32>,
    /// Cores of the load.
    pub client_cores: Vec<usize>,
    /// Cores of the broker.
    pub broker_cores: Vec<usize>,
    /// Whether the parts of acknowledgements were asked for.
    pub explain: bool,
    /// Whether system calls are counted, which slows both sides.
    pub system_calls: bool,
    /// Of the directory of the broker's data.
    pub facts: Option<HostFacts>,
}

/// What a run came to: what was run in the end, the search for its rate if there was one, and the figures.
pub type Outcome = (Workload, Option<SearchReport>, RunResult);

/// Runs and reports.
pub async fn measured(
    driver: Box<dyn Driver>,
    around: Around,
    run: impl FnOnce(&dyn Driver) -> Result<Outcome, RunError> + Send + 'static,
) -> Result<Report, Failure> {
    let running = tokio::task::spawn_blocking(move || {
        let usage = || (around.broker_pid.and_then(Usage::of), Usage::of(std::process::id()));
        let counter = |pid| around.system_calls.then(|| SystemCallCounter::total_if_allowed(pid)).flatten();
        let counters = (around.broker_pid.and_then(counter), counter(std::process::id()));
        if around.system_calls && counters.1.is_none() {
            eprintln!(
                "warning: system calls are not counted: it takes perf, and the right to read the tracepoint"
            );
        }
        let before = usage();
        let (workload, search, result) = run(&*driver)?;
        let after = usage();
        let used = |after: Option<Usage>, before: Option<Usage>, counter: Option<SystemCallCounter>| {
            let counted = counter.and_then(|counter| counter.stop().ok()).map(|calls| calls.total);
            Some(Usage { system_calls: counted, ..after?.since(&before?) })
        };
        let surroundings = Surroundings {
            client_cores: around.client_cores,
            broker_cores: around.broker_cores,
            explain: around.explain,
            host: host::report(around.facts.as_ref()),
            broker_usage: used(after.0, before.0, counters.0),
            client_usage: used(after.1, before.1, counters.1),
        };
        let ended_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        Ok(Report { search, ..Report::new(&*driver, &workload, result, surroundings, ended_unix_s) })
    });
    tokio::select! {
        report = running => match report {
            Ok(report) => report.map_err(|error: RunError| Failure::operation(error.to_string())),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        },
        () = crate::interrupt::interrupted() => Err(Failure::operation("interrupted; the broker is stopped")),
    }
}
