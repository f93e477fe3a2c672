//! Reading a partition: from the tail cache, or from the device by large aligned reads.
//!
//! Device reads walk over the groups of segments ([`Walk`]) through the shard's [`ChunkCache`]. Every group is
//! checked (nonce, partition, checksum) before a byte of it is served. Damage is an answer, not a crash: it
//! names the lost offsets.

use crate::partition::Partition;
use crate::partition::chunk_cache::ChunkCache;
use crate::partition::tail_cache::Slice;
use crate::partition::walk::{Rope, Step, Walk};
use crate::storage::disk::Disk;
use crate::storage::{OpenSegment, count};
use logic::ids::Offset;
use logic::limits::{BLOCK_BYTES, UNPACKED_BATCH_BYTES_MAX};
use logic::log::Segment;
use logic::log::read::{Below, ReadFrom, ReadPlan};
use schema::compression;
use schema::record_batch;
use std::io;
use std::rc::Rc;

/// Why a read gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Below the log's start or above its end.
    #[error("offset {offset} is outside of {start}..{end}; start from earliest or latest")]
    OutOfRange {
        /// Asked for.
        offset: Offset,
        /// The log's start.
        start: Offset,
        /// The high watermark.
        end: Offset,
    },
    /// The bytes of these offsets are damaged.
    #[error("offsets {from}..{until} are damaged and not served; consume from {until}")]
    Damaged {
        /// The first lost offset.
        from: Offset,
        /// The first one after it that can be read.
        until: Offset,
    },
    /// The device refused.
    #[error("the device refused a read: {0}")]
    Device(#[from] io::Error),
    /// The partition has been closed.
    #[error("the partition is closed")]
    Closed,
}

impl<D: Disk> Partition<D> {
    /// Serves `offset` from memory; `None` if it must be read from the device, or is below the log's start:
    /// what retention or compaction has taken is gone although it may still be in memory.
    pub fn read_tail(&self, offset: Offset, max_bytes: usize) -> Option<Vec<Slice>> {
        let (first, limit) = self.with_log(|log| (log.rewritten_until(), log.high_watermark()));
        if offset < first {
            return None;
        }
        let mut out = Vec::new();
        self.tail.borrow().read(offset, limit, max_bytes, &mut out).then_some(out)
    }

    /// Whole stored batches from the one that holds `offset` on, at most `max_bytes` but at least one;
    /// nothing if the offset is the high watermark.
    pub async fn read(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Slice>, ReadError> {
        self.read_below(cache, offset, max_bytes, Below::Committed).await
    }

    /// Whether the device has what should be at `offset`, committed or not: whoever asks has had the cache forget it.
    ///
    /// # Errors
    /// It has not, or nothing is there.
    pub async fn read_durable(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
    ) -> Result<(), ReadError> {
        self.read_below(cache, offset, 1, Below::Durable).await.map(drop)
    }

    /// The same for a reader who may see as much.
    pub(super) async fn read_below(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
        max_bytes: usize,
        below: Below,
    ) -> Result<Vec<Slice>, ReadError> {
        loop {
            let replacements = self.with_log(|log| log.replacements());
            let found = self.read_once(cache, offset, max_bytes, below).await;
            // What was read from may have been rewritten meanwhile: then only sound records count.
            let replaced = replacements != self.with_log(|log| log.replacements());
            match found {
                Ok(Some(slices)) if !(slices.is_empty() && replaced) => return Ok(slices),
                Err(error) if !replaced => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// One attempt; `None` if compaction replaces what is read from.
    async fn read_once(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
        max_bytes: usize,
        below: Below,
    ) -> Result<Option<Vec<Slice>>, ReadError> {
        if self.is_closed() {
            return Err(ReadError::Closed);
        }
        match self.plan(cache, |log| log.plan_read(offset, below)).await? {
            ReadPlan::Wait => return Ok(Some(Vec::new())),
            ReadPlan::OutOfRange => return Err(self.out_of_range(offset)),
            ReadPlan::Damaged { from, until } => return Err(ReadError::Damaged { from, until }),
            ReadPlan::LoadIndex { .. } | ReadPlan::At(_) => {}
        }
        if below == Below::Committed
            && let Some(slices) = self.read_tail(offset, max_bytes)
        {
            return Ok(Some(slices));
        }
        let ReadPlan::At(from) = self.with_log(|log| log.plan_read(offset, below)) else {
            return Ok(Some(Vec::new()));
        };
        match self.read_device(cache, from, offset, max_bytes, below).await {
            // Retention took the segment away meanwhile.
            Err(ReadError::Device(_)) if self.with_log(|log| log.log_start()) > offset => {
                Err(self.out_of_range(offset))
            }
            other => other,
        }
    }

    fn out_of_range(&self, offset: Offset) -> ReadError {
        self.with_log(|log| ReadError::OutOfRange {
            offset,
            start: log.log_start(),
            end: log.high_watermark(),
        })
    }

    /// Plans, loading indexes as needed.
    async fn plan(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        plan: impl Fn(&logic::log::Log) -> ReadPlan,
    ) -> Result<ReadPlan, ReadError> {
        loop {
            let found = self.with_log(&plan);
            match found {
                ReadPlan::LoadIndex { sequence, offset } => {
                    let of = |log: &logic::log::Log| {
                        log.segment(sequence).map(|segment| (segment.nonce, segment.end_position))
                    };
                    let Some((nonce, end_position)) = self.with_log(of) else { continue };
                    let index = self.load_index(cache, sequence, nonce, end_position, offset).await;
                    if self.with_log(of).is_none_or(|(found, _)| found != nonce) {
                        // Replaced or dropped: what went wrong with it does not count.
                        continue;
                    }
                    self.log.borrow_mut().index_loaded((sequence, nonce), index?);
                }
                other => return Ok(other),
            }
        }
    }

    async fn read_device(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        from: ReadFrom,
        offset: Offset,
        max_bytes: usize,
        below: Below,
    ) -> Result<Option<Vec<Slice>>, ReadError> {
        let limit = || self.with_log(|log| log.end_for(below));
        let replacements = self.with_log(|log| log.replacements());
        let replaced = || self.with_log(|log| log.replacements()) != replacements;
        let mut walk = Walk::new(self, cache, from);
        let mut out = Vec::new();
        let mut taken = 0;
        // One past the last offset that is known sound, as far as the walk has come.
        let mut expected = None;
        let mut damaged = false;
        while taken < max_bytes {
            let header = match walk.next_header().await? {
                Step::Group(header) if Offset::new(header.base_offset) < limit() => header,
                // What was found is served; the next read meets the damage.
                _ if !out.is_empty() => break,
                Step::Replaced => return Ok(None),
                _ if replaced() => return Ok(None),
                Step::End | Step::Group(_) if damaged && self.with_log(|log| log.log_start()) <= offset => {
                    let until = limit();
                    return Err(self.damage(walk.from.sequence, expected, offset, until));
                }
                Step::End | Step::Group(_) => break,
                Step::Damaged => {
                    damaged = true;
                    walk.from.position += BLOCK_BYTES as u64;
                    continue;
                }
            };
            let base = Offset::new(header.base_offset);
            // A sound group that does not follow the one before has lost its neighbours.
            if !out.is_empty() && expected != Some(header.base_offset) {
                break;
            }
            // Sound up to here: what is looked for stood in a gap that compaction has left.
            let follows = expected == Some(header.base_offset);
            if header.end_offset <= offset.get() || header.batch_count == 0 {
                let covers = base <= offset || follows || !out.is_empty();
                expected = covers.then_some(header.end_offset);
                walk.skip(&header);
                continue;
            }
            let rope = walk.payload(&header).await?.filter(|rope| rope.crc() == header.payload_crc);
            let Some(rope) = rope else {
                if !out.is_empty() {
                    break;
                }
                if base <= offset {
                    expected = Some(header.base_offset);
                }
                damaged = true;
                walk.skip(&header);
                continue;
            };
            if base > offset && out.is_empty() && !follows {
                if replaced() {
                    return Ok(None);
                }
                return Err(self.damage(walk.from.sequence, expected, offset, base));
            }
            expected = Some(header.end_offset);
            let mut range = 0..rope.length;
            while let Some(batch) = rope.batch_header(range.start) {
                if batch.end_offset() > offset.get() {
                    break;
                }
                range.start += batch.batch_bytes;
            }
            let limit = limit();
            if Offset::new(header.end_offset) > limit {
                range.end = range.start;
                while let Some(batch) = rope.batch_header(range.end) {
                    if Offset::new(batch.end_offset()) > limit {
                        break;
                    }
                    range.end += batch.batch_bytes;
                }
            }
            let visible_end = range.end;
            if taken + range.len() > max_bytes {
                range.end = range.start;
                while let Some(batch) = rope.batch_header(range.end) {
                    let end = range.end + batch.batch_bytes;
                    if end > visible_end {
                        break;
                    }
                    if taken + (end - range.start) > max_bytes && taken + (range.end - range.start) > 0 {
                        break;
                    }
                    range.end = end;
                }
            }
            let whole = range.end == rope.length;
            taken += range.len();
            rope.push_range(range, &mut out);
            if !whole {
                break;
            }
            walk.skip(&header);
        }
        Ok(Some(out))
    }

    /// Notes and reports that the group of `offset` is gone: lost from the end of the sound group before
    /// it, if that is known, until the next sound one.
    fn damage(&self, sequence: u64, sound_end: Option<u64>, offset: Offset, until: Offset) -> ReadError {
        let from = sound_end.map_or(offset, Offset::new).min(offset);
        self.log.borrow_mut().note_damage(from.get()..until.get());
        count(&self.storage.counters.damaged_ranges, 1);
        self.storage.notice(format!(
            "CORRUPT: {}: offsets {from}..{until} in or before segment {sequence} fail their checksum and are not \
             served; the rest is",
            self.storage.label(self.id())
        ));
        ReadError::Damaged { from, until }
    }

    /// The first offset at or after `timestamp_ms` with its timestamp; `None` if there is none.
    pub async fn offset_of_timestamp(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        timestamp_ms: i64,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        loop {
            let replacements = self.with_log(|log| log.replacements());
            let found = self.look_for_timestamp(cache, timestamp_ms).await;
            if replacements == self.with_log(|log| log.replacements()) {
                return found;
            }
        }
    }

    async fn look_for_timestamp(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        timestamp_ms: i64,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        let ReadPlan::At(from) = self.plan(cache, |log| log.plan_timestamp(timestamp_ms)).await? else {
            return Ok(None);
        };
        let mut walk = Walk::new(self, cache, from);
        let log_start = self.with_log(|log| log.log_start());
        loop {
            let header = match walk.next_header().await? {
                Step::Group(header) => header,
                Step::End | Step::Replaced => return Ok(None),
                Step::Damaged => {
                    walk.from.position += BLOCK_BYTES as u64;
                    continue;
                }
            };
            if Offset::new(header.base_offset) >= self.high_watermark() {
                return Ok(None);
            }
            if header.max_timestamp_ms >= timestamp_ms && header.batch_count > 0 {
                let rope = walk.payload(&header).await?.filter(|rope| rope.crc() == header.payload_crc);
                if let Some(found) = rope.and_then(|rope| first_at_or_after(&rope, timestamp_ms, log_start)) {
                    // What is not committed is not told of.
                    return Ok(Some(found).filter(|(offset, _)| *offset < self.high_watermark()));
                }
            }
            walk.skip(&header);
        }
    }

    /// The file of a segment, for reading.
    ///
    /// # Errors
    /// `NotFound` if the log has left it behind.
    pub(crate) async fn segment_file(
        &self,
        sequence: u64,
        nonce: u64,
    ) -> io::Result<Rc<OpenSegment<D::File>>> {
        let current = || {
            self.with_log(|log| {
                log.segment(sequence).filter(|segment| segment.nonce == nonce).map(Segment::name)
            })
        };
        let Some(name) = current() else { return Err(io::ErrorKind::NotFound.into()) };
        if let Some(file) = self.files.borrow().get(&sequence) {
            return Ok(file.clone());
        }
        if let Some(file) = self.storage.read_files.get(self.id(), nonce) {
            return Ok(file);
        }
        // Counted before it is open: whoever reclaims the segment waits.
        let used = self.begin_use(nonce);
        let file = self.storage.disk.open(&self.segment_path(name)).await?;
        let file = Rc::new(OpenSegment { file, used });
        // Of a segment that is about to go, nobody needs another handle.
        if !self.is_closed() && current().is_some() {
            self.storage.read_files.keep(self.id(), nonce, file.clone());
        }
        Ok(file)
    }
}

/// The first record of a payload at or after a timestamp. A batch that cannot be unpacked answers with its
/// first offset.
fn first_at_or_after(rope: &Rope, timestamp_ms: i64, log_start: Offset) -> Option<(Offset, i64)> {
    let mut at = 0;
    while let Some(header) = rope.batch_header(at) {
        let end = at + header.batch_bytes;
        if header.max_timestamp_ms >= timestamp_ms && header.end_offset() > log_start.get() {
            let mut batch = vec![0; header.batch_bytes];
            rope.copy_out(at, &mut batch);
            let unpacked = compression::unpack(&batch, UNPACKED_BATCH_BYTES_MAX).ok().flatten();
            let Ok(records) = record_batch::records(unpacked.as_deref().unwrap_or(&batch)) else {
                let first = header.base_offset.max(log_start.get());
                return Some((Offset::new(first), header.max_timestamp_ms));
            };
            let found = records
                .flatten()
                .find(|record| record.timestamp_ms >= timestamp_ms && record.offset >= log_start.get());
            if let Some(record) = found {
                return Some((Offset::new(record.offset), record.timestamp_ms));
            }
        }
        at = end;
    }
    None
}
