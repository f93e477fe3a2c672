//! A cluster that grows, shrinks and changes while it serves: nothing is lost, nothing is there twice, and who produces
//! and consumes sees no error.
//!
//! Everything is done by the commands that a person uses, under producers that want every acknowledgement from the whole
//! in-sync set and a consumer that follows. What is measured and not judged is how long nothing was acknowledged.

use crate::DEADLINE;
use crate::brokers::{Cluster, of_topic, run, until};
use crate::faults::{read_log, whole};
use ringlog_client::{
    Acks, Client, ClientConfig, ConsumerConfig, NewTopic, PartitionReplicas, ProducerConfig, ProducerRecord,
    StartFrom,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TOPIC: &str = "grows";
/// To begin with.
const PARTITIONS: u32 = 4;
/// Records that are waited for together.
const TOGETHER: usize = 20;

/// What the load was told.
#[derive(Default)]
struct Told {
    /// When, partition, offset, value; as it came.
    acknowledged: Mutex<Vec<(Instant, u32, u64, String)>>,
    /// What the consumer has read.
    consumed: Mutex<Vec<(u32, u64, String)>>,
    /// What anybody was refused.
    errors: Mutex<Vec<String>>,
    partitions: AtomicU32,
    stop: AtomicBool,
    /// The producer has been answered for everything.
    produced: AtomicBool,
}

/// A producer and a consumer that go on until they are stopped.
struct Load {
    told: Arc<Told>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(brokers: &str) -> Self {
        let told = Arc::new(Told::default());
        told.partitions.store(PARTITIONS, Ordering::Relaxed);
        let on_its_own = |work: AsyncWork| {
            let (brokers, told) = (brokers.to_owned(), told.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let mut config = ClientConfig::new(brokers).expect("addresses");
                    config.request_timeout = Duration::from_secs(2);
                    let client = Client::connect(config).await.expect("a broker is there");
                    match work {
                        AsyncWork::Produce => produce(&client, &told).await,
                        AsyncWork::Consume => consume(&client, &told).await,
                    }
                });
            })
        };
        let threads = vec![on_its_own(AsyncWork::Produce), on_its_own(AsyncWork::Consume)];
        Self { told, threads }
    }

    /// Waits for acknowledgements of what was sent from now on.
    async fn goes_on(&self) {
        let limit = Instant::now() + DEADLINE;
        let count = || self.told.acknowledged.lock().unwrap().len();
        let enough = count() + 3 * TOGETHER;
        while count() < enough {
            assert!(
                Instant::now() < limit,
                "nothing is acknowledged: {:?}",
                self.told.errors.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Says how long nothing was acknowledged since `from`.
    fn silence(&self, what: &str, from: Instant) {
        let told = self.told.acknowledged.lock().unwrap();
        let mut longest = Duration::ZERO;
        for pair in told.windows(2).filter(|pair| pair[1].0 > from) {
            longest = longest.max(pair[1].0 - pair[0].0);
        }
        let (took, longest) = (from.elapsed().as_millis(), longest.as_millis());
        println!("{what}: {took} ms, nothing acknowledged for {longest} ms at most");
    }

    /// Stops, and judges.
    async fn finish(self, client: &Client) {
        self.told.stop.store(true, Ordering::Relaxed);
        let partitions = self.told.partitions.load(Ordering::Relaxed);
        let acknowledged = self.threads.into_iter().try_for_each(JoinHandle::join);
        acknowledged.expect("the load panicked");
        let log = read_log(client, TOPIC, partitions).await;
        let errors = self.told.errors.lock().unwrap();
        assert!(errors.is_empty(), "clients saw errors: {errors:#?}");
        let acknowledged = self.told.acknowledged.lock().unwrap();
        let consumed = self.told.consumed.lock().unwrap();
        for (partition, offset, value) in acknowledged
            .iter()
            .map(|(_, p, o, v)| (p, o, v))
            .chain(consumed.iter().map(|(p, o, v)| (p, o, v)))
        {
            let found = log[*partition as usize].get(*offset as usize);
            assert_eq!(found, Some(value), "{partition} at {offset}");
        }
        // Everything was acknowledged, so that there is nothing else, and each once.
        let all: Vec<&String> = log.iter().flatten().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "something is there twice");
        assert_eq!(all.len(), acknowledged.len());
        for partition in &log {
            let numbers: Vec<u64> = partition.iter().map(|value| value.parse().expect("a number")).collect();
            assert!(numbers.is_sorted(), "order is lost");
        }
        let followed: usize = log[..PARTITIONS as usize].iter().map(Vec::len).sum();
        assert_eq!(consumed.len(), followed, "the consumer has seen all of what it follows, once");
        println!("{} acknowledged and there once, {} consumed in order", all.len(), consumed.len());
    }
}

enum AsyncWork {
    Produce,
    Consume,
}

async fn produce(client: &Client, told: &Told) {
    let producer = client.producer(ProducerConfig { acks: Acks::All, ..ProducerConfig::default() });
    let mut number = 0u64;
    while !told.stop.load(Ordering::Relaxed) {
        let mut pending = Vec::with_capacity(TOGETHER);
        for _ in 0..TOGETHER {
            let partition = (number % u64::from(told.partitions.load(Ordering::Relaxed))) as u32;
            let record = ProducerRecord::new(TOPIC, number.to_string()).to_partition(partition);
            match producer.send(record).await {
                Ok(delivery) => pending.push((number, delivery)),
                Err(error) => told.errors.lock().unwrap().push(format!("{number} is not taken: {error}")),
            }
            number += 1;
        }
        for (number, delivery) in pending {
            match delivery.await {
                Ok(receipt) => told.acknowledged.lock().unwrap().push((
                    Instant::now(),
                    receipt.partition,
                    receipt.offset,
                    number.to_string(),
                )),
                Err(error) => told.errors.lock().unwrap().push(format!("{number}: {error}")),
            }
        }
    }
    producer.close().await.expect("the brokers are there");
    told.produced.store(true, Ordering::Relaxed);
}

/// Reads what is there and what comes, until everything acknowledged has been seen.
async fn consume(client: &Client, told: &Told) {
    let mut consumer = client.consumer(ConsumerConfig::default());
    let all: Vec<_> = (0..PARTITIONS).map(|partition| (partition, StartFrom::Earliest)).collect();
    consumer.assign(TOPIC, &all).await.expect("it is there");
    let limit = Instant::now() + 4 * DEADLINE;
    loop {
        if told.produced.load(Ordering::Relaxed) {
            let acknowledged = told.acknowledged.lock().unwrap();
            let followed = acknowledged.iter().filter(|(_, partition, ..)| *partition < PARTITIONS).count();
            if told.consumed.lock().unwrap().len() >= followed {
                return;
            }
        }
        assert!(Instant::now() < limit, "the consumer does not get to the end");
        match tokio::time::timeout(Duration::from_millis(50), consumer.next()).await {
            Ok(Some(Ok(record))) => {
                let value = String::from_utf8_lossy(&record.value.expect("all have one")).into_owned();
                told.consumed.lock().unwrap().push((record.partition, record.offset, value));
            }
            Ok(Some(Err(error))) => told.errors.lock().unwrap().push(format!("consuming: {error}")),
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

async fn create_topic(client: &Client, replication_factor: u32) {
    let topic = NewTopic { partitions: PARTITIONS, replication_factor, ..NewTopic::named(TOPIC) };
    client.admin().create_topic(&topic).await.expect("there are enough brokers");
}

/// The topic in as many copies on so many brokers, and a load that goes on.
async fn under_load(cluster: &Cluster, brokers: usize, replication_factor: u32) -> (Client, Load) {
    let client = cluster.connect().await;
    whole(&client, brokers).await;
    create_topic(&client, replication_factor).await;
    whole(&client, brokers).await;
    let load = Load::start(&cluster.addresses());
    load.goes_on().await;
    (client, load)
}

/// Brokers that keep partitions of the topic, each once.
async fn keepers(client: &Client) -> BTreeSet<u32> {
    let cluster = client.admin().describe_cluster(None).await.expect("it answers");
    of_topic(&cluster, TOPIC).flat_map(|one| one.replicas.iter().map(|replica| replica.broker)).collect()
}

/// One broker becomes three and four, with as many copies; then the first one goes.
#[test]
fn one_broker_grows_to_four_and_the_first_one_goes() {
    run(async || {
        let mut cluster = Cluster::of(1);
        let (client, load) = under_load(&cluster, 1, 1).await;
        // Offsets of a group, which only this broker has.
        cluster.ok(&format!("group reset readers --topic {TOPIC} --to 3"));

        let began = Instant::now();
        let (second, third) = (cluster.grow(&[]), cluster.grow(&[]));
        whole(&client, 3).await;
        load.silence("two join", began);
        until(&client, "the offsets are on three brokers", |cluster| {
            of_topic(cluster, "__consumer_offsets").all(|one| one.in_sync() == 3)
        })
        .await;
        let said = cluster.ok("topic create by-default --partitions 2");
        assert!(said.contains("2 partitions, on 3 brokers each"), "{said}");

        let began = Instant::now();
        let said = cluster.ok(&format!("topic alter {TOPIC} --replication-factor 3"));
        assert!(said.contains("4 partitions"), "{said}");
        assert_eq!(keepers(&client).await, BTreeSet::from([1, second, third]));
        whole(&client, 3).await;
        load.goes_on().await;
        load.silence("three copies", began);

        let began = Instant::now();
        let fourth = cluster.grow(&[]);
        whole(&client, 4).await;
        cluster.ok(&format!("cluster add {fourth}"));
        assert!(keepers(&client).await.contains(&fourth));
        load.goes_on().await;
        load.silence("a fourth is added", began);

        let began = Instant::now();
        cluster.ok(&format!("topic alter {TOPIC} --partitions 6"));
        until(&client, "six partitions", |cluster| of_topic(cluster, TOPIC).count() == 6).await;
        load.told.partitions.store(6, Ordering::Relaxed);
        load.goes_on().await;
        load.silence("two more partitions", began);

        let began = Instant::now();
        cluster.ok("cluster drain 1");
        assert_eq!(keepers(&client).await, BTreeSet::from([second, third, fourth]));
        let (removed, said) = cluster.run("cluster remove 1");
        assert!(!removed && said.contains("stop it first"), "{said}");
        cluster.stop(1);
        cluster.ok("cluster remove 1");
        // Who has asked about nothing else knows no broker but the first.
        let client = cluster.connect().await;
        until(&client, "three brokers", |cluster| {
            cluster.brokers.iter().map(|broker| broker.id).eq([second, third, fourth])
        })
        .await;
        load.goes_on().await;
        load.silence("the first one goes", began);
        whole(&client, 3).await;
        let readers = client.admin().describe_group("readers").await.expect("it has a coordinator");
        let committed: Vec<_> = readers.offsets.iter().map(|one| (one.partition, one.offset)).collect();
        assert_eq!(committed, [0, 1, 2, 3].map(|partition| (partition, Some(3))));
        load.finish(&client).await;
    });
}

/// Three brokers on three racks and a fourth on one of theirs: a disk is replaced, partitions are moved and called back,
/// each broker is restarted as for an upgrade, and every partition is led by its preferred leader in the end.
#[test]
fn disks_brokers_and_leaders_change_and_clients_do_not_notice() {
    run(async || {
        let mut cluster = Cluster::default();
        for rack in ["red", "green", "blue"] {
            cluster.grow(&["--rack", rack]);
        }
        let (client, load) = under_load(&cluster, 3, 3).await;

        // As for an upgrade: one after the other, leaderships first.
        for id in 1..=3 {
            let began = Instant::now();
            cluster.ok(&format!("cluster drain {id} --leaders-only"));
            cluster.stop(id);
            cluster.start(id);
            cluster.ok(&format!("cluster undrain {id}"));
            whole(&client, 3).await;
            load.goes_on().await;
            load.silence(&format!("broker {id} is restarted"), began);
        }

        let began = Instant::now();
        cluster.ok("cluster elect");
        until(&client, "preferred leaders", |cluster| {
            cluster.partitions().all(|(_, one)| one.leader == one.preferred_leader())
        })
        .await;
        load.goes_on().await;
        load.silence("preferred leaders lead", began);

        let began = Instant::now();
        cluster.stop(3);
        cluster.replace_disk(3);
        cluster.start(3);
        whole(&client, 3).await;
        load.goes_on().await;
        load.silence("a disk is replaced", began);

        // A new host takes over the number of an old one.
        let began = Instant::now();
        cluster.stop(2);
        cluster.replace_disk(2);
        cluster.move_elsewhere(2);
        cluster.start(2);
        whole(&client, 3).await;
        load.goes_on().await;
        load.silence("a broker is replaced", began);

        let began = Instant::now();
        let fourth = cluster.grow(&["--rack", "blue"]);
        whole(&client, 4).await;
        // Two of one rack never keep the same partition, as long as there are others.
        cluster.ok(&format!("cluster add {fourth}"));
        let described = client.admin().describe_cluster(None).await.expect("it answers");
        let mut moved = 0;
        for partition in of_topic(&described, TOPIC) {
            let keeps = |id: u32| partition.replicas.iter().any(|replica| replica.broker == id);
            assert!(!(keeps(3) && keeps(fourth)), "{partition:?}");
            moved += u32::from(keeps(fourth));
        }
        assert!(moved > 0, "{described:#?}");
        load.goes_on().await;
        load.silence("a fourth on a known rack", began);

        let began = Instant::now();
        cluster.ok(&format!("cluster move {TOPIC}:0 --to 2,1,3"));
        cluster.ok("cluster rebalance");
        cluster.ok("cluster elect");
        load.goes_on().await;
        load.silence("a move and a rebalance", began);

        let began = Instant::now();
        cluster.ok(&format!("topic alter {TOPIC} --replication-factor 2"));
        until(&client, "two copies", |cluster| {
            of_topic(cluster, TOPIC).all(|one| one.replicas.len() == 2 && !one.is_moving())
        })
        .await;
        load.goes_on().await;
        load.silence("two copies", began);
        load.finish(&client).await;
    });
}

/// A move that may copy next to nothing per second does not end before the bound is lifted, and holds up nobody. It can be
/// given up meanwhile.
#[test]
fn a_throttled_move_waits_and_the_others_do_not() {
    run(async || {
        let mut cluster = Cluster::of(2);
        let client = cluster.connect().await;
        whole(&client, 2).await;
        let topic = NewTopic { partitions: 1, replication_factor: 1, ..NewTopic::named("old") };
        client.admin().create_topic(&topic).await.expect("there are brokers");
        create_topic(&client, 2).await;
        let producer = client.producer(ProducerConfig::default());
        let mut sent = Vec::new();
        for number in 0..64 {
            let value = format!("{number}-{}", "x".repeat(100_000));
            sent.push(producer.send(ProducerRecord::new("old", value)).await.expect("it is taken"));
        }
        for delivery in sent {
            delivery.await.expect("it is acknowledged");
        }
        producer.close().await.expect("the brokers are there");
        let described = client.admin().describe_cluster(None).await.expect("it answers");
        let from = of_topic(&described, "old").next().and_then(|one| one.leader).expect("it has a leader");
        let to = 3 - from;
        // What is in memory is sent as what is new is: the old is to be read from the device.
        cluster.stop(from);
        cluster.start(from);
        whole(&client, 2).await;
        let load = Load::start(&cluster.addresses());
        load.goes_on().await;

        cluster.ok(&format!("cluster move old:0 --to {to} --throttle 1kB --no-wait"));
        let status = cluster.ok("cluster status");
        assert!(status.contains("1.0 kB/s") && status.contains("1 moving"), "{status}");
        // Others go on, as long as this takes.
        for _ in 0..5 {
            load.goes_on().await;
            let described = client.admin().describe_cluster(None).await.expect("it answers");
            assert!(of_topic(&described, "old").all(PartitionReplicas::is_moving), "{described:#?}");
        }
        // Given up, everything is as it was; and it can be begun anew.
        let said = cluster.ok("cluster move old:0 --cancel");
        assert!(said.contains("as before"), "{said}");
        let described = client.admin().describe_cluster(None).await.expect("it answers");
        let kept = of_topic(&described, "old").next().expect("it is there");
        assert!(!kept.is_moving() && kept.replicas.len() == 1 && kept.leader == Some(from), "{kept:?}");
        cluster.ok(&format!("cluster move old:0 --to {to} --no-wait"));
        assert!(cluster.ok("cluster status").contains("1 moving"));
        let said = cluster.ok("cluster throttle none");
        assert!(said.contains("as fast as there is room"), "{said}");
        until(&client, "the move is done", |cluster| {
            of_topic(cluster, "old").all(|one| !one.is_moving() && one.leader == Some(to))
        })
        .await;
        let log = read_log(&client, "old", 1).await;
        let numbers: Vec<_> = log[0].iter().map(|value| value.split('-').next().expect("a number")).collect();
        assert_eq!(numbers, (0..64).map(|number| number.to_string()).collect::<Vec<_>>());
        load.finish(&client).await;
    });
}

/// Where a partition is at home depends on how many shards a broker has. A member of a cluster that starts with another
/// number opens its partitions there before the cluster knows of it.
#[test]
fn a_member_may_start_with_another_number_of_shards() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let (client, load) = under_load(&cluster, 3, 3).await;
        for shards in [1, 2, 3] {
            cluster.stop(3);
            load.goes_on().await;
            cluster.start_with_shards(3, shards);
            whole(&client, 3).await;
            // It serves everything, from where the clients are sent.
            for partition in 0..PARTITIONS {
                cluster.ok(&format!("cluster move {TOPIC}:{partition} --to 3,1,2"));
            }
            cluster.ok("cluster elect");
            until(&client, "led by the member", |cluster| {
                of_topic(cluster, TOPIC).all(|partition| partition.leader == Some(3))
            })
            .await;
            load.goes_on().await;
            let described = client.admin().describe_cluster(None).await.expect("it answers");
            assert_eq!(described.broker(3).map(|broker| broker.shards), Some(shards as u32));
            // Nothing is in the wrong place, and nothing was taken for a stranger's.
            for id in 1..=3 {
                let mut notices = cluster.notices(id).await;
                // That the host was busy says nothing of it.
                notices.retain(|notice| !notice.starts_with("STALL: "));
                assert!(notices.is_empty(), "broker {id}: {notices:?}");
            }
        }
        load.finish(&client).await;
    });
}

/// The replicas of a partition move between the cores of their brokers, the leader's and a follower's.
#[test]
fn homes_of_replicas_move_and_clients_do_not_notice() {
    run(async || {
        let cluster = Cluster::of(3);
        let (client, load) = under_load(&cluster, 3, 3).await;
        for turn in 0..2 {
            let described = client.admin().describe_cluster(None).await.expect("it answers");
            let partition = of_topic(&described, TOPIC).next().expect("it is there").clone();
            let leader = partition.leader.expect("it is led");
            let follower = partition.replicas.iter().find(|replica| replica.broker != leader);
            let shard = |broker: u32| {
                partition.replicas.iter().find(|one| one.broker == broker).expect("has it").shard
            };
            for broker in [leader, follower.expect("there are three").broker] {
                let (began, core) = (Instant::now(), 1 - shard(broker));
                let named = if broker == leader { String::new() } else { format!(" --broker {broker}") };
                let said = cluster.ok(&format!("cluster move-home {TOPIC}:0 --core {core}{named}"));
                assert!(said.contains("took nothing for"), "{said}");
                until(&client, "it is there, and in sync", |cluster| {
                    let partition = of_topic(cluster, TOPIC).next().expect("it is there");
                    let moved = partition.replicas.iter().find(|one| one.broker == broker);
                    partition.in_sync() == 3 && moved.is_some_and(|moved| moved.shard == core)
                })
                .await;
                load.goes_on().await;
                let what = if broker == leader { "the leader's home" } else { "a follower's home" };
                load.silence(&format!("{what}, turn {turn}"), began);
            }
        }
        load.finish(&client).await;
    });
}
