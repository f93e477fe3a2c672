//! How far a group is behind in a cluster: the same by the metrics of its coordinator, by `ringlog top`, by `ringlog group
//! describe` and by the client library, whoever leads the partitions; and unknown, never less, while one of them is not
//! there.

use crate::DEADLINE;
use crate::brokers::{Cluster, producer, run};
use crate::faults::whole;
use crate::scrape::Scrape;
use ringlog_client::{Client, NewTopic, Producer, ProducerRecord};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TOPIC: &str = "spread";
const PARTITIONS: u32 = 6;
const BROKERS: u32 = 3;
/// Nobody was ever in it.
const EMPTY: &str = "empty";
/// Its only member is killed.
const KILLED: &str = "killed";

/// Looks again and again until `look` finds it.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < limit, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A member of the group, killed when dropped.
struct Member(Child);

impl Member {
    fn start(cluster: &Cluster, group: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
        command.args(["consume", "--topic", TOPIC, "--group", group]);
        command.args(["--session-timeout-ms", "1000", "--commit-interval-ms", "50"]);
        command.env("RINGLOG_BROKERS", cluster.addresses());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the binary was built"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("it is ours");
    }
}

/// Sends so many records to each partition.
async fn produce(producer: &Producer, records: [u64; PARTITIONS as usize]) {
    let mut pending = Vec::new();
    for (partition, count) in (0..).zip(records) {
        for number in 0..count {
            let record = ProducerRecord::new(TOPIC, format!("{number}")).to_partition(partition);
            pending.push(producer.send(record).await.expect("it is taken"));
        }
    }
    for delivery in pending {
        delivery.await.expect("it is acknowledged");
    }
}

/// Three brokers, and a topic that each leads two partitions of, alone.
struct Spread {
    cluster: Cluster,
    client: Client,
    /// Who leads which partitions.
    led: BTreeMap<u32, BTreeSet<u32>>,
}

impl Spread {
    async fn start() -> Self {
        let cluster = Cluster::with(BROKERS as usize, &["--http", "127.0.0.1:0"]);
        let client = cluster.connect().await;
        whole(&client, BROKERS as usize).await;
        let topic = NewTopic { partitions: PARTITIONS, replication_factor: 1, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        let mut led: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for place in client.admin().describe_topic(TOPIC).await.expect("it is there").partitions {
            led.entry(place.leader.expect("it has a leader")).or_default().insert(place.partition);
        }
        assert!(led.len() == 3 && led.values().all(|led| led.len() == 2), "{led:?}");
        Self { cluster, client, led }
    }

    fn scrape(&self, broker: u32) -> Scrape {
        Scrape::of(self.cluster.http(broker))
    }

    fn top(&self) -> Value {
        self.cluster.json("top --once --every 0.05").remove(0)
    }

    /// What `ringlog group describe` says of the group, and of each partition.
    fn described(&self, group: &str) -> (Value, BTreeMap<u32, Value>) {
        let mut lines = self.cluster.json(&format!("group describe {group}"));
        let group = lines.remove(0);
        let partitions = lines.into_iter().filter(|line| line["kind"] == "partition");
        let number = |line: &Value| line["partition"].as_u64().expect("a number") as u32;
        (group, partitions.map(|line| (number(&line), line)).collect())
    }

    /// The one broker that tells of the group.
    async fn coordinator(&self, group: &str) -> u32 {
        until("one broker tells of the group", || {
            let tells = |broker: &u32| self.scrape(*broker).has("ringlog_group_members", &[("group", group)]);
            let tell: Vec<u32> = (1..=BROKERS).filter(tells).collect();
            if let [coordinator] = tell[..] { Some(coordinator) } else { None }
        })
        .await
    }

    /// All say that the group is so far behind on each partition.
    async fn agree(&self, group: &str, expect: [u64; PARTITIONS as usize]) {
        let (total, coordinator) = (expect.iter().sum::<u64>(), self.coordinator(group).await);
        let labels = [("group", group)];
        let (_, before) = self.described(group);
        let seen = until("the metrics know the lag", || {
            let seen = self.scrape(coordinator);
            seen.has("ringlog_group_max_lag_seconds", &labels).then_some(seen)
        })
        .await;
        let top = self.top();
        let lag = self.client.admin().group_lag(group).await.expect("it answers");
        let status = self.client.admin().full_status_of(coordinator).await.expect("it answers");
        let (line, after) = self.described(group);

        assert_eq!(seen.sum("ringlog_group_total_lag_records", &labels), total as f64);
        assert_eq!(seen.sum("ringlog_group_unknown_partitions", &labels), 0.0);
        let mut longest_ms = (0, 0);
        for (partition, records) in (0..).zip(expect) {
            let number = partition.to_string();
            let labels = [("group", group), ("topic", TOPIC), ("partition", number.as_str())];
            assert_eq!(seen.sum("ringlog_group_lag_records", &labels), records as f64, "{labels:?}");
            let ms = [&before, &after].map(|lines| lines[&partition]["lag_ms"].as_u64().expect("a number"));
            let seen_ms = (seen.sum("ringlog_group_lag_seconds", &labels) * 1000.0).round() as u64;
            assert!(ms[0] <= seen_ms && seen_ms <= ms[1], "{labels:?}: {seen_ms} ms, described with {ms:?}");
            longest_ms = (longest_ms.0.max(ms[0]), longest_ms.1.max(ms[1]));
            assert_eq!(after[&partition]["lag_records"], records, "{labels:?}");
        }
        let max_ms = (seen.sum("ringlog_group_max_lag_seconds", &labels) * 1000.0).round() as u64;
        assert!(longest_ms.0 <= max_ms && max_ms <= longest_ms.1, "{max_ms}: {longest_ms:?}");

        let row = top["groups"].as_array().expect("groups").iter().find(|row| row["group"] == group);
        let row = row.unwrap_or_else(|| panic!("{group} is not in {top}"));
        assert_eq!(
            (&row["lag_records"], &row["broker"]),
            (&Value::from(total), &Value::from(coordinator)),
            "{row}"
        );
        let top_ms = row["lag_ms"].as_u64().expect("a number");
        assert!(longest_ms.0 <= top_ms && top_ms <= longest_ms.1, "{row}: {longest_ms:?}");

        assert_eq!((line["lag_records"].as_u64(), lag.records()), (Some(total), Some(total)));
        let told = status.groups.iter().find(|one| one.group == group).and_then(|group| group.lag);
        assert_eq!(told.map(|lag| lag.records), Some(total), "{:?}", status.groups);
    }

    /// The coordinator cannot say how far the group is behind where `silent` leads, and says so.
    async fn unknown(&self, group: &str, coordinator: u32, silent: u32, expect: [u64; PARTITIONS as usize]) {
        let labels = [("group", group)];
        let known = |partition: u32| !self.led[&silent].contains(&partition);
        let seen = until("the metrics say what they do not know", || {
            let seen = self.scrape(coordinator);
            let unknown = seen.sum("ringlog_group_unknown_partitions", &labels);
            // Never a sum over a part.
            assert!(unknown == 0.0 || !seen.has("ringlog_group_total_lag_records", &labels));
            assert!(unknown == 0.0 || !seen.has("ringlog_group_max_lag_seconds", &labels));
            (unknown == self.led[&silent].len() as f64).then_some(seen)
        })
        .await;
        for (partition, records) in (0..).zip(expect) {
            let number = partition.to_string();
            let labels = [("group", group), ("topic", TOPIC), ("partition", number.as_str())];
            let metric = "ringlog_group_lag_records";
            assert_eq!(seen.has(metric, &labels), known(partition), "{labels:?}");
            assert!(!known(partition) || seen.sum(metric, &labels) == records as f64, "{labels:?}");
        }
    }
}

#[test]
fn lag_is_the_same_whoever_leads_and_unknown_where_nobody_answers() {
    run(async || {
        let mut spread = Spread::start().await;
        let producer = producer(&spread.client);
        produce(&producer, [10, 20, 30, 40, 50, 60]).await;
        let committed: Vec<_> =
            (0..PARTITIONS).map(|number| (TOPIC, number, 1 + u64::from(number))).collect();
        spread.client.admin().set_group_offsets(EMPTY, &committed).await.expect("nobody is in it");
        spread.agree(EMPTY, [9, 18, 27, 36, 45, 54]).await;

        // A member reads everything, and is killed.
        let member = Member::start(&spread.cluster, KILLED);
        let coordinator = spread.coordinator(KILLED).await;
        let killed = [("group", KILLED)];
        until("the member has read everything", || {
            let seen = spread.scrape(coordinator);
            let all = seen.has("ringlog_group_committed_offset", &[("group", KILLED), ("partition", "5")]);
            let lag = all && seen.has("ringlog_group_total_lag_records", &killed);
            (lag && seen.sum("ringlog_group_total_lag_records", &killed) == 0.0).then_some(())
        })
        .await;
        spread.agree(KILLED, [0; PARTITIONS as usize]).await;
        drop(member);
        produce(&producer, [1, 2, 3, 4, 5, 6]).await;
        until("it is missed", || {
            (spread.scrape(coordinator).sum("ringlog_group_members", &killed) == 0.0).then_some(())
        })
        .await;
        spread.agree(KILLED, [1, 2, 3, 4, 5, 6]).await;
        let lag = [10, 20, 30, 40, 50, 60];
        spread.agree(EMPTY, lag).await;

        // All brokers are in the picture, and the topic once.
        let top = spread.top();
        let brokers: BTreeSet<_> =
            top["shards"].as_array().expect("shards").iter().map(|shard| shard["broker"].as_u64()).collect();
        assert_eq!(brokers, BTreeSet::from([Some(1), Some(2), Some(3)]), "{top}");
        assert!(
            top["brokers"].as_array().expect("brokers").iter().all(|one| one["missing"].is_null()),
            "{top}"
        );
        let topic = top["topics"].as_array().expect("topics").iter().find(|row| row["topic"] == TOPIC);
        let topic = topic.unwrap_or_else(|| panic!("{top}"));
        assert_eq!((&topic["partitions"], &topic["records"]), (&Value::from(6), &Value::from(231)));

        // One that leads is silent, as one is whose host is gone; then it is dead, and nobody leads what it led.
        let coordinator = spread.coordinator(EMPTY).await;
        let silent = (1..=BROKERS).rfind(|broker| *broker != coordinator).expect("there are three");
        spread.cluster.pause(silent);
        spread.unknown(EMPTY, coordinator, silent, lag).await;
        spread.cluster.resume(silent);
        let known = || spread.scrape(coordinator).has("ringlog_group_total_lag_records", &[("group", EMPTY)]);
        until("it answers again", || known().then_some(())).await;
        whole(&spread.client, BROKERS as usize).await;
        spread.agree(EMPTY, lag).await;
        spread.cluster.kill(silent);
        spread.unknown(EMPTY, coordinator, silent, lag).await;
        let alone = |partition: &u32| spread.led[&silent].contains(partition);
        let (line, partitions) = spread.described(EMPTY);
        assert_eq!(
            (&line["lag_records"], &line["unknown_partitions"]),
            (&Value::Null, &Value::from(2)),
            "{line}"
        );
        for (partition, line) in &partitions {
            let expect = if alone(partition) { Value::Null } else { lag[*partition as usize].into() };
            assert_eq!(line["lag_records"], expect, "{line}");
        }
        let top = until("it is missed", || {
            let top = spread.top();
            let row = |row: &&Value| row["group"] == EMPTY && row["unknown_partitions"] == 2;
            top["groups"].as_array()?.iter().find(row)?;
            Some(top)
        })
        .await;
        let row = top["groups"].as_array().expect("groups").iter().find(|row| row["group"] == EMPTY);
        assert!(row.is_some_and(|row| row["lag_records"].is_null() && row["lag_ms"].is_null()), "{top}");
        let missing = top["brokers"].as_array().expect("brokers").iter();
        let missing: Vec<_> =
            missing.filter(|one| one["missing"].is_string()).map(|one| &one["broker"]).collect();
        assert_eq!(missing, [&Value::from(silent)], "{top}");
        let shown = spread.cluster.ok("top --once --every 0.05");
        let named = format!("broker {silent} is missing in all that follows: ");
        assert!(shown.contains(&named) && shown.contains("?: the lag of 2 groups is not known"), "{shown}");

        // It comes back, and everything is known again.
        spread.cluster.start(silent);
        whole(&spread.client, BROKERS as usize).await;
        spread.agree(EMPTY, lag).await;
        producer.close().await.expect("the brokers are there");
    });
}
