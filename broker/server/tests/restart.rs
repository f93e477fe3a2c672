//! Restarts of an embedded broker: what was acknowledged is there again, whatever changed in between.

use ringlog_client::{
    Client, ClientConfig, Consumer, ConsumerConfig, HomeMove, NewTopic, ProducerConfig, ProducerRecord,
    StartFrom,
};
use server::{Broker, BrokerConfig};
use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 4;

fn start(data: &Path, shards: usize) -> Broker {
    let mut config = BrokerConfig::new(data, "127.0.0.1:0".parse().unwrap());
    config.shards = shards;
    Broker::start(config).unwrap()
}

async fn connect(broker: &Broker) -> Client {
    Client::connect(ClientConfig::new(broker.address().to_string()).unwrap()).await.unwrap()
}

async fn create_topic(client: &Client) {
    let topic = NewTopic { name: "t".into(), partitions: PARTITIONS, ..NewTopic::default() };
    client.admin().create_topic(&topic).await.unwrap();
}

/// Produces `records` records to every partition, each acknowledged.
async fn produce(client: &Client, life: usize, records: usize) {
    let producer = client.producer(ProducerConfig::default());
    let mut deliveries = Vec::new();
    for partition in 0..PARTITIONS {
        for record in 0..records {
            let text = format!("life {life} partition {partition} record {record}");
            let record = ProducerRecord::new("t", text.into_bytes()).to_partition(partition);
            deliveries.push(producer.send(record).await.unwrap());
        }
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
}

/// All values of a partition, in order, with their offsets checked to be without gaps.
async fn read(consumer: &mut Consumer, partition: u32, records: usize) -> Vec<String> {
    consumer.assign("t", &[(partition, StartFrom::Earliest)]).await.unwrap();
    let mut values = Vec::new();
    while values.len() < records {
        let batch = consumer.next_batch().await.unwrap().unwrap();
        for record in batch.records() {
            let record = record.unwrap();
            assert_eq!(record.offset, values.len() as u64, "partition {partition}");
            values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
        }
    }
    values
}

/// Runs one life of the broker per number of shards, and checks in each that the lives before are there.
fn check(shards: &[usize]) {
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let records = 50;
    for (life, &shards) in shards.iter().enumerate() {
        let broker = start(data.path(), shards);
        runtime.block_on(async {
            let client = connect(&broker).await;
            if life == 0 {
                create_topic(&client).await;
            }
            produce(&client, life, records).await;
            let mut consumer = client.consumer(ConsumerConfig::default());
            for partition in 0..PARTITIONS {
                let expected: Vec<String> = (0..=life)
                    .flat_map(|life| {
                        (0..records).map(move |n| format!("life {life} partition {partition} record {n}"))
                    })
                    .collect();
                assert_eq!(read(&mut consumer, partition, expected.len()).await, expected);
            }
            let notices = client.admin().status().await.unwrap().notices;
            assert!(notices.is_empty(), "{notices:?}");
        });
        broker.stop().unwrap();
    }
}

#[test]
fn the_same_number_of_shards() {
    check(&[2, 2, 2]);
}

/// Partitions change their shards, and checkpoints of an earlier arrangement must not be believed.
#[test]
fn another_number_of_shards() {
    check(&[2, 1, 2, 1, 3, 2]);
}

/// What was acknowledged last and has rotted while the broker was stopped is a loss that is told, also to the
/// shard that has never seen the partition: its offsets are not given again.
#[test]
fn another_number_of_shards_knows_what_was_acknowledged() {
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut ends = Vec::new();
    for (life, shards) in [2, 1, 2, 3].into_iter().enumerate() {
        let broker = start(data.path(), shards);
        runtime.block_on(async {
            let client = connect(&broker).await;
            if life == 0 {
                create_topic(&client).await;
            }
            let producer = client.producer(ProducerConfig::default());
            let mut bases = Vec::new();
            for partition in 0..PARTITIONS {
                let record = ProducerRecord::new("t", b"one".to_vec()).to_partition(partition);
                bases.push(producer.send(record).await.unwrap().await.unwrap().offset);
            }
            producer.close().await.unwrap();
            assert_eq!(bases, vec![life as u64; PARTITIONS as usize], "life {life}: offsets");
            ends = bases;
        });
        broker.stop().unwrap();
        wipe_newest_groups(&data.path().join("topics"));
    }
    assert_eq!(ends, vec![3; PARTITIONS as usize]);
}

/// Zeroes everything behind the first block of every segment.
fn wipe_newest_groups(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            wipe_newest_groups(&path);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let head = &bytes[..4096.min(bytes.len())];
            let wiped = [head, &vec![0; bytes.len() - head.len()]].concat();
            std::fs::write(&path, wiped).unwrap();
        }
    }
}

/// Copies a directory with everything in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Waits for what happens in the background; whether it did.
fn happens(what: impl Fn() -> bool) -> bool {
    let patience = Instant::now() + Duration::from_secs(20);
    while !what() && Instant::now() < patience {
        std::thread::yield_now();
    }
    what()
}

/// A crash comes after the command that deletes a topic and before its files are gone.
#[test]
fn what_a_deletion_left_behind_goes_and_what_is_unknown_stays() {
    for shards in [1, 3] {
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let kept = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (topics, saved) = (data.path().join("topics"), kept.path().join("saved"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let broker = start(data.path(), shards);
        runtime.block_on(async {
            let client = connect(&broker).await;
            create_topic(&client).await;
            produce(&client, 0, 20).await;
            copy(&topics, &saved);
            client.admin().delete_topic("t").await.unwrap();
        });
        assert!(happens(|| std::fs::read_dir(&topics).unwrap().count() == 0), "{shards}: it is not deleted");
        broker.stop().unwrap();

        copy(&saved, &topics);
        let strange = ["0000000000000000000000000000cafe/0.0", "0000000000000000000000000000cafe/odd", "odd"];
        strange.iter().for_each(|name| std::fs::create_dir_all(topics.join(name)).unwrap());
        let segment = topics.join(strange[0]).join("00000000000000000000.log");
        std::fs::write(&segment, "irreplaceable").unwrap();
        let broker = start(data.path(), shards);
        assert!(happens(|| std::fs::read_dir(&topics).unwrap().count() == 2), "{shards}: files are left");
        let notices = || {
            runtime.block_on(async { connect(&broker).await.admin().status().await.unwrap().notices.clone() })
        };
        assert!(happens(|| notices().len() == strange.len()), "{:?}", notices());
        for name in strange {
            let path = topics.join(name);
            let told = |notice: &&String| notice.contains(&format!("UNKNOWN: {} ", path.display()));
            assert_eq!(notices().iter().filter(told).count(), 1, "{shards}: {name}: {:?}", notices());
        }
        broker.stop().unwrap();
        assert_eq!(std::fs::read(&segment).unwrap(), b"irreplaceable");
    }
}

/// Topics that are deleted while their partitions move between cores leave nothing behind, whichever core has heard of
/// which change, and are made again under their names.
#[test]
fn what_is_deleted_while_it_moves_goes() {
    const SHARDS: u32 = 3;
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let topics = data.path().join("topics");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let broker = start(data.path(), SHARDS as usize);
    let (moved, notices) = runtime.block_on(async {
        let client = connect(&broker).await;
        let admin = client.admin();
        let id = admin.status().await.unwrap().broker;
        for turn in 0..25 {
            create_topic(&client).await;
            produce(&client, 0, 3).await;
            let move_one = &async |partition: u32, step: u32| {
                let shard = (turn + partition + step) % SHARDS;
                admin.move_home(id, &HomeMove { topic: "t".into(), partition, shard }).await
            };
            let done = &Cell::new(0);
            let moving = (0..PARTITIONS).map(|partition| async move {
                // Until there is nothing to be moved any more.
                for step in 0..6 {
                    match move_one(partition, step).await {
                        Ok(_) => done.set(done.get() + 1),
                        Err(_) => return,
                    }
                }
            });
            let deleting = async {
                while done.get() < turn % 8 {
                    tokio::task::yield_now().await;
                }
                admin.delete_topic("t").await.unwrap()
            };
            futures_util::join!(futures_util::future::join_all(moving), deleting);
        }
        let status = admin.status().await.unwrap();
        (status.counter("homes_taken_over_total").unwrap(), status.notices)
    });
    assert!(moved > 25, "{moved} moves");
    assert!(notices.iter().all(|notice| !notice.contains("files are not")), "{notices:?}");
    let empty = || std::fs::read_dir(&topics).unwrap().count() == 0;
    assert!(happens(empty), "{:?}", std::fs::read_dir(&topics).unwrap().collect::<Vec<_>>());
    broker.stop().unwrap();
}
