//! Seeds that every change must pass. More: `cargo sim -- --seeds N --from S`.

use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn no_invariant_is_broken_in_200_seeds() {
    let mut acknowledged = 0;
    for seed in 0..200 {
        let report = catch_unwind(AssertUnwindSafe(|| sim::run(seed, false, None)));
        let report =
            report.unwrap_or_else(|_| panic!("replay: cargo sim -- --seeds 1 --from {seed} --trace"));
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 10_000, "a run that does nothing finds nothing: {acknowledged}");
}

#[test]
fn a_seed_is_a_run() {
    let runs = [3, 3].map(|seed| sim::run(seed, false, None));
    let figures = runs.map(|run| (run.events, run.simulated_us, run.acknowledged, run.commands, run.faults));
    assert_eq!(figures[0], figures[1]);
}
