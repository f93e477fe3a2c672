//! A broker's answer from the bytes of the wire.
//!
//! Owner: the connection that read it; called once for each answer. Invariant: an unknown error number, a missing field or
//! a body that its entries do not add up to is a protocol violation, never a guess, and never a panic. Absent on purpose:
//! verifying the FlatBuffer, which the frame has seen to.

use super::{
    BrokerAnatomy, BrokerEndpoint, BrokerError, BrokerStatus, ConfigValue, DeletedRecords, Durability,
    FetchResult, GroupBehind, GroupStatus, Hello, ListOffsetsResult, Metadata, PartitionCompaction,
    PartitionLog, PartitionPlace, PartitionTraffic, ProduceResult, ReplicaProgress, Reply, ReplyError,
    Response, ShardStatus, TopicConfig, TopicLogs, TopicMetadata, TopicOutcome, TopicStatus, no_words,
};
use crate::request::TopicId;
use crate::{cluster_request, group_request, homes};
use bytes::Bytes;
use flatbuffers::{ForwardsUOffset, Vector};
use schema::error_code::ErrorCode;
use schema::wire;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Stands for a broker where there is none.
const NO_BROKER: u32 = u32::MAX;
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
        let traffic = |one: &wire::PartitionTraffic| PartitionTraffic {
            partition: one.partition(),
            shard: one.shard(),
            produced_batches: one.produced_batches(),
            produced_records: one.produced_records(),
            produced_bytes: one.produced_bytes(),
            fetched_bytes: one.fetched_bytes(),
            replicated_bytes: one.replicated_bytes(),
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
            traffic: topic.traffic().into_iter().flatten().map(traffic).collect(),
        };
        let group = |group: wire::GroupStatus<'_>| {
            let time = (!group.lag_ms_unknown()).then(|| Duration::from_millis(group.lag_ms()));
            let behind = GroupBehind { records: group.lag_records(), time };
            Ok(GroupStatus {
                group: text(group.group()),
                state: group_request::state(group.state())?,
                members: group.members(),
                partitions: group.partitions(),
                unknown_partitions: group.unknown_partitions(),
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
    if let Some(reply) = response.api_as_describe_cluster_response() {
        return cluster_request::described(&reply).map(|described| Reply::Cluster(Box::new(described)));
    }
    if let Some(reply) = response.api_as_elect_leaders_response() {
        return cluster_request::elected(&reply).map(Reply::Elected);
    }
    if let Some(reply) = response.api_as_move_homes_response() {
        return homes::moved(&reply).map(Reply::HomesMoved);
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
            rack: broker.rack().filter(|rack| !rack.is_empty()).map(str::to_owned),
            fenced: broker.fenced(),
        })
        .collect();
    let mut topics = Vec::new();
    for topic in reply.topics().into_iter().flatten() {
        let mut partitions: Vec<_> = (topic.partitions().into_iter().flatten())
            .map(|place| PartitionPlace {
                partition: place.partition(),
                leader: Some(place.broker()).filter(|broker| *broker != NO_BROKER),
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
                preferred: None,
            });
        }
    }
    for preferred in reply.preferred().into_iter().flatten() {
        if let Some(result) = results.get_mut(preferred.entry() as usize) {
            result.preferred = Some((preferred.broker(), preferred.shard()));
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
        let mut replicas: HashMap<u32, Vec<ReplicaProgress>> = HashMap::new();
        for progress in topic.replicas().into_iter().flatten() {
            replicas.entry(progress.partition()).or_default().push(ReplicaProgress {
                broker: progress.broker(),
                end: (!progress.unknown()).then(|| progress.end()),
                lag_records: (!progress.unknown()).then(|| progress.lag_records()),
                lag_ms: progress.lag_ms(),
                connected: progress.connected(),
            });
        }
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
                replicas: replicas.remove(&log.partition()).unwrap_or_default(),
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
