//! The client against several brokers, of which some die, fall silent, lag behind, or lead no more.

use crate::fake_broker::{Call, Do, FIRST, FakeBroker};
use futures_util::future::join_all;
use ringlog_client::request::Request;
use ringlog_client::{
    Client, ClientConfig, ClientError, ConsumerConfig, ErrorCode, OffsetSpec, ProduceError, ProducerConfig,
    ProducerRecord, StartFrom,
};
use std::time::Duration;

fn is_produce(call: &Call) -> bool {
    matches!(call.request, Request::Produce { .. })
}

fn is_metadata(call: &Call) -> bool {
    matches!(call.request, Request::Metadata { .. })
}

fn is_fetch(call: &Call) -> bool {
    matches!(call.request, Request::Fetch { .. })
}

fn record(value: impl ToString) -> ProducerRecord {
    ProducerRecord::new("t", value.to_string().into_bytes()).to_partition(0)
}

fn config_of(brokers: &[FakeBroker]) -> ClientConfig {
    let addresses: Vec<&str> = brokers.iter().map(|broker| broker.address.as_str()).collect();
    ClientConfig { brokers: addresses.into_iter().map(str::to_owned).collect(), ..brokers[0].config() }
}

async fn client_of(brokers: &[FakeBroker]) -> Client {
    Client::connect(config_of(brokers)).await.unwrap()
}

#[tokio::test]
async fn any_of_the_brokers_will_do_to_begin_with() {
    let brokers = FakeBroker::cluster(3, 3).await;
    brokers[0].kill();
    // The second takes connections and says nothing.
    brokers[1].hook(|call| if call.broker == FIRST + 1 { Do::Ignore } else { Do::Serve });
    let client = client_of(&brokers).await;
    assert_eq!(client.admin().describe_topic("t").await.unwrap().partitions.len(), 3);
    // Nobody: the first is named.
    brokers[2].kill();
    let config = ClientConfig { request_timeout: Duration::from_millis(900), ..config_of(&brokers) };
    let error = Client::connect(config).await.err().unwrap().to_string();
    assert!(error.contains(&brokers[0].address), "{error}");
}

/// An attempt to connect has a limit of its own: a request goes on with the next one.
#[tokio::test]
async fn a_lost_answer_to_hello_costs_an_attempt_and_not_the_request() {
    // The limit that is given, and a third of the request's time where that is less.
    for (connect_ms, request_ms, lost) in [(200, 20_000, 2), (60_000, 3_000, 1)] {
        let brokers = FakeBroker::cluster(2, 1).await;
        let mut left = [lost, lost];
        brokers[0].hook(move |call| {
            let left = &mut left[(call.broker - FIRST) as usize];
            let loses = matches!(call.request, Request::Hello { .. }) && *left > 0;
            *left -= u32::from(loses);
            if loses { Do::Ignore } else { Do::Serve }
        });
        let config = ClientConfig {
            connect_timeout: Duration::from_millis(connect_ms),
            request_timeout: Duration::from_millis(request_ms),
            ..config_of(&brokers[..1])
        };
        // Of whichever broker answers, and of a certain one.
        let client = Client::connect(config).await.expect("a later attempt is answered");
        client.admin().status_of(FIRST + 1).await.expect("a later attempt is answered");
        let hellos =
            brokers[0].calls().iter().filter(|call| matches!(call.request, Request::Hello { .. })).count();
        assert!(hellos >= 2 * (lost as usize + 1), "{hellos}");
    }
}

#[tokio::test]
async fn brokers_that_were_not_named_are_asked_when_the_named_are_gone() {
    let brokers = FakeBroker::cluster(3, 3).await;
    let client = client_of(&brokers[..1]).await;
    brokers[0].kill();
    assert_eq!(client.admin().describe_topic("t").await.unwrap().partitions.len(), 3);
}

/// Ways in which a leader stops being one.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The process is gone; its successor is there at once.
    Killed,
    /// The process is gone, and for a while nobody leads.
    KilledWithPause,
    /// The process is gone from the metadata, too.
    Unregistered,
    /// It takes requests and never answers: stopped, or cut off.
    Silent,
    /// It says so.
    Resigned,
    /// It appended, and died before it could say so.
    AppendedAndKilled,
}

/// The sequences of one partition go on at its new leader: everything is there once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_finds_the_new_leader_and_writes_nothing_twice() {
    let ends = [
        End::Killed,
        End::KilledWithPause,
        End::Unregistered,
        End::Silent,
        End::Resigned,
        End::AppendedAndKilled,
    ];
    for end in ends {
        let brokers = FakeBroker::cluster(3, 1).await;
        let client = client_of(&brokers).await;
        let config = ProducerConfig { batch_size: 200, ..Default::default() };
        let producer = client.producer(config);
        let mut sent = Vec::new();
        for value in 0..200 {
            sent.push(producer.send(record(value)).await.unwrap());
        }
        let produces = |calls: &[Call]| calls.iter().filter(|call| is_produce(call)).count();
        // Whoever falls silent does so in the middle, not before the producer is connected.
        brokers[0].until(|calls| produces(calls) > 0).await;
        let before = produces(&brokers[0].calls());
        if matches!(end, End::Silent | End::AppendedAndKilled) {
            brokers[0].hook(move |call| match (call.broker, end) {
                (FIRST, End::Silent) => Do::Ignore,
                (FIRST, _) if is_produce(call) => Do::ServeAndHangUp,
                _ => Do::Serve,
            });
        }
        for value in 200..400 {
            sent.push(producer.send(record(value)).await.unwrap());
        }
        match end {
            End::Resigned => {}
            End::Silent | End::AppendedAndKilled => {
                brokers[0].until(|calls| produces(calls) > before).await;
                if matches!(end, End::AppendedAndKilled) {
                    brokers[0].kill();
                }
            }
            _ => brokers[0].kill(),
        }
        if matches!(end, End::KilledWithPause) {
            brokers[0].lead(0, None);
        }
        for value in 400..500 {
            sent.push(producer.send(record(value)).await.unwrap());
        }
        if matches!(end, End::KilledWithPause) {
            let asked = |calls: &[Call]| calls.iter().filter(|call| is_metadata(call)).count();
            let before = asked(&brokers[0].calls());
            brokers[0].until(|calls| asked(calls) > before + 3).await;
        }
        if matches!(end, End::Unregistered) {
            brokers[0].unregister();
        }
        brokers[0].lead(0, Some(FIRST + 1));
        for value in 500..600 {
            sent.push(producer.send(record(value)).await.unwrap());
        }
        for (at, receipt) in join_all(sent).await.into_iter().enumerate() {
            assert_eq!(
                receipt.unwrap_or_else(|error| panic!("{end:?} {at}: {error}")).offset,
                at as u64,
                "{end:?}"
            );
        }
        let expect: Vec<String> = (0..600).map(|value| value.to_string()).collect();
        assert_eq!(brokers[0].values(0), expect, "{end:?}");
        assert_eq!(brokers[0].topic("t", |t| t.partitions[0].producers.epochs()), [0], "{end:?}: one epoch");
    }
}

/// Several leaders die one after the other while several clones produce to all partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_and_in_order_while_leaders_change() {
    const RECORDS: u32 = 3_000;
    let brokers = FakeBroker::cluster(3, 6).await;
    let client = client_of(&brokers).await;
    let producer = client.producer(ProducerConfig { batch_size: 500, ..Default::default() });
    let mut calls = 0u32;
    brokers[0].hook(move |call| {
        calls += u32::from(is_produce(call));
        match calls % 11 {
            _ if !is_produce(call) => Do::Serve,
            3 => Do::ServeAndHangUp,
            6 => Do::HangUp,
            _ => Do::Serve,
        }
    });
    let moving = async {
        for round in 0..40u32 {
            for partition in 0..6 {
                let leader = (round % 4 != 3).then_some(FIRST + (partition + round) % 3);
                brokers[0].lead(partition as usize, leader);
            }
            let asked = brokers[0].calls().len();
            brokers[0].until(|calls| calls.len() > asked + 5).await;
        }
        for partition in 0..6 {
            brokers[0].lead(partition, Some(FIRST));
        }
        // Nobody is interrupted any more, whatever is still to come.
        std::future::pending::<()>().await;
    };
    let producing = async {
        let mut sent = Vec::new();
        for at in 0..RECORDS {
            sent.push(producer.send(record(at).to_partition(at % 6)).await.unwrap());
        }
        for receipt in join_all(sent).await {
            receipt.unwrap();
        }
    };
    tokio::select! {
        () = moving => {}
        () = producing => {}
    }
    for partition in 0..6 {
        let expect: Vec<String> =
            (0..RECORDS).filter(|at| at % 6 == partition).map(|at| at.to_string()).collect();
        assert_eq!(brokers[0].values(partition as usize), expect, "partition {partition}");
    }
}

#[tokio::test]
async fn records_wait_for_a_leader_no_longer_than_they_may() {
    let brokers = FakeBroker::cluster(2, 2).await;
    brokers[0].lead(0, None);
    let client = client_of(&brokers).await;
    let config = ProducerConfig { delivery_timeout: Duration::from_millis(200), ..Default::default() };
    let producer = client.producer(config);
    let error = producer.send(record("late")).await.unwrap().await.unwrap_err();
    assert!(matches!(error, ProduceError::TimedOut { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.to_string().contains("LEADER_NOT_AVAILABLE"), "{error}");
    // What may go anywhere goes where there is a leader.
    for _ in 0..10 {
        let anywhere = ProducerRecord { partition: None, ..record("any") };
        assert_eq!(producer.send(anywhere).await.unwrap().await.unwrap().partition, 1);
    }
    let config = ClientConfig { request_timeout: Duration::from_millis(200), ..config_of(&brokers) };
    let admin = Client::connect(config).await.unwrap().admin();
    let error = admin.list_offsets("t", &[(0, OffsetSpec::Latest)]).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::LeaderNotAvailable), "{error}");
    assert!(matches!(error, ClientError::NoLeader { partition: 0, .. }));
}

/// While nobody leads, clients ask less and less often; what many partitions want is asked in one request.
#[tokio::test]
async fn a_missing_leader_brings_no_herd() {
    let brokers = FakeBroker::cluster(2, 32).await;
    let client = client_of(&brokers).await;
    let producer = client.producer(ProducerConfig::default());
    for partition in 0..32 {
        producer.send(record("first").to_partition(partition)).await.unwrap().await.unwrap();
        brokers[0].lead(partition as usize, None);
    }
    let before = brokers[0].calls().len();
    let mut sent = Vec::new();
    for partition in 0..32 {
        sent.push(producer.send(record("second").to_partition(partition)).await.unwrap());
    }
    let asked = |calls: &[Call]| calls[before..].iter().filter(|call| is_metadata(call)).count();
    brokers[0].until(|calls| asked(calls) >= 12).await;
    // Each of these follows a longer pause than the one before: there is time for all partitions to fail many times.
    let calls = brokers[0].calls();
    let produces = calls[before..].iter().filter(|call| is_produce(call)).count();
    assert!(produces <= 2 * 32, "{produces} produces to leaders that are none");
    for partition in 0..32 {
        brokers[0].lead(partition, Some(FIRST + 1));
    }
    for receipt in join_all(sent).await {
        receipt.unwrap();
    }
    let asked = asked(&brokers[0].calls());
    assert!(asked < 40, "{asked} questions for metadata");
}

/// A broker that was cut off tells of leaders of the past, and does not know it.
#[tokio::test]
async fn the_past_is_not_believed() {
    let brokers = FakeBroker::cluster(3, 1).await;
    // The client asks the second, which will lag behind.
    let config = ClientConfig { brokers: vec![brokers[1].address.clone()], ..brokers[0].config() };
    let client = Client::connect(config).await.unwrap();
    let producer = client.producer(ProducerConfig::default());
    producer.send(record("a")).await.unwrap().await.unwrap();
    brokers[0].lead(0, Some(FIRST + 2));
    producer.send(record("b")).await.unwrap().await.unwrap();
    brokers[1].freeze();
    brokers[0].lead(0, Some(FIRST));
    // The second still says that the third leads. Whoever is asked later knows better.
    brokers[2].hook(|call| match call.broker {
        broker if broker == FIRST + 1 && is_metadata(call) => Do::HangUp,
        _ => Do::Serve,
    });
    producer.send(record("c")).await.unwrap().await.unwrap();
    brokers[2].hook(|_| Do::Serve);
    let topic = client.admin().describe_topic("t").await.unwrap();
    assert_eq!(topic.partitions[0].leader, Some(FIRST));
    producer.send(record("d")).await.unwrap().await.unwrap();
    assert_eq!(brokers[0].values(0), ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_on_at_the_new_leader() {
    for end in [End::Killed, End::KilledWithPause, End::Silent, End::Resigned] {
        let brokers = FakeBroker::cluster(3, 3).await;
        let client = client_of(&brokers).await;
        let config = ConsumerConfig { fetch_max_wait: Duration::from_millis(20), ..Default::default() };
        let mut consumer = client.consumer(config);
        for partition in 0..3 {
            brokers[0].append(partition, &["a", "b"]);
        }
        consumer.assign_all("t", StartFrom::Earliest).await.unwrap();
        let mut seen = vec![Vec::new(); 3];
        let mut read = async |count: usize| {
            for _ in 0..count {
                let record = consumer.next().await.unwrap().unwrap();
                let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
                seen[record.partition as usize].push((record.offset, value));
            }
        };
        read(6).await;
        match end {
            End::Silent => {
                let before = brokers[0].calls().len();
                brokers[0].hook(|call| if call.broker == FIRST { Do::Ignore } else { Do::Serve });
                let fetches =
                    |call: &Call| call.broker == FIRST && matches!(call.request, Request::Fetch { .. });
                brokers[0].until(|calls| calls[before..].iter().any(fetches)).await;
            }
            End::Resigned => {}
            _ => brokers[0].kill(),
        }
        if matches!(end, End::KilledWithPause) {
            brokers[0].lead(0, None);
            let before = brokers[0].calls().len();
            let asked = |calls: &[Call]| calls[before..].iter().filter(|call| is_metadata(call)).count();
            brokers[0].until(|calls| asked(calls) > 3).await;
        }
        brokers[0].lead(0, Some(FIRST + 2));
        for partition in 0..3 {
            brokers[0].append(partition, &["c", "d"]);
        }
        read(6).await;
        for seen in seen {
            let expect = ["a", "b", "c", "d"].iter().zip(0u64..).map(|(value, at)| (at, (*value).to_owned()));
            assert_eq!(seen, expect.collect::<Vec<_>>(), "{end:?}");
        }
    }
}

#[tokio::test]
async fn ids_of_producers_come_from_any_broker() {
    let brokers = FakeBroker::cluster(2, 1).await;
    let client = client_of(&brokers).await;
    brokers[0].hook(|call| match call.request {
        Request::InitProducer { .. } if call.broker == FIRST => Do::Refuse(ErrorCode::MetadataUnavailable, 1),
        _ => Do::Serve,
    });
    client.producer(ProducerConfig::default()).send(record("a")).await.unwrap().await.unwrap();
    assert_eq!(brokers[0].values(0), ["a"]);
}

/// What a follower that was named does at last.
#[derive(Clone, Copy, Debug)]
enum Fails {
    /// It is gone.
    Killed,
    /// It takes requests and does not answer.
    Silent,
    /// It says that only the leader serves.
    Refuses,
    /// It is no replica any more, and says of every offset that it is out of range.
    HasNothing,
}

#[tokio::test]
async fn a_consumer_reads_at_a_follower_of_its_rack_and_goes_on_at_the_leader() {
    for fails in [Fails::Killed, Fails::Silent, Fails::Refuses, Fails::HasNothing] {
        let brokers = FakeBroker::cluster(2, 1).await;
        // Long enough that only who does not answer at all is taken for silent.
        let patience = if matches!(fails, Fails::Silent) { 300 } else { 60_000 };
        let leader_check_after = Duration::from_millis(patience);
        let client = ClientConfig { leader_check_after, ..config_of(&brokers) };
        let client = Client::connect(client).await.unwrap();
        let config = ConsumerConfig {
            fetch_max_wait: Duration::from_millis(100),
            rack: Some("here".to_owned()),
            ..ConsumerConfig::default()
        };
        let mut consumer = client.consumer(config);
        let follower = FIRST + 1;
        // It sees two offsets less than the leader.
        let sees =
            |end: u64| brokers[0].topic("t", |topic| topic.partitions[0].follower = Some((follower, end)));
        sees(2);
        brokers[0].append(0, &["a", "b"]);
        brokers[0].append(0, &["c", "d"]);
        consumer.assign_all("t", StartFrom::Earliest).await.unwrap();
        let mut next = 0;
        let mut read = async |until: u64| {
            while next < until {
                let record = consumer.next().await.unwrap().unwrap();
                assert_eq!(record.offset, next, "{fails:?}");
                next += 1;
            }
            consumer.high_watermark("t", 0)
        };
        let fetches =
            |calls: &[Call], at: u32| calls.iter().filter(|call| call.broker == at && is_fetch(call)).count();
        assert_eq!(read(4).await, Some(4));
        // From here on at the follower, which has nothing new at first; what was visible stays so.
        brokers[0].until(|calls| fetches(calls, follower) > 0).await;
        let at_the_leader = fetches(&brokers[0].calls(), FIRST);
        brokers[0].append(0, &["e", "f"]);
        sees(6);
        assert_eq!(read(6).await, Some(6), "{fails:?}");
        if !matches!(fails, Fails::Silent) {
            assert_eq!(
                fetches(&brokers[0].calls(), FIRST),
                at_the_leader,
                "{fails:?}: the leader is left alone"
            );
        }
        match fails {
            Fails::Killed => brokers[1].kill(),
            Fails::Silent => {
                brokers[0].hook(move |call| if call.broker == follower { Do::Ignore } else { Do::Serve });
            }
            Fails::Refuses | Fails::HasNothing => {
                let code = match fails {
                    Fails::Refuses => ErrorCode::NotLeader,
                    _ => ErrorCode::OffsetOutOfRange,
                };
                brokers[0].hook(move |call| match call.broker == follower && is_fetch(call) {
                    true => Do::RefuseEntries(code),
                    false => Do::Serve,
                });
            }
        }
        brokers[0].append(0, &["g", "h"]);
        assert_eq!(read(8).await, Some(8), "{fails:?}");
        // It is named again and again, and tried again when some time has passed.
        if matches!(fails, Fails::Refuses) {
            brokers[0].hook(|_| Do::Serve);
            sees(8);
            let before = fetches(&brokers[0].calls(), follower);
            brokers[0].until(|calls| fetches(calls, follower) > before).await;
        }
    }
}

/// A reply that takes longer than a broker may be silent is no silence while its bytes come.
#[tokio::test]
async fn a_consumer_stays_with_a_follower_whose_link_is_slow() {
    let brokers = FakeBroker::cluster(2, 1).await;
    let leader_check_after = Duration::from_millis(300);
    let client = ClientConfig { leader_check_after, ..config_of(&brokers) };
    let client = Client::connect(client).await.unwrap();
    let config = ConsumerConfig {
        fetch_max_wait: Duration::from_millis(100),
        rack: Some("here".to_owned()),
        ..ConsumerConfig::default()
    };
    let mut consumer = client.consumer(config);
    let follower = FIRST + 1;
    let append = |end: u64| {
        brokers[0].append(0, &["a", "b"]);
        brokers[0].topic("t", |topic| topic.partitions[0].follower = Some((follower, end)));
    };
    append(2);
    // 800 ms for each of its replies.
    brokers[0].hook(move |call| match call.broker == follower && is_fetch(call) {
        true => Do::Drip(20, Duration::from_millis(40)),
        false => Do::Serve,
    });
    consumer.assign_all("t", StartFrom::Earliest).await.unwrap();
    let mut next = 0;
    let mut read = async |until: u64| {
        while next < until {
            assert_eq!(consumer.next().await.unwrap().unwrap().offset, next);
            next += 1;
        }
    };
    read(2).await;
    let fetches =
        |calls: &[Call], at: u32| calls.iter().filter(|call| call.broker == at && is_fetch(call)).count();
    // Who is held up for longer than the follower may be silent leaves it, and is tried again.
    for attempt in 1u64.. {
        let before = if attempt == 1 { 0 } else { fetches(&brokers[0].calls(), follower) };
        brokers[0].until(|calls| fetches(calls, follower) > before).await;
        let at_the_leader = fetches(&brokers[0].calls(), FIRST);
        append(2 + 2 * attempt);
        read(2 + 2 * attempt).await;
        if fetches(&brokers[0].calls(), FIRST) == at_the_leader {
            break;
        }
        assert!(attempt < 3, "it reads at the leader although the follower sends");
    }
}
