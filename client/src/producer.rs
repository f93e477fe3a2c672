//! Sending records: batches, bounded memory, acknowledgements.
//!
//! Owner: the application holds a [`Producer`], a cheap handle; its clones share one accumulator, one
//! memory budget and one sender task. Lifecycle: made by [`crate::Client::producer`] inside a tokio
//! runtime; ended by [`Producer::close`] or by dropping the last clone, which returns at once and leaves
//! the task to send what was taken. Invariants: at most `buffer_memory` bytes of records are held; no
//! lock is held across an await; with idempotence (the default) every record is in the log at most once and
//! records of one partition keep their order, whatever is sent again. Without it a batch that is resent
//! after a lost connection can appear twice, and behind later ones. Absent on purpose: transactions.

use crate::accumulator::{Accumulator, RecordParts, Reservation, Route};
use crate::client::ClientError;
use crate::cluster::{Cluster, Topic};
use crate::delivery::{BatchDelivery, DeliveryFuture, ProduceError};
use crate::partitioner::Partitioner;
use crate::request::Acks;
use crate::sender;
use bytes::Bytes;
use schema::record_batch::{BatchBuilder, BatchError, Compression, Header};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, Semaphore};

/// The largest `batch_size`, the default of the broker's `max.message.bytes`.
pub const BATCH_SIZE_MAX: usize = 1 << 20;
/// For how long a topic is believed to be compacted before a record is refused for it.
const COMPACTED_BELIEVED: Duration = Duration::from_secs(1);
/// A single record may be larger than a batch, but not than a batch's length field can say.
const RECORD_BYTES_MAX: usize = i32::MAX as usize - 1024;

/// How long a batch waits for more records before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linger {
    /// Not at all while nothing of the partition is in flight; then the longer the more is, at most
    /// until that has come back.
    #[default]
    Adaptive,
    /// This long, unless it is full before.
    Fixed(Duration),
}

/// How a producer sends.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// The durability to wait for.
    pub acks: Acks,
    /// Whether batches carry a producer id and sequences, so that the broker recognises one that is sent again:
    /// nothing is there twice, and order is kept with several requests in flight (at most 5 per partition). Not
    /// with `acks` none, where nobody answers, nor for [`Producer::send_encoded`].
    pub enable_idempotence: bool,
    /// Bytes at which a batch is full, 1 to [`BATCH_SIZE_MAX`] (values outside are moved to the nearer
    /// end). A larger record travels alone.
    pub batch_size: usize,
    /// How long a batch waits for more records.
    pub linger: Linger,
    /// Bytes of records held in this process, sent and unsent; above, [`Producer::send`] waits.
    pub buffer_memory: usize,
    /// Requests sent and not answered per connection, at least 1. Without idempotence order survives every
    /// failure only with 1.
    pub max_in_flight_requests_per_connection: usize,
    /// From the first record of a batch to its acknowledgement, tries included.
    pub delivery_timeout: Duration,
    /// Where records without an explicit partition go.
    pub partitioner: Partitioner,
    /// How batches are compressed, if that makes them smaller. `batch_size` and `buffer_memory` count what
    /// they are before.
    pub compression: Compression,
    /// Whether receipts say where the time went.
    pub explain: bool,
    /// Whether a batch is sent again when nobody knows whether it was appended: after a lost
    /// connection, or a broker that did not answer in time. `true`: until `delivery_timeout`, and it is there
    /// once (without idempotence: at least once). `false`: such a batch fails with an unknown outcome.
    pub resend_when_unknown: bool,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            enable_idempotence: true,
            batch_size: 64 << 10,
            linger: Linger::Adaptive,
            buffer_memory: 64 << 20,
            max_in_flight_requests_per_connection: 5,
            delivery_timeout: Duration::from_secs(120),
            partitioner: Partitioner::Default,
            compression: Compression::None,
            explain: false,
            resend_when_unknown: true,
        }
    }
}

impl ProducerConfig {
    fn within_bounds(mut self) -> Self {
        self.batch_size = self.batch_size.clamp(1, BATCH_SIZE_MAX);
        self.buffer_memory = self.buffer_memory.clamp(1, u32::MAX as usize);
        self.max_in_flight_requests_per_connection = self.max_in_flight_requests_per_connection.max(1);
        self
    }
}

/// A record to be sent.
#[derive(Clone, Debug, Default)]
pub struct ProducerRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; `None` = the partitioner decides.
    pub partition: Option<u32>,
    /// `None` is no key, which is not the same as an empty one.
    pub key: Option<Bytes>,
    /// `None` with a key is a tombstone.
    pub value: Option<Bytes>,
    /// In the order in which they are to be stored.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970; `None` = now.
    pub timestamp_ms: Option<i64>,
}

impl ProducerRecord {
    /// A record with a value and nothing else. A topic that is an `Arc<str>` is not copied.
    pub fn new(topic: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), value: Some(value.into()), ..Self::default() }
    }

    /// The record with a key.
    pub fn with_key(self, key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The record for a partition of the application's choice.
    pub fn to_partition(self, partition: u32) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

/// What the handles and the sender task share.
pub(crate) struct Shared {
    pub cluster: Arc<Cluster>,
    pub config: ProducerConfig,
    pub wake: Notify,
    /// How many wait for memory.
    pub pressed: AtomicUsize,
    budget: Arc<Semaphore>,
    accumulator: Mutex<Accumulator>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Accumulator> {
        self.accumulator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing will be sent any more: fails what is queued and whoever waits for memory.
    pub(crate) fn abort(&self) {
        self.budget.close();
        self.lock().abort();
    }

    async fn reserve(&self, bytes: usize) -> Result<Reservation, ProduceError> {
        let limit = self.config.buffer_memory.min(RECORD_BYTES_MAX);
        if bytes > limit {
            return Err(ProduceError::RecordTooLarge { bytes, limit });
        }
        let permit = match self.budget.try_acquire_many(bytes as u32) {
            Ok(permit) => permit,
            Err(_) => {
                // What lingers must leave, or the wait could be for itself.
                let _pressing = Pressing::new(self);
                self.wake.notify_one();
                self.budget.acquire_many(bytes as u32).await.map_err(|_| ProduceError::Closed)?
            }
        };
        permit.forget();
        Ok(Reservation::new(bytes, self.budget.clone()))
    }

    /// Position of the topic in the accumulator, and the topic.
    async fn topic(&self, name: &str, now: Instant) -> Result<(usize, Arc<Topic>), ProduceError> {
        {
            let mut accumulator = self.lock();
            if let Some((index, topic)) = accumulator.find(name) {
                if now.saturating_duration_since(topic.learnt_at) > self.cluster.config.metadata_max_age {
                    accumulator.want_refresh(index);
                    self.wake.notify_one();
                }
                return Ok((index, topic));
            }
        }
        let topic = self.cluster.topic(name).await?;
        Ok((self.lock().learn(topic.clone(), Instant::now()), topic))
    }

    /// The topic, learnt anew if it has no such partition: it may have been added.
    async fn topic_with(
        &self,
        name: &str,
        partition: Option<u32>,
        now: Instant,
    ) -> Result<(usize, Arc<Topic>), ProduceError> {
        let (index, topic) = self.topic(name, now).await?;
        match partition {
            Some(partition) if partition as usize >= topic.places.len() => {
                let topic = self.cluster.refresh(name, Instant::now()).await?;
                topic.place(partition)?;
                Ok((self.lock().learn(topic.clone(), Instant::now()), topic))
            }
            _ => Ok((index, topic)),
        }
    }
}

/// Counts who waits for memory, also when the wait is cancelled.
struct Pressing<'a>(&'a Shared);

impl<'a> Pressing<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.pressed.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Pressing<'_> {
    fn drop(&mut self) {
        self.0.pressed.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends records; see the module.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Its drop is the drop of the last clone.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().close();
        self.shared.wake.notify_one();
    }
}

impl Producer {
    pub(crate) fn new(cluster: Arc<Cluster>, config: ProducerConfig) -> Self {
        let config = config.within_bounds();
        let shared = Arc::new(Shared {
            accumulator: Mutex::new(Accumulator::new(&config, cluster.config.leader_check_after)),
            budget: Arc::new(Semaphore::new(config.buffer_memory)),
            cluster,
            config,
            wake: Notify::new(),
            pressed: AtomicUsize::new(0),
        });
        tokio::spawn(sender::run(shared.clone()));
        Self { handle: Arc::new(Handle { shared }) }
    }

    /// Takes one record; waits only for memory (and, once per topic, for metadata). The future that is
    /// returned resolves with the acknowledgement; it need not be polled for the record to be sent.
    ///
    /// Cancel safe: a cancelled `send` has taken nothing.
    ///
    /// # Errors
    /// [`ProduceError::Client`] for an unknown topic or partition, [`ProduceError::RecordTooLarge`],
    /// [`ProduceError::KeyRequired`], [`ProduceError::Closed`]. All else comes from the future.
    pub async fn send(&self, record: ProducerRecord) -> Result<DeliveryFuture, ProduceError> {
        let headers: Vec<(&str, Option<&[u8]>)> =
            record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let bytes_max = BatchBuilder::record_bytes(key, value, &headers);
        let shared = &self.handle.shared;
        let memory = shared.reserve(bytes_max).await?;
        let now = Instant::now();
        let (index, topic) = shared.topic_with(&record.topic, record.partition, now).await?;
        if key.is_none() && topic.compacted {
            self.take_without_key(&record.topic).await?;
        }
        let partition = record.partition.or_else(|| {
            shared.config.partitioner.choose(&record.topic, key, value, topic.places.len() as u32)
        });
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let parts = RecordParts { timestamp_ms, key, value, headers: &headers, bytes_max };
        let appended = shared.lock().append(index, partition, &parts, memory, now)?;
        if appended.wake {
            shared.wake.notify_one();
        }
        Ok(DeliveryFuture::new(appended.outcome, appended.index, timestamp_ms))
    }

    /// Whether a topic that was compacted, as far as is known, takes records without a key by now.
    async fn take_without_key(&self, topic: &str) -> Result<(), ProduceError> {
        let shared = &self.handle.shared;
        // Many that are refused in a row cost few questions.
        let young = Instant::now().checked_sub(COMPACTED_BELIEVED).unwrap_or_else(Instant::now);
        let topic = shared.cluster.refresh(topic, young).await?;
        shared.lock().learn(topic.clone(), Instant::now());
        match topic.compacted {
            true => Err(ProduceError::KeyRequired { topic: topic.name.clone() }),
            false => Ok(()),
        }
    }

    /// Takes one encoded record batch (uncompressed or not) for one partition, without copying it; waits
    /// only for memory. For load generators and copying tools.
    ///
    /// # Errors
    /// As [`Producer::send`], and [`ProduceError::InvalidBatch`] when `batch` is not exactly one batch
    /// by its header. Its CRC is the broker's to check.
    pub async fn send_encoded(
        &self,
        topic: &str,
        partition: u32,
        batch: Bytes,
    ) -> Result<BatchDelivery, ProduceError> {
        let header = Header::decode(&batch).map_err(ProduceError::InvalidBatch)?;
        if header.batch_bytes != batch.len() {
            let error = BatchError::TrailingBytes { found: batch.len(), expected: header.batch_bytes };
            return Err(ProduceError::InvalidBatch(error));
        }
        let shared = &self.handle.shared;
        let memory = shared.reserve(batch.len()).await?;
        let now = Instant::now();
        let (index, _) = shared.topic_with(topic, Some(partition), now).await?;
        let route = Route { topic: index, partition };
        let outcome = shared.lock().append_encoded(route, batch, header.record_count, memory, now)?;
        shared.wake.notify_one();
        Ok(BatchDelivery::new(outcome))
    }

    /// Sends everything taken so far without lingering and waits until all of it is settled.
    ///
    /// # Errors
    /// The first failure of any record since the last flush, whether or not its future was looked at.
    pub async fn flush(&self) -> Result<(), ProduceError> {
        let shared = &self.handle.shared;
        let unsettled = shared.lock().flush();
        shared.wake.notify_one();
        for outcome in unsettled {
            // The failure, if it is one, stands in the accumulator too.
            let _ = BatchDelivery::new(outcome).await;
        }
        shared.lock().take_failure().map_or(Ok(()), Err)
    }

    /// Flushes and ends the producer, for its clones too.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(self) -> Result<(), ProduceError> {
        let shared = self.handle.shared.clone();
        shared.lock().close();
        shared.wake.notify_one();
        self.flush().await
    }

    /// The number of partitions of a topic, as this producer knows it.
    pub async fn partitions(&self, topic: &str) -> Result<u32, ClientError> {
        Ok(self.handle.shared.cluster.topic(topic).await?.places.len() as u32)
    }
}

fn now_ms() -> i64 {
    // A clock before 1970 is 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
