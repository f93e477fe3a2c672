//! What a coordinator of consumer groups can be asked and answers, as plain values, and how they become
//! FlatBuffers.
//!
//! Owner: whoever sends; the connection encodes and decodes, as for [`crate::request`] and [`crate::reply`],
//! of which this is the part about groups. The protocol itself (who is asked, what follows which answer) is
//! stated in `schema/definitions/wire.fbs`. Invariant: nothing is guessed; an unknown error number is a
//! protocol violation. Absent on purpose: any state of a member.

use crate::reply::{BrokerError, ReplyError, code};
use crate::request::{TopicId, strings};
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};
use schema::error_code::ErrorCode;
use schema::wire;
use std::time::Duration;

/// The epoch with which a member joins.
pub const JOIN_EPOCH: i32 = 0;
/// The epoch with which a member leaves.
pub const LEAVE_EPOCH: i32 = -1;
/// The epoch with which a static member leaves for a while.
pub const LEAVE_STATIC_EPOCH: i32 = -2;
/// The epoch of whoever commits without being a member.
pub const NO_MEMBER_EPOCH: i32 = -1;

/// Partitions of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTopic {
    /// The topic.
    pub id: TopicId,
    /// Its name; empty in requests, and where the topic is gone.
    pub name: String,
    /// Its partitions.
    pub partitions: Vec<u32>,
}

/// A member's sign of life. `None` = as before (in a join: none; 0 = the broker's default).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The group.
    pub group: String,
    /// The member's id, chosen by itself.
    pub member_id: String,
    /// The latest epoch, or one of [`JOIN_EPOCH`], [`LEAVE_EPOCH`], [`LEAVE_STATIC_EPOCH`].
    pub member_epoch: i32,
    /// Of a static member.
    pub instance_id: Option<String>,
    /// Where the member is.
    pub rack: Option<String>,
    /// How long the member may take to give up partitions, milliseconds.
    pub rebalance_timeout_ms: u32,
    /// Silence after which the member is out, milliseconds.
    pub session_timeout_ms: u32,
    /// Names subscribed to.
    pub topics: Option<Vec<String>>,
    /// Expression of names subscribed to; empty = none.
    pub pattern: Option<String>,
    /// `uniform` or `range`.
    pub assignor: Option<String>,
    /// The partitions that the member holds now.
    pub owned: Option<Vec<GroupTopic>>,
}

/// One offset to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Of the next record to process.
    pub offset: u64,
    /// Of the last record processed; `None` = unknown.
    pub leader_epoch: Option<u32>,
    /// Kept with the offset; may be empty.
    pub metadata: String,
}

/// A commit. Entries of one topic must stand together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetCommit {
    /// The group.
    pub group: String,
    /// The member; empty for whoever is none.
    pub member_id: String,
    /// Its epoch, or [`NO_MEMBER_EPOCH`].
    pub member_epoch: i32,
    /// What to commit.
    pub entries: Vec<CommitEntry>,
}

/// A question for committed offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetFetch {
    /// The group.
    pub group: String,
    /// The member; empty for whoever is none.
    pub member_id: String,
    /// Its epoch, or [`NO_MEMBER_EPOCH`].
    pub member_epoch: i32,
    /// The partitions; `None` = all that the group has committed.
    pub topics: Option<Vec<GroupTopic>>,
}

/// What a member may do from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// To be used from now on.
    pub member_epoch: i32,
    /// Until the next heartbeat.
    pub interval: Duration,
    /// The session timeout in force.
    pub session_timeout: Duration,
    /// All that the member may hold; `None` = as before.
    pub assignment: Option<Vec<GroupTopic>>,
}

/// What became of one offset of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitResult {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: u32,
    /// Why it was not committed.
    pub error: Option<ErrorCode>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic.
    pub topic: TopicId,
    /// Its name; empty where the topic is gone.
    pub topic_name: String,
    /// The partition.
    pub partition: u32,
    /// Of the next record to process; `None` = nothing was committed.
    pub offset: Option<u64>,
    /// As committed.
    pub leader_epoch: Option<u32>,
    /// Milliseconds since 1970; -1 = never.
    pub commit_time_ms: i64,
    /// As committed.
    pub metadata: String,
}

/// What a group does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members; its offsets are kept until they expire.
    Empty,
    /// Partitions are moving.
    Reconciling,
    /// Every member has what it is meant to have.
    Stable,
}

impl GroupState {
    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            GroupState::Empty => "empty",
            GroupState::Reconciling => "reconciling",
            GroupState::Stable => "stable",
        }
    }
}

/// A member as its coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// The member's id.
    pub member_id: String,
    /// Of a static member; empty = dynamic.
    pub instance_id: String,
    /// Where it is.
    pub rack: String,
    /// What it calls itself in its requests.
    pub client_id: String,
    /// Its epoch; -2 = a static member that is away.
    pub member_epoch: i32,
    /// What it asks for; empty = no preference.
    pub assignor: String,
    /// Names subscribed to.
    pub topics: Vec<String>,
    /// Expression subscribed to; empty = none.
    pub pattern: String,
    /// What it may hold.
    pub assignment: Vec<GroupTopic>,
    /// What it was asked to give up and still holds.
    pub revoking: Vec<GroupTopic>,
    /// What it is going to have.
    pub target: Vec<GroupTopic>,
    /// How long it may take to give up partitions.
    pub rebalance_timeout: Duration,
    /// Silence after which it is out.
    pub session_timeout: Duration,
    /// Since its last heartbeat.
    pub silent: Duration,
}

/// A group as its coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// The group.
    pub group: String,
    /// Why there is nothing to tell about it.
    pub error: Option<ErrorCode>,
    /// What it does.
    pub state: GroupState,
    /// Rises with every change of members, subscriptions or their topics.
    pub group_epoch: i32,
    /// The assignor in use.
    pub assignor: String,
    /// Its members, by id.
    pub members: Vec<MemberDescription>,
    /// Every committed offset.
    pub offsets: Vec<CommittedOffset>,
    /// The partition of the offsets topic that holds its state.
    pub coordinator_partition: u32,
    /// Since when it has no members, milliseconds since 1970; -1 = it has some.
    pub empty_since_ms: i64,
}

/// A line of the list of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGroup {
    /// The group.
    pub group: String,
    /// What it does.
    pub state: GroupState,
    /// How many members.
    pub members: u32,
    /// How many partitions have a committed offset.
    pub committed_partitions: u32,
    /// The assignor in use.
    pub assignor: String,
    /// The partition of the offsets topic that holds its state.
    pub coordinator_partition: u32,
}

/// What became of one group of a request.
#[derive(Clone, Debug)]
pub struct GroupOutcome {
    /// The group.
    pub group: String,
    /// Why it was not done.
    pub error: Option<BrokerError>,
}

// ---- Requests ----------------------------------------------------------------------------------------

type Api = (wire::RequestApi, WIPOffset<UnionWIPOffset>);
type Topics = WIPOffset<Vector<'static, ForwardsUOffset<wire::GroupTopic<'static>>>>;

fn group_topics(b: &mut FlatBufferBuilder<'static>, topics: &[GroupTopic]) -> Topics {
    let topics: Vec<_> = topics
        .iter()
        .map(|topic| {
            let partitions = Some(b.create_vector(&topic.partitions));
            let id = topic.id.to_wire();
            wire::GroupTopic::create(b, &wire::GroupTopicArgs { id: Some(&id), name: None, partitions })
        })
        .collect();
    b.create_vector(&topics)
}

impl Heartbeat {
    pub(crate) fn encode(&self, b: &mut FlatBufferBuilder<'static>) -> Api {
        let args = wire::ConsumerGroupHeartbeatRequestArgs {
            group: Some(b.create_string(&self.group)),
            member_id: Some(b.create_string(&self.member_id)),
            member_epoch: self.member_epoch,
            instance_id: self.instance_id.as_ref().map(|id| b.create_string(id)),
            rack: self.rack.as_ref().map(|rack| b.create_string(rack)),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            topics: self.topics.as_ref().map(|topics| strings(b, topics)),
            pattern: self.pattern.as_ref().map(|pattern| b.create_string(pattern)),
            assignor: self.assignor.as_ref().map(|assignor| b.create_string(assignor)),
            owned: self.owned.as_ref().map(|owned| group_topics(b, owned)),
        };
        let api = wire::ConsumerGroupHeartbeatRequest::create(b, &args);
        (wire::RequestApi::ConsumerGroupHeartbeatRequest, api.as_union_value())
    }
}

impl OffsetCommit {
    pub(crate) fn encode(&self, b: &mut FlatBufferBuilder<'static>) -> Api {
        let mut topics = Vec::new();
        for run in self.entries.chunk_by(|one, next| one.topic == next.topic) {
            let entries = run.iter().map(|entry| {
                let leader_epoch = entry.leader_epoch.map_or(-1, |epoch| epoch as i32);
                wire::OffsetCommitEntry::new(entry.partition, leader_epoch, entry.offset)
            });
            let entries = Some(b.create_vector_from_iter(entries));
            let metadata = run.iter().any(|entry| !entry.metadata.is_empty()).then(|| {
                let texts: Vec<&str> = run.iter().map(|entry| entry.metadata.as_str()).collect();
                strings(b, &texts)
            });
            let id = run[0].topic.to_wire();
            let args = wire::OffsetCommitTopicArgs { id: Some(&id), entries, metadata };
            topics.push(wire::OffsetCommitTopic::create(b, &args));
        }
        let args = wire::OffsetCommitRequestArgs {
            topics: Some(b.create_vector(&topics)),
            group: Some(b.create_string(&self.group)),
            member_id: Some(b.create_string(&self.member_id)),
            member_epoch: self.member_epoch,
        };
        let api = wire::OffsetCommitRequest::create(b, &args);
        (wire::RequestApi::OffsetCommitRequest, api.as_union_value())
    }
}

impl OffsetFetch {
    pub(crate) fn encode(&self, b: &mut FlatBufferBuilder<'static>) -> Api {
        let topics = self.topics.as_ref().map(|topics| {
            let topics: Vec<_> = topics
                .iter()
                .map(|topic| {
                    let partitions = Some(b.create_vector(&topic.partitions));
                    let id = topic.id.to_wire();
                    let args = wire::OffsetFetchTopicArgs { id: Some(&id), partitions };
                    wire::OffsetFetchTopic::create(b, &args)
                })
                .collect();
            b.create_vector(&topics)
        });
        let args = wire::OffsetFetchRequestArgs {
            topics,
            group: Some(b.create_string(&self.group)),
            member_id: Some(b.create_string(&self.member_id)),
            member_epoch: self.member_epoch,
        };
        let api = wire::OffsetFetchRequest::create(b, &args);
        (wire::RequestApi::OffsetFetchRequest, api.as_union_value())
    }
}

pub(crate) fn encode_describe(b: &mut FlatBufferBuilder<'static>, groups: &[String]) -> Api {
    let groups = Some(strings(b, groups));
    let api = wire::DescribeGroupsRequest::create(b, &wire::DescribeGroupsRequestArgs { groups });
    (wire::RequestApi::DescribeGroupsRequest, api.as_union_value())
}

pub(crate) fn encode_list(b: &mut FlatBufferBuilder<'static>) -> Api {
    let api = wire::ListGroupsRequest::create(b, &wire::ListGroupsRequestArgs {});
    (wire::RequestApi::ListGroupsRequest, api.as_union_value())
}

pub(crate) fn encode_delete(b: &mut FlatBufferBuilder<'static>, groups: &[String]) -> Api {
    let groups = Some(strings(b, groups));
    let api = wire::DeleteGroupsRequest::create(b, &wire::DeleteGroupsRequestArgs { groups });
    (wire::RequestApi::DeleteGroupsRequest, api.as_union_value())
}

// ---- Answers -----------------------------------------------------------------------------------------

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn milliseconds(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn topics_of(topics: Option<Vector<'_, ForwardsUOffset<wire::GroupTopic<'_>>>>) -> Vec<GroupTopic> {
    (topics.into_iter().flatten())
        .map(|topic| GroupTopic {
            id: TopicId::from_wire(topic.id()),
            name: text(topic.name()),
            partitions: topic.partitions().into_iter().flatten().collect(),
        })
        .collect()
}

fn offsets_of(topics: Option<Vector<'_, ForwardsUOffset<wire::GroupOffsets<'_>>>>) -> Vec<CommittedOffset> {
    let mut offsets = Vec::new();
    for topic in topics.into_iter().flatten() {
        let id = TopicId::from_wire(topic.id());
        let mut metadata = topic.metadata().into_iter().flatten();
        for offset in topic.offsets().into_iter().flatten() {
            offsets.push(CommittedOffset {
                topic: id,
                topic_name: text(topic.name()),
                partition: offset.partition(),
                offset: u64::try_from(offset.offset()).ok(),
                leader_epoch: u32::try_from(offset.leader_epoch()).ok(),
                commit_time_ms: offset.commit_time_ms(),
                metadata: text(metadata.next()),
            });
        }
    }
    offsets
}

pub(crate) fn heartbeat(reply: &wire::ConsumerGroupHeartbeatResponse<'_>) -> HeartbeatReply {
    HeartbeatReply {
        member_epoch: reply.member_epoch(),
        interval: milliseconds(reply.heartbeat_interval_ms()),
        session_timeout: milliseconds(reply.session_timeout_ms()),
        assignment: reply.assignment().map(|assignment| topics_of(assignment.topics())),
    }
}

pub(crate) fn commit(reply: &wire::OffsetCommitResponse<'_>) -> Result<Vec<CommitResult>, ReplyError> {
    let mut results = Vec::new();
    for topic in reply.topics().into_iter().flatten() {
        let id = TopicId::from_wire(topic.id());
        for result in topic.results().into_iter().flatten() {
            let error = code(result.error())?;
            results.push(CommitResult { topic: id, partition: result.partition(), error });
        }
    }
    Ok(results)
}

pub(crate) fn fetched(reply: &wire::OffsetFetchResponse<'_>) -> Vec<CommittedOffset> {
    offsets_of(reply.topics())
}

pub(crate) fn state(state: wire::GroupState) -> Result<GroupState, ReplyError> {
    match state {
        wire::GroupState::Empty => Ok(GroupState::Empty),
        wire::GroupState::Reconciling => Ok(GroupState::Reconciling),
        wire::GroupState::Stable => Ok(GroupState::Stable),
        wire::GroupState(other) => Err(ReplyError::UnknownGroupState(other)),
    }
}

pub(crate) fn described(
    reply: &wire::DescribeGroupsResponse<'_>,
) -> Result<Vec<GroupDescription>, ReplyError> {
    let member = |member: wire::GroupMember<'_>| MemberDescription {
        member_id: text(member.member_id()),
        instance_id: text(member.instance_id()),
        rack: text(member.rack()),
        client_id: text(member.client_id()),
        member_epoch: member.member_epoch(),
        assignor: text(member.assignor()),
        topics: member.topics().into_iter().flatten().map(str::to_owned).collect(),
        pattern: text(member.pattern()),
        assignment: topics_of(member.assignment()),
        revoking: topics_of(member.revoking()),
        target: topics_of(member.target()),
        rebalance_timeout: milliseconds(member.rebalance_timeout_ms()),
        session_timeout: milliseconds(member.session_timeout_ms()),
        silent: Duration::from_millis(member.silent_ms()),
    };
    (reply.groups().into_iter().flatten())
        .map(|group| {
            Ok(GroupDescription {
                group: text(group.group()),
                error: code(group.error())?,
                state: state(group.state())?,
                group_epoch: group.group_epoch(),
                assignor: text(group.assignor()),
                members: group.members().into_iter().flatten().map(member).collect(),
                offsets: offsets_of(group.offsets()),
                coordinator_partition: group.coordinator_partition(),
                empty_since_ms: group.empty_since_ms(),
            })
        })
        .collect()
}

pub(crate) fn listed(reply: &wire::ListGroupsResponse<'_>) -> Result<Vec<ListedGroup>, ReplyError> {
    (reply.groups().into_iter().flatten())
        .map(|group| {
            Ok(ListedGroup {
                group: text(group.group()),
                state: state(group.state())?,
                members: group.members(),
                committed_partitions: group.committed_partitions(),
                assignor: text(group.assignor()),
                coordinator_partition: group.coordinator_partition(),
            })
        })
        .collect()
}

pub(crate) fn deleted(reply: &wire::DeleteGroupsResponse<'_>) -> Result<Vec<GroupOutcome>, ReplyError> {
    (reply.outcomes().into_iter().flatten())
        .map(|outcome| {
            let error = code(outcome.error())?.map(|code| BrokerError {
                code,
                message: outcome.message().unwrap_or_default().into(),
                retry_after: Duration::ZERO,
            });
            Ok(GroupOutcome { group: text(outcome.group()), error })
        })
        .collect()
}
