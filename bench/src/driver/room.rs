//! What the drivers of other brokers share: the records that a producer has open, which partition one goes
//! to, and the topics that were made.
//!
//! Owner: a [`Room`] and a [`Partitions`] belong to one producer, on its thread; [`Topics`] to a driver.
//! Invariants: at most [`ROOM_BYTES`] of records are unacknowledged per producer, as with our own client; a
//! record that was let in is reported exactly once; a key goes where Kafka's clients would put it.

use super::{DriverError, Observer};
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Mutex;
use tokio::sync::{Notify, Semaphore};

/// What our own client holds at most, by default; others get the same.
const ROOM_BYTES: usize = 64 << 20;

/// Records of one producer that are neither acknowledged nor failed.
pub(super) struct Room {
    observer: Rc<dyn Observer>,
    bytes: Semaphore,
    open: Cell<usize>,
    none: Notify,
}

impl Room {
    pub(super) fn new(observer: Rc<dyn Observer>) -> Self {
        Self { observer, bytes: Semaphore::new(ROOM_BYTES), open: Cell::new(0), none: Notify::new() }
    }

    /// Ends when there is room for a record of `bytes`, which is open from then on.
    pub(super) async fn enter(&self, bytes: usize) {
        // The semaphore is never closed: an error cannot be.
        if let Ok(permit) = self.bytes.acquire_many(share(bytes)).await {
            permit.forget();
        }
        self.open.set(self.open.get() + 1);
    }

    /// A record came back with its acknowledgement.
    pub(super) fn acknowledged(&self, intended_ns: u64, bytes: usize) {
        self.leave(bytes);
        self.observer.acknowledged(intended_ns, bytes, None);
    }

    /// A record will not be acknowledged.
    pub(super) fn failed(&self, bytes: usize, reason: &str) {
        self.leave(bytes);
        self.observer.failed(reason);
    }

    fn leave(&self, bytes: usize) {
        self.bytes.add_permits(share(bytes) as usize);
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.none.notify_waiters();
        }
    }

    /// Ends when no record is open.
    pub(super) async fn is_empty(&self) {
        while self.open.get() > 0 {
            self.none.notified().await;
        }
    }
}

/// The room that a record takes: a larger one than there is takes all of it.
fn share(bytes: usize) -> u32 {
    bytes.clamp(1, ROOM_BYTES) as u32
}

/// Chooses partitions: by key as Kafka's clients do, without a key one after the other.
pub(super) struct Partitions {
    count: u32,
    next: u32,
}

impl Partitions {
    /// `count` is at least 1. Producers begin at different ones.
    pub(super) fn new(count: u32) -> Self {
        Self { count, next: fastrand::u32(..count) }
    }

    pub(super) fn choose(&mut self, key: Option<&[u8]>) -> u32 {
        match key {
            Some(key) => (ringlog_client::kafka_hash(key) & 0x7fff_ffff) % self.count,
            None => {
                self.next = (self.next + 1) % self.count;
                self.next
            }
        }
    }
}

/// What is to be known of a topic that a driver made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub partitions: u32,
    /// Of each partition; 0 = the broker's default.
    pub retention_bytes: u64,
}

/// The topics that a driver made.
#[derive(Default)]
pub(super) struct Topics(Mutex<HashMap<String, Topic>>);

impl Topics {
    pub(super) fn add(&self, name: &str, topic: Topic) {
        self.lock().insert(name.to_owned(), topic);
    }

    pub(super) fn remove(&self, name: &str) -> Option<Topic> {
        self.lock().remove(name)
    }

    pub(super) fn find(&self, driver: &'static str, name: &str) -> Result<Topic, DriverError> {
        let found = self.lock().get(name).copied();
        found.ok_or_else(|| DriverError {
            driver,
            message: format!("topic {name} was not made by this driver; create it first"),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Topic>> {
        // Single operations on a map: whoever panicked meanwhile left it whole.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Parts;

    #[derive(Default)]
    struct Seen(Cell<u64>, Cell<u64>);

    impl Observer for Seen {
        fn acknowledged(&self, _: u64, _: usize, _: Option<&Parts>) {
            self.0.set(self.0.get() + 1);
        }
        fn failed(&self, _: &str) {
            self.1.set(self.1.get() + 1);
        }
        fn received(&self, _: &[u8]) {}
    }

    fn ready(future: impl Future<Output = ()>) -> bool {
        let mut future = std::pin::pin!(future);
        let waker = futures_util::task::noop_waker();
        future.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_ready()
    }

    #[test]
    fn room_is_bounded_and_given_back_by_either_end() {
        let seen = Rc::new(Seen::default());
        let room = Room::new(seen.clone());
        assert!(ready(room.enter(ROOM_BYTES - 1)));
        assert!(ready(room.enter(1)));
        assert!(!ready(room.enter(1)), "it is full");
        assert!(!ready(room.is_empty()));
        room.acknowledged(1, 1);
        assert!(ready(room.enter(1)));
        room.failed(1, "why not");
        room.acknowledged(1, ROOM_BYTES - 1);
        assert!(ready(room.is_empty()));
        assert!(ready(room.enter(2 * ROOM_BYTES)), "alone, even the largest is let in");
        assert_eq!((seen.0.get(), seen.1.get()), (2, 1));
    }

    #[test]
    fn keys_stay_and_records_without_one_go_round() {
        let mut partitions = Partitions::new(7);
        // From Kafka's own tests: murmur2("foobar") is -790332482.
        assert_eq!(partitions.choose(Some(b"foobar")), ((-790_332_482i32 as u32) & 0x7fff_ffff) % 7);
        let mut seen: Vec<u32> = (0..7).map(|_| partitions.choose(None)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    }
}
