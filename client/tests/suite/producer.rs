//! The producer against a broker that refuses, holds, hangs up, or says nothing.

use crate::fake_broker::{Call, Do, FakeBroker, batch_of};
use futures_util::future::join_all;
use ringlog_client::request::{Acks, Request};
use ringlog_client::{
    ClientError, DeliveryFuture, Durability, ErrorCode, Linger, Partitioner, ProduceError, Producer,
    ProducerConfig, ProducerRecord, Receipt,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Makes what the broker is to do instead of serving.
type Trouble = fn() -> Do;

fn is_produce(call: &Call) -> bool {
    matches!(call.request, Request::Produce { .. })
}

fn produces(calls: &[Call]) -> usize {
    calls.iter().filter(|call| is_produce(call)).count()
}

fn record(value: impl ToString) -> ProducerRecord {
    ProducerRecord::new("t", value.to_string().into_bytes()).to_partition(0)
}

async fn send_all(producer: &Producer, values: std::ops::Range<u32>) -> Vec<DeliveryFuture> {
    let mut sent = Vec::new();
    for value in values {
        sent.push(producer.send(record(value)).await.unwrap());
    }
    sent
}

fn numbers(values: std::ops::Range<u32>) -> Vec<String> {
    values.map(|value| value.to_string()).collect()
}

#[tokio::test]
async fn receipts_tell_partition_offset_and_durability() {
    let broker = FakeBroker::start(4).await;
    let producer = broker.client().await.producer(ProducerConfig { explain: true, ..Default::default() });
    let sent = send_all(&producer, 0..1000).await;
    for (at, receipt) in join_all(sent).await.into_iter().enumerate() {
        let receipt = receipt.unwrap();
        assert_eq!((receipt.partition, receipt.offset), (0, at as u64));
        assert_eq!((receipt.durability, receipt.append_time_ms), (Durability::LeaderDevice, 77));
        assert!(receipt.durable_end > receipt.offset);
        let anatomy = receipt.anatomy.unwrap();
        assert_eq!(anatomy.broker.total_ns(), 21);
        assert!(anatomy.round_trip_ns > 0);
    }
    assert_eq!(broker.values(0), numbers(0..1000));
    let keyed =
        ProducerRecord { headers: vec![("h".to_owned(), None)], timestamp_ms: Some(5), ..record("k") };
    let receipt = producer.send(keyed.with_key("foobar")).await.unwrap().await.unwrap();
    assert_eq!(receipt.timestamp_ms, 5);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn the_adaptive_linger_sends_at_once_when_idle_and_gathers_while_busy() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    broker.hook(|call| if is_produce(call) { Do::HoldReply } else { Do::Serve });
    let first = producer.send(record("first")).await.unwrap();
    broker.until_held(1).await;
    let rest = send_all(&producer, 0..300).await;
    broker.release(false);
    first.await.unwrap();
    for sent in rest {
        sent.await.unwrap();
    }
    assert_eq!(broker.produced(), [[1], [300]]);
}

#[tokio::test]
async fn full_batches_join_those_in_flight_up_to_the_bound() {
    let broker = FakeBroker::start(1).await;
    let config =
        ProducerConfig { batch_size: 1000, max_in_flight_requests_per_connection: 3, ..Default::default() };
    let producer = broker.client().await.producer(config);
    broker.hook(|call| if is_produce(call) { Do::HoldReply } else { Do::Serve });
    let mut sent = Vec::new();
    for _ in 0..10 {
        sent.push(producer.send(record("x".repeat(800))).await.unwrap());
    }
    broker.until_held(3).await;
    assert_eq!(produces(&broker.calls()), 3);
    broker.release(true);
    for (at, sent) in sent.into_iter().enumerate() {
        assert_eq!(sent.await.unwrap().offset, at as u64, "replies in reverse change nothing");
    }
    assert_eq!(broker.produced(), vec![vec![1]; 10]);
}

#[tokio::test]
async fn the_fixed_linger_waits_for_time_bytes_or_flush() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let lingering = |linger_ms, batch_size| ProducerConfig {
        linger: Linger::Fixed(Duration::from_millis(linger_ms)),
        batch_size,
        ..Default::default()
    };
    let producer = client.producer(lingering(30, 64 << 10));
    let started = Instant::now();
    let sent = send_all(&producer, 0..10).await;
    join_all(sent).await;
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert_eq!(broker.produced(), [[10]]);

    let hour = 3_600_000;
    let producer = client.producer(lingering(hour, 300));
    let mut sent = send_all(&producer, 0..100).await;
    sent.swap_remove(0).await.unwrap();
    producer.flush().await.unwrap();
    join_all(sent).await;

    let producer = client.producer(lingering(hour, 64 << 10));
    let sent = producer.send(record("last")).await.unwrap();
    producer.close().await.unwrap();
    sent.await.unwrap();
}

#[tokio::test]
async fn refusals_that_pass_are_tried_again_after_the_wait_asked_for() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    let mut refusals = 3;
    broker.hook(move |call| match is_produce(call) && refusals > 0 {
        true => {
            refusals -= 1;
            Do::Refuse(ErrorCode::Overloaded, 20)
        }
        false => Do::Serve,
    });
    let started = Instant::now();
    assert_eq!(producer.send(record("a")).await.unwrap().await.unwrap().offset, 0);
    assert!(started.elapsed() >= Duration::from_millis(60));
    assert_eq!(broker.values(0), ["a"]);
}

#[tokio::test]
async fn order_is_kept_over_a_refusal() {
    let broker = FakeBroker::start(1).await;
    let config = ProducerConfig { batch_size: 200, ..Default::default() };
    let producer = broker.client().await.producer(config);
    // Everything of the first burst is refused; nothing of it may overtake.
    let mut calls = 0;
    broker.hook(move |call| {
        calls += u32::from(is_produce(call));
        match is_produce(call) && calls <= 7 {
            true => Do::RefuseEntries([ErrorCode::Overloaded, ErrorCode::NotLeader][calls as usize % 2]),
            false => Do::Serve,
        }
    });
    let sent = send_all(&producer, 0..400).await;
    for (at, sent) in sent.into_iter().enumerate() {
        assert_eq!(sent.await.unwrap().offset, at as u64);
    }
    assert_eq!(broker.values(0), numbers(0..400));
}

#[tokio::test]
async fn a_partition_that_moved_is_followed() {
    let broker = FakeBroker::start(2).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    producer.send(record("before")).await.unwrap().await.unwrap();
    broker.topic("t", |topic| topic.partitions[0].shard = 1);
    broker.hook(|call| match is_produce(call) && call.shard != Some(1) {
        true => Do::RefuseEntries(ErrorCode::NotLeader),
        false => Do::Serve,
    });
    producer.send(record("after")).await.unwrap().await.unwrap();
    assert_eq!(broker.values(0), ["before", "after"]);
    assert_eq!(broker.calls().last().unwrap().shard, Some(1));
}

#[tokio::test]
async fn a_lost_reply_is_sent_again_unless_told_otherwise() {
    for resend_when_unknown in [true, false] {
        let broker = FakeBroker::start(1).await;
        let config = ProducerConfig { resend_when_unknown, enable_idempotence: false, ..Default::default() };
        let producer = broker.client().await.producer(config);
        let mut lost = false;
        broker.hook(move |call| match is_produce(call) && !std::mem::replace(&mut lost, is_produce(call)) {
            true => Do::ServeAndHangUp,
            false => Do::Serve,
        });
        let result = producer.send(record("a")).await.unwrap().await;
        match resend_when_unknown {
            true => {
                assert_eq!(result.unwrap().offset, 1);
                assert_eq!(broker.values(0), ["a", "a"], "at least once");
            }
            false => {
                let error = result.unwrap_err();
                assert!(error.outcome_unknown(), "{error}");
                assert!(error.to_string().contains("read back before sending again"), "{error}");
                assert_eq!(producer.flush().await, Err(error));
                assert_eq!(producer.flush().await, Ok(()), "a failure is reported once");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_in_time_fails_and_says_whether_it_may_be_there() {
    let rows: [(Trouble, bool, &str); 3] = [
        (|| Do::Ignore, true, "may or may not have been written"),
        (|| Do::Refuse(ErrorCode::Overloaded, 0), false, "not written; last: OVERLOADED"),
        (|| Do::RefuseEntries(ErrorCode::TimedOut), true, "last: TIMED_OUT"),
    ];
    for (action, unknown, expect) in rows {
        let broker = FakeBroker::start(1).await;
        let config = ProducerConfig { delivery_timeout: Duration::from_millis(80), ..Default::default() };
        let producer = broker.client().await.producer(config);
        broker.hook(move |call| if is_produce(call) { action() } else { Do::Serve });
        let started = Instant::now();
        let error = producer.send(record("a")).await.unwrap().await.unwrap_err();
        assert!(matches!(error, ProduceError::TimedOut { .. }), "{error}");
        assert!(started.elapsed() >= Duration::from_millis(80));
        assert_eq!(error.outcome_unknown(), unknown, "{error}");
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[tokio::test]
async fn a_fatal_refusal_fails_only_its_batch() {
    let broker = FakeBroker::start(2).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    broker.hook(|call| match &call.request {
        Request::Produce { entries, .. } if entries[0].partition == 0 => {
            Do::RefuseEntries(ErrorCode::BatchTooLarge)
        }
        _ => Do::Serve,
    });
    let error = producer.send(record("a")).await.unwrap().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::BatchTooLarge));
    let text = error.to_string();
    assert!(text.contains("topic 't' partition 0") && text.contains("max.message.bytes"), "{text}");
    producer.send(record("b").to_partition(1)).await.unwrap().await.unwrap();
    assert_eq!(produces(&broker.calls()), 2);
}

#[tokio::test]
async fn memory_is_bounded_and_a_cancelled_wait_takes_nothing() {
    let broker = FakeBroker::start(1).await;
    let config = ProducerConfig {
        buffer_memory: 10_000,
        linger: Linger::Fixed(Duration::from_secs(3600)),
        ..Default::default()
    };
    let producer = broker.client().await.producer(config);
    broker.hook(|call| if is_produce(call) { Do::HoldReply } else { Do::Serve });
    let large = || record("x".repeat(4_000));
    let sent = [producer.send(large()).await.unwrap(), producer.send(large()).await.unwrap()];
    // The third waits, and its wait makes the first two leave in spite of the linger.
    let mut waiting = Box::pin(producer.send(large()));
    tokio::select! {
        _ = &mut waiting => panic!("there is no memory for it"),
        () = broker.until_held(1) => {}
    }
    drop(waiting);
    let waiting = tokio::spawn({
        let (producer, record) = (producer.clone(), large());
        async move { producer.send(record).await.unwrap().await }
    });
    broker.release(false);
    for sent in sent {
        sent.await.unwrap();
    }
    // Its batch lingers until it is flushed, and is not there to be flushed before it has memory.
    while !waiting.is_finished() {
        producer.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(waiting.await.unwrap().unwrap().offset, 2);

    let error = producer.send(record("x".repeat(10_000))).await.unwrap_err();
    assert!(matches!(error, ProduceError::RecordTooLarge { limit: 10_000, .. }), "{error}");
}

#[tokio::test]
async fn dropping_returns_at_once_and_everything_taken_is_sent() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let config = ProducerConfig { linger: Linger::Fixed(Duration::from_secs(3600)), ..Default::default() };
    let producer = client.producer(config);
    let clone = producer.clone();
    let sent = send_all(&producer, 0..500).await;
    drop(producer);
    let more = clone.send(record(500)).await.unwrap();
    drop((clone, client));
    assert!(join_all(sent).await.iter().all(Result::is_ok));
    assert_eq!(more.await.unwrap().offset, 500);
}

#[tokio::test]
async fn a_closed_producer_takes_nothing_more() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    let clone = producer.clone();
    producer.send(record("a")).await.unwrap().await.unwrap();
    producer.close().await.unwrap();
    assert!(matches!(clone.send(record("b")).await, Err(ProduceError::Closed)));
}

#[test]
fn futures_resolve_when_the_runtime_is_gone() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (sent, producer) = first.block_on(async {
        let broker = FakeBroker::start(1).await;
        let producer = broker.client().await.producer(ProducerConfig::default());
        broker.hook(|call| if is_produce(call) { Do::Ignore } else { Do::Serve });
        let sent = send_all(&producer, 0..2000).await;
        broker.until(|calls| produces(calls) > 0).await;
        (sent, producer)
    });
    drop(first);
    runtime().block_on(async {
        for sent in sent {
            assert_eq!(sent.await, Err(ProduceError::Closed));
        }
        assert!(matches!(producer.send(record("late")).await, Err(ProduceError::Closed)));
    });
}

#[tokio::test]
async fn without_acknowledgement_the_offset_is_unknown() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig { acks: Acks::None, ..Default::default() });
    let sent = send_all(&producer, 0..50).await;
    for receipt in join_all(sent).await {
        let receipt = receipt.unwrap();
        assert_eq!((receipt.offset, receipt.durability), (Receipt::OFFSET_UNKNOWN, Durability::None));
    }
    broker.until(|_| true).await;
    while broker.values(0).len() < 50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(broker.values(0), numbers(0..50));
}

#[tokio::test]
async fn encoded_batches_travel_as_they_are() {
    let broker = FakeBroker::start(2).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    let batch = batch_of(&["a", "b", "c"]);
    for (at, expect) in [0, 3, 6].into_iter().enumerate() {
        let receipt = producer.send_encoded("t", 1, batch.clone().into()).await.unwrap().await.unwrap();
        assert_eq!((receipt.base_offset, receipt.record_count), (expect, 3), "{at}");
    }
    let sent = broker.calls().into_iter().find_map(|call| match call.request {
        Request::Produce { entries, .. } => Some(entries[0].batch.clone()),
        _ => None,
    });
    assert_eq!(sent.unwrap(), batch);
    for bad in [&batch[..10], &batch[..batch.len() - 1], &[batch.clone(), vec![0]].concat()] {
        let error = producer.send_encoded("t", 1, bad.to_vec().into()).await.unwrap_err();
        assert!(matches!(error, ProduceError::InvalidBatch(_)), "{error}");
    }
}

#[tokio::test]
async fn records_find_their_partitions() {
    let keyed = |key: &'static str| ProducerRecord::new("t", "v").with_key(key);
    // The hash of "foobar" is 1357151166 without its sign bit.
    let rows: [(Partitioner, ProducerRecord, Result<u32, &str>); 6] = [
        (Partitioner::Default, keyed("foobar"), Ok(1_357_151_166 % 5)),
        (Partitioner::Default, keyed("foobar").to_partition(3), Ok(3)),
        (Partitioner::Modulo, keyed("13"), Ok(3)),
        (Partitioner::Custom(Arc::new(|_, _, _, n| n - 1)), keyed("x"), Ok(4)),
        (Partitioner::Custom(Arc::new(|_, _, _, n| n)), keyed("x"), Err("there is no partition 5")),
        (Partitioner::Default, keyed("x").to_partition(9), Err("there is no partition 9")),
    ];
    let broker = FakeBroker::start(5).await;
    let client = broker.client().await;
    for (partitioner, record, expect) in rows {
        let producer = client.producer(ProducerConfig { partitioner, ..Default::default() });
        match (producer.send(record).await, expect) {
            (Ok(sent), Ok(partition)) => assert_eq!(sent.await.unwrap().partition, partition),
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{error}"),
            (got, expect) => panic!("{got:?}, expected {expect:?}"),
        }
    }
    // Without a key: one partition per batch, then the next.
    let producer = client.producer(ProducerConfig::default());
    let mut partitions = Vec::new();
    for _ in 0..10 {
        let sent = producer.send(ProducerRecord::new("t", "v")).await.unwrap();
        partitions.push(sent.await.unwrap().partition);
    }
    assert!(partitions.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 5), "{partitions:?}");
    assert!(matches!(
        producer.send(ProducerRecord::new("nowhere", "v")).await,
        Err(ProduceError::Client(ClientError::UnknownTopic { .. }))
    ));
    // Partitions that were added are found.
    let broker_side = client.admin();
    broker_side.create_partitions("t", 8).await.unwrap();
    let sent = producer.send(ProducerRecord::new("t", "v").to_partition(7)).await.unwrap();
    assert_eq!(sent.await.unwrap().partition, 7);
}

#[tokio::test]
async fn partitions_of_a_shard_share_a_request_and_shards_have_connections() {
    let broker = FakeBroker::start(8).await;
    let config = ProducerConfig { linger: Linger::Fixed(Duration::from_secs(3600)), ..Default::default() };
    let producer = broker.client().await.producer(config);
    let mut sent = Vec::new();
    for partition in 0..8 {
        sent.push(producer.send(record("v").to_partition(partition)).await.unwrap());
    }
    producer.flush().await.unwrap();
    join_all(sent).await;
    let calls: Vec<_> = broker.calls().into_iter().filter(is_produce).collect();
    assert_eq!(calls.len(), 2);
    for call in calls {
        let Request::Produce { entries, .. } = &call.request else { unreachable!("filtered above") };
        assert!(entries.iter().all(|entry| Some(entry.partition % 2) == call.shard));
        assert!(entries.iter().all(|entry| entry.leader_epoch == 3));
    }
}

#[tokio::test]
async fn a_deleted_topic_fails_what_was_taken() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let producer = client.producer(ProducerConfig::default());
    producer.send(record("a")).await.unwrap().await.unwrap();
    client.admin().delete_topic("t").await.unwrap();
    let error = producer.send(record("b")).await.unwrap().await.unwrap_err();
    assert!(error.to_string().contains("ringlog topic create t"), "{error}");
    // Made again under its name, it is found by its new id.
    broker.create("t", 1);
    assert_eq!(producer.send(record("c")).await.unwrap().await.unwrap().offset, 0);
}

/// Without idempotence. Clones on several threads, a broker that fails every few requests in turn: nothing acknowledged is
/// lost; nothing is doubled while every failure is a clear refusal; and one in flight keeps the order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_in_a_storm() {
    const CLONES: u32 = 4;
    const RECORDS: u32 = 1500;
    for (in_flight, hang_up) in [(1, false), (5, false), (5, true), (1, true)] {
        let broker = FakeBroker::start(3).await;
        let config = ProducerConfig {
            batch_size: 2_000,
            buffer_memory: 60_000,
            max_in_flight_requests_per_connection: in_flight,
            enable_idempotence: false,
            ..Default::default()
        };
        let producer = broker.client().await.producer(config);
        let mut calls = 0;
        broker.hook(move |call| {
            calls += u32::from(is_produce(call));
            match calls % 11 {
                _ if !is_produce(call) => Do::Serve,
                3 => Do::Refuse(ErrorCode::Overloaded, 1),
                6 => Do::RefuseEntries(ErrorCode::NotLeader),
                8 => Do::RefuseEntries(ErrorCode::StorageFull),
                9 if hang_up => Do::HangUp,
                10 if hang_up => Do::ServeAndHangUp,
                _ => Do::Serve,
            }
        });
        let mut tasks = Vec::new();
        for clone in 0..CLONES {
            let producer = producer.clone();
            tasks.push(tokio::spawn(async move {
                let mut sent = Vec::new();
                for at in 0..RECORDS {
                    let record = record(format!("{clone} {at}")).to_partition(at % 3);
                    sent.push(producer.send(record).await.unwrap());
                }
                assert!(join_all(sent).await.iter().all(Result::is_ok));
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        producer.close().await.unwrap();
        for partition in 0..3 {
            let values = broker.values(partition);
            for clone in 0..CLONES {
                let prefix = format!("{clone} ");
                let numbers = values.iter().filter_map(|value| value.strip_prefix(&prefix));
                let mut got: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
                if in_flight == 1 && !hang_up {
                    assert!(got.is_sorted(), "partition {partition} of {clone}");
                }
                got.sort_unstable();
                if hang_up {
                    got.dedup();
                }
                let expect: Vec<u32> = (0..RECORDS).filter(|at| at % 3 == partition as u32).collect();
                assert_eq!(got, expect, "{in_flight} in flight, partition {partition} of {clone}");
            }
        }
    }
}
