//! Sparse indexes of segments on the device: footers, written when a segment has been left, and made anew
//! where there is none.
//!
//! An index is a hint: losing one costs a read of the segment's headers, never a record.

use crate::partition::Partition;
use crate::partition::chunk_cache::ChunkCache;
use crate::partition::reader::ReadError;
use crate::partition::walk::{Step, Walk};
use crate::storage::disk::{Disk, Write};
use crate::storage::{OpenSegment, count, is_no_space};
use logic::ids::Offset;
use logic::limits::{BLOCK_BYTES, INDEX_LOOK_BACK_BYTES, READ_BYTES_MAX};
use logic::log::index::Index;
use logic::log::read::ReadFrom;
use schema::segment::{Footer, GroupHeader, IndexEntry};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

impl<D: Disk> Partition<D> {
    /// The index of a segment: its footer, or made anew by reading the headers of its groups; or an index of its end alone, if
    /// that is enough to find `offset`: after a start it is the end of the log that is looked for first.
    pub(super) async fn load_index(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        sequence: u64,
        nonce: u64,
        end_position: u64,
        offset: Option<Offset>,
    ) -> Result<Index, ReadError> {
        let file = self.segment_file(sequence, nonce).await?;
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
        let durable_end = self.with_log(|log| log.durable_end_position(sequence));
        if let (Some(offset), Some(durable_end)) = (offset, durable_end)
            && let Some(index) = self.look_back(&file, nonce, durable_end, offset).await
        {
            return Ok(index);
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
                Step::End | Step::Replaced => return Ok(index),
            }
        }
    }

    /// An index of the segment's end from a group at or before `offset` on, found by its nonce from block to block backwards;
    /// `None` if it is not near enough, or cannot be read: who reads the segment from its start says so where it matters.
    async fn look_back(
        &self,
        file: &OpenSegment<D::File>,
        nonce: u64,
        end_position: u64,
        offset: Offset,
    ) -> Option<Index> {
        let id = self.id();
        let start = (BLOCK_BYTES as u64).max(end_position.saturating_sub(INDEX_LOOK_BACK_BYTES));
        let mut groups = VecDeque::new();
        let mut end = end_position;
        while end > start {
            let begin = start.max(end.saturating_sub(READ_BYTES_MAX as u64));
            let piece = self.storage.pool.take((end - begin) as usize);
            let (piece, read) = self.storage.disk.read(&file.file, begin, piece).await.ok()?;
            count(&self.storage.counters.reads, 1);
            count(&self.storage.counters.read_bytes, read as u64);
            for at in (0..read.min((end - begin) as usize)).step_by(BLOCK_BYTES).rev() {
                let Ok(header) = GroupHeader::decode(&piece[at..read]) else { continue };
                if (header.nonce, header.topic_id, header.partition)
                    == (nonce, id.topic.get(), id.partition.get())
                {
                    groups.push_front((Offset::new(header.base_offset), begin + at as u64));
                    if header.base_offset <= offset.get() && header.batch_count > 0 {
                        return Some(Index::of_end(groups));
                    }
                }
            }
            end = begin;
        }
        None
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

    /// Writes the index footers of segments that were left and whose groups are all durable; of one whose index is not in memory
    /// as a whole there is none.
    pub async fn write_footers(&self) -> io::Result<()> {
        loop {
            let (sequence, footer) = {
                let log = self.log.borrow();
                let (durable_sequence, _) = log.durable_position();
                let mut preparation = self.preparation.borrow_mut();
                let at = preparation.closed.iter().position(|sequence| *sequence < durable_sequence);
                let Some(sequence) = at.map(|at| preparation.closed.swap_remove(at)) else { return Ok(()) };
                let footer = log.segment(sequence).and_then(|segment| {
                    let index = segment.index.as_ref().filter(|index| index.is_whole())?;
                    let bytes = Footer::disk_bytes(index.entries().len());
                    let mut buffer = self.storage.pool.take(bytes);
                    buffer.fill(0);
                    Footer::encode(segment.nonce, index.entries(), &mut buffer);
                    Some((segment.end_position, buffer))
                });
                (sequence, footer)
            };
            // Held until the write has ended: the file is neither recycled nor removed under it.
            let Some(file) = self.files.borrow().get(&sequence).cloned() else { continue };
            if let Some((position, buffer)) = footer {
                let range = 0..buffer.len();
                let buffer = Rc::new(buffer);
                let write = Write { file: file.file.clone(), buffer, range, position, durable: false };
                match self.storage.disk.write(vec![write]).await {
                    // Only a hint: without room for it the index is made anew when it is needed.
                    Err(error) if is_no_space(&error) => {}
                    other => other?,
                }
                self.log.borrow_mut().index_dropped(sequence);
            }
            drop(file);
            self.files.borrow_mut().remove(&sequence);
        }
    }
}
