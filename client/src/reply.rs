//! What a broker answers, as plain values decoded once by the connection that read them.
//!
//! Owner: the connection makes a [`Response`] from verified metadata and gives it to whoever asked.
//! Invariants: an unknown error number or a body that its entries do not add up to is a protocol
//! violation, never a guess; bodies are slices of the one buffer that was read. Absent on purpose: the
//! FlatBuffers types, which do not leave this module.

use crate::group_request::GroupState;
use crate::group_request::{
    self, CommitResult, CommittedOffset, GroupDescription, GroupOutcome, HeartbeatReply, ListedGroup,
};
use crate::request::TopicId;
use bytes::Bytes;
use flatbuffers::{ForwardsUOffset, Vector};
use schema::error_code::{Class, ErrorCode};
use schema::wire;
use std::collections::HashMap;
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
    /// The leader.
    pub broker: u32,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// How far it is behind; `None` = the broker has too many groups and partitions to look at all of them.
    pub lag: Option<GroupBehind>,
}

/// How far a group is behind, over all its partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBehind {
    /// Records not processed, of all partitions together.
    pub records: u64,
    /// Now, less the timestamp of the oldest record that is the first unread one of a partition; zero = everything is
    /// read.
    pub time: Duration,
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

/// The bit of a produce result's flags that says so.
const DUPLICATE: u8 = 1;

type Tables<'a, T> = Option<Vector<'a, ForwardsUOffset<T>>>;

/// The id that a response answers, and the response.
pub(crate) fn decode(response: &wire::Response<'_>, body: Bytes) -> Result<Response, ReplyError> {
    let retry_after = Duration::from_millis(u64::from(response.retry_after_ms()));
    let note: Arc<str> = match response.message() {
        None | Some("") => no_words(),
        Some(message) => message.into(),
    };
    let error = code(response.error())?.map(|code| BrokerError { code, message: note.clone(), retry_after });
    let throttle = Duration::from_millis(u64::from(response.throttle_ms()));
    Ok(Response { error, note, throttle, reply: decode_reply(response, body)? })
}

fn decode_reply(response: &wire::Response<'_>, body: Bytes) -> Result<Reply, ReplyError> {
    if let Some(reply) = response.api_as_produce_response() {
        let mut results = Vec::new();
        for topic in reply.topics().into_iter().flatten() {
            let id = TopicId::from_wire(topic.id());
            for result in topic.results().into_iter().flatten() {
                results.push(ProduceResult {
                    topic: id,
                    partition: result.partition(),
                    error: code(result.error())?,
                    durability: durability(result.durability())?,
                    base_offset: result.base_offset(),
                    append_time_ms: result.append_time_ms(),
                    durable_end: result.durable_end(),
                    duplicate: result.flags() & DUPLICATE != 0,
                });
            }
        }
        return Ok(Reply::Produce { results, anatomy: reply.anatomy().map(anatomy) });
    }
    if let Some(reply) = response.api_as_fetch_response() {
        return fetch(&reply, body).map(Reply::Fetch);
    }
    if let Some(reply) = response.api_as_hello_response() {
        return Ok(Reply::Hello(Hello {
            protocol_version: reply.protocol_version(),
            broker: reply.broker(),
            shard: reply.shard(),
            shards: reply.shards(),
            max_request_bytes: reply.max_request_bytes(),
            software: text(reply.software()),
        }));
    }
    if let Some(reply) = response.api_as_metadata_response() {
        return metadata(&reply).map(Reply::Metadata);
    }
    if let Some(reply) = response.api_as_list_offsets_response() {
        let mut results = Vec::new();
        for topic in reply.topics().into_iter().flatten() {
            let id = TopicId::from_wire(topic.id());
            for result in topic.results().into_iter().flatten() {
                results.push(ListOffsetsResult {
                    topic: id,
                    partition: result.partition(),
                    error: code(result.error())?,
                    offset: result.offset(),
                    timestamp_ms: result.timestamp_ms(),
                });
            }
        }
        return Ok(Reply::ListOffsets(results));
    }
    decode_admin_reply(response)
}

fn decode_admin_reply(response: &wire::Response<'_>) -> Result<Reply, ReplyError> {
    if let Some(reply) = response.api_as_create_topics_response() {
        return outcomes(reply.outcomes().into_iter().flatten());
    }
    if let Some(reply) = response.api_as_delete_topics_response() {
        return outcomes(reply.outcomes().into_iter().flatten());
    }
    if let Some(reply) = response.api_as_alter_configs_response() {
        return outcomes(reply.outcome().into_iter());
    }
    if let Some(reply) = response.api_as_create_partitions_response() {
        return outcomes(reply.outcome().into_iter());
    }
    if let Some(reply) = response.api_as_describe_configs_response() {
        return configs(reply.topics()).map(Reply::Configs);
    }
    if let Some(reply) = response.api_as_describe_logs_response() {
        return logs(reply.topics()).map(Reply::Logs);
    }
    if let Some(reply) = response.api_as_init_producer_response() {
        return Ok(Reply::Producer(reply.producer_id(), reply.producer_epoch()));
    }
    if let Some(reply) = response.api_as_delete_records_response() {
        let mut results = Vec::new();
        for topic in reply.topics().into_iter().flatten() {
            let id = TopicId::from_wire(topic.id());
            for result in topic.results().into_iter().flatten() {
                results.push(DeletedRecords {
                    topic: id,
                    partition: result.partition(),
                    error: code(result.error())?,
                    log_start: result.log_start(),
                });
            }
        }
        return Ok(Reply::DeletedRecords(results));
    }
    if let Some(reply) = response.api_as_status_response() {
        let shard = |shard: wire::ShardStatus<'_>| ShardStatus {
            shard: shard.shard(),
            counters: (shard.counters().into_iter().flatten())
                .map(|counter| (text(counter.name()), counter.value()))
                .collect(),
        };
        let topic = |topic: wire::TopicStatus<'_>| TopicStatus {
            name: text(topic.name()),
            partitions: topic.partitions(),
            produced_batches: topic.produced_batches(),
            produced_records: topic.produced_records(),
            produced_bytes: topic.produced_bytes(),
            fetched_bytes: topic.fetched_bytes(),
            segments: topic.segments(),
            log_bytes: topic.log_bytes(),
        };
        let group = |group: wire::GroupStatus<'_>| {
            let behind =
                GroupBehind { records: group.lag_records(), time: Duration::from_millis(group.lag_ms()) };
            Ok(GroupStatus {
                group: text(group.group()),
                state: group_request::state(group.state())?,
                members: group.members(),
                partitions: group.partitions(),
                lag: group.lag_known().then_some(behind),
            })
        };
        let groups = reply.groups().into_iter().flatten().map(group);
        return Ok(Reply::Status(Box::new(BrokerStatus {
            broker: reply.broker(),
            version: text(reply.version()),
            data_directory: text(reply.data_directory()),
            uptime: Duration::from_millis(reply.uptime_ms()),
            shards: reply.shards().into_iter().flatten().map(shard).collect(),
            notices: reply.notices().into_iter().flatten().map(str::to_owned).collect(),
            topics: reply.topics().into_iter().flatten().map(topic).collect(),
            groups: groups.collect::<Result<_, ReplyError>>()?,
        })));
    }
    decode_group_reply(response)
}

fn decode_group_reply(response: &wire::Response<'_>) -> Result<Reply, ReplyError> {
    if let Some(reply) = response.api_as_consumer_group_heartbeat_response() {
        return Ok(Reply::Heartbeat(group_request::heartbeat(&reply)));
    }
    if let Some(reply) = response.api_as_offset_commit_response() {
        return group_request::commit(&reply).map(Reply::Committed);
    }
    if let Some(reply) = response.api_as_offset_fetch_response() {
        return Ok(Reply::CommittedOffsets(group_request::fetched(&reply)));
    }
    if let Some(reply) = response.api_as_describe_groups_response() {
        return group_request::described(&reply).map(Reply::Groups);
    }
    if let Some(reply) = response.api_as_list_groups_response() {
        return group_request::listed(&reply).map(Reply::GroupList);
    }
    if let Some(reply) = response.api_as_delete_groups_response() {
        return group_request::deleted(&reply).map(Reply::GroupOutcomes);
    }
    Ok(Reply::Empty)
}

fn metadata(reply: &wire::MetadataResponse<'_>) -> Result<Metadata, ReplyError> {
    let brokers = (reply.brokers().into_iter().flatten())
        .map(|broker| BrokerEndpoint {
            id: broker.id(),
            host: text(broker.host()),
            port: broker.port(),
            shards: broker.shards(),
        })
        .collect();
    let mut topics = Vec::new();
    for topic in reply.topics().into_iter().flatten() {
        let mut partitions: Vec<_> = (topic.partitions().into_iter().flatten())
            .map(|place| PartitionPlace {
                partition: place.partition(),
                broker: place.broker(),
                shard: place.shard(),
                leader_epoch: place.leader_epoch(),
            })
            .collect();
        partitions.sort_unstable_by_key(|place| place.partition);
        topics.push(TopicMetadata {
            name: text(topic.name()),
            id: TopicId::from_wire(topic.id()),
            error: code(topic.error())?,
            partitions,
            internal: topic.internal(),
            compacted: topic.compacted(),
        });
    }
    Ok(Metadata { version: reply.version(), brokers, topics })
}

fn fetch(reply: &wire::FetchResponse<'_>, mut body: Bytes) -> Result<Vec<FetchResult>, ReplyError> {
    let lengths = (reply.topics().into_iter().flatten()).flat_map(|topic| {
        topic.results().into_iter().flatten().map(|result| u64::from(result.body_length()))
    });
    let announced: u64 = lengths.sum();
    if announced != body.len() as u64 {
        return Err(ReplyError::WrongBodyLength { announced, body: body.len() });
    }
    let mut results = Vec::new();
    for topic in reply.topics().into_iter().flatten() {
        let id = TopicId::from_wire(topic.id());
        for result in topic.results().into_iter().flatten() {
            results.push(FetchResult {
                topic: id,
                partition: result.partition(),
                error: code(result.error())?,
                high_watermark: result.high_watermark(),
                log_start: result.log_start(),
                batches: body.split_to(result.body_length() as usize),
            });
        }
    }
    Ok(results)
}

fn outcomes<'a>(outcomes: impl Iterator<Item = wire::TopicOutcome<'a>>) -> Result<Reply, ReplyError> {
    let mut list = Vec::new();
    for outcome in outcomes {
        let error = code(outcome.error())?.map(|code| BrokerError {
            code,
            message: outcome.message().unwrap_or_default().into(),
            retry_after: Duration::ZERO,
        });
        list.push(TopicOutcome { name: text(outcome.name()), id: TopicId::from_wire(outcome.id()), error });
    }
    Ok(Reply::Outcomes(list))
}

fn configs(topics: Tables<'_, wire::TopicConfig<'_>>) -> Result<Vec<TopicConfig>, ReplyError> {
    let mut list = Vec::new();
    for topic in topics.into_iter().flatten() {
        let values = (topic.values().into_iter().flatten())
            .map(|value| ConfigValue {
                name: text(value.name()),
                value: text(value.value()),
                is_default: value.is_default(),
                documentation: text(value.documentation()),
            })
            .collect();
        list.push(TopicConfig { name: text(topic.name()), error: code(topic.error())?, values });
    }
    Ok(list)
}

fn logs(topics: Tables<'_, wire::TopicLogs<'_>>) -> Result<Vec<TopicLogs>, ReplyError> {
    let mut list = Vec::new();
    for topic in topics.into_iter().flatten() {
        let compaction: HashMap<u32, PartitionCompaction> = (topic.compaction().into_iter().flatten())
            .map(|found| {
                let compaction = PartitionCompaction {
                    clean_bytes: found.clean_bytes(),
                    dirty_bytes: found.dirty_bytes(),
                    last_pass_ms: Some(found.last_pass_ms()).filter(|ms| *ms > 0),
                };
                (found.partition(), compaction)
            })
            .collect();
        let mut partitions = Vec::new();
        for log in topic.partitions().into_iter().flatten() {
            partitions.push(PartitionLog {
                partition: log.partition(),
                shard: log.shard(),
                leader_epoch: log.leader_epoch(),
                error: code(log.error())?,
                log_start: log.log_start(),
                high_watermark: log.high_watermark(),
                log_end: log.log_end(),
                segments: log.segments(),
                bytes: log.bytes(),
                compaction: compaction.get(&log.partition()).copied(),
            });
        }
        partitions.sort_unstable_by_key(|log| log.partition);
        let id = TopicId::from_wire(topic.id());
        list.push(TopicLogs { name: text(topic.name()), id, error: code(topic.error())?, partitions });
    }
    Ok(list)
}

fn anatomy(wire: &wire::Anatomy) -> BrokerAnatomy {
    BrokerAnatomy {
        receive_ns: wire.receive_ns(),
        core_hop_ns: wire.core_hop_ns(),
        append_ns: wire.append_ns(),
        device_ns: wire.device_ns(),
        replicate_ns: wire.replicate_ns(),
        acknowledge_ns: wire.acknowledge_ns(),
    }
}

pub(crate) fn code(number: u16) -> Result<Option<ErrorCode>, ReplyError> {
    match (number, ErrorCode::from_wire(number)) {
        (0, _) => Ok(None),
        (_, Some(code)) => Ok(Some(code)),
        (_, None) => Err(ReplyError::UnknownError(number)),
    }
}

fn durability(wire: wire::Durability) -> Result<Durability, ReplyError> {
    match wire {
        wire::Durability::None => Ok(Durability::None),
        wire::Durability::LeaderDevice => Ok(Durability::LeaderDevice),
        wire::Durability::AllInSyncDevice => Ok(Durability::AllInSyncDevice),
        wire::Durability(other) => Err(ReplyError::UnknownDurability(other)),
    }
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}
