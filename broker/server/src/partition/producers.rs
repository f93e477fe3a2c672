//! What a partition knows of its producers, and who is asked before a batch gets its offsets.
//!
//! The table is `logic::producer_state`'s; here it gets time, the log's ends and the shard's bounds. Its summary
//! goes into every checkpoint, as of the checkpoint's durable end. A batch without a producer costs one comparison.

use super::Partition;
use crate::storage::disk::Disk;
use logic::limits::{PRODUCERS_PER_PARTITION_MAX, PRODUCERS_PER_SHARD_MAX};
use logic::producer_state::{Admission, Bounds, LogPlace, ProducerBatch, ProducerError};
use schema::checkpoint::PartitionCheckpoint;
use schema::record_batch::Header;

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
        let durable_end = logic::ids::Offset::new(checkpoint.durable_end);
        let mut table = self.producers.borrow_mut();
        let known = table.len();
        let expiration_ms = self.storage.producer_expiration_ms.get();
        table.expire(self.storage.environment.now_ms(), expiration_ms, durable_end);
        self.storage.producers_changed(known, table.len());
        PartitionCheckpoint { producers: table.summaries(durable_end), ..checkpoint }
    }

    /// Whether dropped segments may go: whoever is known only from them stands in a checkpoint. Asks for one
    /// if not. Where the disk has no room for one, not even with the reserve, they go all the same.
    pub(super) fn outlive_dropped_segments(&self) -> bool {
        let log_start = self.log.borrow().log_start();
        let safe = !self.producers.borrow().needs_checkpoint(log_start, self.checkpointed_end.get());
        if !safe {
            self.storage.want_checkpoint();
        }
        safe || self.storage.has_no_room_for_checkpoint()
    }

    /// Forgets all of them, with the partition.
    pub(super) fn forget_producers(&self) {
        let table = std::mem::take(&mut *self.producers.borrow_mut());
        self.storage.producers_changed(table.len(), 0);
    }
}
