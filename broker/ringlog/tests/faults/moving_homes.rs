//! Partitions that move between the cores of a broker: under load, their coordinator too, and into `kill -9`.
//!
//! What is measured and not judged is how long nothing was taken, as the broker says and as clients see it.

use crate::support::process::{Broker, Serve};
use crate::support::{Directory, block_on, client, counter, create_topic, in_time, setting};
use ringlog_client::{
    Client, ClientError, ConsumerConfig, ErrorCode, GroupConfig, HomeMove, OffsetSpec, ProducerConfig,
    ProducerRecord, StartFrom,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const TOPIC: &str = "moves";
/// Segments are left behind while it moves.
const SMALL: [(&str, &str); 2] = [("segment.bytes", "1048576"), ("max.message.bytes", "1000000")];
const GROUP: &str = "followers";
const PARTITIONS: u32 = 2;
/// Of the broker that is killed: more than two can be asked at different images.
const SHARDS: usize = 3;
/// Records that are waited for together.
const TOGETHER: u64 = 20;

/// A producer's share of a test: numbers, each to one partition, in order.
#[derive(Default)]
struct Sent {
    next: Cell<u64>,
    /// Partition and offset of what was acknowledged, and what it says.
    acknowledged: RefCell<BTreeMap<(u32, u64), u64>>,
    more: Notify,
    over: Cell<bool>,
    longest: Cell<Duration>,
}

impl Sent {
    /// Sends until it is over, or until the broker is gone.
    async fn produce(&self, client: &Client) {
        let producer = client.producer(ProducerConfig::default());
        let mut answered = Instant::now();
        while !self.over.get() {
            let mut pending = Vec::new();
            for _ in 0..TOGETHER {
                let number = self.next.replace(self.next.get() + 1);
                let partition = (number % u64::from(PARTITIONS)) as u32;
                let record = ProducerRecord::new(TOPIC, number.to_string()).to_partition(partition);
                pending.push((number, producer.send(record).await.expect("it is taken")));
            }
            for (number, delivery) in pending {
                let receipt = delivery.await.unwrap_or_else(|error| panic!("{number}: {error}"));
                let place = (receipt.partition, receipt.offset);
                let before = self.acknowledged.borrow_mut().insert(place, number);
                assert_eq!(before, None, "{place:?} was given twice");
            }
            self.longest.set(self.longest.get().max(answered.elapsed()));
            answered = Instant::now();
            self.more.notify_waiters();
        }
        producer.close().await.expect("the broker is there");
    }

    /// Waits until so many more are acknowledged.
    async fn goes_on(&self, more: usize) {
        let enough = self.acknowledged.borrow().len() + more;
        let waiting = async {
            while self.acknowledged.borrow().len() < enough {
                self.more.notified().await;
            }
        };
        in_time("acknowledgements", waiting).await;
    }
}

/// Everything of a partition from its start, with its offsets checked to be without gaps.
async fn read_all(client: &Client, partition: u32) -> BTreeMap<u64, u64> {
    let ends =
        client.admin().list_offsets(TOPIC, &[(partition, OffsetSpec::Latest)]).await.expect("it answers");
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign(TOPIC, &[(partition, StartFrom::Earliest)]).await.expect("it is there");
    let mut next = consumer.position(TOPIC, partition).expect("it is assigned");
    let mut found = BTreeMap::new();
    while next < ends[0].offset {
        let record = in_time("reading back", consumer.next()).await.expect("it is assigned");
        let record = record.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(record.offset, next, "partition {partition}");
        next += 1;
        found.insert(record.offset, number(record.value.as_deref()));
    }
    found
}

fn number(value: Option<&[u8]>) -> u64 {
    std::str::from_utf8(value.expect("all have one")).expect("digits").parse().expect("a number")
}

/// What `ringlog …` says, as JSON, line by line.
async fn ringlog(broker: &Broker, words: &str) -> Vec<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
    command.args(words.split(' ')).args(["--format", "json", "--brokers", &broker.address.to_string()]);
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("it is text");
    assert!(output.status.success(), "ringlog {words}: {text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

async fn homes(client: &Client, topic: &str) -> Vec<u32> {
    let topic = client.admin().describe_topic(topic).await.expect("it is there");
    topic.partitions.iter().map(|place| place.shard).collect()
}

#[test]
fn partitions_move_under_load_and_nothing_is_lost_or_twice() {
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).shards(2).start();
    let moves = setting("RINGLOG_HOME_MOVES", 8);
    block_on(tokio::task::LocalSet::new().run_until(async {
        let client = client(broker.address).await;
        create_topic(&client, TOPIC, PARTITIONS, &SMALL).await;
        let admin = client.admin();
        let id = admin.status().await.expect("it answers").broker;
        let sent = Rc::new(Sent::default());
        let producing = {
            let (sent, client) = (sent.clone(), client.clone());
            tokio::task::spawn_local(async move { sent.produce(&client).await })
        };
        let consumed: Rc<RefCell<BTreeMap<(u32, u64), u64>>> = Rc::default();
        let following = {
            let (consumed, client) = (consumed.clone(), client.clone());
            tokio::task::spawn_local(async move {
                let config = GroupConfig::new(GROUP).with_topic(TOPIC);
                let config = GroupConfig { auto_commit_interval: Some(Duration::from_millis(20)), ..config };
                let mut consumer = client.group_consumer(config).expect("a sound configuration");
                loop {
                    let record = consumer.next().await.unwrap_or_else(|error| panic!("{error}"));
                    let place = (record.partition, record.offset);
                    let before = consumed.borrow_mut().insert(place, number(record.value.as_deref()));
                    assert_eq!(before, None, "{place:?} was handed out twice");
                }
            })
        };
        sent.goes_on(200).await;

        let mut pauses = Vec::new();
        for turn in 0..moves {
            let partition = (turn % u64::from(PARTITIONS)) as u32;
            let from = homes(&client, TOPIC).await[partition as usize];
            let to = HomeMove { topic: TOPIC.to_owned(), partition, shard: 1 - from };
            let (had, pause) = admin.move_home(id, &to).await.expect("it moves");
            assert_eq!(had, from);
            assert_eq!(homes(&client, TOPIC).await[partition as usize], 1 - from);
            assert!(pause > Duration::ZERO);
            pauses.push(pause);
            sent.goes_on(60).await;
        }
        // Where it is already it stays.
        let shard = homes(&client, TOPIC).await[0];
        let there = HomeMove { topic: TOPIC.to_owned(), partition: 0, shard };
        assert_eq!(admin.move_home(id, &there).await.expect("there"), (shard, Duration::ZERO));

        // The coordinator of the group, by the command.
        let internal = schema::OFFSETS_TOPIC;
        let of_groups = homes(&client, internal).await;
        let index = schema::coordinator_partition(GROUP, of_groups.len() as u32);
        for core in [1 - of_groups[index as usize], of_groups[index as usize]] {
            let said = ringlog(&broker, &format!("cluster move-home {internal}:{index} --core {core}")).await;
            assert_eq!((&said[0]["kind"], &said[0]["to"]), (&"moved".into(), &core.into()), "{said:?}");
            assert!(said[0]["pause_ms"].as_f64().is_some_and(|pause| pause > 0.0), "{said:?}");
            sent.goes_on(60).await;
        }

        for (to, problem) in [(2, "INVALID_REQUEST"), (0, "UNKNOWN_PARTITION")] {
            let partition = if to == 2 { 0 } else { 7 };
            let to = HomeMove { topic: TOPIC.to_owned(), partition, shard: to };
            let refused = admin.move_home(id, &to).await.expect_err("it cannot").to_string();
            assert!(refused.contains(problem), "{refused}");
        }

        sent.over.set(true);
        producing.await.expect("the producer saw no error");
        let all = sent.acknowledged.borrow().clone();
        let followed = async {
            while consumed.borrow().len() < all.len() && !following.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time("the group", followed).await;
        assert_eq!(*consumed.borrow(), all, "the group has seen all of it, once");
        following.abort();
        let mut logs = BTreeMap::new();
        for partition in 0..PARTITIONS {
            let log = read_all(&client, partition).await;
            assert!(log.values().is_sorted(), "order is lost");
            logs.extend(log.into_iter().map(|(offset, number)| ((partition, offset), number)));
        }
        assert_eq!(logs, all, "what was acknowledged is there, once, and nothing else");

        let status = admin.status().await.expect("it answers");
        let counted = ["homes_taken_over_total", "homes_handed_over_total"].map(|name| counter(&status, name));
        assert_eq!(counted, [moves + 2; 2]);
        pauses.sort_unstable();
        println!(
            "{moves} moves under load: {} records once and in order; nothing taken for {:?} at the median and {:?} at \
             most; the producer waited {:?} at most",
            all.len(),
            pauses[pauses.len() / 2],
            pauses[pauses.len() - 1],
            sent.longest.get(),
        );
    }));
    broker.stop();
}

/// Moves the partitions between the cores until the broker is gone; how often. Others do the same: what one of them has
/// asked for may be of the past before a core has heard of it.
async fn move_on(client: &Client, id: u32, mut random: fastrand::Rng) -> u64 {
    let mut moves = 0;
    loop {
        let (partition, shard) = (random.u32(..PARTITIONS), random.u32(..SHARDS as u32));
        let to = HomeMove { topic: TOPIC.to_owned(), partition, shard };
        match client.admin().move_home(id, &to).await {
            Ok((_, pause)) => moves += u64::from(!pause.is_zero()),
            // Somebody else has moved it since.
            Err(ClientError::Broker(error)) => {
                assert_eq!(error.code, ErrorCode::LeaderNotAvailable, "{error}")
            }
            Err(_) => return moves,
        }
    }
}

/// Deletes the oldest records now and then; the starts that were promised.
async fn delete_on(client: &Client, sent: &Sent, starts: &RefCell<BTreeMap<u32, u64>>) {
    loop {
        sent.more.notified().await;
        for partition in 0..PARTITIONS {
            let last = sent
                .acknowledged
                .borrow()
                .range((partition, 0)..(partition + 1, 0))
                .next_back()
                .map(|(at, _)| at.1);
            let Some(before) = last.map(|last| last.saturating_sub(50)) else { continue };
            let Ok(kept) = client.admin().delete_records(TOPIC, &[(partition, Some(before))]).await else {
                return;
            };
            starts.borrow_mut().insert(partition, kept[0].1);
        }
    }
}

#[test]
fn nothing_is_lost_to_kill_nine_in_the_middle_of_moves() {
    let rounds = setting("RINGLOG_KILL_ROUNDS", 3);
    let directory = Directory::new();
    let mut random = fastrand::Rng::with_seed(setting("RINGLOG_SEED", 1));
    let (mut next, mut moves, mut promised) = (0, 0, BTreeMap::new());
    let starts = RefCell::new(BTreeMap::new());
    for round in 0..rounds {
        let broker = Serve::new(directory.path()).shards(SHARDS).start();
        let until = random.usize(100..700);
        block_on(async {
            let client = client(broker.address).await;
            if round == 0 {
                create_topic(&client, TOPIC, PARTITIONS, &SMALL).await;
            }
            let id = client.admin().status().await.expect("it answers").broker;
            let sent = Sent { next: Cell::new(next), ..Sent::default() };
            let mut broker = Some(broker);
            let kill = async {
                sent.goes_on(until).await;
                drop(broker.take().expect("it runs").kill());
            };
            // What is under way ends with the broker.
            let under_load = async {
                tokio::select! {
                    () = kill => {}
                    () = sent.produce(&client) => unreachable!("nobody ends it"),
                    () = async { tokio::join!(delete_on(&client, &sent, &starts), std::future::pending::<()>()); } => {}
                }
            };
            let [first, second] = [0, 1].map(|_| move_on(&client, id, random.fork()));
            let (first, second, ()) = tokio::join!(first, second, under_load);
            moves += first + second;
            next = sent.next.get();
            promised.extend(sent.acknowledged.take());
        });

        let broker = Serve::new(directory.path()).shards(SHARDS).start();
        block_on(async {
            let client = client(broker.address).await;
            let mut twice = BTreeSet::new();
            for partition in 0..PARTITIONS {
                let log = read_all(&client, partition).await;
                let start = log.keys().next().copied().unwrap_or(0);
                let promised_start = starts.borrow().get(&partition).copied().unwrap_or(0);
                assert!(
                    start >= promised_start,
                    "{partition} begins at {start}, and {promised_start} was promised"
                );
                assert!(log.values().is_sorted(), "order is lost in {partition}");
                for (place, number) in promised.range((partition, start)..(partition + 1, 0)) {
                    assert_eq!(log.get(&place.1), Some(number), "round {round}: {place:?}");
                }
                assert!(log.values().all(|number| twice.insert(*number)), "something is there twice");
            }
            let notices = client.admin().status().await.expect("it answers").notices;
            let corrupt: Vec<_> = notices.iter().filter(|notice| notice.contains("CORRUPT")).collect();
            assert!(corrupt.is_empty(), "nothing was damaged, yet: {corrupt:?}");
        });
        // Every other life ends in order, right after moves.
        match round % 2 {
            0 => drop(broker.kill()),
            _ => drop(broker.stop()),
        }
    }
    println!("kill -9 in {moves} moves: {rounds} rounds, {} records acknowledged, 0 lost", promised.len());
    assert!(moves > rounds, "nothing moved");
}

#[test]
fn busy_partitions_are_spread_over_cores() {
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).shards(2).start();
    block_on(tokio::task::LocalSet::new().run_until(async {
        let client = client(broker.address).await;
        create_topic(&client, "busy", 4, &[]).await;
        let before = homes(&client, "busy").await;
        let busy: Vec<u32> = (0..4).filter(|partition| before[*partition as usize] == 0).collect();
        assert_eq!(busy.len(), 2, "{before:?}");
        let loading = {
            let (client, busy) = (client.clone(), busy.clone());
            tokio::task::spawn_local(async move {
                let producer = client.producer(ProducerConfig::default());
                loop {
                    let mut pending = Vec::new();
                    for partition in &busy {
                        let record = ProducerRecord::new("busy", vec![7; 20_000]).to_partition(*partition);
                        pending.push(producer.send(record).await.expect("it is taken"));
                    }
                    for delivery in pending {
                        delivery.await.expect("it is acknowledged");
                    }
                }
            })
        };
        let command = "cluster rebalance --cores --over 0.3";
        let planned = ringlog(&broker, &format!("{command} --dry-run")).await;
        let of = |lines: &[serde_json::Value], kind: &str| {
            lines.iter().filter(|line| line["kind"] == kind).cloned().collect::<Vec<_>>()
        };
        let plan = of(&planned, "plan");
        assert_eq!(
            (of(&planned, "core").len(), plan.len(), of(&planned, "moved").len()),
            (2, 1, 0),
            "{planned:?}"
        );
        assert_eq!((&plan[0]["from"], &plan[0]["to"]), (&0.into(), &1.into()), "{plan:?}");
        assert_eq!(homes(&client, "busy").await, before, "it was only shown");

        let made = of(&ringlog(&broker, command).await, "moved");
        assert!(made.len() == 1 && made[0]["pause_ms"].as_f64().is_some_and(|pause| pause > 0.0), "{made:?}");
        let after = homes(&client, "busy").await;
        assert_ne!(after[busy[0] as usize], after[busy[1] as usize], "{after:?}");
        assert!(!loading.is_finished(), "the producer saw an error");
        loading.abort();
    }));
    broker.stop();
}
