//! Rules that keep promises, by name, so that a simulation can delete one and must notice.
//!
//! In a broker every rule holds, at no cost. In the tests of this crate, and in builds with the feature `mutants`, which
//! only the tests of others ask for, one rule per thread may be deleted. Absent on purpose: any way to delete a rule in
//! a broker.

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    // Of consumer groups.
    /// A partition goes to its new owner only when the old one has given it up or is out.
    WaitForRelease,
    /// Giving up counts only from a member that has seen the assignment without the partition.
    ReleaseNeedsEpoch,
    /// A commit needs an epoch of the member in which it held the partition.
    FenceCommits,
    /// A heartbeat needs the member's epoch, or the one before.
    FenceHeartbeats,
    /// A silent member is out.
    EndSessions,
    /// A member that does not give up its partitions in time is out.
    EndRevocations,
    /// A static member that has not left is not replaced.
    KeepInstances,
    /// What a member may hold is recorded before it is told.
    RecordCurrent,
    /// A member that is gone is gone after a restart, too.
    RecordRemovals,
    /// Epochs of those who left are not given out again.
    RaiseEpochs,
    /// Offsets of a group with members do not expire.
    KeepOffsetsOfMembers,
    /// What a member has is kept where it may be.
    MoveLittle,
    // Of compaction.
    /// Of a key the record with the highest offset stays.
    KeepLatest,
    /// A tombstone stays until its horizon.
    KeepTombstones,
    /// The last batch of a producer stays, if only as a header.
    KeepLastOfProducer,
    /// Every dirty segment is learned before one is rewritten.
    LearnAll,
    /// Only what is behind a checkpoint on the device is rewritten.
    WaitForCheckpoint,
    /// A rewritten segment is synced before it gets its name.
    SyncBeforeName,
    /// Its name is durable before its sources go.
    SyncNames,
    /// It has a higher revision than each of its sources.
    RaiseRevision,
    /// After a crash a file that another one stands for does not count.
    DiscardSuperseded,
    // Of retention.
    /// The oldest goes first, and each is gone for good before the next.
    OldestFirst,
    /// What remains reaches `retention.bytes`.
    KeepBytes,
    /// Nothing goes before it is older than `retention.ms`.
    KeepTime,
    /// A file stays while somebody reads it.
    WaitForReaders,
    // Of the metadata's group.
    /// Who joins does not stand for election before its log has its own registration.
    JoinersDoNotStand,
}

#[cfg(not(any(test, feature = "mutants")))]
#[inline(always)]
/// Whether a rule has not been deleted.
pub const fn holds(_: Rule) -> bool {
    true
}

/// What a thread calls first that the caller starts, so that the same rule is deleted there.
#[cfg(not(any(test, feature = "mutants")))]
pub fn inherit() -> impl FnOnce() + Send {
    || ()
}

#[cfg(any(test, feature = "mutants"))]
pub use deleted::{delete, holds, inherit};

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

    /// What a thread calls first that the caller starts, so that the same rule is deleted there.
    pub fn inherit() -> impl FnOnce() + Send {
        let rule = DELETED.get();
        move || DELETED.set(rule)
    }

    /// Whether a rule has not been deleted on this thread.
    pub fn holds(rule: Rule) -> bool {
        DELETED.get() != Some(rule)
    }
}
