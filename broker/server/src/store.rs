//! All logs of one shard, and the flush rounds that make them durable together.
//!
//! One per shard. Appends mark their partition dirty; the round task gathers every dirty partition into
//! one submission and, if it was more than a few writes, one flush of the device. Housekeeping
//! (checkpoints, attestations of idle logs, writing ahead, retention) runs here too, behind the same
//! storage trait, so that crash tests run all of it.
//!
//! A full disk stops rounds, not reads: the round that met it is written again until there is room.
//! Any other write error ends the process.

use crate::partition::chunk_cache::ChunkCache;
use crate::partition::{Advance, Blocked, Partition, PartitionSettings, RoundWrites, SealOutcome};
use crate::stall;
use crate::storage::agenda::Agenda;
use crate::storage::disk::{Disk, Failed, Write};
use crate::storage::room::FULL_DISK_RETRY;
use crate::storage::{Storage, count, is_no_space};
use crate::traffic::Amounts;
use logic::ids::{LeaderEpoch, Offset, TopicPartition};
use logic::limits::{
    CHECKPOINT_BYTES, CHECKPOINT_MS, IDLE_FLOOR_MS, PREPARING_PARTITIONS_MAX, ROUND_GROUPS_MAX,
    TAIL_CACHE_BYTES_PER_SHARD,
};
use logic::log::flush_round::FlushRounds;
use logic::log::{LogIdentity, RoundId};
use schema::checkpoint::{Checkpoint, PartitionCheckpoint};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

/// How long a partition that is released may take to bring what it has taken to the device: longer only where a disk is
/// full, and then nobody has been told that it is there.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

type Advanced<D> = Rc<dyn Fn(&Rc<Partition<D>>, Advance)>;

/// Who is told of logs that have other replicas.
pub trait ReplicatedLogs<D: Disk> {
    /// Groups of it are on their way to the device, and can be read.
    fn sealed(&self, partition: &Rc<Partition<D>>);
    /// Everything below `end` is on the device.
    fn durable(&self, partition: &Rc<Partition<D>>, end: Offset);
}

/// What is known of a partition that its shard has given up, for whoever opens it next. Plain values: it goes to another
/// shard.
#[derive(Clone, Debug)]
pub struct Released {
    /// Where its log stands.
    pub checkpoint: PartitionCheckpoint,
    /// Nothing was written after that.
    pub at_rest: bool,
    /// Ranges of offsets that are known to be damaged.
    pub damaged: Vec<Range<u64>>,
    /// What went in and out.
    pub amounts: Amounts,
    /// Since when it takes nothing, nanoseconds of the broker's clock.
    pub stopped_ns: u64,
}

/// How long rounds took, microseconds.
pub type RoundTimes = hdrhistogram::Histogram<u64>;

/// Whose end a blocked partition waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    Zeroing,
    Placing,
    /// Its own groups.
    Round,
}

/// The logs of a shard.
pub struct Store<D: Disk> {
    /// Files.
    pub storage: Rc<Storage<D>>,
    /// Chunks of segments for reads.
    pub chunks: Rc<ChunkCache>,
    partitions: RefCell<HashMap<TopicPartition, Rc<Partition<D>>>>,
    checkpointed: RefCell<BTreeMap<TopicPartition, PartitionCheckpoint>>,
    /// Of those, what the start has found no room to open: it stays there until it is open.
    unopened: RefCell<BTreeSet<TopicPartition>>,
    clean: Cell<bool>,
    rounds: RefCell<FlushRounds<TopicPartition>>,
    wake: RefCell<Option<Waker>>,
    /// Blocked partitions that somebody else's work will queue again.
    waiting: RefCell<HashMap<TopicPartition, Awaits>>,
    /// Blocked partitions for which a task does what they wait for, and queues them again.
    unblocking: RefCell<HashSet<TopicPartition>>,
    /// Closed while groups of theirs were on the way.
    closing: RefCell<Vec<Rc<Partition<D>>>>,
    tail_order: RefCell<VecDeque<TopicPartition>>,
    tail_bytes: Cell<usize>,
    advanced: RefCell<Option<Advanced<D>>>,
    replicated: RefCell<Option<Rc<dyn ReplicatedLogs<D>>>>,
    /// In the order of their ids, like all housekeeping, so that a test's seed replays.
    active: RefCell<BTreeSet<TopicPartition>>,
    preparing: Cell<usize>,
    bytes_since_checkpoint: Cell<u64>,
    last_checkpoint_ms: Cell<i64>,
    checkpointing: Cell<bool>,
    /// How many checkpoints have been begun, and the last of them that is on the device.
    checkpoints_begun: Cell<u64>,
    checkpoint_done: Cell<u64>,
    stopping: Cell<bool>,
    /// No round begins any more: a clean checkpoint claims that nothing is written after it.
    stopped: Cell<bool>,
    /// The clean checkpoint is on the device.
    ended: Cell<bool>,
    round_times: RefCell<RoundTimes>,
}

/// Takes the writes of closed partitions out of a round that waits for space: nobody is told of them any
/// more, and a deletion that waited for them would never give its space back.
fn give_up_closed<D: Disk>(writes: &mut Vec<Write<D::File>>, owners: &mut Vec<(usize, Rc<Partition<D>>)>) {
    let mut rest = std::mem::take(writes).into_iter();
    let mut began = 0;
    owners.retain_mut(|(end, owner)| {
        let own = rest.by_ref().take(*end - began);
        began = *end;
        let keep = !owner.is_closed();
        match keep {
            true => writes.extend(own),
            false => {
                own.for_each(drop);
                owner.round_has_written();
            }
        }
        *end = writes.len();
        keep
    });
}

impl<D: Disk> Store<D> {
    /// The store of a shard whose files are `storage`. Spawns the round task.
    pub fn new(storage: Rc<Storage<D>>, checkpoint: Option<Checkpoint>, rounds_in_flight: usize) -> Rc<Self> {
        let now_ms = storage.environment.now_ms();
        let clean = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.clean);
        let checkpointed = checkpoint
            .into_iter()
            .flat_map(|checkpoint| checkpoint.partitions)
            .map(|partition| {
                let id = TopicPartition {
                    topic: logic::ids::TopicId::new(partition.topic_id),
                    partition: logic::ids::PartitionIndex::new(partition.partition),
                };
                (id, partition)
            })
            .collect();
        let store = Rc::new(Self {
            storage,
            chunks: Rc::default(),
            partitions: RefCell::default(),
            checkpointed: RefCell::new(checkpointed),
            unopened: RefCell::default(),
            clean: Cell::new(clean),
            rounds: RefCell::new(FlushRounds::new(rounds_in_flight)),
            wake: RefCell::new(None),
            waiting: RefCell::default(),
            unblocking: RefCell::default(),
            closing: RefCell::default(),
            tail_order: RefCell::default(),
            tail_bytes: Cell::new(0),
            advanced: RefCell::new(None),
            replicated: RefCell::new(None),
            active: RefCell::default(),
            preparing: Cell::new(0),
            bytes_since_checkpoint: Cell::new(0),
            last_checkpoint_ms: Cell::new(now_ms),
            checkpointing: Cell::new(false),
            checkpoints_begun: Cell::new(0),
            checkpoint_done: Cell::new(0),
            stopping: Cell::new(false),
            stopped: Cell::new(false),
            ended: Cell::new(false),
            round_times: RefCell::new(
                RoundTimes::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants"),
            ),
        });
        stall::spawn("the choice of flush rounds", Self::run_rounds(Rc::downgrade(&store))).detach();
        store
    }

    /// Calls `advanced` whenever a partition's high watermark moves.
    pub fn on_advance(&self, advanced: Advanced<D>) {
        *self.advanced.borrow_mut() = Some(advanced);
    }

    /// Tells `replicas` of logs that have other replicas.
    pub fn on_replicated(&self, replicas: Rc<dyn ReplicatedLogs<D>>) {
        *self.replicated.borrow_mut() = Some(replicas);
    }

    fn replicas(&self) -> Option<Rc<dyn ReplicatedLogs<D>>> {
        self.replicated.borrow().clone()
    }

    /// A partition's high watermark has moved.
    pub fn advanced(&self, partition: &Rc<Partition<D>>, advance: Advance) {
        let advanced = self.advanced.borrow().clone();
        if let Some(advanced) = advanced {
            advanced(partition, advance);
        }
    }

    /// Opens a partition: recovery, then service. `leader_epoch`: in which this broker leads; `None` = whatever the log
    /// has, until it is told.
    ///
    /// # Errors
    /// What the disk refused. Where that is for want of room nothing has happened, and it can be opened again: checkpoints go
    /// on repeating what the last one said of it.
    pub async fn open_partition(
        self: &Rc<Self>,
        identity: LogIdentity,
        settings: PartitionSettings,
        leader_epoch: impl Into<Option<LeaderEpoch>>,
    ) -> io::Result<Rc<Partition<D>>> {
        let checkpoint = self.known_of(&identity);
        let (known, clean) = (checkpoint.is_some(), self.clean.get());
        let (storage, epoch) = (self.storage.clone(), leader_epoch.into());
        let opened = match Partition::open(storage, identity, settings, epoch, checkpoint, clean).await {
            Ok(partition) => partition.remove_leftovers().await.map(|()| partition),
            Err(error) => Err(error),
        };
        match &opened {
            Ok(partition) => self.serve(partition),
            Err(error) if known && is_no_space(error) => {
                self.unopened.borrow_mut().insert(identity.partition);
            }
            Err(_) => {}
        }
        opened
    }

    /// What the last checkpoint says of a log that is not open.
    fn known_of(&self, log: &LogIdentity) -> Option<PartitionCheckpoint> {
        let checkpointed = self.checkpointed.borrow();
        checkpointed.get(&log.partition).filter(|known| known.generation == log.generation).cloned()
    }

    /// What is known of a log that a start has found no room to open, for whoever opens it.
    pub fn not_opened(&self, log: &LogIdentity) -> Option<Released> {
        let checkpoint = self.known_of(log)?;
        let stopped_ns = self.storage.environment.monotonic_ns();
        let (damaged, amounts) = (Vec::new(), Amounts::default());
        Some(Released { checkpoint, at_rest: false, damaged, amounts, stopped_ns })
    }

    /// Opens a partition that another shard has released, from where that left it. No checkpoint on the device has to say
    /// where that is: dropped segments that only an older one tells of stay until one does.
    ///
    /// # Errors
    /// As [`Store::open_partition`].
    pub async fn take_over(
        self: &Rc<Self>,
        identity: LogIdentity,
        settings: PartitionSettings,
        leader_epoch: impl Into<Option<LeaderEpoch>>,
        released: &Released,
    ) -> io::Result<Rc<Partition<D>>> {
        let (storage, epoch, checkpoint) =
            (self.storage.clone(), leader_epoch.into(), Some(released.checkpoint.clone()));
        let partition =
            Partition::open(storage, identity, settings, epoch, checkpoint, released.at_rest).await?;
        partition.remember_damage(&released.damaged);
        partition.traffic.go_on_from(released.amounts);
        self.serve(&partition);
        Ok(partition)
    }

    fn serve(&self, partition: &Rc<Partition<D>>) {
        // Until here a checkpoint repeats what the last one said of it.
        self.checkpointed.borrow_mut().remove(&partition.id());
        self.unopened.borrow_mut().remove(&partition.id());
        partition.is_to_be_looked_at();
        let mut partitions = self.partitions.borrow_mut();
        partitions.insert(partition.id(), partition.clone());
        self.storage.partitions.set(partitions.len());
    }

    /// After all partitions of the start have been opened, but for those that wait for room: from now on the next start must
    /// recover.
    ///
    /// # Errors
    /// A checkpoint cannot be written.
    pub async fn begin_service(&self) -> io::Result<()> {
        let was_clean = self.clean.replace(false);
        // What was not opened for another reason is not ours any more: its topic is gone.
        let unopened = self.unopened.take();
        self.checkpointed.borrow_mut().retain(|id, _| unopened.contains(id));
        match self.checkpoint(false).await {
            Err(error) if is_no_space(&error) => {
                self.storage.notice("no space for a checkpoint: the next start reads more".into());
                match was_clean {
                    // A clean one that stays as it is would be believed.
                    true => self.storage.revoke_orderly_end().await,
                    // What this one attests stays true.
                    false => Ok(()),
                }
            }
            other => other,
        }
    }

    /// A partition of this shard.
    pub fn partition(&self, id: &TopicPartition) -> Option<Rc<Partition<D>>> {
        self.partitions.borrow().get(id).cloned()
    }

    /// All partitions of this shard.
    pub fn partitions(&self) -> Vec<Rc<Partition<D>>> {
        let mut partitions: Vec<_> = self.partitions.borrow().values().cloned().collect();
        partitions.sort_by_key(|partition| partition.id());
        partitions
    }

    /// Stops serving a partition and forgets it; its files stay.
    pub fn close_partition(&self, id: &TopicPartition) -> Option<Rc<Partition<D>>> {
        let partition = self.partitions.borrow_mut().remove(id)?;
        self.storage.partitions.set(self.partitions.borrow().len());
        self.active.borrow_mut().remove(id);
        self.storage.retention.strike_out(id);
        self.storage.compaction.strike_out(id);
        let bytes = partition.tail_bytes();
        self.tail_order.borrow_mut().retain(|other| other != id);
        self.tail_bytes.set(self.tail_bytes.get() - bytes);
        partition.close();
        if partition.is_busy() {
            self.closing.borrow_mut().push(partition.clone());
        }
        Some(partition)
    }

    /// Gives a partition up, for another shard: its background work ends while it serves, then `stopped` is called and it
    /// takes nothing more; when all that it has taken is on the device it is closed. Nobody of this shard touches its
    /// files any more then. Until [`Store::forget_released`] checkpoints go on saying where its log stood, so that
    /// there is one that does at every moment. `None`: it is not open.
    pub async fn release(self: &Rc<Self>, id: &TopicPartition, stopped: impl FnOnce()) -> Option<Released> {
        let partition = self.partition(id)?;
        partition.wind_down(RELEASE_PATIENCE).await;
        let stopped_ns = self.storage.environment.monotonic_ns();
        partition.stop_taking();
        stopped();
        let at_rest = partition.comes_to_rest(RELEASE_PATIENCE).await;
        // From here to the end of the closing nothing else runs.
        let released = Released {
            checkpoint: partition.checkpoint(),
            at_rest,
            damaged: partition.with_log(|log| log.damaged().to_vec()),
            amounts: partition.traffic.amounts(),
            stopped_ns,
        };
        // Who still waits does so for other replicas, or for a full disk: nobody knows what becomes of it.
        partition.lose_role();
        self.checkpointed.borrow_mut().insert(*id, released.checkpoint.clone());
        self.close_partition(id);
        partition.leave_files().await;
        Some(released)
    }

    /// Keeps in checkpoints what is known of a partition that is on its way from one shard to another.
    pub fn carry(&self, id: TopicPartition, checkpoint: PartitionCheckpoint) {
        self.checkpointed.borrow_mut().insert(id, checkpoint);
    }

    /// A checkpoint of the shard that has taken a log over says where it stands, or the log is of no use any more.
    pub fn forget_released(&self, log: &LogIdentity) {
        let mut checkpointed = self.checkpointed.borrow_mut();
        // It may keep a later replica's by now.
        if checkpointed.get(&log.partition).is_some_and(|kept| kept.generation == log.generation) {
            checkpointed.remove(&log.partition);
            self.unopened.borrow_mut().remove(&log.partition);
            self.storage.announced.borrow_mut().remove(log);
        }
    }

    /// Discards what a partition's log has at `to` and above, durably; where it ends now: there, or below.
    ///
    /// # Errors
    /// A write or sync failed, or the partition was closed meanwhile.
    pub async fn truncate(&self, partition: &Rc<Partition<D>>, to: Offset) -> io::Result<Offset> {
        let (end, freed) = partition.truncate(&self.chunks, to).await?;
        self.forget_tail(partition, freed);
        Ok(end)
    }

    /// Discards all that a partition's log has, durably: it begins at `log_start`.
    ///
    /// # Errors
    /// A write or sync failed, or the partition was closed meanwhile.
    pub async fn reset(&self, partition: &Rc<Partition<D>>, log_start: Offset) -> io::Result<Offset> {
        let (end, freed) = partition.reset(log_start).await?;
        self.forget_tail(partition, freed);
        Ok(end)
    }

    /// The tail cache of a partition has been emptied. In the same turn: nobody counts in between.
    fn forget_tail(&self, partition: &Rc<Partition<D>>, freed: usize) {
        if partition.is_closed() {
            return;
        }
        self.tail_order.borrow_mut().retain(|id| *id != partition.id());
        self.tail_bytes.set(self.tail_bytes.get() - freed);
        // The segment that it goes on in is prepared, and the cut attested.
        self.active.borrow_mut().insert(partition.id());
    }

    /// How long rounds took since the start, microseconds.
    pub fn round_times(&self) -> std::cell::Ref<'_, RoundTimes> {
        self.round_times.borrow()
    }

    /// Bytes that the tail caches hold.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes.get()
    }

    /// A partition has pending groups: the next round takes them.
    pub fn mark_dirty(&self, id: TopicPartition) {
        self.active.borrow_mut().insert(id);
        self.queue(id);
    }

    fn queue(&self, id: TopicPartition) {
        self.rounds.borrow_mut().mark_dirty(id);
        if let Some(waker) = self.wake.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Begins a round whenever one may begin. Woken by the first dirty partition, it runs after the
    /// connections that were ready at the same time, so that their appends share the round. It does not
    /// keep the store alive: it ends with it.
    async fn run_rounds(store: Weak<Self>) {
        loop {
            let ready = std::future::poll_fn(|context| {
                let Some(store) = store.upgrade() else { return Poll::Ready(None) };
                if store.rounds.borrow().can_begin() && !store.stopped.get() {
                    return Poll::Ready(Some(store));
                }
                *store.wake.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            let Some(store) = ready else { return };
            store.begin_round();
        }
    }

    fn begin_round(self: &Rc<Self>) {
        let began_ns = self.storage.environment.monotonic_ns();
        let round = self.rounds.borrow().next_round();
        let mut writes = RoundWrites { writes: Vec::new(), prepared: Vec::new(), bytes: 0, groups: 0 };
        let mut partitions = Vec::new();
        // Whose writes they are: each partition's end before the next one's.
        let mut owners: Vec<(usize, Rc<Partition<D>>)> = Vec::new();
        let (mut more, mut sealed) = (Vec::new(), Vec::new());
        let round_bytes_max = self.storage.policy.round_bytes_max;
        while writes.bytes < round_bytes_max && writes.groups < ROUND_GROUPS_MAX {
            let Some(id) = self.rounds.borrow_mut().pop_dirty() else { break };
            let Some(partition) = self.partition(&id) else { continue };
            let before = writes.groups;
            match partition.seal_into(round, &mut writes) {
                SealOutcome::Done => {}
                SealOutcome::More => more.push(id),
                SealOutcome::InFlight => drop(self.waiting.borrow_mut().insert(id, Awaits::Round)),
                SealOutcome::Blocked(blocked) => self.unblock(&partition, blocked),
            }
            if writes.groups > before {
                partitions.push(id);
                owners.push((writes.writes.len(), partition.clone()));
                partition.round_writes();
                if partition.is_replicated() {
                    sealed.push(partition.clone());
                }
            }
            self.prepare(&partition);
        }
        more.into_iter().for_each(|id| self.rounds.borrow_mut().mark_dirty(id));
        if writes.groups == 0 {
            return;
        }
        let needs_flush = self.choose_durability(&mut writes);
        let id = self.rounds.borrow_mut().begun(partitions, needs_flush);
        assert!(id == round, "round {} began as {}", round.0, id.0);
        self.bytes_since_checkpoint.set(self.bytes_since_checkpoint.get() + writes.bytes as u64);
        // Submitted here, before anything else runs; the task only waits.
        let mut again: Vec<Write<D::File>> = writes.writes.clone();
        let submitted = self.storage.disk.write(writes.writes);
        // In parallel with the write, groups go to the other replicas.
        if let Some(replicas) = self.replicas().filter(|_| !sealed.is_empty()) {
            sealed.iter().for_each(|partition| replicas.sealed(partition));
        }
        let store = self.clone();
        stall::spawn("a flush round", async move {
            let mut result = submitted.await;
            let mut no_room = None;
            while let Err(error) = result {
                if !is_no_space(&error) {
                    let owner = Failed::of(&error).map(|failed| failed.index);
                    let owner = owner.and_then(|at| owners.iter().find(|(end, _)| at < *end));
                    store.storage.fail("writing a flush round", owner.map(|(_, owner)| owner.id()), &error);
                }
                // Nothing of the round is acknowledged; the same bytes go to the same places again.
                no_room.get_or_insert_with(|| store.storage.wait_for_room()).look_again().await;
                give_up_closed(&mut again, &mut owners);
                result = store.storage.disk.write(again.clone()).await;
            }
            drop(no_room);
            owners.iter().for_each(|(_, owner)| owner.round_has_written());
            store.rounds.borrow_mut().writes_done(round);
            store.flush_and_finish(began_ns).await;
        })
        .detach();
    }

    /// Decides which writes must be durable by themselves; whether the round needs a flush.
    fn choose_durability(&self, writes: &mut RoundWrites<D::File>) -> bool {
        let policy = self.storage.policy;
        let share = policy.one_flush_covers_all_files && writes.writes.len() > policy.dsync_writes_max;
        let mut needs_flush = false;
        for (write, prepared) in writes.writes.iter_mut().zip(&writes.prepared) {
            write.durable = !(share && *prepared);
            needs_flush |= !write.durable;
            if write.durable {
                count(&self.storage.counters.durable_writes, 1);
            }
        }
        needs_flush
    }

    async fn flush_and_finish(self: &Rc<Self>, began_ns: u64) {
        loop {
            let flush = self.rounds.borrow_mut().poll_flush();
            if flush {
                if let Err(error) = self.storage.flush_device().await {
                    self.fail_flush(&error);
                }
                self.rounds.borrow_mut().flush_done();
            }
            self.finish_durable(began_ns);
            if !flush {
                return;
            }
        }
    }

    /// One flush is for many: the first of them is named.
    fn fail_flush(&self, error: &io::Error) -> ! {
        let flushing: BTreeSet<TopicPartition> = self.rounds.borrow().flushing().copied().collect();
        let what = match flushing.len() {
            0 | 1 => "flushing a round".to_owned(),
            several => format!("flushing a round of {several} partitions, among them that"),
        };
        self.storage.fail(&what, flushing.first().copied(), error)
    }

    fn finish_durable(&self, began_ns: u64) {
        loop {
            let Some((round, partitions)) = self.rounds.borrow_mut().poll_durable() else { break };
            count(&self.storage.counters.rounds, 1);
            let took_us = (self.storage.environment.monotonic_ns() - began_ns) / 1000;
            self.round_times.borrow_mut().saturating_record(took_us.max(1));
            for id in partitions {
                if let Some(partition) = self.partition(&id) {
                    self.finish_partition(&partition, round);
                }
                self.queue_waiting(id, Awaits::Round);
                // Bound first: whoever is called may close another partition.
                let closing: Vec<_> =
                    self.closing.borrow().iter().filter(|closed| closed.id() == id).cloned().collect();
                for closed in closing {
                    closed.written(round);
                }
            }
        }
        self.closing.borrow_mut().retain(|closed| closed.is_busy());
        if let Some(waker) = self.wake.borrow_mut().take() {
            waker.wake();
        }
    }

    fn finish_partition(&self, partition: &Rc<Partition<D>>, round: RoundId) {
        let before = partition.tail_groups();
        let bytes_before = partition.tail_bytes();
        let written = partition.written(round);
        let id = partition.id();
        let mut order = self.tail_order.borrow_mut();
        for _ in before..partition.tail_groups() {
            order.push_back(id);
        }
        self.tail_bytes.set(self.tail_bytes.get() + partition.tail_bytes() - bytes_before);
        while self.tail_bytes.get() > TAIL_CACHE_BYTES_PER_SHARD {
            let Some(oldest) = order.pop_front() else { break };
            if let Some(partition) = self.partition(&oldest) {
                self.tail_bytes.set(self.tail_bytes.get() - partition.evict_tail());
            }
        }
        drop(order);
        if let Some(advance) = written.visible {
            self.advanced(partition, advance);
        } else if let Some(end) = written.durable_end
            && let Some(replicas) = self.replicas()
        {
            replicas.durable(partition, end);
        }
    }

    /// Does what a partition waits for, then queues it again.
    fn unblock(self: &Rc<Self>, partition: &Rc<Partition<D>>, blocked: Blocked) {
        let id = partition.id();
        let placing = matches!(blocked, Blocked::Segment(_)) && partition.is_placing();
        if self.unblocking.borrow().contains(&id) {
            // That task queues it again.
            return;
        }
        if blocked == Blocked::Zeroing || placing {
            // Whoever zeroes or places queues it again.
            let awaits = if placing { Awaits::Placing } else { Awaits::Zeroing };
            self.waiting.borrow_mut().insert(id, awaits);
            return;
        }
        self.unblocking.borrow_mut().insert(id);
        let (store, partition) = (self.clone(), partition.clone());
        stall::spawn("a partition that waits for its file", async move {
            let mut no_room = None;
            loop {
                match partition.unblock(blocked).await {
                    Ok(()) => break,
                    Err(error) if is_no_space(&error) => {
                        no_room.get_or_insert_with(|| store.storage.wait_for_room()).look_again().await;
                    }
                    Err(_) if partition.is_closed() => break,
                    Err(error) => store.storage.fail("opening a segment", Some(id), &error),
                }
            }
            drop(no_room);
            store.unblocking.borrow_mut().remove(&id);
            store.queue(id);
        })
        .detach();
    }

    /// Starts background work that a partition needs soon: the next segment, blocks written ahead.
    fn prepare(self: &Rc<Self>, partition: &Rc<Partition<D>>) {
        let id = partition.id();
        if let Some(needed) = partition.segment_wanted() {
            let partition = partition.clone();
            let store = self.clone();
            stall::spawn("placing a segment", async move {
                // A segment that retention gives back now becomes the one that is placed: its blocks are
                // written already.
                if let Err(error) = partition.enforce_retention().await
                    && !partition.is_closed()
                {
                    store.storage.notice(format!(
                        "{}: retention cannot remove files: {error}",
                        store.storage.label(id)
                    ));
                }
                match partition.place_segment(needed).await {
                    // Not needed yet: tried again when it is.
                    Err(error) if is_no_space(&error) || partition.is_closed() => {}
                    Err(error) => store.storage.fail("placing a segment", Some(id), &error),
                    Ok(()) => {}
                }
                store.queue_waiting(id, Awaits::Placing);
            })
            .detach();
        }
        if self.preparing.get() < PREPARING_PARTITIONS_MAX && partition.wants_preparation() {
            self.preparing.set(self.preparing.get() + 1);
            let partition = partition.clone();
            let store = self.clone();
            stall::spawn("preparing a segment", async move {
                match partition.prepare_ahead(|| store.queue_waiting(id, Awaits::Zeroing)).await {
                    Err(error) if is_no_space(&error) || partition.is_closed() => {}
                    Err(error) => store.storage.fail("writing ahead", Some(id), &error),
                    Ok(()) => {}
                }
                store.preparing.set(store.preparing.get() - 1);
            })
            .detach();
        }
    }

    /// Queues a partition again whose blocker has ended. Only that one: work that fails at once on a full
    /// disk would otherwise go round and round with what is still under way.
    fn queue_waiting(&self, id: TopicPartition, ended: Awaits) {
        let waited = self.waiting.borrow().get(&id) == Some(&ended);
        if waited {
            self.waiting.borrow_mut().remove(&id);
            self.queue(id);
        }
    }

    /// Housekeeping, to be called about every [`IDLE_FLOOR_MS`].
    pub async fn tick(self: &Rc<Self>) {
        let now_ms = self.storage.environment.now_ms();
        let recent: Vec<TopicPartition> = self.active.borrow().iter().copied().collect();
        for id in recent {
            let Some(partition) = self.partition(&id) else { continue };
            if self.waiting.borrow_mut().remove(&id).is_some() {
                self.queue(id);
            }
            if self.stopping.get() {
                continue;
            }
            self.prepare(&partition);
            if partition.attest_if_idle(now_ms - IDLE_FLOOR_MS as i64) {
                self.queue(id);
            } else if partition.is_quiet(now_ms - 10_000) {
                self.active.borrow_mut().remove(&id);
                partition.close_idle_files();
                partition.is_to_be_looked_at();
            }
            if let Err(error) = partition.write_footers().await {
                self.storage.notice(format!(
                    "{}: an index footer cannot be written: {error}",
                    self.storage.label(id)
                ));
            }
        }
        if self.stopping.get() {
            return;
        }
        let due = self.storage.take_checkpoint_wanted()
            || self.bytes_since_checkpoint.get() >= CHECKPOINT_BYTES
            || self.bytes_since_checkpoint.get() > 0
                && now_ms - self.last_checkpoint_ms.get() >= CHECKPOINT_MS as i64;
        if due && let Err(error) = self.checkpoint(false).await {
            match is_no_space(&error) {
                true => self.storage.notice("no space for a checkpoint: the next start reads more".into()),
                false => self.storage.fail("writing a checkpoint", None, &error),
            }
        }
    }

    /// Applies retention to every partition where something can be due; the number of segments that went.
    pub async fn enforce_retention(&self) -> u64 {
        let mut dropped = 0;
        for partition in self.due(&self.storage.retention) {
            match partition.enforce_retention().await {
                Ok(segments) => dropped += segments,
                Err(_) if partition.is_closed() => {}
                Err(error) => self.storage.notice(format!(
                    "{}: retention cannot remove files: {error}",
                    self.storage.label(partition.id())
                )),
            }
            if !partition.is_closed()
                && let Some(next_ms) = partition.next_retention_ms()
            {
                self.storage.retention.put_down(partition.id(), next_ms);
            }
        }
        dropped
    }

    /// Which partitions an agenda's housekeeping is to look at: those in use, and those that are due, which are taken out.
    pub(crate) fn due(&self, agenda: &Agenda) -> Vec<Rc<Partition<D>>> {
        let mut ids = self.active.borrow().clone();
        agenda.take_due(self.storage.environment.now_ms(), &mut ids);
        ids.iter().filter_map(|id| self.partition(id)).collect()
    }

    /// Writes a checkpoint of all partitions. One at a time: they share a temporary file, and the last one
    /// begun must be the last one on the device.
    pub async fn checkpoint(&self, clean: bool) -> io::Result<()> {
        while self.checkpointing.replace(true) {
            self.storage.environment.sleep(Duration::from_millis(1)).await;
        }
        if self.ended.get() {
            // Whoever waited behind the clean one has nothing to add to it.
            self.checkpointing.set(false);
            return Ok(());
        }
        let mut result = self.write_checkpoint(clean).await;
        match &result {
            Err(error) if is_no_space(error) && self.storage.spend_reserve().await => {
                result = self.write_checkpoint(clean).await;
            }
            // Kept again once there is room; until then there is none to keep.
            Ok(()) if !self.storage.is_full() => {
                let _ = self.storage.keep_reserve().await;
            }
            _ => {}
        }
        self.storage.checkpoint_attempted(result.as_ref().is_err_and(is_no_space));
        self.ended.set(clean && result.is_ok());
        self.checkpointing.set(false);
        result
    }

    /// Waits for a checkpoint that says what is true now: one that is written for many, or one of its own.
    /// `false` if there is none any more, because the store has ended.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn checkpoint_now(&self) -> io::Result<bool> {
        let wanted = self.checkpoints_begun.get() + 1;
        while self.checkpointing.get() && self.checkpoint_done.get() < wanted {
            self.storage.environment.sleep(Duration::from_millis(1)).await;
        }
        if self.checkpoint_done.get() < wanted {
            self.checkpoint(false).await?;
        }
        Ok(self.checkpoint_done.get() >= wanted)
    }

    async fn write_checkpoint(&self, clean: bool) -> io::Result<()> {
        let number = self.checkpoints_begun.get() + 1;
        self.checkpoints_begun.set(number);
        self.bytes_since_checkpoint.set(0);
        self.last_checkpoint_ms.set(self.storage.environment.now_ms());
        let partitions = self.partitions();
        // What was given up, or is about to be, may be written to by who takes it over.
        let clean = clean
            && self.checkpointed.borrow().is_empty()
            && !partitions.iter().any(|partition| partition.winds_down());
        let mut checkpoint = Checkpoint { clean, ..Checkpoint::default() };
        checkpoint.partitions.extend(partitions.iter().map(|partition| partition.checkpoint()));
        // Those that have not been opened yet keep what the last checkpoint said, and those that have been released what
        // was said then.
        checkpoint.partitions.extend(self.checkpointed.borrow().values().cloned());
        let written = self.storage.write_checkpoint(checkpoint).await?;
        self.checkpoint_done.set(number);
        for (partition, claim) in partitions.iter().zip(&written.partitions) {
            partition.checkpointed(claim);
        }
        Ok(())
    }

    /// An orderly end: everything pending becomes durable, then a clean checkpoint. On a full disk what is
    /// pending is given up (nobody was told that it is durable), and the next start recovers.
    pub async fn shut_down(self: &Rc<Self>) -> io::Result<()> {
        self.stopping.set(true);
        // Space may have returned since the last attempt: a few more are waited for.
        let mut patience = 5 * FULL_DISK_RETRY;
        let pause = Duration::from_millis(1);
        while !self.is_idle() && !patience.is_zero() {
            self.storage.environment.sleep(pause).await;
            if self.storage.is_full() {
                patience = patience.saturating_sub(pause);
            }
        }
        self.stopped.set(true);
        self.checkpoint(self.is_idle()).await
    }

    /// Whether nothing waits for a round and nothing is under way.
    fn is_idle(&self) -> bool {
        let busy = |partition: &Rc<Partition<D>>| partition.is_busy() || partition.has_pending();
        self.rounds.borrow().is_idle() && !self.partitions().iter().any(busy)
    }

    /// Whether the store ends: background work gives up.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Rounds under way, partitions that wait for one.
    pub fn load(&self) -> (usize, usize) {
        let rounds = self.rounds.borrow();
        (rounds.in_flight(), rounds.dirty())
    }
}
