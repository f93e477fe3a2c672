//! Which leader epoch each offset of a log was written in, and how far two logs can agree.
//!
//! Owned by a replica, beside its log. Entries rise in epoch and in start; an epoch that wrote nothing may have
//! one, with the start of the next. Looking up costs a binary search over the leaders that the log has seen.

use crate::ids::{LeaderEpoch, Offset};

/// The epochs of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EpochHistory {
    entries: Vec<(LeaderEpoch, Offset)>,
}

impl EpochHistory {
    /// The history of a log, the oldest epoch first. Entries that do not rise are not taken in.
    pub fn new(entries: impl IntoIterator<Item = (LeaderEpoch, Offset)>) -> Self {
        let mut history = Self::default();
        for (epoch, start) in entries {
            if history.entries.last().is_none_or(|(last, begun)| *last < epoch && *begun <= start) {
                history.entries.push((epoch, start));
            }
        }
        history
    }

    /// Every epoch with its first offset, the oldest first.
    pub fn entries(&self) -> &[(LeaderEpoch, Offset)] {
        &self.entries
    }

    /// The newest epoch.
    pub fn last(&self) -> Option<LeaderEpoch> {
        self.entries.last().map(|(epoch, _)| *epoch)
    }

    /// `epoch` writes from `start` on. Nothing happens if it is the newest already.
    ///
    /// # Panics
    /// If a newer epoch has written here, or one has begun above `start`: epochs never go back within a log.
    #[inline]
    pub fn begin(&mut self, epoch: LeaderEpoch, start: Offset) {
        if let Some(&(last, begun)) = self.entries.last() {
            if last == epoch {
                return;
            }
            assert!(last < epoch && begun <= start, "epoch {epoch} at {start} after epoch {last} at {begun}");
        }
        self.entries.push((epoch, start));
    }

    /// The epoch of the record at `offset`, which is below the log's end; `None` = below the first that is known.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|(_, start)| *start <= offset);
        after.checked_sub(1).map(|at| self.entries[at].0)
    }

    /// The epoch of the record before `offset`.
    pub fn epoch_before(&self, offset: Offset) -> Option<LeaderEpoch> {
        offset.get().checked_sub(1).and_then(|before| self.epoch_at(Offset::new(before)))
    }

    /// One past the last offset of `epoch` in a log that ends at `log_end`; `None` = it has no entry.
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<Offset> {
        let at = self.entries.binary_search_by_key(&epoch, |(epoch, _)| *epoch).ok()?;
        Some(self.entries.get(at + 1).map_or(log_end, |(_, start)| *start))
    }

    /// Whether truncating to `to` removes an entry, even if no record goes.
    pub fn reaches(&self, to: Offset) -> bool {
        self.entries.last().is_some_and(|(_, start)| *start >= to)
    }

    /// The log ends at `to` now: epochs that began there or later are gone.
    pub fn truncate(&mut self, to: Offset) {
        let keep = self.entries.partition_point(|(_, start)| *start < to);
        self.entries.truncate(keep);
    }

    /// The log begins at `log_start` now: epochs that ended before it are gone.
    pub fn advance_start(&mut self, log_start: Offset) {
        let after = self.entries.partition_point(|(_, start)| *start <= log_start);
        if after > 1 {
            self.entries.drain(..after - 1);
        }
    }

    /// The end of what this log and another have in common, by epochs alone: the smaller end of the highest epoch
    /// that both have. `None` = they have no epoch in common.
    ///
    /// Not by high watermark: two logs below it may differ after a leader changed twice (KIP-101, KIP-279).
    pub fn common_end(
        &self,
        log_end: Offset,
        other: &[(LeaderEpoch, Offset)],
        other_end: Offset,
    ) -> Option<Offset> {
        let mut following = other_end;
        for (epoch, start) in other.iter().rev() {
            if let Some(end) = self.end_of(*epoch, log_end) {
                return Some(end.min(following));
            }
            following = *start;
        }
        None
    }
}
