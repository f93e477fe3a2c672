//! The rules that keep replication safe, by name, so that a test can delete one and must notice: of the replicas, and of
//! the metadata that says who they are.
//!
//! In a build that is not a test every rule holds, at no cost. In tests one rule per thread may be deleted.
//! Absent on purpose: any way to delete a rule in a broker.

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    // Of replicas.
    /// Logs are cut where their epochs part, not at the follower's high watermark (KIP-101, KIP-279).
    CutByEpochs,
    /// The bytes at the cut are compared.
    CompareFingerprints,
    /// A follower acts only in the epoch that its own metadata names (KIP-320).
    FollowOwnEpoch,
    /// What belongs to an earlier opening is ignored.
    MatchOpenings,
    /// Batches go to the end of the log, after the epoch that they came after in the leader's.
    RefuseGaps,
    /// Only what is synced is acknowledged, and counted.
    Sync,
    /// The high watermark waits for members that may be in the set, too (KIP-497).
    MaximalSet,
    /// The high watermark stands while the set is too small (KIP-966).
    StrictMinimum,
    /// A replica joins the set only with everything up to the high watermark …
    JoinAboveHighWatermark,
    /// … and up to where the leader's epoch began.
    JoinAboveEpochStart,
    /// A replica is meant only by its generation.
    CheckGeneration,
    /// A change of the set without an answer may have happened.
    KeepPending,
    /// A suspect replica does not lead.
    SuspectsDoNotLead,
    /// A suspect that may be elected for the end of its log is known with the end that it has.
    ClaimWhatIsThere,
    /// A suspect replica is clean only with everything that the leader began with.
    CleanAboveEpochStart,
    /// A broker leads only in the registration that metadata knows.
    LeadInOwnRegistration,
    /// A replica begins with no high watermark but its log's start.
    BeginAtLogStart,
    /// A replica joins under the registration that it was opened in, and only if that is current (KIP-903).
    CheckBrokerEpoch,
    /// A leader says what is latest only when what earlier leaders committed is visible.
    AppliedAboveEpochStart,
    // Of changes of the in-sync set that a leader asks for.
    /// Only who leads, in the epoch of now, changes the set …
    ChangeAsLeader,
    /// … and only from the partition epoch of now (KIP-497).
    ChangeKnownState,
    /// A refusal raises the partition epoch, so that its copies mean nothing.
    RefusalsCount,
    /// The leader is in its set.
    LeaderInSet,
    /// Leadership is handed to a member only.
    HeirInSet,
    /// Who is fenced is not taken in (KIP-841).
    RefuseFenced,
    /// Who drains is not taken in.
    RefuseDraining,
    /// A suspect replica is not taken in.
    RefuseSuspect,
    /// Nor is a replica that is another one by now.
    RefuseOtherGeneration,
    // Of brokers that come and go.
    /// What was said of one life of a broker is not true of another.
    CheckLife,
    /// Who registers anew is out of every set.
    RegisteringEndsLife,
    /// Who comes with another disk has nothing.
    OtherDiskHasNothing,
    /// What was suspect in an earlier life still is.
    DoubtsOutliveLives,
    /// Who is fenced leaves every set.
    FencedLeaveSets,
    /// A suspect replica is clean only by what it did in the leader epoch of now.
    CleanInThisEpoch,
    // Of every change of a partition.
    /// Another leader has another epoch.
    NewLeaderNewEpoch,
    /// Every change raises the partition epoch.
    ChangesRaiseEpoch,
    /// Who had everything when the set got too small stays eligible (KIP-966) …
    KeepEligible,
    /// … until the set can commit without them.
    ForgetEligible,
    /// Replicas of a new partition that do not serve yet are eligible while too few do.
    NewAreEligible,
    /// Only who is in sync, or left when the set was too small, is elected.
    ElectEligible,
    /// Who is fenced is not elected.
    ElectServing,
    /// A suspect replica is not elected while a clean one may have everything …
    ElectClean,
    /// … and the best of suspects only when all of them are there.
    HearAllSuspects,
    /// An unclean election makes all other replicas suspect.
    UncleanDoubtsOthers,
    // Of other replicas, and other homes.
    /// A reassignment ends when all that it adds are in sync …
    CompleteWithAdded,
    /// … and enough of those that stay …
    CompleteWithMinimum,
    /// … and begins another leader epoch.
    CompletionIsNewEpoch,
    /// A replica that is added is another one than any before.
    NewGeneration,
    /// Who was alone with a partition leads others in an epoch that begins with them.
    LeadNewcomersAnew,
    /// On another shard all meet anew.
    HomesMeetAnew,
    /// Data goes only when metadata from after it came does not have it.
    DeleteByNewerMetadata,
    // Of who watches the brokers.
    /// Who leads the metadata anew gives everybody a whole session.
    WholeSession,
    /// Who has not caught up since it started stays fenced.
    UnfenceCaughtUp,
    /// Who stops is fenced when it leads nothing that another could.
    StopWithoutLeading,
    // Of who drives replicas.
    #[cfg(any(test, feature = "mutants"))]
    /// A repeated produce is answered when what it repeats is committed.
    DuplicatesWait,
    #[cfg(any(test, feature = "mutants"))]
    /// The table of producers follows the log when that is cut.
    TableFollowsLog,
}

#[cfg(any(test, feature = "mutants"))]
impl Rule {
    /// The one that is named last.
    pub const LAST: Self = Self::TableFollowsLog;
}

#[cfg(not(any(test, feature = "mutants")))]
pub(crate) const fn holds(_: Rule) -> bool {
    true
}

#[cfg(any(test, feature = "mutants"))]
pub use deleted::{delete, holds};

#[cfg(any(test, feature = "mutants"))]
mod deleted {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static DELETED: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Deletes a rule on this thread; `None` = all hold again.
    pub fn delete(rule: Option<Rule>) {
        DELETED.set(rule);
    }

    /// Whether a rule is in force on this thread.
    pub fn holds(rule: Rule) -> bool {
        DELETED.get() != Some(rule)
    }
}
