//! The rules that keep replication safe, by name, so that a test can delete one and must notice.
//!
//! In a build that is not a test every rule holds, at no cost. In tests one rule per thread may be deleted.
//! Absent on purpose: any way to delete a rule in a broker.

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
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
    /// A suspect replica is clean only with everything that the leader began with.
    CleanAboveEpochStart,
    /// A broker leads only in the registration that metadata knows.
    LeadInOwnRegistration,
    /// A replica begins with no high watermark but its log's start.
    BeginAtLogStart,
    /// A replica joins under the registration that it was opened in, and only if that is current (KIP-903).
    CheckBrokerEpoch,
    /// Only who is in sync, or left when the set was too small, is elected.
    ElectEligible,
    #[cfg(any(test, feature = "mutants"))]
    /// A repeated produce is answered when what it repeats is committed.
    DuplicatesWait,
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
