//! Seeds that every change must pass. More: `cargo sim -- --seeds N --from S`.

use sim::Fault;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn no_invariant_is_broken_in_200_seeds() {
    let mut acknowledged = 0;
    let mut faults = BTreeSet::new();
    let mut met = BTreeSet::new();
    for seed in 0..200 {
        let report = catch_unwind(AssertUnwindSafe(|| sim::run(seed, false, None)));
        let report =
            report.unwrap_or_else(|_| panic!("replay: cargo sim -- --seeds 1 --from {seed} --trace"));
        acknowledged += report.acknowledged;
        faults.extend(report.faults.into_keys());
        met.extend(report.met.into_keys());
    }
    assert!(acknowledged > 10_000, "a run that does nothing finds nothing: {acknowledged}");
    let absent: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| !faults.contains(fault)).collect();
    assert!(absent.is_empty(), "these did not happen: {absent:?}");
    let wanted = [
        "brokers removed",
        "changes of the voters",
        "cuts that took more",
        "cuts that waited for room",
        "fingerprints that could not be read",
        "openings that found no room",
        "pushes that could not be read",
        "tails lost unseen",
        "times partitions added",
        "topics deleted",
    ];
    let absent: Vec<&str> = wanted.into_iter().filter(|what| !met.contains(what)).collect();
    assert!(absent.is_empty(), "these did not happen: {absent:?}");
}

#[test]
fn a_seed_is_a_run() {
    let runs = [3, 3].map(|seed| sim::run(seed, false, None));
    let figures = runs.map(|run| (run.events, run.simulated_us, run.acknowledged, run.commands, run.faults));
    assert_eq!(figures[0], figures[1]);
}
