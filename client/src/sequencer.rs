//! The producer id, epoch and next sequence of one partition: what lets the broker recognise a batch that is
//! sent again.
//!
//! Owner: the partition's queue in the accumulator. No IO: the id comes from outside, epochs are raised here. All
//! partitions of a producer share its id; epochs and sequences are each partition's own, so that trouble with one
//! does not touch the others. Lifecycle of an epoch: sequences from 0 without gaps, until a batch that has a
//! sequence is given up or the broker finds a gap. Then the epoch is *over*: nothing new gets a sequence of it, and
//! when everything of it is settled the next one begins.
//!
//! Invariant: a batch keeps its sequence until the broker has said that it is not in the log and never will be
//! under this epoch. So a batch is never in the log twice, whatever gets lost. Absent on purpose: which batch may
//! leave when, which is the accumulator's.

use schema::record_batch::Producer;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sequencer {
    /// The next batch's; `None` before the first.
    next: Option<Producer>,
    over: bool,
    /// From this batch on (by its number in the queue) nothing that has a sequence of this epoch is in the log.
    gap_from: Option<u64>,
}

impl Sequencer {
    /// Whether a batch cannot get a sequence before there is another id than `known`.
    pub(crate) fn needs_id(&self, known: Option<(i64, i16)>) -> bool {
        match (self.next, known) {
            (_, None) => self.next.is_none() || self.is_used_up(),
            (Some(next), Some((id, _))) => self.is_used_up() && next.id == id,
            (None, Some(_)) => false,
        }
    }

    fn is_used_up(&self) -> bool {
        self.over && self.next.is_some_and(|next| next.epoch == i16::MAX)
    }

    /// The sequence for a batch of `records`; `None` if an id [is needed](Self::needs_id). When the epoch is
    /// over this begins the next one: nothing of the last may be under way or wait to be sent again.
    pub(crate) fn stamp(&mut self, records: u32, known: Option<(i64, i16)>) -> Option<Producer> {
        if self.needs_id(known) {
            return None;
        }
        let stamp = match self.next {
            Some(next) if !self.over => next,
            Some(next) if next.epoch < i16::MAX => {
                Producer { epoch: next.epoch + 1, base_sequence: 0, ..next }
            }
            _ => {
                let (id, epoch) = known?;
                Producer { id, epoch, base_sequence: 0 }
            }
        };
        self.over = false;
        self.gap_from = None;
        self.next = Some(stamp.after(records));
        Some(stamp)
    }

    /// A batch with a sequence will not be sent again: what comes after it needs another epoch.
    pub(crate) fn give_up(&mut self) {
        self.over = true;
    }

    /// The broker has said of batch `number` that it is not in the log; then nothing behind it is.
    pub(crate) fn gap(&mut self, number: u64) {
        self.over = true;
        self.gap_from = Some(self.gap_from.map_or(number, |from| from.min(number)));
    }

    /// Whether batch `number`, if it has a sequence of this epoch, is known not to be in the log.
    pub(crate) fn is_behind_gap(&self, number: u64) -> bool {
        self.gap_from.is_some_and(|from| number >= from)
    }

    /// Whether the epoch is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_and_sequences() {
        let known = Some((7, 0));
        let mut sequencer = Sequencer::default();
        assert_eq!((sequencer.needs_id(None), sequencer.stamp(1, None)), (true, None));
        let check = |sequencer: &mut Sequencer, records, known, expect: (i64, i16, i32)| {
            let stamp = sequencer.stamp(records, known).unwrap();
            assert_eq!((stamp.id, stamp.epoch, stamp.base_sequence), expect);
        };
        check(&mut sequencer, 10, known, (7, 0, 0));
        // The id is needed once only.
        check(&mut sequencer, 5, None, (7, 0, 10));
        check(&mut sequencer, 1, known, (7, 0, 15));
        sequencer.gap(3);
        sequencer.gap(2);
        let behind = [1, 2, 3, 4].map(|number| sequencer.is_behind_gap(number));
        assert_eq!((sequencer.is_over(), behind), (true, [false, true, true, true]));
        check(&mut sequencer, 2, known, (7, 1, 0));
        assert_eq!((sequencer.is_over(), sequencer.is_behind_gap(9)), (false, false));
        check(&mut sequencer, 2, known, (7, 1, 2));
        // The numbers go round.
        sequencer.next = Some(Producer { id: 7, epoch: 1, base_sequence: i32::MAX });
        check(&mut sequencer, 2, known, (7, 1, i32::MAX));
        check(&mut sequencer, 2, known, (7, 1, 1));
        // Epochs do not: the id is used up with them.
        sequencer.next = Some(Producer { id: 7, epoch: i16::MAX, base_sequence: 4 });
        check(&mut sequencer, 2, known, (7, i16::MAX, 4));
        sequencer.give_up();
        assert_eq!((sequencer.needs_id(known), sequencer.stamp(1, known)), (true, None));
        check(&mut sequencer, 2, Some((8, 0)), (8, 0, 0));
    }
}
