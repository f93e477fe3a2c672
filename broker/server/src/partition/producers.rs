//! What a partition knows of its producers, and who is asked before a batch gets its offsets.
//!
//! The table is `logic::producer_state`'s; here it gets time, the log's ends and the shard's bounds. Its summary
//! goes into every checkpoint, as of the checkpoint's durable end. Before the log is cut below all that is remembered of a
//! producer, its last batches that stay are looked up in the log. A batch without a producer costs one comparison.

use super::Partition;
use crate::partition::chunk_cache::ChunkCache;
use crate::partition::reader::ReadError;
use crate::partition::walk::{Step, Walk};
use crate::storage::disk::Disk;
use logic::ids::Offset;
use logic::limits::{BLOCK_BYTES, PRODUCERS_PER_PARTITION_MAX, PRODUCERS_PER_SHARD_MAX};
use logic::log::Segment;
use logic::log::read::ReadFrom;
use logic::producer_state::{Admission, Bounds, LogPlace, ProducerBatch, ProducerError, ProducerTable};
use schema::checkpoint::PartitionCheckpoint;
use schema::record_batch::Header;
use std::collections::BTreeSet;
use std::rc::Rc;

impl<D: Disk> Partition<D> {
    /// Whether a checked batch is to be appended. If it is, the caller appends it before anything else: its
    /// producer's table has it already.
    #[inline]
    pub fn admit_producer(&self, header: &Header) -> Result<Admission, ProducerError> {
        match ProducerBatch::of(header) {
            None => Ok(Admission::Append),
            Some(batch) => self.admit(&batch),
        }
    }

    fn admit(&self, batch: &ProducerBatch) -> Result<Admission, ProducerError> {
        let place = {
            let log = self.log.borrow();
            // What is not committed may be cut again: the newest batch that stays must be known.
            LogPlace { end: log.log_end(), durable_end: log.high_watermark() }
        };
        let mut table = self.producers.borrow_mut();
        let known = table.len();
        let crowded = self.storage.producers() >= PRODUCERS_PER_SHARD_MAX;
        let bounds = Bounds {
            expiration_ms: self.storage.producer_expiration_ms.get(),
            producers_max: if crowded { known.max(1) } else { PRODUCERS_PER_PARTITION_MAX },
        };
        let now_ms = self.storage.environment.now_ms();
        let admission = table.admit(now_ms, batch, place, bounds)?;
        self.storage.producers_changed(known, table.len());
        if admission == Admission::Append {
            self.admitted.set(Some((place.end, now_ms)));
        }
        Ok(admission)
    }

    /// Producers that are known.
    pub fn producer_count(&self) -> usize {
        self.producers.borrow().len()
    }

    /// What a checkpoint may claim.
    pub fn checkpoint(&self) -> PartitionCheckpoint {
        let checkpoint = self.log.borrow().checkpoint();
        let durable_end = Offset::new(checkpoint.durable_end);
        let mut table = self.producers.borrow_mut();
        let known = table.len();
        let expiration_ms = self.storage.producer_expiration_ms.get();
        table.expire(self.storage.environment.now_ms(), expiration_ms, durable_end);
        self.storage.producers_changed(known, table.len());
        PartitionCheckpoint { producers: table.summaries(durable_end), ..checkpoint }
    }

    /// Whether dropped segments may go: who or what is known only from them stands in a checkpoint, cuts too. Asks for one
    /// if not. Where the disk has no room for one, not even with the reserve, they go all the same.
    pub(super) fn outlive_dropped_segments(&self) -> bool {
        let (log_start, is_cut_unknown) = self.with_log(|log| (log.log_start(), log.is_cut_unknown()));
        let needed = self.producers.borrow().needs_checkpoint(log_start, self.checkpointed_end.get());
        let safe = !is_cut_unknown && !needed;
        if !safe {
            self.storage.want_checkpoint();
        }
        safe || self.storage.has_no_room_for_checkpoint()
    }

    /// What the log below `end` holds of producers whom the table would not know any more if it were cut there. The newest
    /// segments come first, until all have been found or would be expired; what cannot be read tells nothing.
    pub(super) async fn producers_below(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        end: Offset,
    ) -> ProducerTable {
        let mut sought = self.producers.borrow().unknown_after_cut(end);
        let mut kept = ProducerTable::default();
        let mut segments = self.with_log(|log| {
            log.segments().iter().filter(|segment| segment.base < end).cloned().collect::<Vec<_>>()
        });
        let silent_ms = self.storage.environment.now_ms() - self.storage.producer_expiration_ms.get();
        let mut appended_before_ms = i64::MAX;
        while !sought.is_empty()
            && appended_before_ms > silent_ms
            && let Some(segment) = segments.pop()
        {
            let mut found = ProducerTable::default();
            if let Err(error) = self.replay_segment(cache, &segment, end, &sought, &mut found).await {
                let (label, name) = (self.storage.label(self.id()), segment.name());
                self.storage.notice(format!(
                    "{label}: producers of segment {name} may have been forgotten by a cut ({error})"
                ));
            }
            for id in kept.adopt(found) {
                sought.remove(&id);
            }
            appended_before_ms = segment.opened_ms;
        }
        kept
    }

    /// Folds the batches of `sought` that a segment holds below `end` into `table`.
    async fn replay_segment(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        segment: &Segment,
        end: Offset,
        sought: &BTreeSet<i64>,
        table: &mut ProducerTable,
    ) -> Result<(), ReadError> {
        let Segment { sequence, nonce, end_position, .. } = *segment;
        let from = ReadFrom { sequence, nonce, position: BLOCK_BYTES as u64, end_position };
        let mut walk = Walk::new(self, cache, from);
        walk.one_segment = true;
        loop {
            let group = match walk.next_header().await? {
                Step::Group(group) if group.base_offset < end.get() => group,
                Step::Damaged => {
                    walk.from.position += BLOCK_BYTES as u64;
                    continue;
                }
                Step::Group(_) | Step::End | Step::Replaced => return Ok(()),
            };
            if let Some(rope) = walk.payload(&group).await?.filter(|rope| rope.crc() == group.payload_crc) {
                let mut at = 0;
                while let Some(header) = rope.batch_header(at)
                    && header.end_offset() <= end.get()
                {
                    at += header.batch_bytes;
                    if let Some(batch) = ProducerBatch::of(&header).filter(|batch| sought.contains(&batch.id))
                    {
                        table.replay(&batch, Offset::new(header.base_offset), group.append_time_ms);
                    }
                }
            }
            walk.skip(&group);
        }
    }

    /// Forgets all of them, with the partition.
    pub(super) fn forget_producers(&self) {
        let table = std::mem::take(&mut *self.producers.borrow_mut());
        self.storage.producers_changed(table.len(), 0);
    }
}
