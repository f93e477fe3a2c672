//! Drivers of other brokers against real servers: what they claim of an acknowledgement is held against a
//! killed server.
//!
//! Records are produced until enough are acknowledged, with more on their way; the server is killed with
//! SIGKILL and started again on the same data; then everything is read. A setting that promises to survive
//! the process must have every acknowledged record; the one that promises nothing must have lost them, which
//! shows that the counting can fail. SIGKILL leaves the page cache alone: that a setting reaches the device
//! is what the server states, and its system calls show (docs/BENCHMARKING.md).
//! Built with the features only; a server that is not installed is skipped with a line that says so.
#![cfg(any(feature = "iggy", feature = "nats", feature = "redis"))]

use bench::compare::{Contestant, Reach};
use bench::driver::{
    ConsumerShare, Driver, Durability, Observer, OutgoingRecord, Parts, Producer, ProducerOptions,
};
use bench::servers::{Acknowledge, Server, ServerError, ServerPlan};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

const TOPIC: &str = "kill-and-count";
const PARTITIONS: u32 = 3;
/// The server is killed after so many.
const ACKNOWLEDGED_MIN: usize = 2000;
/// Sent without waiting for the acknowledgement.
const AHEAD_MAX: usize = 500;
/// From here on numbers are marks: the last record of a partition.
const MARKS_FROM: u64 = 1 << 40;
/// Only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came back, by number.
#[derive(Default)]
struct Ledger {
    acknowledged: RefCell<BTreeSet<u64>>,
    failed: Cell<usize>,
    received: RefCell<BTreeSet<u64>>,
    changed: Notify,
}

impl Observer for Ledger {
    fn acknowledged(&self, intended_ns: u64, _: usize, _: Option<&Parts>) {
        let new = self.acknowledged.borrow_mut().insert(intended_ns);
        assert!(new, "record {intended_ns} was acknowledged twice");
        self.changed.notify_waiters();
    }

    fn failed(&self, _: &str) {
        self.failed.set(self.failed.get() + 1);
        self.changed.notify_waiters();
    }

    fn received(&self, value: &[u8]) {
        let number = value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        self.received.borrow_mut().insert(number.expect("every record begins with its number"));
        self.changed.notify_waiters();
    }
}

impl Ledger {
    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let wait = async {
            while !done(self) {
                self.changed.notified().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
    }
}

async fn producer(driver: &dyn Driver, ledger: &Rc<Ledger>) -> Box<dyn Producer> {
    driver.producer(TOPIC, ProducerOptions::default(), ledger.clone()).await.expect("the server is there")
}

fn record(number: u64, key: Option<u32>) -> OutgoingRecord {
    let mut value = vec![b'x'; 100];
    value[..8].copy_from_slice(&number.to_le_bytes());
    let key = key.map(|key| key.to_le_bytes().to_vec().into());
    OutgoingRecord { key, value: value.into(), intended_ns: number }
}

/// Produces, kills, starts again, reads; gives how many were acknowledged and how many of them are lost.
async fn kill_and_count(
    plan: &ServerPlan,
    mut server: Server,
    contestant: Contestant,
    durability: Durability,
) -> (usize, usize) {
    let monitor = plan.monitor();
    let reach =
        Reach { address: server.address(), monitor: monitor.as_deref(), acknowledge: Acknowledge::Defaults };
    let driver = contestant.connect(reach).await.expect("the server is there");
    assert_eq!(driver.durability(), durability, "{}", driver.durability_settings());
    driver.create_topic(TOPIC, PARTITIONS, 0).await.expect("a topic");
    let ledger = Rc::new(Ledger::default());
    let mut sending = producer(&*driver, &ledger).await;
    let mut sent = 0u64;
    while ledger.acknowledged.borrow().len() < ACKNOWLEDGED_MIN {
        // Some with a key, some without.
        sending.send(record(sent, sent.is_multiple_of(2).then_some(sent as u32))).await.expect("it has room");
        sent += 1;
        let sent = sent as usize;
        ledger.until("an acknowledgement", |it| sent - it.acknowledged.borrow().len() < AHEAD_MAX).await;
        assert_eq!(ledger.failed.get(), 0);
    }
    server.kill();
    drop(sending);
    let acknowledged = ledger.acknowledged.borrow().clone();

    let _server = plan.start().expect("it starts again on its own data");
    let ledger = Rc::new(Ledger::default());
    let mut marking = producer(&*driver, &ledger).await;
    // Without a key they go round: one for each partition.
    for partition in 0..u64::from(PARTITIONS) {
        marking.send(record(MARKS_FROM + partition, None)).await.expect("it has room");
    }
    marking.flush().await.expect("marks are acknowledged");
    assert_eq!(ledger.acknowledged.borrow().len(), PARTITIONS as usize);
    let share = ConsumerShare { consumers: 1, index: 0, from_start: true };
    let mut consumer = driver.consumer(TOPIC, share, ledger.clone()).await.expect("the topic is there");
    let marks = |it: &Ledger| it.received.borrow().range(MARKS_FROM..).count() == PARTITIONS as usize;
    tokio::select! {
        ended = consumer.run() => panic!("the consumer ended: {ended:?}"),
        () = ledger.until("all marks", marks) => {}
    }
    let lost = acknowledged.difference(&ledger.received.borrow()).count();
    (acknowledged.len(), lost)
}

fn check(contestant: Contestant, acknowledge: Acknowledge, durability: Durability, survives: bool) {
    let what = format!("{} {acknowledge:?}", contestant.name());
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let kind = contestant.server().expect("it has a server of its own");
    let plan = ServerPlan::new(kind, acknowledge, directory.path(), &[]).expect("free ports");
    let server = match plan.start() {
        Ok(server) => server,
        Err(error @ (ServerError::Missing { .. } | ServerError::TooOld)) => {
            return eprintln!("{what}: skipped: {error}");
        }
        Err(error) => panic!("{what}: {error}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let (acknowledged, lost) =
        local.block_on(&runtime, kill_and_count(&plan, server, contestant, durability));
    println!("{what}: {acknowledged} acknowledged, {lost} lost");
    assert!(acknowledged >= ACKNOWLEDGED_MIN, "{what}");
    assert_eq!(lost, if survives { 0 } else { acknowledged }, "{what}");
}

#[test]
#[cfg(feature = "nats")]
fn nats_keeps_what_it_acknowledged() {
    check(Contestant::Nats, Acknowledge::Defaults, Durability::PageCache, true);
    check(Contestant::Nats, Acknowledge::FromDevice, Durability::Device, true);
}

#[test]
#[cfg(feature = "redis")]
fn redis_keeps_what_it_acknowledged_and_without_its_log_nothing() {
    check(Contestant::Redis, Acknowledge::Defaults, Durability::Memory, false);
    check(Contestant::Redis, Acknowledge::FromPageCache, Durability::PageCache, true);
    check(Contestant::Redis, Acknowledge::FromDevice, Durability::Device, true);
}

#[test]
#[cfg(feature = "iggy")]
fn iggy_keeps_what_it_acknowledged_and_by_default_nothing() {
    check(Contestant::Iggy, Acknowledge::Defaults, Durability::Memory, false);
    check(Contestant::Iggy, Acknowledge::FromPageCache, Durability::PageCache, true);
    check(Contestant::Iggy, Acknowledge::FromDevice, Durability::Device, true);
}
