//! Fetches that found too few bytes and wait for more.
//!
//! Each shard owns one [`FetchWaiters`]. A fetch reads first; with fewer bytes than `min_bytes` it is parked
//! **in the same turn** (no await between the read and [`FetchWaiters::park`]), so no append can slip
//! between. It is woken by bytes ([`FetchWaiters::advanced`]), by anything else that changes its answer
//! ([`FetchWaiters::disturb`]: partition closed, leader changed, log cut), or by its deadline
//! ([`FetchWaiters::expire`]); the driver then reads again and answers with what there is.
//!
//! Invariants: the parked value `T` is moved in and moved out, so each fetch is woken exactly once. Counts
//! are hints: a waiter may be woken with fewer bytes than it wanted (a batch that its limits cut off), never
//! left asleep with more. Memory is bounded by [`Limits`].
//!
//! Absent on purpose: a clock (times are milliseconds of whatever monotonic clock the driver has), offsets,
//! and replies.

use crate::ids::TopicPartition;
use crate::limits::FETCH_WAITERS_MAX;
use std::collections::{BTreeSet, HashMap};

/// Partitions that all waiting fetches of one shard may name together: 48 bytes each.
pub const FETCH_WAITER_ENTRIES_MAX: usize = 1 << 20;

/// A partition's list of waiters keeps room for so many when it gets empty.
const LIST_ROOM_KEPT_MAX: usize = 16;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fetches.
    pub waiters_max: usize,
    /// Partitions named by all of them together.
    pub entries_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { waiters_max: FETCH_WAITERS_MAX, entries_max: FETCH_WAITER_ENTRIES_MAX }
    }
}

/// What a fetch found of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Which partition.
    pub partition: TopicPartition,
    /// Bytes that the read found.
    pub have_bytes: u64,
    /// Bytes of this partition that the reply may carry; what is beyond does not count.
    pub max_bytes: u64,
}

/// Names a parked fetch until it is woken or removed; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaiterKey {
    slot: u32,
    generation: u32,
}

/// Why a fetch was not parked, with the value given back: answer it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotParked<T> {
    /// There are enough bytes, or there can never be more in the reply, or no time is left.
    Ready(T),
    /// The limits are reached: answer with what there is.
    Full(T),
}

/// The parked fetches of one shard; `T` is what the driver needs to answer one.
#[derive(Debug)]
pub struct FetchWaiters<T> {
    limits: Limits,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    by_partition: HashMap<TopicPartition, Vec<Link>>,
    by_deadline: BTreeSet<(u64, u32)>,
    entries: usize,
    /// Scratch of [`FetchWaiters::advanced`], empty in between.
    satisfied: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    waiter: Option<Waiter<T>>,
}

#[derive(Debug)]
struct Waiter<T> {
    value: T,
    deadline_ms: u64,
    /// Bytes without which it sleeps on.
    missing_bytes: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    partition: TopicPartition,
    /// Bytes that still count.
    room_bytes: u64,
    /// Where the partition's list links back.
    at: u32,
}

/// A place in a partition's list.
#[derive(Clone, Copy, Debug)]
struct Link {
    slot: u32,
    entry: u32,
}

impl<T> FetchWaiters<T> {
    /// Nothing waits yet.
    pub fn new(limits: Limits) -> Self {
        // Slots and places are u32.
        let limits = Limits {
            waiters_max: limits.waiters_max.min(u32::MAX as usize),
            entries_max: limits.entries_max.min(u32::MAX as usize),
        };
        Self {
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            by_partition: HashMap::new(),
            by_deadline: BTreeSet::new(),
            entries: 0,
            satisfied: Vec::new(),
        }
    }

    /// How many fetches wait.
    pub fn len(&self) -> usize {
        self.by_deadline.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.by_deadline.is_empty()
    }

    /// Parks a fetch that found `waited` until `min_bytes` are there in all or the time is `deadline_ms`.
    pub fn park(
        &mut self,
        value: T,
        now_ms: u64,
        deadline_ms: u64,
        min_bytes: u64,
        waited: &[Waited],
    ) -> Result<WaiterKey, NotParked<T>> {
        let have: u64 = waited.iter().fold(0, |sum, w| sum.saturating_add(w.have_bytes.min(w.max_bytes)));
        let most: u64 = waited.iter().fold(0, |sum, w| sum.saturating_add(w.max_bytes));
        // More than the reply may carry cannot be waited for.
        let missing_bytes = min_bytes.min(most).saturating_sub(have);
        if missing_bytes == 0 || deadline_ms <= now_ms {
            return Err(NotParked::Ready(value));
        }
        if self.len() >= self.limits.waiters_max || waited.len() > self.limits.entries_max - self.entries {
            return Err(NotParked::Full(value));
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, waiter: None });
            (self.slots.len() - 1) as u32
        });
        let mut entries = Vec::with_capacity(waited.len());
        for (entry, w) in waited.iter().enumerate() {
            let list = self.by_partition.entry(w.partition).or_default();
            let room_bytes = w.max_bytes.saturating_sub(w.have_bytes);
            entries.push(Entry { partition: w.partition, room_bytes, at: list.len() as u32 });
            list.push(Link { slot, entry: entry as u32 });
        }
        self.entries += entries.len();
        self.by_deadline.insert((deadline_ms, slot));
        let place = &mut self.slots[slot as usize];
        place.waiter = Some(Waiter { value, deadline_ms, missing_bytes, entries });
        Ok(WaiterKey { slot, generation: place.generation })
    }

    /// `new_bytes` more can be read of `partition`; fetches that have enough now are moved to `woken`.
    pub fn advanced(&mut self, partition: TopicPartition, new_bytes: u64, woken: &mut Vec<T>) {
        let Some(list) = self.by_partition.get(&partition) else { return };
        // Taking waiters out reorders the list, so that comes after all have counted.
        for link in list {
            let Some(waiter) = &mut self.slots[link.slot as usize].waiter else { continue };
            let entry = &mut waiter.entries[link.entry as usize];
            let counted = new_bytes.min(entry.room_bytes);
            entry.room_bytes -= counted;
            // A fetch that names the partition twice counts on after it has enough, and is noted once.
            if waiter.missing_bytes > 0 {
                waiter.missing_bytes = waiter.missing_bytes.saturating_sub(counted);
                if waiter.missing_bytes == 0 {
                    self.satisfied.push(link.slot);
                }
            }
        }
        while let Some(slot) = self.satisfied.pop() {
            woken.extend(self.take(slot));
        }
    }

    /// The answer about `partition` changed otherwise than by bytes; its fetches are moved to `woken`.
    pub fn disturb(&mut self, partition: TopicPartition, woken: &mut Vec<T>) {
        while let Some(link) = self.by_partition.get(&partition).and_then(|list| list.last()).copied() {
            woken.extend(self.take(link.slot));
        }
        self.by_partition.remove(&partition);
    }

    /// Fetches whose deadline is `now_ms` or earlier are moved to `woken`, the earliest first.
    pub fn expire(&mut self, now_ms: u64, woken: &mut Vec<T>) {
        while let Some(&(deadline_ms, slot)) = self.by_deadline.first()
            && deadline_ms <= now_ms
        {
            woken.extend(self.take(slot));
        }
    }

    /// When [`FetchWaiters::expire`] should be called next, milliseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.by_deadline.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Takes a fetch out, because its connection is gone; `None` if it was woken already.
    pub fn remove(&mut self, key: WaiterKey) -> Option<T> {
        if self.slots.get(key.slot as usize)?.generation != key.generation {
            return None;
        }
        self.take(key.slot)
    }

    /// Takes every fetch out, because the shard stops.
    pub fn drain(&mut self, woken: &mut Vec<T>) {
        self.expire(u64::MAX, woken);
    }

    fn take(&mut self, slot: u32) -> Option<T> {
        let place = &mut self.slots[slot as usize];
        let waiter = place.waiter.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        self.by_deadline.remove(&(waiter.deadline_ms, slot));
        self.entries -= waiter.entries.len();
        // Links of this waiter may move each other, so each place is read when it is its turn.
        let mut entries = waiter.entries;
        for at in 0..entries.len() {
            let (partition, place) = (entries[at].partition, entries[at].at);
            let Some(list) = self.by_partition.get_mut(&partition) else { continue };
            list.swap_remove(place as usize);
            if let Some(moved) = list.get(place as usize) {
                if moved.slot == slot {
                    entries[moved.entry as usize].at = place;
                } else if let Some(other) = &mut self.slots[moved.slot as usize].waiter {
                    other.entries[moved.entry as usize].at = place;
                }
            }
            self.forget_if_empty(partition);
        }
        Some(waiter.value)
    }

    /// An empty list stays for the next fetch, unless it is a large one.
    fn forget_if_empty(&mut self, partition: TopicPartition) {
        if self
            .by_partition
            .get(&partition)
            .is_some_and(|list| list.is_empty() && list.capacity() > LIST_ROOM_KEPT_MAX)
        {
            self.by_partition.remove(&partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionIndex, TopicId};
    use proptest::prelude::*;

    fn partition(index: u32) -> TopicPartition {
        TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(index) }
    }

    /// `(partition, have, max)` each.
    type Rows<'a> = &'a [(u32, u64, u64)];

    fn waited(rows: Rows<'_>) -> Vec<Waited> {
        let row =
            |&(index, have_bytes, max_bytes)| Waited { partition: partition(index), have_bytes, max_bytes };
        rows.iter().map(row).collect()
    }

    enum Event {
        Advanced(u32, u64),
        Disturb(u32),
        Expire(u64),
    }
    use Event::*;

    /// Waiters park in order as 0, 1, … with `(deadline, min_bytes, entries)`; each event wakes `expect`.
    fn check(parked: &[(u64, u64, Rows<'_>)], events: &[(Event, &[usize])]) {
        let mut waiters = FetchWaiters::new(Limits::default());
        for (id, (deadline_ms, min_bytes, entries)) in parked.iter().enumerate() {
            waiters.park(id, 0, *deadline_ms, *min_bytes, &waited(entries)).unwrap();
        }
        for (at, (event, expect)) in events.iter().enumerate() {
            let mut woken = Vec::new();
            match event {
                Advanced(index, bytes) => waiters.advanced(partition(*index), *bytes, &mut woken),
                Disturb(index) => waiters.disturb(partition(*index), &mut woken),
                Expire(now_ms) => waiters.expire(*now_ms, &mut woken),
            }
            woken.sort_unstable();
            assert_eq!(woken, *expect, "event {at}");
        }
    }

    #[test]
    fn wake_ups() {
        const ALL: u64 = u64::MAX;
        check(
            &[(9, 1, &[(0, 0, ALL)])],
            &[(Advanced(1, 5), &[]), (Advanced(0, 1), &[0]), (Advanced(0, 1), &[])],
        );
        // Bytes of several appends and several partitions add up, with those that were there.
        check(
            &[(9, 10, &[(0, 3, ALL), (1, 0, ALL)])],
            &[(Advanced(0, 3), &[]), (Advanced(1, 3), &[]), (Advanced(1, 1), &[0])],
        );
        // What the reply cannot carry does not count; nobody waits for more than it can carry.
        check(&[(9, 10, &[(0, 0, 4), (1, 0, ALL)])], &[(Advanced(0, 100), &[]), (Advanced(1, 6), &[0])]);
        check(&[(9, 100, &[(0, 0, 4)])], &[(Advanced(0, 3), &[]), (Advanced(0, 1), &[0])]);
        // One append, many waiters.
        check(
            &[(9, 1, &[(0, 0, ALL)]), (9, 5, &[(0, 0, ALL)]), (9, 2, &[(0, 0, ALL)]), (9, 1, &[(1, 0, ALL)])],
            &[(Advanced(0, 2), &[0, 2]), (Advanced(0, 3), &[1]), (Disturb(1), &[3]), (Disturb(1), &[])],
        );
        // Deadlines in order, once.
        check(
            &[(5, 1, &[(0, 0, ALL)]), (3, 1, &[(0, 0, ALL)]), (5, 1, &[(1, 0, ALL)])],
            &[
                (Expire(2), &[]),
                (Expire(3), &[1]),
                (Advanced(0, 1), &[0]),
                (Expire(9), &[2]),
                (Expire(9), &[]),
            ],
        );
        // The same partition twice in one fetch.
        check(
            &[(9, 10, &[(0, 0, ALL), (0, 0, ALL)]), (9, 3, &[(0, 0, ALL)])],
            &[(Advanced(0, 5), &[0, 1]), (Advanced(0, 5), &[])],
        );
    }

    #[test]
    fn who_is_not_parked() {
        let limits = Limits { waiters_max: 2, entries_max: 4 };
        let mut waiters = FetchWaiters::new(limits);
        let mut park = |deadline_ms, min_bytes, rows: &[(u32, u64, u64)]| {
            waiters.park('x', 10, deadline_ms, min_bytes, &waited(rows))
        };
        assert_eq!(park(20, 0, &[(0, 0, 9)]), Err(NotParked::Ready('x')), "nothing to wait for");
        assert_eq!(park(20, 5, &[(0, 5, 9)]), Err(NotParked::Ready('x')), "enough");
        assert_eq!(park(20, 5, &[(0, 5, 3)]), Err(NotParked::Ready('x')), "the reply is full");
        assert_eq!(park(20, 5, &[]), Err(NotParked::Ready('x')), "no partition");
        assert_eq!(park(10, 5, &[(0, 0, 9)]), Err(NotParked::Ready('x')), "no time");
        assert_eq!(park(20, 5, &[(0, 0, 9); 5]), Err(NotParked::Full('x')), "too many partitions");
        let first = park(20, 5, &[(0, 0, 9); 3]).unwrap();
        assert_eq!(park(20, 5, &[(0, 0, 9); 2]), Err(NotParked::Full('x')), "too many partitions in all");
        park(20, 5, &[(0, 0, 9)]).unwrap();
        assert_eq!(park(20, 5, &[(0, 0, 9)]), Err(NotParked::Full('x')), "too many fetches");
        assert_eq!(waiters.remove(first), Some('x'));
        assert_eq!(waiters.remove(first), None);
        let again = waiters.park('y', 10, 20, 5, &waited(&[(0, 0, 9)])).unwrap();
        assert_eq!(waiters.remove(first), None, "a key never means another fetch");
        assert_eq!(waiters.remove(again), Some('y'));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Park { wait_ms: u64, min_bytes: u64, rows: Vec<(u32, u64, u64)> },
        Advanced(u32, u64),
        Disturb(u32),
        Later(u64),
        Remove(prop::sample::Index),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let row = (0u32..4, 0u64..4, 0u64..12);
        prop_oneof![
            4 => (0u64..20, 0u64..12, prop::collection::vec(row, 0..4))
                .prop_map(|(wait_ms, min_bytes, rows)| Step::Park { wait_ms, min_bytes, rows }),
            4 => (0u32..4, 0u64..6).prop_map(|(index, bytes)| Step::Advanced(index, bytes)),
            1 => (0u32..4).prop_map(Step::Disturb),
            2 => (0u64..8).prop_map(Step::Later),
            1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        ]
    }

    /// The obvious way: every waiter in a list, everything computed anew.
    #[derive(Clone)]
    struct Model {
        id: usize,
        deadline_ms: u64,
        min_bytes: u64,
        rows: Vec<(u32, u64, u64)>,
    }

    impl Model {
        fn satisfied(&self) -> bool {
            let have: u64 = self.rows.iter().map(|(_, have, max)| (*have).min(*max)).sum();
            let most: u64 = self.rows.iter().map(|(_, _, max)| *max).sum();
            have >= self.min_bytes.min(most)
        }
    }

    proptest! {
        /// No wake-up is lost, none comes twice or early.
        #[test]
        fn agrees_with_the_obvious_way(steps in prop::collection::vec(any_step(), 0..80)) {
            let mut waiters = FetchWaiters::new(Limits { waiters_max: 16, entries_max: 40 });
            let mut model: Vec<Model> = Vec::new();
            let mut keys = Vec::new();
            let mut now_ms = 0;
            for (id, step) in steps.into_iter().enumerate() {
                let mut woken = Vec::new();
                let mut expect: Vec<usize> = Vec::new();
                match step {
                    Step::Park { wait_ms, min_bytes, rows } => {
                        let deadline_ms = now_ms + wait_ms;
                        let waiter = Model { id, deadline_ms, min_bytes, rows };
                        let used: usize = model.iter().map(|waiter| waiter.rows.len()).sum();
                        let full = model.len() >= 16 || used + waiter.rows.len() > 40;
                        match waiters.park(id, now_ms, deadline_ms, min_bytes, &waited(&waiter.rows)) {
                            Ok(key) => {
                                prop_assert!(!waiter.satisfied() && wait_ms > 0 && !full);
                                keys.push((key, id));
                                model.push(waiter);
                            }
                            Err(NotParked::Ready(_)) => prop_assert!(waiter.satisfied() || wait_ms == 0),
                            Err(NotParked::Full(_)) => prop_assert!(full),
                        }
                    }
                    Step::Advanced(index, bytes) => {
                        waiters.advanced(partition(index), bytes, &mut woken);
                        for waiter in &mut model {
                            for row in waiter.rows.iter_mut().filter(|row| row.0 == index) {
                                row.1 += bytes;
                            }
                        }
                        expect.extend(model.iter().filter(|waiter| waiter.satisfied()).map(|waiter| waiter.id));
                    }
                    Step::Disturb(index) => {
                        waiters.disturb(partition(index), &mut woken);
                        let named = |waiter: &&Model| waiter.rows.iter().any(|row| row.0 == index);
                        expect.extend(model.iter().filter(named).map(|waiter| waiter.id));
                    }
                    Step::Later(ms) => {
                        now_ms += ms;
                        waiters.expire(now_ms, &mut woken);
                        let late = model.iter().filter(|waiter| waiter.deadline_ms <= now_ms);
                        expect.extend(late.map(|waiter| waiter.id));
                    }
                    Step::Remove(which) => {
                        if !keys.is_empty() {
                            let (key, id) = keys[which.index(keys.len())];
                            let there = model.iter().any(|waiter| waiter.id == id);
                            prop_assert_eq!(waiters.remove(key), there.then_some(id));
                            model.retain(|waiter| waiter.id != id);
                        }
                    }
                }
                woken.sort_unstable();
                expect.sort_unstable();
                prop_assert_eq!(&woken, &expect);
                model.retain(|waiter| !expect.contains(&waiter.id));
                prop_assert_eq!(waiters.len(), model.len());
                prop_assert_eq!(waiters.next_deadline(), model.iter().map(|waiter| waiter.deadline_ms).min());
            }
            let mut rest = Vec::new();
            waiters.drain(&mut rest);
            rest.sort_unstable();
            let mut expect: Vec<_> = model.iter().map(|waiter| waiter.id).collect();
            expect.sort_unstable();
            prop_assert_eq!(rest, expect);
            prop_assert!(waiters.is_empty() && waiters.entries == 0);
            prop_assert!(waiters.by_partition.values().all(Vec::is_empty));
        }
    }
}
