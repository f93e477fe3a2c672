//! Fetch, top to bottom: from a frame's entries to stored batches on the socket.
//!
//! ```text
//! handle → tail caches (in memory, at once) → reply
//!        → else a task: [`job::Job`] reads here and at other cores, and waits for more → reply
//! ```
//!
//! Runs on the shard that the connection is on. Batches go out as they are stored, from the buffers they
//! were written from or read into. Room for the reply is reserved before anything is read; too few bytes:
//! the fetch is parked in `fetch_waiters`, holds no room, and costs nothing until the watermark moves or
//! its time is over.

mod job;

use crate::connection::{InFlight, Received};
use crate::outbox::Piece;
use crate::partition::tail_cache::Slice;
use crate::shard::Shard;
use crate::stall;
use crate::storage::count;
use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::select;
use job::{Job, Parking, Refusal, Terms};
use logic::ids::{Offset, PartitionIndex, TopicId, TopicPartition};
use logic::limits::{BATCH_BYTES_MAX, FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX, TOPICS_PER_REQUEST_MAX};
use schema::error_code::ErrorCode;
use schema::wire;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

const RETRY_AFTER_MS: u32 = 50;
/// A long poll ends before its request's deadline by this part of the time, so that its answer is not late.
const ANSWER_PART: u64 = 8;

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
    /// A follower may answer, too.
    pub from_follower: bool,
}

/// Room in a reply.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes of all entries together.
    pub bytes: usize,
    /// The first batch may be larger.
    pub one_batch: bool,
}

/// Entries for partitions of another shard, to be read now.
#[derive(Debug)]
pub struct RemoteFetch {
    /// The entries.
    pub entries: Vec<FetchEntry>,
    /// Bytes that the asking shard has room for.
    pub room: Room,
    /// Not to be done any more from then on, milliseconds of the broker's clock.
    pub deadline_ms: u64,
}

/// Partitions of another shard that a fetch waits for.
#[derive(Debug)]
pub struct RemoteWait {
    /// The partitions.
    pub entries: Vec<WaitedEntry>,
    /// New bytes to wait for, of all together…
    pub min_bytes: u64,
    /// … until then, milliseconds of the broker's clock.
    pub until_ms: u64,
}

/// A partition that a fetch waits for.
#[derive(Clone, Copy, Debug)]
pub struct WaitedEntry {
    /// What is waited for.
    pub entry: FetchEntry,
    /// The high watermark that is known.
    pub seen: u64,
    /// New bytes that count.
    pub room_bytes: u64,
}

/// What was found for one entry; `B` is a piece of stored batches.
#[derive(Debug)]
pub struct Found<B> {
    /// Why there is nothing.
    pub error: Option<ErrorCode>,
    /// For people: the offsets that are damaged, for example.
    pub message: Option<String>,
    /// Stored batches.
    pub body: Vec<B>,
    /// Their bytes.
    pub bytes: usize,
    /// There is more, but not room for it in the reply.
    pub cut: bool,
    /// The high watermark.
    pub high_watermark: u64,
    /// The log's start.
    pub log_start: u64,
}

impl<B> Found<B> {
    fn nothing(error: Option<ErrorCode>) -> Self {
        Self { error, message: None, body: Vec::new(), bytes: 0, cut: false, high_watermark: 0, log_start: 0 }
    }

    /// The same, with other pieces of the same bytes.
    fn map<C>(self, piece: impl FnMut(B) -> C) -> Found<C> {
        Found {
            error: self.error,
            message: self.message,
            body: self.body.into_iter().map(piece).collect(),
            bytes: self.bytes,
            cut: self.cut,
            high_watermark: self.high_watermark,
            log_start: self.log_start,
        }
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
        let waker = self.waker.take();
        if let Some(waker) = waker {
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
pub fn handle(
    shard: &Rc<Shard>,
    id: u64,
    request: wire::FetchRequest<'_>,
    received: Received,
    in_flight: InFlight,
) {
    let connection = in_flight.connection().clone();
    let mut entries = Vec::new();
    let mut topics = Vec::new();
    let rack = request.rack().filter(|rack| !rack.is_empty());
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
            from_follower: rack.is_some(),
        }));
    }
    if entries.is_empty() || topics.len() > TOPICS_PER_REQUEST_MAX {
        return connection.reply_error(id, ErrorCode::InvalidRequest, "a fetch names 1 to 4096 topics", 0);
    }
    let terms = terms(shard.now_ms(), &request, received.deadline_ms());
    let asked = Asked { id, received_ns: received.done_ns, in_flight, topics, rack: rack.map(Box::from) };
    let job = Job { shard: shard.clone(), connection, entries, terms };
    if let Some((found, _held)) = job.in_memory() {
        return asked.reply(&job.entries, found);
    }
    stall::spawn("a fetch", async move {
        match job.run().await {
            // Queued first, then the reservation is given back.
            Ok((found, _held)) => asked.reply(&job.entries, found),
            Err(Refusal::Overloaded) => {
                count(&job.shard.counters.overloaded, 1);
                let text = "replies of this core wait for slow consumers";
                job.connection.reply_error(id, ErrorCode::Overloaded, text, RETRY_AFTER_MS);
            }
            Err(Refusal::TimedOut) => job.connection.reply_late(id),
            Err(Refusal::Gone) => {}
        }
    })
    .detach();
}

fn terms(now_ms: u64, request: &wire::FetchRequest<'_>, deadline_ms: u64) -> Terms {
    let wait_until_ms = now_ms + u64::from(request.max_wait_ms()).min(FETCH_WAIT_MS_MAX);
    let answer_ms = deadline_ms.saturating_sub(now_ms) / ANSWER_PART;
    Terms {
        min_bytes: request.min_bytes() as usize,
        wait_until_ms: wait_until_ms.min(deadline_ms - answer_ms),
        deadline_ms,
        max_bytes: (request.max_bytes() as usize).min(FETCH_BYTES_MAX),
    }
}

/// Reads entries that another shard sent on, and never waits: the other holds room for the answer.
pub fn handle_remote(shard: &Rc<Shard>, remote: RemoteFetch, reply: oneshot::Sender<Vec<Found<Bytes>>>) {
    // What is read is in this shard's memory until it has been copied.
    let held = shard.replies.try_reserve(remote.room.bytes.max(BATCH_BYTES_MAX));
    let refusal = match &held {
        None => Some(ErrorCode::Overloaded),
        Some(_) if shard.now_ms() >= remote.deadline_ms => Some(ErrorCode::TimedOut),
        Some(_) => None,
    };
    if let Some(code) = refusal {
        count(&shard.counters.overloaded, u64::from(code == ErrorCode::Overloaded));
        // The asking shard may have answered without this part.
        let _ = reply.send(remote.entries.iter().map(|_| Found::nothing(Some(code))).collect());
        return;
    }
    let shard = shard.clone();
    stall::spawn("a fetch for another core", async move {
        let found = job::read(&shard, &remote.entries, remote.room).await;
        remote.entries.iter().zip(&found).for_each(|(entry, found)| count_traffic(&shard, entry, found));
        // Buffers stay with their core: what goes to another is copied.
        let copy = |slice: Slice| Bytes::copy_from_slice(slice.bytes());
        let parts = found.into_iter().map(|found| found.map(copy));
        let _ = reply.send(parts.collect());
        drop(held);
    })
    .detach();
}

/// Counts what leaves a partition of this shard; another's is counted there.
fn count_traffic<B>(shard: &Shard, entry: &FetchEntry, found: &Found<B>) {
    if let Some(partition) = shard.store.partition(&entry.id) {
        partition.traffic.fetched(found.bytes);
        if found.error.is_none() && !partition.standing().leads {
            count(&shard.counters.follower_fetches, 1);
            count(&shard.counters.follower_fetched_bytes, found.bytes as u64);
        }
    }
}

/// Waits for another shard's fetch; answers whether there may be something, `false` = it was not waited.
pub fn handle_wait(shard: &Rc<Shard>, wait: RemoteWait, mut reply: oneshot::Sender<bool>) {
    let parked = match job::park(shard, &wait) {
        Parking::Parked(parked) => parked,
        not_parked => {
            // The asking shard may have been woken by somebody else.
            let _ = reply.send(matches!(not_parked, Parking::Moved));
            return;
        }
    };
    stall::spawn("a fetch that waits for another core", async move {
        // Until the other end is dropped: it was woken elsewhere.
        select(pin!(parked.woken()), reply.cancellation()).await;
        let _ = reply.send(true);
    })
    .detach();
}

/// Who asked, and where the answer goes.
struct Asked {
    id: u64,
    received_ns: u64,
    in_flight: InFlight,
    /// How many entries are of each topic.
    topics: Vec<(TopicId, usize)>,
    /// Where the consumer is, if it wants to be told of followers that are nearer than the leader.
    rack: Option<Box<str>>,
}

impl Asked {
    /// Replicas that the consumer is to read from the next fetch on, in place of this broker, which leads.
    fn preferred(&self, shard: &Shard, entries: &[FetchEntry]) -> Vec<wire::PreferredReplica> {
        let Some(rack) = &self.rack else { return Vec::new() };
        let image = shard.image();
        let leads = |id| image.partition(id).is_some_and(|entry| entry.leader == Some(shard.identity.broker));
        let led = entries.iter().enumerate().filter(|(_, entry)| leads(entry.id));
        led.filter_map(|(at, entry)| {
            let (broker, home) = image.replica_in_rack(rack, entry.id)?;
            Some(wire::PreferredReplica::new(at as u32, broker.get(), u32::from(home.get()), 0))
        })
        .collect()
    }

    fn reply(&self, entries: &[FetchEntry], found: Vec<Found<Piece>>) {
        let (id, topics) = (self.id, &self.topics);
        let shard = &self.in_flight.connection().shard;
        shard.fetch_times.record(shard.now_ns().saturating_sub(self.received_ns) / 1000);
        count(&shard.counters.fetched_bytes, found.iter().map(|found| found.bytes as u64).sum());
        entries.iter().zip(&found).for_each(|(entry, found)| count_traffic(shard, entry, found));
        let preferred = self.preferred(shard, entries);
        let mut lists = Vec::with_capacity(found.len());
        let mut body = Vec::new();
        let mut message = None;
        let busy = found.iter().any(|found| found.error == Some(ErrorCode::Overloaded));
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
        self.in_flight.connection().reply(body, |builder| {
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
            let preferred = (!preferred.is_empty()).then(|| builder.create_vector(&preferred));
            let args = wire::FetchResponseArgs { topics: Some(topics), preferred };
            let api = wire::FetchResponse::create(builder, &args);
            let message = message.map(|message| builder.create_string(&message));
            wire::Response::create(
                builder,
                &wire::ResponseArgs {
                    id,
                    message,
                    retry_after_ms: if busy { RETRY_AFTER_MS } else { 0 },
                    api_type: wire::ResponseApi::FetchResponse,
                    api: Some(api.as_union_value()),
                    ..Default::default()
                },
            )
        });
    }
}
