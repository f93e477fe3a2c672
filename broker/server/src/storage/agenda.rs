//! When housekeeping is next to look at a partition that nobody appends to.
//!
//! One for each kind of look, per shard: partitions in the order of their times, so that those with nothing due cost
//! nothing, however many they are. Whoever changes what a look depends on (settings, the role, the log's start) puts the
//! partition down for now; whoever has looked puts down when time alone makes the next look worthwhile. Absent on
//! purpose: partitions that are appended to, which are looked at all the time.

use logic::ids::TopicPartition;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// The partitions to look at, and when.
#[derive(Default)]
pub struct Agenda {
    by_time: RefCell<BTreeSet<(i64, TopicPartition)>>,
    times: RefCell<BTreeMap<TopicPartition, i64>>,
}

impl Agenda {
    /// The time of who is looked at at the next opportunity.
    pub const NOW: i64 = i64::MIN;

    /// It is to be looked at when the clock shows `at_ms`, milliseconds since 1970; before, if that was put down already.
    pub fn put_down(&self, id: TopicPartition, at_ms: i64) {
        let mut times = self.times.borrow_mut();
        let known = times.get(&id).copied();
        if known.is_some_and(|known| known <= at_ms) {
            return;
        }
        times.insert(id, at_ms);
        let mut by_time = self.by_time.borrow_mut();
        known.map(|known| by_time.remove(&(known, id)));
        by_time.insert((at_ms, id));
    }

    /// Takes those out whose time has come, into `due`.
    pub fn take_due(&self, now_ms: i64, due: &mut BTreeSet<TopicPartition>) {
        let mut by_time = self.by_time.borrow_mut();
        let mut times = self.times.borrow_mut();
        while let Some((_, id)) = by_time.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms) {
            by_time.pop_first();
            times.remove(&id);
            due.insert(id);
        }
    }

    /// It is not here any more.
    pub fn strike_out(&self, id: &TopicPartition) {
        if let Some(at_ms) = self.times.borrow_mut().remove(id) {
            self.by_time.borrow_mut().remove(&(at_ms, *id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logic::ids::{PartitionIndex, TopicId};

    fn id(partition: u32) -> TopicPartition {
        TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(partition) }
    }

    #[test]
    fn each_is_taken_once_when_its_earliest_time_has_come() {
        let agenda = Agenda::default();
        let taken = |now_ms| {
            let mut due = BTreeSet::new();
            agenda.take_due(now_ms, &mut due);
            due.into_iter().map(|id| id.partition.get()).collect::<Vec<_>>()
        };
        let put_down = [(3, 50), (1, 20), (2, 20), (1, 30), (3, 40), (4, Agenda::NOW), (5, 10), (5, 10)];
        put_down.into_iter().for_each(|(partition, at_ms)| agenda.put_down(id(partition), at_ms));
        agenda.strike_out(&id(5));
        agenda.strike_out(&id(6));
        assert_eq!(taken(0), [4]);
        assert_eq!(taken(19), []);
        assert_eq!(taken(39), [1, 2]);
        assert_eq!(taken(39), []);
        agenda.put_down(id(1), 60);
        assert_eq!(taken(i64::MAX), [1, 3]);
        assert!(agenda.times.borrow().is_empty() && agenda.by_time.borrow().is_empty());
    }
}
