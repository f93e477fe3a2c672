//! The idempotent producer against a broker that loses replies, refuses, forgets, and hangs up.

use crate::fake_broker::{Call, Do, FakeBroker, batch_of};
use futures_util::future::join_all;
use ringlog_client::request::{Acks, Request};
use ringlog_client::{ErrorCode, ProduceError, ProducerConfig, ProducerRecord};
use schema::record_batch::Header;
use std::time::Duration;

fn is_produce(call: &Call) -> bool {
    matches!(call.request, Request::Produce { .. })
}

fn record(value: impl ToString) -> ProducerRecord {
    ProducerRecord::new("t", value.to_string().into_bytes()).to_partition(0)
}

/// Does something else than serving with the produces that are named, counted from 1.
fn on_produce(broker: &FakeBroker, what: impl Fn(u32) -> Option<Do> + Send + 'static) {
    let mut produces = 0;
    broker.hook(move |call| {
        produces += u32::from(is_produce(call));
        match is_produce(call) {
            true => what(produces).unwrap_or(Do::Serve),
            false => Do::Serve,
        }
    });
}

#[tokio::test]
async fn a_lost_reply_leaves_one_copy_and_says_so() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    on_produce(&broker, |at| (at == 1).then_some(Do::ServeAndHangUp));
    let receipt = producer.send(record("a")).await.unwrap().await.unwrap();
    assert_eq!((receipt.offset, receipt.duplicate), (0, true));
    let receipt = producer.send(record("b")).await.unwrap().await.unwrap();
    assert_eq!((receipt.offset, receipt.duplicate), (1, false));
    assert_eq!(broker.values(0), ["a", "b"]);
    let asked = |call: &Call| matches!(call.request, Request::InitProducer { .. });
    assert_eq!(broker.calls().iter().filter(|call| asked(call)).count(), 1);
}

#[tokio::test]
async fn who_wants_none_gets_none() {
    let off = ProducerConfig { enable_idempotence: false, ..Default::default() };
    for config in [off, ProducerConfig { acks: Acks::None, ..Default::default() }] {
        let broker = FakeBroker::start(1).await;
        let producer = broker.client().await.producer(config);
        producer.send(record("a")).await.unwrap().await.unwrap();
        producer.close().await.unwrap();
        broker.until(|calls| calls.iter().any(is_produce)).await;
        for call in broker.calls() {
            match call.request {
                Request::InitProducer { .. } => panic!("nobody has asked for an id"),
                Request::Produce { entries, .. } => {
                    assert_eq!(Header::decode(&entries[0].batch).unwrap().producer_id, -1);
                }
                _ => {}
            }
        }
    }
    // Nor does what was encoded elsewhere.
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    let batch = batch_of(&["a"]);
    producer.send_encoded("t", 0, batch.into()).await.unwrap().await.unwrap();
    assert!(!broker.calls().iter().any(|call| matches!(call.request, Request::InitProducer { .. })));
}

#[tokio::test]
async fn a_record_that_is_given_up_does_not_stop_those_behind_it() {
    let broker = FakeBroker::start(1).await;
    let config = ProducerConfig { delivery_timeout: Duration::from_millis(150), ..Default::default() };
    let producer = broker.client().await.producer(config);
    producer.send(record("a")).await.unwrap().await.unwrap();
    broker.hook(|call| if is_produce(call) { Do::Ignore } else { Do::Serve });
    let error = producer.send(record("lost")).await.unwrap().await.unwrap_err();
    assert!(matches!(error, ProduceError::TimedOut { outcome_unknown: true, .. }), "{error}");
    broker.hook(|_| Do::Serve);
    producer.send(record("b")).await.unwrap().await.unwrap();
    producer.send(record("c")).await.unwrap().await.unwrap();
    assert_eq!(broker.values(0), ["a", "b", "c"]);
    assert_eq!(broker.topic("t", |topic| topic.partitions[0].producers.epochs()), [0, 1]);
}

#[tokio::test]
async fn a_refused_record_does_not_stop_those_behind_it() {
    let broker = FakeBroker::start(1).await;
    let config = ProducerConfig { batch_size: 1, ..Default::default() };
    let producer = broker.client().await.producer(config);
    on_produce(&broker, |at| (at == 2).then_some(Do::RefuseEntries(ErrorCode::BatchTooLarge)));
    let mut sent = Vec::new();
    for at in 0..6 {
        sent.push(producer.send(record(at)).await.unwrap());
    }
    let results = join_all(sent).await;
    let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false, false, false, false]);
    assert_eq!(broker.values(0), ["0", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn a_forgotten_producer_goes_on_unless_nobody_can_know() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    producer.send(record("a")).await.unwrap().await.unwrap();
    broker.topic("t", |topic| topic.partitions[0].producers.forget());
    producer.send(record("b")).await.unwrap().await.unwrap();
    // Its first answer is lost, and by the second time the broker cannot tell.
    broker.hook(|call| match is_produce(call) {
        true => Do::ServeAndHangUp,
        false => Do::Serve,
    });
    let sent = producer.send(record("c")).await.unwrap();
    // The fourth appends it; the fifth comes after that.
    broker.until(|calls| calls.iter().filter(|call| is_produce(call)).count() >= 5).await;
    broker.topic("t", |topic| topic.partitions[0].producers.forget());
    broker.hook(|_| Do::Serve);
    let error = sent.await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    producer.send(record("d")).await.unwrap().await.unwrap();
    assert_eq!(broker.values(0), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_topic_made_again_begins_again() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer(ProducerConfig::default());
    producer.send(record("a")).await.unwrap().await.unwrap();
    broker.create("t", 1);
    producer.send(record("b")).await.unwrap().await.unwrap();
    assert_eq!(broker.values(0), ["b"]);
}

#[tokio::test]
async fn an_id_that_cannot_be_had_is_asked_for_again_or_said_to_be_missing() {
    for (code, expect) in [(ErrorCode::MetadataUnavailable, true), (ErrorCode::Unsupported, false)] {
        let broker = FakeBroker::start(1).await;
        let producer = broker.client().await.producer(ProducerConfig::default());
        let mut asked = 0;
        broker.hook(move |call| {
            asked += u32::from(matches!(call.request, Request::InitProducer { .. }));
            match matches!(call.request, Request::InitProducer { .. }) && asked <= 2 {
                true => Do::Refuse(code, 1),
                false => Do::Serve,
            }
        });
        let result = producer.send(record("a")).await.unwrap().await;
        assert_eq!(result.is_ok(), expect, "{result:?}");
        if let Err(error) = result {
            assert_eq!(error.code(), Some(code));
        }
    }
}

/// Several clones, five requests in flight, and a broker that fails every few of them in some way, some after it
/// has appended: every record is there once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn once_and_in_order_through_a_storm() {
    const CLONES: u32 = 4;
    const RECORDS: u32 = 1500;
    for seed in 0..3 {
        let broker = FakeBroker::start(3).await;
        let config = ProducerConfig { batch_size: 2_000, buffer_memory: 60_000, ..Default::default() };
        let producer = broker.client().await.producer(config);
        let mut calls = seed;
        broker.hook(move |call| {
            calls += u32::from(is_produce(call));
            match calls % 13 {
                _ if !is_produce(call) => Do::Serve,
                3 => Do::Refuse(ErrorCode::Overloaded, 1),
                5 => Do::RefuseEntries(ErrorCode::NotLeader),
                7 => Do::ServeAndHangUp,
                8 => Do::RefuseEntries(ErrorCode::StorageFull),
                9 => Do::HangUp,
                10 => Do::RefuseEntries(ErrorCode::TimedOut),
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
                let got: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
                let expect: Vec<u32> = (0..RECORDS).filter(|at| at % 3 == partition as u32).collect();
                assert_eq!(got, expect, "partition {partition} of {clone}, storm {seed}");
            }
        }
    }
}
