//! One partition on its home shard: runs the log machine and performs its effects.
//!
//! Owned by the shard, alive from the metadata that opens it to the metadata that closes it. Bytes move
//! here, decisions are `logic::log`'s:
//!
//! ```text
//! append_* → pending groups → seal_into(round) → on the way → written(round) → tail cache, waiters
//! ```
//!
//! A batch is copied once, from the socket's buffer into its group; a large one is received straight into
//! its group's buffer and not copied at all. The buffer then serves the write, tail reads and replies.
//! No borrow of the log's state crosses an await.

mod append;
pub mod chunk_cache;
mod cut;
pub mod doubt;
mod index_files;
mod leaving;
pub mod prepare;
mod producers;
mod pushed;
pub mod reader;
mod segments;
pub mod tail_cache;
mod waiters;
mod walk;

use crate::storage::agenda::Agenda;
use crate::storage::buffer::Buffer;
use crate::storage::disk::{Disk, Write};
use crate::storage::{OpenSegment, Storage, count, is_no_space, partition_directory, recover, split_write};
use crate::traffic::Traffic;
use logic::ids::{LeaderEpoch, Offset, TopicPartition};
use logic::limits::{BLOCK_BYTES, LOG_IN_FLIGHT_BYTES_MAX};
use logic::log::append::SegmentNeeded;
use logic::log::compaction::CompactionSettings;
use logic::log::recovery::Tail;
use logic::log::retention::RetentionSettings;
use logic::log::{Log, LogIdentity, LogSettings, OpenGroup, RoundId, SegmentName};
use logic::producer_state::ProducerTable;
use logic::replication::NotAdmitted;
use prepare::Preparation;
pub use pushed::{AppendedRun, PushRead, PushRefused};
use schema::checkpoint::PartitionCheckpoint;
use schema::segment::{GROUP_HEADER_BYTES, group_bytes};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use tail_cache::{TailCache, TailGroup};
pub use waiters::DurabilityWaiter;
use waiters::Waiters;

/// The settings of a topic that its partitions obey; changed while running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionSettings {
    /// Rolling.
    pub log: LogSettings,
    /// What is kept.
    pub retention: RetentionSettings,
    /// Whether, and how, only the latest of each key is kept.
    pub compaction: Option<CompactionSettings>,
    /// `max.message.bytes`.
    pub max_message_bytes: usize,
    /// `message.timestamp.type` is LogAppendTime.
    pub log_append_time: bool,
}

/// A group that is being filled.
struct PendingGroup {
    buffer: Buffer,
    group: OpenGroup,
    /// The buffer is exactly this group's; nothing is added.
    closed: bool,
}

/// A group that has been sealed and is not durable yet.
struct OnTheWay {
    tail: TailGroup,
    payload_bytes: u64,
}

/// A segment that its log has left behind and whose file is still there.
#[derive(Clone, Copy, Debug)]
struct Dropped {
    name: SegmentName,
    /// `None`: nobody of this shard has read it.
    nonce: Option<u64>,
    /// Up to there its blocks are written, bytes from its start; 0 = not known.
    end_position: u64,
}

/// What may be under way with a partition's files besides flush rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// The next segment is put in place.
    Placing,
    /// The files of dropped segments go.
    Reclaiming,
    /// Segments are rewritten.
    Compacting,
    /// The log is cut.
    Cutting,
    /// Blocks are written ahead.
    Preparing,
}

/// What is remembered of compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionState {
    /// When the last pass of this life ended, milliseconds since 1970; 0 = none yet.
    pub last_pass_ms: i64,
    /// Not before then is another one tried.
    pub retry_after_ms: i64,
}

/// What an append decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first record's offset.
    pub base: Offset,
    /// One past the last record's.
    pub end: Offset,
    /// Milliseconds since 1970.
    pub append_time_ms: i64,
}

/// Why a partition gave nothing, or not everything, to a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealOutcome {
    /// All its groups are in the round.
    Done,
    /// The round is full: there is more.
    More,
    /// As much of the log is on its way as may be: there is more when a round ends.
    InFlight,
    /// Something must be done first; [`Partition::unblock`] does it.
    Blocked(Blocked),
}

/// What a partition waits for before its groups can be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The file to write to is not open.
    File,
    /// The next segment is not in place.
    Segment(SegmentNeeded),
    /// The place is being zeroed at this moment.
    Zeroing,
}

/// What this broker may do with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// It leads: it alone serves who does not ask for a follower.
    pub leads: bool,
    /// It leads, and everything that earlier leaders committed is visible: only then it tells what is latest.
    pub applied: bool,
    /// The epoch in which it follows so that consumers that may read at followers are served.
    pub follows: Option<LeaderEpoch>,
    /// Why nothing is appended for producers.
    pub refusal: Option<NotAdmitted>,
}

/// How far the high watermark moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The new high watermark.
    pub end: Offset,
    /// Bytes of batches below it that were not before.
    pub bytes: u64,
}

/// What a round on the device changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The durable end, if it moved.
    pub durable_end: Option<Offset>,
    /// What became visible by it: nothing if the partition has other replicas.
    pub visible: Option<Advance>,
}

/// A durable group that is not committed as a whole.
#[derive(Clone, Copy, Debug)]
struct Uncommitted {
    base: Offset,
    end: Offset,
    bytes: u64,
}

/// Writes of a round, gathered over its partitions.
#[derive(Default)]
pub struct RoundWrites<F> {
    /// Writes, not yet told whether each must be durable by itself.
    pub writes: Vec<Write<F>>,
    /// Per write: whether its blocks are written and published already.
    pub prepared: Vec<bool>,
    /// Bytes so far.
    pub bytes: usize,
    /// Groups so far.
    pub groups: usize,
}

/// What opening a partition found.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// Acknowledged offsets that are lost.
    pub lost: Vec<std::ops::Range<u64>>,
    /// Offsets of an unproven tail that was cut: from, and until if known.
    pub unproven: Option<(u64, Option<u64>)>,
    /// From there on an earlier start has cut such a tail, and it has not been repaired since.
    pub doubted: Option<u64>,
    /// Bytes that recovery read.
    pub bytes_read: u64,
}

/// A partition.
pub struct Partition<D: Disk> {
    /// What went in and out.
    pub traffic: Traffic,
    identity: LogIdentity,
    storage: Rc<Storage<D>>,
    directory: PathBuf,
    log: RefCell<Log>,
    producers: RefCell<ProducerTable>,
    /// Where and when a producer's batch was admitted that is not appended yet.
    admitted: Cell<Option<(Offset, i64)>>,
    /// The end that the last checkpoint of this process's time claims.
    checkpointed_end: Cell<Offset>,
    settings: Cell<PartitionSettings>,
    leader_epoch: Cell<LeaderEpoch>,
    pending: RefCell<VecDeque<PendingGroup>>,
    on_the_way: RefCell<VecDeque<OnTheWay>>,
    files: RefCell<HashMap<u64, Rc<OpenSegment<D::File>>>>,
    /// Who uses a segment's file, by its nonce.
    uses: RefCell<HashMap<u64, Rc<()>>>,
    preparation: RefCell<Preparation>,
    tail: RefCell<TailCache>,
    /// Who waits until this broker's device has it.
    durable_waiters: Waiters,
    /// Who waits until all replicas that count have it.
    committed_waiters: Waiters,
    /// What is durable here and not committed, oldest first; empty without other replicas.
    uncommitted: RefCell<VecDeque<Uncommitted>>,
    standing: Cell<Standing>,
    placing: Cell<bool>,
    /// Segments that the log has left behind and whose files are still there, in the order in which they go.
    dropped: RefCell<VecDeque<Dropped>>,
    /// Somebody is rewriting segments.
    compacting: Cell<bool>,
    compaction: Cell<CompactionState>,
    /// Somebody is reclaiming them.
    reclaiming: Cell<bool>,
    /// The log is being cut: nobody else changes it.
    cutting: Cell<bool>,
    closed: Cell<bool>,
    /// Flush rounds that write to its files just now.
    rounds_writing: Cell<usize>,
    /// How far it has gone to another shard.
    stage: Cell<leaving::Stage>,
    last_append_ms: Cell<i64>,
    report: OpenReport,
}

impl<D: Disk> Partition<D> {
    /// Opens the partition: recovers its log, makes a truncation durable, reports what was found. Files that do not belong
    /// to the log any more are still there: [`Partition::remove_leftovers`], or retention, reclaims them.
    ///
    /// # Errors
    /// A file cannot be made, read or written; where that is because the disk is full, it can be opened again.
    pub async fn open(
        storage: Rc<Storage<D>>,
        identity: LogIdentity,
        settings: PartitionSettings,
        leader_epoch: Option<LeaderEpoch>,
        checkpoint: Option<PartitionCheckpoint>,
        clean: bool,
    ) -> io::Result<Rc<Self>> {
        let (recovered, doubted) = recover::recover(&storage, identity, checkpoint, clean).await?;
        let report = OpenReport {
            lost: recovered.lost.clone(),
            unproven: match recovered.tail {
                Tail::Clean => None,
                Tail::Unproven { from, until } => Some((from.get(), until.map(Offset::get))),
            },
            doubted,
            bytes_read: recovered.bytes_read,
        };
        let known_epoch = recovered.start.epochs.last().map_or(LeaderEpoch::new(0), |(epoch, _)| *epoch);
        let directory = partition_directory(storage.root(), &identity);
        let now_ms = storage.environment.now_ms();
        let partition = Rc::new(Self {
            traffic: Traffic::default(),
            identity,
            directory,
            log: RefCell::new(Log::new(identity, settings.log, recovered.start)),
            producers: RefCell::new(recovered.producers),
            admitted: Cell::new(None),
            checkpointed_end: Cell::new(Offset::new(0)),
            settings: Cell::new(settings),
            leader_epoch: Cell::new(known_epoch),
            pending: RefCell::default(),
            on_the_way: RefCell::default(),
            files: RefCell::default(),
            uses: RefCell::default(),
            preparation: RefCell::new(Preparation::new(now_ms)),
            tail: RefCell::default(),
            durable_waiters: Waiters::default(),
            committed_waiters: Waiters::default(),
            uncommitted: RefCell::default(),
            // With one replica there is nobody else.
            standing: Cell::new(Standing { leads: true, applied: true, follows: None, refusal: None }),
            placing: Cell::new(false),
            dropped: RefCell::default(),
            reclaiming: Cell::new(false),
            compacting: Cell::new(false),
            compaction: Cell::default(),
            cutting: Cell::new(false),
            closed: Cell::new(false),
            rounds_writing: Cell::new(0),
            stage: Cell::default(),
            last_append_ms: Cell::new(now_ms),
            report,
            storage,
        });
        leader_epoch.into_iter().for_each(|epoch| partition.set_leader_epoch(epoch));
        // Where there are other replicas, they have what may be missing.
        let unproven = partition.report.unproven.map(|(from, _)| from);
        let doubted = unproven.or(partition.lost_from().map(Offset::get)).filter(|_| leader_epoch.is_none());
        while let Some(from) = doubted
            && let Err(error) = partition.note_doubt(from).await
        {
            partition.unless_reserve_helps(Err(error)).await?;
        }
        match recovered.must_open {
            true => partition.open_incarnation().await?,
            false => partition.announce(),
        }
        partition.dropped.borrow_mut().extend(recovered.discard.into_iter().map(Dropped::left_over));
        partition.storage.disk.sync_directory(&partition.directory).await?;
        // Not before: who finds no room is opened again.
        partition.storage.announced.borrow_mut().remove(&identity);
        partition.storage.producers_changed(0, partition.producer_count());
        Ok(partition)
    }

    /// Writes a durable empty group of the new incarnation at the cut: from now on nothing of what was
    /// cut can come back. What was cut is announced.
    async fn open_incarnation(self: &Rc<Self>) -> io::Result<()> {
        let now_ms = self.storage.environment.now_ms();
        let group = self.log.borrow().empty_group(now_ms);
        self.pending.borrow_mut().push_back(PendingGroup {
            buffer: self.storage.pool.take(BLOCK_BYTES),
            group,
            closed: true,
        });
        let round = RoundId(0);
        let mut writes = RoundWrites { writes: Vec::new(), prepared: Vec::new(), bytes: 0, groups: 0 };
        // Even on a full disk: this is one of the things that the reserve is for.
        while let SealOutcome::Blocked(blocked) = self.seal_into(round, &mut writes) {
            let result = self.unblock(blocked).await;
            self.unless_reserve_helps(result).await?;
        }
        for write in &mut writes.writes {
            write.durable = true;
        }
        // Before the cut is durable: after a crash in between it is said again, not forgotten.
        self.announce();
        while let Err(error) = self.storage.disk.write(writes.writes.clone()).await {
            self.unless_reserve_helps(Err(error)).await?;
        }
        self.written(round);
        Ok(())
    }

    /// Passes a result on, unless it is a full disk and the reserve gave room: then try again.
    async fn unless_reserve_helps(&self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if is_no_space(&error) && self.storage.spend_reserve().await => Ok(()),
            other => other,
        }
    }

    fn announce(&self) {
        let found = self.report.lost.len() + usize::from(self.report.unproven.is_some());
        // Else an opening that found no room has said it.
        if found == 0 || !self.storage.announced.borrow_mut().insert(self.identity) {
            return;
        }
        count(&self.storage.counters.damaged_ranges, found as u64);
        let label = self.storage.label(self.id());
        for range in &self.report.lost {
            self.storage.notice(format!(
                "CORRUPT: {label}: acknowledged offsets {}..{} are lost; the rest is served",
                range.start, range.end
            ));
        }
        if let Some((from, until)) = self.report.unproven {
            let until = until.map_or("unknown".to_owned(), |until| until.to_string());
            self.storage.notice(format!(
                "UNPROVEN TAIL: {label}: cut at offset {from}, remains named offsets up to {until}; a write was \
                 in flight at the crash, or its bytes have rotted"
            ));
        }
    }

    /// From where on nothing can be read, up to the end of the log.
    pub fn lost_from(&self) -> Option<Offset> {
        self.with_log(|log| {
            let range = log.damaged().iter().find(|range| range.end >= log.log_end().get());
            range.map(|range| Offset::new(range.start))
        })
    }

    /// Topic and partition.
    pub fn id(&self) -> TopicPartition {
        self.identity.partition
    }
    /// Which log this is.
    pub fn identity(&self) -> LogIdentity {
        self.identity
    }
    /// Which replica of it this is.
    pub fn generation(&self) -> u32 {
        self.identity.generation
    }
    /// What opening found.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }
    /// The epoch in which this broker leads.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch.get()
    }
    /// The settings in force.
    pub fn settings(&self) -> PartitionSettings {
        self.settings.get()
    }
    /// Takes over a newer leader epoch. One that goes back is refused: the log has batches of a later one,
    /// so whoever says it has older metadata than this disk.
    pub fn set_leader_epoch(&self, epoch: LeaderEpoch) {
        let known = self.leader_epoch.get();
        if epoch >= known {
            return self.leader_epoch.set(epoch);
        }
        self.storage.notice(format!(
            "{}: the metadata says leader epoch {epoch}, and the log has {known}, which stays in force: clients \
             that follow the metadata are refused. The metadata is older than the data; restore both from the \
             same backup",
            self.storage.label(self.id())
        ));
    }
    /// Changes the settings.
    pub fn set_settings(&self, settings: PartitionSettings) {
        self.settings.set(settings);
        self.log.borrow_mut().set_settings(settings.log);
        self.is_to_be_looked_at();
    }
    /// Retention and compaction look at it next, although nobody appends to it.
    pub fn is_to_be_looked_at(&self) {
        self.storage.retention.put_down(self.id(), Agenda::NOW);
        self.storage.compaction.put_down(self.id(), Agenda::NOW);
    }
    /// Reads the log's state; the borrow must not outlive the closure.
    pub fn with_log<T>(&self, read: impl FnOnce(&Log) -> T) -> T {
        read(&self.log.borrow())
    }
    /// Every offset below is visible.
    pub fn high_watermark(&self) -> Offset {
        self.log.borrow().high_watermark()
    }
    /// Whether the partition has been closed: nothing is appended or read any more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
    /// The storage that it lives on.
    pub fn storage(&self) -> &Rc<Storage<D>> {
        &self.storage
    }

    fn segment_path(&self, name: SegmentName) -> PathBuf {
        self.directory.join(name.to_string())
    }

    /// Calls `waiter` once every offset below `end` is on this broker's device: at once if they are.
    pub fn when_durable(&self, end: Offset, waiter: Rc<dyn DurabilityWaiter>, token: u32) {
        let durable_end = self.log.borrow().durable_end();
        match end <= durable_end {
            true => waiter.durable(token, durable_end),
            false => self.durable_waiters.push(end, waiter, token),
        }
    }

    /// Calls `waiter` once every offset below `end` is committed: on the devices of all replicas that count.
    pub fn when_committed(&self, end: Offset, waiter: Rc<dyn DurabilityWaiter>, token: u32) {
        let high_watermark = self.log.borrow().high_watermark();
        match end <= high_watermark {
            true => waiter.durable(token, high_watermark),
            false => self.committed_waiters.push(end, waiter, token),
        }
    }

    /// Whether the partition has other replicas: then its high watermark is moved by
    /// [`Partition::set_high_watermark`].
    pub fn is_replicated(&self) -> bool {
        self.log.borrow().is_replicated()
    }

    /// The partition has other replicas from now on. `after_start`: it has just been opened, so that nothing is known
    /// to be committed.
    pub fn replicate(&self, after_start: bool) {
        let mut log = self.log.borrow_mut();
        if !log.is_replicated() {
            let known = if after_start { log.log_start() } else { log.high_watermark() };
            log.replicate(known);
            self.standing.set(Standing {
                leads: false,
                applied: false,
                follows: None,
                refusal: Some(NotAdmitted::NotLeader),
            });
        }
    }

    /// What this broker may do with it.
    pub fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// Its replica says what this broker may do with it; what it might before.
    pub fn set_standing(&self, standing: Standing) -> Standing {
        let before = self.standing.get();
        // What a cut or a comparison that was under way leads to does not count any more.
        if !self.has_stopped() {
            self.standing.set(standing);
        }
        if standing.leads != before.leads {
            self.is_to_be_looked_at();
        }
        before
    }

    /// Every offset below `to` is committed: answers who waits for it. What became visible.
    pub fn set_high_watermark(&self, to: Offset) -> Option<Advance> {
        let before = {
            let mut log = self.log.borrow_mut();
            let before = log.high_watermark();
            log.set_high_watermark(to);
            before
        };
        if to == before {
            return None;
        }
        let mut bytes = 0;
        let mut uncommitted = self.uncommitted.borrow_mut();
        while let Some(group) = uncommitted.front_mut().filter(|group| group.base < to) {
            if group.end <= to {
                bytes += group.bytes;
                uncommitted.pop_front();
                continue;
            }
            // In the middle of a group: replicas cut theirs elsewhere. About its share will do.
            let share = group.bytes * (to.get() - group.base.get()) / (group.end.get() - group.base.get());
            bytes += share;
            group.bytes -= share;
            group.base = to;
        }
        drop(uncommitted);
        self.committed_waiters.reached(to);
        // Somebody may wait for the first byte.
        Some(Advance { end: to, bytes: bytes.max(1) })
    }

    /// Another broker leads: whoever waits is told that nobody knows.
    pub fn lose_role(&self) {
        self.durable_waiters.lose_role();
        self.committed_waiters.lose_role();
    }

    /// Gives pending groups their places and adds their writes to the round.
    pub fn seal_into(&self, round: RoundId, writes: &mut RoundWrites<D::File>) -> SealOutcome {
        let now_ms = self.storage.environment.now_ms();
        let policy = self.storage.policy;
        let mut pending = self.pending.borrow_mut();
        let mut log = self.log.borrow_mut();
        let mut in_flight: usize = self.on_the_way.borrow().iter().map(|group| group.tail.buffer.len()).sum();
        while let Some(front) = pending.front() {
            let bytes = group_bytes(front.group.payload_bytes as usize);
            if in_flight > 0 && in_flight + bytes > LOG_IN_FLIGHT_BYTES_MAX {
                return SealOutcome::InFlight;
            }
            if writes.groups > 0
                && (writes.bytes + bytes > policy.round_bytes_max
                    || writes.groups >= logic::limits::ROUND_GROUPS_MAX)
            {
                return SealOutcome::More;
            }
            if let Some(blocked) = self.blocked(&log, front.group.payload_bytes, now_ms) {
                return SealOutcome::Blocked(blocked);
            }
            let PendingGroup { mut buffer, group, .. } = pending.pop_front().expect("there is a front group");
            let sealed = log.seal(&group, round, now_ms);
            let payload_end = GROUP_HEADER_BYTES + group.payload_bytes as usize;
            buffer.truncate(bytes);
            buffer[payload_end..bytes].fill(0);
            sealed.header.encode(&mut buffer);
            let file = self.files.borrow()[&sealed.placement.sequence].file.clone();
            if let Some(header) = sealed.opens {
                let mut block = self.storage.pool.take(BLOCK_BYTES);
                block.fill(0);
                header.encode(&mut block);
                self.preparation.borrow_mut().opened(sealed.placement.sequence);
                let piece_bytes = policy.write_bytes_max;
                writes.writes.extend(split_write(&file, Rc::new(block), BLOCK_BYTES, 0, false, piece_bytes));
                writes.prepared.push(true);
                writes.bytes += BLOCK_BYTES;
            }
            if let Some(sequence) = sealed.closes {
                self.preparation.borrow_mut().closed.push(sequence);
            }
            let end_position = sealed.placement.position + bytes as u64;
            let prepared = self.preparation.borrow_mut().appended(end_position, bytes as u64, now_ms);
            if !prepared {
                count(&self.storage.counters.unprepared_groups, 1);
            }
            let buffer = Rc::new(buffer);
            let (position, piece_bytes) = (sealed.placement.position, policy.write_bytes_max);
            let pieces = split_write(&file, buffer.clone(), bytes, position, false, piece_bytes);
            writes.prepared.extend(pieces.iter().map(|_| prepared));
            writes.writes.extend(pieces);
            writes.bytes += bytes;
            writes.groups += 1;
            in_flight += bytes;
            count(&self.storage.counters.groups, 1);
            count(&self.storage.counters.group_bytes, bytes as u64);
            count(&self.storage.counters.payload_bytes, u64::from(group.payload_bytes));
            self.on_the_way.borrow_mut().push_back(OnTheWay {
                tail: TailGroup {
                    base: group.base,
                    end: group.end,
                    buffer,
                    payload: GROUP_HEADER_BYTES..payload_end,
                },
                payload_bytes: u64::from(group.payload_bytes),
            });
        }
        SealOutcome::Done
    }

    /// Why the front group cannot be placed now.
    fn blocked(&self, log: &Log, payload_bytes: u32, now_ms: i64) -> Option<Blocked> {
        if let Some(needed) = log.segment_needed(payload_bytes, now_ms) {
            return Some(Blocked::Segment(needed));
        }
        let files = self.files.borrow();
        let is_open = |sequence| files.contains_key(&sequence);
        let active = log.segments().back();
        if active.is_some_and(|active| !is_open(active.sequence))
            || log.placed().is_some_and(|(sequence, _)| !is_open(sequence))
        {
            return Some(Blocked::File);
        }
        let position = active.map_or(0, |active| active.end_position);
        let bytes = group_bytes(payload_bytes as usize) as u64;
        self.preparation.borrow_mut().holds_back(position, bytes).then_some(Blocked::Zeroing)
    }

    /// Does what a blocked seal waits for, as far as it is this partition's to do.
    pub async fn unblock(&self, blocked: Blocked) -> io::Result<()> {
        match blocked {
            Blocked::Segment(needed) => self.place_segment(needed).await,
            Blocked::File => self.open_files().await,
            // Whoever zeroes marks the partition dirty again.
            Blocked::Zeroing => Ok(()),
        }
    }

    /// A round is on the device: moves the durable end and calls those who wait for it.
    pub fn written(&self, round: RoundId) -> Written {
        let (end, became_durable, replicated) = {
            let mut log = self.log.borrow_mut();
            let before = log.in_flight();
            let end = log.written(round);
            let (sequence, position) = log.durable_position();
            self.preparation.borrow_mut().durable(sequence, position);
            (end, before - log.in_flight(), log.is_replicated())
        };
        let mut bytes = 0;
        {
            let mut on_the_way = self.on_the_way.borrow_mut();
            let mut tail = self.tail.borrow_mut();
            let mut uncommitted = self.uncommitted.borrow_mut();
            for _ in 0..became_durable {
                let group = on_the_way.pop_front().expect("as many groups on the way as in flight");
                bytes += group.payload_bytes;
                self.storage.sub_dirty(group.payload_bytes as usize);
                if group.payload_bytes > 0 && !self.closed.get() {
                    if replicated {
                        let (base, end) = (group.tail.base, group.tail.end);
                        uncommitted.push_back(Uncommitted { base, end, bytes: group.payload_bytes });
                    }
                    tail.push(group.tail);
                }
            }
        }
        let Some(end) = end else { return Written::default() };
        self.durable_waiters.reached(end);
        if replicated {
            return Written { durable_end: Some(end), visible: None };
        }
        self.committed_waiters.reached(end);
        Written { durable_end: Some(end), visible: Some(Advance { end, bytes }) }
    }

    /// Bytes that the tail cache holds.
    pub fn tail_bytes(&self) -> usize {
        self.tail.borrow().bytes()
    }

    /// Groups that the tail cache holds.
    pub fn tail_groups(&self) -> usize {
        self.tail.borrow().groups()
    }

    /// Whether nothing has been appended since `since_ms` and nothing is under way.
    pub fn is_quiet(&self, since_ms: i64) -> bool {
        self.last_append_ms.get() < since_ms && self.pending.borrow().is_empty() && !self.is_busy()
    }

    /// Whether groups wait for a round.
    pub fn has_pending(&self) -> bool {
        !self.pending.borrow().is_empty()
    }

    /// Drops the oldest group of the tail cache; the bytes that it held.
    pub fn evict_tail(&self) -> usize {
        self.tail.borrow_mut().evict()
    }

    /// This checkpoint is on the device.
    pub fn checkpointed(&self, checkpoint: &PartitionCheckpoint) {
        self.checkpointed_end.set(Offset::new(checkpoint.durable_end));
        self.log.borrow_mut().checkpointed(checkpoint);
    }

    /// Stops serving: whoever waits is told, nothing is appended any more.
    pub fn close(&self) {
        self.closed.set(true);
        self.forget_producers();
        self.durable_waiters.close();
        self.committed_waiters.close();
        self.uncommitted.borrow_mut().clear();
        let dropped: usize =
            self.pending.borrow_mut().drain(..).map(|pending| pending.group.payload_bytes as usize).sum();
        self.storage.sub_dirty(dropped);
        self.tail.borrow_mut().clear();
        self.storage.read_files.forget(self.id(), None);
    }

    /// Whether rounds or other work with its files are still under way.
    pub fn is_busy(&self) -> bool {
        !self.on_the_way.borrow().is_empty() || self.is_worked_on(&[])
    }

    /// Whether something is under way with its files, flush rounds aside and what is named.
    fn is_worked_on(&self, aside: &[Work]) -> bool {
        let works = [
            (Work::Placing, self.placing.get()),
            (Work::Reclaiming, self.reclaiming.get()),
            (Work::Compacting, self.compacting.get()),
            (Work::Cutting, self.cutting.get()),
            (Work::Preparing, self.preparation.borrow().is_busy()),
        ];
        works.iter().any(|(work, goes_on)| *goes_on && !aside.contains(work))
    }
}
