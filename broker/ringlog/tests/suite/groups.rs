//! Consumer groups with real processes: workers on the command line share, idle, die and come back, and the
//! commands say what became of it.
//!
//! Times of moves are printed, never asserted.

use crate::process::{Broker, directory, file};
use crate::workers::{Said, Workers, values};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// A broker where the one before it was.
fn start_again(data: &Path, address: &str) -> Broker {
    Broker::start_with(data, &["--shards", "2", "--cores", "none", "--listen", address])
}

/// Sends values `first..first + count`, spread over the partitions by key.
fn produce(broker: &Broker, topic: &str, first: usize, count: usize) {
    let lines: String = (first..first + count).map(|n| format!("key-{n}:{n}\n")).collect();
    broker.run_with(&["produce", topic, "--key-separator", ":"], lines.as_bytes()).ok();
}

/// Waits until these workers have printed every value below `count`, and checks that none came twice.
#[track_caller]
fn seen_once(workers: &Workers, of: &[usize], count: usize) {
    let seen = workers.wait(&format!("all of {count} values"), |lines| {
        let seen = values(lines, of);
        (seen.len() == count).then_some(seen)
    });
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "printed more than once: {twice:?}");
}

#[test]
fn four_partitions_one_two_and_four_workers_and_a_fifth_that_idles() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "jobs", "--partitions", "4"]).ok();
    produce(&broker, "jobs", 0, 200);
    let mut workers = Workers::default();
    let member = ["--group", "one", "--topic", "jobs"];
    let mut running = 0;
    for (count, expect) in [(1, &[4][..]), (2, &[2, 2]), (4, &[1, 1, 1, 1]), (5, &[1, 1, 1, 1, 0])] {
        let started = Instant::now();
        let before = workers.holdings();
        while running < count {
            workers.start(&broker, &member);
            running += 1;
        }
        let moved = workers.wait_for_shares(expect);
        let all: BTreeSet<String> = workers.holdings().into_values().flatten().collect();
        assert_eq!(all.len(), 4, "each partition has one worker: {:?}", workers.holdings());
        for (worker, held) in &before {
            assert!(workers.holdings()[worker].is_subset(held), "worker {worker} kept none of {held:?}");
        }
        println!(
            "{count} workers: partitions were in place {} ms after they were started",
            moved.saturating_duration_since(started).as_millis()
        );
    }
    // The fifth is in, and has nothing.
    let members = |broker: &Broker| -> Vec<Value> {
        let described = broker.run(&["group", "describe", "one", "--format", "json"]).ok().json();
        described.into_iter().filter(|line| line["kind"] == "member").collect()
    };
    while members(&broker).len() < 5 {}
    produce(&broker, "jobs", 200, 400);
    seen_once(&workers, &[0, 1, 2, 3, 4], 600);
    assert!(values(&workers.lines(), &[4]).is_empty(), "the fifth idles");

    // Another group sees everything too, from the start.
    let other = workers.start(&broker, &["--group", "another", "jobs"]);
    seen_once(&workers, &[other], 600);
    produce(&broker, "jobs", 600, 100);
    seen_once(&workers, &[0, 1, 2, 3, 4], 700);
    seen_once(&workers, &[other], 700);

    // One leaves in order: the fifth takes over at once, and nobody sees anything twice.
    let left = Instant::now();
    assert!(workers.stop(0, libc::SIGTERM));
    let moved = workers.wait_for_shares(&[0, 1, 1, 1, 1]);
    println!(
        "a worker that left: its partition moved {} ms after the signal",
        moved.saturating_duration_since(left).as_millis()
    );
    produce(&broker, "jobs", 700, 100);
    seen_once(&workers, &[0, 1, 2, 3, 4], 800);
}

#[test]
fn a_killed_workers_partitions_move_on() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "jobs", "--partitions", "4"]).ok();
    let mut workers = Workers::default();
    let member = ["--group", "g", "--topic", "jobs", "--session-timeout-ms", "1000"];
    workers.start(&broker, &member);
    workers.start(&broker, &member);
    workers.wait_for_shares(&[2, 2]);
    produce(&broker, "jobs", 0, 100);
    seen_once(&workers, &[0, 1], 100);
    let killed = Instant::now();
    assert!(!workers.stop(0, libc::SIGKILL));
    produce(&broker, "jobs", 100, 100);
    let moved = workers.wait_for_shares(&[0, 4]);
    println!(
        "a killed worker with a session of 1000 ms: its partitions had moved {} ms after the kill",
        moved.saturating_duration_since(killed).as_millis()
    );
    // What was printed and not committed yet may come again; nothing is missing.
    workers.wait("all of 200 values", |lines| (values(lines, &[0, 1]).len() == 200).then_some(()));

    // One that is stopped and wakes up too late has lost its partitions, says so, and gets some again.
    let paused = workers.start(&broker, &member);
    workers.wait_for_shares(&[0, 2, 2]);
    let held = workers.holdings()[&paused].clone();
    workers.signal(paused, libc::SIGSTOP);
    workers.wait_for_shares(&[0, 4]);
    workers.signal(paused, libc::SIGCONT);
    workers.wait("what it lost", |lines| {
        let lost = lines.iter().filter(|line| line.worker == paused);
        let lost: BTreeSet<_> = lost
            .filter_map(|line| match &line.said {
                Said::Lost(partition) => Some(partition.clone()),
                _ => None,
            })
            .collect();
        (lost == held).then_some(())
    });
    workers.wait_for_shares(&[0, 2, 2]);
}

#[test]
fn offsets_survive_kill_9_of_the_broker() {
    let data = directory();
    let broker = Broker::start(data.path());
    let address = broker.address.clone();
    broker.run(&["topic", "create", "jobs", "--partitions", "4"]).ok();
    let mut workers = Workers::default();
    let member = ["--group", "g", "--topic", "jobs", "--commit-interval-ms", "50"];
    workers.start(&broker, &member);
    workers.start(&broker, &member);
    workers.wait_for_shares(&[2, 2]);
    produce(&broker, "jobs", 0, 100);
    seen_once(&workers, &[0, 1], 100);
    // Whoever came first may have had all partitions for a moment, and given two back.
    let before = workers.lines().len();
    broker.stop(libc::SIGKILL);
    let broker = start_again(data.path(), &address);
    // They go on where they were, without a rebalance.
    produce(&broker, "jobs", 100, 100);
    seen_once(&workers, &[0, 1], 200);
    let lines = &workers.lines()[before..];
    assert!(!lines.iter().any(|line| matches!(line.said, Said::Lost(_) | Said::Revoked(_))), "{lines:?}");
    assert!(workers.stop(0, libc::SIGTERM) && workers.stop(1, libc::SIGINT));
    broker.stop(libc::SIGKILL);

    // Whoever comes next begins where they ended.
    let broker = start_again(data.path(), &address);
    let described = broker.run(&["group", "describe", "g", "--format", "json"]).ok().json();
    assert_eq!((&described[0]["state"], &described[0]["lag_records"]), (&json!("empty"), &json!(0)));
    produce(&broker, "jobs", 200, 50);
    let next = workers.start(&broker, &member);
    workers.wait("the new values", |lines| (values(lines, &[next]).len() == 50).then_some(()));
    let seen: BTreeSet<usize> =
        values(&workers.lines(), &[next]).keys().map(|value| value.parse().unwrap()).collect();
    assert!(seen.into_iter().eq(200..250), "only what came since");
}

#[test]
fn offsets_expire_when_nobody_is_left() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "jobs"]).ok();
    produce(&broker, "jobs", 0, 10);
    let consume = ["consume", "jobs", "--group", "g", "--max", "10"];
    assert_eq!(broker.run(&consume).ok().text().lines().count(), 10);
    let groups = |broker: &Broker| broker.run(&["group", "list", "--format", "json"]).ok().json().len();
    broker.stop(libc::SIGTERM);
    let broker = Broker::start(data.path());
    assert_eq!(groups(&broker), 1, "they outlive a restart");
    broker.stop(libc::SIGTERM);
    // A coordinator looks for what has expired when it has loaded.
    let line =
        ["--shards", "2", "--cores", "none", "--listen", "127.0.0.1:0", "--offsets-retention-minutes", "0"];
    let broker = Broker::start_with(data.path(), &line);
    let until = Instant::now() + Duration::from_secs(60);
    while groups(&broker) > 0 {
        assert!(Instant::now() < until, "the offsets are still there");
    }
    // Where there is nothing committed, a group begins at the start.
    assert_eq!(broker.run(&consume).ok().text().lines().count(), 10);
}

#[test]
fn patterns_and_static_workers() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "metrics.cpu", "--partitions", "2"]).ok();
    broker.run(&["topic", "create", "logs"]).ok();
    let mut workers = Workers::default();
    let member = ["--group", "g", "--pattern", "metrics[.].*", "--instance-id", "host-1"];
    workers.start(&broker, &member);
    workers.wait_for_shares(&[2]);
    // A topic that is made later.
    broker.run(&["topic", "create", "metrics.memory"]).ok();
    workers.wait_for_shares(&[3]);
    produce(&broker, "metrics.memory", 0, 10);
    seen_once(&workers, &[0], 10);
    // It goes and comes back under its name: its partitions have waited.
    assert!(workers.stop(0, libc::SIGTERM));
    let described = broker.run(&["group", "describe", "g"]).ok().text();
    assert!(described.contains("host-1") && described.contains("away"), "{described}");
    workers.start(&broker, &member);
    workers.wait_for_shares(&[0, 3]);
    produce(&broker, "metrics.memory", 10, 10);
    seen_once(&workers, &[0, 1], 20);
    broker.run(&["consume", "--group", "h", "--pattern", "("]).failed(1, &["INVALID_PATTERN"]);
}

#[test]
fn what_the_commands_say() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "jobs", "--partitions", "2", "--config", "retention.ms=7d"]).ok();
    broker.run(&["topic", "create", "other", "--config", "retention.ms=-1"]).ok();
    produce(&broker, "jobs", 0, 100);
    produce(&broker, "other", 0, 10);
    let json_of = |line: &str| -> Vec<Value> {
        let words: Vec<&str> = line.split_whitespace().chain(["--format", "json"]).collect();
        broker.run(&words).ok().json()
    };
    assert!(broker.run(&["group", "list"]).ok().text().contains("no groups"));
    // Segments of what keeps offsets are small enough to be compacted soon.
    let settings = json_of("topic describe __consumer_offsets");
    let text = settings.iter().map(Value::to_string).collect::<String>();
    assert!(text.contains("67108864") && text.contains("compact"), "{text}");
    let says = ["there is no group 'g'", "ringlog group list"];
    broker.run(&["group", "describe", "g"]).failed(1, &says);
    broker.run(&["group", "reset", "g", "--to", "earliest"]).failed(1, &says);
    broker.run(&["group", "delete", "g"]).failed(1, &says);
    broker.run(&["consume", "--group", "g"]).failed(2, &["--pattern REGEX"]);
    broker.run(&["consume", "jobs", "--group", "g", "--offset", "7"]).failed(2, &["group reset g"]);
    broker.run(&["consume"]).failed(2, &["TOPIC"]);
    broker.run(&["consume", "jobs", "--pattern", "x"]).failed(2, &["--group"]);

    // Forty are dealt with, whoever does it: the rest is lag, also when nobody is left.
    let mut printed = 0;
    for _ in 0..4 {
        let ran = broker.run(&["consume", "jobs", "--topic", "other", "--group", "g", "--max", "10"]).ok();
        printed += ran.text().lines().count();
    }
    assert_eq!(printed, 40);
    assert_eq!(
        json_of("group list"),
        [json!({
            "group": "g", "state": "empty", "members": 0, "committed_partitions": 3, "assignor": "uniform",
            "coordinator_partition": schema::coordinator_partition("g", 16),
        })]
    );
    let described = json_of("group describe g");
    assert_eq!((&described[0]["kind"], &described[0]["lag_records"]), (&json!("group"), &json!(70)));
    let partitions: Vec<&Value> = described.iter().filter(|line| line["kind"] == "partition").collect();
    assert_eq!(partitions.len(), 3);
    for line in &partitions {
        let lag = line["lag_records"].as_u64().unwrap();
        assert_eq!(line["log_end"].as_u64().unwrap() - line["committed"].as_u64().unwrap(), lag);
        assert_eq!(line["lag_ms"].as_u64().unwrap() > 0, lag > 0, "{line}");
        assert_eq!(line["first_unread_ms"].is_u64(), lag > 0, "{line}");
        // Seven days, less what has passed; never where retention has no limit.
        let forecast = line["overtaken_in_ms"].as_u64();
        match (line["topic"].as_str().unwrap(), lag) {
            ("jobs", 1..) => assert!((500_000_000..=604_800_000).contains(&forecast.unwrap()), "{line}"),
            _ => assert_eq!(forecast, None, "{line}"),
        }
    }
    let text = broker.run(&["group", "describe", "g"]).ok().text();
    for part in ["group g: empty, no members", "70 records behind", "OVERTAKEN IN", "6 d 23 h"] {
        assert!(text.contains(part), "'{part}' is not in:\n{text}");
    }

    // Reset: said first, then done.
    let would = json_of("group reset g --to earliest --topic jobs --dry-run");
    assert_eq!(would.len(), 2);
    assert!(would.iter().all(|line| line["after"] == 0 && line["dry_run"] == true), "{would:?}");
    assert_eq!(json_of("group describe g")[0]["lag_records"], 70, "nothing was set");
    assert!(broker.run(&["group", "reset", "g", "--to", "earliest"]).ok().text().contains("set:"));
    assert_eq!(json_of("group describe g")[0]["lag_records"], 110);
    json_of("group reset g --to latest");
    assert_eq!(json_of("group describe g")[0]["lag_records"], 0);
    json_of("group reset g --to 5 --topic jobs --partition 1");
    let end = json_of("group describe g");
    let of_one = end.iter().find(|line| line["topic"] == "jobs" && line["partition"] == 1).unwrap();
    assert_eq!(of_one["committed"], 5);
    json_of("group reset g --to @2013-01-01T00:00:00Z");
    assert_eq!(json_of("group describe g")[0]["lag_records"], 110);
    broker.run(&["group", "reset", "g", "--to", "yesterday"]).failed(2, &["earliest, latest"]);
    broker.run(&["group", "reset", "g", "--to", "0", "--topic", "no"]).failed(1, &["there is no topic 'no'"]);
    // A group that is made by setting it.
    json_of("group reset new --to latest --topic jobs");
    assert_eq!(json_of("group describe new")[0]["lag_records"], 0);

    // With members it is left alone.
    let mut workers = Workers::default();
    workers.start(&broker, &["--group", "g", "--topic", "jobs", "--topic", "other"]);
    workers.wait_for_shares(&[3]);
    broker
        .run(&["group", "reset", "g", "--to", "earliest"])
        .failed(1, &["has members", "stop its consumers"]);
    broker.run(&["group", "delete", "g"]).failed(1, &["has members", "stop its consumers"]);
    let text = broker.run(&["group", "describe", "g"]).ok().text();
    assert!(text.contains("MEMBER") && text.contains("jobs/0,1 other/0"), "{text}");
    assert!(workers.stop(0, libc::SIGTERM));
    assert_eq!(json_of("group delete g"), [json!({ "group": "g", "done": "deleted" })]);
    broker.run(&["group", "describe", "g"]).failed(1, &["there is no group 'g'"]);
    // A file of many lines through a group, as a queue: enough for several fetches.
    let large: String = (0..20_000).map(|n| format!("line {n} of a larger file\n")).collect();
    let path = file(data.path(), "large", large.as_bytes());
    broker.run(&["topic", "create", "large", "--partitions", "3"]).ok();
    broker.run(&["produce", "large", "--file", path.to_str().unwrap()]).ok();
    let ran = broker.run(&["consume", "large", "--group", "queue", "--max", "20000"]).ok();
    let printed = ran.text();
    let printed: BTreeSet<&str> = printed.lines().collect();
    assert_eq!(printed.len(), 20_000);
    assert_eq!(json_of("group describe queue")[0]["lag_records"], 0);
}
