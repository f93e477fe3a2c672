//! Fetch, top to bottom: from a frame's entries to stored batches on the socket.
//!
//! ```text
//! handle → tail caches (in memory, at once) → reply
//!        → else a task: read here and at other cores → enough? reply : park → woken or expired → again
//! ```
//!
//! Runs on the shard that the connection is on. Batches go out as they are stored, from the buffers they
//! were written from or read into. Too few bytes: the fetch is parked in `fetch_waiters` and costs
//! nothing until the watermark moves or its time is over.

use crate::connection::{InFlight, Piece};
use crate::error_code;
use crate::mailbox::{Message, Refused};
use crate::partition::tail_cache::Slice;
use crate::shard::{Location, Partition, Shard};
use crate::storage::count;
use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use logic::fetch_waiters::{NotParked, Waited, WaiterKey};
use logic::ids::{Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX, REPLY_BYTES_PER_SHARD_MAX, TOPICS_PER_REQUEST_MAX};
use schema::error_code::ErrorCode;
use schema::wire;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

const RETRY_AFTER_MS: u32 = 50;

/// One entry of a fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchEntry {
    /// The partition.
    pub id: TopicPartition,
    /// From here on.
    pub offset: Offset,
    /// Bytes at most; one batch in any case.
    pub max_bytes: usize,
    /// The epoch that the client believes in.
    pub leader_epoch: u32,
}

/// What a fetch wants.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Wait for so many bytes…
    pub min_bytes: usize,
    /// … for so long, milliseconds.
    pub max_wait_ms: u64,
    /// Bytes of the whole reply at most.
    pub max_bytes: usize,
}

/// Entries for partitions of another shard.
#[derive(Debug)]
pub struct RemoteFetch {
    /// The entries.
    pub entries: Vec<FetchEntry>,
    /// What they want.
    pub terms: Terms,
}

/// What another shard found for one entry.
#[derive(Debug)]
pub struct FetchPart {
    /// Why there is nothing.
    pub error: Option<ErrorCode>,
    /// The same for people.
    pub message: Option<String>,
    /// Stored batches.
    pub body: Vec<Bytes>,
    /// The high watermark.
    pub high_watermark: u64,
    /// The log's start.
    pub log_start: u64,
}

/// What was found for one entry.
struct Found {
    error: Option<ErrorCode>,
    /// For people: the offsets that are damaged, for example.
    message: Option<String>,
    body: Vec<Piece>,
    bytes: usize,
    high_watermark: u64,
    log_start: u64,
}

impl Found {
    fn nothing(error: Option<ErrorCode>) -> Self {
        Self { error, message: None, body: Vec::new(), bytes: 0, high_watermark: 0, log_start: 0 }
    }

    fn stored(partition: &Partition, slices: Vec<Slice>) -> Self {
        let bytes = slices.iter().map(|slice| slice.range.len()).sum();
        let body = slices.into_iter().map(Piece::Stored).collect();
        Self { bytes, body, ..Self::at(partition, None) }
    }

    fn at(partition: &Partition, error: Option<ErrorCode>) -> Self {
        let (high_watermark, log_start) =
            partition.with_log(|log| (log.high_watermark().get(), log.log_start().get()));
        Self { error, message: None, body: Vec::new(), bytes: 0, high_watermark, log_start }
    }
}

/// A fetch that waits for bytes.
#[derive(Debug, Default)]
pub struct ParkedFetch {
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl ParkedFetch {
    /// There is something, or the time is over.
    pub fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|context| {
            if self.woken.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Handles a fetch request.
pub fn handle(shard: &Rc<Shard>, id: u64, request: wire::FetchRequest<'_>, in_flight: InFlight) {
    let connection = in_flight.connection().clone();
    let terms = Terms {
        min_bytes: request.min_bytes() as usize,
        max_wait_ms: u64::from(request.max_wait_ms()).min(FETCH_WAIT_MS_MAX),
        max_bytes: (request.max_bytes() as usize).min(FETCH_BYTES_MAX),
    };
    let mut entries = Vec::new();
    let mut topics = Vec::new();
    for topic in request.topics().iter().flatten() {
        let (Some(topic_id), Some(list)) = (topic.id(), topic.entries()) else {
            return connection.reply_error(id, ErrorCode::InvalidRequest, "a topic without id or entries", 0);
        };
        let topic_id = TopicId::new(topic_id.as_u128());
        topics.push((topic_id, list.len()));
        entries.extend(list.iter().map(|entry| FetchEntry {
            id: TopicPartition { topic: topic_id, partition: PartitionIndex::new(entry.partition()) },
            offset: Offset::new(entry.offset()),
            max_bytes: entry.max_bytes() as usize,
            leader_epoch: entry.leader_epoch(),
        }));
    }
    if entries.is_empty() || topics.len() > TOPICS_PER_REQUEST_MAX {
        return connection.reply_error(id, ErrorCode::InvalidRequest, "a fetch names 1 to 4096 topics", 0);
    }
    if shard.reply_bytes() >= REPLY_BYTES_PER_SHARD_MAX {
        count(&shard.counters.overloaded, 1);
        let text = "replies of this core wait for slow consumers";
        return connection.reply_error(id, ErrorCode::Overloaded, text, RETRY_AFTER_MS);
    }
    let job = Job { shard: shard.clone(), entries, terms };
    if let Some(found) = job.in_memory() {
        return reply(id, &in_flight, &topics, &job.entries, found);
    }
    glommio::spawn_local(async move {
        let found = job.run(true).await;
        reply(id, &in_flight, &topics, &job.entries, found);
    })
    .detach();
}

/// Handles entries that another shard sent on.
pub fn handle_remote(shard: &Rc<Shard>, remote: RemoteFetch, reply: oneshot::Sender<Vec<FetchPart>>) {
    let job = Job { shard: shard.clone(), entries: remote.entries, terms: remote.terms };
    glommio::spawn_local(async move {
        let parts = job.run(false).await.into_iter().map(|found| FetchPart {
            error: found.error,
            message: found.message,
            // Buffers stay with their core: what goes to another is copied.
            body: found
                .body
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Stored(slice) => Some(Bytes::copy_from_slice(slice.bytes())),
                    Piece::Owned(_) | Piece::Copied(_) => None,
                })
                .collect(),
            high_watermark: found.high_watermark,
            log_start: found.log_start,
        });
        // The asking shard may have answered without this part.
        let _ = reply.send(parts.collect());
    })
    .detach();
}

/// A place among the waiting fetches, given up when dropped.
struct Place<'a> {
    shard: &'a Shard,
    key: WaiterKey,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shard.waiters.borrow_mut().remove(self.key);
    }
}

/// A fetch that is not answered.
struct Job {
    shard: Rc<Shard>,
    entries: Vec<FetchEntry>,
    terms: Terms,
}

impl Job {
    /// The whole answer, if it lies in memory and is enough.
    fn in_memory(&self) -> Option<Vec<Found>> {
        let mut all = Vec::with_capacity(self.entries.len());
        let mut total = 0;
        for entry in &self.entries {
            let Location::Here(partition) = self.shard.locate(entry.id) else { return None };
            if entry.leader_epoch != partition.leader_epoch().get() {
                return None;
            }
            let room = self.room(entry, total);
            let found = match room {
                0 => Found::at(&partition, None),
                _ => Found::stored(&partition, partition.read_tail(entry.offset, room)?),
            };
            total += found.bytes;
            all.push(found);
        }
        (total >= self.terms.min_bytes.max(1)).then(|| {
            count(&self.shard.counters.fetches_from_memory, 1);
            all
        })
    }

    /// Bytes that an entry may still get; the first one to give bytes gets a batch in any case.
    fn room(&self, entry: &FetchEntry, total: usize) -> usize {
        let left = self.terms.max_bytes.saturating_sub(total);
        entry.max_bytes.min(left).max(usize::from(total == 0))
    }

    /// Reads until there is enough or the time is over. `may_forward`: entries of other shards are sent on.
    async fn run(&self, may_forward: bool) -> Vec<Found> {
        let deadline_ms = self.shard.now_ms() + self.terms.max_wait_ms;
        let mut remote: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        let mut local = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            match self.shard.locate(entry.id) {
                Location::Shard(home) if may_forward => remote.entry(home).or_default().push(at),
                _ => local.push(at),
            }
        }
        let mut parts: FuturesUnordered<LocalBoxFuture<'_, Vec<(usize, Found)>>> = FuturesUnordered::new();
        for (home, at) in remote {
            parts.push(Box::pin(self.forward(home, at)));
        }
        if !local.is_empty() {
            parts.push(Box::pin(self.read_local(local, deadline_ms)));
        }
        let mut all: Vec<Option<Found>> = self.entries.iter().map(|_| None).collect();
        let mut total = 0;
        let mut failed = false;
        while let Some(part) = parts.next().await {
            for (at, found) in part {
                total += found.bytes;
                failed |= found.error.is_some();
                all[at] = Some(found);
            }
            // What is still waiting elsewhere answers when its time is over, to nobody.
            if total >= self.terms.min_bytes || failed {
                break;
            }
        }
        all.into_iter().map(|found| found.unwrap_or_else(|| Found::nothing(None))).collect()
    }

    /// Reads this shard's entries, waiting as the terms say.
    async fn read_local(&self, at: Vec<usize>, deadline_ms: u64) -> Vec<(usize, Found)> {
        loop {
            // Noted before reading: what becomes visible meanwhile is not missed.
            let parked = Rc::new(ParkedFetch::default());
            let mut found = Vec::with_capacity(at.len());
            let mut total = 0;
            let mut failed = false;
            for &at in &at {
                let one = self.read(&self.entries[at], total).await;
                total += one.bytes;
                failed |= one.error.is_some();
                found.push((at, one));
            }
            let now_ms = self.shard.now_ms();
            let enough = total >= self.terms.min_bytes.max(1) || failed || self.shard.is_stopping();
            if enough || now_ms >= deadline_ms {
                return found;
            }
            // Something may have become visible while another entry was read.
            let moved = found.iter().any(|(at, one)| {
                let entry = &self.entries[*at];
                one.bytes < entry.max_bytes
                    && self
                        .shard
                        .store
                        .partition(&entry.id)
                        .is_none_or(|p| p.high_watermark().get() > one.high_watermark)
            });
            if moved {
                continue;
            }
            let Some(key) = self.park(&parked, &found, now_ms, deadline_ms) else { return found };
            // Buffers are not held while waiting; a wait that is given up leaves nothing behind.
            drop(found);
            let _place = Place { shard: &self.shard, key };
            parked.wait().await;
        }
    }

    fn park(
        &self,
        parked: &Rc<ParkedFetch>,
        found: &[(usize, Found)],
        now_ms: u64,
        deadline_ms: u64,
    ) -> Option<WaiterKey> {
        let waited: Vec<Waited> = found
            .iter()
            .map(|(at, one)| Waited {
                partition: self.entries[*at].id,
                have_bytes: one.bytes as u64,
                max_bytes: self.entries[*at].max_bytes.max(one.bytes + 1) as u64,
            })
            .collect();
        let min_bytes = self.terms.min_bytes.max(1) as u64;
        let result =
            self.shard.waiters.borrow_mut().park(parked.clone(), now_ms, deadline_ms, min_bytes, &waited);
        match result {
            Ok(key) => Some(key),
            Err(NotParked::Ready(_)) => None,
            Err(NotParked::Full(_)) => {
                count(&self.shard.counters.overloaded, 1);
                None
            }
        }
    }

    async fn read(&self, entry: &FetchEntry, total: usize) -> Found {
        let partition = match self.shard.locate(entry.id) {
            Location::Here(partition) => partition,
            Location::Shard(_) => return Found::nothing(Some(ErrorCode::NotLeader)),
            Location::Nowhere(code) => return Found::nothing(Some(code)),
        };
        if entry.leader_epoch != partition.leader_epoch().get() {
            return Found::at(&partition, Some(ErrorCode::FencedLeaderEpoch));
        }
        let room = self.room(entry, total);
        if room == 0 {
            return Found::at(&partition, None);
        }
        if let Some(slices) = partition.read_tail(entry.offset, room) {
            count(&self.shard.counters.fetches_from_memory, 1);
            return Found::stored(&partition, slices);
        }
        match partition.read(&self.shard.store.chunks, entry.offset, room).await {
            Ok(slices) => {
                count(&self.shard.counters.fetches_from_device, u64::from(!slices.is_empty()));
                Found::stored(&partition, slices)
            }
            Err(error) => {
                tracing::debug!("partition {}: fetch of {}: {error}", entry.id, entry.offset);
                let label = self.shard.store.storage.label(entry.id);
                let message = Some(format!("{label}: {error}"));
                Found { message, ..Found::at(&partition, Some(error_code::of_read(&error))) }
            }
        }
    }

    async fn forward(&self, home: ShardId, at: Vec<usize>) -> Vec<(usize, Found)> {
        count(&self.shard.counters.forwarded, 1);
        let entries = at.iter().map(|&at| self.entries[at]).collect();
        let (reply, parts) = oneshot::channel();
        let message = Message::Fetch(RemoteFetch { entries, terms: self.terms }, reply);
        let code = match self.shard.mailboxes.try_send(home, message, 256) {
            Ok(()) => match parts.await {
                Ok(parts) => {
                    return at.into_iter().zip(parts).map(|(at, part)| (at, part.into())).collect();
                }
                Err(_) => ErrorCode::ShuttingDown,
            },
            Err(Refused::Full) => ErrorCode::Overloaded,
            Err(Refused::Closed) => ErrorCode::ShuttingDown,
        };
        at.into_iter().map(|at| (at, Found::nothing(Some(code)))).collect()
    }
}

impl From<FetchPart> for Found {
    fn from(part: FetchPart) -> Self {
        Self {
            error: part.error,
            message: part.message,
            bytes: part.body.iter().map(Bytes::len).sum(),
            body: part.body.into_iter().map(Piece::Copied).collect(),
            high_watermark: part.high_watermark,
            log_start: part.log_start,
        }
    }
}

fn reply(
    id: u64,
    in_flight: &InFlight,
    topics: &[(TopicId, usize)],
    entries: &[FetchEntry],
    found: Vec<Found>,
) {
    let shard = &in_flight.connection().shard;
    count(&shard.counters.fetched_bytes, found.iter().map(|found| found.bytes as u64).sum());
    let mut lists = Vec::with_capacity(found.len());
    let mut body = Vec::new();
    let mut message = None;
    let mut found = entries.iter().zip(found);
    for (topic, entries) in topics {
        let mut list = Vec::with_capacity(*entries);
        for (entry, one) in found.by_ref().take(*entries) {
            list.push((entry.id.partition, one.error, one.bytes, one.high_watermark, one.log_start));
            body.extend(one.body);
            message = message.or(one.message);
        }
        lists.push((*topic, list));
    }
    in_flight.connection().reply(body, |builder| {
        let topics: Vec<_> = lists
            .iter()
            .map(|(topic, list)| {
                let results: Vec<wire::FetchResult> = list
                    .iter()
                    .map(|(partition, error, bytes, high_watermark, log_start)| {
                        wire::FetchResult::new(
                            partition.get(),
                            *bytes as u32,
                            error.map_or(0, ErrorCode::to_wire),
                            0,
                            0,
                            *high_watermark,
                            *log_start,
                        )
                    })
                    .collect();
                let results = builder.create_vector(&results);
                wire::FetchTopicResult::create(
                    builder,
                    &wire::FetchTopicResultArgs {
                        id: Some(&wire::TopicId::from_u128(topic.get())),
                        results: Some(results),
                    },
                )
            })
            .collect();
        let topics = builder.create_vector(&topics);
        let api = wire::FetchResponse::create(builder, &wire::FetchResponseArgs { topics: Some(topics) });
        let message = message.map(|message| builder.create_string(&message));
        wire::Response::create(
            builder,
            &wire::ResponseArgs {
                id,
                message,
                api_type: wire::ResponseApi::FetchResponse,
                api: Some(api.as_union_value()),
                ..Default::default()
            },
        )
    });
}
