//! What runs under faults have shown: how long nothing was acknowledged, by fault, and what was judged.
//!
//! Owner: one test. It is printed when the test ends, however it does: what was measured until then is not lost. Rows are
//! those of a Markdown table, as docs/TESTING.md has it.

use crate::history::checker::Verdict;
use crate::hosts::Fault;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// See the [module](self).
pub struct Silences {
    brokers: u8,
    /// By plan and fault.
    times: BTreeMap<(&'static str, Fault), Vec<Duration>>,
    runs: u64,
    acknowledged: usize,
    operations: u64,
    read_again: u64,
    anomalies: usize,
}

impl Silences {
    /// Of runs of so many brokers.
    pub fn of(brokers: u8) -> Self {
        let times = BTreeMap::new();
        Self { brokers, times, runs: 0, acknowledged: 0, operations: 0, read_again: 0, anomalies: 0 }
    }

    /// Nothing was acknowledged for so long under a fault of a plan.
    pub fn add(&mut self, plan: &'static str, fault: Fault, silence: Duration) {
        self.times.entry((plan, fault)).or_default().push(silence);
    }

    /// A run has ended.
    pub fn judged(&mut self, acknowledged: usize, verdict: &Verdict) {
        self.runs += 1;
        self.acknowledged += acknowledged;
        self.operations += verdict.operations as u64;
        self.read_again += verdict.read_again as u64;
        self.anomalies += verdict.anomalies.len();
    }
}

/// The nearest rank: the smallest of `sorted` that so many per cent of them are not above.
fn percentile(sorted: &[Duration], per_cent: usize) -> Duration {
    sorted[(sorted.len() * per_cent).div_ceil(100).max(1) - 1]
}

impl fmt::Display for Silences {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { brokers, runs, acknowledged, operations, read_again, anomalies, .. } = self;
        let faults: usize = self.times.values().map(Vec::len).sum();
        writeln!(formatter, "brokers: {brokers}; nothing acknowledged for, ms, by fault:")?;
        writeln!(formatter, "| Fault | times | p50 | p99 | at most |\n|---|---|---|---|---|")?;
        for ((plan, fault), times) in &self.times {
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let [p50, p99, most] = [50, 99, 100].map(|share| percentile(&sorted, share).as_millis());
            writeln!(formatter, "| {plan}{fault} | {} | {p50} | {p99} | {most} |", sorted.len())?;
        }
        writeln!(
            formatter,
            "brokers: {brokers}, runs: {runs}, faults: {faults}, acknowledged: {acknowledged}, operations checked: \
             {operations}, read again: {read_again}, anomalies: {anomalies}"
        )
    }
}

impl Drop for Silences {
    fn drop(&mut self) {
        print!("{self}");
    }
}

#[test]
fn the_nearest_rank() {
    let times = |count: u64| (1..=count).map(Duration::from_millis).collect::<Vec<_>>();
    for (count, p50, p99) in [(1, 1, 1), (2, 1, 2), (3, 2, 3), (10, 5, 10), (100, 50, 99), (101, 51, 100)] {
        let sorted = times(count);
        let ranks = [50, 99, 100].map(|share| percentile(&sorted, share).as_millis() as u64);
        assert_eq!(ranks, [p50, p99, count], "of {count}");
    }
}

#[test]
fn a_table_has_a_row_for_each_fault_of_each_plan() {
    let mut silences = Silences::of(3);
    for ms in [30, 10, 20] {
        silences.add("", Fault::Pause, Duration::from_millis(ms));
    }
    silences.add("in turn: ", Fault::Restart, Duration::from_millis(7));
    let said = silences.to_string();
    for row in
        ["| SIGSTOP | 3 | 20 | 30 | 30 |", "| in turn: stop in order, start | 1 | 7 | 7 | 7 |", "faults: 4"]
    {
        assert!(said.contains(row), "'{row}' is not in:\n{said}");
    }
}
