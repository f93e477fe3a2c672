//! `kill -9` in the middle of a load, again and again on one data directory, and the ledger of
//! acknowledgements compared with what is read after each restart.
//!
//! Producers with acks=1 and acks=all, small batches and ones that are received in place, several
//! partitions on two cores, sometimes over the wrong one; segments small, so that rolls, retention and
//! recycling go on; topics made and deleted meanwhile; a consumer at the tail, because what was seen must
//! stay as well. `RINGLOG_KILL_ROUNDS` sets how often. The same load with an orderly stop is the run
//! without faults: there nothing may be unknown.

use crate::support::process::{Broker, Serve};
use crate::support::records::{Maker, Proof, prove};
use crate::support::{Directory, client, create_topic, in_time, setting, until, usable};
use ringlog_client::connection::PendingReply;
use ringlog_client::reply::Reply;
use ringlog_client::request::{ProduceEntry, Request};
use ringlog_client::{Acks, Client, ConsumerConfig, NewTopic, OffsetSpec, StartFrom, TopicDescription};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

const SHARDS: usize = 2;
const PARTITIONS: u32 = 3;
const PRODUCERS: u64 = 5;
const IN_FLIGHT_MAX: usize = 4;
const RETENTION_BYTES: u64 = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Kept for ever: everything since the first round must be there.
const KEPT: &str = "kept";
/// Loses its oldest segments, which are recycled.
const ROLLING: &str = "rolling";

type Place = (&'static str, u32);

/// What a partition must hold.
#[derive(Default)]
struct Ledger {
    /// Acknowledged, or read by a consumer: by offset.
    promised: BTreeMap<Place, BTreeMap<u64, Proof>>,
    /// Topics that are certain to be there, or certain not to be.
    topics: BTreeMap<String, bool>,
    /// Records that were acknowledged.
    acknowledged: u64,
    /// Records whose request was not answered.
    unknown: u64,
    /// Bytes of the last load's such requests: what a crash may have cut off behind the acknowledged end.
    unknown_bytes: HashMap<Place, u64>,
}

/// What was wrong after all restarts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    lost: u64,
    wrong: u64,
    gaps: u64,
    twice: u64,
    topics_wrong: u64,
}

/// One load: shared by its tasks, on one thread.
struct Load {
    ledger: RefCell<Ledger>,
    /// Requests that may still be sent and answered before the end.
    to_answer: Cell<u64>,
    enough: Notify,
    over: Cell<bool>,
}

impl Load {
    fn promise(&self, place: Place, offset: u64, proof: Proof) {
        let mut ledger = self.ledger.borrow_mut();
        let before = ledger.promised.entry(place).or_default().insert(offset, proof);
        assert!(before.is_none_or(|before| before == proof), "{place:?} offset {offset} was two records");
    }

    fn answered(&self) {
        self.to_answer.set(self.to_answer.get().saturating_sub(1));
        if self.to_answer.get() == 0 {
            self.over.set(true);
            self.enough.notify_waiters();
        }
    }
}

/// A batch on its way: where it goes, what its records say, and its length.
type Entry = (Place, Vec<Proof>, u64);

/// A request on its way.
struct Sent {
    entries: Vec<Entry>,
    reply: PendingReply,
}

/// Sends until the end of the load or of the broker.
async fn produce(load: Rc<Load>, client: Client, topics: [TopicDescription; 2], mut maker: Maker, id: u64) {
    let acks = if id.is_multiple_of(2) { Acks::All } else { Acks::Leader };
    let mut connections = Vec::new();
    for shard in 0..SHARDS as u32 {
        // The broker may be gone already.
        let Ok(connection) = client.open_connection(0, shard).await else { return };
        connections.push(connection);
    }
    let mut sent: VecDeque<Sent> = VecDeque::new();
    loop {
        while sent.len() < IN_FLIGHT_MAX && !load.over.get() {
            let (request, entries) = next_request(&mut maker, &topics, acks);
            let wrong_core = maker.random().u8(..8) == 0;
            let shard = (home(&request, &topics) + u32::from(wrong_core)) as usize % SHARDS;
            match connections[shard].send(request, TIMEOUT) {
                Ok(reply) => sent.push_back(Sent { entries, reply }),
                Err(_) => {
                    load.over.set(true);
                    break;
                }
            }
        }
        let Some(Sent { entries, reply }) = sent.pop_front() else { return };
        let Ok(response) = reply.wait().await else {
            let mut ledger = load.ledger.borrow_mut();
            for (place, proofs, bytes) in entries {
                ledger.unknown += proofs.len() as u64;
                *ledger.unknown_bytes.entry(place).or_default() += bytes;
            }
            continue;
        };
        let Ok(Reply::Produce { results, .. }) = response.into_result() else {
            panic!("a sound request was refused as a whole");
        };
        for ((place, proofs, _), result) in entries.iter().zip(results) {
            assert_eq!(result.error, None, "{place:?}");
            assert!(result.durable_end >= result.base_offset + proofs.len() as u64);
            for (offset, proof) in (result.base_offset..).zip(proofs) {
                load.promise(*place, offset, *proof);
            }
            load.ledger.borrow_mut().acknowledged += proofs.len() as u64;
        }
        load.answered();
    }
}

/// The shard of the request's first entry.
fn home(request: &Request, topics: &[TopicDescription; 2]) -> u32 {
    let Request::Produce { entries, .. } = request else { return 0 };
    let topic = topics.iter().find(|topic| topic.id == entries[0].topic).expect("one of the two");
    topic.partitions[entries[0].partition as usize].shard
}

fn next_request(maker: &mut Maker, topics: &[TopicDescription; 2], acks: Acks) -> (Request, Vec<Entry>) {
    let rolling = maker.random().u8(..10) < 6;
    let (name, topic) = if rolling { (ROLLING, &topics[1]) } else { (KEPT, &topics[0]) };
    let first = maker.random().u32(..PARTITIONS);
    let several = maker.random().u8(..5) == 0;
    let partitions = if several { (0..PARTITIONS).collect() } else { vec![first] };
    let mut entries = Vec::new();
    let mut expected = Vec::new();
    for partition in partitions {
        let (count, value_bytes) = match maker.random().u8(..20) {
            // Received in place, the largest over many reads.
            0 if rolling => (1, 900 << 10),
            1..=4 if rolling => (maker.random().usize(2..20), 20 << 10),
            1 => (maker.random().usize(1..4), 40 << 10),
            _ => (maker.random().usize(1..30), maker.random().usize(24..600)),
        };
        let made = maker.batch(count, value_bytes);
        let leader_epoch = topic.partitions[partition as usize].leader_epoch;
        expected.push(((name, partition), made.proofs, made.batch.len() as u64));
        entries.push(ProduceEntry { topic: topic.id, partition, leader_epoch, batch: made.batch });
    }
    (Request::Produce { acks, explain: false, entries }, expected)
}

/// Reads at the tail: what a consumer has seen must stay.
async fn watch(load: Rc<Load>, client: Client) {
    let config = ConsumerConfig { fetch_max_wait: Duration::from_millis(50), ..Default::default() };
    let mut consumer = client.consumer(config);
    for topic in [KEPT, ROLLING] {
        if consumer.assign_all(topic, StartFrom::Latest).await.is_err() {
            return;
        }
    }
    while !load.over.get() {
        let fetched = tokio::select! {
            () = load.enough.notified() => return,
            fetched = consumer.next_batch() => fetched,
        };
        // An error is the end of the broker: the consumer would go on trying.
        let Some(Ok(fetched)) = fetched else { return };
        let name = if **fetched.topic() == *KEPT { KEPT } else { ROLLING };
        for record in fetched.records() {
            let record = record.expect("a sound batch");
            let proof = record.value.and_then(prove).expect("its own bytes");
            load.promise((name, fetched.partition()), record.offset, proof);
        }
    }
}

/// Makes and deletes topics: an answer is a promise here too.
async fn churn(load: Rc<Load>, client: Client, round: u64) {
    let admin = client.admin();
    for number in 0.. {
        if load.over.get() {
            return;
        }
        let name = format!("churn-{round}-{number}");
        // Unknown until answered.
        load.ledger.borrow_mut().topics.remove(&name);
        if admin.create_topic(&NewTopic { partitions: 2, ..NewTopic::named(&name) }).await.is_err() {
            return;
        }
        load.ledger.borrow_mut().topics.insert(name.clone(), true);
        if number % 2 == 0 {
            load.ledger.borrow_mut().topics.remove(&name);
            if admin.delete_topic(&name).await.is_err() {
                return;
            }
            load.ledger.borrow_mut().topics.insert(name, false);
        }
    }
}

/// Loads the broker until so many requests are answered; then `end` ends it, under load.
async fn run_load(
    ledger: Ledger,
    broker: Broker,
    round: u64,
    requests: u64,
    end: impl FnOnce(Broker),
) -> Ledger {
    let load = Rc::new(Load {
        ledger: RefCell::new(Ledger { unknown_bytes: HashMap::new(), ..ledger }),
        to_answer: Cell::new(requests),
        enough: Notify::new(),
        over: Cell::new(false),
    });
    let client = client(broker.address).await;
    let topics = [usable(&client, KEPT).await, usable(&client, ROLLING).await];
    let tasks = tokio::task::LocalSet::new();
    let enough = load.clone();
    let mut handles = Vec::new();
    for id in 0..PRODUCERS {
        let maker = Maker::new(round * PRODUCERS + id, 42);
        handles.push(tasks.spawn_local(produce(load.clone(), client.clone(), topics.clone(), maker, id)));
    }
    handles.push(tasks.spawn_local(watch(load.clone(), client.clone())));
    handles.push(tasks.spawn_local(churn(load.clone(), client.clone(), round)));
    tasks
        .run_until(async move {
            in_time("the load", enough.enough.notified()).await;
            end(broker);
            for handle in handles {
                in_time("the end of the load", handle).await.expect("no task fails");
            }
        })
        .await;
    drop((tasks, client));
    Rc::into_inner(load).expect("all tasks have ended").ledger.into_inner()
}

/// Reads everything and compares.
async fn compare(address: SocketAddr, ledger: &mut Ledger) -> Findings {
    let mut findings = Findings::default();
    let client = client(address).await;
    let listed: BTreeSet<String> =
        client.admin().list_topics().await.expect("it answers").into_iter().map(|topic| topic.name).collect();
    for (name, there) in &ledger.topics {
        findings.topics_wrong += u64::from(listed.contains(name) != *there);
    }
    for name in [KEPT, ROLLING] {
        usable(&client, name).await;
        compare_topic(&client, name, ledger, &mut findings).await;
    }
    let notices = client.admin().status().await.expect("it answers").notices;
    let corrupt: Vec<_> = notices.iter().filter(|notice| notice.contains("CORRUPT")).collect();
    assert!(corrupt.is_empty(), "nothing was damaged, yet: {corrupt:?}");
    findings
}

async fn compare_topic(client: &Client, name: &'static str, ledger: &mut Ledger, findings: &mut Findings) {
    let all: Vec<_> = (0..PARTITIONS).map(|partition| (partition, OffsetSpec::Latest)).collect();
    let ends = client.admin().list_offsets(name, &all).await.expect("it answers");
    let ends: HashMap<u32, u64> = ends.iter().map(|listed| (listed.partition, listed.offset)).collect();
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(name, StartFrom::Earliest).await.expect("the topic is there");
    let mut next: HashMap<u32, u64> = HashMap::new();
    let mut starts: HashMap<u32, u64> = HashMap::new();
    let mut found: BTreeMap<u32, BTreeMap<u64, Proof>> = BTreeMap::new();
    // (partition, the offset after which something is missing, where it goes on)
    let mut gaps = Vec::new();
    let mut seen = BTreeSet::new();
    for partition in 0..PARTITIONS {
        let start = consumer.position(name, partition).expect("it is assigned");
        next.insert(partition, start);
    }
    while next.iter().any(|(partition, next)| *next < ends[partition]) {
        let fetched = in_time("reading back", consumer.next_batch()).await.expect("assigned");
        let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
        let partition = fetched.partition();
        for record in fetched.records() {
            let record = record.expect("a sound batch");
            let Some(proof) = record.value.and_then(prove) else {
                findings.wrong += 1;
                continue;
            };
            let next = next.get_mut(&partition).expect("assigned");
            if record.offset != *next {
                gaps.push((partition, *next, record.offset));
            }
            *next = record.offset + 1;
            findings.twice += u64::from(!seen.insert((proof.maker, proof.number)));
            found.entry(partition).or_default().insert(record.offset, proof);
        }
    }
    // Retention may have gone on meanwhile.
    let all: Vec<_> = (0..PARTITIONS).map(|partition| (partition, OffsetSpec::Earliest)).collect();
    for listed in client.admin().list_offsets(name, &all).await.expect("it answers") {
        starts.insert(listed.partition, listed.offset);
    }
    let unexplained = |(partition, _, goes_on): &(u32, u64, u64)| *goes_on > starts[partition];
    gaps.retain(unexplained);
    findings.gaps += gaps.len() as u64;
    for log in client.admin().describe_logs(name).await.expect("it answers") {
        let partition = log.partition;
        let start = starts[&partition];
        let cut_bytes = ledger.unknown_bytes.get(&(name, partition)).copied().unwrap_or_default();
        let kept = log.bytes + cut_bytes >= RETENTION_BYTES;
        assert!(start == 0 || name == ROLLING && kept, "{name}/{partition} begins at {start}: {log:?}");
        let promised = ledger.promised.entry((name, partition)).or_default();
        // What retention took was checked in the rounds before.
        *promised = promised.split_off(&start);
        let found = found.remove(&partition).unwrap_or_default();
        for (offset, proof) in promised.iter() {
            match found.get(offset) {
                None => findings.lost += 1,
                Some(other) => findings.wrong += u64::from(other != proof),
            }
        }
        // What was read once must stay too.
        promised.extend(found);
        *promised = promised.split_off(&start);
    }
}

fn start(data: &Path) -> Broker {
    Serve::new(data).shards(SHARDS).start()
}

async fn create_topics(address: SocketAddr) {
    let client = client(address).await;
    let retention = RETENTION_BYTES.to_string();
    let small = [("segment.bytes", "1048576"), ("max.message.bytes", "1000000")];
    create_topic(&client, KEPT, PARTITIONS, &small).await;
    let rolling = [small[0], small[1], ("retention.bytes", retention.as_str())];
    create_topic(&client, ROLLING, PARTITIONS, &rolling).await;
}

#[test]
fn nothing_acknowledged_is_lost_to_kill_nine() {
    let rounds = setting("RINGLOG_KILL_ROUNDS", 6);
    let directory = Directory::new();
    let mut random = fastrand::Rng::with_seed(setting("RINGLOG_SEED", 1));
    let mut ledger = Ledger::default();
    let mut broker = start(directory.path());
    crate::support::block_on(create_topics(broker.address));
    let mut findings = Findings::default();
    for round in 0..rounds {
        let requests = random.u64(20..if rounds > 20 { 1500 } else { 300 });
        let kill = |broker: Broker| drop(broker.kill());
        ledger = crate::support::block_on(run_load(ledger, broker, round, requests, kill));
        broker = start(directory.path());
        findings = crate::support::block_on(compare(broker.address, &mut ledger));
        assert_eq!(findings, Findings::default(), "round {round}");
    }
    broker.stop();
    let Ledger { acknowledged, unknown, topics, .. } = &ledger;
    println!(
        "kill -9: {rounds} rounds, {acknowledged} records acknowledged, {unknown} unknown, {} topic changes, \
         {findings:?}",
        topics.len()
    );
    assert!(*acknowledged > rounds, "the load was none");
}

#[test]
fn without_faults_nothing_is_lost_or_unknown() {
    let directory = Directory::new();
    let mut ledger = Ledger::default();
    let mut broker = start(directory.path());
    crate::support::block_on(create_topics(broker.address));
    let requests = setting("RINGLOG_REQUESTS", 400);
    let running = Rc::new(RefCell::new(None));
    for round in 0..2 {
        let keep = running.clone();
        let load = run_load(ledger, broker, round, requests, move |broker| *keep.borrow_mut() = Some(broker));
        ledger = crate::support::block_on(load);
        broker = running.borrow_mut().take().expect("it was kept");
        crate::support::block_on(retained(broker.address));
        broker.stop();
        broker = start(directory.path());
        let findings = crate::support::block_on(compare(broker.address, &mut ledger));
        assert_eq!(findings, Findings::default(), "round {round}");
    }
    assert_eq!(ledger.unknown, 0);
    println!("without faults: {} records acknowledged, 0 unknown, 0 lost", ledger.acknowledged);
}

/// Waits until retention has done its work, so that the next load meets recycled segments.
async fn retained(address: SocketAddr) {
    let client = client(address).await;
    let small = async || {
        let logs = client.admin().describe_logs(ROLLING).await.ok()?;
        logs.iter().all(|log| log.bytes < RETENTION_BYTES + (3 << 20)).then_some(())
    };
    until("retention", small).await;
}
