//! What a shard does so that it agrees with an image.
//!
//! Each shard owns one [`LocalPartitions`]. When an image arrives, [`reconcile`] lists the actions; the
//! shard performs them at its own pace, records each one that worked, and says [`LocalPartitions::finish`]
//! after the last. An action that failed is not recorded and comes again with the next reconcile.
//!
//! Invariants: after all actions are recorded and finished, reconciling the same image gives none. Closing
//! comes before opening. Data is deleted only when a command deleted the topic, never because the image
//! does not mention it.
//!
//! Cost: in proportion to the topics that changed since the last finished image. The whole image is
//! compared at the start, when the broker registered anew (its shards may differ), and when deletions were
//! forgotten meanwhile.

use super::image::{Image, Topic};
use super::topic_config::TopicConfig;
use crate::ids::{BrokerId, LeaderEpoch, PartitionIndex, ShardId, TopicId, TopicPartition};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which shard reconciles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its broker.
    pub broker: BrokerId,
    /// Its number there.
    pub shard: ShardId,
}

/// What a shard knows about a partition that it has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPartition {
    /// What people call its topic, for messages.
    pub topic_name: Arc<str>,
    /// Who leads it; a follower if that is another broker.
    pub leader: BrokerId,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// Its settings.
    pub config: Arc<TopicConfig>,
}

/// One step towards the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Recover what the disk has of it, or make it anew, then serve it.
    OpenPartition {
        /// Which one.
        partition: TopicPartition,
        /// How.
        state: LocalPartition,
    },
    /// Stop serving it.
    ClosePartition {
        /// Which one.
        partition: TopicPartition,
        /// The topic was deleted: reclaim the disk when the last reader is gone. Otherwise the files stay:
        /// another shard of this broker serves them now, or nobody knows what they are.
        delete: bool,
    },
    /// Its leader, epoch or settings changed while it is open.
    Reconfigure {
        /// Which one.
        partition: TopicPartition,
        /// As it should be.
        state: LocalPartition,
    },
}

/// What should be done with a partition's directory that was found on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// This shard serves it.
    Serve,
    /// Another shard of this broker serves it.
    ServedBy(ShardId),
    /// Its topic was deleted and the broker stopped before the files were gone: reclaim them.
    Delete,
    /// No command says that this broker should have it, and none deleted it. Keep it, and tell the operator.
    Unknown,
}

/// The partitions that a shard has open.
#[derive(Clone, Debug, Default)]
pub struct LocalPartitions {
    open: BTreeMap<TopicPartition, LocalPartition>,
    /// The last image that was reached completely.
    version: u64,
}

impl LocalPartitions {
    /// How `partition` is open here, if it is.
    pub fn get(&self, partition: TopicPartition) -> Option<&LocalPartition> {
        self.open.get(&partition)
    }

    /// Every open partition, by topic id and index.
    pub fn iter(&self) -> impl Iterator<Item = (TopicPartition, &LocalPartition)> {
        self.open.iter().map(|(partition, state)| (*partition, state))
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The version of the last image that was reached completely; 0 before the first.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// `action` was performed.
    pub fn record(&mut self, action: &Action) {
        match action {
            Action::OpenPartition { partition, state } | Action::Reconfigure { partition, state } => {
                self.open.insert(*partition, state.clone());
            }
            Action::ClosePartition { partition, .. } => {
                self.open.remove(partition);
            }
        }
    }

    /// Every action towards `image` was performed.
    pub fn finish(&mut self, image: &Image) {
        self.version = image.version();
    }

    fn of_topic(&self, id: TopicId) -> impl Iterator<Item = TopicPartition> {
        let first = TopicPartition { topic: id, partition: PartitionIndex::new(0) };
        let last = TopicPartition { topic: id, partition: PartitionIndex::new(u32::MAX) };
        self.open.range(first..=last).map(|(partition, _)| *partition)
    }
}

/// The actions that lead from `local` to `image`: closes, then opens, then changes.
pub fn reconcile(local: &LocalPartitions, image: &Image, here: Here) -> Vec<Action> {
    let mut steps = Steps { local, image, here, closes: vec![], opens: vec![], changes: vec![] };
    let since = local.version;
    let registered = image.broker(here.broker).map_or(0, |broker| broker.version);
    let from_scratch = since == 0
        || since > image.version()
        || registered > since
        || image.broker(here.broker).is_none()
        || image.forgotten_version() > since;
    if from_scratch {
        steps.closes = local.open.keys().copied().filter(|partition| !steps.belongs(*partition)).collect();
        for topic in image.topics() {
            steps.topic(topic);
        }
    } else {
        for id in image.topics_deleted_after(since) {
            steps.closes.extend(local.of_topic(id));
        }
        for topic in image.topics_changed_after(since) {
            let lost = local.of_topic(topic.id).filter(|partition| !steps.belongs(*partition));
            let lost: Vec<_> = lost.collect();
            steps.closes.extend(lost);
            steps.topic(topic);
        }
    }
    let close = |partition: TopicPartition| Action::ClosePartition {
        partition,
        delete: image.is_deleted(partition.topic),
    };
    let closes = steps.closes.iter().copied().map(close);
    closes.chain(steps.opens).chain(steps.changes).collect()
}

/// What should be done with the directory of `partition`, which this broker's disk has.
pub fn judge(partition: TopicPartition, image: &Image, here: Here) -> Judgement {
    if image.is_deleted(partition.topic) {
        return Judgement::Delete;
    }
    let replica = image.partition(partition).is_some_and(|entry| entry.replicas.contains(&here.broker));
    match image.home_shard(here.broker, partition) {
        Some(shard) if replica && shard == here.shard => Judgement::Serve,
        Some(shard) if replica => Judgement::ServedBy(shard),
        _ => Judgement::Unknown,
    }
}

struct Steps<'a> {
    local: &'a LocalPartitions,
    image: &'a Image,
    here: Here,
    closes: Vec<TopicPartition>,
    opens: Vec<Action>,
    changes: Vec<Action>,
}

impl Steps<'_> {
    fn belongs(&self, partition: TopicPartition) -> bool {
        judge(partition, self.image, self.here) == Judgement::Serve
    }

    /// Opens and changes what this shard serves of `topic`.
    fn topic(&mut self, topic: &Topic) {
        for (at, entry) in topic.partitions.iter().enumerate() {
            let partition = TopicPartition { topic: topic.id, partition: PartitionIndex::new(at as u32) };
            let home = self.image.home_shard(self.here.broker, partition);
            if home != Some(self.here.shard) || !entry.replicas.contains(&self.here.broker) {
                continue;
            }
            let state = LocalPartition {
                topic_name: topic.name.clone(),
                leader: entry.leader,
                leader_epoch: entry.leader_epoch,
                config: topic.config.clone(),
            };
            match self.local.get(partition) {
                None => self.opens.push(Action::OpenPartition { partition, state }),
                Some(open) if *open != state => self.changes.push(Action::Reconfigure { partition, state }),
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
