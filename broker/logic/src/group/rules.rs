//! The rules that keep a group safe, by name, so that the simulation can delete one and must notice.
//!
//! In a build that is not a test every rule holds, at no cost. In tests one rule per thread may be deleted.
//! Absent on purpose: any way to delete a rule in a broker.

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
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
}

#[cfg(not(test))]
pub(super) const fn holds(_: Rule) -> bool {
    true
}

#[cfg(test)]
pub(super) use deleted::{delete, holds};

#[cfg(test)]
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

    pub fn holds(rule: Rule) -> bool {
        DELETED.get() != Some(rule)
    }
}
