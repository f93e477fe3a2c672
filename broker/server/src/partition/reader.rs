//! Reading a partition: from the tail cache, or from the device by large aligned reads.
//!
//! Device reads go through the shard's chunk cache: 1 MiB pieces of segments, read ahead for whoever
//! reads on, shared by consumers at the same place, bounded in bytes and in reads under way, so that
//! catching up never pushes out the write path. Every group is checked (nonce, partition, checksum)
//! before a byte of it is served. Damage is an answer, not a crash: it names the lost offsets.

use crate::partition::Partition;
use crate::partition::tail_cache::Slice;
use crate::storage::buffer::Buffer;
use crate::storage::disk::{Disk, Write};
use crate::storage::{OpenSegment, count, is_no_space, is_unreadable};
use logic::ids::{Offset, TopicPartition};
use logic::limits::{
    BLOCK_BYTES, READ_AHEAD_BYTES_PER_SHARD, READ_AHEAD_CHUNKS, READ_BYTES_MAX, READS_IN_FLIGHT_MAX,
};
use logic::log::index::Index;
use logic::log::read::{ReadFrom, ReadPlan};
use schema::record_batch::{self, HEADER_BYTES, Header};
use schema::segment::{Footer, GROUP_HEADER_BYTES, GroupHeader, IndexEntry};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

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

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct ChunkKey {
    partition: TopicPartition,
    sequence: u64,
    /// A partition that is removed and added again begins with the same numbers.
    nonce: u64,
    chunk: u64,
}

#[derive(Clone)]
struct Chunk {
    buffer: Rc<Buffer>,
    bytes: usize,
}

enum Entry {
    Loading(Vec<Waker>),
    Ready(Chunk),
}

/// Pieces of segments in memory, of one shard.
#[derive(Default)]
pub struct ChunkCache {
    entries: RefCell<HashMap<ChunkKey, Entry>>,
    order: RefCell<VecDeque<ChunkKey>>,
    /// Read ahead, and nobody has come for them yet.
    ahead: RefCell<HashSet<ChunkKey>>,
    bytes: Cell<usize>,
    reading: Cell<usize>,
    queue: RefCell<VecDeque<Waker>>,
}

impl ChunkCache {
    fn store(&self, key: ChunkKey, chunk: Chunk) {
        self.bytes.set(self.bytes.get() + chunk.buffer.capacity());
        let waiting = match self.entries.borrow_mut().insert(key, Entry::Ready(chunk)) {
            Some(Entry::Loading(wakers)) => wakers,
            Some(Entry::Ready(old)) => {
                self.bytes.set(self.bytes.get() - old.buffer.capacity());
                Vec::new()
            }
            None => Vec::new(),
        };
        waiting.into_iter().for_each(Waker::wake);
        self.order.borrow_mut().push_back(key);
        while self.bytes.get() > READ_AHEAD_BYTES_PER_SHARD {
            let Some(oldest) = self.order.borrow_mut().pop_front() else { break };
            let mut entries = self.entries.borrow_mut();
            if let Some(Entry::Ready(chunk)) = entries.get(&oldest) {
                self.bytes.set(self.bytes.get() - chunk.buffer.capacity());
                entries.remove(&oldest);
                self.ahead.borrow_mut().remove(&oldest);
            }
        }
    }

    /// Whether a chunk is here or on its way.
    fn holds(&self, key: &ChunkKey) -> bool {
        self.entries.borrow().contains_key(key)
    }

    /// What was read ahead for readers who have not come yet takes half of the cache at most.
    fn has_room_ahead(&self) -> bool {
        (self.ahead.borrow().len() + 1) * READ_BYTES_MAX <= READ_AHEAD_BYTES_PER_SHARD / 2
    }

    fn begin_ahead(&self, key: ChunkKey) {
        self.entries.borrow_mut().insert(key, Entry::Loading(Vec::new()));
        self.ahead.borrow_mut().insert(key);
    }

    /// Forgets a chunk that has not been loaded.
    fn failed(&self, key: &ChunkKey) {
        self.ahead.borrow_mut().remove(key);
        let mut entries = self.entries.borrow_mut();
        if matches!(entries.get(key), Some(Entry::Loading(_)))
            && let Some(Entry::Loading(wakers)) = entries.remove(key)
        {
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Forgets a chunk that was read before the bytes that are needed were written.
    fn forget(&self, key: &ChunkKey) {
        let mut entries = self.entries.borrow_mut();
        if let Some(Entry::Ready(chunk)) = entries.get(key) {
            self.bytes.set(self.bytes.get() - chunk.buffer.capacity());
            entries.remove(key);
            self.order.borrow_mut().retain(|other| other != key);
        }
    }

    /// Waits for one of the permitted reads.
    async fn admit(&self) -> Admission<'_> {
        poll_fn(|context| {
            if self.reading.get() < READS_IN_FLIGHT_MAX {
                self.reading.set(self.reading.get() + 1);
                return Poll::Ready(());
            }
            self.queue.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
        Admission(self)
    }
}

struct Admission<'a>(&'a ChunkCache);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.0.reading.set(self.0.reading.get() - 1);
        // All of them: one that has gone away meanwhile would keep the permit from the others.
        let waiting = std::mem::take(&mut *self.0.queue.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A payload that may span chunks.
struct Rope {
    slices: Vec<Slice>,
    length: usize,
}

impl Rope {
    fn crc(&self) -> u32 {
        self.slices.iter().fold(0, |crc, slice| crc32c::crc32c_append(crc, slice.bytes()))
    }

    /// The batch header at `at`, which may straddle two chunks.
    fn batch_header(&self, at: usize) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES];
        if at + HEADER_BYTES > self.length {
            return None;
        }
        self.copy_out(at, &mut bytes);
        Header::decode(&bytes).ok()
    }

    fn copy_out(&self, mut at: usize, out: &mut [u8]) {
        let mut filled = 0;
        for slice in &self.slices {
            let bytes = slice.bytes();
            if at >= bytes.len() {
                at -= bytes.len();
                continue;
            }
            let take = (bytes.len() - at).min(out.len() - filled);
            out[filled..filled + take].copy_from_slice(&bytes[at..at + take]);
            filled += take;
            at = 0;
            if filled == out.len() {
                return;
            }
        }
    }

    fn push_range(self, range: Range<usize>, out: &mut Vec<Slice>) {
        let mut start = 0;
        for slice in self.slices {
            let length = slice.range.len();
            let from = range.start.max(start);
            let to = range.end.min(start + length);
            if from < to {
                let inner = slice.range.start + from - start..slice.range.start + to - start;
                out.push(Slice { buffer: slice.buffer, range: inner });
            }
            start += length;
        }
    }
}

impl<D: Disk> Partition<D> {
    /// Serves `offset` from memory; `None` if it must be read from the device, or is below the log's start:
    /// what retention has taken is gone although it may still be in memory.
    pub fn read_tail(&self, offset: Offset, max_bytes: usize) -> Option<Vec<Slice>> {
        if offset < self.with_log(|log| log.log_start()) {
            return None;
        }
        let mut out = Vec::new();
        self.tail.borrow().read(offset, max_bytes, &mut out).then_some(out)
    }

    /// Whole stored batches from the one that holds `offset` on, at most `max_bytes` but at least one;
    /// nothing if the offset is the high watermark.
    pub async fn read(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Slice>, ReadError> {
        if self.is_closed() {
            return Err(ReadError::Closed);
        }
        match self.plan(cache, |log| log.plan_read(offset)).await? {
            ReadPlan::Wait => return Ok(Vec::new()),
            ReadPlan::OutOfRange => return Err(self.out_of_range(offset)),
            ReadPlan::Damaged { from, until } => return Err(ReadError::Damaged { from, until }),
            ReadPlan::LoadIndex { .. } | ReadPlan::At(_) => {}
        }
        if let Some(slices) = self.read_tail(offset, max_bytes) {
            return Ok(slices);
        }
        let ReadPlan::At(from) = self.with_log(|log| log.plan_read(offset)) else {
            return Ok(Vec::new());
        };
        match self.read_device(cache, from, offset, max_bytes).await {
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
                ReadPlan::LoadIndex { sequence } => {
                    let index = self.load_index(cache, sequence).await?;
                    self.log.borrow_mut().index_loaded(sequence, index);
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
    ) -> Result<Vec<Slice>, ReadError> {
        let mut walk = Walk::new(self, cache, from);
        let mut out = Vec::new();
        let mut taken = 0;
        // One past the last offset that is known sound, as far as the walk has come.
        let mut expected = None;
        let mut damaged = false;
        while taken < max_bytes {
            let header = match walk.next_header().await? {
                Step::Group(header) if Offset::new(header.base_offset) < self.high_watermark() => header,
                // What was found is served; the next read meets the damage.
                _ if !out.is_empty() => break,
                Step::End | Step::Group(_) if damaged && self.with_log(|log| log.log_start()) <= offset => {
                    let until = self.high_watermark();
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
            if header.end_offset <= offset.get() || header.batch_count == 0 {
                expected = Some(header.end_offset).filter(|end| *end <= offset.get() || !out.is_empty());
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
            if base > offset && out.is_empty() {
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
            if taken + range.len() > max_bytes {
                range.end = range.start;
                while let Some(batch) = rope.batch_header(range.end) {
                    let end = range.end + batch.batch_bytes;
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
        Ok(out)
    }

    /// Notes and reports that the group of `offset` is gone: lost from the end of the sound group before
    /// it, if that is known, until the next sound one.
    fn damage(&self, sequence: u64, sound_end: Option<u64>, offset: Offset, until: Offset) -> ReadError {
        let from = sound_end.map_or(offset, Offset::new).min(offset);
        self.log.borrow_mut().note_damage(from.get()..until.get());
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
        let ReadPlan::At(from) = self.plan(cache, |log| log.plan_timestamp(timestamp_ms)).await? else {
            return Ok(None);
        };
        let mut walk = Walk::new(self, cache, from);
        let log_start = self.with_log(|log| log.log_start());
        loop {
            let header = match walk.next_header().await? {
                Step::Group(header) => header,
                Step::End => return Ok(None),
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
                    return Ok(Some(found));
                }
            }
            walk.skip(&header);
        }
    }

    /// The index of a segment: its footer, or made anew by reading the headers of its groups.
    async fn load_index(self: &Rc<Self>, cache: &Rc<ChunkCache>, sequence: u64) -> Result<Index, ReadError> {
        let Some((nonce, end_position)) =
            self.with_log(|log| log.segment(sequence).map(|segment| (segment.nonce, segment.end_position)))
        else {
            return Ok(Index::default());
        };
        let file = self.segment_file(sequence).await?;
        let length = self.storage.disk.length(&file.file)?;
        if length >= end_position + BLOCK_BYTES as u64 {
            match self.read_footer(&file, nonce, end_position, length).await {
                Ok(Some(entries)) => return Ok(Index::from_entries(entries)),
                Ok(None) => {}
                Err(error) => self.storage.notice(format!(
                    "{}: the index of segment {sequence} cannot be read ({error}) and is made anew from its \
                     batches; check the device",
                    self.storage.label(self.id())
                )),
            }
        }
        let from = ReadFrom { sequence, nonce, position: BLOCK_BYTES as u64, end_position };
        let mut walk = Walk::new(self, cache, from);
        walk.one_segment = true;
        let mut index = Index::default();
        let mut max_timestamp_ms = -1;
        loop {
            match walk.next_header().await? {
                Step::Group(header) => {
                    index.note(Offset::new(header.base_offset), walk.from.position, max_timestamp_ms);
                    max_timestamp_ms = max_timestamp_ms.max(header.max_timestamp_ms);
                    walk.skip(&header);
                }
                Step::Damaged => walk.from.position += BLOCK_BYTES as u64,
                Step::End => return Ok(index),
            }
        }
    }

    async fn read_footer(
        &self,
        file: &OpenSegment<D::File>,
        nonce: u64,
        position: u64,
        length: u64,
    ) -> io::Result<Option<Vec<IndexEntry>>> {
        let block = self.storage.pool.take(BLOCK_BYTES);
        let (block, read) = self.storage.disk.read(&file.file, position, block).await?;
        let Some(bytes) = Footer::peek_bytes(nonce, &block[..read.min(BLOCK_BYTES)]) else { return Ok(None) };
        if position + bytes as u64 > length {
            return Ok(None);
        }
        let (footer, read) =
            self.storage.disk.read(&file.file, position, self.storage.pool.take(bytes)).await?;
        Ok(Footer::decode(nonce, &footer[..read.min(bytes)]).ok())
    }

    /// Writes the index footers of segments that were left and whose groups are all durable.
    pub async fn write_footers(&self) -> io::Result<()> {
        loop {
            let next = {
                let log = self.log.borrow();
                let (durable_sequence, _) = log.durable_position();
                let mut preparation = self.preparation.borrow_mut();
                let at = preparation.closed.iter().position(|sequence| *sequence < durable_sequence);
                at.map(|at| preparation.closed.swap_remove(at)).and_then(|sequence| {
                    let segment = log.segment(sequence)?;
                    let index = segment.index.as_ref()?;
                    let bytes = Footer::disk_bytes(index.entries().len());
                    let mut buffer = self.storage.pool.take(bytes);
                    buffer.fill(0);
                    Footer::encode(segment.nonce, index.entries(), &mut buffer);
                    Some((sequence, segment.end_position, buffer))
                })
            };
            let Some((sequence, position, buffer)) = next else { return Ok(()) };
            let Some(file) = self.files.borrow().get(&sequence).cloned() else { continue };
            let buffer = Rc::new(buffer);
            let range = 0..buffer.len();
            let write = Write { file: file.file.clone(), buffer, range, position, durable: false };
            match self.storage.disk.write(vec![write]).await {
                // Only a hint: without room for it the index is made anew when it is needed.
                Err(error) if is_no_space(&error) => {}
                other => other?,
            }
            self.log.borrow_mut().index_dropped(sequence);
            drop(file);
            self.files.borrow_mut().remove(&sequence);
        }
    }

    async fn segment_file(&self, sequence: u64) -> io::Result<Rc<OpenSegment<D::File>>> {
        if let Some(file) = self.files.borrow().get(&sequence) {
            return Ok(file.clone());
        }
        if let Some(file) = self.storage.read_files.get(self.id(), sequence) {
            return Ok(file);
        }
        // Counted before it is open: whoever reclaims the segment waits.
        let used = self.begin_use(sequence);
        let file = self.storage.disk.open(&self.segment_path(sequence)).await?;
        let file = Rc::new(OpenSegment { file, used });
        // Of a segment that is about to go, nobody needs another handle.
        if !self.is_closed() && self.with_log(|log| log.segment(sequence).is_some()) {
            self.storage.read_files.keep(self.id(), sequence, file.clone());
        }
        Ok(file)
    }
}

/// The first record of a payload at or after a timestamp. A compressed batch answers with its first
/// offset: the broker does not unpack.
fn first_at_or_after(rope: &Rope, timestamp_ms: i64, log_start: Offset) -> Option<(Offset, i64)> {
    let mut at = 0;
    while let Some(header) = rope.batch_header(at) {
        let end = at + header.batch_bytes;
        if header.max_timestamp_ms >= timestamp_ms && header.end_offset() > log_start.get() {
            let mut batch = vec![0; header.batch_bytes];
            rope.copy_out(at, &mut batch);
            let Ok(records) = record_batch::records(&batch) else {
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

enum Step {
    Group(GroupHeader),
    /// What stands here is not a group of this log.
    Damaged,
    End,
}

/// Walks the groups of a log over its segments.
struct Walk<'a, D: Disk> {
    partition: &'a Rc<Partition<D>>,
    cache: &'a Rc<ChunkCache>,
    from: ReadFrom,
    file: Option<(u64, Rc<OpenSegment<D::File>>)>,
    one_segment: bool,
}

impl<'a, D: Disk> Walk<'a, D> {
    fn new(partition: &'a Rc<Partition<D>>, cache: &'a Rc<ChunkCache>, from: ReadFrom) -> Self {
        Self { partition, cache, from, file: None, one_segment: false }
    }

    fn skip(&mut self, header: &GroupHeader) {
        self.from.position += header.disk_bytes();
    }

    /// The group at the current place; moves into the next segment at the end of one.
    async fn next_header(&mut self) -> Result<Step, ReadError> {
        loop {
            // The segment may have grown, or have been dropped by retention, since the walk began.
            let sequence = self.from.sequence;
            let Some(end) = self.partition.with_log(|log| log.segment(sequence).map(|s| s.end_position))
            else {
                return Ok(Step::End);
            };
            self.from.end_position = end;
            let (durable_sequence, _) = self.partition.with_log(|log| log.durable_position());
            let limit = self.partition.with_log(|log| log.durable_end_position(sequence)).unwrap_or(0);
            if self.from.position < limit {
                break;
            }
            if self.one_segment || sequence >= durable_sequence {
                return Ok(Step::End);
            }
            match self.partition.with_log(|log| log.plan_after(sequence)) {
                Some(next) => {
                    self.from = next;
                    self.file = None;
                }
                None => return Ok(Step::End),
            }
        }
        let slices = self.bytes(self.from.position, BLOCK_BYTES).await?;
        let block = slices.first().map_or(&[][..], Slice::bytes);
        let id = self.partition.id();
        Ok(match GroupHeader::decode(block) {
            Ok(header)
                if header.nonce == self.from.nonce
                    && header.topic_id == id.topic.get()
                    && header.partition == id.partition.get()
                    && self.from.position + header.disk_bytes() <= self.from.end_position =>
            {
                Step::Group(header)
            }
            _ => Step::Damaged,
        })
    }

    async fn payload(&mut self, header: &GroupHeader) -> Result<Option<Rope>, ReadError> {
        let length = header.payload_bytes as usize;
        let slices = self.bytes(self.from.position + GROUP_HEADER_BYTES as u64, length).await?;
        let found: usize = slices.iter().map(|slice| slice.range.len()).sum();
        Ok((found == length).then_some(Rope { slices, length }))
    }

    /// The bytes at `position`, fewer where the file ends.
    async fn bytes(&mut self, position: u64, length: usize) -> Result<Vec<Slice>, ReadError> {
        let chunk_bytes = READ_BYTES_MAX as u64;
        let mut slices = Vec::with_capacity(2);
        let (mut at, end) = (position, position + length as u64);
        while at < end {
            let chunk = at / chunk_bytes;
            let upto = end.min((chunk + 1) * chunk_bytes);
            let start = (at - chunk * chunk_bytes) as usize;
            let stop = (upto - chunk * chunk_bytes) as usize;
            let loaded = self.chunk(chunk, stop).await?;
            if loaded.bytes <= start {
                break;
            }
            let stop = stop.min(loaded.bytes);
            slices.push(Slice { buffer: loaded.buffer, range: start..stop });
            at = upto;
        }
        Ok(slices)
    }

    /// A chunk that holds at least its first `needed` bytes.
    async fn chunk(&mut self, chunk: u64, needed: usize) -> Result<Chunk, ReadError> {
        let (sequence, nonce) = (self.from.sequence, self.from.nonce);
        let key = ChunkKey { partition: self.partition.id(), sequence, nonce, chunk };
        self.cache.ahead.borrow_mut().remove(&key);
        if !self.one_segment {
            if self.file().is_none() {
                self.open_file().await?;
            }
            self.read_ahead(key);
        }
        loop {
            let found = match self.cache.entries.borrow().get(&key) {
                Some(Entry::Ready(chunk)) => Some(Some(chunk.clone())),
                Some(Entry::Loading(_)) => Some(None),
                None => None,
            };
            match found {
                Some(Some(chunk)) if chunk.bytes >= needed => return Ok(chunk),
                Some(Some(stale)) => {
                    let Some(file) = self.file() else {
                        self.open_file().await?;
                        continue;
                    };
                    let before = stale.bytes;
                    self.cache.forget(&key);
                    self.cache.entries.borrow_mut().insert(key, Entry::Loading(Vec::new()));
                    let fresh = load(self.partition, self.cache, &file, key).await?;
                    if fresh.bytes <= before.max(needed - 1) {
                        return Ok(fresh);
                    }
                }
                Some(None) => self.loaded(&key).await,
                None => {
                    let Some(file) = self.file() else {
                        self.open_file().await?;
                        continue;
                    };
                    self.cache.entries.borrow_mut().insert(key, Entry::Loading(Vec::new()));
                    let fresh = load(self.partition, self.cache, &file, key).await?;
                    return Ok(fresh);
                }
            }
        }
    }

    /// Whoever reads a chunk reads on: the next one is fetched meanwhile; for a reader who comes from the
    /// chunk before, several, as long as they leave the cache to the others too.
    fn read_ahead(&self, at: ChunkKey) {
        let Some(file) = self.file() else { return };
        let whole = self.from.end_position / READ_BYTES_MAX as u64;
        let reads_on = at.chunk > 0 && self.cache.holds(&ChunkKey { chunk: at.chunk - 1, ..at });
        let last = at.chunk + if reads_on { READ_AHEAD_CHUNKS } else { 1 };
        for chunk in at.chunk + 1..=last {
            let next = ChunkKey { chunk, ..at };
            let room = chunk == at.chunk + 1 || self.cache.has_room_ahead();
            if chunk >= whole || !room {
                return;
            }
            if self.cache.holds(&next) {
                continue;
            }
            self.cache.begin_ahead(next);
            let (partition, cache, file) = (self.partition.clone(), self.cache.clone(), file.clone());
            glommio::spawn_local(async move {
                // An error shows again when the chunk is asked for.
                let _ = load(&partition, &cache, &file, next).await;
            })
            .detach();
        }
    }

    /// The file of the segment that the walk is in, if it is open.
    fn file(&self) -> Option<Rc<OpenSegment<D::File>>> {
        self.file.as_ref().filter(|(open, _)| *open == self.from.sequence).map(|(_, file)| file.clone())
    }

    /// Opens it, for what the cache does not have. The cache is asked again afterwards: two who load the
    /// same chunk would forget who waits for it.
    async fn open_file(&mut self) -> io::Result<()> {
        let file = self.partition.segment_file(self.from.sequence).await?;
        self.file = Some((self.from.sequence, file));
        Ok(())
    }

    async fn loaded(&self, key: &ChunkKey) {
        let mut registered = false;
        poll_fn(|context| match self.cache.entries.borrow_mut().get_mut(key) {
            Some(Entry::Loading(wakers)) => {
                if !registered {
                    wakers.push(context.waker().clone());
                    registered = true;
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
    }
}

/// Reads a chunk, as far as the log is durable in it, and puts it into the cache.
async fn load<D: Disk>(
    partition: &Rc<Partition<D>>,
    cache: &Rc<ChunkCache>,
    file: &Rc<OpenSegment<D::File>>,
    key: ChunkKey,
) -> io::Result<Chunk> {
    let loading = Loading { cache, key: &key };
    let result = async {
        let _admission = cache.admit().await;
        let start = key.chunk * READ_BYTES_MAX as u64;
        let Some(end) = partition.with_log(|log| log.durable_end_position(key.sequence)) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let bytes = end.saturating_sub(start).min(READ_BYTES_MAX as u64) as usize;
        let buffer = partition.storage().pool.take(bytes.max(BLOCK_BYTES));
        let (buffer, read) = match partition.storage().disk.read(&file.file, start, buffer).await {
            Err(error) if is_unreadable(&error) => read_around(partition, file, key, bytes, &error).await?,
            other => other?,
        };
        count(&partition.storage().counters.reads, 1);
        count(&partition.storage().counters.read_bytes, read as u64);
        Ok(Chunk { buffer: Rc::new(buffer), bytes: read.min(bytes) })
    }
    .await;
    if let Ok(chunk) = &result {
        cache.store(key, chunk.clone());
    }
    drop(loading);
    result
}

/// Reads a chunk block by block after the device refused it as a whole. What cannot be read is taken as
/// zeros, so that it fails its checksum and is answered like any other damage, and the rest is served.
async fn read_around<D: Disk>(
    partition: &Rc<Partition<D>>,
    file: &Rc<OpenSegment<D::File>>,
    key: ChunkKey,
    bytes: usize,
    error: &io::Error,
) -> io::Result<(Buffer, usize)> {
    let storage = partition.storage();
    let start = key.chunk * READ_BYTES_MAX as u64;
    let mut whole = storage.pool.take(bytes.max(BLOCK_BYTES));
    let mut unreadable = 0;
    let mut at = 0;
    while at < bytes {
        let block = storage.pool.take(BLOCK_BYTES);
        let place = &mut whole[at..at + BLOCK_BYTES];
        match storage.disk.read(&file.file, start + at as u64, block).await {
            Ok((block, read)) => {
                let read = read.min(BLOCK_BYTES);
                place[..read].copy_from_slice(&block[..read]);
                place[read..].fill(0);
            }
            Err(error) if is_unreadable(&error) => {
                place.fill(0);
                unreadable += BLOCK_BYTES;
            }
            Err(error) => return Err(error),
        }
        at += BLOCK_BYTES;
    }
    storage.notice(format!(
        "{}: the device refused to read {} of {bytes} bytes at {start} of segment {}: {error}; check the device, \
         the rest is served",
        storage.label(key.partition),
        unreadable,
        key.sequence
    ));
    Ok((whole, bytes))
}

/// A load under way: if it fails or is given up, whoever waits for it tries by himself.
struct Loading<'a> {
    cache: &'a ChunkCache,
    key: &'a ChunkKey,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.cache.failed(self.key);
    }
}
