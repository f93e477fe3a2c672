//! One connection: pipelining, replies out of order, hostile replies, silence.

use crate::fake_broker::{Do, FakeBroker, MAX_REQUEST_BYTES, batch_of, fetch_reply, produce_reply, response};
use bytes::Bytes;
use ringlog_client::connection::PENDING_MAX;
use ringlog_client::reply::Reply;
use ringlog_client::request::{Acks, FetchEntry, ProduceEntry, Request, TopicId};
use ringlog_client::{Connection, ConnectionError};
use schema::wire;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

fn produce(acks: Acks, value: &str) -> Request {
    let batch: Bytes = batch_of(&[value]).into();
    let entry = ProduceEntry { topic: TopicId(1), partition: 0, leader_epoch: 0, batch };
    Request::Produce { acks, explain: false, entries: vec![entry] }
}

async fn connect(broker: &FakeBroker) -> Connection {
    Connection::open(&broker.address, Some(1), &broker.config()).await.unwrap()
}

#[tokio::test]
async fn hello_comes_first_and_is_answered() {
    let broker = FakeBroker::start(1).await;
    let connection = connect(&broker).await;
    assert_eq!((connection.hello().broker, connection.hello().shard), (7, 1));
    assert!(matches!(broker.calls()[0].request, Request::Hello { shard: Some(1) }));
}

#[tokio::test]
async fn pipelined_requests_meet_their_replies_in_any_order() {
    let broker = FakeBroker::start(1).await;
    let connection = connect(&broker).await;
    broker.hook(|_| Do::HoldReply);
    let sent: Vec<_> =
        (0..20).map(|at| connection.send(produce(Acks::All, &at.to_string()), LONG).unwrap()).collect();
    broker.until_held(20).await;
    assert!(broker.held_ids().is_sorted(), "requests arrive in the order of sending");
    broker.release(true);
    for (at, reply) in sent.into_iter().enumerate() {
        match reply.wait().await.unwrap().reply {
            Reply::Produce { results, .. } => assert_eq!(results[0].base_offset, at as u64),
            other => panic!("{other:?}"),
        }
    }
    let expect: Vec<_> = (0..20).map(|at| at.to_string()).collect();
    assert_eq!(broker.values(0), expect);
}

#[tokio::test]
async fn a_hostile_reply_closes_the_connection_and_tells_everybody() {
    type Make = fn(u64) -> Vec<u8>;
    let rows: [(&str, Make); 7] = [
        ("the limit here", |_| [&(1u32 << 31).to_le_bytes()[..], &[8; 12]].concat()),
        ("too short", |_| vec![0; 64]),
        ("not a RLS1 buffer", |_| [&60u32.to_le_bytes()[..], &40u32.to_le_bytes(), &[7; 56]].concat()),
        ("of nobody", |id| response(id + 1000, None, produce_reply(Vec::new()), &[])),
        ("unknown durability 9", |id| {
            let result = wire::ProduceResult::new(0, 0, wire::Durability(9), 0, 0, 0, 0);
            response(id, None, produce_reply(vec![(TopicId(1), result)]), &[])
        }),
        ("unknown error number 999", |id| {
            let result = wire::ProduceResult::new(0, 999, wire::Durability::None, 0, 0, 0, 0);
            response(id, None, produce_reply(vec![(TopicId(1), result)]), &[])
        }),
        ("announce 4294967295 bytes", |id| {
            let result = wire::FetchResult::new(0, u32::MAX, 0, 0, 0, 0, 0);
            response(id, None, fetch_reply(vec![(TopicId(1), result)]), b"abc")
        }),
    ];
    for (expect, make) in rows {
        let broker = FakeBroker::start(1).await;
        let connection = connect(&broker).await;
        let mut ignored = false;
        broker.hook(move |call| match std::mem::replace(&mut ignored, true) {
            false => Do::Ignore,
            true => Do::Bytes(make(call.id)),
        });
        let bystander = connection.send(produce(Acks::All, "one"), LONG).unwrap();
        let victim = connection.send(produce(Acks::All, "two"), LONG).unwrap();
        for reply in [victim, bystander] {
            let error = reply.wait().await.unwrap_err();
            assert!(matches!(error, ConnectionError::Protocol { .. }), "{expect}: {error}");
            assert!(error.to_string().contains(expect), "{expect}: {error}");
        }
        assert!(connection.is_closed());
        assert!(connection.send(produce(Acks::All, "three"), LONG).is_err());
    }
}

#[tokio::test]
async fn silence_ends_the_connection() {
    let broker = FakeBroker::start(1).await;
    let connection = connect(&broker).await;
    broker.hook(|_| Do::Ignore);
    let other = connection.send(produce(Acks::All, "a"), LONG).unwrap();
    let error = connection.request(produce(Acks::All, "b"), Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, ConnectionError::TimedOut { .. }), "{error}");
    assert!(error.outcome_unknown());
    assert!(other.wait().await.is_err());
    assert!(connection.is_closed());
}

#[tokio::test]
async fn what_is_too_large_or_too_much_is_not_sent() {
    let broker = FakeBroker::start(1).await;
    let connection = connect(&broker).await;
    broker.hook(|_| Do::Ignore);
    let large = "x".repeat(MAX_REQUEST_BYTES as usize);
    let error = connection.send(produce(Acks::All, &large), LONG).unwrap_err();
    assert!(matches!(error, ConnectionError::RequestTooLarge { .. }), "{error}");
    let mut waiting = Vec::new();
    for _ in 0..PENDING_MAX {
        waiting.push(
            connection
                .send(Request::Status { topics: false, groups: false, partitions: false }, LONG)
                .unwrap(),
        );
    }
    let error = connection
        .send(Request::Status { topics: false, groups: false, partitions: false }, LONG)
        .unwrap_err();
    assert!(matches!(error, ConnectionError::TooManyPending { .. }), "{error}");
    assert!(!connection.is_closed());
}

#[tokio::test]
async fn requests_without_reply_resolve_when_written_even_if_the_handle_is_gone() {
    let broker = FakeBroker::start(1).await;
    let connection = connect(&broker).await;
    let sent: Vec<_> =
        (0..100).map(|at| connection.send(produce(Acks::None, &at.to_string()), LONG).unwrap()).collect();
    drop(connection);
    for reply in sent {
        assert!(matches!(reply.wait().await.unwrap().reply, Reply::Empty));
    }
    broker.until(|calls| calls.len() == 101).await;
}

#[tokio::test]
async fn replies_of_every_size_arrive_whole() {
    let broker = FakeBroker::start(1).await;
    let connection = connect(&broker).await;
    let sizes = [1, 63 << 10, 64 << 10, 65 << 10, 3 << 20, 5, 1 << 20];
    for size in sizes {
        broker.append(0, &[&"v".repeat(size)]);
    }
    let fetch = |offset| Request::Fetch {
        max_wait_ms: 0,
        min_bytes: 0,
        max_bytes: 1,
        rack: None,
        entries: vec![FetchEntry { topic: TopicId(1), partition: 0, leader_epoch: 0, offset, max_bytes: 1 }],
    };
    let sent: Vec<_> = (0..sizes.len()).map(|at| connection.send(fetch(at as u64), LONG).unwrap()).collect();
    for (reply, size) in sent.into_iter().zip(sizes) {
        let Reply::Fetch(results) = reply.wait().await.unwrap().reply else {
            panic!("a fetch is answered by a fetch");
        };
        let records: Vec<_> = schema::record_batch::records(&results[0].batches).unwrap().collect();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].as_ref().unwrap().value.unwrap().len(), size);
    }
}
