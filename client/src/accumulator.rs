//! What a producer has taken and not yet settled: batches by partition, lanes by connection.
//!
//! Owner: one per producer, behind its lock; clones of the producer append, its one sender task drains
//! and settles. A state machine: no IO, no await, time passed in. Lifecycle of a batch: open (records
//! are added) → ready (closed, in order) → in flight → settled, or back to ready after a failure that
//! can be repeated. Invariants: batches of a partition leave in the order of their sequence; after a
//! failure nothing of that partition leaves before everything in flight is settled, and then the failed
//! batch goes alone; at most one batch per partition in a request; at most `max_in_flight` requests per
//! lane. With idempotence a batch gets its sequence when it first leaves and keeps it until the broker has said
//! that it is not in the log; none leaves [`IN_FLIGHT_PER_PARTITION`] behind one of its partition that is out. Absent on purpose: the
//! connections, and what a reply means ([`crate::sender`]).

use crate::client::ClientError;
use crate::cluster::{Home, Topic};
use crate::delivery::{BatchReceipt, Outcome, ProduceError};
use crate::producer::{BATCH_SIZE_MAX, Linger, ProducerConfig};
use crate::request::{Acks, TopicId};
use crate::sequencer::Sequencer;
use bytes::{Bytes, BytesMut};
use schema::compression::compress;
use schema::record_batch::{self, BatchBuilder, Compression, Producer as Stamp};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// One request carries at most this many bytes of batches, one batch excepted.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Bytes of a request that are not batches: envelope and topics.
const REQUEST_BYTES_HEAD: usize = 4 << 10;
/// Bytes that an entry adds to a request besides its batch, a topic of its own included.
const ENTRY_BYTES: usize = 96;

/// Batches of one partition that an idempotent producer sends from the oldest unanswered one on: what the broker recognises.
const IN_FLIGHT_PER_PARTITION: u64 = 5;

/// Memory of settled batches kept for new ones, because fresh memory costs page faults.
const SPARES_MAX: usize = 8;
/// Bounds of what is worth keeping, bytes.
const SPARE_BYTES_MIN: usize = 16 << 10;
const SPARE_BYTES_MAX: usize = 2 * BATCH_SIZE_MAX;

/// Memory of the producer's budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    bytes: usize,
    budget: Arc<Semaphore>,
}

impl Reservation {
    /// `bytes` that were acquired from `budget` and forgotten.
    pub(crate) fn new(bytes: usize, budget: Arc<Semaphore>) -> Self {
        Self { bytes, budget }
    }

    fn merge(&mut self, mut other: Reservation) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.add_permits(self.bytes);
    }
}

/// A partition, by the topic's position in the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub topic: usize,
    pub partition: u32,
}

#[derive(Debug)]
enum Payload {
    Building(BatchBuilder),
    Encoded(Bytes),
}

/// One batch on its way. Dropped unsettled, it tells its futures that the producer is closed.
#[derive(Debug)]
pub(crate) struct Batch {
    pub route: Route,
    pub record_count: u32,
    pub outcome: Arc<Outcome>,
    pub created_at: Instant,
    /// How often it was sent or tried.
    pub attempts: u32,
    /// Whether an attempt ended without a word from the broker.
    pub outcome_unknown: bool,
    sequence: u64,
    /// Of the leader that it was sent to last.
    leader_epoch: u32,
    payload: Payload,
    /// Whether it gets a sequence: not what was encoded elsewhere.
    stampable: bool,
    /// Who sent it, for the broker, once it has left.
    stamp: Option<Stamp>,
    /// The stamp that the encoded bytes have.
    encoded_stamp: Option<Stamp>,
    memory: Reservation,
    reason: Option<Arc<str>>,
}

impl Batch {
    /// The encoded batch; the first time costs the CRC, and compression, a change of its sequence the CRC.
    pub(crate) fn encoded(&mut self, compression: Compression) -> Bytes {
        if let Payload::Building(builder) = &mut self.payload {
            builder.set_producer(self.stamp.unwrap_or(Stamp::NONE));
            self.payload = Payload::Encoded(compress(builder.finish(), compression).into());
            self.encoded_stamp = self.stamp;
        }
        if let (Payload::Encoded(bytes), true) = (&mut self.payload, self.stamp != self.encoded_stamp) {
            // A connection that is being closed may hold the old bytes still.
            let taken = std::mem::take(bytes).try_into_mut();
            let mut batch = taken.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            record_batch::set_producer(&mut batch, self.stamp.unwrap_or(Stamp::NONE));
            *bytes = batch.freeze();
            self.encoded_stamp = self.stamp;
        }
        match &self.payload {
            Payload::Encoded(bytes) => bytes.clone(),
            Payload::Building(_) => unreachable!("encoded just above"),
        }
    }

    /// The memory of a batch that is done with, where nobody else holds it.
    fn spare(&mut self) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.payload, Payload::Encoded(Bytes::new())) {
            Payload::Encoded(bytes) => bytes.try_into_mut().ok().map(Vec::from),
            Payload::Building(_) => None,
        }
    }

    /// Whether the broker would recognise it if it came again.
    pub(crate) fn is_recognised(&self) -> bool {
        self.stamp.is_some()
    }

    /// It is not in the log, and never will be under the sequence that it had.
    fn unstamp(&mut self) {
        if self.stamp.take().is_some() {
            self.outcome_unknown = false;
        }
    }

    fn bytes(&self) -> usize {
        match &self.payload {
            Payload::Building(builder) => builder.len_bytes(),
            Payload::Encoded(bytes) => bytes.len(),
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.outcome.settle(Err(ProduceError::Closed));
    }
}

/// What became of one attempt.
#[derive(Debug)]
pub(crate) enum Verdict {
    Acknowledged(BatchReceipt),
    /// Try again, not before `wait`.
    Retry {
        wait: Duration,
        /// Learn where the partition is first.
        refresh: bool,
        /// It may have been appended.
        outcome_unknown: bool,
        reason: Arc<str>,
    },
    /// Batches before it are missing: it is not in the log, and under this epoch never will be. Try again
    /// under the next.
    OutOfSequence {
        reason: Arc<str>,
    },
    Failed(ProduceError),
}

/// One request to be sent.
#[derive(Debug)]
pub(crate) struct Flight {
    pub home: Home,
    /// Batches of one topic stand together; with each the topic's id and the partition's leader epoch.
    pub cargo: Vec<(Batch, TopicId, u32)>,
}

/// What the sender is to do.
#[derive(Debug)]
pub(crate) enum Work {
    Open(Home),
    Send(Flight),
    Refresh(usize, Arc<str>),
    /// Give up what the connection has in flight: its broker is silent, and others lead by now.
    Abandon(Home),
    /// Get an id for the producer.
    Identify,
}

/// A record, borrowed from the caller until it is encoded.
pub(crate) struct RecordParts<'a> {
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Upper bound of the encoded record.
    pub bytes_max: usize,
}

/// Where an appended record went.
pub(crate) struct Appended {
    pub outcome: Arc<Outcome>,
    pub index: u32,
    /// Whether the sender has something new to look at.
    pub wake: bool,
}

#[derive(Default)]
struct Queue {
    lane: usize,
    open: Option<Batch>,
    ready: VecDeque<Batch>,
    in_flight: Vec<(u64, Arc<Outcome>)>,
    /// Something failed: one at a time until it is settled.
    recovering: bool,
    retry_at: Option<Instant>,
    next_sequence: u64,
    sequencer: Sequencer,
    /// Whether the lane's list of active partitions has it.
    active: bool,
    /// Whether the sender was told that the open batch may leave.
    signalled: bool,
    /// What the next batch is likely to need.
    batch_bytes_last: usize,
    /// Of the leader that `lane` leads to.
    leader_epoch: u32,
    /// The leader has failed, or said that it is none, and no newer one has been learnt of since.
    leader_failed: bool,
}

impl Queue {
    /// Whether the next batch would come so far behind the oldest one in flight that the broker might not recognise that
    /// one any more, if it had to be sent again. Not the number in flight: answers come in any order, as a request that has
    /// batches of several partitions waits for all of them.
    fn is_far_ahead(&self) -> bool {
        let Some(oldest) = self.in_flight.iter().map(|(sequence, _)| *sequence).min() else { return false };
        let next = self.ready.front().or(self.open.as_ref()).map_or(self.next_sequence, |next| next.sequence);
        next >= oldest + IN_FLIGHT_PER_PARTITION
    }
}

struct TopicQueues {
    topic: Arc<Topic>,
    queues: Vec<Queue>,
    /// Where records go that may go anywhere.
    sticky: u32,
    refresh_wanted: bool,
    refreshing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Closed,
    Opening,
    Open { request_bytes_max: usize },
}

struct Lane {
    home: Home,
    link: Link,
    in_flight: usize,
    /// No request before this: back-off after a failed connection, or the broker's throttle.
    not_before: Option<Instant>,
    failures: u32,
    active: VecDeque<Route>,
    /// Since when it has been connecting, or nothing has come back of what is in flight.
    silent_since: Option<Instant>,
    /// When its partitions' leaders were last asked for because of that.
    checked_at: Option<Instant>,
}

impl Lane {
    fn silent_for(&self, now: Instant) -> Duration {
        self.silent_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// See the module.
pub(crate) struct Accumulator {
    batch_size: usize,
    linger: Linger,
    max_in_flight: usize,
    delivery_timeout: Duration,
    leader_check_after: Duration,
    topics: Vec<TopicQueues>,
    by_name: HashMap<Arc<str>, usize>,
    lanes: Vec<Lane>,
    unsettled: usize,
    closing: bool,
    first_failure: Option<ProduceError>,
    spares: Vec<Vec<u8>>,
    idempotent: bool,
    identity: Identity,
    abandoned: Vec<Home>,
}

/// The producer's id and epoch, and how it comes.
#[derive(Default)]
struct Identity {
    known: Option<(i64, i16)>,
    wanted: bool,
    asking: bool,
    retry_at: Option<Instant>,
    failures: u32,
    reason: Option<Arc<str>>,
}

/// Whether something can leave a partition.
enum Leave {
    Now,
    At(Instant),
    NotYet,
}

impl Accumulator {
    /// `leader_check_after`: how long a lane may be silent before its partitions' leaders are asked for.
    pub(crate) fn new(config: &ProducerConfig, leader_check_after: Duration) -> Self {
        Self {
            batch_size: config.batch_size,
            linger: config.linger,
            max_in_flight: config.max_in_flight_requests_per_connection,
            delivery_timeout: config.delivery_timeout,
            leader_check_after,
            topics: Vec::new(),
            by_name: HashMap::new(),
            lanes: Vec::new(),
            unsettled: 0,
            closing: false,
            first_failure: None,
            spares: Vec::new(),
            idempotent: config.enable_idempotence && config.acks != Acks::None,
            identity: Identity::default(),
            abandoned: Vec::new(),
        }
    }

    /// Position and topic of a name that was registered.
    pub(crate) fn find(&self, name: &str) -> Option<(usize, Arc<Topic>)> {
        let index = *self.by_name.get(name)?;
        Some((index, self.topics[index].topic.clone()))
    }

    /// Registers a topic, or takes up what was learnt about it.
    pub(crate) fn learn(&mut self, topic: Arc<Topic>, now: Instant) -> usize {
        let index = match self.by_name.get(&topic.name) {
            Some(index) => *index,
            None => {
                let index = self.topics.len();
                self.by_name.insert(topic.name.clone(), index);
                self.topics.push(TopicQueues {
                    topic: topic.clone(),
                    queues: Vec::new(),
                    sticky: fastrand::u32(..),
                    refresh_wanted: false,
                    refreshing: false,
                });
                index
            }
        };
        if self.topics[index].topic.id != topic.id {
            // Another log under the same name: it knows nothing of what was sent to the first.
            self.topics[index].queues.iter_mut().for_each(|queue| queue.sequencer.give_up());
        }
        self.topics[index].topic = topic.clone();
        let count = topic.places.len().max(self.topics[index].queues.len());
        for partition in 0..count as u32 {
            let route = Route { topic: index, partition };
            match topic.home(partition) {
                Some(home) => {
                    self.settle_down(route, home, topic.places[partition as usize].leader_epoch, now)
                }
                // The topic was made again with fewer partitions.
                None => {
                    if let Err(error) = topic.place(partition) {
                        self.fail_queued(route, &error.into());
                    }
                }
            }
        }
        index
    }

    /// The topic's metadata could not be learnt, and trying again will not help.
    pub(crate) fn fail_topic(&mut self, index: usize, error: &ClientError) {
        self.topics[index].refreshing = false;
        for partition in 0..self.topics[index].queues.len() as u32 {
            self.fail_queued(Route { topic: index, partition }, &error.clone().into());
        }
    }

    /// A refresh has ended, one way or the other. While partitions wait for a leader there will be another.
    pub(crate) fn refreshed(&mut self, index: usize) {
        let topic = &mut self.topics[index];
        topic.refreshing = false;
        let waits = |queue: &Queue| queue.leader_failed && (queue.open.is_some() || !queue.ready.is_empty());
        topic.refresh_wanted |= topic.queues.iter().any(waits);
    }

    /// Has the topic's metadata learnt anew before long.
    pub(crate) fn want_refresh(&mut self, index: usize) {
        self.topics[index].refresh_wanted = true;
    }

    /// Appends one record; `partition` is below the number of partitions, or `None` for any.
    pub(crate) fn append(
        &mut self,
        topic: usize,
        partition: Option<u32>,
        record: &RecordParts<'_>,
        memory: Reservation,
        now: Instant,
    ) -> Result<Appended, ProduceError> {
        if self.closing {
            return Err(ProduceError::Closed);
        }
        let route = self.route(topic, partition)?;
        let full = (self.queue(route).open.as_ref())
            .is_some_and(|open| open.bytes() + record.bytes_max > self.batch_size);
        if full {
            self.close_open(route);
        }
        let route = if full { self.route(topic, partition)? } else { route };
        let opened = self.queue(route).open.is_none();
        if opened {
            let mut builder = BatchBuilder::new();
            if self.queue(route).batch_bytes_last >= SPARE_BYTES_MIN
                && let Some(spare) = self.spares.pop()
            {
                builder.recycle(spare);
            }
            builder.reserve(self.queue(route).batch_bytes_last);
            self.queue_mut(route).open =
                Some(self.make_batch(route, Payload::Building(builder), 0, memory, now));
            self.queue_mut(route).signalled = false;
            self.activate(route);
        } else if let Some(open) = &mut self.queue_mut(route).open {
            open.memory.merge(memory);
        }
        let (outcome, index) = {
            let Some(Batch { payload: Payload::Building(builder), outcome, record_count, .. }) =
                &mut self.queue_mut(route).open
            else {
                unreachable!("an open batch is being built");
            };
            builder.append(record.timestamp_ms, record.key, record.value, record.headers);
            *record_count += 1;
            (outcome.clone(), *record_count - 1)
        };
        let wake = full || self.is_worth_a_look(route);
        Ok(Appended { outcome, index, wake })
    }

    /// Appends one encoded batch behind everything that the partition has.
    pub(crate) fn append_encoded(
        &mut self,
        route: Route,
        batch: Bytes,
        record_count: u32,
        memory: Reservation,
        now: Instant,
    ) -> Result<Arc<Outcome>, ProduceError> {
        if self.closing {
            return Err(ProduceError::Closed);
        }
        self.route(route.topic, Some(route.partition))?;
        self.close_open(route);
        let batch = self.make_batch(route, Payload::Encoded(batch), record_count, memory, now);
        let outcome = batch.outcome.clone();
        self.queue_mut(route).ready.push_back(batch);
        self.activate(route);
        Ok(outcome)
    }

    /// What can leave now, and when to look again. `pressed`: somebody waits for memory, so nothing
    /// lingers.
    pub(crate) fn drain(&mut self, now: Instant, pressed: bool, work: &mut Vec<Work>) -> Option<Instant> {
        let mut next = None;
        self.check_leaders(now, &mut next);
        work.extend(self.abandoned.drain(..).map(Work::Abandon));
        for (index, topic) in self.topics.iter_mut().enumerate() {
            if topic.refresh_wanted && !topic.refreshing {
                topic.refresh_wanted = false;
                topic.refreshing = true;
                work.push(Work::Refresh(index, topic.topic.name.clone()));
            }
        }
        for lane in 0..self.lanes.len() {
            if let Some(until) = self.lanes[lane].not_before.filter(|until| *until > now) {
                if !self.lanes[lane].active.is_empty() {
                    earlier(&mut next, until);
                }
                continue;
            }
            match self.lanes[lane].link {
                Link::Opening => {}
                Link::Closed => {
                    let mut leaves = false;
                    for at in 0..self.lanes[lane].active.len() {
                        match self.may_leave(self.lanes[lane].active[at], now, pressed) {
                            Leave::Now => leaves = true,
                            Leave::At(when) => earlier(&mut next, when),
                            Leave::NotYet => {}
                        }
                    }
                    if leaves {
                        let needs_id = |route: &Route| self.needs_id(*route);
                        self.identity.wanted |= self.lanes[lane].active.iter().any(needs_id);
                        self.lanes[lane].link = Link::Opening;
                        self.lanes[lane].silent_since = Some(now);
                        work.push(Work::Open(self.lanes[lane].home));
                    }
                }
                Link::Open { request_bytes_max } => {
                    while self.lanes[lane].in_flight < self.max_in_flight {
                        let Some(flight) = self.load(lane, request_bytes_max, now, pressed, &mut next) else {
                            break;
                        };
                        self.lanes[lane].in_flight += 1;
                        self.lanes[lane].silent_since.get_or_insert(now);
                        work.push(Work::Send(flight));
                    }
                }
            }
        }
        if std::mem::take(&mut self.identity.wanted) && !self.identity.asking {
            match self.identity.retry_at.filter(|retry_at| *retry_at > now) {
                Some(retry_at) => earlier(&mut next, retry_at),
                None => {
                    self.identity.asking = true;
                    work.push(Work::Identify);
                }
            }
        }
        next
    }

    /// Whether the partition's next batch waits for the producer's id.
    fn needs_id(&self, route: Route) -> bool {
        let queue = self.queue(route);
        self.idempotent
            && queue.ready.front().is_none_or(|next| next.stampable && next.stamp.is_none())
            && queue.sequencer.needs_id(self.identity.known)
    }

    /// The producer has an id.
    pub(crate) fn identified(&mut self, id: i64, epoch: i16) {
        self.identity = Identity { known: Some((id, epoch)), ..Identity::default() };
    }

    /// It could not be had. `backoff` gets the number of failures in a row. Where asking again will not help,
    /// everything that waits for it fails.
    pub(crate) fn not_identified(
        &mut self,
        error: &ClientError,
        backoff: impl Fn(u32) -> Duration,
        now: Instant,
    ) {
        self.identity.asking = false;
        self.identity.failures += 1;
        self.identity.retry_at = Some(now + backoff(self.identity.failures));
        self.identity.reason = Some(error.to_string().into());
        if matches!(error, ClientError::Broker(refusal) if !refusal.is_retriable()) {
            for topic in 0..self.topics.len() {
                for partition in 0..self.topics[topic].queues.len() as u32 {
                    self.fail_queued(Route { topic, partition }, &error.clone().into());
                }
            }
        }
    }

    /// One request's worth of batches of a lane: one per partition, in turns.
    fn load(
        &mut self,
        lane: usize,
        request_bytes_max: usize,
        now: Instant,
        pressed: bool,
        next: &mut Option<Instant>,
    ) -> Option<Flight> {
        let room = request_bytes_max.saturating_sub(REQUEST_BYTES_HEAD).min(REQUEST_BYTES_MAX);
        let mut bytes = 0;
        let mut cargo: Vec<(Batch, TopicId, u32)> = Vec::new();
        for _ in 0..self.lanes[lane].active.len() {
            let Some(route) = self.lanes[lane].active.pop_front() else {
                break;
            };
            match self.may_leave(route, now, pressed) {
                Leave::Now if self.needs_id(route) => self.identity.wanted = true,
                Leave::Now => {
                    if self.queue(route).ready.is_empty() {
                        self.close_open(route);
                    }
                    let size = self.queue(route).ready.front().map_or(0, Batch::bytes) + ENTRY_BYTES;
                    if bytes > 0 && bytes + size > room {
                        // It is the first of the next request.
                        self.lanes[lane].active.push_front(route);
                        break;
                    }
                    bytes += size;
                    let topic = self.topics[route.topic].topic.clone();
                    let epoch =
                        topic.places.get(route.partition as usize).map_or(0, |place| place.leader_epoch);
                    let (idempotent, known) = (self.idempotent, self.identity.known);
                    let queue = self.queue_mut(route);
                    if let Some(mut batch) = queue.ready.pop_front() {
                        if idempotent && batch.stampable && batch.stamp.is_none() {
                            batch.stamp = queue.sequencer.stamp(batch.record_count, known);
                        }
                        queue.in_flight.push((batch.sequence, batch.outcome.clone()));
                        batch.leader_epoch = epoch;
                        cargo.push((batch, topic.id, epoch));
                    }
                }
                Leave::At(when) => earlier(next, when),
                Leave::NotYet => {}
            }
            let queue = self.queue_mut(route);
            queue.active = queue.open.is_some() || !queue.ready.is_empty();
            if queue.active {
                self.lanes[lane].active.push_back(route);
            }
        }
        // The wire groups entries by topic.
        cargo.sort_by_key(|(batch, ..)| batch.route.topic);
        (!cargo.is_empty()).then(|| Flight { home: self.lanes[lane].home, cargo })
    }

    fn may_leave(&self, route: Route, now: Instant, pressed: bool) -> Leave {
        let queue = self.queue(route);
        if let Some(retry_at) = queue.retry_at.filter(|retry_at| *retry_at > now) {
            return Leave::At(retry_at);
        }
        let alone = queue.recovering || self.idempotent && queue.sequencer.is_over();
        if alone && !queue.in_flight.is_empty() {
            return Leave::NotYet;
        }
        if self.idempotent && queue.is_far_ahead() {
            return Leave::NotYet;
        }
        if !queue.ready.is_empty() {
            return Leave::Now;
        }
        match (&queue.open, self.linger) {
            (None, _) => Leave::NotYet,
            _ if pressed || self.closing => Leave::Now,
            (Some(open), Linger::Fixed(linger)) => match open.created_at + linger {
                due if due <= now => Leave::Now,
                due => Leave::At(due),
            },
            (Some(open), Linger::Adaptive) if self.is_full_enough(queue, open) => Leave::Now,
            (Some(_), Linger::Adaptive) => Leave::NotYet,
        }
    }

    /// The adaptive linger: the more requests of the partition are in flight, the fuller its next batch
    /// must be to join them. With none in flight anything goes; a batch waits at most for those before
    /// it to return.
    fn is_full_enough(&self, queue: &Queue, open: &Batch) -> bool {
        open.bytes() * self.max_in_flight >= self.batch_size * queue.in_flight.len()
    }

    /// Whether the record just appended lets the open batch leave, or starts its time, told once.
    fn is_worth_a_look(&mut self, route: Route) -> bool {
        let queue = self.queue(route);
        let Some(open) = &queue.open else {
            return true;
        };
        let look = match self.linger {
            Linger::Fixed(_) => true,
            Linger::Adaptive => self.is_full_enough(queue, open),
        };
        let news = look && !queue.signalled;
        self.queue_mut(route).signalled |= look;
        news
    }

    /// An attempt has ended. `backoff` is what to wait at least before the next.
    pub(crate) fn settle(&mut self, mut batch: Batch, verdict: Verdict, backoff: Duration, now: Instant) {
        let route = batch.route;
        let sequence = batch.sequence;
        self.queue_mut(route).in_flight.retain(|(flying, _)| *flying != sequence);
        match verdict {
            Verdict::Acknowledged(receipt) => {
                self.finish(&batch, Ok(receipt));
                let worth = SPARE_BYTES_MIN..=SPARE_BYTES_MAX;
                if self.spares.len() < SPARES_MAX
                    && let Some(spare) = batch.spare()
                    && worth.contains(&spare.capacity())
                {
                    self.spares.push(spare);
                }
            }
            Verdict::Failed(error) => {
                if batch.stamp.is_some() {
                    self.queue_mut(route).sequencer.give_up();
                }
                self.finish(&batch, Err(error));
            }
            Verdict::OutOfSequence { reason } => {
                batch.attempts += 1;
                batch.reason = Some(reason);
                batch.unstamp();
                let queue = self.queue_mut(route);
                queue.sequencer.gap(sequence);
                // Behind it nothing is in the log either.
                queue.ready.iter_mut().filter(|other| other.sequence > sequence).for_each(Batch::unstamp);
                if batch.attempts > 2 {
                    queue.retry_at = queue.retry_at.max(Some(now + backoff));
                }
                self.put_back(batch);
            }
            Verdict::Retry { wait, refresh, outcome_unknown, reason } => {
                batch.attempts += 1;
                batch.outcome_unknown |= outcome_unknown;
                batch.reason = Some(reason);
                // One that was sent before a newer leader was learnt of says nothing of that one.
                if refresh && batch.leader_epoch == self.queue(route).leader_epoch {
                    self.topics[route.topic].refresh_wanted = true;
                    self.queue_mut(route).leader_failed = true;
                }
                let retry_at = now + wait.max(backoff);
                let queue = self.queue_mut(route);
                queue.retry_at = queue.retry_at.max(Some(retry_at));
                if queue.sequencer.is_behind_gap(sequence) {
                    batch.unstamp();
                }
                self.put_back(batch);
            }
        }
        let queue = self.queue_mut(route);
        queue.recovering = queue.ready.front().is_some_and(|first| first.attempts > 0)
            || (queue.recovering && !queue.in_flight.is_empty());
        if !queue.recovering {
            queue.retry_at = None;
        }
    }

    /// Puts a batch that is to be sent again back into its place.
    fn put_back(&mut self, batch: Batch) {
        let route = batch.route;
        let queue = self.queue_mut(route);
        let at = queue.ready.partition_point(|other| other.sequence < batch.sequence);
        queue.ready.insert(at, batch);
        self.activate(route);
    }

    /// A request has come back, whatever it brought.
    pub(crate) fn landed(&mut self, home: Home, throttle: Duration, now: Instant) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.home == home) {
            lane.in_flight -= 1;
            lane.silent_since = (lane.in_flight > 0).then_some(now);
            lane.checked_at = None;
            if !throttle.is_zero() {
                lane.not_before = Some(now + throttle);
            }
        }
    }

    /// The lane has a connection whose requests may have this many bytes.
    pub(crate) fn opened(&mut self, home: Home, request_bytes_max: usize) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.home == home) {
            (lane.silent_since, lane.checked_at) = (None, None);
            lane.link = Link::Open { request_bytes_max };
            lane.failures = 0;
        }
    }

    /// The lane has no connection any more.
    pub(crate) fn lost(&mut self, home: Home) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.home == home) {
            lane.link = Link::Closed;
        }
    }

    /// The lane could not be connected; its partitions may have moved. `backoff` gets the number of
    /// failures in a row.
    pub(crate) fn not_opened(
        &mut self,
        home: Home,
        reason: &Arc<str>,
        backoff: impl Fn(u32) -> Duration,
        now: Instant,
    ) {
        let Some(at) = self.lanes.iter().position(|lane| lane.home == home) else {
            return;
        };
        let lane = &mut self.lanes[at];
        lane.link = Link::Closed;
        (lane.silent_since, lane.checked_at) = (None, None);
        lane.failures += 1;
        lane.not_before = Some(now + backoff(lane.failures));
        for route in lane.active.clone() {
            self.topics[route.topic].refresh_wanted = true;
            let queue = self.queue_mut(route);
            queue.leader_failed = true;
            for batch in queue.ready.iter_mut().chain(&mut queue.open) {
                batch.reason = Some(reason.clone());
            }
        }
    }

    /// Gives up what has waited for longer than the delivery timeout.
    pub(crate) fn expire(&mut self, now: Instant) {
        let timeout = self.delivery_timeout;
        for lane in 0..self.lanes.len() {
            for route in self.lanes[lane].active.clone() {
                let due = |batch: &Batch| batch.created_at + timeout <= now;
                while let Some(batch) = {
                    let queue = self.queue_mut(route);
                    match queue.ready.front().is_some_and(due) {
                        true => queue.ready.pop_front(),
                        false if queue.ready.is_empty() && queue.open.as_ref().is_some_and(due) => {
                            queue.open.take()
                        }
                        false => None,
                    }
                } {
                    let error = self.timed_out(&batch);
                    if batch.stamp.is_some() {
                        self.queue_mut(route).sequencer.give_up();
                    }
                    self.finish(&batch, Err(error));
                }
                let queue = self.queue_mut(route);
                // What is sent again goes alone, until it is settled.
                queue.recovering &= queue.ready.front().is_some_and(|first| first.attempts > 0)
                    || !queue.in_flight.is_empty();
            }
        }
    }

    /// Closes every open batch and tells what is unsettled.
    pub(crate) fn flush(&mut self) -> Vec<Arc<Outcome>> {
        let mut unsettled = Vec::new();
        for topic in 0..self.topics.len() {
            for partition in 0..self.topics[topic].queues.len() as u32 {
                let route = Route { topic, partition };
                self.close_open(route);
                let queue = self.queue(route);
                unsettled.extend(queue.in_flight.iter().map(|(_, outcome)| outcome.clone()));
                unsettled.extend(queue.ready.iter().map(|batch| batch.outcome.clone()));
            }
        }
        unsettled
    }

    /// The first failure since this was last asked.
    pub(crate) fn take_failure(&mut self) -> Option<ProduceError> {
        self.first_failure.take()
    }

    /// Takes no more records; what is there is still sent.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether it is closed and everything is settled.
    pub(crate) fn is_done(&self) -> bool {
        self.closing && self.unsettled == 0
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        self.unsettled > 0
    }

    /// Fails everything that is queued: nobody will send it any more.
    pub(crate) fn abort(&mut self) {
        self.closing = true;
        for topic in 0..self.topics.len() {
            for partition in 0..self.topics[topic].queues.len() as u32 {
                self.fail_queued(Route { topic, partition }, &ProduceError::Closed);
            }
        }
    }

    fn route(&self, topic: usize, partition: Option<u32>) -> Result<Route, ProduceError> {
        let TopicQueues { topic: known, sticky, .. } = &self.topics[topic];
        let partition = partition.unwrap_or_else(|| {
            let count = known.places.len() as u32;
            let any = (0..count).map(|step| sticky.wrapping_add(step) % count);
            // What may go anywhere goes where somebody takes it.
            let led = |partition: &u32| known.places[*partition as usize].leader.is_some();
            any.clone().find(led).unwrap_or(sticky % count)
        });
        known.place(partition)?;
        Ok(Route { topic, partition })
    }

    /// The error of a batch whose time is up.
    pub(crate) fn timed_out(&self, batch: &Batch) -> ProduceError {
        ProduceError::TimedOut {
            topic: self.topics[batch.route.topic].topic.name.clone(),
            partition: batch.route.partition,
            waited: self.delivery_timeout,
            outcome_unknown: batch.outcome_unknown,
            reason: batch.reason.clone().or_else(|| self.identity.reason.clone()),
        }
    }

    pub(crate) fn topic_name(&self, route: Route) -> Arc<str> {
        self.topics[route.topic].topic.name.clone()
    }

    fn make_batch(
        &mut self,
        route: Route,
        payload: Payload,
        record_count: u32,
        memory: Reservation,
        now: Instant,
    ) -> Batch {
        self.unsettled += 1;
        let queue = self.queue_mut(route);
        let sequence = queue.next_sequence;
        queue.next_sequence += 1;
        Batch {
            route,
            record_count,
            outcome: Arc::default(),
            created_at: now,
            attempts: 0,
            outcome_unknown: false,
            sequence,
            leader_epoch: 0,
            stampable: matches!(payload, Payload::Building(_)),
            payload,
            stamp: None,
            encoded_stamp: None,
            memory,
            reason: None,
        }
    }

    fn finish(&mut self, batch: &Batch, result: Result<BatchReceipt, ProduceError>) {
        self.unsettled -= 1;
        if let Err(error) = &result {
            self.first_failure.get_or_insert_with(|| error.clone());
        }
        batch.outcome.settle(result);
    }

    fn fail_queued(&mut self, route: Route, error: &ProduceError) {
        let queue = self.queue_mut(route);
        let batches: Vec<Batch> = queue.ready.drain(..).chain(queue.open.take()).collect();
        queue.recovering = false;
        queue.retry_at = None;
        if batches.iter().any(|batch| batch.stamp.is_some()) {
            queue.sequencer.give_up();
        }
        for batch in batches {
            self.finish(&batch, Err(error.clone()));
        }
    }

    fn close_open(&mut self, route: Route) {
        let topic = &mut self.topics[route.topic];
        let queue = &mut topic.queues[route.partition as usize];
        if let Some(batch) = queue.open.take() {
            queue.batch_bytes_last = batch.bytes();
            queue.ready.push_back(batch);
            let partitions = topic.topic.places.len() as u32;
            if topic.sticky % partitions == route.partition {
                topic.sticky = (route.partition + 1) % partitions;
            }
        }
    }

    fn activate(&mut self, route: Route) {
        let queue = self.queue_mut(route);
        if !std::mem::replace(&mut queue.active, true) {
            let lane = queue.lane;
            self.lanes[lane].active.push_back(route);
        }
    }

    /// Where the leaders of silent lanes' partitions have moved to is asked for, now and again.
    fn check_leaders(&mut self, now: Instant, next: &mut Option<Instant>) {
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            let Some(since) = lane.checked_at.or(lane.silent_since) else { continue };
            let due = since + self.leader_check_after;
            if due > now {
                earlier(next, due);
                continue;
            }
            lane.checked_at = Some(now);
            earlier(next, now + self.leader_check_after);
            for topic in &mut self.topics {
                let waits = |queue: &Queue| queue.lane == at && (queue.active || !queue.in_flight.is_empty());
                topic.refresh_wanted |= topic.queues.iter().any(waits);
            }
        }
    }

    /// Gives a partition its lane, the one to `home`.
    fn settle_down(&mut self, route: Route, home: Home, leader_epoch: u32, now: Instant) {
        let lane = match self.lanes.iter().position(|lane| lane.home == home) {
            Some(lane) => lane,
            None => {
                self.lanes.push(Lane {
                    home,
                    link: Link::Closed,
                    in_flight: 0,
                    not_before: None,
                    failures: 0,
                    active: VecDeque::new(),
                    silent_since: None,
                    checked_at: None,
                });
                self.lanes.len() - 1
            }
        };
        let queues = &mut self.topics[route.topic].queues;
        if queues.len() <= route.partition as usize {
            queues.resize_with(route.partition as usize + 1, || Queue { lane, ..Queue::default() });
        }
        let queue = &mut queues[route.partition as usize];
        let before = std::mem::replace(&mut queue.lane, lane);
        if before != lane || leader_epoch > queue.leader_epoch {
            // Whatever the old leader wanted to be waited for is over.
            if std::mem::take(&mut queue.leader_failed) {
                queue.retry_at = None;
            }
        }
        queue.leader_epoch = leader_epoch;
        if before != lane {
            // What is in flight on the old connection comes first.
            queue.recovering |= !queue.in_flight.is_empty();
            let in_flight = !queue.in_flight.is_empty();
            let old = &self.lanes[before];
            if in_flight
                && old.silent_for(now) >= self.leader_check_after
                && !self.abandoned.contains(&old.home)
            {
                self.abandoned.push(old.home);
            }
            let queue = &mut self.topics[route.topic].queues[route.partition as usize];
            if queue.active {
                self.lanes[before].active.retain(|other| *other != route);
                self.lanes[lane].active.push_back(route);
            }
        }
    }

    fn queue(&self, route: Route) -> &Queue {
        &self.topics[route.topic].queues[route.partition as usize]
    }

    fn queue_mut(&mut self, route: Route) -> &mut Queue {
        &mut self.topics[route.topic].queues[route.partition as usize]
    }
}

fn earlier(next: &mut Option<Instant>, when: Instant) {
    *next = Some(next.map_or(when, |next| next.min(when)));
}

#[cfg(test)]
#[path = "accumulator_tests.rs"]
mod tests;
