//! Settings of producers and consumers by their usual names (`--set`), each seen by what the broker then does.
//!
//! Nothing is timed: what a setting does is counted, in batches that are stored and in fetches that are answered.

use crate::process::{Broker, directory};
use ringlog_client::{
    Client, ClientConfig, Consumer, ConsumerConfig, CustomPartitioner, ErrorCode, Partitioner,
    ProducerConfig, ProducerRecord, StartFrom,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// A counter of all shards together.
fn counter(broker: &Broker, name: &str) -> u64 {
    let status = broker.run(&["status", "--format", "json"]).ok().json().remove(0);
    let shards = status["shards"].as_array().expect("the shards");
    shards.iter().map(|shard| shard["counters"][name].as_u64().expect("the counter")).sum()
}

/// How much a counter rises meanwhile.
fn rise(broker: &Broker, name: &str, work: impl FnOnce()) -> u64 {
    let before = counter(broker, name);
    work();
    counter(broker, name) - before
}

fn lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("value {n}\n").into_bytes()).collect()
}

fn records(broker: &Broker, topic: &str) -> Vec<Value> {
    broker.run(&["consume", topic, "--until-end", "--format", "json"]).ok().json()
}

#[test]
fn batches_are_gathered_as_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t"]).ok();
    let batches = |settings: &[&str]| {
        let mut line = vec!["produce", "t"];
        line.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        rise(&broker, "batches_total", || drop(broker.run_with(&line, &lines(40)).ok()))
    };
    // A batch that is full with any record, and one that waits for everything: the end of the input sends it.
    assert_eq!(batches(&["batch.size=1"]), 40);
    assert_eq!(batches(&["linger.ms=1h", "batch.size=1MiB"]), 1);
    // Nine lines of nine bytes and ten records' overhead do not fit twice.
    let some = batches(&["linger.ms=1h", "batch.size=256"]);
    assert!((3..=20).contains(&some), "{some} batches");
    assert_eq!(records(&broker, "t").len(), 120);
}

#[test]
fn a_producer_is_bounded_and_places_keys_as_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t", "--partitions", "4"]).ok();
    let line = ["produce", "t", "--set", "buffer.memory=1KiB", "--set", "linger.ms=0"];
    broker.run_with(&line, &[b'x'; 2000]).failed(1, &["1024"]);
    // What does not fit at once goes one after the other.
    let ran = broker.run_with(&[&line[..], &["--format", "json"]].concat(), &lines(500)).ok();
    assert_eq!(ran.json()[0]["acknowledged"], 500);

    let line = ["produce", "t", "--key-separator", ":", "--set", "partitioner=modulo"];
    broker.run_with(&line, b"7:a\n8:b\n41:c\n2:d\n").ok();
    let mut placed: Vec<(String, Value)> = (records(&broker, "t").into_iter())
        .filter_map(|record| Some((record["key"].as_str()?.to_owned(), record["partition"].clone())))
        .collect();
    placed.sort_by_key(|(key, _)| key.parse::<u32>().expect("a number"));
    let expected = [("2", 2), ("7", 3), ("8", 0), ("41", 1)];
    assert_eq!(placed, expected.map(|(key, partition)| (key.to_owned(), json!(partition))));

    // The last word is the setting's, and receipts say what came of it.
    let line = ["produce", "t", "--acks", "all", "--set", "acks=0", "--format", "json"];
    let report = broker.run_with(&line, b"x\n").ok().json().remove(0);
    assert_eq!(report["partitions"][0]["durability"], "none");
    for (setting, says) in [
        ("linger=5", "linger.ms"),
        ("batch.size=2MiB", "permitted: 1 to 1048576"),
        ("compression.type=rar", "none, lz4, zstd"),
    ] {
        broker.run_with(&["produce", "t", "--set", setting], b"x\n").failed(2, &[says]);
    }
}

/// A function of the application's: it sees what there is, and its word counts, unless the record has a partition already.
#[tokio::test]
async fn a_partitioner_of_ones_own_places_records() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t", "--partitions", "4"]).ok();
    let by_length: Arc<CustomPartitioner> = Arc::new(|topic, key, value, partitions| {
        assert_eq!((topic, key, partitions), ("t", Some(&b"the same"[..]), 4));
        value.map_or(9, |value| value.len() as u32)
    });
    let partitioner = Partitioner::Custom(by_length);
    let producer = client_of(&broker).await.producer(ProducerConfig { partitioner, ..Default::default() });
    let record = |value: &'static str| ProducerRecord::new("t", value).with_key("the same");
    let rows = [
        (record("aaa"), 3),
        (record(""), 0),
        (record("a"), 1),
        (record("aa"), 2),
        (record("aa").to_partition(1), 1),
    ];
    for (record, partition) in rows {
        let receipt = producer.send(record).await.expect("it is taken").await.expect("it is acknowledged");
        assert_eq!(receipt.partition, partition);
    }
    for nowhere in [record("aaaa"), ProducerRecord { value: None, ..record("") }] {
        let error = producer.send(nowhere).await.expect_err("there is no such partition");
        assert_eq!(error.code(), Some(ErrorCode::UnknownPartition), "{error}");
    }
    let mut placed: Vec<(Value, Value)> = (records(&broker, "t").into_iter())
        .map(|record| (record["partition"].clone(), record["value"].clone()))
        .collect();
    placed.sort_by_key(|(partition, _)| partition.as_u64());
    let expected = [(0, ""), (1, "a"), (1, "aa"), (2, "aa"), (3, "aaa")];
    assert_eq!(placed, expected.map(|(partition, value)| (json!(partition), json!(value))));
}

#[test]
fn a_position_that_is_gone_is_reset_as_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run_with(&["produce", "t"], b"a\nb\nc\n").ok();
    broker.run(&["topic", "delete-records", "t", "--before", "0:2"]).ok();
    // (from, policy, what there is to the end)
    for (from, policy, to_end) in
        [("0", "earliest", "c\n"), ("0", "latest", ""), ("9", "earliest", "c\n"), ("9", "latest", "")]
    {
        let policy = format!("auto.offset.reset={policy}");
        let line = ["consume", "t", "--offset", from, "--set", &policy, "--until-end"];
        assert_eq!(broker.run(&line).ok().text(), to_end, "{line:?}");
    }
    let line = ["consume", "t", "--offset", "9", "--max", "1"];
    broker.run(&line).failed(1, &["offset 9"]);
    // By the consumer itself, without an end that the command knows.
    let reset = [&line[..], &["--set", "auto.offset.reset=earliest"]].concat();
    assert_eq!(broker.run(&reset).ok().text(), "c\n");
    broker.run(&["consume", "t", "--set", "fetch.wait=1"]).failed(2, &["fetch.max.wait.ms"]);
    broker.run(&["consume", "t", "--group", "g", "--set", "session=1"]).failed(2, &["session.timeout.ms"]);
}

#[test]
fn a_member_commits_as_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run_with(&["produce", "t"], b"a\nb\n").ok();
    let read = |settings: &[&str]| {
        let mut line = vec!["consume", "t", "--group", "g", "--max", "1"];
        line.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        broker.run(&line).ok().text()
    };
    assert_eq!(read(&["enable.auto.commit=false"]), "a\n");
    assert_eq!(read(&["session.timeout.ms=6s"]), "a\n", "nothing was committed");
    assert_eq!(read(&[]), "b\n", "and now it was");
}

async fn client_of(broker: &Broker) -> Client {
    Client::connect(ClientConfig::new(broker.address.clone()).expect("an address")).await.expect("a broker")
}

/// A consumer of `topic` with `settings`, from the start.
async fn consumer(broker: &Broker, topic: &str, settings: &[(&str, &str)]) -> Consumer {
    let mut config = ConsumerConfig::default();
    for (name, value) in settings {
        config.set(name, value).expect("a setting");
    }
    let mut consumer = client_of(broker).await.consumer(config);
    consumer.assign(topic, &[(0, StartFrom::Earliest)]).await.expect("the topic");
    consumer
}

/// Reads `count` records.
async fn read(consumer: &mut Consumer, count: usize) {
    for _ in 0..count {
        consumer.next().await.expect("assigned").expect("a record");
    }
}

#[tokio::test]
async fn fetches_are_as_large_as_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "many"]).ok();
    broker.run_with(&["produce", "many", "--set", "batch.size=1"], &lines(50)).ok();
    let fetches =
        || counter(&broker, "fetches_from_memory_total") + counter(&broker, "fetches_from_device_total");
    // A batch each, or all that there is at once.
    for (settings, expected) in [
        (&[("max.partition.fetch.bytes", "1")][..], 50..=60),
        (&[("fetch.max.bytes", "1")][..], 50..=60),
        (&[][..], 1..=3),
    ] {
        let before = fetches();
        let mut consumer = consumer(&broker, "many", settings).await;
        read(&mut consumer, 50).await;
        drop(consumer);
        let count = fetches() - before;
        assert!(expected.contains(&count), "{settings:?}: {count} fetches, expected {expected:?}");
    }
}

#[tokio::test]
async fn a_fetch_waits_for_as_much_as_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "slow"]).ok();
    let settings = [("fetch.min.bytes", "4000"), ("fetch.max.wait.ms", "1h")];
    let mut waiting = consumer(&broker, "slow", &settings).await;
    let reader = tokio::spawn(async move {
        let first = waiting.next_batch().await.expect("assigned").expect("a batch");
        first.high_watermark()
    });
    let producer = client_of(&broker).await.producer(ProducerConfig::default());
    let mut produced = 0;
    while !reader.is_finished() {
        assert!(produced < 2000, "the fetch was never answered");
        let record = ProducerRecord::new("slow", vec![b'x'; 400]);
        producer.send(record).await.expect("it is taken").await.expect("it is acknowledged");
        produced += 1;
    }
    // 400 bytes and the rest of a batch each: not before the eighth of them.
    let seen = reader.await.expect("it reads");
    assert!((8..=produced).contains(&seen), "answered when {seen} batches were there");
    // And one that may not wait so long comes with less.
    let settings = [("fetch.min.bytes", "1MiB"), ("fetch.max.wait.ms", "1")];
    let mut hurried = consumer(&broker, "slow", &settings).await;
    read(&mut hurried, 1).await;
}
