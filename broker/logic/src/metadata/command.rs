//! What may be asked of the metadata, and its bytes in the log.
//!
//! A command says everything that its effect depends on: ids are chosen and replicas are placed by whoever
//! makes it, so that applying it needs neither randomness nor a policy that a later version might change.
//! [`Image::create_topic`](super::Image::create_topic) and its sibling make the placed ones.
//!
//! Its bytes: [`command_bytes`](super::command_bytes). Whether it makes sense is
//! [`Image::apply`](super::Image::apply)'s business.

use crate::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionEpoch, ReplicaGeneration, ShardId, TopicId,
    TopicPartition,
};
use std::num::NonZeroU64;

/// The longest encoded command, bytes: the largest topic with the largest replica sets fits.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;

/// A change of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A new topic with its first partitions.
    CreateTopic {
        /// Never used before; random.
        id: TopicId,
        /// 1 to 249 of `a-z A-Z 0-9 . _ -`.
        name: String,
        /// One replica set per partition.
        placement: Placement,
        /// Settings that differ from the default, by name.
        configs: Vec<(String, String)>,
    },
    /// The topic goes, and its data with it.
    DeleteTopic {
        /// Which one.
        id: TopicId,
    },
    /// Settings of a topic change; they are checked as a whole.
    AlterTopicConfigs {
        /// Which one.
        id: TopicId,
        /// Names and new values.
        set: Vec<(String, String)>,
        /// Names that go back to the default.
        unset: Vec<String>,
    },
    /// More partitions for a topic.
    CreatePartitions {
        /// Which one.
        id: TopicId,
        /// The new total: what there is now plus what `placement` adds. A command made from an older
        /// image is refused by it.
        count: u32,
        /// Replica sets of the added partitions only.
        placement: Placement,
    },
    /// A broker starts: it joins, or comes back, perhaps with another address, number of shards or disk. What its
    /// earlier life held ends with this.
    RegisterBroker {
        /// What it says about itself.
        registration: BrokerRegistration,
        /// Replicas of its disk that may have lost their tail.
        suspects: Vec<Suspect>,
        /// Whether it serves only after an [`UnfenceBroker`](Command::UnfenceBroker). `false` is what was written
        /// when a cluster was one broker: it serves at once, and another disk is refused.
        starts_fenced: bool,
    },
    /// The next producer ids are a broker's to give out. It may lose some of them in a crash; nobody else
    /// gets them.
    AllocateProducerIds {
        /// Whose they become.
        broker: BrokerId,
        /// How many, 1 to [`PRODUCER_IDS_PER_BLOCK_MAX`](crate::limits::PRODUCER_IDS_PER_BLOCK_MAX).
        count: u32,
    },
    /// The cluster gets its identity, once.
    InitializeCluster {
        /// Random, not 0.
        id: u128,
    },
    /// A broker is not heard any more, or stops: it leads nothing and is in no in-sync set until it is unfenced.
    FenceBroker {
        /// Which one.
        broker: BrokerId,
        /// Which of its lives; another one is not fenced.
        epoch: BrokerEpoch,
    },
    /// A broker has caught up with the metadata and serves.
    UnfenceBroker {
        /// Which one.
        broker: BrokerId,
        /// Which of its lives.
        epoch: BrokerEpoch,
    },
    /// A broker gives its leaderships away and gets no new replicas; or that ends.
    DrainBroker {
        /// Which one.
        broker: BrokerId,
        /// Whether it drains from now on.
        draining: bool,
    },
    /// A broker without replicas, and fenced, is forgotten.
    RemoveBroker {
        /// Which one.
        broker: BrokerId,
    },
    /// A leader asks for another in-sync set, or gives its leadership to a member of it.
    AlterPartition(AlterPartition),
    /// A suspect replica has followed a leader past everything that it may lack.
    MarkClean {
        /// Which partition.
        partition: TopicPartition,
        /// Which life of the replica.
        generation: ReplicaGeneration,
        /// Whose.
        broker: BrokerId,
        /// Which of the broker's lives.
        broker_epoch: BrokerEpoch,
        /// The leader's epoch in which it followed.
        leader_epoch: LeaderEpoch,
    },
    /// Partitions get other replicas. Those that are added catch up before those that are removed go.
    ReassignPartitions {
        /// All of them or none.
        partitions: Vec<Reassignment>,
    },
    /// Old batches go to replicas that catch up no faster than this.
    LimitCatchUp {
        /// What each broker sends at most, to all of them together; `None` = no bound.
        bytes_per_second: Option<NonZeroU64>,
    },
    /// Partitions get another leader.
    ElectLeaders {
        /// Which ones, and the leaders. All of them or none.
        elections: Vec<(TopicPartition, BrokerId)>,
        /// `false`: the leader of now hands over to a member of its in-sync set as soon as it can. `true`: a
        /// partition that has no leader gets a replica that may lack acknowledged records, which are lost.
        unclean: bool,
    },
    /// A replica is served by another shard of its broker than the one that its topic and index give.
    MoveHome {
        /// Which partition.
        partition: TopicPartition,
        /// On which broker.
        broker: BrokerId,
        /// By which shard.
        shard: ShardId,
    },
}

/// What a leader wants its partition's in-sync set to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlterPartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// The leader that asks.
    pub sender: BrokerId,
    /// Its epoch.
    pub leader_epoch: LeaderEpoch,
    /// The state of the partition that it changes.
    pub partition_epoch: PartitionEpoch,
    /// The whole set that it wants.
    pub in_sync: Vec<InSyncMember>,
    /// Who of them is to lead from now on, if not the sender.
    pub transfer_to: Option<BrokerId>,
}

/// A member of an in-sync set, as its leader has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InSyncMember {
    /// Which broker.
    pub broker: BrokerId,
    /// The life of the broker that opened the partition.
    pub epoch: BrokerEpoch,
    /// The life of the replica that it opened.
    pub generation: ReplicaGeneration,
}

/// A replica that may have lost its tail, as its broker's recovery judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which life of the replica.
    pub generation: ReplicaGeneration,
    /// The leader's epoch of the last valid batch.
    pub last_epoch: LeaderEpoch,
    /// Where the valid batches end.
    pub end: Offset,
}

/// Other replicas for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    /// Which partition.
    pub partition: TopicPartition,
    /// Who is to keep it, the preferred leader first. Empty: the reassignment that is under way is called off.
    pub replicas: Vec<BrokerId>,
}

/// What a broker says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerRegistration {
    /// Its number.
    pub broker: BrokerId,
    /// Where clients find it.
    pub host: String,
    /// The one port.
    pub port: u16,
    /// How many shards serve its partitions.
    pub shards: u16,
    /// The identity of its disk.
    pub storage_uuid: u128,
    /// Where it stands: replicas of one partition go to as many racks as there are. Empty = nowhere in particular.
    pub rack: String,
}

/// Replica sets of consecutive partitions, all of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Replicas per partition, at least 1.
    pub replication_factor: u32,
    /// `replication_factor` brokers per partition, the first of them its leader.
    pub brokers: Vec<BrokerId>,
}

impl Placement {
    /// All `partitions` on one broker.
    pub fn single(broker: BrokerId, partitions: u32) -> Self {
        Self { replication_factor: 1, brokers: vec![broker; partitions as usize] }
    }

    /// How many partitions are placed; `None` where the sets are not all of one size, or empty.
    pub fn partitions(&self) -> Option<usize> {
        let size = self.replication_factor as usize;
        if size == 0 || !self.brokers.len().is_multiple_of(size) {
            return None;
        }
        Some(self.brokers.len() / size)
    }

    /// The replica sets, in the order of their partitions.
    pub fn replica_sets(&self) -> impl Iterator<Item = &[BrokerId]> {
        self.brokers.chunks_exact((self.replication_factor as usize).max(1))
    }
}

/// Why bytes are not a command or an image of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The file identifier differs: another format, or a newer one.
    #[error("not a {expected} buffer")]
    WrongIdentifier {
        /// `RLM1` or `RLI1`.
        expected: &'static str,
    },
    /// The FlatBuffers verifier refused it.
    #[error("not a valid FlatBuffer: {0}")]
    Invalid(String),
    /// A member of the union that this version does not know.
    #[error("command kind {0} is unknown: it was written by a newer version")]
    UnknownKind(u8),
    /// Well-formed, and contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
}
