//! Most of those who vote on the metadata are gone: partitions and groups whose brokers are there go on with the sets that
//! they have, nothing can be changed, and everybody says so.

use crate::DEADLINE;
use crate::brokers::{Cluster, producer, run, until};
use crate::faults::{read_log, whole};
use crate::trouble::until_votes;
use ringlog_client::{
    Client, ClientConfig, ClientError, ErrorCode, GroupConfig, GroupConsumer, NewTopic, Producer,
    ProducerRecord, Reassignment,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const TOPIC: &str = "goes-on";
const PARTITIONS: u32 = 3;
const GROUP: &str = "goes-on-too";
/// Records of one go.
const RECORDS: usize = 60;

/// A producer and a member of a group, and what they have done.
struct Load {
    producer: Producer,
    member: GroupConsumer,
    sent: Vec<Vec<String>>,
    committed: BTreeMap<u32, u64>,
}

impl Load {
    /// Sends records, each acknowledged by all that count; reads them, and commits that.
    async fn go(&mut self) {
        let mut pending = Vec::new();
        for number in 0..RECORDS {
            let partition = number % self.sent.len();
            let value = format!("{partition}-{}", self.sent[partition].len());
            let record = ProducerRecord::new(TOPIC, value.clone()).to_partition(partition as u32);
            pending.push(self.producer.send(record).await.expect("it is taken"));
            self.sent[partition].push(value);
        }
        for delivery in pending {
            delivery.await.expect("it is acknowledged");
        }
        let ends = |sent: &[Vec<String>]| sent.iter().map(|sent| sent.len() as u64).sum::<u64>();
        while self.committed.values().sum::<u64>() < ends(&self.sent) {
            let batch = tokio::time::timeout(DEADLINE, self.member.poll()).await.expect("it goes on");
            let batch = batch.expect("the log is sound");
            self.member.commit_batch(&batch).await.expect("its coordinator is there");
            self.committed.insert(batch.partition(), batch.end_offset());
        }
    }

    /// What the group's coordinator says is committed.
    async fn assert_committed(&self, client: &Client) {
        let group = client.admin().describe_group(GROUP).await.expect("its coordinator is there");
        let said = group.offsets.iter().filter_map(|one| Some((one.partition, one.offset?)));
        assert_eq!(said.collect::<BTreeMap<_, _>>(), self.committed);
    }
}

/// Waits until none of them knows who leads the metadata.
async fn until_nobody_leads(cluster: &Cluster, brokers: &[u32]) {
    let limit = Instant::now() + DEADLINE;
    let knows = |id: &u32| cluster.scrape(*id).sum("ringlog_metadata_leader_known", &[]) > 0.0;
    while brokers.iter().any(knows) {
        assert!(Instant::now() < limit, "somebody leads the metadata");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Changes of all kinds are refused, and say what is missing.
async fn nothing_changes(cluster: &Cluster) {
    // Longer than a broker looks for a majority, and not long enough to ask twice.
    let mut config = ClientConfig::new(cluster.addresses()).expect("addresses");
    config.request_timeout = Duration::from_secs(8);
    let admin = Client::connect(config).await.expect("a broker is there").admin();
    let new = NewTopic::named("another");
    let moves = [Reassignment { topic: TOPIC.to_owned(), partition: 0, replicas: vec![3, 4] }];
    let (created, drained, moved) = tokio::join!(
        admin.create_topic(&new),
        admin.drain_broker(3, true),
        admin.reassign_partitions(&moves)
    );
    let refused = [created.map(drop), drained, moved];
    for refused in refused {
        let error: ClientError = refused.expect_err("nobody can decide that");
        assert_eq!(error.code(), Some(ErrorCode::MetadataUnavailable), "{error}");
        let said = error.to_string();
        assert!(said.contains("a majority of the brokers 1, 2, 3 must run and reach each other"), "{said}");
    }
}

#[test]
fn replicas_and_groups_go_on_without_a_majority_of_the_metadata() {
    run(async || {
        let mut cluster = Cluster::with(5, &["--http", "127.0.0.1:0"]);
        let client = cluster.connect().await;
        whole(&client, 5).await;
        for id in 1..=5 {
            until_votes(&cluster, id, 3, 2).await;
        }
        let votes = |voter: bool| {
            let lines = cluster.json("cluster status");
            let found = lines.iter().filter(|line| line["kind"] == "broker" && line["voter"] == voter);
            found.map(|line| line["id"].as_u64().expect("a number")).collect::<Vec<_>>()
        };
        assert_eq!((votes(true), votes(false)), (vec![1, 2, 3], vec![4, 5]));
        assert_eq!(cluster.ok("cluster status").matches("observer").count(), 2);

        // One who votes and two who do not keep everything but one partition.
        for id in [1, 2] {
            cluster.ok(&format!("cluster drain {id}"));
        }
        cluster.ok(&format!("topic create {TOPIC} --partitions {PARTITIONS} --replication-factor 3"));
        let config = GroupConfig::new(GROUP).with_topic(TOPIC).with_manual_commit();
        let member = client.group_consumer(config).expect("it has a topic");
        let sent = vec![Vec::new(); PARTITIONS as usize];
        let mut load = Load { producer: producer(&client), member, sent, committed: BTreeMap::new() };
        load.go().await;
        for id in [1, 2] {
            cluster.ok(&format!("cluster undrain {id}"));
        }
        cluster.ok("topic create left-behind --partitions 1 --replication-factor 1");
        cluster.ok("cluster move left-behind:0 --to 1");
        whole(&client, 5).await;

        cluster.kill(1);
        cluster.kill(2);
        load.go().await;
        until_nobody_leads(&cluster, &[3]).await;
        tokio::join!(load.go(), nothing_changes(&cluster));
        load.go().await;
        load.assert_committed(&client).await;
        let status = cluster.ok("cluster status");
        assert!(status.contains("led by nobody") || status.contains("this may be old"), "{status}");
        // The sets are as they were, and one partition's leader cannot say how far it is.
        let lines = cluster.json("cluster describe");
        let partitions: Vec<_> = lines.iter().filter(|line| line["kind"] == "partition").collect();
        let of =
            |topic: &str| partitions.iter().filter(move |line| line["topic"] == topic).collect::<Vec<_>>();
        assert_eq!(of("left-behind")[0]["lags"], serde_json::json!([]));
        assert_eq!(of(TOPIC).len(), PARTITIONS as usize);
        for partition in of(TOPIC) {
            let replicas = partition["replicas"].as_array().expect("there are some");
            assert!(replicas.len() == 3 && replicas.iter().all(|one| one["in_sync"] == true), "{partition}");
        }

        cluster.start(1);
        cluster.start(2);
        whole(&client, 5).await;
        until(&client, "somebody leads the metadata", |cluster| cluster.controller.is_some()).await;
        client.admin().create_topic(&NewTopic::named("a-third")).await.expect("the majority is back");
        load.go().await;
        load.assert_committed(&client).await;
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, load.sent);
    });
}
