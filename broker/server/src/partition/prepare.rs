//! Keeps blocks written ahead of the append position, so that a round costs a device flush and no
//! metadata of the file system, nor its journal where it has one.
//!
//! State of one partition. A file is *published* up to where its blocks are written and its extents and
//! length synced; writes below that may share one flush, writes behind it must be durable by themselves.
//! Zeroing goes on contiguously from the published end, in the background, only while the appends are
//! slower than it: a fast log overtakes it, and its own durable writes publish its blocks.

use crate::partition::Partition;
use crate::storage::disk::Disk;
use logic::limits::{
    BLOCK_BYTES, PREWRITE_BYTES_MAX, PREWRITE_BYTES_MIN, PREWRITE_BYTES_PER_SECOND, PREWRITE_CHUNK_BYTES,
    PREWRITE_SLOW_BYTES_PER_SECOND,
};
use std::io;
use std::ops::Range;

/// What is known of the blocks ahead.
#[derive(Debug)]
pub struct Preparation {
    /// (sequence, published end) of the active segment.
    active: Option<(u64, u64)>,
    /// The same of one placed ahead.
    ahead: Option<(u64, u64)>,
    /// Sealed segments whose published end is known from this life.
    sealed: Vec<(u64, u64)>,
    /// Where appends stand in the active segment.
    end_position: u64,
    zeroing: Option<Range<u64>>,
    /// A group waits for the place that is being zeroed.
    held_back: bool,
    busy: bool,
    second_began_ms: i64,
    second_bytes: u64,
    last_second_bytes: u64,
    /// Segments that were left and have no index footer yet.
    pub closed: Vec<u64>,
}

impl Preparation {
    /// Nothing is known yet.
    pub fn new(now_ms: i64) -> Self {
        Self {
            active: None,
            ahead: None,
            sealed: Vec::new(),
            end_position: 0,
            zeroing: None,
            held_back: false,
            busy: false,
            second_began_ms: now_ms,
            second_bytes: 0,
            last_second_bytes: 0,
            closed: Vec::new(),
        }
    }

    /// A segment is in place, published up to `published_end`.
    pub fn placed(&mut self, sequence: u64, published_end: u64) {
        self.ahead = Some((sequence, published_end));
    }

    /// An unopened segment that was found in place: only what is written before it gets its name is
    /// known to be published.
    pub fn found_placed(&mut self, sequence: u64) {
        if self.ahead.is_none_or(|(ahead, _)| ahead != sequence) {
            self.ahead = Some((sequence, PREWRITE_BYTES_MIN));
        }
    }

    /// The active segment's file is open again, the log ends at `end_position`; published up to there
    /// unless more is known from before.
    pub fn resumed(&mut self, sequence: u64, end_position: u64) {
        if self.active.is_none_or(|(active, _)| active != sequence) {
            self.active = Some((sequence, end_position));
            self.end_position = end_position;
        }
    }

    /// The log has rolled into the placed segment.
    pub fn opened(&mut self, sequence: u64) {
        let ahead = self.ahead.take_if(|(ahead, _)| *ahead == sequence);
        if let Some((old, published_end)) = self.active {
            self.sealed.push((old, published_end.max(self.end_position)));
        }
        self.active = Some(ahead.unwrap_or((sequence, 0)));
        self.end_position = BLOCK_BYTES as u64;
    }

    /// A group was placed that ends at `end_position`; whether its blocks are published.
    pub fn appended(&mut self, end_position: u64, bytes: u64, now_ms: i64) -> bool {
        self.end_position = end_position;
        if now_ms - self.second_began_ms >= 1000 {
            self.last_second_bytes =
                if now_ms - self.second_began_ms >= 2000 { 0 } else { self.second_bytes };
            self.second_began_ms = now_ms;
            self.second_bytes = 0;
        }
        self.second_bytes += bytes;
        self.active.is_some_and(|(_, published)| end_position <= published)
    }

    /// Whether a group must wait because its place is being zeroed at this moment. The zeroing ends with
    /// the chunk that it is at.
    pub fn holds_back(&mut self, position: u64, bytes: u64) -> bool {
        let holds_back =
            self.zeroing.as_ref().is_some_and(|range| position < range.end && range.start < position + bytes);
        self.held_back |= holds_back;
        holds_back
    }

    /// Whether a preparation is under way.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Everything of a segment below `position` is durable, and so its blocks are published.
    pub fn durable(&mut self, sequence: u64, position: u64) {
        if let Some((active, published)) = &mut self.active
            && *active == sequence
        {
            *published = (*published).max(position);
        }
    }

    /// The published end of a sealed segment that is being dropped.
    pub fn forget(&mut self, sequence: u64) -> Option<u64> {
        let at = self.sealed.iter().position(|(sealed, _)| *sealed == sequence)?;
        Some(self.sealed.swap_remove(at).1)
    }

    /// What to zero next: at most `physical_bytes`, nothing if enough is ahead or the log is too fast.
    fn wanted(&self, physical_bytes: u64) -> Option<(u64, Range<u64>)> {
        let (sequence, published) = self.active?;
        let rate = self.last_second_bytes.max(self.second_bytes);
        if self.busy || rate > PREWRITE_BYTES_PER_SECOND / 2 || published < self.end_position {
            return None;
        }
        let seconds = if rate < PREWRITE_SLOW_BYTES_PER_SECOND { 4 } else { 2 };
        let ahead = (seconds * rate).clamp(PREWRITE_BYTES_MIN, PREWRITE_BYTES_MAX);
        if published - self.end_position >= rate.clamp(PREWRITE_BYTES_MIN / 2, PREWRITE_BYTES_MAX / 2) {
            return None;
        }
        let target = (self.end_position + ahead).next_multiple_of(BLOCK_BYTES as u64).min(physical_bytes);
        (target > published).then_some((sequence, published..target))
    }
}

impl<D: Disk> Partition<D> {
    /// Whether blocks should be written ahead now.
    pub fn wants_preparation(&self) -> bool {
        let physical = self.settings.get().log.physical_bytes();
        let stays = !self.closed.get() && !self.cutting.get() && !self.winds_down();
        stays && self.preparation.borrow().wanted(physical).is_some()
    }

    /// Writes zeros ahead, at the background's pace, and publishes them. `pass` is called as soon as a group that was held
    /// back has its place: it does not wait for what publishes the zeros too.
    pub async fn prepare_ahead(&self, pass: impl Fn()) -> io::Result<()> {
        let physical = self.settings.get().log.physical_bytes();
        let Some((sequence, range)) = self.preparation.borrow().wanted(physical) else { return Ok(()) };
        let Some(segment) = self.files.borrow().get(&sequence).cloned() else { return Ok(()) };
        let mut from = range.start;
        let mut result = Ok(());
        {
            let mut preparation = self.preparation.borrow_mut();
            preparation.busy = true;
            preparation.held_back = false;
        }
        while from < range.end && result.is_ok() {
            let to = range.end.min(from + PREWRITE_CHUNK_BYTES as u64);
            // Until its turn comes nothing is being zeroed: groups may pass.
            self.storage.wait_zeroing_turn(to - from).await;
            {
                let mut preparation = self.preparation.borrow_mut();
                let overtaken = preparation.active.is_none_or(|(active, _)| active != sequence)
                    || preparation.end_position > from;
                if overtaken || self.closed.get() || self.winds_down() {
                    break;
                }
                preparation.zeroing = Some(from..to);
            }
            result = self.storage.zero(&segment.file, from, to).await;
            from = to;
            let held_back = {
                let mut preparation = self.preparation.borrow_mut();
                preparation.zeroing = None;
                preparation.held_back
            };
            if held_back {
                pass();
                break;
            }
        }
        // A file that is closed under its groups keeps what was published before.
        if result.is_ok() {
            result = self.storage.disk.sync(&segment.file).await;
        }
        let mut preparation = self.preparation.borrow_mut();
        preparation.busy = false;
        result?;
        preparation.durable(sequence, from);
        Ok(())
    }
}
