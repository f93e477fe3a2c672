//! Work on stored segments beside the data path: how fast it goes, and how it reads them.
//!
//! One [`Work`] per log that is worked on, owned by the task that does it: compaction, scrubbing. It takes a bounded
//! share of the device and of the core, much less while something is appended, gives way after every little, and ends
//! soon after the log is closed or the store ends. Reads go past the cache of consumers, who would lose theirs. Absent
//! on purpose: what is done with what was read.

use crate::partition::Partition;
use crate::stall;
use crate::storage::buffer::Buffer;
use crate::storage::disk::Disk;
use crate::storage::{OpenSegment, Storage, count};
use crate::store::Store;
use logic::limits::{BLOCK_BYTES, GROUP_BYTES_MAX, READ_BYTES_MAX};
use logic::log::Segment;
use schema::record_batch::BatchError;
use schema::segment::{GROUP_HEADER_BYTES, GroupHeader};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;
/// After so much of something appended a shard counts as busy.
const BUSY_NS: u64 = SECOND_NS / 2;
/// Sleeps end at least so often, to see whether the store ends.
const NAP: Duration = Duration::from_millis(20);

/// Why work on a log came to no end.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The log is closed or about to go to another shard, or the store ends.
    #[error("the log is closed")]
    Closed,
    /// What was to be read is not there any more, or not yet behind a checkpoint.
    #[error("the log has changed")]
    Changed,
    /// A group or header fails its checksum.
    #[error("segment {sequence} is damaged at byte {position}")]
    Damaged {
        /// The segment.
        sequence: u64,
        /// Where in its file.
        position: u64,
    },
    /// A sound group holds what is no batch.
    #[error("segment {sequence} holds what is no batch: {error}")]
    Batch {
        /// The segment.
        sequence: u64,
        /// What is wrong.
        error: BatchError,
    },
    /// The device.
    #[error(transparent)]
    Device(#[from] io::Error),
}

/// What work may take of a shard.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Of the device.
    pub bytes_per_second: u64,
    /// Of its core.
    pub cpu_percent: u64,
}

/// What it may take while nothing is appended, and while something is.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// While nothing is.
    pub idle: Rate,
    /// While something is.
    pub busy: Rate,
}

/// Work on one log.
pub struct Work<'a, D: Disk> {
    /// The store that it is of.
    pub store: &'a Rc<Store<D>>,
    /// Its files.
    pub storage: &'a Rc<Storage<D>>,
    /// The log.
    pub partition: &'a Rc<Partition<D>>,
    read_bytes: &'a Cell<u64>,
    pace: Pace,
}

impl<'a, D: Disk> Work<'a, D> {
    /// At most as fast as `rates`; what is read is counted in `read_bytes`.
    pub fn new(
        store: &'a Rc<Store<D>>,
        partition: &'a Rc<Partition<D>>,
        rates: Rates,
        read_bytes: &'a Cell<u64>,
    ) -> Self {
        Self { store, storage: &store.storage, partition, read_bytes, pace: Pace::new(rates) }
    }

    /// Whether there is nothing to work on any more.
    pub fn is_over(&self) -> bool {
        self.partition.is_closed() || self.partition.winds_down() || self.store.is_stopping()
    }

    /// Accounts for work since `began_ns` and for bytes of the device, and gives way.
    ///
    /// # Errors
    /// [`Stopped::Closed`].
    pub async fn worked(&mut self, began_ns: u64, bytes: u64) -> Result<(), Stopped> {
        let environment = &self.storage.environment;
        let now_ns = environment.monotonic_ns();
        let appended = self.storage.counters.group_bytes.get();
        self.pace.worked(now_ns, appended, now_ns - began_ns, bytes);
        loop {
            if self.is_over() {
                return Err(Stopped::Closed);
            }
            let wait_ns = self.pace.wait_ns(environment.monotonic_ns());
            if wait_ns == 0 {
                break;
            }
            environment.sleep(NAP.min(Duration::from_nanos(wait_ns))).await;
        }
        if self.pace.gives_way() {
            stall::give_way().await;
        }
        Ok(())
    }
}

/// How fast it goes; times are nanoseconds of a clock that never goes back.
#[derive(Debug)]
struct Pace {
    rates: Rates,
    next_ns: u64,
    appended: u64,
    busy_until_ns: u64,
    /// Work since it gave way.
    held_ns: u64,
}

impl Pace {
    /// Longest work between two times that it gives way.
    const HOLD_NS: u64 = 200_000;
    /// Debts below this are not slept off one by one: a timer costs more.
    const DEBT_NS: u64 = 2_000_000;

    fn new(rates: Rates) -> Self {
        Self { rates, next_ns: 0, appended: 0, busy_until_ns: 0, held_ns: 0 }
    }

    /// Notes work of `took_ns` on the core and of `bytes` on the device, ended now; the shard has appended so
    /// many bytes so far.
    fn worked(&mut self, now_ns: u64, appended: u64, took_ns: u64, bytes: u64) {
        if appended != self.appended {
            self.appended = appended;
            self.busy_until_ns = now_ns + BUSY_NS;
        }
        let rate = if now_ns < self.busy_until_ns { self.rates.busy } else { self.rates.idle };
        let Rate { bytes_per_second, cpu_percent } = rate;
        self.held_ns += took_ns;
        let rest_ns = took_ns * (100 - cpu_percent) / cpu_percent;
        self.next_ns = self.next_ns.max(now_ns) + rest_ns + bytes * SECOND_NS / bytes_per_second;
    }

    fn wait_ns(&self, now_ns: u64) -> u64 {
        let wait_ns = self.next_ns.saturating_sub(now_ns);
        if wait_ns < Self::DEBT_NS { 0 } else { wait_ns }
    }

    fn gives_way(&mut self) -> bool {
        let gives_way = self.held_ns >= Self::HOLD_NS;
        if gives_way {
            self.held_ns = 0;
        }
        gives_way
    }
}

/// Reads a segment's groups one after another, past the cache of consumers.
pub struct Source<D: Disk> {
    file: Rc<OpenSegment<D::File>>,
    segment: Segment,
    position: u64,
    /// What has been read last, and where it begins.
    buffer: Option<(Buffer, u64, usize)>,
}

impl<D: Disk> Source<D> {
    /// From its first group on, up to its end as `segment` says.
    ///
    /// # Errors
    /// It is gone, or the device.
    pub async fn open(partition: &Rc<Partition<D>>, segment: &Segment) -> Result<Self, Stopped> {
        let file = match partition.segment_file(segment.sequence, segment.nonce).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Stopped::Changed),
            other => other?,
        };
        Ok(Self { file, segment: segment.clone(), position: BLOCK_BYTES as u64, buffer: None })
    }

    /// Looks for it so many bytes later.
    pub fn skip(&mut self, bytes: u64) {
        self.position += bytes;
    }

    /// The next group and its batches.
    ///
    /// # Errors
    /// As [`Source::check`].
    pub async fn next(&mut self, work: &mut Work<'_, D>) -> Result<Option<(GroupHeader, Vec<u8>)>, Stopped> {
        let Some(header) = self.check(work).await? else { return Ok(None) };
        let (buffer, start, _) = self.buffer.as_ref().expect("it was checked there");
        let from = (self.position - header.disk_bytes() - start) as usize + GROUP_HEADER_BYTES;
        Ok(Some((header, buffer[from..from + header.payload_bytes as usize].to_vec())))
    }

    /// The next group, if it is sound.
    ///
    /// # Errors
    /// It fails its checksum, the device, or the log is closed.
    pub async fn check(&mut self, work: &mut Work<'_, D>) -> Result<Option<GroupHeader>, Stopped> {
        if self.position >= self.segment.end_position {
            return Ok(None);
        }
        let damaged = Stopped::Damaged { sequence: self.segment.sequence, position: self.position };
        let Ok(header) = GroupHeader::decode(self.bytes(work, BLOCK_BYTES).await?) else {
            return Err(damaged);
        };
        let id = work.partition.id();
        let ours = header.nonce == self.segment.nonce
            && (header.topic_id, header.partition) == (id.topic.get(), id.partition.get())
            && header.disk_bytes() <= GROUP_BYTES_MAX as u64
            && self.position + header.disk_bytes() <= self.segment.end_position;
        if !ours {
            return Err(damaged);
        }
        let whole = self.bytes(work, header.disk_bytes() as usize).await?;
        let payload = whole.get(GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + header.payload_bytes as usize);
        if !payload.is_some_and(|payload| header.payload_is_sound(payload)) {
            return Err(damaged);
        }
        self.position += header.disk_bytes();
        Ok(Some(header))
    }

    /// So many bytes from the current place on; fewer where the file ends.
    async fn bytes(&mut self, work: &mut Work<'_, D>, bytes: usize) -> Result<&[u8], Stopped> {
        let held = self.buffer.as_ref().is_some_and(|(_, start, length)| {
            *start <= self.position && self.position + bytes as u64 <= start + *length as u64
        });
        if !held {
            let left = (self.segment.end_position - self.position) as usize;
            let wanted = bytes.max(READ_BYTES_MAX.min(left));
            // Given back first: it is the next one's memory.
            self.buffer = None;
            let buffer = work.storage.pool.take(wanted);
            let (buffer, read) = work.storage.disk.read(&self.file.file, self.position, buffer).await?;
            count(work.read_bytes, read as u64);
            self.buffer = Some((buffer, self.position, read.min(wanted)));
            // Waiting for the device is not work on the core.
            let now_ns = work.storage.environment.monotonic_ns();
            work.worked(now_ns, read as u64).await?;
        }
        let Some((buffer, start, length)) = &self.buffer else { return Ok(&[]) };
        let from = (self.position - start) as usize;
        Ok(&buffer[from.min(*length)..(from + bytes).min(*length)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_gives_way_to_appends() {
        const MS: u64 = 1_000_000;
        const MIB: u64 = 1 << 20;
        let rates = Rates {
            idle: Rate { bytes_per_second: 64 * MIB, cpu_percent: 40 },
            busy: Rate { bytes_per_second: 12 * MIB, cpu_percent: 8 },
        };
        let mut pace = Pace::new(rates);
        // (now, appended so far, work on the core, bytes, how long to wait)
        let rows = [
            (0, 0, 0, 64 * MIB / 100, 10 * MS),
            (10 * MS, 0, 4 * MS, 0, 6 * MS),
            // Something was appended: the slower pace, and for a while longer.
            (100 * MS, 1, 0, 12 * MIB / 100, 10 * MS),
            (200 * MS, 1, 4 * MS, 0, 46 * MS),
            (100 * MS + BUSY_NS, 1, 4 * MS, 0, 6 * MS),
            // Little debts are let run up.
            (SECOND_NS, 1, MS, 0, 0),
            (SECOND_NS, 1, MS, 0, 3 * MS),
        ];
        for (n, (now_ns, appended, took_ns, bytes, wait_ns)) in rows.into_iter().enumerate() {
            pace.worked(now_ns, appended, took_ns, bytes);
            let difference = pace.wait_ns(now_ns).abs_diff(wait_ns);
            assert!(difference < 1_000, "row {n}: {} instead of {wait_ns}", pace.wait_ns(now_ns));
        }
        assert!(pace.gives_way() && !pace.gives_way());
    }
}
