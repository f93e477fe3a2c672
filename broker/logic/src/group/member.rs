//! One member of a group: what it said, what it may hold, what it is going to have.
//!
//! Owned by its group. A member lives from its join to its leaving, or until it is silent for its session
//! timeout, or has not given up partitions within its rebalance timeout. Invariants: `assigned` and `revoking`
//! have no partition in common; every change of either raises `epoch`, so that an epoch names one assignment, and
//! whoever shows an epoch has seen it. Only one step is made before the member has shown the new epoch: there
//! are never more than two that it can believe in, `epoch` and `previous_epoch`.
//!
//! Absent on purpose: who else holds a partition, which the group knows.

use super::offsets::{from_record, to_record};
use crate::ids::{TopicId, TopicPartition};
use regex::Regex;
use schema::group_record::{CurrentValue, MemberValue, OwnedSince, Partition};
use std::collections::{BTreeMap, BTreeSet};

/// The epoch of a static member that is away.
pub const AWAY_EPOCH: i32 = -2;

/// Partitions with the epoch since which a member may hold them.
pub type Holding = BTreeMap<TopicPartition, i32>;

/// A member.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it said about itself.
    pub stated: MemberValue,
    /// Names its assignment; [`AWAY_EPOCH`] while it is away.
    pub epoch: i32,
    /// The one before: what the member believes in if it has not heard of the last change.
    pub previous_epoch: i32,
    /// What it may hold.
    pub assigned: Holding,
    /// What it was asked to give up, and may still hold.
    pub revoking: Holding,
    /// What it is going to have.
    pub target: BTreeSet<TopicPartition>,
    /// The topics that its subscription means now.
    pub topics: BTreeSet<TopicId>,
    /// Its pattern, compiled; `None` = it has none.
    pub pattern: Option<Regex>,
    /// It is out from then on, milliseconds.
    pub session_ends_ms: u64,
    /// It is out from then on unless it gives up what is in `revoking`, milliseconds.
    pub revocation_ends_ms: Option<u64>,
    /// When it was heard last, milliseconds.
    pub heard_ms: u64,
}

impl Member {
    /// A member that has said this and has nothing yet.
    pub fn new(stated: MemberValue, pattern: Option<Regex>, now_ms: u64) -> Self {
        let mut member = Self {
            stated,
            epoch: 0,
            previous_epoch: 0,
            assigned: Holding::new(),
            revoking: Holding::new(),
            target: BTreeSet::new(),
            topics: BTreeSet::new(),
            pattern,
            session_ends_ms: 0,
            revocation_ends_ms: None,
            heard_ms: now_ms,
        };
        member.heard(now_ms);
        member
    }

    /// It gave a sign of life.
    pub fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.session_ends_ms = now_ms.saturating_add(u64::from(self.stated.session_timeout_ms));
    }

    /// When it is out if nothing is heard of it.
    pub fn deadline_ms(&self) -> u64 {
        self.session_ends_ms.min(self.revocation_ends_ms.unwrap_or(u64::MAX))
    }

    /// Whether it is a static member that said it would be back.
    pub fn is_away(&self) -> bool {
        self.epoch == AWAY_EPOCH
    }

    /// Whether it has what it is meant to have, and nothing else.
    pub fn is_settled(&self) -> bool {
        self.revoking.is_empty()
            && self.assigned.len() == self.target.len()
            && self.assigned.keys().all(|id| self.target.contains(id))
    }

    /// Since which epoch it may hold a partition.
    pub fn holds_since(&self, id: TopicPartition) -> Option<i32> {
        self.assigned.get(&id).or_else(|| self.revoking.get(&id)).copied()
    }

    /// Everything that it may hold.
    pub fn held(&self) -> impl Iterator<Item = TopicPartition> {
        self.assigned.keys().chain(self.revoking.keys()).copied()
    }

    /// Enters the epoch of a new assignment.
    pub fn enter_epoch(&mut self, epoch: i32) {
        assert!(epoch > self.epoch, "a member's epoch {} would become {epoch}", self.epoch);
        self.previous_epoch = self.epoch;
        self.epoch = epoch;
    }

    /// The record of what it may hold.
    pub fn current(&self) -> CurrentValue {
        CurrentValue {
            epoch: self.epoch,
            previous_epoch: self.previous_epoch,
            assigned: holding_to_record(&self.assigned),
            revoking: holding_to_record(&self.revoking),
        }
    }

    /// Takes over such a record.
    pub fn set_current(&mut self, current: CurrentValue) {
        self.epoch = current.epoch;
        self.previous_epoch = current.previous_epoch;
        self.assigned = holding_from_record(&current.assigned);
        self.revoking = holding_from_record(&current.revoking);
    }

    /// The record of what it is going to have.
    pub fn target_value(&self) -> Vec<Partition> {
        self.target.iter().copied().map(to_record).collect()
    }
}

fn holding_to_record(holding: &Holding) -> Vec<OwnedSince> {
    let one =
        |(id, since): (&TopicPartition, &i32)| OwnedSince { partition: to_record(*id), since_epoch: *since };
    holding.iter().map(one).collect()
}

fn holding_from_record(owned: &[OwnedSince]) -> Holding {
    owned.iter().map(|one| (from_record(one.partition), one.since_epoch)).collect()
}
