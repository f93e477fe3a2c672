//! The metadata as it stands: immutable, shared by all cores, made anew by every command.
//!
//! The metadata thread makes images and publishes them as `Arc<Image>`; everybody else only reads. One
//! command costs in proportion to what it changes: the maps are persistent trees that share what stayed
//! the same, and topics are behind an `Arc`.
//!
//! Invariants: `version` counts the commands that were applied, so two images of one log with the same
//! version are equal. Each command changes at most one topic, and `changed` finds topics by the version
//! that changed them last. An id is used once: deletions are remembered (the latest
//! [`DELETIONS_KEPT_MAX`]), so that data is removed because a command said so and never because an image
//! happens not to know it.
//!
//! Absent on purpose: what only running brokers know (who is alive, offsets), and choices: a command
//! carries its placement.

use super::command::{BrokerRegistration, Command, DecodeError, Placement};
use super::topic_config::{self, ConfigError, TopicConfig};
use crate::ids::{BrokerId, LeaderEpoch, PartitionIndex, ShardId, TopicId, TopicPartition};
use crate::limits::{
    PARTITIONS_PER_SHARD_MAX, PARTITIONS_PER_TOPIC_MAX, PRODUCER_IDS_PER_BLOCK_MAX, TOPICS_MAX,
};
use crate::routing;
use imbl::OrdMap;
use schema::error_code::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Deletions that an image remembers. Directories of topics deleted before those are reported as unknown
/// and kept.
pub const DELETIONS_KEPT_MAX: usize = 10_000;

/// Brokers of a cluster.
pub const BROKERS_MAX: usize = 1_000;

/// The longest topic name, bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// The longest host name, bytes.
pub const HOST_BYTES_MAX: usize = 255;

/// All metadata at one version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    version: u64,
    topics: OrdMap<TopicId, Arc<Topic>>,
    names: OrdMap<Arc<str>, TopicId>,
    brokers: OrdMap<BrokerId, Arc<Broker>>,
    /// Topics by the version that changed them last.
    changed: OrdMap<u64, TopicId>,
    /// Deleted topics by the version that deleted them, and the other way round.
    deletions: OrdMap<u64, TopicId>,
    deleted: OrdMap<TopicId, u64>,
    /// The newest deletion that is no longer remembered.
    forgotten_version: u64,
    /// Replicas per shard.
    loads: OrdMap<(BrokerId, ShardId), u32>,
    /// Every producer id below has been given to a broker.
    next_producer_id: i64,
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
    pub partitions: Arc<[Partition]>,
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

/// Who serves a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The broker that takes its produces.
    pub leader: BrokerId,
    /// Rises with every new leader.
    pub leader_epoch: LeaderEpoch,
    /// Rises with every change of this entry.
    pub partition_epoch: u32,
    /// Brokers that keep it, the preferred leader first.
    pub replicas: Arc<[BrokerId]>,
    /// Those of them that have everything acknowledged.
    pub in_sync: Arc<[BrokerId]>,
}

/// A broker as it registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// What it said about itself.
    pub registration: BrokerRegistration,
    /// The image that changed it last.
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
    },
    /// A broker has producer ids to give out.
    ProducerIdsAllocated {
        /// The first of them.
        first: i64,
        /// How many.
        count: u32,
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
    #[error("{replication_factor} replicas asked for, {brokers} brokers are registered")]
    InvalidReplicationFactor {
        /// Replicas per partition.
        replication_factor: u32,
        /// Registered brokers.
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

    /// Every broker, by id.
    pub fn brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    /// The shard that serves `partition` on `broker`; `None` if the broker is not registered.
    pub fn home_shard(&self, broker: BrokerId, partition: TopicPartition) -> Option<ShardId> {
        let shards = self.broker(broker)?.registration.shards;
        Some(routing::home_shard(partition.topic, partition.partition, shards))
    }

    /// Whether a command deleted this topic. `false` also for topics that were never there, and for those
    /// whose deletion is forgotten.
    pub fn is_deleted(&self, id: TopicId) -> bool {
        self.deleted.contains_key(&id)
    }

    /// Topics that were made or changed after `version`, the oldest change first.
    pub fn topics_changed_after(&self, version: u64) -> impl Iterator<Item = &Arc<Topic>> {
        self.changed.range(version.saturating_add(1)..).filter_map(|(_, id)| self.topics.get(id))
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
        let replication_factor = topic.partitions.first().map_or(1, |first| first.replicas.len() as u32);
        let placement = self.place(id, existing..count, replication_factor)?;
        Ok(Command::CreatePartitions { id, count, placement })
    }

    /// Partitions go round robin over the brokers from a start that depends on the topic; followers sit on
    /// the brokers after the leader's.
    fn place(
        &self,
        id: TopicId,
        partitions: std::ops::Range<u32>,
        replication_factor: u32,
    ) -> Result<Placement, CommandError> {
        let brokers: Vec<BrokerId> = self.brokers.keys().copied().collect();
        if replication_factor == 0 || replication_factor as usize > brokers.len() {
            return Err(CommandError::InvalidReplicationFactor {
                replication_factor,
                brokers: brokers.len(),
            });
        }
        check_partition_count(partitions.end.into())?;
        let start = routing::start_of(id) % brokers.len() as u64;
        let at = |turn: u64| brokers[((start + turn) % brokers.len() as u64) as usize];
        let placed = partitions.flat_map(|partition| {
            (0..replication_factor).map(move |replica| u64::from(partition) + u64::from(replica))
        });
        Ok(Placement { replication_factor, brokers: placed.map(at).collect() })
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
            Command::RegisterBroker(registration) => next.apply_register_broker(registration)?,
            Command::AllocateProducerIds { broker, count } => next.apply_allocate_ids(*broker, *count)?,
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
        let partitions = self.new_partitions(placement)?;
        let config = checked_config(&overrides, &partitions)?;
        check_partition_count(partitions.len() as u64)?;
        self.add_loads(id, 0, &partitions)?;
        let count = partitions.len() as u32;
        self.put_topic(Topic {
            id,
            name: name.into(),
            version: self.version,
            partitions: partitions.into(),
            overrides,
            config: Arc::new(config),
        });
        Ok(Outcome::TopicCreated { id, partitions: count })
    }

    fn apply_delete_topic(&mut self, id: TopicId) -> Result<Outcome, CommandError> {
        let topic = self.topics.remove(&id).ok_or(CommandError::UnknownTopic(id))?;
        self.names.remove(&*topic.name);
        self.changed.remove(&topic.version);
        for (at, partition) in topic.partitions.iter().enumerate() {
            for &broker in partition.replicas.iter() {
                let place = TopicPartition { topic: id, partition: PartitionIndex::new(at as u32) };
                let Some(shard) = self.home_shard(broker, place) else { continue };
                match self.loads.get(&(broker, shard)).copied() {
                    Some(load) if load > 1 => self.loads.insert((broker, shard), load - 1),
                    _ => self.loads.remove(&(broker, shard)),
                };
            }
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
        let topic = Topic { overrides, config, ..Topic::clone(topic) };
        self.put_topic(topic);
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
        let added = self.new_partitions(placement)?;
        if added.len() != (count - existing) as usize {
            let (placed, added) = (added.len(), (count - existing) as usize);
            return Err(CommandError::PlacementOutdated { placed, added });
        }
        checked_config(&topic.overrides, &added)?;
        self.add_loads(id, existing, &added)?;
        let partitions = topic.partitions.iter().cloned().chain(added).collect();
        self.put_topic(Topic { partitions, ..Topic::clone(&topic) });
        Ok(Outcome::PartitionsCreated { id, count })
    }

    fn apply_register_broker(&mut self, registration: &BrokerRegistration) -> Result<Outcome, CommandError> {
        let broker = registration.broker;
        let refused =
            |problem: &str| Err(CommandError::InvalidBroker { broker, problem: problem.to_owned() });
        let host = &registration.host;
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return refused("its host is not the name or address of a host");
        }
        if registration.port == 0 {
            return refused("its port is 0");
        }
        if registration.shards == 0 {
            return refused("it has no shards");
        }
        match self.brokers.get(&broker) {
            None if self.brokers.len() >= BROKERS_MAX => return refused("the cluster has no room for it"),
            Some(known) if known.registration.storage_uuid != registration.storage_uuid => {
                return refused(&format!(
                    "its disk is {:032x}, and it is known with {:032x}: this data directory is not the one \
                     that its metadata belongs to",
                    registration.storage_uuid, known.registration.storage_uuid
                ));
            }
            _ => {}
        }
        let entry = Broker { registration: registration.clone(), version: self.version };
        let before = self.brokers.insert(broker, Arc::new(entry));
        if before.is_some_and(|before| before.registration.shards != registration.shards) {
            self.loads =
                self.loads.iter().filter(|((of, _), _)| *of != broker).map(|(k, v)| (*k, *v)).collect();
            for topic in self.topics.clone().values() {
                self.add_loads_of(topic.id, 0, &topic.partitions, Some(broker))?;
            }
        }
        Ok(Outcome::BrokerRegistered { broker })
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
        self.changed.insert(self.version, topic.id);
        self.names.insert(topic.name.clone(), topic.id);
        if let Some(before) = self.topics.insert(topic.id, Arc::new(topic)) {
            self.changed.remove(&before.version);
        }
    }

    fn new_partitions(&self, placement: &Placement) -> Result<Vec<Partition>, CommandError> {
        let misplaced = |problem: String| Err(CommandError::InvalidPlacement(problem));
        if placement.partitions().is_none() {
            return misplaced("replica sets of different sizes".to_owned());
        }
        let mut partitions = Vec::with_capacity(placement.partitions().unwrap_or(0));
        for set in placement.replica_sets() {
            if let Some(stranger) = set.iter().find(|broker| !self.brokers.contains_key(*broker)) {
                return misplaced(format!("broker {stranger} is not registered"));
            }
            if set.iter().collect::<BTreeSet<_>>().len() != set.len() {
                return misplaced("one broker twice for one partition".to_owned());
            }
            let replicas: Arc<[BrokerId]> = set.into();
            partitions.push(Partition {
                leader: set[0],
                leader_epoch: LeaderEpoch::new(0),
                partition_epoch: 0,
                in_sync: replicas.clone(),
                replicas,
            });
        }
        Ok(partitions)
    }

    fn add_loads(
        &mut self,
        topic: TopicId,
        first: u32,
        partitions: &[Partition],
    ) -> Result<(), CommandError> {
        self.add_loads_of(topic, first, partitions, None)
    }

    /// Counts `partitions` (the first of which has the index `first`) where they are served, on all
    /// brokers or only on `only`.
    fn add_loads_of(
        &mut self,
        topic: TopicId,
        first: u32,
        partitions: &[Partition],
        only: Option<BrokerId>,
    ) -> Result<(), CommandError> {
        let mut added: BTreeMap<(BrokerId, ShardId), u32> = BTreeMap::new();
        for (at, entry) in partitions.iter().enumerate() {
            let partition = TopicPartition { topic, partition: PartitionIndex::new(first + at as u32) };
            for &broker in entry.replicas.iter().filter(|broker| only.is_none_or(|only| only == **broker)) {
                if let Some(shard) = self.home_shard(broker, partition) {
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
}

// ---- From a snapshot ---------------------------------------------------------------------------------

/// What a snapshot holds; everything else in an image follows from it.
pub(super) struct Parts {
    pub version: u64,
    pub topics: Vec<Topic>,
    pub brokers: Vec<Broker>,
    pub deletions: Vec<(u64, TopicId)>,
    pub forgotten_version: u64,
    pub next_producer_id: i64,
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
            forgotten_version: parts.forgotten_version,
            next_producer_id: parts.next_producer_id,
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
                .add_loads(id, 0, &topic.partitions)
                .map_err(|error| DecodeError::Inconsistent(error.to_string()))?;
            let again = image.names.insert(topic.name.clone(), id).is_some()
                | image.changed.insert(version, id).is_some()
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

fn check_partition_count(count: u64) -> Result<(), CommandError> {
    if count == 0 || count > PARTITIONS_PER_TOPIC_MAX.into() {
        return Err(CommandError::InvalidPartitionCount { count });
    }
    Ok(())
}

/// The typed settings, checked also against what the topic has.
fn checked_config(
    overrides: &BTreeMap<String, String>,
    partitions: &[Partition],
) -> Result<TopicConfig, CommandError> {
    let config = TopicConfig::from_overrides(overrides)?;
    let replicas = partitions.iter().map(|partition| partition.replicas.len()).min().unwrap_or(0);
    let wanted = config.min_insync_replicas;
    if wanted as usize > replicas && replicas > 0 {
        return Err(CommandError::InvalidConfig(ConfigError::Contradiction(format!(
            "min.insync.replicas={wanted} can never be reached with a replication factor of {replicas}"
        ))));
    }
    Ok(config)
}

#[cfg(test)]
#[path = "image_tests.rs"]
pub(super) mod tests;
