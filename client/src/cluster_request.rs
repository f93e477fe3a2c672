//! What can be said about the cluster: brokers, replicas, leaders, and changes of them.
//!
//! Owner: [`crate::Admin`] makes the requests, the connection decodes the answers. Plain values; bytes and FlatBuffers do
//! not leave this file.

use crate::reply::{ReplyError, code};
use crate::request::{TopicId, strings};
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use schema::error_code::ErrorCode;
use schema::wire;
use std::num::NonZeroU64;
use std::time::Duration;

/// Stands for a broker where there is none.
const NO_BROKER: u32 = u32::MAX;

/// A broker as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDescription {
    /// Its number.
    pub id: u32,
    /// The advertised host.
    pub host: String,
    /// The advertised port.
    pub port: u16,
    /// How many shards it has.
    pub shards: u32,
    /// Where it stands.
    pub rack: Option<String>,
    /// Which registration of it; a restart makes a higher one.
    pub epoch: u64,
    /// The cluster does not hear of it, or it has not caught up since it started.
    pub fenced: bool,
    /// It gives its leaderships away and gets no new replicas.
    pub draining: bool,
    /// How many replicas it has, internal topics included.
    pub replicas: u32,
    /// How many partitions it leads.
    pub leaders: u32,
    /// Replicas that may have lost their tail in a crash and have not been made good yet.
    pub suspects: u32,
}

/// A member of the group that keeps the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumMember {
    /// The broker.
    pub broker: u32,
    /// Whether it has a vote; others only follow.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// The last entry of the metadata's log that it has, and how long ago it was heard of; `None` where the broker that
    /// answered does not know.
    pub progress: Option<(u64, Duration)>,
}

/// One replica of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Whose.
    pub broker: u32,
    /// Which time that broker was given it.
    pub generation: u32,
    /// It has everything acknowledged.
    pub in_sync: bool,
    /// It had everything acknowledged when it left the in-sync set, and nothing has been acknowledged since.
    pub eligible: bool,
    /// A reassignment brings it.
    pub adding: bool,
    /// A reassignment takes it away.
    pub removing: bool,
    /// The core of that broker that has it.
    pub shard: u32,
}

/// Who keeps a partition, and who leads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionReplicas {
    /// The partition.
    pub partition: u32,
    /// `None` = nobody just now.
    pub leader: Option<u32>,
    /// Rises with every change of leader.
    pub leader_epoch: u32,
    /// Rises with every change of what stands here.
    pub partition_epoch: u32,
    /// Below so many in-sync replicas nothing is taken and nothing becomes visible.
    pub min_in_sync: u32,
    /// The preferred leader first.
    pub replicas: Vec<ReplicaState>,
}

impl PartitionReplicas {
    /// How many replicas are in sync.
    pub fn in_sync(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.in_sync).count()
    }

    /// Whether a replica that should be in sync is not.
    pub fn is_under_replicated(&self) -> bool {
        self.replicas.iter().any(|replica| !replica.in_sync && !replica.adding)
    }

    /// Whether too few are in sync to take anything with `acks` all.
    pub fn is_below_minimum(&self) -> bool {
        self.in_sync() < self.min_in_sync as usize
    }

    /// Whether other replicas are on their way.
    pub fn is_moving(&self) -> bool {
        self.replicas.iter().any(|replica| replica.adding || replica.removing)
    }

    /// Who leads it when all are well.
    pub fn preferred_leader(&self) -> Option<u32> {
        self.replicas.first().map(|replica| replica.broker)
    }
}

/// The replicas of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicReplicas {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: TopicId,
    /// Why there is nothing to tell about it.
    pub error: Option<ErrorCode>,
    /// Whether it is the broker's own.
    pub internal: bool,
    /// In ascending order.
    pub partitions: Vec<PartitionReplicas>,
}

/// The cluster as one broker knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDescription {
    /// The cluster's identity; `None` = it has none yet.
    pub cluster: Option<TopicId>,
    /// Of the metadata; rises with every change.
    pub version: u64,
    /// The broker that told all this.
    pub answered_by: u32,
    /// The broker that leads the metadata; `None` = nobody is known to.
    pub controller: Option<u32>,
    /// Of that leadership.
    pub term: u64,
    /// The last entry of the metadata's log that counts.
    pub committed: u64,
    /// Who keeps the metadata. Empty: the broker is alone.
    pub quorum: Vec<QuorumMember>,
    /// By number.
    pub brokers: Vec<BrokerDescription>,
    /// Those asked for.
    pub topics: Vec<TopicReplicas>,
    /// What each broker sends at most to replicas that catch up, all together; `None` = no bound.
    pub catch_up_bytes_per_second: Option<NonZeroU64>,
    /// The broker that answered does not hear from the leader of the metadata: this may be old.
    pub behind: bool,
}

impl ClusterDescription {
    /// The broker of this number.
    pub fn broker(&self, id: u32) -> Option<&BrokerDescription> {
        self.brokers.iter().find(|broker| broker.id == id)
    }

    /// Every partition with its topic.
    pub fn partitions(&self) -> impl Iterator<Item = (&TopicReplicas, &PartitionReplicas)> {
        self.topics.iter().flat_map(|topic| topic.partitions.iter().map(move |partition| (topic, partition)))
    }
}

/// Other replicas for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Who is to keep it, the preferred leader first. Empty: the move that is under way is given up.
    pub replicas: Vec<u32>,
}

/// What an election came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionOutcome {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Who takes over as soon as it can, or why nobody does.
    pub leader: Result<u32, ErrorCode>,
}

type Encoded = (wire::RequestApi, WIPOffset<UnionWIPOffset>);
type Builder = FlatBufferBuilder<'static>;

pub(crate) fn encode_describe(b: &mut Builder, topics: Option<&[String]>) -> Encoded {
    let topics = topics.map(|topics| strings(b, topics));
    let args = wire::DescribeClusterRequestArgs { topics };
    let api = wire::DescribeClusterRequest::create(b, &args).as_union_value();
    (wire::RequestApi::DescribeClusterRequest, api)
}

pub(crate) fn encode_reassign(b: &mut Builder, moves: &[Reassignment]) -> Encoded {
    let moves: Vec<_> = moves
        .iter()
        .map(|one| {
            let args = wire::ReassignmentArgs {
                topic: Some(b.create_string(&one.topic)),
                partition: one.partition,
                replicas: Some(b.create_vector(&one.replicas)),
            };
            wire::Reassignment::create(b, &args)
        })
        .collect();
    let moves = Some(b.create_vector(&moves));
    let api = wire::ReassignPartitionsRequest::create(b, &wire::ReassignPartitionsRequestArgs { moves });
    (wire::RequestApi::ReassignPartitionsRequest, api.as_union_value())
}

pub(crate) fn encode_drain(b: &mut Builder, broker: u32, draining: bool) -> Encoded {
    let api = wire::DrainBrokerRequest::create(b, &wire::DrainBrokerRequestArgs { broker, draining });
    (wire::RequestApi::DrainBrokerRequest, api.as_union_value())
}

pub(crate) fn encode_limit_catch_up(b: &mut Builder, bytes_per_second: Option<NonZeroU64>) -> Encoded {
    let bytes_per_second = bytes_per_second.map_or(0, NonZeroU64::get);
    let api = wire::LimitCatchUpRequest::create(b, &wire::LimitCatchUpRequestArgs { bytes_per_second });
    (wire::RequestApi::LimitCatchUpRequest, api.as_union_value())
}

pub(crate) fn encode_remove(b: &mut Builder, broker: u32) -> Encoded {
    let api = wire::RemoveBrokerRequest::create(b, &wire::RemoveBrokerRequestArgs { broker });
    (wire::RequestApi::RemoveBrokerRequest, api.as_union_value())
}

pub(crate) fn encode_elect(b: &mut Builder, topics: Option<&[(String, Vec<u32>)]>, unclean: bool) -> Encoded {
    let topics = topics.map(|topics| {
        let topics: Vec<_> = topics
            .iter()
            .map(|(name, partitions)| {
                let args = wire::ElectTopicArgs {
                    name: Some(b.create_string(name)),
                    partitions: Some(b.create_vector(partitions)),
                };
                wire::ElectTopic::create(b, &args)
            })
            .collect();
        b.create_vector(&topics)
    });
    let api = wire::ElectLeadersRequest::create(b, &wire::ElectLeadersRequestArgs { topics, unclean });
    (wire::RequestApi::ElectLeadersRequest, api.as_union_value())
}

pub(crate) fn described(reply: &wire::DescribeClusterResponse<'_>) -> Result<ClusterDescription, ReplyError> {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let member = |member: &wire::QuorumMember| QuorumMember {
        broker: member.broker(),
        voter: member.voter(),
        leader: member.leader(),
        progress: (member.known()).then(|| (member.matched(), Duration::from_millis(member.silent_ms()))),
    };
    let broker = |broker: wire::BrokerDescription<'_>| BrokerDescription {
        id: broker.id(),
        host: text(broker.host()),
        port: broker.port(),
        shards: broker.shards(),
        rack: broker.rack().filter(|rack| !rack.is_empty()).map(str::to_owned),
        epoch: broker.epoch(),
        fenced: broker.fenced(),
        draining: broker.draining(),
        replicas: broker.replicas(),
        leaders: broker.leaders(),
        suspects: broker.suspects(),
    };
    let mut topics = Vec::new();
    for topic in reply.topics().into_iter().flatten() {
        let mut replicas = topic.replicas().into_iter().flatten().map(|replica| ReplicaState {
            broker: replica.broker(),
            generation: replica.generation(),
            in_sync: replica.in_sync(),
            eligible: replica.eligible(),
            adding: replica.adding(),
            removing: replica.removing(),
            shard: replica.shard(),
        });
        let mut partitions = Vec::new();
        for state in topic.partitions().into_iter().flatten() {
            partitions.push(PartitionReplicas {
                partition: state.partition(),
                leader: Some(state.leader()).filter(|leader| *leader != NO_BROKER),
                leader_epoch: state.leader_epoch(),
                partition_epoch: state.partition_epoch(),
                min_in_sync: state.min_in_sync(),
                // As many as there are: a count that is too high brings nothing.
                replicas: replicas.by_ref().take(state.replicas() as usize).collect(),
            });
        }
        topics.push(TopicReplicas {
            name: text(topic.name()),
            id: TopicId::from_wire(topic.id()),
            error: code(topic.error())?,
            internal: topic.internal(),
            partitions,
        });
    }
    Ok(ClusterDescription {
        cluster: reply.cluster().map(|id| TopicId::from_wire(Some(id))),
        version: reply.version(),
        answered_by: reply.answered_by(),
        controller: u32::try_from(reply.controller()).ok(),
        term: reply.term(),
        committed: reply.committed(),
        quorum: reply.quorum().into_iter().flatten().map(member).collect(),
        brokers: reply.brokers().into_iter().flatten().map(broker).collect(),
        topics,
        catch_up_bytes_per_second: NonZeroU64::new(reply.catch_up_bytes_per_second()),
        behind: reply.behind(),
    })
}

pub(crate) fn elected(reply: &wire::ElectLeadersResponse<'_>) -> Result<Vec<ElectionOutcome>, ReplyError> {
    let mut outcomes = Vec::new();
    for outcome in reply.outcomes().into_iter().flatten() {
        outcomes.push(ElectionOutcome {
            topic: outcome.topic().unwrap_or_default().to_owned(),
            partition: outcome.partition(),
            leader: match code(outcome.error())? {
                None => Ok(outcome.leader()),
                Some(code) => Err(code),
            },
        });
    }
    Ok(outcomes)
}
