//! What goes and what stays: DeleteRecords, retention that is changed while running, looking up by time.

use crate::process::{Broker, directory, file};
use ringlog_client::{Client, ClientConfig, OffsetSpec};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn run(broker: &Broker, line: &str) -> Vec<Value> {
    let words: Vec<&str> = line.split_whitespace().chain(["--format", "json"]).collect();
    broker.run(&words).ok().json()
}

/// The partitions of a topic as `topic describe` shows them.
pub fn partitions(broker: &Broker, topic: &str) -> Vec<Value> {
    let lines = run(broker, &format!("topic describe {topic}"));
    lines.into_iter().filter(|line| line["kind"] == "partition").collect()
}

/// Asks again until it is so.
#[track_caller]
pub fn eventually<T: std::fmt::Debug>(ask: impl Fn() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let began = Instant::now();
    loop {
        let found = ask();
        if is_so(&found) {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "still {found:?}");
    }
}

/// About so many megabytes of lines in one partition.
fn fill(broker: &Broker, directory: &Path, topic: &str, megabytes: usize) {
    let line = format!("{}\n", "x".repeat(999));
    let path = file(directory, "lines", line.repeat(megabytes * 1000).as_bytes());
    broker.run(&["produce", topic, "--no-create", "--file", path.to_str().unwrap()]).ok();
}

fn values(broker: &Broker, topic: &str) -> Vec<(u64, u64)> {
    let records = run(broker, &format!("consume {topic} --until-end"));
    let mut values: Vec<_> =
        records.iter().map(|r| (r["partition"].as_u64().unwrap(), r["offset"].as_u64().unwrap())).collect();
    values.sort_unstable();
    values
}

#[test]
fn deleted_records_stay_deleted_through_a_crash() {
    let data = directory();
    let mut broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t", "--partitions", "2"]).ok();
    for partition in ["0", "1"] {
        broker.run_with(&["produce", "t", "--partition", partition], b"a\nb\nc\nd\n").ok();
    }
    let rows: [(&str, i32, &str); 6] = [
        ("topic delete-records t", 2, "--before"),
        ("topic delete-records t --before 0:1 --all", 2, "--all"),
        ("topic delete-records t --before 0", 2, "PARTITION:OFFSET"),
        ("topic delete-records t --before 0:5", 1, "OFFSET_OUT_OF_RANGE"),
        ("topic delete-records t --before 2:0", 1, "no partition 2"),
        ("topic delete-records missing --all", 1, "there is no topic 'missing'"),
    ];
    for (line, code, says) in rows {
        broker.run(&line.split(' ').collect::<Vec<_>>()).failed(code, &[says]);
    }
    assert_eq!(values(&broker, "t").len(), 8, "what is refused deletes nothing");

    let starts = run(&broker, "topic delete-records t --before 0:1 --before 1:3");
    let expect = [
        json!({ "topic": "t", "partition": 0, "log_start": 1 }),
        json!({ "topic": "t", "partition": 1, "log_start": 3 }),
    ];
    assert_eq!(starts, expect);
    let left = [(0, 1), (0, 2), (0, 3), (1, 3)];
    assert_eq!(values(&broker, "t"), left);
    broker.stop(libc::SIGKILL);
    broker = Broker::start(data.path());
    assert_eq!(values(&broker, "t"), left, "after a crash");
    let said = broker.run(&["consume", "t", "--partition", "1", "--offset", "2", "--max", "1"]);
    said.failed(1, &["OFFSET_OUT_OF_RANGE"]);
    // Never backwards.
    assert_eq!(run(&broker, "topic delete-records t --before 1:0")[0]["log_start"], json!(3));
    let text = broker.run(&["topic", "delete-records", "t", "--all"]).ok().text();
    assert!(text.contains("PARTITION") && text.contains("FIRST"), "{text}");
    assert!(values(&broker, "t").is_empty());
    broker.stop(libc::SIGKILL);
    broker = Broker::start(data.path());
    assert!(values(&broker, "t").is_empty());
    broker.run_with(&["produce", "t", "--partition", "0"], b"e\n").ok();
    assert_eq!(values(&broker, "t"), [(0, 4)], "offsets go on");
}

#[test]
fn deleted_records_give_their_segments_back() {
    let data = directory();
    let broker = Broker::start(data.path());
    let line = "topic create t --partitions 1 --config segment.bytes=1MiB --config max.message.bytes=100KiB";
    broker.run(&line.split(' ').collect::<Vec<_>>()).ok();
    fill(&broker, data.path(), "t", 4);
    let before = partitions(&broker, "t").remove(0);
    assert!(before["segments"].as_u64() >= Some(4), "{before}");
    run(&broker, "topic delete-records t --before 0:3900");
    let after = eventually(|| partitions(&broker, "t").remove(0), |log| log["segments"].as_u64() <= Some(2));
    assert_eq!(after["log_start"], json!(3900));
    let files = || -> usize {
        let topics =
            std::fs::read_dir(data.path().join("topics")).unwrap().map(|topic| topic.unwrap().path());
        let partitions = topics.flat_map(|topic| std::fs::read_dir(topic).unwrap());
        partitions.map(|one| std::fs::read_dir(one.unwrap().path()).unwrap().count()).sum()
    };
    // The active one, perhaps one before it, and one that is placed ahead.
    eventually(files, |files| *files <= 3);
    assert_eq!(values(&broker, "t").len(), 100);
}

#[test]
fn retention_changes_while_running() {
    let data = directory();
    let broker = Broker::start(data.path());
    let line = "topic create t --partitions 1 --config segment.bytes=1MiB --config max.message.bytes=100KiB";
    broker.run(&line.split(' ').collect::<Vec<_>>()).ok();
    fill(&broker, data.path(), "t", 5);
    let log = || partitions(&broker, "t").remove(0);
    assert_eq!(log()["log_start"], json!(0));
    broker.run(&["topic", "alter", "t", "--set", "retention.bytes=2MiB"]).ok();
    let cut = eventually(log, |log| log["log_start"].as_u64() > Some(0));
    // What remains still reaches the bound.
    assert!(cut["bytes"].as_u64() >= Some(2 << 20), "{cut}");
    assert_eq!(values(&broker, "t").len() as u64, 5000 - cut["log_start"].as_u64().unwrap());
    broker.run(&["topic", "alter", "t", "--set", "retention.ms=1ms"]).ok();
    let cut = eventually(log, |log| log["segments"] == json!(1));
    assert!(cut["log_start"].as_u64() < Some(5000), "the active segment stays: {cut}");
    broker.run(&["topic", "alter", "t", "--unset", "retention.ms", "--unset", "retention.bytes"]).ok();
    fill(&broker, data.path(), "t", 2);
    assert_eq!(log()["log_start"], cut["log_start"], "nothing goes any more");
}

#[test]
fn segments_roll_by_time() {
    let data = directory();
    let broker = Broker::start(data.path());
    for (topic, setting) in [("often", "segment.ms=1"), ("seldom", "segment.ms=7d")] {
        broker.run(&["topic", "create", topic, "--partitions", "1", "--config", setting]).ok();
        for n in 0..4_u64 {
            // Another process each: more than a millisecond lies between them.
            broker.run_with(&["produce", topic, "--no-create"], format!("{n}\n").as_bytes()).ok();
        }
        let log = partitions(&broker, topic).remove(0);
        let segments = log["segments"].as_u64().unwrap();
        assert_eq!(segments >= 3, topic == "often", "{topic}: {segments} segments");
        assert_eq!(values(&broker, topic), [(0, 0), (0, 1), (0, 2), (0, 3)], "all of them are read");
    }
}

/// The producer says when, or the broker does.
#[test]
fn who_sets_the_time() {
    let data = directory();
    let broker = Broker::start(data.path());
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    for kind in ["CreateTime", "LogAppendTime"] {
        let setting = format!("message.timestamp.type={kind}");
        broker.run(&["topic", "create", kind, "--partitions", "1", "--config", &setting]).ok();
        let before_ms = now_ms();
        for codec in ["none", "lz4"] {
            let line = ["produce", kind, "--input", "json", "--compression", codec];
            let value = "a long value, so that it is worth compressing; ".repeat(9);
            let record = json!({ "timestamp_ms": 1000, "value": value });
            broker.run_with(&line, format!("{record}\n{record}\n").as_bytes()).ok();
        }
        let records = run(&broker, &format!("consume {kind} --until-end"));
        assert_eq!(records.len(), 4);
        for record in records {
            let ms = record["timestamp_ms"].as_u64().unwrap();
            match kind {
                "CreateTime" => assert_eq!(ms, 1000, "{record}"),
                _ => assert!((before_ms..=now_ms()).contains(&ms), "{record}"),
            }
        }
    }
}

/// Both kinds of timestamps: the first record at or after a time is found, and consumed from.
#[test]
fn a_time_becomes_an_offset() {
    let data = directory();
    let broker = Broker::start(data.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for kind in ["CreateTime", "LogAppendTime"] {
        let setting = format!("message.timestamp.type={kind}");
        broker.run(&["topic", "create", kind, "--partitions", "1", "--config", &setting]).ok();
        let mut last_ms = 0;
        for n in 0..20 {
            // Two records in each batch, batches in different milliseconds.
            while SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 <= last_ms {
                std::hint::spin_loop();
            }
            broker.run_with(&["produce", kind, "--no-create"], format!("{n}\n{n}\n").as_bytes()).ok();
            last_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        }
        let records = run(&broker, &format!("consume {kind} --until-end"));
        let times: Vec<i64> = records.iter().map(|record| record["timestamp_ms"].as_i64().unwrap()).collect();
        assert_eq!(times.len(), 40);
        let asked: Vec<i64> = times.iter().flat_map(|ms| [ms - 1, *ms, ms + 1]).collect();
        let listed = runtime.block_on(async {
            let client = Client::connect(ClientConfig::new(broker.address.clone()).unwrap()).await.unwrap();
            let places: Vec<_> = asked.iter().map(|ms| (0, OffsetSpec::Timestamp(*ms))).collect();
            client.admin().list_offsets(kind, &places).await.unwrap()
        });
        for (ms, listed) in asked.iter().zip(listed) {
            let first = times.iter().position(|time| time >= ms);
            let expect = (first.unwrap_or(40) as u64, first.map(|first| times[first]));
            assert_eq!((listed.offset, listed.timestamp_ms), expect, "{kind} @{ms} in {times:?}");
        }
        let from = format!("consume {kind} --until-end --from @{}", times[31]);
        let first = times.iter().position(|time| *time >= times[31]).unwrap();
        assert_eq!(run(&broker, &from)[0]["offset"], json!(first));
    }
}
