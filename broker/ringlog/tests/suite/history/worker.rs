//! A member of a group as a process of its own, which says everything that it was told: the test binary, started again
//! for the one test below with [`ADDRESS`] set.
//!
//! Lifecycle: polls, and commits what it got, until its standard input ends; then it closes in order. Invariant: a line
//! is written when it is true and before anything follows from it; a batch's records stand before its commit.

use super::checker::Event;
use ringlog_client::{
    AssignedPartition, Client, ClientConfig, FetchedBatch, GroupConfig, GroupConsumer, GroupError,
    GroupPartition, RebalanceListener, RevokedPartition,
};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ADDRESS: &str = "RINGLOG_HISTORY_ADDRESS";
const GROUP: &str = "RINGLOG_HISTORY_GROUP";
const SESSION_MS: &str = "RINGLOG_HISTORY_SESSION_MS";
const AUTO: &str = "RINGLOG_HISTORY_AUTO";
/// The topic of every history.
pub const TOPIC: &str = "history";
/// Silence after which a member is out.
pub const SESSION: Duration = Duration::from_millis(1_000);

/// Starts a member; with `auto` it leaves committing to the client. Its lines are on its standard output.
pub fn start(address: &str, group: &str, auto: bool, session: Duration) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("a process knows its file"));
    command.args(["--exact", "history::worker::member_process", "--nocapture", "--test-threads", "1"]);
    command.env(ADDRESS, address).env(GROUP, group);
    command.env(SESSION_MS, session.as_millis().to_string());
    if auto {
        command.env(AUTO, "1");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().expect("the test binary can be started")
}

/// The monotonic clock, which all processes of a host share, nanoseconds.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours and the clock exists on every Linux.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// One line, as [`member_process`] writes it; anything else on its output is of the test harness.
pub fn parse(line: &str) -> Option<Event> {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let partition = |at: usize| u32::try_from(number(at)?).ok();
    Some(match *words.first()? {
        "#assigned" if words.len() == 4 => {
            Event::Assigned { at: number(1)?, partition: partition(2)?, offset: number(3)? }
        }
        "#revoked" if words.len() == 4 => {
            Event::Revoked { at: number(1)?, partition: partition(2)?, position: number(3)? }
        }
        "#lost" if words.len() == 3 => Event::Lost { at: number(1)?, partition: partition(2)? },
        "#polled" if words.len() == 5 => Event::Polled {
            at: number(1)?,
            partition: partition(2)?,
            offset: number(3)?,
            value: words[4].to_owned(),
        },
        "#committed" if words.len() == 6 => Event::Committed {
            called: number(1)?,
            answered: number(2)?,
            partition: partition(3)?,
            offset: number(4)?,
            ok: words[5] == "true",
        },
        _ => return None,
    })
}

/// Past the harness, which would keep it.
fn say(lines: &str) {
    let mut output = std::io::stdout().lock();
    // A test that has ended does not listen any more; the process ends with it.
    let _ = output.write_all(lines.as_bytes()).and_then(|()| output.flush());
}

struct Teller;

impl RebalanceListener for Teller {
    fn assigned(&mut self, partitions: &mut [AssignedPartition]) {
        for one in partitions {
            say(&format!("#assigned {} {} {}\n", now(), one.partition.partition, one.offset));
        }
    }

    fn revoked(&mut self, partitions: &mut [RevokedPartition]) {
        for one in partitions {
            // Everything handed out was written down: so it is dealt with.
            one.commit = Some(one.position);
            say(&format!("#revoked {} {} {}\n", now(), one.partition.partition, one.position));
        }
    }

    fn lost(&mut self, partitions: &[GroupPartition]) {
        for one in partitions {
            say(&format!("#lost {} {}\n", now(), one.partition));
        }
    }
}

async fn work(consumer: &mut GroupConsumer, auto: bool) {
    loop {
        match consumer.poll().await {
            Ok(batch) => {
                tell(&batch);
                if !auto {
                    commit(consumer, &batch).await;
                }
            }
            Err(error) => assert!(!error.is_final(), "{error}"),
        }
    }
}

fn tell(batch: &FetchedBatch) {
    let mut lines = String::new();
    for record in batch.records() {
        let record = record.expect("the log is sound");
        let value = String::from_utf8_lossy(record.value.unwrap_or_default());
        writeln!(lines, "#polled {} {} {} {value}", now(), batch.partition(), record.offset)
            .expect("a string");
    }
    say(&lines);
}

async fn commit(consumer: &mut GroupConsumer, batch: &FetchedBatch) {
    let called = now();
    let outcome = consumer.commit_batch(batch).await;
    let known = match outcome {
        Ok(()) => true,
        Err(GroupError::PartitionsLost) => false,
        // Nobody knows whether it was accepted: nothing is said.
        Err(_) => return,
    };
    say(&format!("#committed {called} {} {} {} {known}\n", now(), batch.partition(), batch.end_offset()));
}

/// Not a test of anything unless it was started by [`start`].
#[test]
fn member_process() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let group = std::env::var(GROUP).expect("it was set with the address");
    let session = std::env::var(SESSION_MS).ok().and_then(|ms| ms.parse().ok());
    let session = session.map_or(SESSION, Duration::from_millis);
    let auto = std::env::var(AUTO).is_ok();
    // Its own line: the harness has begun one.
    say("\n");
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.send(());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client_config = ClientConfig::new(address).unwrap();
        client_config.request_timeout = Duration::from_secs(10);
        let client = loop {
            // The broker may be away just now.
            match Client::connect(client_config.clone()).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let mut config = GroupConfig::new(group).with_topic(TOPIC);
        config.session_timeout = session;
        config.rebalance_timeout = Duration::from_secs(5);
        config.auto_commit_interval = auto.then(|| Duration::from_millis(50));
        // Small fetches, so that faults fall between batches of one partition.
        config.consumer.max_partition_fetch_bytes = 2_000;
        let mut consumer = client.group_consumer(config).unwrap();
        consumer.set_listener(Teller);
        tokio::select! {
            () = work(&mut consumer, auto) => {}
            _ = stopped => {}
        }
        match consumer.close().await {
            // Put out a moment before: others read on.
            Ok(()) | Err(GroupError::PartitionsLost) => {}
            Err(error) => panic!("it could not close: {error}"),
        }
    });
    say("#closed\n");
}
