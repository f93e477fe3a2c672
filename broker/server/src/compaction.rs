//! Compaction: the background job of a shard that leaves of every key the latest record.
//!
//! One task per shard, one log at a time, the dirtiest first. A pass learns the keys of the dirty segments,
//! then rewrites segments in groups, oldest first:
//!
//! ```text
//! sources → filter → unnamed file → sync → name → sync directories → the log reads it → sources go
//! ```
//!
//! Lives as long as the shard. Invariants: a file gets its name when every byte of it is durable, and its sources
//! go only when that name is; so at every moment the names say which files count (`logic::log::segment_name`), and
//! a crash leaves the old or the new. Segments are only rewritten behind a checkpoint that is on the device.
//! Readers keep what they hold. It takes a bounded share of the device and of the core, much less while
//! something is appended, and gives way after every batch. What fails is said and tried again later; nothing
//! acknowledged depends on it. Absent on purpose: the decision what stays (`logic::log::compaction`).

use crate::partition::{CompactionState, Partition};
use crate::stall;
use crate::storage::disk::Disk;
use crate::storage::{OpenSegment, Storage, count, is_no_space};
use crate::store::Store;
use logic::ids::Offset;
use logic::limits::{
    BLOCK_BYTES, COMPACTION_BYTES_PER_SECOND, COMPACTION_BYTES_PER_SECOND_BUSY, COMPACTION_CPU_PERCENT,
    COMPACTION_CPU_PERCENT_BUSY, COMPACTION_LOOK_MS, COMPACTION_RETRY_MS, COMPACTION_SYNC_BYTES,
    GROUP_BYTES_MAX, READ_BYTES_MAX,
};
use logic::log::append::{Rewritten, Segment};
use logic::log::compaction::{self, CompactionSettings, Left, Look, Pass};
use logic::log::tiles::{SourcesEnd, Tile, Tiles};
use logic::rules::{Rule, holds};
use schema::record_batch::{self, BatchError, Header};
use schema::segment::{Footer, GROUP_HEADER_BYTES, GroupHeader, RewrittenHeader, SegmentHeader};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;
/// After so much of something appended a shard counts as busy.
const BUSY_NS: u64 = SECOND_NS / 2;
/// Sleeps end at least so often, to see whether the store ends.
const NAP: Duration = Duration::from_millis(20);

/// Why a pass came to no end.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    /// The log is closed, or the store ends.
    #[error("the log is closed")]
    Closed,
    /// What it was to rewrite is not there any more, or not yet behind a checkpoint.
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

impl<D: Disk> Store<D> {
    /// Compacts the log that needs it most; whether there was one.
    pub async fn compact(self: &Rc<Self>) -> bool {
        let now_ms = self.storage.environment.now_ms();
        let due = self.partitions().into_iter().filter_map(|partition| {
            let settings = partition.settings().compaction?;
            if partition.is_closed() || partition.compaction().retry_after_ms > now_ms {
                return None;
            }
            let look = partition.with_log(|log| compaction::look(log, &settings, now_ms));
            look.is_due(&settings).then_some((partition, settings, look))
        });
        let most = due.max_by_key(|(_, _, look)| (look.overdue, look.dirty_millionths()));
        let Some((partition, settings, look)) = most else { return false };
        if self.is_stopping() || self.storage.is_full() || !partition.begin_compaction() {
            return false;
        }
        let before = partition.compaction();
        let result = Job::new(self, &partition).pass(&look, &settings).await;
        let now_ms = self.storage.environment.now_ms();
        let mut state = CompactionState { retry_after_ms: now_ms + COMPACTION_RETRY_MS, ..before };
        match result {
            Ok(()) => state = CompactionState { last_pass_ms: now_ms, retry_after_ms: 0 },
            Err(Stopped::Closed) => {}
            Err(Stopped::Changed) => state.retry_after_ms = now_ms + COMPACTION_LOOK_MS as i64,
            Err(_) if partition.is_closed() => {}
            Err(error) => {
                count(&self.storage.counters.compaction_given_up, 1);
                let reason = match &error {
                    Stopped::Device(error) if is_no_space(error) => {
                        format!("no space for a rewritten segment ({error})")
                    }
                    error => error.to_string(),
                };
                self.storage.notice(format!(
                    "{}: compaction gives up for {} s: {reason}; what is stored is served as it is",
                    self.storage.label(partition.id()),
                    COMPACTION_RETRY_MS / 1000
                ));
            }
        }
        partition.end_compaction(state);
        true
    }
}

/// One pass over one log.
struct Job<'a, D: Disk> {
    store: &'a Rc<Store<D>>,
    storage: &'a Rc<Storage<D>>,
    partition: &'a Rc<Partition<D>>,
    pace: Pace,
}

impl<'a, D: Disk> Job<'a, D> {
    fn new(store: &'a Rc<Store<D>>, partition: &'a Rc<Partition<D>>) -> Self {
        Self { store, storage: &store.storage, partition, pace: Pace::default() }
    }

    async fn pass(&mut self, look: &Look, settings: &CompactionSettings) -> Result<(), Stopped> {
        let environment = self.storage.environment.clone();
        let mut pass = Pass::new(look, settings, environment.now_ms(), environment.nonce());
        self.learn(&mut pass, look).await?;
        let until = pass.learned_until();
        let bytes_max = self.partition.settings().log.physical_bytes();
        let groups = self.partition.with_log(|log| compaction::group_by(log, until, bytes_max));
        for group in groups {
            self.rewrite(&group, &mut pass).await?;
        }
        let counts = pass.counts();
        let counters = &self.storage.counters;
        count(&counters.compaction_passes, 1);
        let removed = counts.superseded + counts.tombstones + counts.without_key;
        count(&counters.compaction_removed_records, removed);
        tracing::debug!("{}: compacted below {until}: {counts:?}", self.storage.label(self.partition.id()));
        Ok(())
    }

    /// Learns the keys of the dirty segments, as far as memory goes.
    async fn learn(&mut self, pass: &mut Pass, look: &Look) -> Result<(), Stopped> {
        let dirty: Vec<Segment> = self.partition.with_log(|log| {
            let next = log.segments().iter().skip(1).map(|next| next.base);
            let pairs = log.segments().iter().zip(next);
            let dirty = pairs.filter(|(own, end)| *end > look.first_dirty && own.base < look.end);
            dirty.map(|(own, _)| own.clone()).collect()
        });
        let learned = if holds(Rule::LearnAll) { dirty.len() } else { 1 };
        for segment in dirty.into_iter().take(learned) {
            let mut source = Source::open(self.partition, &segment).await?;
            while let Some((group, payload)) = source.next(self).await? {
                if group.end_offset <= look.first_dirty.get() {
                    continue;
                }
                for batch in record_batch::batches(&payload) {
                    let began_ns = self.storage.environment.monotonic_ns();
                    let learned = batch.and_then(|(_, batch)| pass.learn(batch));
                    let learned =
                        learned.map_err(|error| Stopped::Batch { sequence: segment.sequence, error })?;
                    self.worked(began_ns, 0).await?;
                    if !learned {
                        return Ok(());
                    }
                }
            }
        }
        pass.learned_all(look.end);
        Ok(())
    }

    /// Makes one segment of these, with what stays of them.
    async fn rewrite(&mut self, group: &[u64], pass: &mut Pass) -> Result<(), Stopped> {
        let (sources, end) = self.partition.with_log(|log| {
            let sources: Vec<Segment> = group.iter().filter_map(|one| log.segment(*one).cloned()).collect();
            let after = log.segments().iter().find(|segment| Some(&segment.sequence) > group.last());
            (sources, after.map(|after| after.base))
        });
        let (Some(first), Some(last), Some(end)) = (sources.first(), sources.last(), end) else {
            return Err(Stopped::Changed);
        };
        if sources.len() != group.len() {
            // Retention was faster.
            return Err(Stopped::Changed);
        }
        let behind = |own: &Self| own.partition.with_log(|log| log.is_behind_checkpoint(last.name()));
        if !behind(self) && holds(Rule::WaitForCheckpoint) {
            self.store.checkpoint_now().await?;
            if !behind(self) {
                return Err(Stopped::Changed);
            }
        }
        let (path, file) = self.storage.create_unnamed().await?;
        let written = self.write(&file, &sources, end, pass).await;
        let segment = match written {
            Ok(segment) => segment,
            Err(error) => {
                // In steps, because it may be large; what stays goes at the next start.
                let _ = self.storage.reclaim(&path, 0, u64::MAX).await;
                return Err(error);
            }
        };
        drop(file);
        self.put_in_place(&path, &sources, segment).await.inspect(|()| {
            tracing::debug!("{}: {} to {} rewritten", self.partition.id(), first.name(), last.name());
        })
    }

    /// Writes what stays of the sources, and makes it durable.
    async fn write(
        &mut self,
        file: &D::File,
        sources: &[Segment],
        end: Offset,
        pass: &mut Pass,
    ) -> Result<Segment, Stopped> {
        let nonce = self.storage.environment.nonce();
        let (oldest, newest) = (&sources[0], &sources[sources.len() - 1]);
        let (header, _) = self.read_headers(oldest).await?;
        let mut tiles = Tiles::new(self.partition.identity(), header, nonce);
        let mut output = Output { file, unsynced_bytes: 0 };
        let mut chain = header.previous_chain;
        for segment in sources {
            let mut source = Source::open(self.partition, segment).await?;
            while let Some((group, payload)) = source.next(self).await? {
                chain = group.chain;
                if let Some(tile) = tiles.source(&group) {
                    output.write(self, tile).await?;
                }
                for batch in record_batch::batches(&payload) {
                    let wrong = |error| Stopped::Batch { sequence: segment.sequence, error };
                    let began_ns = self.storage.environment.monotonic_ns();
                    let (header, batch) = batch.map_err(wrong)?;
                    let tile = match pass.filter(batch).map_err(wrong)? {
                        Left::Unchanged => tiles.batch(batch, &header),
                        Left::Fewer(fewer) => tiles.batch(&fewer, &Header::decode(&fewer).map_err(wrong)?),
                        Left::Gone => None,
                    };
                    self.worked(began_ns, 0).await?;
                    if let Some(tile) = tile {
                        output.write(self, tile).await?;
                    }
                }
            }
        }
        if let Some(tile) = tiles.last(end.get()) {
            output.write(self, tile).await?;
        }
        // A rewritten one says itself where the chain went on behind it.
        let (position, chain) = match self.read_headers(newest).await?.1 {
            Some(second) => (second.source_end, second.end_chain),
            None => (newest.end_position, chain),
        };
        let ends = SourcesEnd {
            last_sequence: newest.name().last,
            revision: match holds(Rule::RaiseRevision) {
                true => 1 + sources.iter().map(|source| source.name().revision).max().unwrap_or(0),
                false => 1,
            },
            position,
            chain,
            clean_until: pass.learned_until().get(),
            opened_ms: newest.opened_ms,
        };
        let (header, second) = tiles.headers(&ends);
        self.finish(file, &header, &second, &tiles).await?;
        Ok(Segment {
            sequence: oldest.sequence,
            nonce,
            base: oldest.base,
            end_position: second.end_position,
            max_timestamp_ms: second.max_timestamp_ms,
            opened_ms: header.opened_ms,
            index: None,
            rewritten: Some(Rewritten {
                last: ends.last_sequence,
                revision: ends.revision,
                clean_until: Offset::new(second.clean_until),
            }),
        })
    }

    /// Index footer and headers; then all of the file is synced.
    async fn finish(
        &mut self,
        file: &D::File,
        header: &SegmentHeader,
        second: &RewrittenHeader,
        tiles: &Tiles,
    ) -> Result<(), Stopped> {
        let entries = tiles.index().entries();
        let mut footer = self.storage.pool.take(Footer::disk_bytes(entries.len()));
        footer.fill(0);
        Footer::encode(header.nonce, entries, &mut footer);
        self.storage.write_all(file, Rc::new(footer), tiles.end_position(), false).await?;
        let mut block = self.storage.pool.take(BLOCK_BYTES);
        block.fill(0);
        header.encode(&mut block);
        second.encode(&mut block);
        self.storage.write_all(file, Rc::new(block), 0, false).await?;
        if holds(Rule::SyncBeforeName) {
            self.storage.disk.sync(file).await?;
        }
        Ok(())
    }

    /// Once the name is there, there is no way back: then the log follows, then the sources go.
    async fn put_in_place(
        &mut self,
        path: &Path,
        sources: &[Segment],
        segment: Segment,
    ) -> Result<(), Stopped> {
        if self.is_over() {
            let _ = self.storage.reclaim(path, 0, u64::MAX).await;
            return Err(Stopped::Closed);
        }
        let (name, bytes) = (segment.name(), segment.end_position);
        let identity = self.partition.identity();
        let failed = |error: io::Error| -> ! {
            self.storage.fail("naming a compacted segment", Some(self.partition.id()), &error)
        };
        match self.storage.give_name(path, &identity, name).await {
            Ok(()) => {}
            // The log is as it was, and a file without a name in it is nobody's.
            Err(error) if is_no_space(&error) => {
                let _ = self.storage.reclaim(path, 0, u64::MAX).await;
                return Err(error.into());
            }
            Err(error) => failed(error),
        }
        if holds(Rule::SyncNames)
            && let Err(error) = self.storage.sync_names(&identity).await
        {
            // Whether the name is there after a crash is unknown, and what comes next depends on it.
            failed(error);
        }
        let nonces: Vec<u64> = sources.iter().map(|source| source.nonce).collect();
        if self.partition.replace_segments(&nonces, segment) {
            let before: u64 = sources.iter().map(|source| source.end_position).sum();
            count(&self.storage.counters.compaction_removed_bytes, before.saturating_sub(bytes));
        }
        if !self.partition.is_closed() {
            let partition = self.partition.clone();
            // Waits for readers, who may be slow. What fails is tried again by retention.
            glommio::spawn_local(async move { drop(partition.enforce_retention().await) }).detach();
        }
        Ok(())
    }

    async fn read_headers(
        &mut self,
        segment: &Segment,
    ) -> Result<(SegmentHeader, Option<RewrittenHeader>), Stopped> {
        let sequence = segment.sequence;
        let file = self.partition.segment_file(sequence, segment.nonce).await?;
        let block = self.storage.pool.take(BLOCK_BYTES);
        let (block, read) = self.storage.disk.read(&file.file, 0, block).await?;
        let block = &block[..read.min(BLOCK_BYTES)];
        let damaged = |_| Stopped::Damaged { sequence, position: 0 };
        let header = SegmentHeader::decode(block).map_err(damaged)?;
        let second = match segment.rewritten {
            Some(_) => Some(RewrittenHeader::decode(block).map_err(damaged)?),
            None => None,
        };
        let sound = header.nonce == segment.nonce
            && header.base_offset == segment.base.get()
            && second.is_none_or(|second| second.nonce == segment.nonce);
        if sound { Ok((header, second)) } else { Err(Stopped::Damaged { sequence, position: 0 }) }
    }

    fn is_over(&self) -> bool {
        self.partition.is_closed() || self.store.is_stopping()
    }

    /// Accounts for work since `began_ns` and for bytes of the device, and gives way.
    async fn worked(&mut self, began_ns: u64, bytes: u64) -> Result<(), Stopped> {
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

/// How fast a pass goes; times are nanoseconds of a clock that never goes back.
#[derive(Debug, Default)]
struct Pace {
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

    /// Notes work of `took_ns` on the core and of `bytes` on the device, ended now; the shard has appended so
    /// many bytes so far.
    fn worked(&mut self, now_ns: u64, appended: u64, took_ns: u64, bytes: u64) {
        if appended != self.appended {
            self.appended = appended;
            self.busy_until_ns = now_ns + BUSY_NS;
        }
        let (bytes_per_second, percent) = match now_ns < self.busy_until_ns {
            true => (COMPACTION_BYTES_PER_SECOND_BUSY, COMPACTION_CPU_PERCENT_BUSY),
            false => (COMPACTION_BYTES_PER_SECOND, COMPACTION_CPU_PERCENT),
        };
        self.held_ns += took_ns;
        let rest_ns = took_ns * (100 - percent) / percent;
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
struct Source<D: Disk> {
    file: Rc<OpenSegment<D::File>>,
    segment: Segment,
    position: u64,
    /// What has been read last, and where it begins.
    buffer: Option<(crate::storage::buffer::Buffer, u64, usize)>,
}

impl<D: Disk> Source<D> {
    async fn open(partition: &Rc<Partition<D>>, segment: &Segment) -> Result<Self, Stopped> {
        let file = match partition.segment_file(segment.sequence, segment.nonce).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Stopped::Changed),
            other => other?,
        };
        Ok(Self { file, segment: segment.clone(), position: BLOCK_BYTES as u64, buffer: None })
    }

    /// The next group and its batches.
    async fn next(&mut self, job: &mut Job<'_, D>) -> Result<Option<(GroupHeader, Vec<u8>)>, Stopped> {
        if self.position >= self.segment.end_position {
            return Ok(None);
        }
        let damaged = Stopped::Damaged { sequence: self.segment.sequence, position: self.position };
        let Ok(header) = GroupHeader::decode(self.bytes(job, BLOCK_BYTES).await?) else {
            return Err(damaged);
        };
        let id = job.partition.id();
        let ours = header.nonce == self.segment.nonce
            && (header.topic_id, header.partition) == (id.topic.get(), id.partition.get())
            && header.disk_bytes() <= GROUP_BYTES_MAX as u64
            && self.position + header.disk_bytes() <= self.segment.end_position;
        if !ours {
            return Err(damaged);
        }
        let whole = self.bytes(job, header.disk_bytes() as usize).await?;
        let payload = whole.get(GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + header.payload_bytes as usize);
        match payload.filter(|payload| header.payload_is_sound(payload)) {
            Some(payload) => {
                let payload = payload.to_vec();
                self.position += header.disk_bytes();
                Ok(Some((header, payload)))
            }
            None => Err(damaged),
        }
    }

    /// So many bytes from the current place on; fewer where the file ends.
    async fn bytes(&mut self, job: &mut Job<'_, D>, bytes: usize) -> Result<&[u8], Stopped> {
        let held = self.buffer.as_ref().is_some_and(|(_, start, length)| {
            *start <= self.position && self.position + bytes as u64 <= start + *length as u64
        });
        if !held {
            let left = (self.segment.end_position - self.position) as usize;
            let wanted = bytes.max(READ_BYTES_MAX.min(left));
            // Given back first: it is the next one's memory.
            self.buffer = None;
            let buffer = job.storage.pool.take(wanted);
            let (buffer, read) = job.storage.disk.read(&self.file.file, self.position, buffer).await?;
            count(&job.storage.counters.compaction_read_bytes, read as u64);
            self.buffer = Some((buffer, self.position, read.min(wanted)));
            // Waiting for the device is not work on the core.
            let now_ns = job.storage.environment.monotonic_ns();
            job.worked(now_ns, read as u64).await?;
        }
        let Some((buffer, start, length)) = &self.buffer else { return Ok(&[]) };
        let from = (self.position - start) as usize;
        Ok(&buffer[from.min(*length)..(from + bytes).min(*length)])
    }
}

/// The file that is being written.
struct Output<'a, F> {
    file: &'a F,
    unsynced_bytes: u64,
}

impl<F: Clone + 'static> Output<'_, F> {
    async fn write<D: Disk<File = F>>(&mut self, job: &mut Job<'_, D>, tile: Tile) -> Result<(), Stopped> {
        let bytes = tile.header.disk_bytes();
        let mut buffer = job.storage.pool.take(bytes as usize);
        let end = GROUP_HEADER_BYTES + tile.payload.len();
        tile.header.encode(&mut buffer);
        buffer[GROUP_HEADER_BYTES..end].copy_from_slice(&tile.payload);
        buffer[end..].fill(0);
        job.storage.write_all(self.file, Rc::new(buffer), tile.position, false).await?;
        count(&job.storage.counters.compaction_written_bytes, bytes);
        self.unsynced_bytes += bytes;
        if self.unsynced_bytes >= COMPACTION_SYNC_BYTES {
            self.unsynced_bytes = 0;
            job.storage.disk.sync(self.file).await?;
        }
        let now_ns = job.storage.environment.monotonic_ns();
        job.worked(now_ns, bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_gives_way_to_appends() {
        const MS: u64 = 1_000_000;
        let mut pace = Pace::default();
        // (now, appended so far, work on the core, bytes, how long to wait)
        let rows = [
            (0, 0, 0, COMPACTION_BYTES_PER_SECOND / 100, 10 * MS),
            (10 * MS, 0, 4 * MS, 0, 6 * MS),
            // Something was appended: the slower pace, and for a while longer.
            (100 * MS, 1, 0, COMPACTION_BYTES_PER_SECOND_BUSY / 100, 10 * MS),
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
