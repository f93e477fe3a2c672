//! The sparse index of a segment: one entry per so many bytes, by offset and by timestamp.
//!
//! Owned by the segment's log. An entry points at the start of a group; what lies between two entries
//! is found by reading. Losing it costs a scan, never data.

use crate::ids::Offset;
use crate::limits::INDEX_INTERVAL_BYTES;
use schema::segment::IndexEntry;

/// Entries in the order of offsets and positions alike.
#[derive(Clone, Debug, Default)]
pub struct Index {
    entries: Vec<IndexEntry>,
    /// It knows nothing of what is before its first entry, nor of timestamps.
    is_part: bool,
}

impl Index {
    /// An index read back from a footer.
    pub fn from_entries(entries: Vec<IndexEntry>) -> Self {
        Self { entries, is_part: false }
    }

    /// An index of the end of a segment alone: groups by offset and position, in order. It is added to like any other.
    pub fn of_end(groups: impl IntoIterator<Item = (Offset, u64)>) -> Self {
        let mut index = Self { entries: Vec::new(), is_part: true };
        groups.into_iter().for_each(|(offset, position)| index.note(offset, position, -1));
        index
    }

    /// Whether it is of the whole segment: then what it has nothing for is at the segment's start, if anywhere.
    pub fn is_whole(&self) -> bool {
        !self.is_part
    }

    /// The entries, for a footer.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Notes a group at `position`, whose first record is `offset`; keeps it if it is far enough from
    /// the entry before. `max_timestamp_before_ms` is the largest timestamp of the segment so far.
    pub fn note(&mut self, offset: Offset, position: u64, max_timestamp_before_ms: i64) {
        if self.entries.last().is_none_or(|last| position >= last.position + INDEX_INTERVAL_BYTES) {
            self.entries.push(IndexEntry { offset: offset.get(), position, max_timestamp_before_ms });
        }
    }

    /// Groups at `position` and behind are gone.
    pub fn truncate(&mut self, position: u64) {
        self.entries.retain(|entry| entry.position < position);
    }

    /// A position at or before the group that holds `offset`; `None` if the index has nothing so early.
    pub fn position_of(&self, offset: Offset) -> Option<u64> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset.get());
        after.checked_sub(1).map(|at| self.entries[at].position)
    }

    /// A position at or before the first group with a timestamp at or after `timestamp_ms`.
    pub fn position_of_timestamp(&self, timestamp_ms: i64) -> Option<u64> {
        if self.is_part {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.max_timestamp_before_ms < timestamp_ms);
        after.checked_sub(1).map(|at| self.entries[at].position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_ups() {
        let mut index = Index::default();
        let step = INDEX_INTERVAL_BYTES;
        for n in 0..10u64 {
            // Every second group is too close to be noted.
            index.note(Offset::new(n * 10), 4096 + n * step / 2, if n == 0 { -1 } else { n as i64 * 100 });
        }
        assert_eq!(index.entries().len(), 5);
        let rows = [(0, 4096), (9, 4096), (19, 4096), (20, 4096 + step), (99, 4096 + 4 * step)];
        for (offset, position) in rows {
            assert_eq!(index.position_of(Offset::new(offset)), Some(position), "offset {offset}");
        }
        let rows = [(0, 4096), (200, 4096), (201, 4096 + step), (10_000, 4096 + 4 * step)];
        for (timestamp, position) in rows {
            assert_eq!(index.position_of_timestamp(timestamp), Some(position), "timestamp {timestamp}");
        }
        assert_eq!(Index::default().position_of(Offset::new(3)), None);
    }

    #[test]
    fn a_part_knows_the_end_alone() {
        let step = INDEX_INTERVAL_BYTES;
        let mut index = Index::of_end([(Offset::new(50), 9 * step), (Offset::new(60), 9 * step + 4096)]);
        assert!(!index.is_whole() && Index::default().is_whole());
        index.note(Offset::new(70), 10 * step, 700);
        let found = [49, 50, 69, 70].map(|offset| index.position_of(Offset::new(offset)));
        assert_eq!(found, [None, Some(9 * step), Some(9 * step), Some(10 * step)]);
        assert_eq!(index.position_of_timestamp(800), None);
    }
}
