//! The consumer: skipping, several partitions, long polls, bounds, seeks, errors.

use crate::fake_broker::{Call, Do, FakeBroker};
use ringlog_client::request::Request;
use ringlog_client::{
    AutoOffsetReset, ConsumeError, Consumer, ConsumerConfig, ErrorCode, ProducerConfig, ProducerRecord,
    StartFrom,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// Makes what the broker is to do instead of serving.
type Trouble = fn() -> Do;

fn is_fetch(call: &Call) -> bool {
    matches!(call.request, Request::Fetch { .. })
}

fn fetches(calls: &[Call]) -> usize {
    calls.iter().filter(|call| is_fetch(call)).count()
}

async fn consumer(broker: &FakeBroker) -> Consumer {
    broker.client().await.consumer(ConsumerConfig::default())
}

/// `count` values, by batches.
async fn values(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let fetched = consumer.next_batch().await.unwrap().unwrap();
        for record in fetched.records() {
            values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
        }
    }
    values
}

#[tokio::test]
async fn reading_starts_where_it_is_told() {
    let broker = FakeBroker::start(1).await;
    for batch in [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]] {
        broker.append(0, &batch);
    }
    broker.topic("t", |topic| drop(topic.partitions[0].batches.remove(0)));
    broker.topic("t", |topic| topic.partitions[0].log_start = 3);
    // A batch is never cut, so an offset in its middle brings records to be skipped.
    let rows = [
        (StartFrom::Earliest, "defghi"),
        (StartFrom::Offset(4), "efghi"),
        (StartFrom::Offset(5), "fghi"),
        (StartFrom::Offset(6), "ghi"),
        (StartFrom::Timestamp(8), "i"),
        (StartFrom::Latest, ""),
    ];
    for (start, expect) in rows {
        let mut by_batch = consumer(&broker).await;
        by_batch.assign("t", &[(0, start)]).await.unwrap();
        assert_eq!(by_batch.position("t", 0), Some(9 - expect.len() as u64));
        assert_eq!(values(&mut by_batch, expect.len()).await.concat(), expect, "{start:?}");
        assert_eq!(by_batch.position("t", 0), Some(9));

        let mut by_record = consumer(&broker).await;
        by_record.assign("t", &[(0, start)]).await.unwrap();
        for (at, value) in expect.bytes().enumerate() {
            let record = by_record.next().await.unwrap().unwrap();
            assert_eq!(record.value.unwrap(), [value][..], "{start:?}");
            assert_eq!(record.offset, (9 - expect.len() + at) as u64);
            assert_eq!(by_record.position("t", 0), Some(record.offset + 1));
        }
    }
}

#[tokio::test]
async fn records_come_back_as_they_were_sent() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let producer = client.producer(ProducerConfig::default());
    let rows = [
        ProducerRecord::new("t", "value").with_key("key"),
        ProducerRecord { timestamp_ms: Some(-5), ..ProducerRecord::new("t", "") },
        ProducerRecord { value: None, ..ProducerRecord::new("t", "") }.with_key(""),
        ProducerRecord {
            headers: vec![("h".to_owned(), Some("1".into())), ("h".to_owned(), None)],
            ..ProducerRecord::new("t", vec![0, 255])
        },
    ];
    for row in &rows {
        drop(producer.send(row.clone()).await.unwrap());
    }
    producer.flush().await.unwrap();
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
    for (offset, row) in rows.into_iter().enumerate() {
        let record = consumer.next().await.unwrap().unwrap();
        assert_eq!((record.offset, record.partition), (offset as u64, 0));
        assert_eq!((record.key, record.value, record.headers), (row.key, row.value, row.headers));
        if let Some(timestamp_ms) = row.timestamp_ms {
            assert_eq!(record.timestamp_ms, timestamp_ms);
        }
    }
}

#[tokio::test]
async fn partitions_of_a_shard_share_a_fetch_and_shards_have_connections() {
    let broker = FakeBroker::start(6).await;
    for partition in 0..6 {
        broker.append(partition, &[&partition.to_string()]);
    }
    let mut consumer = consumer(&broker).await;
    consumer.assign_all("t", StartFrom::Earliest).await.unwrap();
    let mut got = values(&mut consumer, 6).await;
    got.sort();
    assert_eq!(got, ["0", "1", "2", "3", "4", "5"]);
    let shards: BTreeSet<_> = broker.calls().iter().filter(|c| is_fetch(c)).map(|c| c.shard).collect();
    assert_eq!(shards, BTreeSet::from([Some(0), Some(1)]));
    for call in broker.calls() {
        if let Request::Fetch { entries, .. } = call.request {
            assert_eq!(entries.len(), 3);
            assert!(entries.iter().all(|entry| Some(entry.partition % 2) == call.shard));
        }
    }
}

#[tokio::test]
async fn a_long_poll_brings_what_comes_later_and_may_be_cancelled() {
    let broker = FakeBroker::start(1).await;
    let mut consumer = consumer(&broker).await;
    consumer.assign("t", &[(0, StartFrom::Latest)]).await.unwrap();
    broker.until(|calls| fetches(calls) > 0).await;
    assert!(tokio::time::timeout(Duration::from_millis(5), consumer.next()).await.is_err());
    broker.append(0, &["late"]);
    let before = fetches(&broker.calls());
    assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "late");
    assert!(before <= 2, "an idle consumer asks once per poll, not {before} times");
    assert_eq!(consumer.high_watermark("t", 0), Some(1));
}

#[tokio::test]
async fn prefetch_is_bounded_in_bytes() {
    let broker = FakeBroker::start(1).await;
    let value = "x".repeat(10_000);
    for _ in 0..100 {
        broker.append(0, &[&value]);
    }
    let config = ConsumerConfig { prefetch_bytes: 100_000, ..Default::default() };
    let mut consumer = broker.client().await.consumer(config);
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
    let mut handed_out = 0;
    let mut records = 0;
    while records < 100 {
        let fetched = consumer.next_batch().await.unwrap().unwrap();
        handed_out += fetched.bytes().len();
        records += fetched.records().count();
        let asked = broker.calls().into_iter().filter_map(|call| match call.request {
            Request::Fetch { max_bytes, entries, .. } => {
                Some((max_bytes as usize, entries[0].offset as usize))
            }
            _ => None,
        });
        for (max_bytes, offset) in asked {
            assert!(offset * 10_000 + max_bytes <= handed_out + 100_000 + 10_100);
        }
    }
}

#[tokio::test]
async fn a_seek_discards_what_was_fetched() {
    let broker = FakeBroker::start(2).await;
    for at in 0..50 {
        broker.append(0, &[&at.to_string()]);
        broker.append(1, &["other"]);
    }
    let mut consumer = consumer(&broker).await;
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "0");
    for offset in [40, 7, 49, 0] {
        consumer.seek("t", 0, StartFrom::Offset(offset)).await.unwrap();
        assert_eq!(consumer.next().await.unwrap().unwrap().offset, offset);
        // The rest of what `next` was in goes on as a batch.
        if offset < 49 {
            let rest = consumer.next_batch().await.unwrap().unwrap();
            assert_eq!(rest.records().next().unwrap().unwrap().offset, offset + 1);
        }
    }
    let error = consumer.seek("t", 1, StartFrom::Earliest).await.unwrap_err();
    assert!(matches!(error, ConsumeError::NotAssigned { .. }), "{error}");
    consumer.assign("t", &[(1, StartFrom::Offset(48))]).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "other");
    assert_eq!(consumer.position("t", 0), None);
    consumer.assign("t", &[]).await.unwrap();
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn a_position_outside_the_log_is_reset_as_configured() {
    let rows = [
        (AutoOffsetReset::Earliest, Ok("b")),
        (AutoOffsetReset::Latest, Ok("late")),
        (AutoOffsetReset::Error, Err("offset 9: OFFSET_OUT_OF_RANGE: start from earliest or latest")),
    ];
    for (auto_offset_reset, expect) in rows {
        let broker = FakeBroker::start(1).await;
        broker.append(0, &["a"]);
        broker.append(0, &["b"]);
        broker.topic("t", |topic| drop(topic.partitions[0].batches.remove(0)));
        broker.topic("t", |topic| topic.partitions[0].log_start = 1);
        let config = ConsumerConfig { auto_offset_reset, ..Default::default() };
        let mut consumer = broker.client().await.consumer(config);
        consumer.assign("t", &[(0, StartFrom::Offset(9))]).await.unwrap();
        if auto_offset_reset == AutoOffsetReset::Latest {
            let reset = |call: &Call| matches!(&call.request, Request::Fetch { entries, .. } if entries[0].offset == 2);
            broker.until(|calls| calls.iter().any(reset)).await;
            broker.append(0, &["late"]);
        }
        match (consumer.next().await.unwrap(), expect) {
            (Ok(record), Ok(expect)) => assert_eq!(record.value.unwrap(), expect),
            (Err(error), Err(expect)) => {
                assert!(error.to_string().contains(expect), "{error}");
                assert!(consumer.next().await.is_none(), "nothing is left to read");
                consumer.seek("t", 0, StartFrom::Earliest).await.unwrap();
                assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "b");
            }
            (got, expect) => panic!("{got:?}, expected {expect:?}"),
        }
    }
}

#[tokio::test]
async fn a_damaged_batch_is_named_and_the_rest_is_served() {
    let broker = FakeBroker::start(1).await;
    for value in ["a", "b", "c"] {
        broker.append(0, &[value]);
    }
    broker.topic("t", |topic| {
        let (_, _, batch) = &mut topic.partitions[0].batches[1];
        let mut bytes = batch.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        *batch = bytes.into();
    });
    let mut consumer = consumer(&broker).await;
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "a");
    let error = consumer.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ConsumeError::CorruptBatch { offset: 1, partition: 0, .. }), "{error}");
    assert!(consumer.next().await.is_none());
    consumer.seek("t", 0, StartFrom::Offset(2)).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "c");
}

#[tokio::test]
async fn trouble_that_passes_is_not_seen() {
    let rows: [Trouble; 5] = [
        || Do::HangUp,
        || Do::ServeAndHangUp,
        || Do::Refuse(ErrorCode::Overloaded, 3),
        || Do::RefuseEntries(ErrorCode::ReadFailed),
        || Do::RefuseEntries(ErrorCode::NotLeader),
    ];
    for trouble in rows {
        let broker = FakeBroker::start(1).await;
        broker.append(0, &["a"]);
        let mut consumer = consumer(&broker).await;
        let mut times = 3;
        broker.hook(move |call| match is_fetch(call) && times > 0 {
            true => {
                times -= 1;
                trouble()
            }
            false => Do::Serve,
        });
        consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
        assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "a");
        assert!(fetches(&broker.calls()) >= 4);
    }
}

#[tokio::test]
async fn a_partition_that_moved_is_followed() {
    let broker = FakeBroker::start(2).await;
    let mut consumer = consumer(&broker).await;
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
    broker.until(|calls| fetches(calls) > 0).await;
    broker.topic("t", |topic| topic.partitions[0].shard = 1);
    broker.hook(|call| match is_fetch(call) && call.shard != Some(1) {
        true => Do::RefuseEntries(ErrorCode::NotLeader),
        false => Do::Serve,
    });
    broker.append(0, &["a"]);
    broker.append(0, &["b"]);
    assert_eq!(values(&mut consumer, 2).await, ["a", "b"]);
}

#[tokio::test]
async fn lasting_trouble_is_told() {
    let rows: [(Trouble, &str); 2] = [
        (|| Do::HangUp, "still trying"),
        (|| Do::RefuseEntries(ErrorCode::CorruptRange), "topic 't' partition 0 offset 0: CORRUPT_RANGE"),
    ];
    for (trouble, expect) in rows {
        let broker = FakeBroker::start(1).await;
        let config =
            ringlog_client::ClientConfig { request_timeout: Duration::from_millis(100), ..broker.config() };
        let client = ringlog_client::Client::connect(config).await.unwrap();
        let mut consumer = client.consumer(ConsumerConfig::default());
        broker.hook(move |call| if is_fetch(call) { trouble() } else { Do::Serve });
        consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
        let error = consumer.next().await.unwrap().unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[tokio::test]
async fn a_topic_that_is_gone_or_another_is_told() {
    for recreate in [false, true] {
        let broker = FakeBroker::start(1).await;
        let client = broker.client().await;
        let mut consumer = client.consumer(ConsumerConfig::default());
        let error = consumer.assign("x", &[(0, StartFrom::Earliest)]).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
        let error = consumer.assign("t", &[(3, StartFrom::Earliest)]).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UnknownPartition));
        assert!(consumer.next().await.is_none());

        consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
        client.admin().delete_topic("t").await.unwrap();
        if recreate {
            broker.create("t", 1);
        }
        let error = consumer.next().await.unwrap().unwrap_err();
        match recreate {
            true => assert!(matches!(error, ConsumeError::TopicReplaced { .. }), "{error}"),
            false => assert_eq!(error.code(), Some(ErrorCode::UnknownTopic)),
        }
    }
}
