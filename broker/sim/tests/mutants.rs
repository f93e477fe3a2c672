//! One rule is deleted at a time, and the simulator must notice: a rule whose absence nobody notices is either
//! not needed or not tested.
//!
//! The rules of the drivers always; those of the machines with `--features mutants`, which compiles their switches in.

#[cfg(feature = "mutants")]
use logic::replication::rules::{Rule, delete};
use sim::DriverRule;
use std::panic::{self, AssertUnwindSafe, catch_unwind};

/// Runs seeds until one fails; which one, counted from 1.
fn seeds_to_notice(deleted: Option<DriverRule>, most: u64) -> Option<u64> {
    (0..most)
        .find(|seed| catch_unwind(AssertUnwindSafe(|| sim::run(*seed, false, deleted))).is_err())
        .map(|seed| seed + 1)
}

/// Prints what was killed after how many seeds, and names what was not.
fn report(killed: Vec<(String, Option<u64>)>) {
    for (rule, seeds) in &killed {
        println!(
            "{rule}: {}",
            seeds.map_or("NOT NOTICED".to_owned(), |seeds| format!("noticed by seed {seeds}"))
        );
    }
    let mut seeds: Vec<u64> = killed.iter().filter_map(|(_, seeds)| *seeds).collect();
    seeds.sort_unstable();
    println!(
        "{} of {} noticed, the median after {:?} seeds",
        seeds.len(),
        killed.len(),
        seeds.get(seeds.len() / 2)
    );
    let missed: Vec<&String> =
        killed.iter().filter(|(_, seeds)| seeds.is_none()).map(|(rule, _)| rule).collect();
    assert!(missed.is_empty(), "nobody notices that these are deleted: {missed:?}");
}

#[test]
fn every_rule_of_the_drivers_is_needed() {
    panic::set_hook(Box::new(|_| ()));
    let rules = [
        DriverRule::DuplicatesWait,
        DriverRule::SyncBeforeDurable,
        DriverRule::ClientsKeepEpochs,
        DriverRule::TableFollowsLog,
        DriverRule::FollowersShowCommitted,
        DriverRule::AskBeforeOpening,
        DriverRule::CloseBeforeAnswer,
        DriverRule::RestBeforeClose,
        DriverRule::NoteWhatCutsTake,
    ];
    let killed = rules.map(|rule| (format!("{rule:?}"), seeds_to_notice(Some(rule), 3000)));
    drop(panic::take_hook());
    report(killed.to_vec());
}

/// Runs seeds without `rule` until one fails.
#[cfg(feature = "mutants")]
fn kill(rule: &Rule, most: u64) -> (String, Option<u64>) {
    delete(Some(*rule));
    let seeds = seeds_to_notice(None, most);
    delete(None);
    println!("{rule:?}: {seeds:?} of {most} seeds");
    (format!("{rule:?}"), seeds)
}

/// Of the machines, missed by whole clusters within the seeds of a usual run.
#[cfg(feature = "mutants")]
const MACHINES: &[Rule] = &[
    Rule::CutByEpochs,
    Rule::FollowOwnEpoch,
    Rule::RefuseGaps,
    Rule::Sync,
    Rule::MaximalSet,
    Rule::StrictMinimum,
    Rule::JoinAboveHighWatermark,
    Rule::JoinAboveEpochStart,
    Rule::CheckGeneration,
    Rule::KeepPending,
    Rule::SuspectsDoNotLead,
    Rule::ClaimWhatIsThere,
    Rule::CleanAboveEpochStart,
    Rule::LeadInOwnRegistration,
    Rule::BeginAtLogStart,
    Rule::CompareFingerprints,
];

/// Of the machines, left to the simulation of replication and to tables, by name in
/// `broker/logic/src/replication/mutants.rs`. Whole clusters cannot meet the first (`docs/TESTING.md`), and what the last
/// two keep is a rule of the drivers here.
#[cfg(feature = "mutants")]
const MACHINES_ELSEWHERE: &[Rule] = &[
    Rule::MatchOpenings,
    Rule::CheckBrokerEpoch,
    Rule::AppliedAboveEpochStart,
    Rule::DuplicatesWait,
    Rule::TableFollowsLog,
];

/// Of metadata, as [`MACHINES`].
#[cfg(feature = "mutants")]
const METADATA: &[Rule] = &[
    Rule::RefusalsCount,
    Rule::RegisteringEndsLife,
    Rule::OtherDiskHasNothing,
    Rule::NewLeaderNewEpoch,
    Rule::ChangesRaiseEpoch,
    Rule::KeepEligible,
    Rule::ForgetEligible,
    Rule::ElectServing,
    Rule::ElectClean,
    Rule::HearAllSuspects,
    Rule::FencedLeaveSets,
    Rule::NewGeneration,
    Rule::DeleteByNewerMetadata,
];

/// Of metadata, left to the simulation of replication and to tables, by the same names.
#[cfg(feature = "mutants")]
const METADATA_ELSEWHERE: &[Rule] = &[
    Rule::ChangeAsLeader,
    Rule::ChangeKnownState,
    Rule::LeaderInSet,
    Rule::HeirInSet,
    Rule::RefuseFenced,
    Rule::RefuseDraining,
    Rule::RefuseSuspect,
    Rule::RefuseOtherGeneration,
    Rule::CheckLife,
    Rule::NewAreEligible,
    Rule::DoubtsOutliveLives,
    Rule::CleanInThisEpoch,
    Rule::ElectEligible,
    Rule::UncleanDoubtsOthers,
    Rule::CompleteWithAdded,
    Rule::CompleteWithMinimum,
    Rule::CompletionIsNewEpoch,
    Rule::LeadNewcomersAnew,
    Rule::HomesMeetAnew,
    Rule::WholeSession,
    Rule::UnfenceCaughtUp,
    Rule::StopWithoutLeading,
];

#[cfg(feature = "mutants")]
#[test]
fn every_rule_of_the_machines_is_needed() {
    panic::set_hook(Box::new(|_| ()));
    let killed = MACHINES.iter().map(|rule| kill(rule, 3000)).collect();
    look_for(MACHINES_ELSEWHERE);
    drop(panic::take_hook());
    report(killed);
}

#[cfg(feature = "mutants")]
#[test]
fn every_rule_is_in_a_list() {
    let lists = [MACHINES, MACHINES_ELSEWHERE, METADATA, METADATA_ELSEWHERE].concat();
    for number in 0..=Rule::LAST as usize {
        let named = lists.iter().filter(|rule| **rule as usize == number).count();
        assert_eq!(named, 1, "rule number {number} is in so many lists");
    }
}

/// With RINGLOG_SIM_RARE_SEEDS=N, prints for rules that no test asserts which of N seeds notices that one is gone.
#[cfg(feature = "mutants")]
fn look_for(rules: &[Rule]) {
    let rare = std::env::var("RINGLOG_SIM_RARE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for rule in rules.iter().filter(|_| rare > 0) {
        kill(rule, rare);
    }
}

#[cfg(feature = "mutants")]
#[test]
fn every_rule_of_metadata_is_needed() {
    panic::set_hook(Box::new(|_| ()));
    let killed = METADATA.iter().map(|rule| kill(rule, 3000)).collect();
    look_for(METADATA_ELSEWHERE);
    drop(panic::take_hook());
    report(killed);
}

/// Those that a run of a few seconds is enough for: the part that every change must pass.
#[cfg(feature = "mutants")]
#[test]
fn rules_that_are_missed_early() {
    panic::set_hook(Box::new(|_| ()));
    let rules = [
        Rule::CutByEpochs,
        Rule::CompareFingerprints,
        Rule::FollowOwnEpoch,
        Rule::Sync,
        Rule::MaximalSet,
        Rule::StrictMinimum,
        Rule::JoinAboveHighWatermark,
        Rule::JoinAboveEpochStart,
        Rule::LeadInOwnRegistration,
        Rule::BeginAtLogStart,
        Rule::RegisteringEndsLife,
        Rule::NewLeaderNewEpoch,
        Rule::ChangesRaiseEpoch,
        Rule::KeepEligible,
        Rule::ForgetEligible,
        Rule::ElectServing,
    ];
    let killed = rules.iter().map(|rule| kill(rule, 500)).collect();
    drop(panic::take_hook());
    report(killed);
}
