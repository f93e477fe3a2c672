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

pub mod prepare;
pub mod reader;
pub mod tail_cache;

use crate::storage::buffer::Buffer;
use crate::storage::disk::{Disk, Write};
use crate::storage::{
    OpenSegment, Storage, count, is_no_space, partition_directory, recover, segment_name, split_write,
};
use logic::ids::{LeaderEpoch, Offset, TopicPartition};
use logic::limits::{BLOCK_BYTES, GROUP_BYTES_MAX};
use logic::log::append::SegmentNeeded;
use logic::log::recovery::Tail;
use logic::log::retention::{self, RetentionSettings};
use logic::log::{Log, LogIdentity, LogSettings, OpenGroup, RoundId};
use prepare::Preparation;
use schema::checkpoint::PartitionCheckpoint;
use schema::crc;
use schema::record_batch::{self, Header};
use schema::segment::{GROUP_HEADER_BYTES, group_bytes};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use tail_cache::{TailCache, TailGroup};

/// The settings of a topic that its partitions obey; changed while running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionSettings {
    /// Rolling.
    pub log: LogSettings,
    /// What is kept.
    pub retention: RetentionSettings,
    /// `max.message.bytes`.
    pub max_message_bytes: usize,
    /// `message.timestamp.type` is LogAppendTime.
    pub log_append_time: bool,
}

/// Somebody who waits until an offset is durable.
pub trait DurabilityWaiter {
    /// Every offset below the one waited for is durable; `token` is what was given when waiting.
    fn durable(&self, token: u32, durable_end: Offset);
    /// It will never be: the partition is closed.
    fn closed(&self, token: u32);
}

struct Waiter {
    end: Offset,
    token: u32,
    waiter: Rc<dyn DurabilityWaiter>,
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

/// How far the durable end moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The new durable end.
    pub end: Offset,
    /// Bytes of batches below it that were not before.
    pub bytes: u64,
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
    /// Bytes that recovery read.
    pub bytes_read: u64,
}

/// A partition.
pub struct Partition<D: Disk> {
    identity: LogIdentity,
    storage: Rc<Storage<D>>,
    directory: PathBuf,
    log: RefCell<Log>,
    settings: Cell<PartitionSettings>,
    leader_epoch: Cell<LeaderEpoch>,
    pending: RefCell<VecDeque<PendingGroup>>,
    on_the_way: RefCell<VecDeque<OnTheWay>>,
    files: RefCell<HashMap<u64, Rc<OpenSegment<D::File>>>>,
    /// Who uses a segment's file, by its number.
    uses: RefCell<HashMap<u64, Rc<()>>>,
    preparation: RefCell<Preparation>,
    tail: RefCell<TailCache>,
    waiters: RefCell<VecDeque<Waiter>>,
    placing: Cell<bool>,
    /// Segments that the log has left behind and whose files are still there, oldest first, each with the
    /// end of its groups.
    dropped: RefCell<VecDeque<(u64, u64)>>,
    /// Somebody is reclaiming them.
    reclaiming: Cell<bool>,
    closed: Cell<bool>,
    last_append_ms: Cell<i64>,
    report: OpenReport,
}

impl<D: Disk> Partition<D> {
    /// Opens the partition: recovers its log, makes a truncation durable, reports what was found.
    pub async fn open(
        storage: Rc<Storage<D>>,
        identity: LogIdentity,
        settings: PartitionSettings,
        leader_epoch: LeaderEpoch,
        checkpoint: Option<PartitionCheckpoint>,
        clean: bool,
    ) -> io::Result<Rc<Self>> {
        let recovered = recover::recover(&storage, identity, checkpoint, clean).await?;
        let report = OpenReport {
            lost: recovered.lost.clone(),
            unproven: match recovered.tail {
                Tail::Clean => None,
                Tail::Unproven { from, until } => Some((from.get(), until.map(Offset::get))),
            },
            bytes_read: recovered.bytes_read,
        };
        let known_epoch = recovered.start.epochs.last().map_or(LeaderEpoch::new(0), |(epoch, _)| *epoch);
        let directory = partition_directory(storage.root(), &identity);
        let now_ms = storage.environment.now_ms();
        let partition = Rc::new(Self {
            identity,
            directory,
            log: RefCell::new(Log::new(identity, settings.log, recovered.start)),
            settings: Cell::new(settings),
            leader_epoch: Cell::new(known_epoch),
            pending: RefCell::default(),
            on_the_way: RefCell::default(),
            files: RefCell::default(),
            uses: RefCell::default(),
            preparation: RefCell::new(Preparation::new(now_ms)),
            tail: RefCell::default(),
            waiters: RefCell::default(),
            placing: Cell::new(false),
            dropped: RefCell::default(),
            reclaiming: Cell::new(false),
            closed: Cell::new(false),
            last_append_ms: Cell::new(now_ms),
            report,
            storage,
        });
        // Said before the cut is durable: after a crash in between it is said again, not forgotten.
        partition.announce();
        partition.set_leader_epoch(leader_epoch);
        if recovered.must_open {
            partition.open_incarnation().await?;
        }
        for sequence in recovered.discard {
            partition.storage.reclaim(&partition.segment_path(sequence), 0, u64::MAX).await?;
        }
        partition.storage.disk.sync_directory(&partition.directory).await?;
        Ok(partition)
    }

    /// Writes a durable empty group of the new incarnation at the cut: from now on nothing of what was
    /// cut can come back.
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

    /// Topic and partition.
    pub fn id(&self) -> TopicPartition {
        self.identity.partition
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

    fn segment_path(&self, sequence: u64) -> PathBuf {
        self.directory.join(segment_name(sequence))
    }

    /// Appends a checked batch, copying it into the pending group.
    pub fn append_copy(&self, batch: &[u8], header: &Header) -> Appended {
        let (appended, epoch) = self.assign(header);
        let mut pending = self.pending.borrow_mut();
        let length = batch.len();
        let joins = pending.back().is_some_and(|last| {
            !last.closed
                && last.group.leader_epoch == epoch
                && group_bytes(last.group.payload_bytes as usize + length) <= GROUP_BYTES_MAX
        });
        if !joins {
            let buffer = self.storage.pool.take(group_bytes(length));
            pending.push_back(PendingGroup { buffer, group: open_group(&appended, epoch), closed: false });
        }
        let last = pending.back_mut().expect("a group has just been made sure of");
        let start = GROUP_HEADER_BYTES + last.group.payload_bytes as usize;
        self.ensure_room(last, start + length);
        self.storage.add_dirty(length);
        let place = &mut last.buffer[start..start + length];
        place.copy_from_slice(batch);
        self.stamp(place, header, &appended, epoch, &mut last.group);
        appended
    }

    /// Appends a checked batch that was received into `buffer`, right behind the room for the group's
    /// header. The buffer becomes the group.
    pub fn append_in_place(&self, mut buffer: Buffer, header: &Header) -> Appended {
        let (appended, epoch) = self.assign(header);
        let mut group = open_group(&appended, epoch);
        let length = header.batch_bytes;
        self.storage.add_dirty(length);
        let place = &mut buffer[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + length];
        self.stamp(place, header, &appended, epoch, &mut group);
        self.pending.borrow_mut().push_back(PendingGroup { buffer, group, closed: true });
        appended
    }

    fn assign(&self, header: &Header) -> (Appended, LeaderEpoch) {
        let epoch = self.leader_epoch.get();
        let base = self.log.borrow_mut().append(header.last_offset_delta + 1, epoch);
        let append_time_ms = self.storage.environment.now_ms();
        self.last_append_ms.set(append_time_ms);
        let end = base.advance(u64::from(header.last_offset_delta) + 1);
        (Appended { base, end, append_time_ms }, epoch)
    }

    fn ensure_room(&self, pending: &mut PendingGroup, bytes: usize) {
        if bytes <= pending.buffer.len() {
            return;
        }
        pending.buffer.expand();
        if bytes <= pending.buffer.len() {
            return;
        }
        let used = GROUP_HEADER_BYTES + pending.group.payload_bytes as usize;
        let mut larger = self.storage.pool.take((2 * pending.buffer.len()).min(GROUP_BYTES_MAX).max(bytes));
        larger[..used].copy_from_slice(&pending.buffer[..used]);
        pending.buffer = larger;
    }

    /// Writes what the broker decides into a batch in its final place, and adds it to the group.
    fn stamp(
        &self,
        batch: &mut [u8],
        header: &Header,
        appended: &Appended,
        epoch: LeaderEpoch,
        group: &mut OpenGroup,
    ) {
        record_batch::set_base_offset(batch, appended.base.get());
        record_batch::set_leader_epoch(batch, epoch.get());
        let mut max_timestamp_ms = header.max_timestamp_ms;
        let mut crc = Some(header.crc);
        if self.settings.get().log_append_time {
            record_batch::set_log_append_time(batch, appended.append_time_ms);
            max_timestamp_ms = appended.append_time_ms;
            crc = None;
        }
        group.payload_crc = extend_crc(group.payload_crc, batch, crc);
        group.payload_bytes += batch.len() as u32;
        group.batch_count += 1;
        group.end = appended.end;
        group.max_timestamp_ms = group.max_timestamp_ms.max(max_timestamp_ms);
    }

    /// Calls `waiter` once every offset below `end` is durable.
    pub fn when_durable(&self, end: Offset, waiter: Rc<dyn DurabilityWaiter>, token: u32) {
        self.waiters.borrow_mut().push_back(Waiter { end, token, waiter });
    }

    /// Puts an attestation into the next round if the log has gone idle without one.
    pub fn attest_if_idle(&self, idle_since_ms: i64) -> bool {
        if self.closed.get() || self.last_append_ms.get() > idle_since_ms || !self.pending.borrow().is_empty()
        {
            return false;
        }
        let Some(group) = self.log.borrow_mut().attestation(self.storage.environment.now_ms()) else {
            return false;
        };
        let buffer = self.storage.pool.take(BLOCK_BYTES);
        self.pending.borrow_mut().push_back(PendingGroup { buffer, group, closed: true });
        true
    }

    /// Gives pending groups their places and adds their writes to the round.
    pub fn seal_into(&self, round: RoundId, writes: &mut RoundWrites<D::File>) -> SealOutcome {
        let now_ms = self.storage.environment.now_ms();
        let mut pending = self.pending.borrow_mut();
        let mut log = self.log.borrow_mut();
        while let Some(front) = pending.front() {
            let bytes = group_bytes(front.group.payload_bytes as usize);
            if writes.groups > 0
                && (writes.bytes + bytes > logic::limits::ROUND_BYTES_MAX
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
                writes.writes.extend(split_write(&file, Rc::new(block), BLOCK_BYTES, 0, false));
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
            let pieces = split_write(&file, buffer.clone(), bytes, sealed.placement.position, false);
            writes.prepared.extend(pieces.iter().map(|_| prepared));
            writes.writes.extend(pieces);
            writes.bytes += bytes;
            writes.groups += 1;
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

    /// Puts the next segment in place, unless that has been done or is being done.
    pub async fn place_segment(&self, needed: SegmentNeeded) -> io::Result<()> {
        // What was needed when it was asked for may be in place by now: a second file of the same number
        // would replace a segment that is written to.
        if self.closed.get() || !self.log.borrow().awaits_segment(needed.sequence) {
            return Ok(());
        }
        if self.placing.replace(true) {
            return Ok(());
        }
        let incarnation = self.log.borrow().incarnation();
        let placed = self.storage.place_segment(&self.identity, incarnation, needed).await;
        self.placing.set(false);
        let placed = placed?;
        self.keep_open(needed.sequence, placed.file);
        self.preparation.borrow_mut().placed(needed.sequence, placed.prewritten_end);
        self.log.borrow_mut().segment_placed(needed.sequence, placed.nonce);
        Ok(())
    }

    /// Whether a segment is being put in place.
    pub fn is_placing(&self) -> bool {
        self.placing.get()
    }

    fn keep_open(&self, sequence: u64, file: D::File) {
        let segment = Rc::new(OpenSegment { file, used: self.begin_use(sequence) });
        self.files.borrow_mut().insert(sequence, segment);
    }

    fn begin_use(&self, sequence: u64) -> Rc<()> {
        self.uses.borrow_mut().entry(sequence).or_default().clone()
    }

    /// The segment that should be put in place ahead of need, if none is on its way.
    pub fn segment_wanted(&self) -> Option<SegmentNeeded> {
        if self.placing.get() || self.closed.get() {
            return None;
        }
        self.log.borrow().segment_wanted()
    }

    async fn open_files(&self) -> io::Result<()> {
        let (active, placed) = {
            let log = self.log.borrow();
            let active = log.segments().back().map(|active| (active.sequence, Some(active.end_position)));
            (active, log.placed().map(|(sequence, _)| (sequence, None)))
        };
        for (sequence, end_position) in active.into_iter().chain(placed) {
            if self.files.borrow().contains_key(&sequence) {
                continue;
            }
            let file = self.storage.disk.open(&self.segment_path(sequence)).await?;
            self.storage.disk.sync(&file).await?;
            self.keep_open(sequence, file);
            // The length says nothing: a crash leaves holes where a write was lost and a later one was
            // not. What is sound up to the log's end is written, and so are the blocks that every
            // segment has before it gets its name.
            let mut preparation = self.preparation.borrow_mut();
            match end_position {
                Some(end_position) => preparation.resumed(sequence, end_position),
                None => preparation.found_placed(sequence),
            }
        }
        Ok(())
    }

    /// Closes files that an idle partition does not need; they are opened again on demand.
    pub fn close_idle_files(&self) {
        let idle = self.pending.borrow().is_empty()
            && self.on_the_way.borrow().is_empty()
            && !self.placing.get()
            && !self.preparation.borrow().is_busy();
        if idle {
            self.files.borrow_mut().clear();
        }
    }

    /// Whether this partition keeps files open.
    pub fn has_open_files(&self) -> bool {
        !self.files.borrow().is_empty()
    }

    /// A round is on the device: moves the durable end and calls those who wait for it.
    pub fn written(&self, round: RoundId) -> Option<Advance> {
        let (end, became_durable) = {
            let mut log = self.log.borrow_mut();
            let before = log.in_flight();
            let end = log.written(round);
            let (sequence, position) = log.durable_position();
            self.preparation.borrow_mut().durable(sequence, position);
            (end, before - log.in_flight())
        };
        let mut bytes = 0;
        {
            let mut on_the_way = self.on_the_way.borrow_mut();
            let mut tail = self.tail.borrow_mut();
            for _ in 0..became_durable {
                let group = on_the_way.pop_front().expect("as many groups on the way as in flight");
                bytes += group.payload_bytes;
                self.storage.sub_dirty(group.payload_bytes as usize);
                if group.payload_bytes > 0 && !self.closed.get() {
                    tail.push(group.tail);
                }
            }
        }
        let end = end?;
        loop {
            let waiter = {
                let mut waiters = self.waiters.borrow_mut();
                match waiters.front() {
                    Some(front) if front.end <= end => waiters.pop_front(),
                    _ => None,
                }
            };
            let Some(Waiter { token, waiter, .. }) = waiter else { break };
            waiter.durable(token, end);
        }
        Some(Advance { end, bytes })
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

    /// What a checkpoint may claim.
    pub fn checkpoint(&self) -> PartitionCheckpoint {
        self.log.borrow().checkpoint()
    }

    /// A checkpoint that claims `durable_end` is on the device.
    pub fn checkpointed(&self, durable_end: Offset) {
        self.log.borrow_mut().checkpointed(durable_end);
    }

    /// Applies retention; reclaims the files that went, when their readers have finished.
    pub async fn enforce_retention(&self) -> io::Result<u64> {
        let now_ms = self.storage.environment.now_ms();
        let start = retention::new_log_start(&self.log.borrow(), self.settings.get().retention, now_ms);
        if self.closed.get() {
            return Ok(0);
        }
        let dropped = start.map_or(0, |start| self.advance_start(start));
        self.reclaim_dropped().await?;
        Ok(dropped)
    }

    /// Moves the log's start; the number of segments that went.
    fn advance_start(&self, start: Offset) -> u64 {
        let mut log = self.log.borrow_mut();
        let ends: HashMap<u64, u64> =
            log.segments().iter().map(|segment| (segment.sequence, segment.end_position)).collect();
        let dropped = log.advance_start(start);
        let with_ends = dropped.iter().map(|sequence| (*sequence, ends[sequence]));
        self.dropped.borrow_mut().extend(with_ends);
        dropped.len() as u64
    }

    /// Reclaims the files of dropped segments: by one task, oldest first, each name gone for good before
    /// the next. After a crash a gap would look like a loss.
    async fn reclaim_dropped(&self) -> io::Result<()> {
        if self.reclaiming.replace(true) {
            return Ok(());
        }
        let mut result = Ok(());
        while result.is_ok() {
            let Some((sequence, end_position)) = self.dropped.borrow().front().copied() else { break };
            self.wait_for_readers(sequence).await;
            let published_end = self.preparation.borrow_mut().forget(sequence).unwrap_or(end_position);
            let want_bytes = self.settings.get().log.physical_bytes();
            result = match self.storage.reclaim(&self.segment_path(sequence), published_end, want_bytes).await
            {
                // An earlier attempt came so far.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            if result.is_ok() {
                self.dropped.borrow_mut().pop_front();
            }
        }
        self.reclaiming.set(false);
        result
    }

    /// Takes a segment's handle out of use and waits until nobody reads through it.
    async fn wait_for_readers(&self, sequence: u64) {
        self.files.borrow_mut().remove(&sequence);
        self.storage.read_files.forget(self.id(), Some(sequence));
        let is_used = || self.uses.borrow().get(&sequence).is_some_and(|used| Rc::strong_count(used) > 1);
        while is_used() {
            self.storage.environment.sleep(std::time::Duration::from_millis(5)).await;
        }
        self.uses.borrow_mut().remove(&sequence);
    }

    /// Stops serving: whoever waits is told, nothing is appended any more.
    pub fn close(&self) {
        self.closed.set(true);
        // Whoever is told may come back here: nothing is borrowed meanwhile.
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waiter in waiters {
            waiter.waiter.closed(waiter.token);
        }
        let dropped: usize =
            self.pending.borrow_mut().drain(..).map(|pending| pending.group.payload_bytes as usize).sum();
        self.storage.sub_dirty(dropped);
        self.tail.borrow_mut().clear();
        self.storage.read_files.forget(self.id(), None);
    }

    /// Whether rounds or preparations of this partition are still under way.
    pub fn is_busy(&self) -> bool {
        !self.on_the_way.borrow().is_empty()
            || self.placing.get()
            || self.reclaiming.get()
            || self.preparation.borrow().is_busy()
    }

    /// Removes all files of a closed partition whose topic has been deleted.
    pub async fn delete_files(&self) -> io::Result<()> {
        assert!(self.closed.get(), "files of the open partition {} deleted", self.id());
        // What no round writes to goes first: on a full disk rounds of others may wait for just this room. Its own
        // groups are given up there, so the wait behind this ends.
        let (durable_sequence, _) = self.log.borrow().durable_position();
        let sealed: Vec<u64> = self
            .log
            .borrow()
            .segments()
            .iter()
            .map(|segment| segment.sequence)
            .filter(|sequence| *sequence < durable_sequence)
            .collect();
        for sequence in sealed {
            self.wait_for_readers(sequence).await;
            self.storage.reclaim(&self.segment_path(sequence), 0, u64::MAX).await?;
        }
        while self.is_busy() {
            self.storage.environment.sleep(std::time::Duration::from_millis(1)).await;
        }
        let mut open: Vec<u64> = self.uses.borrow().keys().copied().collect();
        open.sort_unstable();
        for sequence in open {
            self.wait_for_readers(sequence).await;
        }
        for (name, _) in self.storage.disk.list(&self.directory).await? {
            self.storage.reclaim(&self.directory.join(name), 0, u64::MAX).await?;
        }
        self.storage.disk.remove_directory(&self.directory).await
    }
}

fn open_group(appended: &Appended, leader_epoch: LeaderEpoch) -> OpenGroup {
    OpenGroup {
        base: appended.base,
        end: appended.base,
        leader_epoch,
        payload_bytes: 0,
        batch_count: 0,
        max_timestamp_ms: -1,
        append_time_ms: appended.append_time_ms,
        payload_crc: 0,
    }
}

/// From this size on, combining checksums is cheaper than reading the batch again.
const COMBINE_BYTES_MIN: usize = 8 * 1024;

/// The checksum of a payload to which `batch` is added. The batch's own checksum, verified already,
/// stands for the bytes that it covers.
fn extend_crc(crc: u32, batch: &[u8], verified: Option<u32>) -> u32 {
    match verified {
        Some(verified) if batch.len() >= COMBINE_BYTES_MIN => {
            let (head, covered) = batch.split_at(record_batch::CRC_START);
            crc::combine(crc32c::crc32c_append(crc, head), verified, covered.len())
        }
        _ => crc32c::crc32c_append(crc, batch),
    }
}
