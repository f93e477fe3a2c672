//! Produce, top to bottom: from a frame's entries to the receipt.
//!
//! ```text
//! handle → per entry: locate → append (here) or forward (another core) → … durable → reply
//! ```
//!
//! Runs on the shard that the connection is on; an entry for another core's partition is sent over and
//! its result comes back. A request is one [`Job`], which counts its open entries and answers when the
//! last one is durable. Nothing is acknowledged before its flush round is on the device.

use crate::connection::{InFlight, Received};
use crate::error_code;
use crate::mailbox::{Message, Refused};
use crate::partition::DurabilityWaiter;
use crate::shard::{Location, Partition, Shard};
use crate::stall;
use crate::storage::buffer::Buffer;
use crate::storage::count;
use futures_channel::oneshot;
use logic::ids::{Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::{DIRTY_BYTES_PER_SHARD_MAX, TOPICS_PER_REQUEST_MAX};
use logic::log::compaction;
use logic::producer_state::Admission;
use schema::error_code::ErrorCode;
use schema::record_batch::{self, CRC_START, HEADER_BYTES, Header};
use schema::segment::{GROUP_HEADER_BYTES as IN_PLACE_START, group_bytes};
use schema::wire;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// How long a client should wait before it sends again what a full queue refused.
const RETRY_AFTER_MS: u32 = 50;

/// The outcome of one entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryResult {
    /// The partition.
    pub id: TopicPartition,
    /// Why it was not appended.
    pub error: Option<ErrorCode>,
    /// First offset.
    pub base_offset: u64,
    /// When it was appended, milliseconds since 1970.
    pub append_time_ms: i64,
    /// Every offset below is on the device.
    pub durable_end: u64,
    /// It was in the log already: offset and time are those of the first time.
    pub duplicate: bool,
}

impl EntryResult {
    fn refused(id: TopicPartition, error: ErrorCode) -> Self {
        Self { error: Some(error), ..Self::open(id) }
    }

    /// Nothing is known of it yet.
    fn open(id: TopicPartition) -> Self {
        Self { id, error: None, base_offset: 0, append_time_ms: -1, durable_end: 0, duplicate: false }
    }
}

/// Entries for the partitions of another shard.
pub struct RemoteProduce {
    /// The partitions, with the epoch that the client believes in, and their batches.
    pub entries: Vec<(TopicPartition, u32, Vec<u8>)>,
    /// Not done before they are committed; else durable is enough.
    pub committed: bool,
    /// Whether the client wants to know where the time goes.
    pub explain: bool,
    /// Not to be appended any more from then on, nanoseconds of the broker's clock.
    pub deadline_ns: u64,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct RemoteProduced {
    /// In the order of the entries.
    results: Vec<EntryResult>,
    timing: Timing,
}

/// Who gets the results.
enum Answer {
    /// The client, by this request id.
    Client { id: u64, in_flight: InFlight, acks: Acks },
    /// The shard that sent the entries on.
    Shard(oneshot::Sender<RemoteProduced>),
}

/// How sure the client wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acks {
    None,
    Leader,
    All,
}

/// Instead of an entry's token: that an entry is on this broker's device, while its answer waits for others.
const ON_THIS_DEVICE: u32 = u32::MAX;

/// Where the time went, nanoseconds of the broker's clock, the same on all of its cores. 0 = not known.
#[derive(Clone, Copy, Debug, Default)]
struct Timing {
    began_ns: u64,
    received_ns: u64,
    at_core_ns: u64,
    appended_ns: u64,
    /// On this broker's device. Taken only if replicas are waited for, and, as the next, only for who wants to know.
    durable_ns: u64,
    /// As sure as the client wants it.
    settled_ns: u64,
}

impl Timing {
    fn of(received: Received) -> Self {
        Self {
            began_ns: received.began_ns,
            received_ns: received.done_ns,
            at_core_ns: received.done_ns,
            ..Self::default()
        }
    }

    /// Some of the entries went their way on another core.
    fn merge(&mut self, remote: &Self) {
        self.at_core_ns = self.at_core_ns.max(remote.at_core_ns);
        self.appended_ns = self.appended_ns.max(remote.appended_ns);
        self.durable_ns = self.durable_ns.max(remote.durable_ns);
        self.settled_ns = self.settled_ns.max(remote.settled_ns);
    }

    /// The parts follow each other: their sum is the broker's share of the request's time.
    fn anatomy(&self, now_ns: u64) -> wire::Anatomy {
        let or = |known_ns: u64, else_ns| if known_ns == 0 { else_ns } else { known_ns };
        let settled_ns = or(self.settled_ns, now_ns);
        let durable_ns = or(self.durable_ns, settled_ns);
        let mut at_ns = self.began_ns;
        let mut until = |ns: u64| {
            let part_ns = ns.saturating_sub(at_ns);
            at_ns += part_ns;
            part_ns
        };
        let receive_ns = until(self.received_ns);
        let core_hop_ns = until(self.at_core_ns);
        let append_ns = until(self.appended_ns);
        let device_ns = until(durable_ns);
        let replicate_ns = until(settled_ns);
        wire::Anatomy::new(receive_ns, core_hop_ns, append_ns, device_ns, replicate_ns, until(now_ns))
    }
}

/// A produce request that is not answered.
struct Job {
    shard: Rc<Shard>,
    results: RefCell<Vec<EntryResult>>,
    open: Cell<usize>,
    answer: RefCell<Option<Answer>>,
    /// An entry is done when it is committed, not when it is durable here.
    committed: bool,
    /// Somebody wants to know where the time goes.
    explain: bool,
    /// (topic, number of its entries), in the order of the request.
    topics: Vec<(TopicId, usize)>,
    timing: Cell<Timing>,
}

impl DurabilityWaiter for Job {
    fn durable(&self, token: u32, durable_end: Offset) {
        if token == ON_THIS_DEVICE {
            return self.stamp(|timing, now_ns| timing.durable_ns = now_ns);
        }
        if self.explain {
            self.stamp(|timing, now_ns| timing.settled_ns = now_ns);
        }
        self.results.borrow_mut()[token as usize].durable_end = durable_end.get();
        self.close_one();
    }

    fn closed(&self, token: u32) {
        self.failed(token, ErrorCode::UnknownTopic);
    }

    fn role_lost(&self, token: u32) {
        self.failed(token, ErrorCode::NotLeader);
    }
}

/// Handles a produce request whose body is all here.
pub fn handle(
    shard: &Rc<Shard>,
    id: u64,
    request: wire::ProduceRequest<'_>,
    body: &[u8],
    received: Received,
    in_flight: InFlight,
) {
    let connection = in_flight.connection().clone();
    let refuse = |message: &str| connection.reply_error(id, ErrorCode::InvalidRequest, message, 0);
    let Some(acks) = parse_acks(request.acks()) else {
        return refuse("acks must be 0, 1 or -1 (all)");
    };
    let mut entries = Vec::new();
    let mut topics = Vec::new();
    let mut at = 0usize;
    for topic in request.topics().iter().flatten() {
        let (Some(topic_id), Some(list)) = (topic.id(), topic.entries()) else {
            return refuse("a topic without id or entries");
        };
        let topic_id = TopicId::new(topic_id.as_u128());
        topics.push((topic_id, list.len()));
        for entry in list {
            let id = TopicPartition { topic: topic_id, partition: PartitionIndex::new(entry.partition()) };
            let end = at + entry.body_length() as usize;
            let Some(batch) = body.get(at..end) else {
                return refuse("the entries name more bytes than the body has");
            };
            entries.push((id, entry.leader_epoch(), batch));
            at = end;
        }
    }
    if at != body.len() || entries.is_empty() || topics.len() > TOPICS_PER_REQUEST_MAX {
        return refuse("the body must be the batches of the entries and nothing else");
    }
    let answer = Answer::Client { id, in_flight, acks };
    Job::run(shard, entries, topics, answer, (acks == Acks::All, request.explain()), received);
}

/// Handles entries that another shard sent on.
pub fn handle_remote(shard: &Rc<Shard>, remote: RemoteProduce, reply: oneshot::Sender<RemoteProduced>) {
    let now_ns = shard.now_ns();
    if now_ns >= remote.deadline_ns {
        count(&shard.counters.late_requests, 1);
        let late = |(id, _, _): &_| EntryResult::refused(*id, ErrorCode::TimedOut);
        let results = remote.entries.iter().map(late).collect();
        // The asking connection may be gone; then nobody minds.
        let _ = reply.send(RemoteProduced { results, ..RemoteProduced::default() });
        return;
    }
    let entries = remote.entries.iter().map(|(id, epoch, batch)| (*id, *epoch, &batch[..])).collect();
    let received = Received { began_ns: now_ns, done_ns: now_ns, deadline_ns: remote.deadline_ns };
    let wanted = (remote.committed, remote.explain);
    Job::run(shard, entries, Vec::new(), Answer::Shard(reply), wanted, received);
}

fn parse_acks(acks: i8) -> Option<Acks> {
    match acks {
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        -1 => Some(Acks::All),
        _ => None,
    }
}

impl Job {
    fn run(
        shard: &Rc<Shard>,
        entries: Vec<(TopicPartition, u32, &[u8])>,
        topics: Vec<(TopicId, usize)>,
        answer: Answer,
        (committed, explain): (bool, bool),
        received: Received,
    ) {
        let may_forward = matches!(answer, Answer::Client { .. });
        let job = Rc::new(Job {
            shard: shard.clone(),
            results: RefCell::new(entries.iter().map(|(id, _, _)| EntryResult::open(*id)).collect()),
            // One more than there are entries, so that nothing is answered before all have been looked at.
            open: Cell::new(entries.len() + 1),
            answer: RefCell::new(Some(answer)),
            committed,
            explain,
            topics,
            timing: Cell::new(Timing::of(received)),
        });
        let mut remote: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (token, (id, epoch, batch)) in entries.iter().enumerate() {
            match shard.locate(*id) {
                Location::Here(partition) => job.append(&partition, token, *epoch, batch),
                Location::Shard(home) if may_forward => remote.entry(home).or_default().push(token),
                // It has moved on, and nothing has been appended.
                Location::Shard(_) => job.refuse(token, ErrorCode::LeaderNotAvailable),
                Location::Nowhere(code) => job.refuse(token, code),
            }
        }
        for (home, tokens) in remote {
            let parts = tokens
                .iter()
                .map(|&token| {
                    let (id, epoch, batch) = entries[token];
                    (id, epoch, batch.to_vec())
                })
                .collect();
            let deadline_ns = received.deadline_ns;
            let remote = RemoteProduce { entries: parts, committed, explain, deadline_ns };
            job.clone().forward(home, tokens, remote);
        }
        job.stamp(|timing, now_ns| timing.appended_ns = now_ns);
        job.close_one();
    }

    fn stamp(&self, set: impl FnOnce(&mut Timing, u64)) {
        let mut timing = self.timing.get();
        set(&mut timing, self.shard.now_ns());
        self.timing.set(timing);
    }

    /// An entry will never be as sure as it was to be.
    fn failed(&self, token: u32, error: ErrorCode) {
        if token != ON_THIS_DEVICE {
            self.refuse(token as usize, error);
        }
    }

    /// Answers an entry when everything below `end` is on the devices of all replicas that count.
    fn when_committed(self: &Rc<Self>, partition: &Rc<Partition>, end: Offset, token: usize) {
        if self.explain && partition.with_log(|log| log.is_replicated()) {
            partition.when_durable(end, self.clone(), ON_THIS_DEVICE);
        }
        partition.when_committed(end, self.clone(), token as u32);
    }

    fn refuse(&self, token: usize, error: ErrorCode) {
        self.results.borrow_mut()[token].error = Some(error);
        self.close_one();
    }

    fn append(self: &Rc<Self>, partition: &Rc<Partition>, token: usize, epoch: u32, batch: &[u8]) {
        if let Err(code) = admit_client(&self.shard, partition, epoch) {
            return self.refuse(token, code);
        }
        match record_batch::validate_produced(batch, partition.settings().max_message_bytes) {
            Ok(header) => {
                if self.has_keys(partition, token, &header, batch)
                    && self.comes_next(partition, token, &header)
                {
                    let appended = partition.append_copy(batch, &header);
                    self.appended(partition, token, &header, appended);
                }
            }
            Err(error) => {
                count(&self.shard.counters.invalid_batches, 1);
                tracing::debug!("partition {}: batch refused: {error}", partition.id());
                self.refuse(token, error_code::of_batch(&error));
            }
        }
    }

    /// Whether a compacted topic can take a batch; if not, that is its answer. Costs nothing in any other topic: only
    /// there somebody looks into records.
    fn has_keys(&self, partition: &Partition, token: usize, header: &Header, batch: &[u8]) -> bool {
        if partition.settings().compaction.is_none() {
            return true;
        }
        let Err(error) = compaction::check_keys(batch, header) else { return true };
        count(&self.shard.counters.invalid_batches, 1);
        tracing::debug!("partition {}: batch refused: {error}", partition.id());
        self.refuse(token, error_code::of_keys(&error));
        false
    }

    /// Whether a batch is to be appended. One that is there already is answered when it is durable, one that
    /// must not be there at once.
    fn comes_next(self: &Rc<Self>, partition: &Rc<Partition>, token: usize, header: &Header) -> bool {
        let counters = &self.shard.counters;
        match partition.admit_producer(header) {
            Ok(Admission::Append) => return true,
            Ok(Admission::Duplicate(original)) => {
                count(&counters.duplicate_batches, 1);
                {
                    let mut results = self.results.borrow_mut();
                    results[token].base_offset = original.base.get();
                    results[token].append_time_ms = original.append_time_ms;
                    results[token].duplicate = true;
                }
                // Not before it is committed, whatever the client waits for: else it may yet be lost.
                self.when_committed(partition, original.end(), token);
            }
            Err(error) => {
                count(&counters.out_of_sequence_batches, 1);
                tracing::debug!("partition {}: producer {}: {error}", partition.id(), header.producer_id);
                self.refuse(token, error_code::of_producer(&error));
            }
        }
        false
    }

    fn appended(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        token: usize,
        header: &Header,
        appended: crate::partition::Appended,
    ) {
        {
            let mut results = self.results.borrow_mut();
            results[token].base_offset = appended.base.get();
            results[token].append_time_ms = appended.append_time_ms;
        }
        let counters = &self.shard.counters;
        count(&counters.batches, 1);
        count(&counters.records, u64::from(header.record_count));
        count(&counters.produced_bytes, header.batch_bytes as u64);
        partition.traffic.produced(header);
        match self.committed {
            true => self.when_committed(partition, appended.end, token),
            false => partition.when_durable(appended.end, self.clone(), token as u32),
        }
        self.shard.store.mark_dirty(partition.id());
    }

    fn forward(self: Rc<Self>, home: ShardId, tokens: Vec<usize>, produce: RemoteProduce) {
        count(&self.shard.counters.forwarded, 1);
        let (reply, results) = oneshot::channel();
        let sent = self.shard.mailboxes.try_send(home, Message::Produce(produce, reply));
        if let Err(refused) = sent {
            let code = match refused {
                Refused::Full => ErrorCode::Overloaded,
                Refused::Closed => ErrorCode::ShuttingDown,
            };
            tokens.into_iter().for_each(|token| self.refuse(token, code));
            return;
        }
        stall::spawn("a produce that another core does", async move {
            // The other shard answers every entry or ends with the process.
            let RemoteProduced { results, timing } = results.await.unwrap_or_default();
            self.stamp(|own, _| own.merge(&timing));
            for (at, token) in tokens.into_iter().enumerate() {
                let id = self.results.borrow()[token].id;
                let result = results.get(at).copied();
                self.results.borrow_mut()[token] =
                    result.unwrap_or_else(|| EntryResult::refused(id, ErrorCode::TimedOut));
                self.close_one();
            }
        })
        .detach();
    }

    fn close_one(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() > 0 {
            return;
        }
        // Taken first: whoever is told may come back to this job.
        let answer = self.answer.take();
        match answer {
            Some(Answer::Shard(reply)) => {
                // The asking connection may be gone; then nobody minds.
                let (results, timing) = (self.results.take(), self.timing.get());
                let _ = reply.send(RemoteProduced { results, timing });
            }
            Some(Answer::Client { acks: Acks::None, .. }) | None => {}
            Some(Answer::Client { id, in_flight, acks }) => self.reply(id, &in_flight, acks),
        }
    }

    fn reply(&self, id: u64, in_flight: &InFlight, acks: Acks) {
        let took_ns = self.shard.now_ns().saturating_sub(self.timing.get().began_ns);
        self.shard.produce_times.record(took_ns / 1000);
        let results = self.results.borrow();
        let busy = results
            .iter()
            .any(|result| matches!(result.error, Some(ErrorCode::Overloaded | ErrorCode::StorageFull)));
        let anatomy = self.explain.then(|| self.timing.get().anatomy(self.shard.now_ns()));
        let durability = match acks {
            Acks::None => wire::Durability::None,
            Acks::Leader => wire::Durability::LeaderDevice,
            Acks::All => wire::Durability::AllInSyncDevice,
        };
        in_flight.connection().reply(Vec::new(), |builder| {
            let mut at = 0;
            let mut topics = Vec::with_capacity(self.topics.len());
            for (topic, entries) in &self.topics {
                let list: Vec<wire::ProduceResult> = results[at..at + entries]
                    .iter()
                    .map(|result| {
                        wire::ProduceResult::new(
                            result.id.partition.get(),
                            result.error.map_or(0, ErrorCode::to_wire),
                            if result.error.is_none() { durability } else { wire::Durability::None },
                            u8::from(result.duplicate),
                            result.base_offset,
                            result.append_time_ms,
                            result.durable_end,
                        )
                    })
                    .collect();
                at += entries;
                let list = builder.create_vector(&list);
                topics.push(wire::ProduceTopicResult::create(
                    builder,
                    &wire::ProduceTopicResultArgs {
                        id: Some(&wire::TopicId::from_u128(topic.get())),
                        results: Some(list),
                    },
                ));
            }
            let topics = builder.create_vector(&topics);
            let api = wire::ProduceResponse::create(
                builder,
                &wire::ProduceResponseArgs { topics: Some(topics), anatomy: anatomy.as_ref() },
            );
            wire::Response::create(
                builder,
                &wire::ResponseArgs {
                    id,
                    retry_after_ms: if busy { RETRY_AFTER_MS } else { 0 },
                    api_type: wire::ResponseApi::ProduceResponse,
                    api: Some(api.as_union_value()),
                    ..Default::default()
                },
            )
        });
    }
}

/// Whether a partition takes an append of a client now.
fn admit_client(shard: &Shard, partition: &Partition, epoch: u32) -> Result<(), ErrorCode> {
    if shard.groups.is_internal(partition.id().topic) {
        return Err(ErrorCode::InternalTopic);
    }
    admit(shard, partition, epoch)
}

/// Whether a partition takes an append now.
pub fn admit(shard: &Shard, partition: &Partition, epoch: u32) -> Result<(), ErrorCode> {
    if shard.is_stopping() {
        return Err(ErrorCode::ShuttingDown);
    }
    if partition.has_stopped() {
        // Its next epoch is led by another shard.
        return Err(ErrorCode::FencedLeaderEpoch);
    }
    if let Some(refusal) = partition.standing().refusal {
        return Err(error_code::of_admission(&refusal));
    }
    if epoch != partition.leader_epoch().get() {
        return Err(ErrorCode::FencedLeaderEpoch);
    }
    if shard.store.storage.is_full() {
        return Err(ErrorCode::StorageFull);
    }
    if shard.store.storage.dirty_bytes() >= DIRTY_BYTES_PER_SHARD_MAX {
        count(&shard.counters.overloaded, 1);
        return Err(ErrorCode::Overloaded);
    }
    Ok(())
}

/// A produce of one large batch, on its way from the socket into the buffer that goes to the device.
pub struct InPlaceProduce {
    partition: Rc<Partition>,
    epoch: u32,
    id: u64,
    acks: Acks,
    explain: bool,
    in_flight: InFlight,
    received: Received,
    buffer: Buffer,
    length: usize,
    have: usize,
    crc: u32,
}

/// Prepares to receive a produce in place, if it is one batch for a partition of this shard; else gives
/// the budget back unused.
pub fn in_place(
    shard: &Rc<Shard>,
    request: &wire::Request<'_>,
    body_bytes: usize,
    received: Received,
    in_flight: InFlight,
) -> Result<Box<InPlaceProduce>, InFlight> {
    let found = request.api_as_produce_request().and_then(|produce| {
        let acks = parse_acks(produce.acks())?;
        let topics = produce.topics().filter(|topics| topics.len() == 1)?;
        let topic = topics.get(0);
        let entries = topic.entries().filter(|entries| entries.len() == 1)?;
        let entry = entries.get(0);
        let id = TopicPartition {
            topic: TopicId::new(topic.id()?.as_u128()),
            partition: PartitionIndex::new(entry.partition()),
        };
        let Location::Here(partition) = shard.locate(id) else { return None };
        let fits = entry.body_length() as usize == body_bytes
            && body_bytes <= partition.settings().max_message_bytes;
        fits.then_some((partition, entry.leader_epoch(), acks, produce.explain()))
    });
    let Some((partition, epoch, acks, explain)) = found else { return Err(in_flight) };
    Ok(Box::new(InPlaceProduce {
        partition,
        epoch,
        id: request.id(),
        acks,
        explain,
        in_flight,
        received,
        buffer: shard.store.storage.pool.take(group_bytes(body_bytes)),
        length: body_bytes,
        have: 0,
        crc: 0,
    }))
}

impl InPlaceProduce {
    /// Copies the first bytes, which came together with the request.
    pub fn take(&mut self, bytes: &[u8]) {
        let start = IN_PLACE_START + self.have;
        self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
        self.received(bytes.len());
    }

    /// Bytes still to come.
    pub fn missing(&self) -> usize {
        self.length - self.have
    }

    /// Where the next bytes belong, at most `step` of them.
    pub fn room(&mut self, step: usize) -> &mut [u8] {
        let start = IN_PLACE_START + self.have;
        let end = start + self.missing().min(step);
        &mut self.buffer[start..end]
    }

    /// `bytes` more have been received: checksums them while they are in cache.
    pub fn received(&mut self, bytes: usize) {
        let from = self.have.max(CRC_START);
        self.have += bytes;
        if self.have > from {
            let fresh = &self.buffer[IN_PLACE_START + from..IN_PLACE_START + self.have];
            self.crc = crc32c::crc32c_append(self.crc, fresh);
        }
    }

    /// All is here: checks and appends.
    pub fn finish(mut self, shard: &Rc<Shard>) {
        self.received.done_ns = shard.now_ns();
        let id = self.partition.id();
        let job = Rc::new(Job {
            shard: shard.clone(),
            results: RefCell::new(vec![EntryResult::open(id)]),
            open: Cell::new(1),
            answer: RefCell::new(Some(Answer::Client {
                id: self.id,
                in_flight: self.in_flight,
                acks: self.acks,
            })),
            committed: self.acks == Acks::All,
            explain: self.explain,
            topics: vec![(id.topic, 1)],
            timing: Cell::new(Timing::of(self.received)),
        });
        // Both may have happened while the bytes came.
        let admitted = if self.received.is_late(self.received.done_ns) {
            count(&shard.counters.late_requests, 1);
            Err(ErrorCode::TimedOut)
        } else if self.partition.is_closed() && !self.partition.has_stopped() {
            Err(ErrorCode::UnknownTopic)
        } else {
            admit_client(shard, &self.partition, self.epoch)
        };
        if let Err(code) = admitted {
            return job.refuse(0, code);
        }
        let header = &self.buffer[IN_PLACE_START..IN_PLACE_START + HEADER_BYTES.min(self.length)];
        let max_bytes = self.partition.settings().max_message_bytes;
        match record_batch::validate_produced_with_crc(header, self.length, self.crc, max_bytes) {
            Ok(header) => {
                count(&shard.counters.in_place_batches, 1);
                job.stamp(|timing, now_ns| timing.appended_ns = now_ns);
                let batch = &self.buffer[IN_PLACE_START..IN_PLACE_START + self.length];
                if !job.has_keys(&self.partition, 0, &header, batch)
                    || !job.comes_next(&self.partition, 0, &header)
                {
                    return;
                }
                let appended = self.partition.append_in_place(self.buffer, &header);
                job.stamp(|timing, now_ns| timing.appended_ns = now_ns);
                job.appended(&self.partition, 0, &header, appended);
            }
            Err(error) => {
                count(&shard.counters.invalid_batches, 1);
                tracing::debug!("partition {id}: batch refused: {error}");
                job.refuse(0, error_code::of_batch(&error));
            }
        }
    }
}
