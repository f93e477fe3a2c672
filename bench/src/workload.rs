//! What to run: a workload file in the field names of the OpenMessaging Benchmark.
//!
//! Read once, never changed. Fields that the original knows and this one cannot obey are refused by name
//! rather than ignored; fields of our own have names that the original does not use. Rates are of all
//! producers together, records per second; 0 = as fast as acknowledgements come back.

use ringlog_client::Compression;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// How a record's key, and with it its partition, is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum KeyDistributor {
    /// No key: the client spreads records as it likes.
    #[default]
    #[serde(rename = "NO_KEY")]
    NoKey,
    /// One key after the other.
    #[serde(rename = "KEY_ROUND_ROBIN")]
    KeyRoundRobin,
    /// A key drawn for every record.
    #[serde(rename = "RANDOM_NANO")]
    RandomNano,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Workload {
    /// What it is called.
    pub name: String,
    /// Topics.
    pub topics: u32,
    /// Partitions of each.
    pub partitions_per_topic: u32,
    /// Bytes of a record's value.
    pub message_size: usize,
    /// Whether payloads are random, as far as `random_bytes_ratio` says.
    pub use_randomized_payloads: bool,
    /// The share of a payload's bytes that is random; the rest repeats and compresses.
    pub random_bytes_ratio: f64,
    /// How many different payloads are made beforehand; more with `compression`, so that no batch meets one twice
    /// within reach of a codec.
    pub randomized_payload_pool_size: usize,
    /// How keys are chosen.
    pub key_distributor: KeyDistributor,
    /// Times that every record is consumed.
    pub subscriptions_per_topic: u32,
    /// Consumers that share a subscription.
    pub consumer_per_subscription: u32,
    /// Producers of each topic.
    pub producers_per_topic: u32,
    /// Records per second of all producers together; 0 = as fast as it goes.
    pub producer_rate: f64,
    /// First produce so much without consuming, then consume it while producing, GB (10^9 bytes).
    #[serde(rename = "consumerBacklogSizeGB")]
    pub consumer_backlog_size_gb: f64,
    /// How long to measure, minutes.
    pub test_duration_minutes: f64,
    /// How long to run before that, minutes.
    pub warmup_duration_minutes: f64,
    /// Ours: end the test when so much has been acknowledged in it, GB (10^9 bytes), or after its duration, whichever
    /// comes first; 0 = by the duration alone.
    #[serde(rename = "testVolumeGB")]
    pub test_volume_gb: f64,
    /// Ours: bytes of a batch at most; 0 = the client's default.
    pub batch_size: usize,
    /// Ours: how long a record may wait for others, milliseconds.
    pub linger_ms: Option<f64>,
    /// Ours: requests in flight per connection; 0 = the client's default.
    pub requests_in_flight: usize,
    /// Ours: without a rate, records of one producer that may wait for their acknowledgement; 0 = as many
    /// as the client's memory holds.
    pub records_in_flight: usize,
    /// Ours: `retention.bytes` of a partition; 0 = the topic's default.
    pub retention_bytes: u64,
    /// Ours: instead of `producer_rate`, look for the highest rate at which the p99 of acknowledgements
    /// stays below this, milliseconds.
    pub find_rate_for_p99_ms: Option<f64>,
    /// Ours: how the client compresses batches. Random bytes do not compress: `random_bytes_ratio` must be below 1.
    #[serde(with = "compression")]
    pub compression: Compression,
}

/// The longest test, minutes: a day.
pub const DURATION_MINUTES_MAX: f64 = 1440.0;
/// The share of random bytes that a workload of random payloads gets when compression is asked for on top of it.
pub const COMPRESSED_RANDOM_RATIO: f64 = 0.5;
/// Different payload bytes of a workload with compression at least: beyond the windows of all codecs.
const COMPRESSED_POOL_BYTES: usize = 4 << 20;

/// A codec by its name.
mod compression {
    use ringlog_client::Compression;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(compression: &Compression, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(compression.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Compression, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(|error| D::Error::custom(format!("compression '{name}': {error}")))
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            name: "simple".to_owned(),
            topics: 1,
            partitions_per_topic: 1,
            message_size: 1000,
            use_randomized_payloads: true,
            random_bytes_ratio: 1.0,
            randomized_payload_pool_size: 100,
            key_distributor: KeyDistributor::NoKey,
            subscriptions_per_topic: 1,
            consumer_per_subscription: 1,
            producers_per_topic: 1,
            producer_rate: 0.0,
            consumer_backlog_size_gb: 0.0,
            test_duration_minutes: 0.25,
            warmup_duration_minutes: 0.05,
            test_volume_gb: 0.0,
            batch_size: 0,
            linger_ms: None,
            requests_in_flight: 0,
            records_in_flight: 0,
            retention_bytes: 1 << 30,
            find_rate_for_p99_ms: None,
            compression: Compression::None,
        }
    }
}

/// Why a workload cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The file.
    #[error("cannot read the workload {path}: {error}")]
    File {
        /// Which one.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Its text.
    #[error("the workload {path} is not one: {message}")]
    Text {
        /// Which one.
        path: String,
        /// What is wrong, and where.
        message: String,
    },
    /// A value.
    #[error("workload '{name}': {message}")]
    Value {
        /// The workload's name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// No such built-in one.
    #[error("there is no workload '{name}'; shipped are {known}; or name a file")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// The shipped workloads: name and text.
pub const SHIPPED: &[(&str, &str)] = &[
    ("simple", include_str!("../workloads/simple.yaml")),
    ("1-topic-16-partitions-1kb", include_str!("../workloads/1-topic-16-partitions-1kb.yaml")),
    ("1-topic-100-partitions-1kb-4p-4c", include_str!("../workloads/1-topic-100-partitions-1kb-4p-4c.yaml")),
    ("two-million-writes-100b", include_str!("../workloads/two-million-writes-100b.yaml")),
    ("max-rate-100b", include_str!("../workloads/max-rate-100b.yaml")),
    ("max-rate-1kb", include_str!("../workloads/max-rate-1kb.yaml")),
    ("max-rate-64kb", include_str!("../workloads/max-rate-64kb.yaml")),
    ("30-producers-180-partitions", include_str!("../workloads/30-producers-180-partitions.yaml")),
    ("backlog", include_str!("../workloads/backlog.yaml")),
    ("partitions-1", include_str!("../workloads/partitions-1.yaml")),
    ("partitions-10", include_str!("../workloads/partitions-10.yaml")),
    ("partitions-100", include_str!("../workloads/partitions-100.yaml")),
    ("partitions-1000", include_str!("../workloads/partitions-1000.yaml")),
    ("partitions-10000", include_str!("../workloads/partitions-10000.yaml")),
    ("past-retention", include_str!("../workloads/past-retention.yaml")),
    ("max-rate-1kb-lz4", include_str!("../workloads/max-rate-1kb-lz4.yaml")),
    ("compare-1kb-batches", include_str!("../workloads/compare-1kb-batches.yaml")),
    ("compare-100b-1p", include_str!("../workloads/compare-100b-1p.yaml")),
    ("compare-100b-4p", include_str!("../workloads/compare-100b-4p.yaml")),
    ("compare-100b-64p", include_str!("../workloads/compare-100b-64p.yaml")),
];

impl Workload {
    /// A shipped workload by its name, or a file.
    ///
    /// # Errors
    /// Neither; a text that is no workload; a value that cannot be.
    pub fn find(name_or_path: &str) -> Result<Self, WorkloadError> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        if !Path::new(name_or_path).exists() && !name_or_path.contains(['/', '.']) {
            let known: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
            return Err(WorkloadError::Unknown { name: name_or_path.to_owned(), known: known.join(", ") });
        }
        let text = std::fs::read_to_string(name_or_path)
            .map_err(|error| WorkloadError::File { path: name_or_path.to_owned(), error })?;
        Self::parse(name_or_path, &text)
    }

    /// A workload from its YAML text.
    ///
    /// # Errors
    /// The text is no workload, or a value cannot be.
    pub fn parse(path: &str, text: &str) -> Result<Self, WorkloadError> {
        let workload: Self = serde_saphyr::from_str(text)
            .map_err(|error| WorkloadError::Text { path: path.to_owned(), message: error.to_string() })?;
        workload.check()?;
        Ok(workload)
    }

    /// Whether it can be run.
    ///
    /// # Errors
    /// The first value that cannot be.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let wrong = |message: &str| {
            Err(WorkloadError::Value { name: self.name.clone(), message: message.to_owned() })
        };
        if self.topics == 0 || self.partitions_per_topic == 0 || self.producers_per_topic == 0 {
            return wrong("topics, partitionsPerTopic and producersPerTopic are at least 1");
        }
        if self.message_size < crate::stamp::STAMP_BYTES || self.message_size > 7 << 20 {
            return wrong("messageSize is 16 bytes (the stamp that measures it) to 7 MiB");
        }
        if !(0.0..=1.0).contains(&self.random_bytes_ratio) || self.randomized_payload_pool_size == 0 {
            return wrong("randomBytesRatio is 0 to 1, randomizedPayloadPoolSize at least 1");
        }
        if self.is_compressed() && self.random_share() >= 1.0 {
            return wrong(
                "compression of random bytes measures nothing: randomBytesRatio below 1 says which share of a value \
                 is random",
            );
        }
        let minutes = [self.test_duration_minutes, self.warmup_duration_minutes];
        if minutes.iter().any(|m| !(0.0..=DURATION_MINUTES_MAX).contains(m))
            || self.test_duration_minutes == 0.0
        {
            return wrong(
                "testDurationMinutes is above 0, warmupDurationMinutes at least 0, both at most a day",
            );
        }
        if !(0.0..=1e9).contains(&self.producer_rate) || !(0.0..=1e6).contains(&self.consumer_backlog_size_gb)
        {
            return wrong("producerRate and consumerBacklogSizeGB are not negative");
        }
        if !(0.0..=1e6).contains(&self.test_volume_gb) {
            return wrong("testVolumeGB is not negative");
        }
        if self.consumer_backlog_size_gb > 0.0 && self.subscriptions_per_topic == 0 {
            return wrong("a backlog without a subscription is never consumed");
        }
        Ok(())
    }

    /// Whether batches are to be compressed.
    pub fn is_compressed(&self) -> bool {
        self.compression != Compression::None
    }

    /// Has batches compressed; values that are random throughout are mixed, or there would be nothing to compress.
    pub fn compress(&mut self, compression: Compression) {
        self.compression = compression;
        if self.is_compressed() && self.random_share() >= 1.0 {
            self.random_bytes_ratio = COMPRESSED_RANDOM_RATIO;
        }
    }

    /// The share of a value's bytes that is random; they come first, the rest is one byte over and over.
    pub fn random_share(&self) -> f64 {
        if self.use_randomized_payloads { self.random_bytes_ratio } else { 0.0 }
    }

    /// How many different payloads are made.
    pub fn payloads(&self) -> usize {
        let asked = if self.use_randomized_payloads { self.randomized_payload_pool_size } else { 1 };
        match self.is_compressed() && self.use_randomized_payloads {
            true => asked.max(COMPRESSED_POOL_BYTES.div_ceil(self.message_size)),
            false => asked,
        }
    }

    /// The codec and what it has to work on, for people; `None` without one.
    pub fn compression_in_words(&self) -> Option<String> {
        let share = self.random_share() * 100.0;
        self.is_compressed()
            .then(|| format!("{}; {share:.0} % of each value is random", self.compression.name()))
    }

    /// How long to measure.
    pub fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.test_duration_minutes * 60.0)
    }

    /// How long to run before that.
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warmup_duration_minutes * 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_workload_can_be_run() {
        for (name, text) in SHIPPED {
            let workload = Workload::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
            assert!(!workload.name.is_empty(), "{name}");
            assert_eq!(Workload::find(name).unwrap(), workload);
        }
    }

    #[test]
    fn what_is_compressed_compresses_and_does_not_repeat() {
        // Text; share of random bytes and different payloads, as they are and with --compression zstd.
        let rows = [
            ("messageSize: 1000", (1.0, 100), (0.5, 4195)),
            ("messageSize: 1000\nrandomBytesRatio: 0.3", (0.3, 100), (0.3, 4195)),
            ("messageSize: 1000\nuseRandomizedPayloads: false", (0.0, 1), (0.0, 1)),
            ("messageSize: 1048576\nrandomizedPayloadPoolSize: 9", (1.0, 9), (0.5, 9)),
            ("compression: gzip\nrandomBytesRatio: 0.25\nmessageSize: 100", (0.25, 41944), (0.25, 41944)),
        ];
        for (text, plain, packed) in rows {
            let mut workload = Workload::parse("a.yaml", text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((workload.random_share(), workload.payloads()), plain, "{text}");
            workload.compress(Compression::Zstd);
            assert_eq!((workload.random_share(), workload.payloads()), packed, "{text}");
            workload.check().unwrap_or_else(|error| panic!("{error}"));
            let json = serde_json::to_string(&workload).unwrap();
            assert!(json.contains("\"compression\":\"zstd\""), "{json}");
            assert_eq!(serde_json::from_str::<Workload>(&json).unwrap(), workload);
            workload.compress(Compression::None);
            assert_eq!(workload.compression_in_words(), None);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let rows = [
            ("topics: 0", "topics"),
            ("messageSize: 8", "messageSize"),
            ("randomBytesRatio: 1.5", "randomBytesRatio"),
            ("testDurationMinutes: 0", "testDurationMinutes"),
            ("producerRate: -1", "producerRate"),
            ("testVolumeGB: -1", "testVolumeGB"),
            ("payloadFile: payload.data", "payloadFile"),
            ("topics: [1]", "topics"),
            ("consumerBacklogSizeGB: 1\nsubscriptionsPerTopic: 0", "backlog"),
            ("compression: rar\nrandomBytesRatio: 0.5", "none, lz4, zstd, snappy, gzip"),
            ("compression: lz4", "randomBytesRatio below 1"),
        ];
        for (text, expect) in rows {
            let error = Workload::parse("a.yaml", text).expect_err(text).to_string();
            assert!(error.contains(expect), "{text}: {error}");
        }
        let error = Workload::find("nothing").expect_err("there is none").to_string();
        assert!(error.contains("simple"), "{error}");
    }
}
