//! Pieces of segments in memory: what device reads go through, one cache per shard.
//!
//! 1 MiB pieces, read ahead for whoever reads on, shared by consumers at the same place, bounded in bytes and
//! in reads under way, so that catching up never pushes out the write path. A piece is in the cache, on its
//! way, or not there; who finds it on its way waits for it. What the device refuses is read around, block by
//! block, and taken as zeros. Absent on purpose: any check of what the bytes are worth; that is the
//! walk's.

use crate::partition::Partition;
use crate::storage::buffer::Buffer;
use crate::storage::disk::Disk;
use crate::storage::{OpenSegment, count, is_unreadable};
use logic::ids::TopicPartition;
use logic::limits::{BLOCK_BYTES, READ_AHEAD_BYTES_PER_SHARD, READ_BYTES_MAX, READS_IN_FLIGHT_MAX};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct ChunkKey {
    pub(super) partition: TopicPartition,
    pub(super) sequence: u64,
    /// A partition that is removed and added again begins with the same numbers.
    pub(super) nonce: u64,
    pub(super) chunk: u64,
}

#[derive(Clone)]
pub(super) struct Chunk {
    pub(super) buffer: Rc<Buffer>,
    pub(super) bytes: usize,
}

pub(super) enum Entry {
    Loading(Vec<Waker>),
    Ready(Chunk),
}

/// Pieces of segments in memory, of one shard.
#[derive(Default)]
pub struct ChunkCache {
    pub(super) entries: RefCell<HashMap<ChunkKey, Entry>>,
    order: RefCell<VecDeque<ChunkKey>>,
    /// Read ahead, and nobody has come for them yet.
    pub(super) ahead: RefCell<HashSet<ChunkKey>>,
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
    pub(super) fn holds(&self, key: &ChunkKey) -> bool {
        self.entries.borrow().contains_key(key)
    }

    /// What was read ahead for readers who have not come yet takes half of the cache at most.
    pub(super) fn has_room_ahead(&self) -> bool {
        (self.ahead.borrow().len() + 1) * READ_BYTES_MAX <= READ_AHEAD_BYTES_PER_SHARD / 2
    }

    pub(super) fn begin_ahead(&self, key: ChunkKey) {
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
    pub(super) fn forget(&self, key: &ChunkKey) {
        let mut entries = self.entries.borrow_mut();
        if let Some(Entry::Ready(chunk)) = entries.get(key) {
            self.bytes.set(self.bytes.get() - chunk.buffer.capacity());
            entries.remove(key);
            self.order.borrow_mut().retain(|other| other != key);
        }
    }

    /// Forgets what was read of a segment: the next reader asks the device.
    pub(crate) fn forget_segment(&self, partition: TopicPartition, nonce: u64) {
        let of_it = |key: &&ChunkKey| (key.partition, key.nonce) == (partition, nonce);
        let keys: Vec<ChunkKey> = self.order.borrow().iter().filter(of_it).copied().collect();
        keys.iter().for_each(|key| self.forget(key));
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

/// Reads a chunk, as far as the log is durable in it, and puts it into the cache.
pub(super) async fn load<D: Disk>(
    partition: &Rc<Partition<D>>,
    cache: &Rc<ChunkCache>,
    file: &Rc<OpenSegment<D::File>>,
    key: ChunkKey,
) -> io::Result<Chunk> {
    let loading = Loading { cache, key: &key };
    let result = async {
        let _admission = cache.admit().await;
        let start = key.chunk * READ_BYTES_MAX as u64;
        let end = partition.with_log(|log| {
            // Of a segment that has been rewritten, the number stands for another file.
            log.segment(key.sequence).filter(|segment| segment.nonce == key.nonce)?;
            log.durable_end_position(key.sequence)
        });
        let Some(end) = end else {
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
