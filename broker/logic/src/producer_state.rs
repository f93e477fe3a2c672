//! Which batches of which producers a partition has: what makes a batch that is sent again harmless.
//!
//! One table per partition, on its home shard; made by recovery (a checkpoint's summary and the batches behind
//! it), lives as long as the partition. [`ProducerTable::admit`] is asked before a batch gets its offsets and
//! notes it at once: whoever is told [`Admission::Append`] appends.
//!
//! Invariants: the table is a fold of the log, so replaying the log from any earlier summary gives it again. Within
//! one epoch of a producer sequences have no gaps and no repetitions. An answer [`ProducerError::OutOfOrder`] is
//! final: from then on nothing of that epoch is appended, whatever is still under way on some connection; so the
//! producer may send the same records again under the next epoch and they are never there twice. (This is
//! remembered in memory only: what was under way ends with the process.) The newest durable batch of a producer is
//! always known, however many follow it, so a summary can be made at any durable end. Whoever cuts the log reads again
//! what is left of producers of whom all that is remembered is cut ([`ProducerTable::unknown_after_cut`]).
//!
//! Absent on purpose: ids, which the metadata gives; the answer to a duplicate whose original is not durable yet,
//! which has to wait and is the driver's; transactions.

use crate::ids::Offset;
use crate::limits::{PRODUCER_BATCHES_KEPT, PRODUCER_IN_FLIGHT_MAX, PRODUCERS_PER_PARTITION_MAX};
use schema::checkpoint::{ProducerBatchSummary, ProducerSummary};
use schema::record_batch::Header;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Sequences go from here to 0.
const SEQUENCE_MAX: i32 = i32::MAX;
/// A sequence that is ahead by less than this is ahead, by more it is behind.
const SEQUENCES_HALF: i32 = 1 << 30;

/// A durable end above every offset: what is taken in is durable.
const EVERYTHING: Offset = Offset::new(u64::MAX);

/// What a batch says about its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBatch {
    /// The producer, at least 0.
    pub id: i64,
    /// Its epoch, at least 0.
    pub epoch: i16,
    /// Sequence of the first record, at least 0.
    pub first: i32,
    /// Sequence of the last record; below `first` where the numbers begin again.
    pub last: i32,
}

impl ProducerBatch {
    /// What `header` says; `None` for a batch without a producer.
    #[inline]
    pub fn of(header: &Header) -> Option<Self> {
        if header.producer_id < 0 || header.producer_epoch < 0 || header.base_sequence < 0 {
            return None;
        }
        let first = header.base_sequence;
        let last = advance(first, header.last_offset_delta as i32 & SEQUENCE_MAX);
        Some(Self { id: header.producer_id, epoch: header.producer_epoch, first, last })
    }
}

/// A batch that is in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchNote {
    /// Offset of its first record.
    pub base: Offset,
    /// When it was appended, milliseconds since 1970. After a restart: when its flush group was begun.
    pub append_time_ms: i64,
    epoch: i16,
    first: i32,
    last: i32,
}

impl BatchNote {
    /// One past the offset of its last record.
    pub fn end(&self) -> Offset {
        self.base.advance(u64::from(distance(self.first, self.last) as u32) + 1)
    }
}

/// What is to be done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It comes next: it has been noted at the end of the log and must be appended there.
    Append,
    /// It is in the log, perhaps not durably: answer with what is known of it once it is.
    Duplicate(BatchNote),
}

/// Why a batch is not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// Batches before it are missing in its epoch. It is not in the log and, under this epoch, never will be.
    #[error("sequence {found} where {expected} comes next; nothing more of this epoch is taken")]
    OutOfOrder {
        /// What would have come next.
        expected: i32,
        /// Its first sequence.
        found: i32,
    },
    /// Nothing is known of its producer, and it is not the first batch.
    #[error("the producer is not known (any more), and sequence {found} is not its first")]
    Unknown {
        /// Its first sequence.
        found: i32,
    },
    /// A later epoch of its producer has been seen.
    #[error("epoch {found} after epoch {known}")]
    StaleEpoch {
        /// The epoch in force.
        known: i16,
        /// Its own.
        found: i16,
    },
    /// It lies before everything that is remembered of its producer.
    #[error("sequence {found} was appended; where is not remembered")]
    Forgotten {
        /// Its first sequence.
        found: i32,
    },
    /// As many of its producer's batches as may be are appended and not durable.
    #[error("too many batches of this producer are not durable yet")]
    InFlight,
}

/// Where the log stands when a batch is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// The offset that the batch would get.
    pub end: Offset,
    /// Every offset below stays: it is durable, and committed where there are other replicas.
    pub durable_end: Offset,
}

/// What may be remembered for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// `producer.id.expiration.ms`.
    pub expiration_ms: i64,
    /// Producers of this partition, at least 1.
    pub producers_max: usize,
}

/// One producer.
#[derive(Clone, Debug)]
struct Entry {
    /// Oldest first, in the order of the log; at least one. More than [`PRODUCER_BATCHES_KEPT`] only while a follower has not
    /// got them onto its device.
    batches: VecDeque<BatchNote>,
    /// The last epoch of which a batch was refused for a gap: it is over.
    ended_epoch: Option<i16>,
    used_ms: i64,
}

impl Entry {
    fn new(first: BatchNote) -> Self {
        let mut batches = VecDeque::with_capacity(PRODUCER_BATCHES_KEPT);
        batches.push_back(first);
        Self { batches, ended_epoch: None, used_ms: first.append_time_ms }
    }

    fn newest(&self) -> &BatchNote {
        self.batches.back().expect("there is at least one")
    }

    /// Whether another batch would be one too many that are not durable.
    fn is_full(&self, durable_end: Offset) -> bool {
        let oldest_in_flight = self.batches.len().checked_sub(PRODUCER_IN_FLIGHT_MAX);
        oldest_in_flight.is_some_and(|at| at > 0 && self.batches[at].end() > durable_end)
    }

    fn push(&mut self, note: BatchNote, durable_end: Offset) {
        while self.batches.len() >= PRODUCER_BATCHES_KEPT && self.batches[1].end() <= durable_end {
            self.batches.pop_front();
        }
        self.batches.push_back(note);
        if self.batches.len() <= PRODUCER_BATCHES_KEPT && self.batches.capacity() > 8 * PRODUCER_BATCHES_KEPT
        {
            self.batches.shrink_to(PRODUCER_BATCHES_KEPT);
        }
        self.used_ms = self.used_ms.max(note.append_time_ms);
    }

    /// A producer whose batches are still on their way to the device is not silent.
    fn is_expired(&self, now_ms: i64, expiration_ms: i64, durable_end: Offset) -> bool {
        now_ms.saturating_sub(self.used_ms) >= expiration_ms && self.newest().end() <= durable_end
    }

    fn judge(&mut self, batch: &ProducerBatch, durable_end: Offset) -> Result<Admission, ProducerError> {
        let newest = *self.newest();
        if batch.epoch < newest.epoch {
            return Err(ProducerError::StaleEpoch { known: newest.epoch, found: batch.epoch });
        }
        let mut expected = 0;
        if batch.epoch == newest.epoch {
            let same = |note: &&BatchNote| {
                note.epoch == batch.epoch && note.first == batch.first && note.last == batch.last
            };
            if let Some(note) = self.batches.iter().rev().find(same) {
                return Ok(Admission::Duplicate(*note));
            }
            expected = advance(newest.last, 1);
            let behind = distance(expected, batch.first) >= SEQUENCES_HALF;
            if behind && distance(batch.last, newest.last) < SEQUENCES_HALF {
                return Err(ProducerError::Forgotten { found: batch.first });
            }
        }
        let ended = self.ended_epoch.is_some_and(|ended| batch.epoch <= ended);
        if ended || batch.first != expected {
            self.ended_epoch = self.ended_epoch.max(Some(batch.epoch));
            return Err(ProducerError::OutOfOrder { expected, found: batch.first });
        }
        if self.is_full(durable_end) {
            return Err(ProducerError::InFlight);
        }
        Ok(Admission::Append)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ProducerTable {
    producers: BTreeMap<i64, Entry>,
}

impl ProducerTable {
    /// The table of a checkpoint; the batches behind it are to be [replayed](ProducerTable::replay).
    pub fn restore(summaries: &[ProducerSummary]) -> Self {
        let mut table = Self::default();
        for summary in summaries {
            for batch in &summary.batches {
                let note = from_summary(batch);
                table.note(summary.producer_id, note, EVERYTHING, PRODUCERS_PER_PARTITION_MAX);
            }
        }
        table
    }

    /// How many producers are known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// What is to be done with a batch; if it is to be appended, it has been noted at the end of the log.
    pub fn admit(
        &mut self,
        now_ms: i64,
        batch: &ProducerBatch,
        log: LogPlace,
        bounds: Bounds,
    ) -> Result<Admission, ProducerError> {
        let note = BatchNote {
            base: log.end,
            append_time_ms: now_ms,
            epoch: batch.epoch,
            first: batch.first,
            last: batch.last,
        };
        if let Some(entry) = self.producers.get_mut(&batch.id)
            && !entry.is_expired(now_ms, bounds.expiration_ms, log.durable_end)
        {
            let admission = entry.judge(batch, log.durable_end)?;
            entry.used_ms = entry.used_ms.max(now_ms);
            if admission == Admission::Append {
                entry.push(note, log.durable_end);
            }
            return Ok(admission);
        }
        if batch.first != 0 {
            return Err(ProducerError::Unknown { found: batch.first });
        }
        self.producers.remove(&batch.id);
        self.note(batch.id, note, log.durable_end, bounds.producers_max);
        Ok(Admission::Append)
    }

    /// Takes in a durable batch of the log, in the order of the log. One that is known already changes nothing.
    pub fn replay(&mut self, batch: &ProducerBatch, base: Offset, append_time_ms: i64) {
        self.follow(batch, base, append_time_ms, EVERYTHING);
    }

    /// The same of a batch that a leader has admitted, in a log that is durable up to `durable_end`.
    pub fn follow(&mut self, batch: &ProducerBatch, base: Offset, append_time_ms: i64, durable_end: Offset) {
        let ProducerBatch { id, epoch, first, last } = *batch;
        let note = BatchNote { base, append_time_ms, epoch, first, last };
        self.note(id, note, durable_end, PRODUCERS_PER_PARTITION_MAX);
    }

    fn note(&mut self, id: i64, note: BatchNote, durable_end: Offset, producers_max: usize) {
        match self.producers.get_mut(&id) {
            Some(entry) if entry.newest().base < note.base => entry.push(note, durable_end),
            Some(_) => {}
            None => {
                if self.producers.len() >= producers_max {
                    let silent = self.producers.iter().min_by_key(|(_, entry)| entry.used_ms);
                    if let Some(id) = silent.map(|(id, _)| *id) {
                        self.producers.remove(&id);
                    }
                }
                self.producers.insert(id, Entry::new(note));
            }
        }
    }

    /// Takes over what an older summary knows of batches that are not in the log any more: those that lie below
    /// `log_start` and before all that is known of their producers.
    pub fn merge_older(&mut self, summaries: &[ProducerSummary], log_start: Offset) {
        for summary in summaries {
            let entry = self.producers.get(&summary.producer_id);
            if entry.is_none() && self.producers.len() >= PRODUCERS_PER_PARTITION_MAX {
                continue;
            }
            let known: Vec<_> = entry.iter().flat_map(|entry| &entry.batches).copied().collect();
            let until = known.first().map_or(log_start, |oldest| oldest.base.min(log_start));
            let older = summary.batches.iter().map(from_summary).filter(|note| note.end() <= until);
            let mut notes = older.chain(known.iter().copied());
            let Some(first) = notes.next() else { continue };
            let mut merged = Entry::new(first);
            notes.for_each(|note| merged.push(note, EVERYTHING));
            self.producers.insert(summary.producer_id, merged);
        }
    }

    /// Whether batches below `log_start` are known that a checkpoint as of `checkpointed_end` does not tell of:
    /// the segments that hold them must stay until one does.
    pub fn needs_checkpoint(&self, log_start: Offset, checkpointed_end: Offset) -> bool {
        let only_there = |note: &BatchNote| note.end() <= log_start && note.end() > checkpointed_end;
        checkpointed_end < log_start
            && self.producers.values().any(|entry| entry.batches.iter().any(only_there))
    }

    /// Producers of whom a log that is cut at `end` may keep batches that the table would not know: everything that is
    /// remembered of them lies above, and it does not begin with their first batch.
    pub fn unknown_after_cut(&self, end: Offset) -> BTreeSet<i64> {
        let is_unknown = |entry: &Entry| {
            let oldest = entry.batches[0];
            oldest.end() > end && (oldest.epoch, oldest.first) != (0, 0)
        };
        self.producers.iter().filter(|(_, entry)| is_unknown(entry)).map(|(id, _)| *id).collect()
    }

    /// The log ends at `end` now. `kept` is what it holds below of those that are
    /// [unknown](ProducerTable::unknown_after_cut) to the table itself: of each producer the newest batch that is left is known.
    pub fn truncate(&mut self, end: Offset, kept: Self) {
        self.producers.retain(|_, entry| {
            let kept = entry.batches.partition_point(|note| note.end() <= end);
            entry.batches.truncate(kept);
            kept > 0
        });
        self.adopt(kept);
    }

    /// Takes over producers of another table that are not known here; who they were.
    pub fn adopt(&mut self, other: Self) -> BTreeSet<i64> {
        let new: Vec<_> =
            other.producers.into_iter().filter(|(id, _)| !self.producers.contains_key(id)).collect();
        let ids = new.iter().map(|(id, _)| *id).collect();
        self.producers.extend(new);
        ids
    }

    /// Forgets whoever has been silent for too long.
    pub fn expire(&mut self, now_ms: i64, expiration_ms: i64, durable_end: Offset) {
        self.producers.retain(|_, entry| !entry.is_expired(now_ms, expiration_ms, durable_end));
    }

    /// The table as it follows from the log below `durable_end`, by rising ids.
    pub fn summaries(&self, durable_end: Offset) -> Vec<ProducerSummary> {
        let summary = |(id, entry): (&i64, &Entry)| {
            let durable = entry.batches.partition_point(|note| note.end() <= durable_end);
            let newest = durable.saturating_sub(PRODUCER_BATCHES_KEPT)..durable;
            let batches: Vec<_> = entry.batches.range(newest).map(to_summary).collect();
            (!batches.is_empty()).then_some(ProducerSummary { producer_id: *id, batches })
        };
        self.producers.iter().filter_map(summary).collect()
    }
}

/// The sequence that is `by` records later.
fn advance(sequence: i32, by: i32) -> i32 {
    sequence.wrapping_add(by) & SEQUENCE_MAX
}

/// Records from sequence `from` to sequence `to`, going round.
fn distance(from: i32, to: i32) -> i32 {
    to.wrapping_sub(from) & SEQUENCE_MAX
}

fn to_summary(note: &BatchNote) -> ProducerBatchSummary {
    ProducerBatchSummary {
        base_offset: note.base.get(),
        append_time_ms: note.append_time_ms,
        first_sequence: note.first,
        last_sequence: note.last,
        epoch: note.epoch,
    }
}

fn from_summary(batch: &ProducerBatchSummary) -> BatchNote {
    BatchNote {
        base: Offset::new(batch.base_offset),
        append_time_ms: batch.append_time_ms,
        epoch: batch.epoch,
        first: batch.first_sequence,
        last: batch.last_sequence,
    }
}

#[cfg(test)]
#[path = "producer_state_tests.rs"]
mod tests;
