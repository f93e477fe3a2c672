//! The replicas of a shard: runs `logic::replication`'s machine beside each log that has replicas on other brokers.
//!
//! ```text
//! log (sealed, durable) ─▶ Event ┐                    ┌─▶ log: append, cut, high watermark
//! metadata, clock ───────▶ Event ├▶ Replica ─ Effect ─┼─▶ streams: messages, orders to push
//! streams: messages ─────▶ Event ┘                    └─▶ metadata: in-sync sets, suspects
//! ```
//!
//! Owned by the shard. A replica is made when the metadata says that a partition has others, and goes when it is
//! closed; a partition with one replica has none, and costs nothing here. What a leader's log has got is told to its
//! replica once a flush round, and before anything else is: so a produce costs no step of its own. Invariants: no
//! borrow is held while an effect is performed; nothing is appended to a log that is being cut. Absent on purpose: what
//! the messages mean (`logic::replication`), bytes on the wire (`peer`).

use crate::group;
use crate::partition::reader::ReadError;
use crate::partition::{PushRead, Standing};
use crate::peer::{self, Batches, Chunk, Pushed};
use crate::shard::{Partition, Shard};
use crate::stall;
use crate::storage::count;
use crate::storage::ring::RingDisk;
use crate::store::ReplicatedLogs;
use crate::timer::Timer;
use futures_util::future::LocalBoxFuture;
use logic::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, OpenSequence, ReplicaGeneration, ShardId, TopicPartition,
};
use logic::limits::{CATCH_UP_BYTES_PER_SECOND, DIRTY_BYTES_PER_SHARD_MAX};
use logic::metadata::{AlterPartition, Command, Image, InSyncMember, LocalPartition, Suspect};
use logic::replication::message::{Body, FromFollower, Message, Nack, Status};
use logic::replication::{Alter, AppendHead, Effect, Effects, Event, Here, Replica, Settings, Start, Stream};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// How often logs are asked whether retention has moved their start.
const LOOK_AT_STARTS_MS: u64 = 1000;

/// What has been done, read by `Status`.
#[derive(Debug, Default)]
pub struct ReplicationCounters {
    /// Batches' bytes appended for leaders of other brokers.
    pub appended_bytes: Cell<u64>,
    /// Chunks of batches that were refused, because they did not come next or were damaged.
    pub refused: Cell<u64>,
    /// Chunks of batches given to streams, from memory.
    pub pushed_from_memory: Cell<u64>,
    /// The same, read from the device.
    pub pushed_from_device: Cell<u64>,
    /// Logs that were cut.
    pub truncations: Cell<u64>,
    /// Logs that were begun anew.
    pub resets: Cell<u64>,
    /// In-sync sets that leaders asked for.
    pub alters: Cell<u64>,
    /// Damaged ranges that were fetched anew from other replicas.
    pub repaired: Cell<u64>,
}

/// An order to push that has not been reported.
struct Order {
    stream: Stream,
    /// What it says, once its turn has come.
    head: Option<AppendHead>,
    /// Its batches are not on their way to this broker's own device yet.
    held: bool,
}

/// A replica and its log.
struct Hosted {
    partition: Rc<Partition>,
    replica: RefCell<Replica>,
    orders: RefCell<HashMap<BrokerId, Order>>,
    generation: ReplicaGeneration,
    followers: RefCell<Vec<BrokerId>>,
    /// Damaged ranges that were cut away, and are fetched anew.
    repairing: Cell<u64>,
    /// The disk says that something may be missing.
    doubted: Cell<bool>,
    deadline_ms: Cell<u64>,
}

/// The replicas of a shard.
pub struct Replicas {
    /// What has been done.
    pub counters: ReplicationCounters,
    settings: Settings,
    /// What the shard wrote and what its clients produced until the last look, and the rate that follows from it.
    written: Cell<(u64, u64)>,
    catch_up_rate: Cell<Option<NonZeroU64>>,
    shard: RefCell<Weak<Shard>>,
    hosted: RefCell<BTreeMap<TopicPartition, Rc<Hosted>>>,
    linked: RefCell<BTreeSet<BrokerId>>,
    deadlines: RefCell<BTreeSet<(u64, TopicPartition)>>,
    registration: Cell<BrokerEpoch>,
    spare: RefCell<Vec<Effects>>,
    timer: Timer,
}

impl Replicas {
    /// None yet; [`Replicas::begin`] must follow.
    pub fn new(settings: Settings) -> Rc<Self> {
        Rc::new(Self {
            counters: ReplicationCounters::default(),
            settings,
            written: Cell::default(),
            catch_up_rate: Cell::default(),
            shard: RefCell::new(Weak::new()),
            hosted: RefCell::default(),
            linked: RefCell::default(),
            deadlines: RefCell::default(),
            registration: Cell::default(),
            spare: RefCell::default(),
            timer: Timer::default(),
        })
    }

    /// From now on there are replicas, on `shard`.
    pub fn begin(self: &Rc<Self>, shard: &Rc<Shard>) {
        *self.shard.borrow_mut() = Rc::downgrade(shard);
        shard.store.on_replicated(self.clone());
        stall::spawn("the clocks of replicas", Self::keep_time(Rc::downgrade(self))).detach();
    }

    fn shard(&self) -> Option<Rc<Shard>> {
        self.shard.borrow().upgrade()
    }

    fn get(&self, id: &TopicPartition) -> Option<Rc<Hosted>> {
        self.hosted.borrow().get(id).cloned()
    }

    /// The replica of a partition, if it has one: to look at.
    pub fn look<T>(&self, id: &TopicPartition, look: impl FnOnce(&Replica) -> T) -> Option<T> {
        self.get(id).map(|hosted| look(&hosted.replica.borrow()))
    }

    /// Counters, by name.
    pub fn report(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        let (mut led, mut suspect) = (0, 0);
        for hosted in self.all() {
            let replica = hosted.replica.borrow();
            led += u64::from(replica.leads().is_some());
            suspect += u64::from(replica.status() == Status::Suspect);
        }
        vec![
            ("replicas", self.hosted.borrow().len() as u64),
            ("replicas_leading", led),
            ("replicas_suspect", suspect),
            ("replicated_bytes_total", counters.appended_bytes.get()),
            ("replication_refused_pushes_total", counters.refused.get()),
            ("replication_pushes_from_memory_total", counters.pushed_from_memory.get()),
            ("replication_pushes_from_device_total", counters.pushed_from_device.get()),
            ("replication_truncations_total", counters.truncations.get()),
            ("replication_resets_total", counters.resets.get()),
            ("replication_alters_total", counters.alters.get()),
            ("repaired_ranges_total", counters.repaired.get()),
        ]
    }

    // ---- Metadata ------------------------------------------------------------------------------------

    /// The metadata says `state` of a partition of this shard, which is open. `after_start`: it has just been opened.
    pub fn follow(self: &Rc<Self>, partition: &Rc<Partition>, state: &LocalPartition, after_start: bool) {
        let Some(shard) = self.shard() else { return };
        let id = partition.id();
        let me = shard.identity.broker;
        let hosted = match self.get(&id) {
            Some(hosted) => hosted,
            None if state.replicas.len() < 2 => return,
            None => self.host(&shard, partition, state.generation, after_start),
        };
        let others = state.replicas.iter().map(|replica| replica.broker).filter(|broker| *broker != me);
        *hosted.followers.borrow_mut() = others.collect();
        self.step(&hosted, Event::MetadataChanged(Arc::new(state.view())), None);
        if hosted.replica.borrow().leads().is_some() {
            let followers = hosted.followers.borrow().clone();
            // Those that are up have said so: a link that comes up later says so then.
            for peer in followers {
                shard.peers.want(peer);
            }
        }
    }

    /// Makes the replica of a log.
    fn host(
        self: &Rc<Self>,
        shard: &Rc<Shard>,
        partition: &Rc<Partition>,
        generation: ReplicaGeneration,
        after_start: bool,
    ) -> Rc<Hosted> {
        partition.replicate(after_start);
        let here = Here { broker: shard.identity.broker, broker_epoch: self.registration.get(), generation };
        let start = partition.with_log(|log| {
            let durable_end = log.durable_end();
            Start {
                log_start: log.log_start(),
                log_end: durable_end,
                epochs: log.epochs().iter().copied().filter(|(_, start)| *start < durable_end).collect(),
                status: Status::Clean,
                trusted_end: None,
            }
        });
        let hosted = Rc::new(Hosted {
            partition: partition.clone(),
            replica: RefCell::new(Replica::new(here, self.settings, start)),
            orders: RefCell::default(),
            generation,
            followers: RefCell::default(),
            repairing: Cell::new(0),
            doubted: Cell::new(false),
            deadline_ms: Cell::new(u64::MAX),
        });
        self.hosted.borrow_mut().insert(partition.id(), hosted.clone());
        let report = partition.report();
        let lost = report.lost.iter().map(|range| range.start);
        let tail = report.unproven.map(|(from, _)| from).into_iter().chain(report.doubted);
        let doubtful = lost.chain(tail).min();
        let lost_from = partition.lost_from().filter(|_| after_start);
        if let Some(from) = lost_from {
            self.step(&hosted, Event::TailLost { from }, None);
        }
        if let Some(from) = doubtful.filter(|_| after_start) {
            self.step(&hosted, Event::Damaged { from: Offset::new(from) }, None);
            // What was lost counts when it is cut away; a tail that nothing attests is cut already.
            hosted.repairing.set(u64::from(report.unproven.is_some()));
            hosted.doubted.set(report.unproven.is_some() || report.doubted.is_some() || lost_from.is_some());
        }
        let linked: Vec<BrokerId> = self.linked.borrow().iter().copied().collect();
        linked.into_iter().for_each(|peer| self.step(&hosted, Event::StreamUp(peer), None));
        hosted
    }

    /// This life of the broker is registered as `epoch`, and `image` has that or a later registration.
    pub fn registered(self: &Rc<Self>, epoch: BrokerEpoch, image: &Image) {
        if epoch <= self.registration.get() {
            return;
        }
        self.registration.set(epoch);
        let Some(shard) = self.shard() else { return };
        let own = image.broker(shard.identity.broker);
        for hosted in self.all() {
            // A doubt that no registration has named is not known with this one: it is reported by another one. One that
            // an earlier one has named may be over by now.
            let named =
                own.is_some_and(|own| own.suspect(hosted.partition.id(), hosted.generation).is_some());
            if named || hosted.replica.borrow().is_named() {
                self.step(&hosted, Event::Registered(epoch), None);
            }
        }
    }

    /// A partition is closed.
    pub fn forget(&self, id: TopicPartition) {
        if let Some(hosted) = self.hosted.borrow_mut().remove(&id) {
            self.deadlines.borrow_mut().remove(&(hosted.deadline_ms.get(), id));
        }
        if let Some(shard) = self.shard() {
            shard.peers.forget(id);
        }
    }

    fn all(&self) -> Vec<Rc<Hosted>> {
        self.hosted.borrow().values().cloned().collect()
    }

    // ---- Steps ---------------------------------------------------------------------------------------

    /// Tells a replica of `event` and does what it asks for; `pushed`: what goes with an append, and the sender's
    /// epoch.
    fn step(self: &Rc<Self>, hosted: &Rc<Hosted>, event: Event, pushed: Option<(LeaderEpoch, &[u8])>) {
        self.catch_up(hosted);
        self.step_once(hosted, event, pushed);
    }

    /// A replica learns what its log has got since its last step.
    fn catch_up(self: &Rc<Self>, hosted: &Rc<Hosted>) {
        let (log_start, log_end, epoch) = hosted
            .partition
            .with_log(|log| (log.log_start(), log.log_end(), log.epochs().last().map(|(epoch, _)| *epoch)));
        let (known_start, known_end) = {
            let replica = hosted.replica.borrow();
            (replica.log_start(), replica.log_end())
        };
        if let Some(epoch) = epoch.filter(|_| known_end < log_end) {
            self.step_once(hosted, Event::Appended { base: known_end, end: log_end, epoch }, None);
        }
        if known_start < log_start {
            self.step_once(hosted, Event::LogStart(log_start), None);
        }
    }

    fn step_once(self: &Rc<Self>, hosted: &Rc<Hosted>, event: Event, pushed: Option<(LeaderEpoch, &[u8])>) {
        let Some(shard) = self.shard() else { return };
        let mut effects = self.spare.borrow_mut().pop().unwrap_or_default();
        let standing = {
            let mut replica = hosted.replica.borrow_mut();
            replica.step(shard.now_ms(), event, &mut effects);
            if hosted.repairing.get() > 0 && replica.status() == Status::Clean {
                self.repaired(&shard, hosted);
            }
            if hosted.doubted.get() && replica.status() == Status::Clean {
                self.forget_doubts(&shard, hosted);
            }
            Standing {
                leads: replica.leads().is_some(),
                applied: replica.is_applied(),
                follows: replica.follows(),
                refusal: replica.admit().err(),
            }
        };
        let before = hosted.partition.set_standing(standing);
        if before.follows.is_some_and(|epoch| standing.follows != Some(epoch)) {
            // Who waits here is to ask the leader.
            shard.disturb_fetches(hosted.partition.id());
        }
        for effect in effects.drain(..) {
            self.perform(&shard, hosted, effect, pushed);
        }
        self.spare.borrow_mut().push(effects);
        self.set_deadline(hosted);
    }

    fn perform(
        self: &Rc<Self>,
        shard: &Rc<Shard>,
        hosted: &Rc<Hosted>,
        effect: Effect,
        pushed: Option<(LeaderEpoch, &[u8])>,
    ) {
        let partition = &hosted.partition;
        let id = partition.id();
        match effect {
            Effect::Send { to, message } => shard.peers.send(to, id, &message),
            Effect::Push { to, stream } => {
                let held = stream == Stream::Live && partition.has_pending();
                hosted.orders.borrow_mut().insert(to, Order { stream, head: None, held });
                if !held {
                    shard.peers.push(to, id, stream);
                }
            }
            Effect::Append => {
                if let Some((epoch, batches)) = pushed {
                    self.append(shard, hosted, epoch, batches);
                }
            }
            Effect::Truncate { to } => self.cut(shard, hosted, Some(to), to),
            Effect::Reset { log_start } => self.cut(shard, hosted, None, log_start),
            Effect::SetLogStart(log_start) => drop(partition.delete_before(Some(log_start))),
            Effect::SetHighWatermark(to) => {
                // A log that got other replicas while it ran knows of more than its replica at first.
                let advance = (to > partition.high_watermark()).then(|| partition.set_high_watermark(to));
                if let Some(advance) = advance.flatten() {
                    shard.store.advanced(partition, advance);
                }
            }
            Effect::BecameLeader { epoch, .. } => {
                partition.set_leader_epoch(epoch);
                // Who waits believes in an earlier one.
                shard.disturb_fetches(id);
                if shard.groups.is_internal(id.topic) {
                    group::follow(shard, &shard.metadata.image());
                }
            }
            Effect::RoleLost => {
                hosted.orders.borrow_mut().clear();
                shard.peers.forget(id);
                partition.lose_role();
                shard.disturb_fetches(id);
            }
            Effect::Alter(alter) => self.alter(shard, id, alter),
            Effect::ReadFingerprint { offset } => self.read_fingerprint(shard, hosted, offset),
            Effect::ReportSuspect { generation } => self.report_suspect(shard, hosted, generation),
            Effect::ReportClean { broker, broker_epoch, generation, leader_epoch } => {
                let command =
                    Command::MarkClean { partition: id, generation, broker, broker_epoch, leader_epoch };
                self.submit(shard, command);
            }
        }
    }

    fn append(self: &Rc<Self>, shard: &Rc<Shard>, hosted: &Rc<Hosted>, epoch: LeaderEpoch, batches: &[u8]) {
        let partition = &hosted.partition;
        if shard.store.storage.is_full() {
            return self.step_once(hosted, Event::AppendRefused(Nack::StorageFull), None);
        }
        match partition.append_pushed(batches, epoch) {
            Ok(runs) => {
                count(&self.counters.appended_bytes, batches.len() as u64);
                partition.traffic.replicated(batches.len());
                for run in runs {
                    let event = Event::Appended { base: run.base, end: run.end, epoch: run.epoch };
                    self.step_once(hosted, event, None);
                }
                shard.store.mark_dirty(partition.id());
            }
            Err(refused) => {
                count(&self.counters.refused, 1);
                tracing::warn!("{}: {refused}", shard.store.storage.label(partition.id()));
                self.step_once(hosted, Event::AppendRefused(Nack::Gap), None);
            }
        }
    }

    /// Cuts the log at `to`, or has it begin anew there.
    fn cut(self: &Rc<Self>, shard: &Rc<Shard>, hosted: &Rc<Hosted>, to: Option<Offset>, start: Offset) {
        let counter = if to.is_some() { &self.counters.truncations } else { &self.counters.resets };
        count(counter, 1);
        let (replicas, shard, hosted) = (self.clone(), shard.clone(), hosted.clone());
        stall::spawn("cutting a log", async move {
            let id = hosted.partition.id();
            let damaged = || hosted.partition.with_log(|log| log.damaged().len()) as u64;
            let before = damaged();
            let done = match to {
                Some(to) => shard.store.truncate(&hosted.partition, to).await,
                None => shard.store.reset(&hosted.partition, start).await,
            };
            count(&hosted.repairing, before.saturating_sub(damaged()));
            match done {
                Ok(end) if to.is_some() => {
                    if to > Some(end) {
                        hosted.doubted.set(true);
                    }
                    replicas.step_once(&hosted, Event::Truncated { end }, None);
                }
                Ok(_) => replicas.step_once(&hosted, Event::ResetDone, None),
                Err(_) if hosted.partition.is_closed() => {}
                Err(error) => shard.store.storage.fail("cutting a log", Some(id), &error),
            }
        })
        .detach();
    }

    fn read_fingerprint(self: &Rc<Self>, shard: &Rc<Shard>, hosted: &Rc<Hosted>, offset: Offset) {
        let (replicas, hosted, chunks) = (self.clone(), hosted.clone(), shard.store.chunks.clone());
        stall::spawn("comparing two logs", async move {
            let value = match hosted.partition.fingerprint(&chunks, offset).await {
                Ok(value) => value,
                Err(ReadError::Closed) => return,
                Err(ReadError::OutOfRange { .. }) => None,
                Err(ReadError::Damaged { .. }) => {
                    replicas.repair_hosted(&hosted);
                    return;
                }
                Err(ReadError::Device(_)) => {
                    return replicas.damaged(&hosted, Offset::new(offset.get().saturating_sub(1)));
                }
            };
            replicas.step(&hosted, Event::Fingerprint { offset, value }, None);
        })
        .detach();
    }

    fn damaged(self: &Rc<Self>, hosted: &Rc<Hosted>, from: Offset) {
        self.step(hosted, Event::Damaged { from }, None);
    }

    /// A partition of this shard has been found to lack what it should have: if others have it, its replica is
    /// repaired from them, from the first offset that is lost on. `false` = nobody has: it is asked again later.
    pub fn repair(self: &Rc<Self>, id: &TopicPartition) -> bool {
        self.get(id).is_some_and(|hosted| self.repair_hosted(&hosted))
    }

    /// What a replica holds against its log from this offset on, whatever metadata knows of that: it must not be forgotten
    /// when another shard takes the log over.
    pub fn doubted_from(&self, id: &TopicPartition) -> Option<Offset> {
        self.look(id, Replica::doubted_from).flatten()
    }

    /// Another shard held this against the log.
    pub fn doubt(self: &Rc<Self>, id: &TopicPartition, from: Offset) {
        if let Some(hosted) = self.get(id) {
            self.damaged(&hosted, from);
        }
    }

    fn repair_hosted(self: &Rc<Self>, hosted: &Rc<Hosted>) -> bool {
        let from = hosted.partition.with_log(|log| log.damaged().iter().map(|range| range.start).min());
        let Some(from) = from else { return false };
        if hosted.replica.borrow().status() == Status::Suspect {
            return true;
        }
        let others_have_it = {
            let replica = hosted.replica.borrow();
            match replica.leads() {
                // A leader that gave up alone would leave nobody, but for who may be elected in its place.
                Some(_) => {
                    replica.peers().any(|peer| peer.in_sync && peer.following)
                        || self.has_heir(&hosted.partition.id())
                }
                None => self.is_led_elsewhere(&hosted.partition.id()),
            }
        };
        if others_have_it {
            self.damaged(hosted, Offset::new(from));
        }
        others_have_it
    }

    /// Whether another broker would be elected that has everything that was acknowledged.
    fn has_heir(&self, id: &TopicPartition) -> bool {
        self.shard().is_some_and(|shard| shard.metadata.image().heir(*id).is_some())
    }

    fn is_led_elsewhere(&self, id: &TopicPartition) -> bool {
        self.shard().is_some_and(|shard| {
            let image = shard.metadata.image();
            let leader = image.partition(*id).and_then(|entry| entry.leader);
            leader.is_some_and(|leader| leader != shard.identity.broker)
        })
    }

    /// Whatever was missing is here again.
    fn forget_doubts(&self, shard: &Rc<Shard>, hosted: &Hosted) {
        hosted.doubted.set(false);
        let (shard, partition) = (shard.clone(), hosted.partition.clone());
        stall::spawn("forgetting a doubt", async move {
            if let Err(error) = partition.forget_doubts().await
                && !partition.is_closed()
            {
                let storage = &shard.store.storage;
                storage.notice(format!(
                    "{}: what is noted of its tail cannot be removed: {error}; the next start repairs it again",
                    storage.label(partition.id())
                ));
            }
        })
        .detach();
    }

    /// What was damaged here is here again.
    fn repaired(&self, shard: &Shard, hosted: &Hosted) {
        let ranges = hosted.repairing.take();
        count(&self.counters.repaired, ranges);
        let label = shard.store.storage.label(hosted.partition.id());
        shard
            .store
            .storage
            .notice(format!("REPAIRED: {label}: {ranges} damaged ranges, from the other replicas"));
    }

    // ---- To the metadata -----------------------------------------------------------------------------

    fn alter(&self, shard: &Rc<Shard>, partition: TopicPartition, alter: Alter) {
        count(&self.counters.alters, 1);
        let Alter { leader_epoch, partition_epoch, in_sync, transfer_to } = alter;
        let in_sync = in_sync.into_iter();
        let in_sync =
            in_sync.map(|(broker, epoch, generation)| InSyncMember { broker, epoch, generation }).collect();
        let sender = shard.identity.broker;
        self.submit(
            shard,
            Command::AlterPartition(AlterPartition {
                partition,
                sender,
                leader_epoch,
                partition_epoch,
                in_sync,
                transfer_to,
            }),
        );
    }

    /// The next registration names everything that this broker suspects: whatever a shard finds, and all that the
    /// metadata knows already.
    ///
    /// Named is where the log ends, also where damage begins earlier. The best of suspects is the one with the longest log: a
    /// range that it lacks and another one has is fetched from there once that one has its end, while a leader with a shorter log
    /// would have the rest cut off everywhere.
    fn report_suspect(&self, shard: &Rc<Shard>, hosted: &Hosted, generation: ReplicaGeneration) {
        let partition = hosted.partition.id();
        let (last_epoch, end) = hosted.replica.borrow().claim();
        let suspect = Suspect { partition, generation, last_epoch, end };
        let label = shard.store.storage.label(partition);
        shard
            .store
            .storage
            .notice(format!("{label}: the replica may lack records: it is repaired from the others"));
        shard.metadata.doubt(suspect);
    }

    /// Whatever comes of it shows in the metadata; a replica that waits for it asks again.
    fn submit(&self, shard: &Rc<Shard>, command: Command) {
        let metadata = shard.metadata.clone();
        stall::spawn("asking the metadata for a change", async move {
            if let Err(error) = metadata.submit(command).await {
                tracing::debug!("a change of the metadata was not made: {error}");
            }
        })
        .detach();
    }

    // ---- Time ----------------------------------------------------------------------------------------

    fn set_deadline(&self, hosted: &Hosted) {
        let id = hosted.partition.id();
        let next = hosted.replica.borrow().next_deadline_ms();
        let before = hosted.deadline_ms.replace(next);
        if next == before {
            return;
        }
        let mut deadlines = self.deadlines.borrow_mut();
        deadlines.remove(&(before, id));
        if next < u64::MAX && !hosted.partition.is_closed() && !hosted.partition.has_stopped() {
            deadlines.insert((next, id));
            self.timer.due(next);
        }
    }

    async fn keep_time(replicas: Weak<Self>) {
        let mut looked_ms = 0;
        loop {
            let Some(own) = replicas.upgrade() else { return };
            let Some(shard) = own.shard().filter(|shard| !shard.is_stopping()) else { return };
            let now_ms = shard.now_ms();
            if now_ms >= looked_ms + LOOK_AT_STARTS_MS {
                looked_ms = now_ms;
                own.choose_catch_up_rate(&shard);
                for hosted in own.all() {
                    own.catch_up(&hosted);
                    // Who could not be repaired when it was found.
                    own.repair_hosted(&hosted);
                }
            }
            own.tick(now_ms);
            let first = own.deadlines.borrow().first().map_or(u64::MAX, |(deadline_ms, _)| *deadline_ms);
            let until_ms = first.min(looked_ms + LOOK_AT_STARTS_MS);
            drop(shard);
            own.timer.sleep(now_ms, until_ms).await;
        }
    }

    /// Once in [`LOOK_AT_STARTS_MS`]: who is far behind gets what is left where something is appended, but more than comes.
    fn choose_catch_up_rate(&self, shard: &Shard) {
        let now = (shard.store.storage.counters.group_bytes.get(), shard.counters.produced_bytes.get());
        let before = self.written.replace(now);
        let produced = (now.1 - before.1) * 1000 / LOOK_AT_STARTS_MS;
        let is_idle = now.0 == before.0;
        let rate = NonZeroU64::new(CATCH_UP_BYTES_PER_SECOND.max(2 * produced));
        self.catch_up_rate.set(rate.filter(|_| !is_idle));
    }

    fn tick(self: &Rc<Self>, now_ms: u64) {
        let due: Vec<TopicPartition> = {
            let deadlines = self.deadlines.borrow();
            deadlines
                .iter()
                .take_while(|(deadline_ms, _)| *deadline_ms <= now_ms)
                .map(|(_, id)| *id)
                .collect()
        };
        for id in due {
            if let Some(hosted) = self.get(&id) {
                self.step(&hosted, Event::Tick, None);
            }
        }
    }

    // ---- Pushes --------------------------------------------------------------------------------------

    /// What goes with the next batches for `to`, if there is an order.
    fn head(&self, hosted: &Hosted, to: BrokerId) -> Option<AppendHead> {
        let mut orders = hosted.orders.borrow_mut();
        let order = orders.get_mut(&to)?;
        if order.head.is_none() {
            order.head = hosted.replica.borrow_mut().append_head(to);
        }
        let head = order.head;
        if head.is_none() {
            orders.remove(&to);
        }
        head
    }

    fn batches(&self, head: AppendHead, read: PushRead) -> Batches {
        Batches {
            leader_epoch: head.leader_epoch,
            open_sequence: head.open_sequence,
            head: head.append,
            end: read.end,
            slices: read.slices,
        }
    }
}

impl ReplicatedLogs<RingDisk> for Replicas {
    fn sealed(&self, partition: &Rc<Partition>) {
        let Some((own, hosted)) = self.own().zip(self.get(&partition.id())) else { return };
        own.catch_up(&hosted);
        let Some(shard) = self.shard() else { return };
        let mut ready = Vec::new();
        for (to, order) in hosted.orders.borrow_mut().iter_mut().filter(|(_, order)| order.held) {
            order.held = false;
            ready.push((*to, order.stream));
        }
        ready.into_iter().for_each(|(to, stream)| shard.peers.push(to, partition.id(), stream));
    }

    fn durable(&self, partition: &Rc<Partition>, end: Offset) {
        if let Some((own, hosted)) = self.own().zip(self.get(&partition.id())) {
            own.step(&hosted, Event::Durable { end }, None);
        }
    }
}

impl Replicas {
    fn own(&self) -> Option<Rc<Self>> {
        self.shard().map(|shard| shard.replicas.clone())
    }
}

impl peer::Replicas for Replicas {
    fn link_up(&self, peer: BrokerId) {
        self.linked.borrow_mut().insert(peer);
        let Some(own) = self.own() else { return };
        own.all().iter().for_each(|hosted| own.step(hosted, Event::StreamUp(peer), None));
    }

    fn link_down(&self, peer: BrokerId) {
        self.linked.borrow_mut().remove(&peer);
        let Some(own) = self.own() else { return };
        for hosted in own.all() {
            hosted.orders.borrow_mut().remove(&peer);
            own.step(&hosted, Event::StreamDown(peer), None);
        }
    }

    fn home(&self, id: TopicPartition) -> Option<ShardId> {
        let shard = self.shard()?;
        Some(shard.metadata.image().home_here(shard.identity.here(), id))
    }

    fn receive(&self, from: BrokerId, id: TopicPartition, message: Message, batches: &[u8]) {
        let Some((own, shard)) = self.own().zip(self.shard()) else { return };
        match self.get(&id) {
            Some(hosted) => {
                let pushed = Some((message.leader_epoch, batches));
                own.step(&hosted, Event::Message { from, message }, pushed);
            }
            None => {
                // A leader whose metadata is ahead of this broker's: it opens again, later.
                if let Body::FromLeader(_) = message.body {
                    let body = Body::FromFollower(FromFollower::Nack(Nack::NotReplica));
                    shard.peers.send(from, id, &Message { body, ..message });
                }
            }
        }
    }

    fn read(&self, to: BrokerId, id: TopicPartition, max_bytes: usize) -> Chunk {
        let Some(hosted) = self.get(&id) else { return Chunk::Nothing };
        let Some(head) = self.head(&hosted, to) else { return Chunk::Nothing };
        match hosted.partition.read_pushable(head.append.base, max_bytes) {
            None => Chunk::Device,
            Some(read) if read.slices.is_empty() => {
                // What there is more is not on its way to the device yet.
                if let Some(order) = hosted.orders.borrow_mut().get_mut(&to) {
                    order.held = true;
                }
                Chunk::Nothing
            }
            Some(read) => {
                count(&self.counters.pushed_from_memory, 1);
                Chunk::Batches(self.batches(head, read))
            }
        }
    }

    fn read_device(
        &self,
        to: BrokerId,
        id: TopicPartition,
        max_bytes: usize,
    ) -> LocalBoxFuture<'static, Option<Batches>> {
        let (own, shard, hosted) = (self.own(), self.shard(), self.get(&id));
        Box::pin(async move {
            let (own, shard, hosted) = (own?, shard?, hosted?);
            let head = own.head(&hosted, to)?;
            let chunks = &shard.store.chunks;
            match hosted.partition.read_for_push(chunks, head.append.base, max_bytes).await {
                Ok(read) if !read.slices.is_empty() => {
                    count(&own.counters.pushed_from_device, 1);
                    Some(own.batches(head, read))
                }
                Err(ReadError::Damaged { .. }) => {
                    own.failed(&hosted, to, head);
                    own.repair_hosted(&hosted);
                    None
                }
                Ok(_) | Err(_) => {
                    own.failed(&hosted, to, head);
                    None
                }
            }
        })
    }

    fn pushed(&self, to: BrokerId, id: TopicPartition, pushed: Pushed) {
        let Some((own, hosted)) = self.own().zip(self.get(&id)) else { return };
        let Pushed { leader_epoch, open_sequence, end, from_memory } = pushed;
        if !own.is_done(&hosted, to, leader_epoch, open_sequence) {
            return;
        }
        own.step(&hosted, Event::Pushed { to, open_sequence, end, from_memory }, None);
    }

    fn catch_up_rate(&self) -> Option<NonZeroU64> {
        self.catch_up_rate.get()
    }

    fn has_room(&self) -> bool {
        self.shard().is_none_or(|shard| shard.store.storage.dirty_bytes() < DIRTY_BYTES_PER_SHARD_MAX)
    }
}

impl Replicas {
    fn failed(self: &Rc<Self>, hosted: &Rc<Hosted>, to: BrokerId, head: AppendHead) {
        if self.is_done(hosted, to, head.leader_epoch, head.open_sequence) {
            self.step(hosted, Event::PushFailed { to, open_sequence: head.open_sequence }, None);
        }
    }

    /// The order that this push was for is carried out. `false`: it was for one of the past. A leader whose epoch rose
    /// meanwhile, or who has opened anew, has given another order, and counts its openings from the beginning.
    fn is_done(
        &self,
        hosted: &Hosted,
        to: BrokerId,
        leader_epoch: LeaderEpoch,
        open_sequence: OpenSequence,
    ) -> bool {
        let mut orders = hosted.orders.borrow_mut();
        let of_now = orders
            .get(&to)
            .and_then(|order| order.head)
            .is_some_and(|head| (head.leader_epoch, head.open_sequence) == (leader_epoch, open_sequence));
        if of_now {
            orders.remove(&to);
        }
        of_now
    }
}

#[cfg(test)]
mod tests;
