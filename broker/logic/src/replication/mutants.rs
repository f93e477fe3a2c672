//! One rule of replication is deleted at a time, and the simulation must miss it, or a table: a rule whose absence nobody
//! notices is either not needed or not tested. Whole clusters doubt the same rules in `broker/sim/tests/mutants.rs`.
//!
//! `RINGLOG_REPLICATION_MUTANT_SEEDS` sets how many seeds may pass until one misses a rule;
//! `RINGLOG_REPLICATION_RARE_SEEDS` in how many the rules are looked for, with `--ignored`, that only tables miss.

use super::found_tests as found;
use super::rules::{Rule, delete};
use super::simulation::{run, setting};
use super::tests;
use super::world::quietly;
use crate::metadata::assignment::tests as cluster;
use crate::metadata::controller::tests as controller;
use crate::metadata::partition::tests as partition;
use crate::metadata::reconcile::tests as reconcile;

/// Of replicas and their drivers, missed by the simulation within the seeds of a usual run.
const REPLICAS: &[Rule] = &[
    Rule::CutByEpochs,
    Rule::CompareFingerprints,
    Rule::FollowOwnEpoch,
    Rule::Sync,
    Rule::MaximalSet,
    Rule::StrictMinimum,
    Rule::JoinAboveHighWatermark,
    Rule::JoinAboveEpochStart,
    Rule::CheckGeneration,
    Rule::KeepPending,
    Rule::LeadInOwnRegistration,
    Rule::BeginAtLogStart,
    Rule::AppliedAboveEpochStart,
    Rule::DuplicatesWait,
    Rule::TableFollowsLog,
    Rule::ElectEligible,
];

/// Of metadata, the same.
const METADATA: &[Rule] = &[
    Rule::ChangeKnownState,
    Rule::RefusalsCount,
    Rule::RefuseFenced,
    Rule::RegisteringEndsLife,
    Rule::FencedLeaveSets,
    Rule::NewLeaderNewEpoch,
    Rule::KeepEligible,
    Rule::ForgetEligible,
    Rule::ElectServing,
    Rule::ElectClean,
    Rule::HearAllSuspects,
];

/// What misses a rule without a seed. Some rules stand behind others: the simulation misses them only when two unlikely
/// things meet, or not at all; whole clusters miss some of those.
const TABLES: &[(Rule, fn())] = &[
    (Rule::MatchOpenings, tests::a_leader_ignores_what_belongs_to_an_earlier_opening),
    (Rule::MatchOpenings, tests::a_follower_ignores_what_belongs_to_an_earlier_opening),
    (Rule::RefuseGaps, tests::a_follower_appends_and_acknowledges),
    (Rule::SuspectsDoNotLead, tests::who_does_not_lead_although_metadata_says_so),
    (Rule::ClaimWhatIsThere, found::a_suspect_that_may_be_elected_is_known_with_the_end_that_it_has),
    (Rule::CleanAboveEpochStart, tests::who_may_join),
    (Rule::CheckBrokerEpoch, tests::who_may_join),
    (Rule::CheckBrokerEpoch, cluster::a_set_from_an_earlier_life_is_refused),
    (Rule::ChangeAsLeader, cluster::in_sync_sets),
    (Rule::ChangeKnownState, cluster::a_set_from_an_earlier_life_is_refused),
    (Rule::RefusalsCount, cluster::refusals_are_committed),
    (Rule::LeaderInSet, cluster::refusals_are_committed),
    (Rule::HeirInSet, cluster::refusals_are_committed),
    (Rule::RefuseFenced, cluster::refusals_are_committed),
    (Rule::RefuseDraining, cluster::refusals_are_committed),
    (Rule::RefuseSuspect, cluster::refusals_are_committed),
    (Rule::RefuseOtherGeneration, cluster::a_set_from_an_earlier_life_is_refused),
    (Rule::CheckLife, cluster::brokers_come_and_go),
    (Rule::RegisteringEndsLife, cluster::brokers_come_and_go),
    (Rule::OtherDiskHasNothing, cluster::brokers_come_and_go),
    (Rule::DoubtsOutliveLives, cluster::suspects),
    (Rule::FencedLeaveSets, cluster::brokers_come_and_go),
    (Rule::CleanInThisEpoch, cluster::suspects),
    (Rule::NewLeaderNewEpoch, partition::fencing),
    (Rule::ChangesRaiseEpoch, partition::fencing),
    (Rule::KeepEligible, partition::fencing),
    (Rule::ForgetEligible, partition::fencing),
    (Rule::NewAreEligible, cluster::topics_of_brokers_that_are_late),
    (Rule::ElectEligible, partition::elections_among_the_eligible),
    (Rule::ElectServing, partition::elections_among_the_eligible),
    (Rule::ElectClean, partition::elections_among_the_eligible),
    (Rule::HearAllSuspects, partition::elections_among_the_eligible),
    (Rule::UncleanDoubtsOthers, cluster::leaders_by_wish_and_by_force),
    (Rule::CompleteWithAdded, partition::reassignments_complete),
    (Rule::CompleteWithMinimum, partition::reassignments_complete),
    (Rule::CompletionIsNewEpoch, partition::reassignments_complete),
    (Rule::NewGeneration, cluster::reassignments),
    (Rule::LeadNewcomersAnew, cluster::reassignments),
    (Rule::HomesMeetAnew, cluster::homes),
    (Rule::DeleteByNewerMetadata, reconcile::directories_are_judged),
    (Rule::WholeSession, controller::a_new_controller_gives_everybody_a_whole_session),
    (Rule::UnfenceCaughtUp, controller::who_has_not_caught_up_waits),
    (Rule::StopWithoutLeading, controller::who_stops_hands_over_and_is_fenced_then),
];

/// The first seed of so many that misses `rule`.
fn kill(rule: Rule, seeds: u64) -> Option<u64> {
    delete(Some(rule));
    let found = (0..seeds).find_map(|seed| run(seed).err().map(|problem| (seed, problem)));
    delete(None);
    match &found {
        Some((seed, problem)) => println!("{rule:?}: seed {seed}: {problem}"),
        None => println!("{rule:?}: not missed within {seeds} seeds"),
    }
    found.map(|(seed, _)| seed)
}

/// The simulation misses each of `rules`.
fn check(what: &str, rules: &[Rule]) {
    let seeds = setting(option_env!("RINGLOG_REPLICATION_MUTANT_SEEDS"), 4_000);
    let mut killed: Vec<u64> = rules.iter().filter_map(|rule| kill(*rule, seeds)).collect();
    killed.sort_unstable();
    println!(
        "replication: {} of {} mutants of {what} killed, the median by seed {}, the last by seed {}",
        killed.len(),
        rules.len(),
        killed.get(killed.len() / 2).copied().unwrap_or_default(),
        killed.last().copied().unwrap_or_default(),
    );
    assert_eq!(killed.len(), rules.len(), "a rule is not missed");
}

#[test]
fn every_rule_of_replicas_is_missed() {
    check("replicas", REPLICAS);
}

#[test]
fn every_rule_of_metadata_is_missed() {
    check("metadata", METADATA);
}

/// Rules that the simulation is not relied upon to miss.
fn left_to_tables() -> Vec<Rule> {
    let is_simulated = |rule: &Rule| REPLICAS.contains(rule) || METADATA.contains(rule);
    let mut rules: Vec<Rule> =
        TABLES.iter().map(|(rule, _)| *rule).filter(|rule| !is_simulated(rule)).collect();
    rules.dedup();
    rules
}

#[test]
fn tables_miss_what_the_simulation_does_not() {
    for &(rule, table) in TABLES {
        table();
        delete(Some(rule));
        let missed = quietly(table).is_err();
        delete(None);
        assert!(missed, "{rule:?} is not missed by its table");
    }
    let alone = left_to_tables();
    println!(
        "replication: {} tables miss a rule, of {} rules only tables: {alone:?}",
        TABLES.len(),
        alone.len()
    );
    for number in 0..=Rule::LAST as usize {
        let mut named = REPLICAS.iter().chain(METADATA).chain(&alone);
        assert!(named.any(|rule| *rule as usize == number), "rule number {number} is in no list");
    }
}

#[test]
#[ignore = "minutes; nothing has to come of it"]
fn rules_that_only_tables_miss_are_looked_for() {
    let seeds = setting(option_env!("RINGLOG_REPLICATION_RARE_SEEDS"), 10_000);
    for rule in left_to_tables() {
        kill(rule, seeds);
    }
}
