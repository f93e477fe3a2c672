//! Consumer groups on the shard that coordinates them: requests in, records on the log, answers out.
//!
//! ```text
//! handle → coordinator's partition → here, or by mailbox to its shard
//!        → [`Host::step`]: logic::group decides → records appended → … durable → answer
//! ```
//!
//! A [`Host`] runs one `logic::group::Coordinator` beside the partition of `__consumer_offsets` that holds its state.
//! Lifecycle: [`follow`] makes a host when the metadata gives this shard the partition; it reads the whole
//! partition in the background and answers `COORDINATOR_LOADING` meanwhile; it ends when the partition is closed.
//! Invariants: only the host appends to its partition; an answer is given when everything that was appended before
//! it is durable, also an answer that changed nothing, because it may tell of what another request changed; every
//! queue is bounded. The topic is made by the first request that needs it.
//!
//! Absent on purpose: decisions, which are `logic::group`'s; lag, which is computed when somebody asks ([`lag`]).

pub mod lag;
pub(crate) mod wire;

use crate::admin;
use crate::connection::InFlight;
use crate::mailbox::{Message, Refused};
use crate::metadata::new_topic_id;
use crate::partition::DurabilityWaiter;
use crate::partition::reader::ReadError;
use crate::produce;
use crate::shard::{Location, Partition, Shard};
use crate::stall;
use crate::storage::count;
use futures_channel::oneshot;
use futures_util::future::join_all;
use logic::group::{Coordinator, Effects, Event, GroupError, Now, Replay, Reply, Settings};
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition};
use logic::limits::{
    GROUP_BATCH_BYTES_MAX, GROUP_REQUESTS_WAITING_MAX, OFFSETS_RETENTION_MINUTES_DEFAULT,
    OFFSETS_TOPIC_PARTITIONS_DEFAULT, OFFSETS_TOPIC_REPLICAS_MAX, OFFSETS_TOPIC_SEGMENT_BYTES,
    READ_BYTES_MAX,
};
use logic::metadata::{Image, NewTopic};
use schema::error_code::ErrorCode;
use schema::group_record::GroupRecord;
use schema::record_batch::{self, BatchBuilder};
use schema::{OFFSETS_TOPIC, coordinator_partition};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
pub use wire::Asked;

/// How long a client should wait for a coordinator that loads.
const RETRY_AFTER_MS: u32 = 50;
/// How often deadlines of members are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long until a read that the device refused is tried again.
const READ_RETRY: Duration = Duration::from_millis(500);
/// How often a new leader is asked whether it knows everything that is committed.
const APPLIED_RETRY: Duration = Duration::from_millis(5);

/// How a broker's coordinators are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// Partitions of the offsets topic when it is made.
    pub partitions: u32,
    /// How long offsets outlive their group's last member.
    pub offsets_retention_minutes: u64,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            partitions: OFFSETS_TOPIC_PARTITIONS_DEFAULT,
            offsets_retention_minutes: OFFSETS_RETENTION_MINUTES_DEFAULT,
        }
    }
}

/// Why a coordinator does not do what it is asked.
#[derive(Clone, Debug)]
pub struct Refusal {
    code: ErrorCode,
    message: String,
}

impl Refusal {
    fn of(code: ErrorCode) -> Self {
        Self { code, message: code.advice().to_owned() }
    }

    fn retry_after_ms(&self) -> u32 {
        match self.code {
            ErrorCode::CoordinatorLoading | ErrorCode::Overloaded | ErrorCode::StorageFull => RETRY_AFTER_MS,
            _ => 0,
        }
    }
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Self {
        Self { code: error.error_code(), message: error.to_string() }
    }
}

/// What a coordinator says.
pub type Answer = Result<Reply, Refusal>;

/// What is asked of another shard's coordinators.
#[derive(Debug)]
pub enum RemoteAsk {
    /// The coordinator of this partition.
    One(PartitionIndex, Box<Event>),
    /// All of them: the list of groups, by partition.
    List,
}

/// What another shard's coordinators say.
pub type RemoteAnswer = Vec<(PartitionIndex, Answer)>;

/// The coordinators of a shard.
#[derive(Default)]
pub struct Groups {
    hosts: RefCell<BTreeMap<PartitionIndex, Rc<Host>>>,
    topic: Cell<Option<TopicId>>,
    timestamps: RefCell<lag::Recent>,
}

impl Groups {
    /// Whether clients may not write to this topic.
    pub fn is_internal(&self, topic: TopicId) -> bool {
        self.topic.get() == Some(topic)
    }
}

/// An answer that waits until it is durable.
struct Waiting {
    end: Offset,
    answer: Answer,
    reply: oneshot::Sender<Answer>,
}

/// One coordinator and its partition.
struct Host {
    partition: Rc<Partition>,
    leader_epoch: LeaderEpoch,
    /// `None` while it loads.
    coordinator: RefCell<Option<Coordinator>>,
    waiting: RefCell<VecDeque<Waiting>>,
    /// One past the last record appended.
    end: Cell<Offset>,
}

impl DurabilityWaiter for Host {
    fn durable(&self, _token: u32, durable_end: Offset) {
        loop {
            // Whoever is told may come back here: nothing is borrowed meanwhile.
            let next = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.front() {
                    Some(front) if front.end <= durable_end => waiting.pop_front(),
                    _ => None,
                }
            };
            let Some(Waiting { answer, reply, .. }) = next else { return };
            // Whoever asked may be gone.
            let _ = reply.send(answer);
        }
    }

    // Who loses the partition closes its coordinator the same way: `DurabilityWaiter::role_lost`.
    fn closed(&self, _token: u32) {
        let waiting = self.waiting.take();
        for Waiting { reply, .. } in waiting {
            let _ = reply.send(Err(Refusal::of(ErrorCode::NotCoordinator)));
        }
    }
}

impl Host {
    /// Whether its partition is open and led by this broker, in the epoch that it was made for.
    fn is_current(&self) -> bool {
        let partition = &self.partition;
        !partition.is_closed() && partition.standing().leads && partition.leader_epoch() == self.leader_epoch
    }

    /// Has the coordinator do what `event` asks for; `reply` gets the answer when it is durable.
    fn step(self: &Rc<Self>, shard: &Shard, event: Event, reply: oneshot::Sender<Answer>) {
        let refuse = |reply: oneshot::Sender<Answer>, code| {
            count(&shard.counters.overloaded, u64::from(code == ErrorCode::Overloaded));
            // Whoever asked may be gone.
            let _ = reply.send(Err(Refusal::of(code)));
        };
        if !self.is_current() {
            return refuse(reply, ErrorCode::NotCoordinator);
        }
        if shard.is_stopping() {
            return refuse(reply, ErrorCode::ShuttingDown);
        }
        if self.waiting.borrow().len() >= GROUP_REQUESTS_WAITING_MAX {
            return refuse(reply, ErrorCode::Overloaded);
        }
        // Heartbeats go on when the disk is full: sessions do not end for it. Answers wait.
        if matches!(event, Event::Commit(_))
            && let Err(code) = produce::admit(shard, &self.partition, self.partition.leader_epoch().get())
        {
            return refuse(reply, code);
        }
        let mut effects = Effects::default();
        match self.coordinator.borrow_mut().as_mut() {
            None => return refuse(reply, ErrorCode::CoordinatorLoading),
            Some(coordinator) => coordinator.step(now(shard), event, &mut effects),
        }
        self.append(shard, &effects.records);
        let answer = effects.reply.expect("a request is answered").map_err(Refusal::from);
        let end = self.end.get();
        if self.partition.high_watermark() >= end {
            let _ = reply.send(answer);
        } else {
            self.waiting.borrow_mut().push_back(Waiting { end, answer, reply });
        }
    }

    /// Has the coordinator follow something that nobody asked for.
    fn follow(self: &Rc<Self>, shard: &Shard, event: Event) {
        let mut effects = Effects::default();
        if let Some(coordinator) = self.coordinator.borrow_mut().as_mut() {
            coordinator.step(now(shard), event, &mut effects);
        }
        self.append(shard, &effects.records);
    }

    /// Appends records in their order, in as few batches as the limit permits.
    fn append(self: &Rc<Self>, shard: &Shard, records: &[GroupRecord]) {
        if records.is_empty() || !self.is_current() || shard.is_stopping() {
            return;
        }
        let timestamp_ms = shard.store.storage.environment.now_ms();
        let mut builder = BatchBuilder::new();
        for record in records {
            let (key, value) = (record.key(), record.value());
            let bytes = BatchBuilder::record_bytes(Some(&key), value.as_deref(), &[]);
            if !builder.is_empty() && builder.len_bytes() + bytes > GROUP_BATCH_BYTES_MAX {
                self.append_batch(&builder.finish());
            }
            builder.append(timestamp_ms, Some(&key), value.as_deref(), &[]);
        }
        self.append_batch(&builder.finish());
        self.partition.when_committed(self.end.get(), self.clone(), 0);
        shard.store.mark_dirty(self.partition.id());
    }

    fn append_batch(&self, batch: &[u8]) {
        let header = record_batch::validate_produced(batch, usize::MAX)
            .unwrap_or_else(|error| crate::fatal(&format!("a coordinator made an unsound batch: {error}")));
        self.end.set(self.partition.append_copy(batch, &header).end);
    }

    /// Reads the whole partition and begins to serve.
    async fn load(self: Rc<Self>, shard: Rc<Shard>) {
        // Not before everything that earlier coordinators were answered for is visible.
        while !self.partition.standing().applied {
            if !self.is_current() {
                return;
            }
            glommio::timer::sleep(APPLIED_RETRY).await;
        }
        let mut replay = Replay::default();
        let mut offset = self.partition.with_log(|log| log.log_start());
        while offset < self.partition.high_watermark() {
            match self.partition.read(&shard.store.chunks, offset, READ_BYTES_MAX).await {
                Ok(slices) => {
                    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.bytes()).copied().collect();
                    offset = self.replay(&shard, &bytes, offset, &mut replay);
                }
                // Who leads next has all of it.
                Err(ReadError::Damaged { .. }) if shard.replicas.repair(&self.partition.id()) => {
                    glommio::timer::sleep(READ_RETRY).await;
                    if !self.is_current() {
                        return;
                    }
                }
                Err(ReadError::Damaged { until, .. }) => offset = until,
                Err(ReadError::OutOfRange { start, .. }) if start > offset => offset = start,
                Err(ReadError::OutOfRange { .. }) => break,
                Err(ReadError::Closed) => return,
                Err(ReadError::Device(error)) => {
                    let label = shard.store.storage.label(self.partition.id());
                    tracing::warn!("{label}: the state of its groups cannot be read, trying again: {error}");
                    glommio::timer::sleep(READ_RETRY).await;
                }
            }
            glommio::yield_if_needed().await;
        }
        if !self.is_current() {
            return;
        }
        self.end.set(self.partition.with_log(|log| log.high_watermark()));
        let minutes = i64::try_from(shard.identity.groups.offsets_retention_minutes).unwrap_or(i64::MAX);
        let settings = Settings { offsets_retention_ms: minutes.saturating_mul(60_000) };
        let mut effects = Effects::default();
        let image = shard.metadata.image();
        let coordinator = Coordinator::load(replay, settings, image, now(&shard), &mut effects);
        *self.coordinator.borrow_mut() = Some(coordinator);
        self.append(&shard, &effects.records);
    }

    /// Takes the records of whole batches from `offset` on; the next offset.
    fn replay(&self, shard: &Shard, bytes: &[u8], offset: Offset, replay: &mut Replay) -> Offset {
        let damaged = |what: &dyn std::fmt::Display| {
            let label = shard.store.storage.label(self.partition.id());
            shard.store.storage.notice(format!("{label}: a record of a group is left out: {what}"));
        };
        let mut next = offset;
        for batch in record_batch::batches(bytes) {
            let (header, batch) = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    damaged(&error);
                    break;
                }
            };
            next = Offset::new(header.end_offset()).max(next);
            if header.attributes.is_control() {
                continue;
            }
            let records = match record_batch::records(batch) {
                Ok(records) => records,
                Err(error) => {
                    damaged(&error);
                    continue;
                }
            };
            for record in records {
                match record.map(|record| GroupRecord::decode(record.key.unwrap_or(&[]), record.value)) {
                    Ok(Ok(record)) => replay.apply(record),
                    Ok(Err(error)) => damaged(&error),
                    Err(error) => damaged(&error),
                }
            }
        }
        // Nothing readable: past it, or the load would never end.
        if next == offset { self.partition.high_watermark() } else { next }
    }
}

fn now(shard: &Shard) -> Now {
    Now { ms: shard.now_ms(), wall_ms: shard.store.storage.environment.now_ms() }
}

/// Follows an image: coordinators come and go with their partitions, and learn of other topics.
pub fn follow(shard: &Rc<Shard>, image: &Arc<Image>) {
    let topic = image.topic_by_name(OFFSETS_TOPIC);
    shard.groups.topic.set(topic.map(|topic| topic.id));
    shard.groups.hosts.borrow_mut().retain(|_, host| host.is_current());
    let hosts: Vec<_> = shard.groups.hosts.borrow().values().cloned().collect();
    for host in hosts {
        host.follow(shard, Event::TopicsChanged(image.clone()));
    }
    let Some(topic) = topic else { return };
    for index in (0..topic.partitions.len() as u32).map(PartitionIndex::new) {
        let id = TopicPartition { topic: topic.id, partition: index };
        let is_ours = topic.partitions[index.get() as usize].leader == Some(shard.identity.broker);
        let led = shard.store.partition(&id).filter(|partition| is_ours && partition.standing().leads);
        let Some(partition) = led else { continue };
        if shard.groups.hosts.borrow().contains_key(&index) {
            continue;
        }
        let host = Rc::new(Host {
            end: Cell::new(partition.high_watermark()),
            leader_epoch: partition.leader_epoch(),
            partition,
            coordinator: RefCell::new(None),
            waiting: RefCell::default(),
        });
        shard.groups.hosts.borrow_mut().insert(index, host.clone());
        stall::spawn("reading the state of groups", host.load(shard.clone())).detach();
    }
}

/// Ends sessions and expires offsets, until the broker stops.
pub async fn keep_time(shard: Rc<Shard>) {
    while !shard.is_stopping() {
        glommio::timer::sleep(TICK).await;
        let now_ms = shard.now_ms();
        let is_due = |host: &&Rc<Host>| {
            let coordinator = host.coordinator.borrow();
            coordinator.as_ref().is_some_and(|coordinator| coordinator.next_deadline_ms() <= now_ms)
        };
        let due: Vec<Rc<Host>> = shard.groups.hosts.borrow().values().filter(is_due).cloned().collect();
        due.iter().for_each(|host| host.follow(&shard, Event::Tick));
    }
}

// ---- Requests ------------------------------------------------------------------------------------------

/// Handles a request as a task of its own.
pub fn handle(shard: &Rc<Shard>, id: u64, asked: Asked, in_flight: InFlight) {
    let shard = shard.clone();
    stall::spawn("a request about groups", async move {
        let reply = wire::Responder { shard: &shard, id, in_flight: &in_flight };
        match asked {
            Asked::Heartbeat(heartbeat) => {
                let group = heartbeat.group.clone();
                reply.heartbeat(ask(&shard, &group, Event::Heartbeat(heartbeat)).await);
            }
            Asked::Commit(commit) => {
                let group = commit.group.clone();
                reply.commit(ask(&shard, &group, Event::Commit(commit)).await);
            }
            Asked::Fetch(fetch) => {
                let group = fetch.group.clone();
                reply.fetch(ask(&shard, &group, Event::FetchOffsets(fetch)).await);
            }
            Asked::Describe(groups) => {
                let asked = groups.iter().map(|group| ask(&shard, group, Event::Describe(group.clone())));
                let answers = join_all(asked).await;
                reply.describe(groups.into_iter().zip(answers).collect());
            }
            Asked::Delete(groups) => {
                let asked = groups.iter().map(|group| ask(&shard, group, Event::Delete(group.clone())));
                let answers = join_all(asked).await;
                reply.delete(groups.into_iter().zip(answers).collect());
            }
            Asked::List => reply.list(list(&shard).await),
        }
    })
    .detach();
}

/// Asks another shard's coordinators on its behalf.
pub fn handle_remote(shard: &Rc<Shard>, asked: RemoteAsk, reply: oneshot::Sender<RemoteAnswer>) {
    let shard = shard.clone();
    stall::spawn("a request about groups of another core", async move {
        let answer = match asked {
            RemoteAsk::One(index, event) => vec![(index, ask_here(&shard, index, *event).await)],
            RemoteAsk::List => list_here(&shard).await,
        };
        // The asking connection may be gone; then nobody minds.
        let _ = reply.send(answer);
    })
    .detach();
}

/// Makes the offsets topic if it is not there.
pub async fn ensure_topic(shard: &Rc<Shard>) -> Result<(), Refusal> {
    let image = shard.metadata.image();
    if image.topic_by_name(OFFSETS_TOPIC).is_some() {
        return Ok(());
    }
    let segment_bytes = OFFSETS_TOPIC_SEGMENT_BYTES.to_string();
    let new = |policy: (&str, &str)| NewTopic {
        id: new_topic_id(),
        name: OFFSETS_TOPIC.to_owned(),
        partitions: shard.identity.groups.partitions,
        replication_factor: image.replicas_at_most(OFFSETS_TOPIC_REPLICAS_MAX),
        configs: [policy, ("segment.bytes", &segment_bytes)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    };
    let refused = |error: &dyn std::fmt::Display, code| Refusal { code, message: error.to_string() };
    // Only the latest record of a key is needed; none may ever go for its age.
    let compacted = image.create_topic(new(("cleanup.policy", "compact")));
    let command = compacted.and_then(|command| image.apply(&command).map(|_| command));
    let command = match command {
        Ok(command) => command,
        Err(_) => {
            let kept = image.create_topic(new(("retention.ms", "-1")));
            kept.map_err(|error| refused(&error, error.error_code()))?
        }
    };
    match admin::submit(shard, command).await {
        Ok(_) => Ok(()),
        // Somebody else was faster.
        Err(error) if error.error_code() == ErrorCode::TopicExists => Ok(()),
        Err(error) => Err(refused(&error, error.error_code())),
    }
}

/// Asks the coordinator of `group`.
async fn ask(shard: &Rc<Shard>, group: &str, event: Event) -> Answer {
    ensure_topic(shard).await?;
    let image = shard.metadata.image();
    let Some(topic) = image.topic_by_name(OFFSETS_TOPIC) else {
        return Err(Refusal::of(ErrorCode::NotCoordinator));
    };
    let index = PartitionIndex::new(coordinator_partition(group, topic.partitions.len() as u32));
    match shard.locate(TopicPartition { topic: topic.id, partition: index }) {
        Location::Here(_) => ask_here(shard, index, event).await,
        Location::Shard(home) => {
            count(&shard.counters.forwarded, 1);
            let (reply, answer) = oneshot::channel();
            let message = Message::Groups(RemoteAsk::One(index, Box::new(event)), reply);
            match shard.mailboxes.try_send(home, message) {
                Ok(()) => {}
                Err(Refused::Full) => return Err(Refusal::of(ErrorCode::Overloaded)),
                Err(Refused::Closed) => return Err(Refusal::of(ErrorCode::ShuttingDown)),
            }
            let answers = answer.await.unwrap_or_default();
            answers.into_iter().next().map_or(Err(Refusal::of(ErrorCode::TimedOut)), |(_, answer)| answer)
        }
        Location::Nowhere(_) => Err(Refusal::of(ErrorCode::NotCoordinator)),
    }
}

impl RemoteAsk {
    /// What it takes of a mailbox, bytes: about as much as its frame.
    pub fn carried_bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::One(_, event) => carried_bytes(event),
                Self::List => 0,
            }
    }
}

fn carried_bytes(event: &Event) -> usize {
    let entries = match event {
        Event::Heartbeat(heartbeat) => heartbeat.owned.as_ref().map_or(0, |owned| owned.len() * 32),
        Event::Commit(commit) => commit.entries.iter().map(|entry| 64 + entry.3.len()).sum(),
        Event::FetchOffsets(fetch) => fetch.partitions.as_ref().map_or(0, |list| list.len() * 32),
        _ => 0,
    };
    size_of::<Event>() + entries
}

async fn ask_here(shard: &Rc<Shard>, index: PartitionIndex, event: Event) -> Answer {
    let host = shard.groups.hosts.borrow().get(&index).cloned();
    let Some(host) = host else { return Err(Refusal::of(ErrorCode::NotCoordinator)) };
    let (reply, answer) = oneshot::channel();
    host.step(shard, event, reply);
    answer.await.unwrap_or_else(|_| Err(Refusal::of(ErrorCode::NotCoordinator)))
}

async fn list_here(shard: &Rc<Shard>) -> RemoteAnswer {
    let indexes: Vec<PartitionIndex> = shard.groups.hosts.borrow().keys().copied().collect();
    let asked = indexes.iter().map(|index| ask_here(shard, *index, Event::List));
    let answers = join_all(asked).await;
    indexes.into_iter().zip(answers).collect()
}

/// The lists of all coordinators of this broker.
async fn list(shard: &Rc<Shard>) -> RemoteAnswer {
    let others = admin::other_shards(shard)
        .map(|other| admin::ask(shard, other, |reply| Message::Groups(RemoteAsk::List, reply)));
    let mut lists = list_here(shard).await;
    lists.extend(join_all(others).await.into_iter().flatten().flatten());
    lists
}
