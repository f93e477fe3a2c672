//! The newest groups of a partition, kept in the buffers that they were written from.
//!
//! Owned by the partition; the shard bounds the sum over all partitions and evicts in the order of
//! insertion. Holds only durable groups; what is visible of them is the reader's to say. Consumers at the end of the
//! log are served from here and never touch the disk.

use crate::storage::buffer::Buffer;
use logic::ids::Offset;
use schema::record_batch::{HEADER_BYTES, Header};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// Stored bytes on their way to a consumer, unchanged.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The memory, shared with the cache.
    pub buffer: Rc<Buffer>,
    /// Which part of it.
    pub range: Range<usize>,
}

impl Slice {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// A group in memory.
#[derive(Debug)]
pub struct TailGroup {
    /// First offset.
    pub base: Offset,
    /// One past the last.
    pub end: Offset,
    /// The memory.
    pub buffer: Rc<Buffer>,
    /// Where the batches are.
    pub payload: Range<usize>,
}

/// The groups, oldest first, without gaps.
#[derive(Debug, Default)]
pub struct TailCache {
    groups: VecDeque<TailGroup>,
    bytes: usize,
}

impl TailCache {
    /// Adds the newest group.
    pub fn push(&mut self, group: TailGroup) {
        self.bytes += group.buffer.capacity();
        self.groups.push_back(group);
    }

    /// Drops the oldest group; the bytes that it held.
    pub fn evict(&mut self) -> usize {
        let bytes = self.groups.pop_front().map_or(0, |group| group.buffer.capacity());
        self.bytes -= bytes;
        bytes
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.bytes = 0;
    }

    /// The groups, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &TailGroup> {
        self.groups.iter()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Groups held.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Whole batches from the one that holds `offset` on, that end at or below `limit`, at most `max_bytes` but at
    /// least one batch; `false` if the cache does not reach so far back.
    pub fn read(&self, offset: Offset, limit: Offset, max_bytes: usize, out: &mut Vec<Slice>) -> bool {
        let first = self.groups.partition_point(|group| group.end <= offset);
        if self.groups.get(first).is_none_or(|group| group.base > offset) {
            return false;
        }
        let mut taken = 0;
        for group in self.groups.range(first..) {
            if group.base >= limit {
                break;
            }
            let mut range = group.payload.clone();
            if group.end > limit {
                range.end = range.start + batches_up_to(&group.buffer[range.clone()], limit);
            }
            let visible_end = range.end;
            if group.base < offset {
                range.start += batches_before(&group.buffer[range.clone()], offset);
            }
            let room = max_bytes.saturating_sub(taken);
            if range.len() > room {
                range.end = range.start + batches_within(&group.buffer[range.clone()], room, taken == 0);
            }
            let whole = range.end == visible_end;
            taken += range.len();
            if !range.is_empty() {
                out.push(Slice { buffer: group.buffer.clone(), range });
            }
            if !whole || taken >= max_bytes {
                break;
            }
        }
        true
    }
}

/// Bytes of the batches that end at or before `offset`.
pub fn batches_before(payload: &[u8], offset: Offset) -> usize {
    let mut at = 0;
    while let Some(header) = payload.get(at..at + HEADER_BYTES).and_then(|bytes| Header::decode(bytes).ok()) {
        if header.end_offset() > offset.get() {
            break;
        }
        at += header.batch_bytes;
    }
    at
}

/// One past the last offset of whole batches.
pub fn last_end(batches: &[u8]) -> Option<Offset> {
    let last = schema::record_batch::batches(batches).map_while(Result::ok).last();
    last.map(|(header, _)| Offset::new(header.end_offset()))
}

/// Bytes of the leading batches that end at or below `limit`.
pub fn batches_up_to(payload: &[u8], limit: Offset) -> usize {
    let mut at = 0;
    while let Some(header) = payload.get(at..at + HEADER_BYTES).and_then(|bytes| Header::decode(bytes).ok()) {
        if header.end_offset() > limit.get() {
            break;
        }
        at += header.batch_bytes;
    }
    at.min(payload.len())
}

/// Bytes of the leading batches that fit into `room`; with `at_least_one` the first in any case.
pub fn batches_within(payload: &[u8], room: usize, at_least_one: bool) -> usize {
    let mut at = 0;
    while let Some(header) = payload.get(at..at + HEADER_BYTES).and_then(|bytes| Header::decode(bytes).ok()) {
        let end = at + header.batch_bytes;
        if end > room && !(at == 0 && at_least_one) {
            break;
        }
        at = end;
    }
    at.min(payload.len())
}
