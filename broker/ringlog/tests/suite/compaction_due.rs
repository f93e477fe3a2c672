//! When a compacted log is due, as its topic says: by how much of it is dirty, and by the age of its records.
//!
//! Nothing is timed. One shard looks at all its logs, and takes the dirtiest of those that are due: so when a pass over one log
//! has ended, another one that is dirtier and was left alone was not due.

use crate::process::{Broker, directory};
use crate::retention::{eventually, partitions};
use serde_json::{Value, json};
use std::ops::Range;

/// Bytes of a record: about fifty fill a segment.
const VALUE_BYTES: usize = 20_000;

fn start() -> (tempfile::TempDir, Broker) {
    let data = directory();
    let line = ["--shards", "1", "--cores", "none", "--listen", "127.0.0.1:0"];
    let broker = Broker::start_with(data.path(), &line);
    (data, broker)
}

/// A compacted topic of one partition, with segments of a mebibyte.
fn create(broker: &Broker, topic: &str, settings: &[&str]) {
    let small = ["cleanup.policy=compact", "segment.bytes=1MiB", "max.message.bytes=100KiB"];
    let mut line = vec!["topic", "create", topic, "--partitions", "1"];
    line.extend(small.iter().chain(settings).flat_map(|setting| ["--config", setting]));
    broker.run(&line).ok();
}

fn alter(broker: &Broker, topic: &str, setting: &str) {
    broker.run(&["topic", "alter", topic, "--set", setting]).ok();
}

/// A record of each key, of this time or of now.
fn produce(broker: &Broker, topic: &str, keys: Range<usize>, timestamp_ms: Option<u64>) {
    let value = "x".repeat(VALUE_BYTES);
    let record = |key| match timestamp_ms {
        Some(ms) => json!({ "key": format!("key {key}"), "value": value, "timestamp_ms": ms }),
        None => json!({ "key": format!("key {key}"), "value": value }),
    };
    let lines: String = keys.map(|key| format!("{}\n", record(key))).collect();
    broker.run_with(&["produce", topic, "--no-create", "--input", "json"], lines.as_bytes()).ok();
}

/// How often there is a record of this key.
fn copies(broker: &Broker, topic: &str, key: usize) -> usize {
    let records = broker.run(&["consume", topic, "--until-end", "--format", "json"]).ok().json();
    records.iter().filter(|record| record["key"] == format!("key {key}")).count()
}

/// What `topic describe` says of the compaction of a topic's log.
fn compaction(broker: &Broker, topic: &str) -> Value {
    partitions(broker, topic).remove(0)["compaction"].take()
}

fn dirty_bytes(broker: &Broker, topic: &str) -> u64 {
    compaction(broker, topic)["dirty_bytes"].as_u64().expect("a number")
}

/// Waits for a pass that leaves nothing dirty, later than `before`; when it ended.
#[track_caller]
fn passed(broker: &Broker, topic: &str, before: Option<i64>) -> Option<i64> {
    let ended = |compaction: &Value| compaction["last_pass_ms"].as_i64();
    let done = eventually(
        || compaction(broker, topic),
        |compaction| compaction["dirty_bytes"] == 0 && ended(compaction) > before,
    );
    ended(&done)
}

#[test]
fn a_log_is_compacted_when_it_is_dirty_enough_or_has_been_dirty_for_long() {
    let (_data, broker) = start();
    let topics = ["eager", "patient", "late"];
    for topic in topics {
        create(&broker, topic, &["min.cleanable.dirty.ratio=0.01"]);
        produce(&broker, topic, 0..150, None);
    }
    let [eager, patient, late] = topics.map(|topic| passed(&broker, topic, None));
    for topic in ["patient", "late"] {
        alter(&broker, topic, "min.cleanable.dirty.ratio=0.9");
        produce(&broker, topic, 0..120, None);
    }
    produce(&broker, "eager", 0..55, None);
    passed(&broker, "eager", eager);
    let ratio = |topic| compaction(&broker, topic)["dirty_ratio"].as_f64().expect("a number");
    for (topic, before) in [("patient", patient), ("late", late)] {
        let found = compaction(&broker, topic);
        assert_eq!(found["last_pass_ms"].as_i64(), before, "{topic} is as dirty as it may be: {found}");
        assert!((0.4..0.9).contains(&ratio(topic)), "{topic}: {found}");
    }
    // What has been superseded is there as long as nobody compacts, and goes when the topic says so.
    assert_eq!(copies(&broker, "patient", 0), 2);
    alter(&broker, "patient", "min.cleanable.dirty.ratio=0.3");
    passed(&broker, "patient", patient);
    assert_eq!(copies(&broker, "patient", 0), 1);
    // By its ratio this one is not due yet; by its age it is.
    assert!(dirty_bytes(&broker, "late") > 0);
    alter(&broker, "late", "max.compaction.lag.ms=1");
    passed(&broker, "late", late);
    assert_eq!(copies(&broker, "late", 0), 1);

    // And what is appended to is closed by then, although there is room for hundreds of records more.
    create(&broker, "few", &["max.compaction.lag.ms=1", "min.cleanable.dirty.ratio=1"]);
    create(&broker, "open", &["min.cleanable.dirty.ratio=0"]);
    for _ in 0..4 {
        // Another process each: more than a millisecond lies between them.
        produce(&broker, "few", 0..1, None);
        produce(&broker, "open", 0..1, None);
    }
    eventually(|| copies(&broker, "few", 0), |copies| *copies == 2);
    assert_eq!(copies(&broker, "open", 0), 4);
}

#[test]
fn young_records_are_left_alone() {
    let (_data, broker) = start();
    for (topic, timestamp_ms) in [("young", None), ("old", Some(1000))] {
        create(&broker, topic, &["min.compaction.lag.ms=1h", "min.cleanable.dirty.ratio=0.01"]);
        produce(&broker, topic, 0..60, timestamp_ms);
        produce(&broker, topic, 0..60, timestamp_ms);
    }
    // By now an hour has passed since 1970. The second pass is over what is cleaner than the young one.
    let first = passed(&broker, "old", None);
    produce(&broker, "old", 0..60, Some(1000));
    passed(&broker, "old", first);
    assert_eq!(copies(&broker, "old", 0), 1);
    let young = compaction(&broker, "young");
    assert!(young["last_pass_ms"].is_null() && young["dirty_bytes"] == 0, "{young}");
    assert_eq!(copies(&broker, "young", 0), 2);
    alter(&broker, "young", "min.compaction.lag.ms=0");
    passed(&broker, "young", None);
    assert_eq!(copies(&broker, "young", 0), 1);
    let both =
        ["topic", "alter", "young", "--set", "min.compaction.lag.ms=2h", "--set", "max.compaction.lag.ms=1h"];
    broker.run(&both).failed(1, &["min.compaction.lag.ms=7200000 is above max.compaction.lag.ms=3600000"]);
}
