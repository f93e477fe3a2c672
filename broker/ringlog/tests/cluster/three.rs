//! Three brokers as processes on this host: one is killed, one loses its disk, and nothing acknowledged is lost.

use crate::brokers::{Cluster, leader_of, producer, run};
use crate::faults::{read_log, whole};
use ringlog_client::{Client, ConsumerConfig, NewTopic, Producer, ProducerRecord, StartFrom};
use std::time::Instant;

const TOPIC: &str = "kept-three-times";
const PARTITIONS: u32 = 3;
/// Records of one go.
const RECORDS: usize = 300;

/// Sends records and waits until all are acknowledged.
async fn produce(producer: &Producer, sent: &mut [Vec<String>]) {
    let mut pending = Vec::new();
    for number in 0..RECORDS {
        let partition = number % sent.len();
        let value = format!("{partition}-{}", sent[partition].len());
        let record = ProducerRecord::new(TOPIC, value.clone()).to_partition(partition as u32);
        pending.push(producer.send(record).await.expect("it is taken"));
        sent[partition].push(value);
    }
    for delivery in pending {
        delivery.await.expect("it is acknowledged");
    }
}

/// So many of them, in records of 100 kB that do not compress.
async fn produce_megabytes(producer: &Producer, megabytes: usize, sent: &mut [Vec<String>]) {
    for number in 0..megabytes * 10 {
        let partition = number % sent.len();
        let mut value = format!("{partition}-{} ", sent[partition].len());
        value.extend((0..100_000 - value.len()).map(|_| fastrand::alphanumeric()));
        let record = ProducerRecord::new(TOPIC, value.clone()).to_partition(partition as u32);
        drop(producer.send(record).await.expect("it is taken"));
        sent[partition].push(value);
    }
    producer.flush().await.expect("all are acknowledged");
}

/// How far one replica is, as `ringlog cluster describe --format json` says it.
#[derive(Debug)]
struct Lag {
    broker: u64,
    /// Absent: not heard since its leader leads.
    records: Option<u64>,
    ms: u64,
    follows: bool,
}

/// Of all partitions' replicas but the leaders'.
fn lags(cluster: &Cluster) -> Vec<Lag> {
    let mut lags = Vec::new();
    for line in cluster.json(&format!("cluster describe --topic {TOPIC}")) {
        for lag in line["lags"].as_array().into_iter().flatten() {
            let number = |name: &str| lag[name].as_u64().expect("it is a number");
            let (broker, records, ms) = (number("broker"), lag["lag_records"].as_u64(), number("lag_ms"));
            assert_eq!(lag["end"].as_u64().is_none(), records.is_none(), "{lag}");
            lags.push(Lag { broker, records, ms, follows: lag["connected"] == true });
        }
    }
    lags
}

async fn with_topic(cluster: &Cluster) -> Client {
    let client = cluster.connect().await;
    whole(&client, 3).await;
    let topic = NewTopic { partitions: PARTITIONS, replication_factor: 3, ..NewTopic::named(TOPIC) };
    client.admin().create_topic(&topic).await.expect("there are three brokers");
    whole(&client, 3).await;
    client
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let client = with_topic(&cluster).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new(); PARTITIONS as usize];
        produce(&producer, &mut sent).await;
        let lines = cluster.json("cluster status");
        assert_eq!(
            lines.iter().filter(|line| line["kind"] == "broker" && line["fenced"] == false).count(),
            3
        );
        assert_eq!(lines.iter().filter(|line| line["voter"] == true).count(), 3, "{lines:?}");
        let victim = leader_of(&client, TOPIC, 0).await;
        // What all have acknowledged is nobody's lag.
        let known = lags(&cluster);
        assert_eq!(known.len(), 2 * PARTITIONS as usize, "{known:?}");
        assert!(known.iter().all(|lag| lag.records == Some(0) && lag.ms == 0 && lag.follows), "{known:?}");
        cluster.kill(victim);
        produce(&producer, &mut sent).await;
        assert_ne!(leader_of(&client, TOPIC, 0).await, victim);
        let known = lags(&cluster);
        for lag in &known {
            let is_away = lag.broker == u64::from(victim);
            assert_eq!((lag.records != Some(0), lag.follows), (is_away, !is_away), "{lag:?}");
        }
        // Its new leaders have not heard of it; those who led before know what it had.
        assert!(known.iter().any(|lag| lag.records.is_none()), "{known:?}");
        let each = u64::try_from(sent[0].len()).expect("it is small") / 2;
        assert!(known.iter().all(|lag| lag.records.is_none_or(|records| records <= each)), "{known:?}");
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, sent);
        cluster.start(victim);
        whole(&client, 3).await;
        produce(&producer, &mut sent).await;
        // Whoever leads then has been a follower: the next to go takes nothing along either.
        let victim = leader_of(&client, TOPIC, 0).await;
        cluster.kill(victim);
        produce(&producer, &mut sent).await;
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, sent);
        cluster.start(victim);
        whole(&client, 3).await;
        producer.close().await.expect("the brokers are there");
    });
}

#[test]
fn a_broker_that_lost_its_disk_is_filled_again() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let client = with_topic(&cluster).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new(); PARTITIONS as usize];
        produce(&producer, &mut sent).await;
        let megabytes =
            std::env::var("RINGLOG_REFILL_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
        produce_megabytes(&producer, megabytes, &mut sent).await;
        for _ in 0..2 {
            let victim = leader_of(&client, TOPIC, 0).await;
            cluster.kill(victim);
            cluster.replace_disk(victim);
            produce(&producer, &mut sent).await;
            let began = Instant::now();
            cluster.start(victim);
            whole(&client, 3).await;
            let ms = began.elapsed().as_millis();
            println!(
                "the disk of broker {victim} lost, with {megabytes} MB: in all in-sync sets again {ms} ms after its start"
            );
        }
        // Two of three disks have been lost, one after the other: all is there.
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, sent);
        producer.close().await.expect("the brokers are there");
    });
}

#[test]
fn without_a_majority_of_the_metadata_data_is_served() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let client = cluster.connect().await;
        whole(&client, 3).await;
        let topic = NewTopic { partitions: PARTITIONS, replication_factor: 1, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        whole(&client, 3).await;
        let survivor = leader_of(&client, TOPIC, 0).await;
        let producer = producer(&client);
        let others = (1..=3).filter(|id| *id != survivor);
        for number in 0..RECORDS {
            // Who begins to produce needs a number for itself, which the metadata gives.
            if number == 1 {
                others.clone().for_each(|id| cluster.kill(id));
            }
            let record = ProducerRecord::new(TOPIC, format!("{number}")).to_partition(0);
            let receipt =
                producer.send(record).await.expect("it is taken").await.expect("it is acknowledged");
            assert_eq!(receipt.offset, number as u64);
        }
        let refused = client.admin().create_topic(&NewTopic::named("another")).await;
        refused.expect_err("nobody can decide that");
        let mut consumer = client.consumer(ConsumerConfig::default());
        consumer.assign(TOPIC, &[(0, StartFrom::Earliest)]).await.expect("it is there");
        for offset in 0..RECORDS as u64 {
            let record = consumer.next().await.expect("it is assigned").expect("the log is sound");
            assert_eq!(record.offset, offset);
        }
        others.for_each(|id| cluster.start(id));
        whole(&client, 3).await;
        // What was refused with an unknown outcome may be there by now.
        client.admin().create_topic(&NewTopic::named("a-third")).await.expect("the majority is back");
        producer.close().await.expect("the brokers are there");
    });
}
