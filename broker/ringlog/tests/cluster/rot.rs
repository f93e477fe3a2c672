//! Bits that rot on one broker of three: found by recovery, by readers or by scrubbing, repaired from the others, and
//! counted; nothing wrong is served meanwhile, and in the end all have the same bytes.

use crate::DEADLINE;
use crate::brokers::{Cluster, leader_of, producer, run};
use crate::faults::{read_log, whole};
use crate::segments::{Hit, Segment, read_segments, strike};
use ringlog_client::{Client, NewTopic, Producer, ProducerRecord};
use schema::record_batch;
use schema::segment::{BLOCK_BYTES, GROUP_HEADER_BYTES};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const TOPIC: &str = "rotten";
const PARTITIONS: u32 = 3;
/// Of one go: about three segments of each partition.
const RECORDS: usize = 900;
const VALUE_BYTES: usize = 8 << 10;
/// All that is stored is read again and again.
const SCRUBBING: [&str; 2] = ["--scrub-interval-s", "1"];

async fn with_topic(cluster: &Cluster) -> Client {
    let client = cluster.connect().await;
    whole(&client, 3).await;
    let configs = [("segment.bytes", "1048576"), ("max.message.bytes", "900000")];
    let topic = NewTopic {
        partitions: PARTITIONS,
        replication_factor: 3,
        configs: configs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..NewTopic::named(TOPIC)
    };
    client.admin().create_topic(&topic).await.expect("there are three brokers");
    whole(&client, 3).await;
    client
}

/// Records of some size, all acknowledged by all.
async fn produce(producer: &Producer, sent: &mut [Vec<String>]) {
    let mut pending = Vec::new();
    for number in 0..RECORDS {
        let partition = number % sent.len();
        let mut value = format!("{partition}-{} ", sent[partition].len());
        // What does not compress away: a bit in it is a bit of a record.
        value.extend((0..VALUE_BYTES).map(|_| fastrand::alphanumeric()));
        let record = ProducerRecord::new(TOPIC, value.clone()).to_partition(partition as u32);
        pending.push(producer.send(record).await.expect("it is taken"));
        sent[partition].push(value);
    }
    for delivery in pending {
        delivery.await.expect("it is acknowledged");
    }
}

/// Where a broker keeps a partition.
fn directory(cluster: &Cluster, broker: u32, topic: &str, partition: u32) -> PathBuf {
    let of_topic = cluster.data(broker).join("topics").join(topic);
    let entries = std::fs::read_dir(&of_topic).expect("the topic's directory");
    let prefix = format!("{partition}.");
    let mut found = entries.map(|entry| entry.expect("an entry").path());
    found
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .expect("it has a replica")
}

async fn topic_id(client: &Client) -> String {
    let cluster = client.admin().describe_cluster(Some(&[TOPIC.to_owned()])).await.expect("it answers");
    cluster.topics[0].id.to_string()
}

/// Damages a replica in a closed segment, or in the one that is appended to.
fn rot(cluster: &Cluster, broker: u32, topic: &str, partition: u32, hit: Hit, closed: bool) {
    let segments = read_segments(&directory(cluster, broker, topic, partition));
    assert!(segments.len() > 2, "{} segments", segments.len());
    let hit_in = if closed { &segments[1] } else { segments.last().expect("there are some") };
    let lost = strike(hit_in, hit);
    assert!(!lost.is_empty(), "{hit:?} hits records");
}

/// All batches of a log, as a reader who follows its segments finds them: a segment that begins below the end of those
/// before it stands in for what was cut off.
fn batches(segments: &[Segment]) -> BTreeMap<u64, Vec<u8>> {
    let mut log = BTreeMap::new();
    for segment in segments {
        let bytes = std::fs::read(&segment.path).expect("a segment");
        let base = segment.groups.first().map_or(0, |group| group.header.base_offset);
        log.split_off(&base);
        for group in &segment.groups {
            let from = group.position as usize + GROUP_HEADER_BYTES;
            let payload = &bytes[from..from + group.header.payload_bytes as usize];
            for (header, batch) in record_batch::batches(payload).map_while(Result::ok) {
                log.insert(header.base_offset, batch.to_vec());
            }
        }
    }
    log
}

/// What `cluster status` says of one broker.
fn count(cluster: &Cluster, broker: u32, name: &str) -> u64 {
    let lines = cluster.json("cluster status");
    let line = lines.iter().find(|line| line["kind"] == "broker" && line["id"] == broker);
    line.and_then(|line| line[name].as_u64()).unwrap_or(0)
}

/// Waits until so many ranges of `broker` have been repaired. All that is sent is read correctly all the while.
async fn repaired(cluster: &Cluster, client: &Client, broker: u32, ranges: u64, sent: &[Vec<String>]) {
    let limit = Instant::now() + DEADLINE;
    let mut readings = 1;
    loop {
        assert_eq!(read_log(client, TOPIC, PARTITIONS).await, sent, "what is served while it is repaired");
        readings += 1;
        if count(cluster, broker, "repaired_ranges") >= ranges {
            break;
        }
        assert!(Instant::now() < limit, "not repaired: {:#?}", cluster.json("cluster status"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    whole(client, 3).await;
    let found = count(cluster, broker, "damaged_ranges_found");
    assert!(found >= ranges, "{:#?}", cluster.json("cluster status"));
    assert_eq!(count(cluster, broker, "damaged_ranges"), 0, "{:#?}", cluster.json("cluster status"));
    assert_eq!(read_log(client, TOPIC, PARTITIONS).await, sent);
    let (fetched, records) =
        (count(cluster, broker, "repaired_ranges"), sent.iter().map(Vec::len).sum::<usize>());
    println!(
        "broker {broker}: {found} damaged ranges found, {fetched} repaired; {records} records read {readings} times meanwhile: \
         0 wrong"
    );
}

/// After an orderly end of all of them, all have the same bytes in every partition.
fn assert_same(mut cluster: Cluster, topic: &str, sent: &[Vec<String>]) {
    cluster.stop_all();
    for (partition, sent) in (0..PARTITIONS).zip(sent) {
        let of = |broker| batches(&read_segments(&directory(&cluster, broker, topic, partition)));
        let first = of(1);
        let records: usize = first
            .values()
            .map(|batch| record_batch::records(batch).expect("sound").filter(Result::is_ok).count())
            .sum();
        assert_eq!(records, sent.len(), "partition {partition}");
        for broker in 2..=3 {
            assert!(first == of(broker), "partition {partition}: brokers 1 and {broker} differ");
        }
    }
}

#[test]
fn bits_flipped_while_a_broker_is_down_are_repaired_from_the_others() {
    run(async || {
        let mut cluster = Cluster::with(3, &SCRUBBING);
        let client = with_topic(&cluster).await;
        let topic = topic_id(&client).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new(); PARTITIONS as usize];
        produce(&producer, &mut sent).await;
        // After kill -9 recovery reads what no checkpoint attests, and finds it: of what it led, and of what it followed.
        let victim = leader_of(&client, TOPIC, 0).await;
        let followed = (0..PARTITIONS).find(|partition| *partition != 0).expect("there are three");
        cluster.kill(victim);
        rot(&cluster, victim, &topic, 0, Hit::Payload, true);
        rot(&cluster, victim, &topic, followed, Hit::Payload, false);
        produce(&producer, &mut sent).await;
        cluster.start(victim);
        repaired(&cluster, &client, victim, 2, &sent).await;
        // After an orderly end it reads nothing: scrubbing finds it.
        let victim = leader_of(&client, TOPIC, 1).await;
        cluster.stop(victim);
        rot(&cluster, victim, &topic, 1, Hit::ZeroedGroup, true);
        rot(&cluster, victim, &topic, 2, Hit::GroupHeader, false);
        cluster.start(victim);
        repaired(&cluster, &client, victim, 2, &sent).await;
        produce(&producer, &mut sent).await;
        producer.close().await.expect("the brokers are there");
        assert_same(cluster, &topic, &sent);
    });
}

/// The end of a replica's log is gone, but for remains of its last group.
fn lose_the_end(cluster: &Cluster, broker: u32, topic: &str) {
    let segments = read_segments(&directory(cluster, broker, topic, 0));
    let segment = segments.last().expect("there are some");
    let last = segment.groups.iter().rfind(|group| group.header.batch_count > 0).expect("it has records");
    let mut bytes = std::fs::read(&segment.path).expect("a segment");
    let at = last.position as usize;
    bytes[at + BLOCK_BYTES..].fill(0);
    bytes[at + 40] ^= 1;
    std::fs::write(&segment.path, bytes).expect("it is writable");
}

/// Makes a topic of one partition that the second and the third broker have, both of which must acknowledge; its id.
async fn with_two_replicas(cluster: &Cluster, client: &Client) -> String {
    whole(client, 3).await;
    cluster.ok("cluster drain 1");
    cluster.ok(&format!(
        "topic create {TOPIC} --partitions 1 --replication-factor 2 --config min.insync.replicas=2 \
         --config segment.bytes=1048576 --config max.message.bytes=900000"
    ));
    whole(client, 3).await;
    topic_id(client).await
}

/// Both replicas lack something: one the end, the other one a range in the middle. Who has the longer log leads, for what it lacks is
/// fetched from the other one, while that would discard its end for one that has less.
#[test]
fn of_two_damaged_replicas_nothing_is_lost_that_either_has() {
    run(async || {
        let mut cluster = Cluster::with(3, &SCRUBBING);
        let client = cluster.connect().await;
        let topic = with_two_replicas(&cluster, &client).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new()];
        produce(&producer, &mut sent).await;
        let leads = leader_of(&client, TOPIC, 0).await;
        let follows = 5 - leads;
        cluster.kill(follows);
        cluster.kill(leads);
        lose_the_end(&cluster, follows, &topic);
        rot(&cluster, leads, &topic, 0, Hit::Payload, true);
        cluster.start(follows);
        cluster.start(leads);
        let limit = Instant::now() + DEADLINE;
        while count(&cluster, leads, "repaired_ranges") == 0 {
            assert!(Instant::now() < limit, "not repaired: {:#?}", cluster.json("cluster status"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        whole(&client, 3).await;
        assert_eq!(read_log(&client, TOPIC, 1).await, sent);
        assert_eq!(count(&cluster, leads, "damaged_ranges"), 0);
        produce(&producer, &mut sent).await;
        producer.close().await.expect("the brokers are there");
        assert_eq!(read_log(&client, TOPIC, 1).await, sent);
    });
}

/// Both replicas have lost their last records, and say so: nobody has them any more. The one with more of the rest leads, and
/// does not wait for ever for somebody who has what it cannot send.
#[test]
fn what_all_replicas_have_lost_at_the_end_does_not_stop_them() {
    run(async || {
        let mut cluster = Cluster::with(3, &SCRUBBING);
        let client = cluster.connect().await;
        let topic = with_two_replicas(&cluster, &client).await;
        let first = producer(&client);
        let mut sent = vec![Vec::new()];
        produce(&first, &mut sent).await;
        first.close().await.expect("the brokers are there");
        let leads = leader_of(&client, TOPIC, 0).await;
        let follows = 5 - leads;
        // That everything is durable is written behind the last records, once there is nothing else to write.
        let limit = Instant::now() + DEADLINE;
        let last = |broker| read_segments(&directory(&cluster, broker, &topic, 0)).pop().expect("a segment");
        let is_attested = |broker| last(broker).groups.last().expect("a group").header.batch_count == 0;
        while !(is_attested(leads) && is_attested(follows)) {
            assert!(Instant::now() < limit, "nothing attests the end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster.kill(follows);
        cluster.kill(leads);
        let lost = [leads, follows].map(|broker| {
            let segments = read_segments(&directory(&cluster, broker, &topic, 0));
            let with_records =
                |segment: &&Segment| segment.groups.iter().any(|group| group.header.batch_count > 0);
            strike(segments.iter().rfind(with_records).expect("one"), Hit::LastPayload).start as usize
        });
        cluster.start(follows);
        cluster.start(leads);
        whole(&client, 3).await;
        sent[0].truncate(*lost.iter().max().expect("two"));
        assert_eq!(read_log(&client, TOPIC, 1).await, sent);
        let second = producer(&client);
        produce(&second, &mut sent).await;
        second.close().await.expect("the brokers are there");
        assert_eq!(read_log(&client, TOPIC, 1).await, sent);
    });
}

#[test]
fn bits_flipped_while_a_broker_runs_are_found_by_scrubbing() {
    run(async || {
        let cluster = Cluster::with(3, &SCRUBBING);
        let client = with_topic(&cluster).await;
        let topic = topic_id(&client).await;
        let producer = producer(&client);
        let mut sent = vec![Vec::new(); PARTITIONS as usize];
        produce(&producer, &mut sent).await;
        // Of the leader of a partition, who leads it no more then; and of a follower of another.
        let leads = leader_of(&client, TOPIC, 0).await;
        rot(&cluster, leads, &topic, 0, Hit::Payload, true);
        let leader_of_1 = leader_of(&client, TOPIC, 1).await;
        let follows =
            (1..=3).find(|broker| *broker != leader_of_1 && *broker != leads).expect("there are three");
        rot(&cluster, follows, &topic, 1, Hit::Payload, false);
        repaired(&cluster, &client, leads, 1, &sent).await;
        repaired(&cluster, &client, follows, 1, &sent).await;
        produce(&producer, &mut sent).await;
        producer.close().await.expect("the brokers are there");
        assert_same(cluster, &topic, &sent);
    });
}
