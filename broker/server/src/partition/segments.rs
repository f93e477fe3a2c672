//! The files of a partition's segments: put in place, opened, dropped by retention, removed with their topic.
//!
//! A file in use by a reader is neither recycled nor removed: every handle counts its use. Dropped segments go
//! in the order in which the log left them, each name gone for good before the next, so that after a crash a gap is
//! a loss and nothing else, and what has been rewritten does not outlive what stands for it.

use super::{CompactionState, Dropped, Partition};
use crate::storage::OpenSegment;
use crate::storage::disk::Disk;
use logic::ids::Offset;
use logic::log::append::{Segment, SegmentNeeded};
use logic::log::{SegmentName, retention};
use logic::rules::{Rule, holds};
use std::io;
use std::rc::Rc;

impl<D: Disk> Partition<D> {
    /// Puts the next segment in place, unless that has been done or is being done.
    pub async fn place_segment(&self, needed: SegmentNeeded) -> io::Result<()> {
        // What was needed when it was asked for may be in place by now: a second file of the same number
        // would replace a segment that is written to.
        if self.closed.get() || !self.log.borrow().awaits_segment(needed.sequence) {
            return Ok(());
        }
        if self.placing.replace(true) {
            return Ok(());
        }
        let incarnation = self.log.borrow().incarnation();
        let placed = self.storage.place_segment(&self.identity, incarnation, needed).await;
        self.placing.set(false);
        let placed = placed?;
        self.keep_open((needed.sequence, placed.nonce), placed.file);
        self.preparation.borrow_mut().placed(needed.sequence, placed.prewritten_end);
        self.log.borrow_mut().segment_placed(needed.sequence, placed.nonce);
        Ok(())
    }

    /// Whether a segment is being put in place.
    pub fn is_placing(&self) -> bool {
        self.placing.get()
    }

    pub(super) fn keep_open(&self, (sequence, nonce): (u64, u64), file: D::File) {
        let segment = Rc::new(OpenSegment { file, used: self.begin_use(nonce) });
        self.files.borrow_mut().insert(sequence, segment);
    }

    pub(super) fn begin_use(&self, nonce: u64) -> Rc<()> {
        self.uses.borrow_mut().entry(nonce).or_default().clone()
    }

    /// The segment that should be put in place ahead of need, if none is on its way.
    pub fn segment_wanted(&self) -> Option<SegmentNeeded> {
        if self.placing.get() || self.closed.get() || self.cutting.get() || self.winds_down() {
            return None;
        }
        self.log.borrow().segment_wanted()
    }

    pub(super) async fn open_files(&self) -> io::Result<()> {
        let (active, placed) = {
            let log = self.log.borrow();
            let active = log.segments().back();
            let active = active.map(|active| (active.sequence, active.nonce, Some(active.end_position)));
            (active, log.placed().map(|(sequence, nonce)| (sequence, nonce, None)))
        };
        for (sequence, nonce, end_position) in active.into_iter().chain(placed) {
            if self.files.borrow().contains_key(&sequence) {
                continue;
            }
            let path = self.segment_path(SegmentName::appended(sequence));
            let file = self.storage.disk.open(&path).await?;
            self.storage.disk.sync(&file).await?;
            self.keep_open((sequence, nonce), file);
            // The length says nothing: a crash leaves holes where a write was lost and a later one was
            // not. What is sound up to the log's end is written, and so are the blocks that every
            // segment has before it gets its name.
            let mut preparation = self.preparation.borrow_mut();
            match end_position {
                Some(end_position) => preparation.resumed(sequence, end_position),
                None => preparation.found_placed(sequence),
            }
        }
        Ok(())
    }

    /// Closes files that an idle partition does not need; they are opened again on demand.
    pub fn close_idle_files(&self) {
        let idle = self.pending.borrow().is_empty()
            && self.on_the_way.borrow().is_empty()
            && !self.placing.get()
            && !self.preparation.borrow().is_busy();
        if idle {
            self.files.borrow_mut().clear();
        }
    }

    /// Whether this partition keeps files open.
    pub fn has_open_files(&self) -> bool {
        !self.files.borrow().is_empty()
    }

    /// Applies retention; reclaims the files that went, when their readers have finished.
    pub async fn enforce_retention(&self) -> io::Result<u64> {
        if self.closed.get() || self.cutting.get() || self.winds_down() {
            return Ok(0);
        }
        let now_ms = self.storage.environment.now_ms();
        let start = {
            let log = self.log.borrow();
            // Where another broker leads, its log's start is followed.
            let own = self.standing.get().leads;
            let by_settings =
                own.then(|| retention::new_log_start(&log, self.settings.get().retention, now_ms)).flatten();
            // Below a start that was moved before, a segment may have been left since.
            by_settings.unwrap_or(log.log_start()).min(log.high_watermark())
        };
        let dropped = self.advance_start(start);
        self.reclaim_dropped().await?;
        Ok(dropped)
    }

    /// When [`Partition::enforce_retention`], which has just run, is to run again although nobody appends; `None` = never.
    pub fn next_retention_ms(&self) -> Option<i64> {
        let now_ms = self.storage.environment.now_ms();
        let log = self.log.borrow();
        // A file that could not go yet, a segment below the log's start that is not durable yet.
        let is_left = log.segments().get(1).is_some_and(|second| second.base <= log.log_start());
        match is_left || !self.dropped.borrow().is_empty() || self.cutting.get() || self.winds_down() {
            true => Some(now_ms),
            false if self.standing.get().leads => {
                retention::next_look_ms(&log, self.settings.get().retention, now_ms)
            }
            false => None,
        }
    }

    /// Moves the log's start to `before` (`None` = the high watermark) because somebody wants the records below
    /// it gone; the start from now on, `None` if `before` is above the high watermark. Durable with the next
    /// checkpoint; files go with the next look of retention.
    pub fn delete_before(&self, before: Option<Offset>) -> Option<Offset> {
        let end = self.high_watermark();
        let before = before.unwrap_or(end);
        if before > end {
            return None;
        }
        self.advance_start(before);
        Some(self.with_log(|log| log.log_start()))
    }

    /// Moves the log's start; the number of segments that went.
    pub(super) fn advance_start(&self, start: Offset) -> u64 {
        let dropped = self.log.borrow_mut().advance_start(start);
        let mut all = self.dropped.borrow_mut();
        match holds(Rule::OldestFirst) {
            true => all.extend(dropped.iter().map(Dropped::of)),
            false => dropped.iter().for_each(|segment| all.push_front(Dropped::of(segment))),
        }
        if !dropped.is_empty() {
            self.is_to_be_looked_at();
        }
        dropped.len() as u64
    }

    /// Puts a rewritten segment, which has its name durably, where its sources are; their files go when their
    /// readers have finished. `false` if retention has taken them all meanwhile: then it goes as well.
    pub(crate) fn replace_segments(&self, sources: &[u64], segment: Segment) -> bool {
        let new = Dropped::of(&segment);
        let replaced = self.log.borrow_mut().replace(sources, segment);
        let mut dropped = self.dropped.borrow_mut();
        match &replaced {
            Some(old) => {
                for segment in old {
                    self.files.borrow_mut().remove(&segment.sequence);
                    self.storage.read_files.forget(self.id(), Some(segment.nonce));
                }
                dropped.extend(old.iter().map(Dropped::of));
            }
            // Behind its sources, so that after a crash they do not stand there without it.
            None => dropped.push_back(new),
        }
        self.is_to_be_looked_at();
        replaced.is_some()
    }

    /// Begins to rewrite segments, unless somebody does. [`Partition::end_compaction`] must follow.
    pub(crate) fn begin_compaction(&self) -> bool {
        let waits_for_footer = !self.preparation.borrow().closed.is_empty();
        let damaged = self.with_log(|log| !log.damaged().is_empty());
        let busy =
            self.closed.get() || self.cutting.get() || self.winds_down() || waits_for_footer || damaged;
        !busy && !self.compacting.replace(true)
    }

    /// Has rewritten segments, or given it up.
    pub(crate) fn end_compaction(&self, state: CompactionState) {
        self.compacting.set(false);
        self.compaction.set(state);
    }

    /// What is remembered of compaction.
    pub fn compaction(&self) -> CompactionState {
        self.compaction.get()
    }

    /// Reclaims the files of dropped segments, once what they say about producers stands in a checkpoint: by
    /// one task, oldest first, each name gone for good before
    /// the next. After a crash a gap would look like a loss.
    pub(super) async fn reclaim_dropped(&self) -> io::Result<()> {
        if self.reclaiming.replace(true) {
            return Ok(());
        }
        let mut result = Ok(());
        while result.is_ok() {
            let Some(Dropped { name, nonce, end_position }) = self.dropped.borrow().front().copied() else {
                break;
            };
            // Where it goes, what is left is found and reclaimed.
            if !self.outlive_dropped_segments() || self.winds_down() {
                break;
            }
            if let Some(nonce) = nonce {
                self.wait_for_readers(name.first, nonce).await;
            }
            let published_end = match name.is_rewritten() {
                false => self.preparation.borrow_mut().forget(name.first),
                true => None,
            };
            let published_end = published_end.unwrap_or(end_position);
            let want_bytes = self.settings.get().log.physical_bytes();
            result = match self.storage.reclaim(&self.segment_path(name), published_end, want_bytes).await {
                // An earlier attempt came so far.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            if result.is_ok() {
                self.dropped.borrow_mut().pop_front();
            }
        }
        self.reclaiming.set(false);
        result
    }

    /// Removes the files that were found when the log was opened and do not belong to it. Before anybody else has the
    /// partition, and where a checkpoint on the device says what it was opened from.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub async fn remove_leftovers(&self) -> io::Result<()> {
        loop {
            let Some(left_over) = self.dropped.borrow_mut().pop_front() else { return Ok(()) };
            let removed = self.storage.reclaim(&self.segment_path(left_over.name), 0, u64::MAX).await;
            // Then nobody has it: it is opened again, or the process ends.
            removed.inspect_err(|_| self.close())?;
        }
    }

    /// Takes a segment's handle out of use and waits until nobody reads through it.
    pub(super) async fn wait_for_readers(&self, sequence: u64, nonce: u64) {
        self.files.borrow_mut().remove(&sequence);
        self.storage.read_files.forget(self.id(), Some(nonce));
        let is_used = || self.uses.borrow().get(&nonce).is_some_and(|used| Rc::strong_count(used) > 1);
        while is_used() && holds(Rule::WaitForReaders) {
            self.storage.environment.sleep(std::time::Duration::from_millis(5)).await;
        }
        self.uses.borrow_mut().remove(&nonce);
    }

    /// Removes all files of a closed partition whose topic has been deleted.
    pub async fn delete_files(&self) -> io::Result<()> {
        assert!(self.closed.get(), "files of the open partition {} deleted", self.id());
        // What no round writes to goes first: on a full disk rounds of others may wait for just this room. Its own
        // groups are given up there, so the wait behind this ends.
        let (durable_sequence, _) = self.log.borrow().durable_position();
        let sealed: Vec<(SegmentName, u64)> = self
            .log
            .borrow()
            .segments()
            .iter()
            .filter(|segment| segment.sequence < durable_sequence)
            .map(|segment| (segment.name(), segment.nonce))
            .collect();
        for (name, nonce) in sealed {
            self.wait_for_readers(name.first, nonce).await;
            self.storage.reclaim(&self.segment_path(name), 0, u64::MAX).await?;
        }
        while self.is_busy() {
            self.storage.environment.sleep(std::time::Duration::from_millis(1)).await;
        }
        let files = std::mem::take(&mut *self.files.borrow_mut());
        let mut open: Vec<u64> = self.uses.borrow().keys().copied().collect();
        open.sort_unstable();
        // What is appended to is in use by this map alone.
        drop(files);
        for nonce in open {
            self.wait_for_readers(u64::MAX, nonce).await;
        }
        self.storage.remove_log_directory(&self.directory).await
    }
}

impl Dropped {
    pub(super) fn of(segment: &Segment) -> Self {
        Self { name: segment.name(), nonce: Some(segment.nonce), end_position: segment.end_position }
    }

    /// A file that was found when the log was opened.
    pub(super) fn left_over(name: SegmentName) -> Self {
        Self { name, nonce: None, end_position: 0 }
    }
}
