//! A backup of a cluster as `docs/OPERATIONS.md` has it: all brokers are stopped, their directories copied, and the copies
//! started in their place. What one broker's backup is, is another suite's.

use crate::brokers::{Cluster, producer, run};
use crate::faults::{read_log, whole};
use ringlog_client::{Client, NewTopic, Producer, ProducerRecord};

const TOPIC: &str = "kept-elsewhere";
const PARTITIONS: u32 = 4;

/// Sends records and waits until each is acknowledged by all that count.
async fn produce(producer: &Producer, records: usize) {
    let mut pending = Vec::new();
    for number in 0..records {
        let record = ProducerRecord::new(TOPIC, number.to_string()).to_partition(number as u32 % PARTITIONS);
        pending.push(producer.send(record).await.expect("it is taken"));
    }
    for delivery in pending {
        delivery.await.expect("it is acknowledged");
    }
}

/// What a group has committed, by partition.
async fn committed(client: &Client) -> Vec<(u32, Option<u64>)> {
    let group = client.admin().describe_group("readers").await.expect("it has a coordinator");
    group.offsets.iter().map(|one| (one.partition, one.offset)).collect()
}

#[test]
fn copies_of_three_stopped_brokers_are_the_same_cluster() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let client = cluster.connect().await;
        whole(&client, 3).await;
        let topic = NewTopic { partitions: PARTITIONS, replication_factor: 3, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        whole(&client, 3).await;
        cluster.ok(&format!("topic alter {TOPIC} --set retention.ms=7h"));
        let before = producer(&client);
        produce(&before, 300).await;
        before.close().await.expect("the brokers are there");
        cluster.ok(&format!("group reset readers --topic {TOPIC} --to 3"));
        let (log, offsets) = (read_log(&client, TOPIC, PARTITIONS).await, committed(&client).await);
        assert_eq!((log.iter().flatten().count(), offsets.len()), (300, PARTITIONS as usize));
        let known = client.admin().describe_cluster(None).await.expect("it answers").cluster;

        cluster.stop_all();
        // The originals are gone with this.
        (1..=3).for_each(|id| cluster.restore(id));
        (1..=3).for_each(|id| cluster.start(id));

        let client = cluster.connect().await;
        whole(&client, 3).await;
        assert_eq!(client.admin().describe_cluster(None).await.expect("it answers").cluster, known);
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, log);
        assert_eq!(committed(&client).await, offsets);
        let settings = cluster.json(&format!("topic describe {TOPIC}"));
        let retention = settings.iter().find(|line| line["name"] == "retention.ms").expect("it is a setting");
        assert_eq!(retention["value"], "25200000");
        // It takes more, also when the one goes that led.
        let after = producer(&client);
        produce(&after, 100).await;
        cluster.kill(1);
        produce(&after, 100).await;
        cluster.start(1);
        whole(&client, 3).await;
        let more = read_log(&client, TOPIC, PARTITIONS).await;
        assert!(more.iter().zip(&log).all(|(more, log)| more.starts_with(log)), "{more:?}");
        assert_eq!(more.iter().flatten().count(), 500);

        // Copies of the copies on other hosts. Where the brokers were nobody is; the later ones are told of the first.
        cluster.stop_all();
        (1..=3).for_each(|id| {
            cluster.restore(id);
            cluster.move_elsewhere(id);
        });
        (1..=3).for_each(|id| cluster.start(id));
        let client = cluster.connect().await;
        whole(&client, 3).await;
        assert_eq!(client.admin().describe_cluster(None).await.expect("it answers").cluster, known);
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, more);
        assert_eq!(committed(&client).await, offsets);
        produce(&producer(&client), 100).await;
        for id in 1..=3 {
            let mut notices = cluster.notices(id).await;
            // That the host was busy says nothing of it.
            notices.retain(|notice| !notice.starts_with("STALL: "));
            assert!(notices.is_empty(), "broker {id}: {notices:?}");
        }
    });
}
