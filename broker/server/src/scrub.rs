//! Scrubbing: the background job of a shard that reads all that is stored, so that what rots is found while others
//! still have it.
//!
//! One task per shard, one log at a time, every segment from its first group to the end of what is durable. A group
//! that fails its checksum is looked at once more as a reader would, past all caches, who notes which offsets are
//! lost; whoever repairs is told of them. Lives as long as the shard; a pass that ends with it begins anew with the
//! next. Paced like compaction. Absent on purpose: repairing (`replication`), headers and index footers of
//! segments, which can be done without.

use crate::background::{Rate, Rates, Source, Stopped, Work};
use crate::partition::Partition;
use crate::partition::reader::ReadError;
use crate::storage::disk::Disk;
use crate::storage::{count, is_unreadable};
use crate::store::Store;
use logic::ids::Offset;
use logic::limits::{
    BLOCK_BYTES, READ_BYTES_MAX, SCRUB_BYTES_PER_SECOND, SCRUB_BYTES_PER_SECOND_BUSY, SCRUB_CPU_PERCENT,
    SCRUB_CPU_PERCENT_BUSY,
};
use logic::log::Segment;
use std::rc::Rc;

const RATES: Rates = Rates {
    idle: Rate { bytes_per_second: SCRUB_BYTES_PER_SECOND, cpu_percent: SCRUB_CPU_PERCENT },
    busy: Rate { bytes_per_second: SCRUB_BYTES_PER_SECOND_BUSY, cpu_percent: SCRUB_CPU_PERCENT_BUSY },
};

impl<D: Disk> Store<D> {
    /// Reads all logs once. `repairs` is told of logs that have lost something, and says whether the rest of the log is of no
    /// interest until they have been repaired.
    pub async fn scrub(self: &Rc<Self>, repairs: impl Fn(&Rc<Partition<D>>) -> bool) {
        for partition in self.partitions() {
            let work = Work::new(self, &partition, RATES, &self.storage.counters.scrubbed_bytes);
            match (Scrub { work, repairs: &repairs }).log().await {
                Ok(()) | Err(Stopped::Changed) => {}
                Err(Stopped::Closed) if self.is_stopping() => return,
                Err(Stopped::Closed) => {}
                Err(error) => tracing::warn!(
                    "{}: scrubbing gives up until the next pass: {error}",
                    self.storage.label(partition.id())
                ),
            }
        }
        count(&self.storage.counters.scrub_passes, 1);
    }
}

/// A pass over one log.
struct Scrub<'a, D: Disk, R> {
    work: Work<'a, D>,
    repairs: &'a R,
}

impl<D: Disk, R: Fn(&Rc<Partition<D>>) -> bool> Scrub<'_, D, R> {
    async fn log(&mut self) -> Result<(), Stopped> {
        let mut after = None;
        loop {
            let next = self.work.partition.with_log(|log| {
                let mut segments = log.segments().iter();
                let next = segments.find(|segment| Some(segment.sequence) > after)?.clone();
                let end_position = log.durable_end_position(next.sequence)?;
                Some(Segment { end_position, ..next })
            });
            let Some(segment) = next else { return Ok(()) };
            after = Some(segment.sequence);
            match self.segment(&segment).await {
                // Retention or compaction was faster.
                Err(Stopped::Changed) => {}
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a segment to its end; `false`: the rest of the log is of no interest.
    async fn segment(&mut self, segment: &Segment) -> Result<bool, Stopped> {
        let mut source = Source::open(self.work.partition, segment).await?;
        // What comes next, as long as that is known.
        let mut expected = Some(segment.base);
        loop {
            let skipped = match source.check(&mut self.work).await {
                Ok(Some(group)) => {
                    expected = Some(Offset::new(group.end_offset));
                    continue;
                }
                Ok(None) => return Ok(true),
                Err(Stopped::Damaged { .. }) => BLOCK_BYTES as u64,
                Err(Stopped::Device(error)) if is_unreadable(&error) => READ_BYTES_MAX as u64,
                Err(error) => return Err(error),
            };
            if let Some(offset) = expected.take()
                && self.is_lost(segment, offset).await?
            {
                return Ok(false);
            }
            source.skip(skipped);
        }
    }

    /// Whether `offset`, which should stand where something is damaged, is lost and repaired.
    async fn is_lost(&self, segment: &Segment, offset: Offset) -> Result<bool, Stopped> {
        let partition = self.work.partition;
        let (log_start, nonce) = partition
            .with_log(|log| (log.log_start(), log.segment(segment.sequence).map(|segment| segment.nonce)));
        if nonce != Some(segment.nonce) {
            return Err(Stopped::Changed);
        }
        let chunks = &self.work.store.chunks;
        chunks.forget_segment(partition.id(), segment.nonce);
        match partition.read_durable(chunks, offset.max(log_start)).await {
            Err(ReadError::Damaged { .. }) => Ok((self.repairs)(partition)),
            Err(ReadError::Closed) => Err(Stopped::Closed),
            // A group without batches, or one that retention has taken.
            Ok(()) | Err(ReadError::OutOfRange { .. }) => Ok(false),
            Err(ReadError::Device(error)) => Err(Stopped::Device(error)),
        }
    }
}
