//! A walk over the groups of a log, from a place in one segment to its end, through the chunk cache.
//!
//! Lives for one read. Every group is checked (nonce, partition, bounds) before its payload is looked at; the
//! payload's checksum is the caller's to check, who knows whether he needs all of it. The log may grow or be
//! cut by retention meanwhile: each step asks it again.

use crate::partition::Partition;
use crate::partition::chunk_cache::{Chunk, ChunkCache, ChunkKey, Entry, load};
use crate::partition::reader::ReadError;
use crate::partition::tail_cache::Slice;
use crate::stall;
use crate::storage::OpenSegment;
use crate::storage::disk::Disk;
use logic::limits::{BLOCK_BYTES, READ_AHEAD_CHUNKS, READ_BYTES_MAX};
use logic::log::read::ReadFrom;
use schema::record_batch::{HEADER_BYTES, Header};
use schema::segment::{GROUP_HEADER_BYTES, GroupHeader};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

pub(super) enum Step {
    Group(GroupHeader),
    /// What stands here is not a group of this log.
    Damaged,
    End,
    /// Compaction has put another segment in the place of this one: plan again.
    Replaced,
}

/// Walks the groups of a log over its segments.
pub(super) struct Walk<'a, D: Disk> {
    partition: &'a Rc<Partition<D>>,
    cache: &'a Rc<ChunkCache>,
    pub(super) from: ReadFrom,
    file: Option<(u64, Rc<OpenSegment<D::File>>)>,
    /// The chunk that the walk is in: most groups lie in the one that the group before them was in.
    current: Option<(ChunkKey, Chunk)>,
    pub(super) one_segment: bool,
}

impl<'a, D: Disk> Walk<'a, D> {
    pub(super) fn new(partition: &'a Rc<Partition<D>>, cache: &'a Rc<ChunkCache>, from: ReadFrom) -> Self {
        Self { partition, cache, from, file: None, current: None, one_segment: false }
    }

    pub(super) fn skip(&mut self, header: &GroupHeader) {
        self.from.position += header.disk_bytes();
    }

    /// The group at the current place; moves into the next segment at the end of one.
    pub(super) async fn next_header(&mut self) -> Result<Step, ReadError> {
        loop {
            // The segment may have grown, or have been dropped by retention, since the walk began.
            let sequence = self.from.sequence;
            let found =
                self.partition.with_log(|log| log.segment(sequence).map(|s| (s.nonce, s.end_position)));
            let Some((nonce, end)) = found else { return Ok(Step::End) };
            if nonce != self.from.nonce {
                return Ok(Step::Replaced);
            }
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

    pub(super) async fn payload(&mut self, header: &GroupHeader) -> Result<Option<Rope>, ReadError> {
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
        if let Some((current, chunk)) = &self.current
            && *current == key
            && chunk.bytes >= needed
        {
            return Ok(chunk.clone());
        }
        self.cache.ahead.borrow_mut().remove(&key);
        if !self.one_segment && self.next_ahead(key).is_some() {
            if self.file().is_none() {
                self.open_file().await?;
            }
            self.read_ahead(key);
        }
        let chunk = self.cached(key, needed).await?;
        self.current = Some((key, chunk.clone()));
        Ok(chunk)
    }

    /// A chunk from the cache, or from the device through it.
    async fn cached(&mut self, key: ChunkKey, needed: usize) -> Result<Chunk, ReadError> {
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
        while let Some(next) = self.next_ahead(at) {
            self.cache.begin_ahead(next);
            let (partition, cache, file) = (self.partition.clone(), self.cache.clone(), file.clone());
            stall::spawn("reading ahead", async move {
                // An error shows again when the chunk is asked for.
                let _ = load(&partition, &cache, &file, next).await;
            })
            .detach();
        }
    }

    /// The first chunk that should be read ahead of `at` and is neither here nor on its way.
    fn next_ahead(&self, at: ChunkKey) -> Option<ChunkKey> {
        let whole = self.from.end_position / READ_BYTES_MAX as u64;
        let reads_on = at.chunk > 0 && self.cache.holds(&ChunkKey { chunk: at.chunk - 1, ..at });
        let last = at.chunk + if reads_on { READ_AHEAD_CHUNKS } else { 1 };
        let ahead = (at.chunk + 1..=last).take_while(|chunk| *chunk < whole);
        let next = ahead.map(|chunk| ChunkKey { chunk, ..at }).find(|next| !self.cache.holds(next));
        next.filter(|next| next.chunk == at.chunk + 1 || self.cache.has_room_ahead())
    }

    /// The file of the segment that the walk is in, if it is open.
    fn file(&self) -> Option<Rc<OpenSegment<D::File>>> {
        self.file.as_ref().filter(|(open, _)| *open == self.from.sequence).map(|(_, file)| file.clone())
    }

    /// Opens it, for what the cache does not have. The cache is asked again afterwards: two who load the
    /// same chunk would forget who waits for it.
    async fn open_file(&mut self) -> io::Result<()> {
        let file = self.partition.segment_file(self.from.sequence, self.from.nonce).await?;
        self.file = Some((self.from.sequence, file));
        Ok(())
    }

    async fn loaded(&self, key: &ChunkKey) {
        poll_fn(|context| match self.cache.entries.borrow_mut().get_mut(key) {
            // Whoever was waited for may have brought too little for a third one, who loads it anew before this one's turn
            // has come: that load wakes those alone who are in its own list.
            Some(Entry::Loading(wakers)) => {
                if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
    }
}

/// A payload that may span chunks.
pub(super) struct Rope {
    pub(super) slices: Vec<Slice>,
    pub(super) length: usize,
}

impl Rope {
    pub(super) fn crc(&self) -> u32 {
        self.slices.iter().fold(0, |crc, slice| crc32c::crc32c_append(crc, slice.bytes()))
    }

    /// The batch header at `at`, which may straddle two chunks.
    pub(super) fn batch_header(&self, at: usize) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES];
        if at + HEADER_BYTES > self.length {
            return None;
        }
        self.copy_out(at, &mut bytes);
        Header::decode(&bytes).ok()
    }

    pub(super) fn copy_out(&self, mut at: usize, out: &mut [u8]) {
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

    pub(super) fn push_range(self, range: Range<usize>, out: &mut Vec<Slice>) {
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
