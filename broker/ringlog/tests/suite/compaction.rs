//! Compacted topics against a real broker: the latest value of every key first, then the live stream.

use crate::process::{Broker, directory, file};
use crate::retention::{eventually, partitions};
use ringlog_client::{Client, ClientConfig, ErrorCode, ProduceError, ProducerConfig, ProducerRecord};
use schema::compression;
use schema::record_batch::{self, BatchBuilder, Compression};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

const SMALL: [&str; 6] = [
    "--config",
    "segment.bytes=1MiB",
    "--config",
    "max.message.bytes=100KiB",
    "--config",
    "min.cleanable.dirty.ratio=0.01",
];

fn create(broker: &Broker, topic: &str, more: &[&str]) {
    let more = more.iter().flat_map(|setting| ["--config", setting]);
    let line: Vec<&str> =
        ["topic", "create", topic, "--partitions", "1"].into_iter().chain(SMALL).chain(more).collect();
    broker.run(&line).ok();
}

/// Lines `keyN=>number,…` of about a kilobyte, keys in turn.
fn produce(
    broker: &Broker,
    directory: &Path,
    topic: &str,
    keys: u64,
    numbers: std::ops::Range<u64>,
    codec: &str,
) {
    // Not all alike, so that compressed segments fill too.
    let noise = |n: u64| -> String {
        let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..60)
            .map(|_| {
                z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                format!("{z:016x}")
            })
            .collect()
    };
    let lines: String = numbers.map(|n| format!("key{}=>{n},{}\n", n % keys, noise(n))).collect();
    let path = file(directory, "lines", lines.as_bytes());
    let line = ["produce", topic, "--no-create", "--key-separator", "=>", "--compression", codec, "--file"];
    broker.run(&[&line[..], &[path.to_str().unwrap()]].concat()).ok();
}

fn consume(broker: &Broker, topic: &str) -> Vec<Value> {
    broker.run(&["consume", topic, "--until-end", "--format", "json"]).ok().json()
}

/// Number in the value of a line that [`produce`] made.
fn number(record: &Value) -> u64 {
    record["value"].as_str().unwrap().split(',').next().unwrap().parse().unwrap()
}

fn is_compacted(log: &Value) -> bool {
    log["compaction"]["dirty_bytes"] == json!(0) && log["compaction"]["last_pass_ms"].is_i64()
}

/// Offsets are those of the lines, in order; the last of each key is the latest.
#[track_caller]
fn assert_latest(records: &[Value], keys: u64, total: u64) {
    let mut latest = BTreeMap::new();
    let mut last = None;
    for record in records {
        let offset = record["offset"].as_u64().unwrap();
        assert_eq!(offset, number(record), "offsets are kept");
        assert!(last.replace(offset).is_none_or(|last| last < offset), "offsets rise");
        latest.insert(record["key"].as_str().unwrap().to_owned(), offset);
    }
    let expect: BTreeMap<String, u64> =
        (total - keys..total).map(|n| (format!("key{}", n % keys), n)).collect();
    assert_eq!(latest, expect);
}

#[test]
fn the_latest_state_first_and_then_the_live_stream() {
    let data = directory();
    let mut broker = Broker::start(data.path());
    for codec in ["none", "zstd"] {
        let topic = format!("state-{codec}");
        create(&broker, &topic, &["cleanup.policy=compact"]);
        produce(&broker, data.path(), &topic, 50, 0..5000, codec);
        let log = eventually(|| partitions(&broker, &topic).remove(0), is_compacted);
        assert_eq!((&log["log_start"], &log["log_end"]), (&json!(0), &json!(5000)));
        let records = consume(&broker, &topic);
        // What is appended to is not compacted: at most a segment of it.
        assert!(records.len() < 2600, "{} records are left of 5000", records.len());
        assert_latest(&records, 50, 5000);
        let text = broker.run(&["topic", "describe", &topic]).ok().text();
        assert!(text.contains("COMPACTED") && text.contains("LAST PASS"), "{text}");
        // A reader in a gap, and a lookup by time.
        let gap = (0..5000).find(|n| !records.iter().any(|record| number(record) == *n)).unwrap();
        let next = records.iter().find(|record| number(record) > gap).unwrap();
        let line = ["consume", &topic, "--offset", &gap.to_string(), "--max", "1", "--format", "json"];
        assert_eq!(broker.run(&line).ok().json()[0]["offset"], next["offset"]);
        let at = format!("@{}", next["timestamp_ms"]);
        let found =
            broker.run(&["consume", &topic, "--from", &at, "--max", "1", "--format", "json"]).ok().json();
        assert!(found[0]["timestamp_ms"].as_u64() >= next["timestamp_ms"].as_u64(), "{found:?}");
    }
    let before: Vec<Vec<Value>> = ["state-none", "state-zstd"].map(|topic| consume(&broker, topic)).into();
    broker.stop(libc::SIGKILL);
    broker = Broker::start(data.path());
    for (topic, before) in ["state-none", "state-zstd"].into_iter().zip(before) {
        assert_eq!(consume(&broker, topic), before, "{topic} after a crash");
        // A follower gets the state, then what comes.
        let mut follower = broker.command(&["consume", topic, "--format", "json"]);
        let mut child = follower.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        for record in &before {
            assert_eq!(next()["offset"], record["offset"]);
        }
        broker.run_with(&["produce", topic, "--key-separator", "=>"], b"key7=>live\n").ok();
        let live = next();
        assert_eq!(
            (&live["key"], &live["value"], &live["offset"]),
            (&json!("key7"), &json!("live"), &json!(5000))
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn compact_and_delete() {
    let data = directory();
    let broker = Broker::start(data.path());
    create(&broker, "both", &["cleanup.policy=compact,delete"]);
    produce(&broker, data.path(), "both", 4000, 0..4000, "none");
    let log = || partitions(&broker, "both").remove(0);
    let compacted = eventually(log, is_compacted);
    assert_eq!(compacted["log_start"], json!(0), "every key is there once");
    assert_eq!(consume(&broker, "both").len(), 4000);
    broker.run(&["topic", "alter", "both", "--set", "retention.bytes=2MiB"]).ok();
    let cut = eventually(log, |log| log["log_start"].as_u64() > Some(0));
    produce(&broker, data.path(), "both", 100, 4000..7000, "none");
    let both =
        eventually(log, |log| is_compacted(log) && log["log_start"].as_u64() > cut["log_start"].as_u64());
    let records = consume(&broker, "both");
    assert!(records.iter().all(|record| record["offset"].as_u64() >= both["log_start"].as_u64()));
    let latest = records.iter().filter(|record| number(record) >= 6900).count();
    assert_eq!(latest, 100, "the latest of each key that is young enough");
    assert!(records.len() < 7000 - both["log_start"].as_u64().unwrap() as usize, "nothing was compacted");
    // Back to delete alone: nothing is compacted any more, what is there is served.
    broker.run(&["topic", "alter", "both", "--set", "cleanup.policy=delete"]).ok();
    assert!(log()["compaction"].is_null());
    assert_eq!(consume(&broker, "both").last().map(number), Some(6999));
}

/// Refused at once by whoever knows the topic, and by the broker whatever the client believes: plain and compressed,
/// small and received in place. What stands beside it in a batch is not appended either.
#[test]
fn records_without_a_key_are_refused() {
    let data = directory();
    let broker = Broker::start(data.path());
    create(&broker, "state", &["cleanup.policy=compact"]);
    create(&broker, "both", &["cleanup.policy=compact,delete"]);
    create(&broker, "plain", &[]);
    for topic in ["state", "both"] {
        let ran = broker.run_with(&["produce", topic], b"no key\n");
        ran.failed(1, &["line 1", "keeps the latest record of each key", "--key-separator"]);
        broker.run_with(&["produce", topic, "--key-separator", "="], b"k=v\n").ok();
        assert_eq!(consume(&broker, topic).len(), 1);
    }
    broker.run_with(&["produce", "plain"], b"no key\n").ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(ClientConfig::new(broker.address.clone()).unwrap()).await.unwrap();
        let producer = client.producer(ProducerConfig::default());
        let error = producer.send(ProducerRecord::new("state", "no key")).await.unwrap_err();
        assert!(matches!(&error, ProduceError::KeyRequired { topic } if &**topic == "state"), "{error}");
        assert!(!error.outcome_unknown());
        // The record that stands between others, in batches that the client does not look into.
        for (codec, bytes) in [
            (Compression::None, 10),
            (Compression::None, 90_000),
            (Compression::Lz4, 10),
            (Compression::Zstd, 90_000),
            (Compression::Gzip, 10),
            (Compression::Snappy, 90_000),
        ] {
            for (keyed, topic) in [(false, "state"), (true, "state"), (false, "plain")] {
                let mut builder = BatchBuilder::new();
                builder.append(1, Some(b"a"), Some(b"1"), &[]);
                builder.append(2, keyed.then_some(&b""[..]), Some(&vec![7; bytes]), &[]);
                builder.append(3, Some(b"b"), None, &[]);
                let batch = compression::compress(builder.finish(), codec);
                let sent = producer.send_encoded(topic, 0, batch.into()).await.unwrap().await;
                match (sent, keyed || topic == "plain") {
                    (Ok(_), true) => {}
                    (Err(error), false) => {
                        assert_eq!(
                            error.code(),
                            Some(ErrorCode::InvalidRecord),
                            "{codec:?} {bytes}: {error}"
                        );
                        assert!(error.to_string().contains("give every record a key"), "{error}");
                    }
                    (sent, _) => panic!("{codec:?} {bytes} {keyed} {topic}: {sent:?}"),
                }
            }
        }
        // Records that cannot be unpacked can be compacted no more than those without a key.
        let mut builder = BatchBuilder::new();
        builder.append(1, Some(b"a"), Some(&[b'x'; 2000]), &[]);
        let mut batch = compression::compress(builder.finish(), Compression::Zstd);
        let last = batch.len() - 1;
        batch[record_batch::HEADER_BYTES] ^= 1;
        batch[last] ^= 1;
        let crc = crc32c::crc32c(&batch[record_batch::CRC_START..]);
        batch[record_batch::CRC_START - 4..record_batch::CRC_START].copy_from_slice(&crc.to_be_bytes());
        let error = producer.send_encoded("state", 0, batch.into()).await.unwrap().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::InvalidBatch), "{error}");
        // A producer goes on after a refusal, and the topic may be another one by then.
        let sent = producer.send(ProducerRecord::new("state", "v").with_key("k")).await.unwrap();
        sent.await.unwrap();
        let policy = |policy: &str| [("cleanup.policy".to_owned(), policy.to_owned())];
        client.admin().alter_configs("state", &policy("delete"), &[]).await.unwrap();
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while let Err(error) = producer.send(ProducerRecord::new("state", "no key")).await {
            assert!(matches!(error, ProduceError::KeyRequired { .. }), "{error}");
            assert!(std::time::Instant::now() < patience, "the topic is not compacted any more");
        }
        // Whoever does not know that it is compacted again is told by the broker.
        client.admin().alter_configs("state", &policy("compact"), &[]).await.unwrap();
        let sent = producer.send(ProducerRecord::new("state", "no key")).await.unwrap().await;
        assert_eq!(sent.unwrap_err().code(), Some(ErrorCode::InvalidRecord));
        producer.send(ProducerRecord::new("state", "v").with_key("k")).await.unwrap().await.unwrap();
        producer.close().await.unwrap_err();
    });
}

#[test]
fn tombstones_are_seen_and_then_go() {
    let data = directory();
    let broker = Broker::start(data.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (topic, retention) in [("soon", "delete.retention.ms=1"), ("late", "delete.retention.ms=1h")] {
        create(&broker, topic, &["cleanup.policy=compact", retention]);
        runtime.block_on(async {
            let client = Client::connect(ClientConfig::new(broker.address.clone()).unwrap()).await.unwrap();
            let producer = client.producer(ProducerConfig::default());
            for value in [Some("one"), Some("two"), None] {
                let record = ProducerRecord::new(topic, value.unwrap_or_default()).with_key("gone");
                let record = ProducerRecord { value: value.map(|value| value.as_bytes().into()), ..record };
                producer.send(record).await.unwrap().await.unwrap();
            }
            producer.close().await.unwrap();
        });
        let of_gone = || -> Vec<Value> {
            let records = consume(&broker, topic);
            records.into_iter().filter(|record| record["key"] == "gone").collect()
        };
        let mut from = 0;
        // The values go with the first pass, the tombstone is still to be seen or on its way out.
        loop {
            produce(&broker, data.path(), topic, 20, from..from + 2500, "none");
            from += 2500;
            eventually(|| partitions(&broker, topic).remove(0), is_compacted);
            let left = of_gone();
            assert!(left.iter().all(|record| record["value"].is_null()), "{topic}: {left:?}");
            if topic == "late" {
                assert_eq!(left.iter().map(|record| &record["offset"]).collect::<Vec<_>>(), [&json!(2)]);
            }
            if from >= 7500 || left.is_empty() {
                assert_eq!(left.is_empty(), topic == "soon", "{topic}");
                break;
            }
        }
    }
}
