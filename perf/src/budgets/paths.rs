//! The hot paths, each as a closure that goes over it once.
//!
//! Prepared outside of what is counted: memory, requests, logs. A pass leaves its state such that the next one
//! costs the same. What the server adds (sockets, files, its own bookkeeping) is not here; the calls into
//! `schema` and `logic` are those that its produce and fetch make, in their order. Where the server builds a
//! message by hand (the fetch reply), the same is built here: the crates of the broker that do IO are out of
//! reach for this one, and a copy that drifts shows in the next profile.

use super::Shape;
use flatbuffers::FlatBufferBuilder;
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition};
use logic::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX, FRAME_TABLES_MAX, SEGMENT_BYTES_MAX};
use logic::log::append::LogStart;
use logic::log::flush_round::FlushRounds;
use logic::log::read::{Below, ReadPlan};
use logic::log::{Log, LogIdentity, LogSettings, OpenGroup, RoundId};
use schema::frame::{self, Aligned, Prefix};
use schema::record_batch::{self, BatchBuilder, Header};
use schema::segment::{BLOCK_BYTES, GROUP_HEADER_BYTES};
use schema::wire;
use std::hint::black_box;

/// One path.
pub struct Path {
    /// What it does; the key of its budgets.
    pub name: &'static str,
    prepare: fn(Shape) -> Box<dyn FnMut()>,
}

impl Path {
    /// A closure that goes over the path once for such a batch, each time it is called.
    pub fn prepare(&self, shape: Shape) -> Box<dyn FnMut()> {
        (self.prepare)(shape)
    }
}

/// Every path, in the order of a record's life.
pub const PATHS: [Path; 8] = [
    Path { name: "build a batch", prepare: build_batch },
    Path { name: "decode a produce request", prepare: decode_produce },
    Path { name: "validate a batch", prepare: validate },
    Path { name: "append to the log", prepare: append },
    Path { name: "plan, seal, end a flush round", prepare: flush_round },
    Path { name: "plan a read", prepare: plan_read },
    Path { name: "encode a fetch reply", prepare: encode_fetch_reply },
    Path { name: "read the records of a batch", prepare: read_records },
];

const TIMESTAMP_MS: i64 = 1_700_000_000_000;
const EPOCH: LeaderEpoch = LeaderEpoch::new(3);
const ID: TopicPartition =
    TopicPartition { topic: TopicId::new(0x0123_4567_89ab_cdef), partition: PartitionIndex::new(7) };

fn values(shape: Shape) -> Vec<Vec<u8>> {
    let byte = |record: u32, at: usize| (record as usize * 31 + at * 7) as u8;
    (0..shape.records).map(|record| (0..shape.record_bytes).map(|at| byte(record, at)).collect()).collect()
}

fn fill(builder: &mut BatchBuilder, values: &[Vec<u8>]) -> Vec<u8> {
    for (record, value) in values.iter().enumerate() {
        builder.append(TIMESTAMP_MS + record as i64 / 8, None, Some(value), &[]);
    }
    builder.finish()
}

fn batch(shape: Shape) -> Vec<u8> {
    fill(&mut BatchBuilder::new(), &values(shape))
}

fn build_batch(shape: Shape) -> Box<dyn FnMut()> {
    let values = values(shape);
    let mut builder = BatchBuilder::new();
    Box::new(move || {
        let batch = fill(&mut builder, &values);
        // As the client does: the memory goes round.
        builder.recycle(black_box(batch));
    })
}

fn decode_produce(shape: Shape) -> Box<dyn FnMut()> {
    let body = batch(shape);
    let mut builder = FlatBufferBuilder::new();
    let entry = wire::ProduceEntry::new(ID.partition.get(), body.len() as u32, EPOCH.get(), 0);
    let entries = builder.create_vector(&[entry]);
    let id = wire::TopicId::from_u128(ID.topic.get());
    let topic = wire::ProduceTopic::create(
        &mut builder,
        &wire::ProduceTopicArgs { id: Some(&id), entries: Some(entries) },
    );
    let topics = builder.create_vector(&[topic]);
    let produce = wire::ProduceRequest::create(
        &mut builder,
        &wire::ProduceRequestArgs { acks: -1, explain: false, topics: Some(topics) },
    );
    let root = wire::Request::create(
        &mut builder,
        &wire::RequestArgs {
            id: 42,
            deadline_ms: 30_000,
            api_type: wire::RequestApi::ProduceRequest,
            api: Some(produce.as_union_value()),
            ..Default::default()
        },
    );
    let mut bytes = Vec::new();
    frame::finish_request(&mut bytes, &mut builder, root, body.len());
    bytes.extend_from_slice(&body);
    let mut aligned = Aligned::default();
    Box::new(move || {
        let decoded = decode(black_box(&bytes), &mut aligned);
        assert_eq!(black_box(decoded), body.len());
    })
}

/// From the bytes of a frame to the batches of its entries; the bytes that they have together.
fn decode(bytes: &[u8], aligned: &mut Aligned) -> usize {
    let head = bytes.first_chunk().expect("a frame has a prefix");
    let prefix = Prefix::decode(*head, FRAME_BYTES_MAX).expect("a good frame");
    let metadata = &bytes[8..8 + prefix.metadata_bytes];
    let body = &bytes[prefix.body_start()..prefix.frame_bytes];
    let request = frame::request(aligned.align(metadata), FRAME_TABLES_MAX).expect("a good request");
    let produce = request.api_as_produce_request().expect("a produce request");
    let mut at = 0;
    for topic in produce.topics().iter().flatten() {
        let id = topic.id().map_or(0, wire::TopicId::as_u128);
        for entry in topic.entries().iter().flatten() {
            let end = at + entry.body_length() as usize;
            let batch = body.get(at..end).expect("the body holds its entries");
            black_box((id, entry.partition(), entry.leader_epoch(), batch));
            at = end;
        }
    }
    at
}

fn validate(shape: Shape) -> Box<dyn FnMut()> {
    let batch = batch(shape);
    Box::new(move || {
        let header = record_batch::validate_produced(black_box(&batch), BATCH_BYTES_MAX);
        assert_eq!(black_box(header).map(|header| header.record_count), Ok(shape.records));
    })
}

fn log() -> Log {
    let settings = LogSettings { segment_bytes: SEGMENT_BYTES_MAX, segment_ms: i64::MAX };
    Log::new(LogIdentity { partition: ID, generation: 1 }, settings, LogStart::new())
}

fn append_batch(log: &mut Log, batch: &mut [u8], header: &Header) -> OpenGroup {
    let base = log.append(header.last_offset_delta + 1, EPOCH);
    record_batch::set_base_offset(batch, base.get());
    record_batch::set_leader_epoch(batch, EPOCH.get());
    OpenGroup {
        base,
        end: base.advance(u64::from(header.last_offset_delta) + 1),
        leader_epoch: EPOCH,
        payload_bytes: batch.len() as u32,
        batch_count: 1,
        max_timestamp_ms: header.max_timestamp_ms,
        append_time_ms: TIMESTAMP_MS,
        payload_crc: record_batch::extend_crc(0, batch, Some(header.crc)),
    }
}

fn append(shape: Shape) -> Box<dyn FnMut()> {
    let mut batch = batch(shape);
    let header = Header::decode(&batch).expect("a good batch");
    let mut log = log();
    Box::new(move || {
        black_box(append_batch(&mut log, black_box(&mut batch), &header));
    })
}

fn flush_round(shape: Shape) -> Box<dyn FnMut()> {
    let bytes = batch(shape).len() as u32;
    let mut log = log();
    let mut rounds = FlushRounds::<TopicPartition>::new(1);
    let mut block = vec![0; BLOCK_BYTES];
    Box::new(move || {
        // An append of no batch: only the offsets, so that this path is not that one again.
        let base = log.append(shape.records, EPOCH);
        let group = OpenGroup { payload_bytes: bytes, ..group_of(base, shape.records) };
        seal_and_end(&mut log, &mut rounds, &group, &mut block);
    })
}

fn group_of(base: Offset, records: u32) -> OpenGroup {
    OpenGroup {
        base,
        end: base.advance(u64::from(records)),
        leader_epoch: EPOCH,
        payload_bytes: 0,
        batch_count: 1,
        max_timestamp_ms: TIMESTAMP_MS,
        append_time_ms: TIMESTAMP_MS,
        payload_crc: 0x1234_5678,
    }
}

/// One round of one partition and one group, from dirty to durable.
fn seal_and_end(
    log: &mut Log,
    rounds: &mut FlushRounds<TopicPartition>,
    group: &OpenGroup,
    block: &mut [u8],
) {
    rounds.mark_dirty(ID);
    assert!(rounds.can_begin());
    let round = rounds.next_round();
    let mut partitions = Vec::new();
    while let Some(partition) = rounds.pop_dirty() {
        place_segment(log, group.payload_bytes);
        let sealed = log.seal(group, round, TIMESTAMP_MS);
        sealed.header.encode(&mut block[..GROUP_HEADER_BYTES]);
        black_box((&sealed.placement, &*block));
        partitions.push(partition);
    }
    let id = rounds.begun(partitions, false);
    rounds.writes_done(id);
    while let Some((id, partitions)) = rounds.poll_durable() {
        black_box(partitions);
        assert!(black_box(log.written(id)).is_some());
    }
}

fn place_segment(log: &mut Log, payload_bytes: u32) {
    if let Some(needed) = log.segment_needed(payload_bytes, TIMESTAMP_MS) {
        log.segment_placed(needed.sequence, 0x5eed + needed.sequence);
    }
}

/// Groups of the log that is read: an index of some depth.
const READ_GROUPS: u64 = 2000;

fn plan_read(shape: Shape) -> Box<dyn FnMut()> {
    let bytes = batch(shape).len() as u32;
    let mut log = log();
    for n in 0..READ_GROUPS {
        let base = log.append(shape.records, EPOCH);
        place_segment(&mut log, bytes);
        log.seal(
            &OpenGroup { payload_bytes: bytes, ..group_of(base, shape.records) },
            RoundId(n + 1),
            TIMESTAMP_MS,
        );
        log.written(RoundId(n + 1));
    }
    // In the middle of the log, and of a batch.
    let offset = Offset::new(READ_GROUPS / 2 * u64::from(shape.records) + u64::from(shape.records) / 2);
    Box::new(move || {
        assert!(matches!(black_box(log.plan_read(black_box(offset), Below::Committed)), ReadPlan::At(_)));
    })
}

fn encode_fetch_reply(shape: Shape) -> Box<dyn FnMut()> {
    let bytes = batch(shape).len();
    let mut builder = FlatBufferBuilder::new();
    let mut out = Vec::with_capacity(256);
    Box::new(move || {
        out.clear();
        builder.reset();
        let result =
            wire::FetchResult::new(ID.partition.get(), black_box(bytes) as u32, 0, 0, 0, 1 << 40, 17);
        let results = builder.create_vector(&[result]);
        let id = wire::TopicId::from_u128(ID.topic.get());
        let topic = wire::FetchTopicResult::create(
            &mut builder,
            &wire::FetchTopicResultArgs { id: Some(&id), results: Some(results) },
        );
        let topics = builder.create_vector(&[topic]);
        let args = wire::FetchResponseArgs { topics: Some(topics), preferred: None };
        let api = wire::FetchResponse::create(&mut builder, &args);
        let root = wire::Response::create(
            &mut builder,
            &wire::ResponseArgs {
                id: 42,
                api_type: wire::ResponseApi::FetchResponse,
                api: Some(api.as_union_value()),
                ..Default::default()
            },
        );
        frame::finish_response(&mut out, &mut builder, root, bytes);
        black_box(&out);
    })
}

fn read_records(shape: Shape) -> Box<dyn FnMut()> {
    let batch = batch(shape);
    Box::new(move || {
        let mut bytes = 0;
        for record in record_batch::records(black_box(&batch)).expect("a good batch") {
            bytes += record.expect("a good record").value.map_or(0, <[u8]>::len);
        }
        assert_eq!(black_box(bytes), shape.records as usize * shape.record_bytes);
    })
}

#[cfg(test)]
mod tests {
    use super::super::SHAPES;
    use super::*;

    #[test]
    fn every_path_can_be_gone_over_again_and_again() {
        for path in &PATHS {
            for shape in SHAPES {
                let mut pass = path.prepare(shape);
                (0..5).for_each(|_| pass());
            }
        }
    }
}
