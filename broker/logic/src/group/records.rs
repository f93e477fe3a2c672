//! From records back to groups: the latest fact of every key.
//!
//! Owned by the driver while a coordinator loads: it feeds every record of the partition, oldest first, and makes
//! the coordinator of what is left. Invariants: any prefix of what a coordinator wrote gives a state in which no
//! partition has two owners (a member loses a partition in a record before another gains it); compaction may
//! have dropped facts that later ones replace. Absent on purpose: time; who was heard when is not on disk.

use super::offsets::from_record;
use crate::ids::TopicPartition;
use schema::group_record::{CurrentValue, Fact, GroupRecord, GroupValue, MemberValue, OffsetValue};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one group.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownGroup {
    pub value: Option<GroupValue>,
    pub members: BTreeMap<String, MemberValue>,
    pub targets: BTreeMap<String, BTreeSet<TopicPartition>>,
    pub currents: BTreeMap<String, CurrentValue>,
    pub offsets: BTreeMap<TopicPartition, OffsetValue>,
}

impl KnownGroup {
    fn is_nothing(&self) -> bool {
        self.value.is_none()
            && self.members.is_empty()
            && self.targets.is_empty()
            && self.currents.is_empty()
            && self.offsets.is_empty()
    }
}

/// The groups of a partition as far as it has been read.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    pub(super) groups: BTreeMap<String, KnownGroup>,
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Replay {
    /// Takes the next record.
    pub fn apply(&mut self, record: GroupRecord) {
        let GroupRecord { group, fact } = record;
        let known = self.groups.entry(group.clone()).or_default();
        match fact {
            Fact::Group(value) => known.value = value,
            Fact::Member(member, value) => set(&mut known.members, member, value),
            Fact::Target(member, value) => {
                let value = value.map(|list| list.into_iter().map(from_record).collect());
                set(&mut known.targets, member, value);
            }
            Fact::Current(member, value) => set(&mut known.currents, member, value),
            Fact::Offset(partition, value) => set(&mut known.offsets, from_record(partition), value),
        }
        // What is gone takes no memory while the rest is read.
        if known.is_nothing() {
            self.groups.remove(&group);
        }
    }
}
