//! Every call of the administrator, and what a missing topic reads like.

use crate::fake_broker::{Do, FakeBroker};
use ringlog_client::group_request::GroupState;
use ringlog_client::request::Request;
use ringlog_client::{
    Client, ClientConfig, ClientError, ErrorCode, GroupBehind, GroupStatus, NewTopic, OffsetSpec, TopicStatus,
};
use std::time::{Duration, Instant};

#[tokio::test]
async fn every_call_round_trips() {
    let broker = FakeBroker::start(3).await;
    broker.append(1, &["a", "b"]);
    let admin = broker.client().await.admin();

    let new = NewTopic {
        name: "made".to_owned(),
        partitions: 4,
        replication_factor: 1,
        configs: vec![("retention.ms".to_owned(), "5".to_owned())],
    };
    admin.validate_topic(&new).await.unwrap();
    let id = admin.create_topic(&new).await.unwrap();
    let described = admin.describe_topic("made").await.unwrap();
    assert_eq!((described.id, described.partitions.len()), (id, 4));
    assert_eq!(described.partitions[3].shard, 1);
    let names: Vec<_> = admin.list_topics().await.unwrap().into_iter().map(|topic| topic.name).collect();
    assert_eq!(names, ["made", "t"]);
    let sent = broker.calls().into_iter().any(
        |call| matches!(call.request, Request::CreateTopic { topic, validate_only: false } if topic == new),
    );
    assert!(sent, "the topic travels whole");

    admin.create_partitions("made", 6).await.unwrap();
    assert_eq!(admin.describe_topic("made").await.unwrap().partitions.len(), 6);
    admin.alter_configs("made", &[("a".to_owned(), "b".to_owned())], &["c".to_owned()]).await.unwrap();
    let configs = admin.describe_configs("made").await.unwrap();
    assert_eq!((configs[0].name.as_str(), configs[0].is_default), ("retention.ms", true));
    let logs = admin.describe_logs("made").await.unwrap();
    assert_eq!((logs[0].log_start, logs[0].high_watermark, logs[0].bytes), (4, 5, 8));
    let topics = admin.status_with_topics().await.unwrap().topics;
    let expect = TopicStatus {
        name: "t".into(),
        partitions: 3,
        produced_batches: 4,
        produced_records: 5,
        produced_bytes: 6,
        fetched_bytes: 7,
        segments: 8,
        log_bytes: 9,
        traffic: vec![],
    };
    assert_eq!(topics, [expect]);
    let group = |name: &str, unknown_partitions, lag| GroupStatus {
        group: name.into(),
        state: GroupState::Reconciling,
        members: 2,
        partitions: 3,
        unknown_partitions,
        lag,
    };
    let expect = [
        group("g", 0, Some(GroupBehind { records: 4, time: Some(Duration::from_millis(5)) })),
        group("h", 0, Some(GroupBehind { records: 4, time: None })),
        group("i", 2, None),
    ];
    assert_eq!(admin.status_in_full().await.unwrap().groups, expect);
    let leader = admin.describe_topic("t").await.unwrap().partitions[0].leader.unwrap();
    assert_eq!(admin.full_status_of(leader).await.unwrap().groups, expect);
    assert!(matches!(admin.full_status_of(99).await, Err(ClientError::UnknownBroker { broker: 99 })));
    let status = admin.status().await.unwrap();
    assert_eq!(
        (status.topics.len(), status.counter("flush_rounds_total"), status.counter("none")),
        (0, Some(9), None)
    );
    assert_eq!(status.uptime, Duration::from_millis(1500));
    assert_eq!(status.shards[0].counters, [("flush_rounds_total".to_owned(), 9)]);
    assert_eq!(status.notices, ["all is well"]);

    let places = [(2, OffsetSpec::Latest), (1, OffsetSpec::Latest), (1, OffsetSpec::Earliest)];
    let listed = admin.list_offsets("t", &places).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|listed| (listed.partition, listed.offset)).collect();
    assert_eq!(listed, [(2, 0), (1, 2), (1, 0)]);

    let starts = admin.delete_records("t", &[(2, None), (1, Some(1))]).await.unwrap();
    assert_eq!(starts, [(2, 0), (1, 1)]);
    let above = admin.delete_records("t", &[(1, Some(3))]).await;
    assert_eq!(above.unwrap_err().code(), Some(ErrorCode::OffsetOutOfRange));
    assert_eq!(admin.delete_records("t", &[(1, None)]).await.unwrap(), [(1, 2)]);

    admin.delete_topic("made").await.unwrap();
    assert!(matches!(admin.describe_topic("made").await, Err(ClientError::UnknownTopic { .. })));
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let broker = FakeBroker::start(1).await;
    let admin = broker.client().await.admin();
    let missing = "there is no topic 'x'; create it: ringlog topic create x";
    let rows = [
        (admin.describe_topic("x").await.err(), missing),
        (admin.delete_topic("x").await.err(), missing),
        (admin.describe_configs("x").await.err(), missing),
        (admin.describe_logs("x").await.err(), missing),
        (admin.create_partitions("x", 2).await.err(), missing),
        (admin.list_offsets("x", &[(0, OffsetSpec::Latest)]).await.err(), missing),
        (admin.list_offsets("t", &[(5, OffsetSpec::Latest)]).await.err(), "there is no partition 5"),
        (admin.create_topic(&NewTopic::named("t")).await.err(), "TOPIC_EXISTS: says the fake"),
    ];
    for (error, expect) in rows {
        let error = error.unwrap().to_string();
        assert!(error.contains(expect), "{error}, expected {expect}");
    }
}

#[tokio::test]
async fn nobody_there_is_told_with_what_to_start() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let error = Client::connect(ClientConfig::new(&address).unwrap()).await.err().unwrap().to_string();
    let expect = format!("no broker answers at {address}: connection refused; start one with: ringlog serve");
    assert_eq!(error, expect);
}

#[tokio::test]
async fn a_request_without_effect_is_tried_again_and_a_lost_change_is_not() {
    let broker = FakeBroker::start(1).await;
    let admin = broker.client().await.admin();

    let mut refusals = 3;
    broker.hook(move |call| match call.request {
        Request::Status { .. } if refusals > 0 => {
            refusals -= 1;
            Do::Refuse(ErrorCode::Overloaded, 15)
        }
        _ => Do::Serve,
    });
    let started = Instant::now();
    admin.status().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(45), "the broker's wait is honoured");

    let mut hang_up = true;
    broker.hook(move |call| match call.request {
        Request::Status { .. } if std::mem::take(&mut hang_up) => Do::HangUp,
        Request::CreateTopic { .. } => Do::HangUp,
        _ => Do::Serve,
    });
    admin.status().await.unwrap();
    let error = admin.create_topic(&NewTopic::named("new")).await.unwrap_err();
    assert!(matches!(error, ClientError::Connection(_)), "{error}");
    let creations = broker.calls().into_iter().filter(|c| matches!(c.request, Request::CreateTopic { .. }));
    assert_eq!(creations.count(), 1);
}
