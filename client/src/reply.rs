//! What a broker answers, as plain values decoded once by the connection that read them.
//!
//! Owner: the connection makes a [`Response`] from verified metadata and gives it to whoever asked.
//! Invariants: an unknown error number or a body that its entries do not add up to is a protocol
//! violation, never a guess; bodies are slices of the one buffer that was read. Absent on purpose: the
//! FlatBuffers types, which do not leave `decode`.

mod decode;

pub(crate) use decode::{code, decode};

use crate::cluster_request::{ClusterDescription, ElectionOutcome};
use crate::group_request::{
    CommitResult, CommittedOffset, GroupDescription, GroupOutcome, GroupState, HeartbeatReply, ListedGroup,
};
use crate::homes::HomeMoved;
use crate::request::TopicId;
use bytes::Bytes;
use schema::error_code::{Class, ErrorCode};
use std::sync::Arc;
use std::time::Duration;

/// Why a verified response is still not one of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The number is in no table.
    #[error("unknown error number {0}; upgrade the client")]
    UnknownError(u16),
    /// The entries' lengths do not add up to the body.
    #[error("the entries announce {announced} bytes of batches, the body has {body}")]
    WrongBodyLength {
        /// Sum of the entries.
        announced: u64,
        /// Bytes after the metadata.
        body: usize,
    },
    /// The broker speaks a durability that this client does not know.
    #[error("unknown durability {0}; upgrade the client")]
    UnknownDurability(u8),
    /// The broker has groups in a state that this client does not know.
    #[error("unknown state {0} of a group; upgrade the client")]
    UnknownGroupState(u8),
}

/// An error that a broker answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {}", if message.is_empty() { code.advice() } else { message })]
pub struct BrokerError {
    /// What went wrong.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do. Empty where the broker said nothing.
    pub message: Arc<str>,
    /// How long to wait before trying again, as the broker suggests; zero where it does not.
    pub retry_after: Duration,
}

impl BrokerError {
    /// An error without words from the broker.
    pub fn of(code: ErrorCode) -> Self {
        Self { code, message: no_words(), retry_after: Duration::ZERO }
    }

    /// Whether the same request can succeed later, having had no effect now.
    pub fn is_retriable(&self) -> bool {
        self.code.is_retriable()
    }

    pub(crate) fn class(&self) -> Class {
        self.code.class()
    }
}

/// One answer.
#[derive(Debug)]
pub struct Response {
    /// The error of the whole request.
    pub error: Option<BrokerError>,
    /// The broker's words about errors of single entries; those of the whole request stand in `error`.
    pub note: Arc<str>,
    /// How long the broker asks the client to hold back.
    pub throttle: Duration,
    /// What was answered; [`Reply::Empty`] with an error.
    pub reply: Reply,
}

impl Response {
    /// The answer to a request that gets none.
    pub(crate) fn empty() -> Self {
        Self { error: None, note: no_words(), throttle: Duration::ZERO, reply: Reply::Empty }
    }

    /// The answer, or the error of the whole request.
    pub fn into_result(self) -> Result<Reply, BrokerError> {
        match self.error {
            None => Ok(self.reply),
            Some(error) => Err(error),
        }
    }
}

/// The empty message, without an allocation for each.
pub(crate) fn no_words() -> Arc<str> {
    static EMPTY: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| Arc::from(""));
    EMPTY.clone()
}

/// The content of an answer.
#[derive(Debug)]
pub enum Reply {
    /// Nothing, or something that this client does not know.
    Empty,
    /// To `Hello`.
    Hello(Hello),
    /// To `Metadata`.
    Metadata(Metadata),
    /// To `Produce`, one per entry.
    Produce {
        /// In the order of the request.
        results: Vec<ProduceResult>,
        /// Where the broker spent its time, if that was asked.
        anatomy: Option<BrokerAnatomy>,
    },
    /// To `Fetch`, one per entry.
    Fetch(Vec<FetchResult>),
    /// To `ListOffsets`, one per entry.
    ListOffsets(Vec<ListOffsetsResult>),
    /// To the requests that change topics.
    Outcomes(Vec<TopicOutcome>),
    /// To `DescribeConfigs`.
    Configs(Vec<TopicConfig>),
    /// To `DescribeLogs`.
    Logs(Vec<TopicLogs>),
    /// To `Status`.
    Status(Box<BrokerStatus>),
    /// To `DescribeCluster`.
    Cluster(Box<ClusterDescription>),
    /// To `MoveHomes`, one per move.
    HomesMoved(Vec<HomeMoved>),
    /// To `ElectLeaders`.
    Elected(Vec<ElectionOutcome>),
    /// To `Heartbeat`.
    Heartbeat(HeartbeatReply),
    /// To `OffsetCommit`, one per entry.
    Committed(Vec<CommitResult>),
    /// To `OffsetFetch`.
    CommittedOffsets(Vec<CommittedOffset>),
    /// To `DescribeGroups`, one per group.
    Groups(Vec<GroupDescription>),
    /// To `ListGroups`, by name.
    GroupList(Vec<ListedGroup>),
    /// To `DeleteGroups`, one per group.
    GroupOutcomes(Vec<GroupOutcome>),
    /// To `InitProducer`: id and epoch.
    Producer(i64, i16),
    /// To `DeleteRecords`, one per entry.
    DeletedRecords(Vec<DeletedRecords>),
}

/// Where a log starts after records were deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletedRecords {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Why nothing was deleted.
    pub error: Option<ErrorCode>,
    /// The first offset that is kept.
    pub log_start: u64,
}

/// Who serves a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version of this connection.
    pub protocol_version: u32,
    /// The broker's number.
    pub broker: u32,
    /// The shard that serves this connection.
    pub shard: u32,
    /// How many shards the broker has.
    pub shards: u32,
    /// The largest frame that the broker accepts.
    pub max_request_bytes: u32,
    /// Name and version of the broker.
    pub software: String,
}

/// What the cluster consists of.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Rises with every committed change.
    pub version: u64,
    /// Every broker.
    pub brokers: Vec<BrokerEndpoint>,
    /// The topics asked for.
    pub topics: Vec<TopicMetadata>,
}

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerEndpoint {
    /// The broker's number.
    pub id: u32,
    /// The advertised host.
    pub host: String,
    /// The advertised port.
    pub port: u16,
    /// How many shards it has.
    pub shards: u32,
    /// Where it stands, as it was told.
    pub rack: Option<String>,
    /// Whether the cluster has not heard of it lately: it leads nothing, and may not answer.
    pub fenced: bool,
}

/// A topic with its partitions.
#[derive(Clone, Debug)]
pub struct TopicMetadata {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: TopicId,
    /// Why there is nothing to tell about it.
    pub error: Option<ErrorCode>,
    /// In ascending order.
    pub partitions: Vec<PartitionPlace>,
    /// Whether it is the broker's own: readable, not writable.
    pub internal: bool,
    /// Whether the latest record of each key is kept: records must have keys.
    pub compacted: bool,
}

/// Where a partition is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionPlace {
    /// The partition.
    pub partition: u32,
    /// The broker that leads it; `None` = nobody just now.
    pub leader: Option<u32>,
    /// The core of that broker that owns it.
    pub shard: u32,
    /// Rises with every change of leader.
    pub leader_epoch: u32,
}

/// Which durability an acknowledgement stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// None: memory only, or nothing is known.
    None,
    /// On the leader's device.
    LeaderDevice,
    /// On the device of every in-sync replica.
    AllInSyncDevice,
}

/// Where the broker's share of a produce request went, nanoseconds; the parts follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokerAnatomy {
    /// First byte of the frame seen → whole frame received.
    pub receive_ns: u64,
    /// → at the owning core.
    pub core_hop_ns: u64,
    /// → validated, offsets assigned, in the group buffer.
    pub append_ns: u64,
    /// → on the device, the wait for the round before included.
    pub device_ns: u64,
    /// → on the in-sync replicas' devices.
    pub replicate_ns: u64,
    /// → reply handed to the socket.
    pub acknowledge_ns: u64,
}

impl BrokerAnatomy {
    /// The broker's whole share, nanoseconds.
    pub fn total_ns(&self) -> u64 {
        [self.receive_ns, self.core_hop_ns, self.append_ns, self.device_ns, self.replicate_ns]
            .iter()
            .fold(self.acknowledge_ns, |sum, part| sum.saturating_add(*part))
    }
}

/// What became of one batch.
#[derive(Clone, Copy, Debug)]
pub struct ProduceResult {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Why it was not appended.
    pub error: Option<ErrorCode>,
    /// The durability reached.
    pub durability: Durability,
    /// The offset of the batch's first record.
    pub base_offset: u64,
    /// When the leader appended it, milliseconds since 1970.
    pub append_time_ms: i64,
    /// Every offset below is on the device.
    pub durable_end: u64,
    /// It was in the log already: offset and time are those of the first time.
    pub duplicate: bool,
}

/// What was read of one partition.
#[derive(Clone, Debug)]
pub struct FetchResult {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Why nothing was read.
    pub error: Option<ErrorCode>,
    /// The offset below which records are visible.
    pub high_watermark: u64,
    /// The first offset kept.
    pub log_start: u64,
    /// Whole stored batches in order; the first may begin below the asked offset.
    pub batches: Bytes,
    /// The broker, and its shard, that the leader says is to be read from the next fetch on; `None` = itself.
    pub preferred: Option<(u32, u32)>,
}

/// A place turned into an offset.
#[derive(Clone, Copy, Debug)]
pub struct ListOffsetsResult {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Why it is not known.
    pub error: Option<ErrorCode>,
    /// The offset.
    pub offset: u64,
    /// Of the record there; -1 = unknown.
    pub timestamp_ms: i64,
}

/// What became of a change to a topic.
#[derive(Clone, Debug)]
pub struct TopicOutcome {
    /// The topic's name.
    pub name: String,
    /// Its identity.
    pub id: TopicId,
    /// Why it was not done.
    pub error: Option<BrokerError>,
}

/// A topic's settings.
#[derive(Clone, Debug)]
pub struct TopicConfig {
    /// The topic's name.
    pub name: String,
    /// Why there is nothing to tell about it.
    pub error: Option<ErrorCode>,
    /// Every setting.
    pub values: Vec<ConfigValue>,
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    /// The field's standard name, as `retention.ms`.
    pub name: String,
    /// The value in force.
    pub value: String,
    /// Whether nobody set it.
    pub is_default: bool,
    /// One sentence with unit and range.
    pub documentation: String,
}

/// What a broker stores of a topic.
#[derive(Clone, Debug)]
pub struct TopicLogs {
    /// The topic's name.
    pub name: String,
    /// Its identity.
    pub id: TopicId,
    /// Why there is nothing to tell about it.
    pub error: Option<ErrorCode>,
    /// In ascending order.
    pub partitions: Vec<PartitionLog>,
}

/// What a broker stores of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLog {
    /// The partition.
    pub partition: u32,
    /// The core that owns it.
    pub shard: u32,
    /// Rises with every change of leader.
    pub leader_epoch: u32,
    /// A damaged or unproven range.
    pub error: Option<ErrorCode>,
    /// The first offset kept.
    pub log_start: u64,
    /// The offset below which records are visible.
    pub high_watermark: u64,
    /// The offset of the next record to be appended.
    pub log_end: u64,
    /// How many segments.
    pub segments: u64,
    /// On disk, padding included.
    pub bytes: u64,
    /// What compaction has done; `None` unless the topic is compacted.
    pub compaction: Option<PartitionCompaction>,
    /// How far those who follow are, as far as this broker leads the partition.
    pub replicas: Vec<ReplicaProgress>,
}

/// How far one replica is behind, as the partition's leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// Whose.
    pub broker: u32,
    /// Every offset below is on its device, as it last acknowledged; `None` = it has not been heard since this leader leads.
    pub end: Option<u64>,
    /// Records of the leader's log that it does not have yet, as far as `end` is known.
    pub lag_records: Option<u64>,
    /// For how long it has not been caught up; 0 = it is.
    pub lag_ms: u64,
    /// It has a stream from the leader.
    pub connected: bool,
}

/// What compaction has done and left of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionCompaction {
    /// Bytes of segments in which every key stands once.
    pub clean_bytes: u64,
    /// Bytes of those that may be compacted and are not.
    pub dirty_bytes: u64,
    /// When the last pass since the broker's start ended, milliseconds since 1970.
    pub last_pass_ms: Option<i64>,
}

impl PartitionCompaction {
    /// The dirty part of what may be compacted, 0 to 1: what `min.cleanable.dirty.ratio` is held against.
    pub fn dirty_ratio(&self) -> f64 {
        match self.clean_bytes + self.dirty_bytes {
            0 => 0.0,
            whole => self.dirty_bytes as f64 / whole as f64,
        }
    }
}

/// What a broker is and does.
#[derive(Clone, Debug, Default)]
pub struct BrokerStatus {
    /// The broker's number.
    pub broker: u32,
    /// Its version.
    pub version: String,
    /// Where it stores.
    pub data_directory: String,
    /// Since its start.
    pub uptime: Duration,
    /// What each core did.
    pub shards: Vec<ShardStatus>,
    /// What the operator should know: unproven tails, damaged ranges, fallbacks, stalls.
    pub notices: Vec<String>,
    /// What went in and out of each topic, by name; empty unless it was asked for.
    pub topics: Vec<TopicStatus>,
    /// Groups and how far they are behind, by name; empty unless it was asked for.
    pub groups: Vec<GroupStatus>,
}

/// A consumer group, seen from the broker that coordinates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: String,
    /// What it does.
    pub state: GroupState,
    /// How many.
    pub members: u32,
    /// Partitions that it has committed for or has a member on.
    pub partitions: u32,
    /// Of those, partitions that nobody leads, or whose leaders did not answer the coordinator.
    pub unknown_partitions: u32,
    /// How far it is behind; `None` = some partitions are unknown, or the broker has too many groups and partitions to look
    /// at all of them.
    pub lag: Option<GroupBehind>,
}

/// How far a group is behind, over all its partitions, whoever leads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBehind {
    /// Records not processed, of all partitions together.
    pub records: u64,
    /// Now, less the timestamp of the oldest record that is the first unread one of a partition; zero = everything is
    /// read. `None` = the time of a partition could not be had this time.
    pub time: Option<Duration>,
}

/// What went in and out of a topic, since the broker took its partitions over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStatus {
    /// Its name.
    pub name: String,
    /// How many of its partitions are on this broker.
    pub partitions: u32,
    /// Batches appended.
    pub produced_batches: u64,
    /// Records appended.
    pub produced_records: u64,
    /// Bytes of batches appended.
    pub produced_bytes: u64,
    /// Bytes of batches sent to consumers.
    pub fetched_bytes: u64,
    /// Files.
    pub segments: u64,
    /// Bytes on disk, padding included.
    pub log_bytes: u64,
    /// Its partitions on this broker; empty unless they were asked for.
    pub traffic: Vec<PartitionTraffic>,
}

/// What went in and out of a partition, since the broker took it over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionTraffic {
    /// The partition.
    pub partition: u32,
    /// The core that has it.
    pub shard: u32,
    /// Batches appended for producers.
    pub produced_batches: u64,
    /// Records appended for producers.
    pub produced_records: u64,
    /// Bytes of batches appended for producers.
    pub produced_bytes: u64,
    /// Bytes of batches sent to consumers.
    pub fetched_bytes: u64,
    /// Bytes of batches appended for a leader on another broker.
    pub replicated_bytes: u64,
}

impl BrokerStatus {
    /// A counter of all cores together; `None` if no core has one of this name.
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.shards.iter().filter_map(|shard| shard.counter(name)).reduce(|sum, value| sum + value)
    }
}

/// What one core did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// The core's number.
    pub shard: u32,
    /// Name (unit last) and value.
    pub counters: Vec<(String, u64)>,
}

impl ShardStatus {
    /// The counter of this name.
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.counters.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }
}
