//! A consumer reads at the follower in its own rack, and at the leaders when that one is gone.
//!
//! Which broker served is told by the brokers' own counters. Every record is read once, in the order of its offsets,
//! whoever serves it.

use crate::DEADLINE;
use crate::brokers::{Cluster, producer, run};
use crate::faults::whole;
use ringlog_client::{Consumer, ConsumerConfig, NewTopic, Producer, ProducerRecord, StartFrom};
use std::collections::BTreeSet;
use std::time::Instant;

const TOPIC: &str = "near";
const PARTITIONS: u32 = 3;
/// The broker in the consumer's rack.
const NEAR: u32 = 2;
/// Records of one go.
const RECORDS: u64 = 60;

/// What was sent and read, by partition.
struct Stream {
    producer: Producer,
    consumer: Consumer,
    sent: Vec<u64>,
    read: Vec<u64>,
}

impl Stream {
    /// Sends records and reads them: each is the next of its partition.
    async fn go(&mut self) {
        let mut pending = Vec::new();
        for number in 0..RECORDS {
            let partition = (number % u64::from(PARTITIONS)) as usize;
            let value = format!("{partition} {}", self.sent[partition]);
            let record = ProducerRecord::new(TOPIC, value).to_partition(partition as u32);
            pending.push(self.producer.send(record).await.expect("it is taken"));
            self.sent[partition] += 1;
        }
        for delivery in pending {
            delivery.await.expect("it is acknowledged");
        }
        while self.read != self.sent {
            let record = tokio::time::timeout(DEADLINE, self.consumer.next()).await.expect("it goes on");
            let record = record.expect("it is assigned").expect("the log is sound");
            let next = &mut self.read[record.partition as usize];
            let value = format!("{} {next}", record.partition);
            assert_eq!((record.offset, record.value.as_deref()), (*next, Some(value.as_bytes())));
            *next += 1;
        }
    }

    /// The same until a go in which nobody sends anything to consumers but the broker near by.
    async fn until_near(&mut self, cluster: &Cluster) {
        let limit = Instant::now() + DEADLINE;
        loop {
            let mut before = Vec::new();
            for id in [1, 3] {
                before.push(cluster.counter(id, "fetched_bytes_total").await);
            }
            self.go().await;
            let mut after = Vec::new();
            for id in [1, 3] {
                after.push(cluster.counter(id, "fetched_bytes_total").await);
            }
            if after == before {
                return;
            }
            assert!(Instant::now() < limit, "the leaders serve on: {before:?}, then {after:?}");
        }
    }
}

#[test]
fn a_consumer_reads_at_a_follower_in_its_rack() {
    run(async || {
        let mut cluster = Cluster::default();
        for rack in ["red", "green", "blue"] {
            cluster.grow(&["--rack", rack]);
        }
        let client = cluster.connect().await;
        whole(&client, 3).await;
        let topic = NewTopic { partitions: PARTITIONS, replication_factor: 3, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        whole(&client, 3).await;
        let config = ConsumerConfig { rack: Some("green".to_owned()), ..ConsumerConfig::default() };
        let mut consumer = client.consumer(config);
        consumer.assign_all(TOPIC, StartFrom::Earliest).await.expect("it is there");
        let (sent, read) = (vec![0; PARTITIONS as usize], vec![0; PARTITIONS as usize]);
        let mut stream = Stream { producer: producer(&client), consumer, sent, read };
        stream.until_near(&cluster).await;
        let served = cluster.counter(NEAR, "follower_fetched_bytes_total").await;
        assert!(served > 0);

        // The same by the command: what is not in the first answers comes from the follower.
        let said = cluster.ok(&format!(
            "consume {TOPIC} --until-end --set client.rack=green --set max.partition.fetch.bytes=1"
        ));
        assert_eq!(said.lines().count() as u64, stream.sent.iter().sum::<u64>(), "{said}");
        assert!(cluster.counter(NEAR, "follower_fetched_bytes_total").await > served);
        // And as a member of a group, whose offsets are committed as ever.
        let (served, all) =
            (cluster.counter(NEAR, "follower_fetched_bytes_total").await, stream.sent.iter().sum::<u64>());
        let said = cluster.ok(&format!(
            "consume {TOPIC} --group nearby --set client.rack=green --set max.partition.fetch.bytes=1 --max {all}"
        ));
        let values: BTreeSet<&str> =
            said.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).collect();
        assert_eq!(values.len() as u64, all, "{said}");
        assert!(cluster.counter(NEAR, "follower_fetched_bytes_total").await > served);
        let lag = client.admin().group_lag("nearby").await.expect("it answers");
        assert_eq!(lag.records(), Some(0), "{lag:?}");
        // Who says nothing of a rack reads at the leaders.
        let (followers, before) = (of_followers(&cluster).await, stream.sent.iter().sum::<u64>());
        let said = cluster.ok(&format!("consume {TOPIC} --until-end --set max.partition.fetch.bytes=1"));
        assert_eq!((said.lines().count() as u64, of_followers(&cluster).await), (before, followers));

        let began = Instant::now();
        cluster.kill(NEAR);
        stream.go().await;
        println!("the follower is killed: {} records read {:?} later", RECORDS, began.elapsed());
        stream.go().await;

        // It is back, and is read again.
        cluster.start(NEAR);
        whole(&client, 3).await;
        stream.until_near(&cluster).await;
        stream.producer.close().await.expect("the brokers are there");
    });
}

/// Bytes that consumers were sent by followers.
async fn of_followers(cluster: &Cluster) -> u64 {
    let mut sum = 0;
    for id in 1..=3 {
        sum += cluster.counter(id, "follower_fetched_bytes_total").await;
    }
    sum
}
