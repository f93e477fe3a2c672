//! What a shard does so that it agrees with an image.
//!
//! Each shard owns one [`LocalPartitions`]. When an image arrives, [`reconcile`] lists the actions; the
//! shard performs them at its own pace, records each one that worked, and says [`LocalPartitions::finish`]
//! after the last. One that failed for now ([`LocalPartitions::failed`]) comes again with every reconcile until it works or
//! an image says otherwise. One that is neither recorded nor failed is left to the image that follows.
//!
//! Invariants: after all actions are recorded and finished, reconciling the same image gives none. Closing
//! comes before opening. Data is deleted only when a command deleted the topic or took the replica, in that
//! generation, away from this broker; never because the image does not mention it.
//!
//! Cost: in proportion to the topics that changed since the last finished image, and little for each of their
//! partitions that did not. When a broker came or went, all partitions are looked at. The whole image is
//! compared at the start, when this broker registered anew, and when deletions were
//! forgotten meanwhile.

use super::image::{Image, Topic, home_among};
use super::partition::Partition;
use super::topic_config::TopicConfig;
use crate::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionEpoch, PartitionIndex, ReplicaGeneration, ShardId,
    TopicId, TopicPartition,
};
use crate::replication::rules::{Rule, holds};
use crate::replication::{Member, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which shard reconciles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its broker.
    pub broker: BrokerId,
    /// Its number there.
    pub shard: ShardId,
    /// How many shards this life of the broker has: what is registered may be an earlier life's.
    pub shards: u16,
}

/// What a shard knows about a partition that it has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPartition {
    /// What people call its topic, for messages.
    pub topic_name: Arc<str>,
    /// Which life of the replica this is: it has a directory of its own.
    pub generation: ReplicaGeneration,
    /// Who leads it; a follower if that is another broker, neither if nobody does.
    pub leader: Option<BrokerId>,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// Which state of the partition this is.
    pub partition_epoch: PartitionEpoch,
    /// All replicas, this one too.
    pub replicas: Arc<[ReplicaView]>,
    /// Those that have everything acknowledged.
    pub in_sync: Arc<[BrokerId]>,
    /// Those that may lead besides.
    pub eligible: Arc<[BrokerId]>,
    /// How many must be in sync for `acks=all`.
    pub min_in_sync: usize,
    /// Whom the leader is to hand over to, as soon as it can.
    pub transfer_to: Option<BrokerId>,
    /// Its settings.
    pub config: Arc<TopicConfig>,
}

/// A replica as the others need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Whose.
    pub broker: BrokerId,
    /// Which life of the replica.
    pub generation: ReplicaGeneration,
    /// Which life of the broker.
    pub broker_epoch: BrokerEpoch,
    /// The shard of that broker that serves it.
    pub home: ShardId,
    /// Its broker is not heard, or has not caught up: it may not enter the in-sync set.
    pub fenced: bool,
    /// Its broker gives its leaderships away: it may not enter the in-sync set.
    pub draining: bool,
    /// It may have lost its tail: it may not enter the in-sync set before it is reported clean. The last epoch and the end
    /// that it was named with.
    pub suspect: Option<(LeaderEpoch, Offset)>,
}

impl LocalPartition {
    /// What its [`Replica`](crate::replication::Replica) is to know of it.
    pub fn view(&self) -> View {
        let member = |replica: &ReplicaView| Member {
            broker: replica.broker,
            generation: replica.generation,
            broker_epoch: replica.broker_epoch,
            available: !replica.fenced && !replica.draining,
            suspect: replica.suspect,
        };
        View {
            leader: self.leader,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            replicas: self.replicas.iter().map(member).collect(),
            in_sync: self.in_sync.clone(),
            eligible: self.eligible.clone(),
            min_in_sync: self.min_in_sync,
            transfer_to: self.transfer_to,
        }
    }

    /// The replica of `broker`.
    pub fn replica(&self, broker: BrokerId) -> Option<&ReplicaView> {
        self.replicas.iter().find(|replica| replica.broker == broker)
    }
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
        /// In which life.
        generation: ReplicaGeneration,
        /// The topic was deleted, or the replica taken away: reclaim the disk when the last reader is gone.
        /// Otherwise the files stay: another shard of this broker serves them now, or nobody knows what they are.
        delete: bool,
    },
    /// Something about it changed while it is open.
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
    /// Its topic was deleted, or the replica taken away, and the broker stopped before the files were gone: reclaim
    /// them.
    Delete,
    /// No command that is known says that this broker should have it, and none took it away. Keep it, and tell the
    /// operator.
    Unknown,
}

/// The partitions that a shard has open.
#[derive(Clone, Debug, Default)]
pub struct LocalPartitions {
    open: BTreeMap<TopicPartition, LocalPartition>,
    /// The last image that was reached, but for what failed.
    version: u64,
    /// What failed on the way there, and comes again; and on the way to the image that is followed now.
    failed: BTreeSet<TopicPartition>,
    failing: BTreeSet<TopicPartition>,
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

    /// A partition could not be opened, and may be later.
    pub fn failed(&mut self, partition: TopicPartition) {
        self.failing.insert(partition);
    }

    /// What could not be opened on the way to the last image.
    pub fn unopened(&self) -> &BTreeSet<TopicPartition> {
        &self.failed
    }

    /// Every action towards `image` was performed, or has failed.
    pub fn finish(&mut self, image: &Image) {
        self.version = image.version();
        self.failed = std::mem::take(&mut self.failing);
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
    let registered = image.broker(here.broker).map_or(0, |broker| broker.epoch.get());
    let from_scratch = since == 0
        || since > image.version()
        || registered > since
        || image.broker(here.broker).is_none()
        || image.forgotten_version() > since;
    if from_scratch {
        let all = local.open.keys().copied();
        steps.closes = all.filter(|partition| !steps.belongs(*partition)).collect();
        for topic in image.topics() {
            steps.topic(topic, |_, _| true);
        }
    } else {
        for id in image.topics_deleted_after(since) {
            steps.closes.extend(local.of_topic(id));
        }
        let changed: Vec<BrokerId> = image.brokers_changed_after(since).collect();
        let is_touched = |entry: &Partition| entry.brokers().any(|broker| changed.contains(&broker));
        for topic in image.topics_changed_after(since) {
            let lost: Vec<_> =
                local.of_topic(topic.id).filter(|partition| !steps.belongs(*partition)).collect();
            steps.closes.extend(lost);
            steps.topic(topic, |open, entry| {
                open.partition_epoch != entry.partition_epoch
                    || !Arc::ptr_eq(&open.config, &topic.config)
                    || is_touched(entry)
            });
        }
        let unopened: BTreeSet<TopicId> = local.failed.iter().map(|partition| partition.topic).collect();
        if !changed.is_empty() || !unopened.is_empty() {
            let looks_at = |topic: &Topic| !changed.is_empty() || unopened.contains(&topic.id);
            for topic in image.topics().filter(|topic| topic.version <= since && looks_at(topic)) {
                steps.topic(topic, |_, entry| is_touched(entry));
            }
        }
    }
    let close = |partition: &TopicPartition| Action::ClosePartition {
        partition: *partition,
        generation: local.open[partition].generation,
        delete: is_taken_away(*partition, local.open[partition].generation, image, here),
    };
    let closes: Vec<_> = steps.closes.iter().map(close).collect();
    closes.into_iter().chain(steps.opens).chain(steps.changes).collect()
}

/// What should be done with the directory of `generation` of `partition`, which this broker's disk has.
pub fn judge(
    partition: TopicPartition,
    generation: ReplicaGeneration,
    image: &Image,
    here: Here,
) -> Judgement {
    if is_taken_away(partition, generation, image, here) {
        return Judgement::Delete;
    }
    let entry = image.partition(partition);
    let is_here = entry.is_some_and(|entry| entry.has_replica(here.broker, generation));
    match home_among(here.shards, here.broker, partition, entry) {
        _ if !is_here => Judgement::Unknown,
        shard if shard == here.shard => Judgement::Serve,
        shard => Judgement::ServedBy(shard),
    }
}

/// Whether a command deleted the topic, or took this replica away from this broker. An image from before the replica
/// was added does not have it either: a generation is the partition epoch that added it, so that they compare.
fn is_taken_away(
    partition: TopicPartition,
    generation: ReplicaGeneration,
    image: &Image,
    here: Here,
) -> bool {
    let is_newer = |entry: &Partition| {
        entry.partition_epoch.get() >= generation.get() || !holds(Rule::DeleteByNewerMetadata)
    };
    let is_without = |entry: &Partition| is_newer(entry) && !entry.has_replica(here.broker, generation);
    image.is_deleted(partition.topic) || image.partition(partition).is_some_and(is_without)
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
    /// Whether what is open of `partition` stays open.
    fn belongs(&self, partition: TopicPartition) -> bool {
        let mut generation = self.local.open[&partition].generation;
        if !holds(Rule::CheckGeneration)
            && let Some(replica) =
                self.image.partition(partition).and_then(|entry| entry.replica(self.here.broker))
        {
            generation = replica.generation;
        }
        judge(partition, generation, self.image, self.here) == Judgement::Serve
    }

    /// Opens what this shard serves of `topic` and has not open in this generation, and changes what is open
    /// and `may_differ`.
    fn topic(&mut self, topic: &Topic, may_differ: impl Fn(&LocalPartition, &Partition) -> bool) {
        for (at, entry) in topic.partitions.iter().enumerate() {
            let partition = TopicPartition { topic: topic.id, partition: PartitionIndex::new(at as u32) };
            let Some(replica) = entry.replica(self.here.broker) else { continue };
            let is_meant = |open: &&LocalPartition| {
                open.generation == replica.generation || !holds(Rule::CheckGeneration)
            };
            let open = self.local.get(partition).filter(is_meant);
            if open.is_some_and(|open| !may_differ(open, entry))
                || home_among(self.here.shards, self.here.broker, partition, Some(entry)) != self.here.shard
            {
                continue;
            }
            let state = local_state(self.image, topic, partition, entry, replica.generation);
            match open {
                None => self.opens.push(Action::OpenPartition { partition, state }),
                Some(open) if *open != state => self.changes.push(Action::Reconfigure { partition, state }),
                Some(_) => {}
            }
        }
    }
}

/// The partition as its replica `generation` sees it.
fn local_state(
    image: &Image,
    topic: &Topic,
    id: TopicPartition,
    entry: &Partition,
    generation: ReplicaGeneration,
) -> LocalPartition {
    let view = |replica: &super::partition::Replica| {
        let broker = image.broker(replica.broker)?;
        Some(ReplicaView {
            broker: replica.broker,
            generation: replica.generation,
            broker_epoch: broker.epoch,
            home: image.home_of(replica.broker, id, Some(entry))?,
            fenced: broker.fenced,
            draining: broker.draining,
            suspect: broker.suspect(id, replica.generation).map(|known| (known.last_epoch, known.end)),
        })
    };
    LocalPartition {
        topic_name: topic.name.clone(),
        generation,
        leader: entry.leader,
        leader_epoch: entry.leader_epoch,
        partition_epoch: entry.partition_epoch,
        // A broker with replicas is never forgotten.
        replicas: entry.replicas.iter().filter_map(view).collect(),
        in_sync: entry.in_sync.clone(),
        eligible: entry.eligible.clone(),
        min_in_sync: entry.min_in_sync(&topic.config),
        transfer_to: entry.transfer_to,
        config: topic.config.clone(),
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
pub(crate) mod tests;
