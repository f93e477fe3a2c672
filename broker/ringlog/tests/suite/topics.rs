//! The life of a topic on the command line: rows of a command and what it must say.

use crate::process::{Broker, directory};
use serde_json::json;

#[test]
fn lifecycle() {
    let data = directory();
    let broker = Broker::start(data.path());
    // (command, exit status, parts of what it says)
    let rows: [(&str, i32, &[&str]); 21] = [
        ("topic list", 0, &["no topics; make one: ringlog topic create NAME"]),
        (
            "topic create orders --partitions 3 --config retention.ms=1d",
            0,
            &["created topic orders with 3 partitions"],
        ),
        ("topic create orders", 1, &["orders"]),
        ("topic create other", 0, &["created topic other with 1 partition"]),
        ("topic create bad/name", 1, &["a-z A-Z 0-9 . _ -"]),
        ("topic create bad --partitions 0", 2, &["--partitions"]),
        ("topic create bad --config retention.ms=soon", 1, &["retention.ms", "soon"]),
        ("topic create bad --config no.such=1", 1, &["no.such", "retention.ms"]),
        ("topic create bad --config retention.ms", 2, &["NAME=VALUE"]),
        ("topic list", 0, &["TOPIC", "PARTITIONS", "orders", "other"]),
        ("topic describe orders", 0, &["PARTITION", "SETTING", "retention.ms", "86400000", "MEANING"]),
        ("topic alter orders", 2, &["--set"]),
        ("topic alter orders --set retention.bytes=1GiB --unset retention.ms", 0, &["altered topic orders"]),
        ("topic describe orders", 0, &["retention.bytes", "1073741824", "604800000"]),
        ("topic alter orders --partitions 5", 0, &["altered"]),
        ("topic alter orders --partitions 4", 1, &["partitions"]),
        ("topic delete orders", 0, &["deleted topic orders"]),
        ("topic delete orders", 1, &["there is no topic 'orders'", "ringlog topic create orders"]),
        ("topic describe orders", 1, &["there is no topic 'orders'"]),
        ("topic alter orders --set retention.ms=1d", 1, &["there is no topic 'orders'"]),
        ("topic delete other", 0, &["deleted"]),
    ];
    for (line, code, says) in rows {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ran = broker.run(&words);
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        let said = if code == 0 { ran.text() } else { ran.stderr.clone() };
        for part in says {
            assert!(said.contains(part), "{line}: '{part}' is not in:\n{said}");
        }
    }
}

#[test]
fn json_lines() {
    let data = directory();
    let broker = Broker::start(data.path());
    let run = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().chain(["--format", "json"]).collect();
        broker.run(&words).ok().json()
    };
    let created = run("topic create t --partitions 2");
    assert_eq!((&created[0]["topic"], &created[0]["partitions"]), (&json!("t"), &json!(2)));
    let listed = run("topic list");
    assert_eq!(listed, created, "the list says what creating said");
    let described = run("topic describe t");
    let partitions: Vec<_> = described.iter().filter(|line| line["kind"] == "partition").collect();
    assert_eq!(partitions.len(), 2);
    for (number, line) in partitions.iter().enumerate() {
        assert_eq!(line["partition"], json!(number));
        assert_eq!((&line["log_start"], &line["high_watermark"]), (&json!(0), &json!(0)));
        assert!(line["shard"].as_u64().unwrap() < 2 && line["error"].is_null());
    }
    let shards: std::collections::BTreeSet<_> =
        partitions.iter().map(|line| line["shard"].as_u64()).collect();
    assert_eq!(shards.len(), 2, "partitions are spread over the shards");
    let setting = described.iter().find(|line| line["name"] == "retention.ms").unwrap();
    assert_eq!((&setting["kind"], &setting["is_default"]), (&json!("setting"), &json!(true)));
    assert_eq!(run("topic delete t"), [json!({ "topic": "t", "done": "deleted" })]);
    assert!(run("topic list").is_empty());
}
