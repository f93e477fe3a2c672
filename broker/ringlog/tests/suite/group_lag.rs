//! The lag of groups in metrics and `ringlog top`, set against what `ringlog group describe` says of the same groups:
//! with members, when all are dead, after a restart of the broker.

use crate::process::{Broker, directory};
use crate::scrape::Scrape;
use crate::workers::Workers;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// A broker with an HTTP port, and where that is.
fn start(data: &Path, listen: &str) -> (Broker, String) {
    let arguments = ["--shards", "2", "--cores", "none", "--listen", listen, "--http", "127.0.0.1:0"];
    let broker = Broker::start_with(data, &arguments);
    let line = broker.first_lines.iter().find_map(|line| line.strip_prefix("http "));
    let address = line.expect("it says where").to_owned();
    (broker, address)
}

fn produce(broker: &Broker, topic: &str, first: usize, count: usize, more: &[&str]) {
    let lines: String = (first..first + count).map(|n| format!("key-{n}:{n}\n")).collect();
    let words: Vec<&str> = ["produce", topic, "--key-separator", ":"].iter().chain(more).copied().collect();
    broker.run_with(&words, lines.as_bytes()).ok();
}

/// Looks again and again until `look` finds it.
#[track_caller]
fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        match look() {
            Some(found) => return found,
            None => assert!(Instant::now() < patience, "{what}"),
        }
        std::thread::yield_now();
    }
}

fn described(broker: &Broker, group: &str) -> Vec<Value> {
    let lines = broker.run(&["group", "describe", group, "--format", "json"]).ok().json();
    lines.into_iter().filter(|line| line["kind"] == "partition").collect()
}

/// Metrics and `top` agree with `group describe`, before and after, about every partition; records behind.
#[track_caller]
fn agrees(broker: &Broker, http: &str, group: &str) -> u64 {
    let before = described(broker, group);
    let seen = Scrape::of(http);
    let top = broker.run(&["top", "--once", "--every", "0.05", "--format", "json"]).ok().json();
    let after = described(broker, group);
    assert_eq!(before.len(), after.len());
    let mut records = 0;
    let mut lag_ms_max = (0, 0);
    for (before, after) in before.iter().zip(&after) {
        let partition = before["partition"].to_string();
        let topic = before["topic"].as_str().expect("a name");
        let labels = [("group", group), ("topic", topic), ("partition", partition.as_str())];
        let lag = before["lag_records"].as_u64().expect("a number");
        assert_eq!(seen.sum("ringlog_group_lag_records", &labels), lag as f64, "{before}");
        if let Some(committed) = before["committed"].as_u64() {
            assert_eq!(seen.sum("ringlog_group_committed_offset", &labels), committed as f64, "{before}");
        }
        let ms = (seen.sum("ringlog_group_lag_seconds", &labels) * 1000.0).round() as u64;
        let bounds =
            (before["lag_ms"].as_u64().expect("a number"), after["lag_ms"].as_u64().expect("a number"));
        assert!(bounds.0 <= ms && ms <= bounds.1, "{labels:?}: {ms} ms, described with {bounds:?}");
        lag_ms_max = (lag_ms_max.0.max(bounds.0), lag_ms_max.1.max(bounds.1));
        records += lag;
    }
    let labels = [("group", group)];
    assert_eq!(seen.sum("ringlog_group_total_lag_records", &labels), records as f64);
    assert_eq!(seen.sum("ringlog_group_unknown_partitions", &labels), 0.0);
    let groups = top[0]["groups"].as_array().expect("groups");
    let row = groups.iter().find(|row| row["group"] == group).unwrap_or_else(|| panic!("{groups:?}"));
    assert_eq!(
        (row["lag_records"].as_u64(), row["partitions"].as_u64()),
        (Some(records), Some(before.len() as u64))
    );
    let top_ms = row["lag_ms"].as_u64().expect("a number");
    assert!(lag_ms_max.0 <= top_ms && top_ms <= lag_ms_max.1, "{row}: described with {lag_ms_max:?}");
    let state = [("group", group), ("state", row["state"].as_str().expect("a word"))];
    assert_eq!(seen.sum("ringlog_group_state", &state), 1.0);
    assert_eq!(seen.sum("ringlog_group_state", &labels), 1.0, "it does one thing");
    assert_eq!(seen.sum("ringlog_group_members", &labels), row["members"].as_f64().expect("a number"));
    records
}

#[test]
fn lag_in_metrics_and_top_is_what_describe_says() {
    let data = directory();
    let (broker, http) = start(data.path(), "127.0.0.1:0");
    broker.run(&["topic", "create", "jobs", "--partitions", "3"]).ok();
    let none = Scrape::of(&http);
    assert_eq!(none.sum("ringlog_groups", &[]), 0.0);
    assert!(!none.has("ringlog_group_lag_records", &[]));
    // In the middle of batches, compressed and not.
    produce(&broker, "jobs", 0, 100, &[]);
    produce(&broker, "jobs", 100, 100, &["--compression", "zstd"]);
    broker.run(&["consume", "jobs", "--group", "dead", "--max", "40"]).ok();
    broker.run(&["consume", "jobs", "--group", "further", "--max", "150"]).ok();
    assert_eq!(agrees(&broker, &http, "dead"), 160);
    assert_eq!(agrees(&broker, &http, "further"), 50);
    let shown = broker.run(&["top", "--once", "--every", "0.05"]).ok().text();
    for part in ["2 groups", "GROUP", "BEHIND", "dead", "further", "empty"] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
    let few = broker.run(&["top", "--once", "--every", "0.05", "--groups", "1"]).ok().text();
    assert!(few.contains("and 1 group more (--groups N)"), "{few}");

    // Nothing is in memory any more; lag is there as soon as the coordinators have read their state.
    let address = broker.address.clone();
    let (status, said) = broker.stop(libc::SIGTERM);
    assert!(status.success(), "{said:?}");
    let (broker, http) = start(data.path(), &address);
    until("both groups are known again", || {
        (Scrape::of(&http).sum("ringlog_groups", &[("state", "empty")]) == 2.0).then_some(())
    });
    assert_eq!(Scrape::of(&http).sum("ringlog_group_coordinators_loading", &[]), 0.0);
    assert_eq!(agrees(&broker, &http, "dead"), 160);

    // A worker takes all there is and is killed.
    let mut workers = Workers::default();
    workers.start(
        &broker,
        &["--group", "dead", "--topic", "jobs", "--session-timeout-ms", "1000", "--commit-interval-ms", "50"],
    );
    workers.wait_for_shares(&[3]);
    until("the worker has caught up", || {
        let seen = Scrape::of(&http);
        let group = [("group", "dead")];
        let stable = seen.sum("ringlog_group_state", &[("group", "dead"), ("state", "stable")]) == 1.0;
        (stable && seen.sum("ringlog_group_total_lag_records", &group) == 0.0).then_some(())
    });
    assert_eq!(agrees(&broker, &http, "dead"), 0);
    assert_eq!(Scrape::of(&http).sum("ringlog_group_members", &[("group", "dead")]), 1.0);
    workers.stop(0, libc::SIGKILL);
    until("it is missed", || {
        (Scrape::of(&http).sum("ringlog_group_members", &[("group", "dead")]) == 0.0).then_some(())
    });
    produce(&broker, "jobs", 200, 30, &[]);
    assert_eq!(agrees(&broker, &http, "dead"), 30);

    // What is gone is not told of any more.
    broker.run(&["group", "delete", "further"]).ok();
    broker.run(&["topic", "delete", "jobs"]).ok();
    let seen = Scrape::of(&http);
    assert_eq!(seen.sum("ringlog_groups", &[]), 1.0);
    assert_eq!(seen.sum("ringlog_group_total_lag_records", &[("group", "dead")]), 0.0);
    assert!(!seen.has("ringlog_group_lag_records", &[]), "its topic is gone");
}
