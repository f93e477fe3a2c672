//! Resident memory stays below what `limits.rs` says, with 1,000 partitions under load.
//!
//! The load wants more than there is: large batches in flight on many connections to all partitions,
//! consumers that read it all again from the disk, and ones that ask and never read.
//! `RINGLOG_MEMORY_SECONDS` sets for how long.

use crate::support::process::{Broker, Serve};
use crate::support::raw::{Raw, Target, fetch};
use crate::support::records::Maker;
use crate::support::{Directory, block_on, client, counter, create_topic, setting};
use logic::limits::{MIB, SHARD_MEMORY_BYTES_MAX};
use ringlog_client::reply::Reply;
use ringlog_client::request::{ProduceEntry, Request};
use ringlog_client::{Acks, Client, ConsumerConfig, StartFrom, TopicDescription};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 1000;
const PRODUCERS: u64 = 8;
const IN_FLIGHT: usize = 8;
const BATCH_VALUE_BYTES: usize = 500_000;
/// The process without a load: code, runtime, metadata, threads.
const BASE_BYTES: u64 = 96 * MIB as u64;
/// The state of one partition, its open file included.
const PARTITION_BYTES: u64 = 64 << 10;

async fn produce(
    client: Client,
    topic: Rc<TopicDescription>,
    id: u64,
    until: Instant,
    sent_bytes: Rc<Cell<u64>>,
) {
    let connection = client.open_connection(0, 0).await.expect("a connection");
    let mut maker = Maker::new(id, 1);
    let batches: Vec<_> = (0..4).map(|_| maker.batch(1, BATCH_VALUE_BYTES).batch).collect();
    let mut replies = VecDeque::new();
    while Instant::now() < until {
        while replies.len() < IN_FLIGHT {
            let place = topic.partitions[maker.random().usize(..topic.partitions.len())];
            let batch = batches[maker.random().usize(..batches.len())].clone();
            sent_bytes.set(sent_bytes.get() + batch.len() as u64);
            let (partition, leader_epoch) = (place.partition, place.leader_epoch);
            let entry = ProduceEntry { topic: topic.id, partition, leader_epoch, batch };
            let request = Request::Produce { acks: Acks::All, explain: false, entries: vec![entry] };
            replies.push_back(connection.send(request, Duration::from_secs(60)).expect("it is open"));
        }
        let Some(reply) = replies.pop_front() else { return };
        let response = reply.wait().await.expect("it answers").into_result().expect("not refused as a whole");
        let Reply::Produce { results, .. } = response else { panic!("no produce") };
        // Refused because a budget is full is what the budget is for.
        let refused = results[0].error.filter(|code| !code.is_retriable());
        assert_eq!(refused, None);
    }
}

async fn consume(client: Client, until: Instant) {
    let mut consumer = client.consumer(ConsumerConfig::default());
    while Instant::now() < until {
        consumer.assign_all("many", StartFrom::Earliest).await.expect("the topic is there");
        let deadline = tokio::time::Instant::from_std(until);
        let mut bytes = 0;
        while let Ok(Some(fetched)) = tokio::time::timeout_at(deadline, consumer.next_batch()).await {
            bytes += fetched.expect("it is served").bytes().len();
            // From the start again: what is behind the tail comes from the disk.
            if bytes > 64 * MIB {
                break;
            }
        }
    }
}

/// Asks for much, at many places, and reads nothing.
fn ask_and_never_read(broker: &Broker, topic: &TopicDescription) -> Vec<Raw> {
    (0..20)
        .map(|_| {
            let mut raw = Raw::hello(broker.address, -1);
            raw.stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a socket");
            for (id, place) in (0..).zip(&topic.partitions) {
                let target =
                    Target { topic: topic.id.0, partition: place.partition, epoch: place.leader_epoch };
                // Muted, it does not listen any more.
                if raw.send(&fetch(id, target, 0, 0, 16 << 20)).is_err() {
                    break;
                }
            }
            raw
        })
        .collect()
}

#[test]
fn resident_memory_is_bounded() {
    let seconds = setting("RINGLOG_MEMORY_SECONDS", 6);
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).start();
    let started_kib = broker.memory_kib("VmRSS");
    let topic = block_on(async {
        let client = client(broker.address).await;
        create_topic(&client, "many", PARTITIONS, &[]).await
    });
    let idle_kib = broker.memory_kib("VmRSS");
    let topic = Rc::new(topic);
    let sent_bytes = Rc::new(Cell::new(0));
    let began = Instant::now();
    let half = began + Duration::from_secs(seconds) / 2;
    let until = began + Duration::from_secs(seconds);
    let load = |until: Instant| {
        let (topic, sent_bytes, address) = (topic.clone(), sent_bytes.clone(), broker.address);
        block_on(async move {
            let client = client(address).await;
            let tasks = tokio::task::LocalSet::new();
            for id in 0..PRODUCERS {
                tasks.spawn_local(produce(client.clone(), topic.clone(), id, until, sent_bytes.clone()));
            }
            tasks.spawn_local(consume(client.clone(), until));
            tasks.await;
        });
    };
    load(half);
    // Then with readers who do not read, as long as they are suffered.
    let deaf = ask_and_never_read(&broker, &topic);
    load(until);
    drop(deaf);
    let peak_bytes = broker.memory_kib("VmHWM") << 10;
    let status = block_on(async { client(broker.address).await.admin().status().await.expect("it answers") });
    let limit_bytes = SHARD_MEMORY_BYTES_MAX as u64 + BASE_BYTES + u64::from(PARTITIONS) * PARTITION_BYTES;
    println!(
        "memory: {PARTITIONS} partitions, {} MB produced and {} MB consumed in {seconds} s; resident {} MiB after the \
         start, {} MiB with the partitions idle, at most {} MiB under load, the limit is {} MiB",
        counter(&status, "produced_bytes_total") / 1_000_000,
        counter(&status, "fetched_bytes_total") / 1_000_000,
        started_kib >> 10,
        idle_kib >> 10,
        peak_bytes / MIB as u64,
        limit_bytes / MIB as u64,
    );
    assert!(sent_bytes.get() > 0);
    assert!(peak_bytes < limit_bytes, "{peak_bytes} of {limit_bytes} bytes");
    assert!((idle_kib - started_kib) << 10 < u64::from(PARTITIONS) * PARTITION_BYTES);
    broker.stop();
}
