//! Idempotent producers against a real broker: behind a network that cuts connections and loses answers, and over
//! kills of the broker. Every record that was sent is there once, where its receipt says, and in order.

use crate::process::{Broker, directory};
use crate::proxy::{self, Proxy};
use crate::retention::eventually;
use ringlog_client::{
    Client, ClientConfig, ConsumerConfig, DeliveryFuture, NewTopic, ProduceError, Producer, ProducerConfig,
    ProducerRecord, Receipt, StartFrom,
};
use schema::record_batch;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 3;

/// Waits until nobody listens there: the kernel takes down the rings of a process that was killed, and with them
/// its sockets, after it has told of its end.
fn free(address: &str) {
    let began = Instant::now();
    while let Err(error) = TcpListener::bind(address) {
        assert!(began.elapsed() < Duration::from_secs(60), "{address}: {error}");
        std::thread::yield_now();
    }
}

/// Two shards on the port of `address`, behind a proxy or not.
fn serve(data: &Path, address: &str, advertise: Option<&str>) -> Broker {
    free(address);
    let mut arguments = vec!["--shards", "2", "--cores", "none", "--listen", address];
    arguments.extend(advertise.iter().flat_map(|host| ["--advertise", host]));
    Broker::start_with(data, &arguments)
}

async fn client(address: &str) -> Client {
    let config = ClientConfig {
        request_timeout: Duration::from_secs(10),
        retry_backoff: Duration::from_millis(2),
        retry_backoff_max: Duration::from_millis(100),
        ..ClientConfig::new(address).expect("an address")
    };
    Client::connect(config).await.expect("the broker answers")
}

fn config() -> ProducerConfig {
    ProducerConfig { batch_size: 2_000, delivery_timeout: Duration::from_secs(100), ..Default::default() }
}

fn record(number: u64) -> ProducerRecord {
    ProducerRecord::new("t", number.to_string()).to_partition(number as u32 % PARTITIONS)
}

async fn send(producer: &Producer, numbers: std::ops::Range<u64>) -> Vec<DeliveryFuture> {
    let mut sent = Vec::new();
    for number in numbers {
        sent.push(producer.send(record(number)).await.expect("there is memory for it"));
    }
    sent
}

async fn receipts(sent: Vec<DeliveryFuture>) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for sent in sent {
        receipts.push(sent.await.expect("it is acknowledged"));
    }
    receipts
}

/// Record n has the n-th receipt: each is there once, where its receipt says, in the order of sending.
#[track_caller]
fn judge(broker: &Broker, receipts: &[Receipt]) {
    let consumed = broker.run(&["consume", "t", "--until-end", "--format", "json"]).ok().json();
    let mut expected: Vec<(u64, u64, String)> = (receipts.iter().enumerate())
        .map(|(number, receipt)| (u64::from(receipt.partition), receipt.offset, number.to_string()))
        .collect();
    expected.sort();
    let mut found: Vec<(u64, u64, String)> = (consumed.iter())
        .map(|record| {
            let number = |name: &str| record[name].as_u64().expect("a number");
            (number("partition"), number("offset"), record["value"].as_str().expect("a text").to_owned())
        })
        .collect();
    found.sort();
    let different = expected.iter().zip(&found).find(|(expected, found)| expected != found);
    assert_eq!((different, found.len()), (None, receipts.len()), "(partition, offset, number)");
    let in_order = found.windows(2).all(|pair| {
        let number = |record: &(u64, u64, String)| record.2.parse::<u64>().expect("a number");
        pair[0].0 != pair[1].0 || number(&pair[0]) < number(&pair[1])
    });
    assert!(in_order, "not in the order of sending");
}

/// A counter, summed over the shards.
fn counter(broker: &Broker, name: &str) -> u64 {
    let status = broker.run(&["status", "--format", "json"]).ok().json().remove(0);
    let shards = status["shards"].as_array().expect("a list");
    shards.iter().map(|shard| shard["counters"][name].as_u64().expect("a number")).sum()
}

#[tokio::test]
async fn once_and_in_order_through_a_bad_network() {
    for seed in 1..=3 {
        let data = directory();
        let broker = serve(data.path(), "127.0.0.1:0", Some(proxy::HOST));
        let proxy = Proxy::start(&broker.address, seed);
        let client = client(&broker.address).await;
        let topic = NewTopic { partitions: PARTITIONS, ..NewTopic::named("t") };
        client.admin().create_topic(&topic).await.expect("it is new");
        let producer = client.producer(config());
        proxy.trouble(true);
        let sent = send(&producer, 0..30_000).await;
        let receipts = receipts(sent).await;
        proxy.trouble(false);
        let duplicates = receipts.iter().filter(|receipt| receipt.duplicate).count();
        let (cut, swallowed) = proxy.counts();
        eprintln!("seed {seed}: {cut} connections cut, {swallowed} answers lost, {duplicates} duplicates");
        assert!(cut > 0 && swallowed > 0 && duplicates > 0);
        judge(&broker, &receipts);
        assert!(counter(&broker, "duplicate_batches_total") > 0);
    }
}

#[test]
fn the_command_line_gets_through_a_bad_network() {
    const LINES: usize = 5_000;
    let data = directory();
    let broker = serve(data.path(), "127.0.0.1:0", Some(proxy::HOST));
    let proxy = Proxy::start(&broker.address, 4);
    broker.run(&["topic", "create", "t", "--partitions", "3"]).ok();
    let lines: String = (0..LINES).map(|n| format!("{n} {}\n", "x".repeat(60))).collect();
    proxy.trouble(true);
    let line = ["produce", "t", "--set", "batch.size=2000", "--format", "json"];
    let report = broker.run_with(&line, lines.as_bytes()).ok().json().remove(0);
    proxy.trouble(false);
    assert_eq!((&report["acknowledged"], &report["failed"]), (&LINES.into(), &0.into()), "{report}");
    let (cut, swallowed) = proxy.counts();
    assert!(cut + swallowed > 0, "it was sent through the network's trouble");
    let found = broker.run(&["consume", "t", "--until-end"]).ok().text();
    let once: BTreeSet<&str> = found.lines().collect();
    assert_eq!((once.len(), found.lines().count()), (LINES, LINES));
}

#[tokio::test]
async fn once_and_in_order_over_kills() {
    const KILLS: u64 = 5;
    const RECORDS: u64 = 4_000;
    let data = directory();
    let mut broker = serve(data.path(), "127.0.0.1:0", None);
    let address = broker.address.clone();
    let client = client(&address).await;
    let topic = NewTopic { partitions: PARTITIONS, ..NewTopic::named("t") };
    client.admin().create_topic(&topic).await.expect("it is new");
    let producer = client.producer(config());
    let mut sent = Vec::new();
    let mut told = Vec::new();
    for kill in 0..KILLS {
        let first = kill * RECORDS;
        sent.extend(send(&producer, first..first + RECORDS).await);
        // In the middle: of those sent just now, some are acknowledged, some on their way, some still here.
        let later = sent.split_off(RECORDS as usize / 4);
        told.extend(receipts(std::mem::replace(&mut sent, later)).await);
        broker.stop(libc::SIGKILL);
        broker = serve(data.path(), &address, None);
    }
    told.extend(receipts(sent).await);
    judge(&broker, &told);
}

/// The broker has it, durably, its answer is lost, and so is the broker: the next one knows.
#[tokio::test]
async fn what_was_appended_before_a_kill_is_recognised_after_it() {
    let data = directory();
    let broker = serve(data.path(), "127.0.0.1:0", Some(proxy::HOST));
    let address = broker.address.clone();
    let proxy = Proxy::start(&address, 1);
    let client = client(&address).await;
    let topic = NewTopic { partitions: PARTITIONS, ..NewTopic::named("t") };
    client.admin().create_topic(&topic).await.expect("it is new");
    let producer = client.producer(config());
    let mut told = receipts(send(&producer, 0..30).await).await;
    proxy.deaf(true);
    let sent = send(&producer, 30..60).await;
    // Asked past the proxy: until all of it is there.
    loop {
        let logs = client.admin().describe_logs("t").await.expect("it answers");
        if logs.iter().map(|log| log.high_watermark).sum::<u64>() == 60 {
            break;
        }
    }
    broker.stop(libc::SIGKILL);
    proxy.deaf(false);
    let broker = serve(data.path(), &address, Some(proxy::HOST));
    let again = receipts(sent).await;
    assert!(again.iter().all(|receipt| receipt.duplicate), "{again:?}");
    told.extend(again);
    told.extend(receipts(send(&producer, 60..90).await).await);
    judge(&broker, &told);
    // An orderly stop and start, too: what is known of producers is read from the checkpoint.
    broker.stop(libc::SIGTERM);
    let broker = serve(data.path(), &address, Some(proxy::HOST));
    let more = receipts(send(&producer, 90..120).await).await;
    assert!(more.iter().all(|receipt| !receipt.duplicate));
    told.extend(more);
    judge(&broker, &told);
    assert_eq!(counter(&broker, "out_of_sequence_batches_total"), 0);
}

/// The time is up with the answer lost: the record may be there, and is. What comes behind it has the next epoch. With a broker
/// that was never reached it is told that the record is not there.
#[tokio::test]
async fn what_is_given_up_says_whether_it_may_be_there_and_the_next_epoch_goes_on() {
    let data = directory();
    let broker = serve(data.path(), "127.0.0.1:0", Some(proxy::HOST));
    let address = broker.address.clone();
    let proxy = Proxy::start(&address, 1);
    let client = client(&address).await;
    client.admin().create_topic(&NewTopic::named("t")).await.expect("it is new");
    let patience = |delivery_timeout| ProducerConfig { delivery_timeout, ..Default::default() };
    let producer = client.producer(patience(Duration::from_secs(2)));
    let send = async |producer: &Producer, value: &'static str| {
        producer.send(ProducerRecord::new("t", value)).await.expect("there is memory for it").await
    };
    assert_eq!(send(&producer, "first").await.expect("it is acknowledged").offset, 0);
    let line = ["produce", "t", "--receipts", "--format", "json", "--set", "delivery.timeout.ms=2s"];
    let mut command = broker.command(&line);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = command.spawn().expect("it runs");
    let mut input = command.stdin.take().expect("it is piped");
    input.write_all(b"heard\n").expect("it is read");
    let mut receipt = String::new();
    let mut output = BufReader::new(command.stdout.take().expect("it is piped"));
    output.read_line(&mut receipt).expect("it is acknowledged");
    assert!(receipt.contains("\"offset\":1"), "{receipt}");
    proxy.deaf(true);
    input.write_all(b"unheard\n").expect("it is read");
    drop(input);
    while client.admin().describe_logs("t").await.expect("it answers")[0].log_end < 3 {}
    let error = send(&producer, "unheard too").await.expect_err("nobody answers");
    assert!(matches!(error, ProduceError::TimedOut { outcome_unknown: true, .. }), "{error}");
    let ended = command.wait_with_output().expect("it is our child");
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr);
    for part in
        ["1 of 2 records", "not acknowledged within 2s", "may or may not have been written: read back before"]
    {
        assert!(said.contains(part), "'{part}' is not in:\n{said}");
    }
    proxy.deaf(false);
    let receipt = send(&producer, "next").await.expect("it is acknowledged");
    assert!(!receipt.duplicate);

    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.expect("it is there");
    let (mut values, mut producers) = (Vec::new(), Vec::new());
    while values.len() <= receipt.offset as usize {
        let fetched = consumer.next_batch().await.expect("assigned").expect("it is sound");
        for record in fetched.records() {
            let value = record.expect("it is sound").value.expect("it has a value");
            values.push(String::from_utf8(value.to_vec()).expect("it is text"));
        }
        let headers = record_batch::batches(fetched.bytes()).map(|batch| batch.expect("it is sound").0);
        producers
            .extend(headers.map(|header| (header.producer_id, header.producer_epoch, header.base_sequence)));
    }
    assert_eq!(values, ["first", "heard", "unheard", "unheard too", "next"]);
    let (id, others) = (producers[0].0, producers[1].0);
    assert_eq!(producers, [(id, 0, 0), (others, 0, 0), (others, 0, 1), (id, 0, 1), (id, 1, 0)]);
    assert_ne!(id, others);

    let hurried = client.producer(patience(Duration::from_millis(200)));
    assert_eq!(hurried.partitions("t").await.expect("it is there"), 1);
    broker.stop(libc::SIGKILL);
    let error = send(&hurried, "never sent").await.expect_err("there is no broker");
    assert!(matches!(error, ProduceError::TimedOut { outcome_unknown: false, .. }), "{error}");
    assert!(error.to_string().contains("and not written"), "{error}");
    let broker = serve(data.path(), &address, Some(proxy::HOST));
    assert_eq!(broker.run(&["consume", "t", "--until-end"]).ok().text().lines().count(), values.len());
}

/// A batch whose answer is lost, whose records are compacted away, and whose broker is killed: when it is sent again, it is
/// recognised by what the checkpoint holds, and without checkpoints by the header that compaction has left.
#[tokio::test]
async fn a_producer_is_known_after_compaction_and_kills() {
    for with_checkpoints in [true, false] {
        let data = directory();
        let broker = serve(data.path(), "127.0.0.1:0", Some(proxy::HOST));
        let address = broker.address.clone();
        let proxy = Proxy::start(&address, 1);
        let settings = [
            "cleanup.policy=compact",
            "segment.bytes=1MiB",
            "max.message.bytes=100KiB",
            "min.cleanable.dirty.ratio=0.01",
        ];
        let mut line = vec!["topic", "create", "t", "--partitions", "1"];
        line.extend(settings.iter().flat_map(|setting| ["--config", setting]));
        broker.run(&line).ok();
        // It knows of no other way than through the proxy.
        let through = client(&proxy.address()).await;
        let producer = through.producer(config());
        let record = |value: &'static str| ProducerRecord::new("t", value).with_key("key");
        let first = producer.send(record("first")).await.expect("there is memory for it").await;
        assert_eq!(first.expect("it is acknowledged").offset, 0);
        proxy.deaf(true);
        let unheard = producer.send(record("unheard")).await.expect("there is memory for it");
        let past = client(&address).await;
        while past.admin().describe_logs("t").await.expect("it answers")[0].log_end < 2 {}
        broker.stop(libc::SIGTERM);

        // Another producer supersedes them, by the broker's own address, and fills segments.
        let broker = serve(data.path(), &address, None);
        let filler = "x".repeat(20_000);
        let filler: String = (0..120).map(|n| format!("filler {n}={filler}\n")).collect();
        broker
            .run_with(&["produce", "t", "--key-separator", "="], format!("key=latest\n{filler}").as_bytes())
            .ok();
        let values = || -> Vec<String> {
            let line = ["consume", "t", "--until-end", "--format", "json"];
            let records = broker.run(&line).ok().json();
            let of_key = records.iter().filter(|record| record["key"] == "key");
            of_key.map(|record| record["value"].as_str().expect("it is text").to_owned()).collect()
        };
        eventually(values, |values| values == &["latest"]);
        broker.stop(libc::SIGKILL);
        if !with_checkpoints {
            for shard in ["shard-0", "shard-1"] {
                for name in ["checkpoint.a", "checkpoint.b"] {
                    // A shard that had nothing to write has none.
                    let _ = std::fs::remove_file(data.path().join(shard).join(name));
                }
            }
        }
        let broker = serve(data.path(), &address, None);
        proxy.deaf(false);
        let again = unheard.await.expect("it is acknowledged");
        assert_eq!((again.offset, again.duplicate), (1, true), "with checkpoints: {with_checkpoints}");
        let next = producer.send(record("next")).await.expect("there is memory for it").await;
        let next = next.expect("it is acknowledged");
        assert_eq!((next.offset, next.duplicate), (123, false));
        assert_eq!(counter(&broker, "out_of_sequence_batches_total"), 0);
    }
}

#[tokio::test]
async fn a_producer_that_was_forgotten_goes_on() {
    let data = directory();
    let arguments = ["--shards", "1", "--cores", "none", "--listen", "127.0.0.1:0"];
    let broker =
        Broker::start_with(data.path(), &[&arguments[..], &["--producer-id-expiration-ms", "1"]].concat());
    let client = client(&broker.address).await;
    let topic = NewTopic { partitions: PARTITIONS, ..NewTopic::named("t") };
    client.admin().create_topic(&topic).await.expect("it is new");
    let producer = client.producer(config());
    let mut told = Vec::new();
    for number in 0..20 {
        told.extend(receipts(send(&producer, number..number + 1).await).await);
        // A request and its answer: more than a millisecond has passed, or the next one finds it known.
        client.admin().describe_topic("t").await.expect("it answers");
    }
    judge(&broker, &told);
}

#[test]
fn the_command_line_chooses() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run_with(&["produce", "t", "--no-idempotence"], b"a\nb\n").ok();
    assert_eq!(counter(&broker, "producers"), 0);
    broker.run_with(&["produce", "t", "--acks", "0"], b"c\n").ok();
    assert_eq!(counter(&broker, "producers"), 0);
    let report = broker.run_with(&["produce", "t", "--format", "json"], b"d\n").ok().json().remove(0);
    assert_eq!(report["duplicates"], 0);
    assert_eq!(counter(&broker, "producers"), 1);
    broker.run_with(&["produce", "t"], b"e\n").ok();
    assert_eq!(counter(&broker, "producers"), 2);
}
