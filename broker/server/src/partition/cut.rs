//! Cutting a partition's log, and beginning it anew, durably: what `logic::log::truncation` decides is written here.
//!
//! The log is quiet meanwhile: its replica appends nothing, and housekeeping leaves it alone. Reads go on; what they
//! read is below the high watermark, and that is cut only where something was lost before.

use super::{Dropped, Partition, Work};
use crate::partition::chunk_cache::ChunkCache;
use crate::partition::reader::ReadError;
use crate::partition::walk::{Step, Walk};
use crate::storage::disk::{Disk, Write};
use crate::storage::room::NoRoom;
use crate::storage::{is_no_space, split_write};
use logic::ids::{LeaderEpoch, Offset};
use logic::limits::BLOCK_BYTES;
use logic::log::OpenGroup;
use logic::log::read::ReadFrom;
use logic::log::truncation::{Cut, CutAt};
use schema::record_batch;
use schema::segment::{GROUP_HEADER_BYTES, SegmentHeader, group_bytes};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How often the log is asked whether it has come to rest.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Where a log is to be cut, and what of the group there stays.
struct Place {
    at: CutAt,
    rest: OpenGroup,
    payload: Vec<u8>,
}

impl<D: Disk> Partition<D> {
    /// Discards what is at `to` and above, durably; where the log ends now: there, or below where it can only be cut
    /// there, which is remembered until [`Partition::forget_doubts`]. The memory of the tail cache is given back: its bytes are the second part.
    ///
    /// # Errors
    /// A write or sync failed, or the partition was closed meanwhile.
    pub async fn truncate(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        to: Offset,
    ) -> io::Result<(Offset, usize)> {
        self.begin_cut().await?;
        let nothing = self.with_log(|log| to >= log.log_end());
        let result = match nothing {
            true => Ok((self.with_log(|log| log.log_end()), 0)),
            false => {
                let place = self.find_place(cache, to).await;
                let doubted = place.rest.end < to;
                self.cut(place, doubted).await
            }
        };
        self.cutting.set(false);
        result
    }

    /// Discards everything: the log is empty and begins at `log_start`, durably. Else as [`Partition::truncate`].
    ///
    /// # Errors
    /// As there.
    pub async fn reset(self: &Rc<Self>, log_start: Offset) -> io::Result<(Offset, usize)> {
        self.begin_cut().await?;
        let result = self.cut(self.nothing_stays(log_start), false).await;
        self.cutting.set(false);
        result
    }

    /// Waits until nothing of the log is on its way, and nobody prepares its next blocks. A log that has been closed meanwhile,
    /// or before this was begun, may be another shard's by now.
    async fn begin_cut(&self) -> io::Result<()> {
        self.cutting.set(true);
        while !self.is_closed() && self.is_in_use() {
            self.storage.environment.sleep(LOOK_AGAIN).await;
        }
        if self.is_closed() {
            self.cutting.set(false);
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(())
    }

    fn is_in_use(&self) -> bool {
        self.has_pending()
            || !self.on_the_way.borrow().is_empty()
            || self.is_worked_on(&[Work::Cutting, Work::Reclaiming])
    }

    fn nothing_stays(&self, log_start: Offset) -> Place {
        let rest = OpenGroup { base: log_start, end: log_start, ..self.empty_rest() };
        Place { at: CutAt::Nothing(log_start), rest, payload: Vec::new() }
    }

    fn empty_rest(&self) -> OpenGroup {
        self.with_log(|log| log.empty_group(self.storage.environment.now_ms()))
    }

    /// Where the log can be cut for `to`. Where damage or compaction leaves no place, nothing stays.
    async fn find_place(self: &Rc<Self>, cache: &Rc<ChunkCache>, to: Offset) -> Place {
        let log_start = self.with_log(|log| log.log_start());
        match self.look_for_place(cache, to).await {
            Ok(Some(place)) => place,
            Ok(None) => self.nothing_stays(log_start),
            Err(error) => {
                let label = self.storage.label(self.id());
                self.storage.notice(format!(
                    "{label}: the log cannot be cut at {to} ({error}): it is fetched anew from offset {log_start}"
                ));
                self.nothing_stays(log_start)
            }
        }
    }

    async fn look_for_place(
        self: &Rc<Self>,
        cache: &Rc<ChunkCache>,
        to: Offset,
    ) -> Result<Option<Place>, ReadError> {
        let found = self.with_log(|log| {
            let after = log.segments().partition_point(|segment| segment.base <= to);
            after.checked_sub(1).map(|at| log.segments()[at].clone())
        });
        let Some(segment) =
            found.filter(|segment| segment.rewritten.is_none() && to > self.with_log(|log| log.log_start()))
        else {
            return Ok(None);
        };
        let file = self.segment_file(segment.sequence, segment.nonce).await?;
        let block = self.storage.pool.take(BLOCK_BYTES);
        let (block, read) = self.storage.disk.read(&file.file, 0, block).await?;
        let header = SegmentHeader::decode(&block[..read.min(BLOCK_BYTES)]).ok();
        let Some(header) = header.filter(|header| header.nonce == segment.nonce) else { return Ok(None) };
        let mut cut = Cut {
            sequence: segment.sequence,
            position: BLOCK_BYTES as u64,
            offset: segment.base,
            chain: header.previous_chain,
            max_timestamp_ms: -1,
        };
        let (nonce, end_position) = (segment.nonce, segment.end_position);
        let from = ReadFrom { sequence: segment.sequence, nonce, position: cut.position, end_position };
        let mut walk = Walk::new(self, cache, from);
        walk.one_segment = true;
        loop {
            let group = match walk.next_header().await? {
                Step::Group(group) if group.end_offset <= to.get() && group.base_offset < to.get() => group,
                Step::Group(group) if group.base_offset < to.get() => {
                    return Ok(Some(self.with_rest(cut, to, &mut walk, &group).await?));
                }
                // Here it is cut, or here damage begins: then it ends lower.
                Step::Group(_) | Step::End | Step::Damaged => break,
                Step::Replaced => return Ok(None),
            };
            walk.skip(&group);
            cut.position = walk.from.position;
            cut.offset = Offset::new(group.end_offset);
            cut.chain = group.chain;
            cut.max_timestamp_ms = cut.max_timestamp_ms.max(group.max_timestamp_ms);
        }
        let rest = OpenGroup { base: cut.offset, end: cut.offset, ..self.empty_rest() };
        Ok(Some(Place { at: CutAt::Group(cut), rest, payload: Vec::new() }))
    }

    /// The batches of `group` that end at or below `to` are written again.
    async fn with_rest(
        self: &Rc<Self>,
        cut: Cut,
        to: Offset,
        walk: &mut Walk<'_, D>,
        group: &schema::segment::GroupHeader,
    ) -> Result<Place, ReadError> {
        let mut rest = OpenGroup {
            base: cut.offset,
            end: cut.offset,
            leader_epoch: LeaderEpoch::new(group.leader_epoch),
            ..self.empty_rest()
        };
        let mut payload = Vec::new();
        // Of a damaged one nothing is kept: it ends lower.
        if let Some(rope) = walk.payload(group).await?.filter(|rope| rope.crc() == group.payload_crc) {
            let mut bytes = vec![0; rope.length];
            rope.copy_out(0, &mut bytes);
            let batches = record_batch::batches(&bytes).map_while(Result::ok);
            for (header, batch) in batches.take_while(|(header, _)| header.end_offset() <= to.get()) {
                payload.extend_from_slice(batch);
                rest.end = Offset::new(header.end_offset());
                rest.batch_count += 1;
                rest.max_timestamp_ms = rest.max_timestamp_ms.max(header.max_timestamp_ms);
            }
            // Offsets up to there are of records that compaction has removed.
            rest.payload_bytes = payload.len() as u32;
            rest.payload_crc = crc32c::crc32c(&payload);
        }
        Ok(Place { at: CutAt::Group(cut), rest, payload })
    }

    /// Writes what makes the cut durable, in its order; then the log is what it says. `doubted`: more goes than should, and
    /// what was acknowledged may go with it. That is remembered before it is gone.
    async fn cut(self: &Rc<Self>, place: Place, doubted: bool) -> io::Result<(Offset, usize)> {
        let Place { at, rest, payload } = place;
        let mut no_room = None;
        let mut noted = !doubted;
        while !noted {
            let result = self.note_doubt(rest.end.get()).await;
            noted = result.is_ok();
            self.unless_room_comes(result, &mut no_room).await?;
        }
        while self.with_log(|log| log.placed().is_none()) {
            if self.is_closed() {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if self.placing.get() {
                // Somebody had been about to.
                self.storage.environment.sleep(LOOK_AGAIN).await;
                continue;
            }
            let needed = self.with_log(|log| log.next_segment());
            let result = self.place_segment(needed).await;
            self.unless_room_comes(result, &mut no_room).await?;
        }
        loop {
            let result = self.open_files().await;
            let opened = result.is_ok();
            self.unless_room_comes(result, &mut no_room).await?;
            if opened {
                break;
            }
        }
        let now_ms = self.storage.environment.now_ms();
        let plan = self.with_log(|log| log.plan_cut(at, &rest, now_ms));
        let sequence = plan.opens.sequence;
        let file = self.files.borrow()[&sequence].file.clone();
        let bytes = group_bytes(payload.len());
        let mut group = self.storage.pool.take(bytes);
        group.truncate(bytes);
        group.fill(0);
        plan.group.encode(&mut group);
        group[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        let mut block = self.storage.pool.take(BLOCK_BYTES);
        block.fill(0);
        plan.opens.encode(&mut block);
        // The header is what counts: it comes when everything that it stands for is on the device.
        let piece_bytes = self.storage.policy.write_bytes_max;
        let first = split_write(&file, Rc::new(group), bytes, BLOCK_BYTES as u64, true, piece_bytes);
        self.write_durably(first, &mut no_room).await?;
        let second = split_write(&file, Rc::new(block), BLOCK_BYTES, 0, true, piece_bytes);
        self.write_durably(second, &mut no_room).await?;

        let (cut_off, end) = {
            let mut log = self.log.borrow_mut();
            (log.cut(at, &plan), log.log_end())
        };
        {
            let mut preparation = self.preparation.borrow_mut();
            preparation.closed.extend(match at {
                CutAt::Group(cut) => Some(cut.sequence),
                CutAt::Nothing(_) => None,
            });
            preparation.closed.retain(|closed| !cut_off.iter().any(|segment| segment.sequence == *closed));
            preparation.opened(sequence);
            let end_position = BLOCK_BYTES as u64 + bytes as u64;
            preparation.appended(end_position, bytes as u64, now_ms);
            preparation.durable(sequence, end_position);
        }
        for segment in &cut_off {
            self.files.borrow_mut().remove(&segment.sequence);
            self.storage.read_files.forget(self.id(), Some(segment.nonce));
        }
        self.dropped.borrow_mut().extend(cut_off.iter().map(Dropped::of));
        {
            let mut uncommitted = self.uncommitted.borrow_mut();
            uncommitted.retain(|group| group.base < end);
            if let Some(last) = uncommitted.back_mut() {
                last.end = last.end.min(end);
            }
            let mut table = self.producers.borrow_mut();
            let known = table.len();
            match at {
                CutAt::Group(_) => table.truncate(end),
                CutAt::Nothing(_) => *table = Default::default(),
            }
            self.storage.producers_changed(known, table.len());
        }
        self.checkpointed_end.set(self.checkpointed_end.get().min(end));
        // Until there is one that knows of the cut, a recovery reads everything.
        self.storage.want_checkpoint();
        let mut tail = self.tail.borrow_mut();
        let freed = tail.bytes();
        tail.clear();
        Ok((end, freed))
    }

    async fn write_durably(
        &self,
        writes: Vec<Write<D::File>>,
        no_room: &mut Option<NoRoom<D>>,
    ) -> io::Result<()> {
        loop {
            let result = self.storage.disk.write(writes.clone()).await;
            let written = result.is_ok();
            self.unless_room_comes(result, no_room).await?;
            if written {
                return Ok(());
            }
        }
    }

    /// Passes a result on, unless it is a full disk: waits a moment, after the reserve has been spent.
    async fn unless_room_comes(
        &self,
        result: io::Result<()>,
        no_room: &mut Option<NoRoom<D>>,
    ) -> io::Result<()> {
        match result {
            Err(error) if is_no_space(&error) && !self.is_closed() => {
                if !self.storage.spend_reserve().await {
                    no_room.get_or_insert_with(|| self.storage.wait_for_room()).look_again().await;
                }
                Ok(())
            }
            Err(_) if self.is_closed() => Err(io::ErrorKind::NotConnected.into()),
            other => other,
        }
    }
}
