//! Replication's side of a partition: batches of a leader are appended unchanged, and batches are read for followers
//! as soon as they are on their way to this broker's own device.

use super::tail_cache::{Slice, TailGroup, last_end};
use super::{Partition, PendingGroup};
use crate::partition::chunk_cache::ChunkCache;
use crate::partition::reader::ReadError;
use crate::storage::disk::Disk;
use logic::ids::{LeaderEpoch, Offset};
use logic::limits::GROUP_BYTES_MAX;
use logic::log::OpenGroup;
use logic::log::read::{Below, fingerprint};
use logic::producer_state::ProducerBatch;
use schema::record_batch::{self, BatchError, Header};
use schema::segment::{GROUP_HEADER_BYTES, group_bytes};
use std::ops::Range;
use std::rc::Rc;

/// Why batches of a leader are not appended.
#[derive(Debug, thiserror::Error)]
pub enum PushRefused {
    /// One of them is damaged.
    #[error("a batch is damaged: {0}")]
    Batch(#[from] BatchError),
    /// One of them does not come next.
    #[error("offset {found} of epoch {epoch} where {expected} comes next")]
    Order {
        /// The log's end before it.
        expected: Offset,
        /// Its first offset.
        found: Offset,
        /// Its epoch.
        epoch: LeaderEpoch,
    },
    /// There is none.
    #[error("no batch")]
    Nothing,
}

/// Batches of one epoch that were appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendedRun {
    /// The log's end before them.
    pub base: Offset,
    /// The log's end behind them.
    pub end: Offset,
    /// Their epoch.
    pub epoch: LeaderEpoch,
}

/// What was read for a follower.
#[derive(Debug, Default)]
pub struct PushRead {
    /// Whole batches, back to back.
    pub slices: Vec<Slice>,
    /// One past the last offset among them.
    pub end: Offset,
    /// They were in memory.
    pub from_memory: bool,
}

impl PushRead {
    /// Bytes of the batches.
    pub fn bytes(&self) -> usize {
        self.slices.iter().map(|slice| slice.range.len()).sum()
    }
}

impl<D: Disk> Partition<D> {
    /// Appends batches of a leader, which follow the log's end, unchanged, copying them once: all of them or none.
    ///
    /// # Errors
    /// A batch is damaged, does not follow the one before it, or is of an epoch below it or above `epoch_max`.
    pub fn append_pushed(
        &self,
        batches: &[u8],
        epoch_max: LeaderEpoch,
    ) -> Result<Vec<AppendedRun>, PushRefused> {
        let headers = self.check_pushed(batches, epoch_max)?;
        if headers.is_empty() {
            return Err(PushRefused::Nothing);
        }
        let mut runs = Vec::with_capacity(1);
        let now_ms = self.storage.environment.now_ms();
        self.last_append_ms.set(now_ms);
        self.storage.add_dirty(batches.len());
        let mut rest = batches;
        for header in &headers {
            let (batch, behind) = rest.split_at(header.batch_bytes);
            let epoch = LeaderEpoch::new(header.leader_epoch);
            let mut pending = self.pending.borrow_mut();
            let joins = pending.back().is_some_and(|last| {
                !last.closed
                    && last.group.leader_epoch == epoch
                    && group_bytes(last.group.payload_bytes as usize + batch.len()) <= GROUP_BYTES_MAX
            });
            if !joins {
                // Of what comes with it as much as fits: one buffer for all of it.
                let together = rest.len().min(GROUP_BYTES_MAX - GROUP_HEADER_BYTES).max(batch.len());
                let buffer = self.storage.pool.take(group_bytes(together));
                let group = self.open_pushed(epoch, now_ms);
                pending.push_back(PendingGroup { buffer, group, closed: false });
            }
            let last = pending.back_mut().expect("a group has just been made sure of");
            let start = GROUP_HEADER_BYTES + last.group.payload_bytes as usize;
            self.ensure_room(last, start + batch.len());
            last.buffer[start..start + batch.len()].copy_from_slice(batch);
            self.take_in(header, batch, &mut last.group, &mut runs);
            rest = behind;
        }
        Ok(runs)
    }

    fn check_pushed(&self, bytes: &[u8], epoch_max: LeaderEpoch) -> Result<Vec<Header>, PushRefused> {
        let (mut expected, mut newest) = self.with_log(|log| (log.log_end(), log.epochs().last().copied()));
        let mut headers = Vec::with_capacity(1);
        for batch in record_batch::batches(bytes) {
            let header = record_batch::verify(batch?.1)?;
            let epoch = LeaderEpoch::new(header.leader_epoch);
            let found = Offset::new(header.base_offset);
            // Offsets between batches are those of records that compaction has removed.
            let follows =
                found >= expected && epoch <= epoch_max && newest.is_none_or(|(newest, _)| newest <= epoch);
            if !follows {
                return Err(PushRefused::Order { expected, found, epoch });
            }
            expected = Offset::new(header.end_offset());
            newest = Some((epoch, found));
            headers.push(header);
        }
        Ok(headers)
    }

    fn open_pushed(&self, leader_epoch: LeaderEpoch, append_time_ms: i64) -> OpenGroup {
        let base = self.with_log(|log| log.log_end());
        OpenGroup {
            base,
            end: base,
            leader_epoch,
            payload_bytes: 0,
            batch_count: 0,
            max_timestamp_ms: -1,
            append_time_ms,
            payload_crc: 0,
        }
    }

    /// A batch stands in its group: the log, the group and the table of producers know it from here on.
    fn take_in(&self, header: &Header, batch: &[u8], group: &mut OpenGroup, runs: &mut Vec<AppendedRun>) {
        let (epoch, end) = (group.leader_epoch, Offset::new(header.end_offset()));
        let (base, durable_end) = self.with_log(|log| (log.log_end(), log.durable_end()));
        self.log.borrow_mut().append_until(end, epoch);
        group.payload_crc = record_batch::extend_crc(group.payload_crc, batch, Some(header.crc));
        group.payload_bytes += batch.len() as u32;
        group.batch_count += 1;
        group.end = end;
        group.max_timestamp_ms = group.max_timestamp_ms.max(header.max_timestamp_ms);
        match runs.last_mut() {
            Some(run) if run.epoch == epoch => run.end = end,
            _ => runs.push(AppendedRun { base, end, epoch }),
        }
        if let Some(noted) = ProducerBatch::of(header) {
            let mut table = self.producers.borrow_mut();
            let known = table.len();
            table.follow(&noted, Offset::new(header.base_offset), group.append_time_ms, durable_end);
            self.storage.producers_changed(known, table.len());
        }
    }

    /// Up to where the log can be read for followers: its groups are on their way to the device, at least.
    pub fn readable_end(&self) -> Offset {
        let on_the_way = self.on_the_way.borrow().back().map(|group| group.tail.end);
        on_the_way.unwrap_or_else(|| self.with_log(|log| log.durable_end()))
    }

    /// Reads whole batches from `offset` on for a follower, at most `max_bytes` but at least one, committed or not;
    /// nothing at [`Partition::readable_end`].
    ///
    /// # Errors
    /// The device does not give them.
    pub async fn read_for_push(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<PushRead, ReadError> {
        if let Some(read) = self.read_pushable(offset, max_bytes) {
            return Ok(read);
        }
        let slices = self.read_below(cache, offset, max_bytes, Below::Durable).await?;
        let end = slices_end(&slices).unwrap_or(offset);
        Ok(PushRead { slices, end, from_memory: false })
    }

    /// The same from memory; `None` if it does not reach so far back.
    pub fn read_pushable(&self, offset: Offset, max_bytes: usize) -> Option<PushRead> {
        let (tail, on_the_way) = (self.tail.borrow(), self.on_the_way.borrow());
        if offset < self.with_log(|log| log.rewritten_until()) {
            return None;
        }
        let groups = tail.iter().chain(on_the_way.iter().map(|group| &group.tail));
        let mut read = PushRead { slices: Vec::new(), end: offset, from_memory: true };
        let mut bytes = 0;
        for group in groups.filter(|group| group.end > offset && !group.payload.is_empty()) {
            if read.slices.is_empty() && group.base > offset {
                return None;
            }
            let (range, end) = part_of(group, offset, max_bytes - bytes, bytes == 0);
            let whole = range.end == group.payload.end;
            if !range.is_empty() {
                bytes += range.len();
                read.slices.push(Slice { buffer: group.buffer.clone(), range });
                read.end = end;
            }
            if !whole || bytes >= max_bytes {
                break;
            }
        }
        (!read.slices.is_empty() || offset >= self.readable_end()).then_some(read)
    }

    /// The fingerprint of the batch that ends at `offset`; `None` = none ends there any more.
    ///
    /// # Errors
    /// The device does not give it.
    pub async fn fingerprint(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
    ) -> Result<Option<u64>, ReadError> {
        let Some(within) = offset.get().checked_sub(1).map(Offset::new) else { return Ok(None) };
        let (first, end) = self.with_log(|log| (log.rewritten_until(), log.log_end()));
        if within < first || offset > end {
            return Ok(None);
        }
        let read = self.read_for_push(cache, within, 1).await?;
        let mut bytes = Vec::with_capacity(read.bytes());
        read.slices.iter().for_each(|slice| bytes.extend_from_slice(slice.bytes()));
        let header = record_batch::batches(&bytes).next().and_then(Result::ok).map(|(header, _)| header);
        Ok(header.filter(|header| header.end_offset() == offset.get()).map(|header| fingerprint(&header)))
    }
}

/// The batches of a group from the one that holds `offset` on, into `room`; one past the last offset among them.
fn part_of(group: &TailGroup, offset: Offset, room: usize, at_least_one: bool) -> (Range<usize>, Offset) {
    let mut range = group.payload.clone();
    if group.base < offset {
        range.start += super::tail_cache::batches_before(&group.buffer[range.clone()], offset);
    }
    if range.len() <= room {
        return (range, group.end);
    }
    range.end =
        range.start + super::tail_cache::batches_within(&group.buffer[range.clone()], room, at_least_one);
    let end = last_end(&group.buffer[range.clone()]).unwrap_or(offset);
    (range, end)
}

/// One past the last offset of batches that lie in several pieces.
fn slices_end(slices: &[Slice]) -> Option<Offset> {
    let (last, before) = slices.split_last()?;
    if before.is_empty() {
        return last_end(last.bytes());
    }
    // A batch may lie in two pieces: only all of them together say where it begins.
    let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.range.len()).sum());
    slices.iter().for_each(|slice| bytes.extend_from_slice(slice.bytes()));
    last_end(&bytes)
}
