//! What a client can ask, as plain values, and how they become frames.
//!
//! Owner: whoever sends. A [`Request`] is built by a producer, consumer or admin, encoded once by the
//! connection that sends it, and dropped. Invariant: batch bodies are never copied, only counted; the
//! frame is a head (lengths and FlatBuffer) followed by the bodies as they are. Absent on purpose: ids
//! and deadlines, which belong to the connection.

use crate::cluster_request::{self, Reassignment};
use crate::group_request::{self, Heartbeat, OffsetCommit, OffsetFetch};
use crate::homes::{self, HomeMove};
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use schema::{frame, wire};
use std::num::NonZeroU64;
use std::sync::Arc;

/// A topic's stable identity. A topic deleted and made again under its name is another topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u128);

impl TopicId {
    pub(crate) fn from_wire(id: Option<&wire::TopicId>) -> Self {
        Self(id.map_or(0, wire::TopicId::as_u128))
    }

    pub(crate) fn to_wire(self) -> wire::TopicId {
        wire::TopicId::from_u128(self.0)
    }
}

impl std::fmt::Display for TopicId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Which durability a produce request waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// No reply at all: records can be lost in silence.
    None,
    /// On the leader's device.
    Leader,
    /// On the device of every in-sync replica.
    #[default]
    All,
}

impl Acks {
    fn to_wire(self) -> i8 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }
}

/// One record batch for one partition.
#[derive(Clone, Debug)]
pub struct ProduceEntry {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// The leader epoch that the sender believes in.
    pub leader_epoch: u32,
    /// One encoded record batch.
    pub batch: Bytes,
}

/// One partition to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchEntry {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// The leader epoch that the reader believes in.
    pub leader_epoch: u32,
    /// The first offset wanted.
    pub offset: u64,
    /// At most this many bytes of this partition, one batch excepted.
    pub max_bytes: u32,
}

/// One partition whose offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOffsetsEntry {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// What is looked for.
    pub spec: OffsetSpec,
}

/// A place in a partition, to be turned into an offset by its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first offset that is kept.
    Earliest,
    /// The high watermark: the offset of the next record to become visible.
    Latest,
    /// The first offset whose timestamp is at or after this, milliseconds since 1970.
    Timestamp(i64),
}

impl OffsetSpec {
    fn to_wire(self) -> i64 {
        match self {
            OffsetSpec::Earliest => -2,
            OffsetSpec::Latest => -1,
            // Times before 1970 would read as the two names above.
            OffsetSpec::Timestamp(ms) => ms.max(0),
        }
    }
}

/// One partition whose oldest records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteRecordsEntry {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Records below this offset go; `None` = all that are visible.
    pub before: Option<u64>,
}

/// A topic to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// 1 to 249 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// 0 = the broker's default.
    pub partitions: u32,
    /// 0 = the broker's default.
    pub replication_factor: u32,
    /// Settings that differ from the broker's defaults, as (name, value).
    pub configs: Vec<(String, String)>,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// Everything that a broker can be asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// The first request of a connection.
    Hello {
        /// The shard to be served by; `None` = whichever accepted.
        shard: Option<u32>,
    },
    /// Topics with the places of their partitions; `None` = every topic.
    Metadata {
        /// Names.
        topics: Option<Vec<String>>,
    },
    /// Append batches. Entries of one topic must stand together.
    Produce {
        /// The durability to wait for.
        acks: Acks,
        /// Whether the reply is to say where the time went.
        explain: bool,
        /// At most one entry per partition.
        entries: Vec<ProduceEntry>,
    },
    /// Read stored batches. Entries of one topic must stand together.
    Fetch {
        /// How long the broker may wait for `min_bytes`, milliseconds.
        max_wait_ms: u32,
        /// Answer as soon as this many bytes are there.
        min_bytes: u32,
        /// At most this many bytes in all, one batch excepted.
        max_bytes: u32,
        /// Where the consumer is: followers serve it, too, and leaders name one in that rack; `None` = leaders only.
        rack: Option<Arc<str>>,
        /// What to read.
        entries: Vec<FetchEntry>,
    },
    /// Turn places into offsets. Entries of one topic must stand together.
    ListOffsets {
        /// What to look for.
        entries: Vec<ListOffsetsEntry>,
    },
    /// Make a topic.
    CreateTopic {
        /// The topic.
        topic: NewTopic,
        /// Only check whether it could be made.
        validate_only: bool,
    },
    /// Delete a topic with all its records.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Change a topic's settings.
    AlterConfigs {
        /// The topic's name.
        topic: String,
        /// Settings to set, as (name, value).
        set: Vec<(String, String)>,
        /// Settings to return to their defaults.
        unset: Vec<String>,
    },
    /// A topic's settings.
    DescribeConfigs {
        /// The topic's name.
        topic: String,
    },
    /// Add partitions.
    CreatePartitions {
        /// The topic's name.
        topic: String,
        /// The new total.
        count: u32,
    },
    /// What the broker stores of a topic.
    DescribeLogs {
        /// The topic's name.
        topic: String,
    },
    /// What the broker is and does.
    Status {
        /// Also what went in and out of each topic.
        topics: bool,
        /// Also how far groups are behind.
        groups: bool,
        /// With topics: also what went in and out of each of their partitions.
        partitions: bool,
    },
    /// A group member's sign of life.
    Heartbeat(Box<Heartbeat>),
    /// Commit offsets of a group.
    OffsetCommit(Box<OffsetCommit>),
    /// Committed offsets of a group.
    OffsetFetch(Box<OffsetFetch>),
    /// Groups with their members and offsets.
    DescribeGroups {
        /// Their ids.
        groups: Vec<String>,
    },
    /// Every group that the broker coordinates.
    ListGroups,
    /// Delete groups that have no members, with their offsets.
    DeleteGroups {
        /// Their ids.
        groups: Vec<String>,
    },
    /// An id for a producer, or the next epoch of the one it has.
    InitProducer {
        /// Id and epoch; `None` for a new id.
        known: Option<(i64, i16)>,
    },
    /// Move the starts of logs up. Entries of one topic must stand together.
    DeleteRecords {
        /// Which, and up to where.
        entries: Vec<DeleteRecordsEntry>,
    },
    /// Brokers, quorum, replicas.
    DescribeCluster {
        /// Names; `None` = every topic, an empty list = brokers only.
        topics: Option<Vec<String>>,
    },
    /// Other replicas for partitions.
    ReassignPartitions {
        /// All of them or none.
        moves: Vec<Reassignment>,
    },
    /// A broker gives its leaderships away, or takes part again.
    DrainBroker {
        /// Its number.
        broker: u32,
        /// Whether it drains from now on.
        draining: bool,
    },
    /// What each broker sends at most to replicas that catch up.
    LimitCatchUp {
        /// `None` = no bound.
        bytes_per_second: Option<NonZeroU64>,
    },
    /// A broker goes for good.
    RemoveBroker {
        /// Its number.
        broker: u32,
    },
    /// Replicas of the broker that is asked go to other cores of it.
    MoveHomes {
        /// One after the other.
        moves: Vec<HomeMove>,
    },
    /// Other leaders.
    ElectLeaders {
        /// Topics with their partitions (none = all); `None` = every topic.
        topics: Option<Vec<(String, Vec<u32>)>>,
        /// Whether records may be lost for it.
        unclean: bool,
    },
}

/// What stands around a request in its frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope<'a> {
    pub id: u64,
    pub deadline_ms: u32,
    pub client_id: &'a str,
}

impl Request {
    /// Whether sending it twice does no harm.
    pub fn is_read_only(&self) -> bool {
        match self {
            Request::Hello { .. }
            | Request::Metadata { .. }
            | Request::Fetch { .. }
            | Request::ListOffsets { .. }
            | Request::DescribeConfigs { .. }
            | Request::DescribeLogs { .. }
            | Request::Status { .. }
            | Request::OffsetFetch(_)
            | Request::DescribeGroups { .. }
            | Request::ListGroups
            | Request::DescribeCluster { .. }
            // An id that nobody uses does no harm.
            | Request::InitProducer { .. } => true,
            Request::Produce { .. }
            | Request::CreateTopic { .. }
            | Request::DeleteTopic { .. }
            | Request::AlterConfigs { .. }
            | Request::CreatePartitions { .. }
            | Request::Heartbeat(_)
            | Request::OffsetCommit(_)
            | Request::DeleteGroups { .. }
            | Request::ReassignPartitions { .. }
            | Request::DrainBroker { .. }
            | Request::LimitCatchUp { .. }
            | Request::RemoveBroker { .. }
            | Request::MoveHomes { .. }
            | Request::ElectLeaders { .. }
            | Request::DeleteRecords { .. } => false,
        }
    }

    /// Bytes that follow the head.
    pub(crate) fn body_bytes(&self) -> usize {
        match self {
            Request::Produce { entries, .. } => entries.iter().map(|entry| entry.batch.len()).sum(),
            _ => 0,
        }
    }

    /// Hands out the bodies, in the order in which they follow the head.
    pub(crate) fn into_bodies(self) -> impl Iterator<Item = Bytes> {
        let entries = match self {
            Request::Produce { entries, .. } => entries,
            _ => Vec::new(),
        };
        entries.into_iter().map(|entry| entry.batch)
    }

    /// Appends the frame's head to `out`; `builder` is reset first, so that it can be reused.
    pub(crate) fn encode_head(
        &self,
        builder: &mut FlatBufferBuilder<'static>,
        envelope: Envelope<'_>,
        out: &mut Vec<u8>,
    ) {
        builder.reset();
        let (api_type, api) = self.encode_api(builder);
        let client_id = Some(builder.create_string(envelope.client_id));
        let root = wire::Request::create(
            builder,
            &wire::RequestArgs {
                id: envelope.id,
                deadline_ms: envelope.deadline_ms,
                client_id,
                api_type,
                api: Some(api),
            },
        );
        frame::finish_request(out, builder, root, self.body_bytes());
    }

    fn encode_api(
        &self,
        b: &mut FlatBufferBuilder<'static>,
    ) -> (wire::RequestApi, WIPOffset<UnionWIPOffset>) {
        use wire::RequestApi as Api;
        match self {
            Request::Hello { shard } => {
                let args = wire::HelloRequestArgs {
                    shard: shard.map_or(-1, |shard| shard as i32),
                    protocol_version: schema::PROTOCOL_VERSION,
                    ..Default::default()
                };
                (Api::HelloRequest, wire::HelloRequest::create(b, &args).as_union_value())
            }
            Request::Metadata { topics } => {
                let topics = topics.as_ref().map(|names| strings(b, names));
                let args = wire::MetadataRequestArgs { topics };
                (Api::MetadataRequest, wire::MetadataRequest::create(b, &args).as_union_value())
            }
            Request::Produce { acks, explain, entries } => {
                let mut topics = Vec::new();
                for run in entries.chunk_by(|one, next| one.topic == next.topic) {
                    let structs = run.iter().map(|entry| {
                        wire::ProduceEntry::new(
                            entry.partition,
                            entry.batch.len() as u32,
                            entry.leader_epoch,
                            0,
                        )
                    });
                    let entries = Some(b.create_vector_from_iter(structs));
                    let args = wire::ProduceTopicArgs { id: Some(&run[0].topic.to_wire()), entries };
                    topics.push(wire::ProduceTopic::create(b, &args));
                }
                let topics = Some(b.create_vector(&topics));
                let args = wire::ProduceRequestArgs { acks: acks.to_wire(), explain: *explain, topics };
                (Api::ProduceRequest, wire::ProduceRequest::create(b, &args).as_union_value())
            }
            Request::Fetch { max_wait_ms, min_bytes, max_bytes, rack, entries } => {
                let mut topics = Vec::new();
                for run in entries.chunk_by(|one, next| one.topic == next.topic) {
                    let structs = run.iter().map(|e| {
                        wire::FetchEntry::new(e.partition, e.max_bytes, e.offset, e.leader_epoch, 0)
                    });
                    let entries = Some(b.create_vector_from_iter(structs));
                    let args = wire::FetchTopicArgs { id: Some(&run[0].topic.to_wire()), entries };
                    topics.push(wire::FetchTopic::create(b, &args));
                }
                let topics = Some(b.create_vector(&topics));
                let rack = rack.as_ref().map(|rack| b.create_string(rack));
                let args = wire::FetchRequestArgs {
                    max_wait_ms: *max_wait_ms,
                    min_bytes: *min_bytes,
                    max_bytes: *max_bytes,
                    topics,
                    rack,
                };
                (Api::FetchRequest, wire::FetchRequest::create(b, &args).as_union_value())
            }
            Request::ListOffsets { entries } => {
                let mut topics = Vec::new();
                for run in entries.chunk_by(|one, next| one.topic == next.topic) {
                    let structs =
                        run.iter().map(|e| wire::ListOffsetsEntry::new(e.partition, 0, e.spec.to_wire()));
                    let entries = Some(b.create_vector_from_iter(structs));
                    let args = wire::ListOffsetsTopicArgs { id: Some(&run[0].topic.to_wire()), entries };
                    topics.push(wire::ListOffsetsTopic::create(b, &args));
                }
                let topics = Some(b.create_vector(&topics));
                let args = wire::ListOffsetsRequestArgs { topics };
                (Api::ListOffsetsRequest, wire::ListOffsetsRequest::create(b, &args).as_union_value())
            }
            Request::CreateTopic { topic, validate_only } => {
                let args = wire::NewTopicArgs {
                    name: Some(b.create_string(&topic.name)),
                    partitions: topic.partitions,
                    replication_factor: topic.replication_factor,
                    configs: Some(configs(b, &topic.configs)),
                };
                let topic = wire::NewTopic::create(b, &args);
                let topics = Some(b.create_vector(&[topic]));
                let args = wire::CreateTopicsRequestArgs { topics, validate_only: *validate_only };
                (Api::CreateTopicsRequest, wire::CreateTopicsRequest::create(b, &args).as_union_value())
            }
            Request::DeleteTopic { name } => {
                let names = Some(strings(b, &[name]));
                let args = wire::DeleteTopicsRequestArgs { names };
                (Api::DeleteTopicsRequest, wire::DeleteTopicsRequest::create(b, &args).as_union_value())
            }
            Request::AlterConfigs { topic, set, unset } => {
                let args = wire::AlterConfigsRequestArgs {
                    topic: Some(b.create_string(topic)),
                    set: Some(configs(b, set)),
                    unset: Some(strings(b, unset)),
                };
                (Api::AlterConfigsRequest, wire::AlterConfigsRequest::create(b, &args).as_union_value())
            }
            Request::DescribeConfigs { topic } => {
                let topics = Some(strings(b, &[topic]));
                let args = wire::DescribeConfigsRequestArgs { topics };
                (Api::DescribeConfigsRequest, wire::DescribeConfigsRequest::create(b, &args).as_union_value())
            }
            Request::CreatePartitions { topic, count } => {
                let args =
                    wire::CreatePartitionsRequestArgs { topic: Some(b.create_string(topic)), count: *count };
                (
                    Api::CreatePartitionsRequest,
                    wire::CreatePartitionsRequest::create(b, &args).as_union_value(),
                )
            }
            Request::DescribeLogs { topic } => {
                let topics = Some(strings(b, &[topic]));
                let args = wire::DescribeLogsRequestArgs { topics };
                (Api::DescribeLogsRequest, wire::DescribeLogsRequest::create(b, &args).as_union_value())
            }
            Request::DeleteRecords { entries } => {
                let mut topics = Vec::new();
                for run in entries.chunk_by(|one, next| one.topic == next.topic) {
                    let structs = run
                        .iter()
                        .map(|e| wire::DeleteRecordsEntry::new(e.partition, 0, e.before.unwrap_or(u64::MAX)));
                    let entries = Some(b.create_vector_from_iter(structs));
                    let args = wire::DeleteRecordsTopicArgs { id: Some(&run[0].topic.to_wire()), entries };
                    topics.push(wire::DeleteRecordsTopic::create(b, &args));
                }
                let topics = Some(b.create_vector(&topics));
                let args = wire::DeleteRecordsRequestArgs { topics };
                (Api::DeleteRecordsRequest, wire::DeleteRecordsRequest::create(b, &args).as_union_value())
            }
            Request::Status { topics, groups, partitions } => {
                let args =
                    wire::StatusRequestArgs { topics: *topics, groups: *groups, partitions: *partitions };
                let api = wire::StatusRequest::create(b, &args);
                (Api::StatusRequest, api.as_union_value())
            }
            Request::Heartbeat(heartbeat) => heartbeat.encode(b),
            Request::OffsetCommit(commit) => commit.encode(b),
            Request::OffsetFetch(fetch) => fetch.encode(b),
            Request::DescribeGroups { groups } => group_request::encode_describe(b, groups),
            Request::ListGroups => group_request::encode_list(b),
            Request::DeleteGroups { groups } => group_request::encode_delete(b, groups),
            Request::DescribeCluster { topics } => cluster_request::encode_describe(b, topics.as_deref()),
            Request::ReassignPartitions { moves } => cluster_request::encode_reassign(b, moves),
            Request::DrainBroker { broker, draining } => cluster_request::encode_drain(b, *broker, *draining),
            Request::LimitCatchUp { bytes_per_second } => {
                cluster_request::encode_limit_catch_up(b, *bytes_per_second)
            }
            Request::RemoveBroker { broker } => cluster_request::encode_remove(b, *broker),
            Request::MoveHomes { moves } => homes::encode(b, moves),
            Request::ElectLeaders { topics, unclean } => {
                cluster_request::encode_elect(b, topics.as_deref(), *unclean)
            }
            Request::InitProducer { known } => {
                let (producer_id, producer_epoch) = known.unwrap_or((-1, -1));
                let args = wire::InitProducerRequestArgs { producer_id, producer_epoch };
                (Api::InitProducerRequest, wire::InitProducerRequest::create(b, &args).as_union_value())
            }
        }
    }
}

pub(crate) type Strings = WIPOffset<flatbuffers::Vector<'static, flatbuffers::ForwardsUOffset<&'static str>>>;
type Configs =
    WIPOffset<flatbuffers::Vector<'static, flatbuffers::ForwardsUOffset<wire::ConfigEntry<'static>>>>;

pub(crate) fn strings(builder: &mut FlatBufferBuilder<'static>, values: &[impl AsRef<str>]) -> Strings {
    let offsets: Vec<_> = values.iter().map(|value| builder.create_string(value.as_ref())).collect();
    builder.create_vector(&offsets)
}

fn configs(builder: &mut FlatBufferBuilder<'static>, entries: &[(String, String)]) -> Configs {
    let offsets: Vec<_> = entries
        .iter()
        .map(|(name, value)| {
            let name = Some(builder.create_string(name));
            let value = Some(builder.create_string(value));
            wire::ConfigEntry::create(builder, &wire::ConfigEntryArgs { name, value })
        })
        .collect();
    builder.create_vector(&offsets)
}
