//! The metadata as it stands: immutable, shared by all cores, made anew by every command.
//!
//! The metadata thread makes images and publishes them as `Arc<Image>`; everybody else only reads. One
//! command costs in proportion to what it changes: the maps are persistent trees that share what stayed
//! the same, and topics are behind an `Arc`.
//!
//! Invariants: `version` counts the commands that were applied, so two images of one log with the same
//! version are equal. `changed` finds topics by the version that changed them last. An id is used once: deletions
//! are remembered (the latest [`DELETIONS_KEPT_MAX`]), so that data is removed because a command said so and
//! never because an image happens not to know it.
//!
//! What commands do to topics is here; to brokers, in [`brokers`](super::brokers); to partitions that are there, in
//! [`assignment`](super::assignment), by the rules of [`partition`](super::partition).
//!
//! Absent on purpose: what only running brokers know (offsets, load), and choices: a command carries its placement.

use super::assignment::AlterRefusal;
use super::command::{BrokerRegistration, Command, DecodeError, Placement, Suspect};
use super::partition::{Brokers, Change, Partition, Settled};
use super::reconcile::Here;
use super::topic_config::{self, ConfigError, TopicConfig};
use crate::ids::{BrokerEpoch, BrokerId, PartitionEpoch, PartitionIndex, ShardId, TopicId, TopicPartition};
use crate::limits::{
    PARTITIONS_PER_SHARD_MAX, PARTITIONS_PER_TOPIC_MAX, PRODUCER_IDS_PER_BLOCK_MAX, TOPICS_MAX,
};
use crate::routing;
use imbl::{OrdMap, OrdSet, Vector};
use schema::error_code::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

/// Deletions that an image remembers. Directories of topics deleted before those are reported as unknown
/// and kept.
pub const DELETIONS_KEPT_MAX: usize = 10_000;

/// The longest topic name, bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// The longest host name, bytes.
pub const HOST_BYTES_MAX: usize = 255;

/// The longest name of a rack, bytes.
pub const RACK_BYTES_MAX: usize = 249;

/// All metadata at one version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    pub(super) version: u64,
    /// 0 until it is initialized.
    cluster_id: u128,
    pub(super) topics: OrdMap<TopicId, Arc<Topic>>,
    names: OrdMap<Arc<str>, TopicId>,
    pub(super) brokers: OrdMap<BrokerId, Arc<Broker>>,
    /// Topics by the version that changed them last.
    changed: OrdSet<(u64, TopicId)>,
    /// Deleted topics by the version that deleted them, and the other way round.
    deletions: OrdMap<u64, TopicId>,
    deleted: OrdMap<TopicId, u64>,
    /// The newest deletion that is no longer remembered.
    forgotten_version: u64,
    /// Replicas per shard.
    loads: OrdMap<(BrokerId, ShardId), u32>,
    /// Every producer id below has been given to a broker.
    next_producer_id: i64,
    /// What each broker sends at most to replicas that catch up.
    catch_up_bytes_per_second: Option<NonZeroU64>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// What people call it.
    pub name: Arc<str>,
    /// The image that changed it last.
    pub version: u64,
    /// By index.
    pub partitions: Vector<Partition>,
    /// Settings that differ from the defaults, normalised.
    pub overrides: BTreeMap<String, String>,
    /// All settings.
    pub config: Arc<TopicConfig>,
}

impl Topic {
    /// Whether it is the broker's own: clients may read it, and neither write, change nor delete it.
    pub fn is_internal(&self) -> bool {
        *self.name == *schema::OFFSETS_TOPIC
    }
}

/// A broker as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// What it said about itself.
    pub registration: BrokerRegistration,
    /// The life that this registration began.
    pub epoch: BrokerEpoch,
    /// It is not heard, or has not caught up since it started: it leads nothing and is in no in-sync set.
    pub fenced: bool,
    /// It gives its leaderships away and gets no new replicas.
    pub draining: bool,
    /// Replicas of its disk that may have lost their tail, by partition.
    pub suspects: Arc<[Suspect]>,
    /// The image that changed it last, apart from its suspects.
    pub version: u64,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A topic is there.
    TopicCreated {
        /// Which one.
        id: TopicId,
        /// How many partitions it has.
        partitions: u32,
    },
    /// A topic is gone.
    TopicDeleted {
        /// Which one.
        id: TopicId,
        /// Its name, which is free again.
        name: Arc<str>,
    },
    /// Its settings are these now.
    TopicConfigsAltered {
        /// Which one.
        id: TopicId,
    },
    /// A topic has more partitions.
    PartitionsCreated {
        /// Which one.
        id: TopicId,
        /// How many it has now.
        count: u32,
    },
    /// A broker is known under this address.
    BrokerRegistered {
        /// Which one.
        broker: BrokerId,
        /// The life that begins with it.
        epoch: BrokerEpoch,
    },
    /// A broker has producer ids to give out.
    ProducerIdsAllocated {
        /// The first of them.
        first: i64,
        /// How many.
        count: u32,
    },
    /// The cluster has an identity.
    ClusterInitialized {
        /// Which one.
        id: u128,
    },
    /// A broker leads nothing and is in no in-sync set.
    BrokerFenced {
        /// Which one.
        broker: BrokerId,
    },
    /// A broker serves.
    BrokerUnfenced {
        /// Which one.
        broker: BrokerId,
    },
    /// A broker gives its leaderships away, or does so no longer.
    BrokerDrains {
        /// Which one.
        broker: BrokerId,
        /// Whether it drains now.
        draining: bool,
    },
    /// Replicas catch up no faster than this.
    CatchUpLimited {
        /// What each broker sends at most; `None` = no bound.
        bytes_per_second: Option<NonZeroU64>,
    },
    /// A broker is forgotten.
    BrokerRemoved {
        /// Which one.
        broker: BrokerId,
    },
    /// The leader has what it asked for.
    PartitionAltered {
        /// Of which partition.
        partition: TopicPartition,
        /// The partition's state now.
        partition_epoch: PartitionEpoch,
    },
    /// The leader has not; all else it asked from this state is void.
    PartitionAlterRefused {
        /// Of which partition.
        partition: TopicPartition,
        /// The partition's state now.
        partition_epoch: PartitionEpoch,
        /// Why.
        refusal: AlterRefusal,
    },
    /// A replica is not suspect any more.
    ReplicaClean {
        /// Of which partition.
        partition: TopicPartition,
        /// Whose.
        broker: BrokerId,
    },
    /// Partitions are on their way to other replicas, or there.
    PartitionsReassigned {
        /// How many.
        partitions: usize,
    },
    /// Partitions have new leaders, or leaders that are about to hand over.
    LeadersElected {
        /// How many.
        partitions: usize,
        /// Whether acknowledged records may be lost.
        unclean: bool,
    },
    /// A replica is served by this shard now.
    HomeMoved {
        /// Of which partition.
        partition: TopicPartition,
        /// Whose.
        broker: BrokerId,
        /// By which shard.
        shard: ShardId,
    },
}

/// Why a command has no effect. Messages are for the person who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// See the rules in the message.
    #[error("topic name {name:?}: {problem}")]
    InvalidTopicName {
        /// What was given.
        name: String,
        /// The rule that it breaks.
        problem: &'static str,
    },
    /// Another topic has this name.
    #[error("topic {name} is there already")]
    TopicExists {
        /// The name.
        name: String,
    },
    /// The id is, or was, another topic's.
    #[error("topic id {0} is used already")]
    TopicIdUsed(TopicId),
    /// No topic has this id.
    #[error("no topic has the id {0}")]
    UnknownTopic(TopicId),
    /// No more topics.
    #[error("{TOPICS_MAX} topics are there already, which is the limit")]
    TooManyTopics,
    /// Zero or above the limit.
    #[error("{count} partitions asked for, permitted are 1 to {PARTITIONS_PER_TOPIC_MAX}")]
    InvalidPartitionCount {
        /// The total asked for.
        count: u64,
    },
    /// Partitions can only be added.
    #[error("the topic has {existing} partitions; {count} would not be more")]
    PartitionsNotAdded {
        /// How many there are.
        existing: u32,
        /// The total asked for.
        count: u32,
    },
    /// The command was made from another image.
    #[error("{placed} partitions are placed, {added} are added: the topic changed meanwhile, ask again")]
    PlacementOutdated {
        /// Replica sets in the command.
        placed: usize,
        /// How many partitions it adds to what there is.
        added: usize,
    },
    /// Fewer brokers than replicas, or zero replicas.
    #[error(
        "{replication_factor} copies of each partition need as many brokers, and {brokers} of this cluster serve and do \
         not drain: bring brokers back, or ask for fewer copies"
    )]
    InvalidReplicationFactor {
        /// Replicas per partition.
        replication_factor: u32,
        /// Brokers that can take one.
        brokers: usize,
    },
    /// Replica sets of different sizes, an unregistered broker, or one broker twice.
    #[error("replicas are misplaced: {0}")]
    InvalidPlacement(String),
    /// A shard would have to serve too many partitions.
    #[error(
        "broker {broker} shard {shard} would have {partitions} partitions, the limit is {PARTITIONS_PER_SHARD_MAX}"
    )]
    ShardFull {
        /// Whose.
        broker: BrokerId,
        /// Which one.
        shard: ShardId,
        /// How many it would have.
        partitions: u64,
    },
    /// A setting is refused.
    #[error(transparent)]
    InvalidConfig(#[from] ConfigError),
    /// The registration contradicts itself.
    #[error("broker {broker}: {problem}")]
    InvalidBroker {
        /// Which one.
        broker: BrokerId,
        /// What is wrong.
        problem: String,
    },
    /// The topic has fewer partitions.
    #[error("there is no partition {0}")]
    UnknownPartition(TopicPartition),
    /// The command was meant for an earlier state of what it is about.
    #[error("{0}: the metadata changed meanwhile")]
    Stale(String),
    /// The partition is not in a state for this.
    #[error("partition {partition}: {problem}")]
    InvalidPartition {
        /// Which one.
        partition: TopicPartition,
        /// Why not.
        problem: String,
    },
    /// The cluster has an identity.
    #[error("the cluster is initialized already, as {id:032x}")]
    ClusterInitialized {
        /// Which one.
        id: u128,
    },
    /// None, more than a block, or more than there are left.
    #[error("{count} producer ids asked for; a block has 1 to {PRODUCER_IDS_PER_BLOCK_MAX}")]
    InvalidProducerIds {
        /// How many were asked for.
        count: u32,
    },
}

impl CommandError {
    /// The code on the wire.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::InvalidTopicName { .. } => ErrorCode::InvalidTopicName,
            Self::TopicExists { .. } => ErrorCode::TopicExists,
            Self::TopicIdUsed(_) => ErrorCode::InvalidRequest,
            Self::UnknownTopic(_) => ErrorCode::UnknownTopic,
            Self::TooManyTopics => ErrorCode::InvalidRequest,
            Self::InvalidPartitionCount { .. } => ErrorCode::InvalidPartitions,
            Self::PartitionsNotAdded { .. } => ErrorCode::InvalidPartitions,
            Self::PlacementOutdated { .. } => ErrorCode::InvalidPartitions,
            Self::InvalidReplicationFactor { .. } => ErrorCode::InvalidReplicationFactor,
            Self::InvalidPlacement(_) => ErrorCode::InvalidRequest,
            Self::ShardFull { .. } => ErrorCode::InvalidPartitions,
            Self::InvalidConfig(_) => ErrorCode::InvalidConfig,
            Self::InvalidBroker { .. } => ErrorCode::InvalidRequest,
            Self::InvalidProducerIds { .. } => ErrorCode::InvalidRequest,
            Self::UnknownPartition(_) => ErrorCode::UnknownPartition,
            Self::Stale(_) => ErrorCode::FencedLeaderEpoch,
            Self::InvalidPartition { .. } => ErrorCode::InvalidRequest,
            Self::ClusterInitialized { .. } => ErrorCode::InvalidRequest,
        }
    }
}

/// A topic to be placed on the brokers that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Never used before; random.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// Replicas of each.
    pub replication_factor: u32,
    /// Settings that differ from the defaults.
    pub configs: Vec<(String, String)>,
}

// ---- Reading -----------------------------------------------------------------------------------------

impl Image {
    /// How many commands led here.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The topic of `id`.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// The topic that is called `name`.
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    /// The entry of a partition.
    pub fn partition(&self, partition: TopicPartition) -> Option<&Partition> {
        self.topic(partition.topic)?.partitions.get(partition.partition.get() as usize)
    }

    /// Every topic, by id.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// Every topic, by name.
    pub fn topics_by_name(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// How many topics there are.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// A broker.
    pub fn broker(&self, id: BrokerId) -> Option<&Arc<Broker>> {
        self.brokers.get(&id)
    }

    /// Whether `broker` was removed after it had registered as `epoch`. Once true of a registration it stays so, and an image
    /// from before it says no: any member may tell, however old its image.
    pub fn has_removed(&self, broker: BrokerId, epoch: BrokerEpoch) -> bool {
        epoch.get() <= self.version && !self.brokers.contains_key(&broker)
    }

    /// Every broker, by id.
    pub fn brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    /// What each broker sends at most to replicas that catch up, all together; `None` = no bound.
    pub fn catch_up_bytes_per_second(&self) -> Option<NonZeroU64> {
        self.catch_up_bytes_per_second
    }

    /// The identity of the cluster, once it has one.
    pub fn cluster_id(&self) -> Option<u128> {
        (self.cluster_id != 0).then_some(self.cluster_id)
    }

    /// The shard of this life of this broker that serves `partition`, or would. Its last registration may be an earlier
    /// life's, which had another number of shards.
    pub fn home_here(&self, here: Here, partition: TopicPartition) -> ShardId {
        home_among(here.shards, here.broker, partition, self.partition(partition))
    }

    /// The shard that serves the partition on `broker`, as registered; `None` if the broker is not.
    pub fn home_of(
        &self,
        broker: BrokerId,
        id: TopicPartition,
        entry: Option<&Partition>,
    ) -> Option<ShardId> {
        Some(home_among(self.broker(broker)?.registration.shards, broker, id, entry))
    }

    /// Where a consumer in `rack` reads a partition best, if not at its leader: at an in-sync replica of that rack, when
    /// the leader is not in it.
    pub fn replica_in_rack(&self, rack: &str, id: TopicPartition) -> Option<(BrokerId, ShardId)> {
        let entry = self.partition(id)?;
        let leader = entry.leader?;
        let stands_there = |broker: &BrokerId| {
            self.broker(*broker).is_some_and(|known| !known.fenced && known.registration.rack == rack)
        };
        if rack.is_empty() || stands_there(&leader) {
            return None;
        }
        let broker = entry.in_sync.iter().copied().find(stands_there)?;
        Some((broker, self.home_of(broker, id, Some(entry))?))
    }

    /// Replicas for a topic whose maker does not say how many: `default`, or as many as there are brokers that stay. One that
    /// is away for a moment counts: with a copy less by chance, the topic would be less safe than others for ever.
    pub fn replicas_by_default(&self, default: u32) -> u32 {
        let stay = self.brokers().filter(|broker| !broker.draining).count();
        default.min(stay as u32).max(1)
    }

    /// Replicas for a topic that gets more later, at most `most`: as many as there are brokers to keep them.
    pub fn replicas_at_most(&self, most: u32) -> u32 {
        let able = self.brokers().filter(|broker| !broker.fenced && !broker.draining).count();
        most.min(able as u32).max(1)
    }

    /// Brokers whose state, address or life changed after `version`.
    pub fn brokers_changed_after(&self, version: u64) -> impl Iterator<Item = BrokerId> {
        let changed = self.brokers.values().filter(move |broker| broker.version > version);
        changed.map(|broker| broker.registration.broker)
    }

    /// Whether a command deleted this topic. `false` also for topics that were never there, and for those
    /// whose deletion is forgotten.
    pub fn is_deleted(&self, id: TopicId) -> bool {
        self.deleted.contains_key(&id)
    }

    /// Topics that were made or changed after `version`, the oldest change first.
    pub fn topics_changed_after(&self, version: u64) -> impl Iterator<Item = &Arc<Topic>> {
        let first = (version.saturating_add(1), TopicId::default());
        self.changed.range(first..).filter_map(|(_, id)| self.topics.get(id))
    }

    /// Topics that were deleted after `version`. Complete if `version` is at least
    /// [`Image::forgotten_version`].
    pub fn topics_deleted_after(&self, version: u64) -> impl Iterator<Item = TopicId> {
        self.deletions.range(version.saturating_add(1)..).map(|(_, id)| *id)
    }

    /// Every producer id below has been given to a broker, which may have given it to a producer.
    pub fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }

    /// Deletions up to this version may be forgotten.
    pub fn forgotten_version(&self) -> u64 {
        self.forgotten_version
    }

    /// Remembered deletions with their versions, rising.
    pub(super) fn deletions(&self) -> impl ExactSizeIterator<Item = (u64, TopicId)> {
        self.deletions.iter().map(|(version, id)| (*version, *id))
    }
}

// ---- Making commands ---------------------------------------------------------------------------------

impl Image {
    /// The command that creates `new`, placed on the registered brokers. Submit it, or apply it to this
    /// image and throw the result away in order to validate only.
    pub fn create_topic(&self, new: NewTopic) -> Result<Command, CommandError> {
        let placement = self.place(new.id, 0..new.partitions, new.replication_factor)?;
        Ok(Command::CreateTopic { id: new.id, name: new.name, placement, configs: new.configs })
    }

    /// The command that gives topic `id` a total of `count` partitions, with as many replicas as it has.
    pub fn create_partitions(&self, id: TopicId, count: u32) -> Result<Command, CommandError> {
        let topic = self.topic(id).ok_or(CommandError::UnknownTopic(id))?;
        let existing = topic.partitions.len() as u32;
        if count <= existing {
            return Err(CommandError::PartitionsNotAdded { existing, count });
        }
        let replication_factor =
            topic.partitions.front().map_or(1, |first| first.replication_factor() as u32);
        let placement = self.place(id, existing..count, replication_factor)?;
        Ok(Command::CreatePartitions { id, count, placement })
    }
}

// ---- Applying ----------------------------------------------------------------------------------------

impl Image {
    /// The next image, or why the command has no effect.
    pub fn apply(&self, command: &Command) -> Result<(Image, Outcome), CommandError> {
        let mut next = Image { version: self.version + 1, ..self.clone() };
        let outcome = match command {
            Command::CreateTopic { id, name, placement, configs } => {
                next.apply_create_topic(*id, name, placement, configs)?
            }
            Command::DeleteTopic { id } => next.apply_delete_topic(*id)?,
            Command::AlterTopicConfigs { id, set, unset } => next.apply_alter_configs(*id, set, unset)?,
            Command::CreatePartitions { id, count, placement } => {
                next.apply_create_partitions(*id, *count, placement)?
            }
            Command::RegisterBroker { registration, suspects, starts_fenced } => {
                next.apply_register_broker(registration, suspects, *starts_fenced)?
            }
            Command::AllocateProducerIds { broker, count } => next.apply_allocate_ids(*broker, *count)?,
            Command::InitializeCluster { id } => next.apply_initialize(*id)?,
            Command::FenceBroker { broker, epoch } => next.apply_fence(*broker, *epoch)?,
            Command::UnfenceBroker { broker, epoch } => next.apply_unfence(*broker, *epoch)?,
            Command::DrainBroker { broker, draining } => next.apply_drain(*broker, *draining)?,
            Command::RemoveBroker { broker } => next.apply_remove_broker(*broker)?,
            Command::LimitCatchUp { bytes_per_second } => {
                next.catch_up_bytes_per_second = *bytes_per_second;
                Outcome::CatchUpLimited { bytes_per_second: *bytes_per_second }
            }
            Command::AlterPartition(alter) => next.apply_alter_partition(alter)?,
            Command::MarkClean { partition, generation, broker, broker_epoch, leader_epoch } => {
                next.apply_mark_clean(*partition, *generation, *broker, *broker_epoch, *leader_epoch)?
            }
            Command::ReassignPartitions { partitions } => next.apply_reassign(partitions)?,
            Command::ElectLeaders { elections, unclean } => next.apply_elect_leaders(elections, *unclean)?,
            Command::MoveHome { partition, broker, shard } => {
                next.apply_move_home(*partition, *broker, *shard)?
            }
        };
        Ok((next, outcome))
    }

    fn apply_create_topic(
        &mut self,
        id: TopicId,
        name: &str,
        placement: &Placement,
        configs: &[(String, String)],
    ) -> Result<Outcome, CommandError> {
        check_topic_name(name)?;
        if self.names.contains_key(name) {
            return Err(CommandError::TopicExists { name: name.to_owned() });
        }
        if self.topics.contains_key(&id) || self.deleted.contains_key(&id) {
            return Err(CommandError::TopicIdUsed(id));
        }
        if self.topics.len() >= TOPICS_MAX {
            return Err(CommandError::TooManyTopics);
        }
        let overrides = topic_config::alter(&BTreeMap::new(), configs, &[])?;
        let config = TopicConfig::from_overrides(&overrides)?;
        let partitions = self.new_partitions(placement, &config)?;
        let partitions: Vector<Partition> = partitions.into_iter().collect();
        let config = checked_config(&overrides, &partitions)?;
        check_partition_count(partitions.len() as u64)?;
        self.add_loads(id, 0, partitions.iter())?;
        let count = partitions.len() as u32;
        self.put_topic(Topic {
            id,
            name: name.into(),
            version: self.version,
            partitions,
            overrides,
            config: Arc::new(config),
        });
        Ok(Outcome::TopicCreated { id, partitions: count })
    }

    fn apply_delete_topic(&mut self, id: TopicId) -> Result<Outcome, CommandError> {
        let topic = self.topics.remove(&id).ok_or(CommandError::UnknownTopic(id))?;
        self.names.remove(&*topic.name);
        self.changed.remove(&(topic.version, id));
        for (at, entry) in topic.partitions.iter().enumerate() {
            self.subtract_loads(
                TopicPartition { topic: id, partition: PartitionIndex::new(at as u32) },
                entry,
            );
        }
        self.deletions.insert(self.version, id);
        self.deleted.insert(id, self.version);
        if self.deletions.len() > DELETIONS_KEPT_MAX
            && let Some(&(version, oldest)) = self.deletions.get_min()
        {
            self.deletions.remove(&version);
            self.deleted.remove(&oldest);
            self.forgotten_version = version;
        }
        Ok(Outcome::TopicDeleted { id, name: topic.name.clone() })
    }

    fn apply_alter_configs(
        &mut self,
        id: TopicId,
        set: &[(String, String)],
        unset: &[String],
    ) -> Result<Outcome, CommandError> {
        let topic = self.topics.get(&id).ok_or(CommandError::UnknownTopic(id))?;
        let overrides = topic_config::alter(&topic.overrides, set, unset)?;
        let config = Arc::new(checked_config(&overrides, &topic.partitions)?);
        let topic = Arc::new(Topic { overrides, config, ..Topic::clone(topic) });
        self.put_topic(Topic::clone(&topic));
        // With another minimum the rules may say something else.
        let mut changed = Vec::new();
        for (at, entry) in topic.partitions.iter().enumerate() {
            let partition = PartitionIndex::new(at as u32);
            let change = Change::new(TopicPartition { topic: id, partition }, entry);
            let settled = change.settle(Brokers(&self.brokers), &topic.config);
            changed.extend(settled.map(|settled| (partition, settled)));
        }
        self.put_partitions(&topic, changed)?;
        Ok(Outcome::TopicConfigsAltered { id })
    }

    fn apply_create_partitions(
        &mut self,
        id: TopicId,
        count: u32,
        placement: &Placement,
    ) -> Result<Outcome, CommandError> {
        let topic = self.topics.get(&id).ok_or(CommandError::UnknownTopic(id))?.clone();
        let existing = topic.partitions.len() as u32;
        check_partition_count(count.into())?;
        if count <= existing {
            return Err(CommandError::PartitionsNotAdded { existing, count });
        }
        let added = self.new_partitions(placement, &topic.config)?;
        if added.len() != (count - existing) as usize {
            let (placed, added) = (added.len(), (count - existing) as usize);
            return Err(CommandError::PlacementOutdated { placed, added });
        }
        checked_config(&topic.overrides, &added.iter().cloned().collect())?;
        self.add_loads(id, existing, added.iter())?;
        let partitions = topic.partitions.iter().cloned().chain(added).collect();
        self.put_topic(Topic { partitions, ..Topic::clone(&topic) });
        Ok(Outcome::PartitionsCreated { id, count })
    }

    fn apply_initialize(&mut self, id: u128) -> Result<Outcome, CommandError> {
        if id == 0 || self.cluster_id != 0 {
            return Err(CommandError::ClusterInitialized { id: self.cluster_id });
        }
        self.cluster_id = id;
        Ok(Outcome::ClusterInitialized { id })
    }

    fn apply_allocate_ids(&mut self, broker: BrokerId, count: u32) -> Result<Outcome, CommandError> {
        if !self.brokers.contains_key(&broker) {
            let problem = "it is not registered".to_owned();
            return Err(CommandError::InvalidBroker { broker, problem });
        }
        let first = self.next_producer_id;
        let fits = (1..=PRODUCER_IDS_PER_BLOCK_MAX).contains(&count);
        match first.checked_add(count.into()).filter(|_| fits) {
            Some(next) => self.next_producer_id = next,
            None => return Err(CommandError::InvalidProducerIds { count }),
        }
        Ok(Outcome::ProducerIdsAllocated { first, count })
    }

    /// Puts `topic` in as this version's change.
    fn put_topic(&mut self, topic: Topic) {
        let topic = Topic { version: self.version, ..topic };
        self.changed.insert((self.version, topic.id));
        self.names.insert(topic.name.clone(), topic.id);
        let (id, version) = (topic.id, topic.version);
        if let Some(before) = self.topics.insert(id, Arc::new(topic))
            && before.version != version
        {
            self.changed.remove(&(before.version, id));
        }
    }

    /// Puts changed partitions of `topic` in, which is as it is in this image.
    pub(super) fn put_partitions(
        &mut self,
        topic: &Arc<Topic>,
        changed: Vec<(PartitionIndex, Settled)>,
    ) -> Result<(), CommandError> {
        if changed.is_empty() {
            return Ok(());
        }
        let mut partitions = topic.partitions.clone();
        for (partition, settled) in changed {
            let id = TopicPartition { topic: topic.id, partition };
            if let Some(broker) = settled.cleaned {
                self.mark_clean(broker, id);
            }
            let next = settled.partition;
            let before = partitions.set(partition.get() as usize, next.clone());
            if before.replicas != next.replicas || before.homes != next.homes {
                self.subtract_loads(id, &before);
                self.add_loads(topic.id, partition.get(), std::iter::once(&next))?;
            }
        }
        self.put_topic(Topic { partitions, ..Topic::clone(topic) });
        Ok(())
    }

    fn new_partitions(
        &self,
        placement: &Placement,
        config: &TopicConfig,
    ) -> Result<Vec<Partition>, CommandError> {
        let misplaced = |problem: String| Err(CommandError::InvalidPlacement(problem));
        if placement.partitions().is_none() {
            return misplaced("replica sets of different sizes".to_owned());
        }
        let brokers = Brokers(&self.brokers);
        let mut partitions = Vec::with_capacity(placement.partitions().unwrap_or(0));
        for set in placement.replica_sets() {
            if let Some(stranger) = set.iter().find(|broker| !self.brokers.contains_key(*broker)) {
                return misplaced(format!("broker {stranger} is not registered"));
            }
            if set.iter().collect::<BTreeSet<_>>().len() != set.len() {
                return misplaced("one broker twice for one partition".to_owned());
            }
            // Empty logs are all in sync.
            let in_sync: Vec<_> = set.iter().copied().filter(|broker| brokers.serves(*broker)).collect();
            if in_sync.is_empty() {
                return misplaced(format!(
                    "broker {} does not serve, nor does another one beside it",
                    set[0]
                ));
            }
            partitions.push(Partition::new(set, &in_sync, config));
        }
        Ok(partitions)
    }

    /// How many replicas `broker` has.
    pub fn replicas_of(&self, broker: BrokerId) -> u64 {
        let shards = (broker, ShardId::new(0))..=(broker, ShardId::new(u16::MAX));
        self.loads.range(shards).map(|(_, load)| u64::from(*load)).sum()
    }

    /// Counts `partitions`, the first of which has the index `first`, where they are served.
    fn add_loads<'a>(
        &mut self,
        topic: TopicId,
        first: u32,
        partitions: impl Iterator<Item = &'a Partition>,
    ) -> Result<(), CommandError> {
        self.add_loads_of(topic, first, partitions, None)
    }

    /// Counts the replicas of `broker` anew: it has another number of shards.
    pub(super) fn count_loads_of(&mut self, broker: BrokerId) -> Result<(), CommandError> {
        self.loads = self.loads.iter().filter(|((of, _), _)| *of != broker).map(|(k, v)| (*k, *v)).collect();
        for topic in self.topics.clone().values() {
            self.add_loads_of(topic.id, 0, topic.partitions.iter(), Some(broker))?;
        }
        Ok(())
    }

    /// The same on all brokers or only on `only`.
    fn add_loads_of<'a>(
        &mut self,
        topic: TopicId,
        first: u32,
        partitions: impl Iterator<Item = &'a Partition>,
        only: Option<BrokerId>,
    ) -> Result<(), CommandError> {
        let mut added: BTreeMap<(BrokerId, ShardId), u32> = BTreeMap::new();
        for (at, entry) in partitions.enumerate() {
            let id = TopicPartition { topic, partition: PartitionIndex::new(first + at as u32) };
            for broker in entry.brokers().filter(|broker| only.is_none_or(|only| only == *broker)) {
                if let Some(shard) = self.home_of(broker, id, Some(entry)) {
                    *added.entry((broker, shard)).or_default() += 1;
                }
            }
        }
        for ((broker, shard), count) in added {
            let load = self.loads.entry((broker, shard)).or_default();
            let partitions = u64::from(*load) + u64::from(count);
            if partitions > PARTITIONS_PER_SHARD_MAX as u64 {
                return Err(CommandError::ShardFull { broker, shard, partitions });
            }
            *load += count;
        }
        Ok(())
    }

    fn subtract_loads(&mut self, id: TopicPartition, entry: &Partition) {
        for broker in entry.brokers() {
            let Some(shard) = self.home_of(broker, id, Some(entry)) else { continue };
            match self.loads.get(&(broker, shard)).copied() {
                Some(load) if load > 1 => self.loads.insert((broker, shard), load - 1),
                _ => self.loads.remove(&(broker, shard)),
            };
        }
    }
}

// ---- From a snapshot ---------------------------------------------------------------------------------

/// What a snapshot holds; everything else in an image follows from it.
pub(super) struct Parts {
    pub version: u64,
    pub cluster_id: u128,
    pub topics: Vec<Topic>,
    pub brokers: Vec<Broker>,
    pub deletions: Vec<(u64, TopicId)>,
    pub forgotten_version: u64,
    pub next_producer_id: i64,
    pub catch_up_bytes_per_second: Option<NonZeroU64>,
}

impl Image {
    /// The image of `parts`, if they do not contradict each other.
    pub(super) fn from_parts(parts: Parts) -> Result<Image, DecodeError> {
        let wrong = |what: String| Err(DecodeError::Inconsistent(what));
        if parts.next_producer_id < 0 {
            return wrong("a negative producer id comes next".to_owned());
        }
        let mut image = Image {
            version: parts.version,
            cluster_id: parts.cluster_id,
            forgotten_version: parts.forgotten_version,
            next_producer_id: parts.next_producer_id,
            catch_up_bytes_per_second: parts.catch_up_bytes_per_second,
            ..Image::default()
        };
        for broker in parts.brokers {
            let id = broker.registration.broker;
            if broker.version > parts.version || image.brokers.insert(id, Arc::new(broker)).is_some() {
                return wrong(format!("broker {id} is there twice or from the future"));
            }
        }
        for topic in parts.topics {
            let (id, version) = (topic.id, topic.version);
            image
                .add_loads(id, 0, topic.partitions.iter())
                .map_err(|error| DecodeError::Inconsistent(error.to_string()))?;
            let again = image.names.insert(topic.name.clone(), id).is_some()
                | image.changed.insert((version, id)).is_some()
                | image.topics.insert(id, Arc::new(topic)).is_some();
            if again || version > parts.version {
                return wrong(format!("topic {id} is there twice or from the future"));
            }
        }
        for (version, id) in parts.deletions {
            let again = image.deletions.insert(version, id).is_some()
                | image.deleted.insert(id, version).is_some()
                | image.topics.contains_key(&id);
            if again || version > parts.version {
                return wrong(format!("the deletion of topic {id} is there twice or from the future"));
            }
        }
        Ok(image)
    }
}

fn check_topic_name(name: &str) -> Result<(), CommandError> {
    let permitted = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > TOPIC_NAME_BYTES_MAX {
        "it is longer than 249 characters"
    } else if name == "." || name == ".." {
        "it means a directory"
    } else if !name.bytes().all(permitted) {
        "permitted are a-z A-Z 0-9 . _ -"
    } else {
        return Ok(());
    };
    // A name of megabytes is not repeated to whoever sent it.
    let name = name.chars().take(TOPIC_NAME_BYTES_MAX + 1).collect();
    Err(CommandError::InvalidTopicName { name, problem })
}

pub(super) fn check_partition_count(count: u64) -> Result<(), CommandError> {
    if count == 0 || count > PARTITIONS_PER_TOPIC_MAX.into() {
        return Err(CommandError::InvalidPartitionCount { count });
    }
    Ok(())
}

/// The typed settings, checked also against what the topic has.
fn checked_config(
    overrides: &BTreeMap<String, String>,
    partitions: &Vector<Partition>,
) -> Result<TopicConfig, CommandError> {
    let config = TopicConfig::from_overrides(overrides)?;
    let replicas = partitions.iter().map(Partition::replication_factor).min().unwrap_or(0);
    let wanted = config.min_insync_replicas;
    if wanted as usize > replicas && replicas > 0 {
        return Err(CommandError::InvalidConfig(ConfigError::Contradiction(format!(
            "min.insync.replicas={wanted} can never be reached with a replication factor of {replicas}"
        ))));
    }
    Ok(config)
}

/// The shard of `shards` that serves the partition on `broker`.
pub(super) fn home_among(
    shards: u16,
    broker: BrokerId,
    id: TopicPartition,
    entry: Option<&Partition>,
) -> ShardId {
    // A shard that the broker no longer has is nobody's home.
    let moved = entry.and_then(|entry| entry.homes.iter().find(|(of, _)| *of == broker));
    let moved = moved.map(|(_, shard)| *shard).filter(|shard| shard.get() < shards);
    moved.unwrap_or_else(|| routing::home_shard(id.topic, id.partition, shards))
}

#[cfg(test)]
#[path = "image_tests.rs"]
pub(super) mod tests;
