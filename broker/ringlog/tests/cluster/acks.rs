//! What acknowledgements of three brokers say and wait for: which part of their time replication has, and as many replicas in
//! sync as the topic wants.

use crate::DEADLINE;
use crate::brokers::{Cluster, of_topic, until};
use crate::faults::whole;
use ringlog_client::{Acks, Durability, ProduceError, ProducerConfig, ProducerRecord};
use serde_json::Value;
use std::time::Duration;

const TOPIC: &str = "kept-by-all";
const PARTITIONS: u32 = 3;
const LINES: usize = 60;

/// What a command said, object by object.
fn objects(said: &str) -> Vec<Value> {
    let objects = said.lines().filter(|line| line.starts_with('{'));
    objects.map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

#[test]
fn acknowledgements_say_what_replication_took_and_wait_for_enough_replicas() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut cluster = Cluster::of(3);
        let client = cluster.connect().await;
        whole(&client, 3).await;
        cluster.ok(&format!(
            "topic create {TOPIC} --partitions {PARTITIONS} --replication-factor 3 --config min.insync.replicas=3"
        ));
        whole(&client, 3).await;
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
        let path = directory.path().join("lines");
        let lines: String = (0..LINES).map(|n| format!("key {n},{n}\n")).collect();
        std::fs::write(&path, lines).expect("it can be written to");
        // By the command, to the leaders of all partitions: of a batch that waits for the others' devices replication has a share,
        // of one that does not it has none.
        let mut leaders = Vec::new();
        let described = client.admin().describe_cluster(Some(&[TOPIC.to_owned()])).await.expect("it answers");
        leaders.extend(of_topic(&described, TOPIC).map(|partition| partition.leader.expect("it is led")));
        leaders.sort_unstable();
        leaders.dedup();
        assert!(leaders.len() > 1, "nobody has to be found: {leaders:?}");
        let produce = format!("produce {TOPIC} --file {} --key-field 1", path.display());
        for (acks, durability) in [("all", "all-in-sync-device"), ("1", "leader-device")] {
            let said = cluster.ok(&format!("{produce} --acks {acks} --receipts --explain --format json"));
            let receipts: Vec<Value> = (objects(&said).into_iter())
                .filter_map(|mut line| line.get_mut("receipt").map(Value::take))
                .collect();
            assert_eq!(receipts.len(), LINES, "{said}");
            for receipt in &receipts {
                assert_eq!(receipt["durability"], durability, "{receipt}");
                let part = |name: &str| receipt["anatomy"][name].as_u64().expect("it is a number");
                assert_eq!(part("replicate_ns") > 0, acks == "all", "{receipt}");
                assert!(part("device_ns") > 0, "{receipt}");
                let brokers = ["receive_ns", "core_hop_ns", "append_ns", "device_ns", "replicate_ns", "acknowledge_ns"];
                let sum: u64 = brokers.map(part).iter().sum();
                assert!(sum <= part("round_trip_ns"), "{receipt}");
            }
        }
        let config = ProducerConfig { acks: Acks::All, explain: true, ..ProducerConfig::default() };
        let producer = client.producer(config.clone());
        let record = |value: &'static str| ProducerRecord::new(TOPIC, value).to_partition(0);
        let receipt = producer.send(record("kept")).await.expect("it is taken").await.expect("it is acknowledged");
        assert_eq!(receipt.durability, Durability::AllInSyncDevice);
        let anatomy = receipt.anatomy.expect("it was asked for").broker;
        assert!(anatomy.replicate_ns > 0 && anatomy.device_ns > 0, "{anatomy:?}");

        // One of three is gone: what is sent is refused, and tried again until the time is up, or enough are back.
        cluster.kill(3);
        until(&client, "two are in sync", |cluster| {
            let mut partitions = of_topic(cluster, TOPIC);
            partitions.all(|partition| partition.leader.is_some() && partition.in_sync() == 2)
        })
        .await;
        let (is_ok, said) = cluster.run(&format!("{produce} --set delivery.timeout.ms=1500"));
        assert!(!is_ok && said.contains("NOT_ENOUGH_REPLICAS") && said.contains("and not written"), "{said}");
        let hurried = ProducerConfig { delivery_timeout: Duration::from_millis(500), ..config };
        let hurried = client.producer(hurried).send(record("too early")).await.expect("it is taken").await;
        let error = hurried.expect_err("there are not enough");
        assert!(matches!(error, ProduceError::TimedOut { outcome_unknown: false, .. }), "{error}");
        let mut patient = producer.send(record("late")).await.expect("it is taken");
        let waited = tokio::time::timeout(Duration::from_millis(300), &mut patient).await;
        assert!(waited.is_err(), "there are not enough: {waited:?}");
        cluster.start(3);
        let late = tokio::time::timeout(DEADLINE, patient).await.expect("enough are back");
        assert_eq!(late.expect("it is acknowledged").offset, receipt.offset + 1, "nothing of what was refused is there");
        producer.close().await.expect("the brokers are there");
    });
}
