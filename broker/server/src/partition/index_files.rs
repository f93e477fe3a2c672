//! Sparse indexes of segments on the device: footers, written when a segment has been left, and made anew
//! where there is none.
//!
//! An index is a hint: losing one costs a read of the segment's headers, never a record.

use crate::partition::Partition;
use crate::partition::chunk_cache::ChunkCache;
use crate::partition::reader::ReadError;
use crate::partition::walk::{Step, Walk};
use crate::storage::disk::{Disk, Write};
use crate::storage::{OpenSegment, is_no_space};
use logic::ids::Offset;
use logic::limits::BLOCK_BYTES;
use logic::log::index::Index;
use logic::log::read::ReadFrom;
use schema::segment::{Footer, IndexEntry};
use std::io;
use std::rc::Rc;

impl<D: Disk> Partition<D> {
    /// The index of a segment: its footer, or made anew by reading the headers of its groups.
    pub(super) async fn load_index(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        sequence: u64,
        nonce: u64,
        end_position: u64,
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
}
