//! Requests about groups out of their frames, and their answers into frames.
//!
//! Owned by the shard that the connection is on. Copies what is needed out of the FlatBuffer; names of topics in
//! answers are the newest image's. Absent on purpose: checks that need a group's state.

use super::{Answer, Refusal, RemoteAnswer};
use crate::connection::InFlight;
use crate::shard::Shard;
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};
use logic::group::Reply;
use logic::group::partition;
use logic::group::request::{Commit, Description, FetchOffsets, GroupState, Heartbeat, MemberDescription};
use logic::ids::{TopicId, TopicPartition};
use logic::limits::TOPICS_PER_REQUEST_MAX;
use logic::metadata::Image;
use schema::error_code::ErrorCode;
use schema::group_record::OffsetValue;
use schema::{OFFSETS_TOPIC, coordinator_partition, wire};
use std::collections::BTreeSet;

/// A request about groups.
#[derive(Debug)]
pub enum Asked {
    /// A member's sign of life.
    Heartbeat(Heartbeat),
    /// Offsets to keep.
    Commit(Commit),
    /// Offsets asked for.
    Fetch(FetchOffsets),
    /// Groups asked for.
    Describe(Vec<String>),
    /// All of them.
    List,
    /// Groups that are to go.
    Delete(Vec<String>),
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn optional(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

fn topic_id(id: Option<&wire::TopicId>) -> TopicId {
    TopicId::new(id.map_or(0, wire::TopicId::as_u128))
}

/// The names of a list, each once.
fn names(list: Option<Vector<'_, ForwardsUOffset<&str>>>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let names = list.into_iter().flatten().take(TOPICS_PER_REQUEST_MAX);
    names.filter(|name| seen.insert(*name)).map(str::to_owned).collect()
}

fn partitions(list: Vector<'_, ForwardsUOffset<wire::GroupTopic<'_>>>) -> BTreeSet<TopicPartition> {
    list.iter()
        .flat_map(|topic| {
            let id = topic_id(topic.id());
            topic.partitions().into_iter().flatten().map(move |index| partition(id, index))
        })
        .collect()
}

impl Asked {
    /// Copies a request out of its frame; `None` if it is none of these.
    pub fn parse(request: &wire::Request<'_>) -> Option<Self> {
        use wire::RequestApi as Api;
        Some(match request.api_type() {
            Api::ConsumerGroupHeartbeatRequest => {
                let heartbeat = request.api_as_consumer_group_heartbeat_request()?;
                Self::Heartbeat(Heartbeat {
                    group: text(heartbeat.group()),
                    member: text(heartbeat.member_id()),
                    epoch: heartbeat.member_epoch(),
                    instance: optional(heartbeat.instance_id()).filter(|instance| !instance.is_empty()),
                    rack: optional(heartbeat.rack()),
                    client_id: text(request.client_id()),
                    rebalance_timeout_ms: heartbeat.rebalance_timeout_ms(),
                    session_timeout_ms: heartbeat.session_timeout_ms(),
                    topics: heartbeat.topics().map(|topics| names(Some(topics))),
                    pattern: optional(heartbeat.pattern()),
                    assignor: optional(heartbeat.assignor()),
                    owned: heartbeat.owned().map(partitions),
                })
            }
            Api::OffsetCommitRequest => {
                let commit = request.api_as_offset_commit_request()?;
                let mut entries = Vec::new();
                for topic in commit.topics().into_iter().flatten() {
                    let id = topic_id(topic.id());
                    let mut metadata = topic.metadata().into_iter().flatten();
                    for entry in topic.entries().into_iter().flatten() {
                        let words = text(metadata.next());
                        let id = partition(id, entry.partition());
                        entries.push((id, entry.offset(), entry.leader_epoch(), words));
                    }
                }
                Self::Commit(Commit {
                    group: text(commit.group()),
                    member: text(commit.member_id()),
                    epoch: commit.member_epoch(),
                    entries,
                })
            }
            Api::OffsetFetchRequest => {
                let fetch = request.api_as_offset_fetch_request()?;
                let partitions = fetch.topics().map(|topics| {
                    topics
                        .iter()
                        .flat_map(|topic| {
                            let id = topic_id(topic.id());
                            topic.partitions().into_iter().flatten().map(move |index| partition(id, index))
                        })
                        .collect()
                });
                Self::Fetch(FetchOffsets {
                    group: text(fetch.group()),
                    member: text(fetch.member_id()),
                    epoch: fetch.member_epoch(),
                    partitions,
                })
            }
            Api::DescribeGroupsRequest => {
                Self::Describe(names(request.api_as_describe_groups_request()?.groups()))
            }
            Api::ListGroupsRequest => Self::List,
            Api::DeleteGroupsRequest => Self::Delete(names(request.api_as_delete_groups_request()?.groups())),
            _ => return None,
        })
    }
}

type Builder = FlatBufferBuilder<'static>;
type GroupTopics = WIPOffset<Vector<'static, ForwardsUOffset<wire::GroupTopic<'static>>>>;
type Offsets = WIPOffset<Vector<'static, ForwardsUOffset<wire::GroupOffsets<'static>>>>;

fn topic_name(image: &Image, id: TopicId) -> Option<&str> {
    image.topic(id).map(|topic| &*topic.name)
}

/// Partitions by topic; those of one topic stand together.
fn group_topics(b: &mut Builder, image: &Image, partitions: &[TopicPartition]) -> GroupTopics {
    let topics: Vec<_> = partitions
        .chunk_by(|one, next| one.topic == next.topic)
        .map(|run| {
            let name = topic_name(image, run[0].topic).map(|name| b.create_string(name));
            let partitions = Some(b.create_vector_from_iter(run.iter().map(|id| id.partition.get())));
            let id = wire::TopicId::from_u128(run[0].topic.get());
            wire::GroupTopic::create(b, &wire::GroupTopicArgs { id: Some(&id), name, partitions })
        })
        .collect();
    b.create_vector(&topics)
}

fn group_offsets(
    b: &mut Builder,
    image: &Image,
    offsets: &[(TopicPartition, Option<&OffsetValue>)],
) -> Offsets {
    let topics: Vec<_> = offsets
        .chunk_by(|(one, _), (next, _)| one.topic == next.topic)
        .map(|run| {
            let topic = run[0].0.topic;
            let name = topic_name(image, topic).map(|name| b.create_string(name));
            let structs: Vec<wire::CommittedOffset> = run
                .iter()
                .map(|(id, value)| {
                    let offset = value.map_or(-1, |value| value.offset as i64);
                    let leader_epoch = value.map_or(-1, |value| value.leader_epoch);
                    let time_ms = value.map_or(-1, |value| value.commit_time_ms);
                    wire::CommittedOffset::new(id.partition.get(), leader_epoch, offset, time_ms)
                })
                .collect();
            let has_words =
                run.iter().any(|(_, value)| value.is_some_and(|value| !value.metadata.is_empty()));
            let metadata = has_words.then(|| {
                let words: Vec<_> = run
                    .iter()
                    .map(|(_, value)| b.create_string(value.map_or("", |value| &value.metadata)))
                    .collect();
                b.create_vector(&words)
            });
            let offsets = Some(b.create_vector(&structs));
            let id = wire::TopicId::from_u128(topic.get());
            wire::GroupOffsets::create(b, &wire::GroupOffsetsArgs { id: Some(&id), name, offsets, metadata })
        })
        .collect();
    b.create_vector(&topics)
}

pub(crate) fn state(state: GroupState) -> wire::GroupState {
    match state {
        GroupState::Empty => wire::GroupState::Empty,
        GroupState::Reconciling => wire::GroupState::Reconciling,
        GroupState::Stable => wire::GroupState::Stable,
    }
}

fn member(
    b: &mut Builder,
    image: &Image,
    member: &MemberDescription,
) -> WIPOffset<wire::GroupMember<'static>> {
    let stated = &member.stated;
    let topics: Vec<_> = stated.topics.iter().map(|topic| b.create_string(topic)).collect();
    let args = wire::GroupMemberArgs {
        member_id: Some(b.create_string(&member.id)),
        instance_id: stated.instance_id.as_ref().map(|instance| b.create_string(instance)),
        rack: Some(b.create_string(&stated.rack)),
        client_id: Some(b.create_string(&stated.client_id)),
        member_epoch: member.epoch,
        assignor: Some(b.create_string(&stated.assignor)),
        topics: Some(b.create_vector(&topics)),
        pattern: Some(b.create_string(&stated.pattern)),
        assignment: Some(group_topics(b, image, &member.assigned)),
        revoking: Some(group_topics(b, image, &member.revoking)),
        target: Some(group_topics(b, image, &member.target)),
        rebalance_timeout_ms: stated.rebalance_timeout_ms,
        session_timeout_ms: stated.session_timeout_ms,
        silent_ms: member.silent_ms,
    };
    wire::GroupMember::create(b, &args)
}

fn description(
    b: &mut Builder,
    image: &Image,
    group: &str,
    answer: &Result<&Description, ErrorCode>,
) -> WIPOffset<wire::GroupDescription<'static>> {
    let name = Some(b.create_string(group));
    let described = match answer {
        Ok(described) => described,
        Err(code) => {
            let args = wire::GroupDescriptionArgs {
                group: name,
                error: code.to_wire(),
                empty_since_ms: -1,
                ..Default::default()
            };
            return wire::GroupDescription::create(b, &args);
        }
    };
    let members: Vec<_> = described.members.iter().map(|one| member(b, image, one)).collect();
    let offsets: Vec<_> = described.offsets.iter().map(|(id, value)| (*id, Some(value))).collect();
    let partitions = image.topic_by_name(OFFSETS_TOPIC).map_or(1, |topic| topic.partitions.len() as u32);
    let args = wire::GroupDescriptionArgs {
        group: name,
        error: 0,
        state: state(described.state),
        group_epoch: described.epoch,
        assignor: Some(b.create_string(described.assignor)),
        members: Some(b.create_vector(&members)),
        offsets: Some(group_offsets(b, image, &offsets)),
        coordinator_partition: coordinator_partition(group, partitions),
        empty_since_ms: described.empty_since_ms,
    };
    wire::GroupDescription::create(b, &args)
}

/// Answers one request.
pub struct Responder<'a> {
    /// The shard that the connection is on.
    pub shard: &'a Shard,
    /// Which request.
    pub id: u64,
    /// Whom.
    pub in_flight: &'a InFlight,
}

impl Responder<'_> {
    fn send(&self, kind: wire::ResponseApi, build: impl FnOnce(&mut Builder) -> WIPOffset<UnionWIPOffset>) {
        self.in_flight.connection().reply(Vec::new(), |builder| {
            let api = build(builder);
            let args =
                wire::ResponseArgs { id: self.id, api_type: kind, api: Some(api), ..Default::default() };
            wire::Response::create(builder, &args)
        });
    }

    fn refuse(&self, refusal: &Refusal) {
        let retry_after_ms = refusal.retry_after_ms();
        self.in_flight.connection().reply_error(self.id, refusal.code, &refusal.message, retry_after_ms);
    }

    /// An answer of another kind than was asked for.
    fn mismatch(&self) -> ! {
        crate::fatal("a coordinator answered another question than it was asked")
    }

    pub fn heartbeat(&self, answer: Answer) {
        let reply = match answer {
            Ok(Reply::Heartbeat(reply)) => reply,
            Err(refusal) => return self.refuse(&refusal),
            Ok(_) => self.mismatch(),
        };
        let image = self.shard.metadata.image();
        self.send(wire::ResponseApi::ConsumerGroupHeartbeatResponse, |b| {
            let assignment = reply.assignment.map(|assignment| {
                let list: Vec<TopicPartition> = assignment.into_iter().collect();
                let topics = Some(group_topics(b, &image, &list));
                wire::Assignment::create(b, &wire::AssignmentArgs { topics })
            });
            let args = wire::ConsumerGroupHeartbeatResponseArgs {
                member_id: None,
                member_epoch: reply.epoch,
                heartbeat_interval_ms: reply.interval_ms,
                assignment,
                session_timeout_ms: reply.session_timeout_ms,
            };
            wire::ConsumerGroupHeartbeatResponse::create(b, &args).as_union_value()
        });
    }

    pub fn commit(&self, answer: Answer) {
        let results = match answer {
            Ok(Reply::Committed(results)) => results,
            Err(refusal) => return self.refuse(&refusal),
            Ok(_) => self.mismatch(),
        };
        self.send(wire::ResponseApi::OffsetCommitResponse, |b| {
            let topics: Vec<_> = results
                .chunk_by(|(one, _), (next, _)| one.topic == next.topic)
                .map(|run| {
                    let results: Vec<wire::OffsetCommitResult> = run
                        .iter()
                        .map(|(id, error)| {
                            let error = error.map_or(0, ErrorCode::to_wire);
                            wire::OffsetCommitResult::new(id.partition.get(), error, 0)
                        })
                        .collect();
                    let results = Some(b.create_vector(&results));
                    let id = wire::TopicId::from_u128(run[0].0.topic.get());
                    let args = wire::OffsetCommitTopicResultArgs { id: Some(&id), results };
                    wire::OffsetCommitTopicResult::create(b, &args)
                })
                .collect();
            let topics = Some(b.create_vector(&topics));
            wire::OffsetCommitResponse::create(b, &wire::OffsetCommitResponseArgs { topics }).as_union_value()
        });
    }

    pub fn fetch(&self, answer: Answer) {
        let offsets = match answer {
            Ok(Reply::Offsets(offsets)) => offsets,
            Err(refusal) => return self.refuse(&refusal),
            Ok(_) => self.mismatch(),
        };
        let image = self.shard.metadata.image();
        self.send(wire::ResponseApi::OffsetFetchResponse, |b| {
            let offsets: Vec<_> = offsets.iter().map(|(id, value)| (*id, value.as_ref())).collect();
            let topics = Some(group_offsets(b, &image, &offsets));
            wire::OffsetFetchResponse::create(b, &wire::OffsetFetchResponseArgs { topics }).as_union_value()
        });
    }

    pub fn describe(&self, answers: Vec<(String, Answer)>) {
        let image = self.shard.metadata.image();
        self.send(wire::ResponseApi::DescribeGroupsResponse, |b| {
            let groups: Vec<_> = answers
                .iter()
                .map(|(group, answer)| {
                    let answer = match answer {
                        Ok(Reply::Described(described)) => Ok(&**described),
                        Ok(_) => self.mismatch(),
                        Err(refusal) => Err(refusal.code),
                    };
                    description(b, &image, group, &answer)
                })
                .collect();
            let groups = Some(b.create_vector(&groups));
            wire::DescribeGroupsResponse::create(b, &wire::DescribeGroupsResponseArgs { groups })
                .as_union_value()
        });
    }

    pub fn delete(&self, answers: Vec<(String, Answer)>) {
        self.send(wire::ResponseApi::DeleteGroupsResponse, |b| {
            let outcomes: Vec<_> = answers
                .iter()
                .map(|(group, answer)| {
                    let refusal = answer.as_ref().err();
                    let args = wire::GroupOutcomeArgs {
                        group: Some(b.create_string(group)),
                        error: refusal.map_or(0, |refusal| refusal.code.to_wire()),
                        message: refusal.map(|refusal| b.create_string(&refusal.message)),
                    };
                    wire::GroupOutcome::create(b, &args)
                })
                .collect();
            let outcomes = Some(b.create_vector(&outcomes));
            wire::DeleteGroupsResponse::create(b, &wire::DeleteGroupsResponseArgs { outcomes })
                .as_union_value()
        });
    }

    pub fn list(&self, answers: RemoteAnswer) {
        let mut groups = Vec::new();
        for (index, answer) in answers {
            match answer {
                Ok(Reply::Listed(listed)) => groups.extend(listed.into_iter().map(|one| (index, one))),
                Ok(_) => self.mismatch(),
                Err(refusal) => return self.refuse(&refusal),
            }
        }
        groups.sort_by(|(_, one), (_, other)| one.group.cmp(&other.group));
        self.send(wire::ResponseApi::ListGroupsResponse, |b| {
            let groups: Vec<_> = groups
                .iter()
                .map(|(index, group)| {
                    let args = wire::ListedGroupArgs {
                        group: Some(b.create_string(&group.group)),
                        state: state(group.state),
                        members: group.members,
                        committed_partitions: group.offsets,
                        assignor: Some(b.create_string(group.assignor)),
                        coordinator_partition: index.get(),
                    };
                    wire::ListedGroup::create(b, &args)
                })
                .collect();
            let groups = Some(b.create_vector(&groups));
            wire::ListGroupsResponse::create(b, &wire::ListGroupsResponseArgs { groups }).as_union_value()
        });
    }
}
