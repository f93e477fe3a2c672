//! What a broker must offer to be measured: topics, producers, consumers, and what its acknowledgement means.
//!
//! One [`Driver`] per broker and run. Producers and consumers live on the thread that made them; the
//! engine gives each its share of the work and collects what they report through [`Observer`]s.
//! Invariants: a producer takes a record when it has room and reports its acknowledgement exactly once; a
//! consumer reports every record that it receives. A driver states the durability that it was set to, and a
//! report never compares two without saying so.
//! Absent on purpose: retries of the engine's own; what a broker's client library does by itself is part of
//! what is measured.

mod deliveries;
#[cfg(feature = "iggy")]
pub mod iggy;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "redis")]
pub mod redis;
pub mod ringlog;
#[cfg(any(feature = "iggy", feature = "kafka", feature = "nats", feature = "redis"))]
mod room;
#[cfg(any(feature = "iggy", feature = "nats", feature = "redis"))]
mod topics;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ringlog_client::Compression;
use std::rc::Rc;

/// What an acknowledged record survives; the later one is the stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Nothing is acknowledged.
    None,
    /// The end of neither the process nor the host: it lies in the broker's memory or in its socket.
    Memory,
    /// The end of the broker's process, but not of the host: the operating system has it.
    PageCache,
    /// The end of the host: it is on the device, and its write cache was flushed.
    Device,
}

impl Durability {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::PageCache => "page cache",
            Self::Device => "device",
        }
    }
}

/// Why a driver cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{driver}: {message}")]
pub struct DriverError {
    /// Which one.
    pub driver: &'static str,
    /// What went wrong and what helps.
    pub message: String,
}

/// A record on its way out.
#[derive(Clone, Debug)]
pub struct OutgoingRecord {
    /// What decides its partition, if anything does.
    pub key: Option<Bytes>,
    /// The payload, stamped by the engine.
    pub value: Bytes,
    /// When it was to be sent, nanoseconds of [`crate::stamp::now_ns`]: from here its latency counts,
    /// whatever held it up.
    pub intended_ns: u64,
}

/// The parts of an acknowledgement's time that a driver may know, in the order in which they follow each
/// other. What is missing between their sum and the whole is the wait before the record was handed over.
pub const PARTS: [&str; 8] = [
    "client queue",
    "network and client",
    "receive",
    "core hop",
    "append",
    "device",
    "replicate",
    "acknowledge",
];

/// Nanoseconds of each of [`PARTS`].
pub type Parts = [u64; PARTS.len()];

/// Who is told what became of records; on one thread.
pub trait Observer {
    /// A record that was intended for `intended_ns` is acknowledged now; `parts` where the driver knows
    /// them.
    fn acknowledged(&self, intended_ns: u64, bytes: usize, parts: Option<&Parts>);
    /// A record was not acknowledged and will not be.
    fn failed(&self, reason: &str);
    /// A record has been received; `value` is its payload.
    fn received(&self, value: &[u8]);
}

/// Sends records to one topic.
pub trait Producer {
    /// Hands a record over; ends when the producer has room for the next, not when it is acknowledged.
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>>;
    /// Ends when everything that was handed over has been acknowledged or has failed.
    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>>;
}

/// Receives a share of one topic's records.
pub trait Consumer {
    /// Receives until dropped or until the broker fails; reports every record.
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>>;
}

fn name_of<S: serde::Serializer>(compression: &Compression, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(compression.name())
}

/// What a producer is to do about batching.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct ProducerOptions {
    /// Bytes of a batch at most; 0 = the client's default.
    pub batch_bytes: usize,
    /// How long a record may wait for others, milliseconds; `None` = the client's default.
    pub linger_ms: Option<f64>,
    /// Requests in flight per connection; 0 = the client's default.
    pub in_flight: usize,
    /// How batches are compressed; never anything but `None` where [`Driver::compresses`] is false.
    #[serde(serialize_with = "name_of")]
    pub compression: Compression,
    /// Ask for [`Parts`], where the broker can tell.
    pub explain: bool,
}

/// Which part of a topic a consumer reads.
#[derive(Clone, Debug)]
pub struct ConsumerShare {
    /// Consumers that share the topic among them.
    pub consumers: usize,
    /// Which of them this one is.
    pub index: usize,
    /// Read what is there already.
    pub from_start: bool,
}

impl ConsumerShare {
    /// This consumer's partitions of the topic's `count`.
    pub fn partitions(&self, count: u32) -> impl Iterator<Item = u32> + use<> {
        (self.index as u32..count).step_by(self.consumers)
    }
}

/// A broker under test.
pub trait Driver: Send + Sync {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// What its acknowledgement means as it is set up now.
    fn durability(&self) -> Durability;
    /// The settings behind that, in the broker's own words.
    fn durability_settings(&self) -> String;
    /// Whether its producers can compress batches. One that cannot is never asked to: the engine refuses the
    /// workload.
    fn compresses(&self) -> bool {
        false
    }
    /// Makes a topic that keeps `retention_bytes` of each partition, 0 = the broker's default.
    fn create_topic<'a>(
        &'a self,
        topic: &'a str,
        partitions: u32,
        retention_bytes: u64,
    ) -> LocalBoxFuture<'a, Result<(), DriverError>>;
    /// Removes it.
    fn delete_topic<'a>(&'a self, topic: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>>;
    /// The broker's own counters, summed over its cores; empty where it has none.
    fn counters(&self) -> LocalBoxFuture<'_, Vec<(String, u64)>> {
        Box::pin(async { Vec::new() })
    }
    /// A producer of this thread.
    fn producer<'a>(
        &'a self,
        topic: &'a str,
        options: ProducerOptions,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Producer>, DriverError>>;
    /// A consumer of this thread.
    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        share: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>>;
}
