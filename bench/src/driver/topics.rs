//! The topics that a driver made, for brokers that know none: how many partitions, and which one is next.
//!
//! Owner: [`Topics`] belongs to a driver and is shared by its threads; a [`Partitions`] to one producer.
//! Invariant: a key goes where Kafka's clients would put it, and so where our own does.

use super::DriverError;
use std::collections::HashMap;
use std::sync::Mutex;

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

    #[test]
    fn topics_are_known_until_they_are_removed() {
        let topics = Topics::default();
        let topic = Topic { partitions: 3, retention_bytes: 0 };
        topics.add("a", topic);
        assert_eq!(topics.find("nats", "a").ok(), Some(topic));
        let error = topics.find("nats", "b").expect_err("nobody made it").to_string();
        assert!(error.contains("nats") && error.contains("topic b"), "{error}");
        assert_eq!((topics.remove("a"), topics.remove("a")), (Some(topic), None));
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
