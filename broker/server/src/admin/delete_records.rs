//! DeleteRecords: the starts of logs move up, durably, before anybody is told.
//!
//! Lives for one request, on the shard of its connection; each partition is moved on its home shard, all those
//! of one shard with one checkpoint. Invariants: an answered start never goes back, whatever happens to the
//! process; nothing above the high watermark goes. Files are reclaimed afterwards, whole segments only.

use super::{Reply, ask};
use crate::mailbox::{Message, NewStart};
use crate::shard::{Location, Shard};
use crate::storage::is_no_space;
use flatbuffers::FlatBufferBuilder;
use futures_util::future::join_all;
use logic::ids::{Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use schema::error_code::ErrorCode;
use schema::wire;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Stands for the high watermark on the wire.
const ALL: u64 = u64::MAX;

impl Reply {
    pub(super) async fn delete_records(&self, shard: &Rc<Shard>, topics: Vec<(TopicId, Vec<(u32, u64)>)>) {
        let mut by_shard: BTreeMap<ShardId, Vec<(TopicPartition, Option<Offset>)>> = BTreeMap::new();
        let mut done: BTreeMap<TopicPartition, Result<Offset, ErrorCode>> = BTreeMap::new();
        for (topic, entries) in &topics {
            for (partition, before) in entries {
                let id = TopicPartition { topic: *topic, partition: PartitionIndex::new(*partition) };
                let before = (*before != ALL).then(|| Offset::new(*before));
                match shard.locate(id) {
                    Location::Here(_) => by_shard.entry(shard.identity.shard).or_default().push((id, before)),
                    Location::Shard(home) => by_shard.entry(home).or_default().push((id, before)),
                    Location::Nowhere(code) => drop(done.insert(id, Err(code))),
                }
            }
        }
        let asked = by_shard.into_iter().map(|(home, asked)| async move {
            if home == shard.identity.shard {
                return delete_records_here(shard, asked).await;
            }
            let unanswered = |(id, _): &_| NewStart { id: *id, result: Err(ErrorCode::ShuttingDown) };
            let unanswered: Vec<_> = asked.iter().map(unanswered).collect();
            ask(shard, home, |reply| Message::DeleteRecords(asked, reply)).await.unwrap_or(unanswered)
        });
        done.extend(join_all(asked).await.into_iter().flatten().map(|one| (one.id, one.result)));
        self.send(wire::ResponseApi::DeleteRecordsResponse, |builder| {
            let topics: Vec<_> =
                topics.iter().map(|(topic, entries)| encode(builder, *topic, entries, &done)).collect();
            let topics = Some(builder.create_vector(&topics));
            wire::DeleteRecordsResponse::create(builder, &wire::DeleteRecordsResponseArgs { topics })
                .as_union_value()
        });
    }
}

fn encode<'f>(
    builder: &mut FlatBufferBuilder<'f>,
    topic: TopicId,
    entries: &[(u32, u64)],
    done: &BTreeMap<TopicPartition, Result<Offset, ErrorCode>>,
) -> flatbuffers::WIPOffset<wire::DeleteRecordsTopicResult<'f>> {
    let results: Vec<wire::DeleteRecordsResult> = entries
        .iter()
        .map(|(partition, _)| {
            let id = TopicPartition { topic, partition: PartitionIndex::new(*partition) };
            let result = done.get(&id).copied().unwrap_or(Err(ErrorCode::UnknownPartition));
            let start = result.map_or(0, Offset::get);
            wire::DeleteRecordsResult::new(*partition, result.err().map_or(0, ErrorCode::to_wire), 0, start)
        })
        .collect();
    let results = Some(builder.create_vector(&results));
    let id = wire::TopicId::from_u128(topic.get());
    wire::DeleteRecordsTopicResult::create(
        builder,
        &wire::DeleteRecordsTopicResultArgs { id: Some(&id), results },
    )
}

/// Moves the starts of this shard's partitions, and answers once a checkpoint with them is on the device.
pub async fn delete_records_here(
    shard: &Rc<Shard>,
    asked: Vec<(TopicPartition, Option<Offset>)>,
) -> Vec<NewStart> {
    let store = &shard.store;
    let mut moved = Vec::new();
    let mut starts: Vec<NewStart> = asked
        .into_iter()
        .map(|(id, before)| {
            let result = match shard.locate(id) {
                Location::Here(partition) if !partition.standing().leads => Err(ErrorCode::NotLeader),
                Location::Here(partition) => {
                    let start = partition.delete_before(before);
                    if start.is_some() {
                        moved.push(partition);
                    }
                    start.ok_or(ErrorCode::OffsetOutOfRange)
                }
                Location::Shard(_) => Err(ErrorCode::NotLeader),
                Location::Nowhere(code) => Err(code),
            };
            NewStart { id, result }
        })
        .collect();
    if moved.is_empty() {
        return starts;
    }
    let refused = match store.checkpoint_now().await {
        Ok(true) => None,
        Ok(false) => Some(ErrorCode::ShuttingDown),
        // Moved, and perhaps back after a crash: to ask again is right.
        Err(error) if is_no_space(&error) => Some(ErrorCode::StorageFull),
        Err(error) => store.storage.fail("writing a checkpoint", None, &error),
    };
    if let Some(code) = refused {
        starts.iter_mut().filter(|one| one.result.is_ok()).for_each(|one| one.result = Err(code));
    }
    for partition in moved {
        // Waits for readers: nobody else is to wait with it. What fails is tried again by retention.
        glommio::spawn_local(async move { drop(partition.enforce_retention().await) }).detach();
    }
    starts
}
