//! Offsets by time, and what the broker stores of partitions.
//!
//! Each partition is asked on the shard that has it.

use super::{Reply, ask};
use crate::error_code;
use crate::mailbox::{DescribedLog, DescribedReplica, ListedOffset, Message};
use crate::shard::{Location, Shard};
use futures_util::future::join_all;
use logic::ids::{Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::metadata::{Image, Topic};
use schema::error_code::ErrorCode;
use schema::wire;
use std::collections::BTreeMap;
use std::rc::Rc;

impl Reply {
    pub(super) async fn list_offsets(&self, shard: &Rc<Shard>, topics: Vec<(TopicId, Vec<(u32, i64)>)>) {
        let mut by_shard: BTreeMap<ShardId, Vec<(TopicPartition, i64)>> = BTreeMap::new();
        let mut listed = Vec::new();
        let mut here = Vec::new();
        for (topic, entries) in &topics {
            for (partition, timestamp_ms) in entries {
                let id = TopicPartition { topic: *topic, partition: PartitionIndex::new(*partition) };
                match shard.locate(id) {
                    Location::Here(_) => here.push((id, *timestamp_ms)),
                    Location::Shard(home) => by_shard.entry(home).or_default().push((id, *timestamp_ms)),
                    Location::Nowhere(code) => listed.push(ListedOffset { id, result: Err(code) }),
                }
            }
        }
        let elsewhere = by_shard.into_iter().map(|(home, asked)| async move {
            let unanswered: Vec<_> = asked
                .iter()
                .map(|(id, _)| ListedOffset { id: *id, result: Err(ErrorCode::ShuttingDown) })
                .collect();
            ask(shard, home, |reply| Message::ListOffsets(asked, reply)).await.unwrap_or(unanswered)
        });
        listed.extend(list_offsets_here(shard, here).await);
        listed.extend(join_all(elsewhere).await.into_iter().flatten());
        let found: BTreeMap<TopicPartition, Vec<ListedOffset>> =
            listed.into_iter().fold(BTreeMap::new(), |mut map, one| {
                map.entry(one.id).or_insert_with(Vec::new).push(one);
                map
            });
        let mut taken: BTreeMap<TopicPartition, usize> = BTreeMap::new();
        self.send(wire::ResponseApi::ListOffsetsResponse, |builder| {
            let topics: Vec<_> = topics
                .iter()
                .map(|(topic, entries)| {
                    let results: Vec<wire::ListOffsetsResult> = entries
                        .iter()
                        .map(|(partition, _)| {
                            let id =
                                TopicPartition { topic: *topic, partition: PartitionIndex::new(*partition) };
                            // A partition may be asked about twice, by different times.
                            let turn = taken.entry(id).or_insert(0);
                            let one = found.get(&id).and_then(|list| list.get(*turn));
                            *turn += 1;
                            let result = one.map_or(Err(ErrorCode::UnknownPartition), |one| one.result);
                            let (offset, timestamp_ms) = result.unwrap_or((Offset::new(0), -1));
                            let error = result.err().map_or(0, ErrorCode::to_wire);
                            wire::ListOffsetsResult::new(*partition, error, 0, offset.get(), timestamp_ms)
                        })
                        .collect();
                    let results = builder.create_vector(&results);
                    wire::ListOffsetsTopicResult::create(
                        builder,
                        &wire::ListOffsetsTopicResultArgs {
                            id: Some(&wire::TopicId::from_u128(topic.get())),
                            results: Some(results),
                        },
                    )
                })
                .collect();
            let topics = Some(builder.create_vector(&topics));
            wire::ListOffsetsResponse::create(builder, &wire::ListOffsetsResponseArgs { topics })
                .as_union_value()
        });
    }

    pub(super) async fn describe_logs(&self, shard: &Rc<Shard>, names: Vec<String>) {
        let image = shard.metadata.image();
        let mut described = Vec::with_capacity(names.len());
        for name in names {
            let topic = image.topic_by_name(&name).cloned();
            let logs = match &topic {
                Some(topic) => describe_topic(shard, &image, topic).await,
                None => Vec::new(),
            };
            described.push((name, topic, logs));
        }
        self.send(wire::ResponseApi::DescribeLogsResponse, |builder| {
            let topics: Vec<_> = described
                .iter()
                .map(|(name, topic, logs)| {
                    let partitions: Vec<wire::PartitionLog> = logs
                        .iter()
                        .map(|log| {
                            wire::PartitionLog::new(
                                log.id.partition.get(),
                                u32::from(log.shard.get()),
                                log.leader_epoch,
                                log.error.map_or(0, ErrorCode::to_wire),
                                0,
                                log.log_start,
                                log.high_watermark,
                                log.log_end,
                                log.segments,
                                log.bytes,
                            )
                        })
                        .collect();
                    let compaction: Vec<wire::PartitionCompaction> = logs
                        .iter()
                        .filter_map(|log| {
                            let found = log.compaction?;
                            Some(wire::PartitionCompaction::new(
                                log.id.partition.get(),
                                0,
                                found.clean_bytes,
                                found.dirty_bytes,
                                found.last_pass_ms,
                            ))
                        })
                        .collect();
                    let progress = |log: &DescribedLog| {
                        let partition = log.id.partition.get();
                        let of = move |replica: &DescribedReplica| {
                            wire::ReplicaProgress::new(
                                partition,
                                replica.broker.get(),
                                replica.end.map_or(0, Offset::get),
                                replica.lag_records.unwrap_or(0),
                                replica.lag_ms,
                                replica.connected,
                                replica.end.is_none(),
                                0,
                                0,
                            )
                        };
                        log.replicas.iter().map(of).collect::<Vec<_>>()
                    };
                    let replicas: Vec<wire::ReplicaProgress> = logs.iter().flat_map(progress).collect();
                    let partitions = builder.create_vector(&partitions);
                    let replicas = builder.create_vector(&replicas);
                    let compaction = builder.create_vector(&compaction);
                    let name = builder.create_string(name);
                    wire::TopicLogs::create(
                        builder,
                        &wire::TopicLogsArgs {
                            name: Some(name),
                            id: topic.as_ref().map(|topic| wire::TopicId::from_u128(topic.id.get())).as_ref(),
                            error: topic.as_ref().map_or(ErrorCode::UnknownTopic.to_wire(), |_| 0),
                            partitions: Some(partitions),
                            compaction: Some(compaction),
                            replicas: Some(replicas),
                        },
                    )
                })
                .collect();
            let topics = Some(builder.create_vector(&topics));
            wire::DescribeLogsResponse::create(builder, &wire::DescribeLogsResponseArgs { topics })
                .as_union_value()
        });
    }
}

async fn describe_topic(shard: &Rc<Shard>, image: &Image, topic: &Topic) -> Vec<DescribedLog> {
    let mut by_shard: BTreeMap<ShardId, Vec<TopicPartition>> = BTreeMap::new();
    for index in 0..topic.partitions.len() as u32 {
        let id = TopicPartition { topic: topic.id, partition: PartitionIndex::new(index) };
        let home = image.home_here(shard.identity.here(), id);
        by_shard.entry(home).or_default().push(id);
    }
    let asked = by_shard.into_iter().map(|(home, ids)| async move {
        if home == shard.identity.shard {
            return ids.into_iter().map(|id| shard.describe_log(id)).collect();
        }
        ask(shard, home, |reply| Message::DescribeLogs(ids, reply)).await.unwrap_or_default()
    });
    let mut logs: Vec<DescribedLog> = join_all(asked).await.into_iter().flatten().collect();
    logs.sort_by_key(|log| log.id);
    logs
}

/// Offsets of this shard's partitions: -1 = the high watermark, -2 = the log's start, else by time.
pub async fn list_offsets_here(shard: &Rc<Shard>, asked: Vec<(TopicPartition, i64)>) -> Vec<ListedOffset> {
    let mut listed = Vec::with_capacity(asked.len());
    for (id, timestamp_ms) in asked {
        let result = match (shard.locate(id), timestamp_ms) {
            (Location::Here(partition), _) if !partition.standing().leads => Err(ErrorCode::NotLeader),
            // What earlier leaders committed is not all visible yet: the end would go back for who asks.
            (Location::Here(partition), _) if !partition.standing().applied => {
                Err(ErrorCode::LeaderNotAvailable)
            }
            (Location::Here(partition), -1) => Ok((partition.high_watermark(), -1)),
            (Location::Here(partition), -2) => Ok((partition.with_log(|log| log.log_start()), -1)),
            (Location::Here(partition), timestamp_ms) => {
                match partition.offset_of_timestamp(&shard.store.chunks, timestamp_ms).await {
                    Ok(Some(found)) => Ok(found),
                    // Nothing so young: where the next record will be.
                    Ok(None) => Ok((partition.high_watermark(), -1)),
                    Err(error) => Err(error_code::of_read(&error)),
                }
            }
            (Location::Shard(_), _) => Err(ErrorCode::NotLeader),
            (Location::Nowhere(code), _) => Err(code),
        };
        listed.push(ListedOffset { id, result });
    }
    listed
}
