//! Runs a workload again and again, at the rates that a search asks for.
//!
//! Owner: the caller of [`find_rate`]. Every trial is a whole run with a warm-up of its own, against the same
//! broker and the same topics: deleting gigabytes between two trials would be measured by the second. Invariant: what is returned in full is the run at the highest rate that held;
//! where none held, the one at the lowest rate.

use super::{Progress, RunError, RunOptions, RunResult, Topics, with_topics};
use crate::driver::Driver;
use crate::search::{Next, RateSearch, SearchLimits, SearchReport, Trial, Verdict};
use crate::stamp::now_ns;
use crate::workload::Workload;
use std::time::Duration;

/// A producer that is later than this has shown that the rate is too high.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);
/// A trial that is over its rate leaves records on their way; nobody waits long for them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The search, and the run that it is about.
#[derive(Clone, Debug)]
pub struct FoundRate {
    /// Every trial.
    pub search: SearchReport,
    /// The workload at the rate of `result`.
    pub workload: Workload,
    /// The run at the highest rate that held, or at the lowest if none did.
    pub result: RunResult,
}

/// Looks for the highest rate of `workload` within `limits`.
///
/// # Errors
/// The first trial that could not be run at all.
pub fn find_rate(
    driver: &dyn Driver,
    workload: &Workload,
    limits: SearchLimits,
    options: &RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<FoundRate, RunError> {
    let options = RunOptions {
        // A target that is itself long must not be cut off.
        give_up_after: Some(GIVE_UP_AFTER.max(Duration::from_secs_f64(limits.p99_us_max * 2e-6))),
        drain_timeout: options.drain_timeout.min(DRAIN_TIMEOUT),
        ..options.clone()
    };
    progress(Progress::default());
    with_topics(driver, workload, |topics| search(topics, workload, limits, &options, progress))
}

fn search(
    topics: &mut Topics<'_>,
    workload: &Workload,
    limits: SearchLimits,
    options: &RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<FoundRate, RunError> {
    let began_ns = now_ns();
    let mut search = RateSearch::new(limits);
    let mut best: Option<(Workload, RunResult)> = None;
    loop {
        let records_s = match search.next((now_ns() - began_ns) as f64 / 1e9) {
            Next::Try(records_s) => records_s,
            Next::End(ended) => {
                let search = search.finish(ended);
                // The limits allow at least one trial, unless they allow none.
                let (workload, result) = best.ok_or(RunError::NoTrial)?;
                return Ok(FoundRate { search, workload, result });
            }
        };
        let step = search.steps().len() + 1;
        let trial = Workload { producer_rate: records_s, find_rate_for_p99_ms: None, ..workload.clone() };
        let result = topics.run(&trial, options, &mut |now| {
            progress(Progress { step: Some((step, records_s)), ..now });
        })?;
        let held_before = search.has_held();
        let judged = search.tried(measured(records_s, &result));
        let is_best = match judged.verdict {
            Verdict::Held => {
                best.as_ref().is_none_or(|(best, _)| !held_before || records_s > best.producer_rate)
            }
            _ => !held_before && best.as_ref().is_none_or(|(best, _)| records_s < best.producer_rate),
        };
        if is_best {
            best = Some((trial, result));
        }
    }
}

fn measured(records_s: f64, result: &RunResult) -> Trial {
    let recording = &result.recording;
    Trial {
        records_s,
        achieved_records_s: recording.acknowledged as f64 / (result.window_s.1 - result.window_s.0),
        p99_us: recording.acknowledge_ns.value_at_quantile(0.99) as f64 / 1e3,
        lost: recording.failed + recording.abandoned,
    }
}
