//! Reading records: assignment, positions, batches and records.
//!
//! Owner: one task of the application owns a [`Consumer`] and calls it in turns. Lifecycle: made by
//! [`crate::Client::consumer`]; [`Consumer::assign`] starts fetching in the background, dropping ends it.
//! Invariants: records of a partition come in the order of their offsets, each once per position; what
//! was fetched before a seek is never handed out after it; prefetch is bounded in bytes. A batch is
//! handed out as the memory that the socket filled, and its records are borrowed from it.
//! A compressed batch is unpacked alone, when it is handed out. Absent on purpose: groups and committed offsets
//! ([`crate::GroupConsumer`]).

mod fetched;

pub use fetched::{ConsumedRecord, FetchedBatch, FetchedRecords};

use crate::admin;
use crate::client::ClientError;
use crate::cluster::Cluster;
use crate::connection::ConnectionError;
use crate::fetcher::{Fetcher, Item};
use crate::reply::BrokerError;
use crate::request::OffsetSpec;
use fetched::{Unpacked, split, unpack};
use schema::compression::UnpackError;
use schema::error_code::ErrorCode;
use schema::record_batch::BatchError;
use std::sync::Arc;
use std::time::Duration;

/// Where to begin when the position is not kept any more, or not there yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoOffsetReset {
    /// At the first offset that is kept.
    #[default]
    Earliest,
    /// At the end.
    Latest,
    /// Not at all: [`ConsumeError::Refused`] with `OFFSET_OUT_OF_RANGE`, and the partition stops.
    Error,
}

/// How a consumer fetches.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The broker answers as soon as it has this many bytes.
    pub fetch_min_bytes: u32,
    /// The broker answers at the latest after this.
    pub fetch_max_wait: Duration,
    /// At most this many bytes of one partition per request, one batch excepted.
    pub max_partition_fetch_bytes: u32,
    /// At most this many bytes per request, one batch excepted.
    pub fetch_max_bytes: u32,
    /// Bytes fetched and not yet handed out, one batch per connection excepted. Shared evenly by the
    /// connections.
    pub prefetch_bytes: usize,
    /// Where the consumer is. Partitions that have an in-sync replica there and are led elsewhere are read at that replica
    /// as long as it serves; what it shows is a few milliseconds behind the leader. `None` = at their leaders.
    pub rack: Option<String>,
    /// What to do about a position outside the log.
    pub auto_offset_reset: AutoOffsetReset,
    /// Whether the CRC of every batch is checked.
    pub check_crcs: bool,
    /// A compressed batch that unpacks to more bytes than this is an error.
    pub unpacked_batch_bytes_max: usize,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            fetch_min_bytes: 1,
            fetch_max_wait: Duration::from_millis(500),
            max_partition_fetch_bytes: 1 << 20,
            fetch_max_bytes: 16 << 20,
            prefetch_bytes: 16 << 20,
            rack: None,
            auto_offset_reset: AutoOffsetReset::Earliest,
            check_crcs: true,
            unpacked_batch_bytes_max: 128 << 20,
        }
    }
}

/// Where to start reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// The first offset that is kept.
    Earliest,
    /// The end: only what comes from now on.
    Latest,
    /// This offset.
    Offset(u64),
    /// The first record at or after this time, milliseconds since 1970.
    Timestamp(i64),
}

/// Why reading came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsumeError {
    /// The topic, the partition or the cluster could not be found.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The broker refuses to serve the partition. It stops; seek to go on.
    #[error("topic '{topic}' partition {partition} offset {offset}: {error}")]
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The offset asked for.
        offset: u64,
        /// What the broker said.
        error: BrokerError,
    },
    /// A batch that arrived is damaged. The partition stops; seek past it to go on.
    #[error("topic '{topic}' partition {partition} offset {offset}: {error}; seek past it to go on")]
    CorruptBatch {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The first offset that could not be read.
        offset: u64,
        /// What is wrong with it.
        error: BatchError,
    },
    /// A compressed batch cannot be unpacked. The partition stops; seek past it to go on.
    #[error("topic '{topic}' partition {partition} offset {offset}: {error}; seek past it to go on")]
    Unpack {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The first offset that could not be read.
        offset: u64,
        /// Why not.
        error: UnpackError,
    },
    /// The topic was deleted and made again; the old offsets mean nothing. The partition stops.
    #[error("topic '{topic}' was deleted and made again; assign it anew")]
    TopicReplaced {
        /// The topic.
        topic: Arc<str>,
    },
    /// The brokers have not answered for `request_timeout`. The consumer goes on trying.
    #[error("{error}; still trying")]
    Unreachable {
        /// The last failure.
        error: ConnectionError,
    },
    /// The partition is not assigned.
    #[error("topic '{topic}' partition {partition} is not assigned; assign it first")]
    NotAssigned {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
    },
}

impl ConsumeError {
    /// The broker's error code, if a broker refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ConsumeError::Client(error) => error.code(),
            ConsumeError::Refused { error, .. } => Some(error.code),
            _ => None,
        }
    }
}

/// Reads records; see the module.
pub struct Consumer {
    cluster: Arc<Cluster>,
    fetcher: Fetcher,
    unpacked: Option<Unpacked>,
    unpacked_batch_bytes_max: usize,
}

impl Consumer {
    pub(crate) fn new(cluster: Arc<Cluster>, config: ConsumerConfig) -> Self {
        let unpacked_batch_bytes_max = config.unpacked_batch_bytes_max;
        Self {
            fetcher: Fetcher::new(cluster.clone(), config),
            cluster,
            unpacked: None,
            unpacked_batch_bytes_max,
        }
    }

    /// Reads these partitions of `topic` from now on, in place of those it read before; other topics go
    /// on. An empty list ends the topic.
    ///
    /// # Errors
    /// [`ConsumeError::Client`] for an unknown topic or partition; then nothing has changed.
    pub async fn assign(&mut self, topic: &str, partitions: &[(u32, StartFrom)]) -> Result<(), ConsumeError> {
        let known = match partitions.iter().map(|(partition, _)| *partition).max() {
            None => {
                self.forget_unpacked(topic, None);
                self.fetcher.unassign(topic);
                return Ok(());
            }
            Some(last) => match self.cluster.topic(topic).await? {
                known if (last as usize) < known.places.len() => known,
                known => self.cluster.refresh(topic, known.learnt_at).await?,
            },
        };
        let mut positions = Vec::with_capacity(partitions.len());
        for (partition, _) in partitions {
            known.place(*partition).map_err(ConsumeError::Client)?;
        }
        for (partition, start) in self.resolve(topic, partitions).await? {
            positions.push((partition, start));
        }
        self.forget_unpacked(topic, None);
        self.fetcher.assign(&known, &positions);
        Ok(())
    }

    /// Reads every partition of `topic` from `start`.
    pub async fn assign_all(&mut self, topic: &str, start: StartFrom) -> Result<(), ConsumeError> {
        let known = self.cluster.refresh(topic, std::time::Instant::now()).await?;
        let all: Vec<_> = (0..known.places.len() as u32).map(|partition| (partition, start)).collect();
        self.assign(topic, &all).await
    }

    /// Moves the position of one assigned partition. Also takes up a partition that stopped.
    pub async fn seek(&mut self, topic: &str, partition: u32, start: StartFrom) -> Result<(), ConsumeError> {
        let not_assigned = || ConsumeError::NotAssigned { topic: topic.into(), partition };
        self.fetcher.position(topic, partition).ok_or_else(not_assigned)?;
        let resolved = self.resolve(topic, &[(partition, start)]).await?;
        self.forget_unpacked(topic, Some(partition));
        for (partition, offset) in resolved {
            self.fetcher.seek(topic, partition, offset);
        }
        Ok(())
    }

    /// Reads one more partition, from `offset`; the others go on.
    pub(crate) fn add(&mut self, topic: &crate::cluster::Topic, partition: u32, offset: u64) {
        self.forget_unpacked(&topic.name, Some(partition));
        self.fetcher.add(topic, partition, offset);
    }

    /// Reads one partition less.
    pub(crate) fn remove(&mut self, topic: &str, partition: u32) {
        self.forget_unpacked(topic, Some(partition));
        self.fetcher.remove(topic, partition);
    }

    /// Stops a partition until it is sought.
    pub(crate) fn halt(&mut self, topic: &Arc<str>, partition: u32) {
        self.fetcher.halt(topic, partition);
    }

    /// Hands out nothing of a partition until [`Self::resume`]. What was fetched ahead of it is let go.
    pub fn pause(&mut self, topic: &str, partition: u32) {
        self.forget_unpacked(topic, Some(partition));
        self.fetcher.set_paused(topic, partition, true);
    }

    /// Takes up a paused partition where it was.
    pub fn resume(&mut self, topic: &str, partition: u32) {
        self.fetcher.set_paused(topic, partition, false);
    }

    /// The offset after the last record that was handed out, or where reading starts; `None` if the
    /// partition is not assigned.
    pub fn position(&self, topic: &str, partition: u32) -> Option<u64> {
        self.fetcher.position(topic, partition)
    }

    /// The offset below which records are visible, as the last fetch told; `None` before that.
    pub fn high_watermark(&self, topic: &str, partition: u32) -> Option<u64> {
        self.fetcher.high_watermark(topic, partition)
    }

    /// The next batches of any assigned partition; waits until there are some. `None` when no partition
    /// is assigned, or all have stopped with an error.
    ///
    /// Cancel safe. After [`Self::next`] it first hands out what that has not unpacked yet, from the
    /// next record on.
    ///
    /// # Errors
    /// All but [`ConsumeError::Unreachable`] stop the partition that they name until it is sought.
    pub async fn next_batch(&mut self) -> Option<Result<FetchedBatch, ConsumeError>> {
        let fetched = match self.take_rest() {
            Some(rest) => rest,
            None => match self.fetcher.next().await? {
                Item::Fetched(fetched) => fetched,
                Item::Failed(error) => return Some(Err(error)),
            },
        };
        let (topic, partition) = (fetched.topic.clone(), fetched.partition);
        match split(fetched, self.unpacked_batch_bytes_max) {
            Ok((part, rest)) => {
                self.fetcher.advance(&topic, partition, part.end_offset);
                self.unpacked = rest.map(Unpacked::of);
                Some(Ok(part))
            }
            Err(error) => {
                self.fetcher.halt(&topic, partition);
                Some(Err(error))
            }
        }
    }

    /// What [`Self::next`] has not unpacked yet, or the last part of a fetch left.
    fn take_rest(&mut self) -> Option<FetchedBatch> {
        let mut rest = self.unpacked.take()?.fetched;
        rest.from_offset = self.fetcher.position(&rest.topic, rest.partition).unwrap_or(rest.end_offset);
        (rest.from_offset < rest.end_offset).then_some(rest)
    }

    /// [`Self::next_batch`] under the name that consumers of other logs have for it.
    pub async fn poll(&mut self) -> Option<Result<FetchedBatch, ConsumeError>> {
        self.next_batch().await
    }

    /// The next record of any assigned partition; waits until there is one. `None` as in
    /// [`Self::next_batch`]. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::next_batch`].
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord, ConsumeError>> {
        loop {
            if let Some(unpacked) = &mut self.unpacked {
                if let Some(record) = unpacked.records.pop_front() {
                    self.fetcher.advance(&record.topic, record.partition, record.offset + 1);
                    return Some(Ok(record));
                }
                match unpack(unpacked, self.unpacked_batch_bytes_max) {
                    Ok(true) => continue,
                    Ok(false) => {
                        let Unpacked { fetched, .. } = unpacked;
                        self.fetcher.advance(&fetched.topic, fetched.partition, fetched.end_offset);
                        self.unpacked = None;
                    }
                    Err(error) => {
                        let Unpacked { fetched, .. } = unpacked;
                        self.fetcher.halt(&fetched.topic, fetched.partition);
                        self.unpacked = None;
                        return Some(Err(error));
                    }
                }
            }
            match self.fetcher.next().await? {
                Item::Fetched(fetched) => {
                    self.unpacked = Some(Unpacked::of(fetched));
                }
                Item::Failed(error) => return Some(Err(error)),
            }
        }
    }

    fn forget_unpacked(&mut self, topic: &str, partition: Option<u32>) {
        self.unpacked.take_if(|unpacked| {
            *unpacked.fetched.topic == *topic
                && partition.is_none_or(|partition| unpacked.fetched.partition == partition)
        });
    }

    /// Turns places into offsets, by one request per connection.
    async fn resolve(
        &self,
        topic: &str,
        partitions: &[(u32, StartFrom)],
    ) -> Result<Vec<(u32, u64)>, ConsumeError> {
        let mut positions = Vec::with_capacity(partitions.len());
        let mut asked = Vec::new();
        for (partition, start) in partitions {
            match start {
                StartFrom::Offset(offset) => positions.push((*partition, *offset)),
                StartFrom::Earliest => asked.push((*partition, OffsetSpec::Earliest)),
                StartFrom::Latest => asked.push((*partition, OffsetSpec::Latest)),
                StartFrom::Timestamp(ms) => asked.push((*partition, OffsetSpec::Timestamp(*ms))),
            }
        }
        if !asked.is_empty() {
            let listed = admin::list_offsets(&self.cluster, topic, &asked).await?;
            positions.extend(listed.into_iter().map(|listed| (listed.partition, listed.offset)));
        }
        Ok(positions)
    }
}
