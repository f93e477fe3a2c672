//! Three brokers as processes on this host: one is killed, one loses its disk, and nothing acknowledged is lost.
//!
//! Needs no rights: the ports are the system's choice. What only a network of their own can do is in [`super::faults`].

use crate::DEADLINE;
use crate::faults::{read_log, whole};
use crate::process::{Broker, Serve};
use ringlog_client::{
    Acks, Client, ClientConfig, ConsumerConfig, NewTopic, Producer, ProducerConfig, ProducerRecord, StartFrom,
};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TOPIC: &str = "kept-three-times";
const PARTITIONS: u32 = 3;
/// Records of one go.
const RECORDS: usize = 300;

pub struct Cluster {
    directories: Vec<tempfile::TempDir>,
    brokers: Vec<Option<Broker>>,
    addresses: Vec<SocketAddr>,
    /// Further words of every broker's command.
    words: Vec<String>,
}

impl Cluster {
    fn start(words: &[&str]) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let mut cluster = Self { directories: Vec::new(), brokers: Vec::new(), addresses: Vec::new(), words };
        for at in 0..3 {
            let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
            cluster.directories.push(data);
            let broker = cluster.serve(at, any);
            cluster.addresses.push(broker.address);
            cluster.brokers.push(Some(broker));
        }
        cluster
    }

    fn serve(&self, at: usize, listen: SocketAddr) -> Broker {
        // Any broker that is known will do.
        let join = self.addresses.iter().enumerate().find(|(other, _)| *other != at);
        let join = join.map(|(_, address)| address.to_string());
        let serve = Serve::new(self.directories[at].path()).shards(2).listen(listen);
        let words = self.words.clone();
        let serve = serve.prepared(move |command| {
            command.args(words);
            command.args(["--broker-id", &(at + 1).to_string()]);
            if let Some(join) = join {
                command.args(["--join", &join]);
            }
        });
        serve.start()
    }

    /// The process of one that runs.
    pub fn process(&self, at: usize) -> u32 {
        self.brokers[at].as_ref().expect("it runs").id()
    }

    /// Where a broker keeps everything.
    pub fn data(&self, at: usize) -> &Path {
        self.directories[at].path()
    }

    /// An orderly end of one.
    pub fn stop_one(&mut self, at: usize) {
        self.brokers[at].take().expect("it runs").stop();
    }

    /// An orderly end of all that run, at once: the last one alone would wait for the others.
    pub fn stop(&mut self) {
        let running: Vec<Broker> = self.brokers.iter_mut().filter_map(Option::take).collect();
        std::thread::scope(|scope| {
            for broker in running {
                scope.spawn(move || broker.stop());
            }
        });
    }

    pub fn kill(&mut self, at: usize) {
        drop(self.brokers[at].take().expect("it runs").kill());
    }

    pub fn restart(&mut self, at: usize) {
        self.brokers[at] = Some(self.serve(at, self.addresses[at]));
    }

    fn addresses(&self) -> String {
        self.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }
}

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

async fn leader(client: &Client, partition: u32) -> usize {
    leader_of(client, TOPIC, partition).await
}

/// The place of the broker that leads a partition.
pub async fn leader_of(client: &Client, topic: &str, partition: u32) -> usize {
    let cluster = client.admin().describe_cluster(Some(&[topic.to_owned()])).await.expect("it answers");
    let found = cluster.partitions().find(|(_, entry)| entry.partition == partition);
    found.and_then(|(_, entry)| entry.leader).expect("it has a leader") as usize - 1
}

/// What `ringlog cluster status --format json` says, line by line.
pub fn status(cluster: &Cluster) -> Vec<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
    command.args(["cluster", "status", "--format", "json", "--brokers", &cluster.addresses()]);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("it is text");
    text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

/// How far one replica is, as `ringlog cluster describe --format json` says it.
#[derive(Debug)]
struct Lag {
    broker: u64,
    records: u64,
    ms: u64,
    follows: bool,
}

/// Of all partitions' replicas but the leaders'.
fn lags(cluster: &Cluster) -> Vec<Lag> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
    command.args([
        "cluster",
        "describe",
        "--topic",
        TOPIC,
        "--format",
        "json",
        "--brokers",
        &cluster.addresses(),
    ]);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lags = Vec::new();
    for line in String::from_utf8(output.stdout).expect("it is text").lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("it is JSON");
        for lag in line["lags"].as_array().into_iter().flatten() {
            let number = |name: &str| lag[name].as_u64().expect("it is a number");
            let (broker, records, ms) = (number("broker"), number("lag_records"), number("lag_ms"));
            lags.push(Lag { broker, records, ms, follows: lag["connected"] == true });
        }
    }
    lags
}

pub async fn connect(cluster: &Cluster) -> Client {
    let mut config = ClientConfig::new(cluster.addresses()).expect("addresses");
    config.request_timeout = Duration::from_secs(2);
    Client::connect(config).await.expect("a broker is there")
}

fn run(test: impl AsyncFnOnce(Cluster)) {
    run_with(&[], test);
}

/// A test over three brokers that are started with these words, too.
pub fn run_with(words: &[&str], test: impl AsyncFnOnce(Cluster)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(2 * DEADLINE, test(Cluster::start(words))).await.expect("it does not end");
    });
}

async fn with_topic(cluster: &Cluster) -> Client {
    let client = connect(cluster).await;
    whole(&client, 3).await;
    let topic = NewTopic { partitions: PARTITIONS, replication_factor: 3, ..NewTopic::named(TOPIC) };
    client.admin().create_topic(&topic).await.expect("there are three brokers");
    whole(&client, 3).await;
    client
}

pub fn producer(client: &Client) -> Producer {
    client.producer(ProducerConfig { acks: Acks::All, ..ProducerConfig::default() })
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    run(async |mut cluster| {
        let client = with_topic(&cluster).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new(); PARTITIONS as usize];
        produce(&producer, &mut sent).await;
        let lines = status(&cluster);
        assert_eq!(
            lines.iter().filter(|line| line["kind"] == "broker" && line["fenced"] == false).count(),
            3
        );
        assert_eq!(lines.iter().filter(|line| line["voter"] == true).count(), 3, "{lines:?}");
        let victim = leader(&client, 0).await;
        // What all have acknowledged is nobody's lag.
        let known = lags(&cluster);
        assert_eq!(known.len(), 2 * PARTITIONS as usize, "{known:?}");
        assert!(known.iter().all(|lag| lag.records == 0 && lag.ms == 0 && lag.follows), "{known:?}");
        cluster.kill(victim);
        produce(&producer, &mut sent).await;
        assert_ne!(leader(&client, 0).await, victim);
        for lag in lags(&cluster) {
            let is_away = lag.broker == victim as u64 + 1;
            assert_eq!((lag.records > 0, lag.follows), (is_away, !is_away), "{lag:?}");
        }
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, sent);
        cluster.restart(victim);
        whole(&client, 3).await;
        produce(&producer, &mut sent).await;
        // Whoever leads then has been a follower: the next to go takes nothing along either.
        let victim = leader(&client, 0).await;
        cluster.kill(victim);
        produce(&producer, &mut sent).await;
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, sent);
        cluster.restart(victim);
        whole(&client, 3).await;
        producer.close().await.expect("the brokers are there");
    });
}

#[test]
fn a_broker_that_lost_its_disk_is_filled_again() {
    run(async |mut cluster| {
        let client = with_topic(&cluster).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new(); PARTITIONS as usize];
        produce(&producer, &mut sent).await;
        for _ in 0..2 {
            let victim = leader(&client, 0).await;
            cluster.kill(victim);
            std::fs::remove_dir_all(cluster.directories[victim].path()).expect("nobody uses it");
            produce(&producer, &mut sent).await;
            cluster.restart(victim);
            whole(&client, 3).await;
        }
        // Two of three disks have been lost, one after the other: all is there.
        assert_eq!(read_log(&client, TOPIC, PARTITIONS).await, sent);
        producer.close().await.expect("the brokers are there");
    });
}

#[test]
fn without_a_majority_of_the_metadata_data_is_served() {
    run(async |mut cluster| {
        let client = connect(&cluster).await;
        whole(&client, 3).await;
        let topic = NewTopic { partitions: PARTITIONS, replication_factor: 1, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        whole(&client, 3).await;
        let survivor = leader(&client, 0).await;
        let producer = producer(&client);
        let others = (0..3).filter(|at| *at != survivor);
        for number in 0..RECORDS {
            // Who begins to produce needs a number for itself, which the metadata gives.
            if number == 1 {
                others.clone().for_each(|at| cluster.kill(at));
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
        others.for_each(|at| cluster.restart(at));
        whole(&client, 3).await;
        // What was refused with an unknown outcome may be there by now.
        client.admin().create_topic(&NewTopic::named("a-third")).await.expect("the majority is back");
        producer.close().await.expect("the brokers are there");
    });
}
