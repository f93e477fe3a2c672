//! One rule of compaction or retention is deleted at a time, and a simulation must notice: a rule whose absence nobody
//! notices is either not needed or not tested.
//!
//! Each rule has the simulation that is about it, and the seed from which on it is looked for: the first that
//! notices, so that a run is short; `RINGLOG_MUTANT_FIRST=1` looks from the beginning. `RINGLOG_MUTANT` names one rule
//! to run alone, `RINGLOG_MUTANT_SEEDS` sets after how many seeds it counts as missed.

use super::{compaction, life, scripts};
use crate::{number, print};
use logic::rules::{Rule, delete};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Who must notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum World {
    /// Seeds of `crash::compaction` with a compacted log.
    Compacted,
    /// Those with a log that retention alone makes smaller.
    Retained,
    /// Seeds of `crash::life`: logs whose segments are filled, dropped and recycled.
    Recycled,
    /// A script: of the seeds, none in hundreds has a write that takes as long as it takes to fill a file again.
    Scripted,
}

const RULES: [(Rule, World, u64); 13] = [
    (Rule::KeepLatest, World::Compacted, 1),
    (Rule::KeepTombstones, World::Compacted, 13),
    (Rule::KeepLastOfProducer, World::Compacted, 28),
    (Rule::LearnAll, World::Compacted, 9),
    (Rule::WaitForCheckpoint, World::Compacted, 1),
    (Rule::SyncBeforeName, World::Compacted, 1),
    (Rule::SyncNames, World::Compacted, 4),
    (Rule::RaiseRevision, World::Compacted, 1),
    (Rule::DiscardSuperseded, World::Compacted, 1),
    (Rule::OldestFirst, World::Recycled, 1),
    (Rule::KeepBytes, World::Retained, 7),
    (Rule::KeepTime, World::Retained, 21),
    (Rule::WaitForReaders, World::Scripted, 1),
];

impl World {
    fn has(self, seed: u64) -> bool {
        match self {
            Self::Compacted => compaction::compacts(seed),
            Self::Retained => !compaction::compacts(seed),
            Self::Recycled => true,
            Self::Scripted => seed == 1,
        }
    }

    /// What is wrong in a seed, if anything is.
    fn run(self, seed: u64) -> Option<String> {
        let run = || match self {
            Self::Compacted | Self::Retained => {
                compaction::run(seed, compaction::Report::default()).violations.into_iter().next()
            }
            Self::Recycled => life::run(seed, false).failures.into_iter().next(),
            Self::Scripted => {
                scripts::a_dropped_segment_waits_for_its_footer();
                None
            }
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(violation) => violation,
            // An invariant of the broker is broken.
            Err(panic) => Some(match panic.downcast::<String>() {
                Ok(message) => *message,
                Err(panic) => {
                    panic.downcast::<&str>().map_or("a panic".to_owned(), |text| (*text).to_owned())
                }
            }),
        }
    }
}

#[test]
fn every_rule_of_compaction_and_retention_is_needed() {
    let only = std::env::var("RINGLOG_MUTANT").ok();
    let seeds_max = number("RINGLOG_MUTANT_SEEDS").unwrap_or(200);
    let rules =
        RULES.into_iter().filter(|(rule, ..)| only.as_ref().is_none_or(|only| *only == format!("{rule:?}")));
    let (mut killed, mut survivors) = (0, Vec::new());
    std::panic::set_hook(Box::new(|_| ()));
    for (rule, world, first) in rules {
        let began = std::time::Instant::now();
        delete(Some(rule));
        let first = number("RINGLOG_MUTANT_FIRST").unwrap_or(first);
        let mut seeds = (first..first + seeds_max).filter(|seed| world.has(*seed));
        let missed = seeds.find_map(|seed| world.run(seed).map(|what| (seed, what)));
        delete(None);
        match missed {
            Some((seed, what)) => {
                killed += 1;
                print(&format!("without {rule:?}: seed {seed}, {} s: {what}", began.elapsed().as_secs()));
            }
            None => {
                print(&format!("without {rule:?}: not noticed, {} s", began.elapsed().as_secs()));
                survivors.push(rule);
            }
        }
    }
    drop(std::panic::take_hook());
    print(&format!("compaction and retention: {killed} of {} mutants killed", killed + survivors.len()));
    assert!(survivors.is_empty(), "not missed in {seeds_max} seeds: {survivors:?}");
}
