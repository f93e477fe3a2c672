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

use crate::background::{Rate, Rates, Source, Stopped, Work};
use crate::partition::{CompactionState, Partition};
use crate::storage::disk::Disk;
use crate::storage::{count, is_no_space};
use crate::store::Store;
use logic::ids::Offset;
use logic::limits::{
    BLOCK_BYTES, COMPACTION_BYTES_PER_SECOND, COMPACTION_BYTES_PER_SECOND_BUSY, COMPACTION_CPU_PERCENT,
    COMPACTION_CPU_PERCENT_BUSY, COMPACTION_LOOK_MS, COMPACTION_RETRY_MS, COMPACTION_SYNC_BYTES,
};
use logic::log::append::{Rewritten, Segment};
use logic::log::compaction::{self, CompactionSettings, Left, Look, Pass};
use logic::log::tiles::{SourcesEnd, Tile, Tiles};
use logic::rules::{Rule, holds};
use schema::record_batch::{self, Header};
use schema::segment::{Footer, GROUP_HEADER_BYTES, RewrittenHeader, SegmentHeader};
use std::io;
use std::path::Path;
use std::rc::Rc;

const RATES: Rates = Rates {
    idle: Rate { bytes_per_second: COMPACTION_BYTES_PER_SECOND, cpu_percent: COMPACTION_CPU_PERCENT },
    busy: Rate {
        bytes_per_second: COMPACTION_BYTES_PER_SECOND_BUSY,
        cpu_percent: COMPACTION_CPU_PERCENT_BUSY,
    },
};

impl<D: Disk> Store<D> {
    /// Compacts the log that needs it most; whether there was one.
    pub async fn compact(self: &Rc<Self>) -> bool {
        let now_ms = self.storage.environment.now_ms();
        let due = self.due(&self.storage.compaction).into_iter().filter_map(|partition| {
            let settings = partition.settings().compaction?;
            if partition.is_closed() {
                return None;
            }
            let look = partition.with_log(|log| compaction::look(log, &settings, now_ms));
            let (is_due, retry_after_ms) = (look.is_due(&settings), partition.compaction().retry_after_ms);
            // One that is due stays so until it has been compacted.
            let next_ms = if is_due { now_ms } else { look.next_ms };
            if next_ms < i64::MAX {
                self.storage.compaction.put_down(partition.id(), next_ms.max(retry_after_ms));
            }
            (is_due && retry_after_ms <= now_ms).then_some((partition, settings, look))
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
    work: Work<'a, D>,
}

impl<'a, D: Disk> Job<'a, D> {
    fn new(store: &'a Rc<Store<D>>, partition: &'a Rc<Partition<D>>) -> Self {
        let read_bytes = &store.storage.counters.compaction_read_bytes;
        Self { work: Work::new(store, partition, RATES, read_bytes) }
    }

    async fn pass(&mut self, look: &Look, settings: &CompactionSettings) -> Result<(), Stopped> {
        let environment = self.work.storage.environment.clone();
        let mut pass = Pass::new(look, settings, environment.now_ms(), environment.nonce());
        self.learn(&mut pass, look).await?;
        let until = pass.learned_until();
        let bytes_max = self.work.partition.settings().log.physical_bytes();
        let groups = self.work.partition.with_log(|log| compaction::group_by(log, until, bytes_max));
        for group in groups {
            self.rewrite(&group, &mut pass).await?;
        }
        let counts = pass.counts();
        let counters = &self.work.storage.counters;
        count(&counters.compaction_passes, 1);
        let removed = counts.superseded + counts.tombstones + counts.without_key;
        count(&counters.compaction_removed_records, removed);
        tracing::debug!(
            "{}: compacted below {until}: {counts:?}",
            self.work.storage.label(self.work.partition.id())
        );
        Ok(())
    }

    /// Learns the keys of the dirty segments, as far as memory goes.
    async fn learn(&mut self, pass: &mut Pass, look: &Look) -> Result<(), Stopped> {
        let dirty: Vec<Segment> = self.work.partition.with_log(|log| {
            let next = log.segments().iter().skip(1).map(|next| next.base);
            let pairs = log.segments().iter().zip(next);
            let dirty = pairs.filter(|(own, end)| *end > look.first_dirty && own.base < look.end);
            dirty.map(|(own, _)| own.clone()).collect()
        });
        let learned = if holds(Rule::LearnAll) { dirty.len() } else { 1 };
        for segment in dirty.into_iter().take(learned) {
            let mut source = Source::open(self.work.partition, &segment).await?;
            while let Some((group, payload)) = source.next(&mut self.work).await? {
                if group.end_offset <= look.first_dirty.get() {
                    continue;
                }
                for batch in record_batch::batches(&payload) {
                    let began_ns = self.work.storage.environment.monotonic_ns();
                    let learned = batch.and_then(|(_, batch)| pass.learn(batch));
                    let learned =
                        learned.map_err(|error| Stopped::Batch { sequence: segment.sequence, error })?;
                    self.work.worked(began_ns, 0).await?;
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
        let (sources, end) = self.work.partition.with_log(|log| {
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
        let behind = |own: &Self| own.work.partition.with_log(|log| log.is_behind_checkpoint(last.name()));
        if !behind(self) && holds(Rule::WaitForCheckpoint) {
            self.work.store.checkpoint_now().await?;
            if !behind(self) {
                return Err(Stopped::Changed);
            }
        }
        let (path, file) = self.work.storage.create_unnamed().await?;
        let written = self.write(&file, &sources, end, pass).await;
        let segment = match written {
            Ok(segment) => segment,
            Err(error) => {
                // In steps, because it may be large; what stays goes at the next start.
                let _ = self.work.storage.reclaim(&path, 0, u64::MAX).await;
                return Err(error);
            }
        };
        drop(file);
        self.put_in_place(&path, &sources, segment).await.inspect(|()| {
            tracing::debug!("{}: {} to {} rewritten", self.work.partition.id(), first.name(), last.name());
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
        let nonce = self.work.storage.environment.nonce();
        let (oldest, newest) = (&sources[0], &sources[sources.len() - 1]);
        let (header, _) = self.read_headers(oldest).await?;
        let mut tiles = Tiles::new(self.work.partition.identity(), header, nonce);
        let mut output = Output { file, unsynced_bytes: 0 };
        let mut chain = header.previous_chain;
        for segment in sources {
            let mut source = Source::open(self.work.partition, segment).await?;
            while let Some((group, payload)) = source.next(&mut self.work).await? {
                chain = group.chain;
                if let Some(tile) = tiles.source(&group) {
                    output.write(&mut self.work, tile).await?;
                }
                for batch in record_batch::batches(&payload) {
                    let wrong = |error| Stopped::Batch { sequence: segment.sequence, error };
                    let began_ns = self.work.storage.environment.monotonic_ns();
                    let (header, batch) = batch.map_err(wrong)?;
                    let tile = match pass.filter(batch).map_err(wrong)? {
                        Left::Unchanged => tiles.batch(batch, &header),
                        Left::Fewer(fewer) => tiles.batch(&fewer, &Header::decode(&fewer).map_err(wrong)?),
                        Left::Gone => None,
                    };
                    self.work.worked(began_ns, 0).await?;
                    if let Some(tile) = tile {
                        output.write(&mut self.work, tile).await?;
                    }
                }
            }
        }
        if let Some(tile) = tiles.last(end.get()) {
            output.write(&mut self.work, tile).await?;
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
        let mut footer = self.work.storage.pool.take(Footer::disk_bytes(entries.len()));
        footer.fill(0);
        Footer::encode(header.nonce, entries, &mut footer);
        self.work.storage.write_all(file, Rc::new(footer), tiles.end_position(), false).await?;
        let mut block = self.work.storage.pool.take(BLOCK_BYTES);
        block.fill(0);
        header.encode(&mut block);
        second.encode(&mut block);
        self.work.storage.write_all(file, Rc::new(block), 0, false).await?;
        if holds(Rule::SyncBeforeName) {
            self.work.storage.disk.sync(file).await?;
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
        if self.work.is_over() {
            let _ = self.work.storage.reclaim(path, 0, u64::MAX).await;
            return Err(Stopped::Closed);
        }
        let (name, bytes) = (segment.name(), segment.end_position);
        let identity = self.work.partition.identity();
        let failed = |error: io::Error| -> ! {
            self.work.storage.fail("naming a compacted segment", Some(self.work.partition.id()), &error)
        };
        match self.work.storage.give_name(path, &identity, name).await {
            Ok(()) => {}
            // The log is as it was, and a file without a name in it is nobody's.
            Err(error) if is_no_space(&error) => {
                let _ = self.work.storage.reclaim(path, 0, u64::MAX).await;
                return Err(error.into());
            }
            Err(error) => failed(error),
        }
        if holds(Rule::SyncNames)
            && let Err(error) = self.work.storage.sync_names(&identity).await
        {
            // Whether the name is there after a crash is unknown, and what comes next depends on it.
            failed(error);
        }
        let nonces: Vec<u64> = sources.iter().map(|source| source.nonce).collect();
        if self.work.partition.replace_segments(&nonces, segment) {
            let before: u64 = sources.iter().map(|source| source.end_position).sum();
            count(&self.work.storage.counters.compaction_removed_bytes, before.saturating_sub(bytes));
        }
        if !self.work.partition.is_closed() {
            let partition = self.work.partition.clone();
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
        let file = self.work.partition.segment_file(sequence, segment.nonce).await?;
        let block = self.work.storage.pool.take(BLOCK_BYTES);
        let (block, read) = self.work.storage.disk.read(&file.file, 0, block).await?;
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
}

/// The file that is being written.
struct Output<'a, F> {
    file: &'a F,
    unsynced_bytes: u64,
}

impl<F: Clone + 'static> Output<'_, F> {
    async fn write<D: Disk<File = F>>(&mut self, work: &mut Work<'_, D>, tile: Tile) -> Result<(), Stopped> {
        let bytes = tile.header.disk_bytes();
        let mut buffer = work.storage.pool.take(bytes as usize);
        let end = GROUP_HEADER_BYTES + tile.payload.len();
        tile.header.encode(&mut buffer);
        buffer[GROUP_HEADER_BYTES..end].copy_from_slice(&tile.payload);
        buffer[end..].fill(0);
        work.storage.write_all(self.file, Rc::new(buffer), tile.position, false).await?;
        count(&work.storage.counters.compaction_written_bytes, bytes);
        self.unsynced_bytes += bytes;
        if self.unsynced_bytes >= COMPACTION_SYNC_BYTES {
            self.unsynced_bytes = 0;
            work.storage.disk.sync(self.file).await?;
        }
        let now_ns = work.storage.environment.monotonic_ns();
        work.worked(now_ns, bytes).await
    }
}
