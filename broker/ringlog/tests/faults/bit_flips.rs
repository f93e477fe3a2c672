//! Bits that rot in closed segments: what they hit is never served and is named, all else is served, and a
//! restart, orderly or not, changes nothing about it.

use crate::support::process::{Broker, Serve};
use crate::support::raw::{Raw, Target, fetch};
use crate::support::records::{Maker, Proof, prove};
use crate::support::segments::{Hit, read_segments, strike};
use crate::support::{Directory, block_on, client, create_topic, in_time};
use ringlog_client::{
    AutoOffsetReset, ConsumerConfig, ErrorCode, OffsetSpec, ProducerConfig, StartFrom, TopicDescription,
};
use schema::record_batch;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const TOPIC: &str = "flips";
const PARTITIONS: u32 = 2;
const BATCHES: usize = 280;

/// The order is that of the segments they hit, from the oldest on, every other one.
const HITS: [Hit; 7] = [
    Hit::GroupHeader,
    Hit::Payload,
    Hit::Footer,
    Hit::LastPayload,
    Hit::FirstGroupHeader,
    Hit::SegmentHeader,
    Hit::ZeroedGroup,
];

/// Fills the topic; what each offset of each partition must be.
async fn fill(broker: &Broker) -> (TopicDescription, Vec<BTreeMap<u64, Proof>>) {
    let client = client(broker.address).await;
    let configs = [("segment.bytes", "1048576"), ("max.message.bytes", "900000")];
    let topic = create_topic(&client, TOPIC, PARTITIONS, &configs).await;
    let producer = client.producer(ProducerConfig::default());
    let mut maker = Maker::new(1, 1);
    let mut promised = vec![BTreeMap::new(); PARTITIONS as usize];
    for at in 0..BATCHES {
        for partition in 0..PARTITIONS {
            let value_bytes = if at % 10 == 0 { 50 << 10 } else { 7 << 10 };
            let made = maker.batch(5, value_bytes);
            let sent = producer.send_encoded(TOPIC, partition, made.batch).await.expect("it is taken");
            let receipt = in_time("an acknowledgement", sent).await.expect("it is acknowledged");
            promised[partition as usize].extend((receipt.base_offset..).zip(made.proofs));
        }
    }
    (topic, promised)
}

/// Reads a partition from its start to its end by hand, going on where each refusal says: what was served
/// and the ranges that were refused.
fn read_all(
    broker: &Broker,
    topic: &TopicDescription,
    partition: u32,
) -> (BTreeMap<u64, Proof>, Vec<Range<u64>>) {
    let end = block_on(async {
        let client = client(broker.address).await;
        let listed = client.admin().list_offsets(TOPIC, &[(partition, OffsetSpec::Latest)]).await;
        listed.expect("it answers")[0].offset
    });
    let place = topic.partitions[partition as usize];
    let target = Target { topic: topic.id.0, partition, epoch: place.leader_epoch };
    let mut raw = Raw::hello(broker.address, -1);
    let (mut served, mut refused) = (BTreeMap::new(), Vec::new());
    let mut next = 0;
    while next < end {
        let answer = raw.ask(&fetch(next + 10, target, next, 1000, 1 << 20));
        let (error, bytes) = answer.fetched.first().expect("one entry");
        match error {
            None => {
                assert!(!bytes.is_empty(), "nothing at {next}, below the end {end}");
                for batch in record_batch::batches(bytes) {
                    let (header, batch) = batch.expect("whole batches");
                    record_batch::verify(batch).expect("sound batches");
                    for record in record_batch::records(batch).expect("records") {
                        let record = record.expect("sound records");
                        let proof = record.value.and_then(prove).expect("its own bytes");
                        served.insert(record.offset, proof);
                    }
                    assert!(header.base_offset <= next, "a hole at {next} without a word");
                    next = header.end_offset();
                }
            }
            Some(ErrorCode::CorruptRange) => {
                let range = named_range(&answer.message, partition);
                assert!(range.contains(&next), "offset {next}: {}", answer.message);
                next = range.end;
                refused.push(range);
            }
            other => panic!("offset {next}: {other:?} {}", answer.message),
        }
    }
    (served, refused)
}

/// The range in `… topic 'flips' … partition 0 … offsets 5..10 …`.
fn named_range(text: &str, partition: u32) -> Range<u64> {
    assert!(text.contains(TOPIC) && text.contains(&format!("partition {partition}")), "{text}");
    let words = text.split_whitespace();
    let range = words.skip_while(|word| *word != "offsets").nth(1).and_then(|word| word.split_once(".."));
    let (from, until) = range.unwrap_or_else(|| panic!("no offsets in: {text}"));
    from.parse().expect("a number")..until.parse().expect("a number")
}

/// Everything but the lost is served, the lost is refused and named, also by notices and the log's state.
fn check(
    broker: &Broker,
    topic: &TopicDescription,
    promised: &[BTreeMap<u64, Proof>],
    lost: &[Vec<Range<u64>>],
) {
    for partition in 0..PARTITIONS {
        let (served, refused) = read_all(broker, topic, partition);
        let mut expected = promised[partition as usize].clone();
        let lost = &lost[partition as usize];
        expected.retain(|offset, _| !lost.iter().any(|range| range.contains(offset)));
        let unexpected: Vec<u64> = served
            .iter()
            .filter(|entry| expected.get(entry.0) != Some(entry.1))
            .map(|entry| *entry.0)
            .collect();
        let missing: Vec<u64> =
            expected.keys().filter(|offset| !served.contains_key(offset)).copied().collect();
        assert_eq!(
            (unexpected, missing),
            (vec![], vec![]),
            "partition {partition}: served and should not, reverse"
        );
        assert_eq!(&refused, lost, "partition {partition}");
    }
    block_on(async {
        let client = client(broker.address).await;
        let notices = client.admin().status().await.expect("it answers").notices;
        for (partition, lost) in lost.iter().enumerate() {
            for Range { start, end } in lost {
                let about = [
                    "CORRUPT".to_owned(),
                    TOPIC.to_owned(),
                    format!("partition {partition}"),
                    format!("{start}..{end}"),
                ];
                let told = notices.iter().any(|notice| about.iter().all(|part| notice.contains(part)));
                assert!(told, "no notice with all of {about:?}: {notices:#?}");
            }
        }
        for log in client.admin().describe_logs(TOPIC).await.expect("it answers") {
            let expect = (!lost[log.partition as usize].is_empty()).then_some(ErrorCode::CorruptRange);
            assert_eq!(log.error, expect, "partition {}", log.partition);
        }
        // Searching by time crosses the damage.
        let specs = [(0, OffsetSpec::Timestamp(0)), (1, OffsetSpec::Timestamp(1_700_000_000_500))];
        let found = client.admin().list_offsets(TOPIC, &specs).await.expect("it answers");
        assert_eq!(found[0].offset, 0);
        assert!(promised[1].contains_key(&found[1].offset), "{:?}", found[1]);
    });
}

fn start(data: &Path) -> Broker {
    Serve::new(data).start()
}

#[test]
fn rotten_ranges_are_named_and_the_rest_is_served() {
    let directory = Directory::new();
    let broker = start(directory.path());
    let (topic, mut promised) = block_on(fill(&broker));
    broker.stop();
    let of_topic = directory.path().join("topics").join(topic.id.to_string());
    let of = |partition: u32| read_segments(&of_topic.join(format!("{partition}.0")));
    let mut lost = vec![Vec::new(); PARTITIONS as usize];

    // While nobody runs: each kind of hit on a closed segment of its own.
    let segments = of(0);
    assert!(segments.len() > 2 * HITS.len(), "{} segments", segments.len());
    for (segment, hit) in segments.iter().step_by(2).zip(HITS) {
        let range = strike(segment, hit);
        lost[0].extend((!range.is_empty()).then_some(range));
    }
    let broker = start(directory.path());
    check(&broker, &topic, &promised, &lost);
    drop(broker);

    // While it runs, in what has not been read yet.
    let broker = start(directory.path());
    lost[1].push(strike(&of(1)[2], Hit::Payload));
    check(&broker, &topic, &promised, &lost);
    block_on(async {
        // A consumer is told the same, and goes on behind it.
        let client = client(broker.address).await;
        let config = ConsumerConfig { auto_offset_reset: AutoOffsetReset::Error, ..Default::default() };
        let mut consumer = client.consumer(config);
        let Range { start, end } = lost[1][0].clone();
        consumer.assign(TOPIC, &[(1, StartFrom::Offset(start))]).await.expect("it is there");
        let refusal = in_time("an answer", consumer.next()).await.expect("assigned").expect_err("rotten");
        assert_eq!(refusal.code(), Some(ErrorCode::CorruptRange));
        assert_eq!(named_range(&refusal.to_string(), 1), start..end);
        consumer.seek(TOPIC, 1, StartFrom::Offset(end)).await.expect("it is assigned");
        let next = in_time("a record", consumer.next()).await.expect("assigned").expect("sound");
        assert_eq!(next.offset, end);
        // Producing goes on.
        let producer = client.producer(ProducerConfig::default());
        let made = Maker::new(2, 2).batch(3, 500);
        let sent = producer.send_encoded(TOPIC, 0, made.batch).await.expect("it is taken");
        let receipt = in_time("an acknowledgement", sent).await.expect("it is acknowledged");
        promised[0].extend((receipt.base_offset..).zip(made.proofs));
    });
    drop(broker.kill());

    let broker = start(directory.path());
    check(&broker, &topic, &promised, &lost);
    broker.stop();
    let broker = start(directory.path());
    check(&broker, &topic, &promised, &lost);
    broker.stop();
    let ranges: usize = lost.iter().map(Vec::len).sum();
    println!("bit flips: {} hits, {ranges} ranges detected, 0 served, 0 others lost", HITS.len() + 1);
}
