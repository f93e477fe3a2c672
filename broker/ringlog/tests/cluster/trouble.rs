//! A partition that loses its replicas, one after the other: what it takes and shows, what commands and metrics say of it,
//! and what an election by force gives up.

use crate::DEADLINE;
use crate::brokers::{Cluster, leader_of, of_topic, producer, run, until};
use crate::faults::{read_log, whole};
use futures_util::FutureExt;
use ringlog_client::{
    Acks, Client, ClusterDescription, Consumer, ConsumerConfig, DeliveryFuture, Durability, OffsetSpec,
    ProduceError, Producer, ProducerConfig, ProducerRecord, StartFrom,
};
use std::time::{Duration, Instant};

const TOPIC: &str = "kept-by-two";
/// Who was silent for so long is fenced: longer than any broker is held here. Whose process has gone is fenced at once.
const SESSION: &str = "60000";

async fn send(producer: &Producer, value: &str) -> DeliveryFuture {
    let record = ProducerRecord::new(TOPIC, value.to_owned()).to_partition(0);
    producer.send(record).await.expect("it is taken")
}

/// Sends records, each of which is acknowledged by all that count.
async fn produce(producer: &Producer, log: &mut Vec<String>, records: usize) {
    for _ in 0..records {
        let value = format!("{} for all", log.len());
        let receipt = send(producer, &value).await.await.expect("it is acknowledged");
        assert_eq!(receipt.offset, log.len() as u64);
        log.push(value);
    }
}

/// The in-sync set, sorted.
fn in_sync(cluster: &ClusterDescription) -> Vec<u32> {
    let replicas = of_topic(cluster, TOPIC).flat_map(|partition| &partition.replicas);
    let members = replicas.filter(|replica| replica.in_sync);
    let mut members: Vec<u32> = members.map(|replica| replica.broker).collect();
    members.sort_unstable();
    members
}

/// Who may lead besides those in sync, since it has everything that was committed, sorted.
fn eligible(cluster: &ClusterDescription) -> Vec<u32> {
    let replicas = of_topic(cluster, TOPIC).flat_map(|partition| &partition.replicas);
    let mut members: Vec<u32> =
        replicas.filter(|replica| replica.eligible).map(|replica| replica.broker).collect();
    members.sort_unstable();
    members
}

/// Waits until these are in sync and no others.
async fn until_in_sync(client: &Client, brokers: &[u32]) {
    let mut brokers = brokers.to_vec();
    brokers.sort_unstable();
    until(client, &format!("{brokers:?} are in sync"), |cluster| in_sync(cluster) == brokers).await;
}

/// Where the leader's log ends, and what of it is visible.
async fn ends(client: &Client) -> (u64, u64) {
    let logs = client.admin().describe_logs(TOPIC).await.expect("its leader answers");
    (logs[0].log_end, logs[0].high_watermark)
}

async fn until_log_ends(client: &Client, end: usize) {
    let limit = Instant::now() + DEADLINE;
    while ends(client).await.0 < end as u64 {
        assert!(Instant::now() < limit, "nothing is appended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads on until all of `log` has been read.
async fn read_on(consumer: &mut Consumer, read: &mut usize, log: &[String]) {
    while *read < log.len() {
        let next = tokio::time::timeout(DEADLINE, consumer.next()).await.expect("it goes on");
        let record = next.expect("it is assigned").expect("the log is sound");
        assert_eq!(record.offset, *read as u64);
        assert_eq!(record.value.as_deref(), Some(log[*read].as_bytes()));
        *read += 1;
    }
}

/// Nothing of `log` from `visible` on is shown to anybody.
async fn assert_visible(
    cluster: &Cluster,
    client: &Client,
    consumer: &mut Consumer,
    visible: usize,
    log: &[String],
) {
    assert_eq!(ends(client).await, (log.len() as u64, visible as u64));
    let latest = client.admin().list_offsets(TOPIC, &[(0, OffsetSpec::Latest)]).await;
    assert_eq!(latest.expect("its leader answers")[0].offset, visible as u64);
    let said = cluster.ok(&format!("consume {TOPIC} --until-end"));
    assert_eq!(said.lines().count(), visible, "{said}");
    assert!(consumer.next().now_or_never().is_none(), "it is shown what is not committed");
}

/// What is wrong with what commands, and metrics of `brokers`, say of the partition; its state `None`: it is well.
fn said(cluster: &Cluster, brokers: &[u32], state: Option<&str>) -> Result<(), String> {
    let words = match state {
        None => "1 partition, all well",
        Some("no leader") => "1 without a leader",
        Some("below minimum") => "1 below min.insync.replicas, 1 under-replicated",
        Some(_) => "1 partition: 1 under-replicated",
    };
    let status = cluster.ok("cluster status");
    if !status.contains(words) {
        return Err(format!("'{words}' is not in:\n{status}"));
    }
    // To have asked what is wrong is no failure, whatever is wrong.
    let lines = cluster.json("cluster describe --troubled");
    let troubled: Vec<_> = lines.iter().filter(|line| line["kind"] == "partition").collect();
    let is_so = |line: &&serde_json::Value| line["topic"] == TOPIC && line["state"].as_str() == state;
    if troubled.len() != usize::from(state.is_some()) || !troubled.iter().all(is_so) {
        return Err(format!("{state:?} is not what is said: {troubled:#?}"));
    }
    let text = cluster.ok("cluster describe --troubled");
    if text.contains(TOPIC) != state.is_some() || !text.contains(state.unwrap_or_default()) {
        return Err(format!("{state:?} is not in:\n{text}"));
    }
    // Of partitions their leaders count; of those without one, everybody.
    let led = state != Some("no leader");
    let figures = [
        ("ringlog_partitions_led", usize::from(led)),
        ("ringlog_partitions_under_replicated", usize::from(led && state.is_some())),
        ("ringlog_partitions_below_min_in_sync", usize::from(state == Some("below minimum"))),
        ("ringlog_cluster_partitions_leaderless", if led { 0 } else { brokers.len() }),
    ];
    let scrapes: Vec<_> = brokers.iter().map(|id| cluster.scrape(*id)).collect();
    for (name, expect) in figures {
        let sum: f64 = scrapes.iter().map(|scrape| scrape.sum(name, &[])).sum();
        if sum != expect as f64 {
            return Err(format!("{name} is {sum} with {state:?}"));
        }
    }
    Ok(())
}

/// Waits until all of them have heard of it, and say so.
async fn until_said(cluster: &Cluster, brokers: &[u32], state: Option<&str>) {
    let limit = Instant::now() + DEADLINE;
    while let Err(wrong) = said(cluster, brokers, state) {
        assert!(Instant::now() < limit, "{wrong}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until it is said of a broker that it votes with so many others and that so many follow.
pub async fn until_votes(cluster: &Cluster, id: u32, voters: u32, observers: u32) {
    let limit = Instant::now() + DEADLINE;
    loop {
        let scrape = cluster.scrape(id);
        let said =
            ["ringlog_metadata_voters", "ringlog_metadata_observers"].map(|name| scrape.sum(name, &[]));
        if said == [f64::from(voters), f64::from(observers)] {
            return;
        }
        assert!(Instant::now() < limit, "broker {id} says {said:?} of voters and observers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_partition_without_enough_replicas_takes_and_shows_nothing_new_and_comes_back_whole() {
    run(async || {
        // All five vote: of the metadata, a majority outlives two. Two keep nothing.
        let arguments = ["--metadata-voters", "5", "--session-ms", SESSION, "--http", "127.0.0.1:0"];
        let mut cluster = Cluster::with(5, &arguments);
        let client = cluster.connect().await;
        whole(&client, 5).await;
        for id in 1..=5 {
            until_votes(&cluster, id, 5, 0).await;
        }
        for id in [1, 2] {
            cluster.ok(&format!("cluster drain {id}"));
        }
        cluster.ok(&format!(
            "topic create {TOPIC} --partitions 1 --replication-factor 3 --config min.insync.replicas=2"
        ));
        whole(&client, 5).await;
        until_said(&cluster, &[1, 2, 3, 4, 5], None).await;
        let leads = leader_of(&client, TOPIC, 0).await;
        let followers: Vec<u32> = [3, 4, 5].into_iter().filter(|id| *id != leads).collect();
        let [first, second] = followers[..] else { panic!("{followers:?} follow") };
        let for_all = producer(&client);
        let with = |acks| client.producer(ProducerConfig { acks, ..ProducerConfig::default() });
        let (for_leader, for_nobody) = (with(Acks::Leader), with(Acks::None));
        let mut consumer = client.consumer(ConsumerConfig::default());
        consumer.assign(TOPIC, &[(0, StartFrom::Earliest)]).await.expect("it is there");
        let (mut log, mut read) = (Vec::new(), 0);
        produce(&for_all, &mut log, 20).await;

        // One of three is away: it is missed, and nothing waits for it.
        cluster.kill(first);
        until_in_sync(&client, &[leads, second]).await;
        produce(&for_all, &mut log, 5).await;
        read_on(&mut consumer, &mut read, &log).await;
        let four = [1, 2, leads, second];
        until_said(&cluster, &four, Some("under-replicated")).await;
        let scrape = cluster.scrape(leads);
        // Who is away lacks what it has not acknowledged.
        let behind = 5.0;
        assert_eq!(scrape.sum("ringlog_partition_replica_lag_records", &[("topic", TOPIC)]), behind);
        assert_eq!(scrape.sum("ringlog_replica_max_lag_records", &[]), behind);
        assert!(scrape.sum("ringlog_replica_max_lag_seconds", &[]) > 0.0, "it is behind for some time");
        let lines = cluster.json("cluster describe --troubled");
        let partition = lines.iter().find(|line| line["kind"] == "partition").expect("it is listed");
        let lags = partition["lags"].as_array().expect("there are replicas");
        let lag = lags.iter().find(|lag| lag["broker"] == first).expect("it is one of them");
        assert_eq!(
            (&lag["end"], &lag["lag_records"], &lag["connected"]),
            (&20.into(), &5.into(), &false.into()),
            "{lag}"
        );
        assert!(lag["lag_ms"].as_u64().is_some_and(|ms| ms > 0), "{lag}");

        // The other is held: whatever is waited for, what only the leader has is not visible.
        cluster.pause(second);
        let mut waits = send(&for_all, "in doubt").await;
        until_log_ends(&client, log.len() + 1).await;
        let visible = log.len();
        log.push("in doubt".to_owned());
        for _ in 0..3 {
            let value = format!("{} for the leader", log.len());
            let receipt = send(&for_leader, &value).await.await.expect("its leader has it");
            assert_eq!((receipt.offset, receipt.durability), (log.len() as u64, Durability::LeaderDevice));
            log.push(value);
        }
        for _ in 0..2 {
            let value = format!("{} for nobody", log.len());
            send(&for_nobody, &value).await.await.expect("nobody answers");
            log.push(value);
            until_log_ends(&client, log.len()).await;
        }
        assert_visible(&cluster, &client, &mut consumer, visible, &log).await;

        // And gone: too few are left, and nothing is taken for anybody.
        cluster.kill(second);
        until_in_sync(&client, &[leads]).await;
        let three = [1, 2, leads];
        until_said(&cluster, &three, Some("below minimum")).await;
        for acks in [Acks::All, Acks::Leader] {
            let delivery_timeout = Duration::from_secs(1);
            let hasty = ProducerConfig { acks, delivery_timeout, ..ProducerConfig::default() };
            let hasty = client.producer(hasty);
            let refused = send(&hasty, "refused").await.await.expect_err("too few have it");
            let ProduceError::TimedOut { outcome_unknown: false, reason: Some(reason), .. } = &refused else {
                panic!("{refused:?}")
            };
            assert!(reason.contains("NOT_ENOUGH_REPLICAS"), "{refused}");
            let _ = hasty.close().await;
        }
        send(&for_nobody, "unheard").await.await.expect("nobody answers");
        let lines =
            tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
        std::fs::write(lines.path(), "refused\n").expect("it can be written to");
        let file = lines.path().display();
        let (taken, said) = cluster
            .run(&format!("produce {TOPIC} --partition 0 --set delivery.timeout.ms=1000 --file {file}"));
        assert!(!taken, "{said}");
        for part in ["1 of 1 record", "not acknowledged within 1s, and not written", "NOT_ENOUGH_REPLICAS"] {
            assert!(said.contains(part), "'{part}' is not in:\n{said}");
        }
        assert_visible(&cluster, &client, &mut consumer, visible, &log).await;
        assert!((&mut waits).now_or_never().is_none(), "it is not committed");

        // With one of them all of that is committed; with both all is well.
        cluster.start(second);
        until_in_sync(&client, &[leads, second]).await;
        read_on(&mut consumer, &mut read, &log).await;
        let receipt = waits.await.expect("it is committed");
        assert_eq!((receipt.offset, receipt.durability), (visible as u64, Durability::AllInSyncDevice));
        produce(&for_all, &mut log, 5).await;
        until_said(&cluster, &four, Some("under-replicated")).await;
        cluster.start(first);
        whole(&client, 5).await;
        until_said(&cluster, &[1, 2, 3, 4, 5], None).await;
        produce(&for_all, &mut log, 5).await;
        assert_eq!(read_log(&client, TOPIC, 1).await, [log.clone()]);

        all_three_go(&mut cluster, &client, [&for_all, &for_leader], &mut log).await;
        assert_eq!(read_log(&client, TOPIC, 1).await, [log]);
    });
}

/// All three go, one after the other. Who left when two were enough lacks what they committed, and may not lead. Who left
/// when they were too few has all of that, and leads by itself.
async fn all_three_go(
    cluster: &mut Cluster,
    client: &Client,
    [for_all, for_leader]: [&Producer; 2],
    log: &mut Vec<String>,
) {
    let leads = leader_of(client, TOPIC, 0).await;
    let followers: Vec<u32> = [3, 4, 5].into_iter().filter(|id| *id != leads).collect();
    let [goes, last] = followers[..] else { panic!("{followers:?} follow") };
    cluster.kill(goes);
    until_in_sync(client, &[leads, last]).await;
    produce(for_all, log, 5).await;
    cluster.pause(last);
    let only_here = send(for_leader, "only its leader has it").await.await.expect("its leader has it");
    assert_eq!(only_here.offset, log.len() as u64);
    cluster.kill(last);
    until(client, "who was in sync is eligible", |cluster| {
        in_sync(cluster) == [leads] && eligible(cluster) == [last]
    })
    .await;
    cluster.kill(leads);
    cluster.start(goes);
    until_said(cluster, &[1, 2, goes], Some("no leader")).await;
    cluster.start(last);
    until(client, "who was eligible leads", |cluster| {
        of_topic(cluster, TOPIC).all(|partition| partition.leader == Some(last))
    })
    .await;
    until_in_sync(client, &[goes, last]).await;
    produce(for_all, log, 5).await;
    cluster.start(leads);
    whole(client, 5).await;
    until_said(cluster, &[1, 2, 3, 4, 5], None).await;
    produce(for_all, log, 5).await;
}

#[test]
fn an_election_by_force_says_what_it_gives_up_and_the_cluster_goes_on_without_it() {
    run(async || {
        let mut cluster = Cluster::with(3, &["--http", "127.0.0.1:0"]);
        let client = cluster.connect().await;
        whole(&client, 3).await;
        cluster.ok("cluster drain 1");
        cluster.ok(&format!(
            "topic create {TOPIC} --partitions 1 --replication-factor 2 --config min.insync.replicas=1"
        ));
        whole(&client, 3).await;
        let producer = producer(&client);
        let mut log = Vec::new();
        produce(&producer, &mut log, 20).await;
        cluster.kill(2);
        until_in_sync(&client, &[3]).await;
        let kept = log.len();
        produce(&producer, &mut log, 4).await;

        // Who has all is gone for good, and who comes back may not lead.
        cluster.kill(3);
        cluster.start(2);
        until_said(&cluster, &[1, 2], Some("no leader")).await;
        let partition = format!("cluster elect --partition {TOPIC}:0");
        let (elected, said) = cluster.run(&partition);
        assert!(!elected && said.contains("NO_ELIGIBLE_LEADER"), "{said}");
        assert!(said.contains("ringlog cluster elect --unclean"), "{said}");

        let said = cluster.ok(&format!("{partition} --unclean"));
        for part in ["broker 2 takes over", "its log ends at offset 20", "which broker 3 had, is LOST"] {
            assert!(said.contains(part), "'{part}' is not in:\n{said}");
        }
        let (again, said) = cluster.run(&format!("{partition} --unclean --format json"));
        assert!(again && said.contains("ELECTION_NOT_NEEDED"), "{said}");
        until_in_sync(&client, &[2]).await;
        log.truncate(kept);
        produce(&producer, &mut log, 5).await;
        assert_eq!(read_log(&client, TOPIC, 1).await, [log.clone()]);

        // Another takes the place of the one that is gone.
        cluster.ok("cluster undrain 1");
        cluster.ok(&format!("cluster move {TOPIC}:0 --to 2,1"));
        cluster.ok("cluster remove 3");
        whole(&client, 2).await;
        until_said(&cluster, &[1, 2], None).await;
        produce(&producer, &mut log, 5).await;
        assert_eq!(read_log(&client, TOPIC, 1).await, [log]);
    });
}
