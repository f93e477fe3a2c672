//! Idempotent producers in virtual time: clients with five batches in flight, a network that loses, delays and keeps
//! what was sent on broken connections, a broker that crashes and comes back from its log and a summary.
//!
//! | file | is |
//! |---|---|
//! | `client` | the rules by which a client gives sequences, sends again, gives up |
//! | `broker` | the real producer table over a log with a durable prefix; crashes |
//! | `world` | the network, the dice, and the judge |
//!
//! Judged at the end of every seed: each record is in the log at most once, each acknowledged one is there and at
//! the offset that was told, records of one client are in the order of their sending, nothing is given up before its
//! time, and everything ends. Mutants,
//! each without one rule, must be found out. Prints one line, past the harness's capture; `RINGLOG_PRODUCER_SEEDS`
//! sets how many seeds are run, `RINGLOG_PRODUCER_SEED` runs one alone.

#[path = "producers/mod.rs"]
mod producers;

use producers::Mutant;
use producers::world::{Outcome, run};
use std::io::Write;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Lines appear in a plain `cargo test` too: written past the capture of the harness.
fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn producers_in_a_bad_world() {
    let seeds = match number("RINGLOG_PRODUCER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("RINGLOG_PRODUCER_SEEDS").unwrap_or(2_000),
    };
    let count = seeds.end - seeds.start;
    let mut total = Outcome::default();
    for seed in seeds {
        let outcome = run(seed, Mutant::None);
        for violation in &outcome.violations {
            print(&format!("RINGLOG_PRODUCER_SEED={seed}: {violation}"));
        }
        total.add(outcome);
    }
    print(&format!("producer simulation: {count} seeds, {total}"));
    assert!(total.violations.is_empty(), "{} violations", total.violations.len());
    if count >= 100 {
        for (what, happened) in total.events() {
            assert!(happened > 0, "in {count} seeds there was no {what}");
        }
    }
}

#[test]
fn a_missing_rule_is_found_out() {
    const SEEDS_MAX: u64 = 3_000;
    let mut lines = Vec::new();
    let mut alive = Vec::new();
    for mutant in Mutant::ALL {
        let killed = (1..=SEEDS_MAX).find(|seed| !run(*seed, mutant).violations.is_empty());
        match killed {
            Some(seed) => lines.push(format!("{mutant:?} {seed}")),
            None => alive.push(mutant),
        }
    }
    let (killed, all) = (lines.len(), Mutant::ALL.len());
    print(&format!("producer mutants: {killed} of {all} killed, at seed: {}", lines.join(", ")));
    assert!(alive.is_empty(), "not noticed in {SEEDS_MAX} seeds: {alive:?}");
}
