//! The committed offsets of one group.
//!
//! Owned by its group. An offset stays until it is committed anew, its topic is deleted, the group is deleted, or
//! it has expired: the group has had no members, and the offset no commit, for the retention time. Invariant: at
//! most [`OFFSETS_PER_GROUP_MAX`] entries. Absent on purpose: fencing, which needs the members.

use crate::ids::{PartitionIndex, TopicId, TopicPartition};
use crate::limits::OFFSETS_PER_GROUP_MAX;
use schema::group_record::OffsetValue;
use std::collections::BTreeMap;

/// Committed offsets, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    entries: BTreeMap<TopicPartition, OffsetValue>,
}

impl Offsets {
    /// What was committed for a partition.
    pub fn get(&self, id: TopicPartition) -> Option<&OffsetValue> {
        self.entries.get(&id)
    }

    /// All, by partition.
    pub fn iter(&self) -> impl Iterator<Item = (TopicPartition, &OffsetValue)> {
        self.entries.iter().map(|(id, value)| (*id, value))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a commit for `id` would find room.
    pub fn has_room_for(&self, id: TopicPartition) -> bool {
        self.entries.len() < OFFSETS_PER_GROUP_MAX || self.entries.contains_key(&id)
    }

    /// Sets or removes what is committed for a partition.
    pub fn set(&mut self, id: TopicPartition, value: Option<OffsetValue>) {
        match value {
            Some(value) => self.entries.insert(id, value),
            None => self.entries.remove(&id),
        };
    }

    /// At most `most` entries that are older than `retention_ms` in a group that is empty since `empty_since_ms`.
    pub fn expired(
        &self,
        empty_since_ms: i64,
        retention_ms: i64,
        wall_ms: i64,
        most: usize,
    ) -> Vec<TopicPartition> {
        let is_over = |value: &OffsetValue| {
            value.commit_time_ms.max(empty_since_ms).saturating_add(retention_ms) <= wall_ms
        };
        self.entries.iter().filter(|(_, value)| is_over(value)).map(|(id, _)| *id).take(most).collect()
    }

    /// Entries whose topic `is_gone`.
    pub fn of_topics(&self, is_gone: impl Fn(TopicId) -> bool) -> Vec<TopicPartition> {
        // Entries of one topic are neighbours: each topic is looked up once.
        let mut gone = Vec::new();
        let mut known: Option<(TopicId, bool)> = None;
        for id in self.entries.keys() {
            let over = match known {
                Some((topic, over)) if topic == id.topic => over,
                _ => is_gone(id.topic),
            };
            known = Some((id.topic, over));
            if over {
                gone.push(*id);
            }
        }
        gone
    }
}

/// The stored form of a partition.
pub(super) fn to_record(id: TopicPartition) -> schema::group_record::Partition {
    (id.topic.get(), id.partition.get())
}

/// The partition of its stored form.
pub(super) fn from_record((topic, partition): schema::group_record::Partition) -> TopicPartition {
    TopicPartition { topic: TopicId::new(topic), partition: PartitionIndex::new(partition) }
}
